"""LoRA adapters over tiny policies, published as an iteration publishes them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from trainers.policy.adapters import publish_update
from trainers.policy.pairs import Pair


def draw_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of random tokens."""
    rng = random.Random(seed)
    return [Pair(*(tuple(rng.randrange(4, 300) for _ in range(rng.randint(2, 9))) for _ in range(3))) for _ in range(count)]


def train_at_random(policy: Path, rank: int = 4, seed: int = 0, size: float = 1.0) -> Any:
    """A PeftModel over the policy in a folder, its update drawn at random instead of learned."""
    import torch
    from peft import get_peft_model

    from trainers.policy.aligners.dpo import load_start
    from trainers.policy.lora import describe_adapter

    model, _ = load_start(policy, "cpu")
    torch.manual_seed(seed)
    trained = get_peft_model(model, describe_adapter(model, rank))
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05 * size)
    return trained.eval()


def publish(trained: Any, start: Path, out: Path, max_rank: int = 64) -> Path:
    from transformers import AutoTokenizer

    out.mkdir(parents=True)
    publish_update(trained, AutoTokenizer.from_pretrained(start), start, draw_pairs(6), out, max_rank)
    return out
