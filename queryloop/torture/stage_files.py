"""The files by which the harness and its producers communicate: one each, replaced whole, so that a kill leaves no partial one.

The gate is the shared clock of the producers: none begins a stage before the gate is open to it. So their clocks agree, as those
of real products do, and the outcome of an event does not depend on which process was killed when.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from streams.runtime.atomic_files import replace_file


class Progress(msgspec.Struct, frozen=True):
    """A producer's progress: stages in its outbox, stages wholly acknowledged, and the offsets after its last records."""

    stored: int = 0
    stages: int = 0
    positions: dict[int, int] = msgspec.field(default_factory=dict)


@dataclass(frozen=True)
class StageFiles:
    """The files of one run, in `folder`."""

    folder: Path

    def open_gate(self, stages: int) -> None:
        """Let producers send the stages before `stages`."""
        self._write("gate", str(stages).encode())

    def gate(self) -> int:
        """Return how many stages may be sent, 0 before the gate was first opened."""
        return int(self._read("gate") or b"0")

    def report(self, producer: int, progress: Progress) -> None:
        """Write a producer's progress."""
        self._write(f"producer-{producer}", msgspec.json.encode(progress))

    def progress(self, producer: int) -> Progress:
        """Read a producer's progress."""
        text = self._read(f"producer-{producer}")
        return msgspec.json.decode(text, type=Progress) if text else Progress()

    def _write(self, name: str, text: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / name, text, durable=False)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return b""
