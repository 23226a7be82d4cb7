"""What is said of a click whose impression never arrived: the nearest reason that the shard can see.

The reason is always `orphan_click`, so that the counts by reason are the same whatever the number of partitions: whether the list
of another session is in the same shard is chance. Only the detail tells, where it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa

from streams.counting.clicks import Candidate
from streams.counting.connection import ShardConnection

NEVER_SHOWN = "impression_id: no such impression in the time before the click"
OTHER_SESSION = "list_of_other_session: the click's session_id is not that of its list"

FIND_LISTS_OF_ORPHANS = """
SELECT impression_id, session_id, ts_us FROM impressions WHERE impression_id IN (SELECT impression_id FROM orphan_ids)
"""

Shown = dict[str, dict[str, int]]
"""For each impression id the time of its list in each session, in microseconds."""


def explain_orphans(connection: ShardConnection, orphans: Sequence[Candidate]) -> list[str]:
    """Return for each click what is known of its list: of another session, after the click by so much, or never seen."""
    if not orphans:
        return []
    shown = _find_shown(connection, sorted({click.impression_id for click in orphans}))
    return [_explain(click, shown.get(click.impression_id, {})) for click in orphans]


def _find_shown(connection: ShardConnection, impression_ids: Sequence[str]) -> Shown:
    shown: Shown = defaultdict(dict)
    ids = pa.table({"impression_id": pa.array(impression_ids, pa.string())})
    for impression_id, session_id, ts_us in connection.execute(FIND_LISTS_OF_ORPHANS, orphan_ids=ids).fetchall():
        shown[impression_id][session_id] = ts_us
    return shown


def _explain(click: Candidate, lists: dict[str, int]) -> str:
    if click.session_id in lists:
        ahead_us = lists[click.session_id] - click.ts_us
        if ahead_us > 0:
            return f"ts: {ahead_us / 1e6:.3f} s before its list, more than events.click_lead_s allows"
        return "impression_id: the impression came after the click had stopped waiting for it"
    return OTHER_SESSION if lists else NEVER_SHOWN
