"""Prometheus' text format."""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving.metrics import Histogram, Metric, ServingMetrics, render, render_number
from tests.support.prometheus import read_families

EXPOSED = (Path(__file__).parent / "metrics.txt").read_text(encoding="utf-8")
"""What Prometheus servers out there have recorded: names, types, labels and values of the state that `make_metrics` makes."""


def make_metrics() -> ServingMetrics:
    """Metrics with a sample in every family."""
    metrics = ServingMetrics()
    for path, status, seconds in (("/v1/recommend", "200", 0.125), ("/v1/recommend", "503", 0.001), ("other", "404", 12.0)):
        metrics.requests.add(path, status)
        metrics.request_seconds.observe(path, value=seconds)
    for size, seconds in ((1, 0.25), (8, 1.0), (500, 3.5)):
        metrics.batch_size.observe(value=size)
        metrics.batch_seconds.observe(value=seconds)
    metrics.lists.add("r0001", "refine", "well_formed", amount=3)
    metrics.list_tokens.add("r0001", "refine", amount=1_234_567)
    metrics.impressions.add()
    metrics.impressions_lost.add("queue_full")
    metrics.events_accepted.add(amount=20)
    metrics.events_rejected.add("malformed")
    metrics.queue.set(value=2)
    metrics.release.only("r0000")
    metrics.release.only("r0001")
    metrics.swaps.add(amount=2)
    metrics.load_failed.set(value=1)
    metrics.emitter.set("on_disk", value=50)
    return metrics


def test_names_types_labels_and_values_are_those_that_dashboards_know() -> None:
    assert read_families(make_metrics().render()) == read_families(EXPOSED)


def test_a_counter_without_labels_starts_at_zero() -> None:
    metric = Metric("swaps_total", "Swaps.", "counter")
    assert render([metric]) == "# HELP swaps_total Swaps.\n# TYPE swaps_total counter\nswaps_total 0\n"
    metric.add()
    metric.add(amount=0.5)
    assert list(metric.samples()) == ["swaps_total 1.5"]


def test_label_values_are_escaped() -> None:
    metric = Metric("x", "X.", "gauge", ("a", "b"))
    metric.set('say "hi"', "back\\slash\nline", value=2)
    assert list(metric.samples()) == [r'x{a="say \"hi\"",b="back\\slash\nline"} 2']


def test_an_info_gauge_holds_one_value() -> None:
    metric = Metric("release_info", "R.", "gauge", ("release",))
    metric.only("r0000")
    metric.only("r0001")
    assert list(metric.samples()) == ['release_info{release="r0001"} 1']
    assert metric.value("r0000") == 0


def test_histogram_buckets_add_up() -> None:
    histogram = Histogram("s", "S.", (0.1, 1.0), ("path",))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe("/a", value=value)
    assert list(histogram.samples()) == [
        's_bucket{path="/a",le="0.1"} 2',
        's_bucket{path="/a",le="1"} 3',
        's_bucket{path="/a",le="+Inf"} 4',
        's_sum{path="/a"} 7.65',
        's_count{path="/a"} 4',
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(3.0, "3"), (0.25, "0.25"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")]
)
def test_numbers(value: float, text: str) -> None:
    assert render_number(value) == text


def test_counting_from_many_threads_loses_nothing() -> None:
    metric, histogram = Metric("n", "N.", "counter", ("a",)), Histogram("h", "H.", (1.0,))

    def count(_: int) -> None:
        for _ in range(500):
            metric.add("x")
            histogram.observe(value=0.5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(8)))
    assert metric.value("x") == 4000
    assert list(histogram.samples())[-1] == "h_count 4000"


def test_every_metric_is_well_named_and_described() -> None:
    metrics = ServingMetrics()
    for metric in vars(metrics).values():
        assert metric.name.startswith("queryloop_")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.text.endswith(".")
    sample = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [-+0-9.eInfNa]+')
    for line in metrics.render().splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line)
