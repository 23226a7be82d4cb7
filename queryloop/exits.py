"""The exit codes of the command line, and the error that ends a command with one."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    BUSY = 4
    SKIPPED = 5
    INCOMPLETE = 6
    INTERRUPTED = 130


MEANINGS = """\
exit codes:
  0    done
  1    the work failed; the last lines say why and where the log is
  2    wrong usage or settings
  3    something that is needed is down, or its port is in use
  4    another run of the same kind is in progress
  5    the job had nothing to do, or nothing to do it with
  6    what could be checked is right, but not all could be checked
  130  stopped by Ctrl-C"""


class CommandError(RuntimeError):
    """A command that cannot be done; the text says why, for people."""

    def __init__(self, text: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(text)
        self.code = code
