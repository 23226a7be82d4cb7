"""The base model of a policy: a causal language model of a hub or a folder, or a small one made here.

A model hub gives the better start. Where none is reachable, `make_base` makes a small Llama and a byte-level BPE
vocabulary out of the annotation texts, so that the same code path runs on a laptop without a network.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.policy.lists import AUX, SEP, add_list_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAD, EOS = "<pad>", "<eos>"
SCRATCH = "scratch"


class PolicySettings(BaseModel):
    """Section `policy`: where the language model comes from, and its size where it is made from scratch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field(default="Qwen/Qwen3-0.6B", description="Hub id, folder, or 'scratch' (made from the annotations).")
    annotations: Path | None = Field(default=None, description="JSONL of annotated lists for the cold start.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where policies are trained and searched.")
    hidden: int = Field(default=128, ge=16, description="Width of a base made from scratch.")
    layers: int = Field(default=2, ge=1, description="Its layers.")
    heads: int = Field(default=4, ge=1, description="Its attention heads.")
    vocabulary: int = Field(default=1500, ge=300, description="Its tokens at most.")
    context: int = Field(default=512, ge=64, description="Its longest prompt and list together, in tokens.")
    seed: int = Field(default=0, description="Of its first weights.")


_SILENT = (
    "HF_HUB_DISABLE_TELEMETRY",
    "DO_NOT_TRACK",
    "TQDM_DISABLE",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_DATASETS_DISABLE_PROGRESS_BARS",
)


def quiet() -> None:
    """Keep transformers, datasets and TRL off the terminal and send no telemetry; to be called before they are imported."""
    for name in _SILENT:
        os.environ[name] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("transformers", "datasets", "trl", "accelerate", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if loaded := sys.modules.get("transformers.utils.logging"):
        loaded.disable_progress_bar()


def choose_device(device: str) -> torch.device:
    """Return serving's choice for auto, cpu or cuda, without importing torch before the call."""
    from serving.policy.engines.loading import choose_device as choose

    return choose(device)


def make_base(texts: Iterable[str], out: Path, settings: PolicySettings) -> Path:
    """Write an untrained Llama and its vocabulary, learned from `texts`, into the folder `out`."""
    quiet()
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = learn_vocabulary(texts, settings.vocabulary)
    torch.manual_seed(settings.seed)
    build: Any = LlamaForCausalLM
    model = build(_llama(settings, tokenizer))
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def learn_vocabulary(texts: Iterable[str], size: int) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE of at most `size` tokens that has no unknown character. A text's first word is the same
    token as that word inside a text, so an item reads alike in a prompt and in a list."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=[PAD, EOS, SEP, AUX], initial_alphabet=alphabet, show_progress=False),
    )
    wrap: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerBase = wrap(
        tokenizer_object=raw, pad_token=PAD, eos_token=EOS, extra_special_tokens=[SEP, AUX], padding_side="left"
    )
    return wrapped


def _llama(settings: PolicySettings, tokenizer: PreTrainedTokenizerBase) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        intermediate_size=3 * settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def load_policy(base: str | Path, device: str, *, precise: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, which knows `<SEP>`, `<AUX>` and a padding token.

    The weights are bf16 on CUDA, else float32; `precise` keeps float32 there too, for training all of them: an update
    at a learning rate of 1e-5 is lost in bf16's eight bits.

    Weights are read from safetensors only. A folder is used as it is, any other name is loaded from the hub; an OSError
    of it is raised again with the setting's name. `device` is auto, cpu or cuda."""
    quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from serving.policy.engines.loading import choose_dtype

    where = choose_device(device)
    dtype = torch.float32 if precise else choose_dtype(where)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(base)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
    except OSError as error:
        raise OSError(
            f"policy.base = {str(base)!r} cannot be loaded: {error}. Name a folder with a model, a hub id that can be "
            f"reached, or {SCRATCH!r} to make a small one from policy.annotations"
        ) from error
    _widen(model, tokenizer)
    return model.to(where), tokenizer


def _widen(model: Any, tokenizer: Any) -> None:
    """Add the list tokens and a padding token to a tokenizer that lacks them, and embedding rows for them to the model."""
    add_list_tokens(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
