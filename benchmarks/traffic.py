"""Realistic events for the benchmarks: seeded, some 300 bytes each, in the order of a log.

A session is one to five searches. Each is a query and the list shown for it (3 to 5 items with the release, the predicted click
rates, the log-probability and how it was decoded); about one list in three is clicked, sometimes twice, and after a click the
next search is for the clicked item. Some events are delivered twice, some late, and a few clicks are more than a day after their
list.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

START = 1_760_918_400.0
"""2025-10-20 00:00 UTC, where a log begins."""
DAY_S = 86_400.0
EVENTS_A_SESSION = 5.83
"""Measured over a million events, repeats included; only the density of a log in event time rests on it."""
SEARCHES = (1, 1, 1, 2, 2, 2, 3, 3, 4, 5)
LATE_S = 600.0
REPEAT_S = 60.0
VERY_LATE_S = 90_000.0
BLOCK_EVENTS = 20_000
CANDIDATES = 12
WORDS = (
    "red blue green black white small large light warm soft running hiking winter summer garden kitchen travel leather cotton",
    "wool wooden steel glass cheap best used vintage modern kids women men shoes boots jacket coat lamp table chair desk bag",
    "tent watch camera phone case cover stand mat rug shelf frame clock bottle knife pan pot kettle brush paint drill saw bike",
)


@dataclass(frozen=True)
class Mix:
    """The shares of difficult events of a log, and its density in event time."""

    events_per_day: float = 2_000_000.0
    clicked_item: float = 0.09
    repeated: float = 0.03
    late: float = 0.02
    very_late_click: float = 0.002


@dataclass(frozen=True)
class Line:
    """One event of a log."""

    session_id: str
    text: bytes


def make_phrases(rng: random.Random, number: int) -> list[str]:
    """Return distinct phrases of two to four words, most frequent first."""
    words = " ".join(WORDS).split()
    phrases: dict[str, None] = {}
    while len(phrases) < number:
        phrases[" ".join(rng.choices(words, k=rng.choice((2, 3, 3, 4))))] = None
    return list(phrases)


class Traffic:
    """An endless log: `lines` yields it in order of arrival. The same seed, mix and start give the same bytes."""

    def __init__(self, seed: int = 0, mix: Mix | None = None, start: float = START, phrases: int = 20_000) -> None:
        self._rng = random.Random(seed)
        self._mix = mix or Mix()
        self._seed = seed
        self._clock = start
        self._sessions = 0
        self._phrases = make_phrases(random.Random(1), phrases)
        self._weights = _cumulated(phrases)
        self._orders = [random.Random(order).sample(range(CANDIDATES), 5) for order in range(997)]
        self._waiting: list[tuple[float, int, Line]] = []

    def lines(self, events: int) -> Iterator[Line]:
        """Yield the next `events` lines."""
        left = events
        while left > 0:
            block = self._block()[:left]
            left -= len(block)
            yield from block

    def _block(self) -> list[Line]:
        """Make the sessions of some seconds; return the lines that have arrived by their end, and keep the later ones."""
        sessions = int(BLOCK_EVENTS / EVENTS_A_SESSION)
        span = BLOCK_EVENTS / self._mix.events_per_day * DAY_S
        queries = self._rng.choices(range(len(self._phrases)), cum_weights=self._weights, k=sessions)
        for query in queries:
            self._session(self._clock + self._rng.random() * span, query)
        self._clock += span
        self._waiting.sort()
        arrived = sum(1 for at, _, _ in self._waiting if at < self._clock)
        block, self._waiting = self._waiting[:arrived], self._waiting[arrived:]
        return [line for _, _, line in block]

    def _session(self, at: float, query: int) -> None:
        self._sessions += 1
        name, source = f"s{self._seed:02x}{self._sessions:012x}", "user"
        for _ in range(self._rng.choice(SEARCHES)):
            shared = f'"session_id":"{name}","user_id":"u{query % 9973:05d}","query":"{self._phrases[query]}"'
            self._put("query", at, name, shared, f'"source":"{source}"')
            clicked = self._list(at + 0.2, name, shared, query)
            query, source = (query * 7 + 1, "user") if clicked is None else (clicked, "recommendation")
            query %= len(self._phrases)
            at += 15.0 + 60.0 * self._rng.random()

    def _list(self, at: float, name: str, shared: str, query: int) -> int | None:
        """Put a list and its clicks; return the phrase clicked last, if any."""
        rng, phrases = self._rng, self._phrases
        shown = [(query * 31 + slot) % len(phrases) for slot in rng.choice(self._orders)[: rng.choice((3, 4, 4, 5))]]
        list_id = f"{rng.getrandbits(64):016x}"
        items = '","'.join([phrases[one] for one in shown])
        predicted = ",".join([f"0.{rng.getrandbits(12):04d}" for _ in shown])
        made = f'"predicted":[{predicted}],"logprob":-{rng.getrandbits(10) / 64:.4f},"decoding":{{"temperature":0.9}}'
        fields = f'"impression_id":"{list_id}","task":"suggest","items":["{items}"],"release":"r0003",{made}'
        self._put("impression", at, name, shared, fields)
        clicked = None
        for position, one in enumerate(shown):
            if rng.random() < self._mix.clicked_item:
                clicked = one
                delay = VERY_LATE_S if rng.random() < self._mix.very_late_click else 2.0 + 20.0 * rng.random()
                fields = f'"impression_id":"{list_id}","position":{position},"item":"{phrases[one]}"'
                self._put("click", at + delay, name, shared, fields)
        return clicked

    def _put(self, kind: str, ts: float, name: str, shared: str, fields: str) -> None:
        rng, mix = self._rng, self._mix
        number = rng.getrandbits(128)
        line = Line(name, f'{{"type":"{kind}","event_id":"{number:032x}","ts":{ts:.3f},{shared},{fields}}}'.encode())
        luck = rng.random()
        at = ts + LATE_S * rng.random() if luck < mix.late else ts
        self._waiting.append((at, number, line))
        if luck > 1.0 - mix.repeated:
            self._waiting.append((at + REPEAT_S * rng.random(), number + 1, line))


def _cumulated(number: int) -> list[float]:
    """Return cumulated weights by Zipf's law: the r-th phrase is drawn in proportion to 1 / (r + 10)."""
    total, weights = 0.0, []
    for rank in range(number):
        total += 1.0 / (rank + 10)
        weights.append(total)
    return weights
