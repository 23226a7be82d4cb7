"""The newest index artifact, from which lists are answered while no release is live."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from serving.fallback import Suggester
from streams.runtime import artifacts

log = logging.getLogger(__name__)


class FallbackIndex:
    """Has the newest index that can be loaded and is not empty. `load` may raise anything; with None there is never one."""

    def __init__(self, root: Path, load: Callable[[Path], Suggester] | None) -> None:
        self.index: Suggester | None = None
        self._root = root / "artifacts"
        self._load = load
        self._seen: Path | None = None

    def check(self) -> None:
        """Load the newest index where it is one that was not seen yet; one that cannot be used is logged once."""
        newest = artifacts.find_latest(self._root, "index") if self._load else None
        if newest is None or self._load is None or newest == self._seen:
            return
        self._seen = newest
        try:
            found = self._load(artifacts.load(newest).path)
        except Exception as error:  # noqa: BLE001 - whatever a damaged index raises, a release must still be loaded
            log.error("event=index_failed index=%s error=%r", newest, error)
            return
        if found.find_popular(1):
            self.index = found
            log.info("event=index_answers index=%s", newest)

    def drop(self) -> None:
        """Free the index: a release is live, which has its own."""
        self.index = self._seen = None


def load_fallback(path: Path) -> Suggester:
    """Load an index artifact. Raises ValueError, OSError or ImportError."""
    from index.retrieve import Index

    return Index.load(path)
