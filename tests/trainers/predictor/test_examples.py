"""Training rows from the lake: the window's mature days, labels as attributed, no session common to predictor and judge."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.lake.files import Lake
from streams.lake.reader import SCHEMAS
from trainers.predictor.examples import ListExamples, hold_out, make_examples, read_examples, take_part

DAY_US = 86_400_000_000
EPOCH = date(1970, 1, 1)


def row(number: int, day: int, items: list[str], clicked: list[bool], **more: Any) -> dict[str, Any]:
    known = {"event_id": f"e{number}", "session_id": f"s{number}", "query": f"Query {number}", "ts_us": day * DAY_US + number}
    filled = dict.fromkeys(SCHEMAS["impressions"].names)
    return {
        **filled,
        **known,
        "impression_id": f"i{number}",
        "query_norm": f"query {number}",
        "items": items,
        "clicked": clicked,
        **more,
    }


def write_day(lake: Path, day: date, rows: list[dict[str, Any]]) -> None:
    folder = lake / "impressions" / f"day={day}"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["impressions"]), folder / "shard-0.parquet")


def sessions_of(count: int) -> ListExamples:
    numbers = range(count)
    clicks = tuple((n % 2 == 0, n % 3 == 0) for n in numbers)
    return ListExamples(
        tuple(f"q{n}" for n in numbers), (("a", "b"),) * count, clicks, tuple(f"s{n // 3}" for n in numbers), (0,) * count
    )


def test_a_window_holds_the_days_before_as_of_in_order_of_time(tmp_path: Path) -> None:
    for day in (1, 2, 3, 4):
        write_day(
            tmp_path, date(2024, 5, day), [row(10 * day + k, (date(2024, 5, day) - EPOCH).days, ["x"], [False]) for k in (1, 0)]
        )
    examples = read_examples(Lake.local(tmp_path), date(2024, 5, 4), 2, "all")
    assert examples.queries == ("Query 20", "Query 21", "Query 30", "Query 31")
    assert examples.days == tuple((date(2024, 5, day) - EPOCH).days for day in (2, 2, 3, 3))


def test_each_shown_position_is_a_row_and_several_may_be_clicked(tmp_path: Path) -> None:
    write_day(tmp_path, date(2024, 5, 1), [row(1, 0, ["A", "b", "c"], [True, False, True]), row(2, 0, [], [])])
    examples = read_examples(Lake.local(tmp_path), date(2024, 5, 2), 14, "all")
    assert (len(examples), examples.positions, examples.clicked) == (1, 3, 2)
    assert examples.lists == (("A", "b", "c"),) and examples.clicks == ((True, False, True),)
    assert list(examples.texts()) == ["Query 1", "A", "b", "c"]


def test_predictor_and_judge_share_no_session_and_lose_no_impression() -> None:
    examples = sessions_of(600)
    predictor, judge = take_part(examples, "predictor"), take_part(examples, "judge")
    assert not set(predictor.sessions) & set(judge.sessions)
    assert sorted(predictor.queries + judge.queries) == sorted(examples.queries)
    assert 0.35 < len(predictor) / 600 < 0.65
    assert take_part(examples, "all") is examples


@given(st.integers(0, 5))
def test_a_session_is_held_out_whole_and_always_the_same_ones(seed: int) -> None:
    examples = sessions_of(600)
    fitted, held = hold_out(examples, 0.2, seed)
    assert not set(fitted.sessions) & set(held.sessions)
    assert len(fitted) + len(held) == 600 and 0.1 < len(held) / 600 < 0.3
    longer = sessions_of(900)
    assert hold_out(longer, 0.2, seed)[1].queries[: len(held)] == held.queries
    assert hold_out(examples, 0.2, seed + 1)[1] != held


def test_an_empty_lake_gives_no_examples(tmp_path: Path) -> None:
    assert len(read_examples(Lake.local(tmp_path), date(2024, 5, 4), 14, "judge")) == 0
    assert make_examples(SCHEMAS["impressions"].empty_table()).positions == 0


@pytest.mark.parametrize("part", ["predictor", "judge"])
def test_parts_do_not_depend_on_what_else_is_in_the_log(part: Any) -> None:
    few, many = take_part(sessions_of(60), part), take_part(sessions_of(600), part)
    assert many.queries[: len(few)] == few.queries
