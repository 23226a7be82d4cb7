"""`queryloop replay`: what an isolated replay prints when it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from queryloop.commands.replay import _describe

SUMMARY: dict[str, Any] = {
    "log": "log.jsonl",
    "broker": "embedded",
    "lines": 1200,
    "seconds": 3.21,
    "counted": 1100,
    "duplicates": 90,
    "quarantined": {"invalid": 10},
    "latest_ts": 1_772_366_400.0,
    "rows": {"2026-03-02": {"windows": 7, "cooccurrence": 0}},
}


def test_a_replay_says_what_was_counted_and_where_the_tables_are() -> None:
    assert _describe(SUMMARY, Path("out")).splitlines() == [
        "log.jsonl: 1,200 lines on embedded in 3.2 s",
        "counted 1,100, duplicates 90, quarantined: invalid 10",
        "tables in out/",
    ]


def test_a_day_without_windows_is_named() -> None:
    nothing = {"windows": 0, "cooccurrence": 0}
    text = _describe(SUMMARY | {"rows": SUMMARY["rows"] | {"2020-01-01": nothing, "2030-01-01": nothing}}, Path("out"))
    assert text.splitlines()[-1] == (
        "no windows as of 2020-01-01, 2030-01-01: no impression of the 14 days before counts; "
        "the log's latest event is of 2026-03-01 12:00:00 UTC"
    )
    empty = SUMMARY | {"rows": {"2026-03-02": nothing}, "latest_ts": None}
    assert _describe(empty, Path("out")).endswith("; the log has no readable event")
