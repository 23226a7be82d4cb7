"""A mapping is one SELECT, from a file or by the name of one that ships; anything else is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.importers.mapping import Mapping, MappingError, read_mapping, shipped_names


def test_a_mapping_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "m.sql").write_text("-- mine\nFROM log; -- all of it\n", encoding="utf-8")
    mapping = read_mapping(tmp_path / "m.sql")
    assert (mapping.name, mapping.sql) == (str(tmp_path / "m.sql"), "-- mine\nFROM log; -- all of it\n")


@pytest.mark.parametrize("name", shipped_names())
def test_a_bare_name_is_one_that_ships_from_any_directory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_mapping(Path(name)).sql.startswith("-- ")


def test_a_file_of_ones_own_goes_before_one_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ubi.sql").write_text("SELECT 1")
    assert read_mapping(Path("ubi.sql")).sql == "SELECT 1"


def test_an_unknown_name_lists_those_that_ship() -> None:
    with pytest.raises(
        MappingError, match=r"^ubl\.sql: no such file, and no mapping of that name ships: aol\.sql, .*, ubi\.sql$"
    ):
        read_mapping(Path("ubl.sql"))


def test_a_path_is_no_name_of_one_that_ships(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"ubi\.sql: cannot be read: No such file or directory$"):
        read_mapping(tmp_path / "ubi.sql")


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("", "exactly one SELECT, this has no statement"),
        ("-- nothing", "this has no statement"),
        ("SELECT 1; SELECT 2", "this has SELECT, SELECT"),
        ("COPY log TO 'x.csv'", "this has COPY"),
        ("ATTACH 'x.duckdb'", "this has ATTACH"),
        ("INSTALL httpfs", "this has LOAD"),
        ("LOAD httpfs", "this has LOAD"),
        ("SET memory_limit = '9GB'", "this has SET"),
        ("RESET lock_configuration", "this has SET"),
        ("PRAGMA version", "this has PRAGMA"),
        ("CALL pragma_version()", "this has CALL"),
        ("CREATE TABLE t AS FROM log", "this has CREATE"),
        ("EXPLAIN SELECT 1", "this has EXPLAIN"),
        ("SELECT\n1 AS type\nFRM log", 'Parser Error: syntax error at or near "FRM" (line 3)'),
    ],
)
def test_what_is_not_one_select_is_refused(sql: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "m.sql").write_text(sql)
    with pytest.raises(MappingError) as refused:
        read_mapping(tmp_path / "m.sql")
    assert str(refused.value).startswith(f"{tmp_path}/m.sql: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.sql").write_bytes(b"SELECT '\xff'")
    with pytest.raises(MappingError, match=r"m\.sql: cannot be read: "):
        read_mapping(tmp_path / "m.sql")


def test_a_mapping_made_in_code_is_checked_as_well() -> None:
    with pytest.raises(MappingError, match=r"^mine: a mapping is exactly one SELECT, this has SELECT, COPY$"):
        Mapping("mine", "SELECT 1; COPY (SELECT 2) TO 'x.csv'")
