"""kafka-python's clients, mended: one that reaches no broker leaves nothing open in this process.

kafka-python 3.0.12 leaves the socket of a failed connection to the garbage collector, in a cycle of its own, and the collector
comes late where a process holds many objects. A client whose constructor fails leaves its event loop as well, an admin client's
with a thread that runs for ever. A product whose broker is away would run into its limit of open files.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kafka
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket

_connect = KafkaNetSocket.sock_connect


async def _connect_or_close(
    self: KafkaNetSocket, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None
) -> socket.socket:
    """Connect, or close the socket. The event loop has let go of it by then: a wait ends before whoever waits goes on."""
    try:
        connected: socket.socket = await _connect(self, net, sock, sockaddr, timeout_at=timeout_at)
    except BaseException:
        sock.close()
        raise
    return connected


# On the class: a living client connects again and again, and consumers and proxies (they inherit it) are to be mended too.
KafkaNetSocket.sock_connect = _connect_or_close


@contextmanager
def _closing_on_failure() -> Iterator[Callable[..., KafkaNetClient]]:
    """Yield a maker of event loops; close what it made when the block raises. A failed constructor hands its loop to nobody."""
    made: list[KafkaNetClient] = []

    def make(**configs: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**configs))
        return made[-1]

    try:
        yield make
    except BaseException:
        for loop in made:
            loop.close()
        raise
    finally:
        made.clear()


class KafkaAdminClient(kafka.KafkaAdminClient):  # type: ignore[misc]
    """kafka-python's admin client."""

    def __init__(self, **configs: Any) -> None:
        with _closing_on_failure() as make:
            super().__init__(kafka_client=make, **configs)


class KafkaProducer(kafka.KafkaProducer):  # type: ignore[misc]
    """kafka-python's producer."""

    def __init__(self, **configs: Any) -> None:
        with _closing_on_failure() as make:
            super().__init__(kafka_client=make, **configs)
