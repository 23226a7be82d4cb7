"""The faults of the schedule, a function each: processes of the harness are killed, stopped and started again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from queryloop.torture.brokers import TortureBroker
from queryloop.torture.harness import Harness, TortureError
from queryloop.torture.schedule import Fault, Step
from queryloop.torture.workers import Worker

FLOW_STAGES = 2
"""Stages that are let through before a process is killed, so that it is busy then, and after it is back."""
OUTAGE_SHARE = 20
"""While a killed leader is down, one part in so many of the log is let through, so that it missed much when it is back."""
TAKE_S = 60.0
BEGAN, ENDED = "event=compaction_began", "event=day_compacted"
COMPACTION_STAGES = 12
"""Stages within which a compaction must begin: days are compacted when a new one begins, and a day has ten stages."""
COMPACTION_POLL_S = 0.001


@dataclass(frozen=True)
class DoneStep:
    """A step of the schedule as it was done: when it began, in seconds since the start, and how long it took."""

    act: str
    victim: int
    began_s: float
    seconds: float


@dataclass
class FaultRecord:
    """The faults that were done and how long they took, in seconds. The field names are keys of the report's JSON."""

    began: float = field(default_factory=time.monotonic)
    steps: list[DoneStep] = field(default_factory=list)
    kills: int = 0
    producer_kills: int = 0
    tending_kills: int = 0
    tending_missed: int = 0
    logs_lost: int = 0
    leader_kills: list[int] = field(default_factory=list)
    leader_outages: list[float] = field(default_factory=list)
    broker_outages: list[float] = field(default_factory=list)
    broker_recoveries: list[float] = field(default_factory=list)
    handovers: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)


def inject(step: Step, harness: Harness, broker: TortureBroker, record: FaultRecord) -> None:
    """Do one step while the log flows. Raises TortureError when the processes do not recover from it."""
    began = time.monotonic()
    if step.fault in (Fault.KILL, Fault.REBALANCE):
        worker = harness.workers[step.victim]
        harness.wait(lambda: harness.is_counting(worker), f"{worker.name} counting again before the next {step.fault}")
    harness.flow.allow_more(FLOW_STAGES)
    harness.poll_for(step.delay_s)
    _inject(step, harness, broker, record)
    record.steps.append(DoneStep(step.fault, step.victim, round(began - record.began, 3), round(time.monotonic() - began, 3)))


def _inject(step: Step, harness: Harness, broker: TortureBroker, record: FaultRecord) -> None:
    match step.fault:
        case Fault.KILL | Fault.KILL_STARTING:
            _kill(step, harness, record)
        case Fault.KILL_IN_COMPACTION:
            _kill_in_compaction(harness, record)
        case Fault.KILL_PRODUCER:
            _kill_producer(step, harness, record)
        case Fault.RESTART_BROKER:
            _restart_broker(harness, broker, record)
        case Fault.KILL_LEADER:
            _kill_leader(step, harness, broker, record)
        case Fault.REBALANCE:
            _rebalance(harness.workers[step.victim], harness, record)


def _kill(step: Step, harness: Harness, record: FaultRecord) -> None:
    worker = harness.workers[step.victim]
    worker.kill()
    worker.start("killed")
    harness.flow.allow_more(FLOW_STAGES)
    record.kills += 1
    if step.fault is Fault.KILL_STARTING:
        harness.poll_for(3 * step.delay_s)
        worker.kill()
        worker.start("killed while it started")
        record.kills += 1


def _kill_in_compaction(harness: Harness, record: FaultRecord) -> None:
    """Kill the first worker whose log shows that it is in a compaction; give up after COMPACTION_STAGES.

    A compaction is short: where it ended before the kill, the next one is waited for.
    """
    harness.flow.allow_more(COMPACTION_STAGES)

    def find_compacting() -> Worker | None:
        return next((one for one in harness.workers if _is_compacting(one)), None)

    while not record.tending_kills:
        harness.wait(lambda: find_compacting() is not None or harness.flow.idle, "in a compaction", poll_s=COMPACTION_POLL_S)
        worker = find_compacting()
        if worker is None:
            record.tending_missed += 1
            return
        worker.kill()
        in_time = _is_compacting(worker)
        worker.start("killed in a compaction" if in_time else "killed")
        record.tending_kills += in_time
        record.kills += not in_time
    harness.flow.allow_more(FLOW_STAGES)


def _is_compacting(worker: Worker) -> bool:
    text = worker.read_log()
    return text.count(BEGAN) > text.count(ENDED)


def _kill_producer(step: Step, harness: Harness, record: FaultRecord) -> None:
    producer = harness.producers[step.victim]
    if not producer.done:
        producer.kill()
        producer.start()
        record.producer_kills += 1


def _restart_broker(harness: Harness, broker: TortureBroker, record: FaultRecord) -> None:
    began = time.monotonic()
    lost = broker.restart(harness.poll_for)
    record.broker_outages.append(time.monotonic() - began)
    if lost is not None:
        record.logs_lost += 1
        harness.flow.log_lost(lost)
    harness.flow.allow_more(FLOW_STAGES)
    before = harness.flow.applied_stages
    harness.wait(lambda: harness.flow.applied_stages > before or harness.flow.idle, "counting after the broker's restart")
    record.broker_recoveries.append(time.monotonic() - began)


def _kill_leader(step: Step, harness: Harness, broker: TortureBroker, record: FaultRecord) -> None:
    began = time.monotonic()
    most = harness.flow.sent_stages + harness.flow.stages // OUTAGE_SHARE

    def poll_for(seconds: float) -> None:
        harness.flow.allow(most / harness.flow.stages)
        harness.poll_for(seconds)

    record.leader_kills.append(broker.kill_leader(step.victim, poll_for))
    record.leader_outages.append(time.monotonic() - began)


def _rebalance(worker: Worker, harness: Harness, record: FaultRecord) -> None:
    """Stop a worker by SIGTERM: its shards must move to the others, and some back when it is started again."""
    others = [other for other in harness.workers if other is not worker]
    if not others:
        return
    began = time.monotonic()
    code = worker.stop()
    worker.child = None
    if code:
        raise TortureError(f"{worker.name} ended with code {code} after SIGTERM\n{harness.tails()}")
    harness.wait(
        lambda: sum(len(one.shards) for one in others) == harness.partitions, "all shards with the other workers", TAKE_S
    )
    record.handovers.append(time.monotonic() - began)
    worker.start("rebalance")
    harness.wait(lambda: bool(worker.shards), f"{worker.name} with shards again", TAKE_S)
    harness.flow.allow_more(FLOW_STAGES)
    harness.wait(lambda: harness.is_counting(worker), f"{worker.name} counting after the rebalance")
    if (ready_s := worker.restarts[-1].ready_s) is not None:
        record.returns.append(ready_s)
