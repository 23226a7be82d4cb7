"""Releases are immutable, numbered, and checked to the last byte; the rollout names the live one."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from serving.policy.engines.adapters import write_record
from serving.releases import registry
from serving.releases.registry import ReleaseError, Rollout
from streams.runtime import artifacts
from streams.runtime.artifact_removal import hide
from streams.runtime.audit import Actor, acting, name_user


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return make_artifact(tmp_path, "policy")


def make_artifact(root: Path, kind: str) -> Path:
    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "more").mkdir()
        (folder / "more" / "config.json").write_text("{}")

    return artifacts.publish(root / "artifacts", kind, fill, {}).path


def test_a_release_names_its_parts(tmp_path: Path, policy: Path) -> None:
    index = make_artifact(tmp_path, "index")
    made = registry.publish(tmp_path, policy=policy, index=index, gate={"passed": True}, meta={"note": "first"})
    assert made == registry.read_release(tmp_path, "r0000")
    assert (made.policy.resolve(), made.predictor, made.judge) == (policy.resolve(), None, None)
    assert made.index is not None
    assert made.index.resolve() == index.resolve()
    assert (made.gate, made.meta) == ({"passed": True}, {"by": name_user(), "run": None, "note": "first"})
    registry.verify(tmp_path, made)
    assert str(tmp_path) not in (made.path / "manifest.json").read_text(), "the data folder may be moved"


def make_adapter(root: Path, base: Path) -> Path:
    def fill(folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        write_record(folder, base, "float32", [])

    return artifacts.publish(root / "artifacts", "policy", fill, {}).path


def test_a_release_with_an_adapter_names_its_base_and_is_not_whole_without_it(tmp_path: Path, policy: Path) -> None:
    made = registry.publish(tmp_path, policy=make_adapter(tmp_path, policy))
    assert made.base is not None
    assert made.base.resolve() == policy.resolve()
    assert list(made.parts) == ["policy", "base"]
    registry.verify(tmp_path, made)
    rewrite(policy / "model.safetensors", b"WEIGHTS")
    with pytest.raises(ReleaseError, match=r"release r0000, base: .*model\.safetensors: its checksum differs"):
        registry.verify(tmp_path, made)


def test_an_adapter_whose_base_is_outside_the_data_folder_is_no_part_of_a_release(tmp_path: Path, policy: Path) -> None:
    adapter = make_adapter(tmp_path / "inner", policy)
    with pytest.raises(ReleaseError, match=r"is outside the data folder"):
        registry.publish(tmp_path / "inner", policy=adapter)


def test_ids_count_up(tmp_path: Path, policy: Path) -> None:
    made = [registry.publish(tmp_path, policy=policy).id for _ in range(3)]
    assert made == ["r0000", "r0001", "r0002"]
    assert [release.id for release in registry.list_releases(tmp_path)] == made


def test_many_publishers_never_share_an_id(tmp_path: Path, policy: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: registry.publish(tmp_path, policy=policy).id, range(16)))
    assert sorted(made) == [f"r{number:04d}" for number in range(16)]


def test_an_artifact_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match="outside the data folder"):
        registry.publish(tmp_path / "data", policy=make_artifact(tmp_path / "elsewhere", "policy"))


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(artifacts.ArtifactError, match=r"bare.manifest\.json: missing"):
        registry.publish(tmp_path, policy=tmp_path / "bare")
    assert registry.list_releases(tmp_path) == []


def change_bytes(folder: Path) -> None:
    rewrite(folder / "model.safetensors", b"weighty")


def drop_file(folder: Path) -> None:
    (folder / "more" / "config.json").unlink()


def add_file(folder: Path) -> None:
    (folder / "extra.bin").write_bytes(b"")


def drop_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def forge_manifest(folder: Path) -> None:
    """Change a file and its checksum in the artifact's manifest: only the release's own checksum shows it."""
    change_bytes(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.safetensors"]["sha256"] = artifacts.digest(folder / "model.safetensors")
    rewrite(folder / "manifest.json", json.dumps(manifest).encode())


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (change_bytes, "model.safetensors"),
        (drop_file, "config.json"),
        (add_file, "extra.bin"),
        (drop_manifest, "manifest.json"),
        (forge_manifest, "not the one that was published"),
    ],
)
def test_a_damaged_part_is_found_and_named(tmp_path: Path, policy: Path, damage: Callable[[Path], None], said: str) -> None:
    made = registry.publish(tmp_path, policy=policy)
    damage(policy)
    with pytest.raises(ReleaseError, match=f"release r0000, policy: .*{said}"):
        registry.verify(tmp_path, made)


def test_a_manifest_cannot_point_outside_the_data_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    made = registry.publish(root, policy=make_artifact(root, "policy"))
    outside = make_artifact(tmp_path, "policy")
    text = (made.path / "manifest.json").read_text()
    rewrite(made.path / "manifest.json", text.replace(made.parts["policy"].path, f"../artifacts/policy/{outside.name}").encode())
    with pytest.raises(ReleaseError, match="outside the data folder"):
        registry.verify(root, registry.read_release(root, "r0000"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"id": "r0000"}', b"[" * 100_000])
def test_a_broken_manifest_is_named_and_disturbs_no_other(tmp_path: Path, policy: Path, content: bytes) -> None:
    broken, fine = registry.publish(tmp_path, policy=policy), registry.publish(tmp_path, policy=policy)
    rewrite(broken.path / "manifest.json", content)
    with pytest.raises(ReleaseError, match=r"r0000.manifest\.json"):
        registry.read_release(tmp_path, "r0000")
    assert registry.list_releases(tmp_path) == [fine]
    assert len(registry.list_broken(tmp_path)) == 1


@pytest.mark.parametrize("name", ["r1", "../r0000", "", "r00x0", "r0000/../r0000"])
def test_only_ids_are_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ReleaseError, match="no release id"):
        registry.read_release(tmp_path, name)


def test_promote_and_roll_back(tmp_path: Path, policy: Path) -> None:
    for _ in range(3):
        registry.publish(tmp_path, policy=policy)
    assert registry.read_rollout(tmp_path) == Rollout()
    assert registry.promote(tmp_path, "r0000") == Rollout(champion="r0000")
    registry.propose(tmp_path, "r0001")
    assert registry.read_rollout(tmp_path) == Rollout(champion="r0000", challenger="r0001")
    assert registry.promote(tmp_path, "r0001") == Rollout(champion="r0001", previous="r0000")
    assert registry.promote(tmp_path, "r0001") == Rollout(champion="r0001", previous="r0000"), "again changes nothing"
    assert registry.rollback(tmp_path) == Rollout(champion="r0000", previous="r0001")
    assert registry.rollback(tmp_path) == Rollout(champion="r0001", previous="r0000")
    registry.propose(tmp_path, "r0002")
    assert registry.propose(tmp_path, None).challenger is None


def test_what_a_gate_refused_goes_live_by_force_alone_and_the_audit_says_so(tmp_path: Path, policy: Path) -> None:
    refused = registry.publish(tmp_path, policy=policy, gate={"passed": False, "reasons": ["texts repeat themselves"]})
    with pytest.raises(ReleaseError, match="r0000 was refused by its gate: texts repeat themselves; promote it with --force"):
        registry.promote(tmp_path, refused.id)
    assert registry.read_rollout(tmp_path).champion is None
    assert registry.promote(tmp_path, refused.id, force=True).champion == refused.id
    (change,) = registry.read_history(tmp_path)[0]
    assert change["forced"] is True


def test_a_missing_release_cannot_go_live(tmp_path: Path, policy: Path) -> None:
    registry.publish(tmp_path, policy=policy)
    with pytest.raises(ReleaseError, match="r0007"):
        registry.promote(tmp_path, "r0007")
    with pytest.raises(ReleaseError, match="no previous release"):
        registry.rollback(tmp_path)
    assert registry.read_rollout(tmp_path) == Rollout()


def test_a_damaged_rollout_is_named(tmp_path: Path, policy: Path) -> None:
    registry.publish(tmp_path, policy=policy)
    (tmp_path / "releases" / "rollout.json").write_text('{"champion": 3}')
    with pytest.raises(ReleaseError, match=r"rollout\.json"):
        registry.read_rollout(tmp_path)


def test_readers_never_see_half_a_rollout(tmp_path: Path, policy: Path) -> None:
    for _ in range(2):
        registry.publish(tmp_path, policy=policy)
    registry.promote(tmp_path, "r0000")

    def flip(_: int) -> None:
        for name in ("r0000", "r0001") * 20:
            registry.promote(tmp_path, name)

    with ThreadPoolExecutor(2) as pool:
        flips = [pool.submit(flip, turn) for turn in range(2)]
        while not all(one.done() for one in flips):
            seen = registry.read_rollout(tmp_path)
            assert {seen.champion, seen.previous} <= {"r0000", "r0001", None}
    for one in flips:
        one.result()


def test_every_promotion_and_rollback_is_recorded_with_time_and_who(tmp_path: Path, policy: Path) -> None:
    first, second = (registry.publish(tmp_path, policy=policy).id for _ in range(2))
    registry.promote(tmp_path, first)
    with acting(Actor("job policy", 3)):
        registry.promote(tmp_path, second)
        registry.promote(tmp_path, second)
    registry.rollback(tmp_path)
    changes, damaged = registry.read_history(tmp_path)
    assert damaged == 0
    assert [(one["action"], one["release"], one["before"], one["by"], one["run"]) for one in changes] == [
        ("promote", first, None, name_user(), None),
        ("promote", second, first, "job policy", 3),
        ("rollback", first, second, name_user(), None),
    ]
    assert all(one["ts"].endswith("Z") for one in changes)


def test_what_cannot_be_recorded_is_not_promoted(tmp_path: Path, policy: Path) -> None:
    made = registry.publish(tmp_path, policy=policy)
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        registry.promote(tmp_path, made.id)
    assert registry.read_rollout(tmp_path).champion is None


def test_an_artifact_that_is_pruned_before_its_release_is_published_is_missing_then(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruning hides artifacts under the same lock: so there is no release whose artifact was hidden while it was published."""
    waits, flock = Event(), fcntl.flock

    def wait(file: Any, operation: int) -> None:
        waits.set()
        flock(file, operation)

    with ThreadPoolExecutor(1) as pool:
        with registry.lock(tmp_path):
            monkeypatch.setattr(fcntl, "flock", wait)
            publishing = pool.submit(registry.publish, tmp_path, policy=policy)
            assert waits.wait(10)
            hide(policy)
        with pytest.raises(artifacts.ArtifactError, match="missing, so this is no complete artifact"):
            publishing.result()
    assert registry.list_releases(tmp_path) == []


def test_a_pruned_release_is_still_listed_with_who_pruned_it(tmp_path: Path, policy: Path) -> None:
    for _ in range(2):
        registry.promote(tmp_path, registry.publish(tmp_path, policy=policy).id)
    with registry.lock(tmp_path), acting(Actor("job prune", 9)):
        registry.mark_pruned(registry.read_release(tmp_path, "r0000"), lambda: 0.0)
    pruned = registry.list_releases(tmp_path)[0].pruned
    assert pruned == registry.Pruned(datetime(1970, 1, 1, tzinfo=UTC), "job prune", 9)
    with pytest.raises(ReleaseError, match="pruned by job prune on 1970-01-01 00:00 UTC"):
        registry.rollback(tmp_path)
    assert registry.publish(tmp_path, policy=policy).id == "r0002", "its id is not used again"


def test_a_rejected_release_is_never_live_again_by_a_job_or_a_rollback(tmp_path: Path, policy: Path) -> None:
    first, second, third = (registry.publish(tmp_path, policy=policy).id for _ in range(3))
    for name in (first, second):
        registry.promote(tmp_path, name)
    registry.propose(tmp_path, third)
    registry.rollback(tmp_path)
    with acting(Actor("ann@desk")):
        registry.reject(tmp_path, second, "repeats itself")
    registry.reject(tmp_path, third)
    assert registry.read_rollout(tmp_path) == Rollout(champion=first)
    with pytest.raises(ReleaseError, match="no previous release"):
        registry.rollback(tmp_path)
    with pytest.raises(ReleaseError, match=r"r0001 was rejected by ann@desk on .*: repeats itself.*promote r0001 --force"):
        registry.promote(tmp_path, second)
    with pytest.raises(ReleaseError, match="r0002 was rejected"):
        registry.propose(tmp_path, third)
    assert registry.read_rollout(tmp_path) == Rollout(champion=first)


def test_the_champion_cannot_be_rejected_and_the_text_says_what_to_do(tmp_path: Path, policy: Path) -> None:
    name = registry.publish(tmp_path, policy=policy).id
    registry.promote(tmp_path, name)
    with pytest.raises(ReleaseError, match="r0000 is live, so it cannot be rejected: `queryloop releases rollback`"):
        registry.reject(tmp_path, name)
    with pytest.raises(ReleaseError, match="missing"):
        registry.reject(tmp_path, "r0007")
    assert registry.read_rejected(tmp_path) == {}


def test_a_forced_promotion_lifts_the_rejection_and_both_are_recorded(tmp_path: Path, policy: Path) -> None:
    name = registry.publish(tmp_path, policy=policy).id
    first = registry.reject(tmp_path, name, "gibberish")
    assert registry.reject(tmp_path, name, "another reason") == first, "the first record stays"
    registry.promote(tmp_path, name, force=True)
    assert registry.read_rejected(tmp_path) == {}
    assert registry.read_rollout(tmp_path).champion == name
    changes, _ = registry.read_history(tmp_path)
    assert [(one["action"], one["release"], one.get("reason"), one.get("forced")) for one in changes] == [
        ("reject", name, "gibberish", None),
        ("promote", name, None, True),
    ]


def test_force_without_a_rejection_is_a_plain_promotion(tmp_path: Path, policy: Path) -> None:
    name = registry.publish(tmp_path, policy=policy).id
    registry.promote(tmp_path, name, force=True)
    assert "forced" not in registry.read_history(tmp_path)[0][0]
