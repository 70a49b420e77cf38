"""A function is given what it needs in seven parameters at most: what travels together is one object."""

import ast
from collections.abc import Iterator

from sources import NODES

import rareclass

MOST = 7
ALLOWED = {
    # each option of a command is a parameter: that is how typer reads them
    "cli.py": "*",
    # scikit-learn reads an estimator's parameters from its constructor
    "estimator.py": {"__init__"},
    # what a notebook calls is typed by hand, with names of the field and no objects to build first
    "api.py": set(rareclass.__all__),
    # each parameter is one file that Kubeflow puts between two steps
    "services/kubeflow/steps.py": {"evaluate", "register"},
}


def _long(path: str) -> Iterator[str]:
    for node in NODES[path]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            given += [arg.arg for arg in (node.args.vararg, node.args.kwarg) if arg is not None]
            if len([name for name in given if name not in ("self", "cls")]) > MOST:
                yield node.name


def test_no_function_takes_more_than_seven_parameters() -> None:
    long = {path: set(_long(path)) for path in NODES}
    assert {
        name: functions - set(ALLOWED.get(name, ()))
        for name, functions in long.items()
        if ALLOWED.get(name) != "*" and functions - set(ALLOWED.get(name, ()))
    } == {}


def test_the_core_is_given_sections_of_the_configuration_and_never_all_of_it() -> None:
    everything = [
        f"{name}: {node.name}"
        for name, nodes in NODES.items()
        if name.startswith("core/")
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if arg.annotation is not None and "Config" in ast.unparse(arg.annotation).replace(".", " ").split()
    ]
    assert everything == []


def test_what_may_take_more_does() -> None:
    """An exception that is no longer needed is taken off the list."""
    for name, functions in ALLOWED.items():
        long = set(_long(name))
        assert long, name
        if functions != "*" and name != "api.py":
            assert long == functions, name
