"""The erasure of a session or a user from one shard over a worker's HTTP; the id is in the body, never in an address."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streams.api.params import ParameterError
from streams.counting.erasure import Erased
from streams.events.erasures import Subject
from streams.events.schema import MAX_ID_CHARS, MAX_TS_US


class ErasureRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom to erase from a shard, up to which event time (microseconds); with `dry_run` the rows are only counted."""

    kind: Literal["session", "user"]
    id: Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
    until_us: Annotated[int, Meta(ge=0, le=MAX_TS_US)] = MAX_TS_US
    dry_run: bool = False

    @property
    def subject(self) -> Subject:
        """The session or the user."""
        return Subject(self.kind, self.id, self.until_us)


def describe_erased(erased: Erased) -> dict[str, Any]:
    """Return what was erased from a shard as JSON values: rows by table, and the days that changed."""
    return {"rows": dict(sorted(erased.rows.items())), "days": [day.isoformat() for day in sorted(erased.change.days)]}


def parse_erasure(body: bytes) -> ErasureRequest:
    """Return the body of a request. Raises ParameterError, which does not repeat the id."""
    try:
        return msgspec.json.decode(body, type=ErasureRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ParameterError(f"body: {error}") from None
