"""Loads a release into memory and warms it up, so that its first real batch is as fast as the next."""

from __future__ import annotations

from collections.abc import Mapping

from serving.policy.engines import Decoding
from serving.policy.tasks import Task
from serving.recommend import Request, Retriever, Scorer, recommend
from serving.releases.registry import Release
from serving.releases.slot import Bundle

_WARM_TOKENS = 4


def load_bundle(release: Release, tasks: Mapping[str, Task], device: str, *, predict: bool = True, max_batch: int = 1) -> Bundle:
    """Load policy, index and predictor of a verified release, and answer one short request of each task.

    Raises MemoryShort before anything is loaded where a batch of `max_batch` would not fit, and whatever a broken artifact
    raises: OSError, ValueError, KeyError, RuntimeError."""
    from serving.policy.engines.loading import choose_device
    from serving.policy.engines.memory import check_serving
    from serving.policy.engines.transformers_engine import TransformersEngine

    check_serving(release.policy, tasks.values(), max_batch, choose_device(device))
    engine = TransformersEngine.load(release.policy, device)
    bundle = Bundle(release, engine, _load_index(release), _load_predictor(release, device) if predict else None)
    warm(bundle, tasks)
    return bundle


def import_engine() -> None:
    """Import what loading a release needs (some seconds) while the process still waits for its first one."""
    import transformers.modeling_utils  # noqa: F401

    import serving.policy.engines.transformers_engine  # noqa: F401


def warm(bundle: Bundle, tasks: Mapping[str, Task]) -> None:
    """Answer one request of each task through the same path as a real one, cut short."""
    decoding = Decoding(max_new_tokens=_WARM_TOKENS)
    requests = [Request(task, "warm up", decoding) for task in tasks.values()]
    recommend(bundle.release.id, bundle.engine, bundle.index, bundle.predictor, requests)


def _load_index(release: Release) -> Retriever | None:
    if release.index is None:
        return None
    from index.retrieve import Index

    return Index.load(release.index)


def _load_predictor(release: Release, device: str) -> Scorer | None:
    if release.predictor is None:
        return None
    from serving.policy.engines.loading import choose_device
    from serving.predictor.scorer import Predictor

    return Predictor.load(release.predictor, str(choose_device(device)))
