"""The OpenAPI document of the HTTP app: every route with each status and content type that it answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.http.browsers import EVENTS_PATH, OPEN_PATHS, RECOMMEND_PATH, SCHEMA_PATH, SNIPPET_PATH
from serving.http.media_types import NDJSON
from serving.metrics import FALLBACK, Form
from serving.settings import ServingRoot
from streams.events.schema import json_schema

JSON, TEXT = "application/json", "text/plain"
Schema = dict[str, Any]
"""A JSON Schema, or another object of the OpenAPI document."""

_REFUSAL: Schema = {
    "type": "object",
    "required": ["index", "reason", "detail"],
    "properties": {"index": {"type": "integer", "minimum": 0}, "reason": {"type": "string"}, "detail": {"type": "string"}},
}
_BATCH: Schema = {
    "accepted": {"type": "integer", "minimum": 0},
    "rejected": {"type": "array", "items": {"$ref": "#/components/schemas/Refusal"}},
}
SCHEMAS: Mapping[str, Schema] = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Refusal": _REFUSAL,
    "BatchAnswer": {"type": "object", "required": ["accepted", "rejected"], "properties": _BATCH},
    "BatchError": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}, **_BATCH}},
    "Recommendation": {
        "type": "object",
        "required": [
            "impression_id",
            "release",
            "task",
            "items",
            "auxiliary",
            "predicted",
            "logprob",
            "decoding",
            "written",
            "forced",
            "form",
        ],
        "properties": {
            **{name: {"type": "string"} for name in ("impression_id", "task")},
            "release": {"type": ["string", "null"], "description": "null: an index answered, since no release is live"},
            "form": {"enum": list(get_args(Form)), "description": "fallback: no policy wrote these items"},
            "items": {"type": "array", "items": {"type": "string"}},
            "auxiliary": {"type": "object", "additionalProperties": {"type": "string"}},
            "predicted": {"type": ["array", "null"], "items": {"type": "number"}},
            "logprob": {"type": ["number", "null"]},
            "decoding": {"type": ["object", "null"]},
            "written": {"type": "array", "items": {"type": "boolean"}},
            "forced": {"type": "integer", "minimum": 0},
        },
    },
    "Readiness": {
        "type": "object",
        "required": ["ready", "release", "form", "loading", "failed", "missing", "faults", "error"],
        "properties": {
            "faults": {
                "type": "array",
                "items": {"type": "string"},
                "description": "of the live release's lists",
            },
            "form": {"enum": [FALLBACK, None], "description": "fallback: an index answers, since no release is live"},
            **{name: {"type": "boolean"} for name in ("ready", "failed", "missing")},
            **{name: {"type": ["string", "null"]} for name in ("release", "loading", "error")},
        },
    },
    "Health": {"type": "object", "required": ["ok"], "properties": {"ok": {"const": True}}},
    "Releases": {
        "type": "object",
        "required": ["live", "error", "rollout", "releases", "broken"],
        "properties": {
            "live": {"type": ["string", "null"]},
            "error": {"type": ["string", "null"]},
            "rollout": {"type": "object"},
            "releases": {"type": "array", "items": {"type": "object"}},
            "broken": {"type": "array", "items": {"type": "string"}},
        },
    },
}
_RETRY_AFTER: Schema = {"Retry-After": {"description": "Seconds until it is worth trying again.", "schema": {"type": "string"}}}
_CACHED: Schema = {name: {"schema": {"type": "string"}} for name in ("ETag", "Cache-Control")}


def describe_app(app: FastAPI, root: ServingRoot) -> None:
    """Make the app publish its document; it is made once, from the app's routes and these settings."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes, description=__doc__)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"] = _describe_answers(path, root)
            if security := _describe_security(path, root):
                operation["security"] = security
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **SCHEMAS, **_event_schemas(root)}
    components["securitySchemes"] = _security_schemes(root)
    document["paths"][EVENTS_PATH]["post"]["requestBody"] = _describe_events_body(root)
    _limit_call(components["schemas"]["RecommendCall"], root)
    app.openapi = lambda: document  # type: ignore[method-assign]


def list_answers(app: FastAPI) -> dict[str, list[str]]:
    """Return the statuses that each route of a described app answers, by path."""
    routes = app.openapi()["paths"]
    return {path: sorted({status for one in methods.values() for status in one["responses"]}) for path, methods in routes.items()}


def _describe_answers(path: str, root: ServingRoot) -> Schema:
    reads_body = path in (RECOMMEND_PATH, EVENTS_PATH)
    answers = {
        **_successes(path),
        "500": _answer("The server failed; its log says why.", "Error"),
        "503": _overload(path),
    }
    if path not in OPEN_PATHS:
        answers["403"] = _answer("A page of an origin that is not in serving.origins.", "Error")
    if _describe_security(path, root):
        answers["401"] = _answer("A key is missing or wrong.", "Error", {"WWW-Authenticate": {"schema": {"type": "string"}}})
    if reads_body:
        error = "BatchError" if path == EVENTS_PATH else "Error"
        answers["400"] = _answer("The body cannot be read: no JSON, a damaged encoding.", "Error", text=True)
        answers["408"] = _answer("The body did not arrive in time.", "Error")
        answers["413"] = _answer("The body, or the number of events in it, is over its limit.", "Error")
        answers["415"] = _answer("A content type, character set or encoding that is not read; the answer says which is.", "Error")
        answers["422"] = _answer("A field is wrong, or every event is; the answer names it.", error)
    if path == RECOMMEND_PATH:
        answers["504"] = _answer("No list was written within serving.deadline_s.", "Error")
    return dict(sorted(answers.items()))


def _successes(path: str) -> Schema:
    cached = {"304": {"description": "The client's copy, by its ETag, is still right.", "headers": _CACHED}}
    match path:
        case "/v1/recommend":
            return {"200": _answer("A list; its impression is emitted.", "Recommendation")}
        case "/v1/events":
            return {"202": _answer("At least one event was accepted, or the batch was empty.", "BatchAnswer")}
        case "/v1/releases":
            return {"200": _answer("All releases, and which one is live.", "Releases")}
        case "/readyz":
            return {"200": _answer("Lists can be served.", "Readiness")}
        case "/metrics":
            return {"200": _text("Metrics in Prometheus' text format.", TEXT)}
        case _ if path == SNIPPET_PATH:
            return {"200": _text("The snippet for web pages.", "text/javascript", _CACHED), **cached}
        case _ if path == SCHEMA_PATH:
            schema = {"description": "The JSON Schema of one event.", "headers": _CACHED}
            return {"200": {**schema, "content": {"application/schema+json": {"schema": {"type": "object"}}}}, **cached}
        case _:
            return {"200": _answer("The process runs.", "Health")}


def _overload(path: str) -> Schema:
    """Return the 503 of a route; that of the connection limit is plain text."""
    match path:
        case "/readyz":
            return _answer("No list can be served: `error` says why.", "Readiness", text=True)
        case "/v1/recommend":
            return _answer("No release is live and no index is there, or too many calls wait.", "Error", _RETRY_AFTER, text=True)
        case "/v1/events":
            return _answer("Not all events are on disk: send the batch again.", "BatchError", _RETRY_AFTER, text=True)
        case _:
            return _text("Too many connections.", TEXT)


def _answer(description: str, schema: str, headers: Schema | None = None, *, text: bool = False) -> Schema:
    content: Schema = {JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    if text:
        content[TEXT] = {"schema": {"type": "string"}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}


def _text(description: str, media_type: str, headers: Schema | None = None) -> Schema:
    content = {media_type: {"schema": {"type": "string"}}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}


def _security_schemes(root: ServingRoot) -> Schema:
    schemes: Schema = {}
    if root.serving.key is not None:
        schemes["key"] = {"type": "http", "scheme": "bearer", "description": "serving.key"}
    if root.serving.write_key is not None:
        schemes["write_key"] = {"type": "apiKey", "in": "query", "name": "write_key", "description": "serving.write_key"}
    return schemes


def _describe_security(path: str, root: ServingRoot) -> list[Schema]:
    """Return the ways to be let in, the empty one where no key is needed; an empty list where no key is looked at."""
    if path in OPEN_PATHS or path in ("/healthz", "/readyz"):
        return []
    ways: list[Schema] = [{name: []} for name in _security_schemes(root) if name == "key" or path == EVENTS_PATH]
    return [{}, *ways] if ways and root.serving.key is None else ways


def _event_schemas(root: ServingRoot) -> Schema:
    """Return the JSON Schema of an event, and those of its kinds, as components."""
    text = json.dumps(json_schema(root.events)).replace("#/$defs/", "#/components/schemas/")
    schema: Schema = json.loads(text)
    kinds: Schema = schema.pop("$defs")
    return {**kinds, "Event": {name: value for name, value in schema.items() if name != "$schema"}}


def _describe_events_body(root: ServingRoot) -> Schema:
    """Return the body of POST /v1/events. Events that are none are refused one by one, so that any value may be among them."""
    batch: Schema = {
        "type": "object",
        "required": ["events"],
        "properties": {
            "events": {
                "type": "array",
                "description": f"at most {root.serving.max_events}, else 413",
                "items": {"anyOf": [{"$ref": "#/components/schemas/Event"}, {"description": "refused by its index"}]},
            }
        },
    }
    lines = {"schema": {"type": "string", "description": "one event a line"}}
    return {"required": True, "content": {JSON: {"schema": batch}, **dict.fromkeys(NDJSON, lines)}}


def _limit_call(call: Schema, root: ServingRoot) -> None:
    """Write into the schema of a call for a list what the settings allow."""
    call["properties"]["task"]["enum"] = sorted(root.tasks)
    call["properties"]["query"]["maxLength"] = root.events.max_query_chars
