"""The policies of a run as engines, and whether every way to load one gives the same policy."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.pretrained.plan import TASK
from serving.policy.engines import Decoding
from serving.policy.engines.transformers_engine import TransformersEngine

PROBES = 8
ADAPTER = "adapter_config.json"


def load_saved(folder: Path, device: str) -> TransformersEngine:
    """Return a policy as serving loads it; an adapter is merged into its base."""
    return TransformersEngine.load(folder, device)


def measure_drift(policy: Path, base: Path, queries: Sequence[str]) -> dict[str, float]:
    """Return how far two other ways to load a policy are from serving's, in nats a token at most: saved whole and loaded again,
    and, where it is an adapter over the policy in folder `base`, with the adapter beside it instead of merged."""
    served = load_saved(policy, "cpu")
    prompts = [served.encode_prompt(TASK, query) for query in queries[:PROBES]]
    written = served.generate(prompts, Decoding(greedy=True))
    probes = [[*prompt.token_ids, *one.token_ids] for prompt, one in zip(prompts, written, strict=True)]
    found = {"reloaded": _find_drift(served.model, _reload(served), probes)}
    if (policy / ADAPTER).is_file():
        found["adapter beside its base"] = _find_drift(served.model, _load_beside(base, policy), probes)
    return found


def _reload(engine: TransformersEngine) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        engine.model.save_pretrained(folder)
        engine.tokenizer.save_pretrained(folder)
        return load_saved(Path(folder), "cpu").model


def _load_beside(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(load_saved(base, "cpu").model, str(adapter), use_safetensors=True).eval()


def _find_drift(model: Any, other: Any, probes: Sequence[Sequence[int]]) -> float:
    return max(float((score_tokens(model, ids) - score_tokens(other, ids)).abs().max()) for ids in probes)


def score_tokens(model: Any, ids: Sequence[int]) -> Any:
    """Return the log-probability in nats of each token but the first, given those before it; shape [tokens - 1]."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, torch.tensor(list(ids))[1:, None])[:, 0]
