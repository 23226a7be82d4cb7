"""Artifact folders: complete or invisible, immutable, and checked before they are used."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from streams.runtime.artifacts import Artifact, ArtifactError, digest, latest, load, publish, read_manifest


def fill(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"\x00" * 1000)
    (folder / "sub").mkdir()
    (folder / "sub" / "words.txt").write_text("a\nb\n")


def publish_one(root: Path, kind: str = "index", at: float = 1_600_000_000.0) -> Artifact:
    return publish(root, kind, fill, {"rows": 3}, clock=lambda: at)


def test_what_was_published_is_loaded(tmp_path: Path) -> None:
    artifact = publish_one(tmp_path)
    assert load(artifact.path) == artifact
    assert artifact.path == tmp_path / "index" / artifact.id
    assert artifact.created == datetime.fromtimestamp(1_600_000_000, UTC)
    assert (artifact.kind, artifact.meta) == ("index", {"rows": 3})
    assert {name: (file.bytes, file.sha256) for name, file in artifact.files.items()} == {
        "weights.bin": (1000, hashlib.sha256(b"\x00" * 1000).hexdigest()),
        "sub/words.txt": (4, hashlib.sha256(b"a\nb\n").hexdigest()),
    }


def test_the_manifest_is_json_that_others_can_read(tmp_path: Path) -> None:
    written = json.loads((publish_one(tmp_path).path / "manifest.json").read_text())
    assert set(written) == {"kind", "id", "created", "meta", "files"}


def test_published_files_are_read_only(tmp_path: Path) -> None:
    artifact = publish_one(tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in artifact.path.rglob("*") if path.is_file()}
    assert modes == {0o444}


names = st.text("abc.", min_size=1, max_size=6).filter(lambda name: name.strip("."))


@given(st.dictionaries(names, st.binary(max_size=50), max_size=5))
def test_any_files_survive_the_round_trip(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(content)

    artifact = publish(tmp_path_factory.mktemp("root"), "base", write, {})
    assert {name: (artifact.path / name).read_bytes() for name in load(artifact.path).files} == files


def test_a_fill_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish(tmp_path, "index", broken, {})
    assert list((tmp_path / "index").iterdir()) == []


def test_nothing_is_visible_while_it_is_being_filled(tmp_path: Path) -> None:
    seen: list[Artifact | None] = []
    publish(tmp_path, "index", lambda folder: seen.append(latest(tmp_path, "index")), {})
    assert seen == [None]
    assert latest(tmp_path, "index") is not None


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: (folder / "link").symlink_to("/etc/hostname"),
        lambda folder: os.mkfifo(folder / "pipe"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(ArtifactError):
        publish(tmp_path, "index", write, {})
    assert list((tmp_path / "index").iterdir()) == []


def test_the_latest_is_the_newest_of_its_kind(tmp_path: Path) -> None:
    assert latest(tmp_path, "index") is None
    newest = publish_one(tmp_path, at=1_600_000_002.5)
    publish_one(tmp_path, at=1_600_000_001.0)
    publish_one(tmp_path, "base", at=1_600_000_009.0)
    assert latest(tmp_path, "index") == newest


def damage(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def rewrite_manifest(path: Path, old: str, new: str) -> None:
    text = (path / "manifest.json").read_text()
    assert old in text
    damage(path / "manifest.json", text.replace(old, new).encode())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: damage(path / "weights.bin", b"\x00" * 999 + b"\x01"), "weights.bin: its checksum"),
        (lambda path: damage(path / "weights.bin", b""), "weights.bin: 0 bytes"),
        (lambda path: (path / "sub" / "words.txt").unlink(), "words.txt: missing"),
        (lambda path: (path / "more.bin").write_text("x"), "more.bin: not in the manifest"),
        (lambda path: (path / "sub" / "link").symlink_to("words.txt"), "link: an artifact holds plain files"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json: missing"),
        (lambda path: damage(path / "manifest.json", b"{"), "manifest.json: cannot be read"),
        (lambda path: damage(path / "manifest.json", b"\xff"), "manifest.json: cannot be read"),
        (lambda path: damage(path / "manifest.json", b"{}"), "manifest.json: cannot be read"),
        (lambda path: rewrite_manifest(path, "weights.bin", "../../secret"), "outside the artifact"),
        (lambda path: rewrite_manifest(path, "weights.bin", "/etc/hostname"), "outside the artifact"),
    ],
)
def test_a_changed_artifact_is_refused_and_the_file_named(tmp_path: Path, harm: Callable[[Path], object], message: str) -> None:
    artifact = publish_one(tmp_path)
    harm(artifact.path)
    with pytest.raises(ArtifactError, match=message):
        load(artifact.path)


def test_the_latest_does_not_silently_fall_back_to_an_older_one(tmp_path: Path) -> None:
    publish_one(tmp_path, at=1_600_000_000.0)
    damage(publish_one(tmp_path, at=1_600_000_001.0).path / "weights.bin", b"")
    with pytest.raises(ArtifactError, match=r"weights\.bin"):
        latest(tmp_path, "index")


def test_a_manifest_is_read_without_checking_the_files(tmp_path: Path) -> None:
    artifact = publish_one(tmp_path)
    damage(artifact.path / "weights.bin", b"")
    assert read_manifest(artifact.path).id == artifact.id


def test_a_folder_that_is_not_there_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json: missing"):
        load(tmp_path / "none")


def test_digest_is_sha_256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert digest(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()
