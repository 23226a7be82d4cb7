"""The words of a prompt: a task's template filled with a query and its side information, as raw text or as turns of a chat."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from serving.policy.list_form import END_THINK, THINK
from serving.policy.tasks import Task, clean_session, clean_text, clean_texts
from serving.policy.text_tokens import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = " ; "
"""Between several texts of one prompt field."""
_SIDE_INFORMATION = frozenset({"related", "session", "response"})
# They stand where the turns' texts will be; no template has or changes characters of private use.
_SYSTEM, _USER = "\ue000\ue001", "\ue000\ue002"
_PLACES = re.compile(f"({_SYSTEM}|{_USER})")
_USER_ALONE = ({"role": "user", "content": _USER},)
_SYSTEM_AND_USER = ({"role": "system", "content": _SYSTEM}, *_USER_ALONE)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one prompt asks with: a query, co-occurring queries (best first), earlier ones (oldest first), and the answer that
    the user has read."""

    query: str
    related: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    response: str = ""


def bound(task: Task, asked: Asked) -> Asked:
    """Return the texts cleaned and within the task's limits."""
    return Asked(
        clean_text(asked.query, task.max_query_chars),
        tuple(clean_texts(asked.related[: task.max_related], task)),
        tuple(clean_session(task, asked.session)),
        clean_text(asked.response, task.max_response_chars),
    )


def render_prompt(
    task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
) -> str:
    """Return a prompt as raw text (G1)."""
    asked = bound(task, Asked(query, tuple(related), tuple(session), response or ""))
    return "".join(piece.text for piece in render_raw(task, asked))


def render_raw(task: Task, asked: Asked) -> list[Piece]:
    """Return the prompt for a base without a chat template; `asked` as `bound` returns it."""
    return _fill(task.template, task, asked)


def render_chat(task: Task, asked: Asked, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Return the prompt as the turns of a chat, by the tokenizer's own template and with thinking switched off.

    Where the template has no place for a system text, the user's turn begins with it. Raises ValueError for a template that
    cannot be used."""
    system = _fill(task.system or "", task, asked)
    user = _strip_end(_fill(task.user or task.template, task, asked))
    layout = _lay_out(tokenizer, _SYSTEM_AND_USER) if system else None
    if system and layout is None:
        user = [*system, Piece("\n\n", typed=False), *user]
    turns = {_SYSTEM: system, _USER: user}
    parts = _PLACES.split(layout or _lay_out_user(tokenizer))
    return [piece for part in parts for piece in turns.get(part, [Piece(part, typed=False)])]


def _lay_out_user(tokenizer: PreTrainedTokenizerBase) -> str:
    if (layout := _lay_out(tokenizer, _USER_ALONE)) is None:
        raise ValueError(
            "the chat template of the tokenizer (chat_template) cannot be filled with a user's turn: remove or mend it"
        )
    return layout


def _lay_out(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> str | None:
    """Return what the chat template makes of the turns, up to where the answer begins; None where it refuses or loses one."""
    from jinja2.exceptions import TemplateError

    # Templates name the switch differently, and ignore what they do not know.
    thinking: dict[str, Any] = {"enable_thinking": False, "thinking": False}
    try:
        text = str(tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True, **thinking))
    except TemplateError:
        return None
    if any(text.count(turn["content"]) != 1 for turn in turns):
        return None
    # A model that always thinks finds that it has thought already.
    return f"{text.rstrip()}\n\n{END_THINK}\n\n" if text.rstrip().endswith(THINK) else text


def _strip_end(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces without white space at the end, which is left of lines that were left out."""
    kept = list(pieces)
    while kept and not kept[-1].text.rstrip():
        kept.pop()
    return [*kept[:-1], replace(kept[-1], text=kept[-1].text.rstrip())] if kept else []


def _fill(template: str, task: Task, asked: Asked) -> list[Piece]:
    values = {
        "n": str(task.n),
        "query": asked.query,
        "related": SEPARATOR.join(asked.related),
        "session": SEPARATOR.join(asked.session),
        "response": asked.response,
    }
    return [piece for line in template.splitlines(keepends=True) for piece in _fill_line(line, values)]


def _fill_line(line: str, values: Mapping[str, str]) -> Iterator[Piece]:
    """Yield the pieces of a line; none where it has only side information and that is empty."""
    parts = list(string.Formatter().parse(line))
    fields = {name for _, name, _, _ in parts if name}
    side = fields & _SIDE_INFORMATION
    if side and "query" not in fields and not any(values[name] for name in side):
        return
    for text, name, _, _ in parts:
        yield Piece(text, typed=False)
        if name:
            yield Piece(values[name], typed=True)
