"""The tree keeps its rules: import directions, small files and folders, tests beside what they test, docstrings."""

from __future__ import annotations

import ast
import shutil
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("streams", "index", "serving", "trainers", "queryloop")
SHIPPED = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
FILES = SHIPPED + sorted((ROOT / "benchmarks").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})
WITHOUT_A_MIRROR = ("loop", "house", "docs")
"""Folders of tests that test no single file: the whole loop, the tree itself, the documentation."""
MAX_FILES, MAX_LINES = 20, 400
WITH_CODE = [path for path in FILES if path.stat().st_size > 200]
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    assert node.end_lineno is not None
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    written = (docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0
    return node.end_lineno - node.lineno + 1 - written


def test_imports_point_one_way_between_the_rooms() -> None:
    lint = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert lint, "import-linter is not installed: make .venv/.filled"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_why_it_exists_and_is_not_vague(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), "no module docstring"
    assert path.stem not in VAGUE


@pytest.mark.parametrize("path", FILES + TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_over_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_is_a_package_of_at_most_20_files_that_says_what_it_is_for(folder: Path) -> None:
    assert len([path for path in folder.iterdir() if path.is_file()]) <= MAX_FILES
    summary = (ast.get_docstring(parsed(folder / "__init__.py")) or "").partition("\n\n")[0]
    assert summary and "\n" not in summary, "the first paragraph of __init__.py says in one line what the package is for"


def test_every_test_file_mirrors_the_file_that_it_tests() -> None:
    def mirrored(test: Path) -> list[Path]:
        folder, name = test.parent.relative_to(ROOT / "tests"), test.stem.removeprefix("test_")
        return [ROOT / folder / mirror for mirror in (f"{name}.py", f"__{name}__.py", f"{name}.sql", name)]

    tests = [path for path in TESTS if path.name.startswith("test_")]
    mirrors = [path for path in tests if path.relative_to(ROOT / "tests").parts[0] not in WITHOUT_A_MIRROR]
    assert len(mirrors) > 50
    assert [str(path.relative_to(ROOT)) for path in mirrors if not any(one.exists() for one in mirrored(path))] == []


def test_files_of_tests_that_hold_no_test_are_support() -> None:
    support = [path for path in TESTS if not path.name.startswith("test_") and path.name != "conftest.py"]
    assert [str(path.relative_to(ROOT)) for path in support if path.parent != ROOT / "tests" / "support"] == []


def test_files_and_functions_are_small() -> None:
    assert statistics.median(len(path.read_text().splitlines()) for path in WITH_CODE) < 200
    assert statistics.median(length(node) for path in FILES for node in functions(path)) < 12


def test_every_package_is_listed() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in SHIPPED}
    assert listed == found


def test_no_log_data_is_under_version_control() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [name for name in tracked if name.endswith((".jsonl", ".jsonl.gz", ".tsv.gz", ".parquet", ".duckdb"))] == []
