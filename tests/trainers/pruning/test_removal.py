"""Pruning removes what nobody needs: what stays is whole, whenever the process is killed, the disk is full or a server reads."""

from __future__ import annotations

import errno
import json
import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from serving.metrics import ServingMetrics
from serving.releases import registry
from serving.releases.registry import Release, ReleaseError
from serving.releases.slot import Bundle, Slot
from streams.runtime import artifacts
from streams.runtime.artifact_removal import find_record
from streams.runtime.audit import Actor, acting, read_audit
from tests.support.pruned_folder import (
    DAY_S,
    later,
    list_files,
    make_artifact,
    make_releases,
    make_settings,
    verify_all,
)
from tests.support.scripted_engine import ScriptedEngine
from trainers.jobs.ledger import Ledger
from trainers.jobs.outcomes import JobError
from trainers.jobs.processes import hold_kind
from trainers.jobs.prune import preview, remove
from trainers.pruning.decisions import Choice


def going(choices: list[Choice]) -> dict[str, str]:
    return {one.name: one.why for one in choices if not one.stays}


def test_old_releases_go_and_every_other_one_is_whole(tmp_path: Path) -> None:
    """Eight releases of 40 days ago: the newest two stay (settings); they are also the live and the previous one."""
    ids = make_releases(tmp_path, 8)
    with acting(Actor("job prune", 7)):
        gone = going(remove(make_settings(tmp_path), later))
    assert verify_all(tmp_path) == ids[-2:]
    assert {one for one in gone if one.startswith("r")} == set(ids[:-2])
    pruned = [one.pruned for one in registry.list_releases(tmp_path) if one.pruned]
    assert [(one.by, one.run) for one in pruned] == [("job prune", 7)] * 6
    assert len(artifacts.list_folders(tmp_path / "artifacts", "policy")) == 2
    assert len(artifacts.list_folders(tmp_path / "artifacts", "index")) == 1
    assert remove(make_settings(tmp_path), later), "what stays is listed"
    assert not going(remove(make_settings(tmp_path), later)), "a second run finds nothing"


def test_the_records_of_what_was_pruned_stay(tmp_path: Path) -> None:
    """The manifest of a release and those of its artifacts are there to the byte, and the audit file says who removed them."""
    make_releases(tmp_path, 4)
    first = registry.read_release(tmp_path, "r0000")
    remove(make_settings(tmp_path), later)
    after = registry.read_release(tmp_path, "r0000")
    assert (after.gate, after.meta, after.parts, after.created) == (first.gate, first.meta, first.parts, first.created)
    assert artifacts.digest(find_record(tmp_path / first.parts["policy"].path)) == first.parts["policy"].sha256
    (line,), _ = read_audit(tmp_path, "prune")
    assert line["releases"] == ["r0000", "r0001"]
    assert f"policy/{first.policy.name}" in line["artifacts"]


def test_a_pruned_release_cannot_go_live_again(tmp_path: Path) -> None:
    make_releases(tmp_path, 4)
    remove(make_settings(tmp_path), later)
    for refuse in (registry.promote, registry.propose):
        with pytest.raises(ReleaseError, match=r"release r0000 was pruned by .* only its record is left"):
            refuse(tmp_path, "r0000")
    with pytest.raises(ReleaseError, match="was pruned"):
        registry.verify(tmp_path, registry.read_release(tmp_path, "r0000"))


def test_a_dry_run_lists_the_same_and_changes_nothing(tmp_path: Path) -> None:
    make_releases(tmp_path, 6)
    before = list_files(tmp_path)
    planned = preview(make_settings(tmp_path), later)
    assert list_files(tmp_path) == before
    assert going(planned) == going(remove(make_settings(tmp_path), later))


def test_a_server_that_answers_with_a_pruned_release_goes_on_and_the_next_one_loads(tmp_path: Path) -> None:
    """The files of the live bundle are mapped: removing their names takes nothing from it."""
    ids = make_releases(tmp_path, 5)
    release = registry.read_release(tmp_path, ids[0])
    content = (release.policy / "model.safetensors").read_bytes()
    with (release.policy / "model.safetensors").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    remove(make_settings(tmp_path), later)
    assert not release.policy.exists()
    assert mapped[:] == content
    slot = Slot(tmp_path, lambda release: Bundle(release, ScriptedEngine()), ServingMetrics())
    assert slot.check()
    assert slot.release == ids[-1]


def test_a_release_that_is_pruned_while_it_loads_changes_nothing_but_the_error(tmp_path: Path) -> None:
    """Two promotions follow while a server loads the first release, and prune removes that: the last one goes live."""
    ids = make_releases(tmp_path, 4)
    registry.promote(tmp_path, ids[0])

    def load(release: Release) -> Bundle:
        if release.id == ids[0]:
            registry.promote(tmp_path, ids[2])
            registry.promote(tmp_path, ids[3])
            remove(make_settings(tmp_path, keep_days=1), later)
            (release.policy / "model.safetensors").read_bytes()
        return Bundle(release, ScriptedEngine())

    slot = Slot(tmp_path, load, ServingMetrics())
    assert not slot.check()
    assert f"release {ids[0]} cannot go live: FileNotFoundError" in str(slot.error)
    assert slot.check()
    assert (slot.release, slot.error) == (ids[3], None)


def test_what_a_running_job_may_read_stays_until_it_ends(tmp_path: Path) -> None:
    """A job started when r0000 was live and its parts were the newest; since then there were three promotions."""
    first = make_releases(tmp_path, 1)[0]
    ledger = Ledger(tmp_path / "ledger.sqlite", lambda: (tmp_path / "audit.jsonl").stat().st_mtime + 0.01)
    run = ledger.start(ledger.request("policy"), os.getpid())
    make_releases(tmp_path, 3)
    settings = make_settings(tmp_path, keep_releases=1)
    with hold_kind(tmp_path, "policy"):
        choices = {one.name: one for one in remove(settings, later)}
        assert choices[first].stays
        assert choices[first].why == f"run {run.id} (policy), in progress, may read it"
        registry.verify(tmp_path, registry.read_release(tmp_path, first))
    assert first in going(remove(settings, later)), "its process is gone, though the ledger still has it as running"


def test_killed_at_any_step_it_leaves_what_stays_whole_and_the_next_run_finishes(tmp_path: Path) -> None:
    """One process for each step of a run (a rename, a removal, a file written …), killed there."""
    whole = tmp_path / "whole"
    kept = make_releases(whole, 4)[-2:]
    (whole / "artifacts" / "policy" / ".left.part").mkdir()
    command = [sys.executable, "-m", "tests.support.pruned_folder", str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    steps = sorted(int(one.name) for one in tmp_path.iterdir() if one.name.isdecimal())
    assert len(steps) > 30
    finished = list_files(tmp_path / str(steps[-1]))
    for step in steps:
        root = tmp_path / str(step)
        assert set(kept) <= set(verify_all(root)), step
        remove(make_settings(root), later)
        assert verify_all(root) == kept, step
        left = {name for name in list_files(root) if not name.endswith(".writing")}
        assert left == finished, step


def test_on_a_full_disk_nothing_goes_that_cannot_be_recorded_and_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed process left needs no record: it goes first, and makes room."""
    ids = make_releases(tmp_path, 4)
    left = tmp_path / "artifacts" / "policy" / ".20200101T000000000000-00000000.part"
    left.mkdir()
    write = Path.write_bytes

    def fail(path: Path, content: bytes) -> int:
        if path.name.startswith(".pruned.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(JobError, match=r"No space left on device: '.*r0000.*pruned\.json.*it goes on there"):
        remove(make_settings(tmp_path), later)
    assert not left.exists()
    assert verify_all(tmp_path) == ids
    monkeypatch.undo()
    remove(make_settings(tmp_path), later)
    assert verify_all(tmp_path) == ids[-2:]


def test_a_folder_that_may_not_be_changed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_releases(tmp_path, 4)

    def refuse(path: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(JobError, match=r"pruning stopped: .*Permission denied: '.*artifacts/[a-z]+/2.*'"):
        remove(make_settings(tmp_path), later)


def test_nothing_is_pruned_while_a_release_cannot_be_read(tmp_path: Path) -> None:
    """What it needs is not known."""
    make_releases(tmp_path, 4)
    (tmp_path / "releases" / "r0001" / "manifest.json").write_text("{")
    before = list_files(tmp_path)
    with pytest.raises(JobError, match=r"nothing is pruned, .*r0001.manifest\.json: cannot be read"):
        remove(make_settings(tmp_path), later)
    assert list_files(tmp_path) == before


def test_folders_that_a_killed_job_left_half_written_go_after_a_day(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "policy" / ".20260101T000000000000-00000000.part"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "weights").write_bytes(b"w" * 5000)
    changed = (folder / "checkpoint" / "weights").stat().st_mtime
    assert not going(remove(make_settings(tmp_path), lambda: changed + 0.9 * DAY_S)), "a job may be writing it"
    (choice,) = remove(make_settings(tmp_path), lambda: changed + 1.1 * DAY_S)
    assert (choice.what, choice.bytes) == ("leftover", 5000)
    assert not folder.exists()


def test_a_folder_that_a_long_job_is_writing_stays(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.start(ledger.request("policy"), os.getpid())
    folder = tmp_path / "artifacts" / "policy" / ".20260101T000000000000-00000000.part"
    folder.mkdir(parents=True)
    with hold_kind(tmp_path, "policy"):
        assert not going(remove(make_settings(tmp_path), later))
    assert folder.exists()


def test_logs_of_ended_jobs_go_and_large_logs_of_processes_begin_anew(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "job-ctr-1.log").write_text("old")
    for name, size in (("streams.log", 1_500_000), ("serving.log", 900)):
        (logs / name).write_bytes(b"x" * size)
    with (logs / "streams.log").open("ab") as process:
        removed = going(remove(make_settings(tmp_path, log_bytes=1_000_000), later))
        assert set(removed) == {"logs/job-ctr-1.log", "logs/streams.log"}
        process.write(b"next line\n")
    assert (logs / "streams.log").read_bytes() == b"next line\n"
    assert (logs / "streams.log.1").stat().st_size == 1_500_000
    assert (logs / "serving.log").stat().st_size == 900


def test_a_newer_artifact_that_no_release_has_stays_for_training(tmp_path: Path) -> None:
    old, newest = (make_artifact(tmp_path, "predictor") for _ in range(2))
    choices = {one.name: one for one in remove(make_settings(tmp_path), later)}
    assert not choices[old.name].stays
    assert choices[newest.name].why == "the newest predictor, from which training starts"
    assert artifacts.latest(tmp_path / "artifacts", "predictor") is not None


def test_what_is_no_artifact_is_left_alone(tmp_path: Path) -> None:
    """Somebody may have put a model of his own there."""
    own = tmp_path / "artifacts" / "policy" / "my-model"
    own.mkdir(parents=True)
    (own / "model.safetensors").write_bytes(b"w")
    (choice,) = remove(make_settings(tmp_path), later)
    assert choice.stays
    assert "remove it by hand" in choice.why
    assert json.dumps(choice.why)
    assert (own / "model.safetensors").exists()


def test_while_others_publish_and_promote_the_live_release_is_always_whole(tmp_path: Path) -> None:
    """Releases of whatever artifacts are visible are made and promoted while prune runs again and again, 40 days later."""
    make_releases(tmp_path, 3)
    for _ in range(60):
        make_artifact(tmp_path, "policy")
    published = list[str]()

    def go_on() -> None:
        random = Random(1)
        for turn in range(60):
            policy = random.choice(artifacts.list_folders(tmp_path / "artifacts", "policy"))
            with suppress(artifacts.ArtifactError):  # it was pruned a moment ago: then there is no release of it either
                published.append(registry.publish(tmp_path, policy=policy).id)
                registry.promote(tmp_path, published[-1])
            if turn % 3 == 0:
                registry.rollback(tmp_path)

    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(go_on)
        while not publishing.done():
            remove(make_settings(tmp_path, keep_releases=1), later)
            with registry.lock(tmp_path):
                rollout = registry.read_rollout(tmp_path)
                for name in filter(None, (rollout.champion, rollout.previous)):
                    registry.verify(tmp_path, registry.read_release(tmp_path, name))
        publishing.result()
    assert len(published) > 10
    assert verify_all(tmp_path)
