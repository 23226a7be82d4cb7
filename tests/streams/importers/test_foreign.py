"""The rows that a mapping answers become events; a row that cannot be read keeps its text and place; a log twice counts once."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from streams.events.line_decoder import parse_line
from streams.events.schema import Reason, Reject
from streams.importers.log_files import LogFile, LogFileError, read_log
from streams.importers.mapping import Mapping, MappingError

SEARCHES = """
SELECT 'query' AS type, try_cast(time AS DOUBLE) AS ts, session AS session_id, query,
    CASE WHEN ts IS NULL THEN to_json(log) END AS log_row
FROM log
"""
HEAD = "time,session,query\n"


def mapped(folder: Path, sql: str, content: str | bytes, name: str = "log.csv") -> list[dict[str, Any]]:
    """The lines that a log becomes, decoded."""
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [json.loads(line) for line in read_log(folder / name, Mapping("map.sql", sql))]


def ndjson(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary folders of a test go into one of its own, and none is left."""
    scratch = tmp_path_factory.mktemp("it's scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []


ROWS = [{"time": "1", "session": "s", "query": 'red, "new"\nshoes'}, {"time": "2", "session": "s", "query": "straße"}]


def as_table(rows: list[dict[str, str]], delimiter: str = ",", end: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda one: pa.compress(one, codec="zstd", asbytes=True)])
@pytest.mark.parametrize(
    "content",
    [
        as_table(ROWS),
        b"\xef\xbb\xbf" + as_table(ROWS),
        as_table(ROWS, ";", "\r\n"),
        as_table(ROWS, "|"),
        ndjson(*ROWS).encode(),
        json.dumps(ROWS, indent=1).encode(),
        as_parquet(ROWS),
    ],
    ids=["csv", "byte order mark", "semicolon", "bar", "ndjson", "array", "parquet"],
)
def test_the_same_rows_in_any_format_are_the_same_events(content: bytes, pack: Any, tmp_path: Path) -> None:
    if content.startswith(b"PAR1") and pack is not bytes:
        pytest.skip("Parquet has a compression of its own")
    events = mapped(tmp_path, SEARCHES, pack(content), "it's a [log]*?")
    assert [(event["ts"], event["session_id"], event["query"]) for event in events] == [
        (1.0, "s", 'red, "new"\nshoes'),
        (2.0, "s", "straße"),
    ]
    assert [event["event_id"] for event in events] == [
        event["event_id"] for event in mapped(tmp_path, SEARCHES, as_table(ROWS), "plain.csv")
    ]


def test_tabs_part_fields_without_quotes(tmp_path: Path) -> None:
    (event,) = mapped(tmp_path, SEARCHES, 'time\tsession\tquery\n1\ts\t"red, shoes\n')
    assert event["query"] == '"red, shoes'


def test_a_table_may_be_read_in_another_way_by_the_mapping(tmp_path: Path) -> None:
    source = """FROM (SELECT column0 AS time, column1 AS session, column2 AS query FROM read_csv(
        getvariable('log'), header = false, quote = '$', encoding = 'latin-1', all_varchar = true)) AS log"""
    (event,) = mapped(tmp_path, SEARCHES.replace("FROM log", source), b"1,s,$stra\xdfe, 7$\n")
    assert event["query"] == "straße, 7"


def test_texts_of_json_stay_as_they_are_written(tmp_path: Path) -> None:
    texts = {"id": "3F2504E0-4F89-11D3-9A0C-0305E82C3301", "day": "2020-1-1", "time": "2020-01-01T00:00:00+02:00", "no": "007"}
    (event,) = mapped(
        tmp_path,
        "SELECT 'query' AS type, 1 AS ts, id AS session_id, day AS query, time, no, deep.UUID AS deep FROM log",
        ndjson(texts | {"deep": {"UUID": texts["id"], "DATE": ["2020-01-01"]}}),
    )
    assert {name: event[name] for name in ("session_id", "query", "time", "no", "deep")} == {
        "session_id": texts["id"],
        "query": "2020-1-1",
        "time": texts["time"],
        "no": "007",
        "deep": texts["id"],
    }


def test_nested_fields_and_fields_of_mixed_types(tmp_path: Path) -> None:
    sql = """
    SELECT 'impression' AS type, coalesce(epoch(try_cast(seen AS TIMESTAMPTZ)), try_cast(seen AS DOUBLE) / 1000) AS ts,
        visitor.id AS session_id, list.query AS query, list.id AS impression_id, list.shown AS items, list.more AS decoding
    FROM log
    """
    lists = [{"id": "a", "query": "q", "shown": ["x"], "more": {"k": [1, None]}}, {"id": "b", "query": "q", "shown": []}]
    rows = [{"seen": "2020-01-01T00:00:00Z", "visitor": {"id": "s"}, "list": lists[0]}, {"seen": 1500, "list": lists[1]}]
    good, bad = mapped(tmp_path, sql, ndjson(*rows))
    assert (good["ts"], good["session_id"], good["items"], good["decoding"]) == (1_577_836_800.0, "s", ["x"], {"k": [1, None]})
    assert (bad["ts"], "session_id" in bad, bad["items"]) == (1.5, False, [])


def test_names_that_differ_in_case_alone_leave_objects_as_json(tmp_path: Path) -> None:
    sql = "SELECT 'query' AS type, 1 AS ts, 's' AS session_id, list->>'$.ID' AS query, list FROM log"
    (event,) = mapped(tmp_path, sql, '{"list": {"id": 1, "ID": "two"}}\n')
    assert (event["query"], event["list"]) == ("two", {"id": 1, "ID": "two"})


def test_json_goes_in_as_it_is_and_null_is_left_out(tmp_path: Path) -> None:
    sql = """
    SELECT 'impression' AS type, 1 AS ts, 's' AS session_id, 'q' AS query, 'L' AS impression_id, NULL AS task,
        json_extract('{"a": ["x", "y"]}', ['$.a[0]', '$.a[1]']) AS items, '{"t": 1.50}'::JSON AS decoding, [NULL, '1'::JSON] AS n
    FROM log
    """
    (event,) = mapped(tmp_path, sql, HEAD + "1,s,q\n")
    assert (event["items"], event["decoding"], event["n"], "task" in event) == (["x", "y"], {"t": 1.5}, [None, 1], False)


@pytest.mark.parametrize("nan", ["NaN", " nan", "-NaN"])
def test_nan_that_a_table_has_for_json_is_left_out(nan: str, tmp_path: Path) -> None:
    sql = "SELECT 'query' AS type, 1 AS ts, session AS session_id, query, try_cast(items AS JSON) AS items FROM log"
    (event,) = mapped(tmp_path, sql, f"time,session,query,items\n1,s,q,{nan}\n")
    assert "items" not in event


@pytest.mark.parametrize(
    ("ts", "seconds"),
    [
        ("1600000000.25", 1_600_000_000.25),
        ("TIMESTAMP '2020-09-13 12:26:40.123457'", 1_600_000_000.123457),
        ("TIMESTAMPTZ '2020-09-13 14:26:40+02'", 1_600_000_000.0),
        ("TIMESTAMP_NS '2020-09-13 12:26:40.123457999'", 1_600_000_000.123457),
        ("strptime('13/Sep/2020 12:26:40', '%d/%b/%Y %H:%M:%S')", 1_600_000_000.0),
        ("TIMESTAMP '2020-09-13 08:26:40' AT TIME ZONE 'America/New_York'", 1_600_000_000.0),
        ("1600000000::DECIMAL(38, 0)", 1_600_000_000.0),
        ("'2020-09-13T14:26:40+02:00'", 1_600_000_000.0),
    ],
)
def test_times_in_many_forms(ts: str, seconds: float, tmp_path: Path) -> None:
    mapped(tmp_path, f"SELECT 'query' AS type, {ts} AS ts, session AS session_id, query FROM log", HEAD + "1,s,q\n")
    (line,) = read_log(
        tmp_path / "log.csv", Mapping("m", f"SELECT 'query' AS type, {ts} AS ts, session AS session_id, query FROM log")
    )
    event = parse_line(line)
    assert not isinstance(event, Reject)
    assert event.ts_us == round(seconds * 1_000_000)


@pytest.mark.parametrize("ts", ["'infinity'::TIMESTAMP", "TIMESTAMP '290000-01-01'", "'nan'::DOUBLE", "NULL", "'never'"])
def test_a_time_that_is_none_is_for_the_decoder_to_refuse(ts: str, tmp_path: Path) -> None:
    sql = f"SELECT 'query' AS type, {ts} AS ts, session AS session_id, query FROM log"
    (tmp_path / "log.csv").write_text(HEAD + "1,s,q\n")
    (line,) = read_log(tmp_path / "log.csv", Mapping("m", sql))
    found = parse_line(line)
    assert isinstance(found, Reject) and found.reason is Reason.INVALID and "ts" in found.detail


def test_rows_come_in_the_order_of_the_mapping_and_without_one_in_that_of_the_log(tmp_path: Path) -> None:
    numbers = [number * 7919 % 10_007 for number in range(10_007)]
    table = HEAD + "".join(f"{number},s,q\n" for number in numbers)
    assert [event["ts"] for event in mapped(tmp_path, SEARCHES, table)] == numbers
    assert [event["ts"] for event in mapped(tmp_path, SEARCHES + "ORDER BY ts", table)] == sorted(numbers)


def test_several_files_are_one_log_and_their_columns_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "1.csv").write_text("time,session,query\n1,s,a\n")
    (tmp_path / "logs" / "2.csv.gz").write_bytes(gzip.compress(b"query;more;session;time\nb;x;s;2\nbad\n"))
    (tmp_path / "logs" / "3.csv").write_text("time,session,query\n3,s,c\n")
    events = [json.loads(line) for line in read_log(tmp_path / "logs", Mapping("m", SEARCHES + "ORDER BY ts"))]
    assert [event.get("query") for event in events] == ["a", "b", "c", None]
    assert (events[-1]["file"], events[-1]["row"], events[-1]["text"]) == ("2.csv", 3, "bad")


@pytest.mark.parametrize(
    ("row", "said"),
    [(b"2,s", "2 fields instead of 3"), (b"2,s,red,more", "4 fields instead of 3"), (b"2,s,\xff", "not UTF-8")],
)
def test_a_row_that_cannot_be_read_keeps_its_text_and_its_place(row: bytes, said: str, tmp_path: Path) -> None:
    before, after, bad = mapped(tmp_path, SEARCHES, f"{HEAD}1,s,a\n".encode() + row + b"\n3,s,b\n")
    assert (before["query"], after["query"]) == ("a", "b")
    assert (bad["type"], bad["file"], bad["row"], bad["error"]) == ("unmapped", "log.csv", 3, said)
    assert base64.b64decode(bad["text_base64"]) == row if "text_base64" in bad else bad["text"].encode() == row


def test_lines_that_are_no_json_objects_keep_their_bytes_and_their_place(tmp_path: Path) -> None:
    lines = [b'{"time": 1, "session": "s", "query": "a"}', b"{broken", b"", b"[1]", b'{"query": "\xff"}', b'"text"', b"   "]
    lines += [b'{"time": 2, "session": "s", "query": "b"}\r', b'{"time": 3, "ses']
    events = mapped(tmp_path, SEARCHES, b"\n".join(lines), "log.ndjson")
    good, bad = [one for one in events if one["type"] == "query"], [one for one in events if one["type"] == "unmapped"]
    assert [event["query"] for event in good] == ["a", "b"]
    assert [(one["row"], one.get("text")) for one in bad] == [
        (2, "{broken"),
        (4, "[1]"),
        (5, None),
        (6, '"text"'),
        (9, '{"time": 3, "ses'),
    ]
    assert base64.b64decode(bad[2]["text_base64"]) == b'{"query": "\xff"}'
    assert {one["error"] for one in bad} == {"not a JSON object"}


def test_a_line_without_end_is_refused_with_its_beginning(tmp_path: Path) -> None:
    queries = ["a", "x" * 40_000_000, "b" * 4_100_000]
    rows = [{"time": number, "session": "s", "query": query} for number, query in enumerate(queries)]
    first, last, bad = mapped(tmp_path, SEARCHES, ndjson(*rows), "log.ndjson")
    assert (first["query"], len(last["query"])) == ("a", 4_100_000)
    assert (bad["row"], bad["text"][:10], 4_000_000 < len(bad["text"]) < 5_500_000) == (2, '{"time": 1', True)


def test_a_row_that_cannot_be_read_is_what_every_consumer_refuses(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEAD + "1,s\n")
    (line,) = read_log(tmp_path / "log.csv", Mapping("m", SEARCHES))
    found = parse_line(line)
    assert isinstance(found, Reject)
    assert found.reason is Reason.INVALID and found.event_id is not None and found.raw == line


def test_a_log_read_twice_by_its_mapping_says_its_bad_rows_once(tmp_path: Path) -> None:
    events = mapped(tmp_path, f"{SEARCHES} UNION ALL {SEARCHES}", HEAD + "1,s,a\nbad\n")
    assert [event["type"] for event in events] == ["query", "query", "unmapped"]


def test_an_event_without_an_id_has_the_same_one_every_time(tmp_path: Path) -> None:
    table = HEAD + "1,s,red\n1,s,red\n1,s,\n2,s\n2,s\n"
    events = mapped(tmp_path, SEARCHES, table)
    first, same, other, bad, also_bad = [event["event_id"] for event in events]
    assert first == same and len({first, other, bad, also_bad}) == 4
    assert mapped(tmp_path, SEARCHES, gzip.compress(table.encode()), "log.csv.gz") == events
    assert [
        one["event_id"] for one in mapped(tmp_path, SEARCHES.replace("query,", "query, 'mine ' || time AS event_id,"), table)
    ][:2] == ["mine 1", "mine 1"]


@settings(deadline=None, max_examples=25)
@given(queries=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=9), max_size=9))
def test_any_text_survives_a_table_and_json(queries: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = [{"time": str(number), "session": "s", "query": query} for number, query in enumerate(queries)]
    rows.append({"time": "99", "session": "s", "query": "last"})
    for content in (as_table(rows), ndjson(*rows).encode()):
        events = mapped(tmp_path_factory.mktemp("log"), SEARCHES, content)
        assert [event["query"] for event in events] == [*queries, "last"]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT 'query' AS type, nope AS ts FROM log", 'map.sql: Binder Error: Referenced column "nope" not found'),
        ("SELECT 1 AS a\nFROM other", "map.sql: Catalog Error: Table with name other does not exist! Did you mean"),
        (
            "SELECT time AS a, query FROM log",
            "map.sql answers no column type, ts, session_id, a field of every event; its columns are a",
        ),
        (SEARCHES.replace("query,", "query, query,"), "map.sql answers two columns of one name; its columns are type, ts"),
        ("FROM read_text('/etc/passwd')", 'map.sql: Permission Error: Cannot access file "/etc/passwd"'),
        ("WITH x AS (COPY (SELECT 1) TO 'x.csv') SELECT 1", "map.sql: Binder Error: COPY statements are not allowed"),
        ("SELECT $1", "map.sql: Invalid Input Error: Values were not provided"),
    ],
)
def test_a_mapping_that_does_not_fit_is_said_in_one_line_before_a_row_is_read(sql: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEAD + "1,s,q\n")
    with pytest.raises(MappingError) as refused:
        LogFile(tmp_path / "log.csv", Mapping("map.sql", sql))
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_a_cast_that_fails_names_the_mapping_and_the_value(tmp_path: Path) -> None:
    sql = "SELECT 'query' AS type,\ntime::BIGINT AS ts, session AS session_id, query FROM log"
    with pytest.raises(MappingError) as refused:
        mapped(tmp_path, sql, HEAD + "1,s,q\nx,s,q\n")
    said = f"map.sql on {tmp_path}/log.csv: Conversion Error: Could not convert string 'x' to INT64"
    assert str(refused.value).startswith(said) and str(refused.value).endswith(" (line 2)")


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"PAR1 and nothing more", "log.parquet", r"log\.parquet: cannot be read: .*log\.parquet"),
        (b'[{"a": 1}, {"a"', "log.json", r"log\.json: cannot be read: .*Malformed JSON in file \"log\.json\""),
        (b"{broken\n{also\n", "log.ndjson", r"log\.ndjson: none of its lines is a JSON object"),
        (
            gzip.compress(HEAD.encode() + b"1,s,q\n" * 9000)[:-8],
            "log.csv.gz",
            r"log\.csv\.gz: cannot be read: Compressed file ended",
        ),
        (gzip.compress(b'{"query": 1}\n' * 90_000)[:-8], "log.gz", r"log\.gz: cannot be read.*: Compressed file ended"),
        (b'{"time": 1, "session": "s", "query": "q", "time": 2}\n', "log.ndjson", r"map\.sql on .*JSON transform error"),
    ],
)
def test_a_log_that_cannot_be_read_is_named(content: bytes, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match=said) as refused:
        mapped(tmp_path, SEARCHES, content, name)
    assert "\n" not in str(refused.value) and "queryloop-mapping" not in str(refused.value)


def test_a_reading_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(HEAD + "1,s,q\n" * 100_000)
    with LogFile(tmp_path / "log.csv", Mapping("m", SEARCHES)) as log:
        assert next(iter(log))
        assert log.size == (tmp_path / "log.csv").stat().st_size
        assert 0 <= log.position <= log.size


def test_a_bad_first_line_is_refused_and_the_good_ones_are_read(tmp_path: Path) -> None:
    bad, good = sorted(
        mapped(tmp_path, SEARCHES, b"garbage\n" + ndjson(ROWS[0]).encode(), "log"), key=lambda line: "query" in line
    )
    assert (bad["type"], bad["row"], bad["text"], bad["error"]) == ("unmapped", 1, "garbage", "not a JSON object")
    assert good["query"] == ROWS[0]["query"]


@pytest.mark.parametrize("content", [b"broken {", b"not json at all\n", b"one, two\n\n", b"42\n", b"null\n", b'"words"\n'])
def test_lines_that_are_nothing_are_no_header_of_an_empty_table(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match=r"log: none of its lines is a JSON object; if it is a table, end its name in \.csv"):
        mapped(tmp_path, SEARCHES, content, "log")


def test_ctrl_c_does_not_wait_for_a_batch_of_a_slow_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "log.csv").write_text(HEAD + "1,s,q\n")
    slow = "SELECT 'query' AS type, sum(hash(r.range))::DOUBLE AS ts, 's' AS session_id, 'q' AS query FROM range(1000000000000) r"
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(read_log(tmp_path / "log.csv", Mapping("m", slow)))
    assert time.monotonic() - began < 30
    assert list((tmp_path / "scratch").iterdir()) == []


def test_json_over_several_lines_stays_one_event(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("a\n1\n")
    sql = "SELECT 'query' type, 1 ts, 's' session_id, 'q' query, '{\n \"x\": 1}'::JSON AS own, ['[\n1]'::JSON] AS more FROM log"
    (line,) = read_log(tmp_path / "log.csv", Mapping("m", sql))
    assert b"\n" not in line and json.loads(line)["own"] == {"x": 1}
