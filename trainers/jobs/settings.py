"""All settings sections that the trainers' processes read: the daemon and the jobs."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, Field, model_validator

from index.settings import IndexSettings
from serving.policy.tasks import DEFAULT_TASKS, Tasks, check_default_task
from serving.predictor.settings import PredictorSettings
from serving.settings import ServingSettings
from streams.events.schema import EventSettings
from streams.lake.files import Lake, LakeSettings, open_lake
from streams.runtime.settings import DataSettings
from trainers.jobs.timetable import TimetableSettings
from trainers.policy.aligners.dpo import DpoSettings
from trainers.policy.base import SCRATCH, PolicySettings
from trainers.policy.cold_start.gate import ColdStartSettings
from trainers.policy.gate import GateSettings
from trainers.policy.search import SearchSettings
from trainers.policy.sft import SftSettings
from trainers.predictor.training import CtrSettings
from trainers.pruning.settings import PruneSettings

DECODING = frozenset({"serving.temperature", "serving.top_p", "serving.redraws"})
OTHERS_OWN = ("data.", "events.", "timetable.", "serving.", "kafka.", "emitter.", "worker.", "product.")


def affects_jobs(key: str) -> bool:
    """Return whether a setting (`section.key`) changes what a job does; the others are those of other processes."""
    return key in DECODING or key in ("events.default_task", "timetable.publish_index") or not key.startswith(OTHERS_OWN)


class TrainerSettings(BaseModel, frozen=True, extra="forbid"):
    """The sections; `serving` is one of them because the gate writes its lists with serving's decoding."""

    data: DataSettings = DataSettings()
    lake: LakeSettings = LakeSettings()
    events: EventSettings = EventSettings()
    index: IndexSettings = IndexSettings()
    serving: ServingSettings = ServingSettings()
    tasks: Tasks = Field(default_factory=lambda: dict(DEFAULT_TASKS))
    predictor: PredictorSettings = PredictorSettings()
    policy: PolicySettings = PolicySettings()
    sft: SftSettings = SftSettings()
    cold_start: ColdStartSettings = ColdStartSettings()
    ctr: CtrSettings = CtrSettings()
    search: SearchSettings = SearchSettings()
    dpo: DpoSettings = DpoSettings()
    gate: GateSettings = GateSettings()
    prune: PruneSettings = PruneSettings()
    timetable: TimetableSettings = TimetableSettings()

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        check_default_task(self.events.default_task, self.tasks)
        for name, task in self.tasks.items():
            if task.n > self.predictor.max_items:
                raise ValueError(f"tasks.{name}.n = {task.n} is more than predictor.max_items = {self.predictor.max_items}")
        longest = self.tasks[self.events.default_task].max_new_tokens
        if self.policy.base == SCRATCH and longest >= self.policy.context:
            raise ValueError(
                f"policy.context = {self.policy.context} leaves no room for a prompt: a list of "
                f"tasks.{self.events.default_task} may have {longest} tokens"
            )
        return self

    def open_lake(self) -> Lake:
        """Return the lake that the jobs read."""
        return open_lake(self.data.dir, self.lake)
