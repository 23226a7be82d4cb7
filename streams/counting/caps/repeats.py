"""Repeats: an estimate in memory of how often a session or a user has had each query of a day, so that few caps are computed.

Nearly no session repeats a query up to the cap. So each day has an array of counters, and a list or a query adds one to that
of its hash. A counter may be too high, when two hashes share it, and never too low: only the queries of a day for which one is
over the cap are watched, and only watched ones are computed exactly, in `streams.counting.caps.left_out`, when the batches are
written.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting.batch import Batch
from streams.counting.caps import left_out
from streams.counting.caps.left_out import DayQuery
from streams.counting.connection import ShardConnection
from streams.counting.key_index import KeyArray, hash_texts, to_session_keys
from streams.events.columns import to_event_days
from streams.events.line_spans import Flags, Int64s
from streams.events.rules import DAY_US, CountingRules

Counters = npt.NDArray[np.uint32]

MIN_WIDTH, MAX_WIDTH = 13, 20
"""Bits of a hash that choose its counter: 32 KiB for a day that begins, 4 MiB for one with a million rows or more."""
ROWS_A_COUNTER = 0.5
"""Rows for each counter, up to which an array is not enlarged: one in 10^8 counters is then 10 too high by chance."""
GROWTH = 3
"""Bits by which a day's width grows."""
CLEAR_CAP = 16
"""Caps from which an array is enlarged in memory, which costs nearly nothing. Its counters are then 1.6 too high in the mean, and
one in 10^11 is 16 too high. For a lower cap too many queries would be watched: the day is read again."""
MAX_DAYS = 16
"""Days kept, those used last; the counters of others are read from the file when a late event needs them."""

OWNED = ["session_key", "query_key", "user_id", "query_norm", "ts_us"]
"""The columns of a list or a query that are needed here (`streams.counting.deduplication.add_keys`)."""
HASHES = {
    table: f"""
SELECT hash(session_id) AS session, hash(nullif(user_id, '')) AS user, user_id <> '' AS has_user, hash(query_norm) AS query
FROM {table} WHERE day = $day{chosen}
"""
    for table, chosen in {"impressions": "", "queries": " AND source = 'user'"}.items()
}


@dataclass(slots=True)
class _Day:
    """One day: its counters by session and by user, the number of rows in them, and the watched queries."""

    width: int
    rows: int = 0
    sessions: Counters = field(default_factory=lambda: np.zeros(0, np.uint32))
    users: Counters = field(default_factory=lambda: np.zeros(0, np.uint32))
    watched: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.sessions, self.users = np.zeros(2**self.width, np.uint32), np.zeros(2**self.width, np.uint32)

    @property
    def is_full(self) -> bool:
        return self.width < MAX_WIDTH and self.rows > ROWS_A_COUNTER * 2**self.width

    def enlarge(self) -> None:
        """Give every value of a longer prefix the counter of the shorter one: none becomes too low."""
        times = 2 ** (min(self.width + GROWTH, MAX_WIDTH) - self.width)
        self.sessions, self.users = np.repeat(self.sessions, times), np.repeat(self.users, times)
        self.width = min(self.width + GROWTH, MAX_WIDTH)

    def add(self, hashes: Hashes, rules: CountingRules) -> Flags:
        """Count rows, and return for each whether its session or its user may have its query more often than the cap."""
        self.rows += len(hashes.query)
        over = np.zeros(len(hashes.query), np.bool_)
        if rules.session_cap:
            over |= _count(self.sessions, self.width, hashes.session, hashes.query) > rules.session_cap
        if rules.user_cap:
            over |= (_count(self.users, self.width, hashes.user, hashes.query) > rules.user_cap) & hashes.has_user
        return over


@dataclass(frozen=True, slots=True)
class Hashes:
    """Of rows the keys of their sessions, the hashes of their users (anything where `has_user` is false) and of their queries."""

    session: KeyArray
    user: KeyArray
    has_user: Flags
    query: KeyArray

    def take(self, rows: Int64s) -> Hashes:
        """Return the hashes of some rows."""
        return Hashes(self.session[rows], self.user[rows], self.has_user[rows], self.query[rows])


@dataclass(slots=True)
class Repeats:
    """The days of one table (`impressions` or `queries`), and which of its queries are to be computed anew (`touched`)."""

    table: str
    touched: set[DayQuery] = field(default_factory=set)
    _days: OrderedDict[date, _Day] = field(default_factory=OrderedDict)

    def add(self, connection: ShardConnection, rows: pa.Table, rules: CountingRules) -> None:
        """Count the new rows of a batch (OWNED); watch and touch what may be over a cap."""
        if not len(rows):
            return
        hashes = hash_rows(connection, rows, rules)
        numbers = rows["ts_us"].to_numpy() // DAY_US
        for number in np.unique(numbers).tolist():
            chosen = (numbers == number).nonzero()[0]
            day = to_event_days(np.array([number * DAY_US])).to_pylist()[0]
            found = self._find(connection, day, rules, enlarge=True)
            if (over := found.add(hashes.take(chosen), rules)).any():
                queries = set(rows["query_norm"].take(pa.array(chosen[over])).to_pylist())
                found.watched |= queries
                self.touched |= {(day, query) for query in queries}

    def touch(self, connection: ShardConnection, changed: pa.Table, query: str, rules: CountingRules) -> None:
        """Touch the watched ones among changed counts, which have a column `day` and one named `query`.

        Call this, and `touch_all`, when the rows of the batch are stored: a day may be read from the shard here.
        """
        if not len(changed) or not rules.has_caps:
            return
        for day in changed["day"].unique().to_pylist():
            if watched := self._find(connection, day, rules).watched:
                of_day = changed[query].filter(pc.equal(changed["day"], pa.scalar(day, pa.date32())))
                self.touched |= {(day, text) for text in watched.intersection(of_day.to_pylist())}

    def touch_all(self, connection: ShardConnection, changed: Iterable[DayQuery], rules: CountingRules) -> None:
        """Touch the watched ones among these queries."""
        if rules.has_caps:
            self.touched |= {one for one in changed if one[1] in self._find(connection, one[0], rules).watched}

    def _find(self, connection: ShardConnection, day: date, rules: CountingRules, enlarge: bool = False) -> _Day:
        """Return a day, read from the shard with all deferred writes where it is not in memory or is to be enlarged."""
        found = self._days.get(day)
        is_full = enlarge and found is not None and found.is_full
        if found is not None and is_full and is_clear(rules):
            found.enlarge()
        elif found is None or is_full:
            found = self._days[day] = self._load(connection, day, rules, found)
            if len(self._days) > MAX_DAYS:
                self._days.popitem(last=False)
        self._days.move_to_end(day)
        return found

    def _load(self, connection: ShardConnection, day: date, rules: CountingRules, before: _Day | None) -> _Day:
        rows = connection.execute(HASHES[self.table], {"day": day}).fetchnumpy()
        session, user, query = (np.asarray(rows[name], np.uint64) for name in ("session", "user", "query"))
        has_user = np.ma.filled(np.ma.asarray(rows["has_user"], np.bool_), False)
        width = int(np.ceil(np.log2(max(1.0, 4 * len(query) / ROWS_A_COUNTER))))
        found = _Day(min(max(width, MIN_WIDTH), MAX_WIDTH))
        found.add(Hashes(to_session_keys(session), user, has_user, query), rules)
        if before is not None:
            found.watched = before.watched
        else:
            found.watched = left_out.find_often(connection, self.table, day, rules) | left_out.find_left_out(
                connection, self.table, day
            )
        return found


@dataclass(slots=True)
class CapState:
    """What a shard keeps in memory for its caps. It outlives a failed batch: nothing is forgotten before it is written."""

    lists: Repeats = field(default_factory=lambda: Repeats("impressions"))
    pairs: Repeats = field(default_factory=lambda: Repeats("queries"))

    def add(self, connection: ShardConnection, fresh: Batch, rules: CountingRules) -> None:
        """Count the lists and the user's queries of a batch, before they are stored."""
        if not rules.has_caps:
            return
        queries = fresh.queries.select([*OWNED, "source"])
        self.lists.add(connection, fresh.impressions.select(OWNED), rules)
        self.pairs.add(connection, queries.filter(pc.equal(queries["source"], "user")), rules)

    def touch(self, lists: set[DayQuery], pairs: set[DayQuery]) -> None:
        """Compute these queries anew with the next write, watched or not."""
        self.lists.touched |= lists
        self.pairs.touched |= pairs

    def leave_out(self, connection: ShardConnection, rules: CountingRules) -> bool:
        """Compute what is touched anew, in the transaction that writes the batches; return whether anything was.

        Call `clear` when the transaction is committed.
        """
        if not self.lists.touched and not self.pairs.touched:
            return False
        left_out.leave_out_lists(connection, self.lists.touched, rules)
        left_out.leave_out_pairs(connection, self.pairs.touched, rules)
        return True

    def clear(self) -> None:
        """Forget what was touched, because it is written."""
        self.lists.touched.clear()
        self.pairs.touched.clear()


def is_clear(rules: CountingRules) -> bool:
    """Return whether no cap is so low that the counters of an array enlarged in memory would reach it by chance."""
    return all(cap >= CLEAR_CAP for cap in (rules.session_cap, rules.user_cap) if cap)


def hash_rows(connection: ShardConnection, rows: pa.Table, rules: CountingRules) -> Hashes:
    """Return the keys and hashes of rows (OWNED), equal to those of a table's rows in `_load`; of users only for their cap."""
    session, query = rows["session_key"].to_numpy(), rows["query_key"].to_numpy()
    if not rules.user_cap:
        return Hashes(session, session, np.zeros(len(rows), np.bool_), query)
    users = pc.fill_null(rows["user_id"], "")
    (user,) = hash_texts(connection, [users])
    return Hashes(session, user, pc.not_equal(users, "").to_numpy(), query)


def _count(counters: Counters, width: int, of: KeyArray, query: KeyArray) -> Counters:
    """Add one to the counter of each row, and return the counters afterwards."""
    mixed = (of * np.uint64(0x9E3779B97F4A7C15) + query) * np.uint64(0xD6E8FEB86659FD93)
    places = (mixed >> np.uint64(64 - width)).view(np.int64)
    np.add.at(counters, places, np.uint32(1))
    found: Counters = counters[places]
    return found
