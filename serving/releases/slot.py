"""The slot of the live release, into which a newly promoted one is swapped between two batches.

A release is verified, loaded and warmed up in a thread that yields the processor to the batches; then one reference is replaced.
Batches lease the release they started with; the old one is freed when its last batch has ended. A release that fails to load
changes nothing but `error`.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from serving.metrics import ServingMetrics
from serving.recommend import Retriever, Scorer
from serving.releases.fallback_index import FallbackIndex
from serving.releases.registry import Release, ReleaseError, read_release, read_rollout, verify

if TYPE_CHECKING:
    from serving.policy.engines import Engine

log = logging.getLogger(__name__)
_NICENESS = 15


class NoReleaseError(RuntimeError):
    """Nothing can be answered yet; the text says why."""


@dataclass(eq=False)
class Bundle:
    """A loaded release: what a batch needs to answer. `leases` counts the batches under way; guarded by the slot."""

    release: Release
    engine: Engine
    index: Retriever | None = None
    predictor: Scorer | None = None
    leases: int = field(default=0, compare=False)


Load = Callable[[Release], Bundle]


class Slot:
    """Has the live bundle. `load` returns a warmed one and may raise anything; `clock` gives seconds.

    `missing` says what has to be installed before any release can be loaded: then none ever is. `fallback` has the index that
    answers until the first release is live."""

    def __init__(
        self,
        root: Path,
        load: Load,
        metrics: ServingMetrics,
        *,
        poll_s: float = 0.5,
        retry_s: float = 30.0,
        clock: Callable[[], float] = monotonic,
        missing: str | None = None,
        fallback: FallbackIndex | None = None,
    ) -> None:
        self.missing = missing
        self.fallback = fallback or FallbackIndex(root, load=None)
        self.error: str | None = None
        self._root = root
        self._load = load
        self._metrics = metrics
        self._poll_s = poll_s
        self._retry_s = retry_s
        self._clock = clock
        self._lock = threading.Lock()
        self._live: Bundle | None = None
        self._failed: tuple[str, float] | None = None
        self._loading: tuple[str, float] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def release(self) -> str | None:
        """The id of the live release."""
        live = self._live
        return live.release.id if live else None

    @property
    def reason(self) -> str:
        """Why nothing is live: a package is missing, a release failed to load, is loading, or none is promoted."""
        loading = self._loading
        if self.missing:
            return self.missing
        if self.error or loading is None:
            return self.error or f"no release is promoted yet in {self._root / 'releases'}"
        return f"release {loading[0]} is loading, for {self._clock() - loading[1]:.0f} s now"

    @property
    def gate(self) -> Mapping[str, Any]:
        """The record of the live release's gate, empty where nothing is live."""
        live = self._live
        return live.release.gate if live else {}

    @property
    def falls_back(self) -> bool:
        """Whether an index answers, because no release is live."""
        return self._live is None and self.fallback.index is not None

    @property
    def ready(self) -> bool:
        """Whether lists are answered as well as they can be: by a release, or by the index while none is promoted.

        While a promoted one is loading, or could not be loaded, other servers may have it, and answer better."""
        return self._live is not None or (self.falls_back and self._loading is None and self.error is None)

    @property
    def loading(self) -> str | None:
        """The id of the release that is being loaded; None while one that failed is only tried again."""
        loading = self._loading
        return loading[0] if loading and not self.error else None

    def start(self) -> None:
        """Start to watch the rollout, in a thread. A promoted release counts as loading from here on."""
        if self.missing:
            return
        with suppress(ReleaseError):  # the first check says what is wrong with the rollout
            if champion := read_rollout(self._root).champion:
                self._loading = (champion, self._clock())
        self._thread = threading.Thread(target=self._watch, name="slot", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; the live release stays."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def lease(self) -> Iterator[Bundle]:
        """Yield the release that is live now, and keep it until the batch has ended. Raises NoReleaseError."""
        with self._lock:
            bundle = self._live
            if bundle is None:
                raise NoReleaseError(self.reason)
            bundle.leases += 1
        try:
            yield bundle
        finally:
            with self._lock:
                bundle.leases -= 1
                drained = bundle is not self._live and not bundle.leases
            if drained:
                log.info("event=release_drained release=%s", bundle.release.id)

    def check(self) -> bool:
        """Read the rollout once and swap when another release is promoted; return whether one went live."""
        name: str | None = None
        if self._live is None:
            self.fallback.check()
        try:
            name = read_rollout(self._root).champion
            if name is None or name == self.release:
                self._recover()
                return False
            if self._failed and self._failed[0] == name and self._clock() < self._failed[1]:
                return False
            self._begin(name)
            bundle = self._load_in_background(name)
        except Exception as error:  # noqa: BLE001 - whatever a broken release raises, the live one must go on
            self._fail(name, error)
            return False
        self._swap(bundle)
        return True

    def _load_in_background(self, name: str) -> Bundle:
        """Load in a thread that yields to the batches, once there is a live release to answer them."""
        if self._live is None:
            return self._load_verified(name)
        with ThreadPoolExecutor(1, thread_name_prefix="load", initializer=_yield_processor) as thread:
            return thread.submit(self._load_verified, name).result()

    def _load_verified(self, name: str) -> Bundle:
        release = read_release(self._root, name)
        verify(self._root, release)
        return self._load(release)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.check()
            self._stop.wait(self._poll_s)

    def _swap(self, bundle: Bundle) -> None:
        with self._lock:
            old, self._live = self._live, bundle
        self._recover()
        self.fallback.drop()
        self._metrics.go_live(bundle.release.id)
        log.info("event=release_live release=%s before=%s", bundle.release.id, old.release.id if old else None)
        del old
        gc.collect()

    def _begin(self, name: str) -> None:
        """Note that a release is being loaded; the error of another one is over."""
        if self._loading is None or self._loading[0] != name:
            self._loading = (name, self._clock())
        if self._failed and self._failed[0] != name:
            self._recover()
            self._loading = (name, self._clock())

    def _recover(self) -> None:
        self.error = self._failed = self._loading = None
        self._metrics.load_failed.set(0)

    def _fail(self, name: str | None, error: Exception) -> None:
        """Keep the live release and log the error, the same one only once."""
        kind = "" if isinstance(error, ReleaseError) else f"{type(error).__name__}: "
        text = f"release {name} cannot go live: {kind}{error}" if name else f"the rollout cannot be read: {error}"
        if text != self.error:
            log.error("event=release_failed release=%s live=%s error=%r", name, self.release, text)
            self._metrics.load_errors.inc()
        self.error, self._loading = text, None
        self._failed = (name, self._clock() + self._retry_s) if name else None
        self._metrics.load_failed.set(1)


def _yield_processor() -> None:
    """Lower the priority of this thread: on Linux niceness is per thread, and inherited by threads that it starts."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
