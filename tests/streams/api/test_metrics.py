"""The worker's metrics: Prometheus's text format, every family once, histograms that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from streams.api.metrics import describe_histogram, render_metrics
from streams.store.progress import Timings
from tests.support.prometheus import read_families, read_value

EXPOSED = (Path(__file__).parent / "metrics.txt").read_text(encoding="utf-8")
"""What Prometheus servers out there have recorded: names, types, labels and values of one `part` whose lag in events is known."""


PROCESS = {"version": "9.9", "python": "3.11.2", "disk_free_bytes": 30, "disk_size_bytes": 120}


def part(name: str) -> dict[str, Any]:
    """One shard's part, as a worker tells it."""
    stats = Timings()
    stats.add(50, 0.02)
    stats.add(200_000, 1.5)
    kinds = {"events": describe_histogram(stats.events), "seconds": describe_histogram(stats.seconds)}
    timings = {f"{work}_{kind}": told for work in ("apply", "write") for kind, told in kinds.items()}
    days = {"first": "2026-02-01", "last": "2026-02-03", "number": 3}
    return {
        "worker": {"name": name, "memory_bytes": 10, "new_topics": 1, "process": PROCESS, **timings},
        "status": {
            "events": 7,
            "counted": 3,
            "duplicates": 1,
            "pending": 0,
            "erased": 2,
            "left_out": {"lists": 4, "pairs": 0},
            "quarantined": {"invalid": 1},
            "latest_ts": 7.5,
            "days_exported": ["2026-01-04", "2026-02-01"],
        },
        "lag": {"open_transaction_records": 0, "records": 2, "events": None, "seconds": 0.5, "event_time_seconds": 9.0},
        "state": {"file_bytes": 100, "wal_bytes": 0, "rows": {"seen": 4}, "events": 4, "days": days},
        "delays": [(-80, 1, 0), (0, 2, 2_000_000)],
        "upkeep": {"checkpoint": {"slices": 1, "seconds": 0.2, "longest_s": 0.2}},
    }


def render(shards: dict[int, dict[str, Any]], missing: list[int]) -> str:
    return render_metrics(shards, missing).decode()


def test_names_types_labels_and_values_are_those_that_dashboards_know() -> None:
    shard = part("one")
    shard["lag"]["events"] = 12
    assert read_families(render({0: shard}, [1, 2])) == read_families(EXPOSED)


def test_every_family_is_there_when_no_worker_answers() -> None:
    families = read_families(render({}, [0]))
    assert families.keys() == read_families(EXPOSED).keys()
    assert [name for name, (_, _, samples) in families.items() if samples] == ["queryloop_partitions_missing"]


def test_numbers_stand_by_shard_and_by_worker() -> None:
    text = render({0: part("one"), 3: part("two")}, [1, 2])
    assert read_value(text, "queryloop_counted_events", partition="3") == 3
    assert read_value(text, "queryloop_quarantined_events", partition="0", reason="invalid") == 1
    assert read_value(text, "queryloop_lag_seconds", partition="0") == 0.5
    assert read_value(text, "queryloop_shard_bytes", partition="0", file="file") == 100
    assert read_value(text, "queryloop_upkeep_longest_seconds", partition="3", kind="checkpoint") == 0.2
    assert read_value(text, "queryloop_worker_memory_bytes", worker="two") == 10
    assert read_value(text, "queryloop_partitions_missing") == 2


def test_a_number_that_is_not_known_is_not_told() -> None:
    assert read_families(render({0: part("one")}, []))["queryloop_lag_events"][2] == {}


def test_a_worker_with_several_shards_is_told_once() -> None:
    families = read_families(render({0: part("one"), 1: part("one"), 2: part("two")}, []))
    assert len(families["queryloop_new_topics"][2]) == 2
    assert len(families["queryloop_counted_events"][2]) == 3


def test_histograms_are_cumulative_and_end_with_all() -> None:
    text = render({0: part("one")}, [])
    for name, label, number, total in (
        ("click_delay_seconds", ("partition", "0"), 3, 2.0),
        ("apply_events", ("worker", "one"), 2, 200_050),
        ("write_seconds", ("worker", "one"), 2, 1.52),
    ):
        _, _, samples = read_families(text)[f"queryloop_{name}"]
        buckets = sorted((dict(labels)["le"], value) for (sample, labels), value in samples.items() if sample.endswith("_bucket"))
        counts = [value for _, value in buckets]
        assert counts == sorted(counts) and buckets[-1] == (float("inf"), number) and counts[0] < number
        assert samples[f"queryloop_{name}_count", frozenset([label])] == number
        assert samples[f"queryloop_{name}_sum", frozenset([label])] == total
    assert read_value(text, "queryloop_click_delay_seconds_bucket", partition="0", le="0.5") == 1
    assert read_value(text, "queryloop_click_delay_seconds_bucket", partition="0", le="1.0") == 3


@given(st.text())
@example('say "hi"')
@example("back\\slash\nline\\")
@example('one"} 7\nqueryloop_counted_events{partition="9')
def test_any_label_value_comes_back_as_it_was(value: str) -> None:
    shard = part(value)
    shard["state"]["rows"] = {value: 4}
    text = render({0: shard}, [])
    assert read_value(text, "queryloop_shard_rows", partition="0", table=value) == 4
    assert read_value(text, "queryloop_write_seconds_count", worker=value) == 2
    assert len(read_families(text)["queryloop_counted_events"][2]) == 1
