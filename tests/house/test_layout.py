"""The house keeps its rules: import directions, small files and functions, docstrings, honest names."""

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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_over_400_lines_gives_a_reason_in_its_header(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 400 or "400 lines" in (ast.get_docstring(parsed(path)) or "")


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
