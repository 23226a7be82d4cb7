"""Benchmarks, ingest: the pure parts: ratios round by round, delays from looks at the worker, memory, extrapolation, options."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import latency, peer_venv
from benchmarks.corpus import Corpus
from benchmarks.endurance import extrapolate, judge_memory, report_catch_up, report_memory
from benchmarks.ingest import QUICK, SECTIONS, Sizes, _sections, choose_sizes
from benchmarks.ingest_tables import print_report
from benchmarks.latency import judge_latency, visible_delays
from benchmarks.peer_venv import PeersUnavailable, peer_folder, peer_python
from benchmarks.probes.disk import DiskProbe
from benchmarks.probes.reads import ReadProbe
from benchmarks.probes.usage import Usage, cores_used, cpu_seconds, read_stolen, read_threads, read_usage, resident_mib
from benchmarks.throughput import Contest, judge_throughput, report_throughput
from benchmarks.worker_runs import Progress, Rate, Site, Topic

ROOT = Path(__file__).resolve().parents[2]

HEAD = {
    "quick": True,
    "share": 1.0,
    "machine": "m",
    "load_at_end": 1.0,
    "stolen_cores": 0.25,
    "measured": "now",
    "partitions": 4,
    "bytes_an_event": 300.0,
}


def rate(per_s: float) -> Rate:
    return Rate(100_000, 100_000 / per_s, whole_s=9.0, worker_cpu_s=1.0, broker_cpu_s=0.1, threads_s=(0.6, 0.4, 0.001))


def contest(lines: int, **per_s: list[float]) -> Contest:
    return Contest(Topic("t", 100_000, lines), {name: [rate(one) for one in values] for name, values in per_s.items()})


def test_ratios_are_taken_round_by_round_and_a_missed_one_is_named() -> None:
    batched = contest(100, ours=[80.0, 200.0, 70.0], bare=[100.0, 400.0, 100.0], quixstreams=[10.0, 20.0, 14.0])
    to_bare, to_quix = judge_throughput([batched])
    assert to_bare.value == pytest.approx(0.7) and to_bare.met
    assert to_quix.value == pytest.approx(8.0) and to_quix.met
    missed = judge_throughput([contest(1, ours=[90.0], bare=[100.0], quixstreams=[45.0])])
    assert [goal.met for goal in missed] == [False, False]
    assert missed[1].verdict() == (
        "throughput, 1 a record: ours to quixstreams (equivalent count): 2 x, goal at least 3 x: MISSED by 1 x (33%)"
    )


def test_the_report_prints_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    contests = [contest(100, ours=[80.0], bare=[100.0], quixstreams=[10.0], quixstreams_light=[20.0])]
    memory = report_memory([(0.0, 100, 50.0), (1.0, 200, 55.0)], 100)
    print_report({**HEAD, "throughput": report_throughput(contests), "memory": memory}, judge_throughput(contests))
    text = capsys.readouterr().out
    assert "QUICK" in text and "0.80 x" in text and "MISSED" not in text and "50 MiB" in text
    assert "10.0 = 6.0 + 4.0" in text and "by thread" in text


def test_an_event_is_visible_at_the_first_look_past_its_record() -> None:
    looks = [Progress(at, 0, offsets) for at, offsets in ((10.0, {}), (10.1, {0: 1, 1: 0}), (10.3, {0: 2, 1: 5}))]
    records = [[0, 0, 9.9, 10.0, 3], [0, 1, 10.1, 10.1, 1], [1, 4, 10.0, 10.2, 2]]
    assert visible_delays(records, looks) == pytest.approx([0.2, 0.15, 0.1, 0.2, 0.3, 0.1])


def test_batches_are_counted_as_shards_that_moved_on_between_two_looks() -> None:
    offsets: list[dict[int, int]] = [{0: 0}, {0: 0, 1: 0}, {0: 5, 1: 3}, {0: 5, 1: 3}, {0: 5, 1: 4}]
    assert latency.count_batches([Progress(float(at), 0, looked) for at, looked in enumerate(offsets)]) == 4


def test_an_event_that_never_became_visible_is_an_error() -> None:
    with pytest.raises(ValueError, match="offset 7 of partition 0"):
        visible_delays([[0, 7, 1.0, 1.0, 1]], [Progress(2.0, 9, {0: 7})])


def test_latency_is_measured_in_rounds_at_half_of_what_the_worker_did_just_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fulls, paced = iter([1000.0, 3000.0, 9000.0]), []

    def measure(_site: object, _corpus: object, topic: str, per_s: float, seconds: float, every_s: float = 0) -> dict[str, float]:
        paced.append((topic, per_s, seconds))
        shown = dict.fromkeys(("p50_ms", "p90_ms", "p99_ms", "max_ms", "disk_p99_ms", "disk_max_ms"), per_s)
        shown |= {"read_p50_ms": every_s, "read_max_ms": 321.0} if every_s else {}
        return (
            shown
            | {"events_per_s": per_s, "batches_per_s": 19.5}
            | dict.fromkeys(("worker_cores", "broker_cores", "producer_cores", "stolen_cores"), 0.5)
        )

    monkeypatch.setattr(
        latency, "measure_worker", lambda _site, topic: Rate(topic.events, topic.events / next(fulls), 1.0, 1.0, 0.1)
    )
    monkeypatch.setattr(latency, "measure_round", measure)
    corpus = Corpus(tmp_path, 4, 40_000, 0)
    section = latency.measure_latency(Site("b", 1, 4, tmp_path), corpus, Topic("t", 100, 100), 3, 20.0)
    assert paced == [
        ("paced-0", 500.0, 20.0),
        ("paced-1", 1500.0, pytest.approx(14.33, abs=0.01)),
        ("paced-2", 38_000 / 12, 1.0),
        ("paced-watched", 38_000 / 12, 1.0),
        ("paced-little", 2000.0, 10.0),
    ]
    assert (section["full_per_s"], section["p99_ms"], len(section["rounds"])) == (3000.0, 1500.0, 3)
    print_report({**HEAD, "latency": section}, judge_latency(section))
    text = capsys.readouterr().out
    assert "20 batches/s take 0.50 cores" in text and "500 of 1,000 events/s" in text and "MISSED by 1,000 ms" in text
    assert "a read takes p50 2, max 321 ms" in text
    assert "the host took 0.25 cores of it (steal)" in text and "0.50 cores taken by the host" in text


def test_latency_is_judged_by_its_p99() -> None:
    (goal,) = judge_latency({"p99_ms": 620.0})
    assert goal.verdict().endswith("goal at most 500 ms: MISSED by 120 ms (24%)")


def test_memory_is_compared_between_the_early_and_the_last_events() -> None:
    samples = [(float(n), n * 100_000, 100.0 + n) for n in range(1, 51)]
    section = report_memory(samples, 1_000_000)
    assert (section["early_mib"], section["late_mib"]) == (111.0, 149.0)
    (goal,) = judge_memory(section)
    assert goal.value == pytest.approx(100 * (149 / 111 - 1)) and not goal.met


def test_an_extrapolation_goes_on_at_the_rate_of_the_last_fifth() -> None:
    samples = [(0.0, 0, 1.0), (4.0, 800, 1.0), (6.0, 1000, 1.0)]  # 200 a second, then 100
    assert extrapolate(samples, 1000) == 6.0
    assert extrapolate(samples, 1500) == 11.0
    assert report_catch_up(samples)["per_s"] == pytest.approx(1000 / 6)


def test_cpu_time_is_read_past_a_command_with_brackets() -> None:
    fields = " ".join(str(number) for number in range(4, 40))
    assert cpu_seconds(f"42 (a (b) c) S {fields}") == pytest.approx((14 + 15) / 100)


def test_a_running_process_is_seen_with_its_threads() -> None:
    threads = read_threads(os.getpid())
    assert threads.keys() >= {os.getpid()}
    assert sum(threads.values()) <= read_usage(os.getpid()).cpu_s + 0.1
    assert resident_mib(os.getpid()) > 10


def test_what_the_host_keeps_is_that_of_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    told = [SimpleNamespace(steal=2.0), SimpleNamespace(steal=30.0), SimpleNamespace(steal=0.5), SimpleNamespace(user=1.0)]
    monkeypatch.setattr("benchmarks.probes.usage.psutil.cpu_times", lambda percpu: told)
    monkeypatch.setattr("benchmarks.probes.usage.os.sched_getaffinity", lambda _pid: {0, 2, 3})
    assert read_stolen().cpu_s == 2.5
    assert cores_used(Usage(1.0, 10.0), Usage(2.5, 15.0)) == 0.3


@pytest.mark.parametrize("status", [200, 503])
def test_windows_are_read_until_the_block_is_left_and_a_refusal_is_said(status: int) -> None:
    asked: list[str] = []

    class Door(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nothing to stderr."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        outcome = nullcontext() if status == 200 else pytest.raises(RuntimeError, match=r"could not be read: .*HTTP 503")
        with outcome, ReadProbe(f"http://127.0.0.1:{server.server_port}", "warm coat", every_s=0.001) as reads:
            while len(reads.waits_s) < (3 if status == 200 else 1):
                pass
        server.shutdown()
    assert asked[0] == "/v1/windows?query=warm+coat&max_age_s=3600"
    assert reads.since(0.0) == [seconds for _, seconds in reads.waits_s]
    assert reads.since(reads.waits_s[-1][0] + 1.0) == []


def test_a_disk_is_written_to_until_the_block_is_left(tmp_path: Path) -> None:
    with DiskProbe(tmp_path / "probe", every_s=0.001) as disk:
        while len(disk.waits_s) < 5:
            continue
    seen = len(disk.waits_s)
    assert min(disk.waits_s) > 0 and list(tmp_path.iterdir()) == []
    assert len(disk.waits_s) == seen


def test_sections_are_chosen_by_name() -> None:
    assert _sections("memory, state") == ("memory", "state")
    with pytest.raises(argparse.ArgumentTypeError, match=r"no section speed; sections are throughput"):
        _sections("speed")
    assert len(SECTIONS) == 5


def test_sizes_are_shares_of_the_full_or_the_quick_ones() -> None:
    assert choose_sizes(False, 1.0, None) == Sizes()
    half = choose_sizes(False, 0.5, 2)
    assert (half.throughput, half.state, half.repeats, half.latency_s) == (500_000, 10_000_000, 2, 20.0)
    assert choose_sizes(True, 1.0, None) == QUICK


def test_the_peers_environment_is_one_of_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert peer_folder(b"a") != peer_folder(b"b")
    ready = peer_folder(peer_venv.LOCK.read_bytes())
    ready.mkdir(parents=True)
    (ready / "ready").touch()
    assert peer_python() == ready / "bin" / "python"


def test_without_a_network_it_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failed = subprocess.CompletedProcess([], 2, "", "error: failed to fetch https://pypi")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(PeersUnavailable, match=r"is PyPI reachable\?\nerror: failed to fetch"):
        peer_python()


def test_help_shows_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ingest", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "example: python -m benchmarks.ingest" in done.stdout
