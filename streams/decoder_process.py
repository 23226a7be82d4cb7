"""`python -m streams.decoder_process`: decodes batches of records beside a worker, which shares no interpreter lock with it.

Frames come on standard input and go to standard output, eight bytes of length before each: first the limits as JSON, answered by
an empty frame, then records, answered by their columns. It ends when its input does.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import IO

import msgspec
import pyarrow as pa

from streams.columns import Columns
from streams.decoding import decode_columns
from streams.events import EventSettings, Reject
from streams.without_pandas import do_without_pandas

Records = Sequence[tuple[int, bytes | None]]

_records_decoder = msgspec.msgpack.Decoder(list[tuple[int, bytes | None]])
_rejects_decoder = msgspec.msgpack.Decoder(list[Reject])


def write_frame(pipe: IO[bytes], *parts: bytes | pa.Buffer) -> None:
    """Write a frame made of parts."""
    pipe.write(sum(map(len, parts)).to_bytes(8, "little"))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes:
    """Read a frame. Raises EOFError where the other side has ended."""
    size = int.from_bytes(_read(pipe, 8), "little")
    return _read(pipe, size)


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError(f"{size} bytes were to come, {len(data)} came")
    return data


def pack_records(records: Records) -> bytes:
    """Return (offset, value) records as one message."""
    return msgspec.msgpack.encode(records)


def pack_columns(columns: Columns) -> list[bytes | pa.Buffer]:
    """Return columns as parts of one frame: the tables as Arrow streams, their size before them, then the rejects."""
    sink = pa.BufferOutputStream()
    for table in (columns.queries, columns.impressions, columns.clicks):
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    tables = sink.getvalue()
    return [len(tables).to_bytes(8, "little"), tables, msgspec.msgpack.encode(columns.rejects)]


def unpack_columns(frame: bytes) -> Columns:
    """Return what `pack_columns` packed; the tables are views of the frame."""
    end = 8 + int.from_bytes(frame[:8], "little")
    reader = pa.BufferReader(pa.py_buffer(frame).slice(8, end - 8))
    queries, impressions, clicks = (pa.ipc.open_stream(reader).read_all() for _ in range(3))
    return Columns(queries, impressions, clicks, _rejects_decoder.decode(memoryview(frame)[end:]))


def main() -> None:
    """Answer frames until there are no more."""
    do_without_pandas()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    limits = EventSettings.model_validate_json(read_frame(requests))
    gc.disable()  # decoded objects die by their reference counts; there is nothing else to collect
    write_frame(answers)
    while True:
        try:
            records = _records_decoder.decode(read_frame(requests))
        except EOFError:
            return
        write_frame(answers, *pack_columns(decode_columns(records, limits)))


if __name__ == "__main__":
    main()
