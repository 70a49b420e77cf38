"""Rows with values far out, which `train.majority_quantile` and `train.outliers` keep from fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rareclass.config import OutliersSettings, TrainSettings
from rareclass.core.dataset import AnyArray, BoolArray, FloatMatrix
from rareclass.errors import ConfigError, nearest


def leave_out(
    x: FloatMatrix,
    y: AnyArray,
    names: Sequence[str],
    numeric: Sequence[int],
    keep: BoolArray,
    train: AnyArray,
    settings: TrainSettings,
) -> Iterator[tuple[str, BoolArray]]:
    """Clear ``keep`` of what the settings keep from fits, one rule after the other; yield each one's name and (n,) what
    it took.

    names, numeric : of the columns of x (n, n_features), and the positions of the numeric ones
    train : rows whose quantiles count, as far as they are kept. Raises ConfigError for a rule on no numeric feature.
    """
    if settings.majority_quantile < 1:
        outlying = outlying_majority(x, y, numeric, train[keep[train]], settings.majority_quantile) & keep
        keep &= ~outlying
        yield "majority_outliers", outlying
    for rule in settings.outliers:
        at = names.index(column_of(rule, [names[position] for position in numeric]))
        outlying = outlying_in_column(x[:, at], y, train[keep[train]], rule) & keep
        keep &= ~outlying
        yield f"outliers of {rule.column}", outlying


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
    """(n,) True for rows of one class with a value outside its quantiles among that class's rows of ``index``; missing
    stays.
    """
    label = int(rule.of == "rare")
    values = column[index[y[index] == label]]
    values = values[~np.isnan(values)]
    outlying = np.zeros(len(y), dtype=bool)
    if len(values) and rule.above is not None:
        outlying |= column > np.quantile(values, rule.above)
    if len(values) and rule.below is not None:
        outlying |= column < np.quantile(values, rule.below)
    return np.asarray(outlying & (y == label))


def column_of(rule: OutliersSettings, numeric: Sequence[str]) -> str:
    """Return the column of a rule. Raises ConfigError when it is no numeric feature."""
    if rule.column not in numeric:
        raise ConfigError(
            f"train.outliers: '{rule.column}' is no numeric feature.{nearest(rule.column, numeric)} Set column to one "
            f"of: {', '.join(numeric)}"
        )
    return rule.column
