"""From a drop of the metric to the webhook, and every query of every dashboard, on a real Prometheus."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from monitoring.dashboards import DASHBOARDS
from stack import MONITORING, Stack, running, snapshot, until

from conftest import missing

ALERTMANAGER = MONITORING / "alertmanager" / "alertmanager.yaml"


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack"), snapshot("nothing")) as made:
        yield made


@pytest.fixture(scope="module")
def degraded(stack: Stack) -> Stack:
    """The stack after the metric drop; the quiet before it is checked on the way."""
    until("an evaluated healthy window", lambda: stack.query('rareclass_ap_degraded_ratio{version="7"} == 0'))
    assert stack.query('ALERTS{alertname="RareclassApDegraded"}') == []
    stack.exposed.found = snapshot("sudden pattern", "covariate shift")
    return stack


def test_a_metric_drop_reaches_the_triage_webhook_with_all_that_triage_needs(degraded):
    token, payload, alert = degraded.hook.alert("/triage", "RareclassApDegraded")
    assert token == "Bearer secret of triage"
    assert payload["status"] == "firing"
    assert payload["commonLabels"]["action"] == "triage"
    assert payload["groupLabels"] == {"namespace": "ml", "model": "live", "action": "triage"}
    assert alert["labels"].items() >= {"version": "7", "severity": "critical", "namespace": "ml"}.items()
    assert (MONITORING.parent / alert["annotations"]["runbook"]).is_file()
    assert "live version 7" in alert["annotations"]["summary"]


def test_a_server_that_fails_reaches_the_pager(degraded):
    token, payload, _ = degraded.hook.alert("/page", "RareclassErrorsHigh")
    assert token == "Bearer secret of page"
    assert payload["commonLabels"]["action"] == "page"


def expressions() -> list[Any]:
    found = []
    for name, build in DASHBOARDS.items():
        board = json.loads(build())
        targets = [(panel, target) for panel in board["panels"] for target in panel.get("targets", [])]
        found += [pytest.param(t["expr"], id=f"{name}: {panel['title']} {t['refId']}") for panel, t in targets]
        found += [pytest.param(note["expr"], id=f"{name}: {note['name']}") for note in board["annotations"]["list"]]
    return found


@pytest.mark.parametrize("expression", expressions())
def test_every_query_of_every_dashboard_parses_and_finds_data(degraded, expression):
    for name, value in {"$namespace": ".*", "$model": ".*", "$__rate_interval": "1m"}.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    found = until(f"data of {expression}", lambda: degraded.query(expression), seconds=60)
    assert all(series["value"][1] != "NaN" for series in found) or "histogram_quantile" in expression


def test_variables_list_the_namespace_and_the_model(degraded):
    board = json.loads(DASHBOARDS["drift"]())
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            expression, label = inner[1].replace("$namespace", ".*"), inner[2]
            assert {one["metric"][label] for one in degraded.query(expression)} == {
                {"namespace": "ml", "model": "live"}[label]
            }


def test_broken_data_holds_the_repairs_back(degraded):
    degraded.exposed.found = replace(degraded.exposed.found, schema_errors=("column 'amount' no longer arrives",))
    degraded.hook.alert("/page", "RareclassDataBroken")

    def held() -> bool:
        states = {
            one["labels"]["alertname"]: one["status"]
            for one in degraded.alerts()
            if one["labels"]["action"] == "triage"
        }
        return bool(states) and all(one["state"] == "suppressed" and one["inhibitedBy"] for one in states.values())

    until("all triage alerts to be held back", held)


def test_the_drawing_tool_draws_every_panel_from_its_own_query_results(degraded, tmp_path):
    from tools.draw_dashboards import draw

    pages = draw(degraded.url, tmp_path, minutes=5)
    assert [page.stem for page in pages] == list(DASHBOARDS)
    for page, build in zip(pages, DASHBOARDS.values(), strict=True):
        text = page.read_text()
        for panel in json.loads(build())["panels"]:
            if panel["type"] != "row":
                assert f'<div class=panel title="{html.escape(panel["title"])}">' in text
        assert "class='big nothing'" not in text


# --- without a running server -----------------------------------------------------------------------------------------


def amtool(path: Path) -> None:
    if shutil.which("amtool") is None:
        missing("amtool (Debian: apt-get install prometheus-alertmanager)")
    done = subprocess.run(["amtool", "check-config", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alertmanager_accepts_its_configuration_and_the_examples_in_its_comments(tmp_path):
    amtool(ALERTMANAGER)
    text = ALERTMANAGER.read_text()
    assert "#:" in text
    whole = tmp_path / "alertmanager.yaml"
    whole.write_text(text.replace("#:", ""))
    amtool(whole)
    page = yaml.safe_load(whole.read_text())["receivers"][1]
    assert {"webhook_configs", "email_configs", "slack_configs"} <= set(page)


def test_no_secret_is_written_into_the_configuration():
    text = ALERTMANAGER.read_text()
    assert not re.search(r"(?m)^\s*#?:?\s*-?\s*(password|auth_password|api_url|credentials|bearer_token):", text)


def test_inhibition_names_only_alerts_that_exist():
    names = {path.stem for path in (MONITORING / "runbooks").glob("*.md")}
    for rule in yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            assert set(re.findall(r"Rareclass\w+", matcher)) <= names


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_has_what_grafana_needs(name):
    board = json.loads(DASHBOARDS[name]())
    assert board["schemaVersion"] == 42
    assert board["uid"] == f"rareclass-{name}"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    assert [v["name"] for v in board["templating"]["list"]] == ["datasource", "namespace", "model"]
    assert [note["name"] for note in board["annotations"]["list"]] == ["Promotes", "Rollbacks"]
    for panel in board["panels"]:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["description"]
        assert panel["datasource"]["uid"] == "${datasource}"
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_committed_json_is_what_the_code_makes(name):
    assert (MONITORING / "dashboards" / "json" / f"{name}.json").read_text() == DASHBOARDS[name](), "run `make golden`"


def test_no_panel_covers_another():
    for build in DASHBOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(build())["panels"]:
            grid = panel["gridPos"]
            cells = {
                (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells


def test_every_dashboard_is_a_golden_file():
    from tools.goldens import GOLDENS

    assert {f"monitoring/dashboards/json/{name}.json" for name in DASHBOARDS} <= set(GOLDENS)
