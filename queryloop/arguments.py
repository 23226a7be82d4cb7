"""Reads single words of the command line; each reader raises ArgumentTypeError with a text that says what would be right."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, date, datetime

MAX_TEXT_CHARS = 4096
FIRST_WINDOW = date(1970, 1, 15)


def read_day(text: str) -> date:
    """Return a day in UTC."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no day: write YYYY-MM-DD") from None


def read_moment(text: str) -> datetime:
    """Return a time; without an offset it is in UTC, a day alone is its midnight."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: write YYYY-MM-DD, or RFC 3339 with an offset") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def read_reason(text: str) -> str:
    """Return a reason of quarantine."""
    from streams.events.schema import Reason

    if text not in list(Reason):
        raise argparse.ArgumentTypeError(f"{text!r} is no reason: {', '.join(Reason)}")
    return Reason(text)


def read_whole(text: str) -> int:
    """Return a whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")
    return int(text)


def number_between(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers between two, both included."""

    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return read


read_seed = number_between(0, 2**32 - 1)
read_port = number_between(0, 65_535)


def read_text(text: str) -> str:
    """Return a query."""
    if not text.strip() or len(text) > MAX_TEXT_CHARS:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no query: it has 1 to {MAX_TEXT_CHARS} characters, not only white space"
        )
    return text


def read_window_day(text: str) -> date:
    """Return the day of a window; the 14 days before it are after the epoch."""
    day = read_day(text)
    if day < FIRST_WINDOW:
        raise argparse.ArgumentTypeError(f"{text!r} is too early: the 14 days before it must be after 1970-01-01")
    return day


def read_factor(text: str) -> float:
    """Return a finite number over 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no speed: a number over 0, 60 for sixty times as fast")
    return number
