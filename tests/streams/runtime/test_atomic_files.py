"""Atomic files: after a kill or an error the old content or the new one is there, and durable ones are synced in order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from streams.runtime.atomic_files import create_file, new_folder, replace_file, replacing_file

REPLACE_FOR_EVER = """
import sys
from pathlib import Path
from streams.runtime.atomic_files import create_file, replace_file
number = 0
while True:
    replace_file(Path(sys.argv[1]), b"%d\\n" % (number % 10) * 500_000, durable=False, shared=len(sys.argv) > 2)
    number += 1
    if number == 3:
        print(flush=True)
"""
KILLED_INSIDE = """
import os, signal, sys
from pathlib import Path
from streams.runtime.atomic_files import create_file, new_folder, replacing_file
path = Path(sys.argv[2])
if sys.argv[1] == "file":
    with replacing_file(path, durable=True) as beside:
        beside.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
with new_folder(path) as beside:
    (beside / "half").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def run_until_killed(kind: str, path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED_INSIDE, kind, path], check=False)
    assert done.returncode == -9


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_file_is_replaced_and_no_temporary_file_is_left(tmp_path: Path, durable: bool, shared: bool) -> None:
    for content in (b"old", b"new", b""):
        replace_file(tmp_path / "file", content, durable=durable, shared=shared)
        assert (tmp_path / "file").read_bytes() == content
    assert names(tmp_path) == ["file"]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with replacing_file(tmp_path / "file", durable=True) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path and temporary.name.startswith(".")
        assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(type(error)), replacing_file(tmp_path / "file", durable=False) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing_file(tmp_path / "file", durable=False):
        pass


def test_a_kill_inside_the_block_leaves_the_old_file_and_the_next_writer_removes_the_temporary_one(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", b"old", durable=True)
    run_until_killed("file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    replace_file(tmp_path / "file", b"new", durable=True)
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("writers", [1, 3])
def test_a_reader_never_sees_half_a_file_whenever_its_writers_are_killed(tmp_path: Path, writers: int) -> None:
    shared = ["shared"] if writers > 1 else []
    for _ in range(3):
        command = [sys.executable, "-c", REPLACE_FOR_EVER, tmp_path / "file", *shared]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(writers)]
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == b"\n"
        seen = [(tmp_path / "file").read_bytes() for _ in range(20)]
        for process in running:
            process.kill()
            process.communicate()
        seen.append((tmp_path / "file").read_bytes())
        assert all(content == content[:2] * 500_000 for content in seen)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "place" / "folder") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_bytes(b"content")
        assert names(tmp_path / "place") == [temporary.name] and temporary.name.startswith(".")
    assert names(tmp_path / "place") == ["folder"]
    assert (tmp_path / "place" / "folder" / "sub" / "file").read_bytes() == b"content"


def test_a_folder_that_cannot_be_filled_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "folder") as temporary:
        (temporary / "half").write_bytes(b"half")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_folder_replaces_no_other_one(tmp_path: Path) -> None:
    with new_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_bytes(b"old")
    with pytest.raises(OSError), new_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_bytes(b"new")
    assert names(tmp_path) == ["folder"] and (tmp_path / "folder" / "file").read_bytes() == b"old"


def test_a_kill_inside_the_block_leaves_no_folder_and_the_next_call_removes_the_temporary_one(tmp_path: Path) -> None:
    run_until_killed("folder", tmp_path / "folder")
    assert names(tmp_path) == [".folder.part"]
    with new_folder(tmp_path / "folder") as temporary:
        assert names(temporary) == []
    assert names(tmp_path) == ["folder"]


class Steps:
    """What was synced and renamed, in order, by the names of the files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        monkeypatch.setattr(os, "fsync", self._sync(os.fsync))
        monkeypatch.setattr(Path, "replace", self._move("replace", Path.replace))
        monkeypatch.setattr(Path, "rename", self._move("rename", Path.rename))

    def _sync(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(handle: int) -> None:
            self.names.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")
            real(handle)

        return sync

    def _move(self, verb: str, real: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def move(source: Path, target: Path) -> Path:
            self.names.append(f"{verb} {target.name}")
            return real(source, target)

        return move


def test_a_durable_file_is_synced_before_it_is_moved_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    replace_file(tmp_path / "file", b"new", durable=True)
    assert steps.names == ["sync .file.writing", "replace file", f"sync {tmp_path.name}"]
    steps.names.clear()
    replace_file(tmp_path / "file", b"newer", durable=False)
    assert steps.names == ["replace file"]


def test_everything_in_a_folder_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(monkeypatch)
    with new_folder(tmp_path / "folder") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_bytes(b"content")
    assert sorted(steps.names[:3]) == ["sync .folder.part", "sync file", "sync sub"]
    assert steps.names[3:] == ["rename folder", f"sync {tmp_path.name}"]


def test_a_file_is_created_once_and_stays_as_it_was(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        create_file(tmp_path / "id", content)
    assert (tmp_path / "id").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["id"]


def test_of_processes_that_create_a_file_at_once_one_wins(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: create_file(tmp_path / "id", b"%d" % number * 1000), range(8)))
    assert (tmp_path / "id").read_bytes() in [b"%d" % number * 1000 for number in range(8)]
