"""Imports stand at the top of a module; one inside a function saves the time of a heavy library, or of a system's own.

`rareclass --help` answers in half a second because nobody pays for what is not used. import-linter sees lazy imports as
well as others: what is tested here is that a lazy import has that reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath

from sources import TREES

HEAVY = {
    # takes a tenth of a second or more, or tens of megabytes
    *("numpy", "pandas", "scipy", "sklearn", "imblearn", "xgboost", "optuna", "skops", "pyarrow", "plotly", "mlflow"),
    *("sqlalchemy", "alembic", "evidently", "kfp", "kfp_server_api", "kubernetes", "dask", "distributed", "fsspec"),
    *("lightgbm", "catboost", "duckdb", "deltalake", "pyiceberg", "requests", "jinja2", "markupsafe", "rich", "yaml"),
    *("narwhals", "threadpoolctl", "prometheus_client", "tenacity"),
    # of an extra that may not be installed
    *("adbc_driver_manager", "aiokafka", "google", "grpc", "opentelemetry", "starlette", "uvicorn", "uvloop", "orjson"),
    # of some systems only
    *("ctypes", "fcntl", "resource"),
}
FREE = {"cli.py", "__init__.py"}
"""Commands import what they call, and the public names what they are."""


def _module(path: str) -> str:
    parts = ("rareclass", *PurePosixPath(path).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): tree for path, tree in TREES.items()}


def _names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules that an import runs: of `from rareclass.core import ranking`, rareclass.core.ranking."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.module:
        inside = [f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES]
        yield from inside or [node.module]


def _imports(node: ast.AST, *, lazy: bool, inside: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports within functions, or those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            if inside == lazy:
                yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            within = inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(child, lazy=lazy, inside=within)


@cache
def _at_the_top(module: str) -> tuple[str, ...]:
    """The modules that one imports when it is imported, and the packages above it."""
    if not module.startswith("rareclass"):
        return ()
    parts = module.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    imports = _imports(MODULES[module], lazy=False) if module in MODULES else ()
    return (*above, *(name for node in imports for name in _names(node)))


def _run(name: str) -> set[str]:
    """All modules that importing one runs: what they import at the top, and the packages above them."""
    known, left = set(), [name]
    while left:
        module = left.pop()
        if module in known:
            continue
        known.add(module)
        left += _at_the_top(module)
    return known


@cache
def _heavy(name: str) -> bool:
    return any(module.partition(".")[0] in HEAVY for module in _run(name))


def test_an_import_inside_a_function_saves_the_time_of_a_heavy_library() -> None:
    without_reason = [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for path, tree in TREES.items()
        if path not in FREE
        for node in _imports(tree, lazy=True)
        if not any(map(_heavy, _names(node)))
    ]
    assert without_reason == []


def test_each_library_on_the_list_is_imported_lazily_somewhere() -> None:
    lazily = {
        name.partition(".")[0] for tree in TREES.values() for node in _imports(tree, lazy=True) for name in _names(node)
    }
    assert HEAVY - lazily == set()
