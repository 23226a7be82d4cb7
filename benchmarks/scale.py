"""`python -m benchmarks.scale`: sizes clusters for 10^6, 10^8 and 10^9 events a day by measured costs, and simulates days."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.capacity.outage import Day, simulate
from benchmarks.capacity.sizing import GB, Assumptions, Costs, Plan, plan
from benchmarks.goals import Goal

MEASURED = Path(__file__).with_name("measured.json")
"""The report of the full `benchmarks.ingest` run whose costs are the default."""
DOCUMENT = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- made by: python -m benchmarks.scale --write -->", "<!-- end -->"
VOLUMES = (1e6, 1e8, 1e9)
SESSIONS, DAYS = 1_000_000, 5
QUICK_SESSIONS, QUICK_DAYS = 50_000, 1

Sized = tuple[Plan, Day]


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0; 1 with --check when a goal is missed; 2 when costs or assumptions cannot be used."""
    options = _parse(argv)
    try:
        costs = Costs.of_report(json.loads(options.ingest.read_text(encoding="utf-8")))
        assumed = _assume(options.assume)
    except (OSError, ValueError, KeyError) as error:
        print(f"benchmarks.scale: {type(error).__name__}: {error} ({options.ingest}: a whole report is needed)", file=sys.stderr)
        return 2
    sessions, days = (QUICK_SESSIONS, QUICK_DAYS) if options.quick else (SESSIONS, DAYS)
    sized = size_all(costs, assumed, sessions, days)
    goals = [goal for one in sized for goal in judge(*one, assumed)]
    if options.json:
        options.json.write_text(json.dumps(make_report(costs, assumed, sized, goals), indent=1) + "\n", encoding="utf-8")
    if options.write:
        rewrite(DOCUMENT, render(costs, assumed, sized))
    print(render(costs, assumed, sized))
    for goal in goals:
        print(goal.verdict())
    return int(options.check and not all(goal.met for goal in goals))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    example = "example: python -m benchmarks.scale --ingest ingest.json --assume peak_factor=2 --check"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__, epilog=example)
    parser.add_argument("--ingest", type=Path, default=MEASURED, metavar="FILE", help="report of benchmarks.ingest (its --json)")
    parser.add_argument("--assume", action="append", default=[], metavar="NAME=VALUE", help="change an assumption")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write costs, assumptions, plans and goals there")
    parser.add_argument("--quick", action="store_true", help="fewer sessions, one simulated day")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed, naming it and by how much")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{DOCUMENT.name}")
    return parser.parse_args(argv)


def _assume(changes: Sequence[str]) -> Assumptions:
    assumed = Assumptions()
    for change in changes:
        name, _, value = change.partition("=")
        assumed = assumed.changed(name, value)
    return assumed


def size_all(costs: Costs, assumed: Assumptions, sessions: int = SESSIONS, days: int = DAYS) -> list[Sized]:
    """Plan each volume and simulate it."""
    plans = [plan(volume, costs, assumed) for volume in VOLUMES]
    return [(one, simulate(one, assumed, sessions, days)) for one in plans]


def judge(one: Plan, day: Day, assumed: Assumptions) -> list[Goal]:
    """Return the goals: every part within the headroom at the simulated peak, and an outage caught up in time."""
    name = f"10^{round(math.log10(one.events_a_day))} events a day"
    limits = {
        "busiest worker at the peak": day.worker_use,
        "busiest partition over a worker": day.partition_use,
        "broker's disk": one.broker_disk_use,
        "broker's network": one.broker_network_use,
        "broker's CPU": one.broker_cpu_use,
    }
    goals = [Goal(f"{name}: {part}", use * 100, assumed.headroom * 100, "at most", " %") for part, use in limits.items()]
    caught = Goal(f"{name}: catch-up after the outage", day.catch_up_s / 60, assumed.catch_up_s / 60, "at most", " min")
    return [*goals, caught]


def make_report(costs: Costs, assumed: Assumptions, sized: Sequence[Sized], goals: Sequence[Goal]) -> dict[str, Any]:
    """Return everything as JSON."""
    plans = [{"plan": asdict(one), "simulated": asdict(day)} for one, day in sized]
    return {"costs": asdict(costs), "assumptions": asdict(assumed), "sizes": plans, "goals": [goal.to_dict() for goal in goals]}


def render(costs: Costs, assumed: Assumptions, sized: Sequence[Sized]) -> str:
    """Return the tables in Markdown: costs, assumptions, sizes."""
    titles = [f"10^{round(math.log10(one.events_a_day))} events a day" for one, _ in sized]
    rows = [_row(name, [cell(*one) for one in sized]) for name, cell in ROWS.items()]
    head = [_row("", titles), _row("---", ["---:"] * len(sized))]
    known = [f"| {name} | {value} |" for name, value in _facts(costs, assumed)]
    return "\n".join(["| measured or assumed | |", "|---|---:|", *known, "", *head, *rows])


def _facts(costs: Costs, assumed: Assumptions) -> list[tuple[str, str]]:
    return [
        ("measured", costs.measured),
        ("one worker, 100 events a record, empty shards", f"{costs.worker_per_s:,.0f} events/s"),
        (f"of that on 14 days of state ({costs.state_events_a_shard / 1e6:.1f} M events a shard)", f"{costs.state_ratio:.2f}"),
        ("cores of a worker at 2,000 events/s, for its batches however small", f"{costs.little_cores:.2f}"),
        ("broker's CPU an event read", f"{costs.broker_us:.2f} us"),
        (
            "bytes an event: on the wire, in a shard, in the lake",
            f"{costs.wire_bytes:.0f}, {costs.shard_bytes:.0f}, {costs.lake_bytes:.0f}",
        ),
        (f"worker's memory with {costs.worker_shards} shards", f"{costs.worker_mib:,.0f} MiB"),
        *((name.replace("_", " "), f"{value:,.12g}") for name, value in asdict(assumed).items()),
    ]


ROWS: dict[str, Callable[[Plan, Day], str]] = {
    "events/s, mean": lambda one, day: f"{one.mean_per_s:,.0f}",
    "events/s, peak": lambda one, day: f"{one.peak_per_s:,.0f}",
    "partitions": lambda one, day: f"{one.partitions}",
    "workers": lambda one, day: f"{one.workers}",
    "memory of a worker": lambda one, day: f"{one.worker_mib / 1024:,.1f} GiB",
    "shards, all": lambda one, day: f"{one.shard_bytes / GB:,.0f} GB",
    "one shard's file": lambda one, day: f"{one.shard_file_bytes / GB:,.1f} GB",
    "events in one shard": lambda one, day: f"{one.shard_events / 1e6:,.0f} M",
    "that over what was measured": lambda one, day: f"{one.beyond_measured:,.1f} x",
    "copying one shard": lambda one, day: f"{one.shard_move_s:,.0f} s",
    "rebuilding one shard from the log": lambda one, day: f"{one.rebuild_s / 60:,.0f} min",
    "Kafka brokers": lambda one, day: f"{one.brokers}",
    "Kafka's log, all copies": lambda one, day: f"{one.log_bytes / GB:,.0f} GB",
    "into Kafka at the peak": lambda one, day: f"{one.in_bytes_per_s / 1e6:,.1f} MB/s",
    "lake": lambda one, day: f"{one.lake_bytes / GB:,.0f} GB",
    "busiest partition over the mean (simulated)": lambda one, day: f"{day.partition_skew:.2f} x",
    "busiest worker over the mean (simulated)": lambda one, day: f"{day.worker_skew:.2f} x",
    "busiest worker's use at the peak (simulated)": lambda one, day: f"{day.worker_use:.0%}",
    "caught up after the outage (simulated)": lambda one, day: f"{day.catch_up_s / 60:,.0f} min",
}


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def rewrite(document: Path, tables: str) -> None:
    """Put the tables between the document's two marks. Raises ValueError where they are missing."""
    text = document.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{document} has no {BEGIN} ... {END}")
    document.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
