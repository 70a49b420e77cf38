"""A real RareModel that is made in milliseconds, for tests of what happens to models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rareclass.config import Config, parse
from rareclass.core.calibration import Identity
from rareclass.core.dataset import Feature, Schema
from rareclass.core.fitted import Logistic
from rareclass.core.model import RareModel

SCHEMA = Schema((Feature("amount"), Feature("channel", "categorical", ("web", "shop"))))


def linear(slope: float) -> Logistic:
    """score = logistic(slope * amount - 2, + 1 in the shop)."""
    return Logistic("logistic_regression", coefficient=np.array([slope, 1.0]), intercept=np.array(-2.0))


def model(slope: float = 1.0, **meta: Any) -> RareModel:
    """A model of two features with two operating points."""
    made = RareModel(
        SCHEMA,
        linear(slope),
        Identity(),
        {"default": 0.5, "strict": 0.9},
        meta={"name": "small", "target": "label", **meta},
    )
    return made.with_golden(np.array([[0, 0], [1, 1], [5, 0]], dtype=np.float32))


def frame(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    """Rows for it, with a label that follows the amount."""
    rng = np.random.default_rng(seed)
    amount = rng.normal(size=rows)
    label = (amount + rng.normal(scale=0.7, size=rows) > 1.5).astype(int)
    return pd.DataFrame({"channel": rng.choice(["web", "shop"], rows), "amount": amount, "label": label})


def config(folder: Path, **sections: Any) -> Config:
    """A configuration whose registry, artifacts and store are in ``folder``."""
    raw = {
        "name": "small",
        "data": {"path": "none.parquet", "target": "label"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "store": {"url": f"sqlite:///{folder}/store.db"},
    }
    return parse({**raw, **sections})
