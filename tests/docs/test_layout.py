"""Lines and folders: a table is a table, and every folder says what belongs in it."""

import ast
import re
import subprocess
from pathlib import Path

from sources import NODES

ROOT = Path(__file__).parents[2]


def _tables(tree: ast.Module) -> set[int]:
    """Last lines of what may be laid out by hand: a table that a module defines, or the cases of a test."""
    tables: list[ast.AST] = [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    for node in ast.walk(tree):
        tables.extend(getattr(node, "decorator_list", ()))
    return {int(getattr(node, "end_lineno", 0)) for node in tables}


def test_only_tables_are_laid_out_by_hand() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    mark = "# fmt: " + "skip"
    by_hand = {}
    for name in listed.stdout.split():
        text = (ROOT / name).read_text()
        marked = {number for number, line in enumerate(text.splitlines(), 1) if line.rstrip().endswith(mark)}
        if marked and (wrong := marked - _tables(ast.parse(text))):
            by_hand[name] = sorted(wrong)
    assert by_hand == {}


def test_every_folder_of_the_package_says_what_belongs_in_it_and_what_does_not() -> None:
    silent = {}
    for path in sorted((ROOT / "src" / "rareclass").rglob("__init__.py")):
        said = ast.get_docstring(ast.parse(path.read_text())) or ""
        if len(said.splitlines()) < 2:
            silent[path.parent.name] = said
    assert silent == {}


def test_the_price_of_a_change_names_rooms_and_tables_that_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## The price of a change")[1].split("\n## ")[0]
    paths = [name for name in re.findall(r"`([^`]+)`", text) if "/" in name and "NAME" not in name]
    assert len(paths) > 20
    assert [name for name in paths if not (ROOT / name).exists()] == []
    tables = re.findall(r"line of `(\w+)` in `([^`]+)`", text)
    assert len(tables) > 5
    assert [
        (table, name)
        for table, name in tables
        if not re.search(rf"^(class )?{table}\b", (ROOT / name).read_text(), flags=re.MULTILINE)
    ] == []


ANY_KIND = {
    # compared with one another, and never written
    "core/candidates.py",
    # shows what a setting was, in an error
    "config.py",
    # a line of a log, below core
    "logs.py",
    # a request's rows on their way to disk: orjson's form, and for what it cannot write the same by hand
    "services/serving/shipping.py",
    # a nested value of a table as a cell of a CSV
    "adapters/tables/files.py",
}


def test_values_of_any_kind_become_json_in_one_place_where_what_is_missing_is_null() -> None:
    """`json.dumps` writes NaN, which is no JSON, and with a `default` any type at all as some text."""
    by_hand = {
        name
        for name, nodes in NODES.items()
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "json.dumps"
        if any(keyword.arg == "default" for keyword in node.keywords)
    }
    assert by_hand == ANY_KIND, "rareclass.core.jsonable.dumps"
