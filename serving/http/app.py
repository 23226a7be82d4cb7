"""The HTTP endpoints: recommend a list, take events, say how things are."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from serving.fallback import recommend_without_policy
from serving.http.browsers import (
    EVENTS_PATH,
    RECOMMEND_PATH,
    SCHEMA_PATH,
    SNIPPET_PATH,
    KnownOrigins,
    answer_schema,
    answer_snippet,
)
from serving.http.content_encoding import InflateBody
from serving.http.events_batch import BatchError, split_batch, split_lines
from serving.http.events_request import BatchResult, accept_events
from serving.http.impressions import EventSink, ImpressionLog, make_impression
from serving.http.media_types import NDJSON, CheckMediaType, read_media_type
from serving.http.micro_batcher import Batcher, BusyError, DeadlineError
from serving.http.middleware import OTHER, CheckKeys, CloseConnections, CountRequests, LimitBody
from serving.http.openapi import describe_app, list_answers
from serving.http.recommend_request import CallError, RecommendCall, read_request, read_time
from serving.metrics import FALLBACK, NO_RELEASE, ServingMetrics
from serving.policy.engines import Decoding
from serving.recommend import Recommendation, Request, recommend
from serving.releases.form_watch import FormWatch
from serving.releases.registry import Rejection, Release, ReleaseError, list_broken, list_releases, read_rejected, read_rollout
from serving.releases.slot import NoReleaseError, Slot
from serving.settings import ServingRoot
from streams.events.schema import printable
from streams.runtime.data_folder import find_data_folder
from streams.runtime.metric_families import read_process
from streams.runtime.validation_errors import explain_error

PATHS = frozenset({RECOMMEND_PATH, EVENTS_PATH, SNIPPET_PATH, SCHEMA_PATH, "/v1/releases", "/healthz", "/readyz", "/metrics"})
_RETRY = {"Retry-After": "1"}


def create_app(
    root: ServingRoot,
    slot: Slot,
    sink: EventSink,
    metrics: ServingMetrics,
    clock: Callable[[], float] = time.time,
    stopping: threading.Event | None = None,
) -> FastAPI:
    """Return the ASGI application. Its lifespan runs the batches and watches the rollout; `clock` gives epoch seconds.

    Once `stopping` is set the app is not ready any more, and closes each connection after its answer."""
    stopping = stopping or threading.Event()
    endpoints = Endpoints(root, slot, sink, metrics, clock, stopping)
    app = FastAPI(title="Queryloop", openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None, lifespan=endpoints.lifespan)
    app.add_api_route(RECOMMEND_PATH, endpoints.recommend, methods=["POST"])
    app.add_api_route(EVENTS_PATH, endpoints.accept_events, methods=["POST"])
    _add_read(app, SNIPPET_PATH, answer_snippet)
    _add_read(app, SCHEMA_PATH, endpoints.schema)
    _add_read(app, "/v1/releases", endpoints.releases)
    _add_read(app, "/healthz", endpoints.health)
    _add_read(app, "/readyz", endpoints.readiness)
    _add_read(app, "/metrics", endpoints.render_metrics)
    describe_app(app, root)
    metrics.begin_requests({OTHER: ("404", "405"), **list_answers(app)})
    app.add_exception_handler(RequestValidationError, _explain)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _fail)
    serving = root.serving
    key = serving.key.get_secret_value() if serving.key else None
    # The last one added is the first one passed.
    app.add_middleware(CheckMediaType)
    app.add_middleware(InflateBody, max_bytes=serving.max_body_bytes)
    app.add_middleware(LimitBody, max_bytes=serving.max_body_bytes, timeout_s=serving.deadline_s)
    app.add_middleware(CheckKeys, key=key, write_key=serving.write_key.get_secret_value() if serving.write_key else None)
    app.add_middleware(KnownOrigins, origins=frozenset(serving.origins))
    app.add_middleware(
        CORSMiddleware, allow_origins=list(serving.origins), allow_methods=["GET", "POST"], allow_headers=["*"], max_age=3600
    )
    app.add_middleware(CountRequests, metrics=metrics, paths=PATHS)
    app.add_middleware(CloseConnections, stopping=stopping)
    return app


def _add_read(app: FastAPI, path: str, endpoint: Callable[..., Any]) -> None:
    """Add a route for GET, and for HEAD, which answers the same without the body."""
    app.add_api_route(path, endpoint, methods=["GET"])
    app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)


class Endpoints:
    """The endpoints, and what they share."""

    def __init__(
        self,
        root: ServingRoot,
        slot: Slot,
        sink: EventSink,
        metrics: ServingMetrics,
        clock: Callable[[], float],
        stopping: threading.Event,
    ) -> None:
        serving = root.serving
        self._root = root
        self._slot = slot
        self._sink = sink
        self._metrics = metrics
        self._clock = clock
        self._stopping = stopping
        self._impressions = ImpressionLog(sink, metrics)
        self._watch = FormWatch()
        self._decoding = Decoding(temperature=serving.temperature, top_p=serving.top_p, redraws=serving.redraws)
        self._batcher: Batcher[Request, Recommendation] = Batcher(
            self._answer_batch,
            metrics,
            max_batch=serving.max_batch,
            wait_s=serving.batch_wait_ms / 1000,
            queue_limit=serving.queue_limit,
        )

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self._batcher.start()
        self._slot.start()
        try:
            yield
        finally:
            await self._batcher.stop()
            await asyncio.to_thread(self._slot.stop)

    async def recommend(self, call: RecommendCall) -> Response:
        """Answer a list of recommended queries from the live release (G1, G2), from the newest index where there is none yet."""
        limits = self._root.events
        try:
            request = read_request(call, self._root.tasks, self._decoding, limits)
            ts = read_time(call, limits, self._clock())
        except CallError as error:
            return _error(422, str(error))
        if self._slot.release is None and not self._slot.falls_back:
            return _error(503, self._slot.reason, _RETRY)
        try:
            answer = await self._batcher.submit(request, self._root.serving.deadline_s)
        except (BusyError, NoReleaseError) as error:
            return _error(503, str(error), _RETRY)
        except DeadlineError as error:
            return _error(504, str(error))
        impression_id = call.impression_id or uuid.uuid4().hex
        impression = make_impression(
            request,
            answer,
            impression_id=impression_id,
            session_id=call.session_id,
            user_id=call.user_id,
            ts=ts,
            context=call.context,
        )
        self._impressions.emit(impression)
        shown = {"impression_id": impression_id, "session_id": call.session_id}  # its clicks need both
        return JSONResponse({**shown, **_describe_answer(request, answer)})

    async def accept_events(self, request: HttpRequest) -> Response:
        """Accept a batch of events, {"events": [...]} or NDJSON. 202: they are on disk, or acknowledged by Kafka."""
        media_type, limit = read_media_type(request.headers["content-type"]), self._root.serving.max_events
        try:
            body = await request.body()
            lines = split_lines(body, limit) if media_type in NDJSON else split_batch(body, limit)
        except BatchError as error:
            return _error(error.status, str(error))
        result = accept_events(lines, self._sink, self._root.events, self._clock())
        self._metrics.events_accepted.inc(result.accepted)
        for refusal in result.rejected:
            self._metrics.events_rejected.labels(refusal.reason).inc()
        stored = await asyncio.to_thread(self._sink.store, self._root.serving.deadline_s) if result.accepted else True
        return _describe_batch(result, stored)

    async def schema(self, request: HttpRequest) -> Response:
        """Answer the JSON Schema of one event."""
        return answer_schema(request, self._root.events)

    async def releases(self) -> Response:
        """Answer all releases, which ones the rollout names, and which one is live."""
        return await asyncio.to_thread(self._list_releases)

    async def health(self) -> Response:
        """Answer 200 while the process runs."""
        return JSONResponse({"ok": True})

    async def readiness(self) -> Response:
        """Answer 200 when lists can be served, else 503 with the reason in `error`.

        `form` is "fallback" while an index answers because no release is live: with 200 where none is promoted, with 503 where
        one is loading or cannot be loaded, since other servers may have it. `faults` says what is wrong with the live release's
        lists. `loading` is the release that is being loaded; `failed` says that a promoted one could not be, `missing` that none
        can be, since a package is not installed; `error` says why."""
        slot, stopping = self._slot, self._stopping.is_set()
        answer: dict[str, Any] = {"ready": slot.ready and not stopping, "release": slot.release, "loading": slot.loading}
        answer |= {"form": FALLBACK if slot.falls_back else None, "failed": slot.error is not None}
        answer |= {"missing": slot.missing is not None, "faults": self._find_faults()}
        ready = answer["ready"]
        error = "stopping" if stopping else slot.error if ready else slot.reason
        return JSONResponse({**answer, "error": error}, 200 if ready else 503, self._name_folder())

    def _name_folder(self) -> dict[str, str]:
        """Return headers that name the data folder. Without a key only this machine reaches the server: then with its path."""
        root = self._root
        return find_data_folder(root.data.dir).headers(with_path=root.serving.key is None)

    async def render_metrics(self) -> Response:
        """Answer the metrics in Prometheus' text format."""
        self._metrics.release_faults.set(len(self._find_faults()))

        def render() -> bytes:
            return self._metrics.render(self._sink.counters(), read_process(self._root.data.dir))

        return Response(await asyncio.to_thread(render), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    def _find_faults(self) -> list[str]:
        """Return what is wrong with the lists of the live release; it answers all the same."""
        return self._watch.find_faults(self._slot.release, self._slot.gate)

    def _answer_batch(self, requests: Sequence[Request]) -> Sequence[Recommendation]:
        """Answer a batch, in the batch thread, by the release that is live at its start; each answer names it."""
        answers = self._make_lists(requests)
        for request, answer in zip(requests, answers, strict=True):
            release = answer.release or NO_RELEASE
            self._metrics.lists.labels(release, request.task.name, answer.form).inc()
            self._metrics.list_tokens.labels(release, request.task.name).inc(answer.tokens)
            self._watch.count(release, answer.form, answer.forced)
            self._metrics.count_forced(release, request.task.name, answer.forced)
        return answers

    def _make_lists(self, requests: Sequence[Request]) -> Sequence[Recommendation]:
        index = self._slot.fallback.index  # read before the lease: it is dropped once a release is live
        try:
            with self._slot.lease() as bundle:
                return recommend(bundle.release.id, bundle.engine, bundle.index, bundle.predictor, requests)
        except NoReleaseError:
            if index is None:
                raise
            return recommend_without_policy(index, requests)

    def _list_releases(self) -> Response:
        data = self._root.data.dir
        try:
            rollout: dict[str, Any] = msgspec.to_builtins(read_rollout(data))
            rejected = read_rejected(data)
        except ReleaseError as error:
            return _error(500, str(error))
        shown = [_describe_release(release, rejected.get(release.id)) for release in list_releases(data)]
        broken = [str(error) for error in list_broken(data)]
        return JSONResponse(
            {"live": self._slot.release, "error": self._slot.error, "rollout": rollout, "releases": shown, "broken": broken}
        )


def _describe_batch(result: BatchResult, stored: bool) -> Response:
    """Answer what became of a batch: 202, 422 when every event was refused, 503 when it has to be sent again."""
    answer: dict[str, Any] = {"accepted": result.accepted, "rejected": [asdict(refusal) for refusal in result.rejected]}
    if result.full:
        problem = f"{result.full}; send the batch again later, accepted events count once"
        return JSONResponse({"error": problem, **answer}, 503, _RETRY)
    if not stored:
        problem = "neither the disk nor Kafka has taken the events; send the batch again later, they count once"
        return JSONResponse({"error": problem, **answer}, 503, _RETRY)
    if result.rejected and not result.accepted:
        first = result.rejected[0]
        problem = f"every event was refused; event {first.index}: {first.reason}: {first.detail}"
        return JSONResponse({"error": problem, **answer}, 422)
    return JSONResponse(answer, 202)


def _describe_answer(request: Request, answer: Recommendation) -> dict[str, Any]:
    return {
        "release": answer.release,
        "task": request.task.name,
        "items": list(answer.items),
        "auxiliary": dict(answer.auxiliary),
        "predicted": list(answer.predicted) if answer.predicted is not None else None,
        "logprob": answer.logprob,
        "decoding": answer.decoding.describe() if answer.decoding else None,
        "written": list(answer.written),
        "forced": answer.forced,
        "form": answer.form,
    }


def _describe_release(release: Release, rejection: Rejection | None) -> dict[str, Any]:
    pruned = release.pruned and release.pruned.ts.isoformat()
    return {
        "id": release.id,
        "created": release.created.isoformat(),
        "pruned": pruned,
        "rejected": msgspec.to_builtins(rejection),
        "gate": release.gate,
        "meta": release.meta,
    }


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)


def _explain_fault(fault: Mapping[str, Any]) -> str:
    return explain_error({**fault, "loc": tuple(fault["loc"][1:])}, RecommendCall)


async def _explain(_request: HttpRequest, error: Exception) -> Response:
    """Answer 422 naming the fields at fault, without what the user typed."""
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    problems = [
        f"{'.'.join(part for part in fault['loc'][1:] if isinstance(part, str)) or 'body'}: {_explain_fault(fault)}"
        for fault in faults
    ]
    return _error(422, printable("; ".join(problems)) or "the body is not valid")


async def _refuse(_request: HttpRequest, error: Exception) -> Response:
    """Answer what has no route, method or readable body, as every error is answered."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _fail(_request: HttpRequest, _error: Exception) -> Response:
    """Answer 500 without details; the server logs them."""
    return JSONResponse({"error": "the server failed; its log says why"}, 500)
