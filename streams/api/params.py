"""The parameters of the worker's reads: what each takes, its limits, and one sentence about a wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from streams.events.schema import MAX_ID_CHARS, Reason, normalise, printable

MAX_ROWS = 10_000
MAX_TEXT_CHARS = 4096


class CallError(ValueError):
    """Parameters that cannot be answered; the text names the parameter and what is allowed."""


def _read_day(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError("no day: write YYYY-MM-DD") from None


def _read_partitions(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


Day = Annotated[date, BeforeValidator(_read_day), Field(ge=date(1970, 1, 15), le=date(9999, 12, 31))]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
Limit = Annotated[int, Field(ge=1, le=MAX_ROWS)]
Position = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Call(BaseModel, frozen=True, extra="forbid"):
    """What every read takes. `partial` answers without the partitions that do not; `local` and `partitions` are for workers among
    themselves: the parts of the shards that the asked one holds, not summed."""

    partial: bool = False
    local: bool = False
    partitions: Annotated[frozenset[int], BeforeValidator(_read_partitions)] | None = None


class DatedCall(Call, frozen=True):
    """A read as of a UTC day: the 14 days before it. Without one, the day after the latest event's."""

    as_of: Day | None = None


class WindowsCall(DatedCall, frozen=True):
    """Windows of a query, of an item (a recommended query), or of both; `max_age_s` bounds the age of the smoothing's prior."""

    query: Text | None = None
    item: Text | None = None
    position: Position | None = None
    limit: Limit = 100
    max_age_s: Annotated[float, Field(ge=0, le=3600)] = 60.0


class SuccessorsCall(DatedCall, frozen=True):
    """What users searched after a query."""

    query: Text
    limit: Limit = 100


class QuarantineCall(Call, frozen=True):
    """Numbers by reason, and the newest rows."""

    reason: Reason | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 20


AnyCall = TypeVar("AnyCall", bound=Call)


def read_call(model: type[AnyCall], parameters: Iterable[tuple[str, str]]) -> AnyCall:
    """Return the call that query parameters make. Raises CallError."""
    given: dict[str, str] = {}
    for name, value in parameters:
        if name in given:
            raise CallError(f"{printable(name)}: given more than once")
        given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise CallError("; ".join(_problem(model, dict(one)) for one in error.errors(include_url=False))) from None


def _problem(model: type[Call], error: Mapping[str, object]) -> str:
    place = error["loc"]
    name = printable(str(place[0])) if isinstance(place, tuple) and place else "parameters"
    if error["type"] == "extra_forbidden":
        return f"{name}: no such parameter; there are {', '.join(sorted(model.model_fields))}"
    return f"{name[:MAX_ID_CHARS]}: {error['msg']}"


def normalise_call(text: str | None, name: str) -> str | None:
    """Return a text as counting compares it. Raises CallError for one of white space alone."""
    if text is None:
        return None
    if not (norm := normalise(text)):
        raise CallError(f"{name}: white space alone")
    return norm
