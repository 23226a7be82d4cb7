"""Training rows of the click predictors: the lake's impressions with their clicks, split by session between predictor and judge.

Only mature days are in the lake, so a label does not change after it is read. A judge that was trained on a
session of the predictor would share its errors (G15): the two parts have no session in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import blake2b
from itertools import compress
from typing import TYPE_CHECKING, Literal, Self

from streams.lake.files import Lake
from streams.lake.reader import read_impressions

if TYPE_CHECKING:
    import pyarrow as pa

Part = Literal["predictor", "judge", "all"]
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class ListExamples:
    """Impressions, oldest first: the query, the items shown, which were clicked, the session, and the UTC day since 1970.

    One training row per shown position (G8): `positions` counts them."""

    queries: tuple[str, ...]
    lists: tuple[tuple[str, ...], ...]
    clicks: tuple[tuple[bool, ...], ...]
    sessions: tuple[str, ...]
    days: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def positions(self) -> int:
        return sum(map(len, self.lists))

    @property
    def clicked(self) -> int:
        """Clicked positions."""
        return sum(map(sum, self.clicks))

    def texts(self) -> Iterable[str]:
        """Yield all queries and items, repeats included."""
        yield from self.queries
        for items in self.lists:
            yield from items

    def select(self, kept: Sequence[bool]) -> Self:
        """Return the impressions whose entry in `kept` is true, in order."""
        columns = (self.queries, self.lists, self.clicks, self.sessions, self.days)
        return type(self)(*(tuple(compress(column, kept)) for column in columns))  # type: ignore[arg-type]


def read_examples(lake: Lake, as_of: date, days: int, part: Part) -> ListExamples:
    """Return the impressions with as_of - days <= day < as_of, those of `part`; impressions without items are left out."""
    table = read_impressions(lake, as_of - timedelta(days=days), as_of - timedelta(days=1))
    return take_part(make_examples(table), part)


def make_examples(impressions: pa.Table) -> ListExamples:
    """Turn the lake's rows into examples, ordered by (time, event_id); what was shown keeps its own spelling."""
    if not impressions.num_rows:
        return ListExamples((), (), (), (), ())
    ordered = impressions.sort_by([("ts_us", "ascending"), ("event_id", "ascending")])
    names = ("query", "items", "clicked", "session_id", "ts_us")
    rows = [row for row in zip(*(ordered.column(name).to_pylist() for name in names), strict=True) if row[1]]
    return ListExamples(
        tuple(row[0] for row in rows),
        tuple(tuple(row[1]) for row in rows),
        tuple(tuple(row[2]) for row in rows),
        tuple(row[3] for row in rows),
        tuple(row[4] // DAY_US for row in rows),
    )


def take_part(examples: ListExamples, part: Part) -> ListExamples:
    """Return the half of the sessions that trains the predictor, the other half for the judge, or all."""
    if part == "all":
        return examples
    return examples.select([(draw(session, "part") < 0.5) == (part == "predictor") for session in examples.sessions])


def hold_out(examples: ListExamples, share: float, seed: int) -> tuple[ListExamples, ListExamples]:
    """Return (training, held-out) examples; a session is wholly in one of them, the held-out ones being about `share` of all."""
    out = [draw(session, f"held out {seed}") < share for session in examples.sessions]
    return examples.select([not held for held in out]), examples.select(out)


def draw(session: str, salt: str) -> float:
    """Return a number in [0, 1) that depends on the session and the salt alone: the same on every machine and every day."""
    digest = blake2b(session.encode("utf-8", "surrogatepass"), digest_size=8, key=salt.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64
