"""A User Behavior Insights log becomes the events that a plain recount makes of it, and every document is accounted for."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.events.line_decoder import parse_line
from streams.events.schema import Reject
from streams.importers.log_files import read_log
from streams.importers.mapping import read_mapping
from tests.support.logs import START
from tests.support.ubi_recount import UbiRecount, recount_ubi

UBI = read_mapping(Path("ubi.sql"))
FIELDS = ("type", "ts", "session_id", "user_id", "query", "impression_id", "items", "position", "item")


def facts(events: list[dict[str, Any]]) -> list[str]:
    """What the recount knows of events: not what the mapping keeps of refused ones, and no id that is made afterwards."""
    kept = [{name: event[name] for name in FIELDS if name in event} for event in events]
    ids = [event.get("event_id") if event.get("impression_id") or not is_refused(event) else None for event in events]
    return sorted(json.dumps(event | {"event_id": event_id}) for event, event_id in zip(kept, ids, strict=True))


def is_refused(event: dict[str, Any]) -> bool:
    return isinstance(parse_line(json.dumps(event).encode()), Reject)


def types_of(lines: list[bytes]) -> Counter[str]:
    """How many lines decode, by type, and how many are refused."""
    return Counter("refused" if isinstance(found := parse_line(line), Reject) else type(found).__name__ for line in lines)


def assert_equal(lines: list[bytes], expected: UbiRecount) -> None:
    assert facts([json.loads(line) for line in lines]) == facts(expected.events)
    assert types_of(lines) == types_of(expected.lines())


def bulk(index: str, documents: list[dict[str, Any]]) -> list[bytes]:
    lines = []
    for number, document in enumerate(documents):
        lines.append(json.dumps({"index": {"_index": index, "_id": str(number)}}).encode())
        lines.append(json.dumps(document).encode())
    return lines


@dataclass(frozen=True)
class Search:
    """One search of a visitor, whose events are written in the old shape or the new."""

    query_id: str
    session: str
    at: int
    words: str
    old: bool

    def query(self, hits: list[str]) -> dict[str, Any]:
        """Its document of ubi_queries."""
        named = {"query_id": self.query_id, "client_id": "c" + self.session, "user_query": self.words}
        return named | {"timestamp": iso(self.at) + "Z", "query_response_hit_ids": hits, "query_response_id": "r"}

    def event(self, action: str, after: int, attributes: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """A document of ubi_events, `after` milliseconds later."""
        named = {"action_name": action, "query_id": self.query_id, "client_id": "c" + self.session, "message_type": None}
        if self.old:
            inside = {**(attributes or {}), "session_id": self.session}
            return named | {"timestamp": self.at + after, "event_attributes": inside} | more
        zone = "Z" if after % 2 else "+0000"
        own = {"session_id": self.session, "user_id": "u" if after % 3 else "", "timestamp": iso(self.at + after) + zone}
        return named | own | {"event_attributes": attributes} | more


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]


def place(item: str, ordinal: int) -> dict[str, Any]:
    return {"object": {"object_id": item, "object_id_field": "asin"}, "position": {"ordinal": ordinal}}


def draw_documents(seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Documents of ubi_queries and ubi_events in both shapes, some without hits, words, session or list."""
    chance = random.Random(seed)
    queries: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for number in range(150):
        at = int(START * 1000) + number * 60_000 + chance.randrange(1000)
        words = chance.choice(["red", "blue", "straße", ""])
        search = Search(f"q{number}", f"s{number % 20}", at, words, number % 3 == 0)
        items = chance.sample([f"B{letter}" for letter in "ABCDEFGHIJ"], chance.randint(2, 6))
        if number % 5:
            queries += [search.query([]), search.query(items[: chance.randint(0, len(items))])]
        else:
            own = {} if number % 10 else {"query_id": None, "query_response_hit_ids": items[: number % 20]}
            events.append(search.event(chance.choice(["search", "on_search"]), -5, message=words, **own))
        for ordinal, item in enumerate(items, number % 2):
            if chance.random() < 0.8:
                known = {} if chance.random() < 0.9 else {"query_id": None}
                events.append(search.event("impression", 100 + ordinal, place(item, ordinal), user_query=words, **known))
            if chance.random() < 0.3:
                action = chance.choice(["click", "item_click", "click_through"])
                events.append(search.event(action, 5000 + ordinal, place(item, ordinal)))
                events.append(search.event("add_to_cart", 5001 + ordinal, place(item, ordinal)))
        events.append(search.event("click", 6000, place("never shown", 3)))
        events.append(search.event("global_click", 6001, {"object": {"object_id": "page"}}))
    return queries, [*events, search.event("what is this", 9000)]


def test_a_log_of_two_shapes_equals_the_recount(tmp_path: Path) -> None:
    queries, events = draw_documents(1)
    lines = bulk("ubi_queries", queries) + bulk("ubi_events", events)
    (tmp_path / "log").write_bytes(b"\n".join(lines))
    expected = recount_ubi(lines)
    assert expected.documents == Counter(
        search=len(queries) + sum(one["action_name"] in ("search", "on_search") for one in events),
        impression=sum(one["action_name"] == "impression" for one in events),
        click=sum("click" in one["action_name"] and one["action_name"] != "global_click" for one in events),
        **{"left out": sum(one["action_name"] in ("add_to_cart", "global_click") for one in events), "what is this": 1},
    )
    found = list(read_log(tmp_path / "log", UBI))
    assert_equal(found, expected)
    assert min(types_of(found)[name] for name in ("Query", "Impression", "Click", "refused")) > 30


def test_events_alone_and_documents_without_action_lines_are_read_as_well(tmp_path: Path) -> None:
    _, events = draw_documents(2)
    lines = [json.dumps(one).encode() for one in events]
    (tmp_path / "log").write_bytes(b"\n".join(lines))
    assert_equal(list(read_log(tmp_path / "log", UBI)), recount_ubi(lines))


def read_documents(folder: Path, *documents: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a log of these documents, which equal the recount."""
    lines = [json.dumps(one).encode() for one in documents]
    (folder / "log").write_bytes(b"\n".join(lines))
    found = list(read_log(folder / "log", UBI))
    assert_equal(found, recount_ubi(lines))
    return [json.loads(line) for line in found]


def test_impressions_without_a_query_id_are_refused_each_for_itself(tmp_path: Path) -> None:
    shown = Search("", "s1", 1000, "red", old=False), Search("", "s2", 2000, "red", old=False)
    rows = [search.event("impression", 0, place(item, 0)) for search in shown for item in ("a", "b")]
    found = read_documents(tmp_path, *rows)
    assert all(is_refused(event) and event["type"] == "impression" for event in found)
    told = [(one["log_row"]["session_id"], one["log_row"]["event_attributes"]["object"]["object_id"]) for one in found]
    assert sorted(told) == [("s1", "a"), ("s1", "b"), ("s2", "a"), ("s2", "b")]
    assert len({one["event_id"] for one in found}) == 4


def test_rows_that_are_no_documents_are_refused_each_for_itself(tmp_path: Path) -> None:
    found = read_documents(tmp_path, {"foo": 1}, {"foo": 2}, {"foo": 2})
    assert all(map(is_refused, found))
    assert sorted(one["log_row"]["foo"] for one in found) == [1, 2, 2]


def test_searches_without_session_and_query_id_are_those_of_their_clients(tmp_path: Path) -> None:
    at = {"action_name": "search", "user_query": "shoes", "timestamp": 1_000}
    found = read_documents(tmp_path, at | {"client_id": "cA"}, at | {"client_id": "cB"}, at | {"client_id": "cB"}, at)
    assert [is_refused(event) for event in sorted(found, key=lambda one: one.get("session_id", "z"))] == [False] * 3 + [True]
    assert sorted(one.get("session_id", "") for one in found) == ["", "cA", "cB", "cB"]
    assert len({one["event_id"] for one in found}) == 3
    [refused] = filter(is_refused, found)
    assert refused["log_row"]["user_query"] == "shoes"


def test_hits_and_a_click_without_a_query_id_are_refused_with_their_row(tmp_path: Path) -> None:
    answered = {"user_query": "red", "client_id": "c", "timestamp": 1_000, "query_response_hit_ids": ["a"]}
    clicked = {"action_name": "click", "client_id": "c", "timestamp": 2_000, "event_attributes": place("a", 0)}
    found = {event["type"]: event for event in read_documents(tmp_path, answered, clicked)}
    assert not is_refused(found["query"]) and "log_row" not in found["query"]
    assert found["impression"]["log_row"]["query_response_hit_ids"] == ["a"]
    assert found["click"]["log_row"]["action_name"] == "click"


def test_the_real_log_equals_the_recount(ubi_log: Path) -> None:
    lines = list(read_log(ubi_log))
    expected = recount_ubi(lines)
    assert expected.documents == Counter(
        {
            "search": 473 + 506 + 86,
            "impression": 1999,
            "click": 287 + 11,
            "left out": 234 + 6 + 62 + 62 + 61 + 59 + 56 + 11 + 5 + 2 + 1,
        }
    )
    assert 2 * expected.documents.total() == len(lines)
    found = list(read_log(ubi_log, UBI))
    assert_equal(found, expected)
    # Refused: a query_id whose words no document tells (a list and 20 clicks), and two searches without words.
    assert types_of(found) == Counter(Query=775, Impression=283, Click=278, refused=23)
    assert facts([json.loads(line) for line in read_log(ubi_log, UBI)]) == facts([json.loads(line) for line in found])
