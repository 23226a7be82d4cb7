"""Segment's calls are searches, lists and clicks: a list is of the latest search, a click of the latest list."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from streams.importers.log_files import read_log
from streams.importers.mapping import read_mapping
from tests.support.foreign_logs import draw_visits, facts, iso, mapped, recount_lists, write_lines
from tests.support.logs import START


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


def test_it_makes_the_same_lines_every_time(tmp_path: Path) -> None:
    path, mapping = write_lines(tmp_path / "log", segment_rows()), read_mapping(Path("segment.sql"))
    assert sorted(read_log(path, mapping)) == sorted(read_log(path, mapping))
