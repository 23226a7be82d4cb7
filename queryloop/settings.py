"""All settings of one machine in one frozen object: the sections of every room, as the front door needs them."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field, SecretStr

from index.settings import IndexSettings
from queryloop.product.settings import ProductSettings
from serving.predictor import PredictorSettings
from serving.settings import ServingSettings
from serving.tasks import DEFAULT_TASKS, Tasks
from streams.emitter import EmitterSettings
from streams.events import EventSettings
from streams.lake import LakeSettings
from streams.settings import DataSettings
from streams.topics import KafkaSettings
from streams.worker import WorkerSettings
from trainers.aligners.dpo import DpoSettings
from trainers.base import PolicySettings
from trainers.gate import GateSettings
from trainers.predictor_training import CtrSettings
from trainers.search import SearchSettings
from trainers.sft import SftSettings
from trainers.timetable import TimetableSettings

MASK = "**********"


class Settings(BaseModel, frozen=True, extra="forbid"):
    """The effective settings; a section's meaning stands beside the code that reads it."""

    data: DataSettings = DataSettings()
    kafka: KafkaSettings = KafkaSettings()
    events: EventSettings = EventSettings()
    worker: WorkerSettings = WorkerSettings()
    lake: LakeSettings = LakeSettings()
    emitter: EmitterSettings = EmitterSettings()
    index: IndexSettings = IndexSettings()
    serving: ServingSettings = ServingSettings()
    tasks: Tasks = Field(default_factory=lambda: dict(DEFAULT_TASKS))
    predictor: PredictorSettings = PredictorSettings()
    policy: PolicySettings = PolicySettings()
    sft: SftSettings = SftSettings()
    ctr: CtrSettings = CtrSettings()
    search: SearchSettings = SearchSettings()
    dpo: DpoSettings = DpoSettings()
    gate: GateSettings = GateSettings()
    timetable: TimetableSettings = TimetableSettings()
    product: ProductSettings = ProductSettings()


def masked(settings: BaseModel) -> dict[str, Any]:
    """Return the settings as plain JSON values, every secret that is set as asterisks."""
    dumped: dict[str, Any] = json.loads(json.dumps(settings.model_dump(), default=_plain))
    return dumped


def _plain(value: object) -> str:
    return MASK if isinstance(value, SecretStr) else str(value)


def to_toml(tables: dict[str, Any]) -> str:
    """Return sections as TOML; an unset value is a comment, since TOML has none."""
    return "\n".join(line for name, table in tables.items() for line in (*_table(name, table), "")).rstrip() + "\n"


def _table(name: str, table: dict[str, Any]) -> list[str]:
    own = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{name}]"] if own or not table else []
    lines += [f"# {key} is unset" if value is None else f"{key} = {_value(value)}" for key, value in own.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [*([""] if lines else []), *_table(f"{name}.{key}", value)]
    return lines


def _value(value: Any) -> str:
    """Return a scalar or a list as TOML writes it; JSON's strings, numbers and arrays are TOML's too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
