"""Which log the shards of a data folder count, by name: the topic and its number of partitions, recorded by the first worker.

Each shard has the topic's id, by which a topic that was created anew under its name is recognised. Another topic is another
product's log: its events must not be added to these counts. The record goes with the shards: it is in their folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from streams.brokers.topics import KafkaSettings
from streams.runtime.atomic_files import create_file
from streams.runtime.settings import SettingsError


class AnotherLog(SettingsError):
    """The settings name another topic, or another number of partitions, than the shards of the data folder count."""


def claim_log(data_dir: Path, kafka: KafkaSettings) -> None:
    """Record the topic of the settings as the one that this folder's shards count, if none is recorded. Raises AnotherLog."""
    path = _path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    create_file(path, json.dumps({"topic": kafka.topic, "partitions": kafka.partitions}).encode() + b"\n")
    check_log(data_dir, kafka)


def check_log(data_dir: Path, kafka: KafkaSettings) -> None:
    """Raise AnotherLog when this folder's shards count another topic or number of partitions than the settings name."""
    path = _path(data_dir)
    if not path.exists():
        return
    try:
        counted = json.loads(path.read_text())
        topic, partitions = counted["topic"], counted["partitions"]
    except (ValueError, KeyError, TypeError) as error:
        raise AnotherLog(f"{path}: cannot be read ({error!r}): it names the topic that the shards beside it count") from error
    if topic != kafka.topic:
        raise AnotherLog(
            f"the shards in {data_dir} count topic {topic}, kafka.topic is {kafka.topic}: their events would be added up. "
            f"Set kafka.topic to {topic}, or data.dir to a folder for {kafka.topic} alone"
        )
    if partitions != kafka.partitions:
        raise AnotherLog(
            f"the shards in {data_dir} count topic {topic} in {partitions} partitions, kafka.partitions is {kafka.partitions}: "
            f"sessions would change shards. Set kafka.partitions to {partitions}, or replay the events into another topic and "
            "data.dir (docs/scaling.md)"
        )


def _path(data_dir: Path) -> Path:
    return data_dir / "shards" / "log.json"
