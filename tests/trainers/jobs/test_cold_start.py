"""A cold start goes live when it passes its gate; one that is refused is published with reasons; --force and --from-base."""

from __future__ import annotations

import random
import string
from pathlib import Path

import msgspec
import pytest

from serving.releases import registry
from streams.runtime import artifacts
from streams.runtime.settings import DataSettings
from tests.support.toy_policy import SMALL, TASK, draw_annotations
from trainers.jobs.ledger import Ledger
from trainers.jobs.run_options import RunOptions
from trainers.jobs.runner import run, run_recorded
from trainers.jobs.settings import TrainerSettings
from trainers.policy.cold_start.gate import ColdStartSettings
from trainers.policy.sft import Annotation, SftSettings


def write_annotations(folder: Path, annotations: list[Annotation]) -> TrainerSettings:
    path = folder / "annotations.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in annotations))
    return TrainerSettings(
        data=DataSettings(dir=folder),
        tasks={"suggest": TASK},
        policy=SMALL.model_copy(update={"annotations": path, "device": "cpu"}),
        sft=SftSettings(epochs=20, learning_rate=1e-2),
        cold_start=ColdStartSettings(max_forced=1.0, max_repetitive=0.5),
    )


def make_nonsense(count: int) -> list[Annotation]:
    """Items that have nothing to do with their query, nor with anything else."""
    rng = random.Random(4)

    def word() -> str:
        return "".join(rng.choices(string.ascii_lowercase, k=7))

    return [Annotation("suggest", word(), (word(), word())) for _ in range(count)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> TrainerSettings:
    """A data folder in which a cold start went live."""
    settings = write_annotations(tmp_path_factory.mktemp("taught"), draw_annotations(300))
    assert run_recorded("policy", settings) == 0
    return settings


def test_a_policy_that_learned_its_lists_goes_live_and_its_record_says_what_was_measured(taught: TrainerSettings) -> None:
    root = taught.data.dir
    release = registry.read_release(root, "r0000")
    assert registry.read_rollout(root).champion == "r0000"
    assert (release.gate["passed"], release.gate["reasons"]) == (True, [])
    measured = release.gate["cold_start"]
    assert (measured["annotations"], measured["held_out"], measured["real_queries"]) == (300, 30, 0)
    assert measured["loss"] < measured["base_loss"]
    assert measured["relatedness"] > 0.6
    assert "forced" not in release.meta


def test_twenty_nonsense_annotations_are_refused_with_reasons_and_nothing_goes_live(tmp_path: Path) -> None:
    settings = write_annotations(tmp_path, make_nonsense(20))
    assert run_recorded("policy", settings) == 0
    assert registry.read_rollout(tmp_path).champion is None
    release = registry.read_release(tmp_path, "r0000")
    assert not release.gate["passed"]
    told = "; ".join(release.gate["reasons"])
    assert "too few annotations to judge: 20, at least 40 needed" in told
    assert "lists have little to do with their queries" in told
    (recorded,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert recorded.outcome["promoted"] is False
    assert recorded.outcome["detail"].startswith("r0000 refused after a cold start on 20 annotated lists: too few annotations")


def test_many_nonsense_annotations_are_refused_too(tmp_path: Path) -> None:
    run("policy", write_annotations(tmp_path, make_nonsense(200)))
    assert registry.read_rollout(tmp_path).champion is None
    assert "lists have little to do with their queries" in "; ".join(registry.read_release(tmp_path, "r0000").gate["reasons"])


def test_force_promotes_what_the_gate_refused_and_release_audit_and_ledger_say_so(tmp_path: Path) -> None:
    settings = write_annotations(tmp_path, make_nonsense(20))
    ledger = Ledger(tmp_path / "ledger.sqlite")
    number = ledger.request("policy", RunOptions(force=True).record())
    assert run_recorded("policy", settings, number) == 0
    release = registry.read_release(tmp_path, "r0000")
    assert registry.read_rollout(tmp_path).champion == "r0000"
    assert (release.meta["forced"], release.gate["passed"]) == (True, False)
    (change,) = registry.read_history(tmp_path)[0]
    assert (change["action"], change["forced"], change["run"]) == ("promote", True, number)
    assert ledger.run(number).outcome["detail"].startswith("r0000 live by --force, though refused")


def test_from_base_starts_anew_beside_the_champion_and_a_refused_one_changes_nothing(taught: TrainerSettings) -> None:
    root = taught.data.dir
    strict = taught.model_copy(update={"cold_start": ColdStartSettings(max_forced=1.0, max_repetitive=0.5, max_loss_ratio=0.001)})
    refused = run("policy", strict, RunOptions(from_base=True))
    assert registry.read_rollout(root).champion == "r0000"
    assert (refused.figures["promoted"], refused.figures["release"]) == (False, "r0001")
    outcome = run("policy", taught, RunOptions(from_base=True))
    release = registry.read_release(root, "r0002")
    assert outcome.figures["promoted"]
    assert registry.read_rollout(root).champion == "r0002"
    assert (release.meta["start"], release.meta["beside"]) == ("sft", "r0000")
    assert release.policy != registry.read_release(root, "r0000").policy


def test_a_base_that_cannot_be_used_fails_before_anything_is_published(tmp_path: Path) -> None:
    settings = write_annotations(tmp_path, draw_annotations(50))
    (tmp_path / "model").mkdir()
    other = settings.model_copy(update={"policy": settings.policy.model_copy(update={"base": str(tmp_path / "model")})})
    assert run_recorded("policy", other) == 1
    assert artifacts.find_latest(tmp_path / "artifacts", "policy") is None


def test_one_annotation_is_no_start(tmp_path: Path) -> None:
    assert run_recorded("policy", write_annotations(tmp_path, draw_annotations(1))) == 1
    (recorded,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert "one annotation; some are learned and others tested, so 40 are needed" in recorded.outcome["detail"]
