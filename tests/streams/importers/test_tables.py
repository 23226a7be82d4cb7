"""A table's rows are all read or refused: whatever they hold and however they are broken, none is lost and none is changed."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import streams.importers.tables
from streams.importers.sources import LogFileError
from streams.importers.tables import Header, convert_table, read_header


def converted(folder: Path, content: bytes) -> tuple[list[tuple[str | None, ...]], list[tuple[int, bytes, str]]]:
    """The rows of a table, and those that were refused."""
    (folder / "log").write_bytes(content)
    refused: list[tuple[int, bytes, str]] = []
    convert_table(folder / "log", folder / "out", lambda number, row, error: refused.append((number, row, error)))
    table = parquet.read_table(folder / "out")
    return list(zip(*table.to_pydict().values(), strict=True)) if table.num_rows else [], refused


@pytest.mark.parametrize(
    ("content", "header"),
    [
        (b"a,b\n", Header(",", ("a", "b"))),
        (b"\xef\xbb\xbf a ; b,c ;d\r\n", Header(";", ("a", "b,c", "d"))),
        (b'\n \n"a, b",c\n', Header(",", ("a, b", "c"))),
        (b'a\t"b\n', Header("\t", ("a", '"b'))),
        (b"a|A||a_1\n", Header("|", ("a", "A_1", "column2", "a_1_1"))),
        (b"\xff,b\n", Header(",", ("\ufffd", "b"))),
        (b"one", Header("\t", ("one",))),
    ],
)
def test_the_first_line_says_delimiter_and_columns(content: bytes, header: Header) -> None:
    assert read_header(io.BufferedReader(io.BytesIO(content))) == header


@pytest.mark.parametrize(
    ("rows", "cells"),
    [
        (b"1,2\n3,4", [("1", "2"), ("3", "4")]),
        (b"1,2\r\n\r\n3,4\n\n5,6\r7,8\n", [("1", "2"), ("3", "4"), ("5", "6"), ("7", "8")]),
        (b',""\n', [(None, None)]),
        (b'1,"a, ""b""\r\n\nc"\n', [("1", 'a, "b"\r\n\nc')]),
        (b'1,27" wide\n2,"open\n3,x\n', [("1", '27" wide'), ("2", "open\n3,x\n")]),
        ("1,straße\n2,日本\x00\n".encode(), [("1", "straße"), ("2", "日本\x00")]),
        (b"", []),
        (b"\n\r\n", []),
    ],
)
def test_every_row_is_read(rows: bytes, cells: list[tuple[str | None, ...]], tmp_path: Path) -> None:
    assert converted(tmp_path, b"a,b\n" + rows) == (cells, [])


def test_a_row_that_cannot_be_read_keeps_its_number_and_its_bytes(tmp_path: Path) -> None:
    content = "a,b\n1,ß\n2\n3,x,ß\n".encode() + b"4,\xff\n5,y\n\xff,\xfe,z\n7,\xe9t\xe9\n8,z\n"
    rows, refused = converted(tmp_path, content)
    assert rows == [("1", "ß"), ("5", "y"), ("8", "z")]
    assert sorted(refused) == [
        (3, b"2", "1 fields instead of 2"),
        (4, "3,x,ß".encode(), "3 fields instead of 2"),
        (5, b"4,\xff", "not UTF-8"),
        (7, b"\xff,\xfe,z", "3 fields instead of 2"),
        (8, b"7,\xe9t\xe9", "not UTF-8"),
    ]


def test_a_row_that_is_too_long_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.importers.tables, "MAX_ROW_BYTES", 1000)
    with pytest.raises(LogFileError, match=r"log: cannot be read as a table: a row is over 1,000 bytes; is a quote left open\?"):
        converted(tmp_path, b'a,b\n1,2\n3,"' + b"x\n" * 3000)


def test_a_table_that_is_cut_short_is_said(tmp_path: Path) -> None:
    packed = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (one, one * 7919 % 1_000_003) for one in range(200_000)))
    with pytest.raises(LogFileError, match="log: cannot be read: Compressed file ended"):
        converted(tmp_path, packed[:-2000])


def test_a_line_end_within_quotes_is_whole_wherever_a_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b'"a","b"\n' + b'"1","2"\n' * 5 + b'"x","\r\n"\n"\r\r\n","q\r"\n'
    for block in range(40, 70):
        monkeypatch.setattr(streams.importers.tables, "MAX_ROW_BYTES", block)
        rows, refused = converted(tmp_path, content)
        assert (block, rows[-2:], refused) == (block, [("x", "\r\n"), ("\r\r\n", "q\r")], [])


CELLS = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(['"', ",", "\n", "\r\n", "\r", '",\n"', "ß", ""])


@given(rows=st.lists(st.tuples(CELLS, CELLS.filter(bool)), max_size=30), block=st.integers(250, 500))
def test_what_a_csv_writer_wrote_is_read_whatever_the_blocks(
    rows: list[tuple[str, str]], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("a", "b"), *rows])
    patch: Any
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams.importers.tables, "MAX_ROW_BYTES", block)
        found, refused = converted(tmp_path_factory.mktemp("table"), text.getvalue().encode())
    assert refused == []
    assert found == [tuple(cell or None for cell in row) for row in rows]
