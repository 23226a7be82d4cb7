"""The demo's sizes give settings that the rooms accept, in a folder and on ports of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from queryloop.demo.plan import choose_plan, make_settings
from queryloop.settings import Settings


@pytest.mark.parametrize("quick", [False, True])
def test_the_settings_are_valid_and_keep_to_the_work_folder(tmp_path: Path, quick: bool) -> None:
    settings = make_settings(Settings(), choose_plan(quick=quick), tmp_path)
    assert settings.data.dir == tmp_path
    assert settings.policy.annotations == tmp_path / "annotations.jsonl"
    assert settings.serving.threads == 1
    assert {settings.timetable.ctr, settings.timetable.index, settings.timetable.policy} == {"off"}
    assert settings.worker.port != Settings().worker.port
    assert settings.serving.port != Settings().serving.port


def test_the_broker_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    given = Settings.model_validate({"kafka": {"broker": "kafka", "partitions": 2}})
    settings = make_settings(given, choose_plan(quick=True), tmp_path)
    assert (settings.kafka.broker, settings.kafka.partitions) == ("kafka", 2)
    assert settings.worker.static


def test_the_product_has_the_world_and_the_habits_that_were_asked_for(tmp_path: Path) -> None:
    given = Settings.model_validate({"product": {"world": "english", "follow_rate": 0.25}})
    product = make_settings(given, choose_plan(quick=True), tmp_path).product
    assert (product.world, product.follow_rate) == ("english", 0.25)


@pytest.mark.parametrize("quick", [False, True])
def test_the_calendar_fits_into_what_the_store_keeps(quick: bool) -> None:
    assert choose_plan(quick=quick).days < Settings().worker.retention_days
