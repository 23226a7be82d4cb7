"""The mapping files of the documentation map tables of the form that they describe. The tables here are invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streams.events.line_decoder import parse_line
from streams.events.schema import Reject
from streams.importers.log_files import read_log
from streams.importers.mapping import read_mapping

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "mappings"

AOL = """AnonID\tQuery\tQueryTime\tItemRank\tClickURL
7\tgarden gnome\t2006-03-01 07:17:12\t1\thttp://gnomes.example
7\tgarden gnome\t2006-03-01 07:17:12\t4\thttp://garden.example
7\t"red gnome\t2006-03-01 07:19:00\t\t
9\t-\t2006-03-02 11:00:00\t\t
"""
MIMICS = "\t".join(
    ["query", "question", *(f"option_{n}" for n in range(1, 6)), "impression_level", "engagement_level"]
    + [f"option_cctr_{n}" for n in range(1, 6)]
)
MIMICS += "\ngarden gnome\tWhich one?\tred gnome\tblue gnome\tgnome paint\t\t\tlow\t3\t0.0\t0.75\t0.25\t\t\n"
PRODUCT = """time_ms;what;session;user;search;list;rank;shown
1600000000000;search;s;u;gnome;;;
1600000001000;item;s;u;gnome;L1;2;blue gnome
1600000001000;item;s;u;gnome;L1;1;red gnome
1600000001500;scroll;;;;;;
1600000002000;click;s;u;gnome;L1;2;blue gnome
"""


def mapped(folder: Path, name: str, table: str) -> list[dict[str, Any]]:
    (folder / "log").write_text(table, encoding="utf-8")
    lines = list(read_log(folder / "log", read_mapping(FOLDER / name)))
    events = [json.loads(line) for line in lines]
    for line, event in zip(lines, events, strict=True):
        assert isinstance(parse_line(line), Reject) == (event["type"] == "unmapped")
    return events


def test_searches_with_clicked_results_become_queries(tmp_path: Path) -> None:
    *events, bad = mapped(tmp_path, "aol.toml", AOL)
    assert [(event["session_id"], event["query"], event["ts"]) for event in events] == [
        ("7", "garden gnome", 1_141_215_432.0),
        ("7", '"red gnome', 1_141_215_540.0),
    ]
    assert (bad["error"], bad["row"]) == ("Query: empty", 5)


def test_options_in_columns_become_lists_and_clicks(tmp_path: Path) -> None:
    shown, *clicks = mapped(tmp_path, "mimics_click.toml", MIMICS)
    assert shown["items"] == ["red gnome", "blue gnome", "gnome paint"]
    assert (shown["task"], shown["question"], shown["impression_level"]) == ("refine", "Which one?", "low")
    assert [(click["position"], click["item"]) for click in clicks] == [(1, "blue gnome"), (2, "gnome paint")]


def test_a_products_log_becomes_events_of_each_type(tmp_path: Path) -> None:
    events = mapped(tmp_path, "product.toml", PRODUCT)
    assert {event["type"]: event.get("items", event.get("position")) for event in events} == {
        "query": None,
        "impression": ["red gnome", "blue gnome"],
        "click": 1,
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.name)
def test_every_mapping_file_is_named_on_the_page(path: Path) -> None:
    read_mapping(path)
    assert f"(mappings/{path.name})" in (FOLDER.parent / "testing.md").read_text(encoding="utf-8")
