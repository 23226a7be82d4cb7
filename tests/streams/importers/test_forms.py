"""A file in a form that nothing reads is refused before its first line, by its content, with what to do about it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from pyarrow import feather, orc, parquet

from streams.importers.forms import TO_LINES, find_fault
from streams.importers.log_files import LogFile, LogFileError, read_log
from streams.importers.mapping import Mapping
from tests.support.logs import START, click, impression, query

LINES = [impression("i", START, "L"), click("c", START + 1, "L", 1), query("q", START + 2, "größe")]
TEXT = b"\n".join(LINES) + b"\n"
MAPPING = Mapping("m", "SELECT 'query' AS type, 1 AS ts, 's' AS session_id, 'q' AS query FROM log")
TABLE = pa.table({"a": [1, 2], "b": ["x", "y"]})


def zipped(names: list[str]) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, TEXT)
        return file.getvalue()


def tarred() -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("log.jsonl"), io.BytesIO(b""))
        return file.getvalue()


def written(write: Callable[[Path], object]) -> Callable[[Path], bytes]:
    """The bytes of a file that a library writes."""

    def make(folder: Path) -> bytes:
        write(folder / "made")
        return (folder / "made").read_bytes()

    return make


def make_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as con:
        con.execute("CREATE TABLE events (a)")
    con.close()


def make_duckdb(path: Path) -> None:
    duckdb.connect(str(path)).close()


UNREADABLE: list[tuple[str, bytes | Callable[[Path], bytes], str]] = [
    ("log.jsonl", bz2.compress(TEXT), "compressed with bzip2, which nothing here reads: `bzip2 -dk "),
    ("log.jsonl", bz2.compress(b""), "compressed with bzip2"),
    ("log.gz", lzma.compress(TEXT), "compressed with xz"),
    ("log", lzma.compress(TEXT, lzma.FORMAT_ALONE), "compressed with lzma"),
    ("log", bytes(pa.compress(TEXT, "lz4", asbytes=True)), "compressed with lz4"),
    ("log.jsonl", zipped(["log.jsonl"]), "a zip archive"),
    ("log.csv", zipped(["[Content_Types].xml", "xl/workbook.xml"]), "an Excel workbook"),
    ("log.jsonl", b"7z\xbc\xaf\x27\x1c\0\4" + bytes(30), "a 7z archive"),
    ("log.tar.gz", gzip.compress(tarred()), "a tar archive"),
    ("log.jsonl.gz", gzip.compress(gzip.compress(TEXT)), "compressed twice"),
    ("log.parquet", b"Obj\x01\x04\x16avro.schema" + bytes(20), "an Avro file"),
    ("log", written(lambda path: orc.write_table(TABLE, path)), "an ORC file"),
    ("log", written(lambda path: feather.write_feather(TABLE, path)), "an Arrow (Feather) file"),
    ("log.gz", lambda folder: gzip.compress(written(lambda path: parquet.write_table(TABLE, path))(folder)), "a Parquet file"),
    ("log.json", written(make_sqlite), "a SQLite database"),
    ("log.json", written(make_duckdb), "a DuckDB database"),
    ("log.jsonl", random.Random(1).randbytes(9000), "binary data"),
    ("log.jsonl", "größe, straße\n".encode("utf-16"), "text in UTF-16LE, which nothing here reads: `iconv -f UTF-16LE -t UTF-8 "),
    *(("log.jsonl", TEXT.decode().encode(name), f"text in {name}") for name in ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE")),
    ("log.jsonl", b"\xff\xfe" + TEXT.decode().encode("UTF-16LE"), "text in UTF-16LE"),
    ("log.jsonl.gz", gzip.compress(b"\0\0\xfe\xff" + TEXT.decode().encode("UTF-32BE")), "text in UTF-32BE"),
    ("log.txt", "поиск, запрос\n".encode("cp1251") * 9, "text in another encoding than UTF-8"),
    ("log.jsonl", json.dumps(json.loads(LINES[0]), indent=2).encode(), "JSON documents of several lines"),
    ("log.jsonl", b"\n".join(json.dumps(json.loads(line), indent=1).encode() for line in LINES * 200), "JSON documents"),
    ("log.jsonl", json.dumps({"events": [json.loads(line) for line in LINES]}, indent=1).encode(), "JSON documents"),
    ("log.jsonl", b'{"events": [\n' + b",\n".join(LINES) + b"\n]}", "JSON documents"),
    *(("log.jsonl", mark.encode().join(LINES), "JSON objects without a line feed") for mark in ("", "\r", "\x85", "\u2028")),
    ("log.jsonl", b" ".join(LINES * 400), "JSON objects without a line feed between them"),
    ("log.tar", tarred().replace(b"ustar", bytes(5)), "a tar archive"),
]  # fmt: skip
ARRAYS = [
    json.dumps([json.loads(line) for line in LINES]).encode(),
    json.dumps([json.loads(line) for line in LINES * 400]).encode(),
    json.dumps([json.loads(line) for line in LINES], indent=2).encode(),
    b"\xef\xbb\xbf [\n" + b",\n".join(LINES * 400) + b"\n]\n",
    b"[" + b",\n".join(LINES) + b"]",
]


def put(folder: Path, name: str, content: bytes | Callable[[Path], bytes]) -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content(folder))
    return folder / name


@pytest.mark.parametrize("mapping", [None, MAPPING])
@pytest.mark.parametrize(("name", "content", "said"), UNREADABLE)
def test_it_is_told_by_its_content_with_what_to_do(
    name: str, content: bytes | Callable[[Path], bytes], said: str, mapping: Mapping | None, tmp_path: Path
) -> None:
    path = put(tmp_path, name, content)
    with pytest.raises(LogFileError) as refused:
        LogFile(path, mapping)
    assert str(refused.value).startswith(f"{path} is {said}")
    assert "which nothing here reads: " in str(refused.value)


@pytest.mark.parametrize("content", ARRAYS)
def test_one_json_array_is_refused_without_a_mapping_and_read_with_one(content: bytes, tmp_path: Path) -> None:
    path = put(tmp_path, "log.jsonl", content)
    with pytest.raises(LogFileError, match=r"is one JSON array, which nothing here reads: `jq -c '\.\[\]' "):
        LogFile(path)
    assert len(list(read_log(path, MAPPING))) == content.count(b'"type"')


@pytest.mark.parametrize("mapping", [None, MAPPING])
@pytest.mark.parametrize(
    ("content", "command"),
    [
        (b'{\n "type": "query"\n}\n', r"`jq -c \. \S*log\.json`"),
        (TEXT.decode().encode("utf-16"), r"`iconv -f UTF-16LE -t UTF-8 \S*log\.json`"),
        (bz2.compress(TEXT), r"`bzip2 -dk \S*log\.json`"),
    ],
)
def test_what_is_said_of_a_compressed_file_is_for_the_file_in_it(
    content: bytes, command: str, mapping: Mapping | None, tmp_path: Path
) -> None:
    path = put(tmp_path, "log.json.gz", gzip.compress(content))
    with pytest.raises(LogFileError, match=rf"log\.json\.gz is .*, which nothing here reads: decompress it, then {command}"):
        LogFile(path, mapping)


@pytest.mark.parametrize(
    "bad",
    [b'{"type":"query",\n{"a":[', b"[\n{,", b"{}{}", b"{}\r{}",
     b"[broken", b"[1]", b"{", b"[", b"{not json", b'{"type":"query",', b"\x00\xff\xfe binary\x1b[31m", b"BZh", b"ORC,a"],
)  # fmt: skip
def test_a_bad_first_line_does_not_make_a_log_unreadable(bad: bytes, tmp_path: Path) -> None:
    path = put(tmp_path, "log.jsonl", bad + b"\n" + TEXT)
    assert list(read_log(path)) == [*bad.split(b"\n"), *LINES]


@pytest.mark.parametrize("header", [b'"a","b"', b"a;b\r", b"\xef\xbb\xbfuser id\tits query", b"a,b"])
def test_a_table_is_known_by_its_header_whatever_its_cells_hold(header: bytes) -> None:
    cells = b'"\0","\x01\xe9"\n' * 20
    assert find_fault(header + b"\n" + cells, packed=False) is None
    assert find_fault(cells, packed=False) == ("binary data", TO_LINES)


def test_every_file_of_a_folder_is_checked_before_the_first_line(tmp_path: Path) -> None:
    put(tmp_path, "1.jsonl", TEXT)
    put(tmp_path, "2.jsonl", bz2.compress(TEXT))
    with pytest.raises(LogFileError, match=r"2\.jsonl is compressed with bzip2"):
        LogFile(tmp_path)
