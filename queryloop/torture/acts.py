"""What is done to the processes of the stand, one function for each act of the schedule."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from queryloop.torture.brokers import TortureBroker
from queryloop.torture.schedule import Act, Step
from queryloop.torture.stand import Stand, TortureError
from queryloop.torture.workers import Worker

FLOW_STAGES = 2
"""Stages that flow before a process dies, so that it dies at work, and again when it is back, so that it has work."""
TAKE_S = 60.0
TENDING = "event=compaction_began"
TENDING_S = 20.0


@dataclass
class Diary:
    """What was done and how long it took, in seconds."""

    kills: int = 0
    producer_kills: int = 0
    tending_kills: int = 0
    tending_missed: int = 0
    logs_lost: int = 0
    leader_kills: list[int] = field(default_factory=list)
    broker_outages: list[float] = field(default_factory=list)
    broker_recoveries: list[float] = field(default_factory=list)
    handovers: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)


def do(step: Step, stand: Stand, broker: TortureBroker, diary: Diary) -> None:
    """Do one step while the log flows. Raises TortureError when the stand does not take it as it must."""
    if step.act in (Act.KILL, Act.REBALANCE):
        worker = stand.workers[step.victim]
        stand.wait(lambda: stand.settled(worker), f"{worker.name} counting again before the next {step.act}")
    stand.allow_more(FLOW_STAGES)
    stand.rest(step.delay_s)
    match step.act:
        case Act.KILL | Act.KILL_STARTING:
            _kill(step, stand, diary)
        case Act.KILL_TENDING:
            _kill_tending(stand.workers[step.victim], stand, diary)
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
    stand.allow_more(FLOW_STAGES)
    diary.kills += 1
    if step.act is Act.KILL_STARTING:
        stand.rest(3 * step.delay_s)
        worker.kill()
        worker.start("killed while it started")
        diary.kills += 1


def _kill_tending(worker: Worker, stand: Stand, diary: Diary) -> None:
    """Kill the worker in the middle of a compaction, as its log tells one; give up when none begins in time."""
    before = worker.said().count(TENDING)
    until = time.monotonic() + TENDING_S
    stand.wait(lambda: worker.said().count(TENDING) > before or time.monotonic() > until, "in a compaction")
    if worker.said().count(TENDING) == before:
        diary.tending_missed += 1
        return
    worker.kill()
    worker.start("killed in a compaction")
    stand.allow_more(FLOW_STAGES)
    diary.tending_kills += 1


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
        stand.send_again(lost)
    stand.allow_more(FLOW_STAGES)
    before = stand.applied_stages
    stand.wait(lambda: stand.applied_stages > before or stand.idle, "counting after the broker's restart")
    diary.broker_recoveries.append(time.monotonic() - began)


def _kill_leader(step: Step, stand: Stand, broker: TortureBroker, diary: Diary) -> None:
    began = time.monotonic()
    diary.leader_kills.append(broker.kill_leader(step.victim, stand.rest))
    diary.broker_outages.append(time.monotonic() - began)


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
    stand.allow_more(FLOW_STAGES)
    stand.wait(lambda: worker.settled, f"{worker.name} counting after the rebalance")
    diary.returns.append(worker.restarts[-1].ready_s or 0.0)
