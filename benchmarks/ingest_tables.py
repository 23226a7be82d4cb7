"""The tables that `benchmarks.ingest` prints, made from its JSON report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.goals import Goal
from benchmarks.throughput import BARE, OURS, QUIX, QUIX_LIGHT

WIDTH = 130
"""Columns of the tables where the output is no terminal."""

CONTESTANTS = {
    OURS: "ours, durable in DuckDB",
    BARE: "bare confluent-kafka, json.loads",
    QUIX: "quixstreams, equivalent count",
    QUIX_LIGHT: "quixstreams, light: no repeats, no matching",
}


def print_report(report: dict[str, Any], goals: Sequence[Goal]) -> None:
    """Print the head, a table for each section measured, and the goals."""
    console = Console(highlight=False, soft_wrap=True)
    console = console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=WIDTH)
    kind = "QUICK run, sizes too small to be a result" if report["quick"] else f"run of {report['share']:g} of the full sizes"
    host = f"{report['load_at_end']:.1f} at the end; the host took {report['stolen_cores']:.2f} cores of it (steal)"
    console.print(f"{kind}: {report['machine']}, {host}; {report['measured']}")
    console.print(f"{report['partitions']} partitions, {report['bytes_an_event']:.0f} bytes an event, real Apache Kafka")
    if "throughput" in report:
        console.print(_throughput(report["throughput"]))
    if lines := [*_latency(report), *_memory(report), *_state(report), *_replay(report)]:
        console.print(_pairs(lines))
    for goal in goals:
        console.print(goal.verdict(), style=None if goal.met else "bold")


def _throughput(section: dict[str, Any]) -> Table:
    table = Table(title="Throughput, one process: first batch to last, median (lowest-highest); by thread: by CPU of the busiest")
    for name in (
        "a record",
        "contestant",
        "events/s",
        "ours is",
        "by thread",
        "CPU us/event",
        "broker us/event",
        "whole s",
    ):
        table.add_column(name, justify="left" if name == "contestant" else "right")
    for lines, contest in section.items():
        for key, result in contest.items():
            rate = result["per_s"]
            table.add_row(
                lines,
                CONTESTANTS[key],
                f"{rate['median']:,.0f} ({rate['low']:,.0f}-{rate['high']:,.0f})",
                f"{result['ours_is']['median']:.2f} x" if key != OURS else "",
                f"{result['ours_is_by_thread']:.2f} x" if key != OURS else "",
                _cpu(result),
                f"{result['broker_cpu_us_an_event']:.1f}",
                f"{result['whole_s']:.1f}",
            )
    return table


def _cpu(result: dict[str, Any]) -> str:
    """Return the CPU time of a contestant, and its threads' shares where they were measured."""
    threads = " + ".join(f"{us:.1f}" for us in result["threads_us_an_event"])
    return f"{result['cpu_us_an_event']:.1f}" + (f" = {threads}" if threads else "")


def _pairs(lines: Sequence[tuple[str, str]]) -> Table:
    table = Table(show_header=False)
    for line in lines:
        table.add_row(*line)
    return table


def _latency(report: dict[str, Any]) -> list[tuple[str, str]]:
    if not (found := report.get("latency")):
        return []
    times = ", ".join(f"{name} {found[f'{name}_ms']:.0f} ms" for name in ("p50", "p90", "p99", "max"))
    cores = "cores used: " + ", ".join(f"{name} {found[f'{name}_cores']:.2f}" for name in ("worker", "broker", "producer"))
    lines = [(f"events to visible window at {found['events_per_s']:,.0f} events/s", f"{times}, median of rounds"), ("", cores)]
    for number, one in enumerate(found["rounds"], 1):
        load = f"{one['events_per_s']:,.0f} of {one['full_per_s']:,.0f} events/s"
        times = f"p50 {one['p50_ms']:.0f}, p99 {one['p99_ms']:.0f} ms"
        disk = f"a write of 4 kB: p99 {one['disk_p99_ms']:.0f}, max {one['disk_max_ms']:.0f} ms"
        host = f"{one['stolen_cores']:.2f} cores taken by the host"
        lines.append((f"  round {number}", f"{load}: {times}; {disk}; {host}"))
    watched = found["watched"]
    times = f"p50 {watched['p50_ms']:.0f}, p99 {watched['p99_ms']:.0f} ms"
    if "read_p50_ms" in watched:
        times += f"; a read takes p50 {watched['read_p50_ms']:.0f}, max {watched['read_max_ms']:.0f} ms"
    lines.append(("  windows are read every 2 s", f"at {watched['events_per_s']:,.0f} events/s: {times}"))
    little = found["little"]
    batches = f"{little['batches_per_s']:.0f} batches/s take {little['worker_cores']:.2f} cores"
    lines.append(
        (f"  at {little['events_per_s']:,.0f} events/s", f"{batches}; p50 {little['p50_ms']:.0f}, p99 {little['p99_ms']:.0f} ms")
    )
    return lines


def _memory(report: dict[str, Any]) -> list[tuple[str, str]]:
    if not (found := report.get("memory")):
        return []
    first, last = f"{found['early_events'] / 1e6:.1f} M events", f"{found['events'] / 1e6:.1f} M"
    text = f"{found['early_mib']:.0f} MiB at {first}, {found['late_mib']:.0f} MiB at {last}: {found['growth']:+.0%}"
    return [("worker's resident memory", text)]


def _state(report: dict[str, Any]) -> list[tuple[str, str]]:
    if not (found := report.get("state")):
        return []
    name = f"on {found['state_events'] / 1e6:.1f} M events, {found['days']} days of state"
    rates = f"{found['full_per_s']:,.0f} events/s, {found['empty_per_s']:,.0f} on an empty store"
    return [(name, rates), ("", f"shards: {found['shard_bytes_an_event']:.0f} bytes an event")]


def _replay(report: dict[str, Any]) -> list[tuple[str, str]]:
    names = {
        "from_kafka": "a worker that reads the log again from Kafka",
        "log_file": "queryloop replay --isolated of a log file",
    }
    return [
        (
            names[kind],
            f"{found['events']:,} events in {found['seconds']:.0f} s ({found['per_s']:,.0f}/s); "
            f"{found['full_log_events'] / 1e6:.1f} M in {found['full_log_s'] / 60:.1f} min, extrapolated",
        )
        for kind, found in report.get("replay", {}).items()
    ]
