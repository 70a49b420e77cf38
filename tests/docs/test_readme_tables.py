"""Tables of the documents come from the benchmarks' results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "tools" / "readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(tmp_path: Path) -> Path:
    one: dict[str, Any] = {"claim": "seconds", "ours": 0.25, "peer": 1234.0, "ratio": 4936.0, "goal": 50.0, "met": True}
    found = {
        "benchmark": "fast",
        "full": False,
        "at": "2026-03-01T00:00:00+00:00",
        "seconds": 3.0,
        "load": [0.5, 1.5],
        "processors": 2,
        "versions": {"numpy": "2.4"},
        "text": "a line\n| a | b |\n|---|---|\n| 1 | 2 |\n",
        "claims": [one, {**one, "peer": None, "met": False}],
    }
    (tmp_path / "fast.json").write_text(json.dumps(found))
    return tmp_path


def test_a_section_gets_the_claims_with_goal_and_load(tool: ModuleType, results: Path) -> None:
    text = tool.filled("before\n<!-- bench:fast -->\nold\n<!-- /bench -->\nafter\n", results)
    assert "old" not in text
    assert text.startswith("before\n<!-- bench:fast -->\n")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "| seconds | 0.25 | 1,234 | 4,936 | 50 | yes |" in text
    assert "| seconds | 0.25 |  | 4,936 | 50 | **no** |" in text
    assert "short size, 2 processors, load 0.5 before and 1.5 after" in text
    assert tool.filled(text, results) == text


def test_a_section_gets_what_was_printed(tool: ModuleType, results: Path) -> None:
    text = tool.filled("<!-- bench:fast:table -->\n<!-- /bench -->", results)
    assert "```text\na line\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n" in text


def test_a_summary_has_the_claims_of_all(tool: ModuleType, results: Path) -> None:
    text = tool.filled("<!-- bench:summary -->\n<!-- /bench -->", results)
    assert "| fast | seconds | 0.25 | 1,234 | 4,936 | 50 | yes | short, 0.5 |" in text


def test_headlines_are_the_claims_that_are_named_in_their_order(tool: ModuleType, results: Path) -> None:
    assert tool.summary(results, [("fast", "no such words")]) is None
    assert tool.summary(results, [("fast", "seconds")]).count("| fast |") == 1


def test_a_headline_that_was_not_measured_again_keeps_its_line(tool: ModuleType, results: Path) -> None:
    old = "| slow | minutes | 1 | 2 | 2 | 1 | yes | full, 1.0 |\n| fast | seconds | 9 | 9 | 1 | 1 | yes | full, 1.0 |\n"
    text = tool.summary(results, [("slow", "minutes"), ("fast", "seconds")], old)
    assert text.splitlines()[2] == old.splitlines()[0]
    assert "| fast | seconds | 0.25 |" in text.splitlines()[3]
    assert text.count("| fast |") == 1


def test_a_section_without_results_stays_as_it_is(tool: ModuleType, results: Path) -> None:
    text = "<!-- bench:slow -->\nold\n<!-- /bench -->"
    assert tool.filled(text, results) == text


def test_a_marker_that_is_open_or_unknown_is_found(tool: ModuleType) -> None:
    assert tool.wrong("<!-- bench:fast -->\n<!-- /bench -->", {"fast"}) == []
    assert tool.wrong("<!-- bench:fats -->\n<!-- /bench -->", {"fast"}) == ["there is no benchmark 'fats'"]
    assert tool.wrong("<!-- bench:fast -->\ntext", {"fast"}) == ["a section is not closed with <!-- /bench -->"]


def test_the_markers_of_the_documents_are_right(tool: ModuleType) -> None:
    assert tool.main(["--check"]) == 0
