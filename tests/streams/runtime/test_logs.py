"""Logs: one line an event, hostile text escaped, repeated library messages counted instead of written."""

from __future__ import annotations

import logging

from streams.runtime.logs import OneLineFormatter, RateLimitFilter


def record(name: str, message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.WARNING, "file.py", 1, message, args, None)


def test_a_chatty_library_gets_one_line_and_a_count() -> None:
    now = [0.0]
    limit = RateLimitFilter(quiet_s=10, clock=lambda: now[0])
    passed = [limit.filter(record("aiokafka.conn", "Unable to connect to %s", "host")) for _ in range(40)]
    assert passed == [True] + [False] * 39
    assert limit.filter(record("aiokafka.conn", "something else"))
    now[0] = 10.0
    late = record("aiokafka.conn", "Unable to connect to %s", "host")
    assert limit.filter(late)
    assert late.getMessage() == "Unable to connect to host (and 39 more like it)"


def test_our_own_events_are_never_suppressed() -> None:
    limit = RateLimitFilter(quiet_s=10, clock=lambda: 0.0)
    assert all(limit.filter(record("streams.store.held_shards", "event=shard_taken")) for _ in range(5))


def test_an_event_stays_on_one_line_and_cannot_drive_the_terminal() -> None:
    line = OneLineFormatter().format(record("streams.worker.app", "event=x detail=%s", "a\nlevel=ERROR \x1b[2J"))
    assert "level=WARNING logger=streams.worker.app event=x detail=a\\nlevel=ERROR \\x1b[2J" in line
    assert "\n" not in line and "\x1b" not in line


def test_a_library_message_is_named_as_one() -> None:
    assert OneLineFormatter().format(record("faust", "Starting...")).endswith('logger=faust message="Starting..."')
