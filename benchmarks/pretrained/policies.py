"""The policies of a run as engines, and whether every way to load one gives the same policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pretrained.plan import TASK
from serving.policy.engines import Decoding
from serving.policy.engines.transformers_engine import TransformersEngine
from trainers.policy.base import load_policy

PROBES = 8


def load_base(base: Path, device: str) -> TransformersEngine:
    """Return the base model as it is, which has not written a list yet: its tokenizer is told the form of one."""
    model, tokenizer = load_policy(base, device)
    return TransformersEngine(model.eval(), tokenizer)


def load_saved(folder: Path, device: str) -> TransformersEngine:
    """Return a policy as serving loads it."""
    return TransformersEngine.load(folder, device)


def measure_drift(folder: Path, queries: Sequence[str]) -> dict[str, float]:
    """Return for every trained policy the largest difference in nats a token between two ways to load it."""
    return {name: _compare(folder / name, queries[:PROBES]) for name in ("sft", "dpo")}


def _compare(policy: Path, queries: Sequence[str]) -> float:
    served, trained = load_saved(policy, "cpu"), load_base(policy, "cpu")
    prompts = [served.encode_prompt(TASK, query) for query in queries]
    worst = 0.0
    for prompt, one in zip(prompts, served.generate(prompts, Decoding(greedy=True)), strict=True):
        ids = [*prompt.token_ids, *one.token_ids]
        worst = max(worst, float((score(served.model, ids) - score(trained.model, ids)).abs().max()))
    return worst


def score(model: Any, ids: Sequence[int]) -> Any:
    """Return the log-probability in nats of each token but the first, given those before it; shape [tokens - 1]."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(list(ids))[1:, None])[:, 0]
