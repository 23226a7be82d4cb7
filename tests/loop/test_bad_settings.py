"""Bad settings: for each, and for those that cannot work together, one sentence of ours says which, where and what to do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from queryloop import cli
from queryloop.exits import Exit
from queryloop.reference import section_models
from queryloop.settings import Settings
from serving.policy.tasks import Task
from streams.runtime.allowed_values import find_schema
from streams.runtime.settings import SettingsError, load_settings

PYDANTIC = ("Input should", "pydantic", "Value error", "Field required", "valid integer", "Traceback")
Bad = tuple[str, str, Any]


def bad_values(schema: Any) -> Iterator[Any]:
    """Values that a JSON Schema does not allow: of another kind, out of bounds, too long, of no such form."""
    for kind in schema.get("anyOf", [schema]):
        yield {"a": "table"}
        if kind.get("type") in ("integer", "number"):
            yield from ("three", math.nan, [1])
            yield from (kind[bound] - 1 for bound in ("minimum", "exclusiveMinimum") if bound in kind)
            yield from (kind[bound] + 1 for bound in ("maximum", "exclusiveMaximum") if bound in kind)
        if kind.get("type") == "integer":
            yield from (1.5, 10**30)
        if kind.get("type") == "number":
            yield math.inf
        if kind.get("type") == "boolean":
            yield from ("perhaps", 7)
        if kind.get("type") == "array":
            yield from (3, [{}], "[")
        if kind.get("type") == "string":
            yield from (["text"], "nul\0")
        if "enum" in kind or "pattern" in kind:
            yield "\N{SNOWMAN} no such value"


def settings_and_bad_values() -> Iterator[Bad]:
    for section, model in section_models():
        for key in model.model_fields:
            if (model, key) != (Task, "name"):
                yield from ((section, key, value) for value in bad_values(find_schema(model, [key])))


ALL = list(settings_and_bad_values())


def refusal(file: Path, text: str = "", environ: dict[str, str] | None = None) -> str:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(Settings, file, environ or {})
    assert not [one for one in PYDANTIC if one in str(caught.value)], str(caught.value)
    return str(caught.value)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else json.dumps(value)


def test_every_bad_value_of_every_setting_in_a_file_is_named_with_file_and_key(tmp_path: Path) -> None:
    assert len(ALL) > 500
    for section, key, value in ALL:
        table, named = (section, f"{section}.{key}") if section != "tasks" else ("tasks.suggest", f"tasks.suggest.{key}")
        said = refusal(tmp_path / "q.toml", f"[{table}]\n{key} = {toml(value)}\n")
        assert str(tmp_path / "q.toml") in said
        assert named in said, (section, key, value, said)


def test_every_bad_value_in_a_variable_is_named_with_the_variable(tmp_path: Path) -> None:
    for section, key, value in ALL:
        text = value if isinstance(value, str) else json.dumps(value)
        if section == "tasks":
            name, text = "QUERYLOOP_TASKS_SUGGEST", json.dumps({key: value})
        else:
            name = f"QUERYLOOP_{section}_{key}".upper()
        if not is_text(section, key) or "\0" in text or "no such" in text:
            assert name in refusal(tmp_path / "q.toml", "", {name: text}), (name, text)


def is_text(section: str, key: str) -> bool:
    """Whether a setting is a text: any value of a variable is one."""
    schema = find_schema(dict(section_models())[section], [key])
    return any(kind.get("type") == "string" for kind in schema.get("anyOf", [schema])) and section != "tasks"


def test_an_empty_text_in_the_file_is_refused_for_every_setting(tmp_path: Path) -> None:
    for section, model in section_models():
        for key in model.model_fields:
            table = "tasks.suggest" if section == "tasks" else section
            if (model, key) != (Task, "name"):
                assert f"{table}.{key}" in refusal(tmp_path / "q.toml", f'[{table}]\n{key} = ""\n')


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[search]\nchosen = 5\nbeam = 4", ("search.chosen = 5", "search.beam = 4")),
        ("[search]\nrejected = 17\nbudget = 16", ("search.rejected = 17", "search.budget = 16")),
        ("[dpo]\nloss_type = ['sigmoid']", ("dpo.loss_type", "dpo.loss_weights")),
        ("[dpo]\nloss_weights = [1.0, -0.5]", ("dpo.loss_weights",)),
        ("[dpo]\nloss_weights = [0.0, 0.0]", ("dpo.loss_weights",)),
        ("[dpo]\nloss_type = []\nloss_weights = []", ("dpo.loss_type",)),
        ("[kafka]\nbootstrap = 'broker'", ("kafka.bootstrap", "host:port")),
        ("[kafka]\nbootstrap = 'a:1,b'", ("kafka.bootstrap", "'b'", "host:port")),
        ("[kafka]\nbootstrap = 'a:70000'", ("kafka.bootstrap", "host:port")),
        ("[kafka]\nbootstrap = 'http://a:9092'", ("kafka.bootstrap", "host:port")),
        ("[kafka]\ntopic = 't'\nquarantine_topic = 't'", ("kafka.topic", "kafka.quarantine_topic")),
        ("[kafka]\nmin_insync = 3\nreplication = 2", ("kafka.min_insync", "kafka.replication")),
        ("[kafka]\nbroker = 'kafka'\nsession_timeout_s = 2", ("kafka.session_timeout_s",)),
        ("[worker]\nretention_days = 1\nattribution_window_s = 90000", ("worker.attribution_window_s", "worker.retention_days")),
        ("[worker]\nretention_days = 14", ("worker.retention_days = 14", "15")),
        ("[emitter]\nlinger_ms = 30000\ndelivery_timeout_s = 30", ("emitter.linger_ms", "emitter.delivery_timeout_s")),
        ("[serving]\nbatch_wait_ms = 1000\ndeadline_s = 0.5", ("serving.batch_wait_ms", "serving.deadline_s")),
        ("[serving]\nkey = 'same-secret'\nwrite_key = 'same-secret'", ("serving.write_key", "serving.key")),
        ("[serving]\nport = 6066", ("serving.port", "worker.port")),
        ("[index]\nmin_ngram = 6", ("index.min_ngram = 6", "index.max_ngram = 5")),
        ("[predictor]\nheads = 3", ("predictor.heads = 3", "predictor.dim = 64")),
        ("[predictor]\nmax_items = 2", ("tasks.suggest.n = 3", "predictor.max_items = 2")),
        ("[events]\nmax_items = 2", ("tasks.suggest.n = 3", "events.max_items = 2")),
        ("[policy]\nhidden = 130", ("policy.hidden = 130", "policy.heads = 4")),
        ("[policy]\nbase = 'scratch'\ncontext = 64", ("policy.context = 64", "tasks.suggest")),
        ("[product]\ntask = 'sugest'", ("product.task", "suggest")),
        ("[tasks.suggest]\ntemplate = '{query'", ("tasks.suggest.template", "brace")),
        ("[tasks.suggest]\ntemplate = '{query:>9}'", ("tasks.suggest.template", "{query}")),
        ("[tasks.suggest]\nauxiliary = ['a', 'a']", ("tasks.suggest.auxiliary", "name of its own")),
    ],
)
def test_settings_that_cannot_work_together_are_refused_by_name(tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    said = refusal(tmp_path / "q.toml", text)
    assert not [one for one in named if one not in said], said
    assert "same-secret" not in said


def test_an_option_that_changes_a_setting_is_checked_like_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.toml").write_text("[kafka]\nsession_timeout_s = 2\n")
    assert cli.main(["--config", str(tmp_path / "q.toml"), "broker", "--broker", "kafka"]) == Exit.USAGE
    assert "kafka.session_timeout_s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[policy]\nannotations = 'none.jsonl'", ("policy.annotations", "none.jsonl", "does not exist")),
        ("[policy]\nannotations = '.'", ("policy.annotations", "is a folder")),
        ("[data]\ndir = 'q.toml'", ("data.dir", "is a file")),
        ("[emitter]\noutbox_dir = 'q.toml'", ("emitter.outbox_dir", "is a file")),
        ("[policy]\nbase = './none'", ("policy.base", "none", "does not exist")),
    ],
)
def test_config_refuses_settings_that_name_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, named: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.toml").write_text(text)
    assert cli.main(["--config", "q.toml", "config"]) == Exit.USAGE
    said = capsys.readouterr().err
    assert not [one for one in named if one not in said], said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["windows", "--query", ""], "--query"),
        (["windows", "--query", " \t"], "--query"),
        (["windows", "--item", ""], "--item"),
        (["windows", "--query", "q" * 5000], "--query"),
        (["windows", "--query", "q", "--limit", "0"], "--limit"),
        (["windows", "--query", "q", "--limit", "10001"], "--limit"),
        (["windows", "--query", "q", "--limit", "-1"], "--limit"),
        (["windows", "--query", "q", "--position", "2147483648"], "--position"),
        (["windows", "--query", "q", "--as-of", "1969-01-01"], "--as-of"),
        (["successors", "--query", ""], "--query"),
        (["successors", "--query", "q", "--limit", "many"], "--limit"),
        (["quarantine", "list", "--limit", "0"], "--limit"),
        (["quarantine", "list", "--limit", "501"], "--limit"),
        (["torture", "--events", "0"], "--events"),
        (["torture", "--workers", "0"], "--workers"),
        (["broker", "--port", "70000"], "--port"),
        (["demo", "--seed", "9" * 30], "--seed"),
        (["replay", "log", "--speed", "nan"], "--speed"),
    ],
)
def test_a_bad_option_is_refused_by_name_before_anything_is_asked(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    said = capsys.readouterr().err
    assert ended.value.code == Exit.USAGE
    assert named in said
    assert not [one for one in PYDANTIC if one in said]


def test_no_model_of_settings_shows_a_secret_in_an_error(tmp_path: Path) -> None:
    secrets = [
        (section, key)
        for section, model in section_models()
        for key, field in model.model_fields.items()
        if issubclass(model, BaseModel) and "SecretStr" in str(field.annotation) and SecretStr
    ]
    assert ("serving", "key") in secrets
    for section, key in secrets:
        said = refusal(tmp_path / "q.toml", f'[{section}]\n{key} = ["hunter2hunter2"]\n')
        assert "hunter2" not in said
