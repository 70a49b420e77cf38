"""The package's source, parsed once for all tests of this folder."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "rareclass"
TREES: dict[str, ast.Module] = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
"""Module by its path below `src/rareclass`."""
NODES: dict[str, list[ast.AST]] = {name: list(ast.walk(tree)) for name, tree in TREES.items()}
"""All that a module consists of, in the order of `ast.walk`."""
