"""A foreign log is its files, whatever they are packed in, of one format that their beginning and names tell."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from streams.importers.formats import find_parts
from streams.importers.sources import LogFileError


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 1}\n', "ndjson"),
        (b'\xef\xbb\xbf\n  {"a": 1}\n', "ndjson"),
        (b'[{"a": 1}]', "array"),
        (b"a,b\n1,2\n", "table"),
        (b'bad, line\n\n  {"a": 1}\n', "ndjson"),
        (b"broken {\n", "ndjson"),
        (b"one,line\n\n", "ndjson"),
        (b"words\nand more words\n", "ndjson"),
        (b" " * 200_000 + b'\n{"a": 1}\n', "ndjson"),
    ],
)
def test_the_format_is_told_by_the_first_lines(content: bytes, told: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / "log.what").write_bytes(pack(content))
    assert [part.format for part in find_parts(tmp_path / "log.what")] == [told]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("log.csv", b"words", "table"),
        ("log.tsv.gz", b"words\nred\n", "table"),
        ("log.csv.zst", b'words\n{"a": 1}\n', "table"),
        ("log.csv", b"[words]\n", "table"),
        ("log.csv", b'{"a": 1}\n', "ndjson"),
        ("log.ndjson", b"bad, line\nand, more\n", "ndjson"),
        ("log.jsonl.gz", b"bad, line\nand, more\n", "ndjson"),
        ("log.json", b"bad, line\nand, more\n", "ndjson"),
    ],
)
def test_the_name_tells_what_the_first_line_leaves_open(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert [part.format for part in find_parts(tmp_path / name)] == [told]


def test_parquet_is_told_by_its_mark(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "log.csv")
    assert find_parts(tmp_path / "log.csv")[0].format == "parquet"


def test_a_folder_is_all_of_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b/2.csv", "a.csv", "b/1.csv", ".hidden/x.csv", "_SUCCESS", "b/empty.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else "a,b\n")
    assert [str(part.path.relative_to(tmp_path)) for part in find_parts(tmp_path)] == ["a.csv", "b/1.csv", "b/2.csv"]


def test_a_glob_is_the_files_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("2.csv", "1.csv", "1.txt"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    assert [part.path.name for part in find_parts(tmp_path / "*.csv")] == ["1.csv", "2.csv"]
    monkeypatch.chdir(tmp_path)
    assert [str(part.path) for part in find_parts(Path("[1]*"))] == ["1.csv", "1.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    for name in ("log[1]*.csv", "log1.csv"):
        (tmp_path / name).write_text("a,b\n")
    assert [part.path.name for part in find_parts(tmp_path / "log[1]*.csv")] == ["log[1]*.csv"]


def test_files_of_two_formats_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1").write_text("a,b\n1,2\n")
    (tmp_path / "2").write_text("{}\n")
    with pytest.raises(LogFileError, match=r"1 is table, .*2 is ndjson: replay them apart"):
        find_parts(tmp_path)


def test_what_is_no_log_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, said in {
        "folder": "folder holds no file",
        "missing": "missing: cannot be read: No such file or directory",
        "no*": r"no\*: cannot be read: No such file or directory",
        "pipe": "pipe is no regular file",
    }.items():
        with pytest.raises(LogFileError, match=said):
            find_parts(tmp_path / name)


def test_an_empty_log_has_no_part(tmp_path: Path) -> None:
    for content in (b"", b" \r\n\t\n", b"\xef\xbb\xbf\n", gzip.compress(b"")):
        (tmp_path / "empty").write_bytes(content)
        assert find_parts(tmp_path / "empty") == []


def test_a_zstd_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    content = b"a,b\n" + b"".join(b"%d,%d\n" % (number, number * 7919 % 1_000_003) for number in range(200_000))
    (tmp_path / "cut.csv.zst").write_bytes(zstd(content)[:-2000])
    with pytest.raises(LogFileError, match=r"cut\.csv\.zst: cannot be read"):
        find_parts(tmp_path / "cut.csv.zst")
