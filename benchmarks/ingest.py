"""`python -m benchmarks.ingest`: how fast one worker counts, compared with a bound and a peer on the same real Apache Kafka.

Sections: throughput, latency, memory, state, replay. A whole run takes some 28 minutes and 17 GB of disk; --quick takes two or
three minutes, and its report is marked as quick.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.corpus import Corpus, write_corpus
from benchmarks.endurance import judge_memory, measure_replay, report_catch_up, report_memory, sample_worker
from benchmarks.goals import Goal
from benchmarks.ingest_tables import print_report
from benchmarks.latency import judge_latency, measure_latency
from benchmarks.peer_runs import fill_topic
from benchmarks.peer_venv import PeersUnavailable, peer_python
from benchmarks.probes.usage import Usage, cores_used, read_stolen, use_two_cores
from benchmarks.progress_log import log_progress
from benchmarks.state import build_state, judge_state, later_traffic, measure_state, report_state
from benchmarks.throughput import BATCHED, SINGLE, judge_throughput, measure_throughput, report_throughput
from benchmarks.traffic import Mix, Traffic
from benchmarks.worker_runs import Site
from streams.api.client import HttpError
from streams.brokers.broker import BrokerError, KafkaBroker
from streams.brokers.topics import TopicError
from streams.runtime.processes import ProcessError

SECTIONS = ("throughput", "latency", "memory", "state", "replay")
PARTITIONS = 4


@dataclass(frozen=True)
class Sizes:
    """How much is measured; numbers are events, seconds and repeats after the warm-up."""

    throughput: int = 1_000_000
    quix: int = 200_000
    repeats: int = 5
    latency: int = 4_000_000
    latency_topic: int = 2_000_000
    latency_s: float = 20.0
    early: int = 1_000_000
    endurance: int = 5_000_000
    state: int = 20_000_000
    state_topic: int = 2_400_000
    state_repeats: int = 3


QUICK = Sizes(150_000, 40_000, 1, 1_600_000, 300_000, 6.0, 200_000, 600_000, 600_000, 150_000, 1)
LIVE = Mix(events_per_day=50_000_000.0)
"""In a live topic at half load no day ends within a minute; in the other corpora one ends every 20 s and is exported."""


@dataclass
class Run:
    """The state and the results of one run."""

    sizes: Sizes
    stolen: Usage = field(default_factory=read_stolen)
    site: Site = field(init=False)
    corpus: Corpus = field(init=False)
    bytes_an_event: float = 0.0
    report: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections; return 0, or 1 with --check when a goal is missed, or when the benchmark cannot run."""
    options = _parse(argv)
    machine = use_two_cores()
    run = Run(choose_sizes(options.quick, options.share, options.repeats))
    log_progress(machine)
    failed = None
    try:
        with tempfile.TemporaryDirectory(prefix="queryloop-bench-", dir=options.work) as folder:
            _measure(run, options.only, Path(folder))
    except (PeersUnavailable, BrokerError, TopicError, ProcessError, HttpError, OSError) as error:
        failed = str(error)
    report = _complete(run, machine, options, failed)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_report(report, run.goals)
    if failed:
        print(f"benchmarks.ingest: {failed}", file=sys.stderr)
    return int(bool(failed) or (options.check and not all(goal.met for goal in run.goals)))


def choose_sizes(quick: bool, share: float, repeats: int | None) -> Sizes:
    """Return the sizes of a full or a quick run, events times `share` except those applied to the built state."""
    whole = QUICK if quick else Sizes()
    names = ("throughput", "quix", "latency", "latency_topic", "early", "endurance", "state")
    scaled = replace(whole, **{name: max(1, round(getattr(whole, name) * share)) for name in names})
    return replace(scaled, repeats=repeats) if repeats else scaled


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    example = "example: python -m benchmarks.ingest --only throughput --json ingest.json --check"
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__, epilog=example)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured there")
    parser.add_argument("--quick", action="store_true", help="small sizes, one repeat: a try, not a result")
    parser.add_argument("--check", action="store_true", help="exit 1 when a goal is missed, naming it and by how much")
    parser.add_argument("--only", type=_sections, default=SECTIONS, metavar="A,B", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--repeats", type=int, metavar="N", help="rounds of `throughput` and `latency` that count (default: 5)")
    parser.add_argument("--share", type=float, default=1.0, metavar="X", help="take X times as many events (default: 1)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for temporary data (default: the system's folder)")
    return parser.parse_args(argv)


def _sections(text: str) -> tuple[str, ...]:
    chosen = tuple(part.strip() for part in text.split(","))
    if unknown := [part for part in chosen if part not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}; sections are {', '.join(SECTIONS)}")
    return chosen


def _measure(run: Run, sections: Sequence[str], folder: Path) -> None:
    """Fill `run` section by section, so that results before a failure are kept."""
    peer_python()
    sizes = run.sizes
    of_section = {"memory": sizes.endurance, "replay": sizes.endurance}
    needed = max([sizes.throughput, *(of_section.get(section, 0) for section in sections)])
    log_progress(f"making {needed:,} events")
    run.corpus = write_corpus(Traffic().lines(needed), PARTITIONS, folder / "corpus")
    run.bytes_an_event = run.corpus.bytes_an_event
    with KafkaBroker(folder) as broker:
        assert broker.child is not None
        run.site = Site(broker.bootstrap, broker.child.pid, PARTITIONS, folder)
        for section in SECTIONS:
            if section in sections:
                RUNNERS[section](run)
    if "replay" in sections:
        run.report["replay"]["log_file"] = measure_replay(folder, run.sizes.endurance)


def _run_throughput(run: Run) -> None:
    topics = [fill_topic(run.site, run.corpus, f"events-{lines}", lines, run.sizes.throughput) for lines in (BATCHED, SINGLE)]
    contests = measure_throughput(run.site, topics, run.sizes.repeats, run.sizes.quix)
    run.report["throughput"] = report_throughput(contests)
    run.goals += judge_throughput(contests)


def _run_latency(run: Run) -> None:
    sizes = run.sizes
    log_progress(f"making {sizes.latency:,} events of a live topic")
    live = write_corpus(Traffic(mix=LIVE).lines(sizes.latency), PARTITIONS, run.site.folder / "live")
    topic = fill_topic(run.site, live, "events-live", BATCHED, sizes.latency_topic)
    run.report["latency"] = measure_latency(run.site, live, topic, sizes.repeats, sizes.latency_s)
    run.goals += judge_latency(run.report["latency"])


def _run_memory(run: Run) -> None:
    topic = fill_topic(run.site, run.corpus, "events-endurance", BATCHED)
    samples = sample_worker(run.site, topic)
    run.report["memory"] = report_memory(samples, run.sizes.early)
    run.report["replay"] = {"from_kafka": report_catch_up(samples)}
    run.goals += judge_memory(run.report["memory"])


def _run_state(run: Run) -> None:
    sizes, built = run.sizes, run.site.folder / "built"
    log_progress(f"building {sizes.state:,} events of state")
    held = build_state(built, PARTITIONS, sizes.state)
    later = write_corpus(later_traffic(sizes.state).lines(sizes.state_topic), PARTITIONS, run.site.folder / "later")
    topic = fill_topic(run.site, later, "events-later", BATCHED)
    full, empty = measure_state(run.site, topic, built, held, sizes.state_repeats)
    run.report["state"] = report_state(full, empty, held, built)
    run.goals += judge_state(run.report["state"])


def _run_replay(run: Run) -> None:
    """Run the worker's part; the log file's part runs once the broker has stopped."""
    if "replay" not in run.report:
        topic = fill_topic(run.site, run.corpus, "events-endurance", BATCHED)
        run.report["replay"] = {"from_kafka": report_catch_up(sample_worker(run.site, topic))}


RUNNERS = {
    "throughput": _run_throughput,
    "latency": _run_latency,
    "memory": _run_memory,
    "state": _run_state,
    "replay": _run_replay,
}


def _complete(run: Run, machine: str, options: argparse.Namespace, failed: str | None) -> dict[str, Any]:
    head = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "load_at_end": os.getloadavg()[0],
        "stolen_cores": cores_used(run.stolen, read_stolen()),
        "quick": options.quick,
        "share": options.share,
        "partitions": PARTITIONS,
        "bytes_an_event": run.bytes_an_event,
        "failed": failed,
    }
    return {**head, **run.report, "goals": [goal.to_dict() for goal in run.goals]}


if __name__ == "__main__":
    sys.exit(main())
