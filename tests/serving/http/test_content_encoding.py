"""Compressed bodies: decoded up to the limit, refused with the reason otherwise."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import httpx
import hypothesis.strategies as st
import pytest
from hypothesis import given

from serving.http.content_encoding import EncodingError, inflate
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import NOW, AppUnderTest

EVENT = json.dumps({"type": "query", "event_id": "e", "ts": NOW, "session_id": "s", "query": "shoes"}).encode()
CALL = json.dumps({"query": "red shoes", "session_id": "s"}).encode()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3), st.integers(0, 40))
def test_a_body_is_decoded_as_it_was_or_refused_as_too_large(parts: list[bytes], room: int) -> None:
    whole = b"".join(parts)
    for body, encoding in ((b"".join(map(gzip.compress, parts)), "gzip"), (zlib.compress(whole), "deflate")):
        assert inflate(body, encoding, len(whole) + room) == whole
        if len(whole) > room:
            with pytest.raises(EncodingError) as caught:
                inflate(body, encoding, len(whole) - room - 1)
            assert caught.value.status == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"junk",
        EVENT,
        gzip.compress(EVENT)[:-9],
        gzip.compress(EVENT)[:-1],
        gzip.compress(EVENT) + b"more",
        gzip.compress(b"") * 65,
    ],
)
def test_a_damaged_body_is_a_400(body: bytes) -> None:
    with pytest.raises(EncodingError) as caught:
        inflate(body, "gzip", 10_000)
    assert caught.value.status == 400


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip", "deflate"])
def test_every_route_takes_a_compressed_body(tmp_path: Path, encoding: str) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine())
    compress = zlib.compress if encoding == "deflate" else gzip.compress

    async def scenario(client: httpx.AsyncClient) -> None:
        for path, body, kind, status in (
            ("/v1/events", EVENT, "application/x-ndjson", 202),
            ("/v1/events", b'{"events": [' + EVENT + b"]}", "application/json", 202),
            ("/v1/recommend", CALL, "application/json", 200),
        ):
            headers = {"content-type": kind, "content-encoding": encoding}
            answer = await client.post(path, content=compress(body), headers=headers)
            assert answer.status_code == status, answer.text

    served.run(scenario)
    assert len(served.sink.events) == 3


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        ("br", EVENT, 415, "this Content-Encoding is not read: send gzip, deflate or none"),
        ("zstd", EVENT, 415, "this Content-Encoding is not read"),
        ("gzip, gzip", gzip.compress(gzip.compress(EVENT)), 415, "this Content-Encoding is not read"),
        ("gzip", gzip.compress(b"x" * 100_000_000), 413, "the body is larger than 262144 bytes when it is decoded from gzip"),
        ("gzip", EVENT, 400, "the body is not in gzip, as Content-Encoding says"),
        ("deflate", gzip.compress(EVENT), 400, "the body is not in deflate"),
        ("gzip", gzip.compress(EVENT)[:-4], 400, "the body ends before its gzip encoding does"),
        ("identity", EVENT, 202, ""),
    ],
)
def test_an_encoding_that_cannot_be_read_is_said(tmp_path: Path, encoding: str, body: bytes, status: int, said: str) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine())

    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"content-type": "application/x-ndjson", "content-encoding": encoding}
        answer = await client.post("/v1/events", content=body, headers=headers)
        assert answer.status_code == status
        assert answer.json().get("error", "").startswith(said)

    served.run(scenario)
    assert len(served.sink.events) == (status == 202)
