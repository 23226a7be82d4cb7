"""The lines of one partition's log as rows of a recount, in log order.

Every line goes through the strict line decoder; its row has its place in the log and the shard's time there: the latest time
among the lines so far, each with the earlier of its own time and its record's. Decided here is only what the line and its place
decide: malformed, invalid, too large, future, too old.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import duckdb
import pyarrow as pa

from queryloop.verify.normal_form import normal_form
from streams.events.erasures import NO_TOMBSTONES, Tombstones, read_owner
from streams.events.line_decoder import parse_line
from streams.events.rules import CountingRules
from streams.events.schema import Click, EventSettings, Impression, Query, Reason, Reject, strip_line

ROWS_A_CHUNK = 50_000
CLOCK_SKEW_US = 60_000_000
"""How far a worker's clock may be behind the clock that gave a record its time."""

SCHEMAS = {
    "queries": pa.schema(
        [
            ("seq", pa.int64()),
            ("before_us", pa.int64()),
            ("after_us", pa.int64()),
            ("ts_us", pa.int64()),
            ("event_id", pa.string()),
            ("session_id", pa.string()),
            ("user_id", pa.string()),
            ("query", pa.string()),
            ("by_user", pa.bool_()),
        ]
    ),
    "impressions": pa.schema(
        [
            ("seq", pa.int64()),
            ("before_us", pa.int64()),
            ("after_us", pa.int64()),
            ("ts_us", pa.int64()),
            ("event_id", pa.string()),
            ("session_id", pa.string()),
            ("user_id", pa.string()),
            ("impression_id", pa.string()),
            ("query", pa.string()),
            ("items", pa.list_(pa.string())),
        ]
    ),
    "clicks": pa.schema(
        [
            ("seq", pa.int64()),
            ("before_us", pa.int64()),
            ("after_us", pa.int64()),
            ("ts_us", pa.int64()),
            ("event_id", pa.string()),
            ("impression_id", pa.string()),
            ("position", pa.int64()),
            ("item", pa.string()),
        ]
    ),
    "refused": pa.schema(
        [
            ("seq", pa.int64()),
            ("before_us", pa.int64()),
            ("reason", pa.string()),
            ("event_id", pa.string()),
            ("known_by", pa.binary()),
        ]
    ),
}
"""Rows by outcome. `seq` is the line's number in the log, `before_us` and `after_us` are the shard's time around it. Event
and impression ids are those of `in_session`, texts are normalised."""

TYPES = {"int64": "BIGINT", "string": "VARCHAR", "bool": "BOOLEAN", "binary": "BLOB", "list<item: string>": "VARCHAR[]"}
TABLES = "\n".join(
    f"CREATE TABLE {name} ({', '.join(f'{one.name} {TYPES[str(one.type)]}' for one in schema)});"
    for name, schema in SCHEMAS.items()
)

LogRecord = tuple[int, int | None, bytes | None]
"""Offset, time of the record in microseconds (None where it has none), value."""


@dataclass(slots=True)
class Arrivals:
    """Fills the tables of `TABLES` in `con`.

    Lines of erased sessions and users, by `tombstones`, count nothing.
    `future` are the event_ids that the worker refused as future, `now_us` is the time now. After `load`, `lines` is the number of
    lines and `latest_us` the shard's time, None where there was no event.
    """

    con: duckdb.DuckDBPyConnection
    rules: CountingRules
    limits: EventSettings
    now_us: int
    future: frozenset[str] = frozenset()
    forgotten_us: int = 0
    tombstones: Tombstones = NO_TOMBSTONES
    lines: int = 0
    latest_us: int | None = None
    _rows: dict[str, list[tuple[Any, ...]]] = field(default_factory=lambda: {name: [] for name in SCHEMAS})

    def load(self, records: Iterable[LogRecord]) -> None:
        """Add a row for every line of the records."""
        flushed = self.lines
        for offset, moment_us, value in records:
            if value is None:
                self._refuse(Reject(Reason.MALFORMED, "", b"", None, None, offset, 0), Reason.MALFORMED)
            for line in (value or b"").split(b"\n"):
                if stripped := strip_line(line):
                    self._add_line(parse_line(stripped, self.limits), moment_us)
            if self.lines - flushed >= ROWS_A_CHUNK:
                flushed = self.lines
                self._flush()
        self._flush()

    def _add_line(self, found: Query | Impression | Click | Reject, moment_us: int | None) -> None:
        erased = bool(self.tombstones) and self.tombstones.cover(read_owner(found.raw))
        if isinstance(found, Reject):
            self._refuse(found, found.reason, erased)
            return
        ts_us = found.ts_us
        if self._is_future(found.event_id, ts_us, moment_us):
            self._refuse(found, Reason.FUTURE_EVENT, erased)
            return
        before = self.latest_us or 0
        if self.rules.retention_us and ts_us < before - self.rules.retention_us:
            self._refuse(found, Reason.TOO_OLD, erased)
            return
        recorded_us = ts_us if moment_us is None or not self.rules.record_times else moment_us
        self.latest_us = max(before, min(ts_us, recorded_us))
        seq, self.lines = self.lines, self.lines + 1
        if erased:
            return
        row: tuple[Any, ...] = (seq, before, self.latest_us, ts_us, in_session(found.session_id, found.event_id))
        whose = found.session_id, found.user_id or None
        if isinstance(found, Query):
            self._rows["queries"].append((*row, *whose, normal_form(found.query), found.source == "user"))
        elif isinstance(found, Impression):
            items = [normal_form(item) for item in found.items]
            shown = in_session(found.session_id, found.impression_id)
            self._rows["impressions"].append((*row, *whose, shown, normal_form(found.query), items))
        else:
            item = None if found.item is None else normal_form(found.item)
            self._rows["clicks"].append((*row, in_session(found.session_id, found.impression_id), found.position, item))

    def _is_future(self, event_id: str, ts_us: int, moment_us: int | None) -> bool:
        """Whether the worker refused the event as future by its clock, which the log does not show.

        It may have, where the event is ahead of the record's own time: then the shard's quarantine decides, and the record's time
        where the shard may have expired that row.
        """
        tolerance = self.rules.future_tolerance_us
        if moment_us is not None and ts_us <= moment_us + tolerance - CLOCK_SKEW_US:
            return False
        if ts_us > self.now_us + tolerance or event_id in self.future:
            return True
        return moment_us is not None and ts_us > moment_us + tolerance and (self.latest_us or 0) < self.forgotten_us

    def _refuse(self, found: Query | Impression | Click | Reject, reason: Reason, erased: bool = False) -> None:
        """Add a refused line; one of an erased session or user is only a line."""
        seq, self.lines = self.lines, self.lines + 1
        if erased:
            return
        event_id = None if found.event_id is None else in_session(found.session_id, found.event_id)
        known_by = blake2b(found.raw if event_id is None else event_id.encode(), digest_size=16).digest()
        self._rows["refused"].append((seq, self.latest_us or 0, str(reason), event_id, known_by))

    def _flush(self) -> None:
        for name, rows in self._rows.items():
            if rows:
                columns = [pa.array(values, one.type) for values, one in zip(zip(*rows, strict=True), SCHEMAS[name], strict=True)]
                self.con.register("chunk", pa.Table.from_arrays(columns, schema=SCHEMAS[name]))
                self.con.execute(f"INSERT INTO {name} FROM chunk")
                self.con.unregister("chunk")
                rows.clear()


def in_session(session_id: str, name: str) -> str:
    """Return one text for an id in its session: what another session calls the same is something else."""
    return f"{len(session_id)}:{session_id}{name}"
