"""`queryloop up`: the stack of this machine, run until a signal."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from queryloop.exits import Exit
from queryloop.settings import read_settings, read_settings_alone
from queryloop.up.readiness import Readiness, announce, ask_server, ask_worker
from queryloop.up.stack import Stack, UpError


def run(options: argparse.Namespace) -> int:
    """Run everything until Ctrl-C or SIGTERM: 0 after a clean stop, 3 when it could not start. Raises SettingsError."""
    settings, started = read_settings(options), time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        with Stack(settings, print_line=_print, config=options.config, as_read=read_settings_alone(options)) as stack:
            _wait_for_interrupt(
                lambda: announce(_asks(stack), _print, started),
                f"started in {time.monotonic() - started:.1f} s: serving {stack.urls.serving}, "
                f"worker {stack.urls.worker}/status, broker {stack.bootstrap} (products: QUERYLOOP_KAFKA_BOOTSTRAP)",
                f"logs in {settings.data.dir / 'logs'}; Ctrl-C stops everything",
            )
            _print("stopping trainers, serving, worker, broker")
    except UpError as error:
        print(f"queryloop up: {error}", file=sys.stderr)
        return Exit.UNAVAILABLE
    except KeyboardInterrupt:
        _print("stopped before everything was ready")
    return Exit.DONE


def _asks(stack: Stack) -> list[Callable[[], Readiness]]:
    return [
        lambda: ask_worker(stack.urls.worker, stack.settings.worker.key),
        lambda: ask_server(stack.urls.serving),
    ]


def _wait_for_interrupt(announce_ready: Callable[[], None], *lines: str) -> None:
    """Print the lines and wait for the first signal; later signals are ignored, so that stopping is not interrupted."""
    try:
        for line in lines:
            _print(line)
        announce_ready()
        threading.Event().wait()
    except KeyboardInterrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _print(line: str) -> None:
    print(line, flush=True)
