"""Clarification panes in the form of MIMICS-Click are lists with their clicks."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.foreign_logs import mapped


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
