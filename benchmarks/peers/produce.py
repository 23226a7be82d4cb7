"""Fill a topic from a corpus's files: `--lines` events a record, explicit partitions, keys as the emitter sets them.

Writes {"events": ..., "records": ..., "positions": {partition: records}} to --out.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from confluent_kafka import Producer

SESSION = re.compile(rb'"session_id":"([^"]+)"')


def main() -> None:
    """Produce, wait for every acknowledgement, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--lines", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True, help="events in each partition, at most")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    producer = Producer(
        {
            "bootstrap.servers": options.bootstrap,
            "enable.idempotence": True,
            "linger.ms": 20,
            "batch.num.messages": 50_000,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 262_144,
        }
    )
    failures: list[str] = []
    sources = {partition: records(path, options.lines, options.limit) for partition, path in enumerate(options.files)}
    positions = dict.fromkeys(sources, 0)
    events = 0
    while sources:
        for partition in list(sources):
            taken = list(islice(sources[partition], 200))
            if not taken:
                del sources[partition]
            for lines in taken:
                send(producer, options.topic, partition, lines, failures)
                events += len(lines)
            positions[partition] += len(taken)
    producer.flush()
    if failures:
        raise SystemExit(f"{len(failures)} records were not delivered: {failures[0]}")
    options.out.write_text(json.dumps({"events": events, "records": sum(positions.values()), "positions": positions}))


def records(path: Path, lines: int, limit: int) -> Iterator[list[bytes]]:
    """Yield the lines of each record, up to `limit` lines of the file."""
    with path.open("rb", 1 << 20) as file:
        left = islice(file, limit)
        while taken := [line.rstrip(b"\n") for line in islice(left, lines)]:
            yield taken


def send(producer: Producer, topic: str, partition: int, lines: list[bytes], failures: list[str]) -> None:
    """Produce one record, waiting while the client's queue is full."""
    found = SESSION.search(lines[0])
    key = found.group(1) if found else b""
    value = b"\n".join(lines)

    def on_delivery(error: object, _: object) -> None:
        if error is not None:
            failures.append(str(error))

    while True:
        try:
            producer.produce(topic, value, key, partition, on_delivery)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.05)


if __name__ == "__main__":
    main()
