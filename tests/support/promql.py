"""Which metrics and labels the PromQL expressions of rules and dashboards read, by promql-parser, beside what is exported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
from promql_parser import (
    AggregateExpr,
    BinaryExpr,
    Call,
    MatchOp,
    MatrixSelector,
    ParenExpr,
    SubqueryExpr,
    UnaryExpr,
    VectorSelector,
)

from tests.support.prometheus import read_families

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = tuple(TESTS / name for name in ("streams/api/metrics.txt", "serving/metrics.txt", "trainers/jobs/metrics.txt"))
"""What worker, serving and trainers export; the tests beside these files keep them equal to what is rendered."""
TARGET = ("job", "instance")
"""The labels that Prometheus adds to each sample."""
OPEN = {"release", "task", "worker", "path", "status", "reason", "version", "python", "partition", "le", *TARGET}
"""Labels with other values in earnest than in the files above."""
OF_COUNTERS = {"rate", "increase", "irate", "resets"}
OF_GAUGES = {"delta", "deriv", "predict_linear", "idelta"}


@dataclass(frozen=True)
class Exported:
    """A sample name: the type of its family, and the values of each of its labels."""

    type: str
    labels: dict[str, set[str]]


def read_exported() -> dict[str, Exported]:
    """Return every sample name of every process of ours, and Prometheus' own `up`."""
    found = {"up": Exported("gauge", {"job": {"queryloop-worker"}, "instance": set()})}
    for text in (path.read_text(encoding="utf-8") for path in GOLDEN):
        for kind, _, samples in read_families(text).values():
            for name, labels in samples:
                one = found.setdefault(name, Exported(kind, {label: set() for label in TARGET}))
                for label, value in labels:
                    one.labels.setdefault(label, set()).add(str(value))
    return found


def find_faults(expression: str, exported: dict[str, Exported]) -> list[str]:
    """Return what an expression reads that no process exports, and counters and gauges that are taken for one another."""
    return list(_check(promql_parser.parse(expression), exported, None))


def find_labels(expression: str, exported: dict[str, Exported]) -> set[str]:
    """Return all labels of what an expression reads."""
    names = [one.name for one in _walk(promql_parser.parse(expression)) if isinstance(one, VectorSelector)]
    return {label for name in names if name in exported for label in exported[name].labels}


def _children(node: Any) -> list[Any]:
    match node:
        case Call():
            return list(node.args)
        case BinaryExpr():
            return [node.lhs, node.rhs]
        case MatrixSelector():
            return [node.vector_selector]
        case AggregateExpr() | ParenExpr() | UnaryExpr() | SubqueryExpr():
            return [node.expr]
    return []


def _walk(node: Any) -> Iterator[Any]:
    yield node
    for child in _children(node):
        yield from _walk(child)


def _check(node: Any, exported: dict[str, Exported], function: str | None) -> Iterator[str]:
    if isinstance(node, VectorSelector):
        yield from _check_selector(node, exported, function)
    if isinstance(node, AggregateExpr) and node.modifier is not None:
        yield from _check_grouping(node, node.modifier.labels, exported)
    if isinstance(node, BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
        yield from _check_grouping(node, node.modifier.matching.labels, exported)
    inside = node.func.name if isinstance(node, Call) else function if isinstance(node, MatrixSelector) else None
    for child in _children(node):
        yield from _check(child, exported, inside)


def _check_grouping(node: Any, labels: list[str], exported: dict[str, Exported]) -> Iterator[str]:
    for side in [node.lhs, node.rhs] if isinstance(node, BinaryExpr) else [node]:
        names = {one.name for one in _walk(side) if isinstance(one, VectorSelector) and one.name in exported}
        known = {label for name in names for label in exported[name].labels}
        yield from (f"nothing of {sorted(names)} has the label {label}" for label in labels if label not in known)


def _check_selector(node: VectorSelector, exported: dict[str, Exported], function: str | None) -> Iterator[str]:
    if node.name not in exported:
        yield f"no process exports {node.name}"
        return
    about = exported[node.name]
    if function in OF_COUNTERS and about.type == "gauge":
        yield f"{function}() of {node.name}, which is a gauge"
    if function in OF_GAUGES and about.type != "gauge":
        yield f"{function}() of {node.name}, which is a {about.type}"
    for matcher in node.matchers.matchers:
        values = about.labels.get(matcher.name)
        if values is None:
            yield f"{node.name} has no label {matcher.name}"
        elif matcher.name not in OPEN and not _has_value(matcher, values):
            yield f"{node.name} has no {matcher.name} {matcher.value}"


def _has_value(matcher: Any, values: set[str]) -> bool:
    wanted = matcher.value.split("|") if matcher.op in (MatchOp.Re, MatchOp.NotRe) else [re.escape(matcher.value)]
    return all(any(re.fullmatch(pattern, value) for value in values) for pattern in wanted)
