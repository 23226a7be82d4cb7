"""How much memory a policy takes to write lists, and how much its device has: asked before any weight is loaded.

The size of a model is read from its config.json: the model is built without values, so its parameters are exact whatever its
kind. All figures are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.policy.prompts import find_context

if TYPE_CHECKING:
    import torch

    from serving.policy.tasks import Task

CACHE_COPIES = 2
"""Rows that have ended are dropped by copying those that stay: for a moment there are two caches."""
DRAW_BYTES = 24
"""A token's draw, for each row and entry of the vocabulary: logits, probabilities, their running sum, a mask."""
PROMPT_TOKENS = 512
"""Of a prompt in serving: few are longer, and a prompt's own length is known only when it comes."""
BLOCK = 32
"""Tokens by which a cache grows."""


class MemoryShort(RuntimeError):
    """A policy that does not fit into the memory of its device; the text names the setting to lower."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """`parameters` of the whole model; `adapted`: inputs and outputs of all linear layers but the head, so that LoRA of rank r
    trains r times as many numbers. The widths are numbers a token: of the hidden state, of a layer's feed-forward part, of its
    queries, of its keys (its values have as many)."""

    parameters: int
    adapted: int
    layers: int
    hidden: int
    inner: int
    query: int
    key: int
    vocabulary: int
    context: int


def read_size(policy: str | Path) -> ModelSize:
    """Return the size of a policy's folder or hub id, from its config alone. Raises OSError or ValueError naming it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(policy, trust_remote_code=False)
    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = build(config, trust_remote_code=False)
    text = config.get_text_config()
    size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    return ModelSize(
        parameters=sum(one.numel() for one in model.parameters()),
        adapted=sum(sum(shape) for shape in _linear_shapes(model)),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        inner=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        query=int(text.num_attention_heads) * size,
        key=int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads) * size,
        vocabulary=int(text.vocab_size),
        context=find_context(config),
    )


def _linear_shapes(model: Any) -> Iterator[tuple[int, ...]]:
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    for name, weight in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if weight.ndim == 2 and module not in ends and not name.endswith("wpe.weight"):
            yield tuple(weight.shape)


def generation_bytes(size: ModelSize, rows: int, tokens: int, element: int) -> int:
    """Return what the cache and the draws of `rows` lists take; `tokens`: of the longest prompt and list together;
    `element`: bytes of one number (2 for bf16)."""
    columns = -(-tokens // BLOCK) * BLOCK + BLOCK
    cache = 2 * size.layers * size.key * element * columns * rows
    return CACHE_COPIES * cache + DRAW_BYTES * size.vocabulary * rows


def check_serving(policy: Path, tasks: Iterable[Task], max_batch: int, device: torch.device) -> None:
    """Raise MemoryShort where a policy would not fit beside what is loaded, with `serving.max_batch` requests at once.

    `policy` is its folder; a prompt is taken to have PROMPT_TOKENS."""
    size, element, free = read_size(policy), choose_element(device), find_free(device)
    tokens = PROMPT_TOKENS + max((task.max_new_tokens for task in tasks), default=0)
    need = element * size.parameters + generation_bytes(size, max_batch, tokens, element)
    if need > free:
        one = generation_bytes(size, 1, tokens, element)
        fitting = (free - element * size.parameters) // one
        advice = f"lower serving.max_batch from {max_batch} to {fitting}" if fitting > 0 else "take a smaller policy.base"
        raise MemoryShort(
            f"{policy}: the policy needs some {need / 1e9:.1f} GB with serving.max_batch = {max_batch} and {free / 1e9:.1f} GB "
            f"of {device.type} memory are free beside what is loaded: {advice}, or give it more memory"
        )


def choose_element(device: torch.device) -> int:
    """Return the bytes of one weight of a policy that is loaded on this device to write lists."""
    from serving.policy.engines.loading import choose_dtype

    return choose_dtype(device).itemsize


def find_free(device: torch.device) -> int:
    """Return what this process can still take on the device: of a GPU its free memory, else the machine's or the container's."""
    if device.type != "cuda":
        return find_free_ram()
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused


def find_free_ram(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the least of what the machine has available and what the limits of this process's control groups leave."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    machine = int(fields["MemAvailable"].split()[0]) * 1024
    return min([machine, *_left_by_groups(proc, cgroup)])


def _left_by_groups(proc: Path, cgroup: Path) -> Iterator[int]:
    for folder in _group_folders(proc, cgroup):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (text := _read_text(folder / limit)).isdigit():
                stat = dict(line.split() for line in _read_text(folder / "memory.stat").splitlines())
                reclaimable = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
                yield max(0, int(text) - int(_read_text(folder / used) or 0) + reclaimable)


def _group_folders(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups and of those around them, of both versions."""
    for line in _read_text(proc / "self" / "cgroup").splitlines():
        _, kinds, name = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = cgroup / kinds
        own = root / name.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
