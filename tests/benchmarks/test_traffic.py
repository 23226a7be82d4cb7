"""Benchmarks, traffic and corpus: seeded, realistic, understood by the real decoder, split as the emitter would."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.corpus import write_corpus
from benchmarks.traffic import DAY_S, EVENTS_A_SESSION, START, Line, Mix, Traffic
from streams.emitter.record_batches import partition_of
from tests.support.decoding import decode_records

EVENTS = 40_000


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return list(Traffic(seed=3).lines(EVENTS))


@pytest.fixture(scope="module")
def events(lines: list[Line]) -> list[dict[str, Any]]:
    return [json.loads(line.text) for line in lines]


def test_the_same_seed_gives_the_same_bytes_however_it_is_taken(lines: list[Line]) -> None:
    traffic = Traffic(seed=3)
    assert [*traffic.lines(20_000)][:500] == lines[:500]
    assert len(lines) == EVENTS
    assert next(iter(Traffic(seed=4).lines(1))).text != lines[0].text


def test_every_line_is_an_event_that_the_decoder_accepts(lines: list[Line]) -> None:
    decoded = decode_records([(0, b"\n".join(line.text for line in lines))])
    assert not decoded.rejects
    assert len(decoded) == EVENTS
    assert {one.session_id for one in decoded.queries} <= {line.session_id for line in lines}


def test_events_are_about_300_bytes_of_the_stated_mix(lines: list[Line], events: list[dict[str, Any]]) -> None:
    assert 270 < sum(len(line.text) for line in lines) / EVENTS < 330
    kinds = Counter(event["type"] for event in events)
    assert 0.10 < kinds["click"] / EVENTS < 0.20
    assert 0.9 < kinds["query"] / kinds["impression"] < 1.1
    lists = [event for event in events if event["type"] == "impression"]
    assert {len(event["items"]) for event in lists} == {3, 4, 5}
    assert all(len(event["predicted"]) == len(event["items"]) == len(set(event["items"])) for event in lists)
    assert {"release", "logprob", "decoding"} <= lists[0].keys()


def test_a_few_per_cent_are_repeats_byte_by_byte(lines: list[Line], events: list[dict[str, Any]]) -> None:
    distinct = {event["event_id"] for event in events}
    assert 0.01 < 1 - len(distinct) / EVENTS < 0.05
    assert len({line.text for line in lines}) == len(distinct)


def test_events_come_roughly_in_order_and_some_late(events: list[dict[str, Any]]) -> None:
    times = [event["ts"] for event in events]
    late = sum(1 for before, ts in pairwise(times) if ts < before - 1.0)
    assert 0.005 < late / EVENTS < 0.1
    assert min(times) >= START


def test_a_click_names_an_item_of_its_list(events: list[dict[str, Any]]) -> None:
    lists = {event["impression_id"]: event for event in events if event["type"] == "impression"}
    clicks = [event for event in events if event["type"] == "click" and event["impression_id"] in lists]
    assert len(clicks) > 1000
    for click in clicks:
        shown = lists[click["impression_id"]]
        assert shown["items"][click["position"]] == click["item"]
        assert (shown["session_id"], shown["query"]) == (click["session_id"], click["query"])


def test_density_in_event_time_and_length_of_sessions_are_those_asked_for() -> None:
    days, events = 2.0, 200_000
    made = list(Traffic(mix=Mix(events_per_day=events / days)).lines(events))
    last = max(json.loads(line.text)["ts"] for line in made)
    assert (last - START) / DAY_S == pytest.approx(days, rel=0.03)
    assert events / len({line.session_id for line in made}) == pytest.approx(EVENTS_A_SESSION, rel=0.03)


def test_a_corpus_keeps_order_in_the_partitions_of_the_emitter(lines: list[Line], tmp_path: Path) -> None:
    corpus = write_corpus(iter(lines[:5000]), 4, tmp_path)
    assert (corpus.events, corpus.bytes) == (5000, sum(len(line.text) for line in lines[:5000]))
    for partition in range(4):
        expected = [line.text for line in lines[:5000] if partition_of(line.session_id, 4) == partition]
        assert corpus.file(partition).read_bytes().splitlines() == expected
