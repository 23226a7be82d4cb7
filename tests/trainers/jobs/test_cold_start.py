"""A cold start goes live when it passes its gate; one that is refused is published with reasons; --force and --from-base."""

from __future__ import annotations

import random
import re
import string
from pathlib import Path

import msgspec
import pytest

from serving.policy.examples import read_examples
from serving.releases import registry
from streams.runtime import artifacts
from streams.runtime.settings import DataSettings
from tests.support.bases import make_base_of_kind
from tests.support.toy_policy import SMALL, TASK, draw_annotations
from trainers.jobs.ledger import Ledger
from trainers.jobs.outcomes import JobError, Skipped
from trainers.jobs.run_options import RunOptions
from trainers.jobs.runner import run, run_recorded
from trainers.jobs.settings import TrainerSettings
from trainers.policy.cold_start.gate import ColdStartSettings
from trainers.policy.sft import Annotation, SftSettings, annotation_texts


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


def test_what_was_refused_is_not_trained_again_until_something_changes(tmp_path: Path) -> None:
    settings = write_annotations(tmp_path, make_nonsense(20))
    run("policy", settings)
    with pytest.raises(Skipped, match=r"r0000 was refused, and base, annotations and settings are the same since .*too few"):
        run("policy", settings)
    assert [one.id for one in registry.list_releases(tmp_path)] == ["r0000"]
    run("policy", settings.model_copy(update={"sft": SftSettings(epochs=1, learning_rate=1e-2)}))
    run("policy", write_annotations(tmp_path, make_nonsense(21)))
    run("policy", settings, RunOptions(from_base=True))
    assert [one.id for one in registry.list_releases(tmp_path)] == ["r0000", "r0001", "r0002", "r0003"]


def start_untrained(folder: Path, start: str, **cold: float) -> TrainerSettings:
    """Settings with an untrained base of words: it can be asked, and writes gibberish."""
    settings = write_annotations(folder, draw_annotations(60))
    base = make_base_of_kind("untied", folder / "model", annotation_texts(draw_annotations(60), settings.tasks))
    policy = settings.policy.model_copy(update={"base": str(base), "cold_start": start})
    gate = ColdStartSettings(**{"max_forced": 1.0, "max_repetitive": 1.0, "max_length_ratio": 100.0, **cold})
    return settings.model_copy(update={"policy": policy, "cold_start": gate, "sft": SftSettings(epochs=1)})


def test_a_start_without_training_is_tested_on_the_lists_that_it_does_not_show(tmp_path: Path) -> None:
    outcome = run("policy", start_untrained(tmp_path, "prompt"))
    release = registry.read_release(tmp_path, "r0000")
    shown = read_examples(release.policy)["suggest"]
    assert (release.meta["start"], len(shown)) == ("prompt", 4)
    queries = {one.query for one in shown}
    measured = release.gate["cold_start"]
    assert measured["held_out"] == sum(one.query not in queries for one in draw_annotations(60))
    assert (measured["loss"], measured["base_loss"]) == (None, None)
    told = "; ".join(release.gate["reasons"])
    assert "raise policy.shots, take another policy.base, or let it learn annotations (policy.cold_start = 'sft')" in told
    assert "r0000 refused after a start without training, 4 annotated lists in its prompts: " in outcome.detail
    assert registry.read_rollout(tmp_path).champion is None


def test_both_starts_are_made_in_turn_and_only_the_one_that_learns_beside_a_champion(tmp_path: Path) -> None:
    settings = start_untrained(tmp_path, "both")
    outcome = run("policy", settings, RunOptions(force=True))
    starts = [registry.read_release(tmp_path, name).meta["start"] for name in ("r0000", "r0001")]
    assert starts == ["prompt", "sft"]
    assert registry.read_rollout(tmp_path).champion == "r0001"
    assert read_examples(registry.read_release(tmp_path, "r0001").policy) == {}
    assert "r0000 live" in outcome.detail
    assert "; then r0001 live" in outcome.detail
    run("policy", settings, RunOptions(from_base=True))
    assert registry.read_release(tmp_path, "r0002").meta["start"] == "sft"


def test_without_annotations_and_real_queries_there_is_nothing_to_test_with(tmp_path: Path) -> None:
    settings = start_untrained(tmp_path, "auto")
    unset = settings.model_copy(update={"policy": settings.policy.model_copy(update={"annotations": None})})
    with pytest.raises(Skipped, match="0 lists to test with, at least 16 are needed"):
        run("policy", unset)
    assert artifacts.find_latest(tmp_path / "artifacts", "policy") is None


def test_a_base_from_scratch_cannot_be_shown_lists(tmp_path: Path) -> None:
    settings = write_annotations(tmp_path, draw_annotations(60))
    scratch = settings.model_copy(update={"policy": settings.policy.model_copy(update={"cold_start": "prompt"})})
    with pytest.raises(JobError, match="a base made from scratch knows no language"):
        run("policy", scratch)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (Annotation("sugest", "cat", ("cat food", "cat price")), "task 'sugest' is not in the settings"),
        (Annotation("suggest", "cat", ("cat food",)), "1 items, task suggest has n = 2"),
        (Annotation("suggest", "cat", ("cat food", "cat price"), auxiliary={"guide": "Which?"}), "auxiliary ['guide']"),
    ],
)
def test_a_list_that_would_be_shown_is_checked_as_one_that_is_learned(wrong: Annotation, said: str, tmp_path: Path) -> None:
    settings = start_untrained(tmp_path, "prompt")
    with (tmp_path / "annotations.jsonl").open("wb") as out:
        out.writelines(msgspec.json.encode(one) + b"\n" for one in (wrong, *draw_annotations(60)))
    with pytest.raises(ValueError, match=re.escape(said)):
        run("policy", settings)
    assert artifacts.find_latest(tmp_path / "artifacts", "policy") is None
