"""Settings passed through environment variables arrive unchanged in another process, whatever else is set there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queryloop.settings import Settings
from serving.policy.tasks import Task
from streams.runtime.environment import to_environ
from streams.runtime.settings import load_settings

text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)


def change(**sections: dict[str, Any]) -> Settings:
    base = Settings()
    return base.model_copy(update={name: getattr(base, name).model_copy(update=keys) for name, keys in sections.items()})


@settings(deadline=None, max_examples=60)
@given(
    st.builds(Path, st.from_regex(r"[a-z ='\"/]{1,20}", fullmatch=True)),
    text,
    st.integers(0, 65535),
    st.floats(0.01, 10),
    st.booleans(),
    st.lists(st.sampled_from(["sigmoid", "sft"]), min_size=1, max_size=2).map(tuple),
)
def test_settings_are_loaded_as_they_were_passed(
    folder: Path, group: str, port: int, temperature: float, flag: bool, losses: tuple[str, ...]
) -> None:
    given = change(
        data={"dir": folder},
        kafka={"group": group, "bootstrap": "127.0.0.1:9"},
        serving={"port": port, "temperature": temperature, "predict": flag},
        dpo={"loss_type": losses, "loss_weights": (1.0,) * len(losses)},
    )
    assert load_settings(Settings, environ=to_environ(given, {})) == given


def test_neither_the_file_nor_other_variables_have_an_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queryloop.toml").write_text("[serving]\nport = 9000\n")
    environ = to_environ(Settings(), {"QUERYLOOP_SERVING_PORT": "9001", "QUERYLOOP_CONFIG": "queryloop.toml", "HOME": "/x"})
    assert environ["HOME"] == "/x"
    assert load_settings(Settings, environ=environ).serving.port == Settings().serving.port


def test_tasks_and_secrets_are_passed_on() -> None:
    tasks = {**Settings().tasks, "my_task": Task(name="my_task", n=4, template="{query} {n}\n", auxiliary=("a",))}
    given = Settings(serving={"key": "k" * 16}).model_copy(update={"tasks": tasks})  # type: ignore[arg-type]
    read = load_settings(Settings, environ=to_environ(given, {}))
    assert read == given
    assert read.serving.key is not None
    assert read.serving.key.get_secret_value() == "k" * 16


def test_a_value_that_no_variable_can_express_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policy\.base = ''"):
        to_environ(change(policy={"base": ""}), {})
