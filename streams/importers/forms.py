"""Forms of a file that nothing here reads, told by its content: each with what it is and how to make a log of it.

A replay carries bad lines, since the worker judges them. A file that is no log at all would become nothing but bad lines.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import NamedTuple

import msgspec

from streams.events.schema import BOM, SPACE

TO_LINES = "write its rows as one JSON object a line, or as Parquet"
DECOMPRESS = "decompress it, or compress it with gzip or zstd instead"


class Form(NamedTuple):
    """How a form begins, what it is, and what to do with it."""

    start: re.Pattern[bytes]
    name: str
    advice: str


def _form(start: bytes, name: str, advice: str) -> Form:
    return Form(re.compile(start, re.DOTALL), name, advice)


FORMS = (
    _form(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "compressed with bzip2", "`bzip2 -dk FILE` decompresses it"),
    _form(rb"\xfd7zXZ\0", "compressed with xz", "`xz -dk FILE` decompresses it"),
    _form(rb"\]\0\0.{2}|LZIP\x01", "compressed with lzma or lzip", DECOMPRESS),
    _form(rb"\x04\x22M\x18|\x02\x21L\x18", "compressed with lz4", "`lz4 -dk FILE` decompresses it"),
    _form(rb"\xff\x06\0\0sNaPpY", "compressed with snappy", DECOMPRESS),
    _form(rb"\x1f\x9d", "compressed with compress", "`uncompress FILE` decompresses it"),
    _form(rb"[\x50-\x5f]\x2aM\x18", "zstd that begins with a frame to skip", "`zstd -d FILE` and compress it again"),
    _form(
        rb"PK\x03\x04.{0,400}(xl/|\[Content_Types\])",
        "an Excel workbook",
        "export it as CSV in UTF-8 and replay it with --mapping",
    ),
    _form(rb"PK(\x03\x04|\x05\x06)", "a zip archive", "`unzip FILE` and replay the files in it"),
    _form(rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "`7z x FILE` and replay the files in it"),
    _form(rb"Rar!\x1a\x07", "a rar archive", "unpack it and replay the files in it"),
    _form(rb".{257}ustar|.{100}([0-7]{6,7}[ \0]{1,2}){3}[0-7]{11}[ \0]", "a tar archive", "`tar -xf FILE` and replay the folder"),
    _form(rb"Obj\x01", "an Avro file", TO_LINES),
    _form(rb"ORC.{0,4}[\0-\x08]", "an ORC file", TO_LINES),
    _form(rb"ARROW1|FEA1", "an Arrow (Feather) file", "write it as Parquet"),
    _form(rb"PARE", "an encrypted Parquet file", "write it without encryption"),
    _form(rb"SQLite format 3\0", "a SQLite database", TO_LINES),
    _form(rb".{8}DUCK", "a DuckDB database", "`COPY (SELECT ...) TO 'log.parquet'` writes it as Parquet"),
    _form(rb"\x89HDF\r\n", "an HDF5 file", TO_LINES),
    _form(rb"\x93NUMPY|\x80[\x02-\x05][\x8a\x95}\]c(]", "a NumPy or pickle file", TO_LINES),
    _form(rb"\xd0\xcf\x11\xe0", "an old Excel or Word document", "export it as CSV in UTF-8 and replay it with --mapping"),
    _form(rb"%PDF-", "a PDF document", "find the log that it was made of"),
)
PACKED = (
    _form(rb"\x1f\x8b|\x28\xb5\x2f\xfd", "compressed twice", "decompress it once"),
    _form(rb"PAR1", "a Parquet file compressed as a whole", "decompress it: Parquet is compressed inside"),
)
BOMS = ((b"\xff\xfe\0\0", "UTF-32LE"), (b"\0\0\xfe\xff", "UTF-32BE"), (b"\xff\xfe", "UTF-16LE"), (b"\xfe\xff", "UTF-16BE"))
ZEROS = {
    "UTF-32LE": (False, None, True, True),
    "UTF-32BE": (True, True, None, False),
    "UTF-16LE": (False, True, False, True),
    "UTF-16BE": (True, False, True, False),
}
"""Which of each four bytes are zero in texts that are mostly ASCII, as JSON and tables are: often, seldom, or either (None)."""
ENCODING_BYTES = 4096
OFTEN, SELDOM = 0.3, 0.05
CONTROL_SHARE, FOREIGN_SHARE = 0.1, 0.4
"""A beginning with more control characters, or more characters that are no UTF-8, is no log unless a line of it is an object."""
_CONTROL = re.compile("[\0-\x08\x0e-\x1a\x1c-\x1f]")
_PRINTABLE = re.compile(rb"[ -~\t]+")
_DELIMITED = re.compile(rb"\w[\"']?[,;\t|][\"']?\w")


def find_fault(head: bytes, packed: bool) -> tuple[str, str] | None:
    """Return what a file is that nothing reads, and what to do with it; None for what may be a log.

    `head` is its beginning, decompressed where it was `packed` with gzip or zstd.
    """
    for form in (*FORMS, *(PACKED if packed else ())):
        if form.start.match(head):
            return form.name, form.advice
    if _begins_as_table(head):
        return None
    if encoding := _find_encoding(head):
        return f"text in {encoding}", f"`iconv -f {encoding} -t UTF-8 FILE` writes it in UTF-8"
    return _find_junk(head)


def find_document(head: bytes, whole: bool) -> tuple[str, str] | None:
    """Return what to do with JSON that is one document instead of an object a line; None for what may be lines.

    `whole` says that `head` is all of the file. A bad first line is no document: what follows it must fit as well.
    """
    text = head.strip(SPACE)
    if _is_run_of_objects(text):
        return "JSON objects without a line feed between them", "`jq -c . FILE` writes an object a line"
    lines = [line for line in (one.strip(SPACE) for one in text.split(b"\n", 3)) if line]
    if not text.startswith((b"{", b"[")) or (len(lines) > 1 and _is_json(lines[0])) or not _spans_lines(text, lines, whole):
        return None
    if text.startswith(b"["):
        return (
            "one JSON array",
            "`jq -c '.[]' FILE` writes an object a line; or say with --mapping what its fields are (docs/mappings.md)",
        )
    return "JSON documents of several lines", "`jq -c . FILE` writes an object a line"


def is_object(line: bytes) -> bool:
    """Whether a line is a JSON object."""
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def _spans_lines(text: bytes, lines: list[bytes], whole: bool) -> bool:
    if whole and _is_json(text):
        return len(lines) > 1 or text.startswith(b"[")
    if len(lines) < 2:
        return not whole and re.match(rb"\[\s*\{", text) is not None
    return lines[0].endswith((b"{", b"[", b",")) and not is_object(lines[1]) and not _has_objects_in_a_row(text)


def _has_objects_in_a_row(text: bytes) -> bool:
    """Whether two lines that follow each other are objects, which in one document a comma would part."""
    return any(is_object(one) and is_object(two) for one, two in pairwise(text.split(b"\n")))


def _is_run_of_objects(text: bytes) -> bool:
    """Whether a beginning without a line feed holds two objects with nothing, or no line feed, between them."""
    if b"\n" in text or not text.startswith(b"{") or is_object(text):
        return False
    try:
        first, end = json.JSONDecoder().raw_decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    rest = text.decode("utf-8", "replace")[end:]
    return isinstance(first, dict) and re.match(r"[\s\x1e\0,;]*\{", rest) is not None


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _find_encoding(head: bytes) -> str | None:
    """Return the encoding that a byte order mark names, or that zeros at every second or fourth byte show."""
    for mark, name in BOMS:
        if head.startswith(mark):
            return name
    sample = head[: ENCODING_BYTES // 4 * 4]
    if len(sample) < 4 or 0 not in sample:
        return None
    shares = [part.count(0) / len(part) for part in (sample[place::4] for place in range(4))]
    for name, zeros in ZEROS.items():
        if all(zero is None or (share > OFTEN if zero else share < SELDOM) for share, zero in zip(shares, zeros, strict=True)):
            return name
    return None


def _begins_as_table(head: bytes) -> bool:
    """Whether the first line is names with delimiters between them, which a table has whatever its cells hold."""
    line, end, _ = head.removeprefix(BOM).partition(b"\n")
    text = line.removesuffix(b"\r")
    return bool(end) and _PRINTABLE.fullmatch(text) is not None and _DELIMITED.search(text) is not None


def _find_junk(head: bytes) -> tuple[str, str] | None:
    text = head.decode("utf-8", "replace")
    foreign, control = text.count("\ufffd"), len(_CONTROL.findall(text))
    is_binary, is_foreign = control > CONTROL_SHARE * len(text), foreign > FOREIGN_SHARE * len(text)
    if not (is_binary or is_foreign) or any(map(is_object, head.split(b"\n"))):
        return None
    if is_binary or control > foreign / 20:
        return "binary data", TO_LINES
    return "text in another encoding than UTF-8", "`iconv -f ENCODING -t UTF-8 FILE` writes it in UTF-8"
