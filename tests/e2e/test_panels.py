"""Every query of every dashboard is answered with data by the Prometheus of a cluster where the loop has turned
(test_loop.py).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from kube import address, kubectl, lacking, prometheus, until
from monitoring.dashboards import DASHBOARDS
from tools import draw_dashboards

SPACE, RELEASE = os.environ.get("RARECLASS_E2E_NAMESPACE", "loop"), "stream"
missing = lacking("monitoring", SPACE)
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing), reason=f"needs a cluster: {missing}"),
    pytest.mark.timeout(900),
]
MINUTES = 90.0
QUERIES = {
    (name, panel["title"], target["expr"])
    for name, build in DASHBOARDS.items()
    for panel in json.loads(build())["panels"]
    for target in panel.get("targets", [])
}


@pytest.fixture(scope="module")
def source() -> str:
    return address("monitoring", "prometheus", 9090)


@pytest.fixture(scope="module", autouse=True)
def rolled_back(source: str) -> None:
    """What the loop did not do by itself: a person goes back to the previous version."""
    query = f'rareclass_ledger_last_timestamp_seconds{{namespace="{SPACE}",kind="rollback"}}'
    if not prometheus(query):
        words = (
            "exec",
            f"deploy/{RELEASE}-monitor",
            "-c",
            "monitor",
            "--",
            "rareclass",
            "rollback",
            "-c",
            "/config/config.yaml",
        )
        kubectl("-n", SPACE, *words, "--reason", "looks odd")
    until(lambda: draw_dashboards.results(source, query, MINUTES), 120, query)


@pytest.mark.parametrize(("dashboard", "panel", "expression"), sorted(QUERIES))
def test_every_query_is_answered_with_data(source: str, dashboard: str, panel: str, expression: str) -> None:
    assert draw_dashboards.results(source, expression, MINUTES), f"{dashboard}, {panel}: no data for {expression}"


def test_the_annotations_mark_what_the_ledger_has(source: str) -> None:
    for build in DASHBOARDS.values():
        for note in json.loads(build())["annotations"]["list"]:
            assert draw_dashboards.results(source, note["expr"], MINUTES), note["expr"]


def test_the_pages_are_drawn_from_the_same_results(source: str, tmp_path: Path) -> None:
    pages = draw_dashboards.draw(source, tmp_path, minutes=MINUTES)
    assert len(pages) == len(DASHBOARDS)
    assert "no data" not in "".join(page.read_text(encoding="utf-8") for page in pages)


def test_grafana_finds_each_dashboard_by_its_label() -> None:
    command = ["kubectl", "-n", SPACE, "get", "configmap", "-l", "grafana_dashboard=1", "-o", "json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["items"]
    boards = {name.removesuffix(".json"): json.loads(text) for each in found for name, text in each["data"].items()}
    assert boards == {name: json.loads(build()) for name, build in DASHBOARDS.items()}
