"""A mapping file that cannot be used is said in one error, with the file, the key and what is allowed, before a row is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.importers.log_files import LogFile
from streams.importers.mapping import MappingError, read_mapping

GOOD = """
[time]
column = "t"
[fields]
session_id = "s"
query = "q"
[query]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "map.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = [", "not valid TOML"),
        ("[tme]\n" + GOOD, "unknown key tme; allowed are file, time, fields, query, impression, click, extra"),
        (GOOD.replace("column", "colum"), "unknown key time.colum; allowed are column, value, format, zone"),
        (GOOD.replace("[time]", "[time]\nvalue = '2020-01-01'"), "time: needs exactly one of column, value"),
        (GOOD.replace("[time]", "[time]\nformat = 'iso'"), "'iso' is none of rfc3339, epoch_s, epoch_ms and no pattern"),
        (GOOD.replace("[time]", "[time]\nzone = 'Mars'"), "zone 'Mars' is not known"),
        (GOOD.replace("[time]", "[time]\nzone = '../../etc/passwd'"), "is not known"),
        (GOOD.replace('"q"', "0"), "fields.query.column = 0: a column is its name in the header, or its number from 1"),
        (GOOD.replace('"q"', "true"), "fields.query = True: a column, or a table of column, value, row"),
        (GOOD.replace('"q"', "{}"), "fields.query: needs exactly one of column, value, row, and has none"),
        (GOOD.replace('query = "q"', ""), "fields.query is missing"),
        (GOOD.replace("[query]", ""), "makes no event: add [query], [impression] or [click]"),
        (GOOD + "when = { column = 'e' }", "query.when: needs exactly one of"),
        (GOOD + "when = { column = 'e', iss = ['x'] }", "unknown key query.when.iss; allowed are column, is, filled"),
        (GOOD + "[file]\ndelimiter = '||'", "file.delimiter: String should have at most 1 character"),
        (GOOD + "[file]\nencoding = 'klingon'", "encoding 'klingon' is not known"),
        (GOOD + "[file]\ncolumns = ['a']", "set header = false"),
        (GOOD + "[extra]\nitems = 'a'", "extra.items is a field of the schema"),
        (GOOD + "[click]\nposition = 'p'", "click.impression_id is missing"),
        (GOOD + "[impression]\nitems = 'a'", "items in one column need split or json = true, or group = true"),
        (GOOD + "[impression]\nitems = { columns = ['a'], split = '|' }", "split and json go with one column"),
        (GOOD + "[impression]\nitems = { column = 'a', split = '|', json = true }", "takes split or json, not both"),
        (GOOD + "[impression]\nitems = 'a'\ngroup = true", "group needs impression_id"),
        (GOOD + "[impression]\nitems = { columns = ['a'] }\norder = 'r'", "order goes with group = true"),
        (GOOD + "[impression]\nitems = { columns = ['a'] }\nclicked = { flag = 'r' }", "clicked.flag goes with group = true"),
        (GOOD + "[impression]\nitems = { columns = ['a'] }\nclicked = {}", "needs exactly one of positions, items, flags, flag"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(MappingError) as error:
        read_mapping(write(tmp_path, text))
    assert said in str(error.value)
    assert all(line.startswith(f"{tmp_path}/map.toml: ") for line in str(error.value).splitlines())


def test_all_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    with pytest.raises(MappingError) as error:
        read_mapping(write(tmp_path, GOOD + "idd = ['a']\n[file]\ndelimiter = ''\n"))
    assert len(str(error.value).splitlines()) == 2


def test_a_mapping_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match=r"none\.toml: cannot be read: .*No such file"):
        read_mapping(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("table", "mapping", "said"),
    [
        ("t,s,Q\n", GOOD, "has no column 'q' (fields.query); its columns are t, s, Q"),
        ("t,s,querry\n", GOOD.replace('"q"', '"query"'), "(did you mean querry?)"),
        ("t,s,q\n", GOOD.replace('"q"', "4"), "has 3 columns, fields.query asks for number 4"),
        (
            "1,2,3\n",
            GOOD + "[file]\nheader = false",
            "has no header (file.header = false): fields.session_id = 's' must be a number",
        ),
        ("t,s,q\n", GOOD.replace('column = "t"', 'value = "noon"'), "time.value: time: 'noon' is not rfc3339"),
        ("", GOOD, "is empty: a header was expected (file.header)"),
    ],
)
def test_a_mapping_that_does_not_fit_the_file_is_said_before_a_row_is_read(
    table: str, mapping: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text(table)
    with pytest.raises(MappingError) as error:
        LogFile(tmp_path / "log.csv", read_mapping(write(tmp_path, mapping)))
    assert said in str(error.value)
    assert "log.csv" in str(error.value)


def test_a_mapping_for_a_log_that_needs_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is Parquet, a mapping is for CSV and TSV"):
        LogFile(tmp_path / "log", read_mapping(write(tmp_path, GOOD)))
