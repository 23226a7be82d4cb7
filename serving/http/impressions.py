"""Impressions: what was shown, to whom, by which release. They are emitted, and no answer waits for that."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from serving.metrics import EMITTER_CLOSED, QUEUE_FULL, ServingMetrics
from serving.policy.tasks import clean_session, clean_text
from serving.recommend import Recommendation, Request
from streams.emitter.emitter import Counters, QueueFull
from streams.events.schema import Event, EventError, Impression, make_event_id, with_extra

log = logging.getLogger(__name__)
_LOG_EVERY_S = 10.0


class EventSink(Protocol):
    """What serving uses of the emitter: `emit` buffers or raises and never waits, `store` returns whether all is safe."""

    def emit(self, event: Event) -> None: ...

    def store(self, timeout: float) -> bool: ...

    def counters(self) -> Counters: ...


def make_impression(
    request: Request,
    answer: Recommendation,
    *,
    impression_id: str,
    session_id: str,
    user_id: str | None,
    ts: float,
    context: dict[str, Any] | None,
) -> Event:
    """Return the impression of an answered list. `context` and `response` have what the prompt was made of."""
    impression = Impression(
        event_id=make_event_id(),
        ts=ts,
        session_id=session_id,
        user_id=user_id,
        query=request.query,
        impression_id=impression_id,
        task=request.task.name,
        items=answer.items,
        release=answer.release,
        predicted=answer.predicted,
        logprob=answer.logprob,
        decoding=answer.decoding.describe() if answer.decoding else None,
    )
    shaped = {
        **(context or {}),
        "session": clean_session(request.task, request.session),
        "related": list(answer.related),
        "form": answer.form,
        "written": list(answer.written),
        "forced": answer.forced,
    }
    extra: dict[str, Any] = {"context": shaped}
    if request.response:
        extra["response"] = clean_text(request.response, request.task.max_response_chars)
    return with_extra(impression, extra)


class ImpressionLog:
    """Emits impressions; counts those that cannot be buffered, and logs them at most once in ten seconds."""

    def __init__(self, sink: EventSink, metrics: ServingMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink
        self._metrics = metrics
        self._clock = clock
        self._unreported = 0
        self._next_report_at = -1.0

    def emit(self, impression: Event) -> bool:
        """Emit an impression; return whether the emitter accepted it."""
        try:
            self._sink.emit(impression)
        except QueueFull as error:
            return self._count_lost(QUEUE_FULL, str(error))
        except EventError as error:
            return self._count_lost(error.reason.value, error.detail)
        except RuntimeError as error:
            return self._count_lost(EMITTER_CLOSED, str(error))
        self._metrics.impressions.inc()
        return True

    def _count_lost(self, reason: str, detail: str) -> bool:
        self._metrics.impressions_lost.labels(reason).inc()
        self._unreported += 1
        if self._clock() >= self._next_report_at:
            log.warning("event=impression_lost reason=%s lost=%d detail=%r", reason, self._unreported, detail)
            self._unreported = 0
            self._next_report_at = self._clock() + _LOG_EVERY_S
        return False
