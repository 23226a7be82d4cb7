"""kafka-python's clients, patched: one that reaches no broker says why, and leaves no open file or thread in this process.

kafka-python 3.0.12 leaves the socket of a failed connection to the garbage collector, in a reference cycle, and the collector
runs late in a process with many objects. A client whose constructor fails leaves its event loop as well, an admin client's with a
thread that runs for ever. A product whose broker is away would reach its limit of open files. And it reports every failed
connection as a timeout after all of its time, with the reason in a log line only: here the reason is the error's cause, and a
certificate or a login that is refused is not tried again. It drops the last bytes before a connection's end, in which a broker
says why it refuses a login.
"""

from __future__ import annotations

import random
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import kafka
import kafka.net.compat
import kafka.net.connection
import kafka.net.manager
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from streams.brokers.failures import is_hopeless

_connect = KafkaNetSocket.sock_connect


async def _connect_or_close(
    self: KafkaNetSocket, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None
) -> socket.socket:
    """Connect, or close the socket; by then the event loop has ended its wait and no longer uses the socket."""
    try:
        connected: socket.socket = await _connect(self, net, sock, sockaddr, timeout_at=timeout_at)
    except BaseException:
        sock.close()
        raise
    return connected


_handshake = KafkaSSLTransport.handshake


async def _handshake_or_close(self: KafkaSSLTransport) -> None:
    """Do the TLS handshake, or close the socket."""
    try:
        await _handshake(self)
    except BaseException:
        self._sock.close()
        raise


Receive = Callable[[Any], tuple[bytes, Exception | None]]


def _keep_last_bytes(receive: Receive) -> Receive:
    """Return a read that reports a socket's end only after the bytes before it: a broker closes right after a refused login."""

    def receive_all(transport: Any) -> tuple[bytes, Exception | None]:
        data, error = receive(transport)
        return data, None if data else error

    return receive_all


# Threads that connect draw when they like: from the program's own generator they would change the numbers that it has seeded.
for module in (kafka.net.compat, kafka.net.connection, kafka.net.manager):
    module.random = random.Random()
# On the classes: a living client connects again and again, and consumers and proxies, which inherit it, need the patches too.
KafkaNetSocket.sock_connect = _connect_or_close
KafkaSSLTransport.handshake = _handshake_or_close
for _transport in (KafkaTCPTransport, KafkaSSLTransport):
    _transport._sock_recv = _keep_last_bytes(_transport._sock_recv)


async def _connect_and_note(
    manager: KafkaConnectionManager, failures: list[BaseException], node: Any, conn: Any, **options: Any
) -> None:
    """Connect, and note why that failed while the client is being made; a hopeless failure ends the attempts at this node."""

    failed: list[BaseException] = []

    def note(error: BaseException) -> None:
        if manager.bootstrapped:
            return
        failed.append(error)
        failures[:] = failed[:1]
        if is_hopeless(failed[0]):
            manager._auth_failures[node.node_id] = failed[0]

    conn.init_future.add_errback(note)
    conn.close_future.add_errback(note)
    await KafkaConnectionManager._connect(manager, node, conn, **options)
    if failed:  # noted before kafka-python counted the connection as made, and forgot older failures
        note(failed[0])


@contextmanager
def _closing_on_failure() -> Iterator[Callable[..., KafkaNetClient]]:
    """Yield a factory of event loops, and close them when the block raises: a failed constructor leaves its loop open.

    The error gets the last failed connection as its cause.
    """
    made: list[KafkaNetClient] = []
    failures: list[BaseException] = []

    def make(**configs: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**configs))
        manager = made[-1]._manager
        # A proxy, for a reference would be a cycle, and what a closed client leaves would wait for the garbage collector.
        manager._connect = partial(_connect_and_note, weakref.proxy(manager), failures)
        return made[-1]

    try:
        yield make
    except BaseException as error:
        for loop in made:
            loop.close()
        if failures and error.__cause__ is None and error is not failures[-1]:
            raise error from failures[-1]
        raise
    finally:
        made.clear()


class KafkaAdminClient(kafka.KafkaAdminClient):  # type: ignore[misc]
    """kafka-python's admin client, with the patches of this file."""

    def __init__(self, **configs: Any) -> None:
        with _closing_on_failure() as make:
            super().__init__(kafka_client=make, **configs)


class KafkaProducer(kafka.KafkaProducer):  # type: ignore[misc]
    """kafka-python's producer, with the patches of this file, and closed by its owner alone.

    Its own exit function would close it before the emitter's could deliver what is buffered.
    """

    def __init__(self, **configs: Any) -> None:
        with _closing_on_failure() as make:
            super().__init__(kafka_client=make, **configs)
        self._unregister_cleanup()
