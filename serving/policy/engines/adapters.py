"""Policies that are published as a LoRA adapter: some hundredth of the bytes of the weights they were trained over.

The folder has the adapter, its tokenizer and config, and a record of its base: where its folder is, the checksums of its weights,
and what the policy thought of a few lists when it was published. Engines need whole weights, so they are merged at loading: in
float32, since an update that is smaller than half a step of bf16 is lost where it is added to a weight in bf16.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streams.runtime.artifacts import digest

if TYPE_CHECKING:
    import torch

ADAPTER, RECORD = "adapter_config.json", "adapter_base.json"
BOUND_FLOAT32, BOUND_ROUNDED = 1e-3, 0.1
"""Nats a token by which a merged policy may rate a probe otherwise: with float32 on both sides, and where one had bf16."""


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A list for a prompt, as token ids, and its log-probability in nats under the policy as it was published."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprob: float


class AdapterRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`base`: the base's folder, relative to the adapter's, so that a data folder can be moved; `weights`: SHA-256 of its
    safetensors files by name; `dtype`: of the weights that the probes were rated with."""

    base: str
    weights: dict[str, str]
    dtype: str
    probes: tuple[Probe, ...]


def find_base(policy: Path) -> Path | None:
    """Return the folder of an adapter's base, None for a policy that has its own weights. Raises ValueError naming the file."""
    return (policy / _read_record(policy).base).resolve() if (policy / ADAPTER).is_file() else None


def write_record(policy: Path, base: Path, dtype: str, probes: Sequence[Probe]) -> None:
    """Write the record of an adapter over the weights in folder `base`."""
    place = os.path.relpath(base.resolve(), policy.resolve())
    record = AdapterRecord(place, _hash_weights(base), dtype, tuple(probes))
    (policy / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))


def load_merged(policy: Path, dtype: torch.dtype) -> Any:
    """Return the model of an adapter's folder, on the CPU: merged in float32, then rounded to `dtype`.

    Raises ImportError without peft, FileNotFoundError for a missing base, ValueError for a base that is not the one it was
    trained over."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"{policy} is a LoRA adapter: pip install 'queryloop[cpu]' (or gpu) to load it") from error
    import torch
    from transformers import AutoModelForCausalLM

    base = _check_base(policy)
    model: Any = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    return PeftModel.from_pretrained(model, str(policy), use_safetensors=True).merge_and_unload().to(dtype)


def check_probes(policy: Path, model: Any) -> None:
    """Raise ValueError where the merged model does not rate the recorded lists as the published policy did."""
    record = _read_record(policy)
    dtype = str(model.dtype).removeprefix("torch.")
    bound = BOUND_FLOAT32 if dtype == record.dtype == "float32" else BOUND_ROUNDED
    for number, (probe, found) in enumerate(zip(record.probes, rate_probes(model, record.probes), strict=True)):
        if not abs(found - probe.logprob) <= bound * len(probe.answer):
            raise ValueError(
                f"{policy}: merged into its base in {dtype} it gives probe {number} of {RECORD} the log-probability {found:.3f}, "
                f"when it was published {probe.logprob:.3f}; {bound} nats a token are allowed: it is not the same policy"
            )


def rate_probes(model: Any, probes: Sequence[Probe]) -> list[float]:
    """Return the log-probability of each probe's list after its prompt."""
    import torch

    found = []
    for probe in probes:
        ids = torch.tensor([[*probe.prompt, *probe.answer]], device=model.device)
        with torch.inference_mode():
            scores = model(input_ids=ids).logits[0, len(probe.prompt) - 1 : -1].float().log_softmax(-1)
        found.append(float(scores.gather(1, ids[0, len(probe.prompt) :, None]).sum()))
    return found


def _check_base(policy: Path) -> Path:
    record = _read_record(policy)
    base = (policy / record.base).resolve()
    if not base.is_dir():
        raise FileNotFoundError(f"{policy}: its base policy {base} is not a folder on this machine")
    if (found := _hash_weights(base)) != record.weights:
        changed = sorted(name for name in found.keys() | record.weights.keys() if found.get(name) != record.weights.get(name))
        raise ValueError(f"{policy}: {base / changed[0]} is not the weights that it was trained over ({RECORD} has the checksum)")
    return base


def _hash_weights(base: Path) -> dict[str, str]:
    return {path.name: digest(path) for path in sorted(base.glob("*.safetensors"))}


def _read_record(policy: Path) -> AdapterRecord:
    try:
        return msgspec.json.decode((policy / RECORD).read_bytes(), type=AdapterRecord)
    except FileNotFoundError:
        raise ValueError(f"{policy / RECORD}: missing, so the base of this LoRA adapter is not known for certain") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{policy / RECORD}: cannot be read: {error}") from error
