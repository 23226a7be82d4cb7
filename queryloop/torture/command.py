"""`queryloop torture`: real processes are killed while a difficult log flows; the report says whether every count is right."""

from __future__ import annotations

import argparse
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from queryloop.exits import Exit
from queryloop.output import print_answer
from queryloop.torture.harness import TortureError
from queryloop.torture.report import Result, render
from queryloop.torture.run import Options, run_torture


def run(options: argparse.Namespace) -> int:
    """Run it and print the report; exit code 0 when all counts are right, 1 when not. Raises CommandError, TortureError."""
    asked = Options(**{name: getattr(options, name) for name in Options.__dataclass_fields__})
    asked.check()
    result = torture(asked)
    if options.json:
        print_answer(result.as_dict())
    else:
        print(render(result))
    return Exit.DONE if result.equal else Exit.FAILED


def torture(options: Options) -> Result:
    """Run it once. The data folder is kept, and named, when counts differ or the run raises TortureError; else it is removed."""
    folder = options.keep or Path(tempfile.mkdtemp(prefix="queryloop-torture-"))
    try:
        with _terminable():
            result = run_torture(options, folder)
    except TortureError as error:
        raise TortureError(f"{error}\nthe data folder is kept: {folder}") from error
    except BaseException:
        _remove(options, folder)
        raise
    if result.equal:
        _remove(options, folder)
    return result


def _remove(options: Options, folder: Path) -> None:
    if options.keep is None:
        shutil.rmtree(folder)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does, through the `with` blocks that stop what was started."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
