"""Tuning of a worker process before its other imports, for a quick start and fast sorting: no pandas, no slow AVX-512.

pyarrow imports pandas, if installed, for the first list that becomes an array: 0.4 s or more between a worker's restart and its
first batch. On AMD's family 19h (Zen 4) numpy sorts 64-bit keys five times as fast without AVX-512, since its sort uses an
instruction that these processors run in microcode (github.com/numpy/x86-simd-sort, issue 6). numpy reads the environment variable
that disables CPU features only once, when it is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

ZEN4_FAMILY = 0x19
AVX512_FEATURES = "X86_V4 AVX512_ICL"
CPU_INFO = Path("/proc/cpuinfo")


def disable_slow_avx512(cpu_info: Path = CPU_INFO) -> None:
    """Disable AVX-512 for numpy, not yet imported, if this machine's is slow. A variable that is already set stays."""
    if _has_slow_avx512(cpu_info):
        os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", AVX512_FEATURES)


def _has_slow_avx512(cpu_info: Path) -> bool:
    try:
        lines = cpu_info.read_text().split("\n\n", 1)[0].splitlines()
    except OSError:  # not Linux: only speed is lost
        return False
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    is_zen4 = fields.get("vendor_id") == "AuthenticAMD" and fields.get("cpu family") == str(ZEN4_FAMILY)
    return is_zen4 and "avx512f" in fields.get("flags", "").split()


class PandasBlocker(MetaPathFinder):
    """Makes `import pandas` fail at once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raise ModuleNotFoundError for pandas; return None, so that the other finders look, for every other module."""
        if name == "pandas":
            raise ModuleNotFoundError("pandas is blocked in this process", name=name)
        return None


def block_pandas() -> None:
    """Let every import of pandas in this process fail from now on."""
    sys.meta_path.insert(0, PandasBlocker())
