"""All sections together: the file, the environment, errors that name the mistake, what a child process reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from queryloop.settings import Settings
from streams.runtime.environment import to_environ
from streams.runtime.settings import SECTIONS, SettingsError, load_settings

KEY = "a-key-of-sixteen-characters"


def written(folder: Path, text: str) -> Path:
    path = folder / "queryloop.toml"
    path.write_text(text)
    return path


def test_there_is_a_section_for_every_name_the_loader_knows_and_no_other() -> None:
    assert set(Settings.model_fields) == set(SECTIONS)


def test_the_environment_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, '[kafka]\npartitions = 8\ntopic = "clicks"\n')
    settings = load_settings(Settings, path, {"QUERYLOOP_KAFKA_PARTITIONS": "2", "QUERYLOOP_KAFKA_BOOTSTRAP": "k:9092"})
    assert (settings.kafka.partitions, settings.kafka.topic, settings.kafka.bootstrap) == (2, "clicks", "k:9092")
    assert settings.kafka.broker == "embedded"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serving]\nprot = 1\n", ("serving.prot", "did you mean port?")),
        ("[servin]\nport = 1\n", ("[servin]", "did you mean serving?")),
        ("[serving]\nport = 70000\n", ("serving.port", "70000", "65535")),
        ("[kafka]\nbroker = 'rabbit'\n", ("kafka.broker", "rabbit", "embedded", "kafka")),
        ("[worker]\nhost = '0.0.0.0'\n", ("0.0.0.0", "key")),
        ("[timetable]\nctr = 'sometimes'\n", ("timetable.ctr", "sometimes")),
        ("[tasks.suggest]\nname = 'suggest'\ntemplate = 'no place for it'\n", ("template", "{query}")),
        ("[serving\n", ("not valid TOML",)),
    ],
)
def test_an_error_has_the_key_the_value_and_what_is_allowed(tmp_path: Path, text: str, said: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, written(tmp_path, text), {})
    assert all(part in str(caught.value) for part in said), str(caught.value)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().kafka.partitions = 3  # type: ignore[misc]


def test_a_secret_of_the_wrong_form_is_not_shown_either(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, written(tmp_path, ""), {"QUERYLOOP_SERVING_KEY": "short"})
    assert "short" not in str(caught.value)


def test_child_processes_read_the_same_settings_from_their_environment(tmp_path: Path) -> None:
    given = written(
        tmp_path, '[data]\ndir = "elsewhere"\n[search]\nbeam = 5\n[timetable]\nctr = "off"\n[tasks.hint]\nname = "hint"\nn = 2\n'
    )
    settings = load_settings(Settings, given, {"QUERYLOOP_SERVING_KEY": KEY})
    environ = to_environ(settings, {"QUERYLOOP_SEARCH_BEAM": "9", "PATH": "/bin"})
    assert load_settings(Settings, None, environ) == settings
    assert environ["PATH"] == "/bin"
