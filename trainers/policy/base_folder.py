"""Checks the folder that `policy.base` names before anything is loaded or trained: what is missing or cut is said at once.

Only names, headers and small JSON files are read, so the check takes milliseconds whatever the size of the model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

CONFIG, INDEX, WEIGHTS, ADAPTER = "config.json", "model.safetensors.index.json", "model.safetensors", "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
METADATA = "__metadata__"
LFS_POINTER = b"version https://git-lfs"
MAX_HEADER_BYTES = 100_000_000
DONE = "Name a folder with config.json, tokenizer.json and model.safetensors, a hub id, or 'scratch'"


class BaseFault(ValueError):
    """A base model that cannot be used; the text names the setting, the file and what to do."""

    def __init__(self, base: str | Path, fault: str) -> None:
        super().__init__(f"policy.base = {str(base)!r}: {fault}")


def check_folder(base: str | Path) -> None:
    """Check a base that is a folder, or looks like a path. Raises BaseFault; a hub's id is not looked up."""
    try:
        folder = Path(base).expanduser()
        there = folder.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseFault(base, f"is no path: {error}. {DONE}") from error
    if not str(base).strip():
        raise BaseFault(base, f"is empty. {DONE}")
    if not there:
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
    if ADAPTER in names:  # with it, transformers would load the base that the adapter names, not this folder
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
    """Yield what is wrong with the weights: one file, or the parts that an index names where there is none."""
    if WEIGHTS in names:
        yield from _safetensors_faults(folder / WEIGHTS, ())
    elif INDEX in names:
        yield from _part_faults(folder, _read_json(folder / INDEX))
    else:
        pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
        others = f"{pickled[0]} is not read, since unpickling runs code; convert it to safetensors" if pickled else DONE
        yield f"{folder / WEIGHTS} is missing: {others}"


def _part_faults(folder: Path, index: dict[str, Any] | str) -> Iterator[str]:
    if isinstance(index, str):
        yield index
        return
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
        yield f"{folder / INDEX} names no file for each tensor. Download it again"
        return
    for part in sorted(set(places.values())):
        if not (folder / part).exists():
            yield f"{folder / part} is missing, {INDEX} names it: download it"
        yield from _safetensors_faults(folder / part, [name for name, other in places.items() if other == part])


def _safetensors_faults(path: Path, tensors: Iterable[str]) -> Iterator[str]:
    """Yield what is wrong with a file of weights: its header, its length against the header's, tensors that are not in it."""
    try:
        header, start = read_header(path)
        wanted = start + max((_end_of(header[name]) for name in header if name != METADATA), default=0)
    except (ValueError, RecursionError) as error:
        yield f"{path} is cut or damaged ({error}): download it again"
    except OSError as error:
        yield f"{path} cannot be read: {error.strerror}. Download it again"
    else:
        if (length := path.stat().st_size) != wanted:
            yield f"{path} is cut: {length} bytes, its header says {wanted}. Download it again"
        yield from (
            f"{path} lacks the tensor {name}, {INDEX} says it is there: download both again"
            for name in tensors
            if name not in header
        )


def _end_of(tensor: Any) -> int:
    """Return where a tensor ends, in bytes after the header. Raises ValueError for an entry that does not say so."""
    match tensor:
        case {"data_offsets": [int(), int(end)]}:
            return end
    raise ValueError("an entry of its header does not say where the tensor lies")


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
