"""Tasks are data, and prompts have what users typed without letting it act on the model."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from serving.policy.list_form import find_form
from serving.policy.tasks import DEFAULT_TASKS, SEPARATOR, Task, Tasks, clean_session, clean_text, render_prompt
from streams.runtime.settings import SettingsError, load_settings
from tests.support.models import make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
COMPACT = Task(name="suggest", template="{query} | {related} | {session}\n{response}\n=>")


class Root(BaseModel):
    tasks: Tasks = Field(default_factory=lambda: dict(DEFAULT_TASKS))


def test_the_three_tasks_of_the_paper() -> None:
    assert {name: (task.n, task.reward) for name, task in DEFAULT_TASKS.items()} == {
        "suggest": (3, "multi"),
        "refine": (8, "multi"),
        "hint": (1, "single"),
    }
    assert DEFAULT_TASKS["refine"].auxiliary == ("guiding", "prefix", "suffix")


def test_a_prompt_holds_query_and_side_information() -> None:
    prompt = render_prompt(COMPACT, "red shoes", ["trail shoes", "socks"], ["boots"], "Shoes are worn on feet.")
    assert prompt == f"red shoes | trail shoes{SEPARATOR}socks | boots\nShoes are worn on feet.\n=>"


def test_a_line_without_its_side_information_is_left_out() -> None:
    assert render_prompt(COMPACT, "red shoes", ["socks"]) == "red shoes | socks | \n=>"
    full = render_prompt(DEFAULT_TASKS["suggest"], "red shoes")
    assert render_prompt(COMPACT, "red shoes") == "red shoes |  | \n=>"
    assert "Search query: red shoes\nResponse:\n" in full
    assert "Write 3 relevant queries" in full


def test_side_information_is_bounded_newest_session_queries_last() -> None:
    task = COMPACT.model_copy(update={"max_related": 2, "max_session": 2})
    assert render_prompt(task, "q", ["a", "b", "c"], ["x", "y", "z"]) == f"q | a{SEPARATOR}b | y{SEPARATOR}z\n=>"
    assert clean_session(task, ["x", " y \n ", "z"]) == ["y", "z"]
    assert clean_session(task.model_copy(update={"max_session": 0}), ["x"]) == []


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        ("a\nb\u2028c\td", "a b c d"),
        ("<SEP> and <|im_end|>", "< SEP> and < |im_end|>"),
        ("＜SEP＞", "< SEP>"),
        ("[INST] do [/INST] [ok]", "[ INST] do [ /INST] [ok]"),
        ("a < b", "a < b"),
        ("\ud800x\u202e\x00y", "xy"),
    ],
)
def test_hostile_text_becomes_one_harmless_line(typed: str, kept: str) -> None:
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


@given(
    st.lists(
        st.sampled_from(["<SEP>", "<AUX>", "<EOS>", "<PAD>", "<", ">", "SEP", "＜", "＞", " ", "\n", "\u200b", "a"]), max_size=12
    )
)
def test_no_typed_text_becomes_a_special_token(pieces: list[str]) -> None:
    prompt = render_prompt(COMPACT, "q" + "".join(pieces), ["".join(pieces)], ["".join(pieces)], "".join(pieces))
    assert not find_form(TOKENIZER).special.intersection(TOKENIZER(prompt)["input_ids"])


def test_braces_typed_by_a_user_are_text() -> None:
    assert render_prompt(COMPACT, "{related} {0} {query.__class__}").startswith("{related} {0} {query.__class__} |")


@pytest.mark.parametrize(
    ("template", "said"),
    [("{query} {user_id}", "unknown field {user_id}"), ("no query", "must hold {query}"), ("{query", "expected '}'")],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("{", r"\{").replace("}", r"\}")):
        Task(name="suggest", template=template)


def test_settings_overlay_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "queryloop.toml"
    file.write_text('[tasks.suggest]\ntemplate = "{query} =>"\n[tasks.rhyme]\nn = 2\nreward = "single"\n')
    tasks = load_settings(Root, file, {"QUERYLOOP_TASKS_HINT": '{"max_related": 1}'}).tasks
    assert tasks["suggest"] == Task(name="suggest", template="{query} =>")
    assert tasks["rhyme"] == Task(name="rhyme", n=2, reward="single")
    assert tasks["hint"].max_related == 1
    assert tasks["refine"] == DEFAULT_TASKS["refine"]


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
