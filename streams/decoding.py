"""Records straight to columns: what `decode_records` and `columns_of` give, for a worker that has millions of events before it.

Runs of lines are decoded at once into bare structs, made from the event types so that they accept the same, and are taken apart
into columns while the processor still has them at hand. Checks run over whole columns. Whatever they doubt, and whatever is not
plain, goes line by line through `streams.decoder`, which alone decides what is refused and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, get_origin, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.columns import Columns, columns_of, event_days
from streams.decoder import decode_record, horizon_us, parse_line
from streams.events import (
    DEFAULT_LIMITS,
    MAX_TS_US,
    SPACE,
    Click,
    Decoded,
    EventSettings,
    Impression,
    Query,
    normalise,
    to_micros,
)
from streams.normalising import normalise_column

CHUNK_BYTES = 65_536
"""Lines that are decoded in one call; few enough that they stay in the processor's cache until they are columns."""

COMPANIONS = ("context", "response")
"""What comes with the impressions of our own server beside the schema's fields, in the order in which `extra` has them."""

Flags = npt.NDArray[np.bool_]


_ABSENT = msgspec.Raw(b"")


def _bare(kind: type[Query] | type[Impression] | type[Click]) -> type[msgspec.Struct]:
    """Return the event type without what is costly: no dict, unseen by the garbage collector, `decoding` left as text."""
    hints = {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if get_origin(hint) is not ClassVar}
    fields: list[Any] = []
    for info in msgspec.structs.fields(kind):
        hint = msgspec.Raw if info.name == "decoding" else hints[info.name]
        default = msgspec.Raw(b"null") if info.name == "decoding" else info.default
        fields.append((info.name, hint) if default is msgspec.NODEFAULT else (info.name, hint, default))
    if kind is Impression:
        fields += [(name, msgspec.Raw, _ABSENT) for name in COMPANIONS]
    tag = kind.__struct_config__.tag
    return msgspec.defstruct(
        f"Bare{kind.__name__}", fields, tag_field="type", tag=tag, kw_only=True, gc=False, forbid_unknown_fields=True
    )


_KINDS = (Query, Impression, Click)
_BARE = tuple(_bare(kind) for kind in _KINDS)
_NAMES = tuple(tuple(kind.__struct_fields__) for kind in _BARE)
_GETTERS = tuple(tuple(map(attrgetter, names)) for names in _NAMES)
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_BARE[0] | _BARE[1] | _BARE[2])
_decoding_decoder = msgspec.json.Decoder(dict[str, Any] | None)
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Lines(NamedTuple):
    """Lines of a few records: their texts without white space around the record, and where each stands in the log."""

    texts: list[bytes]
    offsets: list[int]
    numbers: list[int]


@dataclass(slots=True)
class _Rows:
    """Bare events of one kind: a list for each field, and the number of each one's line among all plain lines."""

    fields: list[list[Any]]
    lines: list[int] = field(default_factory=list)


def decode_columns(
    records: Iterable[tuple[int, bytes | None]], limits: EventSettings = DEFAULT_LIMITS, now: float | None = None
) -> Columns:
    """Decode (offset, value) records; equal to `columns_of(decode_records(...))` but for the order of rows. Thread-safe."""
    reading = _Reading(limits, now)
    few: list[tuple[int, bytes]] = []
    size = 0
    for offset, value in records:
        if value is None:
            reading.give_up(offset, value)
            continue
        few.append((offset, value))
        size += len(value)
        if size >= CHUNK_BYTES:
            reading.read(few)
            few, size = [], 0
    if few:
        reading.read(few)
    return reading.columns()


class _Reading:
    """What has been read so far: plain lines, the fields of their events, and in `rest` what was read by the line decoder."""

    def __init__(self, limits: EventSettings, now: float | None) -> None:
        self._limits = limits
        self._now = now
        self._rows = tuple(_Rows([[] for _ in names]) for names in _NAMES)
        self._plain = _Lines([], [], [])
        self._rest = Decoded()

    def read(self, records: Sequence[tuple[int, bytes]]) -> None:
        """Read a few records at once, or each by itself, or line by line, whichever is the first that can be."""
        lines = _split(records)
        if (events := _decode_at_once(lines, self._limits.max_line_bytes)) is not None:
            self._take(lines, events)
        elif len(records) > 1:
            for record in records:
                self.read([record])
        else:
            self._read_lines(*records[0])

    def give_up(self, offset: int, value: bytes | None) -> None:
        """Let the line decoder have a record."""
        for found in decode_record(value, offset=offset, limits=self._limits, now=self._now).found():
            self._rest.add(found)

    def columns(self) -> Columns:
        """Return everything as columns."""
        tables, doubts = [], []
        places = _places(self._plain)
        for make, rows, names in zip((_queries, _impressions, _clicks), self._rows, _NAMES, strict=True):
            table, doubtful = make(dict(zip(names, rows.fields, strict=True)), self._limits, horizon_us(self._limits, self._now))
            numbers = np.array(rows.lines, np.int64)
            where = places.take(pa.array(numbers))
            table = pa.table([*table.columns, *where.columns], names=[*table.column_names, *where.column_names])
            if doubtful.any():
                doubts += numbers[doubtful].tolist()
                table = table.filter(pa.array(~doubtful))
            tables.append(table)
        for number in doubts:
            self._parse(self._plain.texts[number], self._plain.offsets[number], self._plain.numbers[number])
        rest = columns_of(self._rest)
        if len(rest):
            parts = zip(tables, (rest.queries, rest.impressions, rest.clicks), strict=True)
            tables = [pa.concat_tables([plain, other.select(plain.column_names)]) for plain, other in parts]
        return Columns(tables[0], tables[1], tables[2], rest.rejects)

    def _take(self, lines: _Lines, events: list[Any]) -> None:
        first = len(self._plain.texts)
        self._plain.texts.extend(lines.texts)
        self._plain.offsets.extend(lines.offsets)
        self._plain.numbers.extend(lines.numbers)
        for bare, rows, getters in zip(_BARE, self._rows, _GETTERS, strict=True):
            rows.lines.extend([number for number, event in enumerate(events, first) if type(event) is bare])
            own = [event for event in events if type(event) is bare]
            for values, get in zip(rows.fields, getters, strict=True):
                values.extend(map(get, own))

    def _read_lines(self, offset: int, value: bytes) -> None:
        plain, events = _Lines([], [], []), []
        for number, line in enumerate(value.split(b"\n")):
            if text := line.strip(SPACE):
                event = _decode(text) if len(text) <= self._limits.max_line_bytes else None
                if event is None:
                    self._parse(text, offset, number)
                    continue
                events.append(event)
                plain.texts.append(text)
                plain.offsets.append(offset)
                plain.numbers.append(number)
        self._take(plain, events)

    def _parse(self, text: bytes, offset: int, number: int) -> None:
        self._rest.add(parse_line(text, self._limits, offset=offset, number=number, now=self._now))


def _split(records: Sequence[tuple[int, bytes]]) -> _Lines:
    lines = _Lines([], [], [])
    for offset, value in records:
        text = value.strip(SPACE)
        if not text:
            continue
        texts = text.split(b"\n")
        first = 0 if value.startswith(text[:1]) else value[: len(value) - len(value.lstrip(SPACE))].count(b"\n")
        lines.texts.extend(texts)
        lines.offsets.extend([offset] * len(texts))
        lines.numbers.extend(range(first, first + len(texts)))
    return lines


def _decode_at_once(lines: _Lines, max_line_bytes: int) -> list[Any] | None:
    """Decode lines in one call, or return None where they need a look one by one.

    `decode_lines` lets a value span lines and lets two share one. Neither can pass here: a line break between `}` and `{` is
    never inside a JSON value, so when every break is of that kind, each line holds one value or more, and exactly one when there
    are as many values as lines.
    """
    if max(map(len, lines.texts), default=0) > max_line_bytes:
        return None
    text = b"\n".join(lines.texts)
    if text.count(b"}\n{") != max(len(lines.texts) - 1, 0):
        return None
    try:
        events: list[Any] = _decoder.decode_lines(text)
    except _REFUSED:
        return None
    return events if len(events) == len(lines.texts) else None


def _decode(line: bytes) -> Any:
    try:
        return _decoder.decode(line)
    except _REFUSED:
        return None


def _places(plain: _Lines) -> pa.Table:
    """Return where in the log each plain line stands."""
    columns = {"raw": pa.array(plain.texts, pa.binary()), "log_offset": pa.array(plain.offsets, pa.int64())}
    return pa.table(columns | {"line": pa.array(plain.numbers, pa.int64())})


def _queries(fields: dict[str, list[Any]], limits: EventSettings, horizon: float) -> tuple[pa.Table, Flags]:
    shared, doubtful = _shared(fields, limits, horizon)
    return pa.table(
        shared | {name: pa.array(fields[name], pa.string()) for name in ("session_id", "user_id", "source")}
    ), doubtful


def _impressions(fields: dict[str, list[Any]], limits: EventSettings, horizon: float) -> tuple[pa.Table, Flags]:
    shared, doubtful = _shared(fields, limits, horizon)
    sizes = np.fromiter(map(len, fields["items"]), np.int64, len(fields["items"]))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    items, norms, strange = _texts(list(chain.from_iterable(fields["items"])), limits.max_query_chars)
    offsets = pa.array(starts, pa.int32())
    changed = _any_of(pc.not_equal(items, norms).to_numpy(zero_copy_only=False), starts)
    decoding = list(map(_decoding_text, map(bytes, fields["decoding"])))
    extra, undecided = _extras(fields)
    doubtful |= _any_of(strange, starts) | (sizes > limits.max_items) | np.array([text is None for text in decoding], np.bool_)
    doubtful |= undecided
    names = ("impression_id", "session_id", "user_id", "task", "release")
    columns = shared | {name: pa.array(fields[name], pa.string()) for name in names}
    columns |= {
        "items": pa.ListArray.from_arrays(offsets, items),
        "items_norm": pa.ListArray.from_arrays(offsets, norms, mask=pa.array(~changed)),
        "predicted": pa.array(fields["predicted"], pa.list_(pa.float64())),
        "logprob": pa.array(fields["logprob"], pa.float64()),
        "decoding": pa.array([text or None for text in decoding], pa.string()),
        "extra": extra,
    }
    return pa.table(columns), doubtful


def _extras(fields: dict[str, list[Any]]) -> tuple[pa.Array, Flags]:
    """Return the companions of impressions as JSON objects, null where there are none, and which are not UTF-8."""
    undecided = np.zeros(len(fields["items"]), np.bool_)
    if all(fields[name].count(_ABSENT) == len(undecided) for name in COMPANIONS):
        return pa.nulls(len(undecided), pa.string()), undecided
    rows = zip(*(map(bytes, fields[name]) for name in COMPANIONS), strict=True)
    texts: list[str | None] = []
    for row, values in enumerate(rows):
        parts = [b'"%s":%s' % (name.encode(), value) for name, value in zip(COMPANIONS, values, strict=True) if value]
        try:
            texts.append((b"{" + b",".join(parts) + b"}").decode() if parts else None)
        except UnicodeDecodeError:
            texts.append(None)
            undecided[row] = True
    return pa.array(texts, pa.string()), undecided


def _clicks(fields: dict[str, list[Any]], limits: EventSettings, horizon: float) -> tuple[pa.Table, Flags]:
    shared, doubtful = _shared(fields, limits, horizon)
    columns = {
        "impression_id": pa.array(fields["impression_id"], pa.string()),
        "position": pa.array(fields["position"], pa.int64()),
    }
    items = pa.array(fields["item"], pa.string())
    norms = [None if item is None else normalise(item) for item in fields["item"]]
    doubtful |= pc.fill_null(pc.greater(pc.binary_length(items), limits.max_query_chars), False).to_numpy(zero_copy_only=False)
    kept = {name: shared[name] for name in ("ts_us", "day", "event_id")}
    return pa.table(kept | columns | {"item_norm": pa.array(norms, pa.string())}), doubtful


def _shared(fields: dict[str, list[Any]], limits: EventSettings, horizon: float) -> tuple[dict[str, pa.Array], Flags]:
    """Return the columns that all events have, and which rows need a look at the line."""
    micros, doubtful = _micros(fields["ts"])
    query, query_norm, strange = _texts(fields["query"], limits.max_query_chars)
    ts_us = pa.array(micros)
    event_id = pa.array(fields["event_id"], pa.string())
    columns = {"ts_us": ts_us, "day": event_days(ts_us), "event_id": event_id, "query": query, "query_norm": query_norm}
    return columns, doubtful | strange | (micros > horizon)


def _micros(ts: list[float | datetime]) -> tuple[npt.NDArray[np.int64], Flags]:
    """Return microseconds since the epoch, and which of them are none (0 there)."""
    try:
        rounded = np.rint(np.array(ts, np.float64) * 1_000_000)
    except TypeError:
        exact = [to_micros(moment) if isinstance(moment, datetime) else None for moment in ts]
        micros, outside = _micros([0.0 if isinstance(moment, datetime) else moment for moment in ts])
        for row, us in enumerate(exact):
            if us is not None:
                outside[row] = not 0 <= us < MAX_TS_US
                micros[row] = 0 if outside[row] else us
        return micros, outside
    outside = ~((rounded >= 0) & (rounded < MAX_TS_US))
    return np.where(outside, 0, rounded).astype(np.int64), outside


def _texts(texts: list[str], limit: int) -> tuple[pa.Array, pa.Array, Flags]:
    """Return texts, their normal forms, and which may be too long or only white space."""
    column = pa.array(texts, pa.string())
    norms = normalise_column(column)
    lengths, left = pc.binary_length(column).to_numpy(), pc.binary_length(norms).to_numpy()
    return column, norms, (lengths > limit) | (left == 0)


def _any_of(flags: Flags, starts: npt.NDArray[np.int64]) -> Flags:
    """Say of each list whether one of its elements is flagged; no list is empty."""
    return np.logical_or.reduceat(flags, starts[:-1]) if len(flags) else np.zeros(0, np.bool_)


@lru_cache(maxsize=4096)
def _decoding_text(raw: bytes) -> str | None:
    """Return an object's JSON as it is stored, "" for null, None for what is neither."""
    try:
        value = _decoding_decoder.decode(raw)
    except _REFUSED:
        return None
    return "" if value is None else msgspec.json.encode(value).decode()
