"""Which rows cross-fitting judges, and when it may stand in for the test rows."""

from __future__ import annotations

import numpy as np
import pytest

from rareclass.config import EvaluateSettings, GateSettings
from rareclass.core import crossfitting, evaluation
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import Feature, Rows, Schema


@pytest.mark.parametrize(
    ("positives", "rows", "gate", "repeats", "why"),
    [
        (100, 2000, GateSettings(), 3, None),
        (
            49,
            2000,
            GateSettings(),
            3,
            "all parts together hold 49 positives, and cross-fitting over all of them needs 50",
        ),
        (19, 2000, GateSettings(min_positives=5), 3, "needs 20"),
        (100, 2000, GateSettings(), 0, "evaluate.cross_fitting_repeats: 0"),
        (100, 100_001, GateSettings(), 3, "left out above 100,000 rows, here are 100,001"),
    ],
)
def test_cross_fitting_stands_in_where_it_can_and_says_why_not(
    positives: int, rows: int, gate: GateSettings, repeats: int, why: str | None
) -> None:
    found = crossfitting.why_not(positives, rows, gate, repeats)
    assert (found is None) if why is None else (found is not None and why in found)


def test_repeats_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    y = (np.arange(1500) < 100).astype(int)
    alike = np.stack(
        [1 / (1 + np.exp(-(rng.normal(size=1500) * 0.01 + line))) for line in [rng.normal(size=1500) + 2 * y] * 3]
    )
    apart = np.stack([1 / (1 + np.exp(-(rng.normal(size=1500) + pull * y))) for pull in (1.0, 2.0, 3.0)])
    costs = CostArrays(10.0, 1.0)
    rows = Rows(
        Schema((Feature("v"),)), np.zeros((1500, 1), np.float32), y.astype(np.int64), np.arange(1500, dtype=np.uint64)
    )

    def width(score: np.ndarray) -> float:
        ap = evaluation.pooled(rows, score, score > 0.5, costs=costs, config=EvaluateSettings()).metrics["ap"]
        assert ap.low < ap.value < ap.high
        return ap.high - ap.low

    assert width(apart) > 1.5 * width(alike)
    assert width(apart) > width(apart[1:2])
