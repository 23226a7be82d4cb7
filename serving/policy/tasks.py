"""Recommendation tasks, and the prompts that they ask the policy with (G1, G2).

A task is data: a template, a list length, a reward kind and auxiliary texts; another one needs a table in `queryloop.toml` and no
code. Serving and the trainers render prompts only here, so a policy is asked exactly as it was trained.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator

SEPARATOR = " ; "
"""Between several texts of one prompt field."""
_FIELDS = frozenset({"n", "query", "related", "session", "response"})
_SIDE_INFORMATION = frozenset({"related", "session", "response"})
# What users type must never be a special token of any tokenizer: "<...>" and "[WORD]" are broken up by a space.
_SPECIAL_TOKEN = re.compile(r"<(?=[^<> ][^<>]{0,63}>)|\[(?=/?[A-Z_]{2,32}\])")
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
    template: str = Field(default=INSTRUCTIVE, description="the prompt: {query} and any of {n} {related} {session} {response}")
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

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        try:
            parts = [
                (name, form, conversion) for _, name, form, conversion in string.Formatter().parse(template) if name is not None
            ]
        except ValueError as error:
            raise ValueError(f"{error}; a brace that is meant as text is written twice") from None
        if changed := [name for name, form, conversion in parts if form or conversion]:
            raise ValueError(f"{{{changed[0]}}} has a format or a conversion; write the bare name in braces")
        fields = {name for name, _, _ in parts}
        if unknown := sorted(fields - _FIELDS):
            raise ValueError(f"unknown field {{{unknown[0]}}}; a template may use {', '.join(sorted(_FIELDS))}")
        if "query" not in fields:
            raise ValueError("the template must hold {query}")
        return template

    @property
    def max_new_tokens(self) -> int:
        """Upper bound on the tokens of one list, EOS included."""
        return self.n * self.max_item_tokens + len(self.auxiliary) * self.max_auxiliary_tokens


DEFAULT_TASKS: dict[str, Task] = {
    "suggest": Task(name="suggest", n=3, reward="multi"),
    "refine": Task(
        name="refine", n=8, reward="multi", template=_REFINE, auxiliary=("guiding", "prefix", "suffix"), max_item_tokens=12
    ),
    "hint": Task(name="hint", n=1, reward="single", template=_HINT),
}


def overlay_tasks(tables: Any) -> Any:
    """Merge settings tables into the defaults: a known task changes only the given keys, a new name is a new task."""
    if not isinstance(tables, Mapping):
        return tables
    merged: dict[str, Any] = dict(DEFAULT_TASKS)
    for name, given in tables.items():
        table = _read_table(name, given) if isinstance(given, str) else given
        base = DEFAULT_TASKS[name].model_dump() if name in DEFAULT_TASKS else {}
        merged[name] = {**base, **table, "name": name} if isinstance(table, Mapping) else table
    return merged


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
    """Return a text as one harmless line of at most `max_chars` characters: NFKC, no control or direction characters, nothing
    that a tokenizer takes for a special token, white space collapsed."""
    # Four times the limit before normalising: a hostile text must not cost more than what is kept of it.
    flat = " ".join(unicodedata.normalize("NFKC", text[: 4 * max_chars]).split())
    safe = " ".join(_UNSAFE.sub("", flat).split())  # a removed character may have been between two spaces
    return _SPECIAL_TOKEN.sub(lambda match: match.group() + " ", safe)[:max_chars].strip()


def render_prompt(
    task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
) -> str:
    """Return the prompt for one list (G1). `related`: co-occurring queries, best first; `session`: earlier ones, oldest first."""
    values: dict[str, str] = {
        "n": str(task.n),
        "query": clean_text(query, task.max_query_chars),
        "related": SEPARATOR.join(_clean(related[: task.max_related], task)),
        "session": SEPARATOR.join(clean_session(task, session)),
        "response": clean_text(response or "", task.max_response_chars),
    }
    return "".join(_render_line(line, values) for line in task.template.splitlines(keepends=True))


def clean_session(task: Task, session: Sequence[str]) -> list[str]:
    """Return the session's latest queries as they are in the prompt, oldest first."""
    return _clean(session[-task.max_session :] if task.max_session else (), task)


def _clean(texts: Iterable[str], task: Task) -> list[str]:
    return [clean for text in texts if (clean := clean_text(text, task.max_query_chars))]


def _render_line(line: str, values: Mapping[str, str]) -> str:
    fields = {name for _, name, _, _ in string.Formatter().parse(line) if name}
    side = fields & _SIDE_INFORMATION
    left_out = side and "query" not in fields and not any(values[name] for name in side)
    return "" if left_out else line.format_map(values)
