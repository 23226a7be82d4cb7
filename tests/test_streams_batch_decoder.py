"""Decoding beside: the same columns whoever decodes, no batch lost with the process, nothing left behind."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest

from streams import batch_decoder
from streams.batch_decoder import BatchDecoder
from streams.columns import Columns
from streams.decoder_process import Records
from streams.decoding import decode_columns
from streams.events import DEFAULT_LIMITS, EventSettings
from tests.logs import START, click, impression, query

LINES = [
    query("q", START, "ｒｅｄ  Shoes"),
    impression("i", START, items=["A", "b\u0000"], predicted=[0.1, 0.2], decoding={"temperature": 1}, context={"page": 1}),
    click("c", START + 1, item="A"),
    b"{",
    b"\xff\xfe",
    query("long", START, "x" * 30),
]
RECORDS: Records = [(3, b"\n".join(LINES)), (4, None), (5, b""), (7, LINES[0])]
LIMITS = EventSettings(max_query_chars=20)


@pytest.fixture(autouse=True)
def all_batches_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_decoder, "APART_BYTES", 1)


@contextmanager
def decoder(limits: EventSettings = LIMITS, apart: bool = True) -> Iterator[BatchDecoder]:
    made = BatchDecoder(limits, apart)
    try:
        yield made
    finally:
        made.close()


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def begin() -> None:
        await asyncio.wait_for(story(), 60)

    asyncio.run(begin())


async def decode_apart(made: BatchDecoder) -> Columns:
    """Decode until the process beside has done it."""
    columns = await made.decode(RECORDS, 100)
    while made._child is None or not made._child.answers():
        await asyncio.sleep(0.02)
        columns = await made.decode(RECORDS, 100)
    return await made.decode(RECORDS, 100) if columns else columns


def assert_same(found: Columns, expected: Columns) -> None:
    for name in ("queries", "impressions", "clicks"):
        assert getattr(found, name).equals(getattr(expected, name)), name
    assert found.rejects == expected.rejects


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_the_process_beside_answers_what_decoding_here_answers() -> None:
    async def story() -> None:
        with decoder() as made:
            assert_same(await decode_apart(made), decode_columns(RECORDS, LIMITS))

    play(story)


def test_a_killed_process_costs_no_batch_and_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        with decoder() as made:
            await decode_apart(made)
            assert made._child is not None
            lost = made._child.pid
            os.kill(lost, signal.SIGKILL)
            with caplog.at_level(logging.ERROR):
                assert_same(await made.decode(RECORDS, 100), decode_columns(RECORDS, LIMITS))
            assert f"event=decoder_lost pid={lost}" in caplog.text
            assert_same(await decode_apart(made), decode_columns(RECORDS, LIMITS))
            assert made._child.pid != lost

    play(story)


def test_nothing_is_left_after_close() -> None:
    async def story() -> None:
        before = children()
        with decoder() as made:
            await made.decode(RECORDS, 100)
            assert children() - before
        assert children() <= before

    play(story)


@pytest.mark.parametrize(("apart", "least"), [(False, 1), (True, 10_000)])
def test_small_batches_and_who_wants_no_process_have_none(apart: bool, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_decoder, "APART_BYTES", least)

    async def story() -> None:
        before = children()
        with decoder(DEFAULT_LIMITS, apart) as made:
            assert_same(await made.decode(RECORDS, 100), decode_columns(RECORDS))
            assert children() <= before

    play(story)
