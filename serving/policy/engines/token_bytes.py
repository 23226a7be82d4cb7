"""The bytes that each token of a vocabulary stands for, which the grammar of lists needs: one token may be half a character.

Two kinds of vocabulary are known: byte-level BPE (GPT-2's, and so Llama 3's, Qwen's, SmolLM's), whose tokens are written in 256
visible letters, one a byte; and SentencePiece's (Llama 2's, Gemma's, Mistral's), where `▁` is a space and `<0x0A>` a single byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from serving.policy.list_form import find_markers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def find_token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """Return the bytes of each token by its id, b"" for one that is no text: special, a marker such as `<think>`, or unused.

    Raises ValueError for a kind of vocabulary that is not known."""
    read = _choose_reading(tokenizer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    added, markers = tokenizer.added_tokens_decoder, find_markers(tokenizer)
    found = [b""] * (max((*vocabulary.values(), *added), default=-1) + 1)
    for token, index in vocabulary.items():
        found[index] = b"" if index in added else read(token)
    for index, one in added.items():
        found[index] = b"" if index in markers else one.content.encode()
    return found


def _choose_reading(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    kinds = set(_decoder_kinds(tokenizer))
    if "ByteLevel" in kinds:
        letters = {letter: byte for byte, letter in enumerate(_byte_letters())}
        return lambda token: bytes(letters[letter] for letter in token) if letters.keys() >= set(token) else b""
    if kinds & {"ByteFallback", "Metaspace"}:
        return _read_sentence_piece
    raise ValueError(
        f"lists cannot be written with this tokenizer: its decoder is {', '.join(sorted(kinds)) or 'missing'}, and only "
        "byte-level BPE (ByteLevel) and SentencePiece (ByteFallback, Metaspace) are known; choose another base"
    )


def _decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if decoder is not None:
        described = json.loads(decoder.__getstate__())
        yield from (str(one["type"]) for one in (described, *described.get("decoders", ())))


def _byte_letters() -> list[str]:
    """Return GPT-2's letter of each byte: itself where that can be seen, else the next of those from 256 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(unseen)) for byte in range(256)]


def _read_sentence_piece(token: str) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE, " ").encode()
