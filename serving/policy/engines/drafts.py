"""A list while it is written: in which text it is, what that text is so far, and what may come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from serving.policy.engines.characters import WHOLE
from serving.policy.engines.grammar import Choice, Grammar
from serving.policy.list_form import ListForm
from serving.policy.tasks import Task
from streams.events.normal_form import is_blank, normalise


@dataclass(frozen=True, slots=True)
class Outline:
    """What is given before a list is written: the token that ends each text and its limit of tokens, the end included; how many
    texts are auxiliary, the tokens of the list at most, and the user's query as an item would be written."""

    ends: tuple[int, ...]
    limits: tuple[int, ...]
    auxiliary: int
    tokens: int
    query: str
    query_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Of one text, summed over its tokens: log-probability under the policy itself, and as drawn while the list has redraws left
    and when it has none; and how many draws the grammar changed."""

    policy: float = 0.0
    redrawing: float = 0.0
    final: float = 0.0
    forced: int = 0

    def plus(self, other: Score) -> Score:
        return Score(
            self.policy + other.policy,
            self.redrawing + other.redrawing,
            self.final + other.final,
            self.forced + other.forced,
        )


NOTHING = Score()


@dataclass(slots=True)
class Draft:
    """A row. `token_ids` are those of the list so far; the current text begins at `start`. `banned`: the normal forms of what no
    item may be. `repeats`: the token ids of those texts, which are drawn anew while the list has `redraws` left of those given.

    Auxiliary texts may be anything that can be seen: a prefix often is the user's query."""

    grammar: Grammar
    outline: Outline
    given_redraws: int
    redraws: int
    banned: frozenset[str]
    repeats: frozenset[tuple[int, ...]]
    token_ids: list[int] = field(default_factory=list)
    scores: list[Score] = field(default_factory=lambda: [NOTHING])
    start: int = 0
    state: int = WHOLE
    text: bytes = b""
    blank: bool = True

    def copy(self, redraws: int) -> Draft:
        """Return a draft that goes on from here, with so many redraws."""
        ids, scores = list(self.token_ids), list(self.scores)
        return replace(self, given_redraws=redraws, redraws=redraws, token_ids=ids, scores=scores)

    @property
    def part(self) -> int:
        """Which of the list's texts is being written; the number of its texts when all are."""
        return len(self.scores) - 1

    @property
    def over(self) -> bool:
        """Whether the list has ended, or has as many tokens as it may have."""
        return self.part == len(self.outline.ends) or len(self.token_ids) >= self.outline.tokens

    def choose(self, redrawing: bool) -> Choice:
        """Return what may be drawn next, where a repetition may be drawn since it is `redrawing`, or where it may not."""
        room = self.outline.limits[self.part] - 1 - (len(self.token_ids) - self.start)
        ids = tuple(self.token_ids[self.start :])
        item = self.part >= self.outline.auxiliary
        refused = self._find_repeating() if item and room == 1 else []
        admitted = [ids_[-1] for ids_ in self._find_whole(ids)] if item and redrawing and room == 1 else []
        if self._may_end(item) or (item and redrawing and ids in self.repeats):
            admitted.append(self.outline.ends[self.part])
        return Choice(self.grammar.find_mask(self.state, room, self.blank), refused, admitted)

    def can_repeat(self) -> bool:
        """Return whether it matters for the next draw if redraws are left."""
        if self.part < self.outline.auxiliary or not self.repeats:
            return False
        ids = tuple(self.token_ids[self.start :])
        last = self.outline.limits[self.part] - 2 == len(ids)
        return ids in self.repeats or (last and bool(self._find_whole(ids)))

    def add(self, token: int, score: Score = NOTHING) -> bool:
        """Append a token; return False where it ended a repetition that is to be drawn anew: the text is then empty again."""
        self.scores[-1] = self.scores[-1].plus(score)
        if token == self.outline.ends[self.part]:
            return self._end(token)
        self.token_ids.append(token)
        self.state = int(self.grammar.next_states[token, self.state])
        self.text += self.grammar.tokens[token]
        self.blank = self.blank and (self.state != WHOLE or is_blank(self.text.decode()))
        return True

    def _end(self, token: int) -> bool:
        ids = tuple(self.token_ids[self.start :])
        item = self.part >= self.outline.auxiliary
        undone = item and ids in self.repeats
        if undone:
            self.redraws -= 1
            del self.token_ids[self.start :]
            self.scores[-1] = NOTHING
        else:
            if item:
                self.banned |= {normalise(self.text.decode())}
                self.repeats |= {ids}
            self.token_ids.append(token)
            self.start = len(self.token_ids)
            self.scores.append(NOTHING)
        self.state, self.text, self.blank = WHOLE, b"", True
        return not undone

    def _may_end(self, item: bool) -> bool:
        if self.state != WHOLE or self.blank:
            return False
        return not item or normalise(self.text.decode()) not in self.banned

    def _find_repeating(self) -> list[int]:
        """Return the tokens that would, as the last one before the limit, make the item a repetition."""
        form = normalise(self.text.decode())
        rests = (banned[len(form) :].lstrip() for banned in self.banned if banned.startswith(form))
        return [token for rest in rests for token in self.grammar.endings.get(rest, ())]

    def _find_whole(self, ids: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the repetitions that the item would be with one token more."""
        return [one for one in self.repeats if one[:-1] == ids]

    @classmethod
    def begin(cls, grammar: Grammar, outline: Outline, redraws: int) -> Self:
        """Begin a list. Raises ValueError where the vocabulary is too small for its number of items."""
        grammar.check_room(len(outline.ends) - outline.auxiliary)
        # The query as an item would show it may differ from the query: an item has no control characters.
        shown = b"".join(grammar.tokens[token] for token in outline.query_ids).decode(errors="replace")
        banned = frozenset({normalise(outline.query), normalise(shown)} - {""})
        repeats = frozenset({outline.query_ids} - {()})
        return cls(grammar, outline, redraws, redraws, banned, repeats)


def make_outline(form: ListForm, task: Task, tokens: int | None, query: str, query_ids: Sequence[int]) -> Outline:
    """Return the outline of a task's list of at most `tokens` tokens (None: the task's own limit)."""
    auxiliary = len(task.auxiliary)
    limits = (task.max_auxiliary_tokens,) * auxiliary + (task.max_item_tokens,) * task.n
    return Outline(form.find_ends(task), limits, auxiliary, tokens or task.max_new_tokens, query, tuple(query_ids))
