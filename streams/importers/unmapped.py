"""Rows of a foreign log that no mapping sees, because they cannot be read: each becomes a line that the worker quarantines."""

from __future__ import annotations

import base64
from hashlib import blake2b

import msgspec

UNMAPPED = "unmapped"
"""The `type` of such a line; no consumer accepts it."""


class Unmapped(msgspec.Struct, tag_field="type", tag=UNMAPPED):
    """A row that no mapping saw: its file, its number in it (from 1), and what is wrong with it."""

    file: str
    row: int
    error: str


_decoder = msgspec.json.Decoder(Unmapped)
_encode = msgspec.json.Encoder().encode


def digest(content: bytes) -> str:
    """Return an id made from content: 32 hexadecimal digits, the same from the same."""
    return blake2b(content, digest_size=16).hexdigest()


def encode_unmapped(file: str, row: int, content: bytes, error: str) -> bytes:
    """Return the line for a row: where it stands in which file (from 1), its text, and what is wrong with it."""
    event_id = digest(f"{file} {row} ".encode("utf-8", "surrogateescape") + content)
    name = file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    line = {"type": UNMAPPED, "event_id": event_id, "file": name, "row": row, "error": error}
    try:
        return _encode(line | {"text": content.decode()})
    except UnicodeDecodeError:
        return _encode(line | {"text_base64": base64.b64encode(content).decode()})


def read_unmapped(line: bytes) -> Unmapped | None:
    """Return what such a line says of its row, None for any other line."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
