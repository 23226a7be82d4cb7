"""What processes use, read from /proc: CPU seconds and resident memory, to see contention on a small machine."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
CORES = 2


@dataclass(frozen=True)
class Usage:
    """CPU seconds (user and system) of a process so far, at a moment of the monotonic clock."""

    cpu_s: float
    at_s: float


def read_usage(pid: int) -> Usage:
    """Return the CPU seconds of a process and of those that it started."""
    spent = 0.0
    for one in family(pid):
        with suppress(OSError):  # it has ended meanwhile
            spent += cpu_seconds(Path(f"/proc/{one}/stat").read_text())
    return Usage(spent, time.monotonic())


def read_stolen() -> Usage:
    """Return the CPU seconds that the host of this virtual machine took from our cores (steal); 0 where the system has none."""
    cores = psutil.cpu_times(percpu=True)
    return Usage(sum(getattr(cores[core], "steal", 0.0) for core in os.sched_getaffinity(0)), time.monotonic())


def cores_used(before: Usage, after: Usage) -> float:
    """Return the CPU seconds a second between two readings of the same process."""
    return (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s)


def family(pid: int) -> list[int]:
    """Return the process and those that it started."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return [pid]


def read_threads(pid: int) -> dict[int, float]:
    """Return the CPU seconds of each thread of a process and of those that it started, by its id."""
    threads = {}
    for one in family(pid):
        with suppress(OSError):  # it has ended meanwhile
            for folder in Path(f"/proc/{one}/task").iterdir():
                threads[int(folder.name)] = cpu_seconds((folder / "stat").read_text())
    return threads


def cpu_seconds(stat: str) -> float:
    """Return user and system time out of the text of /proc/PID/stat; the command's name may hold spaces and brackets."""
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and those that it started in MiB; what they share counts in each."""
    return sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in family(pid)) * PAGE / 2**20


def use_two_cores() -> str:
    """Pin this process and what it starts to two cores, as in the goals; return a description of the machine."""
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(allowed[:CORES]))
    return f"{_processor()}, {min(len(allowed), CORES)} of {len(allowed)} cores used, load {os.getloadavg()[0]:.1f} at the start"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"
