"""Delivery of records to the broker: connect, send, send again, give up with a reason.

kafka-python's producer retries by itself while it lives, but an idempotent one does not survive a broker that lost its memory,
and none can be made while no broker answers. So records are kept here until they are acknowledged: what fails early is sent again
by a new producer, until `timeout_s` after its first event. A record sent again may arrive twice; the agents count an event once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.events import printable
from streams.records import Record

if TYPE_CHECKING:
    from kafka import KafkaProducer

log = logging.getLogger(__name__)

RECONNECT_S = 0.5
BOOTSTRAP_S = 2.0
REQUEST_S = 10.0
SILENCE_S = 5.0

Connect = Callable[[str, float], "KafkaProducer"]


class Delivery:
    """Sends records to one topic. Its methods are for one thread; acknowledgements come in from kafka-python's own.

    `settled(record, offset, reason)` is called once for each record, with the lock held: offset is None when it failed, and then
    reason says why. `changed` is the caller's lock, notified when there is something for `turn` to do.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        timeout_s: float,
        settled: Callable[[Record, int | None, str], None],
        changed: threading.Condition,
        clock: Callable[[], float],
        connect: Connect | None = None,
    ) -> None:
        self.partitions = 0
        self._bootstrap = bootstrap
        self._topic = topic
        self._timeout_s = timeout_s
        self._settled = settled
        self._changed = changed
        self._clock = clock
        self._connect = connect or connect_producer
        self._producer: KafkaProducer | None = None
        self._generation = 0
        self._not_before = float("-inf")
        self._again: list[Record] = []
        self._silent = False
        # Guarded by _changed. The int is the generation of the producer that last took the record.
        self._unsettled: dict[Record, int] = {}
        self._troubles: deque[tuple[Record, int, Exception]] = deque()

    @property
    def troubled(self) -> bool:
        """Whether a record failed since the last `turn`; read it with the lock held."""
        return bool(self._troubles)

    @property
    def unsettled(self) -> frozenset[Record]:
        """The records without an outcome; read it with the lock held."""
        return frozenset(self._unsettled)

    def turn(self) -> bool:
        """Do what is due: give up on old records, connect, send again what failed. True when records can be sent now."""
        self._sort_troubles()
        ready = self._producer is not None or self._open()
        if ready:
            again, self._again = self._again, []
            for record in again:
                self.send(record)
        self._watch()
        return ready

    def send(self, record: Record) -> None:
        """Give a record to the producer; call it only after `turn` returned True."""
        from kafka.errors import KafkaError

        generation = self._generation
        with self._changed:
            self._unsettled[record] = generation
        try:
            if self._producer is None:
                raise ConnectionError("no producer")
            future = self._producer.send(self._topic, record.value, key=record.key, partition=record.partition)
        except (KafkaError, ValueError, OSError) as error:
            self._fail_later(record, generation, error)
            return
        future.add_callback(partial(self._acknowledge, record))
        future.add_errback(partial(self._fail_later, record, generation))

    def close(self, rest: Iterable[Record], reason: str) -> None:
        """Stop sending; what has no outcome yet, and `rest`, fails with `reason`."""
        self._drop()
        with self._changed:
            self._unsettled.update((record, self._generation) for record in rest)
            left = list(self._unsettled)
        for record in left:
            self._fail(record, reason)

    def fail(self, record: Record, reason: str) -> None:
        """Settle a record that was never sent."""
        with self._changed:
            self._unsettled[record] = self._generation
        self._fail(record, reason)

    def _acknowledge(self, record: Record, metadata: Any) -> None:
        with self._changed:
            if self._unsettled.pop(record, None) is not None:
                self._settled(record, int(metadata.offset), "")

    def _fail_later(self, record: Record, generation: int, error: Exception) -> None:
        with self._changed:
            self._troubles.append((record, generation, error))
            self._changed.notify()

    def _sort_troubles(self) -> None:
        """Part what failed into what is sent again and what is given up."""
        with self._changed:
            troubles, self._troubles = self._troubles, deque()
            fresh = [(record, error) for record, sent_by, error in troubles if self._unsettled.get(record) == sent_by]
            broken = [error for _, sent_by, error in troubles if sent_by == self._generation]
        for record, error in fresh:
            if is_permanent(error):
                self._fail(record, f"{type(error).__name__}: {error}")
            else:
                self._again.append(record)
        if broken and self._producer is not None and not all(map(is_permanent, broken)):
            self._drop()
            self._say_silent(f"{type(broken[0]).__name__}: {broken[0]}")
        self._expire()

    def _expire(self) -> None:
        late = self._clock() - self._timeout_s
        expired = [record for record in self._again if record.since <= late]
        self._again = [record for record in self._again if record.since > late]
        for record in expired:
            self._fail(record, f"not acknowledged within {self._timeout_s:g} s")

    def _open(self) -> bool:
        from kafka.errors import KafkaError

        if self._clock() < self._not_before:
            return False
        try:
            self._producer = self._connect(self._bootstrap, self._timeout_s)
            self.partitions = len(self._producer.partitions_for(self._topic))
        except (KafkaError, OSError) as error:
            self._say_silent(f"{type(error).__name__}: {error}")
            self._drop()
        return self._producer is not None

    def _drop(self) -> None:
        """Let the producer go; its records without an outcome come back as troubles of an old generation."""
        from kafka.errors import KafkaError

        producer, self._producer = self._producer, None
        self._generation += 1
        self._not_before = self._clock() + RECONNECT_S
        if producer is not None:
            try:
                producer.close(timeout=0)
            except KafkaError as error:
                log.debug("event=producer_closed_with_records_left error=%s", printable(repr(error)))

    def _fail(self, record: Record, reason: str) -> None:
        reason = printable(reason)
        with self._changed:
            if self._unsettled.pop(record, None) is None:
                return
            self._settled(record, None, reason)
        log.error(
            "event=delivery_failed topic=%s partition=%d events=%d waited_s=%.1f broker=%s reason=%r action=%r",
            self._topic,
            record.partition,
            len(record.lines),
            self._clock() - record.since,
            self._bootstrap,
            reason,
            "lost unless the caller keeps them: check broker and topic, or raise emitter.delivery_timeout_s",
        )

    def _watch(self) -> None:
        """Say once that the broker is silent and once that it is back, whatever kafka-python tells meanwhile."""
        with self._changed:
            oldest = min((record.since for record in self._unsettled), default=None)
        if oldest is not None and self._clock() - oldest > SILENCE_S:
            self._say_silent("no acknowledgement")
        elif oldest is None and self._producer is not None and self._silent:
            self._silent = False
            log.warning("event=broker_back topic=%s broker=%s", self._topic, self._bootstrap)

    def _say_silent(self, reason: str) -> None:
        if not self._silent:
            self._silent = True
            log.warning(
                "event=broker_silent topic=%s broker=%s reason=%r action=%r",
                self._topic,
                self._bootstrap,
                printable(reason),
                f"start the broker; events are kept for {self._timeout_s:g} s",
            )


def connect_producer(bootstrap: str, timeout_s: float) -> KafkaProducer:
    """Return a connected producer; raise a KafkaError when no broker answers.

    `batch_size=0` puts each record into a Kafka batch of its own: ours are batches already, and the embedded broker's end offset
    is right only then. gzip is for speed too: kafka-python sums its checksum in Python, 8 MB/s, over what is left after it.
    """
    from kafka import KafkaProducer

    return KafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        enable_idempotence=True,
        batch_size=0,
        compression_type="gzip",
        delivery_timeout_ms=int(timeout_s * 1000),
        request_timeout_ms=int(min(REQUEST_S, timeout_s) * 1000),
        bootstrap_timeout_ms=int(BOOTSTRAP_S * 1000),
        max_block_ms=int(BOOTSTRAP_S * 1000),
        reconnect_backoff_max_ms=1000,
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )


def is_permanent(error: Exception) -> bool:
    """Say whether sending the record again cannot help: its time is over, or the broker refuses it for what it is."""
    from kafka import errors

    return isinstance(
        error,
        errors.MessageSizeTooLargeError
        | errors.RecordListTooLargeError
        | errors.InvalidTopicError
        | errors.AuthorizationError
        | errors.UnsupportedVersionError,
    )
