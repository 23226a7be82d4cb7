"""The bound: a bare confluent-kafka consumer in one process that only calls `json.loads` on every event, and stores nothing.

Timed from its first fetched batch to its last event. Writes {"events", "seconds", "cpu_s", "thread_s"} to
--out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

BATCH = 1000


def main() -> None:
    """Read --events events, timed, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # Its defaults, but for a fetch that need not wait: larger fetches and queues were tried and gained nothing.
    consumer = Consumer(
        {"bootstrap.servers": options.bootstrap, "group.id": "bench-decode", "enable.auto.commit": False, "fetch.wait.max.ms": 50}
    )
    consumer.assign([TopicPartition(options.topic, one, OFFSET_BEGINNING) for one in range(options.partitions)])
    options.out.write_text(json.dumps(measure(consumer, options.events)))
    consumer.close()


def measure(consumer: Consumer, events: int) -> dict[str, float]:
    """Decode until `events` are done; the first fetched batch only starts the clock."""
    skipped = decode(consumer)
    while not skipped:
        skipped = decode(consumer)
    began, began_cpu, began_thread = time.monotonic(), time.process_time(), time.thread_time()
    done = skipped
    while done < events:
        done += decode(consumer)
    return {
        "events": done - skipped,
        "seconds": time.monotonic() - began,
        "cpu_s": time.process_time() - began_cpu,
        "thread_s": time.thread_time() - began_thread,
    }


def decode(consumer: Consumer) -> int:
    """Fetch a batch of records and decode each event; return how many."""
    events = 0
    for message in consumer.consume(BATCH, 1.0):
        if message.error() is not None:
            raise SystemExit(f"the broker answers: {message.error()}")
        for line in message.value().split(b"\n"):
            json.loads(line)
            events += 1
    return events


if __name__ == "__main__":
    main()
