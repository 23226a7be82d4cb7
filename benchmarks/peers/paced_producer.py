"""A paced producer: events are due at an even rate, and each tick sends those that are due, as our emitter does with its default
`emitter.linger_ms`.

An event's time is when it was due, not when it was sent: a producer that is delayed makes the latency longer, not the load
smaller. Writes each record to --out as [partition, offset, first due time, last due time, events].
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from pathlib import Path

from confluent_kafka import Message, Producer

TICK_S = 0.05

Records = list[list[float]]


class Pacer:
    """Sends events to the partitions in turn, event i due at start + i / rate."""

    def __init__(self, producer: Producer, topic: str, files: list[Path], rate: float, lines: int) -> None:
        self._producer = producer
        self._topic = topic
        self._files = [path.open("rb", 1 << 20) for path in files]
        self._rate = rate
        self._lines = lines
        self._sent = [0] * len(files)
        self.records: Records = []
        self.failures: list[str] = []

    def run(self, seconds: float) -> None:
        """Send for so many seconds, then wait for every acknowledgement."""
        start = time.time()
        while (elapsed := time.time() - start) < seconds:
            for partition in range(len(self._files)):
                self._send_due(partition, start, elapsed)
            next_tick = time.monotonic() + TICK_S
            while (left := next_tick - time.monotonic()) > 0:
                self._producer.poll(left)  # returns with every acknowledgement
        self._producer.flush()

    def _send_due(self, partition: int, start: float, elapsed: float) -> None:
        width = len(self._files)
        due = int((elapsed * self._rate - partition) / width)
        while self._sent[partition] < due:
            first = self._sent[partition]
            lines = list(islice(self._files[partition], min(self._lines, due - first)))
            if not lines:
                raise SystemExit(f"partition {partition}: its file ends after {first} events, make a larger corpus")
            last = self._sent[partition] = first + len(lines)
            stamps = [start + (number * width + partition) / self._rate for number in (first, last - 1)]
            self._send(partition, b"".join(lines).rstrip(b"\n"), stamps, len(lines))

    def _send(self, partition: int, value: bytes, stamps: list[float], events: int) -> None:
        def on_delivery(error: object, message: Message) -> None:
            if error is not None:
                self.failures.append(str(error))
            else:
                self.records.append([partition, message.offset(), *stamps, events])

        self._producer.produce(self._topic, value, b"paced", partition, on_delivery)


def main() -> None:
    """Produce at --rate events a second for --seconds, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--lines", type=int, required=True, help="events in one record, at most")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    producer = Producer({"bootstrap.servers": options.bootstrap, "enable.idempotence": True, "linger.ms": 0})
    pacer = Pacer(producer, options.topic, options.files, options.rate, options.lines)
    pacer.run(options.seconds)
    if pacer.failures:
        raise SystemExit(f"{len(pacer.failures)} records were not delivered: {pacer.failures[0]}")
    options.out.write_text(json.dumps({"records": pacer.records, "cpu_s": time.process_time()}))


if __name__ == "__main__":
    main()
