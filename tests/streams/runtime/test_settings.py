"""The settings loader: file, then environment; every mistake is refused in one sentence that says what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, Field, SecretStr, model_validator

from streams.brokers.topics import KafkaSettings
from streams.runtime.settings import SECTIONS, DataSettings, SettingsError, load_settings


class ServingSection(BaseModel, frozen=True, extra="forbid"):
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    key: SecretStr | None = Field(default=None, min_length=8)

    @model_validator(mode="after")
    def _needs_a_key(self) -> ServingSection:
        if self.host != "127.0.0.1" and self.key is None:
            raise ValueError("a host beyond loopback needs serving.key")
        if self.host == "nowhere":
            raise ValueError("no such host")
        return self


class Task(BaseModel, frozen=True, extra="forbid"):
    n: int = 3
    fields: tuple[str, ...] = ()


class Root(BaseModel, frozen=True, extra="forbid"):
    data: DataSettings = DataSettings()
    kafka: KafkaSettings = KafkaSettings()
    serving: ServingSection = ServingSection()
    tasks: dict[str, Task] = {}


def load(tmp_path: Path, text: str = "", **environ: str) -> Root:
    path = tmp_path / "queryloop.toml"
    path.write_text(text)
    return load_settings(Root, path, environ)


def test_without_file_and_environment_the_defaults_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(Root, environ={}) == Root()


def test_the_environment_overrides_the_file_key_by_key(tmp_path: Path) -> None:
    settings = load(tmp_path, "[kafka]\npartitions = 2\ngroup = 'g'\n[data]\ndir = 'here'", QUERYLOOP_KAFKA_PARTITIONS="9")
    assert (settings.kafka.partitions, settings.kafka.group, settings.data.dir) == (9, "g", Path("here"))


def test_keys_with_underscores_are_reached_from_the_environment(tmp_path: Path) -> None:
    assert load(tmp_path, QUERYLOOP_KAFKA_SESSION_TIMEOUT_S="12.5").kafka.session_timeout_s == 12.5


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert load(tmp_path, QUERYLOOP_KAFKA_BOOTSTRAP="", QUERYLOOP_SERVING_KEY="") == Root()


def test_tables_of_models_are_read_from_file_and_from_json(tmp_path: Path) -> None:
    settings = load(tmp_path, "[tasks.hint]\nn = 1", QUERYLOOP_TASKS_REFINE='{"n": 8, "fields": ["prefix"]}')
    assert settings.tasks == {"hint": Task(n=1), "refine": Task(n=8, fields=("prefix",))}


def test_the_file_is_found_through_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[kafka]\npartitions = 3")
    assert load_settings(Root, environ={"QUERYLOOP_CONFIG": str(path)}).kafka.partitions == 3


def test_sections_of_other_rooms_are_skipped(tmp_path: Path) -> None:
    assert "dpo" in SECTIONS
    assert load(tmp_path, "[dpo]\nanything = 1", QUERYLOOP_SFT_EPOCHS="3") == Root()


@pytest.mark.parametrize(
    ("text", "mentioned"),
    [
        ("[kafka]\npartitions = 'four'", ["kafka.partitions", "'four'", "whole number", "queryloop.toml"]),
        ("[kafka]\npartitoins = 4", ["kafka.partitoins", "did you mean partitions?", "bootstrap, "]),
        ("[kafak]\na = 1", ["[kafak]", "did you mean kafka?", "timetable"]),
        ("[kafka]\nbroker = 'rabbit'", ["kafka.broker", "'rabbit'", '"embedded", "kafka"']),
        ("[serving]\nport = 70000", ["serving.port", "70000", "65535"]),
        ("[tasks.hint]\nfield = 1", ["tasks.hint.field", "did you mean fields?"]),
        ("[tasks.hint]\nn = 'x'", ["tasks.hint.n", "'x'"]),
        ("kafka = 3", ["kafka = 3", "[kafka]"]),
        ("[kafka", ["not valid TOML"]),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, mentioned: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, text)
    assert [one for one in mentioned if one not in str(error.value)] == []


@pytest.mark.parametrize(
    ("name", "value", "mentioned"),
    [
        (
            "QUERYLOOP_KAFKA_PARTITIONS",
            "0",
            ["QUERYLOOP_KAFKA_PARTITIONS", "kafka.partitions", "'0'", "must be a whole number from 1 to 1000"],
        ),
        ("QUERYLOOP_KAFKA_PARTITION", "2", ["QUERYLOOP_KAFKA_PARTITION", "did you mean partitions?"]),
        ("QUERYLOOP_KAFAK_TOPIC", "t", ["QUERYLOOP_KAFAK_TOPIC", "did you mean kafka?"]),
        ("QUERYLOOP_TASKS", "{}", ["QUERYLOOP_TASKS", "no key"]),
        ("QUERYLOOP_TASKS_HINT", "{", ["QUERYLOOP_TASKS_HINT", "tasks.hint"]),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path, name: str, value: str, mentioned: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, **{name: value})
    assert [one for one in mentioned if one not in str(error.value)] == []


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, "[kafka]\npartitions = 0\ntopic = 'a b'")
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    "text",
    [
        "[serving]\nkey = 'hunter2'",
        "[serving]\nkey = 'hunter2'\nport = -1",
        "[serving]\nkey = 'hunter2hunter2'\nhost = 'nowhere'",
    ],
)
def test_secrets_are_in_no_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as error:
        load(tmp_path, text)
    assert "hunter2" not in str(error.value)
    assert "hunter2" not in repr(error.value.__cause__)


def test_a_secret_is_masked_when_shown(tmp_path: Path) -> None:
    assert "hunter2" not in repr(load(tmp_path, QUERYLOOP_SERVING_KEY="hunter2hunter2"))


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(Root, tmp_path / "none.toml", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(Root, environ={"QUERYLOOP_CONFIG": str(tmp_path)})


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queryloop.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(Root, path, {})


def test_a_byte_order_mark_of_an_editor_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "queryloop.toml").write_bytes(b"\xef\xbb\xbf[serving]\nport = 9\n")
    assert load_settings(Root, tmp_path / "queryloop.toml", environ={}).serving.port == 9
