"""Settings of the serving process: section `serving`, and the root with every section that the process reads."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from serving.policy.tasks import DEFAULT_TASKS, Tasks, check_default_task
from streams.brokers.topics import KafkaSettings
from streams.emitter.emitter import EmitterSettings
from streams.events.schema import EventSettings
from streams.runtime.settings import DataSettings, is_loopback

ORIGIN = re.compile(r"https?://[a-z0-9.\-]+(:\d{1,5})?|https?://\[[0-9a-f:]+\](:\d{1,5})?")
"""An origin as browsers send it: lower case, without a path."""


class ServingSettings(BaseModel, frozen=True, extra="forbid"):
    """How lists are served (section `serving`)."""

    host: str = Field(default="127.0.0.1", description="address to listen on; any other than loopback needs a key")
    port: int = Field(default=8080, ge=0, le=65_535, description="port to listen on; 0 lets the system choose")
    key: SecretStr | None = Field(default=None, min_length=8, description="products send it as `Authorization: Bearer KEY`")
    write_key: SecretStr | None = Field(
        default=None, min_length=8, description="public key for web pages: opens POST /v1/events?write_key=KEY and nothing else"
    )
    origins: tuple[str, ...] = Field(
        default=(), description='origins whose pages may send events, such as ["https://shop.example"]'
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where the policy runs")
    threads: int = Field(default=1, ge=1, description="torch threads; 1 when training shares the machine")
    temperature: float = Field(default=0.9, gt=0, le=10, description="temperature of drawing")
    top_p: float = Field(default=0.95, gt=0, le=1, description="share of the likeliest tokens to draw from")
    redraws: int = Field(
        default=8, ge=0, le=64, description="times in a list that an item which repeats an earlier one is drawn anew"
    )
    predict: bool = Field(default=True, description="answer predicted click rates where the release has a predictor")
    max_batch: int = Field(default=32, ge=1, le=1024, description="requests in one batch, at most")
    batch_wait_ms: float = Field(
        default=5.0, ge=0, le=1000, description="milliseconds that an idle server waits for more requests of a batch"
    )
    queue_limit: int = Field(default=1024, ge=1, description="requests waiting, at most; more are answered 503")
    deadline_s: float = Field(default=5.0, gt=0, description="seconds until a request is answered 504")
    keep_alive_s: int = Field(
        default=20,
        ge=1,
        description="seconds that an idle connection stays open; more than the idle timeout of your clients and load balancers, "
        "or a call of theirs may fail as it is closed",
    )
    drain_s: float = Field(
        default=3.0,
        ge=0,
        le=600,
        description="seconds between SIGTERM, when /readyz begins to answer 503, and the closing of the port; longer than your "
        "load balancer takes to notice. SIGINT and a second signal do not wait",
    )
    poll_s: float = Field(default=0.5, gt=0, description="seconds between two looks at the rollout")
    retry_s: float = Field(default=30.0, gt=0, description="seconds until a release that failed to load is tried again")
    max_body_bytes: int = Field(default=262_144, ge=1024, description="bytes of one request's body, at most")
    outbox: bool = Field(
        default=True,
        description="keep events on disk until delivered: folder `serving` in emitter.outbox_dir, else in outbox in data.dir",
    )
    max_events: int = Field(default=1000, ge=1, description="events in one POST /v1/events, at most")

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin: write scheme and host (and port), as https://shop.example")
        return origins

    @model_validator(mode="after")
    def _check_waits_and_keys(self) -> Self:
        if self.batch_wait_ms >= self.deadline_s * 1000:
            raise ValueError(
                f"serving.batch_wait_ms = {self.batch_wait_ms:g} is no less than serving.deadline_s = {self.deadline_s:g} s: "
                "a request would be over before its batch starts"
            )
        if self.write_key is not None and self.write_key == self.key:
            raise ValueError("serving.write_key is serving.key: web pages would publish the key that opens everything")
        return self

    @model_validator(mode="after")
    def _need_key_beyond_loopback(self) -> Self:
        if self.key is None and not is_loopback(self.host):
            raise ValueError(
                f"serving.host = {self.host} is reachable from other machines: set serving.key (QUERYLOOP_SERVING_KEY), "
                "or use 127.0.0.1"
            )
        return self


class ServingRoot(BaseModel, frozen=True, extra="forbid"):
    """All sections that `python -m serving` reads."""

    data: DataSettings = DataSettings()
    kafka: KafkaSettings = KafkaSettings()
    events: EventSettings = EventSettings()
    emitter: EmitterSettings = EmitterSettings()
    serving: ServingSettings = ServingSettings()
    tasks: Tasks = Field(default_factory=lambda: dict(DEFAULT_TASKS))

    @model_validator(mode="after")
    def _check_default_task(self) -> Self:
        check_default_task(self.events.default_task, self.tasks)
        return self

    @model_validator(mode="after")
    def _check_list_lengths(self) -> Self:
        for name, task in self.tasks.items():
            if task.n > self.events.max_items:
                raise ValueError(
                    f"tasks.{name}.n = {task.n} is more than events.max_items = {self.events.max_items}: "
                    "its impressions would not be counted"
                )
        return self
