"""AVX-512 is disabled for numpy on processors where it is slow, and on no others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streams.worker.tuning import AVX512_FEATURES, CPU_INFO, disable_slow_avx512

VARIABLE = "NPY_DISABLE_CPU_FEATURES"
SLOW = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\n"


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # so that the fixture restores it
    monkeypatch.delenv(VARIABLE)


def disabled_features(tmp_path: Path, text: str) -> str | None:
    """Return the features that are disabled on a machine with this /proc/cpuinfo."""
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(text)
    disable_slow_avx512(cpu_info)
    return os.environ.get(VARIABLE)


def test_a_slow_avx512_is_disabled(tmp_path: Path) -> None:
    assert disabled_features(tmp_path, SLOW) == AVX512_FEATURES


@pytest.mark.parametrize(
    ("was", "becomes"),
    [("AuthenticAMD", "GenuineIntel"), (": 25", ": 26"), ("avx512f", "sse2"), ("cpu family", "model"), (SLOW, "")],
)
def test_other_processors_keep_their_features(tmp_path: Path, was: str, becomes: str) -> None:
    assert disabled_features(tmp_path, SLOW.replace(was, becomes)) is None


def test_a_system_without_cpuinfo_is_left_alone(tmp_path: Path) -> None:
    disable_slow_avx512(tmp_path / "absent")
    assert VARIABLE not in os.environ


def test_a_variable_already_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "AVX512_SPR")
    assert disabled_features(tmp_path, SLOW) == "AVX512_SPR"


@pytest.mark.skipif(not CPU_INFO.exists() or "avx512f" not in CPU_INFO.read_text(), reason="no AVX-512 here")
def test_numpy_knows_these_features_by_these_names() -> None:
    """numpy warns of an unknown feature name."""
    program = f"""
import numpy._core._multiarray_umath as numpy
print([numpy.__cpu_features__[name] for name in {AVX512_FEATURES.split()}])
"""
    run = [sys.executable, "-W", "error", "-c", program]
    expected = subprocess.run(run, env={**os.environ, VARIABLE: AVX512_FEATURES}, capture_output=True, text=True, check=True)
    assert expected.stdout == "[False, False]\n"
