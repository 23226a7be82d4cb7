"""A batch of events: good ones are emitted as they are, the others refused by index and reason."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.http.app import create_app
from serving.http.events_batch import split_batch, split_lines
from serving.http.events_request import Refusal, accept_events
from serving.metrics import ServingMetrics
from serving.settings import ServingRoot
from streams.emitter.emitter import Counters, Emitter, EmitterSettings, QueueFull
from streams.events.schema import DEFAULT_LIMITS, Event, encode
from streams.runtime.settings import DataSettings
from tests.support.failing_disk import FailingDisk
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import AppUnderTest

NOW = 1_600_000_000.0


class Sink:
    """Keeps events; is full after `room` of them."""

    def __init__(self, room: int = 1000) -> None:
        self.room = room
        self.lines: list[bytes] = []

    def emit(self, event: Event) -> None:
        if len(self.lines) >= self.room:
            raise QueueFull("no room")
        self.lines.append(encode(event))

    def store(self, timeout: float) -> bool:
        return True

    def counters(self) -> Counters:
        return Counters(emitted=len(self.lines))


def query(number: int, **more: Any) -> dict[str, Any]:
    return {"type": "query", "event_id": f"e{number}", "ts": NOW, "session_id": "s", "query": "shoes", **more}


GOOD = st.builds(query, st.integers(0, 99))
BAD = st.sampled_from([{"type": "nothing"}, [], 3, None, query(1, query=""), query(1, ts=NOW + 10**8), query(1, query="x" * 513)])


@given(st.lists(st.one_of(GOOD.map(lambda event: (True, event)), BAD.map(lambda event: (False, event))), max_size=20))
def test_every_event_is_accepted_or_refused(batch: list[tuple[bool, Any]]) -> None:
    events = [event for _, event in batch]
    lines = [json.dumps(event).encode() for event in events]
    for found in (split_batch(json.dumps({"events": events}).encode(), 1000), split_lines(b"\n".join(lines), 1000)):
        sink = Sink()
        result = accept_events(found, sink, DEFAULT_LIMITS, NOW)
        assert [refusal.index for refusal in result.rejected] == [place for place, (good, _) in enumerate(batch) if not good]
        assert [json.loads(line) for line in sink.lines] == [event for good, event in batch if good]
        assert result.accepted == len(sink.lines)
        assert result.full is None


def test_reasons_are_those_of_quarantine() -> None:
    lines = [
        b"\xff\xfe",
        b"{",
        b"{}",
        json.dumps(query(1, query="x" * 600)).encode(),
        json.dumps(query(1, ts=NOW + 1e8)).encode(),
    ]
    result = accept_events(lines, Sink(), DEFAULT_LIMITS, NOW)
    assert [refusal.reason for refusal in result.rejected] == ["malformed", "malformed", "invalid", "too_large", "future_event"]
    assert isinstance(result.rejected[0], Refusal)


def test_unknown_fields_are_kept() -> None:
    sink = Sink()
    accept_events([json.dumps(query(1, device="phone")).encode()], sink, DEFAULT_LIMITS, NOW)
    assert json.loads(sink.lines[0])["device"] == "phone"


def test_line_breaks_inside_an_event_are_white_space() -> None:
    sink = Sink()
    body = json.dumps({"events": [query(1)]}, indent=2).encode()
    accept_events(split_batch(body, 10), sink, DEFAULT_LIMITS, NOW)
    assert b"\n" not in sink.lines[0]


def test_a_full_buffer_ends_the_batch_and_says_where() -> None:
    lines = [json.dumps(query(number)).encode() for number in range(5)]
    result = accept_events([b"{", *lines], Sink(room=2), DEFAULT_LIMITS, NOW)
    assert (result.accepted, result.seen, result.full) == (2, 3, "no room")
    assert [refusal.index for refusal in result.rejected] == [0]


def test_events_that_the_disk_refuses_while_kafka_is_away_are_answered_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, served = FailingDisk(monkeypatch), AppUnderTest(tmp_path / "data", ScriptedEngine())
    root = ServingRoot(data=DataSettings(dir=tmp_path / "data"))
    with Emitter("127.0.0.1:1", EmitterSettings(outbox_dir=tmp_path / "outbox")) as emitter:
        served.app = create_app(root, served.slot, emitter, ServingMetrics(), clock=lambda: NOW)

        async def scenario(client: httpx.AsyncClient) -> None:
            assert (await client.post("/v1/events", json={"events": [query(0)]})).status_code == 202
            disk.write_error = errno.ENOSPC
            answer = await client.post("/v1/events", json={"events": [query(1)]})
            assert answer.status_code == 503 and answer.headers["Retry-After"]
            assert "neither the disk nor Kafka" in answer.json()["error"]
            disk.write_error = 0
            assert (await client.post("/v1/events", json={"events": [query(1)]})).status_code == 202

        served.run(scenario)
        assert emitter.counters().on_disk == 3
        emitter.close(0)


@pytest.fixture
def served(tmp_path: Path) -> AppUnderTest:
    return AppUnderTest(tmp_path, ScriptedEngine())


def test_a_wholly_refused_batch_is_a_422_with_every_reason(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        events = [{"type": "query", "query": "\u200b"}, {"type": "click", "event_id": "c", "ts": NOW, "query": "x"}, 3]
        for body, kind in (
            (json.dumps({"events": events}), "application/json"),
            ("\n".join(map(json.dumps, events)), "application/x-ndjson"),
        ):
            answer = await client.post("/v1/events", content=body, headers={"content-type": kind})
            assert (answer.status_code, answer.json()["accepted"]) == (422, 0)
            assert [(one["index"], one["reason"]) for one in answer.json()["rejected"]] == [(n, "invalid") for n in range(3)]
            assert answer.json()["error"].startswith("every event was refused; event 0: invalid: Object missing required fields ")
            missing = [one["detail"] for one in answer.json()["rejected"][:2]]
            assert missing == [
                "Object missing required fields `event_id`, `ts`, `session_id`",
                "Object missing required fields `impression_id`, `position`, `session_id`",
            ]
        assert (await client.post("/v1/events", json={"events": []})).status_code == 202, "nothing was refused"

    served.run(scenario)
    assert served.sink.events == []


def test_one_event_that_is_no_json_is_refused_by_its_index(served: AppUnderTest) -> None:
    good = json.dumps({"type": "query", "event_id": "e", "ts": NOW, "session_id": "s", "query": "shoes"})
    bad = {
        '{"query": "cut \\ud83d"}': "malformed",
        '{"query": "a\x00b"}': "malformed",
        '{"a": ' + "[" * 10_000 + "]" * 10_000 + "}": "malformed",
        '{"ts": ' + "9" * 6000 + "}": "invalid",
        "NaN": "malformed",
        "[]": "invalid",
        good[:-1] + ', "ts": "never"}': "invalid",
    }

    async def scenario(client: httpx.AsyncClient) -> None:
        for event, reason in bad.items():
            body = '{"events": [' + ", ".join([good] * 50 + [event] + [good] * 49) + "]}"
            answer = await client.post("/v1/events", content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["accepted"]) == (202, 99), event[:40]
            assert [(one["index"], one["reason"]) for one in answer.json()["rejected"]] == [(50, reason)], event[:40]

    served.run(scenario)
    assert len(served.sink.events) == 99 * len(bad)
