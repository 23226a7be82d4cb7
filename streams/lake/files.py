"""The lake's location, a folder or an S3 bucket behind one file system, and how its files are listed and written.

    lake/{impressions,queries,cooccurrence}/day=YYYY-MM-DD/shard-<partition>.parquet

A file is written completely or not at all. In a folder it is written beside its path under a name that readers of Parquet folders
skip, made durable and moved over; in a bucket it is one upload, which appears when it is complete.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, Field

from streams.runtime.atomic_files import replacing_file

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
CONNECT_S = 3.0
REQUEST_S = 10.0


def _check_url(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("only s3://BUCKET/PREFIX or file:///FOLDER; keys are read from the AWS_* environment, never from here")
    if parts.scheme == "file" and not parts.netloc and parts.path.strip("/"):
        return url
    if parts.scheme == "s3" and parts.netloc:
        return url
    raise ValueError("must be file:///FOLDER or s3://BUCKET/PREFIX")


class LakeSettings(BaseModel, frozen=True, extra="forbid"):
    """Where the lake is, and when a day is exported (section `lake`)."""

    maturity_floor_s: float = Field(default=3600.0, ge=0, description="seconds past a day's end before it is exported, at least")
    reexport_s: float = Field(
        default=600.0,
        ge=0,
        description="seconds at least between two exports of one day, which late clicks change again and again",
    )
    url: Annotated[str | None, AfterValidator(_check_url)] = Field(
        default=None, description="file:///FOLDER or s3://BUCKET/PREFIX; `lake` in the data folder by default"
    )
    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#\s]+/?$",
        description="http(s) address of an S3 server that is not Amazon's; by default $AWS_ENDPOINT_URL_S3",
    )
    region: str | None = Field(default=None, description="the bucket's region; by default $AWS_REGION")


@dataclass(frozen=True)
class Lake:
    """The location of a lake: the folder `root` in a pyarrow file system; `url` is its name in messages."""

    files: FileSystem
    root: str
    url: str

    @classmethod
    def local(cls, folder: Path) -> Lake:
        """Return the lake in a folder of this machine, which need not exist yet."""
        from pyarrow.fs import LocalFileSystem

        return cls(LocalFileSystem(), str(folder.absolute()), str(folder))


@dataclass(frozen=True, slots=True, order=True)
class DayFile:
    """One file of the lake: a day of one partition."""

    day: date
    partition: int
    path: str


def open_lake(data_dir: Path, settings: LakeSettings, environ: Mapping[str, str] | None = None) -> Lake:
    """Return the lake that the settings name, without access to it: an absent bucket is an OSError when it is used."""
    if settings.url is None:
        return Lake.local(data_dir / "lake")
    parts = urlsplit(settings.url)
    if parts.scheme == "file":
        return Lake.local(Path(unquote(parts.path)))
    root = (parts.netloc + unquote(parts.path)).rstrip("/")
    return Lake(_open_s3(settings, os.environ if environ is None else environ), root, settings.url)


def list_files(lake: Lake, kind: str) -> list[DayFile]:
    """Return the day files of a kind, sorted."""
    from pyarrow.fs import FileSelector, FileType

    selector = FileSelector(f"{lake.root}/{kind}", recursive=True, allow_not_found=True)
    found = [_day_file(info.path) for info in lake.files.get_file_info(selector) if info.type == FileType.File]
    return sorted(file for file in found if file is not None)


def put_file(lake: Lake, kind: str, day: date, partition: int, fill: Callable[[Path], None]) -> None:
    """Write a file with `fill`, which gets a path, and replace the existing one when it is complete. Raises OSError."""
    path = _path(lake, kind, day, partition)
    if _is_local(lake):
        _put_local(Path(path), fill)
    else:
        _upload(lake, path, fill)


def remove_file(lake: Lake, kind: str, day: date, partition: int) -> None:
    """Remove a file if it exists."""
    from pyarrow.fs import FileType

    path = _path(lake, kind, day, partition)
    if lake.files.get_file_info(path).type == FileType.File:
        lake.files.delete_file(path)


def _open_s3(settings: LakeSettings, environ: Mapping[str, str]) -> FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    return S3FileSystem(
        endpoint_override=settings.endpoint or _first_set(environ, ENDPOINTS),
        region=settings.region or _first_set(environ, REGIONS),
        connect_timeout=CONNECT_S,
        request_timeout=REQUEST_S,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=2),
    )


def _first_set(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _is_local(lake: Lake) -> bool:
    return bool(lake.files.type_name == "local")


def _path(lake: Lake, kind: str, day: date, partition: int) -> str:
    return f"{lake.root}/{kind}/day={day.isoformat()}/shard-{partition}.parquet"


def _day_file(path: str) -> DayFile | None:
    """Return the day file of a path, None if it is not one (it is still being written, or is not the lake's)."""
    *_, folder, name = path.split("/")
    number = name.removeprefix("shard-").removesuffix(".parquet")
    if not folder.startswith("day=") or name != f"shard-{number}.parquet" or not number.isdecimal():
        return None
    return DayFile(date.fromisoformat(folder.removeprefix("day=")), int(number), path)


def _put_local(path: Path, fill: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path, durable=True) as temporary:
        fill(temporary)


def _upload(lake: Lake, path: str, fill: Callable[[Path], None]) -> None:
    """Write the file on this machine first, and upload it in one call.

    pyarrow closes an upload that an error interrupts, and a closed upload is complete, so half a file would appear in the bucket.
    """
    import pyarrow as pa

    with tempfile.TemporaryDirectory(prefix="queryloop-lake-") as folder:
        local = Path(folder) / "day.parquet"
        fill(local)
        with pa.memory_map(str(local)) as source, lake.files.open_output_stream(path) as target:
            target.write(source.read_buffer())
