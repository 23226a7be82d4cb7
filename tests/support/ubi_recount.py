"""An oracle for the mapping of User Behavior Insights: a bulk file's events in plain Python, and where each document went."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

SEARCHES = {"query", "search", "on_search"}
CLICKS = {"click", "click_through", "item_click"}
LEFT_OUT = {"add_to_cart", "purchase", "watch", "view", "view_search_results", "product_hover", "product_sort", "type_filter"}
LEFT_OUT |= {"brand_filter", "declined_product", "page_exit", "404_redirect", "login", "logout", "global_click", "button_click"}


@dataclass
class UbiRecount:
    """The events, each a dictionary as on the wire without what is None, and how many documents became what."""

    events: list[dict[str, Any]] = field(default_factory=list)
    documents: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[bytes]:
        """The events as lines."""
        return [json.dumps(event, ensure_ascii=False).encode() for event in self.events]


@dataclass
class Document:
    """What is used of a document."""

    action: str
    query_id: str | None
    ts: float | None
    session: str | None
    client: str | None
    user: str | None
    words: str | None
    message: str | None
    hits: list[str]
    item: str | None
    ordinal: int | None


def recount_ubi(lines: Iterable[bytes]) -> UbiRecount:
    """Recount the lines of a bulk file, or of documents alone."""
    result, documents = UbiRecount(), []
    for line in lines:
        row = json.loads(line)
        if "index" in row or "create" in row:
            continue
        document = read_document(row)
        kind = "left out" if document.action in LEFT_OUT else document.action
        result.documents["search" if kind in SEARCHES else "click" if kind in CLICKS else kind] += 1
        if kind != "left out":
            documents.append(document)
    documents.sort(key=lambda one: (one.ts is None, one.ts))
    known = {query_id: describe(documents, query_id) for query_id in {one.query_id for one in documents} if query_id}
    shown = {query_id: list_items(documents, query_id) for query_id in known}
    add_queries(documents, known, result)
    add_impressions(known, shown, result)
    add_clicks(documents, known, shown, result)
    for one in documents:
        if one.query_id is None and (one.action == "impression" or one.hits):
            session = one.session or one.client
            add(result, type="impression", ts=one.ts, session_id=session, user_id=one.user, query=one.words)
        if one.action not in SEARCHES | CLICKS | {"impression"}:
            add(result, type=one.action, ts=one.ts, session_id=one.session, user_id=one.user, query=one.words)
    return result


def read_document(row: dict[str, Any]) -> Document:
    attributes = row.get("event_attributes") or {}
    client = row.get("client_id")
    return Document(
        action=row.get("action_name") or "query",
        query_id=row.get("query_id") or None,
        ts=read_time(row.get("timestamp")),
        session=row.get("session_id") or attributes.get("session_id"),
        client=client,
        user=row.get("user_id") or client,
        words=row.get("user_query") or None,
        message=row.get("message") or None,
        hits=row.get("query_response_hit_ids") or [],
        item=(attributes.get("object") or {}).get("object_id"),
        ordinal=(attributes.get("position") or {}).get("ordinal"),
    )


def read_time(written: Any) -> float | None:
    if isinstance(written, int):
        return written / 1000
    try:
        return datetime.fromisoformat(written).timestamp()
    except (TypeError, ValueError):
        return None


def describe(documents: list[Document], query_id: str) -> dict[str, Any]:
    """What is known of a query_id: session, client and words, of the earliest document that has them."""
    own = [one for one in documents if one.query_id == query_id]
    words = [one.words for one in own if one.action == "query"] + [one.words for one in own]
    words += [one.message for one in own if one.action in SEARCHES - {"query"}]
    return {
        "session": next((one.session for one in own if one.session), None),
        "client": min((one.client for one in own if one.client), default=None),
        "query": next(filter(None, words), None),
    }


def list_items(documents: list[Document], query_id: str) -> tuple[float, list[str]] | None:
    """The hits of the responses as they are ranked, then what only impression events name, by their ordinal."""
    answered: dict[str, tuple[float, int]] = {}
    seen: dict[str, tuple[int, float]] = {}
    times = []
    for one in documents:
        if one.query_id == query_id and one.ts is not None:
            for rank, item in enumerate(one.hits):
                answered[item] = min(answered.get(item, (one.ts, rank)), (one.ts, rank))
            if one.action == "impression" and one.item is not None and one.ordinal is not None:
                before = seen.get(one.item, (one.ordinal, one.ts))
                seen[one.item] = (min(before[0], one.ordinal), min(before[1], one.ts))
            if one.hits or one.action == "impression":
                times.append(one.ts)
    behind = sorted((place, item) for item, place in seen.items() if item not in answered)
    items = sorted(answered, key=lambda item: answered[item]) + [item for _, item in behind]
    return (min(times), items) if items else None


def add_queries(documents: list[Document], known: dict[str, dict[str, Any]], result: UbiRecount) -> None:
    first: dict[tuple[str, str | None], list[Document]] = {}
    for one in documents:
        if one.action in SEARCHES:
            words = one.words if one.action == "query" else one.message or one.words
            if one.query_id:
                first.setdefault((one.query_id, words), []).append(one)
            else:
                add_single_query(one, words, result)
    for (key, words), own in first.items():
        of_id = known[key]
        session = min((one.session for one in own if one.session), default=None) or of_id["session"] or of_id["client"]
        user = min((one.user for one in own if one.user), default=None)
        event_id = digest("query", key, words)
        add(result, type="query", event_id=event_id, ts=own[0].ts, session_id=session, user_id=user, query=words)


def add_single_query(one: Document, words: str | None, result: UbiRecount) -> None:
    """A search without a query_id is an event of its own; one that is refused has no id of ours."""
    session = one.session or one.client
    whole = one.ts is not None and words and session
    event_id = digest("query", one.client, one.session, one.ts, words) if whole else None
    add(result, type="query", event_id=event_id, ts=one.ts, session_id=session, user_id=one.user, query=words)


def add_impressions(
    known: dict[str, dict[str, Any]], shown: dict[str, tuple[float, list[str]] | None], result: UbiRecount
) -> None:
    for query_id, found in shown.items():
        if found is not None:
            of_id = known[query_id]
            event_id = digest(f"impression {query_id}")
            session = of_id["session"] or of_id["client"]
            event = {
                "type": "impression",
                "event_id": event_id,
                "ts": found[0],
                "session_id": session,
                "user_id": of_id["client"],
            }
            add(result, **event, query=of_id["query"], impression_id=query_id, items=found[1])


def add_clicks(
    documents: list[Document],
    known: dict[str, dict[str, Any]],
    shown: dict[str, tuple[float, list[str]] | None],
    result: UbiRecount,
) -> None:
    for one in documents:
        if one.action in CLICKS:
            of_id = known.get(one.query_id or "", {"session": None, "query": None})
            found = shown.get(one.query_id or "") or (0.0, [])
            position = found[1].index(one.item) if one.item in found[1] else one.ordinal
            event_id = digest("click", one.query_id, one.session, one.ts, one.item) if one.query_id else None
            event = {
                "type": "click",
                "event_id": event_id,
                "ts": one.ts,
                "session_id": of_id["session"] or one.session or one.client,
            }
            event |= {"user_id": one.user, "query": of_id["query"] or one.words, "impression_id": one.query_id}
            add(result, **event, position=position, item=one.item)


def add(result: UbiRecount, **event: Any) -> None:
    result.events.append({name: value for name, value in event.items() if value is not None})


def digest(*parts: Any) -> str:
    """The id that the mapping makes of these parts, those that are None left out."""
    return hashlib.md5(" ".join(str(part) for part in parts if part is not None).encode(), usedforsecurity=False).hexdigest()
