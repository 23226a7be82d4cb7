"""Turns pydantic's errors into sentences: the only place that does, so that no text of pydantic's reaches a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from streams.runtime.allowed_values import demand


def explain_error(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return what is wrong with one value of a model, without the value: one of `ValidationError.errors()` in words.

    A validator of ours says it in its own words; any other error is told by what is allowed."""
    own = error.get("ctx", {}).get("error")
    if error["type"] in ("value_error", "assertion_error") and own is not None:
        return str(own)
    if error["type"] == "json_invalid":
        return "is no valid JSON"
    if error["type"] == "string_unicode":
        return "is no valid text: a character in it is half of a surrogate pair"
    if error["type"] == "extra_forbidden":
        return "is not known"
    demanded = demand(model, error["loc"])
    return f"a value is needed, it {demanded}" if error["type"] == "missing" else demanded
