"""Training a predictor: it learns what is clicked, is pure and seeded, starts warm, and says when there is too little data."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from serving.predictor.scorer import Predictor
from serving.predictor.settings import PredictorSettings
from trainers.predictor.examples import ListExamples
from trainers.predictor.training import CtrSettings, shuffle_batches, train_predictor

SIZE = PredictorSettings(dim=16, layers=1, heads=2, hidden=32, vocabulary=200, max_tokens=8, max_items=8)
QUICK = CtrSettings(epochs=6, batch=32, learning_rate=5e-3, held_out=0.2)


def draw_examples(count: int, seed: int = 0) -> ListExamples:
    """Prices are clicked often, maps never; a repeated item never."""
    rng = random.Random(seed)
    things, aspects = ["lamp", "boat", "sofa", "kite"], {"price": 0.8, "photos": 0.3, "map": 0.02}
    queries, lists, clicks = [], [], []
    for _ in range(count):
        thing = rng.choice(things)
        items = tuple(f"{thing} {rng.choice(list(aspects))}" for _ in range(rng.randint(1, 3)))
        queries.append(thing)
        lists.append(items)
        clicks.append(tuple(i not in items[:k] and rng.random() < aspects[i.split()[1]] for k, i in enumerate(items)))
    return ListExamples(
        tuple(queries), tuple(lists), tuple(clicks), tuple(f"s{n}" for n in range(count)), tuple(n % 5 for n in range(count))
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train_predictor(draw_examples(900), folder, QUICK, SIZE)


def test_it_learns_what_is_clicked(trained: tuple[Path, dict[str, object]]) -> None:
    folder, metrics = trained
    assert float(str(metrics["auc"])) > 0.8
    price, tram = Predictor.load(folder).score(["boat", "boat"], [["boat price", "boat price"], ["boat map", "boat price"]])
    assert price[0] > 0.5 > 0.2 > tram[0]
    assert price[1] < tram[1]  # said already above


def test_the_metrics_say_all_that_a_reader_needs_and_are_json(trained: tuple[Path, dict[str, object]]) -> None:
    metrics = json.loads(json.dumps(trained[1]))
    assert {"auc", "logloss", "diff_ctr", "ece", "by_position", "lists", "epochs", "history", "seconds"} <= set(metrics)
    assert set(metrics["by_position"]) == {"0", "1", "2"}
    assert metrics["lists"] == 900 and not metrics["warm_start"] and len(metrics["history"]) == metrics["epochs"] <= 6


def test_the_same_seed_gives_the_same_predictor_and_changes_nothing_else(
    trained: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    examples = draw_examples(900)
    before, state = copy.deepcopy(examples), torch.random.get_rng_state()
    train_predictor(examples, tmp_path, QUICK, SIZE)
    assert examples == before and torch.equal(torch.random.get_rng_state(), state)
    one, two = (
        Predictor.load(folder).score(["kite"], [["kite price", "unheard of", ""]])[0] for folder in (trained[0], tmp_path)
    )
    np.testing.assert_array_equal(one, two)


def test_a_warm_start_keeps_vocabulary_and_size_and_starts_from_its_weights(
    trained: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    folder, cold = trained
    other_size = PredictorSettings(dim=32, heads=2)
    warm = train_predictor(draw_examples(900, 1), tmp_path, QUICK.model_copy(update={"warm_epochs": 1}), other_size, start=folder)
    assert warm["warm_start"] and warm["epochs"] == 1
    assert Predictor.load(tmp_path).settings == SIZE
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    cold_history = cold["history"]
    assert isinstance(cold_history, list) and warm["history"][0]["loss"] < cold_history[0]["loss"]


def test_it_stops_early_and_keeps_the_best_weights(tmp_path: Path) -> None:
    noise = draw_examples(300)
    rng = random.Random(0)
    noise = ListExamples(
        noise.queries,
        noise.lists,
        tuple(tuple(rng.random() < 0.3 for _ in row) for row in noise.lists),
        noise.sessions,
        noise.days,
    )
    metrics = train_predictor(noise, tmp_path, QUICK.model_copy(update={"epochs": 40, "calibrate": False}), SIZE)
    best = min(epoch["held_out"] for epoch in metrics["history"])
    assert metrics["epochs"] < 40
    assert metrics["logloss"] <= best + 1e-5


@pytest.mark.parametrize("calibrate", [True, False])
def test_calibration_is_stored_where_it_is_asked_for_and_there_are_clicks(calibrate: bool, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"calibrate": calibrate, "calibration_clicks": 5, "epochs": 1})
    metrics = train_predictor(draw_examples(600), tmp_path, settings, SIZE)
    assert metrics["calibrated"] is calibrate is bool(Predictor.load(tmp_path).calibration.before)


@pytest.mark.parametrize("count", [0, 5])
def test_too_few_examples_are_refused_with_their_number(count: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too few examples"):
        train_predictor(draw_examples(count), tmp_path, QUICK, SIZE)
    assert list(tmp_path.iterdir()) == []


def test_batches_hold_every_row_once() -> None:
    lengths = [n % 17 for n in range(1000)]
    batches = list(shuffle_batches(lengths, 32, np.random.default_rng(0)))
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    assert max(map(len, batches)) == 32
    assert batches != list(shuffle_batches(lengths, 32, np.random.default_rng(1)))
