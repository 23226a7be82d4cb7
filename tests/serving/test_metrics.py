"""Serving's metrics: the names and labels that dashboards know, whatever the values, counted by many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, generate_latest

from serving.metrics import EMITTED, WAITING, ServingMetrics
from streams.emitter.counters import Counters
from streams.events.schema import Reason
from tests.support.prometheus import read_families, read_value

EXPOSED = (Path(__file__).parent / "metrics.txt").read_text(encoding="utf-8")
"""What Prometheus servers out there have recorded: names, types, labels and values of the state that `make_metrics` makes."""


COUNTERS = Counters(emitted=60, delivered=7, failed=3, buffered=50, refused=4, on_disk=40, dropped=2, resent=1, topic_changes=1)
PROCESS = {"version": "9.9", "python": "3.11.2", "disk_free_bytes": 30, "disk_size_bytes": 120}


def render(metrics: ServingMetrics) -> str:
    return metrics.render(COUNTERS, PROCESS).decode()


def make_metrics() -> ServingMetrics:
    """Metrics with a sample in every family."""
    metrics = ServingMetrics(["refine"])
    for path, status, seconds in (("/v1/recommend", "200", 0.125), ("/v1/recommend", "503", 0.001), ("other", "404", 12.0)):
        metrics.requests.labels(path, status).inc()
        metrics.request_seconds.labels(path).observe(seconds)
    for size, seconds in ((1, 0.25), (8, 1.0), (500, 3.5)):
        metrics.batch_size.observe(size)
        metrics.batch_seconds.observe(seconds)
    metrics.go_live("r0000")
    metrics.go_live("r0001")
    metrics.lists.labels("r0001", "refine", "well_formed").inc(3)
    metrics.list_tokens.labels("r0001", "refine").inc(1_234_567)
    for forced in (0, 4, 0):
        metrics.count_forced("r0001", "refine", forced)
    metrics.impressions.inc()
    metrics.impressions_lost.labels("queue_full").inc()
    metrics.events_accepted.inc(20)
    metrics.events_rejected.labels("malformed").inc()
    metrics.queue.set(2)
    metrics.load_failed.set(1)
    return metrics


def test_names_types_labels_and_values_are_those_that_dashboards_know() -> None:
    assert read_families(render(make_metrics())) == read_families(EXPOSED)


def test_every_family_is_there_from_the_start() -> None:
    assert read_families(render(ServingMetrics())).keys() == read_families(EXPOSED).keys()


def test_what_is_known_beforehand_is_there_from_the_start_at_0() -> None:
    metrics = ServingMetrics(["refine", "hint"])
    metrics.begin_requests({"/v1/recommend": ["200", "503"]})
    text = render(metrics)
    assert all(read_value(text, "queryloop_events_rejected_total", reason=reason) == 0 for reason in Reason)
    assert read_value(text, "queryloop_impressions_lost_total", reason="queue_full") == 0
    assert read_value(text, "queryloop_requests_total", path="/v1/recommend", status="503") == 0
    assert read_value(text, "queryloop_request_seconds_count", path="/v1/recommend") == 0
    assert read_value(text, "queryloop_emitter_events_total", state="dropped") == COUNTERS.dropped
    metrics.go_live("r0007")
    for form in ("well_formed", "repaired", "fallback"):
        assert read_value(render(metrics), "queryloop_lists_total", release="r0007", task="hint", form=form) == 0


def test_each_counter_of_the_emitter_is_told_and_those_that_fall_are_gauges() -> None:
    assert {*EMITTED, *WAITING, "topic_changes"} == {field.name for field in fields(Counters)}


@given(st.text())
@example('say "hi"')
@example("back\\slash\nline\\")
@example('",form="x"} 7\nqueryloop_swaps_total 9')
def test_any_label_value_comes_back_as_it_was(value: str) -> None:
    metrics = ServingMetrics()
    metrics.lists.labels(value, "refine", value).inc(3)
    text = render(metrics)
    assert read_value(text, "queryloop_lists_total", release=value, task="refine", form=value) == 3
    assert read_value(text, "queryloop_swaps_total") == 0


def test_counting_from_many_threads_loses_nothing() -> None:
    metrics = ServingMetrics()

    def count(_: int) -> None:
        for _ in range(500):
            metrics.requests.labels("/healthz", "200").inc()
            metrics.request_seconds.labels("/healthz").observe(0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    text = render(metrics)
    assert read_value(text, "queryloop_requests_total", path="/healthz", status="200") == 4000
    assert read_value(text, "queryloop_request_seconds_count", path="/healthz") == 4000
    assert read_value(text, "queryloop_request_seconds_sum", path="/healthz") == 2000


def test_two_apps_in_one_process_count_apart() -> None:
    one, other = ServingMetrics(), ServingMetrics()
    one.swaps.inc()
    assert [read_value(render(metrics), "queryloop_swaps_total") for metrics in (one, other)] == [1, 0]
    assert "queryloop_" not in generate_latest(REGISTRY).decode()


def test_every_metric_is_well_named_and_described() -> None:
    for name, (_, about, _) in read_families(render(make_metrics())).items():
        assert name.startswith("queryloop_")
        assert about.endswith(".")
