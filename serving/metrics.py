"""What the serving process counts, for Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class ServingMetrics:
    """The metrics of one app, in a registry of its own: two apps in one process count apart."""

    def __init__(self) -> None:
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
            "Lists answered: well_formed, repaired for display, or a fallback because the policy's had no usable item.",
            ("release", "task", "form"),
        )
        self.list_tokens = counter("queryloop_list_tokens_total", "Tokens of the lists written.", ("release", "task"))
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
        self.release = gauge("queryloop_release_info", "The release that answers.", ("release",))
        self.swaps = counter("queryloop_swaps_total", "Releases that went live.")
        self.load_errors = counter("queryloop_release_load_errors_total", "Releases that failed to load.")
        self.load_failed = gauge("queryloop_release_load_failed", "1 while a promoted release cannot be loaded.")
        self.emitter = gauge("queryloop_emitter_events", "The emitter's events by outcome so far.", ("state",))
