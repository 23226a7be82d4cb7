"""Section `state`: throughput on shards with 14 days of events compared with empty ones.

A day and two thirds more are applied to it, so that the cost of a start (reading keys) and of what happens all the time
(compaction, expiry, export of a day) have about the weight that they have in a long run. The state is built as a worker builds
it, by `Shard.apply`, maintenance and the lake's export, in larger batches and without Kafka:
python -m benchmarks.state --folder DATA --partition N --partitions P --events E builds one shard.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.goals import Goal
from benchmarks.probes.usage import CORES
from benchmarks.progress_log import log_progress
from benchmarks.throughput import ratios
from benchmarks.traffic import DAY_S, START, Mix, Traffic
from benchmarks.worker_runs import Rate, Site, Topic, measure_worker
from streams.events.batch_decoder import decode_columns
from streams.lake.files import Lake, LakeSettings
from streams.runtime.processes import Child, ProcessError
from streams.store.held_shards import shard_path
from streams.store.lake_export import export_mature
from streams.store.shard import CountingRules, Shard

DAYS = 14
BATCH = 50_000
EXPORT_EVERY = 10
"""Batches between two checks for days to export."""
GOAL = 0.75
LIMIT_S = 3600.0


def build_shard(folder: Path, partition: int, partitions: int, events: int) -> int:
    """Apply this partition's share of `events` over DAYS days to a new shard; return how many it has."""
    share = events // partitions
    traffic = Traffic(seed=100 + partition, mix=Mix(events_per_day=share / DAYS))
    shard = Shard.open(shard_path(folder, partition), CountingRules())
    for offset, batch in enumerate(_batches(traffic.lines(share))):
        columns = decode_columns([(offset, b"\n".join(batch))])
        shard.apply(columns, topic_id="built", first_offset=offset, next_offset=offset + 1, now=time.time())
        shard.maintain()
        if offset % EXPORT_EVERY == 0:
            export_mature(shard, partition=partition, lake=Lake.local(folder / "lake"), settings=LakeSettings())
    while shard.maintain():
        continue
    held = shard.totals().events
    shard.close()
    return held


def _batches(lines: Iterator[Any]) -> Iterator[list[bytes]]:
    while batch := [line.text for line in islice(lines, BATCH)]:
        yield batch


def build_state(folder: Path, partitions: int, events: int) -> int:
    """Build all shards, a process for each core at a time; return the number of their events."""

    def build(partition: int) -> int:
        out = folder / f"built-{partition}.json"
        options = ["--partition", partition, "--partitions", partitions, "--events", events]
        command = [sys.executable, "-m", "benchmarks.state", "--folder", str(folder), "--out", str(out), *map(str, options)]
        with Child(f"state {partition}", command, folder / f"built-{partition}.log") as child:
            if child.sleep(LIMIT_S) != 0:
                raise ProcessError(f"building shard {partition} failed; its output ends:\n{child.tail()}")
        log_progress(f"state: shard {partition} of {partitions} built")
        return int(json.loads(out.read_text()))

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(CORES) as pool:
        return sum(pool.map(build, range(partitions)))


def later_traffic(events: int) -> Traffic:
    """Return traffic of the same density that continues where the state ends."""
    return Traffic(seed=99, mix=Mix(events_per_day=events / DAYS), start=START + DAYS * DAY_S)


def measure_state(site: Site, topic: Topic, built: Path, held: int, repeats: int) -> tuple[list[Rate], list[Rate]]:
    """Return rates on a copy of the built state and on empty shards, in turn, after a warm-up of each."""
    full: list[Rate] = []
    empty: list[Rate] = []
    for number in range(repeats + 1):
        copy = site.folder / "state-copy"
        shutil.copytree(built, copy)
        os.sync()  # else the disk writes the copy while the worker is timed
        on_state, on_empty = measure_worker(site, topic, copy, held), measure_worker(site, topic)
        shutil.rmtree(copy)
        log_progress(f"state: round {number}: {on_state.per_s:,.0f}/s on {held:,} events, {on_empty.per_s:,.0f}/s on none")
        if number:
            full.append(on_state)
            empty.append(on_empty)
    return full, empty


def report_state(full: list[Rate], empty: list[Rate], held: int, built: Path) -> dict[str, Any]:
    """Return the section as JSON."""
    size = sum(path.stat().st_size for path in (built / "shards").glob("*.duckdb"))
    # Days that are not mature yet (the last one) are left out: a fourteenth too little.
    lake = sum(path.stat().st_size for path in (built / "lake").rglob("*.parquet"))
    return {
        "state_events": held,
        "days": DAYS,
        "shard_bytes_an_event": size / held,
        "lake_bytes_an_event": lake / held,
        "full_per_s": sorted(rate.per_s for rate in full)[len(full) // 2],
        "empty_per_s": sorted(rate.per_s for rate in empty)[len(empty) // 2],
        "full_to_empty": ratios(full, empty).__dict__,
    }


def judge_state(section: dict[str, Any]) -> list[Goal]:
    """Return the goal: at least three quarters of the rate on an empty store."""
    name = f"throughput on {section['state_events'] / 1e6:.1f} M events of state, to an empty store"
    return [Goal(name, section["full_to_empty"]["median"], GOAL, "at least", " x")]


def main() -> None:
    """Build one shard; the parent runs one process for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    for name in ("--partition", "--partitions", "--events"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    options.out.write_text(json.dumps(build_shard(options.folder, options.partition, options.partitions, options.events)))


if __name__ == "__main__":
    main()
