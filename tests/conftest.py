"""Brokers for the tests: every test that asks for `bootstrap` runs on the embedded broker and on real Apache Kafka.

Where Java or Maven is missing the `kafka` leg is skipped with its reason; with REQUIRE_KAFKA=1 (CI) that is a failure.
QUERYLOOP_KAFKA_BOOTSTRAP adds the leg `external`, a Docker engine the leg `container`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from streams.brokers.broker import Broker, EmbeddedBroker, ExternalBroker, KafkaBroker
from streams.brokers.jars import missing_tool

with warnings.catch_warnings():
    # kafka-python reads its message schemas with a function that Python 3.11 deprecates and later versions restored.
    warnings.simplefilter("ignore", DeprecationWarning)
    # With our patches, so that no client of a test leaves a socket to a later one.
    import streams.brokers.clients  # noqa: F401

# What hypothesis draws is the same at every run, so that a tree passes or fails alike everywhere; `explore` draws anew each time.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

# The legs use the variable themselves; to the code under test it must not look like a setting of the person who runs the tests.
EXTERNAL = os.environ.pop("QUERYLOOP_KAFKA_BOOTSTRAP", "")
# As the launcher sets them, before any test imports torch: spinning threads make the toy policies three times slower.
for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1"}.items():
    os.environ.setdefault(name, value)
# A shell starts background jobs with Ctrl-C ignored, and what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
KAFKA_IMAGE = "apache/kafka:4.3.1"


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name longer bytes by their argument: compressed ones have the time in them, and test processes must name a test alike."""
    return argname if isinstance(val, bytes) and len(val) > 15 else None


def docker_answers() -> bool:
    """Whether a Docker engine runs here."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0


LEGS = ["embedded", "kafka", *(["external"] if EXTERNAL else []), *(["container"] if docker_answers() else [])]


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[Broker]:
    """One embedded broker for the whole run."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def can_run_kafka() -> None:
    """Skip where real Kafka cannot run."""
    if reason := missing_tool():
        if os.environ.get("REQUIRE_KAFKA"):
            pytest.fail(f"REQUIRE_KAFKA is set, but real Kafka cannot run: {reason}")
        pytest.skip(f"real Kafka cannot run here: {reason}")


@pytest.fixture(scope="session")
def kafka_broker(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """One real Apache Kafka for the whole run."""
    with KafkaBroker(tmp_path_factory.mktemp("kafka-broker")) as broker:
        yield broker


@pytest.fixture(scope="session")
def external_broker() -> Iterator[Broker]:
    """The broker that QUERYLOOP_KAFKA_BOOTSTRAP names."""
    with ExternalBroker(EXTERNAL) as broker:
        yield broker


@pytest.fixture(scope="session")
def container_broker() -> Iterator[Broker]:
    """Kafka in a container, where a Docker engine answers."""
    from testcontainers.kafka import KafkaContainer

    with KafkaContainer(KAFKA_IMAGE) as container, ExternalBroker(container.get_bootstrap_server()) as broker:
        yield broker


@pytest.fixture(scope="session", params=LEGS)
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn, shared by the whole run: use topics and groups of your own (`unique`)."""
    chosen: Broker = request.getfixturevalue(f"{request.param}_broker")
    return chosen


@pytest.fixture
def bootstrap(broker: Broker) -> str:
    """host:port of each broker in turn."""
    return broker.bootstrap


@pytest.fixture
def unique() -> str:
    """A name that no other test and no other run uses, for topics and groups on a shared broker."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def shared_logs() -> dict[str, Path]:
    """The real logs of ../shared/data by name, where the checkout has them beside it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    return {path.name.split(".")[0]: path for path in sorted(folder.glob("*.jsonl.gz"))}


@pytest.fixture(scope="session")
def ubi_log() -> Path:
    """The real log of User Behavior Insights in ../shared/data, where the checkout has it beside it."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "ubi_chorus.ndjson.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretrained model, saved once in a run (some 15 s, 540 MB); for tests marked `full`, which only read it."""
    from benchmarks.smollm2 import save_smollm2

    return save_smollm2(tmp_path_factory.mktemp("pretrained") / "smollm2")
