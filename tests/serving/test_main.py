"""The serving process: one line says why it cannot start; as a real process it serves, swaps and stops cleanly."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from serving.__main__ import bind, configure, main
from serving.metrics import WAITING
from serving.releases import registry
from serving.settings import ServingSettings
from streams.brokers.broker import Broker
from streams.brokers.topics import KafkaSettings, create_topics
from streams.runtime import artifacts
from streams.runtime.data_folder import open_data_folder
from streams.runtime.processes import free_port
from tests.support.models import make_tiny_policy
from tests.support.prometheus import read_value

AIOHTTP_KEEPS_S = 15.0
"""An idle connection, in a pool with its documented default."""
STARTED = re.compile(r"event=listening url=(\S+)")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings file, no settings of the person who runs the tests, and the tests' own logging afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("QUERYLOOP_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_it_needs_a_broker(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "kafka.bootstrap" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("QUERYLOOP_SERVING_HOST", "0.0.0.0", "serving.key"),
        ("QUERYLOOP_SERVING_PRT", "1", "did you mean port"),
        ("QUERYLOOP_SERVING_TEMPERATURE", "hot", "serving.temperature"),
    ],
)
def test_bad_settings_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, said: str
) -> None:
    monkeypatch.setenv("QUERYLOOP_KAFKA_BOOTSTRAP", "127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert main([]) == 2
    text = capsys.readouterr().err
    assert said in text
    assert text.count("\n") == 1


def test_a_key_opens_other_addresses() -> None:
    assert ServingSettings(host="0.0.0.0", key="long enough").host == "0.0.0.0"
    for host in ("127.0.0.2", "::1", "localhost"):
        assert ServingSettings(host=host).key is None


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("QUERYLOOP_KAFKA_BOOTSTRAP", "127.0.0.1:9")
        monkeypatch.setenv("QUERYLOOP_SERVING_PORT", str(port))
        assert main([]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err


def test_an_idle_connection_outlives_the_pools_of_clients() -> None:
    """One that both sides give up at the same time fails the call that was just sent on it, and a POST is not sent again."""
    assert configure(FastAPI(), ServingSettings()).timeout_keep_alive > AIOHTTP_KEEPS_S
    assert configure(FastAPI(), ServingSettings(keep_alive_s=75)).timeout_keep_alive == 75


def test_a_free_port_is_found() -> None:
    with bind(ServingSettings(port=0)) as listener:
        assert listener.getsockname()[1] > 0


@contextmanager
def served(data: Path, bootstrap: str, log: Path, **variables: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A serving process over TCP, and its address."""
    environment = {
        **os.environ,
        "QUERYLOOP_DATA_DIR": str(data),
        "QUERYLOOP_KAFKA_BOOTSTRAP": bootstrap,
        "QUERYLOOP_SERVING_PORT": "0",
        "QUERYLOOP_SERVING_DEVICE": "cpu",
        "QUERYLOOP_SERVING_POLL_S": "0.05",
        "QUERYLOOP_SERVING_DEADLINE_S": "30",
        "QUERYLOOP_SERVING_DRAIN_S": "0",
        "QUERYLOOP_TASKS_SUGGEST": '{"template": "{query} =>", "max_item_tokens": 4}',
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        **variables,
    }
    with log.open("wb") as file, subprocess.Popen([sys.executable, "-m", "serving"], env=environment, stderr=file) as process:
        try:
            yield wait_for(lambda: (found := STARTED.search(log.read_text())) and found[1], process), process
        finally:
            if process.poll() is None:
                process.kill()


def wait_for(look: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 90) -> str:
    """The first true value of `look`; fails when the process ends or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return str(found)
        assert process.poll() is None, "the process ended"
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def publish(data: Path, seed: int) -> str:
    policy = artifacts.publish(data / "artifacts", "policy", lambda folder: fill(folder, seed), {})
    return registry.publish(data, policy=policy.path).id


def fill(folder: Path, seed: int) -> None:
    make_tiny_policy(folder, seed=seed)


def test_a_real_process_serves_swaps_and_stops(tmp_path: Path, embedded_broker: Broker) -> None:
    create_topics(embedded_broker.bootstrap, KafkaSettings())
    log = tmp_path / "serving.log"
    with served(tmp_path, embedded_broker.bootstrap, log) as (url, process), httpx.Client(base_url=url, timeout=40) as client:
        assert client.get("/healthz").status_code == 200
        folder = open_data_folder(tmp_path)
        assert (told := client.get("/readyz")).status_code == 503
        assert folder.headers(with_path=True).items() <= {name.title(): value for name, value in told.headers.items()}.items()
        for seed in range(2):
            registry.promote(tmp_path, publish(tmp_path, seed))
        wait_for(lambda: client.get("/readyz").json()["release"] == "r0001", process)
        statuses = asyncio.run(load_while_swapping(url, lambda: registry.rollback(tmp_path)))
        assert set(statuses) == {(200, "r0001"), (200, "r0000")}
        broken = publish(tmp_path, 2)
        weights = registry.read_release(tmp_path, broken).policy / "model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(b"junk")
        registry.promote(tmp_path, broken)
        wait_for(lambda: client.get("/readyz").json()["error"], process)
        assert client.get("/readyz").json()["release"] == "r0000"
        call = {"query": "red shoes", "session_id": tmp_path.name, "impression_id": tmp_path.name}
        answer = client.post("/v1/recommend", json=call).json()
        events = [{"type": "query", "event_id": "e1", "ts": 1.7e9, "session_id": "s", "query": "shoes"}]
        assert client.post("/v1/events", json={"events": events}).json() == {"accepted": 1, "rejected": []}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    said = log.read_text()
    assert said.count("event=release_failed") == 1
    emitted = len(statuses) + 2
    assert f"event=stopped emitted={emitted} delivered={emitted} failed=0" in said
    (seen,) = [line for line in read_topic(embedded_broker.bootstrap) if line.get("impression_id") == tmp_path.name]
    assert all(seen.get(name) == answer[name] for name in ("items", "release", "logprob", "task", "decoding"))


def emitter_events(client: httpx.Client, state: str) -> float | None:
    name = "queryloop_emitter_waiting_events" if state in WAITING else "queryloop_emitter_events_total"
    return read_value(client.get("/metrics").text, name, state=state)


def test_events_that_were_answered_202_survive_the_process_and_an_outage_of_the_broker(
    tmp_path: Path, embedded_broker: Broker
) -> None:
    create_topics(embedded_broker.bootstrap, KafkaSettings())
    away, log = f"127.0.0.1:{free_port()}", tmp_path / "serving.log"
    ids = [f"{tmp_path.name}-{number}" for number in range(50)]
    with served(tmp_path, away, log) as (url, process), httpx.Client(base_url=url, timeout=40) as client:
        for name in ids:
            event = {"type": "query", "event_id": name, "ts": 1.7e9, "session_id": "s", "query": "shoes"}
            assert client.post("/v1/events", json={"events": [event]}).status_code == 202
        assert emitter_events(client, "on_disk") == 50
        process.kill()
        process.wait()
    log.unlink()
    with served(tmp_path, embedded_broker.bootstrap, log) as (url, process), httpx.Client(base_url=url, timeout=40) as client:
        wait_for(lambda: emitter_events(client, "delivered") == 50, process)
        assert emitter_events(client, "recovered") == 50
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    found = [line["event_id"] for line in read_topic(embedded_broker.bootstrap) if line["event_id"] in ids]
    assert found == ids


def read_topic(bootstrap: str) -> list[dict[str, Any]]:
    """Return all events of the topic, once nothing arrived for two seconds."""
    from kafka import KafkaConsumer

    consumer = KafkaConsumer("events", bootstrap_servers=bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=2000)
    lines = [json.loads(line) for record in consumer for line in record.value.split(b"\n")]
    consumer.close()
    return lines


async def load_while_swapping(url: str, swap: Callable[[], object]) -> list[tuple[int, str]]:
    """Status and release of every answer to eight clients, until the release has changed for all of them."""
    answers: list[tuple[int, str]] = []
    deadline = time.monotonic() + 60
    async with httpx.AsyncClient(base_url=url, timeout=40) as client:

        async def ask(number: int) -> None:
            while time.monotonic() < deadline:
                answer = await client.post("/v1/recommend", json={"query": "red shoes", "session_id": f"s{number}"})
                answers.append((answer.status_code, answer.json().get("release", answer.text)))
                if answers[-1] == (200, "r0000"):
                    return

        clients = [asyncio.create_task(ask(number)) for number in range(8)]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(swap)
        await asyncio.gather(*clients)
    return answers
