"""Attribution: which impression a click belongs to, and whether it counts.

A click belongs to the canonical impression of its impression_id in its session. A click that arrives before it is pending, and
when an earlier impression becomes canonical the clicks of its impression_id are re-attributed. So the order of arrival does not
matter. The visitor's clock may be behind: a click up to `CountingRules.click_lead_us` before its list counts as one at its time.
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
from streams.counting.clicks import WANTED, Candidate, ListId, ShownList, to_wanted
from streams.counting.connection import ShardConnection
from streams.counting.key_index import KeyArray, KeySet
from streams.counting.matching import FastPath, Lists, find_fast_path, find_lists, find_new_positions, no_fast_path
from streams.counting.orphans import explain_orphans
from streams.counting.pending_clicks import add_pending, pending_state, take_orphans, take_pending
from streams.counting.quarantine import QuarantineKeys
from streams.counting.recent_rows import RecentState
from streams.counting.retention import find_days
from streams.events.rules import CountingRules
from streams.events.schema import Reason, Reject

NEVER_US = 2**62
"""After every event time."""

Version = tuple[int, int, int]
"""One version of an impression: ts_us, seq, arrival_us."""


@dataclass(frozen=True, slots=True)
class Reattributed:
    """Event ids (of whatever session) of clicks whose canonical impression may have changed inside the batch.

    `fresh` are ids of clicks of the batch, `earlier` those that have a version from before the batch.
    """

    fresh: set[str] = field(default_factory=set)
    earlier: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Change:
    """What a batch changes: the totals (negative where something was retracted) and the days whose data changed.

    `accepted` (event_id and session_id: key) and `fast_path` (columns event_id, session_id, key) are the clicks that count or
    wait, whose quarantined versions are to be withdrawn. `refused` are the clicks for quarantine, each with its delay
    (microseconds) after the impression.
    """

    counted: int = 0
    duplicates: int = 0
    pending: int = 0
    erased: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    days: set[date] = field(default_factory=set)
    accepted: dict[tuple[str, str], int] = field(default_factory=dict)
    fast_path: pa.Table | None = None
    refused: list[tuple[Candidate, Reject, int]] = field(default_factory=list)
    reattributed: Reattributed = field(default_factory=Reattributed)


@dataclass(slots=True)
class Attribution:
    """The outcome of each candidate: counted or refused, with its list; pending; or a repeat of one that counts."""

    counted: list[tuple[Candidate, ShownList]] = field(default_factory=list)
    refused: list[tuple[Candidate, ShownList, Reason]] = field(default_factory=list)
    pending: list[Candidate] = field(default_factory=list)
    repeated: list[Candidate] = field(default_factory=list)


def attribute_batch(
    connection: ShardConnection, batch: Batch, rules: CountingRules, known_keys: KeySet, recent: RecentState
) -> Change:
    """Count a batch's impressions and clicks, and the pending clicks of its impressions; refused clicks are in the result."""
    change = Change()
    if not len(batch.impressions) and not len(batch.clicks):
        return change
    stored = impressions.find_stored(connection, batch.impressions, known_keys)
    canonical, replaced = impressions.choose_canonical(batch.impressions, stored)
    retracted = _retract_replaced(connection, replaced, recent, change)
    earlier = _gather_earlier_clicks(connection, batch, bool(replaced), recent)
    change.pending -= sum(click.row >= 0 for click in earlier)
    change.reattributed = _find_reattributed(batch, replaced, len(canonical), earlier, recent.quarantine_keys)
    lists = find_lists(connection, canonical, batch.clicks, to_wanted(earlier), known_keys, recent)
    _store_impressions(connection, batch, canonical, lists.own, known_keys, recent, change)
    # Whole columns show that most clicks count. The others, and those that depend on the order of arrival, go one by one.
    fast_path = no_fast_path(batch.clicks) if replaced else find_fast_path(batch.clicks, lists, rules, _last_arrival(batch))
    candidates = earlier + clicks.select_candidates(batch.clicks, ~fast_path.fits)
    wanted = np.array([click.key for click in candidates], np.uint64)
    shown = _select_lists(lists.table, wanted)
    versions = _find_versions(batch.impressions, stored, wanted) if shown else {}
    attribution = attribute_clicks(candidates, shown, versions, rules)
    cells = find_new_positions(connection, lists, batch.clicks, fast_path, _counted_positions(attribution), rules, recent)
    windows.add_counts(connection, rollups.find_rolled_up(lists.own, recent.rollups), cells)
    _store_counted(connection, batch.clicks, fast_path, lists, attribution, change)
    _record_outcomes(connection, attribution, lists, versions, rules, recent, change)
    recent.caps.lists.touch(connection, cells, "query_norm", rules)
    recent.caps.lists.touch_all(connection, retracted, rules)
    return change


def attribute_clicks(
    candidates: Sequence[Candidate],
    shown: dict[ListId, ShownList],
    versions: dict[ListId, list[Version]],
    rules: CountingRules,
) -> Attribution:
    """Attribute clicks, given in log order, to their lists; an event id counts once, by its first version that fits."""
    attribution, counted = Attribution(), set()
    for click in candidates:
        own, arrived = shown.get(click.list_id), versions.get(click.list_id, ())
        if own is None or own.ts_us > click.ts_us + rules.click_lead_us or _waited_too_long(click, arrived, rules):
            attribution.pending.append(click)
        elif click.id in counted:
            attribution.repeated.append(click)
        elif (reason := find_reason(click, own, rules.attribution_window_us)) is not None:
            attribution.refused.append((click, own, reason))
        else:
            counted.add(click.id)
            attribution.counted.append((click, own))
    _withdraw_refused(attribution)
    return attribution


def _withdraw_refused(attribution: Attribution) -> None:
    """Turn refused clicks from before the batch into repeats, if another version from before it counts now."""
    counted = {click.id for click, _ in attribution.counted if click.seq < 0}
    for refused in [one for one in attribution.refused if one[0].seq < 0 and one[0].id in counted]:
        attribution.refused.remove(refused)
        attribution.repeated.append(refused[0])


def find_reason(click: Candidate, shown: ShownList, window_us: int) -> Reason | None:
    """Return why a click does not fit its list, None if it does."""
    if click.ts_us - shown.ts_us > window_us:
        return Reason.LATE_CLICK
    if click.position >= len(shown.items):
        return Reason.POSITION_OUT_OF_RANGE
    if click.item_norm is not None and click.item_norm != shown.items[click.position]:
        return Reason.ITEM_MISMATCH
    return None


def quarantine_refused(
    connection: ShardConnection, change: Change, arrived_us: int | None, known: QuarantineKeys
) -> Counter[str]:
    """Put refused clicks in quarantine, after the withdrawals; return the number of new rows by reason."""
    if not change.refused:
        return Counter()
    added = quarantine.add_rejects(connection, [reject for _, reject, _ in change.refused], arrived_us, known)
    firsts = {(*click.id, row.reason): number for number, (click, row, _) in reversed([*enumerate(change.refused)])}
    with_row = {firsts[name] for name in firsts.keys() & set(map(tuple, added))}
    refused = [(click, str(row.reason), delay) for click, row, delay in change.refused]
    clicks.store_clicks(connection, [one for number, one in enumerate(refused) if number in with_row])
    # The others have no row of their own, and may still count once an earlier list becomes canonical.
    clicks.store_unlike(connection, [one for number, one in enumerate(refused) if number not in with_row])
    change.duplicates += len(change.refused) - len(added)
    return Counter(str(row.reason) for row in added)


def find_orphans(connection: ShardConnection, before_us: int, recent: RecentState) -> list[Reject]:
    """Remove the pending clicks with ts < before_us, and return them as orphans."""
    if recent.first_pending_us >= before_us:
        return []
    orphans = take_orphans(connection, before_us)
    first_us = pending_state(connection.con)[1]
    recent.first_pending_us = NEVER_US if first_us is None else first_us
    details = explain_orphans(connection, orphans)
    return [_make_reject(click, Reason.ORPHAN_CLICK, detail) for click, detail in zip(orphans, details, strict=True)]


def _retract_replaced(
    connection: ShardConnection, replaced: list[ListId], recent: RecentState, change: Change
) -> set[tuple[date, str]]:
    """Retract the stored impressions that earlier ones replace, and their counts; return their days and queries."""
    if not replaced:
        return set()
    retraction = impressions.retract(connection, replaced)
    recent.drop_lists()
    change.days |= retraction.days
    change.counted -= len(replaced) + retraction.clicks
    change.duplicates += len(replaced) - retraction.repeats
    change.quarantined.subtract(retraction.quarantined)
    return retraction.queries


def _store_impressions(
    connection: ShardConnection,
    batch: Batch,
    canonical: pa.Table,
    own: pa.Table,
    known_keys: KeySet,
    recent: RecentState,
    change: Change,
) -> None:
    """Store the canonical impressions; `own` has the same ones as lists."""
    known_keys.add(canonical["impression_key"].to_numpy())
    recent.track_lists(own)
    days = impressions.store_impressions(connection, canonical)
    rollups.open_rollups(connection, days, recent.rollups)
    change.days |= days
    change.counted += len(canonical)
    change.duplicates += len(batch.impressions) - len(canonical)


def _gather_earlier_clicks(connection: ShardConnection, batch: Batch, reattribute: bool, recent: RecentState) -> list[Candidate]:
    """Return the clicks from before the batch to attribute: those pending for its lists, and those to re-attribute."""
    awaited = recent.pending_keys.contains(batch.impressions["impression_key"].to_numpy())
    taken = []
    if awaited.any():
        lists = batch.impressions.select(WANTED).filter(pa.array(awaited))
        taken = take_pending(connection, lists, recent.pending_in_file)
    return taken + (clicks.read_reattributed(connection) if reattribute else [])


def _find_reattributed(
    batch: Batch, replaced: list[ListId], canonical: int, earlier: list[Candidate], known: QuarantineKeys
) -> Reattributed:
    """Return the clicks on lists of which the batch has several versions, or one that replaces the stored one.

    `canonical` is the number of canonical impressions in the batch.
    """
    if not replaced and canonical == len(batch.impressions):
        return Reattributed()
    versions = Counter(batch.impressions["impression_id"].to_pylist())
    changed = {*(name for _, name in replaced), *(name for name, number in versions.items() if number > 1)}
    on_changed = pc.is_in(batch.clicks["impression_id"], value_set=pa.array(list(changed), pa.string()))
    fresh = batch.clicks.select(["event_id", "key"]).filter(on_changed)
    refused = fresh["event_id"].filter(pa.array(known.ids.contains(fresh["key"].to_numpy()))).to_pylist()
    before = {click.event_id for click in earlier if click.impression_id in changed}
    return Reattributed(set(fresh["event_id"].to_pylist()), before | set(refused))


def _last_arrival(batch: Batch) -> int:
    return int(batch.impressions["arrival_us"].to_numpy().max(initial=0))


def _select_lists(lists: pa.Table, wanted: KeyArray) -> dict[ListId, ShownList]:
    """Return the lists with these keys."""
    rows = np.isin(lists["impression_key"].to_numpy(), wanted, kind="sort").nonzero()[0]
    if not len(rows):
        return {}
    chosen = lists.select([*WANTED, "ts_us", "day", "query_norm", "items"]).take(pa.array(rows))
    columns = (column.to_pylist() for column in chosen.columns)
    return {(key, name): ShownList(row, *shown) for row, key, name, *shown in zip(rows.tolist(), *columns, strict=True)}


def _find_versions(fresh: pa.Table, stored: pa.Table, wanted: KeyArray) -> dict[ListId, list[Version]]:
    """Return the versions of the impressions with these keys, with their arrival, by list.

    A click counts only on an impression that arrives while the click is pending.
    """
    versions: dict[ListId, list[Version]] = defaultdict(list)
    rows = np.isin(fresh["impression_key"].to_numpy(), wanted, kind="sort").nonzero()[0]
    chosen = fresh.select([*WANTED, "ts_us", "seq", "arrival_us"]).take(pa.array(rows))
    for key, name, ts_us, seq, arrival_us in zip(*(column.to_pylist() for column in chosen.columns), strict=True):
        versions[key, name].append((ts_us, seq, arrival_us))
    for row in stored.to_pylist():
        versions[row["key"], row["impression_id"]].append((row["ts_us"], -2, 0))
    return versions


def _waited_too_long(click: Candidate, versions: Iterable[Version], rules: CountingRules) -> bool:
    """Return whether a click's impression arrived only after the click expired; one from before the batch is in time."""
    arrived = [v for v in versions if v[0] <= click.ts_us + rules.click_lead_us]
    until_us = click.ts_us + rules.attribution_window_us
    return bool(arrived) and not any(seq < click.seq or arrival_us <= until_us for _, seq, arrival_us in arrived)


def _was_pending(click: Candidate, versions: Iterable[Version], rules: CountingRules) -> bool:
    """Return whether a click of the batch arrived before every version of its impression."""
    return not any(ts_us <= click.ts_us + rules.click_lead_us and seq < click.seq for ts_us, seq, _ in versions)


def _delay_us(click: Candidate, shown: ShownList) -> int:
    """Return a click's delay after its list, 0 when its clock was behind."""
    return max(0, click.ts_us - shown.ts_us)


def _record_outcomes(
    connection: ShardConnection,
    attribution: Attribution,
    lists: Lists,
    versions: dict[ListId, list[Version]],
    rules: CountingRules,
    recent: RecentState,
    change: Change,
) -> None:
    """Store the pending clicks, and note in `change` which clicks are accepted and which refused."""
    add_pending(connection, attribution.pending)
    recent.add_pending(attribution.pending)
    change.pending += len(attribution.pending)
    change.duplicates += len(attribution.repeated)
    accepted = [*(click for click, _ in attribution.counted), *attribution.pending]
    change.accepted |= {click.id: click.event_key for click in accepted}
    stored_ids = lists.stored_ids() if attribution.refused else set()
    for click, shown, reason in attribution.refused:
        was_pending = click.seq >= 0 and _was_pending(click, versions.get(click.list_id, ()), rules)
        if was_pending and click.list_id not in stored_ids:
            # It was accepted until its list arrived in the same batch, which repaired the versions of its id refused before.
            change.accepted[click.id] = click.event_key
        change.refused.append((click, _make_reject(click, reason, _detail(click, shown, reason)), _delay_us(click, shown)))


def _counted_positions(attribution: Attribution) -> list[tuple[int, int]]:
    """Return (row of the list, position) of the counted candidates."""
    return [(shown.row, click.position) for click, shown in attribution.counted]


def _store_counted(
    connection: ShardConnection, fresh: pa.Table, fast_path: FastPath, lists: Lists, attribution: Attribution, change: Change
) -> None:
    """Store the clicks that count."""
    fast = fresh.select(["key", *clicks.COLUMNS]).append_column("delay_us", pa.array(fast_path.delay_us))
    fast = fast.filter(pa.array(fast_path.fits))
    clicks.store_clicks(connection, [(click, None, _delay_us(click, shown)) for click, shown in attribution.counted], fast)
    change.fast_path = fast.select(["event_id", "session_id", "key"])
    change.counted += len(attribution.counted) + len(fast)
    change.days |= find_days(lists.table["day"].to_numpy()[fast_path.row[fast_path.fits]])
    change.days.update(shown.day for _, shown in attribution.counted)


def _make_reject(click: Candidate, reason: Reason, detail: str) -> Reject:
    return Reject(reason, detail, click.raw, click.event_id, click.ts_us, click.log_offset, click.line, click.session_id)


def _detail(click: Candidate, shown: ShownList, reason: Reason) -> str:
    if reason is Reason.LATE_CLICK:
        return f"ts: {(click.ts_us - shown.ts_us) // 1_000_000} s after the impression"
    if reason is Reason.POSITION_OUT_OF_RANGE:
        return f"position: {click.position} in a list of {len(shown.items)}"
    return f"item: not the one shown at position {click.position}"
