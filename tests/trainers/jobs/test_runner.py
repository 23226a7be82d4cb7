"""The three jobs over a toy lake: what each publishes, what goes live, and how each ends when something is missing."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import msgspec
import pytest

from index.retrieve import Index
from index.settings import IndexSettings
from serving.predictor.scorer import Predictor
from serving.predictor.settings import PredictorSettings
from serving.releases import registry
from streams.lake.files import LakeSettings
from streams.runtime import artifacts
from streams.runtime.settings import DataSettings
from tests.support.lake_days import write_cooccurrence, write_impressions
from tests.support.toy_policy import SMALL, TASK
from trainers.jobs.ctr import train_part
from trainers.jobs.ledger import Ledger, State
from trainers.jobs.outcomes import JobError, Skipped
from trainers.jobs.processes import BUSY, hold_kind
from trainers.jobs.runner import run, run_recorded
from trainers.jobs.settings import TrainerSettings
from trainers.policy.aligners.dpo import DpoSettings
from trainers.policy.cold_start.gate import ColdStartSettings
from trainers.policy.gate import GateSettings
from trainers.policy.search import SearchSettings
from trainers.policy.sft import Annotation, SftSettings
from trainers.predictor.training import CtrSettings

ANIMALS = ("cat", "dog", "owl", "fox", "bee", "cow", "hen", "pig", "rat", "ant", "eel", "yak", "elk", "emu", "cod", "koi")
ASPECTS = ("food", "price", "names", "sleep")
RATES = {"food": 0.6, "price": 0.1, "names": 0.05, "sleep": 0.05}
FIRST_DAY = date(2026, 3, 1)


def small_settings(folder: Path) -> TrainerSettings:
    return TrainerSettings(
        data=DataSettings(dir=folder),
        tasks={"suggest": TASK},
        policy=SMALL.model_copy(update={"annotations": folder / "annotations.jsonl", "device": "cpu"}),
        sft=SftSettings(epochs=10, learning_rate=1e-2),
        ctr=CtrSettings(epochs=4, warm_epochs=1, batch=16),
        predictor=PredictorSettings(dim=16, layers=1, heads=2, hidden=16, vocabulary=300, max_tokens=8),
        index=IndexSettings(epochs=1, buckets=256, dim=8),
        search=SearchSettings(prompts=12, at_once=12, beam=2, candidates=4, chosen=2, rejected=2, budget=4),
        dpo=DpoSettings(min_pairs=1, batch=2, epochs=2, learning_rate=1e-3, lora_rank=4),
        cold_start=ColdStartSettings(max_forced=1.0, max_repetitive=0.5, min_relatedness=0.5, prompts=40),
        gate=GateSettings(prompts=24, z=0.0, max_length_ratio=3.0, min_well_formed=0.3, max_duplicate_rate=1.0),
    )


def write_annotations(folder: Path, count: int = 400) -> None:
    rng = random.Random(1)
    rows = [(rng.choice(ANIMALS), rng.sample(ASPECTS, 2)) for _ in range(count)]
    annotated = [
        Annotation("suggest", animal, tuple(f"{animal} {aspect}" for aspect in two), tuple(f"{one} food" for one in ANIMALS[:5]))
        for animal, two in rows
    ]
    (folder / "annotations.jsonl").write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in annotated))


def write_days(folder: Path, lists: int = 600) -> None:
    rng = random.Random(2)
    for day in (FIRST_DAY, FIRST_DAY.replace(day=2)):
        rows = [(rng.choice(ANIMALS), rng.sample(ASPECTS, 2)) for _ in range(lists)]
        write_impressions(
            folder / "lake",
            day,
            [
                {
                    "query": animal,
                    "items": [f"{animal} {aspect}" for aspect in two],
                    "clicked": [rng.random() < RATES[aspect] for aspect in two],
                }
                for animal, two in rows
            ],
        )
        write_cooccurrence(folder / "lake", day, [(animal, f"{animal} food", 3) for animal in ANIMALS])


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> TrainerSettings:
    """One time round: cold start, index, predictor and judge."""
    folder = tmp_path_factory.mktemp("loop")
    settings = small_settings(folder)
    write_annotations(folder)
    write_days(folder)
    for kind in ("policy", "index", "ctr"):
        assert run_recorded(kind, settings) == 0  # type: ignore[arg-type]
    return settings


def test_the_cold_start_goes_live_and_an_index_joins_it(loop: TrainerSettings) -> None:
    root = loop.data.dir
    first, second = registry.list_releases(root)[:2]
    assert (first.id, first.index, first.meta["start"]) == ("r0000", None, "sft")
    assert (second.policy, second.meta["from"]) == (first.policy, "r0000")
    assert second.index is not None
    assert Index.load(second.index).retrieve("owl", 1) == ["owl food"]
    registry.verify(root, second)


def test_predictor_and_judge_learn_from_different_sessions(loop: TrainerSettings) -> None:
    root = loop.data.dir / "artifacts"
    both = [artifacts.latest(root, part) for part in ("predictor", "judge")]
    lists = [one.meta["metrics"]["lists"] for one in both if one]
    assert sum(lists) == 1200
    assert min(lists) > 400
    for one in both:
        assert one is not None
        assert one.meta["metrics"]["auc"] > 0.6
        good, bad = Predictor.load(one.path).score(["owl", "owl"], [["owl food"], ["owl sleep"]])
        assert good[0] > bad[0]


def test_the_ledger_has_what_each_run_did(loop: TrainerSettings) -> None:
    runs = Ledger(loop.data.dir / "ledger.sqlite").runs(limit=100)[::-1][:3]
    assert [(one.kind, one.state) for one in runs] == [(kind, State.SUCCEEDED) for kind in ("policy", "index", "ctr")]
    assert runs[0].outcome["release"] == "r0000"
    assert runs[1].outcome["queries"] == len(ANIMALS)
    assert runs[2].outcome["as_of"] == "2026-03-03"
    json.dumps([one.outcome for one in runs])


def test_an_iteration_is_refused_with_reasons_or_goes_live(loop: TrainerSettings) -> None:
    root = loop.data.dir
    champion = registry.read_rollout(root).champion
    refused = run("policy", loop.model_copy(update={"gate": loop.gate.model_copy(update={"min_gain": 0.9})}))
    release = registry.read_release(root, refused.figures["release"])
    assert registry.read_rollout(root).champion == champion
    assert (release.gate["passed"], refused.figures["promoted"]) == (False, False)
    assert "not better by the judge" in release.gate["reasons"][0]
    assert "refused" in refused.detail
    assert set(release.gate["champion"]) == {
        "aec_predictor",
        "aec_judge",
        "well_formed",
        "mean_tokens",
        "duplicate_rate",
        "prompts",
        "forced",
    }
    assert release.predictor is not None
    assert release.judge is not None
    assert release.base is not None, "an adapter over the cold start's weights"
    assert release.base.resolve() == registry.read_release(root, "r0000").policy.resolve()
    registry.verify(root, release)

    outcome = run("policy", loop)
    gate = outcome.figures["gate"]
    live = registry.read_rollout(root).champion
    assert outcome.figures["promoted"] == gate["passed"] == (live == outcome.figures["release"])
    assert gate["passed"] == (gate["challenger"]["aec_judge"] > gate["champion"]["aec_judge"]) or gate["reasons"]


def test_predictors_start_warm_while_their_size_stays(loop: TrainerSettings) -> None:
    again = train_part(loop, date(2026, 3, 3), "predictor")
    assert again["warm_start"]
    other = loop.model_copy(update={"predictor": loop.predictor.model_copy(update={"dim": 24})})
    assert not train_part(other, date(2026, 3, 3), "judge")["warm_start"]


def no_day(settings: TrainerSettings) -> None:
    """Nothing is in the lake."""


def one_day(settings: TrainerSettings) -> None:
    write_impressions(settings.data.dir / "lake", FIRST_DAY, [{"query": "owl"}])


@pytest.mark.parametrize(
    ("kind", "prepare", "detail"),
    [
        ("ctr", no_day, "no day yet"),
        ("ctr", one_day, "too few impressions for the predictor: . lists with 0 clicked .* have 1 lists in the lake"),
        ("index", no_day, "no day yet"),
        ("index", one_day, "no query followed another .* the lake has 0 queries in 0 sessions"),
    ],
)
def test_missing_data_skips_the_run(tmp_path: Path, kind: str, prepare: Callable[[TrainerSettings], None], detail: str) -> None:
    settings = small_settings(tmp_path)
    prepare(settings)
    with pytest.raises(Skipped, match=detail):
        run(kind, settings)  # type: ignore[arg-type]
    assert run_recorded(kind, settings) == 5  # type: ignore[arg-type]
    (recorded,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert recorded.state is State.SKIPPED
    assert re.search(detail, recorded.outcome["detail"])


def test_no_annotations_fail_the_cold_start_by_the_settings_name(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"policy\.annotations = .*annotations\.jsonl"):
        run("policy", small_settings(tmp_path))
    assert run_recorded("policy", small_settings(tmp_path)) == 1
    assert registry.list_releases(tmp_path) == []


def test_an_iteration_without_a_predictor_is_skipped(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "weights").write_text("any")

    policy = artifacts.publish(tmp_path / "artifacts", "policy", fill, {})
    registry.promote(tmp_path, registry.publish(tmp_path, policy=policy.path).id)
    with pytest.raises(Skipped, match="no predictor and judge yet: run the job ctr first"):
        run("policy", small_settings(tmp_path))


def test_a_crash_is_recorded_and_raised(tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match="not an annotation"):
        run_recorded("policy", small_settings(tmp_path))
    (recorded,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert recorded.state is State.FAILED
    assert "annotations.jsonl:1: not an annotation" in recorded.outcome["detail"]


def test_a_busy_kind_is_left_alone(tmp_path: Path) -> None:
    with hold_kind(tmp_path, "ctr"):
        assert run_recorded("ctr", small_settings(tmp_path)) == BUSY
    assert Ledger(tmp_path / "ledger.sqlite").runs() == []


def test_a_run_whose_process_was_killed_is_failed_by_the_next(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    lost = ledger.start(ledger.request("index"), pid=1).id
    assert run_recorded("index", small_settings(tmp_path)) == 5
    assert ledger.run(lost).state is State.FAILED
    assert "ended without a record" in ledger.run(lost).outcome["detail"]


def test_an_iteration_with_too_few_usable_lists_says_how_many_there_are_and_why(loop: TrainerSettings, tmp_path: Path) -> None:
    other = loop.model_copy(update={"lake": LakeSettings(url=f"file://{tmp_path}")})
    write_impressions(
        tmp_path, FIRST_DAY, [{"query": f"q{n}", "task": "ad"} for n in range(157)] + [{"query": "q", "task": None}]
    )
    with pytest.raises(
        Skipped, match=r"158 lists, 157 of the task 'ad', which is not in the settings; 1 different queries of the 1"
    ):
        run("policy", other)


def test_without_the_packages_of_models_a_job_fails_and_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run_recorded("policy", small_settings(tmp_path)) == 1
    (ended,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert ended.state is State.FAILED
    assert "models need torch, not installed here: pip install 'queryloop[cpu]'" in ended.outcome["detail"]


def test_a_cold_start_that_would_not_fit_into_memory_fails_before_it_trains_and_names_what_to_lower(tmp_path: Path) -> None:
    write_annotations(tmp_path)
    small = small_settings(tmp_path)
    assert run_recorded("policy", small.model_copy(update={"sft": SftSettings(batch=10**9, max_tokens=10**12)})) == 1
    (ended,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert ended.state is State.FAILED
    assert re.search(r"the supervised fine-tuning \(sft\) needs some .* GB and .* GB of cpu memory", ended.outcome["detail"])
    assert re.search(r"lower sft\.max_tokens from 1000000000000 to \d+, or lower sft\.batch from", ended.outcome["detail"])
    assert not (tmp_path / "artifacts" / "policy").exists()


def test_an_iteration_that_would_not_fit_fails_before_its_search(loop: TrainerSettings) -> None:
    huge = loop.model_copy(update={"dpo": DpoSettings(min_pairs=1, batch=10**9, max_tokens=10**12)})
    before = Ledger(loop.data.dir / "ledger.sqlite").runs()[0].id
    assert run_recorded("policy", huge) == 1
    ended = Ledger(loop.data.dir / "ledger.sqlite").runs()[0]
    assert ended.id > before
    assert "the preference optimisation (dpo) needs some" in ended.outcome["detail"]
