"""Loading a policy folder: merged weights, or a LoRA adapter over a local base. Safetensors only, nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from serving.policy.engines.adapters import check_probes, find_base, load_merged
from serving.policy.list_form import find_form

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def choose_device(device: str) -> torch.device:
    """Return the device of a name; `auto` is CUDA where there is one, else the CPU. Raises ValueError for a missing one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device}: this machine has no CUDA device that torch can use; say auto or cpu")
    return chosen


def choose_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def load_policy(path: Path, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load policy and tokenizer of a folder. Raises FileNotFoundError, OSError or ValueError naming the folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no policy folder")
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **_LOCAL)
    find_form(tokenizer)
    model = _load_weights(path, device) if find_base(path) is None else _load_adapter(path, device)
    _check_attention(model, path)
    return model.eval().requires_grad_(False), tokenizer


def _load_weights(path: Path, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = choose_dtype(device)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, **_LOCAL
    )
    return model.to(device)


def _load_adapter(path: Path, device: torch.device) -> Any:
    model = load_merged(path, choose_dtype(device)).to(device).eval()
    check_probes(path, model)
    return model


def _check_attention(model: Any, path: Path) -> None:
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"{path}: layers of kind {', '.join(sorted(kinds - {'full_attention'}))} are not supported by this engine"
        )
