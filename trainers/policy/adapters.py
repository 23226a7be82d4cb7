"""What an iteration publishes: a LoRA adapter over the base of its lineage, not a copy of all weights.

Each iteration trains a fresh adapter over the policy that it starts from, which may itself be an adapter over a base. The two
low-rank updates are put side by side: of ranks r and s they are one adapter of rank r + s over the same base, exactly their
sum. So a policy is always one adapter and one base, however many iterations it has seen; nothing is rounded into the base's
weights on the way, and updates too small for one are not lost. When the rank grows over `dpo.max_rank`, whole weights in
float32 are published and are the base of the next ones.

A cold start publishes whole weights also with LoRA: it may have added rows to the vocabulary, and the base has to be in the
data folder in any case.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.policy.engines.adapters import Probe, find_base, load_merged, rate_probes, write_record
from serving.policy.examples import read_examples, write_examples
from trainers.policy.pairs import Pair

WEIGHTS = "adapter_model.safetensors"
PROBES = 4


def publish_update(trained: Any, tokenizer: Any, start: Path, pairs: Sequence[Pair], out: Path, max_rank: int) -> int:
    """Save the policy `trained`, a PeftModel over the policy in folder `start`, into `out`, which is a folder.

    Returns the rank of its adapter, 0 where whole weights were saved. The first pairs are its probes."""
    base = find_base(start) or start
    updates = join_updates(_read_saved(start), read_update(trained))
    rank = max(len(update) for name, update in updates.items() if name.endswith("lora_A.weight"))
    tokenizer.save_pretrained(out)
    write_examples(out, read_examples(start))
    if rank <= max_rank:
        _write_adapter(trained, updates, rank, base, out, _rate(trained, pairs))
        return rank
    with tempfile.TemporaryDirectory() as folder:
        _write_adapter(trained, updates, rank, base, Path(folder), ())
        _load_whole(Path(folder)).save_pretrained(out)
    return 0


def read_update(trained: Any) -> dict[str, Any]:
    """Return a PeftModel's low-rank matrices in float32, A [r, inputs] and B [outputs, r], by name; B is scaled, so their product
    is what is added to the weights."""
    from peft import get_peft_model_state_dict

    config = trained.peft_config["default"]
    scale = config.lora_alpha / config.r
    found = {name: weight.detach().float().cpu() for name, weight in get_peft_model_state_dict(trained).items()}
    return {name: weight * scale if name.endswith("lora_B.weight") else weight for name, weight in found.items()}


def join_updates(before: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    """Return the one low-rank update that is the sum of two; the first may be empty."""
    import torch

    if not before:
        return update
    return {
        name: torch.cat([before[name], weight], dim=1 if name.endswith("lora_B.weight") else 0) for name, weight in update.items()
    }


def _read_saved(policy: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(policy / WEIGHTS) if find_base(policy) is not None else {}


def _write_adapter(trained: Any, updates: dict[str, Any], rank: int, base: Path, out: Path, probes: Sequence[Probe]) -> None:
    from safetensors.torch import save_file

    save_file({name: weight.contiguous() for name, weight in updates.items()}, out / WEIGHTS)
    config = copy.deepcopy(trained.peft_config["default"])
    config.r = config.lora_alpha = rank  # B is scaled already
    config.inference_mode = True
    config.save_pretrained(out)
    trained.config.save_pretrained(out)
    write_record(out, base, str(trained.dtype).removeprefix("torch."), probes)


def _rate(trained: Any, pairs: Sequence[Pair]) -> list[Probe]:
    asked = [Probe(tuple(pair.prompt), tuple(pair.chosen), 0.0) for pair in pairs[:PROBES]]
    rated = rate_probes(trained.eval(), asked)
    return [Probe(probe.prompt, probe.answer, logprob) for probe, logprob in zip(asked, rated, strict=True)]


def _load_whole(adapter: Path) -> Any:
    import torch

    return load_merged(adapter, torch.float32)
