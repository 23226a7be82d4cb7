"""The serving process: `python -m serving`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from serving.metrics import ServingMetrics
    from serving.releases.slot import Slot
    from serving.settings import ServingRoot, ServingSettings
    from streams.emitter.emitter import Emitter

# OpenMP reads these once, when torch is imported: waiting threads must not spin on a machine that also trains.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

log = logging.getLogger("serving")
BAD_START = 2
_BACKLOG = 1024
SPARE_CONNECTIONS = 256
"""Connections that uvicorn accepts beyond the queue and the running batch: health checks and idle connections count too, and its
own refusal is a bare 503, without the reason and the Retry-After that the app sends."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; return 0, or 2 with a line on standard error when it cannot start."""
    from streams.emitter.emitter import OutboxError
    from streams.runtime.logs import configure_logs
    from streams.runtime.settings import SettingsError, load_settings
    from streams.runtime.settings_records import record_settings

    arguments = _read_arguments(argv)
    configure_logs(logging.getLevelNamesMapping()[arguments.log_level.upper()])
    try:
        from serving.settings import ServingRoot

        root = load_settings(ServingRoot, arguments.config)
        if root.kafka.bootstrap is None:
            raise SettingsError("kafka.bootstrap: serving needs a broker, as host:port (QUERYLOOP_KAFKA_BOOTSTRAP)")
        record_settings("serving", root, root.data.dir, arguments.config)
        listener = bind(root.serving)
        set_threads(root.serving.threads)
        emitter = open_emitter(root)
    except (SettingsError, OSError, ImportError, OutboxError) as error:
        print(f"python -m serving: {error}", file=sys.stderr)
        return BAD_START
    with listener:
        return serve(root, emitter, listener)


def open_emitter(root: ServingRoot) -> Emitter:
    """Return the emitter of this process, with an outbox of its own unless `serving.outbox` is off. Raises OutboxError."""
    from streams.emitter.emitter import Emitter

    folder = (root.emitter.outbox_dir or root.data.dir / "outbox") / "serving" if root.serving.outbox else None
    return Emitter(root.kafka, root.emitter.model_copy(update={"outbox_dir": folder}), topic=root.kafka.topic, limits=root.events)


def set_threads(threads: int) -> None:
    """Set the threads of torch, where it is installed: without it events are taken and lists are refused."""
    from serving.models_extra import find_missing

    if missing := find_missing():
        log.warning("event=models_missing detail=%r", missing)
        return
    import torch

    torch.set_num_threads(threads)


def serve(root: ServingRoot, emitter: Emitter, listener: socket.socket) -> int:
    """Run the app on a bound socket until a signal, then deliver buffered events; those that cannot be stay in the outbox."""
    from serving.http.app import create_app
    from serving.http.server import DrainingServer
    from serving.metrics import ServingMetrics
    from serving.models_extra import find_missing
    from serving.releases.loader import import_engine

    keep_freed_memory()
    if not find_missing():
        threading.Thread(target=import_engine, name="import", daemon=True).start()
    metrics, stopping = ServingMetrics(root.tasks), threading.Event()
    with emitter:
        app = create_app(root, make_slot(root, metrics), emitter, metrics, stopping=stopping)
        server = DrainingServer(configure(app, root.serving), stopping, root.serving.drain_s)
        host, port = listener.getsockname()[:2]
        log.info("event=listening url=http://%s:%d data=%s", f"[{host}]" if ":" in host else host, port, root.data.dir)
        ignore_signals()
        server.run(sockets=[listener])
    counters = emitter.counters()
    outcome = (counters.emitted, counters.delivered, counters.failed, counters.on_disk)
    log.info("event=stopped emitted=%d delivered=%d failed=%d on_disk=%d", *outcome)
    return 0


def ignore_signals() -> None:
    """Ignore signals outside uvicorn, which raises one again after it stopped: that would end the process before all is sent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def make_slot(root: ServingRoot, metrics: ServingMetrics) -> Slot:
    """Return the slot over the data folder's releases, loading them by the settings."""
    from serving.models_extra import find_missing
    from serving.releases.fallback_index import FallbackIndex, load_fallback
    from serving.releases.loader import load_bundle
    from serving.releases.slot import Slot

    serving = root.serving
    return Slot(
        root.data.dir,
        lambda release: load_bundle(release, root.tasks, serving.device, predict=serving.predict, max_batch=serving.max_batch),
        metrics,
        poll_s=serving.poll_s,
        retry_s=serving.retry_s,
        missing=find_missing(),
        fallback=FallbackIndex(root.data.dir, load_fallback),
    )


def configure(app: FastAPI, serving: ServingSettings) -> uvicorn.Config:
    """Return uvicorn's configuration: no access log (it would name paths and clients), and a limit on connections."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=2 * (serving.queue_limit + serving.max_batch) + SPARE_CONNECTIONS,
        timeout_keep_alive=serving.keep_alive_s,
        timeout_graceful_shutdown=int(serving.deadline_s) + 1,
    )


def bind(serving: ServingSettings) -> socket.socket:
    """Return a listening socket. Raises OSError naming the address that cannot be used, and the setting."""
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((serving.host, serving.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {serving.host} port {serving.port}: {error.strerror}; set serving.port or free it"
        ) from error
    return listener


def keep_freed_memory() -> None:
    """Let glibc keep big buffers instead of giving them back: a pass of a small policy is 30 % faster (measured)."""
    import ctypes

    trim_threshold, mmap_threshold = -1, -3
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(trim_threshold, 256 << 20)
        set_option(mmap_threshold, 128 << 20)


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serve recommended queries over HTTP from the current release.",
        epilog="example: QUERYLOOP_KAFKA_BOOTSTRAP=127.0.0.1:9092 python -m serving --config queryloop.toml",
    )
    parser.add_argument("--config", type=Path, help="settings file (default: $QUERYLOOP_CONFIG, else ./queryloop.toml if there)")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
