"""Tiny policies for tests: a Llama with random weights and a byte-level vocabulary learned from the given texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from serving.policy.list_form import AUX, SEP
from serving.policy.prompts import Prompt
from serving.policy.tasks import Task

PAD, EOS = "<PAD>", "<EOS>"
TEXTS = (
    "red running shoes",
    "cheap red shoes",
    "shoes for running on trails",
    "wide trail shoes",
    "how to clean white shoes",
) * 4


def make_tiny_tokenizer(texts: Iterable[str] = TEXTS, size: int = 320) -> Any:
    """A byte-level BPE tokenizer with <PAD>, <EOS>, <SEP> and <AUX>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, EOS, SEP, AUX],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    build: Any = PreTrainedTokenizerFast
    return build(tokenizer_object=core, pad_token=PAD, eos_token=EOS, padding_side="left")


def make_tiny_policy(
    folder: Path, texts: Iterable[str] = TEXTS, seed: int = 0, hidden: int = 32, layers: int = 2, spread: float = 0.3
) -> Path:
    """A policy folder as a trainer saves one. `spread`, the standard deviation of its weights, is enough for lists to differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tiny_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=spread,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    build: Any = LlamaForCausalLM
    build(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def encode_texts(texts: Sequence[str], task: Task, tokenizer: Any) -> list[Prompt]:
    """Prompts that are just these texts, whatever the task's template."""
    return [Prompt(task, text, tuple(tokenizer(text)["input_ids"])) for text in texts]
