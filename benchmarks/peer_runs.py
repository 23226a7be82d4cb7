"""The peers' side of a benchmark: their programs, run in their own environment, and the results that they write."""

from __future__ import annotations

import json
import shutil
import uuid
from typing import Any, Literal

from benchmarks.corpus import Corpus
from benchmarks.peer_venv import PEERS, peer_python
from benchmarks.probes.usage import read_usage
from benchmarks.worker_runs import Rate, Site, Topic
from streams.brokers.topics import KafkaSettings, create_topics
from streams.runtime.processes import Child, ProcessError

LIMIT_S = 900.0

QuixCount = Literal["equivalent", "light"]


def run_peer(site: Site, program: str, arguments: list[str]) -> dict[str, Any]:
    """Run one of the programs in `peers/` to its end and return its result. Raises ProcessError with the end of its output."""
    out = site.folder / f"{program}-{uuid.uuid4().hex[:8]}.json"
    program_file = str(PEERS / f"{program}.py")
    command = [str(peer_python()), "-W", "ignore", program_file, *arguments, "--bootstrap", site.bootstrap, "--out", str(out)]
    with Child(program, command, out.with_suffix(".log")) as child:
        code = child.sleep(LIMIT_S)
        if code != 0 or not out.exists():
            raise ProcessError(f"{program} ended with {code}; its output ends:\n{child.tail()}")
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def fill_topic(site: Site, corpus: Corpus, name: str, lines: int, events: int | None = None) -> Topic:
    """Create a topic and fill it with (about) the first `events` of a corpus, `lines` a record."""
    create_topics(site.bootstrap, KafkaSettings(bootstrap=site.bootstrap, topic=name, partitions=corpus.partitions))
    limit = corpus.events if events is None else -(-events // corpus.partitions)
    files = [str(corpus.file(partition)) for partition in range(corpus.partitions)]
    result = run_peer(site, "produce", ["--topic", name, "--lines", str(lines), "--limit", str(limit), *files])
    return Topic(name, result["events"], lines)


def measure_decoding(site: Site, topic: Topic) -> Rate:
    """Measure the bound: confluent-kafka and `json.loads`."""
    arguments = ["--topic", topic.name, "--partitions", str(site.partitions), "--events", str(topic.events)]
    return _timed(site, "decode", arguments)


def measure_quix(site: Site, topic: Topic, events: int, count: QuixCount) -> Rate:
    """Measure the peer: quixstreams counts the first `events` events."""
    state = site.folder / f"quix-{uuid.uuid4().hex[:8]}"
    options = ["--topic", topic.name, "--state", str(state), "--events", str(events), "--count", count]
    try:
        return _timed(site, "count_quix", options)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _timed(site: Site, program: str, arguments: list[str]) -> Rate:
    before = read_usage(site.pid)
    result = run_peer(site, program, arguments)
    after = read_usage(site.pid)
    broker = after.cpu_s - before.cpu_s
    return Rate(result["events"], result["seconds"], after.at_s - before.at_s, result["cpu_s"], broker, (result["thread_s"],))
