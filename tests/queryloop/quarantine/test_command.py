"""`queryloop quarantine`: bad events are listed and shown harmlessly, fixed ones count once, on the day they happened."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from queryloop.cli import main
from queryloop.exits import Exit
from queryloop.up.worker_process import WorkerProcess
from streams.brokers.topics import create_topics
from streams.emitter.record_batches import partition_of
from streams.store.held_shards import shard_path
from streams.store.shard import CountingRules, Shard
from streams.worker.settings import StreamsSettings
from tests.queryloop.commands.test_verify import write_config
from tests.streams.worker.test_main import await_applied, emit, make_settings
from tests.support.command_table import check_answer
from tests.support.logs import START, click, day, impression, query, read

DAY = 86_400
HOSTILE = "\x1b]0;owned\x07\x1b[2J"
BROKEN = query("fixable", START + 60, "blue shoes").replace(b'"ts": ', b'"ts": "yesterday", "was": ')
POISON = [
    b"\x00\xff\xfe binary\x1b[31m",
    b"[" * 100_000,
    b'{"type":"query","event_id":"deep","x":' + b"[" * 60_000,
    query("huge", START, "x" * 500_000),
    f'{{"type":"click","event_id":{json.dumps(HOSTILE)}}}'.encode(),
    b"7",
]


class Product:
    """A worker, its log, and the command line beside it."""

    def __init__(
        self, settings: StreamsSettings, config: Path, worker: WorkerProcess, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.settings, self.config, self.worker, self.capsys = settings, config, worker, capsys

    def send(self, *lines: bytes) -> None:
        await_applied(self.worker, self.settings, emit(self.settings, list(lines)))

    def run(self, *arguments: str) -> int:
        return main(["--config", str(self.config), *arguments])

    def printed(self, *arguments: str) -> dict[str, Any]:
        self.capsys.readouterr()
        code = self.run("quarantine", *arguments, "--json")
        answer: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        check_answer(f"quarantine {arguments[0]}", code, answer)
        return answer

    def text(self, *arguments: str) -> str:
        self.capsys.readouterr()
        assert self.run("quarantine", *arguments) == Exit.DONE
        return self.capsys.readouterr().out.decode()

    def row(self, reason: str) -> str:
        [row] = self.printed("list", "--reason", reason)["rows"]
        return str(row["row"])

    def outcomes(self, *arguments: str) -> dict[str, str]:
        return {one["event_id"]: one["outcome"] for one in self.printed("replay", *arguments)["outcomes"]}


@pytest.fixture
def product(bootstrap: str, unique: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Iterator[Product]:
    settings = make_settings(bootstrap, unique, tmp_path / "data", retention_days=30)
    create_topics(bootstrap, settings.kafka)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        yield Product(settings, write_config(settings, tmp_path / "queryloop.toml"), worker, capsysbinary)


def send_tombstone(settings: StreamsSettings) -> None:
    """Send a record without a value."""
    from kafka import KafkaProducer

    with KafkaProducer(bootstrap_servers=settings.kafka.bootstrap) as producer:
        producer.send(settings.kafka.topic, key=b"s", value=None, partition=partition_of("s", settings.kafka.partitions)).get(30)


def test_a_fixed_event_counts_once_on_its_day(product: Product, tmp_path: Path) -> None:
    product.send(query("before", START, "red shoes"), BROKEN, query("later", START + 5 * DAY, "green"))
    name = product.row("invalid")
    raw = product.text("show", name, "--raw").encode()
    assert raw == BROKEN
    shown = product.printed("show", name)
    assert (shown["raw"].encode(), base64.b64decode(shown["raw_base64"])) == (BROKEN, BROKEN)

    fixed = tmp_path / "fix.jsonl"
    fixed.write_bytes(raw)
    assert product.run("quarantine", "replay", "--file", str(fixed)) == Exit.FAILED
    said = product.capsys.readouterr().err
    assert b"nothing was sent:" in said and b"fix.jsonl:1: invalid" in said

    fixed.write_bytes(raw.replace(b'"ts": "yesterday", "was": ', b'"ts": ') + b"\n")
    assert product.outcomes("--file", str(fixed)) == {"fixable": "counted"}
    assert product.outcomes("--file", str(fixed)) == {"fixable": "duplicate"}
    assert product.printed("list") == {"counts": {}, "rows": []}
    assert product.run("quarantine", "show", name) == Exit.FAILED
    assert product.run("verify") == Exit.DONE
    product.worker.stop()
    shards = [Shard.open(shard_path(product.settings.data.dir, number), CountingRules(), read_only=True) for number in (0, 1)]
    pairs = [row for shard in shards for row in read(shard, "FROM cooccurrence_deltas").to_pylist()]
    assert [(row["day"], row["query"], row["next_query"], row["count"]) for row in pairs] == [
        (day(START), "red shoes", "blue shoes", 1)
    ]
    for shard in shards:
        shard.close()


def test_an_orphan_sent_again_counts_once_its_impression_has_arrived(product: Product) -> None:
    product.send(click("c", START, "i", 1), query("later", START + 2 * DAY))
    name = product.row("orphan_click")
    assert product.outcomes(name) == {"c": "quarantined"}
    product.send(impression("e", START - 9, "i", ["a", "b"]))
    assert product.outcomes("--reason", "orphan_click") == {"c": "counted"}
    assert product.outcomes("--reason", "orphan_click") == {}
    assert product.run("verify") == Exit.DONE


def test_poison_stops_nothing_and_is_shown_harmlessly(product: Product) -> None:
    send_tombstone(product.settings)
    product.send(*POISON, query("after", START, "still counted"))
    assert product.printed("list")["counts"] == {"invalid": 2, "malformed": 3, "too_large": 2}
    assert product.run("verify") == Exit.DONE
    shown = product.text("list")
    shown += "".join(product.text("show", row["row"]) for row in product.printed("list", "--limit", "100")["rows"])
    assert "\x1b" not in shown and "\x07" not in shown and shown.isascii()
    assert "\\x1b]0;owned\\x07\\x1b[2J" in shown
    product.worker.stop()
    assert product.text("list") in shown, "the same from the files"


@pytest.mark.parametrize("name", ["17", "9:1", "a:b", "-1:2", "0:x"])
def test_a_malformed_row_name_is_refused(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.toml").write_text(f'[data]\ndir = "{tmp_path}"\n')
    assert main(["--config", str(tmp_path / "q.toml"), "quarantine", "show", "--", name]) == Exit.USAGE
    assert "write PARTITION:ID" in capsys.readouterr().err


def test_exactly_one_choice_of_what_to_replay_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.toml").write_text(f'[data]\ndir = "{tmp_path}"\n')
    for arguments in ([], ["0:1", "--reason", "invalid"], ["--reason", "invalid", "--file", "x"]):
        assert main(["--config", str(tmp_path / "q.toml"), "quarantine", "replay", *arguments]) == Exit.USAGE
    assert "say what to send" in capsys.readouterr().err


@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_folder_without_shards_is_not_an_empty_quarantine(
    tmp_path: Path, how: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.toml").write_text(f'[data]\ndir = "{tmp_path}"\n')
    command = ["--config", str(tmp_path / "q.toml"), "quarantine", "list", *how]
    assert main(command) == Exit.UNAVAILABLE
    said = capfd.readouterr()
    assert f"there are no shards in {tmp_path / 'shards'}" in (said.out if how else said.err)
    Shard.open(shard_path(tmp_path, 0), CountingRules()).close()
    assert main(command) == Exit.DONE
    assert not capfd.readouterr().err


def test_rows_are_dropped_for_good_only_with_yes_and_it_is_recorded(product: Product) -> None:
    old = query("old", START - 100 * DAY)
    product.send(query("now", START), old, BROKEN, b"{not json")
    assert product.run("quarantine", "drop", "--reason", "too_old") == Exit.USAGE
    assert b"1 rows have the reason too_old: --yes removes them for good" in product.capsys.readouterr().err
    assert product.printed("list")["counts"] == {"invalid": 1, "malformed": 1, "too_old": 1}

    said = product.printed("drop", "--reason", "too_old", "--yes")
    assert (said["dropped"], said["reason"]) == (1, "too_old")
    assert product.printed("drop", "--reason", "too_old", "--yes")["dropped"] == 0, "they are gone"
    assert product.printed("list")["counts"] == {"invalid": 1, "malformed": 1}
    audit = [json.loads(line) for line in (product.settings.data.dir / "audit.jsonl").read_text().splitlines()]
    assert [line["rows"] for line in audit if line["rows"]] == [1]
    assert {line["action"] for line in audit} == {"quarantine_drop"} and {line["by"] for line in audit} == {said["by"]}

    product.send(old)
    assert product.printed("list")["counts"] == {"invalid": 1, "malformed": 1}, "delivered again it is still a duplicate"
    assert product.run("verify") == Exit.DONE, "no count changed"
    product.worker.stop()
    assert product.printed("drop", "--reason", "malformed", "--yes")["dropped"] == 1, "and without a worker"
    assert product.printed("list")["counts"] == {"invalid": 1}


def test_only_events_from_before_a_time_are_dropped(product: Product) -> None:
    product.send(query("now", START), query("older", START - 200 * DAY), query("old", START - 100 * DAY))
    before = day(START - 150 * DAY).isoformat()
    assert product.printed("drop", "--reason", "too_old", "--before", before, "--yes")["dropped"] == 1
    [row] = product.printed("list")["rows"]
    assert row["event_id"] == "old"


def test_a_dropped_event_can_still_be_repaired(product: Product) -> None:
    product.send(query("now", START), BROKEN)
    assert product.printed("drop", "--reason", "invalid", "--yes")["dropped"] == 1
    product.send(BROKEN.replace(b'"ts": "yesterday", "was": ', b'"ts": '))
    assert product.run("verify") == Exit.DONE
