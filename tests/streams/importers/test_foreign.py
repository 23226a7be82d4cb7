"""Rows of foreign tables become the events that they say; a row that makes none keeps its text; a file twice counts once."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import streams.importers.tables
from streams.events.line_decoder import parse_line
from streams.events.schema import Reason, Reject
from streams.importers.log_files import LogFileError, read_log
from streams.importers.mapping import read_mapping

BASE = """
[time]
column = "time"
format = "epoch_s"
[fields]
session_id = "session"
query = "query"
"""
SEARCHES = BASE + "[query]\n"


def mapped(folder: Path, mapping: str, table: str | bytes, name: str = "log.csv") -> list[dict[str, Any]]:
    """The lines that a table becomes, decoded."""
    (folder / "map.toml").write_text(mapping, encoding="utf-8")
    (folder / name).write_bytes(table.encode() if isinstance(table, str) else table)
    return [json.loads(line) for line in read_log(folder / name, read_mapping(folder / "map.toml"))]


def without_ids(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in event.items() if name not in ("event_id", "impression_id")} for event in events]


@pytest.mark.parametrize(
    ("settings", "written", "seconds"),
    [
        ("format = 'epoch_s'", "1600000000.25", 1_600_000_000.25),
        ("format = 'epoch_ms'", "1600000000250", 1_600_000_000.25),
        ("format = 'rfc3339'", "2020-09-13T14:26:40.250+02:00", 1_600_000_000.25),
        ("format = 'rfc3339'\nzone = 'Europe/Berlin'", "2020-09-13T14:26:40", 1_600_000_000.0),
        ("format = '%d/%b/%Y:%H:%M:%S %z'", "13/Sep/2020:14:26:40 +0200", 1_600_000_000.0),
        ("format = '%Y-%m-%d %H:%M:%S'\nzone = 'America/New_York'", "2020-09-13 08:26:40", 1_600_000_000.0),
        ("format = '%Y-%m-%d %H:%M:%S'", "2020-09-13 12:26:40", 1_600_000_000.0),
    ],
)
def test_times_in_many_forms(settings: str, written: str, seconds: float, tmp_path: Path) -> None:
    mapping = SEARCHES.replace('format = "epoch_s"', settings)
    (event,) = mapped(tmp_path, mapping, f"time,session,query\n{written},s,red\n")
    assert event["ts"] == seconds


@pytest.mark.parametrize(
    ("shape", "table"),
    [
        ("", 'time,session,query\r\n1,s,"red, ""new""\nshoes"\r\n'),
        ("delimiter = ';'\nquote = \"'\"", "time;session;query\n1;s;'red, \"new\"\nshoes'\n"),
        ("encoding = 'utf-16'", 'time,session,query\n1,s,"red, ""new""\nshoes"\n'.encode("utf-16")),
        ("encoding = 'utf-8'", b'\xef\xbb\xbftime,session,query\n1,s,"red, ""new""\nshoes"\n'),
        ("header = false\ncolumns = ['time', 'session', 'query']", '1,s,"red, ""new""\nshoes"'),
    ],
)
def test_tables_in_many_forms(shape: str, table: str | bytes, tmp_path: Path) -> None:
    (event,) = mapped(tmp_path, SEARCHES + f"[file]\n{shape}\n", table)
    assert event["query"] == 'red, "new"\nshoes'


def test_columns_by_number_and_no_quotes(tmp_path: Path) -> None:
    mapping = "[file]\ndelimiter = \"\\t\"\nquote = ''\nheader = false\nencoding = 'latin-1'\n" + SEARCHES
    mapping = mapping.replace('"time"', "2").replace('"session"', "1").replace('"query"', "3")
    (event,) = mapped(tmp_path, mapping, 's\t1\t"stra\xdfe\t\n'.encode("latin-1"))
    assert (event["session_id"], event["ts"], event["query"]) == ("s", 1.0, '"straße')


def test_a_type_column_tells_searches_lists_and_clicks_apart(tmp_path: Path) -> None:
    mapping = (
        BASE
        + """
user_id = "user"
[file]
ignore = { column = "what", is = ["scroll", "view"] }
null = ["", "NULL"]
[query]
when = { column = "what", is = ["search"] }
source = { value = "user" }
[impression]
when = { column = "what", is = ["shown"] }
impression_id = "list"
items = { column = "items", split = "|" }
task = { value = "suggest" }
[click]
when = { column = "what", is = ["tap"] }
impression_id = "list"
position = { column = "place", first = 1 }
item = "items"
[extra]
country = "land"
"""
    )
    table = """what,time,session,query,list,items,place,user,land
search,1,s,red,,,,u,de
shown,2,s,red,L1,red hat| red shoes ,,NULL,
scroll,,,,,,,,
tap,3,s,red,L1,red shoes,2,,
"""
    shared = {"session_id": "s", "query": "red"}
    events = mapped(tmp_path, mapping, table)
    assert without_ids(events) == [
        {"type": "query", "ts": 1.0, **shared, "source": "user", "user_id": "u", "country": "de"},
        {"type": "impression", "ts": 2.0, **shared, "task": "suggest", "items": ["red hat", "red shoes"]},
        {"type": "click", "ts": 3.0, **shared, "position": 1, "item": "red shoes"},
    ]
    assert [event.get("impression_id") for event in events] == [None, "L1", "L1"]


@pytest.mark.parametrize(
    ("clicked", "cells", "positions"),
    [
        ("{ positions = 'c', split = ' ' }", "0 2", [0, 2]),
        ("{ positions = 'c', split = ' ', first = 1 }", "3 3 1", [2, 0]),
        ("{ positions = 'c', json = true }", '"[1, 2]"', [1, 2]),
        ("{ positions = 'c' }", "1", [1]),
        ("{ positions = 'c' }", "", []),
        ("{ items = 'c', split = ';' }", "z;x", [2, 0]),
        ("{ flags = ['f', 'g', 'h'] }", "", [1, 2]),
    ],
)
def test_clicks_in_a_column_of_the_list_become_click_events(
    clicked: str, cells: str, positions: list[int], tmp_path: Path
) -> None:
    mapping = BASE + f"[impression]\nitems = {{ column = 'items', json = true }}\nclicked = {clicked}\n"
    table = f'time,session,query,items,c,f,g,h\n5,s,red,"[""x"", ""y"", ""z""]",{cells},0,0.5,true\n'
    shown, *clicks = mapped(tmp_path, mapping, table)
    assert [(one["position"], one["item"], one["ts"]) for one in clicks] == [(place, "xyz"[place], 5.0) for place in positions]
    assert {one["impression_id"] for one in clicks} <= {shown["impression_id"]}
    assert len({one["event_id"] for one in (shown, *clicks)}) == 1 + len(positions)


def test_a_click_has_its_own_time_and_may_lie_outside_the_list(tmp_path: Path) -> None:
    mapping = BASE + "[impression]\nitems = { columns = ['a', 'b'] }\nclicked = { positions = 'c', time = 'at' }\n"
    shown, click = mapped(tmp_path, mapping, "time,session,query,a,b,c,at\n5,s,red,,y,7,9.5\n")
    assert shown["items"] == ["y"]
    assert (click["ts"], click["position"], click.get("item")) == (9.5, 7, None)  # the worker says position_out_of_range


def test_flags_belong_to_the_items_that_are_there(tmp_path: Path) -> None:
    mapping = BASE + "[impression]\nitems = { columns = ['a', 'b', 'd'] }\nclicked = { flags = ['x', 'y', 'z'] }\n"
    _, click = mapped(tmp_path, mapping, "time,session,query,a,b,d,x,y,z\n5,s,red,one,,three,0,,1\n")
    assert (click["position"], click["item"]) == (1, "three")


GROUPED = (
    BASE
    + """
[impression]
impression_id = "list"
group = true
items = "item"
order = { column = "rank", first = 1 }
clicked = { flag = "clicked", time = "clicked_at" }
span = 4
"""
)
HEAD = "time,session,query,list,item,rank,clicked,clicked_at\n"


def test_rows_of_one_list_become_one_impression(tmp_path: Path) -> None:
    table = HEAD + "7,s,red,L1,b,2,1,9\n6,s,red,L1,a,1,0,\n8,t,blue,L2,c,1,,\n7,s,red,L1,d,3,no,\n"
    events = mapped(tmp_path, GROUPED, table)
    shared = {"session_id": "s", "query": "red", "impression_id": "L1"}
    assert [{name: one for name, one in event.items() if name != "event_id"} for event in events] == [
        {"type": "impression", "ts": 8.0, "session_id": "t", "query": "blue", "impression_id": "L2", "items": ["c"]},
        {"type": "impression", "ts": 6.0, **shared, "items": ["a", "b", "d"]},
        {"type": "click", "ts": 9.0, **shared, "position": 1, "item": "b"},
    ]


def test_without_an_order_the_rows_order_is_the_lists(tmp_path: Path) -> None:
    mapping = GROUPED.replace('order = { column = "rank", first = 1 }\n', "")
    (shown,) = mapped(tmp_path, mapping, HEAD + "7,s,red,L1,b,9,,\n7,s,red,L1,a,1,,\n")
    assert shown["items"] == ["b", "a"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["1,s,q,L,a,1,,", "1,s,q,L,b,3,,"], "impression 'L': order: the ranks do not run from order.first"),
        (["1,s,q,L,a,1,,", "1,s,q,L,b,1,,"], "impression 'L': order: a rank comes twice"),
        (["1,s,q,L,a,1,,", "1,s,q,L,b,x,,"], "impression 'L': rank: 'x' is no whole number"),
        (["1,s,q,L,a,1,,", "1,s,q,L,b,2,maybe,"], "impression 'L': clicked: 'maybe' is neither a number nor true or false"),
    ],
)
def test_a_bad_row_of_a_list_keeps_all_of_its_rows(rows: list[str], said: str, tmp_path: Path) -> None:
    (bad,) = mapped(tmp_path, GROUPED, HEAD + "\n".join(rows))
    assert (bad["type"], bad["row"], bad["text"]) == ("unmapped", 2, "\n".join(rows))
    assert bad["error"].startswith(said)


def test_a_row_that_comes_after_its_list_was_complete_is_said(tmp_path: Path) -> None:
    others = "".join(f"1,s,q,M{number},a,1,,\n" for number in range(6))
    events = mapped(tmp_path, GROUPED, HEAD + "1,s,q,L,a,1,,\n" + others + "1,s,q,L,b,2,,\n")
    (bad,) = [event for event in events if event["type"] == "unmapped"]
    assert "was complete 4 rows after its last row: sort the file by it, or raise impression.span" in bad["error"]
    assert len(events) == 8


def test_a_list_has_no_more_rows_than_the_span(tmp_path: Path) -> None:
    events = mapped(tmp_path, GROUPED, HEAD + "".join(f"1,s,q,L,a,{number},,\n" for number in range(1, 7)))
    assert [event["type"] for event in events] == ["unmapped", "unmapped", "impression"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x,s,red", "time: 'x' is not epoch_s"),
        (",s,red", "time: empty"),
        ("1,s,", "query: empty"),
        ("1", "no column session: the row has 1"),
        ('1,s,"' + "x" * 140_000 + '"', "field larger than field limit (131072)"),
    ],
)
def test_a_bad_row_keeps_its_text_and_says_why(row: str, said: str, tmp_path: Path) -> None:
    before, bad, after = mapped(tmp_path, SEARCHES, f"time,session,query\n1,s,a\n{row}\n2,s,b\n")
    assert (before["query"], after["query"]) == ("a", "b")
    assert (bad["type"], bad["file"], bad["row"], bad["text"], bad["error"]) == ("unmapped", "log.csv", 3, row, said)


def test_a_bad_row_is_what_every_consumer_refuses(tmp_path: Path) -> None:
    (tmp_path / "map.toml").write_text(SEARCHES)
    (tmp_path / "log.csv").write_text("time,session,query\nnever,s,a\n")
    (line,) = read_log(tmp_path / "log.csv", read_mapping(tmp_path / "map.toml"))
    found = parse_line(line)
    assert isinstance(found, Reject)
    assert found.reason is Reason.INVALID and found.event_id is not None and found.raw == line


def test_a_row_that_no_section_takes_is_not_dropped(tmp_path: Path) -> None:
    mapping = SEARCHES + "when = { column = 'what', is = ['search'] }\n"
    (bad,) = mapped(tmp_path, mapping, "time,session,query,what\n1,s,a,other\n")
    assert "no section takes this row" in bad["error"]


def test_bytes_that_are_not_text_are_kept_as_bytes(tmp_path: Path) -> None:
    bad, good = mapped(tmp_path, SEARCHES, b"time,session,query\n1,s,\xffred\n2,s,stra\xc3\x9fe\n")
    assert base64.b64decode(bad["text_base64"]) == b"1,s,\xffred"
    assert bad["error"] == "query: not text in file.encoding"
    assert good["query"] == "straße"


def test_a_file_in_another_encoding_altogether_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match=r"log\.csv"):
        mapped(
            tmp_path, SEARCHES + "[file]\nencoding = 'utf-16'\n", "time,session,query\n1,s,a".encode("utf-16") + b"\x00\xd8\x00"
        )


def test_a_line_without_end_is_cut_and_the_next_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.importers.tables, "MAX_LINE_CHARS", 100)
    bad, good = mapped(tmp_path, SEARCHES, "time,session,query\n1,s,red," + "x," * 500 + "\n2,s,blue\n")
    assert bad["error"] == "longer than 100 characters"
    assert len(bad["text"]) == 100
    assert good["query"] == "blue"


def test_the_same_file_twice_has_the_same_ids_whatever_it_is_packed_in(tmp_path: Path) -> None:
    table = "time,session,query\n1,s,red\n1,s,red\n1,s,\n"
    plain = mapped(tmp_path, SEARCHES, table)
    assert len({event["event_id"] for event in plain}) == 3
    assert mapped(tmp_path, SEARCHES, gzip.compress(table.encode()), "log.csv.gz") == plain
    other = mapped(tmp_path, SEARCHES, table.replace("1,s", "2,s"))
    assert not {event["event_id"] for event in plain} & {event["event_id"] for event in other}


def test_ids_from_columns_make_one_search_of_several_rows(tmp_path: Path) -> None:
    mapping = SEARCHES + "id = ['session', 'query', 'time']\n"
    events = mapped(tmp_path, mapping, "time,session,query,rank\n1,s,red,1\n1,s,red,4\n2,s,red,1\n")
    assert [event["ts"] for event in events] == [1.0, 2.0]
    named = mapped(tmp_path, SEARCHES + "event_id = 'rank'\n", "time,session,query,rank\n1,s,red,e1\n")
    assert named[0]["event_id"] == "e1"


def test_a_row_can_be_its_own_session(tmp_path: Path) -> None:
    mapping = SEARCHES.replace('"session"', "{ row = true }")
    first, second = mapped(tmp_path, mapping, "time,query\n1,red\n1,red\n")
    assert first["session_id"] != second["session_id"]


@given(queries=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=9), max_size=9))
def test_any_text_survives_the_table(queries: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([["time", "session", "query"], *([number, "s", query] for number, query in enumerate(queries))])
    events = mapped(tmp_path_factory.mktemp("log"), SEARCHES, text.getvalue())
    assert [event["query"] for event in events] == queries
