"""Sends events again: all or none are sent after a check, then their outcomes are read once they are applied."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from threading import Event as Signal
from typing import TYPE_CHECKING, Any, NamedTuple

from queryloop.commands.shard_reads import ask_shard
from queryloop.commands.status import read_running
from queryloop.exits import CommandError, Exit
from streams.api.client import with_query
from streams.api.quarantine_rows import EventStatesParams, dump_event_states
from streams.emitter.emitter import Emitter
from streams.emitter.record_batches import partition_of
from streams.events.line_decoder import parse_line
from streams.events.schema import EventSettings, Reject, printable

if TYPE_CHECKING:
    from queryloop.settings import Settings

APPLIED_S = 60.0
POLL_S = 0.1
IDS_A_CALL = 20
MAX_ERRORS = 20


class Line(NamedTuple):
    """A line that is an event: its origin, event id, session and bytes."""

    origin: str
    event_id: str
    session_id: str
    raw: bytes


def check_lines(lines: Sequence[tuple[str, bytes]], limits: EventSettings, now: float) -> list[Line]:
    """Return the lines as events. Raises CommandError naming those that would be refused; then nothing is sent."""
    good, bad, seen = [], [], set()
    for origin, raw in lines:
        found = parse_line(raw, limits, now=now)
        if isinstance(found, Reject):
            bad.append(f"{origin}: {found.reason}: {found.detail}")
        elif found.event_id in seen:
            bad.append(f"{origin}: event_id {printable(found.event_id)} is here twice")
        else:
            seen.add(found.event_id)
            good.append(Line(origin, found.event_id, found.session_id, raw.replace(b"\n", b" ")))
    if bad:
        more = [f"and {len(bad) - MAX_ERRORS} more"] if len(bad) > MAX_ERRORS else []
        raise CommandError("\n".join(["nothing was sent:", *bad[:MAX_ERRORS], *more]), Exit.FAILED)
    return good


def send_again(lines: Sequence[Line], settings: Settings) -> list[dict[str, Any]]:
    """Send the lines, wait until their shards have applied them, and return each outcome: counted, waits, quarantined, duplicate.

    Raises CommandError when the broker does not accept them, or no worker applies them within a minute.
    """
    if not lines:
        return []
    bootstrap = settings.kafka.bootstrap or read_running(settings.data.dir).get("bootstrap")
    if not bootstrap:
        raise CommandError("no broker runs here: start it, or set QUERYLOOP_KAFKA_BOOTSTRAP", Exit.UNAVAILABLE)
    by_partition: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        by_partition[partition_of(line.session_id, settings.kafka.partitions)].append(line)
    before = {partition: _read_states(settings, partition, mine) for partition, mine in by_partition.items()}
    positions = _send(lines, bootstrap, settings)
    _await_applied(settings, positions)
    after = {partition: _read_states(settings, partition, mine) for partition, mine in by_partition.items()}
    return [_outcome(line, before[p], after[p]) for p, mine in by_partition.items() for line in mine]


def _send(lines: Iterable[Line], bootstrap: str, settings: Settings) -> Mapping[int, int]:
    with Emitter(settings.kafka.at(bootstrap), settings.emitter, topic=settings.kafka.topic, limits=settings.events) as sender:
        for line in lines:
            sender.emit_line(line.raw, line.session_id)
        if not sender.flush():
            raise CommandError(f"the broker at {bootstrap} did not take every line: {sender.counters()}", Exit.UNAVAILABLE)
        return sender.positions()


def _await_applied(settings: Settings, positions: Mapping[int, int]) -> None:
    until = time.monotonic() + APPLIED_S
    for partition, position in positions.items():
        while (_ask(settings, partition, [])["next_offset"] or 0) < position:
            if time.monotonic() > until:
                raise CommandError(
                    f"the lines were sent, but no worker has applied shard {partition} to offset {position} in {APPLIED_S:g} s",
                    Exit.UNAVAILABLE,
                )
            Signal().wait(POLL_S)


def _read_states(settings: Settings, partition: int, lines: Sequence[Line]) -> dict[str, Any]:
    """Return the state of each line's event_id in the shard."""
    found: dict[str, Any] = {}
    for first in range(0, len(lines), IDS_A_CALL):
        found |= _ask(settings, partition, lines[first : first + IDS_A_CALL])["events"]
    return found


def _ask(settings: Settings, partition: int, lines: Sequence[Line]) -> dict[str, Any]:
    ids, sessions = [line.event_id for line in lines], [line.session_id for line in lines]
    read = partial(dump_event_states, params=EventStatesParams(ids=ids, sessions=sessions))
    asked = with_query("standing", {"ids": json.dumps(ids), "sessions": json.dumps(sessions)})
    answer = ask_shard(settings, partition, asked, read)
    unknown = {name: {"standing": "unknown", "reason": None} for name in ids}
    states: dict[str, Any] = {"next_offset": 0, "events": unknown} if answer is None else json.loads(answer)
    return states


def _outcome(line: Line, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    held = before[line.event_id]["standing"] in ("counted", "waits")
    now = after[line.event_id]
    outcome = "duplicate" if held else now["standing"]
    return {"from": line.origin, "event_id": line.event_id, "outcome": outcome, "reason": None if held else now["reason"]}
