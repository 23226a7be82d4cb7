"""The mapping file: which column of a foreign CSV or TSV log is which field of an event.

A TOML file with the sections [file], [time], [fields], [query], [impression], [click] and [extra]; docs/testing.md explains each
key by example. Everything wrong with it is said in one error, before a row is read.
"""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, ValidationError, model_validator

from streams.events.schema import KNOWN
from streams.importers.sources import LogFileError

TIME_FORMATS = ("rfc3339", "epoch_s", "epoch_ms")
SPAN_ROWS = 10_000

Name = Annotated[StrictStr, Field(min_length=1)]
Column = Name | Annotated[StrictInt, Field(ge=1)]
"""A column by its name in the header, or by its number from 1."""


class MappingError(LogFileError):
    """A mapping file that cannot be used; the text names file, key and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def _require_one(self, *names: str) -> None:
        given = [name for name in names if getattr(self, name) is not None and getattr(self, name) is not False]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(names)}, and has {', '.join(given) or 'none'}")


def _as_column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str | int) and not isinstance(value, bool) else value


class Value(_Section):
    """One text of a row: a column, a constant, or the row itself (an id that no other row has)."""

    column: Column | None = None
    value: StrictStr | None = None
    row: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._require_one("column", "value", "row")
        return self


class Items(_Section):
    """A list of a row: one column split at a delimiter or written in JSON, or several columns."""

    column: Column | None = None
    columns: tuple[Column, ...] | None = Field(default=None, min_length=1)
    split: StrictStr | None = Field(default=None, min_length=1)
    json_list: bool = Field(default=False, alias="json")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._require_one("column", "columns")
        if self.columns is not None and (self.split or self.json_list):
            raise ValueError("split and json go with one column")
        if self.split and self.json_list:
            raise ValueError("takes split or json, not both")
        return self


class Position(_Section):
    """A column of whole numbers; `first` is the number of the first position."""

    column: Column
    first: StrictInt | None = None


class Condition(_Section):
    """Which rows: those whose column is one of these texts, or is not empty."""

    column: Column
    texts: tuple[StrictStr, ...] | None = Field(default=None, alias="is", min_length=1)
    filled: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._require_one("texts", "filled")
        return self


class Clicked(_Section):
    """What of a list was clicked, told by the impression's own row (or, of grouped rows, by each item's row)."""

    positions: Column | None = None
    items: Column | None = None
    flags: tuple[Column, ...] | None = Field(default=None, min_length=1)
    flag: Column | None = None
    split: StrictStr | None = Field(default=None, min_length=1)
    json_list: bool = Field(default=False, alias="json")
    first: StrictInt = 0
    time: Column | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._require_one("positions", "items", "flags", "flag")
        return self


AnyValue = Annotated[Value, BeforeValidator(_as_column)]
AnyItems = Annotated[Items, BeforeValidator(_as_column)]
AnyPosition = Annotated[Position, BeforeValidator(_as_column)]


class FileShape(_Section):
    """How the table is written (section `file`)."""

    delimiter: StrictStr = Field(default=",", min_length=1, max_length=1)
    quote: StrictStr = Field(default='"', max_length=1)
    encoding: StrictStr = "utf-8"
    header: bool = True
    columns: tuple[Name, ...] | None = Field(default=None, min_length=1)
    null: tuple[StrictStr, ...] = ("",)
    ignore: Condition | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding {self.encoding!r} is not known: utf-8, latin-1, cp1252, utf-16 and so on") from None
        if self.header and self.columns is not None:
            raise ValueError("columns names those of a file without a header: set header = false")
        return self


class Times(_Section):
    """When a row happened (section `time`)."""

    column: Column | None = None
    value: StrictStr | None = None
    format: StrictStr = "rfc3339"
    zone: StrictStr = "UTC"

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._require_one("column", "value")
        if self.format not in TIME_FORMATS and "%" not in self.format:
            raise ValueError(
                f"format {self.format!r} is none of {', '.join(TIME_FORMATS)} and no pattern such as %Y-%m-%d %H:%M:%S"
            )
        try:
            ZoneInfo(self.zone)
        except (OSError, ValueError, LookupError):
            raise ValueError(f"zone {self.zone!r} is not known: UTC, Europe/Berlin and so on") from None
        return self


class Fields(_Section):
    """What every event has (section `fields`); a type's own section may say otherwise."""

    session_id: AnyValue | None = None
    user_id: AnyValue | None = None
    query: AnyValue | None = None


class EventSection(Fields):
    """What all types may say: which rows, from what columns the event id is made, fields of their own."""

    when: Condition | None = None
    id: tuple[Column, ...] | None = Field(default=None, min_length=1)
    event_id: AnyValue | None = None


class QuerySection(EventSection):
    """Rows that are searches."""

    source: AnyValue | None = None


class ImpressionSection(EventSection):
    """Rows that are lists that were shown, or with `group` the items of such lists."""

    items: AnyItems
    impression_id: AnyValue | None = None
    task: AnyValue | None = None
    release: AnyValue | None = None
    clicked: Clicked | None = None
    group: bool = False
    order: AnyPosition | None = None
    span: int = Field(default=SPAN_ROWS, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.group and self.impression_id is None:
            raise ValueError("group needs impression_id: the rows of one impression are known by it")
        if self.group and self.items.column is None:
            raise ValueError("group needs one items column: each row holds one item")
        if not self.group and self.order is not None:
            raise ValueError("order goes with group = true")
        if not self.group and self.items.column is not None and not (self.items.split or self.items.json_list):
            raise ValueError("items in one column need split or json = true, or group = true where a row holds one item")
        if self.clicked is not None and (self.clicked.flag is not None) != self.group:
            raise ValueError("clicked.flag goes with group = true; without it use positions, items or flags")
        return self


class ClickSection(EventSection):
    """Rows that are clicks."""

    impression_id: AnyValue
    position: AnyPosition
    item: AnyValue | None = None


class Mapping(_Section):
    """A whole mapping file."""

    file: FileShape = Field(default_factory=FileShape)
    time: Times
    fields: Fields = Field(default_factory=Fields)
    query: QuerySection | None = None
    impression: ImpressionSection | None = None
    click: ClickSection | None = None
    extra: dict[str, Column] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        made = [name for name in ("query", "impression", "click") if getattr(self, name) is not None]
        if not made:
            raise ValueError("makes no event: add [query], [impression] or [click]")
        for name in made:
            for field in ("session_id", "query"):
                if getattr(getattr(self, name), field) is None and getattr(self.fields, field) is None:
                    raise ValueError(f"fields.{field} is missing: every event has it (or say it in [{name}])")
        if taken := sorted(self.extra.keys() & frozenset().union(*KNOWN.values())):
            raise ValueError(f"extra.{taken[0]} is a field of the schema: it belongs into another section")
        return self


def read_mapping(path: Path) -> Mapping:
    """Return the mapping that a TOML file holds. Raises MappingError with one line for each thing that is wrong."""
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"{path}: not valid TOML: {error}") from error
    try:
        return Mapping.model_validate(written)
    except ValidationError as error:
        found = dict.fromkeys(_problem(dict(one)) for one in error.errors(include_url=False))
        raise MappingError("\n".join(f"{path}: {line}" for line in found)) from None


def _problem(error: dict[str, Any]) -> str:
    """One line: the key as it stands in the file, and what is allowed there."""
    # pydantic names the members of a union, which the file does not hold.
    parts = [part for part in error["loc"] if part not in ("constrained-str", "constrained-int")]
    place = ".".join(map(str, parts))
    if error["type"] == "extra_forbidden":
        return f"unknown key {place}; allowed are {', '.join(_keys(parts[:-1]))}"
    if error["type"] == "missing":
        return f"{place} is missing"
    if len(parts) < len(error["loc"]):
        return f"{place} = {error['input']!r}: a column is its name in the header, or its number from 1"
    if error["type"] == "model_type":
        return f"{place} = {error['input']!r}: a column, or a table of {', '.join(_keys(parts))}"
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{place}: {text}" if place else text


def _keys(parts: list[Any]) -> list[str]:
    """The keys that a section of the file may have."""
    model: Any = Mapping
    for part in parts:
        field = model.model_fields.get(part) or next(f for f in model.model_fields.values() if f.alias == part)
        model = _model_of(field.annotation)
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_of(annotation: Any) -> Any:
    inner = getattr(annotation, "__args__", ())
    return next((_model_of(part) for part in inner if part is not type(None)), annotation)
