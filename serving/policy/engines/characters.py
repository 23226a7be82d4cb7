"""Which tokens may follow which in a text, so that every character is whole and none is harmful: an automaton over UTF-8.

Refused are control characters (newline and tab too: a text is one line), marks that turn the direction of writing, the line
separators of Unicode, U+FFFD (a broken character) and what is no character.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WHOLE = 0
"""The state between two characters; all others are inside one."""
DEAD = 255
_LAST, _LAST_TWO = 2, 4
"""Any one, any two continuation bytes are missing."""


def _make_automaton() -> npt.NDArray[np.uint8]:
    """Return the next state by state and byte, [14, 256]."""
    table = np.full((14, 256), DEAD, dtype=np.uint8)

    def go(state: int, first: int, last: int, after: int) -> None:
        table[state, first : last + 1] = after

    go(WHOLE, 0x20, 0x7E, WHOLE)
    go(WHOLE, 0xC3, 0xDF, _LAST)
    go(WHOLE, 0xE1, 0xEE, _LAST_TWO)
    go(WHOLE, 0xF1, 0xF3, 12)
    for first, after in ((0xC2, 1), (0xE0, 3), (0xE2, 6), (0xED, 5), (0xEF, 9), (0xF0, 11), (0xF4, 13)):
        go(WHOLE, first, first, after)
    go(1, 0xA0, 0xBF, WHOLE)  # not U+0080 to U+009F: control characters
    go(_LAST, 0x80, 0xBF, WHOLE)
    go(3, 0xA0, 0xBF, _LAST)
    go(_LAST_TWO, 0x80, 0xBF, _LAST)
    go(5, 0x80, 0x9F, _LAST)  # not the surrogates
    go(6, 0x80, 0xBF, _LAST)
    go(6, 0x80, 0x80, 7)
    go(6, 0x81, 0x81, 8)
    go(7, 0x80, 0xBF, WHOLE)
    go(7, 0x8E, 0x8F, DEAD)  # U+200E, U+200F: marks of direction
    go(7, 0xA8, 0xAE, DEAD)  # U+2028 to U+202E: line separators, marks of direction
    go(8, 0x80, 0xBF, WHOLE)
    go(8, 0xA6, 0xA9, DEAD)  # U+2066 to U+2069: marks of direction
    go(9, 0x80, 0xBE, _LAST)
    go(9, 0xBF, 0xBF, 10)
    go(10, 0x80, 0xBC, WHOLE)  # not U+FFFD to U+FFFF
    go(11, 0x90, 0xBF, _LAST_TWO)
    go(12, 0x80, 0xBF, _LAST_TWO)
    go(13, 0x80, 0x8F, _LAST_TWO)
    return table


AUTOMATON = _make_automaton()
STATES = len(AUTOMATON)


def find_next_states(tokens: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """Return the state [tokens, STATES] after each token in each state; DEAD where it may not follow, or is empty."""
    extended = np.vstack([AUTOMATON, np.full((DEAD + 1 - STATES, 256), DEAD, dtype=np.uint8)])
    states = np.tile(np.arange(STATES, dtype=np.uint8), (len(tokens), 1))
    lengths = np.array([len(token) for token in tokens], dtype=np.int64)
    states[lengths == 0] = DEAD
    for column in range(int(lengths.max(initial=0))):
        longer = np.flatnonzero(lengths > column)
        read = np.fromiter((tokens[index][column] for index in longer.tolist()), dtype=np.uint8, count=len(longer))
        states[longer] = extended[states[longer], read[:, None]]
    return states


def count_missing(next_states: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return how many tokens of this vocabulary end a begun character, by state [256]; a large number if none can."""
    never = 1 << 20
    missing = np.full(DEAD + 1, never, dtype=np.int64)
    missing[WHOLE] = 0
    for _ in range(STATES):
        shortest = 1 + missing[next_states].min(axis=0, initial=never)
        missing[1:STATES] = np.minimum(missing[1:STATES], shortest[1:])
    return missing
