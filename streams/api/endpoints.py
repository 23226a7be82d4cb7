"""The worker's read endpoints: each sums the parts of all shards and computes rates from the sums.

Each read has a function that reads the parts of the shards held here, and one that makes the answer from the parts of all shards.
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
from streams.api.click_rates import Prior, compute_coec, pack_cells, sum_rows, window_row
from streams.api.fan_out import FanOut, Parts, describe_totals
from streams.api.params import (
    DatedParams,
    ParameterError,
    QuarantineParams,
    ReadParams,
    SuccessorsParams,
    WindowsParams,
    normalise_param,
)

Answer = dict[str, Any]
Partitions = frozenset[int]


@dataclass(frozen=True, slots=True)
class Read:
    """One read endpoint: its path, its parameters, how to read local shards' parts, how to make the answer from all parts."""

    path: str
    params: type[ReadParams]
    parts: Callable[[FanOut, Any, Partitions], Awaitable[dict[int, Any]]]
    answer: Callable[[FanOut, Any, Parts], Awaitable[Answer]]


async def answer_read(fan_out: FanOut, read: Read, params: ReadParams) -> Answer:
    """Return the answer of a read over all shards; with `params.local` this worker's parts alone.

    Raises PartitionsMissing, ParameterError, TooManyRows, PeerError, ReadersBusy.
    """
    if params.local:
        return {"worker": fan_out.name, "parts": await read.parts(fan_out, params, params.partitions or fan_out.partitions)}
    if isinstance(params, DatedParams) and params.as_of is None:
        params = params.model_copy(update={"as_of": await find_as_of(fan_out, params.partial)})
    parts = await gather_parts(fan_out, read, params)
    answer = await read.answer(fan_out, params, parts)
    return {**answer, "partitions": sorted(parts.found), "missing": parts.missing}


async def gather_parts(fan_out: FanOut, read: Read, params: ReadParams) -> Parts:
    """Return every shard's part of a read. Raises PartitionsMissing unless `params.partial`."""
    parameters = params.model_dump(mode="json", exclude={"partial", "local", "partitions"}, exclude_none=True)

    async def read_held(partitions: Partitions) -> dict[int, Any]:
        return await read.parts(fan_out, params, partitions)

    return await fan_out.gather(read.path, parameters, read_held, params.partial)


async def find_as_of(fan_out: FanOut, partial: bool) -> date:
    """Return the day after that of the latest event in any shard, so that its counts show; without events, tomorrow."""
    lags = await gather_parts(fan_out, LAG, ReadParams(partial=partial))
    latest = [part["latest_ts"] for part in lags.values() if part["latest_ts"] is not None]
    return datetime.fromtimestamp(max(latest, default=fan_out.clock()), UTC).date() + timedelta(days=1)


async def _window_parts(fan_out: FanOut, params: WindowsParams, partitions: Partitions) -> dict[int, Any]:
    query, item = normalise_param(params.query, "query"), normalise_param(params.item, "item")
    if query is None and item is None:
        raise ParameterError("query or item: one of them is needed")
    as_of = params.as_of or await find_as_of(fan_out, True)
    return await fan_out.shards.readers.read(partitions, lambda con: reads.read_cells(con, as_of, query, item))


async def _answer_windows(fan_out: FanOut, params: WindowsParams, parts: Parts) -> Answer:
    assert params.as_of is not None
    cells, positions = sum_rows(part["cells"] for part in parts.values()), sum_rows(p["positions"] for p in parts.values())
    prior, age_s = await _find_prior(fan_out, params, {position for _, _, position in cells})
    coec = compute_coec(cells, positions)
    wanted = [(cell, sums) for cell, sums in cells.items() if params.position in (None, cell[2])]
    wanted.sort(key=lambda one: (-one[1][0], one[0]))
    return {
        "as_of": params.as_of.isoformat(),
        "prior_age_s": round(age_s, 3),
        "left_out": _describe_left_out(fan_out, parts),
        "total": len(wanted),
        "rows": [window_row(cell, sums, prior, coec) for cell, sums in wanted[: params.limit]],
    }


def _describe_left_out(fan_out: FanOut, parts: Parts) -> Answer:
    """Return what the caps (0: off) leave out of the windows that were asked for, at every position of theirs."""
    rules, pairs = fan_out.shards.rules, [part["left_out"] for part in parts.values()]
    sums = {"impressions": sum(pair[0] for pair in pairs), "clicks": sum(pair[1] for pair in pairs)}
    return {**sums, "session_cap": rules.session_cap, "user_cap": rules.user_cap}


async def _find_prior(fan_out: FanOut, params: WindowsParams, positions: set[int]) -> tuple[Prior, float]:
    assert params.as_of is not None
    async with fan_out.prior_lock:
        prior = fan_out.priors.find(params.as_of, params.max_age_s, positions)
        if prior is None:
            parts = await gather_parts(fan_out, CELLS, DatedParams(as_of=params.as_of, partial=params.partial))
            prior = await asyncio.to_thread(fan_out.priors.compute, parts.values())
            if not parts.missing:
                fan_out.priors.keep(params.as_of, prior)
    return prior, fan_out.priors.age(prior)


async def _cell_parts(fan_out: FanOut, params: DatedParams, partitions: Partitions) -> dict[int, Any]:
    as_of = params.as_of or await find_as_of(fan_out, True)
    return await fan_out.shards.readers.read(partitions, lambda con: pack_cells(reads.read_keyed_cells(con, as_of)))


async def _answer_cells(fan_out: FanOut, params: DatedParams, parts: Parts) -> Answer:
    raise ParameterError("local: cells are read by workers among themselves")


async def _successor_parts(fan_out: FanOut, params: SuccessorsParams, partitions: Partitions) -> dict[int, Any]:
    query, as_of = normalise_param(params.query, "query"), params.as_of or await find_as_of(fan_out, True)
    assert query is not None
    return await fan_out.shards.readers.read(partitions, lambda con: reads.read_successors(con, as_of, query))


async def _answer_successors(fan_out: FanOut, params: SuccessorsParams, parts: Parts) -> Answer:
    assert params.as_of is not None
    counts: Counter[str] = Counter()
    for part in parts.values():
        counts.update(dict(part))
    followed = {query: count for query, count in counts.items() if count}
    total = sum(followed.values())
    ordered = sorted(followed.items(), key=lambda pair: (-pair[1], pair[0]))
    rows = [{"next_query": query, "count": count, "share": count / total} for query, count in ordered[: params.limit]]
    query = normalise_param(params.query, "query")
    return {"as_of": params.as_of.isoformat(), "query": query, "followed": total, "total": len(ordered), "rows": rows}


async def _lag_parts(fan_out: FanOut, params: ReadParams, partitions: Partitions) -> dict[int, Any]:
    return fan_out.lag_parts(partitions)


async def _answer_lag(fan_out: FanOut, params: ReadParams, parts: Parts) -> Answer:
    found = parts.values()
    return {
        "records": _sum_or_none(part["records"] for part in found),
        "events": _sum_or_none(part["events"] for part in found),
        "open_transaction_records": _sum_or_none(part["open_transaction_records"] for part in found),
        "seconds": _max_or_none(part["seconds"] for part in found),
        "event_time_seconds": min((part["event_time_seconds"] for part in found if part["latest_ts"] is not None), default=None),
        "shards": {str(partition): part for partition, part in sorted(parts.found.items())},
    }


def _sum_or_none(values: Any) -> int | None:
    """Return the sum, None if it is unknown of one shard."""
    known = list(values)
    return None if None in known else sum(known)


def _max_or_none(values: Any) -> float | None:
    known = list(values)
    return None if None in known else max(known, default=0.0)


async def _state_parts(fan_out: FanOut, params: ReadParams, partitions: Partitions) -> dict[int, Any]:
    tables = await fan_out.shards.readers.read(partitions, reads.read_tables)
    return {partition: {**fan_out.describe_file(partition), **part} for partition, part in tables.items()}


async def _answer_state(fan_out: FanOut, params: ReadParams, parts: Parts) -> Answer:
    rows: Counter[str] = Counter()
    for part in parts.values():
        rows.update(part["rows"])
    return {
        "file_bytes": sum(part["file_bytes"] + part["wal_bytes"] for part in parts.values()),
        "rows": dict(sorted(rows.items())),
        "memory_bytes": {part["worker"]: part["memory_bytes"] for part in parts.values()},
        "shards": {str(partition): part for partition, part in sorted(parts.found.items())},
    }


async def _quarantine_parts(fan_out: FanOut, params: QuarantineParams, partitions: Partitions) -> dict[int, Any]:
    rows = await fan_out.shards.readers.read(partitions, lambda con: reads.read_quarantine(con, params.reason, params.limit))
    totals = fan_out.shards.totals()
    return {number: {"counts": totals[number].quarantined, "rows": found} for number, found in rows.items() if number in totals}


async def _answer_quarantine(fan_out: FanOut, params: QuarantineParams, parts: Parts) -> Answer:
    counts: Counter[str] = Counter()
    rows = []
    for partition, part in sorted(parts.found.items()):
        counts.update(part["counts"])
        rows += [{"partition": partition, **row} for row in part["rows"]]
    rows.sort(key=lambda row: (row["arrived_us"] or 0, row["id"]), reverse=True)
    wanted = {reason: number for reason, number in sorted(counts.items()) if params.reason in (None, reason)}
    shown = [{key: value for key, value in row.items() if key not in ("arrived_us", "id")} for row in rows[: params.limit]]
    return {"total": sum(wanted.values()), "counts": wanted, "rows": shown}


async def _delay_parts(fan_out: FanOut, params: ReadParams, partitions: Partitions) -> dict[int, Any]:
    return await fan_out.shards.readers.read(partitions, click_delays.read_delays)


async def _answer_delays(fan_out: FanOut, params: ReadParams, parts: Parts) -> Answer:
    return click_delays.describe_delays(click_delays.sum_delays(parts.values()))


async def _metric_parts(fan_out: FanOut, params: ReadParams, partitions: Partitions) -> dict[int, Any]:
    def read(con: duckdb.DuckDBPyConnection) -> dict[str, Any]:
        return {"state": reads.read_tables(con), "delays": click_delays.read_delays(con)}

    found = await fan_out.shards.readers.read(partitions, read)
    lags, totals, worker = fan_out.lag_parts(partitions), fan_out.shards.totals(), fan_out.describe_worker()
    return {
        number: {
            "worker": worker,
            "status": describe_totals(number, totals[number]),
            "lag": lags[number],
            "state": {**fan_out.describe_file(number), **part["state"]},
            "delays": part["delays"],
            "upkeep": fan_out.shards.maintenance_totals(number),
        }
        for number, part in found.items()
        if number in totals and number in lags
    }


async def _answer_metrics(fan_out: FanOut, params: ReadParams, parts: Parts) -> Answer:
    return {"shards": {str(partition): part for partition, part in sorted(parts.found.items())}}


LAG = Read("/v1/lag", ReadParams, _lag_parts, _answer_lag)
CELLS = Read("/v1/cells", DatedParams, _cell_parts, _answer_cells)
METRICS = Read("/v1/metrics", ReadParams, _metric_parts, _answer_metrics)
READS = (
    LAG,
    CELLS,
    METRICS,
    Read("/v1/windows", WindowsParams, _window_parts, _answer_windows),
    Read("/v1/successors", SuccessorsParams, _successor_parts, _answer_successors),
    Read("/v1/state", ReadParams, _state_parts, _answer_state),
    Read("/v1/quarantine", QuarantineParams, _quarantine_parts, _answer_quarantine),
    Read("/v1/delays", ReadParams, _delay_parts, _answer_delays),
)
