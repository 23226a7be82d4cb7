"""What values a setting or a parameter may have, in words, from the JSON Schema of its model.

The reference of settings and every message about a wrong value use the same words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

BOUNDS = {"minimum": "from {}", "exclusiveMinimum": "over {}", "maximum": "to {}", "exclusiveMaximum": "under {}"}
LENGTHS = {"minLength": "of {} characters or more", "maxLength": "of {} characters at most"}
BOTH_LENGTHS = "of {} to {} characters"
COUNTS = {"minItems": "({} or more)", "maxItems": "({} at most)"}
KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "array": "list",
    "object": "table (a JSON object)",
    "null": "unset",
}
FORMATS = {"path": "path", "password": "secret text", "date": "day YYYY-MM-DD", "date-time": "time in RFC 3339"}
WITHOUT_ARTICLE = ("text", "secret text", "true or false", '"', "unset")

Schema = Mapping[str, Any]


def describe_allowed(schema: Schema) -> str:
    """Return what a JSON Schema without references allows, such as `whole number from 1 to 1000`."""
    if kinds := schema.get("anyOf"):
        return " or ".join(describe_allowed(kind) for kind in kinds if kind.get("type") != "null")
    if "const" in schema:
        return json.dumps(schema["const"])
    if values := schema.get("enum"):
        return ", ".join(json.dumps(value) for value in values)
    kind = FORMATS.get(schema.get("format", ""), KINDS.get(schema.get("type", ""), "value"))
    if schema.get("type") == "array" and "items" in schema:
        kind += f" of: {describe_allowed(schema['items'])}"
    lengths = {} if LENGTHS.keys() <= schema.keys() else LENGTHS
    limits = [text.format(_plain(schema[key])) for key, text in (BOUNDS | lengths | COUNTS).items() if key in schema]
    if not lengths:
        limits.append(BOTH_LENGTHS.format(*(_plain(schema[key]) for key in LENGTHS)))
    pattern = [f"matching `{schema['pattern']}`"] if "pattern" in schema else []
    return " ".join([kind, *limits, *pattern])


def demand(model: type[BaseModel], path: Iterable[str | int]) -> str:
    """Return what is demanded of the value at a path in a model, such as `must be a whole number from 1 to 1000`."""
    allowed = describe_allowed(find_schema(model, path))
    if "enum" in find_schema(model, path):
        return f"must be one of {allowed}"
    return f"must be {allowed if allowed.startswith(WITHOUT_ARTICLE) else f'a {allowed}'}"


def find_schema(model: type[BaseModel], path: Iterable[str | int]) -> Schema:
    """Return the JSON Schema of the value at a path in a model, references followed; an empty one for an unknown path."""
    whole = _schema(model)
    found = whole
    for part in path:
        found = _step(_follow(found, whole), part)
    return _expanded(found, whole)


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _step(schema: Schema, part: str | int) -> Schema:
    if isinstance(part, int):
        return schema.get("items", {})  # type: ignore[no-any-return]
    inner = schema.get("properties", {}).get(part) or schema.get("additionalProperties")
    return inner if isinstance(inner, Mapping) else {}


def _follow(schema: Schema, whole: Schema) -> Schema:
    """Return the schema that one refers to; of alternatives the one that is set."""
    if "$ref" in schema:
        return whole["$defs"][schema["$ref"].rpartition("/")[2]]  # type: ignore[no-any-return]
    if kinds := [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]:
        return _follow(kinds[0], whole)
    return schema


def _expanded(schema: Schema, whole: Schema) -> Schema:
    return (
        {**schema, "anyOf": [_follow(kind, whole) for kind in schema["anyOf"]]} if "anyOf" in schema else _follow(schema, whole)
    )


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)
