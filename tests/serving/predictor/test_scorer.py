"""The predictor in use: one pass equals N prefix passes, other rows do not matter, and a round trip to disk changes nothing."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.predictor.calibration import Calibration
from serving.predictor.network import BlockCausalNetwork
from serving.predictor.scorer import Predictor, needs_clamp, reward
from serving.predictor.settings import PredictorSettings
from serving.predictor.text import CLS_ID, Column, learn_vocabulary, pad_together

SIZE = PredictorSettings(dim=16, layers=2, heads=2, hidden=32, vocabulary=200, max_tokens=8, max_items=6)
TEXTS = ["kasva opening hours", "kasva tickets near me", "lorfone battery", "best screen repair", "kasva"]
queries = st.text(max_size=30) | st.sampled_from(TEXTS)
lists = st.lists(queries, max_size=6)


def make_predictor(calibration: Calibration = Calibration()) -> Predictor:  # noqa: B008
    torch.manual_seed(0)
    vocabulary = learn_vocabulary(TEXTS, SIZE.vocabulary, SIZE.max_tokens)
    network = BlockCausalNetwork(SIZE, len(vocabulary))
    with torch.no_grad():
        # Larger than at birth, so that what a token sees shows in the numbers.
        for weight in network.parameters():
            weight.mul_(3)
    return Predictor(network, vocabulary, SIZE, calibration)


PREDICTOR = make_predictor()


@settings(max_examples=40, deadline=None)
@given(queries, lists)
def test_one_pass_gives_the_numbers_of_n_passes_over_the_beginnings(query: str, items: list[str]) -> None:
    together = PREDICTOR.score([query], [items])[0]
    beginnings = PREDICTOR.score([query] * len(items), [items[: k + 1] for k in range(len(items))])
    np.testing.assert_allclose(together, [p[-1] for p in beginnings], rtol=1e-4)


def test_in_double_precision_the_two_ways_are_equal_to_the_last_digits() -> None:
    network = make_predictor().network.double().eval().requires_grad_(False)
    encoded = PREDICTOR.vocabulary.encode("kasva", TEXTS)
    columns, heads = map(torch.from_numpy, pad_together([encoded], network.domains))
    whole = network(columns, heads)[0]
    for k, place in enumerate(heads[0].tolist()):
        cut = columns[:, : int((columns[0, :, Column.DOMAIN] <= k + 1).sum())]
        assert float(network(cut, torch.tensor([[place]]))[0, 0] - whole[k]) == pytest.approx(0, abs=1e-12)


def test_an_item_depends_on_the_query_and_the_items_above_and_not_on_those_below() -> None:
    def last(query: str, *items: str) -> float:
        return float(PREDICTOR.score([query], [items])[0][1])

    base = last("kasva", "kasva tickets", "lorfone battery")
    assert last("kasva", "kasva tickets", "lorfone battery", "best screen repair") == pytest.approx(base, rel=1e-5)
    assert last("lorfone", "kasva tickets", "lorfone battery") != pytest.approx(base, rel=1e-3)
    assert last("kasva", "lorfone battery", "lorfone battery") != pytest.approx(base, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(queries, lists), max_size=8))
def test_other_rows_of_a_batch_do_not_matter(rows: list[tuple[str, list[str]]]) -> None:
    together = PREDICTOR.score([query for query, _ in rows], [items for _, items in rows])
    assert [len(p) for p in together] == [len(items) for _, items in rows]
    for (query, items), p in zip(rows, together, strict=True):
        assert np.all((p > 0) & (p < 1))
        np.testing.assert_allclose(PREDICTOR.score([query], [items])[0], p, rtol=1e-4)


def test_what_users_type_is_never_a_separator() -> None:
    encoded = PREDICTOR.vocabulary.encode("[SEP] [CLS]", ["[CLS] kasva [SEP]", "[PAD]"])
    assert (encoded[:, Column.TOKEN] == CLS_ID).sum() == 2
    assert encoded[:, Column.DOMAIN].max() == 2


def test_overlap_marks_words_of_the_query_and_of_earlier_items() -> None:
    encoded = PREDICTOR.vocabulary.encode("kasva", ["kasva tickets", "kasva tickets battery"])
    text = encoded[(encoded[:, Column.TOKEN] > 3) & (encoded[:, Column.DOMAIN] > 0)]
    assert set(text[text[:, Column.DOMAIN] == 1][:, Column.OVERLAP].tolist()) == {0, 1}
    assert set(text[text[:, Column.DOMAIN] == 2][:, Column.OVERLAP].tolist()) == {0, 2, 3}
    # The [CLS] of a repeated item differs from that of a new one.
    twice = PREDICTOR.vocabulary.encode("kasva", ["lorfone", "lorfone"])
    heads = twice[twice[:, Column.TOKEN] == CLS_ID]
    assert heads[0, Column.OVERLAP] != heads[1, Column.OVERLAP]


def test_it_is_the_same_after_a_round_trip_to_disk(tmp_path: Path) -> None:
    one = make_predictor(Calibration((-3.0, 0.0), (-4.0, -1.0)))
    one.save(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]
    two = Predictor.load(tmp_path)
    assert (two.settings, two.calibration) == (one.settings, one.calibration)
    for a, b in zip(one.score(TEXTS, [TEXTS] * 5), two.score(TEXTS, [TEXTS] * 5), strict=True):
        np.testing.assert_array_equal(a, b)


def test_wrong_numbers_of_lists_or_items_are_refused() -> None:
    with pytest.raises(ValueError, match="2 queries, but 1 lists"):
        PREDICTOR.score(["a", "b"], [["c"]])
    with pytest.raises(ValueError, match=r"7 items.*predictor\.max_items"):
        PREDICTOR.score(["a"], [["b"] * 7])
    with pytest.raises(ValueError, match="does not divide"):
        PredictorSettings(dim=10, heads=4)


@given(st.lists(st.floats(0, 1), max_size=10))
def test_rewards_are_those_of_the_paper(p: list[float]) -> None:
    assert reward(p, "multi") == pytest.approx(1 - math.prod(1 - one for one in p))
    assert reward(p, "single") == pytest.approx(min(1, math.fsum(p)))
    assert needs_clamp(p, "single") == (float(np.sum(p)) > 1) and not needs_clamp(p, "multi")
    with pytest.raises(ValueError, match="'multi', 'single'"):
        reward(p, "both")  # type: ignore[arg-type]


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20))
def test_calibration_keeps_the_order_and_meets_its_knots(logits: list[float]) -> None:
    curve = Calibration((-3.0, -1.0, 2.0), (-4.0, -2.0, 0.0))
    assert curve.apply(np.array([-1.0]))[0] == pytest.approx(1 / (1 + math.exp(2)))
    values = np.sort(np.array(logits))
    assert np.all(np.diff(curve.shift(values)) >= 0)
    np.testing.assert_allclose(Calibration().apply(values), 1 / (1 + np.exp(-values)))


@pytest.mark.parametrize(("before", "after"), [((0.0,), ()), ((1.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (1.0, 0.0))])
def test_a_calibration_that_does_not_rise_is_refused(before: tuple[float, ...], after: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rising"):
        Calibration(before, after)


def test_scoring_keeps_up_with_a_candidate_search() -> None:
    items = [[f"kasva {i} tickets", "kasva hours", f"lorfone {i}"] for i in range(1000)]
    PREDICTOR.score(["kasva"] * 10, items[:10])
    started = time.process_time()
    PREDICTOR.score(["kasva"] * len(items), items)
    assert time.process_time() - started < 2


def test_the_same_texts_give_the_same_vocabulary(tmp_path: Path) -> None:
    texts = [f"{a}{b} {b}" for a in ("kas", "lor", "mel", "dov") for b in ("fone", "ton", "wort", "etta")]
    for name in ("one", "two"):
        learn_vocabulary(texts, 60, 8).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
