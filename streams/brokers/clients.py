"""kafka-python's clients, patched: one that reaches no broker leaves no open file or thread in this process.

kafka-python 3.0.12 leaves the socket of a failed connection to the garbage collector, in a reference cycle, and the collector
runs late in a process with many objects. A client whose constructor fails leaves its event loop as well, an admin client's with a
thread that runs for ever. A product whose broker is away would reach its limit of open files.
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
    """Connect, or close the socket; by then the event loop has ended its wait and no longer uses the socket."""
    try:
        connected: socket.socket = await _connect(self, net, sock, sockaddr, timeout_at=timeout_at)
    except BaseException:
        sock.close()
        raise
    return connected


# On the class: a living client connects again and again, and consumers and proxies, which inherit it, need the patch too.
KafkaNetSocket.sock_connect = _connect_or_close


@contextmanager
def _closing_on_failure() -> Iterator[Callable[..., KafkaNetClient]]:
    """Yield a factory of event loops, and close them when the block raises: a failed constructor leaves its loop open."""
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
