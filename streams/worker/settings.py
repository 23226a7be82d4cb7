"""A worker's settings: its own section `worker`, and all sections that a worker reads."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, SecretStr, model_validator

from streams.brokers.topics import KafkaSettings
from streams.counting.caps.settings import CountingSettings
from streams.events.rules import WINDOW_DAYS, CountingRules
from streams.events.schema import EventSettings
from streams.lake.files import LakeSettings
from streams.runtime.settings import DataSettings, is_loopback
from streams.store.shard_registry import http_url


class WorkerSettings(BaseModel, frozen=True, extra="forbid"):
    """How a worker counts, and where its HTTP server listens (section `worker`)."""

    name: str = Field(
        default="worker-0", pattern=r"^[a-zA-Z0-9._-]{1,128}$", description="stable name, one for each worker of a group"
    )
    static: bool = Field(
        default=True, description="keep the partitions over a restart of the worker of this name (static membership)"
    )
    host: str = Field(default="127.0.0.1", description="address of the worker's HTTP; another than loopback needs a key")
    port: int = Field(default=6066, ge=1, le=65535, description="port of the worker's HTTP")
    url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#]+$",
        description="where other workers reach this one's HTTP, if not at http://host:port",
    )
    key: SecretStr | None = Field(
        default=None, description="key that the worker's HTTP requires, and that workers send to each other"
    )
    drain_s: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="seconds between SIGTERM, when /healthz begins to answer 503, and the closing of the HTTP port; counting "
        "goes on meanwhile. For a load balancer before several workers: workers themselves find each other without one",
    )
    retention_days: int = Field(
        default=30, ge=0, le=36_500, description="days of event time that are kept, 15 at least; 0 for ever"
    )
    attribution_window_s: float = Field(
        default=86_400.0, gt=0, le=366 * 86_400, description="longest time from an impression to a click that counts for it"
    )
    session_gap_s: float = Field(
        default=1_800.0, gt=0, le=366 * 86_400, description="longest time between two consecutive queries of a session"
    )
    linger_ms: int = Field(
        default=200,
        ge=0,
        le=10_000,
        description="batching delay: milliseconds between two batches of a partition while less than 1 MB is queued; it grows in "
        "proportion to the busy partitions of a worker beyond 4. More costs less CPU, less shows counts sooner",
    )
    compact_rows: int = Field(
        default=400_000,
        ge=1,
        description="rows that a day, once it is over, gains before it is compacted (again); it changes no count",
    )
    clock_file: Path | None = Field(
        default=None, description="file with the time to use instead of the system's, in seconds since the epoch: for tests"
    )

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.retention_days and self.attribution_window_s > self.retention_days * 86_400:
            raise ValueError(
                f"worker.attribution_window_s = {self.attribution_window_s:g} is longer than worker.retention_days = "
                f"{self.retention_days}: an impression is gone before its last click may arrive"
            )
        return self

    @model_validator(mode="after")
    def _check_days(self) -> Self:
        if 0 < self.retention_days <= WINDOW_DAYS:
            raise ValueError(
                f"worker.retention_days = {self.retention_days} is less than {WINDOW_DAYS + 1}: windows are of the {WINDOW_DAYS} "
                "days before a day, and would lack what is gone; 0 keeps all days"
            )
        return self

    @model_validator(mode="after")
    def _require_key_off_loopback(self) -> Self:
        if self.key is None and not is_loopback(self.host):
            raise ValueError(f"worker.host = {self.host} is not loopback: set worker.key, or keep 127.0.0.1")
        return self

    @property
    def local_url(self) -> str:
        """The URL of the worker's HTTP for processes on the same machine."""
        return http_url(self.host, self.port)

    def rules(self, events: EventSettings, counting: CountingSettings) -> CountingRules:
        """Return the rules that the store counts by, their durations in microseconds."""
        return CountingRules(
            retention_days=self.retention_days,
            attribution_window_us=round(self.attribution_window_s * 1_000_000),
            session_gap_us=round(self.session_gap_s * 1_000_000),
            future_tolerance_us=round(events.future_tolerance_s * 1_000_000),
            click_lead_us=round(events.click_lead_s * 1_000_000),
            record_times=self.clock_file is None,  # Kafka's times are of another clock than the file's
            compact_rows=self.compact_rows,
            session_cap=counting.session_cap,
            user_cap=counting.user_cap,
        )


class StreamsSettings(BaseModel, frozen=True, extra="forbid"):
    """All sections that a worker reads."""

    data: DataSettings = Field(default_factory=DataSettings)
    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    events: EventSettings = Field(default_factory=EventSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    counting: CountingSettings = Field(default_factory=CountingSettings)
    lake: LakeSettings = Field(default_factory=LakeSettings)

    @property
    def rules(self) -> CountingRules:
        """The rules that the store counts by."""
        return self.worker.rules(self.events, self.counting)
