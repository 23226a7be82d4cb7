"""The report says what every policy reached and names each goal that was missed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.pretrained.measures import Row
from benchmarks.pretrained.plan import QUICK
from benchmarks.pretrained.report import Results, judge, make_report, render

QUERIES = ("lisbon", "porto", "lisbon", "rome")


def make_row(name: str, rate: float) -> Row:
    lists = tuple((f"{query} weather", f"{query} by {name}") for query in QUERIES)
    return Row(name, 1.0, 0.0, 0.0, 1.0, 12.0, lists, (rate, rate * 1.1, rate * 0.9, rate))


GOOD = Results(
    plan=QUICK,
    queries=QUERIES,
    rows=(make_row("few-shot", 0.05), make_row("SFT", 0.1), make_row("DPO", 0.13)),
    ceiling=0.3,
    figures={},
    drift={"reloaded": 1e-5},
    seconds=600.0,
)


def find_missed(results: Results) -> list[str]:
    return [goal.name for goal in judge(results) if not goal.met]


def test_a_run_that_reaches_all_misses_nothing() -> None:
    assert find_missed(GOOD) == []


@pytest.mark.parametrize(
    ("row", "change", "missed"),
    [
        (0, {"well_formed": 0.99}, "few-shot: lists well-formed"),
        (1, {"forced_lists": 0.06}, "SFT: lists in which the grammar forced a token"),
        (2, {"clean_texts": 0.98}, "DPO: texts without repetition"),
        (2, {"rates": (0.11, 0.12, 0.1, 0.11)}, "DPO over SFT, true click rate"),
        (0, {"rates": (0.2, 0.2, 0.2, 0.2)}, "SFT over few-shot, true click rate, low end"),
    ],
)
def test_a_goal_that_is_missed_is_named(row: int, change: dict[str, object], missed: str) -> None:
    rows = [replace(one, **change) if number == row else one for number, one in enumerate(GOOD.rows)]  # type: ignore[arg-type]
    assert missed in find_missed(replace(GOOD, rows=tuple(rows)))


def test_a_policy_that_loads_as_another_one_and_a_slow_run_are_named() -> None:
    assert find_missed(replace(GOOD, drift={"reloaded": 0.1})) == ["DPO, reloaded: nats a token from the served policy"]
    assert find_missed(replace(GOOD, seconds=12.5 * 60)) == ["the whole run"]


def test_the_table_has_a_row_a_policy_and_every_query_once_with_each_list() -> None:
    text = render(GOOD)
    assert sum(line.startswith(("| few-shot", "| SFT", "| DPO")) for line in text.splitlines()) == 3
    for query in set(QUERIES):
        assert text.count(f"**{query}**") == 1
        assert f"- DPO: {query} weather; {query} by DPO" in text
    assert "DPO over SFT 1.300 (1.300 to 1.300)" in text


def test_the_report_is_json_with_intervals_lists_and_goals() -> None:
    report = json.loads(json.dumps(make_report(GOOD, judge(GOOD), seed=3)))
    assert report["policies"][1]["true_click_rate"]["value"] == pytest.approx(0.1)
    assert [one["query"] for one in report["lists"]] == ["lisbon", "porto", "rome"]
    assert report["lists"][0]["SFT"] == ["lisbon weather", "lisbon by SFT"]
    assert all(goal["met"] for goal in report["goals"])
