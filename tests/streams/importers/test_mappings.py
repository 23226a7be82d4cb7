"""The mappings that ship make the events that a plain recount of the same rows makes. The logs here are invented."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from streams.events.line_decoder import parse_line
from streams.events.schema import Event, Reject
from streams.importers.log_files import read_log
from streams.importers.mapping import Mapping, read_mapping, shipped_names
from tests.support.logs import START

DOCS = Path(__file__).resolve().parents[3] / "docs"
Fact = tuple[Any, ...]


def mapped(path: Path, name: str) -> tuple[list[Event], list[dict[str, Any]]]:
    """The events of a log by a mapping that ships, and the lines that are refused."""
    return judge(read_log(path, read_mapping(Path(name))))


def judge(lines: Iterator[bytes]) -> tuple[list[Event], list[dict[str, Any]]]:
    events: list[Event] = []
    refused = []
    for line in lines:
        found = parse_line(line)
        if isinstance(found, Reject):
            refused.append(json.loads(line) | {"detail": found.detail})
        else:
            events.append(found)
    return events, refused


def facts(events: list[Event]) -> list[Fact]:
    """What counts of events: type, time, session, query, list, and what was shown or clicked."""
    return sorted(
        (
            str(event.__struct_config__.tag),
            event.ts_us,
            event.session_id,
            event.query,
            getattr(event, "impression_id", ""),
            getattr(event, "items", ()),
            getattr(event, "position", -1),
        )
        for event in events
    )


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def iso(ts: float) -> str:
    return datetime.fromtimestamp(ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def micros(ts: float) -> int:
    return round(ts * 1_000_000)


def draw_visits(seed: int) -> list[tuple[str, float, str, list[str], list[int]]]:
    """Searches with what was shown and which places were clicked: (session, time, words, items, places)."""
    chance = random.Random(seed)
    visits = []
    for number in range(120):
        session, ts = f"s{number % 25}", START + number * 400 + chance.randrange(100)
        items = chance.sample([f"item {letter}" for letter in "abcdefghij"], chance.randint(1, 5))
        clicked = [place for place in range(len(items)) if chance.random() < 0.3]
        visits.append((session, float(ts), chance.choice(["red shoes", "blue  hat", "straße", '"x", y']), items, clicked))
    return visits


def test_aol_rows_are_queries_once_a_search(tmp_path: Path) -> None:
    table = """AnonID\tQuery\tQueryTime\tItemRank\tClickURL
7\tgarden gnome\t2006-03-01 07:17:12\t1\thttp://gnomes.example
7\tgarden gnome\t2006-03-01 07:17:12\t4\thttp://garden.example
7\t"red gnome\t2006-04-03 07:19:00\t\t
9\t-\t2006-03-02 11:00:00\t\t
9\tgnome\tnever\t\t
9\tgnome
"""
    (tmp_path / "log").write_text(table)
    events, refused = mapped(tmp_path / "log", "aol.sql")
    assert [(event.session_id, event.query, event.ts) for event in events] == [
        ("7", "garden gnome", 1_141_215_432.0),  # Eastern Standard Time
        ("7", '"red gnome', 1_144_063_140.0),  # Eastern Daylight Time
    ]
    assert [one["detail"] for one in refused[:2]] == [f"Object missing required field `{name}`" for name in ("query", "ts")]
    assert (refused[1]["log_row"]["QueryTime"], refused[2]["text"]) == ("never", "9\tgnome")


def test_mimics_panes_are_lists_with_their_clicks(tmp_path: Path) -> None:
    header = ["query", "question", *(f"option_{n}" for n in range(1, 6)), "impression_level", "engagement_level"]
    table = "\t".join([*header, *(f"option_cctr_{n}" for n in range(1, 6))])
    table += "\ngarden gnome\tWhich one?\tred gnome\tblue gnome\tgnome paint\t\t\tlow\t3\t0.0\t0.75\t0.25\t\t"
    table += "\ngarden gnome\tWhich one?\tred gnome\t\tgnome paint\t\t\tlow\t3\t0.5\t\t0.25\t\t" * 2
    (tmp_path / "log").write_text(table)
    events, refused = mapped(tmp_path / "log", "mimics_click.sql")
    lists = [event for event in events if type(event).__name__ == "Impression"]
    assert refused == []
    assert sorted(one.items for one in lists) == [("red gnome", "blue gnome", "gnome paint")] + [("red gnome", "gnome paint")] * 2
    assert len({event.session_id for event in lists}) == 3
    shown = {one.impression_id: one.items for one in lists}
    clicked = [shown[one.impression_id][one.position] for one in events if type(one).__name__ == "Click"]
    assert sorted(clicked) == ["blue gnome", *["gnome paint"] * 3, *["red gnome"] * 2]
    assert (lists[0].task, json.loads(lists[0].extra)["question"]) == ("refine", "Which one?")


def test_a_products_own_rows_are_events_of_each_type(tmp_path: Path) -> None:
    rows, expected = ["time_ms;what;session;user;search;list;rank;shown"], []
    for number, (session, ts, words, items, clicked) in enumerate(draw_visits(1)):
        words = words.replace('"', "").strip()
        base, at = f"{session};u;{words}", int(ts * 1000)
        rows.append(f"{at};search;{base};;;")
        rows += [f"{at + 1000};item;{base};L{number};{rank};{item}" for rank, item in reversed(list(enumerate(items, 1)))]
        rows.append(f"{at + 1000};scroll;;;;;;")
        rows += [f"{at + 2000 + place};click;{base};L{number};{place + 1};{items[place]}" for place in clicked]
        expected.append(("query", micros(ts), session, words, "", (), -1))
        expected.append(("impression", micros(ts + 1), session, words, f"L{number}", tuple(items), -1))
        expected += [("click", micros(ts + 2 + p / 1000), session, words, f"L{number}", (), p) for p in clicked]
    rows += ["1600000000000;item;s;u;q;gap;1;x", "1600000000000;item;s;u;q;gap;3;y", "1600000000000;odd;s;u;q;;;"]
    (tmp_path / "log").write_text("\n".join(rows), encoding="utf-8")
    events, refused = mapped(tmp_path / "log", "product_log.sql")
    assert facts(events) == sorted(expected)
    assert sorted(one["detail"] for one in refused) == [
        "Invalid value 'odd' - at `$.type`",
        "Object missing required field `items`",
    ]


def metarank_rows() -> tuple[list[dict[str, Any]], list[Fact]]:
    rows: list[dict[str, Any]] = [
        {"event": "item", "id": "m", "timestamp": "1", "item": "x", "fields": [{"name": "p", "value": 1}]}
    ]
    expected: list[Fact] = []
    for number, (session, ts, words, items, clicked) in enumerate(draw_visits(2)):
        ranking, at = f"r{number}", int(ts * 1000)
        fields = [{"name": "source", "value": ["a", 1]}, {"name": "query", "value": words}]
        shown = [{"id": item, "relevancy": 1.5} for item in items]
        rows.append({"event": "ranking", "id": ranking, "timestamp": str(at), "user": "u", "session": session, "fields": fields})
        rows[-1] |= {"items": shown}
        expected += [("query", micros(ts), session, words, "", (), -1)]
        expected += [("impression", micros(ts), session, words, ranking, tuple(items), -1)]
        for place in clicked:
            click = {"event": "interaction", "id": f"i{number}-{place}", "ranking": ranking, "user": "u", "session": session}
            rows.append(click | {"type": "click", "item": items[place], "timestamp": iso(ts + 3)})
            rows.append(click | {"type": "purchase", "item": items[place], "timestamp": at, "id": f"p{number}"})
            expected += [("click", micros(ts + 3), session, words, ranking, (), place)]
    return rows, expected


def test_metarank_rankings_and_interactions(tmp_path: Path) -> None:
    rows, expected = metarank_rows()
    bad = [
        {"event": "ranking", "id": "no query", "timestamp": 1, "user": "u", "items": [{"id": "x"}]},
        {"event": "interaction", "id": "no list", "timestamp": 1, "user": "u", "type": "click", "item": "x", "ranking": "none"},
        {"event": "what", "id": "odd", "timestamp": 1, "user": "u"},
    ]
    events, refused = mapped(write_lines(tmp_path / "log", rows + bad), "metarank.sql")
    assert facts(events) == sorted(expected)
    assert {one["event_id"]: one["log_row"]["timestamp"] for one in refused} == {"no query": 1, "no list": 1, "odd": 1}


def segment_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"type": "identify", "userId": "u", "timestamp": iso(START)}]

    def track(event: str, session: str, ts: float, **properties: Any) -> None:
        call = {"type": "track", "event": event, "messageId": f"m{len(rows)}", "anonymousId": session, "timestamp": iso(ts)}
        rows.append(call | {"properties": properties})

    for number, (session, ts, words, items, clicked) in enumerate(draw_visits(3)):
        if number % 7:
            track("Products Searched", session, ts, query=words)
        names = ["product_id", "sku", "name"]
        products = [{names[place % 3]: item, "price": 1.5} for place, item in enumerate(items)]
        track("Product List Viewed", session, ts + 2, list_id="x", products=products)
        for place in clicked:
            track("Product Clicked", session, ts + 5 + place, **products[place])
        track("Product Clicked", session, ts + 9, product_id="never shown")
        track("Order Completed", session, ts + 20, order_id="7")
    return rows


def recount_lists(calls: list[tuple[str, str, float, str | None, list[str], str]]) -> tuple[list[Fact], int]:
    """Attribute lists to the latest search and clicks to the latest list: (kind, session, time, words, items, id) in order."""
    expected: list[Fact] = []
    refused = 0
    searches: dict[str, tuple[float, str]] = {}
    lists: dict[str, list[tuple[str, str | None, list[str]]]] = {}
    for kind, session, ts, words, items, event_id in sorted(calls, key=lambda call: call[2]):
        if kind == "search":
            assert words is not None
            searches[session] = (ts, words)
            expected.append(("query", micros(ts), session, words, "", (), -1))
        elif kind == "list":
            at, asked = searches.get(session, (0.0, ""))
            query = asked if ts - at <= 1800 else None
            lists.setdefault(session, []).append((event_id, query, items))
            if query is None:
                refused += 1
            else:
                expected.append(("impression", micros(ts), session, query, event_id, tuple(items), -1))
        else:
            found = next((one for one in reversed(lists.get(session, [])) if items[0] in one[2]), None)
            if found is None or found[1] is None:
                refused += 1
            else:
                expected.append(("click", micros(ts), session, found[1], found[0], (), found[2].index(items[0])))
    return expected, refused


def test_segment_searches_lists_and_clicks(tmp_path: Path) -> None:
    rows = segment_rows()
    kinds = {"Products Searched": "search", "Product List Viewed": "list", "Product Clicked": "click"}

    def name_of(product: dict[str, Any]) -> str:
        return str(product.get("product_id") or product.get("sku") or product.get("name"))

    calls = [
        (
            kinds[row["event"]],
            row["anonymousId"],
            datetime.fromisoformat(row["timestamp"]).timestamp(),
            row["properties"].get("query"),
            [name_of(one) for one in row["properties"].get("products", [row["properties"]])],
            row["messageId"],
        )
        for row in rows
        if row.get("event") in kinds
    ]
    expected, bad = recount_lists(calls)
    events, refused = mapped(write_lines(tmp_path / "log", rows), "segment.sql")
    assert bad > 100 and len(expected) > 300
    assert facts(events) == sorted(expected)
    assert len(refused) == bad and all(one["log_row"] for one in refused)


def ga4_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def emit(name: str, session: str, ts: float, items: list[dict[str, Any]], **params: str) -> None:
        texts = [{"key": key, "value": {"string_value": value, "int_value": None}} for key, value in params.items()]
        visit = {"key": "ga_session_id", "value": {"string_value": None, "int_value": 77}}
        event = {"event_date": "20200913", "event_timestamp": micros(ts), "event_name": name, "user_pseudo_id": session}
        rows.append(event | {"event_params": [*texts, visit], "items": items})

    for number, (session, ts, words, items, clicked) in enumerate(draw_visits(4)):
        if number % 7:
            emit("view_search_results", session, ts, [], search_term=words)
        shown = [{"item_id": item, "item_name": "name", "item_list_id": "results"} for item in items]
        shown[-1] = {"item_id": "(not set)", "item_name": items[-1], "item_list_id": "results"}
        emit("view_item_list", session, ts + 2, shown)
        emit(
            "view_item_list", session, ts + 3, [one | {"item_list_id": "also bought"} for one in reversed(shown)], search_term="w"
        )
        for place in clicked:
            emit("select_item", session, ts + 5 + place, [shown[place]])
        emit("page_view", session, ts + 20, [], page_title="x")
    return rows


@pytest.mark.parametrize("form", ["json", "int64 as text", "parquet"])
def test_ga4_searches_lists_and_clicks(form: str, tmp_path: Path) -> None:
    rows = ga4_rows()
    kinds = {"view_search_results": "search", "view_item_list": "list", "select_item": "click"}
    calls = []
    for row in rows:
        session, at, kind = f"{row['user_pseudo_id']}.77", row["event_timestamp"], kinds.get(row["event_name"])
        items = [one["item_name"] if one["item_id"] == "(not set)" else one["item_id"] for one in row["items"]]
        words = next((one["value"]["string_value"] for one in row["event_params"] if one["key"] == "search_term"), None)
        if kind is not None and not (kind == "list" and words):
            calls.append((kind, session, at / 1e6, words, items, str(at)))
    expected, bad = recount_lists(calls)
    path = tmp_path / "log"
    if form == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_lines(path, [row | {"event_timestamp": str(row["event_timestamp"])} if form != "json" else row for row in rows])
    events, refused = mapped(path, "ga4.sql")
    own = [event for event in events if type(event).__name__ == "Impression" and event.query == "w"]
    ids = {event.impression_id: str(event.ts_us) for event in events if type(event).__name__ == "Impression"}
    found = [(*fact[:4], ids.get(fact[4], ""), *fact[5:]) for fact in facts([event for event in events if event not in own])]
    assert sorted(found) == sorted(expected)
    assert len(own) == sum(row["event_name"] == "view_item_list" for row in rows) / 2
    assert len(refused) == bad and all(one["log_row"] for one in refused)


@pytest.mark.parametrize("name", shipped_names())
def test_a_mapping_makes_the_same_lines_every_time(name: str, tmp_path: Path) -> None:
    logs = {"metarank.sql": metarank_rows()[0], "segment.sql": segment_rows(), "ga4.sql": ga4_rows()}
    if name not in logs:
        pytest.skip("its own test has the log")
    path = write_lines(tmp_path / "log", logs[name])
    first = sorted(read_log(path, read_mapping(Path(name))))
    assert sorted(read_log(path, read_mapping(Path(name)))) == first


@pytest.mark.parametrize("name", shipped_names())
def test_every_mapping_is_named_on_the_page(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "mappings.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_maps_the_log_that_it_describes(tmp_path: Path) -> None:
    sql = (DOCS / "mappings.md").read_text(encoding="utf-8").partition("```sql\n")[2].partition("```")[0]
    (tmp_path / "searches.csv").write_text("when_ms,visitor,words,country\n1600000000250,s,red shoes,de\nnever,s,x,\n")
    (event,), (bad,) = judge(read_log(tmp_path / "searches.csv", Mapping("page", sql)))
    assert (event.ts, event.query, json.loads(event.extra)) == (1_600_000_000.25, "red shoes", {"country": "de"})
    assert bad["log_row"] == {"when_ms": "never", "visitor": "s", "words": "x", "country": None}
