"""A preview says what a replay would send: counts by type, times, and what would be refused with the reason."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queryloop import cli
from queryloop.exits import Exit
from streams.events.batch_decoder import decode_columns
from streams.events.schema import EventSettings, Reason
from streams.importers.log_files import Place, read_log
from streams.importers.mapping import Mapping
from streams.importers.preview import Refused, preview
from tests.support.logs import NOW, START, click, impression, query

MAPPING = "SELECT 'query' AS type, try_cast(t AS DOUBLE) AS ts, s AS session_id, q AS query FROM log"


def write_log(folder: Path) -> Path:
    lines = [
        query("q1", START + 9),
        impression("i1", START, "L", ["\x1b[31mred", "b"]),
        click("c1", START + 1, "L", 7),
        query("q2", START + 2),
        b"{nothing",
        query("q3", NOW + 2 * 86_400),
        query("q4", START, "x" * 600),
    ]
    (folder / "log.jsonl").write_bytes(b"\n".join(lines))
    return folder / "log.jsonl"


def test_a_log_is_counted_by_type_and_by_reason(tmp_path: Path) -> None:
    found = preview(write_log(tmp_path), NOW)
    assert (found.lines, found.types) == (7, {"click": 1, "impression": 1, "query": 2})
    assert found.reasons == {"future_event": 1, "malformed": 1, "too_large": 1}
    assert (found.first_ts, found.last_ts) == (START, START + 9)
    assert [(one.place.number, one.reason) for one in found.first_refused] == [
        (5, Reason.MALFORMED),
        (6, Reason.FUTURE_EVENT),
        (7, Reason.TOO_LARGE),
    ]
    assert len(found.first_lines) == 5


def test_limits_are_those_of_the_settings(tmp_path: Path) -> None:
    assert preview(write_log(tmp_path), NOW, limits=EventSettings(max_query_chars=600)).reasons.get("too_large") is None


def test_an_empty_log_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"")
    found = preview(tmp_path / "log", NOW)
    assert (found.lines, found.types, found.first_ts, found.first_lines) == (0, {}, None, [])


def test_a_row_that_cannot_be_read_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("t,s,q\n1,s,red\n2,s\nnever,s,red\n")
    found = preview(tmp_path / "log.csv", NOW, Mapping("map.sql", MAPPING))
    assert (found.lines, found.types, found.reasons) == (3, {"query": 1}, {"invalid": 2})
    assert found.first_refused == [
        Refused(Place(None, "answered row", 2), Reason.INVALID, "Object missing required field `ts`"),
        Refused(Place("log.csv", "row", 3), Reason.INVALID, "2 fields instead of 3"),
    ]


def test_the_command_says_it_to_people_and_to_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    log = str(write_log(tmp_path))
    assert cli.main(["replay", log, "--check"]) == Exit.FAILED
    text = capsys.readouterr().out
    assert "7 lines; events: click 1, impression 1, query 3" in text
    assert "log.jsonl line 5: malformed: " in text
    assert "\x1b" not in text
    assert cli.main(["replay", log, "--check", "--json"]) == Exit.FAILED
    assert json.loads(capsys.readouterr().out)["types"] == {"click": 1, "impression": 1, "query": 3}
    (tmp_path / "good.jsonl").write_bytes(query("q", START))
    assert cli.main(["replay", "good.jsonl", "--check"]) == Exit.DONE


def test_a_check_says_why_there_is_no_line_and_when_a_mapping_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "map.sql").write_text(MAPPING)
    (tmp_path / "log.csv").write_text("t,s,q\n")
    assert cli.main(["replay", "log.csv", "--check", "--mapping", "map.sql"]) == Exit.DONE
    assert "no line to send: the log is empty, has no row below its header" in capsys.readouterr().out
    (tmp_path / "log.jsonl").write_text('{"query_id": "q"}\n{"foo": 1}\n')
    assert cli.main(["replay", "log.jsonl", "--check"]) == Exit.FAILED
    assert "the first ones have no `type`: say with --mapping FILE" in capsys.readouterr().out
    (tmp_path / "log.jsonl").write_bytes(query("q", "never"))
    assert cli.main(["replay", "log.jsonl", "--check"]) == Exit.FAILED
    assert "--mapping" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["log.csv", "--check"], "log.csv is a table: say with --mapping FILE.sql what its columns are (docs/mappings.md)"),
        (["log.csv", "--check", "--mapping", "map.sql"], 'map.sql: Binder Error: Referenced column "t" not found'),
        (["log.csv", "--check", "--mapping", "none.sql"], "none.sql: no such file, and no mapping of that name ships: aol.sql"),
        (["log.csv", "--check", "--mapping", "two.sql"], "two.sql: a mapping is exactly one SELECT, this has SELECT, COPY"),
        (["log.csv", "--check", "--mapping", "other.sql"], "other.sql answers no column type, ts, session_id, query"),
        (["log.csv", "--check", "--speed", "2"], "--check sends nothing"),
        (["log.csv", "--isolated", "--as-of", "2020-01-01", "--out", "o", "--mapping", "map.sql"], 'column "t" not found'),
    ],
)
def test_what_cannot_be_replayed_ends_with_2_and_nothing_is_sent(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text("s,q\n")
    (tmp_path / "map.sql").write_text(MAPPING)
    (tmp_path / "two.sql").write_text("SELECT 1; COPY log TO 'x'")
    (tmp_path / "other.sql").write_text("SELECT s AS a FROM log")
    assert cli.main(["replay", *words]) == Exit.USAGE
    assert said in capsys.readouterr().err


BLANK = [b"", b" ", b"\t", b"\r", b" \t\r", b"\xef\xbb\xbf", b" \xef\xbb\xbf\r"]
IN_FRONT = re.compile(rb"\A(?:[ \t\r\n]|\xef\xbb\xbf)+")
BAD = [
    b"{not json",
    b"[1]",
    b"7",
    b"\xef\xbb",
    b"{} \xef\xbb\xbf",
    b"\x0c",
    b"\xff",
    b'{"type":"query","event_id":"short"}',
    query("f", NOW + 9 * 86_400),
]
GOOD = [
    query("q", START),
    b"\xef\xbb\xbf" + query("p", START),
    b"  " + click("c", START, position=1).replace(b": 1", b": 1.0") + b" \r",
    impression("i", START),
]
BREAKS = st.sampled_from([b"\n", b"\r\n"])


@settings(max_examples=150, deadline=None)
@given(
    drawn=st.lists(st.sampled_from(BLANK + BAD + GOOD) | st.text(max_size=5).map(lambda one: one.replace("\n", "").encode())),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    end=BREAKS,
    pack=st.sampled_from([bytes, gzip.compress]),
)
def test_a_check_names_exactly_the_lines_that_the_worker_refuses(
    drawn: list[bytes], mark: bytes, end: bytes, pack: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("log") / "log"
    log.write_bytes(pack(mark + end.join([*GOOD, *drawn])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.importers.preview.FIRST_REFUSED", 10**6)
        found = preview(log, NOW)
    refused = decode_columns([(0, b"\n".join(read_log(log)))], now=NOW).rejects
    assert [(one.reason, one.detail) for one in found.first_refused] == [(one.reason, one.detail) for one in refused]
    assert found.reasons == Counter(str(one.reason) for one in refused)
    assert found.lines == sum(found.types.values()) + len(refused)
    written = [IN_FRONT.sub(b"", line).rstrip(b" \t\r\n") for line in (mark + end.join([*GOOD, *drawn])).split(b"\n")]
    assert [written[one.place.number - 1] for one in found.first_refused] == [one.raw for one in refused]
    assert found.lines == sum(map(bool, written))
