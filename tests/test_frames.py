"""Tables of polars and Arrow mean what the same table of pandas means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import rareclass
from rareclass.frames import as_pandas

KINDS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "polars": pl.from_pandas,
    "lazy polars": lambda frame: pl.from_pandas(frame).lazy(),
    "arrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
}


def rows(n: int = 500) -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"amount": rng.normal(size=n), "count": rng.integers(0, 9, n), "shop": rng.choice(["a", "b"], n)}
    )
    frame.loc[::7, "amount"] = np.nan
    frame.loc[::11, "shop"] = None
    odds = np.nan_to_num(frame["amount"].to_numpy()) + (frame["shop"] == "b")
    return frame, pd.Series((odds + rng.normal(size=n) > 2.2).astype(int), name="fraud")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [["amount", "count", "shop"], ["amount", "count"]])
def test_the_estimator_learns_and_scores_the_same_from_every_library(kind: str, columns: list[str]) -> None:
    frame, labels = rows()
    frame, of = frame[columns], KINDS[kind]
    y = pl.Series(labels) if "polars" in kind else pa.chunked_array([labels])
    options: dict[str, Any] = {"candidates": "logistic_regression", "folds": 3}
    plain = rareclass.RareClassifier(**options).fit(frame, labels)
    other = rareclass.RareClassifier(**options).fit(of(frame), y)
    assert list(other.feature_names_in_) == columns
    np.testing.assert_array_equal(other.predict_proba(of(frame)), plain.predict_proba(frame))
    scored = rareclass.score(other.model_, of(frame))
    np.testing.assert_array_equal(scored["score"], plain.predict_proba(frame)[:, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_diagnosis_and_a_detector_take_them_too(kind: str) -> None:
    frame, labels = rows()
    table = KINDS[kind](frame)
    assert rareclass.diagnose(table, labels).to_json() == rareclass.diagnose(frame, labels).to_json()
    detectors = [rareclass.RareDetector(members=["ecod"]).fit(each) for each in (frame, table)]
    np.testing.assert_array_equal(detectors[0].score_samples(frame), detectors[1].score_samples(table))


def test_what_is_no_table_is_left_as_it_is() -> None:
    values = [np.ones(3), [1, 2], None, "text", pd.Series([1]), object()]
    assert all(as_pandas(each) is each for each in values)
