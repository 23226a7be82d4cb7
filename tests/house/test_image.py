"""The Dockerfile builds images that run without root, from files that are there, each with one build of FAISS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONTINUED = re.compile(r"\\\n\s*")
SERVICES = {"streams": "cpu", "serving": "cpu", "trainers": "gpu", "trainers-cpu": "cpu"}


def instructions(kind: str) -> list[str]:
    """Return the arguments of each instruction of this kind, in order."""
    lines = CONTINUED.sub("", (ROOT / "Dockerfile").read_text()).splitlines()
    return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == kind]


def default_extra() -> str:
    (argument,) = (line for line in instructions("ARG") if line.startswith("EXTRA="))
    return argument.removeprefix("EXTRA=")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return {name: service for name, service in loaded.items() if "build" in service}


def test_the_processes_run_as_a_numbered_user_that_is_not_root() -> None:
    (user,) = instructions("USER")
    uid, gid = user.split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    made = " ".join(instructions("RUN"))
    assert f"groupadd --gid {gid} " in made
    assert f"useradd --uid {uid} --gid {gid} " in made


def test_nothing_in_compose_makes_a_process_root_again(services: dict[str, Any]) -> None:
    assert not [name for name, service in services.items() if "user" in service or service.get("privileged")]


def test_that_user_owns_the_data_folder_which_compose_mounts(services: dict[str, Any]) -> None:
    (user,) = instructions("USER")
    uid, gid = user.split(":")
    (folder,) = re.findall(r"QUERYLOOP_DATA_DIR=(\S+)", " ".join(instructions("ENV")))
    assert f"install --directory --owner={uid} --group={gid} {folder}" in " ".join(instructions("RUN"))
    for service in services.values():
        assert service["environment"]["QUERYLOOP_DATA_DIR"] == folder
        assert f"loop:{folder}" in service["volumes"]


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_everything_that_is_copied_is_there(extra: str) -> None:
    sources = [source for line in instructions("COPY") for source in line.replace("${EXTRA}", extra).split()[:-1]]
    assert f"requirements-{extra}.lock" in sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_every_room_that_ships_is_copied() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "tests"}
    copied = {source for line in instructions("COPY") for source in line.split()[:-1]}
    assert {"streams", "index", "serving", "trainers", "queryloop"} <= rooms
    assert rooms <= copied


def test_the_lock_is_installed_with_its_hashes() -> None:
    installed = [line for line in instructions("RUN") if "requirements-${EXTRA}.lock" in line]
    assert installed
    assert all("--require-hashes" in line for line in installed)


def test_the_trainers_have_faiss_for_gpu_and_the_others_for_cpu(services: dict[str, Any]) -> None:
    assert {name: service["build"]["args"]["EXTRA"] for name, service in services.items()} == SERVICES
    assert default_extra() == "cpu"


def test_services_of_one_extra_share_an_image_and_others_do_not(services: dict[str, Any]) -> None:
    images = {service["image"].rpartition("-")[::2]: service["build"]["args"]["EXTRA"] for service in services.values()}
    assert images == {("queryloop:0.1.0", "cpu"): "cpu", ("queryloop:0.1.0", "gpu"): "gpu"}
