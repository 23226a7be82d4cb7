"""The answers of the worker's reads: the parts of all shards, summed, and the rates that follow from the sums.

Each read has a function for the parts of the shards held here and one that makes the answer of all parts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb

from streams.api import click_delays, reads
from streams.api.click_rates import Prior, find_coec, pack_cells, sum_rows, window_row
from streams.api.fan_out import LiveReads, Parts, describe_account
from streams.api.params import Call, CallError, DatedCall, QuarantineCall, SuccessorsCall, WindowsCall, normalise_call

Answer = dict[str, Any]
Partitions = frozenset[int]


@dataclass(frozen=True, slots=True)
class Read:
    """One read: where it is asked, what it takes, how a worker's own parts are read, and what all parts say."""

    path: str
    call: type[Call]
    parts: Callable[[LiveReads, Any, Partitions], Awaitable[dict[int, Any]]]
    answer: Callable[[LiveReads, Any, Parts], Awaitable[Answer]]


async def answer_call(live: LiveReads, read: Read, call: Call) -> Answer:
    """Answer a call; its `local` form with this worker's parts alone.

    Raises PartitionsMissing, CallError, TooManyRows, PeerError, ReadersBusy.
    """
    if call.local:
        return {"worker": live.name, "parts": await read.parts(live, call, call.partitions or live.all)}
    if isinstance(call, DatedCall) and call.as_of is None:
        call = call.model_copy(update={"as_of": await _find_as_of(live, call.partial)})
    parts = await gather_parts(live, read, call)
    answer = await read.answer(live, call, parts)
    return {**answer, "partitions": sorted(parts.found), "missing": parts.missing}


async def gather_parts(live: LiveReads, read: Read, call: Call) -> Parts:
    """Every shard's part of a call. Raises PartitionsMissing unless the call is `partial`."""
    parameters = call.model_dump(mode="json", exclude={"partial", "local", "partitions"}, exclude_none=True)

    async def read_held(partitions: Partitions) -> dict[int, Any]:
        return await read.parts(live, call, partitions)

    return await live.gather(read.path, parameters, read_held, call.partial)


async def _find_as_of(live: LiveReads, partial: bool) -> date:
    """The day after the latest event's in any shard, so that its counts show; without events the day after the clock's."""
    lags = await gather_parts(live, LAG, Call(partial=partial))
    latest = [part["latest_ts"] for part in lags.values() if part["latest_ts"] is not None]
    return datetime.fromtimestamp(max(latest, default=live.clock()), UTC).date() + timedelta(days=1)


async def _window_parts(live: LiveReads, call: WindowsCall, partitions: Partitions) -> dict[int, Any]:
    query, item = normalise_call(call.query, "query"), normalise_call(call.item, "item")
    if query is None and item is None:
        raise CallError("query or item: one of them is needed")
    as_of = call.as_of or await _find_as_of(live, True)
    return await live.shards.readers.read(partitions, lambda con: reads.read_cells(con, as_of, query, item))


async def _answer_windows(live: LiveReads, call: WindowsCall, parts: Parts) -> Answer:
    assert call.as_of is not None
    cells, positions = sum_rows(part["cells"] for part in parts.values()), sum_rows(p["positions"] for p in parts.values())
    prior, age_s = await _find_prior(live, call, {position for _, _, position in cells})
    coec = find_coec(cells, positions)
    wanted = [(cell, sums) for cell, sums in cells.items() if call.position in (None, cell[2])]
    wanted.sort(key=lambda one: (-one[1][0], one[0]))
    return {
        "as_of": call.as_of.isoformat(),
        "prior_age_s": round(age_s, 3),
        "total": len(wanted),
        "rows": [window_row(cell, sums, prior, coec) for cell, sums in wanted[: call.limit]],
    }


async def _find_prior(live: LiveReads, call: WindowsCall, positions: set[int]) -> tuple[Prior, float]:
    assert call.as_of is not None
    async with live.prior_lock:
        prior = live.priors.find(call.as_of, call.max_age_s, positions)
        if prior is None:
            parts = await gather_parts(live, CELLS, DatedCall(as_of=call.as_of, partial=call.partial))
            prior = await asyncio.to_thread(live.priors.compute, parts.values())
            if not parts.missing:
                live.priors.keep(call.as_of, prior)
    return prior, live.priors.age(prior)


async def _cell_parts(live: LiveReads, call: DatedCall, partitions: Partitions) -> dict[int, Any]:
    as_of = call.as_of or await _find_as_of(live, True)
    return await live.shards.readers.read(partitions, lambda con: pack_cells(reads.read_keyed_cells(con, as_of)))


async def _answer_cells(live: LiveReads, call: DatedCall, parts: Parts) -> Answer:
    raise CallError("local: cells are read by workers among themselves")


async def _successor_parts(live: LiveReads, call: SuccessorsCall, partitions: Partitions) -> dict[int, Any]:
    query, as_of = normalise_call(call.query, "query"), call.as_of or await _find_as_of(live, True)
    assert query is not None
    return await live.shards.readers.read(partitions, lambda con: reads.read_successors(con, as_of, query))


async def _answer_successors(live: LiveReads, call: SuccessorsCall, parts: Parts) -> Answer:
    assert call.as_of is not None
    counts: Counter[str] = Counter()
    for part in parts.values():
        counts.update(dict(part))
    followed = {query: count for query, count in counts.items() if count}
    total = sum(followed.values())
    ordered = sorted(followed.items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [{"next_query": query, "count": count, "share": count / total} for query, count in ordered[: call.limit]]
    query = normalise_call(call.query, "query")
    return {"as_of": call.as_of.isoformat(), "query": query, "followed": total, "total": len(ordered), "rows": rows}


async def _lag_parts(live: LiveReads, call: Call, partitions: Partitions) -> dict[int, Any]:
    return live.lag_parts(partitions)


async def _answer_lag(live: LiveReads, call: Call, parts: Parts) -> Answer:
    found = parts.values()
    return {
        "records": _total(part["records"] for part in found),
        "events": _total(part["events"] for part in found),
        "seconds": _longest(part["seconds"] for part in found),
        "event_time_seconds": min((part["event_time_seconds"] for part in found if part["latest_ts"] is not None), default=None),
        "shards": {str(partition): part for partition, part in sorted(parts.found.items())},
    }


def _total(values: Any) -> int | None:
    """The sum, null where one of the shards does not know its own."""
    known = list(values)
    return None if None in known else sum(known)


def _longest(values: Any) -> float | None:
    known = list(values)
    return None if None in known else max(known, default=0.0)


async def _state_parts(live: LiveReads, call: Call, partitions: Partitions) -> dict[int, Any]:
    tables = await live.shards.readers.read(partitions, reads.read_tables)
    return {partition: {**live.describe_file(partition), **part} for partition, part in tables.items()}


async def _answer_state(live: LiveReads, call: Call, parts: Parts) -> Answer:
    rows: Counter[str] = Counter()
    for part in parts.values():
        rows.update(part["rows"])
    return {
        "file_bytes": sum(part["file_bytes"] + part["wal_bytes"] for part in parts.values()),
        "rows": dict(sorted(rows.items())),
        "memory_bytes": {part["worker"]: part["memory_bytes"] for part in parts.values()},
        "shards": {str(partition): part for partition, part in sorted(parts.found.items())},
    }


async def _quarantine_parts(live: LiveReads, call: QuarantineCall, partitions: Partitions) -> dict[int, Any]:
    rows = await live.shards.readers.read(partitions, lambda con: reads.read_quarantine(con, call.reason, call.limit))
    totals = live.shards.totals()
    return {number: {"counts": totals[number].quarantined, "rows": found} for number, found in rows.items() if number in totals}


async def _answer_quarantine(live: LiveReads, call: QuarantineCall, parts: Parts) -> Answer:
    counts: Counter[str] = Counter()
    rows = []
    for partition, part in sorted(parts.found.items()):
        counts.update(part["counts"])
        rows += [{"partition": partition, **row} for row in part["rows"]]
    rows.sort(key=lambda row: (row["arrived_us"] or 0, row["id"]), reverse=True)
    wanted = {reason: number for reason, number in sorted(counts.items()) if call.reason in (None, reason)}
    shown = [{key: value for key, value in row.items() if key not in ("arrived_us", "id")} for row in rows[: call.limit]]
    return {"total": sum(wanted.values()), "counts": wanted, "rows": shown}


async def _delay_parts(live: LiveReads, call: Call, partitions: Partitions) -> dict[int, Any]:
    return await live.shards.readers.read(partitions, click_delays.read_delays)


async def _answer_delays(live: LiveReads, call: Call, parts: Parts) -> Answer:
    return click_delays.describe_delays(click_delays.sum_delays(parts.values()))


async def _metric_parts(live: LiveReads, call: Call, partitions: Partitions) -> dict[int, Any]:
    def read(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
        return {"state": reads.read_tables(con), "delays": click_delays.read_delays(con)}

    found = await live.shards.readers.read(partitions, read)
    lags, totals, worker = live.lag_parts(partitions), live.shards.totals(), live.describe_worker()
    return {
        number: {
            "worker": worker,
            "status": describe_account(number, totals[number]),
            "lag": lags[number],
            "state": {**live.describe_file(number), **part["state"]},
            "delays": part["delays"],
            "upkeep": live.shards.upkeep(number),
        }
        for number, part in found.items()
        if number in totals and number in lags
    }


async def _answer_metrics(live: LiveReads, call: Call, parts: Parts) -> Answer:
    return {"shards": {str(partition): part for partition, part in sorted(parts.found.items())}}


LAG = Read("/v1/lag", Call, _lag_parts, _answer_lag)
CELLS = Read("/v1/cells", DatedCall, _cell_parts, _answer_cells)
METRICS = Read("/v1/metrics", Call, _metric_parts, _answer_metrics)
READS = (
    LAG,
    CELLS,
    METRICS,
    Read("/v1/windows", WindowsCall, _window_parts, _answer_windows),
    Read("/v1/successors", SuccessorsCall, _successor_parts, _answer_successors),
    Read("/v1/state", Call, _state_parts, _answer_state),
    Read("/v1/quarantine", QuarantineCall, _quarantine_parts, _answer_quarantine),
    Read("/v1/delays", Call, _delay_parts, _answer_delays),
)
