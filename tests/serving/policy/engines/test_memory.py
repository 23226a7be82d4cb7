"""What a policy takes to write lists, and what its machine or container has left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serving.policy.engines.memory import MemoryShort, ModelSize, check_serving, find_free_ram, generation_bytes, read_size
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.tasks import Task
from tests.support.models import make_tiny_policy

QWEN = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


def write_config(folder: Path, config: dict[str, object]) -> Path:
    import json

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_size_read_from_the_config_is_that_of_the_loaded_model(tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy")
    size, model = read_size(policy), TransformersEngine.load(policy, "cpu").model
    assert size.parameters == sum(one.numel() for one in model.parameters())
    linear = [one for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and name != "lm_head"]
    assert size.adapted == sum(one.in_features + one.out_features for one in linear)
    assert (size.layers, size.hidden, size.inner, size.query, size.key, size.context) == (2, 32, 64, 32, 16, 512)


@pytest.mark.parametrize(
    ("config", "parameters", "key"),
    [(QWEN, 596_049_920, 1024), ({"model_type": "gpt2"}, 124_439_808, 768)],
    ids=["qwen3", "gpt2"],
)
def test_the_size_of_other_kinds_of_models(tmp_path: Path, config: dict[str, object], parameters: int, key: int) -> None:
    size = read_size(write_config(tmp_path, config))
    assert (size.parameters, size.key) == (parameters, key)


def test_keys_and_values_of_16_prompts_with_4_beams_and_8_candidates_of_a_small_qwen_are_some_14_gb(tmp_path: Path) -> None:
    size = read_size(write_config(tmp_path, QWEN))
    once = 14e9
    assert 2 * once < generation_bytes(size, 16 * 4 * 8, 240, 2) < 2 * once * 1.3  # two caches for a moment, blocks, draws


def test_memory_grows_with_rows_and_tokens() -> None:
    size = ModelSize(0, 0, layers=2, hidden=8, inner=8, query=8, key=8, vocabulary=100, context=64)
    assert generation_bytes(size, 2, 32, 4) == 2 * generation_bytes(size, 1, 32, 4)
    assert generation_bytes(size, 1, 33, 4) > generation_bytes(size, 1, 32, 4)


def write_machine(
    folder: Path, groups: str, limits: dict[str, tuple[str, str, str]], names: tuple[str, str]
) -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup: 8 GB available, and for each folder of a control group a limit, what is used, its stat."""
    proc, cgroup = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable: 8000000 kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    for place, texts in limits.items():
        (cgroup / place).mkdir(parents=True, exist_ok=True)
        for name, text in zip((*names, "memory.stat"), texts, strict=True):
            (cgroup / place / name).write_text(text + "\n")
    return proc, cgroup


V2, V1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_without_a_limit_the_machine_s_available_memory_counts(tmp_path: Path) -> None:
    assert find_free_ram(*write_machine(tmp_path, "0::/\n", {}, V2)) == 8_000_000 * 1024
    unlimited = write_machine(tmp_path / "more", "0::/\n", {".": ("max", "5", "")}, V2)
    assert find_free_ram(*unlimited) == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("groups", "place", "names"),
    [("0::/job/run\n", "job", V2), ("4:memory:/job/run\n0::/\n", "memory/job", V1)],
    ids=["version 2", "version 1"],
)
def test_a_container_s_limit_counts_less_what_it_uses_but_for_files_that_can_be_dropped(
    tmp_path: Path, groups: str, place: str, names: tuple[str, str]
) -> None:
    """The limit is that of the group around the process's own, which has none."""
    limits = {place: ("4000000000", "1500000000", "anon 1\ninactive_file 500000000")}
    assert find_free_ram(*write_machine(tmp_path, groups, limits, names)) == 3_000_000_000


def test_this_machine_has_memory_left() -> None:
    assert find_free_ram() > 0


def test_a_policy_that_would_not_fit_beside_the_live_one_is_refused_with_the_batch_that_would(tmp_path: Path) -> None:
    policy, tasks, cpu = make_tiny_policy(tmp_path / "policy"), [Task(name="suggest")], torch.device("cpu")
    check_serving(policy, tasks, 32, cpu)
    with pytest.raises(
        MemoryShort, match=r"serving.max_batch = 1000000000 .* lower serving.max_batch from 1000000000 to"
    ) as refused:
        check_serving(policy, tasks, 10**9, cpu)
    fitting = int(str(refused.value).split(" to ")[-1].split(",")[0])
    check_serving(policy, tasks, fitting * 3 // 4, cpu)  # the machine's free memory moves
