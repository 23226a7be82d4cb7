"""The demo's report as JSON and HTML. Only it reads the true click rates, to say what the served lists were worth."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from queryloop.demo.plots import Span, draw_bars, draw_lines, draw_timeline
from queryloop.product.clicks import list_click_probability
from queryloop.product.totals import ProductTotals, Shown, percentile
from queryloop.product.world import World
from streams.runtime.atomic_files import replace_file

MEASURES = ("aec_predictor", "aec_judge", "well_formed", "mean_tokens", "duplicate_rate")


@dataclass(frozen=True)
class ReleaseRecord:
    """A release: its gate record, and whether it was promoted."""

    id: str
    gate: Mapping[str, Any]
    promoted: bool


@dataclass(frozen=True)
class Measured:
    """Everything measured in a demo. `counters` are the worker's totals over its shards; `started` is epoch seconds."""

    seed: int
    world: World
    totals: ProductTotals
    releases: Sequence[ReleaseRecord]
    counters: Mapping[str, Any]
    spans: Sequence[Span]
    started: float
    broker: str = ""


def make_report(measured: Measured) -> dict[str, Any]:
    """Return the contents of report.json: releases, requests, events, swaps and seconds by stage."""
    totals = measured.totals
    rates = mean_by(totals.shown, lambda one: one.release, measured.world)
    return {
        "releases": [describe_release(one, measured.releases, rates) for one in measured.releases],
        "requests": {
            "answered": totals.answered,
            "failed": totals.failed,
            "p50_ms": round(percentile(totals.latencies_ms, 0.50), 1),
            "p99_ms": round(percentile(totals.latencies_ms, 0.99), 1),
        },
        "events": {
            "emitted": totals.emitted,
            "counted": measured.counters["counted"],
            "duplicates": measured.counters["duplicates"],
            "quarantined": dict(sorted(measured.counters["quarantined"].items())),
        },
        "swaps": find_swaps(totals.shown, measured.started),
        "seconds": {span.name: round(span.end - span.start, 1) for span in measured.spans},
    }


def describe_release(release: ReleaseRecord, releases: Sequence[ReleaseRecord], rates: Mapping[str, float]) -> dict[str, Any]:
    """Return one entry of `releases`; what was not measured (a release that never served or passed no gate) is null."""
    measures = _measures_of(release, releases)
    return {
        "release": release.id,
        "true_click_rate": round(rates[release.id], 5) if release.id in rates else None,
        **{name: measures.get(name) for name in MEASURES},
        "promoted": release.promoted,
        "gate": dict(release.gate),
    }


def _measures_of(release: ReleaseRecord, releases: Sequence[ReleaseRecord]) -> Mapping[str, Any]:
    """Return the figures of its own gate; for the cold start those that the first later gate measured of it as champion."""
    if own := release.gate.get("challenger"):
        return dict(own)
    later = [one.gate["champion"] for one in releases if one.id > release.id and one.gate.get("champion")]
    return dict(later[0]) if later else {}


def mean_by(shown: Iterable[Shown], key: Any, world: World) -> dict[Any, float]:
    """Return the mean true list click probability by `key(shown)`, keys in order of first appearance."""
    values: dict[Any, list[float]] = defaultdict(list)
    for one in shown:
        values[key(one)].append(list_click_probability(world, one.query, one.items))
    return {name: math.fsum(rates) / len(rates) for name, rates in values.items()}


def find_swaps(shown: Sequence[Shown], started: float) -> list[dict[str, Any]]:
    """Return each first answer of a release other than the first: seconds since `started`, and the simulated day."""
    firsts: dict[str, Shown] = {}
    for one in sorted(shown, key=lambda one: one.answered_at):
        firsts.setdefault(one.release, one)
    names = list(firsts)
    return [
        {"release": new, "previous": old, "seconds": round(firsts[new].answered_at - started, 1), "day": day_of(firsts[new].ts)}
        for old, new in itertools.pairwise(names)
    ]


def day_of(ts: float) -> str:
    """Return the UTC day of an event time, YYYY-MM-DD."""
    return datetime.fromtimestamp(ts, UTC).date().isoformat()


def summarise(report: Mapping[str, Any]) -> str:
    """Return one sentence with the true click rates of the first and the last release."""
    served = [one for one in report["releases"] if one["true_click_rate"] is not None and one["promoted"]]
    if len(served) < 2:
        return "No better release went live."
    first, last = served[0], served[-1]
    gain = last["true_click_rate"] / first["true_click_rate"]
    return (
        f"The true click rate rose from {first['true_click_rate']:.3f} ({first['release']}) to {last['true_click_rate']:.3f} "
        f"({last['release']}): {gain:.2f} times."
    )


def write_report(measured: Measured, out: Path) -> dict[str, Any]:
    """Write report.json and report.html into `out` (made when missing) and return the JSON's contents."""
    report = make_report(measured)
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    replace_file(out / "report.json", content.encode(), durable=True)
    replace_file(out / "report.html", render_page(report, measured).encode(), durable=True)
    return report


def render_page(report: Mapping[str, Any], measured: Measured) -> str:
    """Return the HTML page, self-contained and autoescaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=PackageLoader("queryloop.demo", "."), autoescape=True, undefined=StrictUndefined)
    environment.filters.update(rate=_show("{:.4f}"), tenth=_show("{:.1f}"), verdict=describe_gate)
    return environment.get_template("report.html").render(
        report=report,
        seed=measured.seed,
        broker=measured.broker,
        expected=measured.totals.counted,
        headline=summarise(report),
        # SVG from an XML writer: its texts are escaped already.
        promised=Markup(_plot_promises(report)),
        by_day=Markup(_plot_days(measured)),
        timeline=Markup(_plot_timeline(report, measured)),
    )


def describe_gate(gate: Mapping[str, Any]) -> str:
    """Return a gate record in words."""
    if not gate:
        return "no gate"
    if "cold_start" in gate and gate.get("passed"):
        return "cold start"
    return "passed" if gate.get("passed") else "refused: " + "; ".join(str(reason) for reason in gate.get("reasons", []))


def _plot_promises(report: Mapping[str, Any]) -> str:
    groups = {
        one["release"]: {
            "true click rate": one["true_click_rate"],
            "AEC by the predictor": one["aec_predictor"],
            "AEC by the judge": one["aec_judge"],
        }
        for one in report["releases"]
    }
    return draw_bars(groups, title="True click rate and promised AEC by release", unit="click rate of a list")


def _plot_days(measured: Measured) -> str:
    rates = mean_by(measured.totals.shown, lambda one: (one.release, day_of(one.ts)), measured.world)
    days = sorted({day for _, day in rates})
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for (release, day), rate in sorted(rates.items()):
        lines[release].append((days.index(day), rate))
    return draw_lines(lines, [day[5:] for day in days], title="True click rate by release and day", unit="true click rate")


def _plot_timeline(report: Mapping[str, Any], measured: Measured) -> str:
    marks = {swap["release"]: float(swap["seconds"]) for swap in report["swaps"]}
    return draw_timeline(measured.spans, marks, title="Stages and swaps in seconds of real time")


def _show(form: str) -> Any:
    return lambda value: "–" if value is None else form.format(value)
