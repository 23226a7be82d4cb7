"""The peers' environment: quixstreams needs a pydantic older than ours, so the peers have a virtual environment of their own.

It is made on first use from `peers.lock` (versions and hashes, from PyPI) and kept for the user, like Kafka's jars.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

LOCK = Path(__file__).with_name("peers.lock")
PEERS = Path(__file__).with_name("peers")
TIMEOUT_S = 600.0


class PeersUnavailable(RuntimeError):
    """The peers' environment cannot be made; the text says why and what to do."""


def peer_folder(lock: bytes) -> Path:
    """Return the folder of the environment for this lock and this Python."""
    digest = hashlib.sha256(lock + sys.version.encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "queryloop" / f"peers-{digest}"


def peer_python() -> Path:
    """Return the Python of the peers' environment, which is made where it is missing; a partly made one is never used.

    Raises PeersUnavailable when uv is missing or PyPI cannot be reached.
    """
    folder = peer_folder(LOCK.read_bytes())
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if ready.exists():
        return python
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is None:
        raise PeersUnavailable("no `uv` beside this Python or on PATH: run `make .venv/.filled`")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Console(stderr=True).status(f"making the peers' environment in {folder} (confluent-kafka, quixstreams), once"):
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)])
        _run([uv, "pip", "sync", "--quiet", "--python", str(python), "--require-hashes", str(LOCK)])
    ready.touch()
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise PeersUnavailable(
            f"{' '.join(command[1:3])} ended with code {done.returncode}: is PyPI reachable?\n{done.stderr.strip()[-1500:]}"
        )
