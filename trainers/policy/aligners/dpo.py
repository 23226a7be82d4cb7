"""Direct preference optimisation (G12, eq. 8) by TRL, with LoRA.

The reference model of an iteration is the policy that the iteration starts from: the champion in the folder `policy`.
With LoRA it is that model with the adapter switched off, so it cannot be another one. What was learned is saved as
`adapters` says; the next iteration starts from there with a fresh adapter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.policy.engines.adapters import find_base
from trainers.policy.adapters import publish_update
from trainers.policy.base import choose_device, load_policy, quiet
from trainers.policy.lora import describe_adapter
from trainers.policy.memory import CHECKPOINTING, Checkpointing, use_checkpointing
from trainers.policy.micro_batches import add_preference_gradients, check_longest
from trainers.policy.pairs import Pair
from trainers.policy.ranks import is_first
from trainers.progress import ProgressLog

LossType = Literal["sigmoid", "sft", "ipo", "hinge"]


class DpoSettings(BaseModel):
    """Section `dpo`. The loss is a weighted sum; the `sft` part on the chosen list keeps the list format (without it,
    sigmoid alone at a high learning rate breaks it)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beta: float = Field(default=0.1, gt=0, description="Weight of the distance to the reference.")
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak; warmed up, then half a cosine to zero.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs.")
    batch: int = Field(default=16, ge=1, description="Pairs a step.")
    lora_rank: int = Field(default=16, ge=1, description="Of the adapter on every linear layer.")
    max_rank: int = Field(
        default=64,
        ge=0,
        description="A lineage's adapter grows by `lora_rank` an iteration; beyond, whole weights are published.",
    )
    max_tokens: int = Field(default=8192, ge=32, description="Tokens of one forward pass; a larger step is made of several.")
    checkpointing: Checkpointing = Field(default="auto", description=CHECKPOINTING)
    loss_type: tuple[LossType, ...] = Field(default=("sigmoid", "sft"), min_length=1, description="TRL's losses.")
    loss_weights: tuple[float, ...] = Field(default=(1.0, 0.5), description="Their weights.")
    min_pairs: int = Field(default=32, ge=1, description="Fewer pairs than this are not learned from.")
    seed: int = Field(default=0, description="Of the order of the pairs and of the adapter's first weights.")

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        if len(self.loss_type) != len(self.loss_weights):
            raise ValueError(
                f"dpo.loss_type has {len(self.loss_type)} losses and dpo.loss_weights {len(self.loss_weights)} weights: "
                "each loss needs one"
            )
        if not any(weight > 0 for weight in self.loss_weights) or any(weight < 0 for weight in self.loss_weights):
            raise ValueError("dpo.loss_weights must have a weight over 0, and none under 0")
        return self


class TooFewPairs(ValueError):
    """The search left fewer preference pairs than `dpo.min_pairs`."""


def train_dpo(policy: Path, pairs: Sequence[Pair], out: Path, settings: DpoSettings, device: str) -> dict[str, float]:
    """Train the policy in folder `policy` on the pairs and save an adapter over its base, or whole weights, into `out`.

    Returns the rank of the adapter (0: whole weights), pairs, steps, loss, accuracy and margin (beta times the difference of
    the log-ratios, of the last tenth of the steps), seconds. Of several ranks the first saves, and returns the adapter's rank.
    Raises TooFewPairs."""
    if len(pairs) < settings.min_pairs:
        raise TooFewPairs(f"{len(pairs)} pairs, dpo.min_pairs = {settings.min_pairs}: raise search.prompts, or lower it")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(policy, pairs, Path(scratch), settings, device)
        trainer.train()
    measured = _summarise(trainer.state.log_history, len(pairs))
    if not is_first():
        return measured
    out.mkdir(parents=True, exist_ok=True)
    rank = publish_update(trainer.model, trainer.processing_class, policy, pairs, out, settings.max_rank)
    return measured | {"rank": float(rank), "seconds": time.monotonic() - started}


def make_trainer(policy: Path, pairs: Sequence[Pair], scratch: Path, settings: DpoSettings, device: str) -> Any:
    """Return TRL's DPOTrainer over the pairs' own token ids: TRL would tokenise the text again, and the same text may have
    other tokens than those that the policy wrote."""
    quiet()
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class IdsTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def get_train_dataloader(self) -> Any:
            loader = super().get_train_dataloader()
            see_whole_batches(loader)
            return loader

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            return add_preference_gradients(self, super().training_step, model, inputs, settings.max_tokens)

    model, tokenizer = load_start(policy, device)
    rows = [_row(pair) for pair in pairs]
    longest = [2 * (len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))) for row in rows]
    check_longest(longest, settings.max_tokens, "dpo.max_tokens", "pair (two prompts with their lists)")
    tokens = min(settings.max_tokens, settings.batch * max(longest))
    again = use_checkpointing(settings.checkpointing, policy, tokens, model.device)
    arguments = DPOConfig(**_arguments(settings, model.device.type, scratch), gradient_checkpointing=again)
    arguments._n_gpu = min(1, arguments.n_gpu)  # else one process would spread its batches over all devices in threads
    trainer = IdsTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=describe_adapter(model, settings.lora_rank),
        callbacks=[_bar()] if is_first() else [],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every step
    return trainer


def load_start(policy: Path, device: str) -> tuple[Any, Any]:
    """Return the whole model of a published policy, adapter or not, and its tokenizer."""
    if find_base(policy) is None:
        return load_policy(policy, device)
    from serving.policy.engines.loading import load_policy as load_published

    return load_published(policy, choose_device(device))


def _row(pair: Pair) -> dict[str, list[int]]:
    return {"prompt_ids": list(pair.prompt), "chosen_ids": list(pair.chosen), "rejected_ids": list(pair.rejected)}


def _arguments(settings: DpoSettings, kind: str, scratch: Path) -> dict[str, Any]:
    return {
        "output_dir": str(scratch),
        "beta": settings.beta,
        "learning_rate": settings.learning_rate,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch,
        "loss_type": list(settings.loss_type),
        "loss_weights": list(settings.loss_weights),
        "seed": settings.seed,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_length": None,
        "use_cpu": kind == "cpu",
        "bf16": kind == "cuda",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": kind == "cuda",
        "ddp_find_unused_parameters": False,
    }


def see_whole_batches(loader: Any) -> None:
    """Give each rank all pairs of a step, of which it takes its share; accelerate would repeat pairs to fill the last batch."""
    shard = loader.batch_sampler
    if hasattr(shard, "process_index"):  # as one process has them, there is no shard
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False


def _bar() -> Any:
    """Return a callback with a progress bar on standard error, or lines in a log; TRL's own goes to standard output."""
    from rich.console import Console
    from rich.progress import Progress
    from transformers import TrainerCallback

    console = Console(stderr=True)

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress = Progress(console=console, disable=not console.is_terminal, transient=True)
            self.progress.start()
            self.lines = ProgressLog("preference optimisation", state.max_steps)
            self.task = self.progress.add_task("preference optimisation", total=state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress.update(self.task, completed=state.global_step)
            if self.progress.disable:
                self.lines.show(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress.stop()

    return Bar()


def _summarise(history: Sequence[dict[str, Any]], pairs: int) -> dict[str, float]:
    steps = [one for one in history if "rewards/margins" in one]
    tail = steps[-max(1, len(steps) // 10) :]

    def mean(key: str) -> float:
        return sum(cast(float, one[key]) for one in tail) / len(tail)

    return {
        "pairs": float(pairs),
        "steps": float(len(steps)),
        "loss": mean("loss"),
        "accuracy": mean("rewards/accuracies"),
        "margin": mean("rewards/margins"),
    }
