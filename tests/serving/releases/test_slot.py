"""The slot: a promoted release goes live between two batches; one that cannot changes nothing and says why."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from serving.metrics import ServingMetrics
from serving.policy.engines import Decoding
from serving.policy.tasks import Task
from serving.recommend import Request, recommend
from serving.releases import registry
from serving.releases.loader import load_bundle
from serving.releases.registry import Release
from serving.releases.slot import Bundle, NoReleaseError, Slot
from streams.emitter.counters import Counters
from streams.runtime import artifacts
from streams.runtime.metric_families import read_process
from tests.support.models import make_tiny_policy
from tests.support.prometheus import read_families
from tests.support.scripted_engine import ScriptedEngine


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Loader:
    """Builds bundles of scripted engines and keeps the niceness of the threads that asked."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.loads: list[str] = []

    def __call__(self, release: Release) -> Bundle:
        self.loads.append(release.id)
        if self.error:
            raise self.error
        return Bundle(release, ScriptedEngine())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with three releases of the same small artifact, none of them promoted."""
    policy = artifacts.publish(tmp_path / "artifacts", "policy", lambda folder: put(folder / "weights", b"w"), {})
    for _ in range(3):
        registry.publish(tmp_path, policy=policy.path)
    return tmp_path


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_nothing_is_live_before_a_promotion(data: Path) -> None:
    slot = Slot(data, Loader(), ServingMetrics())
    assert not slot.check()
    assert slot.release is None
    with pytest.raises(NoReleaseError, match="no release is promoted yet"), slot.lease():
        pass


def test_a_promoted_release_goes_live_once(data: Path) -> None:
    loader, metrics = Loader(), ServingMetrics()
    slot = Slot(data, loader, metrics)
    registry.promote(data, "r0000")
    assert slot.check()
    assert not slot.check()
    assert (slot.release, slot.error, loader.loads) == ("r0000", None, ["r0000"])
    assert metrics.registry.get_sample_value("queryloop_swaps_total") == 1
    assert named_releases(metrics) == ["r0000"]


def test_the_metrics_name_the_live_release_alone(data: Path) -> None:
    metrics = ServingMetrics()
    slot = Slot(data, Loader(), metrics)
    assert named_releases(metrics) == []
    for name in ("r0000", "r0002", "r0001", "r0000"):
        registry.promote(data, name)
        slot.check()
        assert named_releases(metrics) == [name]


def test_where_packages_are_missing_no_release_is_loaded_and_the_reason_names_what_to_install(data: Path) -> None:
    slot = Slot(data, Loader(), ServingMetrics(), missing="models need torch: pip install it")
    registry.promote(data, "r0000")
    slot.start()
    slot.stop()
    assert (slot.release, slot.loading, slot.error, slot.reason) == (None, None, None, "models need torch: pip install it")


def test_no_scrape_during_swaps_names_two_releases_or_none(data: Path) -> None:
    metrics, over = ServingMetrics(), threading.Event()
    slot = Slot(data, Loader(), metrics)
    registry.promote(data, "r0000")
    slot.check()
    seen: list[list[str]] = []

    def scrape() -> None:
        while not over.is_set():
            seen.append(named_releases(metrics))

    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        for name in ("r0001", "r0002", "r0000") * 5:
            registry.promote(data, name)
            slot.check()
        over.set()
        scraping.result()
    assert {len(names) for names in seen} == {1}


def named_releases(metrics: ServingMetrics) -> list[str]:
    families = read_families(metrics.render(Counters(), read_process(Path())).decode())
    return [str(dict(labels)["release"]) for _, labels in families["queryloop_release_info"][2]]


def test_a_batch_keeps_the_release_it_started_with(data: Path) -> None:
    slot = Slot(data, Loader(), ServingMetrics())
    registry.promote(data, "r0000")
    slot.check()
    with slot.lease() as bundle:
        old = weakref.ref(bundle)
        registry.promote(data, "r0001")
        assert slot.check()
        assert bundle.release.id == "r0000"
        assert bundle.leases == 1
        with slot.lease() as other:
            assert other.release.id == "r0001"
    del bundle
    assert old() is None, "the old release is freed when its last batch has ended"


def test_a_release_that_fails_to_load_changes_nothing_and_says_why_once(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader, metrics, clock = Loader(), ServingMetrics(), Clock()
    slot = Slot(data, loader, metrics, retry_s=30.0, clock=clock)
    registry.promote(data, "r0000")
    slot.check()
    loader.error = KeyError("model.layers.0")
    registry.promote(data, "r0001")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert not slot.check()
            clock.now += 31.0
    assert slot.release == "r0000"
    assert slot.error == "release r0001 cannot go live: KeyError: 'model.layers.0'"
    assert len(caplog.records) == 1
    assert metrics.registry.get_sample_value("queryloop_release_load_failed") == 1
    assert loader.loads == ["r0000", "r0001", "r0001", "r0001"]


def test_a_failed_release_is_tried_again_only_after_a_while(data: Path) -> None:
    loader, clock = Loader(), Clock()
    slot = Slot(data, loader, ServingMetrics(), retry_s=30.0, clock=clock)
    loader.error = OSError("disk")
    registry.promote(data, "r0000")
    slot.check()
    clock.now += 29.0
    slot.check()
    assert loader.loads == ["r0000"]
    loader.error = None
    clock.now += 2.0
    assert slot.check()
    assert slot.error is None


def test_another_promotion_is_tried_at_once(data: Path) -> None:
    loader, metrics = Loader(), ServingMetrics()
    slot = Slot(data, loader, metrics)
    loader.error = OSError("disk")
    registry.promote(data, "r0000")
    slot.check()
    loader.error = None
    registry.promote(data, "r0001")
    assert slot.check()
    assert (slot.release, slot.error, metrics.registry.get_sample_value("queryloop_release_load_failed")) == ("r0001", None, 0)


def test_going_back_to_the_live_release_clears_the_error(data: Path) -> None:
    loader = Loader()
    slot = Slot(data, loader, ServingMetrics())
    registry.promote(data, "r0000")
    slot.check()
    loader.error = OSError("disk")
    registry.promote(data, "r0001")
    slot.check()
    assert slot.error
    registry.rollback(data)
    assert not slot.check()
    assert slot.error is None


def test_a_damaged_release_is_never_loaded(data: Path) -> None:
    loader = Loader()
    slot = Slot(data, loader, ServingMetrics())
    weights = next(data.glob("artifacts/policy/*/weights"))
    weights.chmod(0o644)
    weights.write_bytes(b"x")
    registry.promote(data, "r0000")
    assert not slot.check()
    assert loader.loads == []
    assert slot.error is not None
    assert str(weights) in slot.error
    with pytest.raises(NoReleaseError, match="checksum"), slot.lease():
        pass


def test_a_damaged_rollout_keeps_the_live_release(data: Path) -> None:
    slot = Slot(data, Loader(), ServingMetrics())
    registry.promote(data, "r0000")
    slot.check()
    (data / "releases" / "rollout.json").write_text("{")
    assert not slot.check()
    assert slot.release == "r0000"
    assert slot.error is not None
    assert "rollout.json" in slot.error


def test_the_watcher_sees_promotions_and_stops(data: Path) -> None:
    swapped = threading.Event()

    def load(release: Release) -> Bundle:
        swapped.set()
        return Bundle(release, ScriptedEngine())

    slot = Slot(data, load, ServingMetrics(), poll_s=0.01)
    slot.start()
    registry.promote(data, "r0000")
    assert swapped.wait(10)
    slot.stop()
    assert slot.release == "r0000"


def test_swaps_under_load_with_real_policies(tmp_path: Path) -> None:
    """Batches run without a pause while releases go live; each answer is what its stamped release writes alone."""
    task = Task(name="suggest", n=2, template="{query} =>", max_item_tokens=4)
    requests = [Request(task, query, Decoding(greedy=True)) for query in ("red shoes", "trail", "wide")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in range(3):
        policy = artifacts.publish(tmp_path / "artifacts", "policy", filler(seed), {})
        registry.publish(tmp_path, policy=policy.path)
    metrics = ServingMetrics()
    slot = Slot(tmp_path, lambda release: load_bundle(release, {"suggest": task}, "cpu"), metrics)
    registry.promote(tmp_path, "r0000")
    assert slot.check()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        batches = pool.submit(lambda: list(answer_until(stop, slot, requests)))
        for name in ("r0001", "r0002", "r0000"):
            registry.promote(tmp_path, name)
            assert slot.check(), slot.error
        stop.set()
        answered = batches.result()
    torch.set_num_threads(threads)
    assert metrics.registry.get_sample_value("queryloop_swaps_total") == 4
    expected = {
        name: texts_of(load_bundle(registry.read_release(tmp_path, name), {}, "cpu"), requests) for name in names(answered)
    }
    assert len(expected) > 1
    for release, texts in answered:
        assert texts == expected[release]


def filler(seed: int) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        make_tiny_policy(folder, seed=seed)

    return fill


def answer_until(stop: threading.Event, slot: Slot, requests: list[Request]) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    while not stop.is_set():
        with slot.lease() as bundle:
            yield bundle.release.id, texts_of(bundle, requests)


def texts_of(bundle: Bundle, requests: list[Request]) -> list[tuple[int, ...]]:
    prompts = [bundle.engine.encode_prompt(request.task, request.query) for request in requests]
    return [one.token_ids for one in bundle.engine.generate(prompts, requests[0].decoding)]


def names(answered: list[tuple[str, list[tuple[int, ...]]]]) -> set[str]:
    return {release for release, _ in answered}


def test_warming_answers_each_task_shortly(data: Path) -> None:
    engine = ScriptedEngine()
    bundle = Bundle(registry.read_release(data, "r0000"), engine)
    from serving.releases.loader import warm

    warm(bundle, {name: Task(name=name) for name in ("suggest", "hint")})
    assert [len(batch) for batch in engine.batches] == [2]
    assert recommend("r0000", engine, None, None, []) == []


class SlowLoader(Loader):
    """A loader that shows what the slot says while it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.slot: Slot | None = None
        self.said: list[tuple[str | None, str]] = []

    def __call__(self, release: Release) -> Bundle:
        assert self.slot is not None
        self.said.append((self.slot.loading, self.slot.reason))
        return super().__call__(release)


def test_a_release_that_is_loading_is_said_to_load_and_for_how_long(data: Path) -> None:
    loader, clock = SlowLoader(), Clock()
    slot = loader.slot = Slot(data, loader, ServingMetrics(), clock=clock)
    registry.promote(data, "r0000")
    slot._thread = threading.Thread(target=lambda: None)
    slot.check()
    assert loader.said == [("r0000", "release r0000 is loading, for 0 s now")]
    assert (slot.release, slot.loading, slot.error) == ("r0000", None, None)


def test_after_a_restart_the_promoted_release_is_loading_before_the_first_look(data: Path) -> None:
    registry.promote(data, "r0001")
    begun, go_on = threading.Event(), threading.Event()

    def load(release: Release) -> Bundle:
        begun.set()
        go_on.wait(10)
        return Bundle(release, ScriptedEngine())

    slot = Slot(data, load, ServingMetrics())
    slot.start()
    try:
        assert slot.loading == "r0001"
        assert begun.wait(10)
        with pytest.raises(NoReleaseError, match="release r0001 is loading"), slot.lease():
            pass
    finally:
        go_on.set()
        slot.stop()


def test_a_release_that_failed_is_named_with_the_reason_also_while_it_is_tried_again(data: Path) -> None:
    loader, clock = SlowLoader(), Clock()
    slot = loader.slot = Slot(data, loader, ServingMetrics(), retry_s=30, clock=clock)
    loader.error = OSError("cut weights")
    registry.promote(data, "r0000")
    slot.check()
    assert (slot.loading, "release r0000 cannot go live: OSError: cut weights" in slot.reason) == (None, True)
    clock.now += 31
    slot.check()
    assert "cut weights" in loader.said[-1][1]
    loader.error = None
    registry.promote(data, "r0001")
    slot.check()
    assert loader.said[-1] == ("r0001", "release r0001 is loading, for 0 s now")
    assert slot.release == "r0001"
