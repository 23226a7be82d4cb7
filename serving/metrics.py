"""What the serving process counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import Metric

from streams.emitter.counters import Counters
from streams.events.schema import Reason
from streams.runtime.metric_families import Families, counter, describe_processes, gauge

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
Form = Literal["well_formed", "repaired", "fallback"]
"""How an answered list came about (`serving.recommend`)."""
FALLBACK: Form = "fallback"
NO_RELEASE = "none"
"""The label `release` of lists that an index answered because no release is live; no release can have this id."""
QUEUE_FULL, EMITTER_CLOSED = "queue_full", "emitter_closed"
LOST_REASONS = (QUEUE_FULL, EMITTER_CLOSED, *Reason)
"""Why the impression of an answered list could not be emitted."""
EMITTED = ("emitted", "recovered", "delivered", "failed", "refused", "dropped", "resent")
WAITING = ("buffered", "on_disk")
"""The emitter's counters that only grow, and those that fall again (`streams.emitter.counters`)."""


class ServingMetrics:
    """The metrics of one app, in a registry of its own: two apps in one process count apart.

    Series whose labels are known beforehand are there from the start, at 0; those of a release's `tasks` from when it goes live.
    """

    def __init__(self, tasks: Iterable[str] = ()) -> None:
        # The text format has no place for creation times: the library would tell each as one more gauge.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("queryloop_requests_total", "HTTP requests answered.", ("path", "status"))
        self.request_seconds = histogram("queryloop_request_seconds", "Time to answer a request.", ("path",), buckets=SECONDS)
        self.batch_size = histogram("queryloop_batch_size", "Requests in one batch.", buckets=SIZES)
        self.batch_seconds = histogram("queryloop_batch_seconds", "Time to write the lists of one batch.", buckets=SECONDS)
        self.lists = counter(
            "queryloop_lists_total",
            "Lists answered: well_formed, repaired for display, or a fallback because no policy wrote a usable item.",
            ("release", "task", "form"),
        )
        self.list_tokens = counter("queryloop_list_tokens_total", "Tokens of the lists written.", ("release", "task"))
        self.forced_lists = counter(
            "queryloop_forced_lists_total", "Lists in which the grammar had to change a draw of the policy.", ("release", "task")
        )
        self.forced_tokens = counter(
            "queryloop_forced_tokens_total", "Tokens of the lists written that the grammar had to change.", ("release", "task")
        )
        self.impressions = counter("queryloop_impressions_total", "Impressions handed to the emitter.")
        self.impressions_lost = counter(
            "queryloop_impressions_lost_total", "Lists answered whose impression could not be emitted.", ("reason",)
        )
        self.events_accepted = counter("queryloop_events_accepted_total", "Events of POST /v1/events handed to the emitter.")
        self.events_rejected = counter(
            "queryloop_events_rejected_total", "Events of POST /v1/events that were refused.", ("reason",)
        )
        self.expired = counter("queryloop_expired_total", "Requests whose deadline passed before their list was written.")
        self.queue = gauge("queryloop_queue_requests", "Requests waiting for a batch.")
        self.swaps = counter("queryloop_swaps_total", "Releases that went live.")
        self.load_errors = counter("queryloop_release_load_errors_total", "Releases that failed to load.")
        self.load_failed = gauge("queryloop_release_load_failed", "1 while a promoted release cannot be loaded.")
        self.release_faults = gauge("queryloop_release_faults", "Reasons why the live release should not be: see /readyz.")
        self.live: str | None = None
        self._tasks = tuple(tasks)
        for reason in LOST_REASONS:
            self.impressions_lost.labels(reason)
        for refusal in Reason:
            self.events_rejected.labels(refusal)

    def begin_requests(self, answers: Mapping[str, Iterable[str]]) -> None:
        """Begin the series of requests, by path, with each status that it may answer."""
        for path, statuses in answers.items():
            self.request_seconds.labels(path)
            for status in statuses:
                self.requests.labels(path, status)

    def go_live(self, release: str) -> None:
        """Count a release that went live, and begin the series of its lists."""
        for task, form in product(self._tasks, get_args(Form)):
            self.lists.labels(release, task, form)
            for one in (self.list_tokens, self.forced_lists, self.forced_tokens):
                one.labels(release, task)
        self.swaps.inc()
        self.live = release

    def count_forced(self, release: str, task: str, forced: int) -> None:
        """Count the draws of one list that the grammar changed."""
        self.forced_lists.labels(release, task).inc(forced > 0)
        self.forced_tokens.labels(release, task).inc(forced)

    def render(self, emitter: Counters, process: Mapping[str, Any]) -> bytes:
        """Render all in Prometheus' text format, with the emitter's counters and the figures of `read_process`."""
        return generate_latest(self.registry) + generate_latest(Families(lambda: self._find_others(emitter, process)))

    def _find_others(self, emitter: Counters, process: Mapping[str, Any]) -> Iterator[Metric]:
        live = [] if self.live is None else [((self.live,), 1)]
        yield gauge("release_info", "1, with the release that answers; there is none before the first.", ["release"], live)
        yield from _emitter_families(emitter)
        yield from describe_processes({(): process})


def _emitter_families(emitter: Counters) -> Iterator[Metric]:
    grown = [((state,), getattr(emitter, state)) for state in EMITTED]
    yield counter("emitter_events", "The emitter's events by outcome.", ["state"], grown)
    waiting = [((state,), getattr(emitter, state)) for state in WAITING]
    yield gauge(
        "emitter_waiting_events", "The emitter's events without an outcome; on_disk are part of buffered.", ["state"], waiting
    )
    about = "Times that the emitter found the topic made anew."
    yield counter("emitter_topic_changes", about, [], [((), emitter.topic_changes)])
