"""Delivery of records to the broker: connect, send, send again, give up with a reason.

kafka-python's producer retries by itself while it lives, but an idempotent one does not survive a broker that lost its memory,
and none can be made while no broker answers. So records are kept here until they are acknowledged. When one fails, its producer
is given up and a new one sends everything that is left, in order, so none is overtaken by a later one of its partition. A record
sent again may arrive twice; the agents count an event once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.emitter.connector import Dialler, Link
from streams.emitter.record_batches import Record
from streams.events.schema import printable

if TYPE_CHECKING:
    from streams.brokers.clients import KafkaProducer

log = logging.getLogger(__name__)

RECONNECT_S = 0.5
BOOTSTRAP_S = 2.0
REQUEST_S = 10.0
SILENCE_S = 5.0
NOBODY = -1
"""The generation of no producer."""
METADATA_S = 3.0
"""Seconds between two looks at the topic: how soon a topic that was made anew is noticed."""

Connect = Callable[[str, float], "KafkaProducer"]


class Wire(NamedTuple):
    """How records travel: their compression ("none", "gzip"), and the bytes of one Kafka batch (0: each record is one)."""

    compression: str = "none"
    batch_bytes: int = 0


DEFAULT_WIRE = Wire()


class Delivery:
    """Sends records to one topic. Its methods are for one thread; acknowledgements come in from kafka-python's own.

    `settled(record, offset, reason)` is called once for each record, with the lock held: offset is None when it failed, and then
    reason says why. `changed` is the caller's lock, notified when there is something for `turn` to do. With `patient` a record
    is not given up for its age: the caller has it on disk. `opened` is called when there is a new producer, before it is used.
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
        *,
        wire: Wire = DEFAULT_WIRE,
        patient: bool = False,
        opened: Callable[[], object] = lambda: None,
    ) -> None:
        self.partitions = 0
        self._bootstrap = bootstrap
        self._topic = topic
        self._timeout_s = timeout_s
        self._settled = settled
        self._changed = changed
        self._clock = clock
        self._connect = connect or partial(connect_producer, wire=wire)
        self._patient = patient
        self._opened = opened
        self._producer: KafkaProducer | None = None
        self._generation = 0
        self._not_before = float("-inf")
        self._silent = False
        self._dialler = Dialler(self._dial, abort_producer)
        # Guarded by _changed. The int is the generation of the producer that last took the record.
        self._unsettled: dict[Record, int] = {}
        self._order: list[tuple[int, int, Record]] = []
        self._troubles: deque[tuple[Record, int, Exception]] = deque()

    @property
    def troubled(self) -> bool:
        """Whether a record failed since the last `turn`; read it with the lock held."""
        return bool(self._troubles)

    def lowest(self) -> int | None:
        """The lowest line number in a record without an outcome; call it with the lock held."""
        while self._order and self._order[0][2] not in self._unsettled:
            heappop(self._order)
        return self._order[0][0] if self._order else None

    @property
    def topic_id(self) -> str | None:
        """The id of the log that the topic's name stands for now, as the producer last heard; None when it does not know."""
        if self._producer is None:
            return None
        found = self._producer._metadata.topic_id(self._topic)  # kafka-python has no public way that costs no connection
        return str(found) if found is not None and found.int else None

    def turn(self) -> bool:
        """Do what is due: give up on old records, connect, send again what failed. True when records can be sent now."""
        self._sort_troubles()
        ready = self._producer is not None
        if not ready and self._open():
            self._opened()
            ready = self._producer is not None
            for record in self._left() if ready else ():
                self.send(record)
        self._watch()
        return ready

    def forget(self, begin: int = 0) -> None:
        """Give up the producer, and drop unsettled the records from line `begin` on: the caller will send their lines again."""
        self._drop()
        with self._changed:
            for record in [one for one in self._unsettled if one.first >= begin]:
                del self._unsettled[record]
        self._not_before = float("-inf")

    def send(self, record: Record) -> None:
        """Give a record to the producer, or, while there is none, keep it for the next one."""
        from kafka.errors import KafkaError

        generation = self._generation if self._producer is not None else NOBODY
        with self._changed:
            if record not in self._unsettled:
                heappush(self._order, (record.first, id(record), record))
            self._unsettled[record] = generation
        if self._producer is None:
            return
        try:
            future = self._producer.send(self._topic, record.value, key=record.key, partition=record.partition)
        except (KafkaError, ValueError, OSError) as error:
            self._fail_later(record, generation, error)
            if not self._is_hopeless(error):
                self._say_silent(f"{type(error).__name__}: {error}")
                self._drop()  # a producer that lost its topic takes seconds to say so, for each record anew
            return
        future.add_callback(partial(self._acknowledge, record))
        future.add_errback(partial(self._fail_later, record, generation))

    def close(self, rest: Iterable[Record], reason: str) -> None:
        """Stop sending; what has no outcome yet, and `rest`, fails with `reason`."""
        self._drop()
        self._dialler.close()
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
        """Give up what can never be taken, and the producer when anything else failed."""
        with self._changed:
            troubles, self._troubles = self._troubles, deque()
            hopeless = [one for one in troubles if self._is_hopeless(one[2])]
            broken = [error for _, sent_by, error in troubles if sent_by == self._generation and not self._is_hopeless(error)]
        for record, sent_by, error in hopeless:
            if self._unsettled.get(record) == sent_by:
                self._fail(record, f"{type(error).__name__}: {error}")
        if broken and self._producer is not None:
            self._drop()
            self._say_silent(f"{type(broken[0]).__name__}: {broken[0]}")
        self._expire()

    def _is_hopeless(self, error: Exception) -> bool:
        return is_unfit(error) if self._patient else is_permanent(error)

    def _expire(self) -> None:
        if self._patient or self._producer is not None:
            return
        late = self._clock() - self._timeout_s
        for record in self._left():
            if record.since <= late:
                self._fail(record, f"not acknowledged within {self._timeout_s:g} s")

    def _left(self) -> list[Record]:
        """The records that no living producer has, in the order of their first lines."""
        with self._changed:
            return sorted(
                (one for one, sent_by in self._unsettled.items() if sent_by != self._generation), key=lambda one: one.first
            )

    def _open(self) -> bool:
        """Connect; with `patient` without waiting for it. True when there is a producer."""
        from kafka.errors import KafkaError

        if self._clock() < self._not_before:
            return False
        try:
            link = self._dialler.poll() if self._patient else self._dial()
        except (KafkaError, OSError) as error:
            self._say_silent(f"{type(error).__name__}: {error}")
            self._drop()
            return False
        if link is not None:
            self._producer, self.partitions = link
        return link is not None

    def _dial(self) -> Link:
        producer = self._connect(self._bootstrap, self._timeout_s)
        try:
            return Link(producer, len(producer.partitions_for(self._topic)))
        except BaseException:
            abort_producer(producer)
            raise

    def _drop(self) -> None:
        """Let the producer go; its records without an outcome come back as troubles of an old generation."""
        producer, self._producer = self._producer, None
        self._generation += 1
        self._not_before = self._clock() + RECONNECT_S
        if producer is not None:
            abort_producer(producer)

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
            oldest = None if self.lowest() is None else self._order[0][2].since
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
                f"start the broker; events are kept {'in the outbox' if self._patient else f'for {self._timeout_s:g} s'}",
            )


def connect_producer(bootstrap: str, timeout_s: float, wire: Wire = DEFAULT_WIRE) -> KafkaProducer:
    """Return a connected producer; raise a KafkaError when no broker answers.

    `batch_size=0` puts each record into a Kafka batch of its own: ours are batches already, and the embedded broker's end offset
    is right only then. Idempotence (both brokers have it) makes kafka-python keep one batch of a partition in flight at a time,
    so a retry within one producer neither repeats nor overtakes.
    """
    from streams.brokers.clients import KafkaProducer

    return KafkaProducer(
        bootstrap_servers=bootstrap,
        acks="all",
        enable_idempotence=True,
        batch_size=wire.batch_bytes,
        compression_type=None if wire.compression == "none" else wire.compression,
        metadata_max_age_ms=int(METADATA_S * 1000),
        delivery_timeout_ms=int(timeout_s * 1000),
        request_timeout_ms=int(min(REQUEST_S, timeout_s) * 1000),
        bootstrap_timeout_ms=int(BOOTSTRAP_S * 1000),
        max_block_ms=int(BOOTSTRAP_S * 1000),
        reconnect_backoff_max_ms=1000,
        allow_auto_create_topics=False,
        metrics_enabled=False,
    )


def abort_producer(producer: KafkaProducer) -> None:
    """Stop a producer at once. Its own close() raises when records are left, and lets its thread go on sending them."""
    from kafka.errors import KafkaError

    try:
        producer.close(timeout=0)
    except KafkaError as error:
        log.debug("event=producer_closed_with_records_left error=%s", printable(repr(error)))
        producer._sender.force_close()
        producer._closed = True


def is_permanent(error: Exception) -> bool:
    """Say whether sending the record again soon cannot help: the broker refuses it for what it is, or refuses us."""
    from kafka import errors

    return is_unfit(error) or isinstance(
        error, errors.InvalidTopicError | errors.AuthorizationError | errors.UnsupportedVersionError
    )


def is_unfit(error: Exception) -> bool:
    """Say whether the broker will never take this record, whoever may have fixed it meanwhile."""
    from kafka import errors

    return isinstance(error, errors.MessageSizeTooLargeError | errors.RecordListTooLargeError | errors.InvalidRecordError)
