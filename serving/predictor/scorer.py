"""The CTR predictor as it is used: click probabilities of a list's items, and the list's reward."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from serving.predictor.calibration import Calibration
from serving.predictor.settings import PredictorSettings
from serving.predictor.text import Vocabulary, pad_together

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from serving.predictor.network import BlockCausalNetwork

WEIGHTS, TOKENIZER, CONFIG = "predictor.safetensors", "tokenizer.json", "predictor.json"
SCORE_BATCH = 256


class Predictor:
    """A trained network with its vocabulary and calibration."""

    def __init__(
        self, network: BlockCausalNetwork, vocabulary: Vocabulary, settings: PredictorSettings, calibration: Calibration
    ) -> None:
        self.network = network.eval()
        self.vocabulary = vocabulary
        self.settings = settings
        self.calibration = calibration

    def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        """Return, for each list, p_k = P(click on item k | q_user, items 1 to k), calibrated, float64 [N].

        ValueError when queries and lists differ in number, or a list is longer than `predictor.max_items`."""
        return [self.calibration.apply(logits) for logits in self.score_logits(queries, lists)]

    def score_logits(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        """Return the network's own logits, before calibration, in the form of `score`."""
        if len(queries) != len(lists):
            raise ValueError(f"{len(queries)} queries, but {len(lists)} lists")
        self._check_lengths(lists)
        encoded = [self.vocabulary.encode(query, items) for query, items in zip(queries, lists, strict=True)]
        logits: list[NDArray[np.float64]] = [np.zeros(0)] * len(lists)
        # Lists of similar length together, for little padding.
        rows = sorted((row for row, items in enumerate(lists) if items), key=lambda row: len(encoded[row]))
        for start in range(0, len(rows), SCORE_BATCH):
            batch = rows[start : start + SCORE_BATCH]
            for row, values in zip(batch, self._run([encoded[row] for row in batch]), strict=True):
                logits[row] = values[: len(lists[row])]
        return logits

    def reward(self, p: Sequence[float] | NDArray[np.float64], kind: Literal["multi", "single"]) -> float:
        """The same as `serving.predictor.scorer.reward`."""
        return reward(p, kind)

    def save(self, folder: Path) -> None:
        """Write weights (safetensors), vocabulary and configuration into an existing folder."""
        from safetensors.torch import save_file

        save_file({name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}, folder / WEIGHTS)
        self.vocabulary.save(folder / TOKENIZER)
        config = {"settings": self.settings.model_dump(), "calibration": asdict(self.calibration)}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> Predictor:
        """Read what `save` wrote; a file that does not fit the others raises the error of what reads it."""
        from safetensors.torch import load_file

        from serving.predictor.network import BlockCausalNetwork

        config = json.loads((folder / CONFIG).read_text())
        settings = PredictorSettings(**config["settings"])
        vocabulary = Vocabulary.load(folder / TOKENIZER, settings.max_tokens)
        network = BlockCausalNetwork(settings, len(vocabulary))
        network.load_state_dict(load_file(folder / WEIGHTS))
        calibration = Calibration(**{name: tuple(knots) for name, knots in config["calibration"].items()})
        return cls(network.to(device), vocabulary, settings, calibration)

    def _check_lengths(self, lists: Sequence[Sequence[str]]) -> None:
        longest = max((len(items) for items in lists), default=0)
        if longest > self.settings.max_items:
            raise ValueError(
                f"a list of {longest} items, but this predictor reads {self.settings.max_items} (predictor.max_items)"
            )

    def _run(self, encoded: Sequence[NDArray[np.int16]]) -> NDArray[np.float64]:
        import torch

        device = next(self.network.parameters()).device
        columns, heads = (torch.from_numpy(part).to(device) for part in pad_together(encoded, self.network.domains))
        with torch.inference_mode():
            return self.network(columns, heads).double().cpu().numpy()  # type: ignore[no-any-return]


def reward(p: Sequence[float] | NDArray[np.float64], kind: Literal["multi", "single"]) -> float:
    """Return a list's reward from its items' click probabilities: eq. 3 (multi-choice), or eq. 4 (single-choice) clamped to 1."""
    if kind == "multi":
        return float(1.0 - np.prod(1.0 - np.asarray(p, np.float64)))
    if kind == "single":
        return min(1.0, float(np.sum(p)))
    raise ValueError(f"reward kind {kind!r}; allowed: 'multi', 'single'")


def needs_clamp(p: Sequence[float] | NDArray[np.float64], kind: Literal["multi", "single"]) -> bool:
    """Whether `reward` had to clamp (G4 asks to count it): only a single-choice sum can exceed 1."""
    return kind == "single" and float(np.sum(p)) > 1.0
