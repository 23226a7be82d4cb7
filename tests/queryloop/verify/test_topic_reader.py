"""The records that the recount reads: of every format that a broker may still have, with their times."""

from __future__ import annotations

import pytest

from queryloop.verify.topic_reader import _unpack
from tests.streams.worker.test_fetches import batch, fetched, old_messages


@pytest.mark.parametrize("codec", range(3), ids=["plain", "gzip", "snappy"])
def test_messages_without_a_time_are_read(codec: int) -> None:
    found = _unpack(0, fetched(old_messages(0, codec, 0, [b"a", b"b"]), 0))
    assert (found.records, found.next_offset, found.passed) == ([(0, None, b"a"), (1, None, b"b")], 2, [])


def test_records_have_their_times_in_microseconds() -> None:
    assert _unpack(0, fetched(batch(7, [b"a"]), 7)).records == [(7, 5_007_000, b"a")]
    assert _unpack(0, fetched(old_messages(1, 0, 7, [b"a"]), 7)).records == [(7, 5_000_000, b"a")]
