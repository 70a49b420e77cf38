"""Whatever is public says what it does: in a sentence of its own, or in that of what it overrides."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sources import NODES, SOURCE, TREES

CALLED_BY_NAME = "adapters/migrations/"
"""Alembic calls what is in there."""
CLASSES = {node.name: node for nodes in NODES.values() for node in nodes if isinstance(node, ast.ClassDef)}
"""Class by name: no two share one (`test_names`)."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(body: list[ast.stmt]) -> list[Definition]:
    return [node for node in body if isinstance(node, Definition) and not node.name.startswith("_")]


def _inherited(kind: ast.ClassDef, name: str) -> bool:
    """Whether a base class documents the method."""
    bases = [CLASSES[base] for base in (ast.unparse(base) for base in kind.bases) if base in CLASSES]
    return any(
        any(node.name == name and ast.get_docstring(node) for node in _definitions(base.body)) or _inherited(base, name)
        for base in bases
    )


def test_whatever_is_public_says_what_it_does() -> None:
    silent = []
    for path, tree in TREES.items():
        for node in _definitions([] if path.startswith(CALLED_BY_NAME) else tree.body):
            if not ast.get_docstring(node):
                silent.append(f"{path}: {node.name}")
            if isinstance(node, ast.ClassDef):
                silent += [
                    f"{path}: {node.name}.{method.name}"
                    for method in _definitions(node.body)
                    if not ast.get_docstring(method) and not _inherited(node, method.name)
                ]
    assert silent == []


# --- the public names, as docs/api.md lists them ----------------------------------------------------------------------


def _public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions and constructors of the public API, and the methods that its classes define, by their full name."""
    page = (SOURCE.parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    for name in re.findall(r"^::: (\S+)", page, flags=re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        thing = getattr(importlib.import_module(module), attribute)
        yield name, thing
        if inspect.isclass(thing):
            for method in vars(thing):
                function = getattr(thing, method)
                if not method.startswith("_") and inspect.isroutine(function) and function.__module__ == module:
                    yield f"{name}.{method}", function


PUBLIC = dict(_public())


def _sections(thing: Any) -> dict[str, str]:
    """The text of each numpydoc section of a docstring by its title."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", inspect.getdoc(thing) or "", flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _entries(section: str) -> list[str]:
    """The names that a numpydoc section explains; each is followed by an indented sentence."""
    heads = re.findall(r"^(\S[^:\n]*?) : \S.*\n +\S", section, flags=re.MULTILINE)
    return [name.strip() for head in heads for name in head.split(",")]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_explain_parameters_and_results_in_numpydoc(name: str) -> None:
    thing, sections = PUBLIC[name], _sections(PUBLIC[name])
    signature = inspect.signature(thing)
    given = [parameter for parameter in signature.parameters if parameter not in ("self", "cls")]
    explained = sections.get("Attributes" if hasattr(thing, "__dataclass_fields__") else "Parameters", "")
    assert _entries(explained) == given
    if not inspect.isclass(thing) and signature.return_annotation not in (None, "None"):
        assert re.search(r"^\S.*\n +\S", sections.get("Returns", ""), flags=re.MULTILINE)
