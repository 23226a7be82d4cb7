"""Takes shards that had to wait because another process had their file open, as soon as that process has closed it."""

from __future__ import annotations

from streams.store.held_shards import HeldShards
from streams.worker.transport import WorkerApp

TAKE_EVERY_S = 1.0


def take_waiting_shards(app: WorkerApp, shards: HeldShards) -> None:
    """Add a timer that opens the waiting shards which can be opened, and reads on their partitions where they stopped."""

    async def take() -> None:
        if shards.waiting and await shards.open_waiting():
            await app.consumer.perform_seek()

    app.timer(TAKE_EVERY_S, name="take-waiting-shards")(take)
