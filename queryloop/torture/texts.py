"""The texts of the generated log: queries in many scripts, and spellings of one query that must count as the same."""

from __future__ import annotations

import json

WORDS = (
    *("red", "blue", "straße", "ﬁne", "crème brûlée", "naïve", "Ωmega", "ёлка", "東京", "서울", "قهوة", "हिन्दी", "🍕", "👩‍👩‍👧"),
    *("shoes", "hat", "weather", "flight", "laptop", "O'Neill", '"quoted"', "a\\b", "50%", "<b>bold</b>", "tab\tstop", "=1+1"),
    *("cheap", "near me", "review", "2024", "how to", "vs", "best", "Zürich", "İstanbul", "naıve", "ǅungla", "½ price"),
)


def make_texts() -> tuple[str, ...]:
    """Return queries as JSON strings, quotes included; every third is another spelling of the one before it."""
    texts: list[str] = []
    for first in WORDS:
        for second in WORDS[: len(WORDS) // 2]:
            if first != second:
                plain = f"{first} {second}"
                texts += [json.dumps(plain, ensure_ascii=False), json.dumps(plain), _respell(plain)]
    return tuple(texts)


def _respell(text: str) -> str:
    """Return a spelling with the same normal form: upper case where it folds back, full-width digits, more white space,
    characters that nobody sees."""
    upper = text.upper()
    shown = upper if upper.casefold() == text.casefold() else text
    wide = shown.translate({digit: 0xFF10 + digit - 0x30 for digit in range(0x30, 0x3A)})
    spaced = wide.replace(" ", "\N{ZERO WIDTH SPACE}  ")
    return json.dumps(f" \N{ZERO WIDTH NO-BREAK SPACE}{spaced}\N{SOFT HYPHEN}", ensure_ascii=False)
