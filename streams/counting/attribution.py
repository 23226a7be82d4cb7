"""Attribution: which impression a click belongs to, and whether it counts.

Every click is judged against the earliest impression of its impression_id. A click that comes first waits in `pending`, and
when an earlier impression replaces the one on file its clicks are judged anew. So the order of arrival does not matter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting import clicks, impressions, quarantine, rollups, windows
from streams.counting.batch import Batch
from streams.counting.clicks import Candidate, Shown
from streams.counting.connection import Feeds
from streams.counting.key_index import Keys, KeySet
from streams.counting.matching import Lists, Plain, find_lists, find_plain, new_positions, no_plain
from streams.counting.pending_clicks import pending_state, take_orphans, take_waiting, wait
from streams.counting.quarantine import Held
from streams.counting.recent_rows import Recent
from streams.counting.retention import find_days
from streams.events.rules import CountingRules
from streams.events.schema import Reason, Reject

NEVER_US = 2**62
"""After every event time."""

Version = tuple[int, int, int]
"""One version of an impression: ts_us, seq, arrival_us."""


@dataclass(frozen=True, slots=True)
class Rejudged:
    """Event ids of clicks whose list gave way to an earlier one inside the batch.

    `fresh` are those of the batch, `earlier` those of which a version came before it.
    """

    fresh: set[str] = field(default_factory=set)
    earlier: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Change:
    """What a batch added to the totals (negative where something was taken back), and the days whose data changed.

    `waiting` is the change of clicks that wait; `taken_in` (with their keys) and `fitting` (event_id, key) are ids of clicks that
    count or wait, so that their quarantined versions are withdrawn; `refused` the clicks for quarantine, each with its delay
    after the impression; `rejudged` those that several lists may have judged.
    """

    counted: int = 0
    duplicates: int = 0
    waiting: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    days: set[date] = field(default_factory=set)
    taken_in: dict[str, int] = field(default_factory=dict)
    fitting: pa.Table | None = None
    refused: list[tuple[Candidate, Reject, int]] = field(default_factory=list)
    rejudged: Rejudged = field(default_factory=Rejudged)


@dataclass(slots=True)
class Judgement:
    """What became of the candidates: counted with their impression, refused with the list they were refused by, left waiting."""

    counted: list[tuple[Candidate, Shown]] = field(default_factory=list)
    refused: list[tuple[Candidate, Shown, Reason]] = field(default_factory=list)
    waiting: list[Candidate] = field(default_factory=list)
    repeated: list[Candidate] = field(default_factory=list)


def attribute(feeds: Feeds, batch: Batch, rules: CountingRules, known_keys: KeySet, recent: Recent) -> Change:
    """Count a batch's impressions and clicks, and the clicks that waited for them; refused clicks are left to `keep_refused`."""
    change, window_us = Change(), rules.attribution_window_us
    if not len(batch.impressions) and not len(batch.clicks):
        return change
    known = impressions.find_known(feeds, batch.impressions, known_keys)
    standing, replaced = impressions.choose_earliest(batch.impressions, known)
    _take_back(feeds, replaced, recent, change)
    waiting = _gather(feeds, batch, bool(replaced), recent)
    change.waiting -= sum(click.row >= 0 for click in waiting)
    change.rejudged = _find_rejudged(batch, replaced, len(standing), waiting, recent.quarantined)
    lists = find_lists(feeds, standing, batch.clicks, [click.impression_id for click in waiting], known_keys, recent)
    _take_in(feeds, batch, standing, lists.own, known_keys, recent, change)
    # Most clicks simply fit: whole columns tell which. The others, and what depends on the order of arrival, are judged singly.
    plain = find_plain(batch.clicks, lists, window_us, _last_arrival(batch)) if not replaced else no_plain(batch.clicks)
    candidates = waiting + clicks.read_fresh(batch.clicks, ~plain.fits)
    wanted = np.array([click.key for click in candidates], np.uint64)
    shown = _shown(lists.table, wanted)
    versions = _versions(batch.impressions, known, wanted) if shown else {}
    judgement = judge(candidates, shown, versions, window_us)
    cells = new_positions(feeds, lists, batch.clicks, plain, _cells(judgement), window_us, recent)
    windows.count(feeds, rollups.find_folded(lists.own, recent.folds), cells)
    _keep_counted(feeds, batch.clicks, plain, lists, judgement, change)
    _settle(feeds, judgement, lists, versions, recent, change)
    return change


def judge(
    candidates: Sequence[Candidate], shown: dict[str, Shown], versions: dict[str, list[Version]], window_us: int
) -> Judgement:
    """Judge clicks, in log order, by the lists they belong to; an event id counts once, by its first version that fits."""
    judgement, counted = Judgement(), set()
    for click in candidates:
        lists = shown.get(click.impression_id)
        if lists is None or lists.ts_us > click.ts_us or _given_up(click, versions.get(click.impression_id, ()), window_us):
            judgement.waiting.append(click)
        elif click.event_id in counted:
            judgement.repeated.append(click)
        elif (reason := find_fault(click, lists, window_us)) is not None:
            judgement.refused.append((click, lists, reason))
        else:
            counted.add(click.event_id)
            judgement.counted.append((click, lists))
    _withdraw_refused(judgement)
    return judgement


def _withdraw_refused(judgement: Judgement) -> None:
    """Make repeats of clicks from before the batch that are refused, where another version of their id from before it counts."""
    counted = {click.event_id for click, _ in judgement.counted if click.seq < 0}
    for refused in [one for one in judgement.refused if one[0].seq < 0 and one[0].event_id in counted]:
        judgement.refused.remove(refused)
        judgement.repeated.append(refused[0])


def find_fault(click: Candidate, shown: Shown, window_us: int) -> Reason | None:
    """Say why a click does not fit the list it belongs to, None where it does."""
    if click.ts_us - shown.ts_us > window_us:
        return Reason.LATE_CLICK
    if click.position >= len(shown.items):
        return Reason.POSITION_OUT_OF_RANGE
    if click.item_norm is not None and click.item_norm != shown.items[click.position]:
        return Reason.ITEM_MISMATCH
    return None


def keep_refused(feeds: Feeds, change: Change, arrived_us: int | None, quarantined: Held) -> Counter[str]:
    """Put refused clicks in quarantine, after the withdrawals, and return the new rows by reason; others of them are repeats."""
    if not change.refused:
        return Counter()
    added = quarantine.add_rejects(feeds, [reject for _, reject, _ in change.refused], arrived_us, quarantined)
    firsts = {(row.event_id, row.reason): number for number, (_, row, _) in reversed([*enumerate(change.refused)])}
    with_row = {firsts[name] for name in firsts.keys() & added}
    refused = [(click, str(row.reason), delay) for click, row, delay in change.refused]
    clicks.keep(feeds, [one for number, one in enumerate(refused) if number in with_row])
    # The others have no row of their own, and may yet count when their list gives way to an earlier one.
    clicks.keep_unlike(feeds, [one for number, one in enumerate(refused) if number not in with_row])
    change.duplicates += len(change.refused) - len(added)
    return Counter(str(reason) for _, reason in added)


def find_orphans(feeds: Feeds, before_us: int, recent: Recent) -> list[Reject]:
    """Take the pending clicks with ts < before_us out of waiting and return them, orphans now."""
    if recent.waiting_us >= before_us:
        return []
    orphans = take_orphans(feeds, before_us)
    first_us = pending_state(feeds.con)[1]
    recent.waiting_us = NEVER_US if first_us is None else first_us
    detail = "impression_id: no such impression in the time before the click"
    return [_refuse(click, Reason.ORPHAN_CLICK, detail) for click in orphans]


def _take_back(feeds: Feeds, replaced: list[str], recent: Recent, change: Change) -> None:
    """Take back the impressions that give way to earlier ones, and what they counted."""
    if not replaced:
        return
    back = impressions.retract(feeds, replaced)
    recent.forget_lists()
    change.days |= back.days
    change.counted -= len(replaced) + back.clicks
    change.duplicates += len(replaced) - back.repeats
    change.quarantined.subtract(back.quarantined)


def _take_in(
    feeds: Feeds, batch: Batch, standing: pa.Table, own: pa.Table, known_keys: KeySet, recent: Recent, change: Change
) -> None:
    """Keep the impressions that stand; `own` are the same as lists."""
    known_keys.add(standing["impression_key"].to_numpy())
    recent.follow_lists(own)
    days = impressions.keep_impressions(feeds, standing)
    rollups.open_days(feeds, days, recent.folds)
    change.days |= days
    change.counted += len(standing)
    change.duplicates += len(batch.impressions) - len(standing)


def _gather(feeds: Feeds, batch: Batch, reopened: bool, recent: Recent) -> list[Candidate]:
    """Return the clicks from before the batch that are to be judged: those that waited for its lists, and those reopened."""
    awaited = recent.waiting.contains(batch.impressions["impression_key"].to_numpy())
    taken = []
    if awaited.any():
        ids = batch.impressions["impression_id"].filter(pa.array(awaited)).to_pylist()
        taken = take_waiting(feeds, ids, recent.waiting_on_file)
    return taken + (clicks.read_reopened(feeds) if reopened else [])


def _find_rejudged(batch: Batch, replaced: list[str], standing: int, waiting: list[Candidate], quarantined: Held) -> Rejudged:
    """Return the clicks on lists of which the batch has several versions, or an earlier one than the file."""
    if not replaced and standing == len(batch.impressions):
        return Rejudged()
    versions = Counter(batch.impressions["impression_id"].to_pylist())
    changed = {*replaced, *(name for name, number in versions.items() if number > 1)}
    on_changed = pc.is_in(batch.clicks["impression_id"], value_set=pa.array(list(changed), pa.string()))
    fresh = batch.clicks.select(["event_id", "key"]).filter(on_changed)
    refused = fresh["event_id"].filter(pa.array(quarantined.ids.contains(fresh["key"].to_numpy()))).to_pylist()
    earlier = {click.event_id for click in waiting if click.impression_id in changed}
    return Rejudged(set(fresh["event_id"].to_pylist()), earlier | set(refused))


def _last_arrival(batch: Batch) -> int:
    return int(batch.impressions["arrival_us"].to_numpy().max(initial=0))


def _shown(lists: pa.Table, wanted: Keys) -> dict[str, Shown]:
    """Return the lists with these keys, by which single clicks are judged."""
    rows = np.isin(lists["impression_key"].to_numpy(), wanted, kind="sort").nonzero()[0]
    if not len(rows):
        return {}
    chosen = lists.select(["impression_id", "ts_us", "day", "query_norm", "items"]).take(pa.array(rows))
    columns = (column.to_pylist() for column in chosen.columns)
    return {name: Shown(row, *shown) for row, name, *shown in zip(rows.tolist(), *columns, strict=True)}


def _versions(fresh: pa.Table, known: pa.Table, wanted: Keys) -> dict[str, list[Version]]:
    """Return when each version of an impression with one of these keys came.

    A click waits only for one that comes while it still waits.
    """
    versions: dict[str, list[Version]] = defaultdict(list)
    rows = np.isin(fresh["impression_key"].to_numpy(), wanted, kind="sort").nonzero()[0]
    chosen = fresh.select(["impression_id", "ts_us", "seq", "arrival_us"]).take(pa.array(rows))
    for name, ts_us, seq, arrival_us in zip(*(column.to_pylist() for column in chosen.columns), strict=True):
        versions[name].append((ts_us, seq, arrival_us))
    for row in known.to_pylist():
        versions[row["impression_id"]].append((row["ts_us"], -2, 0))
    return versions


def _given_up(click: Candidate, versions: Iterable[Version], window_us: int) -> bool:
    """Say whether a click's impression came only after the click had waited its time; one from before the batch is in time."""
    came = [v for v in versions if v[0] <= click.ts_us]
    return bool(came) and not any(seq < click.seq or arrival_us <= click.ts_us + window_us for _, seq, arrival_us in came)


def _waited(click: Candidate, versions: Iterable[Version]) -> bool:
    return not any(ts_us <= click.ts_us and seq < click.seq for ts_us, seq, _ in versions)


def _settle(
    feeds: Feeds,
    judgement: Judgement,
    lists: Lists,
    versions: dict[str, list[Version]],
    recent: Recent,
    change: Change,
) -> None:
    """Let clicks wait, or wait on, and note what the batch takes in and what it refuses."""
    wait(feeds, judgement.waiting)
    recent.wait(judgement.waiting)
    change.waiting += len(judgement.waiting)
    change.duplicates += len(judgement.repeated)
    change.taken_in |= {click.event_id: click.event_key for click in [*(c for c, _ in judgement.counted), *judgement.waiting]}
    on_file = lists.on_file() if judgement.refused else set()
    for click, shown, reason in judgement.refused:
        if click.seq >= 0 and click.impression_id not in on_file and _waited(click, versions.get(click.impression_id, ())):
            change.taken_in[click.event_id] = click.event_key
        change.refused.append((click, _refuse(click, reason, _detail(click, shown, reason)), click.ts_us - shown.ts_us))


def _cells(judgement: Judgement) -> list[tuple[int, int]]:
    """Return list and position of what was judged singly and counts."""
    return [(shown.row, click.position) for click, shown in judgement.counted]


def _keep_counted(feeds: Feeds, fresh: pa.Table, plain: Plain, lists: Lists, judgement: Judgement, change: Change) -> None:
    """Keep the clicks that count."""
    fitting = fresh.select(["key", *clicks.COLUMNS]).append_column("delay_us", pa.array(plain.delay_us))
    fitting = fitting.filter(pa.array(plain.fits))
    clicks.keep(feeds, [(click, None, click.ts_us - shown.ts_us) for click, shown in judgement.counted], fitting)
    change.fitting = fitting.select(["event_id", "key"])
    change.counted += len(judgement.counted) + len(fitting)
    change.days |= find_days(lists.table["day"].to_numpy()[plain.row[plain.fits]])
    change.days.update(shown.day for _, shown in judgement.counted)


def _refuse(click: Candidate, reason: Reason, detail: str) -> Reject:
    return Reject(reason, detail, click.raw, click.event_id, click.ts_us, click.log_offset, click.line)


def _detail(click: Candidate, shown: Shown, reason: Reason) -> str:
    if reason is Reason.LATE_CLICK:
        return f"ts: {(click.ts_us - shown.ts_us) // 1_000_000} s after the impression"
    if reason is Reason.POSITION_OUT_OF_RANGE:
        return f"position: {click.position} in a list of {len(shown.items)}"
    return f"item: not the one shown at position {click.position}"
