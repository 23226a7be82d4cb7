"""What is done to the processes of the stand, one function for each act of the schedule."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from queryloop.torture.brokers import TortureBroker
from queryloop.torture.harness import Stand, TortureError
from queryloop.torture.schedule import Act, Step
from queryloop.torture.workers import Worker

FLOW_STAGES = 2
"""Stages that flow before a process dies, so that it dies at work, and again when it is back, so that it has work."""
OUTAGE_SHARE = 20
"""What part of the log may flow, once another node leads, while a killed leader is away: it comes back to much that it missed."""
TAKE_S = 60.0
BEGAN, ENDED = "event=compaction_began", "event=day_compacted"
TENDING_STAGES = 12
"""Stages in which a compaction must come: days are compacted when a new one begins, and a day has ten."""
TENDING_POLL_S = 0.001


@dataclass(frozen=True)
class Done:
    """One step as it was done: when it began, in seconds since the start, and how long it took."""

    act: str
    victim: int
    began_s: float
    seconds: float


@dataclass
class Diary:
    """What was done and how long it took, in seconds."""

    began: float = field(default_factory=time.monotonic)
    steps: list[Done] = field(default_factory=list)
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


def do(step: Step, stand: Stand, broker: TortureBroker, diary: Diary) -> None:
    """Do one step while the log flows. Raises TortureError when the stand does not take it as it must."""
    began = time.monotonic()
    if step.act in (Act.KILL, Act.REBALANCE):
        worker = stand.workers[step.victim]
        stand.wait(lambda: stand.settled(worker), f"{worker.name} counting again before the next {step.act}")
    stand.flow.allow_more(FLOW_STAGES)
    stand.rest(step.delay_s)
    _act(step, stand, broker, diary)
    diary.steps.append(Done(step.act, step.victim, round(began - diary.began, 3), round(time.monotonic() - began, 3)))


def _act(step: Step, stand: Stand, broker: TortureBroker, diary: Diary) -> None:
    match step.act:
        case Act.KILL | Act.KILL_STARTING:
            _kill(step, stand, diary)
        case Act.KILL_TENDING:
            _kill_tending(stand, diary)
        case Act.KILL_PRODUCER:
            _kill_producer(step, stand, diary)
        case Act.RESTART_BROKER:
            _restart_broker(stand, broker, diary)
        case Act.KILL_LEADER:
            _kill_leader(step, stand, broker, diary)
        case Act.REBALANCE:
            _rebalance(stand.workers[step.victim], stand, diary)


def _kill(step: Step, stand: Stand, diary: Diary) -> None:
    worker = stand.workers[step.victim]
    worker.kill()
    worker.start("killed")
    stand.flow.allow_more(FLOW_STAGES)
    diary.kills += 1
    if step.act is Act.KILL_STARTING:
        stand.rest(3 * step.delay_s)
        worker.kill()
        worker.start("killed while it started")
        diary.kills += 1


def _kill_tending(stand: Stand, diary: Diary) -> None:
    """Kill the first worker that is in a compaction, as its log tells; give up after TENDING_STAGES.

    A compaction is short: one that ended before the kill does not count as killed, and another is waited for.
    """
    stand.flow.allow_more(TENDING_STAGES)

    def find_compacting() -> Worker | None:
        return next((one for one in stand.workers if _is_compacting(one)), None)

    while not diary.tending_kills:
        stand.wait(lambda: find_compacting() is not None or stand.flow.idle, "in a compaction", poll_s=TENDING_POLL_S)
        worker = find_compacting()
        if worker is None:
            diary.tending_missed += 1
            return
        worker.kill()
        in_time = _is_compacting(worker)
        worker.start("killed in a compaction" if in_time else "killed")
        diary.tending_kills += in_time
        diary.kills += not in_time
    stand.flow.allow_more(FLOW_STAGES)


def _is_compacting(worker: Worker) -> bool:
    said = worker.said()
    return said.count(BEGAN) > said.count(ENDED)


def _kill_producer(step: Step, stand: Stand, diary: Diary) -> None:
    producer = stand.producers[step.victim]
    if not producer.done:
        producer.kill()
        producer.start()
        diary.producer_kills += 1


def _restart_broker(stand: Stand, broker: TortureBroker, diary: Diary) -> None:
    began = time.monotonic()
    lost = broker.restart(stand.rest)
    diary.broker_outages.append(time.monotonic() - began)
    if lost is not None:
        diary.logs_lost += 1
        stand.flow.log_lost(lost)
    stand.flow.allow_more(FLOW_STAGES)
    before = stand.flow.applied_stages
    stand.wait(lambda: stand.flow.applied_stages > before or stand.flow.idle, "counting after the broker's restart")
    diary.broker_recoveries.append(time.monotonic() - began)


def _kill_leader(step: Step, stand: Stand, broker: TortureBroker, diary: Diary) -> None:
    began = time.monotonic()
    most = stand.flow.sent_stages + stand.flow.stages // OUTAGE_SHARE

    def rest(seconds: float) -> None:
        stand.flow.allow(most / stand.flow.stages)
        stand.rest(seconds)

    diary.leader_kills.append(broker.kill_leader(step.victim, rest))
    diary.leader_outages.append(time.monotonic() - began)


def _rebalance(worker: Worker, stand: Stand, diary: Diary) -> None:
    """SIGTERM: its shards must move to the others; started again it must get shards back."""
    others = [other for other in stand.workers if other is not worker]
    if not others:
        return
    began = time.monotonic()
    code = worker.stop()
    worker.child = None
    if code:
        raise TortureError(f"{worker.name} ended with code {code} after SIGTERM\n{stand.tails()}")
    stand.wait(lambda: sum(len(one.shards) for one in others) == stand.partitions, "all shards with the other workers", TAKE_S)
    diary.handovers.append(time.monotonic() - began)
    worker.start("rebalance")
    stand.wait(lambda: bool(worker.shards), f"{worker.name} with shards again", TAKE_S)
    stand.flow.allow_more(FLOW_STAGES)
    stand.wait(lambda: stand.settled(worker), f"{worker.name} counting after the rebalance")
    if (ready_s := worker.restarts[-1].ready_s) is not None:
        diary.returns.append(ready_s)
