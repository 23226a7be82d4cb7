"""Parquet as pandas and other writers make it: the same events, whatever the types of its columns."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from streams.events.line_decoder import parse_line
from streams.events.schema import Click, Impression, Reject
from streams.importers.log_files import read_log
from streams.importers.mapping import Mapping

T = 1_767_607_200.0
BASE = {"ts": [T, T + 5], "session_id": ["s", "s"], "query": ["lisbon", "lisbon"], "impression_id": ["i", "i"]}
EVENTS: dict[str, Any] = {
    "type": ["impression", "click"],
    "event_id": ["e2", "e3"],
    **BASE,
    "items": [["a", "b"], None],
    "position": [None, 1],
}


def write(folder: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(EVENTS | columns), folder / "log.parquet")
    return folder / "log.parquet"


def read(path: Path, mapping: Mapping | None = None) -> list[Any]:
    return [parse_line(line) for line in read_log(path, mapping)]


def test_a_position_is_a_whole_number_where_pandas_made_floats_of_it(tmp_path: Path) -> None:
    shown, clicked = read(write(tmp_path, position=pa.array([None, 1.0], pa.float64())))
    assert (type(shown), type(clicked), clicked.position) == (Impression, Click, 1)
    assert (shown.extra, clicked.extra) == (b"", b"")


@pytest.mark.parametrize(
    ("value", "said"),
    [(1.5, "Expected a whole number, got 1.5"), (float("inf"), "Number out of range"), (2.0**53, "Expected `int` <= 2147483647"),
     (float("nan"), "Object missing required field `position`")],
)  # fmt: skip
def test_a_position_that_is_none_is_refused_with_its_reason(value: float, said: str, tmp_path: Path) -> None:
    _, refused = read(write(tmp_path, position=pa.array([float("nan"), value], pa.float64())))
    assert isinstance(refused, Reject) and said in refused.detail


def test_nan_and_null_are_absent_in_optional_columns(tmp_path: Path) -> None:
    nothing = pa.array([float("nan"), None], pa.float64())
    lines = list(read_log(write(tmp_path, logprob=nothing, user_id=pa.array([None, None], pa.string()), own=nothing)))
    assert all({"logprob", "user_id", "own"}.isdisjoint(json.loads(line)) for line in lines)
    assert [type(one) for one in map(parse_line, lines)] == [Impression, Click]


MOMENTS = [datetime.fromtimestamp(T, UTC), datetime.fromtimestamp(T + 5, UTC)]


@pytest.mark.parametrize(
    "columns",
    [
        {"ts": pa.array([int(T * 1e9), int((T + 5) * 1e9)], pa.timestamp("ns"))},
        {"ts": pa.array(MOMENTS, pa.timestamp("us", "Europe/Lisbon"))},
        {"type": pa.array(["impression", "click"]).dictionary_encode(), "session_id": pa.array(["s", "s"]).dictionary_encode()},
        {"query": pa.array(["lisbon"] * 2, pa.large_string())},
        {"items": pa.array([["a", "b"], None], pa.large_list(pa.large_string()))},
        {"items": pa.array([["a", "b"], None], pa.list_(pa.dictionary(pa.int8(), pa.string())))},
        {"position": pa.array([None, 1], pa.uint8()), "query": pa.array(["lisbon"] * 2, pa.string_view())},
        {"__index_level_0__": [7, 9], "decoding": [{"temperature": 0.5, "beams": float("nan")}, None]},
    ],
)  # fmt: skip
def test_the_types_of_the_columns_do_not_matter(columns: dict[str, Any], tmp_path: Path) -> None:
    shown, clicked = read(write(tmp_path, **columns))
    assert (shown.ts_us, shown.session_id, shown.items, shown.extra) == (int(T * 1e6), "s", ("a", "b"), b"")
    assert (clicked.ts_us, clicked.query, clicked.position) == (int((T + 5) * 1e6), "lisbon", 1)


def test_days_in_ts_begin_at_midnight_utc(tmp_path: Path) -> None:
    shown, _ = read(write(tmp_path, ts=pa.array([date(2026, 1, 5)] * 2)))
    assert shown.ts_us == int(datetime(2026, 1, 5, tzinfo=UTC).timestamp() * 1e6)


def test_a_mapping_may_answer_whole_numbers_as_floats(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("t,p\n1,1.0\n2,1.5\n")
    sql = "SELECT 'click' AS type, t::DOUBLE ts, 's' session_id, 'q' query, 'i' impression_id, p::DOUBLE AS position FROM log"
    good, bad = read(tmp_path / "log.csv", Mapping("m", sql))
    assert good.position == 1
    assert "got 1.5" in bad.detail


def test_parquet_without_rows_has_no_line(tmp_path: Path) -> None:
    parquet.write_table(pa.table({name: pa.array([], pa.null()) for name in EVENTS}), tmp_path / "log.parquet")
    assert read(tmp_path / "log.parquet") == []
