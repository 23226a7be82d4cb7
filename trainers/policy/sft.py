"""Cold start by supervised fine-tuning: the base model learns the form of a list from annotated ones (G3), before any click.

A plain loop instead of TRL's SFTTrainer, which takes our token ids and learns the same, but took twice the CPU time on the demo's
policy, and with LoRA fails on the rows of `<SEP>` unless peft's wrapper of the output head is given a `bias`
(docs/log/learning.md).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from serving.policy.lists import encode_list
from serving.policy.prompt_text import render_prompt
from serving.policy.prompts import Prompter, find_context
from serving.policy.tasks import Task
from trainers.policy.base import load_policy
from trainers.policy.base_form import ListFormSetting, trained_rows
from trainers.policy.lora import describe_adapter
from trainers.policy.memory import CHECKPOINTING, Checkpointing, use_checkpointing
from trainers.policy.micro_batches import check_longest, split_lengths
from trainers.policy.ranks import add_up, copy_from_first, is_first, take_share
from trainers.progress import track

IGNORE = -100


class SftSettings(BaseModel):
    """Section `sft`. `lora_rank` 0 trains all weights; a large base wants 16 and a learning rate of 1e-4."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: float = Field(default=3.0, gt=0, description="Passes over the annotations.")
    batch: int = Field(default=32, ge=1, description="Annotations a step.")
    learning_rate: float = Field(default=1e-5, gt=0, description="Peak; warmed up linearly, then half a cosine to zero.")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps.")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's.")
    lora_rank: int = Field(default=0, ge=0, description="0 trains all weights.")
    max_tokens: int = Field(default=8192, ge=16, description="Tokens of one forward pass; a larger step is made of several.")
    checkpointing: Checkpointing = Field(default="auto", description=CHECKPOINTING)
    seed: int = Field(default=0, description="Of the order of the annotations and of LoRA's first weights.")


class Annotation(msgspec.Struct, frozen=True):
    """One annotated list; 0..N_ref of its items relate to the co-occurring queries in `related` (G17)."""

    task: str
    query: str
    items: tuple[str, ...]
    related: tuple[str, ...] = ()
    session: tuple[str, ...] = ()
    response: str | None = None
    auxiliary: dict[str, str] = {}


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of the response that is learned."""

    prompt: list[int]
    response: list[int]


def read_annotations(path: Path) -> list[Annotation]:
    """Read annotations from JSONL. Raises ValueError naming the file and the bad line, or saying that the file is empty."""
    decoder = msgspec.json.Decoder(Annotation)
    annotations = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            annotations.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{number}: not an annotation: {error}. Needed: task, query, items") from error
    if not annotations:
        raise ValueError(f"{path}: no annotation in it; one JSON object a line is needed: task, query, items")
    return annotations


def annotation_texts(annotations: Sequence[Annotation], tasks: Mapping[str, Task]) -> list[str]:
    """Return all prompts, items and auxiliary texts, from which a vocabulary can be learned."""
    texts: list[str] = []
    for one in annotations:
        texts.append(render_prompt(_task(one, tasks), one.query, one.related, one.session, one.response))
        texts.extend(one.items)
        texts.extend(one.auxiliary.values())
    return texts


def encode_examples(annotations: Sequence[Annotation], tasks: Mapping[str, Task], prompter: Prompter) -> list[Example]:
    """Return the token ids of all annotations. Raises ValueError for an unknown task or a list without the task's N items."""
    return [_encode(one, _task(one, tasks), prompter) for one in annotations]


def _encode(one: Annotation, task: Task, prompter: Prompter) -> Example:
    prompt = prompter.encode_prompt(task, one.query, one.related, one.session, one.response)
    return Example(list(prompt.token_ids), _response(one, task, prompter.tokenizer))


def _response(one: Annotation, task: Task, tokenizer: Any) -> list[int]:
    _check_texts(one, task)
    return encode_list(one.items, [one.auxiliary[name] for name in task.auxiliary], tokenizer)


def check_annotations(annotations: Sequence[Annotation], tasks: Mapping[str, Task]) -> None:
    """Raise ValueError for an unknown task, or a list without the task's N items and auxiliary texts."""
    for one in annotations:
        _check_texts(one, _task(one, tasks))


def _check_texts(one: Annotation, task: Task) -> None:
    if len(one.items) != task.n:
        raise ValueError(f"annotation of {one.query!r}: {len(one.items)} items, task {task.name} has n = {task.n}")
    if set(one.auxiliary) != set(task.auxiliary):
        raise ValueError(f"annotation of {one.query!r}: auxiliary {sorted(one.auxiliary)}, task {task.name} has {task.auxiliary}")


def _task(one: Annotation, tasks: Mapping[str, Task]) -> Task:
    if one.task not in tasks:
        known = ", ".join(sorted(tasks))
        raise ValueError(f"annotation of {one.query!r}: task {one.task!r} is not in the settings; known: {known}")
    return tasks[one.task]


def train_sft(
    base: str | Path,
    annotations: Sequence[Annotation],
    tasks: Mapping[str, Task],
    out: Path,
    settings: SftSettings,
    device: str,
    list_form: ListFormSetting = "auto",
) -> dict[str, float]:
    """Train `base` by cross-entropy on the responses (eq. 1) and save model and tokenizer into `out`, in float32.

    Of several ranks the first saves. Returns loss (nats a token, mean of the last tenth of the steps), steps, examples,
    seconds."""
    import torch

    started = time.monotonic()
    torch.manual_seed(settings.seed)
    model, tokenizer = load_policy(base, device, precise=settings.lora_rank == 0, list_form=list_form)
    examples = encode_examples(annotations, tasks, Prompter(tokenizer, find_context(model.config)))
    check_longest([_count(one) for one in examples], settings.max_tokens, "sft.max_tokens", "annotation")
    trained: Any = _adapted(model, tokenizer, settings) if settings.lora_rank else model
    tokens = min(settings.max_tokens, settings.batch * max(map(_count, examples)))
    if use_checkpointing(settings.checkpointing, base, tokens, model.device):
        trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    losses = _fit(trained, plan_batches(examples, settings), tokenizer.pad_token_id, settings)
    if is_first():
        finished = _merge(trained) if settings.lora_rank else model
        finished.save_pretrained(out)
        tokenizer.save_pretrained(out)
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "loss": sum(tail) / len(tail),
        "steps": float(len(losses)),
        "examples": float(len(examples)),
        "seconds": time.monotonic() - started,
    }


def _adapted(model: Any, tokenizer: Any, settings: SftSettings) -> Any:
    """Add LoRA to every linear layer; the rows of `<SEP>` and `<AUX>`, where lists have them, are trained as a whole."""
    from peft import get_peft_model

    return get_peft_model(model, describe_adapter(model, settings.lora_rank, trained_rows(model, tokenizer)))


def _merge(trained: Any) -> Any:
    """Return the whole model in float32: updates smaller than half a step of bf16 would be lost in a base of that type.

    On the CPU, since a device that had room for bf16 may have none for twice as much."""
    return trained.cpu().float().merge_and_unload()


def plan_batches(examples: Sequence[Example], settings: SftSettings) -> list[list[Example]]:
    """Return the batches of all epochs, in order. An epoch is shuffled, then grouped by similar length to save padding, and its
    batches are shuffled again."""
    order = random.Random(settings.seed)
    steps = math.ceil(settings.epochs * math.ceil(len(examples) / settings.batch))
    batches: list[list[Example]] = []
    while len(batches) < steps:
        shuffled = sorted(order.sample(examples, len(examples)), key=_count)
        epoch = [shuffled[start : start + settings.batch] for start in range(0, len(shuffled), settings.batch)]
        order.shuffle(epoch)
        batches.extend(epoch)
    return batches[:steps]


def _fit(model: Any, batches: Sequence[Sequence[Example]], pad: int, settings: SftSettings) -> list[float]:
    import torch

    weights = [one for one in model.parameters() if one.requires_grad]
    copy_from_first(weights)
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    warm = max(1, round(settings.warmup * len(batches)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warm, len(batches)))
    model.train()
    losses = []
    for batch in track(batches, "supervised fine-tuning", total=len(batches)) if is_first() else batches:
        losses.append(add_up(weights, add_gradients(model, batch, pad, settings.max_tokens)))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return losses


def add_gradients(model: Any, batch: Sequence[Example], pad: int, max_tokens: int) -> float:
    """Add the gradients of the batch's loss to those of the model, `max_tokens` in a forward pass at most; return the loss.

    Of several ranks each adds those of its share, and returns that part of the loss."""
    import torch

    answers = sum(len(one.response) for one in batch)
    share = take_share(batch)
    total = 0.0
    for rows in split_lengths([_count(one) for one in share], max_tokens):
        part = [share[row] for row in rows]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            loss = response_loss(model, *pad_batch(part, pad, model.device))
        weighted = loss * (sum(len(one.response) for one in part) / answers)
        weighted.backward()
        total += weighted.item()
    return total


def _count(one: Example) -> int:
    return len(one.prompt) + len(one.response)


def _rate(step: int, warm: int, total: int) -> float:
    """Return the rate: linear warm-up, then half a cosine down to zero, as a share of the learning rate."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def pad_batch(batch: Sequence[Example], pad: int, device: Any) -> tuple[Any, Any, Any]:
    """Return ids, attention mask and labels, each [rows, longest]; padded on the right, labels -100 outside the response."""
    import torch

    longest = max(map(_count, batch))
    ids = torch.full((len(batch), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for row, one in enumerate(batch):
        start, end = len(one.prompt), len(one.prompt) + len(one.response)
        ids[row, :end] = torch.tensor(one.prompt + one.response)
        mask[row, :end] = 1
        labels[row, start:end] = ids[row, start:end]
    return ids.to(device), mask.to(device), labels.to(device)


def response_loss(model: Any, ids: Any, mask: Any, labels: Any) -> Any:
    """Return the cross-entropy in nats a response token (eq. 1). Logits are computed for response tokens only: with a vocabulary
    of 150,000 the others would take most of the memory."""
    import torch

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = causal.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != IGNORE
    logits = causal.get_output_embeddings()(hidden[wanted])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted])
