"""The report of a torture run, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from queryloop.product.totals import percentile
from queryloop.torture.faults import FaultRecord
from queryloop.torture.harness import UnexpectedExit
from queryloop.torture.workers import Restart

GOAL_S = 2.0
"""Seconds from a killed worker's restart to its next applied batch, in the median, on real Kafka. The embedded broker keeps a
killed worker's partitions until its session is over."""


@dataclass(frozen=True)
class Result:
    """The outcome of a run. `differences` are from the expected counts; `verify` is the JSON of `queryloop verify`."""

    asked: dict[str, Any]
    seconds: float
    record: FaultRecord
    restarts: Sequence[Restart]
    unexpected_exits: Sequence[UnexpectedExit]
    differences: Sequence[str]
    verify: dict[str, Any]
    verified: bool
    folder: Path | None

    @property
    def equal(self) -> bool:
        """Whether the counts are the expected ones and verify confirmed them."""
        return self.verified and not self.differences

    def ready_s(self) -> list[float]:
        """Return the seconds from restart to the next applied batch, for each kill of a worker that was followed by one."""
        return [one.ready_s for one in self.restarts if one.why.startswith("killed") and one.ready_s is not None]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values; times in seconds."""
        times = self.ready_s()
        median = percentile(times, 0.5)
        met = None if self.asked["broker"] != "kafka" or not times else median < GOAL_S
        restart = {"measured": len(times), "median": median, "p90": percentile(times, 0.9), "max": max(times, default=0.0)}
        return {
            **self.asked,
            "equal": self.equal,
            "differences": list(self.differences),
            "verify": self.verify,
            "seconds": round(self.seconds, 3),
            "events_per_second": round(self.asked["events"] / self.seconds),
            "restart_to_applied_s": {**restart, "goal": GOAL_S, "met": met},
            "done": {name: value for name, value in asdict(self.record).items() if name != "began"},
            "ended_by_themselves": [asdict(one) for one in self.unexpected_exits],
            "folder": None if self.folder is None else str(self.folder),
        }


def render(result: Result) -> str:
    """Return the report as a text table, and below it what is wrong."""
    record, asked = result.record, result.asked
    rows = [
        ("log", f"{asked['events']:,} lines, seed {asked['seed']}, {asked['producers']} producers, {asked['workers']} workers"),
        ("on", f"{asked['broker']}, {asked['brokers']} node{'s' if asked['brokers'] > 1 else ''}"),
        ("time", f"{result.seconds:.1f} s, {asked['events'] / result.seconds:,.0f} events/s during all of it"),
        ("kill -9", _kills(record)),
        ("restart to applied", _times(result.ready_s())),
        ("rebalance", f"shards with the others after {_list(record.handovers)}; back at work after {_list(record.returns)}"),
        ("broker", _outages(record)),
        ("ended by themselves", ", ".join(f"{one.name} ({one.code})" for one in result.unexpected_exits) or "none"),
        ("generated log", "equal" if not result.differences else f"{len(result.differences)} numbers differ"),
        ("verify", _verify(result)),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    return "\n".join([*lines, "", *_verdict(result)])


def _verdict(result: Result) -> list[str]:
    lines = [f"  {line}" for line in result.differences[:20]]
    lines += ["every event is counted exactly once" if result.equal else "COUNTS ARE WRONG"]
    restart = result.as_dict()["restart_to_applied_s"]
    if restart["met"]:
        lines += [f"goal met: restart to applied under {GOAL_S:g} s in the median"]
    elif restart["met"] is False:
        over = restart["median"] - GOAL_S
        lines += [f"goal missed: restart to applied in {GOAL_S:g} s in the median, it took {over:.2f} s longer"]
    return lines + ([] if result.folder is None else [f"data folder: {result.folder}"])


def _outages(record: FaultRecord) -> str:
    if record.leader_kills:
        return f"a killed leader is back in sync after {_list(record.leader_outages)}"
    return f"answers {_list(record.broker_outages)} after its kill; events count {_list(record.broker_recoveries)} after it"


def _verify(result: Result) -> str:
    if not result.verified:
        return "NOT EQUAL" if not result.verify["equal"] else "not all could be compared"
    return "equal" if result.verify["complete"] else "equal; it reports that the log was lost and sent again"


def _kills(record: FaultRecord) -> str:
    parts = [f"{record.kills} of workers", f"{record.tending_kills} in a compaction", f"{record.producer_kills} of producers"]
    if record.leader_kills:
        parts += [f"{len(record.leader_kills)} of partition leaders (nodes {', '.join(map(str, record.leader_kills))})"]
    return ", ".join(parts)


def _times(times: Sequence[float]) -> str:
    if not times:
        return "never measured"
    figures = f"median {percentile(times, 0.5):.2f} s, p90 {percentile(times, 0.9):.2f} s, max {max(times):.2f} s"
    return f"{figures} ({len(times)} restarts)"


def _list(seconds: Sequence[float]) -> str:
    return ", ".join(f"{one:.1f} s" for one in seconds) or "-"
