"""The compose file is one that Compose accepts, keeps its ports on loopback and pins what it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


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
    assert set(compose["services"]) == {"kafka", "streams", "serving", "trainers"}
    for room in ("streams", "serving", "trainers"):
        assert compose["services"][room]["command"][:3] == ["python", "-m", room]


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
    assert used == set(compose["volumes"])


def test_the_trainer_reserves_a_gpu(compose: dict[str, Any]) -> None:
    devices = compose["services"]["trainers"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
