"""A policy of a few thousand weights over a toy world (animals and what people ask about them), for the trainers' tests."""

from __future__ import annotations

import random
from pathlib import Path

from serving.policy.tasks import Task
from trainers.policy.base import PolicySettings, make_base
from trainers.policy.sft import Annotation, SftSettings, annotation_texts, train_sft

ANIMALS = ("cat", "dog", "owl", "fox", "bee", "cow")
ASPECTS = ("food", "price", "names", "sleep", "games", "photos")
TASK = Task(name="suggest", n=2, template="{query}\n| {related}\n=>", max_item_tokens=6)
TASKS = {"suggest": TASK}
SMALL = PolicySettings(base="scratch", hidden=32, layers=2, heads=2, vocabulary=400, context=64)


def draw_annotations(count: int, seed: int = 0) -> list[Annotation]:
    """Lists of two different aspects of the animal that was asked about."""
    rng = random.Random(seed)
    return [_draw(rng) for _ in range(count)]


def _draw(rng: random.Random) -> Annotation:
    animal = rng.choice(ANIMALS)
    first, second = rng.sample(ASPECTS, 2)
    return Annotation("suggest", animal, (f"{animal} {first}", f"{animal} {second}"))


def make_policy(folder: Path, epochs: float = 24.0, count: int = 400) -> Path:
    """A policy that writes such lists: about 3 s on one core."""
    annotations = draw_annotations(count)
    base = make_base(annotation_texts(annotations, TASKS), folder / "base", SMALL)
    train_sft(base, annotations, TASKS, folder / "policy", SftSettings(epochs=epochs, batch=32, learning_rate=1e-2), "cpu")
    return folder / "policy"
