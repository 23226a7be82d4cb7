"""What a worker process does before its imports so that it starts soon and sorts fast: no pandas, no AVX-512 where that is slow.

pyarrow imports pandas, where it is installed, for the first list that becomes an array: 0.4 s or more between a worker's restart
and its first batch. On AMD's family 19h (Zen 4) numpy sorts 64-bit keys five times as fast without AVX-512, since its sort uses
an instruction that these processors run in microcode (github.com/numpy/x86-simd-sort, issue 6); numpy reads the variable that
tells it which features to leave once, when it is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

FAMILY = 0x19
FEATURES = "X86_V4 AVX512_ICL"
CPU_INFO = Path("/proc/cpuinfo")


def sort_without_avx512(cpu_info: Path = CPU_INFO) -> None:
    """Tell numpy, before it is imported, to leave AVX-512 where this machine has a slow one. A person's own choice stays."""
    if _has_slow_avx512(cpu_info):
        os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", FEATURES)


def _has_slow_avx512(cpu_info: Path) -> bool:
    try:
        lines = cpu_info.read_text().split("\n\n", 1)[0].splitlines()
    except OSError:  # another system; nothing is lost but time
        return False
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    is_family = told.get("vendor_id") == "AuthenticAMD" and told.get("cpu family") == str(FAMILY)
    return is_family and "avx512f" in told.get("flags", "").split()


class WithoutPandas(MetaPathFinder):
    """Makes `import pandas` fail at once."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raises ModuleNotFoundError for pandas; other modules are left to the other finders."""
        if name == "pandas":
            raise ModuleNotFoundError("this process does without pandas", name=name)
        return None


def do_without_pandas() -> None:
    """Let this process find no pandas from now on."""
    sys.meta_path.insert(0, WithoutPandas())
