"""Benchmarks, scale: the sizing by hand-computed examples, the hash by Kafka's own client, the outage by a second simulation."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kafka.partitioner.default import murmur2 as kafka_murmur2

from benchmarks.capacity.outage import PEAK_AT_S, outage_backlog, rate_at, simulate, simulate_day
from benchmarks.capacity.sizing import DAY_S, Assumptions, Costs, plan
from benchmarks.capacity.skew import draw_sessions, murmur2, partition_shares
from benchmarks.scale import BEGIN, DOCUMENT, END, MEASURED, judge, main, render, size_all

ROOT = Path(__file__).resolve().parents[2]
COSTS = Costs(
    measured="never",
    worker_per_s=50_000,
    state_ratio=0.8,
    state_events_a_shard=5e6,
    broker_us=2.0,
    wire_bytes=300,
    shard_bytes=100,
    lake_bytes=50,
    worker_mib=560,
    worker_shards=4,
    little_cores=0.2,
)
ASSUMED = Assumptions()


def test_a_plan_for_a_billion_events_a_day_by_hand() -> None:
    one = plan(864_000_000, COSTS, ASSUMED)
    assert (one.mean_per_s, one.peak_per_s) == (10_000, 30_000)
    assert one.worker_capacity_per_s == 40_000
    # By load 30,000 x 1.25 / (40,000 x 0.6) = 1.56, by disk 2.678e12 x 1.5 / (2e12 x 0.6) = 3.35.
    assert one.shard_bytes == pytest.approx(864e6 * 31 * 100)
    assert one.workers == 4
    # By size 2.678e12 / 32e9 = 83.7, by events 2.678e10 / 2e8 = 133.9, both up to a power of two.
    assert one.partitions == 256
    assert one.shard_events == pytest.approx(864e6 * 31 / 256)
    assert one.beyond_measured == pytest.approx(864e6 * 31 / 256 / 5e6)
    assert one.shard_move_s == pytest.approx(one.shard_bytes / 256 / 200e6)
    assert one.log_bytes == 864e6 * 300 * 31 * 3
    assert one.rebuild_s == pytest.approx(one.shard_events / 40_000)
    # By disk 24.1e12 / (8e12 x 0.6) = 5.02.
    assert one.brokers == 6
    assert one.broker_disk_use == pytest.approx(864e6 * 300 * 93 / 8e12 / 6)
    assert one.broker_network_use == pytest.approx(30_000 * 300 * 6 / 1.25e9 / 6)
    assert one.broker_cpu_use == pytest.approx(30_000 * 2e-6 * 4 / 8 / 6)
    assert one.worker_mib == pytest.approx(160 + 64 * 100)
    assert one.lake_bytes == 864e6 * 50 * 365


def test_a_small_product_needs_one_worker_and_four_partitions() -> None:
    one = plan(1e6, COSTS, ASSUMED)
    assert (one.workers, one.partitions, one.brokers) == (1, 4, 3)


def test_a_slower_worker_asks_for_more_workers_and_partitions_for_them() -> None:
    slow = plan(864_000_000, replace(COSTS, worker_per_s=2_500), ASSUMED)
    assert slow.workers == 32  # 37,500 / (2,000 x 0.6) = 31.25
    assert slow.partitions >= 4 * slow.workers


def test_the_hash_is_kafkas_own() -> None:
    keys = np.random.default_rng(1).integers(0, 2**32, (200, 4), dtype=np.uint32)
    expected = [kafka_murmur2(row.astype("<u4").tobytes()) & 0xFFFFFFFF for row in keys]
    assert murmur2(keys).tolist() == expected


def test_sessions_have_the_mean_asked_for_and_a_tail() -> None:
    drawn = draw_sessions(np.random.default_rng(2), 100_000, 5.8, 1.5, 10_000)
    assert drawn.mean() == pytest.approx(5.8)
    assert drawn.max() > 200


def test_shares_sum_to_one_and_one_giant_session_weighs_on_one_partition() -> None:
    weights = np.ones(1000)
    weights[17] = 1000
    shares = partition_shares(np.random.default_rng(3), weights, 8)
    assert shares.sum() == pytest.approx(1.0)
    assert 0.5 < shares.max() < 0.6


def test_the_daily_curve_has_its_mean_and_its_peak() -> None:
    rates = [rate_at(second, 100.0, 3.0) for second in range(0, DAY_S, 60)]
    assert sum(rates) / len(rates) == pytest.approx(100.0)
    assert max(rates) == rate_at(PEAK_AT_S, 100.0, 3.0) == pytest.approx(300.0)
    assert min(rates) > 0


def test_an_outage_is_caught_up_as_the_fluid_says() -> None:
    one, assumed = plan(1e8, COSTS, ASSUMED), replace(ASSUMED, peak_factor=3.0)
    most, seconds = outage_backlog(replace(one, worker_capacity_per_s=5_000), assumed, 1.0)
    missed = sum(rate_at(PEAK_AT_S - 3600 + second, one.mean_per_s, 3.0) for second in range(3600))
    assert most == pytest.approx(missed, rel=0.01)
    waiting, second = missed, 0
    while waiting > 0:
        waiting += rate_at(PEAK_AT_S + second, one.mean_per_s, 3.0) - 5_000
        second += 1
    assert seconds == pytest.approx(second, abs=60)


def test_a_worker_that_cannot_follow_never_catches_up() -> None:
    slow = replace(plan(1e8, COSTS, ASSUMED), worker_capacity_per_s=1_000)
    assert outage_backlog(slow, ASSUMED, 1.0)[1] == float("inf")


def test_a_day_takes_the_busiest_partition_and_worker() -> None:
    one = replace(plan(1e6, COSTS, ASSUMED), workers=2, partitions=4, peak_per_s=100, worker_capacity_per_s=100)
    day = simulate_day(one, ASSUMED, [0.4, 0.1, 0.3, 0.2])
    assert day.partition_skew == pytest.approx(1.6)
    assert day.worker_skew == pytest.approx(1.4)
    assert [day.worker_use, day.partition_use] == pytest.approx([0.7 + 0.1, 0.4])  # and half of 0.2 cores for batches


def test_the_same_seed_simulates_the_same_days() -> None:
    one = plan(1e8, COSTS, ASSUMED)
    assert simulate(one, ASSUMED, 10_000, 2) == simulate(one, ASSUMED, 10_000, 2)


def test_every_size_keeps_its_headroom_and_a_tight_one_is_named() -> None:
    for one, day in size_all(COSTS, ASSUMED, 20_000, 1):
        assert [goal.verdict() for goal in judge(one, day, ASSUMED) if not goal.met] == []
    one, day = size_all(COSTS, ASSUMED, 20_000, 1)[2]
    missed = [goal for goal in judge(one, replace(day, worker_use=0.9), ASSUMED) if not goal.met]
    assert [goal.verdict() for goal in missed] == [
        "10^9 events a day: busiest worker at the peak: 90 %, goal at most 60 %: MISSED by 30 % (50%)"
    ]


def test_the_quick_check_passes_on_the_committed_costs(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--quick", "--check", "--json", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert [size["plan"]["events_a_day"] for size in report["sizes"]] == [1e6, 1e8, 1e9]
    assert all(goal["met"] for goal in report["goals"])


def test_a_missed_goal_fails_the_check_and_an_unknown_assumption_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--check", "--assume", "catch_up_s=1"]) == 1
    assert "catch-up after the outage" in capsys.readouterr().out
    assert main(["--quick", "--assume", "speed=2"]) == 2
    assert "no assumption 'speed'" in capsys.readouterr().err


def test_the_document_holds_what_the_command_gives() -> None:
    costs = Costs.of_report(json.loads(MEASURED.read_text()))
    text = DOCUMENT.read_text()
    written = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    assert written == render(costs, ASSUMED, size_all(costs, ASSUMED)), "python -m benchmarks.scale --write"
