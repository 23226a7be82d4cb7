"""The report says what the served lists were worth by the true click model, and everything in the page is escaped."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from queryloop.demo.plots import Span, draw_bars, draw_lines, draw_timeline
from queryloop.demo.report import Measured, ReleaseRecord, make_report, summarise, write_report
from queryloop.product.clicks import list_click_probability
from queryloop.product.totals import ProductTotals, Shown
from queryloop.product.world import draw_world

WORLD = draw_world(0)
DAY = 1_700_006_400.0
HOSTILE = "<script>alert(1)</script>"
WEAK = {"aec_predictor": 0.11, "aec_judge": 0.1, "well_formed": 0.96, "mean_tokens": 14.2, "duplicate_rate": 0.04, "prompts": 64}
STRONG = {**WEAK, "aec_predictor": 0.21, "aec_judge": 0.18}


def serve(release: str, day: int, best: bool, count: int) -> list[Shown]:
    """Lists of one release: the best aspects or the worst of the entities asked for."""
    shown = []
    for number, (name, entity) in enumerate(list(WORLD.entities.items())[:count]):
        aspects = sorted(WORLD.topics[entity.topic].aspects, key=lambda aspect: -aspect.appeal if best else aspect.appeal)
        items = tuple(f"{name} {aspect.text}" for aspect in aspects[:3])
        shown.append(Shown(DAY + 86_400 * day + number, 1000.0 + 100 * day + number / 10, release, name, items))
    return shown


def measured(broker: str = "embedded") -> Measured:
    totals = ProductTotals(queries=90, clicks=9, duplicates=4, spoiled=Counter(late_click=2))
    totals.shown = serve("r0000", 0, False, 40) + serve("r0000", 1, False, 20) + serve("r0002", 2, True, 30)
    totals.latencies_ms = [float(value) for value in range(1, 91)]
    releases = [
        ReleaseRecord("r0000", {}, True),
        ReleaseRecord("r0001", {"passed": False, "reasons": [HOSTILE], "champion": WEAK, "challenger": WEAK}, False),
        ReleaseRecord("r0002", {"passed": True, "reasons": [], "champion": WEAK, "challenger": STRONG}, True),
    ]
    counters = {"counted": 189, "duplicates": 4, "quarantined": {"late_click": 2}}
    return Measured(7, WORLD, totals, releases, counters, [Span("start", 0.0, 3.0), Span("round 1", 3.0, 200.0)], 1000.0, broker)


def test_the_json_has_the_documented_keys() -> None:
    report = make_report(measured())
    assert set(report) == {"releases", "requests", "events", "swaps", "seconds"}
    for release in report["releases"]:
        assert set(release) == {
            *("release", "true_click_rate", "aec_predictor", "aec_judge", "well_formed"),
            *("mean_tokens", "duplicate_rate", "promoted", "gate"),
        }
    assert report["requests"] == {"answered": 90, "failed": 0, "p50_ms": 45.0, "p99_ms": 90.0}
    assert report["events"] == {"emitted": 195, "counted": 189, "duplicates": 4, "quarantined": {"late_click": 2}}
    assert report["seconds"] == {"start": 3.0, "round 1": 197.0}
    json.dumps(report, allow_nan=False)


def test_the_true_click_rate_is_the_mean_of_the_click_model_over_the_lists_a_release_served() -> None:
    what = measured()
    found = {one["release"]: one["true_click_rate"] for one in make_report(what)["releases"]}
    for release in ("r0000", "r0002"):
        lists = [one for one in what.totals.shown if one.release == release]
        expected = statistics.mean(list_click_probability(WORLD, one.query, one.items) for one in lists)
        assert found[release] == pytest.approx(expected, abs=1e-5)
    assert found["r0001"] is None
    assert found["r0002"] > found["r0000"]


def test_measures_come_from_the_gate_and_the_cold_start_is_what_the_first_gate_compared_with() -> None:
    releases = make_report(measured())["releases"]
    assert [one["aec_judge"] for one in releases] == [0.1, 0.1, 0.18]
    assert [one["promoted"] for one in releases] == [True, False, True]


def test_a_run_that_ended_after_the_cold_start_still_reports() -> None:
    what = measured()
    alone = Measured(7, WORLD, what.totals, what.releases[:1], what.counters, what.spans, 1000.0)
    report = make_report(alone)
    assert report["releases"][0]["aec_judge"] is None
    assert summarise(report) == "No better release went live."


def test_a_swap_is_the_first_answer_of_a_new_release() -> None:
    assert make_report(measured())["swaps"] == [{"release": "r0002", "previous": "r0000", "seconds": 200.0, "day": "2023-11-17"}]


class Tags(HTMLParser):
    """Collects the tags and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_self_contained_and_escaped(tmp_path: Path) -> None:
    report = write_report(measured(broker=HOSTILE), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    tags = Tags()
    tags.feed(page)
    assert tags.tags["script"] == 0
    assert tags.tags["svg"] == 3
    assert tags.addresses == []
    assert page.count("&lt;script&gt;") == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.json"]


def test_the_page_shows_the_gain_in_words(tmp_path: Path) -> None:
    report = write_report(measured(), tmp_path)
    first, _, last = (one["true_click_rate"] for one in report["releases"])
    assert re.search(
        rf"rose from {first:.3f} \(r0000\) to {last:.3f} \(r0002\): {last / first:.2f} times",
        (tmp_path / "report.html").read_text(),
    )


@pytest.mark.parametrize(
    "svg",
    [
        draw_bars({"<r>": {"<a>": 0.1, "b": None}}, title="<t>", unit="<u>"),
        draw_bars({}, title="t", unit="u"),
        draw_lines({"<r>": [(0, 0.1), (1, 0.2)]}, ["<1>", "2"], title="<t>", unit="u"),
        draw_lines({}, [], title="t", unit="u"),
        draw_timeline([Span("<s>", 0.0, 3.0)], {"<m>": 2.0}, title="t"),
        draw_timeline([], {}, title="t"),
    ],
)
def test_a_plot_is_well_formed_whatever_its_texts(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert len(list(root.iter())) > 1


def test_a_higher_bar_is_a_larger_value() -> None:
    root = ElementTree.fromstring(draw_bars({"a": {"x": 0.1}, "b": {"x": 0.2}}, title="t", unit="u"))
    heights = [float(bar.attrib["height"]) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.01)
