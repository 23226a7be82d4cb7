"""Sampling of the next token of many rows at once, each with its own temperature, top-p and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from serving.policy.engines import Decoding


@dataclass(slots=True)
class Sampler:
    """Draws for a batch of rows. Tensors are [rows] (`uniforms`: [rows, steps, 2]) and lose rows together."""

    temperature: torch.Tensor
    top_p: torch.Tensor
    greedy: torch.Tensor
    uniforms: torch.Tensor
    all_greedy: bool
    any_nucleus: bool

    @classmethod
    def prepare(cls, decodings: Sequence[Decoding], steps: int, device: torch.device) -> Sampler:
        """One row a decoding. Every random number is drawn here, so a seeded row does not depend on its neighbours."""
        uniforms = torch.rand(len(decodings), steps, 2)
        for row, decoding in enumerate(decodings):
            if decoding.seed is not None:
                uniforms[row] = torch.rand(steps, 2, generator=torch.Generator().manual_seed(decoding.seed))
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
            sampler.uniforms = torch.rand(rows, steps, 2, generator=generator).to(device)
        return sampler

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows."""
        self.temperature, self.top_p = self.temperature[rows], self.top_p[rows]
        self.greedy, self.uniforms = self.greedy[rows], self.uniforms[rows]

    def draw(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Return the next token of each row, [rows], from float logits [rows, vocabulary]."""
        if self.all_greedy:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / self.temperature[:, None], -1)
        if self.any_nucleus:
            drawn = _draw_nucleus(probabilities, self.top_p, self.uniforms[:, step])
        else:
            drawn = _invert(probabilities.cumsum(-1), self.uniforms[:, step, 0])
        return torch.where(self.greedy, logits.argmax(-1), drawn)


def _draw_nucleus(probabilities: torch.Tensor, top_p: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Draw from the smallest set of likeliest tokens whose probability reaches top_p.

    A draw from all tokens is kept when it is in that set, which it mostly is; only the other rows are sorted and drawn again.
    Both ways together give each token of the set its share: p + (1 - mass) p / mass = p / mass."""
    drawn = _invert(probabilities.cumsum(-1), uniforms[:, 0])
    likelier = torch.where(probabilities > probabilities.gather(-1, drawn[:, None]), probabilities, 0.0).sum(-1)
    outside = (likelier >= top_p).nonzero()[:, 0]
    if len(outside):
        drawn[outside] = _draw_sorted(probabilities[outside], top_p[outside], uniforms[outside, 1])
    return drawn


def _draw_sorted(probabilities: torch.Tensor, top_p: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    values, indices = probabilities.sort(-1, descending=True)
    cumulative = values.cumsum(-1)
    nucleus = torch.where(cumulative - values < top_p[:, None], cumulative, 0.0).amax(-1)
    return indices.gather(-1, _invert(cumulative.clamp(max=nucleus[:, None]), uniforms)[:, None])[:, 0]


def _invert(cumulative: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """First column whose cumulative probability [rows, columns] exceeds the share `uniforms` (in [0, 1)) of the last one."""
    mass = cumulative[:, -1:]
    # Rounding may leave a target at the very end: the first column that reaches the whole mass is the last one to be drawn.
    target = torch.minimum(uniforms[:, None] * mass, torch.nextafter(mass, torch.zeros_like(mass)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]
