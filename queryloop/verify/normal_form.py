"""The normal form of queries and items, computed anew by code that shares nothing with `streams.events.normal_form`.

It goes by Unicode's categories, character by character, where the store goes by regular expressions.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

VISIBLE_FORMATS = (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440))
"""Characters of category Cf that are shown: signs around Arabic and other numbers, joiners of hieroglyphs."""
JOINERS = {0x200C, 0x200D, *range(0x180B, 0x1810)}
SELECTORS = {0xFE0E, 0xFE0F}
TAGS = range(0xE0020, 0xE0080)
SIGNS = frozenset({*JOINERS, *SELECTORS, *TAGS})
FILLERS = {0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0}
UNASSIGNED = (range(0x2060, 0x2070), range(0xFE00, 0xFE0E), range(0xFFF0, 0xFFFC), range(0xE0000, 0xE0020), range(0xE0080, 0xE1000))
"""Ranges that Unicode keeps for characters without a look, assigned or not."""
JOINING_SCRIPTS = (
    *(range(0x600, 0xE00), range(0xF00, 0x10A0), range(0x1700, 0x18B0), range(0x1900, 0x1D00), range(0xA800, 0xAB00)),
    *(range(0x10A00, 0x12000), range(0x1E900, 0x1E960)),
)
SYMBOLS = (range(0x2190, 0x2C00), range(0x1F000, 0x1FB00))
BRAILLE_BLANK = "\N{BRAILLE PATTERN BLANK}"
KEYCAPS = frozenset(map(ord, "0123456789#*©®〰〽"))


@lru_cache(maxsize=65_536)
def normal_form(text: str) -> str:
    """Return a text after NFKC and case folding, without what nobody sees, white space collapsed."""
    seen = text if text.isascii() and text.isprintable() else _drop_unseen(text)
    return " ".join(unicodedata.normalize("NFKC", seen).casefold().split())


def _drop_unseen(text: str) -> str:
    shown, signs, base = [], "", ""
    for character in text.replace(BRAILLE_BLANK, " "):
        if ord(character) in SIGNS:
            signs += character
        elif not _is_unseen(character):
            shown += [_needed(base, signs), character]
            signs, base = "", character
    return "".join((*shown, _needed(base, signs)))


def _is_unseen(character: str) -> bool:
    code, category = ord(character), unicodedata.category(character)
    if category == "Cc":
        return not character.isspace()
    is_format = category == "Cf" and code not in VISIBLE_FORMATS
    return is_format or code in FILLERS or any(code in reserved for reserved in UNASSIGNED)


def _needed(base: str, signs: str) -> str:
    """Return the signs that change the look of the character before them."""
    if not signs or not base:
        return ""
    code = ord(unicodedata.normalize("NFKC", base)[-1])
    tags = signs[: signs.find("\U000e007f") + 1]
    if code == 0x1F3F4 and len(tags) > 1 and all(ord(tag) in TAGS for tag in tags):
        return tags
    is_symbol = any(code in symbols for symbols in SYMBOLS)
    selectors = [sign for sign in signs if ord(sign) in SELECTORS and (is_symbol or code in KEYCAPS)]
    joiners = [
        sign for sign in signs if ord(sign) in JOINERS and (is_symbol or any(code in script for script in JOINING_SCRIPTS))
    ]
    return "".join(selectors[:1] + joiners[:1])
