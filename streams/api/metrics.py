"""The worker's numbers for Prometheus: of every shard, and of every worker that holds one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric

from streams.api.click_delays import count_upto
from streams.store.progress import Histogram

Sample = tuple[Sequence[str], float | None]
"""The values of a sample's labels, and its own, None where it is not known."""

COUNTS = {
    "events": "Events read from the log, of every outcome",
    "counted": "Events counted",
    "duplicates": "Events delivered more than once, or impressions and clicks that repeat another",
    "pending": "Clicks that wait for their impression",
}
LAGS = {
    "lag_records": ("records", "Records in the log that are not applied yet"),
    "lag_events": ("events", "Events not applied yet, estimated by the events a record of late"),
    "open_transaction_records": ("open_transaction_records", "Records that wait for the end of a producer's transaction"),
    "lag_seconds": ("seconds", "Age of the last applied record while the shard is behind the log, else 0"),
    "event_time_lag_seconds": ("event_time_seconds", "Age of the latest event by its own time"),
}
UPKEEP = {
    "upkeep_slices": ("slices", "Slices of upkeep since the shard was taken: checkpoints, expiry, compaction"),
    "upkeep_seconds": ("seconds", "Seconds of upkeep since the shard was taken"),
    "upkeep_longest_seconds": ("longest_s", "Longest slice of upkeep, for which counting waits"),
}
WORKER = {
    "worker_memory_bytes": ("memory_bytes", "Resident memory of the worker"),
    "new_topics": ("new_topics", "Times that a log was found lost or made anew since the worker started"),
}

TIMINGS = {
    "apply_events": "Events of one apply",
    "apply_seconds": "Seconds of one apply",
    "write_events": "Events of one transaction that wrote what was applied",
    "write_seconds": "Seconds of one such transaction",
}


@dataclass(frozen=True, slots=True)
class PartsCollector:
    """Makes the metrics of the parts of `streams.api.endpoints.METRICS`, by partition; no worker answers for those `missing`."""

    shards: Mapping[int, Mapping[str, Any]]
    missing: Sequence[int]

    def collect(self) -> Iterator[Metric]:
        """Yield each family once, as prometheus_client requires of a collector."""
        yield from _shard_families([(str(partition), part) for partition, part in sorted(self.shards.items())])
        yield from _worker_families({part["worker"]["name"]: part["worker"] for part in self.shards.values()})
        yield _gauge("partitions_missing", "Partitions that no worker answers for", (), [((), len(self.missing))])


def render_metrics(shards: Mapping[int, Mapping[str, Any]], missing: Sequence[int]) -> bytes:
    """Render the parts of all shards in Prometheus' text format."""
    return generate_latest(PartsCollector(shards, missing))


def describe_histogram(histogram: Histogram) -> dict[str, Any]:
    """A histogram as JSON values."""
    return {"bounds": list(histogram.bounds), "counts": histogram.counts, "total": histogram.total}


def _shard_families(shards: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Metric]:
    for name, about in COUNTS.items():
        yield _gauge(name, about, ["partition"], [((shard,), part["status"][name]) for shard, part in shards])
    reasons = [((shard, reason), n) for shard, part in shards for reason, n in part["status"]["quarantined"].items()]
    yield _gauge("quarantined", "Events in quarantine, by reason", ["partition", "reason"], reasons)
    latest = [((shard,), part["status"]["latest_ts"]) for shard, part in shards]
    yield _gauge("latest_event_seconds", "Latest event time seen", ["partition"], latest)
    for name, (key, about) in LAGS.items():
        yield _gauge(name, about, ["partition"], [((shard,), part["lag"][key]) for shard, part in shards])
    sizes = [((shard, kind), part["state"][f"{kind}_bytes"]) for shard, part in shards for kind in ("file", "wal")]
    yield _gauge("shard_bytes", "Size of a shard's database and of its write-ahead log", ["partition", "file"], sizes)
    tables = [((shard, table), rows) for shard, part in shards for table, rows in part["state"]["rows"].items()]
    yield _gauge("shard_rows", "Rows of a shard's tables", ["partition", "table"], tables)
    for name, (key, about) in UPKEEP.items():
        done = [((shard, kind), one[key]) for shard, part in shards for kind, one in part["upkeep"].items()]
        yield _gauge(name, about, ["partition", "kind"], done)
    days = [((shard,), part["state"]["days"]["number"]) for shard, part in shards]
    yield _gauge("shard_days", "Days that a shard holds", ["partition"], days)
    yield _delay_family(shards)


def _delay_family(shards: Sequence[tuple[str, Mapping[str, Any]]]) -> Metric:
    about = "Time from an impression to its click, of the clicks held"
    family = HistogramMetricFamily("queryloop_click_delay_seconds", about, labels=["partition"])
    for shard, part in shards:
        buckets = part["delays"]
        upto = [(str(bound), clicks) for bound, clicks in count_upto(buckets).items()]
        all_clicks = sum(clicks for _, clicks, _ in buckets)
        family.add_metric([shard], [*upto, ("+Inf", all_clicks)], sum(delay_us for *_, delay_us in buckets) / 1e6)
    return family


def _worker_families(workers: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    figures_by_worker = sorted(workers.items())
    for name, (key, about) in WORKER.items():
        yield _gauge(name, about, ["worker"], [((worker,), figures[key]) for worker, figures in figures_by_worker])
    for name, about in TIMINGS.items():
        family = HistogramMetricFamily(f"queryloop_{name}", about, labels=["worker"])
        for worker, figures in figures_by_worker:
            bounds = [*map(str, figures[name]["bounds"]), "+Inf"]
            family.add_metric(
                [worker], list(zip(bounds, accumulate(figures[name]["counts"]), strict=True)), figures[name]["total"]
            )
        yield family


def _gauge(name: str, about: str, labels: Sequence[str], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(f"queryloop_{name}", about, labels=labels)
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family
