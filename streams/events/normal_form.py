"""The normal form in which queries and items compare: "Red  Shoes" and "red shoes" are one query."""

from __future__ import annotations

import unicodedata
from functools import lru_cache


@lru_cache(maxsize=65_536)
def normalise(text: str) -> str:
    """Return the form in which queries compare: NFKC, case folded, white space collapsed and stripped."""
    plain = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain.split())
