"""Metrics are named as Prometheus asks (what `promtool check metrics` says), in every process, and no two mean another thing."""

from __future__ import annotations

import re

import pytest

from tests.support.prometheus import read_families
from tests.support.promql import GOLDEN, TARGET

NAME = re.compile(r"queryloop(_[a-z][a-z0-9]*)+")
NO_BASE_UNITS = {
    "ms",
    "us",
    "ns",
    "s",
    "milliseconds",
    "microseconds",
    "minutes",
    "hours",
    "days",
    "kb",
    "mb",
    "gb",
    "kilobytes",
    "percent",
}
TYPES = {"gauge", "counter", "histogram", "summary"}
RESERVED = ("_count", "_sum", "_bucket", "_created")
FAMILIES = [
    pytest.param(path.stem, name, *family, id=f"{path.parent.name}-{name}")
    for path in GOLDEN
    for name, family in read_families(path.read_text(encoding="utf-8")).items()
]
"""Kind of file, name, type, description and samples of each family; the client's parser takes `_total` from a counter's name."""


@pytest.mark.parametrize(("_", "name", "kind", "about", "samples"), FAMILIES)
def test_a_metric_is_well_named_and_described(_: str, name: str, kind: str, about: str, samples: dict[object, float]) -> None:
    words = set(name.split("_"))
    assert NAME.fullmatch(name)
    assert about.endswith(".") and about != name
    assert not words & (NO_BASE_UNITS | TYPES)
    assert not name.endswith((*RESERVED, "_total"))
    assert samples


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.parent.name)
def test_counters_end_in_total_and_nothing_else_does(path: object) -> None:
    lines = re.findall(r"^# TYPE (\S+) (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)  # type: ignore[attr-defined]
    assert {name for name, kind in lines if kind == "counter"} == {name for name, _ in lines if name.endswith("_total")}


def test_no_label_is_one_that_prometheus_sets_itself() -> None:
    labels = {name for _, _, _, _, samples in (one.values for one in FAMILIES) for _, pairs in samples for name, _ in pairs}
    assert not labels & {*TARGET, "quantile"}
    assert all(re.fullmatch("[a-z]+", label) for label in labels)


def test_a_metric_of_several_processes_means_the_same_in_each() -> None:
    about: dict[str, set[tuple[str, str]]] = {}
    for _, name, kind, text, _ in (one.values for one in FAMILIES):
        about.setdefault(name, set()).add((kind, text))
    assert {name: told for name, told in about.items() if len(told) > 1} == {}
