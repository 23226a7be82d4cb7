"""Drawing the next token of many rows at once, each with its own temperature, top-p and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from serving.engines import Decoding

_TOP = 64
"""Tokens looked at first: the nucleus is nearly always inside them, and a full sort of the vocabulary costs more than a decoding step."""


@dataclass(slots=True)
class Sampler:
    """Draws for a batch of rows. Tensors are [rows] ([rows, steps] for `uniforms`) and are sliced together when rows are dropped."""

    temperature: torch.Tensor
    top_p: torch.Tensor
    greedy: torch.Tensor
    uniforms: torch.Tensor
    all_greedy: bool
    any_nucleus: bool

    @classmethod
    def prepare(cls, decodings: Sequence[Decoding], steps: int, device: torch.device) -> Sampler:
        """One row a decoding. Every random number is drawn here, so a seeded row does not depend on its neighbours."""
        uniforms = torch.rand(len(decodings), steps)
        for row, decoding in enumerate(decodings):
            if decoding.seed is not None:
                uniforms[row] = torch.rand(steps, generator=torch.Generator().manual_seed(decoding.seed))
        return cls(
            torch.tensor([decoding.temperature for decoding in decodings], device=device),
            torch.tensor([decoding.top_p for decoding in decodings], device=device),
            torch.tensor([decoding.greedy for decoding in decodings], device=device),
            uniforms.to(device),
            all(decoding.greedy for decoding in decodings),
            any(decoding.top_p < 1.0 and not decoding.greedy for decoding in decodings),
        )

    @classmethod
    def prepare_alike(cls, decoding: Decoding, rows: int, steps: int, device: torch.device) -> Sampler:
        """One decoding for all rows; a seed fixes the random numbers of all of them together."""
        sampler = cls.prepare([replace(decoding, seed=None)] * rows, steps, device)
        if decoding.seed is not None:
            generator = torch.Generator().manual_seed(decoding.seed)
            sampler.uniforms = torch.rand(rows, steps, generator=generator).to(device)
        return sampler

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone."""
        self.temperature, self.top_p = self.temperature[rows], self.top_p[rows]
        self.greedy, self.uniforms = self.greedy[rows], self.uniforms[rows]

    def draw(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Next token of each row, [rows], from float logits [rows, vocabulary]."""
        if self.all_greedy:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / self.temperature[:, None], -1)
        draw = _draw_nucleus if self.any_nucleus else _draw_whole
        drawn = draw(probabilities, self.top_p, self.uniforms[:, step])
        return torch.where(self.greedy, logits.argmax(-1), drawn)


def _draw_whole(probabilities: torch.Tensor, _top_p: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    return _invert(probabilities.cumsum(-1), uniforms, probabilities.sum(-1))


def _draw_nucleus(probabilities: torch.Tensor, top_p: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw from the smallest set of likeliest tokens whose probability reaches top_p."""
    values, indices = probabilities.topk(min(_TOP, probabilities.shape[-1]), -1)
    cumulative = values.cumsum(-1)
    if bool((cumulative[:, -1] < top_p).any()):
        values, indices = probabilities.sort(-1, descending=True)
        cumulative = values.cumsum(-1)
    nucleus = torch.where(cumulative - values < top_p[:, None], cumulative, 0.0).amax(-1)
    return indices.gather(-1, _invert(cumulative, uniforms, nucleus)[:, None])[:, 0]


def _invert(cumulative: torch.Tensor, uniforms: torch.Tensor, mass: torch.Tensor) -> torch.Tensor:
    """Inverse of the cumulative distribution at `uniforms` (in [0, 1)) of the first `mass` of it."""
    target = (uniforms * mass)[:, None]
    # Rounding may leave the target a hair above the last sum that counts.
    last = (cumulative < mass[:, None]).sum(-1)
    found = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return torch.minimum(found, last).clamp_(max=cumulative.shape[-1] - 1)
