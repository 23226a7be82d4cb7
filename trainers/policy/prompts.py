"""Prompts from the lake: real calls for lists, split by query into those to learn from and those that the gate measures with.

A query is always in the same part, so no policy is measured on what it, or one before it, was aligned with (G12, G14).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import blake2b
from typing import Any, Protocol

from serving.policy.prompts import Prompt, PromptEncoder
from serving.policy.tasks import Task
from streams.lake.files import Lake
from streams.lake.reader import read_impressions

TEST_SHARE = 0.25
COLUMNS = ("task", "query", "query_norm", "extra")


class Retriever(Protocol):
    """What prompts use of an index (`index.retrieve.Index`)."""

    def retrieve(self, query: str, n: int) -> list[str]: ...


@dataclass(frozen=True)
class ListCall:
    """One call for a list, as it was logged."""

    task: str
    query: str
    query_norm: str
    session: tuple[str, ...]
    response: str | None


def read_calls(lake: Lake, as_of: date, days: int, default_task: str) -> list[ListCall]:
    """Return the calls behind the impressions with as_of - days <= day < as_of, oldest first; without a task: the default."""
    table = read_impressions(lake, as_of - timedelta(days=days), as_of - timedelta(days=1))
    rows = zip(*(table.column(name).to_pylist() for name in COLUMNS), strict=True)
    return [_call(task or default_task, *rest) for task, *rest in rows]


def describe_calls(calls: Sequence[ListCall], tasks: Mapping[str, Task]) -> str:
    """Return how many calls there are and why some are of no use, in words: for a job that has too few."""
    usable = [one for one in calls if one.task in tasks]
    other = Counter(one.task for one in calls if one.task not in tasks)
    queries = {one.query_norm for one in usable}
    unknown = "".join(
        f", {count} of the task {name!r}, which is not in the settings" for name, count in sorted(other.items())[:5]
    )
    return (
        f"{len(calls)} lists{unknown}; {len(queries)} different queries of the {len(usable)} others, "
        f"{sum(map(is_test, queries))} of them the gate's"
    )


def _call(task: str, query: str, query_norm: str, extra: str | None) -> ListCall:
    fields: Any = json.loads(extra) if extra else {}
    context = fields.get("context") if isinstance(fields, dict) else None
    session = context.get("session") if isinstance(context, dict) else None
    response = fields.get("response") if isinstance(fields, dict) else None
    earlier = tuple(one for one in session if isinstance(one, str)) if isinstance(session, list) else ()
    return ListCall(task, query, query_norm, earlier, response if isinstance(response, str) else None)


def is_test(query_norm: str) -> bool:
    """Return whether a query belongs to the gate: a quarter of all, by the query's own hash."""
    digest = blake2b(query_norm.encode("utf-8", "surrogatepass"), digest_size=8, key=b"gate").digest()
    return int.from_bytes(digest, "big") / 2**64 < TEST_SHARE


def pick_training(calls: Iterable[ListCall], count: int, seed: int) -> list[ListCall]:
    """Return up to `count` different (task, query), none of the gate's; frequent ones are likelier to be drawn."""
    rows = [one for one in calls if not is_test(one.query_norm)]
    random.Random(seed).shuffle(rows)
    different = {(one.task, one.query_norm): one for one in reversed(rows)}
    return list(reversed(different.values()))[:count]


def pick_test(calls: Iterable[ListCall], count: int) -> list[ListCall]:
    """Return up to `count` of the newest calls with the gate's queries, repeats included, so that their mean is the traffic's."""
    return [one for one in calls if is_test(one.query_norm)][-count:]


def make_prompts(
    calls: Sequence[ListCall], tasks: Mapping[str, Task], index: Retriever | None, encoder: PromptEncoder
) -> list[Prompt]:
    """Return the prompts as serving would make them with this index; calls of unknown tasks are left out."""
    return [_prompt(one, tasks[one.task], index, encoder) for one in calls if one.task in tasks]


def _prompt(one: ListCall, task: Task, index: Retriever | None, encoder: PromptEncoder) -> Prompt:
    related = index.retrieve(one.query, task.max_related) if index is not None and task.max_related else []
    return encoder.encode_prompt(task, one.query, related, one.session, one.response)
