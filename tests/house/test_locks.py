"""The locks hold versions and hashes only, fit pyproject.toml and one another, and have one build of FAISS each."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
DEVELOPMENT, CPU, GPU = "requirements.lock", "requirements-cpu.lock", "requirements-gpu.lock"
EXTRAS = {DEVELOPMENT: ["dev"], CPU: ["embedded", "cpu"], GPU: ["embedded", "gpu"]}
ENTRY = re.compile(r"^([a-z0-9][^\s=]*)==(\S+).*\\\n(?:    --hash=sha256:[0-9a-f]{64}.*\n?)+", flags=re.MULTILINE)


def entries(name: str) -> list[tuple[str, str]]:
    """Return the package and version of each entry of a lock that is complete."""
    return ENTRY.findall((ROOT / name).read_text())


def packages(name: str) -> set[str]:
    return {package for package, _ in entries(name)}


def declared(extras: list[str]) -> list[Requirement]:
    """Return what the project and these extras ask for, with the extras that those name in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [*map(Requirement, project["dependencies"]), Requirement(f"queryloop[{','.join(extras)}]")]
    found = []
    while waiting:
        requirement = waiting.pop()
        if requirement.name == "queryloop":
            waiting += [Requirement(line) for extra in requirement.extras for line in project["optional-dependencies"][extra]]
        else:
            found.append(requirement)
    return found


def is_met(requirement: Requirement, name: str) -> bool:
    wanted = canonicalize_name(requirement.name)
    versions = [version for package, version in entries(name) if package == wanted]
    return bool(versions) and all(requirement.specifier.contains(version, prereleases=True) for version in versions)


@pytest.mark.parametrize(("name", "entries_at_least"), [(DEVELOPMENT, 100), (CPU, 80), (GPU, 80), ("benchmarks/peers.lock", 20)])
def test_a_lock_holds_versions_and_hashes_and_no_address(name: str, entries_at_least: int) -> None:
    lock = (ROOT / name).read_text()
    assert "://" not in lock
    assert len(entries(name)) == len(re.findall(r"^[a-z0-9]", lock, flags=re.MULTILINE)) > entries_at_least


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_has_all_that_its_extras_declare_at_a_version_that_they_allow(name: str) -> None:
    assert [str(requirement) for requirement in declared(EXTRAS[name]) if not is_met(requirement, name)] == []


@pytest.mark.parametrize("name", [CPU, GPU])
def test_an_image_runs_the_versions_that_the_tests_ran(name: str) -> None:
    shared = packages(name) & packages(DEVELOPMENT)
    assert len(shared) > 80
    assert [entry for entry in entries(name) if entry[0] in shared and entry not in entries(DEVELOPMENT)] == []


@pytest.mark.parametrize(("name", "build"), [(DEVELOPMENT, "faiss-cpu"), (CPU, "faiss-cpu"), (GPU, "faiss-gpu")])
def test_a_lock_has_one_build_of_faiss(name: str, build: str) -> None:
    assert [package for package in packages(name) if package.startswith("faiss")] == [build]


@pytest.mark.parametrize("name", [CPU, GPU])
def test_an_image_has_no_tools_of_development(name: str) -> None:
    tools = {"pytest", "hypothesis", "moto", "ruff", "mypy", "uv"}
    assert tools <= packages(DEVELOPMENT)
    assert not tools & packages(name)
