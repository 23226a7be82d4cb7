"""The progress of the log: stages acknowledged to every producer, stages counted by every shard, stages that may be sent.

The producers report where a stage ends in each partition, so offsets and topic id show whether it is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from queryloop.torture.generated_log import TortureLog
from queryloop.torture.stage_files import Progress, StageFiles

APART_STAGES = 2
"""Most stages between two producers, a fifth of a day: less than a click waits for its impression."""
AHEAD_STAGES = 16
"""Most stages that producers may be ahead of the slowest shard."""


class Flow:
    """Must be updated several times a second; opens the gate as far as the limits allow."""

    def __init__(self, generated: TortureLog, files: StageFiles, topic_id: str) -> None:
        self.stages = generated.stages
        self.progress: list[Progress] = [Progress()] * generated.producers
        self._generated = generated
        self._files = files
        self._topic_id = topic_id
        self._limit = 0
        self._floor = 0
        self._marks_from = [0] * generated.producers
        self._marks: dict[int, dict[int, int]] = {}
        self._offsets: dict[int, tuple[str, int]] = {}

    def update(self, shards: Mapping[int, Mapping[str, Any]]) -> None:
        """Read the producers' progress, take the shards' offsets from their /status, and open the gate."""
        self.progress = [self._files.progress(number) for number in range(self._generated.producers)]
        for number, shard in shards.items():
            if shard["topic_id"] is not None:
                self._offsets[number] = (shard["topic_id"], shard["next_offset"])
        self._mark()
        self._files.open_gate(min(self._limit, self.sent_stages + APART_STAGES, self.applied_stages + AHEAD_STAGES))

    def log_lost(self, topic_id: str) -> None:
        """Start over with a new log, of this topic id: offsets that producers reported of the old one are void."""
        self._floor = self.applied_stages
        self._topic_id = topic_id
        self._marks.clear()
        # A producer may be reporting offsets of the old log right now; its report of the stage after that is of the new one.
        self._marks_from = [progress.stages + 2 for progress in self.progress]

    def allow(self, share: float) -> None:
        """Let this share of the log through."""
        self._limit = max(self._limit, math.ceil(share * self.stages))

    def allow_more(self, stages: int) -> None:
        """Let so many stages through beyond those sent, so that there is load while processes are killed and restarted."""
        self._limit = max(self._limit, self.sent_stages + stages)

    @property
    def sent_stages(self) -> int:
        """Stages acknowledged to every producer."""
        return min(progress.stages for progress in self.progress)

    @property
    def applied_stages(self) -> int:
        """Stages that every shard has counted."""
        counted = (stage for stage, mark in self._marks.items() if all(map(self._has_passed, mark.items())))
        return max(counted, default=self._floor)

    @property
    def applied_share(self) -> float:
        """The share of the log that is counted, 0 to 1."""
        return self.applied_stages / self.stages

    @property
    def idle(self) -> bool:
        """Whether everything let through is sent and counted."""
        return self.applied_stages == self.sent_stages == min(self._limit, self.stages)

    @property
    def done(self) -> bool:
        """Whether the whole log is sent and counted."""
        return self.applied_stages == self.sent_stages == self.stages

    @property
    def acknowledged(self) -> int:
        """Lines that the broker has acknowledged, in whole stages."""
        return sum(self._generated.sent_before(number, progress.stages) for number, progress in enumerate(self.progress))

    def state(self) -> object:
        """Return a value that changes whenever anything is sent or counted."""
        return self.progress, dict(self._offsets)

    def _has_passed(self, mark: tuple[int, int]) -> bool:
        partition, offset = mark
        topic_id, next_offset = self._offsets.get(partition, ("", 0))
        return topic_id == self._topic_id and next_offset >= offset

    def _mark(self) -> None:
        """Note the partitions' ends when a stage is acknowledged; a slightly later end is as good."""
        stage = self.sent_stages
        if not stage or stage in self._marks:
            return
        if any(progress.stages < least for progress, least in zip(self.progress, self._marks_from, strict=True)):
            return
        ends: dict[int, int] = {}
        for progress in self.progress:
            for number, offset in progress.positions.items():
                ends[number] = max(ends.get(number, 0), offset)
        self._marks[stage] = ends
