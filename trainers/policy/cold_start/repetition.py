"""Finds texts that repeat themselves, as a policy writes them that has lost the language: "zimmermanzimmerman", "is it is it"."""

from __future__ import annotations

import re
from collections import Counter

from streams.events.normal_form import normalise

MAX_CHARS = 256
MIN_RUN_CHARS = 14
"""Characters of a run from which it counts: "bora bora " and "walla walla " are names, "zimmerman zimmerman " is none."""
MIN_WORD_CHARS, MAX_WORD_COUNT = 4, 2
_LETTERS = re.compile(r"([^\W\d_])\1{4}")


def repeats_itself(text: str) -> bool:
    """Return whether a text has a part that follows itself at once, five equal letters in a row, or a longer word three times."""
    flat = normalise(text)[:MAX_CHARS] + " "
    if _LETTERS.search(flat) or _find_run(flat) >= MIN_RUN_CHARS:
        return True
    words = Counter(word for word in flat.split() if len(word) >= MIN_WORD_CHARS)
    return max(words.values(), default=0) > MAX_WORD_COUNT


def _find_run(text: str) -> int:
    """Return the characters of the longest stretch that is one part, of two characters or more, twice or oftener in a row."""
    longest = 0
    for length in range(2, len(text) // 2 + 1):
        equal = 0
        for start in range(len(text) - length):
            equal = equal + 1 if text[start] == text[start + length] else 0
            if equal >= length:
                longest = max(longest, (equal // length + 1) * length)
    return longest
