"""A policy of a few letters, so small that every list it can write can be enumerated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.list_form import AUX, SEP, FormName, store_form
from tests.support.models import EOS, PAD

SPACE, NEWLINE = "Ġ", "Ċ"


def make_letter_tokenizer(letters: str, form: FormName) -> Any:
    """One token a letter, a space, a newline, and the list tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, SEP, AUX, *letters, SPACE, NEWLINE])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    build: Any = PreTrainedTokenizerFast
    tokenizer = build(tokenizer_object=core, pad_token=PAD, eos_token=EOS, extra_special_tokens=[SEP, AUX], padding_side="left")
    store_form(tokenizer, form)
    return tokenizer


def make_letter_policy(folder: Path, letters: str = "abcd", form: FormName = "tokens", seed: int = 0) -> TransformersEngine:
    """A Llama with random weights over such a vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_letter_tokenizer(letters, form)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    build: Any = LlamaForCausalLM
    build(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return TransformersEngine.load(folder, "cpu")
