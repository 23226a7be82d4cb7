"""The worker's reads: both workers of a group answer with the same sums over all shards, equal to a plain recount of the log."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from queryloop.up.worker_process import WorkerProcess
from streams.api.snapshot import read_counts
from streams.brokers.broker import Broker
from streams.brokers.topics import create_topics
from streams.worker.settings import StreamsSettings
from tests.streams.worker.test_main import APPLIED_S, emit, make_settings, shards_of
from tests.support.click_rates import expected_coec, expected_smoothed
from tests.support.logs import START, click, day, impression, query
from tests.support.prometheus import read_families, read_value
from tests.support.recount import recount

AS_OF = day(START) + timedelta(days=1)
QUERIES = ["red shoes", "blue hat", "green coat"]
ITEMS = ["a", "b", "c", "d", "e"]


def make_log(sessions: int) -> list[bytes]:
    """Sessions of two queries, one list and sometimes a click, so that every cell has counts in both shards."""
    rng = random.Random(4)
    lines = []
    for number in range(sessions):
        session, ts, text = {"session_id": f"s{number}"}, START + number, rng.choice(QUERIES)
        items = rng.sample(ITEMS, 3)
        lines.append(query(f"q{number}", ts, text, **session))
        lines.append(impression(f"i{number}", ts + 1, f"L{number}", items, query=text, **session))
        lines.append(query(f"n{number}", ts + 60, f"next {rng.randrange(4)}", **session))
        position = rng.randrange(6)
        if position < 3 and rng.random() < 0.9 - 0.3 * position:
            lines.append(click(f"c{number}", ts + 1 + rng.expovariate(0.1), f"L{number}", position, **session))
    return [*lines, b"\x1b[2J junk", query("late", START - 40 * 86_400)]


LOG = make_log(300)


def ask(settings: StreamsSettings, path: str, **parameters: Any) -> dict[str, Any]:
    """Return the JSON answer of one read over HTTP, with its status."""
    url = f"http://127.0.0.1:{settings.worker.port}{path}?{urlencode(parameters)}"
    request = urllib.request.Request(url, headers={"Authorization": "Bearer letmein"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return {"status": answer.status, **json.load(answer)}
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.loads(error.read())}


@pytest.fixture(scope="module")
def group(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[WorkerProcess, StreamsSettings]]]:
    """Two workers that hold one shard each and have applied LOG."""
    folder = tmp_path_factory.mktemp("group")
    topic = f"answers-{folder.name}-{random.Random().randrange(10**9)}"
    both = [
        make_settings(broker.bootstrap, topic, folder, name=name, key="letmein", static=False, retention_days=30)
        for name in ("one", "two")
    ]
    create_topics(broker.bootstrap, both[0].kafka)
    with ExitStack() as stack:
        workers = [stack.enter_context(WorkerProcess(one, folder / f"{one.worker.name}.log")) for one in both]
        for worker, settings in zip(workers, both, strict=True):
            worker.child.wait_until(lambda s=settings: len(shards_of(s)) == 1, APPLIED_S, "one shard each")  # type: ignore[misc]
        positions = emit(both[0], LOG)

        def applied() -> bool:
            return {number: shard["next_offset"] for one in both for number, shard in shards_of(one).items()} == positions

        workers[0].child.wait_until(applied, APPLIED_S, "all applied")
        yield list(zip(workers, both, strict=True))


Group = list[tuple[WorkerProcess, StreamsSettings]]


def test_windows_are_sums_over_all_shards_with_rates_from_the_sums(group: Group) -> None:
    cells = recount(LOG[:-1]).windows(AS_OF)
    smoothed, coec = expected_smoothed(cells), expected_coec(cells)
    for _, settings in group:
        for text in QUERIES:
            answer = ask(settings, "/v1/windows", query=f" {text.upper()} ")
            assert (answer["status"], answer["as_of"], answer["missing"]) == (200, AS_OF.isoformat(), [])
            assert sorted(tuple(row.values())[:5] for row in answer["rows"]) == [cell for cell in cells if cell[0] == text]
            for row in answer["rows"]:
                assert row["raw_ctr"] == row["clicks"] / row["impressions"]
                assert row["smoothed_ctr"] == pytest.approx(float(smoothed[row["query"], row["item"], row["position"]]))
                wanted = coec[row["query"], row["item"]]
                assert row["coec"] == (None if wanted is None else pytest.approx(float(wanted)))
            assert answer["left_out"] == {"impressions": 0, "clicks": 0, "session_cap": 20, "user_cap": 0}
            shown = [row["impressions"] for row in answer["rows"]]
            assert shown == sorted(shown, reverse=True)


def test_windows_can_be_filtered_by_item_position_day_and_limit(group: Group) -> None:
    _, settings = group[0]
    cells = recount(LOG[:-1]).windows(AS_OF)
    by_item = ask(settings, "/v1/windows", item="A", position=1, limit=2)
    assert by_item["total"] == len([cell for cell in cells if cell[1:3] == ("a", 1)]) > 2
    assert [(row["item"], row["position"]) for row in by_item["rows"]] == [("a", 1)] * 2
    both = ask(settings, "/v1/windows", query=QUERIES[0], item="a")
    one = ask(settings, "/v1/windows", query=QUERIES[0], item="a", position=0)
    assert one["rows"] == [row for row in both["rows"] if row["position"] == 0]
    assert ask(settings, "/v1/windows", query=QUERIES[0], as_of=day(START))["rows"] == []
    assert len(ask(settings, "/v1/windows", query=QUERIES[0], as_of=AS_OF + timedelta(days=13))["rows"]) > 0


def test_successors_are_sums_over_all_shards(group: Group) -> None:
    pairs = recount(LOG[:-1]).cooccurrence(AS_OF)
    wanted = Counter({second: count for first, second, count in pairs if first == QUERIES[0]})
    for _, settings in group:
        answer = ask(settings, "/v1/successors", query="RED  shoes")
        assert {row["next_query"]: row["count"] for row in answer["rows"]} == wanted
        assert answer["followed"] == wanted.total()
        assert sum(row["share"] for row in answer["rows"]) == pytest.approx(1)
        counts = [row["count"] for row in answer["rows"]]
        assert counts == sorted(counts, reverse=True)


def test_lag_is_zero_once_all_is_applied(group: Group) -> None:
    for _, settings in group:
        answer = ask(settings, "/v1/lag")
        assert (answer["records"], answer["events"], answer["seconds"]) == (0, 0, 0)
        assert sorted(answer["shards"]) == ["0", "1"]
        assert answer["event_time_seconds"] > 0


def test_state_has_sizes_rows_days_and_memory(group: Group) -> None:
    for _, settings in group:
        answer = ask(settings, "/v1/state")
        counted = recount(LOG[:-1])
        assert answer["rows"]["impressions"] == len(counted.impressions)
        assert answer["rows"]["clicks"] == len(counted.clicked)
        assert answer["file_bytes"] > 0
        assert set(answer["memory_bytes"]) == {"one", "two"}
        assert {shard["days"]["last"] for shard in answer["shards"].values()} == {day(START).isoformat()}


def test_quarantine_has_totals_by_reason_and_shows_escaped_text(group: Group) -> None:
    for _, settings in group:
        answer = ask(settings, "/v1/quarantine")
        assert answer["counts"] == {"malformed": 1, "too_old": 1}
        junk = ask(settings, "/v1/quarantine", reason="malformed", limit=5)
        assert junk["total"] == 1
        assert [row["raw"] for row in junk["rows"]] == ["\\x1b[2J junk"]


def test_delays_are_merged_over_shards(group: Group) -> None:
    events = {json.loads(line)["event_id"]: json.loads(line) for line in LOG[:-2]}
    waited = sorted(event["ts"] - events[f"i{name[1:]}"]["ts"] for name, event in events.items() if event["type"] == "click")
    for _, settings in group:
        answer = ask(settings, "/v1/delays")
        assert answer["clicks"] == len(waited) == sum(bucket["clicks"] for bucket in answer["buckets"])
        assert answer["mean_s"] == pytest.approx(sum(waited) / len(waited), rel=1e-3)
        for name, share in (("p50_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99)):
            assert answer[name] == pytest.approx(waited[int(share * (len(waited) - 1))], rel=0.15)


def test_metrics_hold_every_shard_and_with_local_those_of_one_worker(group: Group) -> None:
    for _, settings in group:
        whole, local = (read_metrics(settings, question) for question in ("", "?local=true"))
        for number in (0, 1):
            assert read_value(whole, "queryloop_lag_records", partition=str(number)) == 0
            assert read_value(whole, "queryloop_click_delay_seconds_count", partition=str(number))
        assert all(read_value(whole, "queryloop_apply_events_count", worker=name) for name in ("one", "two"))
        assert read_value(whole, "queryloop_partitions_missing") == 0
        assert len(read_families(local)["queryloop_counted_events"][2]) == 1
        malformed = [read_value(whole, "queryloop_quarantined_events", partition=str(n), reason="malformed") for n in (0, 1)]
        assert 1 in malformed


def read_metrics(settings: StreamsSettings, question: str) -> str:
    url = f"http://127.0.0.1:{settings.worker.port}/metrics{question}"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": "Bearer letmein"}), timeout=20) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return str(answer.read().decode())


def test_the_counts_of_a_shard_are_found_from_any_worker(group: Group) -> None:
    for _, settings in group:
        dumped = [read_counts(fetch_counts(settings, number)) for number in (0, 1)]
        assert sum(one.counted for one in dumped) == recount(LOG[:-1]).counted
        assert sum(sum(one.windows["impressions"].to_pylist()) for one in dumped) == 3 * 300
        assert ask(settings, "/v1/shards/9/counts")["status"] == 400
        answers = [ask(settings, f"/v1/shards/{number}/quarantine", whole="true", local="false") for number in (0, 1)]
        assert sum(len(answer["rows"]) for answer in answers) == 2, "parameters are kept on the way to the holder"


def fetch_counts(settings: StreamsSettings, number: int) -> bytes:
    url = f"http://127.0.0.1:{settings.worker.port}/v1/shards/{number}/counts"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Authorization": "Bearer letmein"}), timeout=20) as answer:
        return bytes(answer.read())


@pytest.mark.parametrize(
    ("path", "parameters", "problem"),
    [
        ("/v1/windows", {}, "query or item: one of them is needed"),
        ("/v1/windows", {"query": "  "}, "query: only white space"),
        ("/v1/windows", {"query": "q", "as_of": "yesterday"}, "as_of: not a day: write YYYY-MM-DD"),
        ("/v1/windows", {"query": "q", "limit": 100_000}, "limit: must be a whole number from 1 to 10000"),
        ("/v1/windows", {"query": "q", "positoin": 1}, "positoin: no such parameter; there are as_of, item"),
        ("/v1/successors", {}, "query: a value is needed, it must be text of 1 to 4096 characters"),
        ("/v1/quarantine", {"reason": "dull"}, 'reason: must be "malformed", "invalid"'),
    ],
)
def test_wrong_parameters_are_named(group: Group, path: str, parameters: dict[str, Any], problem: str) -> None:
    answer = ask(group[0][1], path, **parameters)
    assert answer["status"] == 400
    assert answer["error"].startswith(problem)


def test_the_shards_of_a_dead_worker_are_named_as_missing(group: Group) -> None:
    (one, first), (_, second) = group
    lost = list(shards_of(first))
    one.child.kill()
    answer = ask(second, "/v1/successors", query=QUERIES[0], as_of=AS_OF)
    assert (answer["status"], answer["missing"]) == (503, lost)
    assert f"no worker answers for partitions {lost[0]}" in answer["error"]
    part = ask(second, "/v1/successors", query=QUERIES[0], as_of=AS_OF, partial="true")
    assert (part["status"], part["missing"]) == (200, lost)
    assert read_value(read_metrics(second, ""), "queryloop_partitions_missing") == len(lost)
