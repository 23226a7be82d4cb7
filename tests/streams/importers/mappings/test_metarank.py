"""Rankings and interactions of Metarank are searches, lists and clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streams.importers.log_files import read_log
from streams.importers.mapping import read_mapping
from tests.support.foreign_logs import Fact, draw_visits, facts, iso, mapped, micros, write_lines


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


def test_it_makes_the_same_lines_every_time(tmp_path: Path) -> None:
    path, mapping = write_lines(tmp_path / "log", metarank_rows()[0]), read_mapping(Path("metarank.sql"))
    assert sorted(read_log(path, mapping)) == sorted(read_log(path, mapping))
