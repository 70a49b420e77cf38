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
