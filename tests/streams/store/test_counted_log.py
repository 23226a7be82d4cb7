"""The record of the log that a data folder's shards count: written once, another topic or number of partitions refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.brokers.topics import KafkaSettings
from streams.store.counted_log import AnotherLog, check_log, claim_log


def test_the_first_worker_records_the_topic_and_later_ones_agree(tmp_path: Path) -> None:
    kafka = KafkaSettings(topic="a", partitions=2)
    check_log(tmp_path, kafka)  # nothing is counted here yet
    for _ in range(2):
        claim_log(tmp_path, kafka)
    check_log(tmp_path, kafka)
    assert [path.name for path in (tmp_path / "shards").iterdir()] == ["log.json"]


def test_another_topic_is_refused_and_both_are_named(tmp_path: Path) -> None:
    claim_log(tmp_path, KafkaSettings(topic="a"))
    for ask in (claim_log, check_log):
        with pytest.raises(AnotherLog, match=r"count topic a, kafka\.topic is b: .* Set kafka\.topic to a, or data\.dir"):
            ask(tmp_path, KafkaSettings(topic="b"))
    check_log(tmp_path, KafkaSettings(topic="a"))


def test_another_number_of_partitions_is_refused(tmp_path: Path) -> None:
    claim_log(tmp_path, KafkaSettings(topic="a", partitions=2))
    with pytest.raises(AnotherLog, match=r"in 2 partitions, kafka\.partitions is 4: sessions would change shards"):
        claim_log(tmp_path, KafkaSettings(topic="a", partitions=4))


@pytest.mark.parametrize("content", ["", "[]", '{"topic": "a"}'])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "log.json").write_text(content)
    with pytest.raises(AnotherLog, match=r"log\.json: cannot be read"):
        check_log(tmp_path, KafkaSettings())
