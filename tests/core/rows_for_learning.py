"""Small labelled rows with a pattern worth learning, missing values, and a category when asked."""

from __future__ import annotations

from typing import Any

import numpy as np

from rareclass.core import learners
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.fit_task import FitTask
from rareclass.core.fitted import Fitted


def fit(name: str, rows: Rows, *, params: dict[str, Any] | None = None, **task: Any) -> Fitted:
    """Fit a learner with a task of these settings."""
    return learners.fit(name, FitTask(rows, **task), params)


def make_rows(n: int = 600, *, seed: int = 0, shift: float = -3.0, category: bool = False, hours: bool = False) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)).astype(np.float32)
    z = 2.0 * x[:, 0] + x[:, 1] * x[:, 2] + shift
    features = [Feature(f"x{i}") for i in range(5)]
    if category:
        x[:, 4] = rng.integers(0, 3, n)
        z += 2.0 * (x[:, 4] == 2)
        features[4] = Feature("shop", "categorical", ("a", "b", "c"))
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.int64)
    x[rng.random((n, 5)) < 0.03] = np.nan
    time = np.arange(n).astype("datetime64[h]").astype("datetime64[us]") if hours else None
    amount = rng.lognormal(3, 1, n)
    return Rows(Schema(tuple(features)), x, y, np.arange(n, dtype=np.uint64), time=time, amount=amount)
