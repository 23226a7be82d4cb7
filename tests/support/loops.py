"""Real processes of the loop for tests: a worker and a server on a given broker, and calls to their HTTP."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from queryloop.up.worker_process import WorkerProcess, read_status
from serving.releases import registry
from serving.settings import ServingRoot
from streams.runtime import artifacts
from streams.runtime.environment import to_environ
from streams.runtime.processes import Child
from tests.support.models import make_tiny_policy

START_S = 90.0
"""Seconds that a process may take to be ready on a machine that is busy with other tests."""


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(url: str, body: bytes | None = None, content_type: str = "application/json", timeout_s: float = 60.0) -> Answer:
    """GET, or POST where there is a body; an error status is an answer too."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type} if body is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return Answer(answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, {name.lower(): value for name, value in error.headers.items()}, error.read())


def post(url: str, body: Any) -> Answer:
    """POST a value as JSON."""
    return call(url, json.dumps(body).encode())


def answers(url: str) -> bool:
    """Whether a GET there answers 200; False while nobody listens."""
    try:
        return call(url, timeout_s=5).status == 200
    except OSError:
        return False


def publish_policy(data_dir: Path) -> registry.Release:
    """Publish a release of a tiny policy, which nothing points to yet."""

    def fill(folder: Path) -> None:
        make_tiny_policy(folder)

    artifact = artifacts.publish(data_dir / "artifacts", "policy", fill, {})
    return registry.publish(data_dir, policy=artifact.path)


def start_serving(root: ServingRoot, log: Path) -> Child:
    """`python -m serving` with exactly these settings; wait for it with `wait_serving`."""
    return Child("serving", [sys.executable, "-m", "serving"], log, to_environ(root))


def wait_serving(child: Child, url: str) -> None:
    """Return when the server has a live release. Raises ProcessError with the end of its log."""
    child.wait_until(lambda: answers(f"{url}/readyz"), START_S, "ready", poll_s=0.1)


def wait_worker(worker: WorkerProcess, settings: Any, ready: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    """Return the first /status of the worker for which `ready` holds. Raises ProcessError with the end of its log."""
    seen: dict[str, Any] = {}

    def holds() -> bool:
        seen.update(read_status(settings) or {})
        return bool(seen.get("shards")) and ready(seen)

    worker.child.wait_until(holds, START_S, what, poll_s=0.1)
    return seen
