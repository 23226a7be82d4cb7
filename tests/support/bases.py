"""Small bases of the kinds that `policy.base` may name, each with the vocabulary and the chat template of its kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.support.models import TEXTS

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


def make_chatml_tokenizer(template: str | None = None) -> Any:
    """A tokenizer shaped like Qwen3's: ChatML tokens are special, <think> and </think> are added but not special."""
    from tokenizers import AddedToken

    tokenizer = make_byte_tokenizer((END_OF_TEXT, IM_START, IM_END), IM_END, pad_token=END_OF_TEXT)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in ("<think>", "</think>")])
    tokenizer.chat_template = template
    return tokenizer
