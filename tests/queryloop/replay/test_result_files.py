"""The result files of an isolated replay: written whole or not at all, exact, and harmless where people open them."""

from __future__ import annotations

from pathlib import Path

import pytest

from queryloop.replay.result_files import write_csv, write_results
from streams.events.rules import CountingRules
from streams.importers.log_files import Place
from streams.store.held_shards import shard_path
from streams.store.shard import Shard
from tests.support.logs import NOW, START, click, day, feed, impression
from tests.support.recount import recount
from tests.support.replayed_logs import assert_results, read_table


def test_one_day_writes_its_tables_beside_the_summary(tmp_path: Path) -> None:
    shard = Shard.open(shard_path(tmp_path, 0), CountingRules(retention_days=0))
    lines = [impression("i", START, "L", ["=1+1", 'a "b", c']), click("c", START + 5, "L", 1), click("w", START + 9, "unknown")]
    feed(shard, lines)
    shard.close()
    as_of = [day(START + 86_400)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text("of an earlier run")
    account = write_results(tmp_path, 1, CountingRules(retention_days=0), as_of, tmp_path / "out", NOW)
    assert_results(tmp_path / "out", recount(lines), as_of)
    numbers = {"events": 3, "counted": 2, "duplicates": 0, "pending": 0, "quarantined": {"orphan_click": 1}}
    rows = {as_of[0].isoformat(): {"windows": 2, "cooccurrence": 0}}
    assert account == numbers | {"latest_ts": START + 9, "rows": rows}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cooccurrence.csv", "quarantine.csv", "windows.csv"]


def test_a_table_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", ["a"], [("1",)])

    def rows() -> object:
        yield ("2",)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_csv(tmp_path / "t.csv", ["a"], rows())  # type: ignore[arg-type]
    assert read_table(tmp_path / "t.csv") == [("a",), ("1",)]


def test_a_refused_event_is_named_with_its_place_and_no_text_is_a_formula(tmp_path: Path) -> None:
    lines = [click("=cmd|' /C calc'!A0", START, "unknown"), b"{not json"]
    shard = Shard.open(shard_path(tmp_path, 0), CountingRules(retention_days=0))
    feed(shard, lines)
    shard.close()
    places = {lines[0]: Place("-1+1.jsonl", "line", 7)}
    write_results(tmp_path, 1, CountingRules(retention_days=0), [day(START)], tmp_path / "out", NOW, lambda wanted: places)
    header, broken, orphan = read_table(tmp_path / "out" / "quarantine.csv")
    assert header == ("event_id", "reason", "file", "unit", "number", "detail")
    assert broken[:5] == ("", "malformed", "", "", "") and broken[5].startswith("not JSON in UTF-8")
    assert orphan[:5] == ("'=cmd|' /C calc'!A0", "orphan_click", "'-1+1.jsonl", "line", "7")
