"""Served rows that a retrain learns from are marked as a run marks the rows of a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareclass.adapters import tables
from rareclass.config import Config, parse
from rareclass.core.dataset import Rows, decode
from rareclass.errors import DataError
from rareclass.services.live import learnable

FILTERS: list[Any] = [
    [["shop", "!=", "b"]],
    [["amount", "<", 1.0]],
    [[["target", "==", "yes"]], [["target", "!=", "yes"], ["amount", "<", 0.5]]],
    [["when", ">=", "2024-01-20"], ["shop", "in", ["a", "c"]]],
]


def history(path: Path) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 1200
    frame = pd.DataFrame({"amount": rng.normal(size=n).astype(np.float32), "shop": rng.choice(["a", "b", "c"], n)})
    frame["target"] = np.where(rng.random(n) < 0.2, "yes", "no")
    frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n), unit="h")
    frame.to_parquet(path)
    return frame


def settings(folder: Path, **train: Any) -> Config:
    data = {
        "path": str(folder / "rows.parquet"),
        "target": "target",
        "positive": "yes",
        "time": "when",
        "label_delay": "1d",
    }
    return parse({"name": "t", "data": data, "train": train})


def served(config: Config) -> tuple[Rows, np.ndarray]:
    """All rows as if they had been served: without a mark; and the mark that ingest gave them."""
    found = tables.ingest(config)
    parts = [found.train, found.validation, found.test]
    rows = Rows(
        found.schema,
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
        np.concatenate([part.row_id for part in parts]),
        time=np.concatenate([part.time for part in parts]),
    )
    return rows, np.concatenate([part.keep for part in parts])


@pytest.mark.parametrize("condition", FILTERS, ids=["category", "number", "either class", "time and several"])
def test_the_mark_of_a_served_row_is_that_of_the_same_row_in_a_source(condition: Any, tmp_path: Path) -> None:
    history(tmp_path / "rows.parquet")
    config = settings(tmp_path, filter=condition)
    rows, expected = served(config)
    marked = learnable.mark_filtered(config, rows, decode(rows.x, rows.schema), "yes")
    np.testing.assert_array_equal(marked.keep, expected)
    assert 0 < expected.sum() < len(expected)


def test_values_far_out_are_left_out_by_the_quantiles_of_the_rows_that_are_learned_from(tmp_path: Path) -> None:
    history(tmp_path / "rows.parquet")
    rule = {"column": "amount", "of": "rare", "above": 0.9}
    config = settings(tmp_path, majority_quantile=0.8, outliers=[rule])
    rows, _ = served(config)
    keep = learnable.mark_outlying(config, rows).keep
    assert keep is not None
    amount = rows.x[:, rows.schema.names.index("amount")]
    for label, share in ((0, 0.8), (1, 0.9)):
        of_class = rows.y == label
        np.testing.assert_array_equal(keep[of_class], amount[of_class] <= np.quantile(amount[of_class], share))
    assert learnable.mark_outlying(settings(tmp_path), rows) is rows


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ([["branch", "==", "x"]], "not stored with the predictions"),
        ([["target", "!=", "maybe"]], "tells no other class"),
    ],
)
def test_a_condition_that_the_store_cannot_answer_is_refused(condition: Any, said: str, tmp_path: Path) -> None:
    history(tmp_path / "rows.parquet")
    rows, _ = served(settings(tmp_path, filter=[["amount", "<", 1.0]]))
    with pytest.raises(DataError, match=said):
        learnable.mark_filtered(settings(tmp_path, filter=condition), rows, decode(rows.x, rows.schema), "yes")
