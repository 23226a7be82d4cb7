"""Serving's metrics: the names and labels that dashboards know, whatever the values, counted by many threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, generate_latest

from serving.metrics import ServingMetrics
from tests.support.prometheus import read_families, read_value

EXPOSED = (Path(__file__).parent / "metrics.txt").read_text(encoding="utf-8")
"""What Prometheus servers out there have recorded: names, types, labels and values of the state that `make_metrics` makes."""


def render(metrics: ServingMetrics) -> str:
    return generate_latest(metrics.registry).decode()


def make_metrics() -> ServingMetrics:
    """Metrics with a sample in every family."""
    metrics = ServingMetrics()
    for path, status, seconds in (("/v1/recommend", "200", 0.125), ("/v1/recommend", "503", 0.001), ("other", "404", 12.0)):
        metrics.requests.labels(path, status).inc()
        metrics.request_seconds.labels(path).observe(seconds)
    for size, seconds in ((1, 0.25), (8, 1.0), (500, 3.5)):
        metrics.batch_size.observe(size)
        metrics.batch_seconds.observe(seconds)
    metrics.lists.labels("r0001", "refine", "well_formed").inc(3)
    metrics.list_tokens.labels("r0001", "refine").inc(1_234_567)
    metrics.impressions.inc()
    metrics.impressions_lost.labels("queue_full").inc()
    metrics.events_accepted.inc(20)
    metrics.events_rejected.labels("malformed").inc()
    metrics.queue.set(2)
    metrics.release.labels("r0001").set(1)
    metrics.swaps.inc(2)
    metrics.load_failed.set(1)
    metrics.emitter.labels("on_disk").set(50)
    return metrics


def test_names_types_labels_and_values_are_those_that_dashboards_know() -> None:
    assert read_families(render(make_metrics())) == read_families(EXPOSED)


def test_every_family_is_there_from_the_start() -> None:
    assert read_families(render(ServingMetrics())).keys() == read_families(EXPOSED).keys()


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
