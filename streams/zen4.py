"""Zen 4: on these processors numpy sorts 64-bit keys five times as fast without AVX-512.

Its AVX-512 sort uses an instruction that AMD's family 19h runs in microcode (github.com/numpy/x86-simd-sort, issue 6). numpy has
an AVX2 sort too, and a variable that tells it which features to leave; it is read once, when numpy is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

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
