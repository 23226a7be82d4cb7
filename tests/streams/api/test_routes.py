"""A worker's routes: its key, and how /healthz says that it is about to end."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from pydantic import SecretStr

from queryloop.up.worker_process import WorkerProcess, read_status
from streams.api.routes import authorised, take_turn
from streams.brokers.broker import Broker
from streams.store.readers import ReadersBusy
from tests.streams.worker.test_main import make_settings


@pytest.mark.parametrize(
    ("header", "allowed"),
    [
        ("Bearer letmein", True),
        ("Bearer letmeout", False),
        ("letmein", False),
        ("", False),
        ("Bearer \udce4", False),
        ("Bearer ä", False),
    ],
)
def test_a_key_that_is_set_must_be_sent_as_it_is(header: str, allowed: bool) -> None:
    assert authorised(SecretStr("letmein"), {"Authorization": header}) is allowed
    assert authorised(SecretStr("letmein"), {}) is False
    assert authorised(None, {"Authorization": header}) is True


def test_who_asks_while_the_export_before_is_being_cleared_away_waits_for_its_turn() -> None:
    async def ask() -> bool:
        turn = asyncio.Lock()
        await turn.acquire()
        asyncio.get_running_loop().call_soon(turn.release)
        async with take_turn(turn, patience_s=60.0):
            held = turn.locked()
        return held and not turn.locked()

    assert asyncio.run(ask())


def test_who_asks_while_an_export_is_being_sent_for_long_is_refused_and_takes_nothing_from_it() -> None:
    async def ask() -> bool:
        turn = asyncio.Lock()
        async with take_turn(turn):
            with pytest.raises(ReadersBusy, match="another export is being sent"):
                async with take_turn(turn, patience_s=0.0):
                    raise AssertionError("two exports at once")
            return turn.locked()

    assert asyncio.run(ask())


def ask_health(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_that_is_stopping_says_so_before_its_port_closes(tmp_path: Path, embedded_broker: Broker, signals: int) -> None:
    drain_s = 3.0 if signals == 1 else 600.0
    settings = make_settings(embedded_broker.bootstrap, f"{tmp_path.name}-stopping", tmp_path, drain_s=drain_s)
    url = settings.worker.local_url
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        worker.child.wait_until(lambda: read_status(settings) is not None, 60.0, "up")
        assert ask_health(url) == (200, "ok")
        worker.child.terminate()
        worker.child.wait_until(lambda: ask_health(url) == (503, "stopping"), 3.0, "not healthy any more", poll_s=0.05)
        assert read_status(settings) is not None, "reads are answered meanwhile"
        if signals == 2:
            worker.child.terminate()
        assert worker.child.sleep(30.0) == 0
