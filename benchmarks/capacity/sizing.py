"""Sizing: how many partitions, workers and brokers, and how much disk, memory and network a volume of events a day needs.

A plan is arithmetic on measured costs and stated assumptions; `benchmarks.capacity.outage` simulates a day with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from benchmarks.probes.usage import CORES

DAY_S = 86_400
GB = 1e9


@dataclass(frozen=True)
class Costs:
    """What one event costs, as `benchmarks.ingest` measured it; `measured` is the date and the machine."""

    measured: str
    worker_per_s: float
    """Events a second that one worker applies, 100 a record, on empty shards."""
    state_ratio: float
    """The share of that rate with 14 days of state in the shards (at most 1)."""
    state_events_a_shard: float
    """Events in each shard when that was measured."""
    broker_us: float
    """CPU microseconds of the broker for each event read."""
    wire_bytes: float
    shard_bytes: float
    lake_bytes: float
    worker_mib: float
    """Resident memory of a worker with `worker_shards` shards after the longest run."""
    worker_shards: int
    little_cores: float
    """Cores that a worker uses for light traffic in as many shards or more: the number of its batches does not grow with them."""

    @classmethod
    def of_report(cls, report: Mapping[str, Any]) -> Costs:
        """Return the costs of a report of `benchmarks.ingest`. Raises KeyError naming a section that was not measured."""
        ours, state = report["throughput"]["100"]["ours"], report["state"]
        return cls(
            measured=f"{report['measured'][:10]}, {report['machine']}",
            worker_per_s=ours["per_s"]["median"],
            state_ratio=min(1.0, state["full_to_empty"]["median"]),
            state_events_a_shard=state["state_events"] / report["partitions"],
            broker_us=ours["broker_cpu_us_an_event"],
            wire_bytes=report["bytes_an_event"],
            shard_bytes=state["shard_bytes_an_event"],
            lake_bytes=state["lake_bytes_an_event"],
            worker_mib=report["memory"]["late_mib"],
            worker_shards=report["partitions"],
            little_cores=report["latency"]["little"]["worker_cores"],
        )


@dataclass(frozen=True)
class Assumptions:
    """What is assumed of the product and of the machines; change one with `--assume name=value`."""

    peak_factor: float = 3.0
    """Events in the busiest minute over the day's mean (at most 3.2)."""
    headroom: float = 0.6
    """Highest allowed use of any worker, broker or disk at the peak."""
    skew_allowance: float = 1.25
    """Load of the busiest worker over the mean that a plan allows for; the simulation draws the real one."""
    outage_s: float = 3600.0
    catch_up_s: float = 7200.0
    """After an outage of `outage_s` that ends at the peak, everything is applied within this."""
    log_days: float = 31.0
    """As long as a shard keeps events: a lost shard can be rebuilt from the log, and `queryloop verify` recounts all of it."""
    shard_days: float = 31.0
    """Retention of 30 days, and a day before it for clicks."""
    lake_days: float = 365.0
    replication: int = 3
    sessions_events: float = 5.8
    session_tail: float = 1.5
    """Exponent of the Pareto law of events a session; crawlers make the tail."""
    session_most: float = 10_000.0
    shard_most_bytes: float = 32e9
    """Largest shard file: at `copy_bytes_per_s` it moves in under three minutes."""
    shard_most_events: float = 200e6
    """Events in one shard; the tables say how far that is from what was measured."""
    copy_bytes_per_s: float = 200e6
    worker_disk_bytes: float = 2e12
    shard_slack: float = 1.5
    """Room for a shard's write-ahead log, for compaction and for growth, over its size."""
    broker_disk_bytes: float = 8e12
    broker_network_bytes_per_s: float = 1.25e9
    broker_cores: float = 8.0
    bare_worker_mib: float = 160.0
    """The part of a worker's memory that does not grow with its shards."""

    def changed(self, name: str, value: str) -> Assumptions:
        """Return a copy with one of them changed. Raises ValueError for an unknown name or a value that is no number."""
        if name not in self.__dict__:
            raise ValueError(f"no assumption {name!r}; they are {', '.join(self.__dict__)}")
        kind = type(self.__dict__[name])
        return Assumptions(**{**self.__dict__, name: kind(value)})


@dataclass(frozen=True)
class Plan:
    """A sized cluster. Bytes and MiB are of one machine where the name says so, else of all."""

    events_a_day: float
    mean_per_s: float
    peak_per_s: float
    partitions: int
    workers: int
    worker_capacity_per_s: float
    little_use: float
    """Share of a worker's cores that its batches use in light traffic. With larger batches it is part of the capacity."""
    brokers: int
    log_bytes: float
    """In all brokers, with every copy."""
    shard_bytes: float
    shard_file_bytes: float
    shard_move_s: float
    shard_events: float
    """Events in one shard at full retention."""
    beyond_measured: float
    """Those over the events in a shard when the cost of state was measured."""
    rebuild_s: float
    """Seconds to rebuild a lost shard from the log by one worker."""
    lake_bytes: float
    worker_mib: float
    in_bytes_per_s: float
    """Into Kafka at the peak, before replication."""
    broker_disk_use: float
    broker_network_use: float
    broker_cpu_use: float


def plan(events_a_day: float, costs: Costs, assumed: Assumptions) -> Plan:
    """Size a cluster: workers by load and by disk, partitions by shard size and workers, brokers by disk, network and CPU."""
    mean = events_a_day / DAY_S
    peak = mean * assumed.peak_factor
    capacity = costs.worker_per_s * costs.state_ratio
    shards = events_a_day * assumed.shard_days * costs.shard_bytes
    by_load = ceil(peak * assumed.skew_allowance / (capacity * assumed.headroom))
    by_disk = ceil(shards * assumed.shard_slack / (assumed.worker_disk_bytes * assumed.headroom))
    workers = max(1, by_load, by_disk)
    by_file = ceil(shards / assumed.shard_most_bytes)
    by_events = ceil(events_a_day * assumed.shard_days / assumed.shard_most_events)
    partitions = _power_of_two(max(4, 4 * workers, by_file, by_events))
    inflow = peak * costs.wire_bytes
    log = events_a_day * costs.wire_bytes * assumed.log_days * assumed.replication
    brokers, disk, network, cpu = _size_brokers(log, inflow, peak * costs.broker_us * 1e-6, assumed)
    held = ceil(partitions / workers)
    return Plan(
        events_a_day,
        mean,
        peak,
        partitions,
        workers,
        capacity,
        costs.little_cores / CORES,
        brokers,
        log,
        shards,
        shards / partitions,
        shards / partitions / assumed.copy_bytes_per_s,
        events_a_day * assumed.shard_days / partitions,
        events_a_day * assumed.shard_days / partitions / costs.state_events_a_shard,
        events_a_day * assumed.shard_days / partitions / capacity,
        events_a_day * costs.lake_bytes * assumed.lake_days,
        assumed.bare_worker_mib + held * max(0.0, costs.worker_mib - assumed.bare_worker_mib) / costs.worker_shards,
        inflow,
        disk,
        network,
        cpu,
    )


def _size_brokers(log: float, inflow: float, read_cores: float, assumed: Assumptions) -> tuple[int, float, float, float]:
    """Return brokers and the use of each one's disk, network and CPU.

    Every copy is written, and the log is read once by workers; writing a copy is assumed to cost as much CPU as reading it.
    """
    traffic = inflow * (assumed.replication + (assumed.replication - 1) + 1)
    cores = read_cores * (assumed.replication + 1)
    needs = (
        log / assumed.broker_disk_bytes,
        traffic / assumed.broker_network_bytes_per_s,
        cores / assumed.broker_cores,
    )
    brokers = max(assumed.replication, *(ceil(need / assumed.headroom) for need in needs))
    disk, network, cpu = (need / brokers for need in needs)
    return brokers, disk, network, cpu


def _power_of_two(least: int) -> int:
    """Return the smallest power of two that is at least `least`: partitions cannot be added later without moving sessions."""
    return 1 << (least - 1).bit_length()
