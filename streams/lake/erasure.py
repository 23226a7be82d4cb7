"""Erasure of a session or a user from the lake: the day files that have its rows are written anew without them, each in one step.

Co-occurrence files have no ids: they are counted anew from the queries that are left, so a text that only the subject had goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from streams.events.erasures import FIELDS, Subject
from streams.events.line_spans import Flags
from streams.events.rules import CountingRules
from streams.lake.files import DayFile, Lake, list_files, put_file, remove_file
from streams.lake.reader import SCHEMAS, read_queries

KINDS = ("queries", "impressions")
NO_CAP = 2**62
PAIRS = """
SELECT query_norm AS query, next_query, count(*)::BIGINT AS count
FROM (
    FROM (
        SELECT *, lead(query_norm) OVER follows AS next_query, lead(ts_us) OVER follows AS next_us
        FROM asked WINDOW follows AS (PARTITION BY session_id ORDER BY ts_us, event_id)
    )
    WHERE day = $day AND next_us - ts_us <= $gap AND query_norm <> next_query
    QUALIFY row_number() OVER (PARTITION BY query_norm, next_query, session_id ORDER BY ts_us, event_id) <= $session_cap
        AND (coalesce(user_id, '') = ''
            OR row_number() OVER (PARTITION BY query_norm, next_query, user_id ORDER BY ts_us, session_id, event_id) <= $user_cap)
)
GROUP BY ALL ORDER BY ALL
"""


class ErasedFiles(NamedTuple):
    """The rows removed, by kind of file, and the days of the files that had them."""

    rows: Counter[str]
    days: set[date]


def erase_from_lake(
    lake: Lake, subject: Subject, rules: CountingRules, progress: Callable[[int, int], None], dry_run: bool = False
) -> ErasedFiles:
    """Remove a subject's rows from every day file; calls `progress(done, files)`. Raises OSError.

    Do this once the shards are erased: what they export later has no row of the subject. A run that was killed is finished by the
    next one, and one more finds nothing to do.
    """
    rows, days = Counter[str](), set[date]()
    files = [(kind, file) for kind in KINDS for file in list_files(lake, kind)]
    for done, (kind, file) in enumerate(files):
        progress(done, len(files))
        table = _read(lake, file)
        own = find_own(table, subject)
        if not own.any():
            continue
        rows[kind] += int(own.sum())
        days.add(file.day)
        if not dry_run:
            if kind == "queries":  # first, so that a run that is killed here is told by these rows to do it again
                _count_pairs(lake, file, subject, rules)
            _replace(lake, kind, file, table.filter(pa.array(~own)))
    progress(len(files), len(files))
    return ErasedFiles(rows, days)


def find_own(rows: pa.Table, subject: Subject) -> Flags:
    """Return for each row of a day file whether it is the subject's."""
    same = pc.fill_null(pc.equal(rows[FIELDS[subject.kind]], subject.id), False)
    own: Flags = pc.and_(same, pc.less_equal(rows["ts_us"], subject.until_us)).to_numpy()
    return own


def _read(lake: Lake, file: DayFile) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(file.path, filesystem=lake.files, partitioning=None)


def _replace(lake: Lake, kind: str, file: DayFile, rows: pa.Table) -> None:
    if len(rows):
        put_file(lake, kind, file.day, file.partition, partial(_write, kind, rows))
    else:
        remove_file(lake, kind, file.day, file.partition)


def _write(kind: str, rows: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(rows.cast(SCHEMAS[kind]), path, compression="zstd")


def _count_pairs(lake: Lake, file: DayFile, subject: Subject, rules: CountingRules) -> None:
    """Count the pairs anew that begin on the day of this file or the day before it, without the subject's queries."""
    for day in (file.day - timedelta(days=1), file.day):
        found = [one for one in list_files(lake, "cooccurrence") if (one.day, one.partition) == (day, file.partition)]
        for one in found:
            _replace(lake, "cooccurrence", one, _pairs_without(lake, one, subject, rules))


def _pairs_without(lake: Lake, file: DayFile, subject: Subject, rules: CountingRules) -> pa.Table:
    """Return query, next_query, count of the pairs of a day and partition without the subject's queries."""
    last = file.day + timedelta(microseconds=rules.session_gap_us) + timedelta(days=1)
    asked = read_queries(lake, file.day, last, file.partition)
    kept = asked.filter(pc.and_(pc.equal(asked["source"], "user"), pa.array(~find_own(asked, subject))))
    caps = {"session_cap": rules.session_cap or NO_CAP, "user_cap": rules.user_cap or NO_CAP}
    with duckdb.connect(":memory:") as con:
        con.register("asked", kept)
        return con.sql(PAIRS, params={"day": file.day, "gap": rules.session_gap_us, **caps}).to_arrow_table()
