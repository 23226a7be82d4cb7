"""The base model of a policy: a causal language model of a hub or a folder, or a small one made here.

A model hub gives the better start. Where none is reachable, `make_base` makes a small Llama and a byte-level BPE
vocabulary out of the annotation texts, so that the same code path runs on a laptop without a network.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.policy.examples import MAX_EXAMPLES
from serving.policy.list_form import AUX, SEP, store_form
from trainers.policy.base_folder import BaseFault, check_folder
from trainers.policy.base_form import ListFormSetting, fit_form, start_rows

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAD, EOS = "<pad>", "<eos>"
SCRATCH = "scratch"
WRITERS = ("CausalLM", "LMHead", "ConditionalGeneration")
"""What the class names of models that write text have in them."""


class PolicySettings(BaseModel):
    """Section `policy`: where the language model comes from, and its size where it is made from scratch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str = Field(default="Qwen/Qwen3-0.6B", description="Hub id, folder, or 'scratch' (made from the annotations).")
    annotations: Path | None = Field(default=None, description="JSONL of annotated lists for the cold start.")
    list_form: ListFormSetting = Field(
        default="auto",
        description="lines (a text a line), tokens (<SEP>, <AUX>), or auto: tokens for a base made from scratch, else lines.",
    )
    cold_start: Literal["auto", "sft", "prompt", "both"] = Field(
        default="auto",
        description="The first policy: sft learns the annotations, prompt shows some of them in every prompt and trains nothing, "
        "both does prompt and then sft. auto: sft with annotations, else prompt.",
    )
    shots: int = Field(default=4, ge=0, le=MAX_EXAMPLES, description="Annotations of each task that the start `prompt` shows.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where policies are trained and searched.")
    processes: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        default="auto", description="Processes that train (SFT, DPO); auto: one for each CUDA device, one on a CPU."
    )
    hidden: int = Field(default=128, ge=16, description="Width of a base made from scratch.")
    layers: int = Field(default=2, ge=1, description="Its layers.")
    heads: int = Field(default=4, ge=1, description="Its attention heads.")
    vocabulary: int = Field(default=1500, ge=300, description="Its tokens at most.")
    context: int = Field(default=512, ge=64, description="Its longest prompt and list together, in tokens.")
    seed: int = Field(default=0, description="Of its first weights.")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"policy.hidden = {self.hidden} is no multiple of twice policy.heads = {self.heads}")
        return self


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
    store_form(tokenizer, "lines" if settings.list_form == "lines" else "tokens")
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


def load_policy(
    base: str | Path, device: str, *, precise: bool = False, list_form: ListFormSetting = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, which knows the form of its lists and a padding token.

    The weights are bf16 on CUDA, else float32; `precise` keeps float32 there too, for training all of them: an update
    at a learning rate of 1e-5 is lost in bf16's eight bits.

    Weights are read from safetensors only. A folder is used as it is, any other name is loaded from the hub. Raises BaseFault,
    which names the setting, what is wrong and what to do. `device` is auto, cpu or cuda."""
    quiet()
    import torch

    from serving.policy.engines.loading import choose_dtype

    where = choose_device(device)
    tokenizer, new = check_base(base, list_form)
    model = _load_weights(base, torch.float32 if precise else choose_dtype(where))
    _widen(model, tokenizer, new)
    return model.to(where), tokenizer


def check_base(base: str | Path, list_form: ListFormSetting = "auto") -> tuple[Any, list[int]]:
    """Check all of a base but its weights' values. Raises BaseFault.

    Returns its tokenizer, which knows the form of its lists, and the ids of the list tokens that were new to it.

    So a base that could not be trained or served is refused in seconds, and not at the end of a training."""
    quiet()
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer

    check_folder(base)
    config: Any = _read(base, "config.json", lambda: AutoConfig.from_pretrained(base, trust_remote_code=False))
    names = list(getattr(config, "architectures", None) or ["CausalLM"])
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or not any(kind in name for name in names for kind in WRITERS):
        raise BaseFault(base, f'"model_type" = {config.model_type!r} in its config.json is no language model that writes text')
    if other := set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        raise BaseFault(base, f"its layers of kind {', '.join(sorted(other))} are not supported: only full attention is")
    tokenizer: Any = _read(base, "tokenizer.json", lambda: AutoTokenizer.from_pretrained(base, trust_remote_code=False))
    if tokenizer.eos_token is None:
        raise BaseFault(base, "its tokenizer has no eos_token, so lists could not end: set it in tokenizer_config.json")
    return tokenizer, fit_form(base, tokenizer, list_form)


def _read(base: str | Path, file: str, load: Callable[[], Any]) -> Any:
    """Return what a loader of transformers returns; whatever it raises becomes a BaseFault in one line."""
    try:
        return load()
    except Exception as error:
        if Path(base).is_dir():
            raise BaseFault(base, f"{Path(base) / file} cannot be used: {_first_line(error)}") from error
        raise BaseFault(
            base,
            f"is no folder here, and the hub gives no {file} of that name: {_first_line(error)}. Name a folder with a model, a "
            f"hub id that this machine can reach and may read, or {SCRATCH!r} to make a small one from policy.annotations",
        ) from error


def _load_weights(base: str | Path, dtype: torch.dtype) -> Any:
    """Return the model. A tensor of another shape and a missing one are faults: transformers would fill in random numbers."""
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            base,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )

    model, info = _read(base, "model.safetensors", load)
    for name, found, wanted in sorted(info["mismatched_keys"]):
        shapes = f"{tuple(found)} in model.safetensors, {tuple(wanted)} by config.json"
        raise BaseFault(base, f"the tensor {name} is {shapes}: weights and config are of two models; download both anew")
    if missing := sorted(info["missing_keys"]):
        raise BaseFault(base, f"its weights lack {len(missing)} tensors, such as {missing[0]}: download them anew")
    return model


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def _widen(model: Any, tokenizer: Any, new: Sequence[int]) -> None:
    """Give the tokenizer a padding token where it has none, and the model rows for `new` list tokens (it may have spare ones)."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if new:
        start_rows(model, tokenizer, new)
