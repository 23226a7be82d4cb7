"""The documentation is true: its examples run, its commands parse, and every key, metric and reason that it names is there."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pytest

from queryloop import reference
from queryloop.cli import make_parser
from queryloop.settings import Settings
from serving.http.recommend_request import RecommendCall
from serving.policy.tasks import DEFAULT_TASKS, Task
from streams.brokers.broker import Broker, EmbeddedBroker
from streams.brokers.topics import KafkaSettings, create_topics, end_offsets
from streams.events.line_decoder import parse_line
from streams.events.schema import Reason, Reject
from streams.importers.log_files import read_log
from streams.importers.mapping import Mapping, shipped_names
from streams.runtime.settings import load_settings
from tests.support.lake_days import write_impressions
from tests.support.promql import GOLDEN
from trainers.policy.sft import read_annotations

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LOG = sorted((ROOT / "docs" / "log").glob("*.md"))
LINE_CHARS = 130
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CURL_BODY = re.compile(r"-d '(.*?)'", re.DOTALL)
SHELL_TIME = "'$(date +%s)'"
NAMED_KEY = re.compile(rf"`((?:{'|'.join(Settings.model_fields)})\.[a-z_]+)`")
NAMED_VARIABLE = re.compile(r"\bQUERYLOOP_[A-Z_]+[A-Z]\b")
COMMANDS = ("queryloop", "make", "python", "curl", "docker", "tail", "pip", "jq", "grep", ".")
ROOMS = "benchmarks|docs|index|queryloop|serving|streams|tests|trainers"


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text and where it stands."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def name_page(page: Path) -> str:
    """A page's path, as a test's name shows it."""
    return str(page.relative_to(ROOT))


def read_blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            found.append(Block(page, text[: match.start()].count("\n") + 1, match[1], match[2]))
    return found


BLOCKS = read_blocks()


def blocks(language: str) -> pytest.MarkDecorator:
    """Parametrize a test over the blocks of a language."""
    chosen = [block for block in BLOCKS if block.language == language]
    assert chosen, f"no {language} block in {[page.name for page in PAGES]}"
    return pytest.mark.parametrize("block", chosen, ids=str)


def shell_commands() -> list[tuple[str, list[str]]]:
    """Every command of the sh blocks with its place, variables before it and comments behind it left out."""
    found = []
    for block in BLOCKS:
        if block.language == "sh":
            for words in chain.from_iterable(map(split_pipeline, join_lines(block.text))):
                if words:
                    found.append((f"{block} {' '.join(words)[:60]}", words))
    return found


def join_lines(text: str) -> list[str]:
    """Lines, with those joined that an open quote holds together."""
    lines = [""]
    for line in text.splitlines():
        if lines[-1].count("'") % 2:
            lines[-1] += "\n" + line
        else:
            lines.append(line)
    return lines


def split_pipeline(line: str) -> list[list[str]]:
    """Return the words of each command of a line."""
    words = shlex.split(line, comments=True)
    return [strip_variables(list(part)) for pipe, part in groupby(words, lambda word: word == "|") if not pipe]


def strip_variables(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words


SHELL = shell_commands()


@pytest.fixture(scope="module")
def example_broker() -> Iterator[Broker]:
    """The broker that examples find under QUERYLOOP_KAFKA_BOOTSTRAP, with the default topics."""
    with EmbeddedBroker() as broker:
        create_topics(broker.bootstrap, KafkaSettings())
        yield broker


@blocks("python")
def test_a_python_example_runs(
    block: Block, example_broker: Broker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "up.json" in block.text:
        (tmp_path / "data" / "run").mkdir(parents=True)
        (tmp_path / "data" / "run" / "up.json").write_text(json.dumps({"bootstrap": example_broker.bootstrap}))
    else:
        monkeypatch.setenv("QUERYLOOP_KAFKA_BOOTSTRAP", example_broker.bootstrap)
    if "data/lake" in block.text:
        write_impressions(tmp_path / "data" / "lake", date(2026, 3, 1), [{"query": "owl"}])
    before = sum(end_offsets(example_broker.bootstrap, "events").values())
    exec(compile(block.text, str(block), "exec"), {"__name__": "example"})  # noqa: S102 - our own documentation
    if "Emitter(" in block.text:
        assert sum(end_offsets(example_broker.bootstrap, "events").values()) > before
        assert "not delivered" not in capsys.readouterr().out


@blocks("toml")
def test_a_toml_example_is_a_settings_file(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "queryloop.toml"
    file.write_text(block.text, encoding="utf-8")
    load_settings(Settings, file, {"QUERYLOOP_KAFKA_SASL_PASSWORD": "secret"} if "sasl_username" in block.text else {})


@pytest.mark.parametrize(("place", "words"), SHELL, ids=[place for place, _ in SHELL])
def test_a_shell_example_is_a_command_that_exists(place: str, words: list[str]) -> None:
    assert words[0] in COMMANDS, f"{place}: say in COMMANDS what {words[0]} is, and how it is checked"
    if words[0] == "queryloop":
        make_parser().parse_args(words[1:])
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert words[1] in targets, place
    if words[0] == "python":
        assert words[1] == "-m", place
        assert importlib.util.find_spec(words[2]), place
        assert [path for path in words[3:] if "/" in path and not (ROOT / path).exists()] == [], place


def json_bodies() -> list[tuple[str, Any]]:
    """Every JSON value of the pages: the lines of json blocks, and the bodies that curl sends."""
    found = [
        (f"{block} {number}", json.loads(line))
        for block in BLOCKS
        if block.language == "json"
        for number, line in enumerate(block.text.strip().splitlines())
    ]
    shell = [block for block in BLOCKS if block.language == "sh"]
    sent = [
        (f"{block} curl", body) for block in shell for body in CURL_BODY.findall(block.text.replace(SHELL_TIME, "1767607200"))
    ]
    return found + [(place, json.loads(body)) for place, body in sent]


BODIES = json_bodies()


@pytest.mark.parametrize(("place", "body"), BODIES, ids=[place for place, _ in BODIES])
def test_a_json_example_is_accepted_as_what_it_is(place: str, body: dict[str, Any]) -> None:
    if "task" in body and "type" not in body:
        RecommendCall.model_validate(body)
        return
    for event in body.get("events", [body]):
        found = parse_line(json.dumps(event).encode())
        assert not isinstance(found, Reject), f"{place}: {found}"


@blocks("jsonl")
def test_an_example_list_is_an_annotation_of_its_task(block: Block, tmp_path: Path) -> None:
    (tmp_path / "annotations.jsonl").write_text(block.text, encoding="utf-8")
    for annotation in read_annotations(tmp_path / "annotations.jsonl"):
        assert len(annotation.items) == DEFAULT_TASKS[annotation.task].n


def test_the_examples_hold_an_event_of_each_type() -> None:
    events = [event for _, body in BODIES for event in body.get("events", [body])]
    assert {event.get("type") for event in events} >= {"query", "impression", "click"}


def test_the_settings_page_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference.settings_page(), "run: python -m queryloop.reference > docs/settings.md"


def test_every_setting_is_explained() -> None:
    silent = [
        f"{name}.{key}"
        for name, model in reference.section_models()
        for key, field in model.model_fields.items()
        if not field.description and (model, key) != (Task, "name")
    ]
    assert silent == []


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_key_and_variable_that_a_page_names_exists(page: Path) -> None:
    keys = {f"{name}.{key}" for name, model in reference.section_models() for key in model.model_fields}
    variables = {f"QUERYLOOP_{key.replace('.', '_').upper()}" for key in keys} | {"QUERYLOOP_CONFIG"}
    text = page.read_text(encoding="utf-8")
    assert set(NAMED_KEY.findall(text)) - keys == set()
    assert set(NAMED_VARIABLE.findall(text)) - variables - {"QUERYLOOP_TASKS"} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_every_link_within_the_documentation_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        headings = [
            re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
            for title in re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        ]
        assert not anchor or anchor in headings, target
    for named in re.findall(rf"`((?:{ROOMS})/[\w/]+\.\w+)`", text):
        assert (ROOT / named).exists(), named


@pytest.mark.parametrize("page", [page for page in LOG if page.name != "README.md"], ids=name_page)
def test_a_page_of_the_log_says_first_what_is_true_and_also_what_failed(page: Path) -> None:
    headings = re.findall(r"^##? .*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0].startswith("# ")
    assert headings[1:3] == ["## What is true today", "## Tried in vain"]


@pytest.mark.parametrize("page", LOG, ids=name_page)
def test_a_page_of_the_log_has_no_long_line(page: Path) -> None:
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
    assert [number for number, line in lines if len(line) > LINE_CHARS] == []


def test_every_quarantine_reason_is_explained() -> None:
    section = (ROOT / "docs" / "events.md").read_text(encoding="utf-8").partition("## Quarantine")[2]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [str(reason) for reason in Reason]


def test_every_metric_that_the_operating_page_names_is_measured() -> None:
    named = set(re.findall(r"\bqueryloop_[a-z_]+", (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")))
    assert named
    told = "".join(path.read_text(encoding="utf-8") for path in GOLDEN)
    assert named <= set(re.findall(r"# TYPE (\w+)", told))


@pytest.mark.parametrize("name", shipped_names())
def test_every_mapping_that_ships_is_on_its_page(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "docs" / "mappings.md").read_text(encoding="utf-8")


@blocks("sql")
def test_the_mapping_of_a_page_maps_the_log_that_it_describes(block: Block, tmp_path: Path) -> None:
    (tmp_path / "searches.csv").write_text("when_ms,visitor,words,country\n1600000000250,s,red shoes,de\nnever,s,x,\n")
    good, bad = read_log(tmp_path / "searches.csv", Mapping(str(block), block.text))
    event = parse_line(good)
    assert not isinstance(event, Reject)
    assert (event.ts, event.query, json.loads(event.extra)) == (1_600_000_000.25, "red shoes", {"country": "de"})
    row = {"when_ms": "never", "visitor": "s", "words": "x", "country": None}
    assert isinstance(parse_line(bad), Reject) and json.loads(bad)["log_row"] == row
