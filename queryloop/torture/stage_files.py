"""How the torture and its producers talk: one small file each, replaced whole, so that a kill leaves none half-written.

The gate is the shared clock of the simulated products: no producer begins a stage before it is open. So their clocks agree, as
those of real products do, and what the counting rules make of an event does not depend on which process was killed when.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from streams.runtime.atomic_files import replace_file


class Progress(msgspec.Struct, frozen=True):
    """How far a producer is: stages that are in its outbox, stages acknowledged whole, and the offsets after its last record."""

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
        """How many stages may be sent, 0 before the first word."""
        return int(self._read("gate") or b"0")

    def report(self, producer: int, progress: Progress) -> None:
        """Say how far a producer is."""
        self._write(f"producer-{producer}", msgspec.json.encode(progress))

    def progress(self, producer: int) -> Progress:
        """How far a producer is."""
        said = self._read(f"producer-{producer}")
        return msgspec.json.decode(said, type=Progress) if said else Progress()

    def _write(self, name: str, text: bytes) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / name, text, durable=False)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return b""
