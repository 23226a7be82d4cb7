"""The trainers' HTTP: metrics for those who have the key, health for everybody, and a port that is named when it is taken."""

from __future__ import annotations

import asyncio
import socket

import aiohttp
import pytest
from pydantic import SecretStr, ValidationError

from trainers.jobs.http import PortBusy, listening, make_app
from trainers.jobs.timetable import TimetableSettings

Answer = tuple[int, str]


def ask(path: str, settings: TimetableSettings, *, key: str | None = None, lives: bool = True, text: bytes = b"a 1\n") -> Answer:
    """Return status and body of a request to the HTTP of these settings."""

    async def scenario() -> Answer:
        app = make_app(settings.key, lambda: text, lambda: lives)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with (
            listening(app, settings.host, settings.port) as (host, port),
            aiohttp.ClientSession() as client,
            client.get(f"http://{host}:{port}{path}", headers=headers) as answer,
        ):
            return answer.status, await answer.text()

    return asyncio.run(scenario())


def test_metrics_are_answered_without_a_key_on_loopback() -> None:
    assert ask("/metrics", TimetableSettings(port=0)) == (200, "a 1\n")


@pytest.mark.parametrize(("key", "status"), [("right", 200), ("wrong", 401), (None, 401), ("r\u00efght", 401)])
def test_with_a_key_metrics_want_it_and_health_does_not(key: str | None, status: int) -> None:
    settings = TimetableSettings(port=0, key=SecretStr("right"))
    assert ask("/metrics", settings, key=key)[0] == status
    assert ask("/healthz", settings, key=key)[0] == 200


def test_health_follows_the_heartbeat() -> None:
    assert ask("/healthz", TimetableSettings(port=0), lives=False) == (503, "no heartbeat")


def test_another_address_than_loopback_wants_a_key() -> None:
    with pytest.raises(ValidationError, match=r"timetable\.host = 0\.0\.0\.0 is not loopback: set timetable\.key"):
        TimetableSettings(host="0.0.0.0")


def test_a_port_that_is_taken_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortBusy, match=rf"{port}.*timetable\.port"):
            ask("/metrics", TimetableSettings(port=port))
