"""What it costs that `store` waits for the disk: latency and rate of callers who store, with fsync before the answer or not.

python -m benchmarks.stores FOLDER     (on the disk of the outbox; no broker is needed)
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

from streams.emitter.emitter import Emitter, EmitterSettings
from streams.events.schema import Query, make_event_id

EVENTS = 20
"""Events that a caller emits before it stores: a small batch of POST /v1/events."""


def main() -> None:
    """Print one line for each mode and number of callers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an outbox is made in a new folder of this one")
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    for mode in ("interval", "store"):
        for callers in (1, 16):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                measure(Path(folder), mode, callers, arguments.seconds)


def measure(folder: Path, mode: str, callers: int, seconds: float) -> None:
    """Let `callers` threads emit and store for so many seconds; print how long a store took and how many events were stored."""
    settings = EmitterSettings.model_validate({"outbox_dir": folder, "outbox_sync": mode, "exit_timeout_s": 0})
    emitter = Emitter("127.0.0.1:1", settings)
    taken: list[float] = []
    end = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < end:
            for _ in range(EVENTS):
                emitter.emit(Query(event_id=make_event_id(), ts=time.time(), session_id="s", query="red shoes size 9"))
            began = time.perf_counter()
            if emitter.store(30):
                taken.append(time.perf_counter() - began)

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    emitter.close(0)
    taken.sort()
    p50, p99 = (1000 * taken[int(len(taken) * share)] for share in (0.5, 0.99))
    rate = EVENTS * len(taken) / seconds
    print(f"{mode:8} callers={callers:2} p50_ms={p50:.2f} p99_ms={p99:.2f} events_per_s={rate:.0f}")


if __name__ == "__main__":
    main()
