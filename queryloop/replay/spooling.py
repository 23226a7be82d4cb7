"""A log from standard input or a pipe, written to a temporary file first: a replay reads its log more than once."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STDIN = Path("-")


@contextmanager
def spooled(path: Path) -> Iterator[Path]:
    """Return the path of a log that can be read again: itself, or a copy of standard input (-) or of a pipe, removed later."""
    if path != STDIN and (not path.exists() or path.is_file() or path.is_dir()):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="queryloop-stdin-") as folder:
        copy = Path(folder) / ("stdin" if path == STDIN else path.name)
        with copy.open("wb") as target:
            if path == STDIN:
                shutil.copyfileobj(sys.stdin.buffer, target)
            else:
                with path.open("rb") as source:
                    shutil.copyfileobj(source, target)
        yield copy
