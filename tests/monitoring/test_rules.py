"""The rules: promtool's own tests at both edges of every alert, and what every alert has to carry."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import missing

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yaml"))
TESTS = sorted((MONITORING / "tests").glob("*.yaml"))


def alerts() -> list[dict[str, Any]]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


ALERTS = alerts()
NAMES = [alert["alert"] for alert in ALERTS]


def promtool(*arguments: str) -> str:
    if shutil.which("promtool") is None:
        missing("promtool (Debian: apt-get install prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules():
    assert "FAILED" not in promtool("check", "rules", *map(str, RULES))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_are_silent_just_before_and_fire_just_after(path):
    promtool("test", "rules", str(path))


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_every_alert_is_tested_silent_and_firing(alert):
    checks = [
        check
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for check in test["alert_rule_test"]
        if check["alertname"] == alert["alert"]
    ]
    fired = [check["exp_alerts"][0]["exp_labels"] for check in checks if check["exp_alerts"]]
    assert any(not check["exp_alerts"] for check in checks)
    assert fired
    assert {"model", "version", "severity", "action"} <= set(fired[0])
    assert fired[0].get("namespace") == "ml"


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_every_alert_says_how_bad_it_is_what_follows_and_where_to_read_on(alert):
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    assert alert["labels"]["action"] in {"triage", "page"}
    assert "version" in alert["expr"] or "rareclass:" in alert["expr"]
    assert {"summary", "description", "runbook"} <= set(alert["annotations"])
    runbook = MONITORING.parent / alert["annotations"]["runbook"]
    assert runbook.stem == alert["alert"]
    text = runbook.read_text()
    assert text.startswith(f"# {alert['alert']}\n")
    sections = dict(re.findall(r"^## (.+)\n\n([\s\S]+?)(?=\n## |\Z)", text, re.M))
    assert list(sections) == ["What it means", "Why it matters", "What to do"]
    assert all(len(section) > 30 for section in sections.values())


def test_no_runbook_is_left_without_its_alert():
    assert {path.stem for path in (MONITORING / "runbooks").glob("*.md")} == set(NAMES)


def test_runbooks_link_only_to_what_exists_and_name_only_commands_that_exist():
    from typer.main import get_command

    from rareclass.cli import app

    commands = set(get_command(app).commands)
    for path in (MONITORING / "runbooks").glob("*.md"):
        text = path.read_text()
        for target in re.findall(r"\]\(([^)]+)\)", text):
            assert (path.parent / target).is_file(), f"{path.name} links to {target}"
        assert set(re.findall(r"`rareclass (\w+)", text)) <= commands, path.name


def test_every_metric_in_a_rule_is_one_that_the_monitor_or_the_server_exports():
    from prometheus_client import CollectorRegistry

    from rareclass.adapters.exporter import METRICS
    from rareclass.adapters.serving.metrics import Metrics

    registry = CollectorRegistry()
    Metrics(registry, "m", depth=lambda: 0, limit=1)
    served = {
        f"{family.name}{suffix}" for family in registry.collect() for suffix in ("", "_total", "_bucket", "_info")
    }
    for path in RULES:
        for name in re.findall(r"\brareclass_\w+", path.read_text()):
            assert name in METRICS or name in served, f"{path.name}: {name}"
