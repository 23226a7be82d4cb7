"""What is said where the packages that run a model are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from serving.models_extra import MODULES, ModelsMissing, find_missing, require_models
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import NOW, AppUnderTest


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make modules look as if they were not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_where_all_is_installed_nothing_is_missing() -> None:
    assert find_missing() is None
    require_models()


@pytest.mark.parametrize("name", MODULES)
def test_each_missing_package_is_named_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    hide(monkeypatch, name)
    with pytest.raises(ModelsMissing, match=rf"models need {name}, .*pip install 'queryloop\[cpu\]' \(or gpu\)"):
        require_models()


def test_all_missing_packages_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, *MODULES)
    assert (find_missing() or "").startswith("models need torch, transformers, faiss, not installed here")


def test_without_the_packages_of_models_events_are_taken_and_lists_refused_with_what_to_install(tmp_path: Path) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine(), empty=True)
    served.slot.missing = "models need torch: pip install it"

    call = {"task": "suggest", "query": "red shoes", "session_id": "s1"}

    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.post("/v1/recommend", json=call)
        assert (refused.status_code, refused.json()) == (503, {"error": "models need torch: pip install it"})
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["missing"], ready.json()["failed"]) == (503, True, False)
        query = {"type": "query", "event_id": "e", "ts": NOW, "session_id": "s", "query": "shoes"}
        assert (await client.post("/v1/events", json={"events": [query]})).status_code == 202

    served.run(scenario)
