"""Tasks are data; what users typed becomes one line of text."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from serving.policy.tasks import DEFAULT_TASKS, Task, Tasks, clean_session, clean_text
from streams.runtime.settings import SettingsError, load_settings


class Root(BaseModel):
    tasks: Tasks = Field(default_factory=lambda: dict(DEFAULT_TASKS))


def test_the_three_tasks_of_the_paper() -> None:
    assert {name: (task.n, task.reward) for name, task in DEFAULT_TASKS.items()} == {
        "suggest": (3, "multi"),
        "refine": (8, "multi"),
        "hint": (1, "single"),
    }
    assert DEFAULT_TASKS["refine"].auxiliary == ("guiding", "prefix", "suffix")


def test_session_queries_are_bounded_the_newest_last() -> None:
    task = Task(name="suggest", max_session=2)
    assert clean_session(task, ["x", " y \n ", "z"]) == ["y", "z"]
    assert clean_session(task.model_copy(update={"max_session": 0}), ["x"]) == []


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("a\nb\u2028c\td", "a b c d"),
        ("vector<int> [CLS] <|im_end|>", "vector<int> [CLS] <|im_end|>"),
        ("＜SEP＞", "<SEP>"),
        ("\ud800x\u202e\x00y", "xy"),
    ],
)
def test_typed_text_becomes_one_line_and_is_else_left_as_it_is(typed: str, kept: str) -> None:
    assert clean_text(typed, 100) == kept


@example("0 \x08 0", 4)
@example("<0>", 4)
@given(st.text(max_size=300), st.integers(1, 100))
def test_clean_text_is_short_printable_and_stable(text: str, limit: int) -> None:
    clean = clean_text(text, limit)
    assert len(clean) <= limit
    assert clean == clean.strip()
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in clean)
    clean.encode()
    assert clean_text(clean, limit) == clean


@pytest.mark.parametrize(
    ("template", "said"),
    [("{query} {user_id}", "unknown field {user_id}"), ("no query", "must hold {query}"), ("{query", "expected '}'")],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("{", r"\{").replace("}", r"\}")):
        Task(name="suggest", template=template)
    with pytest.raises(ValidationError, match=said.replace("{", r"\{").replace("}", r"\}")):
        Task(name="suggest", user=template)


def test_a_system_text_knows_only_the_length_of_the_list() -> None:
    assert Task(name="suggest", system="Write {n} queries.").system
    with pytest.raises(ValidationError, match=r"unknown field \{query\}; a template may use n"):
        Task(name="suggest", system="{query}")


def test_settings_overlay_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "queryloop.toml"
    file.write_text('[tasks.suggest]\ntemplate = "{query} =>"\n[tasks.rhyme]\nn = 2\nreward = "single"\n')
    tasks = load_settings(Root, file, {"QUERYLOOP_TASKS_HINT": '{"max_related": 1}'}).tasks
    assert tasks["suggest"] == DEFAULT_TASKS["suggest"].model_copy(update={"template": "{query} =>", "user": None})
    assert tasks["rhyme"] == Task(name="rhyme", n=2, reward="single")
    assert tasks["hint"].max_related == 1
    assert tasks["refine"] == DEFAULT_TASKS["refine"]


def test_a_changed_template_is_what_a_chat_model_is_asked_too(tmp_path: Path) -> None:
    file = tmp_path / "queryloop.toml"
    file.write_text('[tasks.suggest]\ntemplate = "{query} =>"\n[tasks.hint]\ntemplate = "{query} ?"\nuser = "{query} !"\n')
    tasks = load_settings(Root, file, {}).tasks
    assert (tasks["suggest"].user, tasks["hint"].user) == (None, "{query} !")
    assert tasks["refine"].user == DEFAULT_TASKS["suggest"].user


def test_a_mistake_in_a_task_names_its_key(tmp_path: Path) -> None:
    file = tmp_path / "queryloop.toml"
    file.write_text("[tasks.suggest]\nlength = 4\n")
    with pytest.raises(SettingsError, match=r"tasks\.suggest\.length"):
        load_settings(Root, file, {})
    file.write_text("")
    with pytest.raises(SettingsError, match="tasks"):
        load_settings(Root, file, {"QUERYLOOP_TASKS_HINT": "{"})


def test_the_token_limit_counts_every_text() -> None:
    task = Task(name="refine", n=2, auxiliary=("prefix",), max_item_tokens=5, max_auxiliary_tokens=7)
    assert task.max_new_tokens == 2 * 5 + 7
