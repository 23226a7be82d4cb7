"""The worker's numbers in Prometheus's text format: of every shard, and of every worker that holds one.

Each number is written in one place; a family's samples stand together, as the format asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from streams.api.click_delays import count_upto
from streams.store.progress import Histogram

Sample = tuple[Mapping[str, object], float | None]

COUNTS = {
    "events": "Events read from the log, of every outcome",
    "counted": "Events counted",
    "duplicates": "Events delivered more than once, or impressions and clicks that repeat another",
    "pending": "Clicks that wait for their impression",
}
LAGS = {
    "lag_records": ("records", "Records in the log that are not applied yet"),
    "lag_events": ("events", "Events not applied yet, estimated by the events a record of late"),
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


def render_metrics(shards: Mapping[int, Mapping[str, Any]], missing: Sequence[int]) -> str:
    """Render the parts of `streams.api.endpoints.METRICS`, by partition, and how many partitions no worker answered for."""
    workers = {part["worker"]["name"]: part["worker"] for part in shards.values()}
    families = [*_shard_families(shards), *_delay_families(shards), *_worker_families(workers)]
    families.append(_family("partitions_missing", "gauge", "Partitions that no worker answers for", [({}, len(missing))]))
    return "\n".join(line for family in families for line in family) + "\n"


def describe_histogram(histogram: Histogram) -> dict[str, Any]:
    """A histogram as JSON values."""
    return {"bounds": list(histogram.bounds), "counts": histogram.counts, "total": histogram.total}


def _shard_families(shards: Mapping[int, Mapping[str, Any]]) -> Iterator[list[str]]:
    placed = [({"partition": partition}, part) for partition, part in sorted(shards.items())]
    for name, about in COUNTS.items():
        yield _family(name, "gauge", about, [(label, part["status"][name]) for label, part in placed])
    reasons = [
        ({**label, "reason": reason}, number)
        for label, part in placed
        for reason, number in part["status"]["quarantined"].items()
    ]
    yield _family("quarantined", "gauge", "Events in quarantine, by reason", reasons)
    latest = [(label, part["status"]["latest_ts"]) for label, part in placed]
    yield _family("latest_event_seconds", "gauge", "Latest event time seen", latest)
    for name, (key, about) in LAGS.items():
        yield _family(name, "gauge", about, [(label, part["lag"][key]) for label, part in placed])
    sizes = [({**label, "file": kind}, part["state"][f"{kind}_bytes"]) for label, part in placed for kind in ("file", "wal")]
    yield _family("shard_bytes", "gauge", "Size of a shard's database and of its write-ahead log", sizes)
    tables = [({**label, "table": name}, rows) for label, part in placed for name, rows in part["state"]["rows"].items()]
    yield _family("shard_rows", "gauge", "Rows of a shard's tables", tables)
    for name, (key, about) in UPKEEP.items():
        done = [({**label, "kind": kind}, one[key]) for label, part in placed for kind, one in part["upkeep"].items()]
        yield _family(name, "gauge", about, done)
    days = [(label, part["state"]["days"]["number"]) for label, part in placed]
    yield _family("shard_days", "gauge", "Days that a shard holds", days)


def _delay_families(shards: Mapping[int, Mapping[str, Any]]) -> Iterator[list[str]]:
    samples: list[str] = []
    for partition, part in sorted(shards.items()):
        buckets = part["delays"]
        number = sum(clicks for _, clicks, _ in buckets)
        label = {"partition": partition}
        samples += _histogram("click_delay_seconds", label, count_upto(buckets), number, sum(us for *_, us in buckets) / 1e6)
    yield [*_head("click_delay_seconds", "histogram", "Time from an impression to its click, of the clicks held"), *samples]


def _worker_families(workers: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    placed = [({"worker": name}, worker) for name, worker in sorted(workers.items())]
    for name, (key, about) in WORKER.items():
        yield _family(name, "gauge", about, [(label, worker[key]) for label, worker in placed])
    for name, about in TIMINGS.items():
        samples = [line for label, worker in placed for line in _timings(name, label, worker[name])]
        yield [*_head(name, "histogram", about), *samples]


def _timings(name: str, label: Mapping[str, object], timings: Mapping[str, Any]) -> list[str]:
    running, upto = 0, {}
    for bound, count in zip(timings["bounds"], timings["counts"], strict=False):
        running += count
        upto[bound] = running
    return _histogram(name, label, upto, sum(timings["counts"]), timings["total"])


def _histogram(name: str, label: Mapping[str, object], upto: Mapping[float, int], number: int, total: float) -> list[str]:
    bounds = [*upto.items(), ("+Inf", number)]
    lines = [_line(f"{name}_bucket", {**label, "le": bound}, count) for bound, count in bounds]
    return [*lines, _line(f"{name}_sum", label, total), _line(f"{name}_count", label, number)]


def _family(name: str, kind: str, about: str, samples: Iterable[Sample]) -> list[str]:
    return [*_head(name, kind, about), *(_line(name, labels, value) for labels, value in samples if value is not None)]


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP queryloop_{name} {about}", f"# TYPE queryloop_{name} {kind}"]


def _line(name: str, labels: Mapping[str, object], value: float) -> str:
    told = ",".join(f'{key}="{one}"' for key, one in labels.items())
    return f"queryloop_{name}{{{told}}} {value}" if told else f"queryloop_{name} {value}"
