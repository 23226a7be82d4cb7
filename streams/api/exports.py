"""Exports: all live counts of every shard in one read, as one Arrow or Parquet stream.

A window may have millions of cells, so no part is ever whole in memory: each shard's part goes to a temporary file, other
workers' parts arrive as streams, DuckDB sums them within a bounded memory, on disk where that is too little, and the sums are
sent batch by batch.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from streams.api.endpoints import find_as_of
from streams.api.fan_out import FanOut, PartitionsMissing
from streams.api.params import DatedParams
from streams.api.reads import window_days

BATCH_ROWS = 32_768
MEMORY_LIMIT = "256MB"
COMPRESSION = pa.ipc.IpcWriteOptions(compression="zstd")

WINDOWS = """
SELECT query_norm AS query, item_norm AS item, position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM window_cells WHERE day >= $first AND day < $as_of
GROUP BY ALL HAVING sum(impressions) <> 0
"""
SUM_WINDOWS = """
SELECT query, item, position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks,
    sum(clicks) / sum(impressions) AS raw_ctr
FROM parts GROUP BY query, item, position
"""
SUCCESSORS = """
SELECT query, next_query, sum(count)::BIGINT AS count
FROM cooccurrence_deltas WHERE day >= $first AND day < $as_of
GROUP BY ALL HAVING sum(count) <> 0
"""
SUM_SUCCESSORS = "SELECT query, next_query, sum(count)::BIGINT AS count FROM parts GROUP BY ALL HAVING sum(count) <> 0"


@dataclass(frozen=True, slots=True)
class Export:
    """One table: the name of its route, the query of a shard's part, and the query that sums the table `parts`."""

    name: str
    part: str
    total: str


EXPORTS = (Export("windows", WINDOWS, SUM_WINDOWS), Export("successors", SUCCESSORS, SUM_SUCCESSORS))


@dataclass(frozen=True, slots=True)
class Format:
    """One form of an export: its content type, and what makes a writer of record batches to a file."""

    content_type: str
    writer: Callable[[Any, pa.Schema], Any]


FORMATS = {
    "arrow": Format("application/vnd.apache.arrow.stream", partial(pa.ipc.new_stream, options=COMPRESSION)),
    "parquet": Format("application/vnd.apache.parquet", partial(pq.ParquetWriter, compression="zstd")),
}


@dataclass(frozen=True, slots=True)
class OpenExport:
    """The partitions that are in an export, those that are missing, and its bytes; call `next` on a thread."""

    partitions: list[int]
    missing: list[int]
    chunks: Iterator[bytes]


@asynccontextmanager
async def open_export(fan_out: FanOut, export: Export, form: Format, params: DatedParams) -> AsyncIterator[OpenExport]:
    """Yield an export of all shards; with `params.local` of the shards held here, not summed.

    Raises PartitionsMissing, also with `params.partial` if no shard answers, and ReadersBusy.
    """
    if params.as_of is None:
        params = params.model_copy(update={"as_of": await find_as_of(fan_out, params.partial)})
    wanted = params.partitions or fan_out.partitions
    async with AsyncExitStack() as stack:
        folder = await asyncio.to_thread(_make_folder, fan_out)
        stack.push_async_callback(asyncio.to_thread, shutil.rmtree, folder, ignore_errors=True)
        files = await _collect_parts(fan_out, export, params, wanted, folder)
        found = frozenset[int]().union(*files.values())
        if (wanted - found and not (params.partial or params.local)) or not files:
            raise PartitionsMissing(wanted - found)
        chunks = _sum_parts(files, "SELECT * FROM parts" if params.local else export.total, folder, form.writer)
        stack.push_async_callback(asyncio.to_thread, chunks.close)
        yield OpenExport(sorted(found), sorted(wanted - found), chunks)


def discard_exports(fan_out: FanOut) -> None:
    """Delete the files of exports that a kill of this worker left."""
    shutil.rmtree(_parent_folder(fan_out), ignore_errors=True)


def _parent_folder(fan_out: FanOut) -> Path:
    return fan_out.shards.data_dir / "run" / "exports" / fan_out.name


def _make_folder(fan_out: FanOut) -> Path:
    parent = _parent_folder(fan_out)
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=parent))


async def _collect_parts(
    fan_out: FanOut, export: Export, params: DatedParams, wanted: frozenset[int], folder: Path
) -> dict[Path, frozenset[int]]:
    """Write the shards' parts to files of the folder; return the files, and the partitions in each."""
    assert params.as_of is not None
    read = partial(_write_part, sql=export.part, days=window_days(params.as_of), folder=folder)
    held = await fan_out.shards.export_readers.read(wanted, read)
    files = {path: frozenset([partition]) for partition, path in held.items()}
    if (others := wanted - held.keys()) and not params.local:
        files |= await fan_out.peers.download(f"/v1/{export.name}.arrow", {"as_of": params.as_of.isoformat()}, others, folder)
    return files


def _write_part(con: duckdb.DuckDBPyConnection, sql: str, days: dict[str, Any], folder: Path) -> Path:
    """Write one shard's part as an Arrow stream to a new file of the folder."""
    batches = con.sql(sql, params=days).to_arrow_reader(BATCH_ROWS)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        with pa.ipc.new_stream(file, batches.schema, options=COMPRESSION) as stream:
            for batch in batches:
                stream.write_batch(batch)
        return Path(file.name)


def _sum_parts(files: Iterable[Path], total: str, folder: Path, writer: Callable[..., Any]) -> Generator[bytes, None, None]:
    """Yield the bytes of the summed parts. DuckDB's memory is bounded; what does not fit goes to the folder."""
    config: dict[str, Any] = {"memory_limit": MEMORY_LIMIT, "temp_directory": str(folder / "spill"), "threads": 1}
    with duckdb.connect(str(folder / "sums.duckdb"), config=config) as con:
        for number, path in enumerate(files):
            with path.open("rb") as file, pa.ipc.open_stream(file) as part:
                con.register("part", part)
                con.sql("INSERT INTO parts SELECT * FROM part" if number else "CREATE TABLE parts AS SELECT * FROM part")
                con.unregister("part")
        yield from _write_batches(con.sql(total).to_arrow_reader(BATCH_ROWS), writer)


def _write_batches(batches: pa.RecordBatchReader, writer: Callable[..., Any]) -> Iterator[bytes]:
    """Yield what a writer writes of each batch, and its end."""
    sink = _Sink()
    with writer(pa.PythonFile(sink, "w"), batches.schema) as open_writer:
        for batch in batches:
            open_writer.write_batch(batch)
            yield sink.take()
    yield sink.take()


class _Sink:
    """A file to write whose content is taken away from time to time; Arrow keeps count of the position."""

    closed = False

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: Any) -> int:
        self._chunks.append(bytes(data))
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> bytes:
        taken, self._chunks = b"".join(self._chunks), []
        return taken
