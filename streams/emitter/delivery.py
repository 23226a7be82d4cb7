"""Delivery of records to the broker: connect, send, send again, give up with a reason.

kafka-python's producer retries by itself while it lives, but an idempotent one does not survive a broker that lost its memory,
and none can be made while no broker answers. So records are kept here until they are acknowledged. When one fails, its producer
is given up and a new one sends all pending records, in order, so none is overtaken by a later one of its partition. A record
sent again may arrive twice; workers count an event once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.brokers.connection import Address, bootstrap_of, client_options
from streams.brokers.failures import explain_reason
from streams.emitter.connector import Connection, Connector
from streams.emitter.record_batches import Record
from streams.events.schema import printable

if TYPE_CHECKING:
    from streams.brokers.clients import KafkaProducer

log = logging.getLogger(__name__)

RECONNECT_S = 0.5
BOOTSTRAP_S = 2.0
REQUEST_S = 10.0
SILENCE_S = 5.0
NO_PRODUCER = -1
"""The generation of a record that no producer has."""
METADATA_S = 3.0
"""Seconds between two checks of the topic's metadata: how soon a topic that was made anew is noticed."""

Connect = Callable[[Address, float], "KafkaProducer"]


class RecordFormat(NamedTuple):
    """How records are sent: compression ("none" or "gzip"), and the bytes of one Kafka batch (0: each record is a batch)."""

    compression: str = "none"
    batch_bytes: int = 0


DEFAULT_FORMAT = RecordFormat()


class Delivery:
    """Sends records to one topic. Its methods are for one thread; kafka-python's own thread delivers the acknowledgements.

    `on_outcome(record, offset, reason)` is called once for each record, with the lock held: offset is None when it failed, and
    then reason says why. `condition` is the caller's lock, notified when there is something for `advance` to do. With
    `keeps_trying` a record never expires: the caller has it on disk. `on_connected` is called before a new producer is used.
    """

    def __init__(
        self,
        address: Address,
        topic: str,
        timeout_s: float,
        on_outcome: Callable[[Record, int | None, str], None],
        condition: threading.Condition,
        clock: Callable[[], float],
        connect: Connect | None = None,
        *,
        record_format: RecordFormat = DEFAULT_FORMAT,
        keeps_trying: bool = False,
        on_connected: Callable[[], object] = lambda: None,
    ) -> None:
        self.partitions = 0
        self._address = address
        self._bootstrap = bootstrap_of(address)
        self._topic = topic
        self._timeout_s = timeout_s
        self._on_outcome = on_outcome
        self._condition = condition
        self._clock = clock
        self._connect = connect or partial(connect_producer, record_format=record_format)
        self._keeps_trying = keeps_trying
        self._on_connected = on_connected
        self._producer: KafkaProducer | None = None
        self._generation = 0
        self._not_before = float("-inf")
        self._silent = False
        self.last_reason = "no broker answered"
        self._connector = Connector(self._connect_now, abort_producer)
        # Guarded by _condition. The int is the generation of the producer that was last given the record.
        self._pending: dict[Record, int] = {}
        self._order: list[tuple[int, int, Record]] = []
        self._failures: deque[tuple[Record, int, Exception]] = deque()

    @property
    def has_failures(self) -> bool:
        """Whether a record failed since the last `advance`; read it with the lock held."""
        return bool(self._failures)

    def lowest_number(self) -> int | None:
        """Return the lowest line number in a pending record, None without one; call it with the lock held."""
        while self._order and self._order[0][2] not in self._pending:
            heappop(self._order)
        return self._order[0][0] if self._order else None

    @property
    def topic_id(self) -> str | None:
        """The topic's id in the producer's metadata, None when it is not known; a topic that is made anew has another id."""
        if self._producer is None:
            return None
        found = self._producer._metadata.topic_id(self._topic)  # kafka-python has no public way that costs no connection
        return str(found) if found is not None and found.int else None

    def advance(self) -> bool:
        """Handle failures, connect, and send pending records again; True when records can be sent now."""
        self._handle_failures()
        ready = self._producer is not None
        if not ready and self._try_connect():
            self._on_connected()
            ready = self._producer is not None
            for record in self._unsent() if ready else ():
                self.send(record)
        self._report_silence()
        return ready

    def drop_pending(self, begin: int = 0) -> None:
        """Give up the producer, and drop without an outcome the records from line `begin` on: the caller sends these again."""
        self._drop_producer()
        with self._condition:
            for record in [one for one in self._pending if one.first_number >= begin]:
                del self._pending[record]
        self._not_before = float("-inf")

    def send(self, record: Record) -> None:
        """Give a record to the producer or, while there is none, keep it for the next one."""
        from kafka.errors import KafkaError

        generation = self._generation if self._producer is not None else NO_PRODUCER
        with self._condition:
            if record not in self._pending:
                heappush(self._order, (record.first_number, id(record), record))
            self._pending[record] = generation
        if self._producer is None:
            return
        try:
            future = self._producer.send(self._topic, record.value, key=record.key, partition=record.partition)
        except (KafkaError, ValueError, OSError) as error:
            self._note_failure(record, generation, error)
            if not self._is_final(error):
                self._log_silence(explain_reason(error, self._address))
                self._drop_producer()  # a producer that lost its topic takes seconds to fail, for each record anew
            return
        future.add_callback(partial(self._acknowledge, record))
        future.add_errback(partial(self._note_failure, record, generation))

    def close(self, unsent: Iterable[Record], reason: str) -> None:
        """Stop sending; pending records and the `unsent` ones fail with `reason`."""
        self._drop_producer()
        self._connector.close()
        with self._condition:
            self._pending.update((record, self._generation) for record in unsent)
            remaining = list(self._pending)
        for record in remaining:
            self._fail(record, reason)

    def fail(self, record: Record, reason: str) -> None:
        """Fail a record that was never sent."""
        with self._condition:
            self._pending[record] = self._generation
        self._fail(record, reason)

    def leave_to_parent(self) -> None:
        """In a forked child: keep the copied producer from closing itself, which would disturb the parent's connections."""
        if self._producer is not None:
            self._producer._closed = True

    def _acknowledge(self, record: Record, metadata: Any) -> None:
        with self._condition:
            if self._pending.pop(record, None) is not None:
                self._on_outcome(record, int(metadata.offset), "")

    def _note_failure(self, record: Record, generation: int, error: Exception) -> None:
        with self._condition:
            self._failures.append((record, generation, error))
            self._condition.notify()

    def _handle_failures(self) -> None:
        """Fail records that the broker will never accept, and give up the producer when any other failed."""
        with self._condition:
            failures, self._failures = self._failures, deque()
            final = [one for one in failures if self._is_final(one[2])]
            broken = [error for _, sent_by, error in failures if sent_by == self._generation and not self._is_final(error)]
        for record, sent_by, error in final:
            if self._pending.get(record) == sent_by:
                self._fail(record, explain_reason(error, self._address))
        if broken and self._producer is not None:
            self._drop_producer()
            self._log_silence(explain_reason(broken[0], self._address))
        self._expire()

    def _is_final(self, error: Exception) -> bool:
        return is_record_refused(error) if self._keeps_trying else is_permanent(error)

    def _expire(self) -> None:
        if self._keeps_trying or self._producer is not None:
            return
        limit = self._clock() - self._timeout_s
        for record in self._unsent():
            if record.oldest_at <= limit:
                self._fail(record, f"not acknowledged within {self._timeout_s:g} s")

    def _unsent(self) -> list[Record]:
        """Return the pending records that the current producer does not have, in the order of their first lines."""
        with self._condition:
            return sorted(
                (one for one, sent_by in self._pending.items() if sent_by != self._generation), key=lambda one: one.first_number
            )

    def _try_connect(self) -> bool:
        """Connect, with `keeps_trying` in the background; True when there is a producer."""
        from kafka.errors import KafkaError

        if self._clock() < self._not_before:
            return False
        try:
            connection = self._connector.poll() if self._keeps_trying else self._connect_now()
        except (KafkaError, OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            self._log_silence(explain_reason(error, self._address))
            self._drop_producer()
            return False
        if connection is not None:
            self._producer, self.partitions = connection
        return connection is not None

    def _connect_now(self) -> Connection:
        producer = self._connect(self._address, self._timeout_s)
        try:
            return Connection(producer, len(producer.partitions_for(self._topic)))
        except BaseException:
            abort_producer(producer)
            raise

    def _drop_producer(self) -> None:
        """Give up the producer; its pending records will be reported as failures of an old generation."""
        producer, self._producer = self._producer, None
        self._generation += 1
        self._not_before = self._clock() + RECONNECT_S
        if producer is not None:
            abort_producer(producer)

    def _fail(self, record: Record, reason: str) -> None:
        reason = printable(reason)
        with self._condition:
            if self._pending.pop(record, None) is None:
                return
            self._on_outcome(record, None, reason)
        log.error(
            "event=delivery_failed topic=%s partition=%d events=%d waited_s=%.1f broker=%s reason=%r action=%r",
            self._topic,
            record.partition,
            len(record.lines),
            self._clock() - record.oldest_at,
            self._bootstrap,
            reason,
            "lost unless the caller keeps them: check broker and topic, or raise emitter.delivery_timeout_s",
        )

    def _report_silence(self) -> None:
        """Log once that the broker is silent and once that it is back, however much kafka-python logs meanwhile."""
        with self._condition:
            oldest = None if self.lowest_number() is None else self._order[0][2].oldest_at
        if oldest is not None and self._clock() - oldest > SILENCE_S:
            self._log_silence("no acknowledgement")
        elif oldest is None and self._producer is not None and self._silent:
            self._silent = False
            log.warning("event=broker_back topic=%s broker=%s", self._topic, self._bootstrap)

    def _log_silence(self, reason: str) -> None:
        self.last_reason = printable(reason)
        if not self._silent:
            self._silent = True
            log.warning(
                "event=broker_silent topic=%s broker=%s reason=%r action=%r",
                self._topic,
                self._bootstrap,
                printable(reason),
                f"events are kept {'in the outbox' if self._keeps_trying else f'for {self._timeout_s:g} s'}",
            )


def connect_producer(address: Address, timeout_s: float, record_format: RecordFormat = DEFAULT_FORMAT) -> KafkaProducer:
    """Return a connected producer; raise a KafkaError when no broker answers.

    `batch_size=0` puts each record into a Kafka batch of its own: our records are batches already, and the embedded broker's end
    offset is right only then. Idempotence (both brokers have it) makes kafka-python keep one batch of a partition in flight at a
    time, so a retry within one producer neither repeats nor overtakes.
    """
    from streams.brokers.clients import KafkaProducer

    return KafkaProducer(
        **client_options(address),
        acks="all",
        enable_idempotence=True,
        batch_size=record_format.batch_bytes,
        compression_type=None if record_format.compression == "none" else record_format.compression,
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
    """Return whether sending the record again soon cannot help: the broker refuses it, or refuses this client."""
    from kafka import errors

    return is_record_refused(error) or isinstance(
        error, errors.InvalidTopicError | errors.AuthorizationError | errors.UnsupportedVersionError
    )


def is_record_refused(error: Exception) -> bool:
    """Return whether the broker will never accept this record, even after its operator fixed other errors."""
    from kafka import errors

    return isinstance(error, errors.MessageSizeTooLargeError | errors.RecordListTooLargeError | errors.InvalidRecordError)
