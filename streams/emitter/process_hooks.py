"""What happens to running emitters when their process forks or ends.

A forked child has none of its parent's threads: it leaves the parent's runs alone, and an emitter that is used there starts a run
of its own. A process that ends without `close` still delivers what is buffered, within the emitters' `exit_timeout_s`.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from streams.emitter.emitter_run import EmitterRun

log = logging.getLogger(__name__)


class Forkable(Protocol):
    """An emitter, as the hooks see it."""

    def leave_parent(self) -> None: ...


_emitters: weakref.WeakSet[Forkable] = weakref.WeakSet()
_runs: set[EmitterRun] = set()
_inherited: list[EmitterRun] = []
"""A parent's runs, kept in its child: were they collected, their sockets' clean-up would disturb the parent's epoll."""


def add_emitter(emitter: Forkable) -> None:
    """Have `leave_parent` called in each child that this process forks."""
    _emitters.add(emitter)


def add_run(run: EmitterRun) -> None:
    """Have a run's events delivered when the process ends; call `remove_run` when it is closed."""
    for ended in [one for one in _runs.copy() if one.is_ended()]:
        _runs.discard(ended)
    _runs.add(run)
    atexit.unregister(finish_runs)
    atexit.register(finish_runs)
    # A child of multiprocessing ends by os._exit, which calls no exit function; it has a list of its own.
    if (multiprocessing := sys.modules.get("multiprocessing.util")) is not None:
        multiprocessing.Finalize(None, finish_runs, exitpriority=10)


def remove_run(run: EmitterRun) -> None:
    """Forget a run that was closed."""
    _runs.discard(run)


def finish_runs(clock: Callable[[], float] = time.monotonic) -> None:
    """Deliver what all runs have buffered, or leave it in their outboxes, and log what was lost or left."""
    began = clock()
    for run in sorted(_runs.copy(), key=lambda one: one.settings.exit_s):
        _runs.discard(run)
        _finish_run(run, max(0.0, began + run.settings.exit_s - clock()))


def _finish_run(run: EmitterRun, timeout_s: float) -> None:
    failed, topic = run.counters().failed, run.settings.topic
    run.close(timeout_s)
    counters = run.counters()
    if lost := counters.failed - failed:
        said = "close the emitter before the process ends, raise emitter.exit_timeout_s, or set emitter.outbox_dir"
        log.error("event=lost_at_exit topic=%s events=%d action=%r", topic, lost, said)
    if counters.on_disk and run.outbox is not None:
        said = "the next emitter on that folder sends them first"
        log.warning("event=left_at_exit topic=%s events=%d folder=%s said=%r", topic, counters.on_disk, run.outbox.folder, said)


def _leave_parents_runs() -> None:
    inherited = [*_runs]
    _inherited.extend(inherited)
    _runs.clear()
    for run in inherited:
        run.leave_to_parent()
    for emitter in list(_emitters):
        emitter.leave_parent()


os.register_at_fork(after_in_child=_leave_parents_runs)
