"""Recommendation tasks: what a policy is asked for, and by which words (G1, G2).

A task is data: templates, a list length, a reward kind and auxiliary texts; another one needs a table in `queryloop.toml` and no
code.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator

MAX_TEXT_CHARS = 512
"""Of one text of a list, at most."""
_FIELDS = frozenset({"n", "query", "related", "session", "response"})
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

INSTRUCTIVE = """Instructions:
You are an expert in query recommendation. You are given a search query and side information. \
Write {n} relevant queries that users are most likely to click.
Inputs:
Search query: {query}
Answer the user has read: {response}
Earlier queries of this session: {session}
Queries that users ask next: {related}
Response:
"""
"""The paper's Prompt Template 1; a line that has only side information is left out when that is empty."""
USER_TURN = """{query}
Answer the user has read: {response}
Earlier queries of this session: {session}
Queries that users ask next: {related}"""
"""What a chat model is asked after a task's system text; in most prompts the query alone is left of it."""

_REFINE = INSTRUCTIVE.replace(
    "Write {n} relevant queries that users are most likely to click.",
    "Write a guiding sentence, a prefix and a suffix, then {n} short facets that users are most likely to click: "
    "prefix, facet and suffix together are a full query.",
)
_HINT = INSTRUCTIVE.replace(
    "Write {n} relevant queries that users are most likely to click.", "Write the query that the user is most likely to ask next."
)


class Task(BaseModel, frozen=True, extra="forbid"):
    """One kind of list. The token limits are per text, in tokens of the policy, each text's ending token included."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")
    n: int = Field(default=3, ge=1, le=64, description="recommendations in a list")
    reward: Literal["multi", "single"] = Field(default="multi", description="of a list: eq. 3 (multi) or eq. 4 (single)")
    template: str = Field(
        default=INSTRUCTIVE,
        description="the prompt of a base without a chat template: {query} and any of {n} {related} {session} {response}",
    )
    system: str | None = Field(default=None, description="the system text for a base with a chat template; it may have {n}")
    user: str | None = Field(
        default=None, description="the user's turn for a base with a chat template, as `template`; unset: `template`"
    )
    auxiliary: tuple[str, ...] = Field(default=(), description="texts that the policy writes before the list, by name")
    max_item_tokens: int = Field(default=24, ge=2, le=512, description="tokens of one recommendation, at most")
    max_auxiliary_tokens: int = Field(default=32, ge=2, le=512, description="tokens of one auxiliary text, at most")
    max_query_chars: int = Field(default=256, ge=1, description="characters of each query in the prompt, at most")
    max_response_chars: int = Field(default=1000, ge=0, description="characters of the answer in the prompt, at most")
    max_related: int = Field(default=5, ge=0, description="co-occurring queries in the prompt, at most")
    max_session: int = Field(default=5, ge=0, description="earlier queries in the prompt, at most")

    @field_validator("auxiliary")
    @classmethod
    def _check_auxiliary(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names) or not all(names):
            raise ValueError("each auxiliary text needs a name of its own")
        return names

    @field_validator("template", "user")
    @classmethod
    def _check_template(cls, template: str | None) -> str | None:
        if template is not None and "query" not in _read_fields(template, _FIELDS):
            raise ValueError("the template must hold {query}")
        return template

    @field_validator("system")
    @classmethod
    def _check_system(cls, template: str | None) -> str | None:
        _read_fields(template or "", frozenset({"n"}))
        return template

    @property
    def max_new_tokens(self) -> int:
        """Upper bound on the tokens of one list, EOS included."""
        return self.n * self.max_item_tokens + len(self.auxiliary) * self.max_auxiliary_tokens


def _read_fields(template: str, known: frozenset[str]) -> set[str]:
    """Return the fields of a template. Raises ValueError for one that cannot be filled in."""
    try:
        parts = [(name, form, conversion) for _, name, form, conversion in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is meant as text is written twice") from None
    if changed := [name for name, form, conversion in parts if form or conversion]:
        raise ValueError(f"{{{changed[0]}}} has a format or a conversion; write the bare name in braces")
    fields = {name for name, _, _ in parts}
    if unknown := sorted(fields - known):
        raise ValueError(f"unknown field {{{unknown[0]}}}; a template may use {', '.join(sorted(known))}")
    return fields


_SUGGEST = "You suggest search queries. Write {n} short queries that the user is most likely to ask next, one per line."
DEFAULT_TASKS: dict[str, Task] = {
    "suggest": Task(name="suggest", n=3, reward="multi", system=_SUGGEST, user=USER_TURN),
    "refine": Task(
        name="refine",
        n=8,
        reward="multi",
        template=_REFINE,
        system="You refine search queries. Write a guiding sentence, a prefix, a suffix, and {n} short facets, one per line: "
        "prefix, facet and suffix together are a full query.",
        user=USER_TURN,
        auxiliary=("guiding", "prefix", "suffix"),
        max_item_tokens=12,
    ),
    "hint": Task(
        name="hint",
        n=1,
        reward="single",
        template=_HINT,
        system="You suggest search queries. Write the query that the user is most likely to ask next.",
        user=USER_TURN,
    ),
}


def overlay_tasks(tables: Any) -> Any:
    """Merge settings tables into the defaults: a known task changes only the given keys, a new name is a new task.

    A changed `template` is also what a chat model is asked, unless the table has a `user` of its own."""
    if not isinstance(tables, Mapping):
        return tables
    merged: dict[str, Any] = dict(DEFAULT_TASKS)
    for name, given in tables.items():
        table = _read_table(name, given) if isinstance(given, str) else given
        merged[name] = _overlay(name, table) if isinstance(table, Mapping) else table
    return merged


def _overlay(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    base = DEFAULT_TASKS[name].model_dump() if name in DEFAULT_TASKS else {}
    asked = {"user": None} if "template" in table else {}
    return {**base, **asked, **table, "name": name}


def _read_table(name: str, text: str) -> Any:
    """Return the table that a variable QUERYLOOP_TASKS_<NAME> has as JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"tasks.{name} is no JSON object: {error}") from None


Tasks = Annotated[dict[str, Task], BeforeValidator(overlay_tasks)]
"""The settings section `tasks`: name -> Task."""


def check_default_task(name: str, tasks: Mapping[str, Task]) -> None:
    """Raise ValueError when `events.default_task` is none of the tasks."""
    if name not in tasks:
        raise ValueError(f"events.default_task = {name!r} is none of the tasks: {', '.join(sorted(tasks))}")


def clean_text(text: str, max_chars: int) -> str:
    """Return a text as one line of at most `max_chars` characters: NFKC, no control or direction characters, white space
    collapsed."""
    # Four times the limit before normalising: a hostile text must not cost more than what is kept of it.
    flat = " ".join(unicodedata.normalize("NFKC", text[: 4 * max_chars]).split())
    safe = " ".join(_UNSAFE.sub("", flat).split())  # a removed character may have been between two spaces
    return safe[:max_chars].strip()


def clean_session(task: Task, session: Sequence[str]) -> list[str]:
    """Return the session's latest queries as they are in the prompt, oldest first."""
    return clean_texts(session[-task.max_session :] if task.max_session else (), task)


def clean_texts(texts: Iterable[str], task: Task) -> list[str]:
    """Return queries as they are in the prompt, without those of which nothing is left."""
    return [clean for text in texts if (clean := clean_text(text, task.max_query_chars))]
