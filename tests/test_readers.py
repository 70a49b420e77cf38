"""Who reads values: nothing outside of the reading modules guesses what a value means, and every reader is listed here.

A new caller of one of GUESSES fails this test. Read with a version's schema instead
(``tables.read_frames(schema=...)``, ``Feature.read``, ``schema.roles.target.labels``, ``schema.roles.time.read``), or
say here why there is nothing to guess.
"""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "rareclass"
READING = {"core/reading.py", "core/times.py", "core/dataset.py"}
"""Where what a value means is decided."""
GUESSES = {
    "read_csv",
    "read_parquet",
    "read_table",
    "read_json",
    "to_datetime",
    "to_numeric",
    "infer_objects",
    "convert_dtypes",
    "to_timedelta",
    "infer_datetime_format",
    "open_csv",
}
ALLOWED = {
    ("adapters/store/frames.py", "read_csv"): "COPY of the database, with the type of every column",
    ("adapters/store/frames.py", "to_datetime"): "times of our own tables: stamps, or ISO 8601 and nothing else",
    ("adapters/store/frames.py", "to_numeric"): "numbers of our own tables",
    (
        "adapters/serving/row_filter.py",
        "to_numeric",
    ): "a condition with a number, asked of values that are not features",
    ("adapters/serving/tabular.py", "read_csv"): "every feature as text, which the schema reads",
    (
        "adapters/tables/csv_files.py",
        "open_csv",
    ): "the one reader of CSV: what must be exact as text, the rest decided over all values",
    ("adapters/tables/demos.py", "read_csv"): "the files of the demo flights",
    ("adapters/tables/demos.py", "to_datetime"): "year, month and day of the demo flights",
    ("adapters/tables/demos.py", "to_timedelta"): "hours and minutes of the demo flights",
    ("adapters/tracking.py", "read_parquet"): "test scores that we wrote",
    ("core/liveness.py", "to_datetime"): "stamps of the store",
    ("core/model.py", "to_numeric"): "golden rows that we wrote",
    ("services/live/replay.py", "to_datetime"): "stamps that were read, given their zone",
}
READERS = {
    "adapters/serving/signature.py": "level",
    "adapters/tables/files.py": "exact",
    "core/drift.py": "read",
    "services/live/evidently_report.py": "readable",
    "services/live/labels.py": "labels",
    "services/live/monitor.py": "numbers",
    "services/live/repair.py": "readable",
    "services/live/replay.py": "labels",
    "services/serving/score.py": "read_frames",
    "services/training/compare.py": "labels",
}
"""Readers of values after training -> what of the schema each of them uses."""


def called(path: Path) -> set[str]:
    """The names of all functions and methods that a module calls or looks up."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name)
    }


def test_nothing_outside_of_the_reading_modules_guesses_a_type() -> None:
    modules = {str(path.relative_to(SOURCE)): path for path in SOURCE.rglob("*.py")}
    found = {(name, guess) for name, path in modules.items() if name not in READING for guess in called(path) & GUESSES}
    assert found - set(ALLOWED) == set(), "read with the version's schema, or say why there is nothing to guess"
    assert set(ALLOWED) - found == set(), "no longer there: take it out of the list"


def test_every_reader_after_training_reads_with_the_schema() -> None:
    for name, uses in READERS.items():
        assert uses in called(SOURCE / name), f"{name} does not use {uses}"
    for name in ("services/serving/score.py", "services/training/compare.py"):
        for node in ast.walk(ast.parse((SOURCE / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_frames", "read_frame"):
                given = {keyword.arg for keyword in node.keywords}
                ours = (
                    isinstance(node.args[0], ast.Name) and node.args[0].id == "path"
                )  # a file that we wrote ourselves
                assert "schema" in given or ours, f"{name}:{node.lineno} reads without the version's schema"
