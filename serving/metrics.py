"""Counters, gauges and histograms in Prometheus' text format.

Small enough to own: a dozen metrics of one process do not need a client library with its registry, collectors and process state.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

Labels = tuple[str, ...]


class Metric:
    """One metric with one value per combination of label values. Thread-safe."""

    def __init__(self, name: str, text: str, kind: Literal["counter", "gauge"], labels: Sequence[str] = ()) -> None:
        self.name = name
        self.text = text
        self.kind = kind
        self.labels = tuple(labels)
        self._lock = threading.Lock()
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Add to the value of these label values."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def set(self, *labels: str, value: float) -> None:
        """Replace the value of these label values."""
        with self._lock:
            self._values[labels] = value

    def only(self, *labels: str, value: float = 1.0) -> None:
        """Replace all values by this one, as an info gauge wants it."""
        with self._lock:
            self._values = {labels: value}

    def value(self, *labels: str) -> float:
        """The value of these label values, 0 when there is none yet."""
        with self._lock:
            return self._values.get(labels, 0.0)

    def samples(self) -> Iterator[str]:
        with self._lock:
            values = dict(self._values)
        for labels, value in sorted(values.items()):
            yield f"{self.name}{render_labels(self.labels, labels)} {render_number(value)}"


class Histogram:
    """How often a value fell under each bound, per combination of label values. Thread-safe."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self.name = name
        self.text = text
        self.labels = tuple(labels)
        self.bounds = tuple(bounds)
        self._lock = threading.Lock()
        self._series: dict[Labels, tuple[list[int], list[float]]] = {}

    def observe(self, *labels: str, value: float) -> None:
        """Count one value."""
        with self._lock:
            counts, total = self._series.setdefault(labels, ([0] * (len(self.bounds) + 1), [0.0]))
            counts[bisect_left(self.bounds, value)] += 1
            total[0] += value

    def samples(self) -> Iterator[str]:
        with self._lock:
            series = {labels: (list(counts), total[0]) for labels, (counts, total) in self._series.items()}
        for labels, (counts, total) in sorted(series.items()):
            running = 0
            for bound, count in zip((*self.bounds, math.inf), counts, strict=True):
                running += count
                yield f"{self.name}_bucket{render_labels((*self.labels, 'le'), (*labels, render_number(bound)))} {running}"
            shown = render_labels(self.labels, labels)
            yield f"{self.name}_sum{shown} {render_number(total)}"
            yield f"{self.name}_count{shown} {running}"


class ServingMetrics:
    """What the serving process counts."""

    def __init__(self) -> None:
        self.requests = Metric("queryloop_requests_total", "HTTP requests answered.", "counter", ("path", "status"))
        self.request_seconds = Histogram("queryloop_request_seconds", "Time to answer a request.", SECONDS, ("path",))
        self.batch_size = Histogram("queryloop_batch_size", "Requests in one batch.", SIZES)
        self.batch_seconds = Histogram("queryloop_batch_seconds", "Time to write the lists of one batch.", SECONDS)
        self.lists = Metric(
            "queryloop_lists_total",
            "Lists answered: well_formed, repaired for display, or a fallback because the policy's had no usable item.",
            "counter",
            ("release", "task", "form"),
        )
        self.list_tokens = Metric("queryloop_list_tokens_total", "Tokens of the lists written.", "counter", ("release", "task"))
        self.impressions = Metric("queryloop_impressions_total", "Impressions handed to the emitter.", "counter")
        self.impressions_lost = Metric(
            "queryloop_impressions_lost_total", "Lists answered whose impression could not be emitted.", "counter", ("reason",)
        )
        self.events_accepted = Metric(
            "queryloop_events_accepted_total", "Events of POST /v1/events handed to the emitter.", "counter"
        )
        self.events_rejected = Metric(
            "queryloop_events_rejected_total", "Events of POST /v1/events that were refused.", "counter", ("reason",)
        )
        self.expired = Metric(
            "queryloop_expired_total", "Requests whose deadline passed before their list was written.", "counter"
        )
        self.queue = Metric("queryloop_queue_requests", "Requests waiting for a batch.", "gauge")
        self.release = Metric("queryloop_release_info", "The release that answers.", "gauge", ("release",))
        self.swaps = Metric("queryloop_swaps_total", "Releases that went live.", "counter")
        self.load_errors = Metric("queryloop_release_load_errors_total", "Releases that failed to load.", "counter")
        self.load_failed = Metric("queryloop_release_load_failed", "1 while a promoted release cannot be loaded.", "gauge")
        self.emitter = Metric("queryloop_emitter_events", "The emitter's events by outcome so far.", "gauge", ("state",))

    def render(self) -> str:
        """Everything in Prometheus' text format 0.0.4."""
        return render(vars(self).values())


def render(metrics: Iterable[Metric | Histogram]) -> str:
    """Metrics in Prometheus' text format."""
    lines: list[str] = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.samples()]
    return "\n".join(lines) + "\n"


def render_labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True)) + "}"


def render_number(value: float) -> str:
    if not math.isfinite(value):
        return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN")
    return str(int(value)) if value == int(value) else repr(value)


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
