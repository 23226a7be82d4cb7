"""Records: a session stays in one partition, and batching neither loses, reorders nor overfills."""

from __future__ import annotations

from collections import defaultdict

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.emitter.record_batches import Batcher, Record, partition_of


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_a_partition_is_the_one_that_kafkas_java_client_chooses(key: str, hashed: int) -> None:
    assert partition_of(key, 7) == (hashed & 0x7FFFFFFF) % 7


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), st.integers(1, 100))
def test_a_partition_exists_and_does_not_change(session: str, partitions: int) -> None:
    assert 0 <= partition_of(session, partitions) < partitions
    assert partition_of(session, partitions) == partition_of(session, partitions)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=30)), max_size=80),
    st.integers(1, 9),
    st.integers(40, 120),
)
def test_every_line_is_sent_once_in_order_in_records_that_are_not_too_large(
    lines: list[tuple[int, bytes]], max_lines: int, max_bytes: int
) -> None:
    batcher = Batcher(max_lines, max_bytes)
    records: list[Record] = []
    for number, (partition, line) in enumerate(lines):
        full = batcher.add(line, f"s{partition}", partition, float(number))
        records += [full] if full else []
    records += batcher.take_due(float("inf"))
    sent = defaultdict(list)
    for record in records:
        assert 1 <= len(record.lines) <= max_lines
        assert len(record.value) <= max_bytes
        assert record.key == f"s{record.partition}".encode()
        sent[record.partition] += record.lines
    expected = defaultdict(list)
    for partition, line in lines:
        expected[partition].append(line)
    assert sent == expected


def test_a_full_record_is_returned_at_once() -> None:
    batcher = Batcher(2)
    assert batcher.add(b"a", "s", 0, 1.0) is None
    full = batcher.add(b"b", "t", 0, 2.0)
    assert full is not None
    assert (full.value, full.key, full.oldest_at) == (b"a\nb", b"s", 1.0)
    assert batcher.oldest_at() is None


def test_a_record_is_due_when_its_first_line_has_waited_long_enough() -> None:
    batcher = Batcher(10)
    batcher.add(b"a", "s", 0, 1.0)
    batcher.add(b"b", "t", 1, 2.0)
    assert batcher.oldest_at() == 1.0
    assert [record.value for record in batcher.take_due(1.5)] == [b"a"]
    assert [record.value for record in batcher.take_due(1.5)] == []
    assert [record.value for record in batcher.take_due(2.0)] == [b"b"]


def test_a_line_over_the_limit_is_sent_alone() -> None:
    batcher = Batcher(10, max_bytes=5)
    assert batcher.add(b"a", "s", 0, 1.0) is None
    assert batcher.add(b"x" * 9, "s", 0, 1.0) is not None
    assert [record.value for record in batcher.take_due(1.0)] == [b"x" * 9]
