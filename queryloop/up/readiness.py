"""Whether worker and server are ready, and in words what they still do: open shards, catch up, load a release."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from streams.api.client import HttpError, get_json

if TYPE_CHECKING:
    from pydantic import SecretStr

POLL_S = 0.5
TIMEOUT_S = 3.0
BEHIND_S = 10.0
"""Seconds that counting may be behind the log before it is said to catch up."""
NO_RELEASE = "events are accepted; lists are refused (503) until a release is live: `queryloop run policy` makes the first one"
FALLS_BACK = "lists are answered from the index (form fallback) until `queryloop run policy` has made the first release"


@dataclass(frozen=True)
class Readiness:
    """Whether a process is ready, and its state in a few words."""

    ready: bool
    text: str


def describe_shards(lag: dict[str, Any]) -> Readiness:
    """Return the worker's state from its answer to /v1/lag?partial=true: ready once each shard is open somewhere."""
    opened, missing = len(lag["shards"]), len(lag["missing"])
    if missing:
        return Readiness(False, f"opening shards {opened} of {opened + missing}")
    if (lag.get("seconds") or 0.0) > BEHIND_S:
        return Readiness(True, f"catching up: {lag['records']} records, {lag['seconds']:.0f} s behind")
    return Readiness(True, "up")


def describe_release(answer: dict[str, Any]) -> Readiness:
    """Return the server's state from its answer to /readyz; a server without a promoted release has nothing to get ready."""
    if answer.get("form") and not answer.get("loading") and not answer.get("failed"):
        return Readiness(True, FALLS_BACK)
    if answer.get("ready"):
        return Readiness(True, f"lists are answered by {answer['release']}")
    if answer.get("loading"):
        return Readiness(False, f"loading {answer['loading']}")
    if answer.get("missing"):
        return Readiness(True, f"events are accepted; lists are refused (503): {answer['error']}")
    if answer.get("failed"):
        return Readiness(False, str(answer["error"]))
    return Readiness(True, NO_RELEASE)


def ask_worker(url: str, key: SecretStr | None) -> Readiness:
    """Ask a worker whether it is ready."""
    try:
        return describe_shards(get_json(f"{url}/v1/lag", key, {"partial": "true"}, timeout_s=TIMEOUT_S))
    except HttpError as error:
        return Readiness(False, f"the worker does not answer: {error.reason}")


def ask_server(url: str) -> Readiness:
    """Ask a server whether it is ready."""
    try:
        return describe_release(get_json(f"{url}/readyz", None, timeout_s=TIMEOUT_S))
    except HttpError as error:
        return describe_release(error.answer) if error.answer else Readiness(False, f"the server does not answer: {error.reason}")


def announce(
    asks: list[Callable[[], Readiness]],
    print_line: Callable[[str], None],
    since: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] | None = None,
) -> None:
    """Print each new state of what is not ready, and return after the line that all is ready. `since` is a time of `clock`."""
    pause, said = wait or Event().wait, ""
    while True:
        found = [ask() for ask in asks]
        pending = "; ".join(one.text for one in found if not one.ready)
        if not pending:
            print_line(f"ready in {clock() - since:.1f} s: {found[-1].text}")
            return
        if pending != said:
            print_line(pending)
            said = pending
        pause(POLL_S)
