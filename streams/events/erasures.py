"""Erasures: which session or user was erased, so that its events stay away however often they are delivered again.

Each erasure is a file in the folder `erasures` of the data folder, its tombstone. It has a keyed hash of the id and never the id.
A session is erased for ever; a user up to the time of the erasure, so that a user who comes back is counted again.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import msgspec

from streams.events.schema import MAX_TS_US, to_micros
from streams.runtime.atomic_files import replace_file

Kind = Literal["session", "user"]
FIELDS: dict[Kind, str] = {"session": "session_id", "user": "user_id"}
KEY_FILE = "key"
HASH_BYTES = 16

_WRITTEN = re.compile(rb'"(session_id|user_id|ts)"\s*:\s*("(?:[^"\\]|\\.)*"|-?[0-9.eE+-]+)', re.DOTALL)


class ErasureError(ValueError):
    """A tombstone or its key that cannot be read; the text names the file and what to do."""


class Owner(msgspec.Struct, frozen=True):
    """Whose an event is, and when it was made; None where the line does not say."""

    session_id: str | None = None
    user_id: str | None = None
    ts_us: int | None = None


class _Owner(msgspec.Struct, frozen=True):
    session_id: str | None = None
    user_id: str | None = None
    ts: Any = None


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom an erasure is about: the id itself, which is only ever in memory. `until_us` is its last event time, included."""

    kind: Kind
    id: str
    until_us: int = MAX_TS_US

    def owns(self, owner: Owner) -> bool:
        """Return whether an event is this subject's; one without a readable time is."""
        name = owner.session_id if self.kind == "session" else owner.user_id
        return name == self.id and (owner.ts_us is None or owner.ts_us <= self.until_us)


class Tombstone(msgspec.Struct):
    """The record of an erasure: `hash` is the keyed hash of the id, `until_us` the last erased event time (None: for ever).

    `state` is "started" until everything that can be reached is erased. `runs` says of each run when it was and how many rows
    of what it removed.
    """

    kind: Kind
    hash: str
    until_us: int | None = None
    state: Literal["started", "done"] = "started"
    runs: list[dict[str, Any]] = []

    @property
    def id(self) -> str:
        """The name of the erasure, of which its file has its name."""
        return f"{self.kind}-{self.hash[:16]}"


@dataclass(frozen=True, slots=True)
class Tombstones:
    """All erasures of a data folder. It is false when there are none, which costs nothing on arrival."""

    key: bytes = b""
    sessions: frozenset[bytes] = frozenset()
    users: dict[bytes, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sessions or self.users)

    def has_session(self, session_id: str) -> bool:
        """Return whether a session was erased."""
        return bool(self.sessions) and hash_id(self.key, "session", session_id) in self.sessions

    def erased_until(self, user_id: str) -> int:
        """Return the time up to which a user was erased, -1 for one who was not."""
        return self.users.get(hash_id(self.key, "user", user_id), -1) if self.users else -1

    def cover(self, owner: Owner) -> bool:
        """Return whether an event is of an erased session, or of an erased user up to the time of the erasure."""
        if owner.session_id is not None and self.has_session(owner.session_id):
            return True
        return bool(owner.user_id) and (owner.ts_us or 0) <= self.erased_until(owner.user_id or "")


NO_TOMBSTONES = Tombstones()


def hash_id(key: bytes, kind: Kind, name: str) -> bytes:
    """Return the keyed hash of an id."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES, key=key, person=kind.encode()).digest()


def read_owner(raw: bytes) -> Owner:
    """Return whose a line is. Of a line that is no event, or is cut, the fields are searched in its text."""
    try:
        found = msgspec.json.decode(raw, type=_Owner)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        texts = {name.decode(): _read_value(value) for name, value in reversed(_WRITTEN.findall(raw))}
        found = _Owner(_text(texts.get("session_id")), _text(texts.get("user_id")), texts.get("ts"))
    return Owner(found.session_id, found.user_id, _micros(found.ts))


def _read_value(value: bytes) -> Any:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):
        return msgspec.json.decode(value)
    return value.strip(b'"').decode("utf-8", "replace")


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _micros(ts: Any) -> int | None:
    if isinstance(ts, int | float) and not isinstance(ts, bool):
        return to_micros(float(ts))
    if isinstance(ts, str):
        with suppress(ValueError, OverflowError):
            when = datetime.fromisoformat(ts)
            return to_micros(when) if when.tzinfo else None
    return None


def read_tombstones(data_dir: Path) -> Tombstones:
    """Return the erasures of a data folder. Raises ErasureError."""
    found = list_erasures(data_dir)
    if not found:
        return NO_TOMBSTONES
    users = {bytes.fromhex(one.hash): one.until_us or 0 for one in found if one.kind == "user"}
    sessions = frozenset(bytes.fromhex(one.hash) for one in found if one.kind == "session")
    return Tombstones(_read_key(data_dir), sessions, users)


def list_erasures(data_dir: Path) -> list[Tombstone]:
    """Return the tombstones of a data folder, sorted by name. Raises ErasureError."""
    return [_read_tombstone(path) for path in sorted(_folder(data_dir).glob("*.json"))]


def find_erasure(data_dir: Path, subject: Subject) -> Tombstone:
    """Return the tombstone of a subject, a new one where it was not erased before; nothing but the key is written."""
    digest = hash_id(_make_key(data_dir), subject.kind, subject.id).hex()
    new = Tombstone(subject.kind, digest)
    path = _folder(data_dir) / f"{new.id}.json"
    return _read_tombstone(path) if path.exists() else new


def write_erasure(data_dir: Path, tombstone: Tombstone) -> None:
    """Make a tombstone durable, in one step."""
    content = msgspec.json.format(msgspec.json.encode(tombstone), indent=2)
    replace_file(_folder(data_dir) / f"{tombstone.id}.json", content, durable=True)


def copy_erasures(data_dir: Path, target: Path) -> None:
    """Copy all tombstones and their key into another data folder."""
    names: Iterable[Path] = [*_folder(data_dir).glob("*.json"), *_folder(data_dir).glob(KEY_FILE)]
    for path in names:
        _folder(target).mkdir(parents=True, exist_ok=True)
        replace_file(_folder(target) / path.name, path.read_bytes(), durable=False)


def _folder(data_dir: Path) -> Path:
    return data_dir / "erasures"


def _read_tombstone(path: Path) -> Tombstone:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Tombstone)
    except (OSError, msgspec.MsgspecError) as error:
        raise ErasureError(f"{path}: cannot be read: {error}; restore it, or erased events may be counted again") from error


def _read_key(data_dir: Path) -> bytes:
    path = _folder(data_dir) / KEY_FILE
    try:
        return bytes.fromhex(path.read_text())
    except (OSError, ValueError) as error:
        raise ErasureError(f"{path}: cannot be read: {error}; without it no erased id is recognised, restore it") from error


def _make_key(data_dir: Path) -> bytes:
    """Return the key, which is made with the first erasure and is for its owner's eyes alone."""
    path = _folder(data_dir) / KEY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        temporary = path.with_name(f".{KEY_FILE}.{secrets.token_hex(4)}")
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32))
        with suppress(FileExistsError):
            path.hardlink_to(temporary)  # never over a key that another process made at the same moment
        temporary.unlink()
    return _read_key(data_dir)
