"""Logs for the tests of streams: lines as a product would write them, real logs, and strategies for difficult logs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from streams.counting import retention, rollups
from streams.events.batch_decoder import decode_columns
from streams.store import compaction
from streams.store.shard import Applied, Shard

DATA = Path(__file__).parents[3] / "shared" / "data"
START = 1_600_000_000.0
"""2020-09-13 12:26:40 UTC, where generated logs begin."""
NOW = START + 400 * 86_400
HOUR = 3600.0


def real_log(name: str) -> list[bytes]:
    """The lines of a log in ../shared/data, a folder beside the checkout."""
    with gzip.open(DATA / name) as lines:
        return lines.read().splitlines()


def line(kind: str, event_id: str, ts: float | str, session_id: str = "s", **fields: Any) -> bytes:
    """One event as JSON."""
    event = {"type": kind, "event_id": event_id, "ts": ts, "session_id": session_id, "query": "q", **fields}
    return json.dumps(event, ensure_ascii=False).encode()


def query(event_id: str, ts: float | str, text: str = "q", **fields: Any) -> bytes:
    """A query."""
    return line("query", event_id, ts, **{"query": text, **fields})


def impression(
    event_id: str, ts: float | str, impression_id: str = "i", items: Sequence[str] = ("a", "b"), **fields: Any
) -> bytes:
    """An impression."""
    return line("impression", event_id, ts, **{"impression_id": impression_id, "items": list(items), **fields})


def click(event_id: str, ts: float | str, impression_id: str = "i", position: int = 0, **fields: Any) -> bytes:
    """A click."""
    return line("click", event_id, ts, **{"impression_id": impression_id, "position": position, **fields})


def roll_up_all(shard: Shard) -> None:
    """Sum the windows of every day into one row for each cell, as compaction does; apply nothing to the shard after that."""
    with shard.reader() as con:
        for one in rollups.read_rollups(con):
            compaction.compact_slice(con, compaction.WINDOWS, compaction.Slice(one, None, None))


def read(shard: Shard, sql: str) -> pa.Table:
    """What a query over a shard's tables gives, once all that was applied is written."""
    shard.write()
    with shard.reader() as con:
        return con.sql(sql).to_arrow_table()


def dirty_days(shard: Shard) -> list[date]:
    """The days whose data changed since they were exported, or that never were."""
    shard.write()
    with shard.reader() as con:
        return retention.read_dirty(con)


def feed(
    shard: Shard,
    lines: Sequence[bytes],
    batch: int = 10_000,
    start: int = 0,
    now: float = NOW,
    topic_id: str = "t",
    write: bool = True,
) -> list[Applied]:
    """Apply lines, one record a line, in batches; offsets begin at `start`."""
    applied = []
    for low in range(0, len(lines), batch):
        records = [(start + low + number, value) for number, value in enumerate(lines[low : low + batch])]
        applied.append(
            shard.apply(
                decode_columns(records, now=now),
                topic_id=topic_id,
                first_offset=records[0][0],
                next_offset=records[-1][0] + 1,
                now=now,
                write=write,
            )
        )
    return applied


def rows(table: Any) -> list[tuple[Any, ...]]:
    """An Arrow table's rows."""
    return list(zip(*table.to_pydict().values(), strict=True))


def day(ts: float) -> date:
    """The UTC day of a time in seconds."""
    return datetime.fromtimestamp(ts, UTC).date()


TEXTS = st.sampled_from(
    ["Red Shoes", "red  shoes", "ｒｅｄ shoes", "straße", "STRASSE", "blue", "ﬁne hat", "fine hat", "x\u0000y", "e\u0301", "é"]
)
NAMES = st.sampled_from("abcdefgh")
SECONDS = st.one_of(
    st.sampled_from([0.0, 1.0, 1800.0, 1800.000001, 86_400.0, 86_400.5, 172_800.0]),
    st.integers(0, 20 * 86_400 * 10).map(lambda tenths: tenths / 10),
    st.integers(0, 7200).map(float),
)


@st.composite
def difficult_logs(draw: st.DrawFn) -> list[bytes]:
    """Logs whose ids, times and texts collide: several impressions of one id, early, late and orphan clicks, ties, bad lines."""
    drawn = [draw(_events(number)) for number in range(draw(st.integers(1, 24)))]
    return [value for value in drawn if value]


@st.composite
def _events(draw: st.DrawFn, number: int) -> bytes:
    ts, event_id = START + draw(SECONDS), f"e{number}"
    session = {"session_id": draw(st.sampled_from(["s", "t"])), "query": draw(TEXTS)}
    match draw(st.sampled_from(["query", "query", "impression", "click", "click", "bad"])):
        case "query":
            return line("query", event_id, ts, **session, source=draw(st.sampled_from(["user", "user", "recommendation"])))
        case "impression":
            items = draw(st.lists(TEXTS, min_size=1, max_size=3))
            return line("impression", event_id, ts, **session, impression_id=draw(NAMES), items=items)
        case "click":
            item = draw(st.one_of(st.none(), TEXTS))
            return line("click", event_id, ts, **session, impression_id=draw(NAMES), position=draw(st.integers(0, 3)), item=item)
        case _:
            return draw(st.sampled_from([b"{", b"\xff\xfe junk", f'{{"type":"click","event_id":"{event_id}"}}'.encode()]))


@st.composite
def repaired_logs(draw: st.DrawFn) -> list[bytes]:
    """Difficult logs in which some events have several versions with one id: without a field, at another position or time."""
    log = draw(difficult_logs())
    versions = []
    for value in log:
        event = json.loads(value) if value.startswith(b'{"type"') else {}
        if "ts" not in event or draw(st.integers(0, 2)):
            continue
        match draw(st.sampled_from(["broken", "moved", "later"])):
            case "broken":
                versions.append(json.dumps({name: value for name, value in event.items() if name != "query"}).encode())
            case "moved" if event["type"] == "click":
                versions.append(json.dumps(event | {"position": draw(st.integers(0, 3)), "item": None}).encode())
            case _ if event["type"] == "click":
                versions.append(json.dumps(event | {"ts": START + draw(SECONDS)}).encode())
    return draw(st.permutations(log + versions))
