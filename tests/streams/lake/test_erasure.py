"""Erasure from the lake: day files are rewritten without a session's or a user's rows; pairs are counted without its queries."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from streams.events.erasures import Subject
from streams.lake.erasure import erase_from_lake
from streams.lake.files import Lake, LakeSettings, list_files
from streams.lake.reader import read_cooccurrence, read_impressions, read_queries
from streams.store.lake_export import export_mature
from streams.store.shard import CountingRules, Shard
from tests.support.logs import START, day, feed, impression, query

RULES = CountingRules(session_cap=20)
TODAY, TOMORROW = day(START), day(START) + timedelta(days=1)
DAY = 86_400.0


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """Two exported days of two partitions, in which session `x` has rows that no other session has."""
    lake = Lake.local(tmp_path / "lake")
    for partition in (0, 1):
        shard = Shard.open(tmp_path / f"{partition}.duckdb", RULES)
        log = [
            line
            for start in (START, START + DAY)
            for line in (
                query(f"a{start}", start, "red", session_id="x", user_id="u"),
                query(f"b{start}", start + 1, "my secret", session_id="x"),
                query(f"c{start}", start + 2, "blue", session_id="x"),
                query(f"d{start}", start, "red", session_id=f"y{partition}"),
                query(f"e{start}", start + 2, "blue", session_id=f"y{partition}"),
                impression(f"f{start}", start, f"i{start}", session_id="x", user_id="u"),
                impression(f"g{start}", start, f"j{start}", session_id=f"y{partition}"),
            )
        ]
        feed(shard, [*log, query("late", START + 5 * DAY)])
        export_mature(shard, partition, lake, LakeSettings())
        shard.close()
    return lake


def erase(lake: Lake, subject: Subject, dry_run: bool = False) -> dict[str, int]:
    return dict(erase_from_lake(lake, subject, RULES, lambda done, total: None, dry_run).rows)


def test_a_sessions_rows_and_the_pairs_that_only_it_had_are_gone(lake: Lake) -> None:
    assert erase(lake, Subject("session", "x")) == {"queries": 12, "impressions": 4}
    assert set(read_queries(lake, TODAY, TOMORROW)["session_id"].to_pylist()) == {"y0", "y1"}
    assert set(read_impressions(lake, TODAY, TOMORROW)["session_id"].to_pylist()) == {"y0", "y1"}
    assert read_cooccurrence(lake, TODAY, TOMORROW).to_pylist() == [{"query": "red", "next_query": "blue", "count": 4}]


def test_a_users_rows_go_up_to_the_time_of_the_erasure(lake: Lake) -> None:
    assert erase(lake, Subject("user", "u", round((START + 60) * 1e6))) == {"queries": 2, "impressions": 2}
    assert read_impressions(lake, TODAY, TOMORROW)["user_id"].to_pylist().count("u") == 2


def test_a_dry_run_changes_no_file_and_a_second_run_finds_nothing(lake: Lake) -> None:
    files = {file.path: Path(file.path).read_bytes() for file in list_files(lake, "queries")}
    counted = erase(lake, Subject("session", "x"), dry_run=True)
    assert {path: Path(path).read_bytes() for path in files} == files
    assert erase(lake, Subject("session", "x")) == counted
    assert erase(lake, Subject("session", "x")) == {}


def test_a_run_that_is_killed_between_two_files_is_finished_by_the_next(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    written: list[str] = []

    def kill_at_the_third(*args: object) -> None:
        if len(written) == 2:
            raise Killed
        written.append("file")
        put(*args)  # type: ignore[arg-type]

    from streams.lake import erasure

    put = erasure.put_file
    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(erasure, "put_file", kill_at_the_third)
        erase(lake, Subject("session", "x"))
    erase(lake, Subject("session", "x"))
    assert read_cooccurrence(lake, TODAY, TOMORROW).to_pylist() == [{"query": "red", "next_query": "blue", "count": 4}]
    assert "x" not in read_queries(lake, TODAY, TOMORROW)["session_id"].to_pylist()


def test_a_file_without_any_row_left_is_removed(tmp_path: Path) -> None:
    lake, shard = Lake.local(tmp_path / "lake"), Shard.open(tmp_path / "one.duckdb", RULES)
    feed(shard, [query("a", START, session_id="x"), query("b", START + 3 * DAY, session_id="y")])
    export_mature(shard, 0, lake, LakeSettings())
    shard.close()
    erase(lake, Subject("session", "x"))
    assert list_files(lake, "queries") == []
