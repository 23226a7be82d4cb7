"""Prometheus' text format, read by the client library's own parser."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

Series = tuple[str, frozenset[tuple[str, str | float]]]
"""The name of a sample and its labels."""


def read_value(text: str, name: str, **labels: str) -> float | None:
    """Return the value of one sample of an exposition; None where it has none of that name with just these labels."""
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return next((sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)), None)


def read_families(text: str) -> dict[str, tuple[str, str, dict[Series, float]]]:
    """Return the type, the description and the samples of each family; every family and every sample must be there once."""
    families = list(text_string_to_metric_families(text))
    found = {family.name: (family.type, family.documentation, _read_samples(family.samples)) for family in families}
    assert len(found) == len(families)
    return found


def _read_samples(samples: Iterable[Sample]) -> dict[Series, float]:
    """Return samples by name and labels; a bucket's bound is a number, of which "1" and "1.0" are two spellings."""
    found: dict[Series, float] = {}
    for sample in samples:
        labels = frozenset((name, float(value) if name == "le" else value) for name, value in sample.labels.items())
        assert (sample.name, labels) not in found
        found[sample.name, labels] = sample.value
    return found
