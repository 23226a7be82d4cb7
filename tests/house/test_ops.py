"""ops/: alert rules and dashboard read only what worker, serving and trainers export, and are of the form that is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from queryloop.settings import Settings
from tests.support.promql import find_faults, find_labels, read_exported

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops"
EXPORTED = read_exported()
DURATION = {"type": "string", "pattern": r"^([0-9]+(ms|[smhdwy]))+$"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
RULE: dict[str, Any] = {
    "type": "object",
    "required": ["alert", "expr", "labels", "annotations"],
    "additionalProperties": False,
    "properties": {
        "alert": {"type": "string", "pattern": "^Queryloop[A-Za-z]+$"},
        "expr": {"type": "string"},
        "for": DURATION,
        "labels": {**TEXTS, "properties": {"severity": {"enum": ["page", "ticket"]}}, "required": ["severity"]},
        "annotations": {**TEXTS, "required": ["summary", "action"]},
    },
}
RULES_FILE: dict[str, Any] = {
    "type": "object",
    "required": ["groups"],
    "additionalProperties": False,
    "properties": {
        "groups": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "rules"],
                "additionalProperties": False,
                "properties": {"name": {"type": "string"}, "interval": DURATION, "rules": {"type": "array", "items": RULE}},
            },
        }
    },
}
"""Of Prometheus' rule files: alerts in groups, each with a severity, a summary and what to do."""


def read_rules() -> dict[str, Any]:
    rules: dict[str, Any] = yaml.safe_load((OPS / "alerts.yml").read_text(encoding="utf-8"))
    return rules


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read_rules()["groups"] for rule in group["rules"]]


def read_dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads((OPS / "grafana-dashboard.json").read_text(encoding="utf-8"))
    return dashboard


def panels() -> list[dict[str, Any]]:
    return [panel for panel in read_dashboard()["panels"] if panel["type"] != "row"]


def test_the_rule_file_has_the_form_that_prometheus_reads() -> None:
    jsonschema.validate(read_rules(), RULES_FILE)
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names)) > 15


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_reads_what_is_exported_and_names_labels_that_it_has(rule: dict[str, Any]) -> None:
    assert find_faults(rule["expr"], EXPORTED) == []
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert named <= find_labels(rule["expr"], EXPORTED)


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("rate(queryloop_event_total[5m])", "no process exports queryloop_event_total"),
        ("queryloop_lag_seconds{shard='0'}", "queryloop_lag_seconds has no label shard"),
        ("queryloop_job_runs_total{state='broken'}", "queryloop_job_runs_total has no state broken"),
        ("queryloop_lists_total{form=~'repaired|torn'}", "queryloop_lists_total has no form repaired|torn"),
        ("sum by (shard) (queryloop_lag_seconds)", "nothing of ['queryloop_lag_seconds'] has the label shard"),
        ("increase(queryloop_counted_events[5m])", "increase() of queryloop_counted_events, which is a gauge"),
        ("delta(queryloop_events_total[5m])", "delta() of queryloop_events_total, which is a counter"),
    ],
)
def test_an_expression_of_something_else_would_be_found(expression: str, fault: str) -> None:
    assert find_faults(expression, EXPORTED) == [fault]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: str(panel["title"]))
def test_a_panel_reads_what_is_exported(panel: dict[str, Any]) -> None:
    assert panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        assert find_faults(target["expr"].replace("$__rate_interval", "5m"), EXPORTED) == []
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert named <= find_labels(target["expr"].replace("$__rate_interval", "5m"), EXPORTED)


def test_panels_do_not_overlap_and_take_the_data_source_that_is_chosen_at_import() -> None:
    dashboard = read_dashboard()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    covered = [
        (x, y)
        for panel in dashboard["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(covered) == len(set(covered)) and max(x for x, _ in covered) < 24
    assert {panel["datasource"]["uid"] for panel in panels()} == {"${source}"}
    assert [(one["name"], one["type"]) for one in dashboard["templating"]["list"]] == [("source", "datasource")]


def test_prometheus_is_told_the_ports_that_are_the_defaults() -> None:
    scraped = yaml.safe_load((OPS / "prometheus.yml").read_text(encoding="utf-8"))
    settings = Settings()
    ports = {
        f"queryloop-{name}": section.port
        for name, section in (("worker", settings.worker), ("serving", settings.serving), ("trainers", settings.timetable))
    }
    found = {one["job_name"]: one["static_configs"][0]["targets"] for one in scraped["scrape_configs"]}
    assert found == {name: [f"127.0.0.1:{port}"] for name, port in ports.items()}
    assert all((OPS / name).exists() for name in scraped["rule_files"])


def test_every_alert_is_on_the_operating_page() -> None:
    page = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in alerts() if f"`{rule['alert']}`" not in page] == []
