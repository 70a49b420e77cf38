"""One word means one thing: what a class is called tells it from every other class of the package."""

import ast
from collections import defaultdict

from sources import NODES


def _classes() -> list[tuple[str, list[str], str]]:
    return [
        (node.name, [ast.unparse(base) for base in node.bases], path)
        for path, nodes in NODES.items()
        for node in nodes
        if isinstance(node, ast.ClassDef)
    ]


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for name, _, path in _classes():
        places[name].append(path)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_what_is_raised_ends_in_error() -> None:
    kinds = {"Exception", "BaseException"}
    classes = _classes()
    for _ in range(len(classes)):  # bases may be defined later in the walk
        grown = kinds | {name for name, bases, _ in classes if kinds & {base.rsplit(".", 1)[-1] for base in bases}}
        grown |= {base for _, bases, _ in classes for base in bases if base.endswith(("Error", "Exception"))}
        if grown == kinds:
            break
        kinds = grown
    raised = {name for name, bases, _ in classes if kinds & {base.rsplit(".", 1)[-1] for base in bases}}
    assert raised
    assert {name for name in raised if not name.endswith("Error")} == set()


def test_every_settings_section_says_that_it_is_one() -> None:
    sections = [name for name, bases, path in _classes() if path == "config.py" and "Section" in bases]
    assert sections
    assert [
        name for name in sections if not name.endswith(("Settings", "Step", "Spec", "Point", "Env", "Config"))
    ] == []


SAYS_NOTHING = {"found", "each", "known", "one", "kept", "whole", "told"}
"""A local is called after what it holds."""
NOT_YET = {
    "core/diagnosis.py", "core/liveness.py", "core/planning.py", "core/repair.py", "core/review.py", "core/search.py",
    "core/selection.py", "core/selection_metrics.py", "core/training.py", "core/triage.py", "core/without_labels.py",
}  # fmt: skip
"""Modules of the core in which some locals still say nothing; no other may join them."""
ELSEWHERE = ("adapters/registry.py", "adapters/reports/charts.py", "adapters/tables/sources.py")
"""Modules of other folders in which every local says what it holds."""


def test_locals_say_what_they_hold() -> None:
    clean = [name for name in NODES if name.startswith("core/") and name not in NOT_YET]
    assert len(clean) > 40
    silent = {
        f"{name}:{node.lineno} {node.id}"
        for name in (*clean, *ELSEWHERE)
        for function in NODES[name]
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in SAYS_NOTHING
    }
    assert silent == set()
