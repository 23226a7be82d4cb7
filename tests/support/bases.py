"""Small bases of the kinds that `policy.base` may name, each with the vocabulary and the chat template of its kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.support.models import TEXTS
from tests.support.toy_policy import SMALL
from trainers.policy.base import make_base

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

QWEN3_TEMPLATE = (
    "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.role != 'system' %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
"""What Qwen3's template makes of a system and a user turn."""
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2-135M-Instruct's template."""


def make_byte_tokenizer(special: Iterable[str], eos: str, texts: Iterable[str] = TEXTS, size: int = 320, **options: Any) -> Any:
    """A byte-level BPE tokenizer without a list token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(texts, trainer)
    build: Any = PreTrainedTokenizerFast
    return build(tokenizer_object=core, eos_token=eos, **options)


def make_chatml_tokenizer(template: str | None = None, texts: Iterable[str] = TEXTS) -> Any:
    """A tokenizer shaped like Qwen3's: ChatML tokens are special, <think> and </think> are added but not special."""
    from tokenizers import AddedToken

    tokenizer = make_byte_tokenizer((END_OF_TEXT, IM_START, IM_END), IM_END, texts, pad_token=END_OF_TEXT)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("<think>", "</think>")])
    tokenizer.chat_template = template
    return tokenizer


def make_base_of_kind(kind: str, folder: Path, texts: Sequence[str]) -> Path:
    """An untrained base in `folder`: "scratch" (as made by `policy.base` = "scratch"), "qwen3" (spare rows behind its vocabulary,
    a chat that can think), "untied" (an output head of its own, SmolLM2's chat) or "gpt2" (no chat, learned positions)."""
    import torch
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, Qwen3ForCausalLM

    if kind == "scratch":
        return make_base(texts, folder, SMALL)
    torch.manual_seed(0)
    chat = {"qwen3": QWEN3_TEMPLATE, "untied": SMOLLM2_TEMPLATE, "gpt2": None}[kind]
    tokenizer = make_chatml_tokenizer(chat, texts)
    if kind == "gpt2":
        tokenizer.eos_token = tokenizer.bos_token = END_OF_TEXT
    classes: Any = {"qwen3": Qwen3ForCausalLM, "untied": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}
    classes[kind](make_config(kind, tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_config(kind: str, tokenizer: Any) -> Any:
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    if kind == "gpt2":
        return GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=4, **ends)
    build: Any = Qwen3Config if kind == "qwen3" else LlamaConfig
    return build(
        vocab_size=len(tokenizer) + (64 if kind == "qwen3" else 0),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=kind == "qwen3",
        **({"head_dim": 8} if kind == "qwen3" else {}),
        **ends,
    )
