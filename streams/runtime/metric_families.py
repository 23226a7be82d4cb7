"""How a metric is made for Prometheus from figures that are kept elsewhere, and the metrics that every process of ours has."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Sample = tuple[Sequence[str], float | None]
"""The values of a sample's labels, and its own, None where it is not known."""

DISK = {
    "data_disk_free_bytes": ("disk_free_bytes", "Bytes free for us on the disk of data.dir."),
    "data_disk_size_bytes": ("disk_size_bytes", "Bytes of the disk of data.dir."),
}


@dataclass(frozen=True, slots=True)
class Families:
    """A collector of prometheus_client: it has the families that `make` returns at the moment of the scrape."""

    make: Callable[[], Iterable[Metric]]

    def collect(self) -> Iterable[Metric]:
        """Return each family once, as prometheus_client requires."""
        return self.make()


def gauge(name: str, about: str, labels: Sequence[str], samples: Iterable[Sample]) -> Metric:
    """Return the family `queryloop_<name>` of a value that may fall; a sample that is not known is left out."""
    return _fill(GaugeMetricFamily(f"queryloop_{name}", about, labels=labels), samples)


def counter(name: str, about: str, labels: Sequence[str], samples: Iterable[Sample]) -> Metric:
    """Return the family `queryloop_<name>_total` of a value that only grows, except that it begins anew with its process."""
    return _fill(CounterMetricFamily(f"queryloop_{name}", about, labels=labels), samples)


def read_process(data_dir: Path) -> dict[str, Any]:
    """Return a process's build, and the bytes of its data folder's disk, as JSON values; the folder may not exist yet."""
    usage = shutil.disk_usage(next(folder for folder in (data_dir, *data_dir.absolute().parents) if folder.exists()))
    return {**_read_build(), "disk_free_bytes": usage.free, "disk_size_bytes": usage.total}


def describe_processes(processes: Mapping[Sequence[str], Mapping[str, Any]], labels: Sequence[str] = ()) -> Iterator[Metric]:
    """Yield the families of processes, whose figures are `read_process`'s, by the values of their labels."""
    builds = [((*values, figures["version"], figures["python"]), 1) for values, figures in processes.items()]
    yield gauge("build_info", "1, with the version of Queryloop and of Python that runs.", [*labels, "version", "python"], builds)
    for name, (key, about) in DISK.items():
        yield gauge(name, about, labels, [(values, figures[key]) for values, figures in processes.items()])


@cache
def _read_build() -> dict[str, str]:
    return {"version": version("queryloop"), "python": platform.python_version()}


def _fill(family: GaugeMetricFamily | CounterMetricFamily, samples: Iterable[Sample]) -> Metric:
    for values, value in samples:
        if value is not None:
            family.add_metric(values, value)
    return family
