"""How every command prints: text that cannot harm a terminal; with --json one object, answer or error (docs/commands.md)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from queryloop.exits import Exit

JOINERS = "\u200c\u200d"
"""Invisible characters that some scripts and emoji need; they move nothing."""


def print_answer(answer: Mapping[str, Any]) -> None:
    """Print an answer as one JSON object, in ASCII; numbers named `ts` or `..._ts` are epoch seconds and become RFC 3339."""
    print(json.dumps(with_times(answer), indent=2, default=str))


def print_error(text: str, code: Exit, *, as_json: bool) -> None:
    """Print an error for people to standard error, or as a JSON object, the only thing on standard output, for programs."""
    if as_json:
        print(json.dumps({"error": text, "exit_code": int(code)}, indent=2))
    else:
        print("\n".join(clean(line) for line in f"queryloop: {text}".split("\n")), file=sys.stderr)


def with_times(value: Any) -> Any:
    """Return JSON values with each number under a name `ts` or `..._ts` as an RFC 3339 time in UTC."""
    if isinstance(value, Mapping):
        return {key: _time_or_value(str(key), one) for key, one in value.items()}
    return [with_times(one) for one in value] if isinstance(value, list | tuple) else value


def _time_or_value(key: str, value: Any) -> Any:
    is_time = key == "ts" or key.endswith("_ts")
    return rfc3339(value) if is_time and isinstance(value, int | float) else with_times(value)


def rfc3339(seconds: float) -> str:
    """Return epoch seconds as a time in UTC, with microseconds where there are any."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def clean(text: str) -> str:
    """Return text in which every character that does not print (control, escape, bidirectional override) is escaped."""
    return "".join(one if one.isprintable() or one in JOINERS else one.encode("unicode_escape").decode() for one in text)
