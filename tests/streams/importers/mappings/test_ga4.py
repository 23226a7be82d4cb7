"""Google Analytics' events are searches, lists and clicks: a list is of the latest search, a click of the latest such list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from streams.importers.log_files import read_log
from streams.importers.mapping import read_mapping
from tests.support.foreign_logs import draw_visits, facts, mapped, micros, recount_lists, write_lines


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


def test_it_makes_the_same_lines_every_time(tmp_path: Path) -> None:
    path, mapping = write_lines(tmp_path / "log", ga4_rows()), read_mapping(Path("ga4.sql"))
    assert sorted(read_log(path, mapping)) == sorted(read_log(path, mapping))
