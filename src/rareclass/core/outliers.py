"""Rows with values far out, which `train.majority_quantile` and `train.outliers` keep from fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rareclass.config import OutliersSettings
from rareclass.core.dataset import AnyArray, BoolArray, FloatMatrix
from rareclass.errors import ConfigError, nearest


def outlying_majority(
    x: FloatMatrix, y: AnyArray, numeric: Sequence[int], index: AnyArray, quantile: float
) -> BoolArray:
    """(n,) True for majority rows with a numeric feature above its quantile among the majority rows of ``index``.

    numeric : positions of the numeric columns of x (n, n_features)
    """
    majority = index[y[index] == 0]
    outlying = np.zeros(len(y), dtype=bool)
    for position in numeric:
        values = x[majority, position]
        if not np.isnan(values).all():
            outlying |= x[:, position] > np.nanquantile(values, quantile)
    return np.asarray(outlying & (y == 0))


def outlying_in_column(column: AnyArray, y: AnyArray, index: AnyArray, rule: OutliersSettings) -> BoolArray:
    """(n,) True for rows of one class with a value outside its quantiles among that class's rows of ``index``; missing stays."""
    label = int(rule.of == "rare")
    known = column[index[y[index] == label]]
    known = known[~np.isnan(known)]
    outlying = np.zeros(len(y), dtype=bool)
    if len(known) and rule.above is not None:
        outlying |= column > np.quantile(known, rule.above)
    if len(known) and rule.below is not None:
        outlying |= column < np.quantile(known, rule.below)
    return np.asarray(outlying & (y == label))


def column_of(rule: OutliersSettings, numeric: Sequence[str]) -> str:
    """Return the column of a rule. Raises ConfigError when it is no numeric feature."""
    if rule.column not in numeric:
        raise ConfigError(
            f"train.outliers: '{rule.column}' is no numeric feature.{nearest(rule.column, numeric)} Set column to one of: {', '.join(numeric)}"
        )
    return rule.column
