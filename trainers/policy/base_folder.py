"""Checks the folder that `policy.base` names before anything is loaded or trained: what is missing or cut is said at once.

Only names, headers and small JSON files are read, so the check takes milliseconds whatever the size of the model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG, INDEX, WEIGHTS, ADAPTER = "config.json", "model.safetensors.index.json", "model.safetensors", "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000
DONE = "Name a folder with config.json, tokenizer.json and model.safetensors, a hub id, or 'scratch'"


class BaseFault(ValueError):
    """A base model that cannot be used; the text names the setting, the file and what to do."""

    def __init__(self, base: str | Path, fault: str) -> None:
        super().__init__(f"policy.base = {str(base)!r}: {fault}")


def check_folder(base: str | Path) -> None:
    """Check a base that is a folder, or looks like a path. Raises BaseFault; a hub's id is not looked up."""
    folder = Path(base).expanduser()
    if not folder.exists():
        if looks_like_path(str(base)):
            raise BaseFault(base, f"the folder does not exist. {DONE}")
        return
    if not folder.is_dir():
        raise BaseFault(base, f"is a file, not a folder. {DONE}")
    for fault in _faults(folder):
        raise BaseFault(base, fault)


def looks_like_path(base: str) -> bool:
    """Return whether a base can only be meant as a path: a hub's id is NAME or OWNER/NAME."""
    return base.startswith(("/", ".", "~")) or base.count("/") > 1 or "\\" in base


def _faults(folder: Path) -> Iterator[str]:
    """Yield what is wrong with a folder; the first fault is the one to be mended first."""
    names = {path.name for path in folder.iterdir()}
    if not names:
        yield f"the folder is empty. {DONE}"
    if ADAPTER in names and CONFIG not in names:
        yield f"{folder / ADAPTER}: the folder is a LoRA adapter; merge it into its base model and save that"
    if CONFIG not in names:
        yield f"{folder / CONFIG} is missing: copy it from where the model comes from"
    if isinstance(config := _read_json(folder / CONFIG), str):
        yield config
    elif not config.get("model_type"):
        yield f'{folder / CONFIG} has no "model_type": it is no configuration of a model'
    if not names & set(TOKENIZERS):
        yield f"there is no tokenizer ({folder / TOKENIZERS[0]}): copy tokenizer.json and tokenizer_config.json to it"
    yield from (f"{folder / name} {POINTER}" for name in sorted(names) if _is_pointer(folder / name))
    if not isinstance(_read_json(folder / TOKENIZERS[0]) if TOKENIZERS[0] in names else {}, dict):
        yield str(_read_json(folder / TOKENIZERS[0]))
    yield from _weight_faults(folder, names)


POINTER = "is a pointer of Git LFS, not the file itself: run `git lfs pull` in that folder, or download the file"


def _is_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


def _read_json(path: Path) -> dict[str, Any] | str:
    """Return a JSON object, or what is wrong with the file."""
    if _is_pointer(path):
        return f"{path} {POINTER}"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{path} cannot be read: {error}. Download it again"
    return found if isinstance(found, dict) else f"{path} is no JSON object. Download it again"


def _weight_faults(folder: Path, names: set[str]) -> Iterator[str]:
    if INDEX in names:
        index = _read_json(folder / INDEX)
        parts = set(map(str, index.get("weight_map", {}).values())) if isinstance(index, dict) else set()
        if not parts:
            yield index if isinstance(index, str) else f"{folder / INDEX} names no file. Download it again"
        yield from (f"{folder / part} is missing, {INDEX} names it: download it" for part in sorted(parts - names))
    elif WEIGHTS not in names:
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        others = f"{pickled[0]} is not read, since unpickling runs code; convert it to safetensors" if pickled else DONE
        yield f"{folder / WEIGHTS} is missing: {others}"
    for path in sorted(folder.glob("model*.safetensors")):
        if fault := _safetensors_fault(path):
            yield fault


def _safetensors_fault(path: Path) -> str | None:
    """Return what is wrong with a file of weights: its header, or its length against the header's."""
    try:
        header, start = read_header(path)
    except ValueError as error:
        return f"{path} is cut or damaged ({error}): download it again"
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    length, wanted = path.stat().st_size, start + max(ends, default=0)
    return f"{path} is cut: {length} bytes, its header says {wanted}. Download it again" if length != wanted else None


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file and where its tensors begin, in bytes. Raises ValueError."""
    with path.open("rb") as file:
        first = file.read(8)
        if len(first) < 8 or not 2 <= (length := struct.unpack("<Q", first)[0]) <= MAX_HEADER_BYTES:
            raise ValueError("it has no header of safetensors")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length
