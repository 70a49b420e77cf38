"""Tables of other libraries (polars, Arrow, Modin, ...) as pandas has them, through narwhals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def as_pandas(table: Any) -> Any:
    """Return a table or column of another library as pandas has it, a lazy one collected; anything else as it is.

    polars and Arrow columns keep what they are: numbers with gaps become floating point, text and categories stay so.
    """
    if table is None or isinstance(table, np.ndarray | pd.DataFrame | pd.Series | list | tuple):
        return table
    import narwhals as nw

    known = nw.from_native(table, pass_through=True, allow_series=True)
    if isinstance(known, nw.LazyFrame):
        known = known.collect()
    return known.to_pandas() if isinstance(known, nw.DataFrame | nw.Series) else table
