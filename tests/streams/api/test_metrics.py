"""The worker's metrics: Prometheus's text format, every family once, histograms that add up."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from streams.api.metrics import describe_histogram, render_metrics
from streams.store.progress import Timings
from tests.support.prometheus import read_families

EXPOSED = (Path(__file__).parent / "metrics.txt").read_text(encoding="utf-8")
"""What Prometheus servers out there have recorded: names, types, labels and values of one `part` whose lag in events is known."""


def part(name: str) -> dict[str, Any]:
    """One shard's part, as a worker tells it."""
    stats = Timings()
    stats.add(50, 0.02)
    stats.add(200_000, 1.5)
    kinds = {"events": describe_histogram(stats.events), "seconds": describe_histogram(stats.seconds)}
    timings = {f"{work}_{kind}": told for work in ("apply", "write") for kind, told in kinds.items()}
    return {
        "worker": {"name": name, "memory_bytes": 10, "new_topics": 1, **timings},
        "status": {"events": 5, "counted": 3, "duplicates": 1, "pending": 0, "quarantined": {"invalid": 1}, "latest_ts": 7.5},
        "lag": {"records": 2, "events": None, "seconds": 0.5, "event_time_seconds": 9.0},
        "state": {"file_bytes": 100, "wal_bytes": 0, "rows": {"seen": 4}, "days": {"number": 2}},
        "delays": [(-80, 1, 0), (0, 2, 2_000_000)],
        "upkeep": {"checkpoint": {"slices": 1, "seconds": 0.2, "longest_s": 0.2}},
    }


def test_names_types_labels_and_values_are_those_that_dashboards_know() -> None:
    shard = part("one")
    shard["lag"]["events"] = 12
    assert read_families(render_metrics({0: shard}, [1, 2])) == read_families(EXPOSED)


def test_every_family_is_told_once_with_its_type_before_its_samples() -> None:
    text = render_metrics({0: part("one"), 3: part("two")}, [1, 2])
    families = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    assert len(families) == len(set(families)) > 15
    current = ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            current = line.split()[2]
        elif not line.startswith("#"):
            assert re.fullmatch(rf"{current}(_bucket|_sum|_count)?(\{{[^}}]*\}})? [-0-9.e+]+", line), line


def test_numbers_stand_by_shard_and_by_worker() -> None:
    text = render_metrics({0: part("one"), 3: part("two")}, [1, 2])
    for told in (
        'queryloop_counted{partition="3"} 3',
        'queryloop_quarantined{partition="0",reason="invalid"} 1',
        'queryloop_lag_seconds{partition="0"} 0.5',
        'queryloop_shard_bytes{partition="0",file="file"} 100',
        'queryloop_upkeep_longest_seconds{partition="3",kind="checkpoint"} 0.2',
        'queryloop_worker_memory_bytes{worker="two"} 10',
        "queryloop_partitions_missing 2",
    ):
        assert f"{told}\n" in text
    assert "queryloop_lag_events{" not in text  # unknown, and so not told


def test_histograms_are_cumulative_and_end_with_all() -> None:
    text = render_metrics({0: part("one")}, [])
    delays = [int(n) for n in re.findall(r'click_delay_seconds_bucket\{partition="0",le="[^"]+"\} (\d+)', text)]
    assert delays == sorted(delays) and delays[-1] == 3
    assert 'queryloop_click_delay_seconds_bucket{partition="0",le="1.0"} 3' in text
    assert 'queryloop_click_delay_seconds_bucket{partition="0",le="0.5"} 1' in text
    assert 'queryloop_click_delay_seconds_sum{partition="0"} 2.0' in text
    applies = [int(n) for n in re.findall(r'apply_events_bucket\{worker="one",le="[^"]+"\} (\d+)', text)]
    assert applies == sorted(applies) and applies[0] == 0 and applies[-1] == 2
    assert 'queryloop_apply_seconds_sum{worker="one"} 1.52' in text
    assert 'queryloop_write_seconds_count{worker="one"} 2' in text
