"""Impressions whose items are several rows: the rows of one id are gathered, in bounded memory, until it is complete."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from streams.importers.tables import Row, RowError

REMEMBERED = 100_000
"""Ids of complete impressions that are remembered, so that a row that comes too late is said and not lost."""


@dataclass(slots=True)
class Group:
    """The rows of one impression so far."""

    id: str
    rows: list[Row] = field(default_factory=list)


class Groups:
    """Open impressions, the one with the oldest last row first."""

    def __init__(self, span: int) -> None:
        self._span = span
        self._open: OrderedDict[str, Group] = OrderedDict()
        self._closed: OrderedDict[str, None] = OrderedDict()

    def add(self, group_id: str, row: Row) -> None:
        """Take a row to its group. Raises RowError when the group is complete, or has as many rows as one may have."""
        if group_id in self._closed:
            raise RowError(
                f"impression {group_id!r} was complete {self._span} rows after its last row: "
                "sort the file by it, or raise impression.span"
            )
        group = self._open.setdefault(group_id, Group(group_id))
        if len(group.rows) >= self._span:
            raise RowError(f"impression {group_id!r} has more than impression.span = {self._span} rows")
        group.rows.append(row)
        self._open.move_to_end(group_id)

    def ripe(self, number: int) -> list[Group]:
        """Take out the groups whose last row lies more than the span before row `number`."""
        done = []
        while self._open and next(iter(self._open.values())).rows[-1].number + self._span < number:
            done.append(self._close())
        return done

    def rest(self) -> list[Group]:
        """Take out all groups, at the end of the file."""
        return [self._close() for _ in range(len(self._open))]

    def _close(self) -> Group:
        group_id, group = self._open.popitem(last=False)
        self._closed[group_id] = None
        if len(self._closed) > REMEMBERED:
            self._closed.popitem(last=False)
        return group


def order_rows(rows: list[Row], ranks: list[int], exact: bool) -> list[Row]:
    """Return rows by rank. Raises RowError for a rank twice and, where they must be exact, for one that is missing."""
    ordered = sorted(zip(ranks, rows, strict=True), key=lambda pair: (pair[0], pair[1].number))
    numbers = [rank for rank, _ in ordered]
    if len(set(numbers)) < len(numbers):
        raise RowError(f"order: a rank comes twice among {len(numbers)} rows")
    if exact and numbers != list(range(len(numbers))):
        raise RowError("order: the ranks do not run from order.first without a gap; leave order.first out where that is meant")
    return [row for _, row in ordered]
