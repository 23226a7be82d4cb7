"""Child processes on this machine: start one, wait with a deadline until it answers, and stop it for certain."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

TAIL_BYTES = 4000
LINE_CHARS = 300
KEEP_BUFFERS = {"MALLOC_TRIM_THRESHOLD_": "268435456", "MALLOC_MMAP_THRESHOLD_": "134217728"}
"""Environment that keeps glibc from returning big buffers to the system and faulting them in again at every pass."""
START_PRECISION_S = 1.0
"""Start times that psutil reads twice differ by less: it adds the kernel's ticks to a time of boot that is adjusted."""
NON_EPHEMERAL_PORTS = (20_000, 32_000)
"""A range below the ports that Linux (from 32768) and other systems (from 49152) give to outgoing connections."""
# Runs in the child before its own program: the kernel kills the child when the thread that started it ends (PR_SET_PDEATHSIG =
# 1), and a parent that ended before is noticed. A preexec_fn could deadlock in a process with threads.
DIE_WITH_PARENT = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ProcessError(RuntimeError):
    """A child process ended early, did not answer in time, or could not be started; the text has the end of its log."""


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that was free on `host` a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def non_ephemeral_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return TCP ports, free on `host` a moment ago, that the system never chooses by itself: for servers that restart.

    An ephemeral port may belong to another process's outgoing connection by the time the server is back.
    """
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.randrange(*NON_EPHEMERAL_PORTS)
        if port not in chosen and port_is_free(host, port):
            chosen.append(port)
    return chosen


def port_is_free(host: str, port: int) -> bool:
    """Return whether `port` can be bound on `host` now (0 always can)."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def describe_busy_port(host: str, port: int) -> str:
    """Return "port P on HOST is in use", and by which process if this user may know."""
    import psutil

    try:
        holders = {
            one.pid
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port and one.pid is not None
        }
        names = [f"process {pid} ({psutil.Process(pid).name()})" for pid in sorted(holders)]
    except psutil.Error:  # another user's process, or one that has just ended
        names = []
    return f"port {port} on {host} is in use{' by ' if names else ''}{', '.join(names)}"


def find_start(pid: int) -> float | None:
    """Return when the process of this number started (seconds since the epoch); None where none runs, or only its remains."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def name_machine() -> str:
    """Return a name of this machine, or of the container where process numbers are its own: they mean nothing in another."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space.readlink() if space.is_symlink() else ''}".strip()


def is_running(pid: int, started: float | None) -> bool:
    """Return whether the process of this number runs, and is the one that started then: numbers are used again."""
    found = find_start(pid)
    return found is not None and (started is None or abs(found - started) < START_PRECISION_S)


def accepts(host: str, port: int) -> bool:
    """Return whether something accepts a TCP connection there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False


def die_with_parent() -> list[str]:
    """Return the words to put before a command, so that its process ends with this one."""
    if sys.platform != "linux":
        return []
    return [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid())]


class Child:
    """One running child process whose output goes to a log file; stopped on leaving the `with` block.

    It runs in a session of its own, so that Ctrl-C in the terminal reaches only its parent, which stops it in order. On Linux it
    is killed when the parent ends (more exactly: the thread that started it), so that no process is left running.
    """

    def __init__(self, name: str, command: Sequence[str | Path], log: Path, environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*die_with_parent(), *(str(part) for part in command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environ is None else dict(environ),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def tail(self) -> str:
        """Return the last lines of the log, for error texts."""
        return self.log.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").strip()

    def last_line(self) -> str:
        """Return the last line of the log as printable text, for a message of one line; empty where there is none."""
        lines = self.tail().replace("\r", "\n").splitlines() if self.log.exists() else []
        return "".join(one for one in lines[-1] if one.isprintable())[:LINE_CHARS] if lines else ""

    def wait_until(self, ready: Callable[[], bool], timeout_s: float, what: str, poll_s: float = 0.02) -> None:
        """Poll `ready` until it is true. Raises ProcessError when the process ends first or the time is over."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.sleep(poll_s) is not None:
                raise ProcessError(
                    f"{self.name} ended with code {self.returncode} before {what}; its log {self.log} ends:\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name}: not {what} after {timeout_s:g} s; its log {self.log} ends:\n{self.tail()}")

    def sleep(self, seconds: float) -> int | None:
        """Wait at most `seconds` for the process to end; return its exit code, None when it still runs."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """Send SIGTERM without waiting; harmless when the process has ended."""
        self._process.send_signal(signal.SIGTERM)

    def stop(self, grace_s: float = 10.0) -> int:
        """Send SIGTERM, then SIGKILL after `grace_s` seconds; return the exit code. Harmless when the process has ended."""
        if self._process.poll() is None:
            self.terminate()
            if self.sleep(grace_s) is None:
                self.kill()
        return self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
