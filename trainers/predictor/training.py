"""Trains a click predictor on examples from the lake: binary cross-entropy, AdamW, early stopping (G5, G8, eq. 5)."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serving.predictor.calibration import Calibration
from serving.predictor.scorer import Predictor
from serving.predictor.settings import PredictorSettings
from serving.predictor.text import learn_vocabulary, pad_together
from trainers.predictor.calibration import fit_calibration
from trainers.predictor.examples import ListExamples, hold_out
from trainers.predictor.metrics import measure
from trainers.progress import track

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from serving.predictor.network import BlockCausalNetwork

MIN_CLICKS = 10
# Batches that are made of one chunk of lists sorted by length: little padding, still shuffled.
SORTED_TOGETHER = 16


class CtrSettings(BaseModel):
    """Section `ctr`: how predictor and judge are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: int = Field(default=14, ge=1, description="UTC days of impressions (G8)")
    epochs: int = Field(default=4, ge=1, description="passes over the examples, at most")
    warm_epochs: int = Field(default=2, ge=1, description="passes at most when earlier weights are the start")
    patience: int = Field(default=2, ge=1, description="epochs without a better held-out log loss before it stops")
    batch: int = Field(default=128, ge=1, description="lists a step")
    learning_rate: float = Field(default=2e-3, gt=0, description="AdamW's peak step")
    weight_decay: float = Field(default=0.05, ge=0, description="AdamW's")
    held_out: float = Field(default=0.1, gt=0, lt=1, description="share of sessions for early stop, calibration and the metrics")
    calibrate: bool = Field(default=True, description="isotonic calibration on the held-out sessions")
    calibration_clicks: int = Field(
        default=100, ge=1, description="clicks that each knot rests on; under five times as many: none"
    )
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda|auto)$", description="where they are trained")
    seed: int = Field(default=0, ge=0, description="of first weights, order and the held-out sessions")


@dataclass(frozen=True)
class Encoded:
    """Lists as input of the network, int16 [L, 5] each, and their clicks, float32 [n, N], NaN where there is no item."""

    rows: list[NDArray[np.int16]]
    clicks: NDArray[np.float32]


def train_predictor(
    examples: ListExamples, out: Path, settings: CtrSettings, size: PredictorSettings, start: Path | None = None
) -> dict[str, Any]:
    """Train on `examples`, write the predictor into the existing folder `out`, return its metrics on held-out sessions.

    With `start` (an earlier predictor's folder) weights, vocabulary and size come from there, and `warm_epochs` passes follow.
    The same examples, settings and thread count give the same weights; torch's random state is left as it was.
    ValueError when there are too few examples to learn from."""
    import torch

    started = time.monotonic()
    fitted, held = hold_out(examples, settings.held_out, settings.seed)
    _check_enough(fitted, held)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        predictor = Predictor.load(start) if start else make_predictor(fitted, size)
        epochs = settings.warm_epochs if start else settings.epochs
        history = fit(predictor, fitted, held, settings, epochs)
    predictor.network.cpu()
    predictor.calibration = _calibrate(predictor, held, settings)
    predictor.save(out)
    metrics = measure(predictor.score(held.queries, held.lists), held.clicks, held.days)
    return {
        **metrics,
        "lists": len(examples),
        "epochs": len(history),
        "history": history,
        "warm_start": start is not None,
        "calibrated": bool(predictor.calibration.before),
        "seconds": round(time.monotonic() - started, 3),
    }


def make_predictor(examples: ListExamples, size: PredictorSettings) -> Predictor:
    """Return an untrained predictor whose vocabulary comes from the examples and which predicts their mean click rate."""
    import torch

    from serving.predictor.network import BlockCausalNetwork

    vocabulary = learn_vocabulary(examples.texts(), size.vocabulary, size.max_tokens)
    network = BlockCausalNetwork(size, len(vocabulary))
    rate = examples.clicked / examples.positions
    with torch.no_grad():
        network.out.bias.fill_(float(np.log(rate / (1 - rate))))
    return Predictor(network, vocabulary, size, Calibration())


def fit(
    predictor: Predictor, fitted: ListExamples, held: ListExamples, settings: CtrSettings, epochs: int
) -> list[dict[str, float]]:
    """Train the predictor's network in place, leave it with its best weights, return {loss, held_out} (nats) of each epoch."""
    from serving.policy.engines.loading import choose_device

    network = predictor.network.to(choose_device(settings.device))
    train, test = encode(predictor, fitted), encode(predictor, held)
    optimizer, schedule = _make_optimizer(network, settings, epochs * -(-len(fitted) // settings.batch))
    rng = np.random.default_rng(settings.seed)
    history: list[dict[str, float]] = []
    best, best_weights = _evaluate(network, test, settings.batch), copy.deepcopy(network.state_dict())
    for _ in track(range(epochs), "click predictor"):
        loss = _run_epoch(network, train, optimizer, schedule, settings.batch, rng)
        history.append({"loss": loss, "held_out": _evaluate(network, test, settings.batch)})
        if history[-1]["held_out"] < best:
            best, best_weights = history[-1]["held_out"], copy.deepcopy(network.state_dict())
        elif all(h["held_out"] > best for h in history[-settings.patience :]) and len(history) >= settings.patience:
            break
    network.load_state_dict(best_weights)
    network.eval()
    return history


def encode(predictor: Predictor, examples: ListExamples) -> Encoded:
    """Return the examples as input of the network."""
    rows = [predictor.vocabulary.encode(query, items) for query, items in zip(examples.queries, examples.lists, strict=True)]
    clicks = np.full((len(rows), max(map(len, examples.lists))), np.nan, np.float32)
    for row, marks in enumerate(examples.clicks):
        clicks[row, : len(marks)] = marks
    return Encoded(rows, clicks)


def _run_epoch(
    network: BlockCausalNetwork,
    train: Encoded,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batch: int,
    rng: np.random.Generator,
) -> float:
    network.train()
    total = 0.0
    batches = list(shuffle_batches([len(rows) for rows in train.rows], batch, rng))
    for rows in batches:
        loss = _loss(network, train, rows).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
    return total / len(batches)


def shuffle_batches(lengths: Sequence[int], batch: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield all row numbers once, in random batches whose rows are of similar length."""
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), batch * SORTED_TOGETHER):
        chunk = sorted(order[start : start + batch * SORTED_TOGETHER].tolist(), key=lengths.__getitem__)
        batches += [chunk[at : at + batch] for at in range(0, len(chunk), batch)]
    yield from (batches[number] for number in rng.permutation(len(batches)))


def _evaluate(network: BlockCausalNetwork, test: Encoded, batch: int) -> float:
    """Return the mean log loss in nats over all positions."""
    import torch

    network.eval()
    order = sorted(range(len(test.rows)), key=lambda row: len(test.rows[row]))
    with torch.inference_mode():
        losses = [_loss(network, test, order[at : at + 4 * batch]) for at in range(0, len(order), 4 * batch)]
    return float(torch.cat(losses).mean())


def _loss(network: BlockCausalNetwork, data: Encoded, rows: list[int]) -> torch.Tensor:
    """Return the binary cross-entropy of each shown position (eq. 5)."""
    import torch

    device = next(network.parameters()).device
    columns, heads = (
        torch.from_numpy(part).to(device) for part in pad_together([data.rows[row] for row in rows], network.domains)
    )
    clicks = torch.from_numpy(data.clicks[rows][:, : heads.shape[1]]).to(device)
    shown = heads >= 0
    return torch.nn.functional.binary_cross_entropy_with_logits(network(columns, heads)[shown], clicks[shown], reduction="none")


def _make_optimizer(
    network: BlockCausalNetwork, settings: CtrSettings, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return AdamW without decay on biases and norms; the rate rises over the first twentieth and falls along a cosine."""
    import torch

    matrices = [p for p in network.parameters() if p.dim() > 1]
    others = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=settings.learning_rate, total_steps=steps + 1, pct_start=0.05, cycle_momentum=False
    )
    return optimizer, schedule


def _calibrate(predictor: Predictor, held: ListExamples, settings: CtrSettings) -> Calibration:
    if not settings.calibrate:
        return Calibration()
    logits = np.concatenate(predictor.score_logits(held.queries, held.lists))
    clicks = np.array([click for row in held.clicks for click in row], np.float64)
    return fit_calibration(logits, clicks, settings.calibration_clicks)


def _check_enough(fitted: ListExamples, held: ListExamples) -> None:
    if not len(held) or min(fitted.clicked, fitted.positions - fitted.clicked) < MIN_CLICKS:
        raise ValueError(
            f"too few examples for a click predictor: {len(fitted)} lists with {fitted.clicked} clicks to learn from and "
            f"{len(held)} held out; it needs {MIN_CLICKS} clicked and {MIN_CLICKS} unclicked positions and a held-out list"
        )
