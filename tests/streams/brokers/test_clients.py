"""kafka-python's clients, patched: one that reaches no broker leaves nothing open, with or without garbage collection."""

from __future__ import annotations

import gc
import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kafka.errors import KafkaError

from streams.brokers.clients import KafkaAdminClient, KafkaProducer
from streams.emitter.delivery import abort_producer
from streams.runtime.processes import free_port

CLIENTS = [KafkaAdminClient, KafkaProducer]
LOOP = 3
"""Files that a client's event loop has open: its selector, and a pair of sockets to wake it."""


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts no connection: its queue of one is full, and no server takes from it."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(server.getsockname()))
        yield f"127.0.0.1:{server.getsockname()[1]}"


def assert_nothing_is_left(client: type, bootstrap: str, **configs: object) -> None:
    files, threads = open_files(), set(threading.enumerate())
    with pytest.raises(KafkaError):
        client(bootstrap_servers=bootstrap, bootstrap_timeout_ms=400, **configs)
    assert open_files() - files == Counter()
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("client", CLIENTS)
def test_a_refused_connection_leaves_nothing(client: type) -> None:
    assert_nothing_is_left(client, f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize("client", CLIENTS)
def test_a_connection_that_is_never_accepted_leaves_nothing(client: type, silent: str, caplog: pytest.LogCaptureFixture) -> None:
    assert_nothing_is_left(client, silent)
    assert "timed out" in caplog.text
    assert [
        record for record in caplog.records if record.name == "kafka.net.selector" and record.levelno >= logging.WARNING
    ] == []


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_a_proxy_that_refuses_leaves_nothing(scheme: str) -> None:
    assert_nothing_is_left(KafkaProducer, "127.0.0.1:9092", proxy_url=f"{scheme}://127.0.0.1:{free_port()}")


def test_a_live_producer_keeps_no_socket_of_failed_connections(caplog: pytest.LogCaptureFixture) -> None:
    backoff = {"reconnect_backoff_ms": 10, "reconnect_backoff_max_ms": 20}
    before = open_files()
    producer = KafkaProducer(bootstrap_servers=f"127.0.0.1:{free_port()}", api_version=(3, 9), **backoff)
    poll_until(lambda: caplog.text.count("Connection failed") > 10)
    poll_until(lambda: sum((open_files() - before).values()) == LOOP)
    abort_producer(producer)
    poll_until(lambda: open_files() - before == Counter())


def poll_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def open_files() -> Counter[str]:
    """Return the open files of this process, counted by name: a socket's name has its number, an event loop's has none."""
    found: Counter[str] = Counter()
    for file in Path("/proc/self/fd").iterdir():
        try:
            found[str(file.readlink())] += 1
        except FileNotFoundError:
            continue
    return found


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_leaves_the_programs_random_numbers_as_they_were(client: type) -> None:
    before = random.getstate()
    with pytest.raises(KafkaError):
        client(bootstrap_servers=f"127.0.0.1:{free_port()}", bootstrap_timeout_ms=400)
    assert random.getstate() == before
