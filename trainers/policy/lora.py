"""The LoRA adapter with which SFT and DPO train a policy: on every linear layer but the output head."""

from __future__ import annotations

from typing import Any


def describe_adapter(model: Any, rank: int, rows: dict[str, list[int]] | None = None) -> Any:
    """Return peft's configuration; `rows` are trained as a whole, by the name of their layer."""
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        # GPT-2's layers have their weights transposed; peft warns where it finds that out by itself.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )
