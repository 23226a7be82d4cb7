"""The memory preflight: what is refused, which settings it says to lower, and that the stage fits once they are lowered."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.policy.memory import (
    Knob,
    MemoryFault,
    Stage,
    adapt,
    advise,
    check_memory,
    is_out_of_memory,
    lower,
    use_checkpointing,
    within_memory,
)

CPU = torch.device("cpu")
GB = 1_000_000_000


def need(values: Mapping[str, Any]) -> int:
    """1 GB of weights and 1 GB for each 10 rows."""
    return GB + GB * int(values["search.at_once"]) * int(values["search.beam"]) // 10


SEARCH = Stage("candidate search", (lower("search.at_once", 16), lower("search.beam", 4)), need)


def test_a_stage_that_fits_goes_on() -> None:
    check_memory(SEARCH, "cpu", SEARCH.bytes)


def test_a_stage_that_does_not_fit_is_refused_with_each_setting_that_would_do_alone() -> None:
    with pytest.raises(MemoryFault) as refused:
        check_memory(SEARCH, "cuda", 3 * GB)
    assert str(refused.value) == (
        "the candidate search needs some 7.4 GB and 3.0 GB of cuda memory are free: "
        "lower search.at_once from 16 to 5, or lower search.beam from 4 to 1"
    )


def test_where_no_setting_would_do_alone_all_are_lowered_together() -> None:
    text = advise(SEARCH, 13 * GB // 10)
    assert text == "lower search.at_once from 16 to 3 and lower search.beam from 4 to 1"


def test_where_nothing_would_do_that_is_said() -> None:
    assert advise(SEARCH, GB // 2) == (
        "no settings fit, 1.1 GB is the least: take a smaller policy.base, or a device with more memory"
    )


def test_lora_is_advised_where_all_weights_are_trained_and_a_lower_rank_where_it_is_not() -> None:
    assert adapt("sft.lora_rank", 0).others == (16,)
    assert list(adapt("sft.lora_rank", 3).others) == [2, 1]
    assert Knob("sft.lora_rank", 0, (16,)).describe(16) == "set sft.lora_rank = 16"


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 200))
def test_whatever_is_advised_fits(at_once: int, beam: int, tenths: int) -> None:
    stage = Stage("search", (lower("search.at_once", at_once), lower("search.beam", beam)), need)
    free = tenths * GB // 10
    if stage.bytes <= free:
        return
    now = {"search.at_once": at_once, "search.beam": beam}
    text = advise(stage, free)
    if text.startswith("no settings fit"):
        assert need(dict.fromkeys(now, 1)) > free
        return
    for way in text.split(", or "):
        changed = {words[1]: int(words[-1]) for words in (change.split() for change in way.split(" and "))}
        assert need(now | changed) <= free


def test_memory_that_runs_out_in_a_stage_ends_it_with_the_same_advice() -> None:
    small = Stage("candidate search", (lower("search.at_once", 16),), lambda values: int(values["search.at_once"]) * 1000)
    words = r"memory ran out during the candidate search: .* lower search.at_once from 16 to 10"
    with pytest.raises(MemoryFault, match=words), within_memory(small, CPU):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_of_a_stage_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError, match="shapes"), within_memory(Stage("gate", (), lambda _: 0), CPU):
        raise RuntimeError("shapes do not match")


def test_the_error_that_torch_really_raises_when_a_process_may_have_no_more_is_known() -> None:
    """In a process of its own, whose address space is limited."""
    code = (
        "import resource, torch\n"
        "from trainers.policy.memory import is_out_of_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (16 * 10**9,) * 2)\n"
        "try:\n    torch.empty(10**11, dtype=torch.uint8)\n"
        "except Exception as error:\n    print(type(error).__name__, is_out_of_memory(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "RuntimeError True\n"
    assert is_out_of_memory(MemoryError())


def test_checkpointing_is_chosen_by_hand_or_by_what_is_free(tmp_path: Any) -> None:
    from tests.support.models import make_tiny_policy

    policy = make_tiny_policy(tmp_path / "policy")
    assert use_checkpointing("on", policy, 1, CPU)
    assert not use_checkpointing("off", policy, 10**12, CPU)
    assert not use_checkpointing("auto", policy, 1000, CPU)
    assert use_checkpointing("auto", policy, 10**9, CPU)
