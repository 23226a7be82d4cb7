"""The pytest plugin: a fixture `queryloop` with a broker, a worker and a clock of its own, for the tests of a product.

It is loaded in every pytest run of whoever installs queryloop, so it imports the rest only when a test uses the fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from queryloop.pytest_plugin.rows import Quarantined, Successor, Window

if TYPE_CHECKING:
    from queryloop.pytest_plugin.clock import Clock
    from queryloop.pytest_plugin.trial import Trial
    from queryloop.pytest_plugin.worker_pool import WorkerPool

__all__ = ["Clock", "Quarantined", "Successor", "Trial", "Window"]

FIXTURE = "queryloop"
ABOUT_MARK = (
    "queryloop(broker=..., **sections): the broker of this test (embedded, kafka or host:port), and settings by section, "
    "as in queryloop(worker={'session_gap_s': 60})"
)


def __getattr__(name: str) -> Any:
    """Import a type at its first use: annotations need them, collecting tests does not."""
    if name == "Trial":
        from queryloop.pytest_plugin.trial import Trial

        return Trial
    if name == "Clock":
        from queryloop.pytest_plugin.clock import Clock

        return Clock
    raise AttributeError(f"module 'queryloop.testing' has no attribute {name!r}; public names: {', '.join(__all__)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --queryloop-broker."""
    parser.getgroup("queryloop").addoption(
        "--queryloop-broker",
        default="embedded",
        metavar="BROKER",
        help="broker behind the fixture `queryloop`: embedded (in memory), kafka (real Apache Kafka, started here) or host:port",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", ABOUT_MARK)


@pytest.fixture(scope="session")
def queryloop_workers() -> Iterator[WorkerPool]:
    """The brokers of this run, each started when a test first uses it, and a worker started ahead for the next test."""
    from queryloop.pytest_plugin.runner_pool import RunnerPool

    with RunnerPool() as runners:
        from queryloop.pytest_plugin.worker_pool import WorkerPool  # slow: meanwhile the first worker's process imports too

        with WorkerPool(runners) as workers:
            yield workers


@pytest.fixture
def queryloop(request: pytest.FixtureRequest, queryloop_workers: WorkerPool) -> Iterator[Trial]:
    """A Queryloop for one test: `replay`, `emit`, `windows`, `cooccurrence`, `quarantine`, `wait_applied`, `clock`."""
    from queryloop.pytest_plugin.trial import Trial

    broker, sections = _read_mark(request.node)
    with Trial(queryloop_workers, broker, start_next=_has_later_test(request, broker)) as trial:
        if sections:
            trial.settings(**sections)
        yield trial


def _read_mark(item: pytest.Item) -> tuple[str, dict[str, Any]]:
    """The broker of a test, and settings of its own by section."""
    mark = item.get_closest_marker(FIXTURE)
    sections = {} if mark is None else dict(mark.kwargs)
    if mark is not None and mark.args:
        raise pytest.UsageError("the marker queryloop takes names only: queryloop(broker='kafka', worker={...})")
    return sections.pop("broker", None) or item.config.getoption("--queryloop-broker"), sections


def _has_later_test(request: pytest.FixtureRequest, broker: str) -> bool:
    """Whether a later test of this run uses a worker like this one: only then one is started ahead."""
    items = request.session.items
    at = next((number for number, item in enumerate(items) if item is request.node), len(items))
    later = (item for item in items[at + 1 :] if FIXTURE in getattr(item, "fixturenames", ()))
    return any(_read_mark(item) == (broker, {}) for item in later)
