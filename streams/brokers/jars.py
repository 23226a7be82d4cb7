"""Apache Kafka's jars, fetched once by Maven: a real broker on a machine without Docker or an installed Kafka.

Their versions are in `kafka_pom.xml` in this folder. The jars (46 files, 43 MB) are cached for the user, not the project.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from xml.etree import ElementTree

POM = Path(__file__).with_name("kafka_pom.xml")
FETCH_TIMEOUT_S = 600.0
_NAMESPACE = {"m": "http://maven.apache.org/POM/4.0.0"}


class KafkaUnavailable(RuntimeError):
    """A real Kafka broker cannot run here; the text says what is missing and what to do."""


def kafka_version() -> str:
    """Return the Kafka version in the pom."""
    version = ElementTree.parse(POM).findtext("m:properties/m:kafka.version", namespaces=_NAMESPACE)
    if not version:
        raise KafkaUnavailable(f"{POM} names no kafka.version")
    return version


def jars_folder() -> Path:
    """Return the folder where the jars of this version are, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "queryloop" / f"kafka-{kafka_version()}"


def missing_tool() -> str | None:
    """Return why real Kafka cannot run here, None when it can. Maven is needed only until the jars are cached."""
    if shutil.which("java") is None:
        return "no `java` on PATH: install a Java runtime >= 17"
    if not jars_folder().is_dir() and shutil.which("mvn") is None:
        return f"no `mvn` on PATH to fetch Kafka's jars: install Maven, or put them into {jars_folder()}"
    return None


def fetch_jars() -> Path:
    """Return the folder of jars, fetched by Maven unless cached; the folder appears only when it is complete.

    Raises KafkaUnavailable when Java or Maven is missing or the download fails.
    """
    folder = jars_folder()
    if reason := missing_tool():
        raise KafkaUnavailable(f"real Kafka cannot run here: {reason}; the embedded broker needs none of it")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
        _run_maven(Path(beside) / "jars")
        _move_into_place(Path(beside) / "jars", folder)
    return folder


def _run_maven(into: Path) -> None:
    command = [
        "mvn",
        "-B",
        "-q",
        "-f",
        str(POM),
        "dependency:copy-dependencies",
        "-DincludeScope=runtime",
        f"-DoutputDirectory={into}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        text = (done.stdout + done.stderr).strip()[-2000:]
        raise KafkaUnavailable(f"Maven could not fetch Kafka's jars (exit code {done.returncode}): {text}")


def _move_into_place(fetched: Path, folder: Path) -> None:
    try:
        fetched.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process fetched them at the same time and was faster: its folder is as good
            raise
