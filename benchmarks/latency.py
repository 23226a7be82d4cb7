"""Section `latency`: the time from an event's due time at the producer until its counts can be read, at half load.

Full load is what a worker applies of the same traffic when all of it is in the topic. It is measured before each round, since a
shared machine may be twice as fast in one minute as in the next: half of its rate ten minutes ago may be all that it can do now.
The report has the cores that the host took during a round, and the times of its disk's writes.

A shard's next offset, as its worker's /status has it, moves when the counts are added, and every later read shows them. So an
event is visible in its window once that offset is past its record. How long a read takes, and how it slows counting, is measured
in a round of its own. Both clocks are this machine's.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from statistics import median
from typing import Any

from benchmarks.corpus import Corpus
from benchmarks.goals import Goal, percentile
from benchmarks.peer_runs import run_peer
from benchmarks.probes.disk import DiskProbe
from benchmarks.probes.reads import ReadProbe
from benchmarks.probes.usage import cores_used, read_stolen, read_usage
from benchmarks.progress_log import log_progress
from benchmarks.throughput import BATCHED
from benchmarks.worker_runs import Progress, Site, Topic, Worker, measure_worker, running_worker
from streams.brokers.topics import KafkaSettings, create_topics

POLL_S = 0.02
WARM_UP_S = 10.0
"""A cold broker and producer start with a burst of a second or two, which takes some seconds to process at half load."""
SETTLE_S = WARM_UP_S + 1.0
"""Seconds of events that a round needs beside those that it measures."""
P99_GOAL_MS = 500.0
READ_EVERY_S = 2.0
LITTLE_PER_S, LITTLE_S = 2_000.0, 10.0
"""Light traffic, in which a worker's CPU time is that of its batches, whatever their size."""

PacedRecord = Sequence[float]
"""Partition, offset, due time of the first event and of the last, number of events."""


def measure_latency(site: Site, corpus: Corpus, topic: Topic, repeats: int, seconds: float) -> dict[str, Any]:
    """Return the section as JSON: each round, and the median of each number. `topic` has traffic of this corpus.

    `watched` is one more round at the last one's rate, with a reader; `little` is light traffic.
    """
    enough = corpus.events * 0.95  # a small corpus is paced slower
    rounds = []
    for number in range(repeats):
        full = measure_worker(site, topic).per_s
        rate = min(full / 2, enough / (SETTLE_S + 1.0))
        lasts_s = min(seconds, enough / rate - SETTLE_S)
        found = measure_round(site, corpus, f"paced-{number}", rate, lasts_s)
        rounds.append({"full_per_s": full, **found})
        summary = f"p50 {found['p50_ms']:.0f}, p99 {found['p99_ms']:.0f}, the disk's p99 {found['disk_p99_ms']:.0f} ms"
        log_progress(f"latency: round {number + 1} of {repeats}: {summary}")
    watched = measure_round(site, corpus, "paced-watched", rate, lasts_s, READ_EVERY_S)
    little = measure_round(site, corpus, "paced-little", LITTLE_PER_S, LITTLE_S)
    medians = {key: median(one[key] for one in rounds) for key in rounds[0]}
    return {**medians, "rounds": rounds, "watched": watched, "little": little}


def measure_round(
    site: Site, corpus: Corpus, topic: str, rate: float, seconds: float, read_every_s: float = 0.0
) -> dict[str, Any]:
    """Produce `rate` events a second for a warm-up and then `seconds`; return the numbers of the latter.

    A reader asks for a query's windows every `read_every_s` seconds; 0 is no reader.
    """
    log_progress(f"latency: {rate:,.0f} events/s for {seconds + WARM_UP_S:g} s")
    create_topics(site.bootstrap, KafkaSettings(bootstrap=site.bootstrap, topic=topic, partitions=site.partitions))
    with running_worker(site, topic) as worker, DiskProbe(site.folder / "disk-probe") as disk:
        _await_shards(worker, site.partitions)
        mine, broker, stolen = read_usage(worker.pid), read_usage(site.pid), read_stolen()
        reader = ReadProbe(worker.url, _first_query(corpus), read_every_s) if read_every_s else None
        with reader or nullcontext():
            result, seen = _pace_and_watch(site, corpus, worker, topic, rate, seconds + WARM_UP_S)
        now, now_broker, now_stolen = read_usage(worker.pid), read_usage(site.pid), read_stolen()
    records = result["records"]
    since = min(record[2] for record in records) + WARM_UP_S
    delays = visible_delays([record for record in records if record[2] >= since], seen)
    reads_s = reader.since(since) if reader else []
    return {
        "events_per_s": rate,
        "events": len(delays),
        **{f"p{share}_ms": percentile(delays, share / 100) * 1000 for share in (50, 90, 99)},
        "max_ms": max(delays) * 1000,
        "poll_ms": POLL_S * 1000,
        "disk_p99_ms": percentile(disk.waits_s, 0.99) * 1000,
        "disk_max_ms": max(disk.waits_s) * 1000,
        "worker_cores": cores_used(mine, now),
        "broker_cores": cores_used(broker, now_broker),
        "producer_cores": result["cpu_s"] / (now.at_s - mine.at_s),
        "stolen_cores": cores_used(stolen, now_stolen),
        "batches_per_s": count_batches(seen) / (seen[-1].at - seen[0].at),
        **({"read_p50_ms": median(reads_s) * 1000, "read_max_ms": max(reads_s) * 1000} if reads_s else {}),
    }


def judge_latency(section: dict[str, Any]) -> list[Goal]:
    """Return the goal: the median of the rounds' p99."""
    return [Goal("events to visible window at half load, p99", section["p99_ms"], P99_GOAL_MS, "at most", " ms")]


def visible_delays(records: Sequence[PacedRecord], seen: Sequence[Progress]) -> list[float]:
    """Return for each event the seconds from its due time to the first /status that shows it applied.

    Raises ValueError when a record was never seen applied.
    """
    delays: list[float] = []
    for partition in sorted({int(record[0]) for record in records}):
        offsets = [progress.offsets.get(partition, 0) for progress in seen]
        for record in records:
            if int(record[0]) == partition:
                at = bisect_right(offsets, record[1])
                if at == len(seen):
                    raise ValueError(f"offset {record[1]} of partition {partition} was never seen applied")
                delays += [seen[at].at - stamp for stamp in _due_times(record)]
    return delays


def count_batches(seen: Sequence[Progress]) -> int:
    """Return how often a shard was seen to have advanced; of several batches between two polls only the last is seen."""
    polls = [list(progress.offsets.items()) for progress in seen]
    return sum(len(set(after) - set(before)) for before, after in pairwise(polls))


def _due_times(record: PacedRecord) -> list[float]:
    """Return the due times of a record's events, evenly spread between the first and the last."""
    _, _, first, last, events = record
    step = (last - first) / max(events - 1, 1)
    return [first + number * step for number in range(int(events))]


def _first_query(corpus: Corpus) -> str:
    with corpus.file(0).open("rb") as lines:
        return str(json.loads(next(lines))["query"])


def _await_shards(worker: Worker, partitions: int) -> None:
    for progress in worker.watch():
        if len(progress.offsets) == partitions:
            return


def _pace_and_watch(
    site: Site, corpus: Corpus, worker: Worker, topic: str, rate: float, seconds: float
) -> tuple[dict[str, Any], list[Progress]]:
    """Run the producer in a thread, and poll the worker until everything produced is applied."""
    done: list[dict[str, Any]] = []
    files = [str(corpus.file(partition)) for partition in range(corpus.partitions)]
    options = ["--topic", topic, "--rate", str(rate), "--seconds", str(seconds), "--lines", str(BATCHED)]

    def produce() -> None:
        done.append(run_peer(site, "paced_producer", [*options, *files]))

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    seen: list[Progress] = []
    for progress in worker.watch(POLL_S):
        seen.append(progress)
        if not producer.is_alive():
            if not done:
                raise RuntimeError("the paced producer failed")
            if progress.events >= sum(record[4] for record in done[0]["records"]):
                return done[0], seen
    raise AssertionError("watch never ends")
