"""The peer: quixstreams counts impressions and clicks of each (query, item, position) and day into its own state store (RocksDB).

--count equivalent: an event counts once (its id is kept); a click only on its list, within 24 h, once a position, on the list's
day. What it still lacks, and ours does: co-occurrence of queries; a click that arrives before its list, or an earlier list that
arrives later (it drops the click, and keeps the first list); quarantine; NFKC; expiry of old ids; counts and offsets in one
transaction. --count light: cells alone, no repeats, no matching, no days.

What favours it: records are expanded with orjson (its own dependency), state is kept per partition (the key deserializer answers
a constant, so no record goes through a repartition topic by its cell), no changelog topic is written. Commits come every 5 s,
its default, within the measured time; the last one, after the last record, is left out. Writes {"events", "seconds", "cpu_s",
"thread_s"} to --out.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from pathlib import Path
from typing import Any

import orjson
from quixstreams import Application, State
from quixstreams.models.serializers import Deserializer


class OneKey(Deserializer):
    """Gives every record of a partition the same key, and so one state."""

    def __call__(self, value: bytes, ctx: Any) -> str:
        return "counts"


class Meter:
    """Counts events, starts the clock at the first and stops the application after the last."""

    def __init__(self, app: Application, events: int) -> None:
        self._app = app
        self._wanted = events
        self._skipped = self.events = 0
        self._began = self._began_cpu = self._began_thread = self.seconds = self.cpu_s = self.thread_s = 0.0

    def expand(self, value: bytes) -> list[dict[str, Any]]:
        """Return the events of a record, none after the last that is wanted."""
        if self.seconds:
            return []
        events = [orjson.loads(line) for line in value.split(b"\n")]
        if not self._skipped:
            self._skipped = len(events)
            self._began, self._began_cpu, self._began_thread = time.monotonic(), time.process_time(), time.thread_time()
        elif self.events >= self._wanted:
            self.seconds = time.monotonic() - self._began
            self.cpu_s, self.thread_s = time.process_time() - self._began_cpu, time.thread_time() - self._began_thread
            self._app.stop()
            return []
        else:
            self.events += len(events)
        return events


def add(state: State, cell: str, impressions: int, clicks: int) -> None:
    """Add to one cell."""
    before = state.get(cell, (0, 0))
    state.set(cell, (before[0] + impressions, before[1] + clicks))


def count_light(event: dict[str, Any], state: State) -> None:
    """Add one event to its cells."""
    query = event["query"].casefold()
    if event["type"] == "impression":
        for position, item in enumerate(event["items"]):
            add(state, f"{query}\x1f{item.casefold()}\x1f{position}", 1, 0)
    elif event["type"] == "click":
        add(state, f"{query}\x1f{event['item'].casefold()}\x1f{event['position']}", 0, 1)


def count_equivalent(event: dict[str, Any], state: State) -> None:
    """Count one event unless its id occurred before; a click only on its list."""
    seen = f"id:{event['event_id']}"
    if state.exists(seen):
        return
    state.set(seen, 1)
    if event["type"] == "impression":
        count_list(event, state)
    elif event["type"] == "click":
        count_click(event, state)


def count_list(event: dict[str, Any], state: State) -> None:
    """Keep a list and count its positions, once for an impression_id."""
    kept = f"imp:{event['impression_id']}"
    if state.exists(kept):
        return
    query, items = event["query"].casefold(), [item.casefold() for item in event["items"]]
    day = int(event["ts"] // 86_400)
    state.set(kept, [event["ts"], day, query, items, []])
    for position, item in enumerate(items):
        add(state, f"{day}\x1f{query}\x1f{item}\x1f{position}", 1, 0)


def count_click(event: dict[str, Any], state: State) -> None:
    """Count a click on the day of its list, where there is one, in time, with that item, and the position not clicked before."""
    kept, position = f"imp:{event['impression_id']}", event["position"]
    if (found := state.get(kept)) is None:
        return
    shown, day, query, items, clicked = found
    timely = 0 <= event["ts"] - shown <= 86_400
    if not timely or position in clicked or position >= len(items) or items[position] != event["item"].casefold():
        return
    state.set(kept, [shown, day, query, items, [*clicked, position]])
    add(state, f"{day}\x1f{query}\x1f{items[position]}\x1f{position}", 0, 1)


COUNTS = {"equivalent": count_equivalent, "light": count_light}


def main() -> None:
    """Count --events events, timed, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--count", choices=COUNTS, required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    app = Application(
        broker_address=options.bootstrap,
        consumer_group=f"bench-quix-{uuid.uuid4().hex}",
        auto_offset_reset="earliest",
        state_dir=options.state,
        use_changelog_topics=False,
        auto_create_topics=False,
        consumer_extra_config={"fetch.wait.max.ms": 50},
        loglevel="WARNING",
    )
    meter = Meter(app, options.events)
    frame = app.dataframe(app.topic(options.topic, value_deserializer="bytes", key_deserializer=OneKey()))
    frame.apply(meter.expand, expand=True).update(COUNTS[options.count], stateful=True)
    app.run()
    result = {"events": meter.events, "seconds": meter.seconds, "cpu_s": meter.cpu_s, "thread_s": meter.thread_s}
    options.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
