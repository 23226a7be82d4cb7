"""`queryloop broker`: a broker alone, its topics created, for processes that are started by hand."""

from __future__ import annotations

import argparse
import signal

from queryloop.exits import Exit
from queryloop.settings import Settings, read_settings
from streams.brokers.broker import Broker, choose_broker
from streams.brokers.topics import create_topics


def run(options: argparse.Namespace) -> int:
    """Run the broker of the settings until Ctrl-C or SIGTERM. Raises SettingsError, BrokerError, TopicError."""
    return run_broker(read_settings(options), options.port)


def run_broker(settings: Settings, port: int | None) -> int:
    """Start the broker at `port` (None: kafka.port, 0: any free one), create the topics, print its address, wait for a signal."""
    signals = {signal.SIGINT, signal.SIGTERM}
    with choose_broker(settings.kafka, settings.data.dir, port) as broker:
        create_topics(broker.bootstrap, settings.kafka)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before a script can read the address and end the broker
        try:
            _announce(broker, settings.kafka.topic)
            signal.sigwait(signals)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    print("stopped")
    return Exit.DONE


def _announce(broker: Broker, topic: str) -> None:
    print(broker.describe())
    print(f"export QUERYLOOP_KAFKA_BOOTSTRAP={broker.bootstrap}")
    print(f"topic {topic}; products and workers take that line into their environment; Ctrl-C stops it", flush=True)
