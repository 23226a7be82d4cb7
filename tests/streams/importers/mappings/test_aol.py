"""Rows in the form of the AOL log are queries, once a search."""

from __future__ import annotations

from pathlib import Path

from tests.support.foreign_logs import mapped


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
