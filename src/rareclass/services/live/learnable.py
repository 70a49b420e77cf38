"""Which served rows a retrain may learn from: those that `train.filter`, `.majority_quantile` and `.outliers` leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.config import Config, filter_groups
from rareclass.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.core.dataset import BoolArray, Rows

_OTHER: Any = object()
"""The value of a row that is not of the rare class: the store does not know which of the others it was."""


def mark_filtered(config: Config, rows: Rows, table: pd.DataFrame, positive: Any) -> Rows:
    """Return the rows marked in ``keep`` by `train.filter`, as a run marks those of a source.

    table : (n,) served columns of the rows, as they were sent · positive : value of the target that means the rare
        class
    Raises DataError for a condition on a column that was not served, or on a class that the store does not tell.
    """
    wanted = filter_groups(config.train.filter)
    if not wanted:
        return rows
    from rareclass.adapters.serving import row_filter

    _check(config, wanted, [*rows.schema.names, *table.columns], positive)
    features = {feature.name: (at, feature) for at, feature in enumerate(rows.schema.features)}

    def column(name: str) -> Any:
        if name == config.data.target:
            return np.where(rows.y == 1, positive, _OTHER)
        if name == config.data.time:
            assert rows.time is not None
            return np.datetime_as_string(rows.time, unit="s").astype(object)
        at, feature = features.get(name, (0, None))
        if feature is None:
            return table[name].astype(object).to_numpy()
        return rows.x[:, at] if feature.kind == "numeric" else np.array(feature.texts(table[name]), dtype=object)

    return replace(rows, keep=row_filter.inside(wanted, column, len(rows)))


def _check(config: Config, wanted: Sequence[Any], known: Sequence[str], positive: Any) -> None:
    for group in wanted:
        for name, sign, value in group:
            if name == config.data.target:
                several = list(value) if sign in ("in", "not in") else [value]
                if sign not in ("==", "=", "!=", "in", "not in") or {str(each) for each in several} - {str(positive)}:
                    raise DataError(
                        f"train.filter compares '{name}' with another value than the rare class, '{positive}', and "
                        "the store tells no other "
                        "class. Write the condition with the rare class, or set retrain.source: data"
                    )
            elif name != config.data.time and name not in known:
                raise DataError(
                    f"train.filter compares '{name}', which is not stored with the predictions. Set retrain.source: "
                    "data"
                )


def mark_outlying(config: Config, rows: Rows) -> Rows:
    """Return the rows without those that `train.majority_quantile` and `train.outliers` keep from fits, marked in
    ``keep``.

    The quantiles are those of the rows that fits may learn from so far.
    """
    from rareclass.core import outliers

    if config.train.majority_quantile == 1 and not config.train.outliers:
        return rows
    numeric = [at for at, feature in enumerate(rows.schema.features) if feature.kind == "numeric"]
    keep: BoolArray = np.ones(len(rows), dtype=bool) if rows.keep is None else rows.keep.copy()
    train = np.arange(len(rows))
    for _ in outliers.leave_out(rows.x, rows.y, rows.schema.names, numeric, keep, train, config.train):
        pass  # what each rule took is in ``keep``
    return replace(rows, keep=keep)
