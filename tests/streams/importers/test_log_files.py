"""A log is the same log in whatever format it comes: plain, gzip, zstd, Parquet; broken ones are named with the place."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import streams.importers.sources
from streams.events.line_decoder import parse_line
from streams.events.schema import strip_line
from streams.importers.log_files import LogFile, LogFileError, Place, read_log, session_of, time_of
from streams.importers.sources import Source
from tests.support.logs import START, click, impression, query

LINES = [
    query("q1", START, "red shoes", source="user", user_id="u"),
    impression("i1", START + 1, "L1", ["straße", "a"], predicted=[0.5, 0.25], decoding={"temperature": 0.5}, task="suggest"),
    click("c1", START + 2.25, "L1", 1, item="a"),
]


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def as_parquet(lines: list[bytes], path: Path, **types: pa.DataType) -> Path:
    """The events of lines as Parquet rows: a column a field, null where an event has none."""
    table = pa.Table.from_pylist([json.loads(line) for line in lines], _schema(lines))
    for name, kind in types.items():
        column = pa.array([_moment(value, kind) for value in table[name].to_pylist()], kind)
        table = table.set_column(table.column_names.index(name), name, column)
    parquet.write_table(table, path, row_group_size=2)
    return path


def _schema(lines: list[bytes]) -> pa.Schema:
    fields: dict[str, pa.DataType] = {}
    for line in lines:
        for name, value in json.loads(line).items():
            fields.setdefault(name, pa.scalar(value).type)
    return pa.schema(list(fields.items()))


def _moment(seconds: float, kind: pa.DataType) -> datetime:
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment if kind.tz else moment.replace(tzinfo=None)


def events(lines: list[bytes]) -> list[Any]:
    return [parse_line(line) for line in lines]


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log.jsonl.zst", "log"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd, lambda one: gzip.compress(one[:50]) + gzip.compress(one[50:])])
def test_a_log_is_told_by_its_first_bytes_not_by_its_name(name: str, pack: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pack(b"one\r\n\n\xff two\n" + LINES[0]))
    assert list(read_log(tmp_path / name)) == [b"one", b"\xff two", LINES[0]]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_files_put_one_behind_the_other_keep_their_byte_order_marks_and_lose_no_line(pack: Any, tmp_path: Path) -> None:
    marked = b"\xef\xbb\xbf"
    (tmp_path / "log").write_bytes(pack(marked + LINES[0] + b"\n") + pack(marked + b"\r\n") + pack(marked * 2 + b" " + LINES[1]))
    assert list(read_log(tmp_path / "log")) == LINES[:2]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_an_empty_log_has_no_line(pack: Any, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(pack(b""))
    assert list(read_log(tmp_path / "log")) == []


@given(lines=st.lists(st.binary(max_size=12).map(lambda one: one.replace(b"\n", b"")), max_size=20), block=st.integers(1, 9))
def test_blocks_of_any_size_give_the_same_lines(lines: list[bytes], block: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(b"x\n" + b"\n".join(lines))  # what begins with x is no other format
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams.importers.sources, "BLOCK_BYTES", block)
        patch.setattr(streams.importers.sources, "find_fault", lambda head, packed: None)  # the lines may be binary
        assert list(read_log(path)) == [b"x", *(line for one in lines if (line := strip_line(one)))]


def test_a_line_without_end_is_cut_and_the_next_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.importers.sources, "BLOCK_BYTES", 16)
    monkeypatch.setattr(streams.importers.sources, "MAX_LINE_BYTES", 40)
    (tmp_path / "log").write_bytes(b"a\n" + b"x" * 1000 + b"\nb\n" + b"y" * 100)
    first, cut, second, last = read_log(tmp_path / "log")
    assert (first, second) == (b"a", b"b")
    assert 40 <= len(cut) <= 60 and 40 <= len(last) <= 60


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_compressed_log_that_is_cut_short_is_named_with_its_line(pack: Any, tmp_path: Path) -> None:
    content = b"\n".join(b"%d %d" % (number, number * 7919 % 1_000_003) for number in range(200_000))
    (tmp_path / "cut").write_bytes(pack(content)[:-2000])
    with pytest.raises(LogFileError, match=r"cut: cannot be read after line \d+: "):
        list(read_log(tmp_path / "cut"))


def test_a_log_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match=r"absent\.log: cannot be read: No such file or directory$"):
        list(read_log(tmp_path / "absent.log"))


def test_a_log_says_how_far_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "log.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    with LogFile(tmp_path / "log.gz") as log:
        assert (log.position, log.size) == (0, (tmp_path / "log.gz").stat().st_size)
        assert len(list(log)) == 2
        assert log.position == log.size


@pytest.mark.parametrize("kind", [None, pa.timestamp("us"), pa.timestamp("ms", "UTC"), pa.timestamp("ns", "Europe/Berlin")])
def test_parquet_rows_are_the_same_events(kind: pa.DataType | None, tmp_path: Path) -> None:
    path = as_parquet(LINES, tmp_path / "log", **({} if kind is None else {"ts": kind}))
    assert events(list(read_log(path))) == events(LINES)


def test_parquet_maps_are_objects_wherever_they_stand(tmp_path: Path) -> None:
    inner = pa.map_(pa.string(), pa.int64())
    context = pa.array([None, {"m": [("a", 1)], "l": [[("b", 2)]]}, None], pa.struct([("m", inner), ("l", pa.list_(inner))]))
    table = parquet.read_table(as_parquet(LINES, tmp_path / "plain")).append_column("context", context)
    parquet.write_table(table, tmp_path / "log")
    assert json.loads(list(read_log(tmp_path / "log"))[1])["context"] == {"m": {"a": 1}, "l": [{"b": 2}]}


def test_parquet_whose_columns_cannot_say_what_is_meant_is_refused(tmp_path: Path) -> None:
    table = parquet.read_table(as_parquet(LINES, tmp_path / "plain"))
    narrow = table.set_column(table.column_names.index("ts"), "ts", table["ts"].cast(pa.float32()))
    for name, spoiled, said in (
        ("a", narrow, "ts is float, which"),
        ("b", table.append_column("query", table["query"]), "query twice"),
    ):
        parquet.write_table(spoiled, tmp_path / name)
        with pytest.raises(LogFileError, match=said):
            LogFile(tmp_path / name)


def test_parquet_keeps_maps_unknown_fields_and_bad_rows(tmp_path: Path) -> None:
    rows = [
        json.loads(LINES[1]) | {"decoding": [("t", 1)], "context": [["x"]], "raw": b"by\xfftes"},
        {"event_id": None, "type": "q"},
    ]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("type", "event_id", "session_id", "query", "impression_id", "task")),
            ("ts", pa.float64()),
            ("items", pa.list_(pa.string())),
            ("predicted", pa.list_(pa.float32())),
            ("decoding", pa.map_(pa.string(), pa.int64())),
            ("context", pa.list_(pa.list_(pa.string()))),
            ("raw", pa.binary()),
        ]
    )
    parquet.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "log.parquet")
    good, bad = (json.loads(line) for line in read_log(tmp_path / "log.parquet"))
    assert good == json.loads(LINES[1]) | {"decoding": {"t": 1}, "context": [["x"]], "raw": "by�tes"}
    assert bad == {"type": "q"}


@pytest.mark.parametrize("year", [1970, 2021, 2100, 2500])
def test_a_parquet_timestamp_keeps_its_microseconds(year: int, tmp_path: Path) -> None:
    moment = datetime(year, 7, 1, 12, 0, 0, 123_457, tzinfo=timezone(timedelta(hours=2)))
    row = {"type": "query", "event_id": "e", "ts": moment, "session_id": "s", "query": "q"}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "log.parquet")
    (line,) = read_log(tmp_path / "log.parquet")
    event = parse_line(line)
    assert event.ts_us == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)  # type: ignore[union-attr]


def test_parquet_that_holds_no_events_is_refused_at_once(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"query": ["a"], "type": ["query"]}), tmp_path / "log.parquet")
    with pytest.raises(LogFileError, match=r"no column event_id, ts, session_id; its columns are query, type"):
        LogFile(tmp_path / "log.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(LogFileError, match=r"broken\.parquet: cannot be read as Parquet"):
        LogFile(tmp_path / "broken.parquet")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match="No such file"):
        Source(tmp_path / "missing")


def test_a_table_without_a_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(b"a,b\n"))
    with pytest.raises(LogFileError, match="say with --mapping FILE"):
        LogFile(tmp_path / "log.csv.gz")


@pytest.mark.parametrize(
    ("line", "session_id", "ts_us"),
    [
        (query("e", 12.5, session_id="a"), "a", 12_500_000),
        (query("e", "2020-09-13T12:26:40Z", session_id="a"), "a", 1_600_000_000_000_000),
        (query("e", "not a time", session_id="a"), "a", None),
        (query("e", "2020-09-13T12:26:40", session_id="a"), "a", None),
        (b'{"session_id":7,"ts":1}', "", 1_000_000),
        (b"\xff\x00", "", None),
        (b"[1]", "", None),
    ],
)
def test_session_and_time_of_a_line_are_read_if_it_has_them(line: bytes, session_id: str, ts_us: int | None) -> None:
    assert session_of(line) == session_id
    assert time_of(line) == ts_us


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_a_byte_order_mark_and_blank_lines_are_no_lines(pack: Any, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(pack(b"\xef\xbb\xbf" + LINES[0] + b"\r\n \t \r\n\n  " + LINES[1] + b" \n"))
    assert list(read_log(tmp_path / "log")) == LINES[:2]
    (tmp_path / "log").write_bytes(pack(b"\xef\xbb\xbf\r\n\t\n"))
    assert list(read_log(tmp_path / "log")) == []


def test_a_folder_and_a_glob_are_their_files_in_order_each_line_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES[2])
    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(b"\n\n" + LINES[0]))
    (tmp_path / ".hidden").write_bytes(b"no")
    as_parquet(LINES[1:2], tmp_path / "a.parquet")
    with LogFile(tmp_path) as log:
        found = [(log.place_of(line), parse_line(line)) for line in log]
        assert log.position == log.size == sum(path.stat().st_size for path in tmp_path.rglob("[12a]*") if path.is_file())
    assert [place for place, _ in found] == [
        Place("1.jsonl.gz", "line", 3),
        Place("a.parquet", "row", 1),
        Place("b/2.jsonl", "line", 1),
    ]
    assert [getattr(event, "event_id", None) for _, event in found] == ["q1", "i1", "c1"]
    assert len(list(read_log(tmp_path / "*.jsonl.gz"))) == 1
