"""The editors' lists, the log of clicks on them, and the queries: what a policy learns from is never what it is tested with."""

from __future__ import annotations

import pytest

from benchmarks.pretrained.editors import draw_queries, log_lists, write_annotations
from queryloop.product.clicks import item_probabilities
from queryloop.product.world import draw_world
from streams.events.normal_form import normalise
from trainers.policy.prompts import is_test

WORLD = draw_world(0, "english")


def test_what_is_learned_from_is_not_tested_with() -> None:
    learned = [*draw_queries(WORLD, 200, test=False), *(one.query for one in write_annotations(WORLD, 200))]
    tested = draw_queries(WORLD, 200, test=True)
    assert len(learned) == 400 and len(tested) == 200
    assert not any(is_test(normalise(query)) for query in learned)
    assert all(is_test(normalise(query)) for query in tested)


def test_queries_to_learn_from_differ_and_the_tests_are_the_traffic() -> None:
    assert len(set(draw_queries(WORLD, 300, test=False))) == 300
    assert len(set(draw_queries(WORLD, 300, test=True))) < 300


def test_the_same_world_gives_the_same_lists_and_clicks() -> None:
    assert log_lists(WORLD, 200) == log_lists(draw_world(0, "english"), 200)
    assert write_annotations(WORLD, 20) == write_annotations(WORLD, 20)


def test_the_log_has_as_many_clicks_as_the_world_makes() -> None:
    log = log_lists(WORLD, 4000)
    expected = sum(sum(item_probabilities(WORLD, query, items)) for query, items in zip(log.queries, log.lists, strict=True))
    assert len(log) == 4000
    assert log.clicked == pytest.approx(expected, abs=4 * expected**0.5)
    assert 1.2 < len(log) / len(set(log.sessions)) < 4
    assert list(log.days) == sorted(log.days)
