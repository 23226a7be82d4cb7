"""`queryloop broker`: one broker alone, with the topics made, for processes that are started by hand."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from queryloop.exits import Exit
from streams.brokers.broker import choose_broker
from streams.brokers.topics import create_topics

if TYPE_CHECKING:
    from queryloop.settings import Settings


def keep_broker(settings: Settings, port: int) -> int:
    """Run the broker of the settings until Ctrl-C or SIGTERM. Raises BrokerError when it cannot start."""
    signals = {signal.SIGINT, signal.SIGTERM}
    with choose_broker(settings.kafka, settings.data.dir, port) as broker:
        create_topics(broker.bootstrap, settings.kafka)
        print(broker.describe())
        print(f"export QUERYLOOP_KAFKA_BOOTSTRAP={broker.bootstrap}", flush=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            signal.sigwait(signals)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    print("stopped")
    return Exit.DONE
