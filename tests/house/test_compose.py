"""The compose file is one that Compose accepts, keeps its ports on loopback and pins what it runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from queryloop.settings import Settings
from serving.settings import ServingSettings
from streams.runtime.settings import load_settings
from streams.worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def rooms(compose: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the services that run a room of ours."""
    return [service for service in compose["services"].values() if "build" in service]


def compose_command() -> list[str] | None:
    """Return the Compose of this machine, v2 before v1, None where there is neither."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [docker, "compose"]
    old = shutil.which("docker-compose")
    return [old] if old else None


def test_the_file_meets_the_compose_specification(compose: dict[str, Any]) -> None:
    # The schema is the one that docker-compose 1.29.2 (Apache-2.0) carries; the x- keys are merged in by then.
    schema = json.loads((ROOT / "tests" / "house" / "compose_spec.json").read_text())
    jsonschema.Draft201909Validator(schema).validate({key: value for key, value in compose.items() if not key.startswith("x-")})


@pytest.mark.skipif(compose_command() is None, reason="neither `docker compose` nor `docker-compose` is on this machine")
def test_compose_accepts_the_file() -> None:
    command = compose_command()
    assert command
    done = subprocess.run([*command, "-f", str(COMPOSE), "config"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_is_one_service_for_each_room_that_runs_and_a_broker(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"kafka", "streams", "serving", "trainers", "trainers-cpu"}
    for name in ("streams", "serving", "trainers", "trainers-cpu"):
        assert compose["services"][name]["command"] == ["python", "-m", name.removesuffix("-cpu")]


def test_trainers_run_on_a_gpu_or_without_one_as_the_profile_says(compose: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in compose["services"].items()}
    assert {name: found for name, found in profiles.items() if found} == {"trainers": ["gpu"], "trainers-cpu": ["cpu"]}
    assert "deploy" not in compose["services"]["trainers-cpu"]


def test_settings_and_annotations_are_mounted_from_a_folder_that_is_there(compose: dict[str, Any]) -> None:
    for service in rooms(compose):
        (mount,) = (volume for volume in service["volumes"] if volume.endswith(":/config:ro"))
        folder = re.fullmatch(r"\$\{CONFIG_FOLDER:-(.+)\}:/config:ro", mount)
        assert folder and service["environment"]["QUERYLOOP_CONFIG"] == "/config/queryloop.toml"
        tomllib.loads((ROOT / folder[1] / "queryloop.toml").read_text())


def test_the_example_settings_are_accepted_with_their_lines_uncommented(tmp_path: Path) -> None:
    text = (ROOT / "ops" / "compose" / "queryloop.toml").read_text()
    annotations = tmp_path / "annotations.jsonl"
    annotations.write_text('{"task": "suggest", "query": "lisbon", "items": ["lisbon weather"]}\n')
    lines = re.findall(r"^# (\[\w+\]|\w+ = .+)$", text, re.MULTILINE)
    assert len(lines) == 3
    file = tmp_path / "queryloop.toml"
    file.write_text("\n".join(lines).replace("/config/annotations.jsonl", str(annotations)))
    assert load_settings(Settings, file).policy.base == "Qwen/Qwen3-0.6B"


def test_the_worker_is_reached_by_the_others_with_a_key(compose: dict[str, Any]) -> None:
    worker = compose["services"]["streams"]["environment"]
    assert worker["QUERYLOOP_WORKER_HOST"] == "0.0.0.0"
    assert worker["QUERYLOOP_WORKER_URL"] == "http://streams:6066"
    for service in rooms(compose):
        for key in ("QUERYLOOP_WORKER_KEY", "QUERYLOOP_SERVING_KEY"):
            assert re.fullmatch(rf"\$\{{{key}:\?.+\}}", service["environment"][key])


def test_kafka_keeps_the_log_as_long_as_shards_keep_days_and_as_the_broker_of_up_does(compose: dict[str, Any]) -> None:
    hours = int(compose["services"]["kafka"]["environment"]["KAFKA_LOG_RETENTION_HOURS"])
    assert hours == 24 * WorkerSettings().retention_days
    assert f"log.retention.hours={hours}" in (ROOT / "streams" / "brokers" / "node.py").read_text()
    assert f"{hours} hours" in (ROOT / "docs" / "operating.md").read_text()


def test_every_service_has_time_to_stop(compose: dict[str, Any]) -> None:
    grace = {name: int(service["stop_grace_period"].removesuffix("s")) for name, service in compose["services"].items()}
    serving = ServingSettings()
    assert grace["serving"] > serving.drain_s + serving.deadline_s + 10
    assert min(grace.values()) >= 60


def test_health_means_ready(compose: dict[str, Any]) -> None:
    for name in ("streams", "serving"):
        assert compose["services"][name]["healthcheck"]["test"][-1].endswith("/readyz")


def test_every_published_port_is_on_loopback(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_every_image_is_pinned_and_every_service_has_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert tag[0].isdigit(), f"{name}: {service['image']} names no version"
        assert service["healthcheck"]["test"][0] == "CMD", name


def test_state_is_kept_in_volumes_that_are_declared(compose: dict[str, Any]) -> None:
    used = {volume.partition(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    used.discard("${CONFIG_FOLDER")
    assert used == set(compose["volumes"])


def test_the_trainer_reserves_a_gpu(compose: dict[str, Any]) -> None:
    devices = compose["services"]["trainers"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
