"""The query parameters of the worker's reads: their types and limits, and a clear error for each wrong one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from streams.events.normal_form import normalise
from streams.events.schema import MAX_ID_CHARS, Reason, printable
from streams.runtime.validation_errors import explain_error

MAX_ROWS = 10_000
MAX_TEXT_CHARS = 4096


class ParameterError(ValueError):
    """Query parameters that are wrong; the text names each one and what is allowed."""


def _read_day(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError("not a day: write YYYY-MM-DD") from None


def _read_partitions(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


Day = Annotated[date, BeforeValidator(_read_day), Field(ge=date(1970, 1, 15), le=date(9999, 12, 31))]
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARS)]
Limit = Annotated[int, Field(ge=1, le=MAX_ROWS)]
Position = Annotated[int, Field(ge=0, le=2**31 - 1)]


class ReadParams(BaseModel, frozen=True, extra="forbid"):
    """Parameters of every read. With `partial` it answers without the partitions that no worker answers for.

    `local` and `partitions` are for reads between workers: the answer is the parts of the shards held there, not their sum.
    """

    partial: bool = False
    local: bool = False
    partitions: Annotated[frozenset[int], BeforeValidator(_read_partitions)] | None = None


class DatedParams(ReadParams, frozen=True):
    """Parameters of a read over the 14 UTC days before `as_of`; by default the day after that of the latest event."""

    as_of: Day | None = None


class WindowsParams(DatedParams, frozen=True):
    """Windows of a query, of an item (a recommended query), or of both; the smoothing's prior is at most `max_age_s` old."""

    query: Text | None = None
    item: Text | None = None
    position: Position | None = None
    limit: Limit = 100
    max_age_s: Annotated[float, Field(ge=0, le=3600)] = 60.0


class SuccessorsParams(DatedParams, frozen=True):
    """Queries that users made next after a query."""

    query: Text
    limit: Limit = 100


class QuarantineParams(ReadParams, frozen=True):
    """Quarantine: totals by reason, and the newest rows."""

    reason: Reason | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 20


AnyParams = TypeVar("AnyParams", bound=BaseModel)


def parse_params(model: type[AnyParams], parameters: Iterable[tuple[str, str]]) -> AnyParams:
    """Return the query parameters of a request as a model. Raises ParameterError."""
    given: dict[str, str] = {}
    for name, value in parameters:
        if name in given:
            raise ParameterError(f"{printable(name)}: given more than once")
        given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ParameterError("; ".join(_problem(model, dict(one)) for one in error.errors(include_url=False))) from None


def _problem(model: type[BaseModel], error: Mapping[str, object]) -> str:
    path = error["loc"]
    name = printable(str(path[0])) if isinstance(path, tuple) and path else "parameters"
    if error["type"] == "extra_forbidden":
        return f"{name}: no such parameter; there are {', '.join(sorted(model.model_fields))}"
    return f"{name[:MAX_ID_CHARS]}: {explain_error(error, model)}"


def normalise_param(text: str | None, name: str) -> str | None:
    """Return a text in normal form, in which counting compares texts. Raises ParameterError when nothing can be seen in it."""
    if text is None:
        return None
    if not (norm := normalise(text)):
        raise ParameterError(f"{name}: only white space or invisible characters")
    return norm
