"""What the estimators share: tables of any library as features by name, checked as scikit-learn asks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import validate_data

from rareclass.core.dataset import FloatMatrix, Schema, encode
from rareclass.frames import as_pandas


def has_categories(X: Any) -> bool:
    """Whether a table that is to be learned from has a column that is no number."""
    return isinstance(X, pd.DataFrame) and not all(pd.api.types.is_numeric_dtype(kind) for kind in X.dtypes)


def named(estimator: Any, X: pd.DataFrame, *, reset: bool = True) -> pd.DataFrame:
    """Return a table with texts as names, its columns noted by (``reset``) or compared with those of the estimator."""
    validate_data(estimator, X, skip_check_array=True, reset=reset)
    return X.set_axis([str(name) for name in X.columns], axis=1)


def numeric(estimator: Any, values: FloatMatrix) -> pd.DataFrame:
    """Return checked numbers to learn from under the names that the estimator noted, else x0, x1, ..."""
    names = getattr(estimator, "feature_names_in_", [f"x{i}" for i in range(values.shape[1])])
    return pd.DataFrame(values, columns=[str(name) for name in names])


def matrix(estimator: Any, X: Any, schema: Schema) -> FloatMatrix:
    """Return rows to score, encoded as those that a fitted estimator learned from."""
    X = as_pandas(X)
    if isinstance(X, pd.DataFrame) and schema.categorical.any():
        return encode(named(estimator, X, reset=False), schema)
    values = validate_data(estimator, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
    return finite(values.astype(np.float32))


def finite(x: FloatMatrix) -> FloatMatrix:
    """Values beyond float32 become its largest, so that no finite input turns into an infinity."""
    limit = np.finfo(np.float32).max
    return np.clip(x, -limit, limit)
