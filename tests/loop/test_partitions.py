"""The counts of a log are the same whatever the number of partitions: all that counts together has one session.

The property runs on shards with the real partitioner, one log end to end: with the emitter, a broker and a worker.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from queryloop.replay.replay import replay_isolated
from streams.brokers.topics import KafkaSettings
from streams.counting.windows import sum_windows
from streams.emitter.record_batches import partition_of
from streams.events.line_decoder import read_session
from streams.store.shard import CountingRules, Shard
from streams.worker.settings import StreamsSettings
from tests.support.logs import NOW, START, TEXTS, click, day, feed, impression, line, query, rows
from tests.support.recount import recount

AS_OF = day(START + 2 * 86_400)
SESSIONS = st.sampled_from([f"session-{number}" for number in range(6)])
TIMES = st.sampled_from([-301.0, -300.0, -299.999, -1.0, -0.001, 0.0, 0.0, 1.0, 60.0, 1_800.0, 86_400.0, 86_700.0]).map(
    lambda seconds: START + seconds
)


@st.composite
def colliding_logs(draw: st.DrawFn) -> list[bytes]:
    """Logs in which sessions use each other's event and impression ids, with bad lines, early clicks and clocks behind."""
    return [draw(_lines()) for _ in range(draw(st.integers(1, 24)))]


@st.composite
def _lines(draw: st.DrawFn) -> bytes:
    event_id, ts = draw(st.sampled_from("abcdef")), draw(TIMES)
    common = {"session_id": draw(SESSIONS), "query": draw(TEXTS)}
    match draw(st.sampled_from(["query", "impression", "impression", "click", "click", "click", "bad"])):
        case "query":
            return line("query", event_id, ts, **common)
        case "impression":
            items = draw(st.lists(TEXTS, min_size=1, max_size=2))
            return line("impression", event_id, ts, **common, impression_id=draw(st.sampled_from("IJ")), items=items)
        case "click":
            position = draw(st.integers(0, 2))
            return line("click", event_id, ts, **common, impression_id=draw(st.sampled_from("IJ")), position=position)
        case _:
            session = draw(st.sampled_from(["", f'"session_id":"{common["session_id"]}",']))
            return draw(st.sampled_from([b"{", f'{{"type":"click",{session}"event_id":"{event_id}"}}'.encode()]))


def count(log: Sequence[bytes], partitions: int, batch: int = 10_000, session_cap: int = 0) -> dict[str, Any]:
    """What an isolated replay counts, with a shard for each partition."""
    rules = CountingRules(retention_days=0, session_cap=session_cap)
    of_partition: dict[int, list[bytes]] = defaultdict(list)
    for value in log:
        of_partition[partition_of(read_session(value), partitions)].append(value)
    windows, pairs, totals = [], Counter[Any](), Counter[str]()
    with TemporaryDirectory() as folder:
        for number, lines in of_partition.items():
            shard = Shard.open(Path(folder) / f"{number}.duckdb", rules)
            feed(shard, lines, batch)
            shard.finish(NOW)
            windows.append(shard.windows(AS_OF))
            pairs.update({(first, second): number for first, second, number in rows(shard.cooccurrence(AS_OF))})
            found = shard.totals()
            totals.update({"events": found.events, "counted": found.counted, "duplicates": found.duplicates})
            totals.update(found.quarantined)
            shard.close()
    return {"windows": rows(sum_windows(windows)), "pairs": dict(pairs), "totals": dict(totals)}


@settings(max_examples=6, deadline=None)
@given(log=colliding_logs(), batch=st.sampled_from([1, 3, 10_000]), cap=st.sampled_from([0, 1, 2]))
def test_the_counts_of_any_log_are_the_same_with_1_4_and_7_partitions(log: list[bytes], batch: int, cap: int) -> None:
    one = count(log, 1, batch, cap)
    assert count(log, 4, batch, cap) == one
    assert count(log, 7, batch, cap) == one
    expected = recount(log)
    assert one["windows"] == expected.windows(AS_OF, cap)
    assert one["pairs"] == {(first, second): number for first, second, number in expected.cooccurrence(AS_OF, cap)}
    refused = Counter(reason for (_, reason), number in expected.quarantined.items() for _ in range(number))
    account = {"counted": expected.counted, **refused}
    assert {name: number for name, number in one["totals"].items() if number and name in account} == +Counter(account)


def test_one_id_in_two_sessions_is_two_events_and_two_lists() -> None:
    log = [made("e", START, session_id=session) for session in ("s", "t") for made in (impression, query)]
    log += [click("c", START + 1, session_id="t"), click("c", START + 2, session_id="s", position=1)]
    for partitions in (1, 4, 7):
        counted = count(log, partitions)
        assert counted["windows"] == [("q", "a", 0, 2, 1), ("q", "b", 1, 2, 1)]
        assert counted["totals"] == {"events": 6, "counted": 4, "duplicates": 2}


def test_the_cap_of_a_session_leaves_out_the_same_with_any_number_of_partitions() -> None:
    log = [impression(f"e{n}", START + n, f"L{n}", session_id=f"s{of}") for of in range(8) for n in range(of)]
    log += [click("c", START + 90, f"L{n}", session_id="s7") for n in (2, 3)]
    for partitions in (1, 4, 7):
        counted = count(log, partitions, batch=5, session_cap=3)
        assert counted["windows"] == [("q", "a", 0, 1 + 2 + 5 * 3, 1), ("q", "b", 1, 1 + 2 + 5 * 3, 0)]


def test_a_click_of_another_session_than_its_list_counts_with_no_number_of_partitions() -> None:
    log = [value for n in range(12) for value in _login(n)]
    found = [count(log, partitions) for partitions in (1, 4, 7)]
    assert found[0] == found[1] == found[2]
    assert found[0]["windows"] == [("q", "a", 0, 12, 0), ("q", "b", 1, 12, 0)]
    assert found[0]["totals"]["orphan_click"] == 12


def _login(number: int) -> list[bytes]:
    shown = impression(f"i{number}", START, f"L{number}", session_id=f"anon-{number}")
    return [shown, click(f"c{number}", START + 5, f"L{number}", session_id=f"user-{number}")]


DAY_AFTER = day(START) + timedelta(days=1)


def visits() -> Iterator[bytes]:
    """Sessions whose visitor logs in before the second click, whose clock is behind, and which share their ids."""
    for number in range(12):
        before, after = f"anon-{number}", f"user-{number}"
        yield query("q", START, session_id=before)
        yield impression("i", START + 1, "L", session_id=before)
        yield click("c", START + 1 - number * 30, "L", session_id=before)
        yield click("d", START + 5, "L", position=1, session_id=after)
        yield query("q", START + 9, "after the login", session_id=after)


def test_a_replay_counts_the_same_with_1_4_and_7_partitions(tmp_path: Path) -> None:
    log = tmp_path / "login.jsonl"
    log.write_bytes(b"\n".join(visits()))
    found = []
    for partitions in (1, 4, 7):
        out = tmp_path / f"{partitions}"
        summary = replay_isolated(log, [DAY_AFTER], out, settings=StreamsSettings(kafka=KafkaSettings(partitions=partitions)))
        files = [(out / name).read_text() for name in ("windows.csv", "cooccurrence.csv")]
        # Whether the detail says that the list is another session's depends on whether it is in the same shard.
        with (out / "quarantine.csv").open() as table:
            files += sorted(f"{row['number']} {row['event_id']} {row['reason']}" for row in csv.DictReader(table))
        found.append((files, {name: summary[name] for name in ("events", "counted", "duplicates", "quarantined")}))
    assert found[0] == found[1] == found[2]
    # 300 s are within the lead, 330 s are not
    assert found[0][1] == {"events": 60, "counted": 47, "duplicates": 0, "quarantined": {"orphan_click": 13}}
