"""The words of a prompt: a task's template filled with a query and its side information, as raw text or as turns of a chat.

Example lists come before it: in a chat as turns of their own, a user's and an answer each, else as prompts with their lists.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from serving.policy.examples import MAX_EXAMPLES, ListExample
from serving.policy.list_form import AUX, END_THINK, SEP, THINK, name_form
from serving.policy.tasks import MAX_TEXT_CHARS, Task, clean_session, clean_text, clean_texts
from serving.policy.text_tokens import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = " ; "
"""Between several texts of one prompt field."""
_SIDE_INFORMATION = frozenset({"related", "session", "response"})
# They stand where the turns' texts will be; no template has or changes characters of private use.
_PLACE, _FIRST_NUMBER = "\ue000", 0xE100
_PLACES = re.compile("(\ue000[\ue100-\uf8ff])")


@dataclass(frozen=True, slots=True)
class Asked:
    """What one prompt asks with: a query, co-occurring queries (best first), earlier ones (oldest first), the answer that the
    user has read, and example lists that are shown before it."""

    query: str
    related: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    response: str = ""
    examples: tuple[ListExample, ...] = ()


def bound(task: Task, asked: Asked) -> Asked:
    """Return the texts cleaned and within the task's limits."""
    return Asked(
        clean_text(asked.query, task.max_query_chars),
        tuple(clean_texts(asked.related[: task.max_related], task)),
        tuple(clean_session(task, asked.session)),
        clean_text(asked.response, task.max_response_chars),
        tuple(_bound_example(task, one) for one in asked.examples[:MAX_EXAMPLES]),
    )


def _bound_example(task: Task, one: ListExample) -> ListExample:
    asked = bound(task, Asked(one.query, one.related, one.session, one.response))
    texts = tuple(clean_text(text, MAX_TEXT_CHARS) for text in one.texts)
    return ListExample(asked.query, texts, asked.related, asked.session, asked.response)


def render_prompt(
    task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
) -> str:
    """Return a prompt as raw text (G1)."""
    asked = bound(task, Asked(query, tuple(related), tuple(session), response or ""))
    return "".join(piece.text for piece in render_raw(task, asked))


def render_raw(task: Task, asked: Asked) -> list[Piece]:
    """Return the question for a base without a chat template, without its examples; `asked` as `bound` returns it."""
    return _fill(task.template, task, asked)


def render_raw_examples(task: Task, asked: Asked, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Return the examples for a base without a chat template: each as it would be asked, with its list and EOS."""
    end = Piece(str(tokenizer.eos_token), typed=False)
    return [
        piece
        for one in asked.examples
        for piece in (*render_raw(task, _ask_example(one)), *_render_list(task, one, tokenizer), end)
    ]


def render_chat(task: Task, asked: Asked, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Return the prompt as the turns of a chat, by the tokenizer's own template and with thinking switched off.

    Where the template has no place for a system text, the first turn begins with it. Raises ValueError for a template that
    cannot be used."""
    system = _fill(task.system or "", task, asked)
    turns: list[tuple[str, list[Piece]]] = []
    for one in asked.examples:
        turns += [("user", _fill_turn(task, _ask_example(one))), ("assistant", _render_list(task, one, tokenizer))]
    turns.append(("user", _fill_turn(task, asked)))
    if system and (laid_out := _lay_out(tokenizer, [("system", system), *turns])) is not None:
        return laid_out
    if system:
        role, first = turns[0]
        turns[0] = role, [*system, Piece("\n\n", typed=False), *first]
    if (laid_out := _lay_out(tokenizer, turns)) is None:
        raise ValueError(
            "the chat template of the tokenizer (chat_template) cannot be filled with a user's turn"
            f"{' after example lists (policy.shots)' if asked.examples else ''}: remove or mend it"
        )
    return laid_out


def _lay_out(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, list[Piece]]]) -> list[Piece] | None:
    """Return what the chat template makes of the turns (role and text), up to where the answer begins; None where it refuses or
    loses one."""
    from jinja2.exceptions import TemplateError

    places = [_PLACE + chr(_FIRST_NUMBER + number) for number in range(len(turns))]
    named = [{"role": role, "content": place} for (role, _), place in zip(turns, places, strict=True)]
    # Templates name the switch differently, and ignore what they do not know.
    thinking: dict[str, Any] = {"enable_thinking": False, "thinking": False}
    try:
        text = str(tokenizer.apply_chat_template(named, tokenize=False, add_generation_prompt=True, **thinking))
    except TemplateError:
        return None
    parts = _PLACES.split(text)
    if parts[1::2] != places:
        return None
    # A model that always thinks finds that it has thought already.
    if parts[-1].rstrip().endswith(THINK):
        parts[-1] = f"{parts[-1].rstrip()}\n\n{END_THINK}\n\n"
    filled = dict(zip(places, (pieces for _, pieces in turns), strict=True))
    return [piece for part in parts for piece in filled.get(part, [Piece(part, typed=False)])]


def _ask_example(one: ListExample) -> Asked:
    return Asked(one.query, one.related, one.session, one.response)


def _fill_turn(task: Task, asked: Asked) -> list[Piece]:
    return _strip_end(_fill(task.user or task.template, task, asked))


def _render_list(task: Task, one: ListExample, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Return an example's list without its end, in the form of the policy's lists."""
    tokens = name_form(tokenizer) == "tokens"
    ends = [AUX if tokens else "\n"] * len(task.auxiliary) + [SEP if tokens else "\n"] * task.n
    pairs = zip(one.texts, ends, strict=False)
    return [piece for text, end in pairs for piece in (Piece(text, typed=True), Piece(end, typed=False))][:-1]


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
