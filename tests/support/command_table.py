"""docs/commands.md as data: the exit codes and the fields of each command's --json, to compare real answers with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
ROW = re.compile(r"^\| `([a-z -]+)` \| ([\d ]+) \| (.*) \|$", re.MULTILINE)
FIELD = re.compile(r"`([a-z0-9_]+)(?:\[([a-z0-9_ ]+)\])?`")
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@dataclass(frozen=True)
class Shape:
    """The exit codes of a command besides 2 and 130, and its fields; for lists of objects the fields of those, else None."""

    codes: frozenset[int]
    fields: dict[str, frozenset[str] | None]


def read_table() -> dict[str, Shape]:
    """Each command of the page with its shape; no fields where the page describes them in words."""
    found = {}
    for command, codes, fields in ROW.findall(PAGE.read_text()):
        named = {name: frozenset(inner.split()) if inner else None for name, inner in FIELD.findall(fields)}
        found[command] = Shape(frozenset(map(int, codes.split())) | {2, 130}, named)
    return found


def check_answer(command: str, code: int, answer: dict[str, Any]) -> None:
    """Assert that an answer has the shape that the page gives."""
    shape = read_table()[command]
    assert code in shape.codes, (command, code)
    check_names(answer)
    if "error" in answer and "exit_code" in answer:
        assert answer == {"error": answer["error"], "exit_code": code} and answer["error"]
        return
    if not shape.fields:
        return
    assert set(answer) == set(shape.fields), command
    for name, inner in shape.fields.items():
        if inner is not None:
            assert isinstance(answer[name], list), (command, name)
            assert all(set(one) == inner for one in answer[name]), (command, name, answer[name][:1])


def check_names(value: Any) -> None:
    """Assert that every name in an answer keeps the page's rules, and that times are RFC 3339."""
    if isinstance(value, list):
        for one in value:
            check_names(one)
    if isinstance(value, dict):
        for name, one in value.items():
            assert name != "id" and not name.endswith(("_us", "_at")), name
            if name == "ts" or name.endswith("_ts"):
                assert one is None or RFC3339.fullmatch(one), (name, one)
            check_names(one)
