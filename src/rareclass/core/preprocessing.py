"""Numbers for learners that need them scaled and complete: linear models, networks, boosted stumps.

Numeric columns become asinh((x - median) / spread): monotone, linear near the middle, logarithmic in the tails, so that
one enormous amount does not flatten everything else. A missing value becomes the median beside a 0/1 column that says
so.
Categories become one 0/1 column per code; a missing or unseen code is all zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rareclass.core.dataset import FloatMatrix, IntArray, Rows

_SAMPLE = 100_000  # rows that medians and spreads are taken from


@dataclass(frozen=True)
class Preparation:
    """Learned from training rows alone; maps (n, f) float32 with NaN to (n, g) float32 without.

    center, spread : (number of numeric columns,) median and half the central 80 %
    flagged : numeric columns with a missing-value column of their own
    levels : codes of each categorical column
    """

    numeric: IntArray
    categorical: IntArray
    center: FloatMatrix
    spread: FloatMatrix
    flagged: IntArray
    levels: tuple[int, ...]

    @staticmethod
    def learn(rows: Rows) -> Preparation:
        """Take medians and spreads from (at most 100,000 evenly taken) training rows."""
        mask = rows.schema.categorical
        numeric, categorical = np.flatnonzero(~mask), np.flatnonzero(mask)
        values = rows.x[:: max(1, len(rows) // _SAMPLE)][:, numeric]
        center, spread = np.zeros(len(numeric), np.float32), np.ones(len(numeric), np.float32)
        for position, column in enumerate(values.T):
            present = column[~np.isnan(column)].astype(np.float64)
            if len(present):
                low, middle, high = np.quantile(present, (0.1, 0.5, 0.9))
                wide = (high - low) / 2 or float(present.std())
                center[position], spread[position] = middle, wide if np.isfinite(wide) and wide > 0 else 1.0
        flagged = numeric[np.isnan(rows.x[:, numeric]).any(axis=0)]
        levels = tuple(max(1, len(rows.schema.features[j].categories)) for j in categorical)
        return Preparation(numeric, categorical, center, spread, flagged, levels)

    def __call__(self, x: FloatMatrix) -> FloatMatrix:
        """Return the prepared matrix of ``x`` (n, f)."""
        values = np.arcsinh((x[:, self.numeric] - self.center) / self.spread)
        parts = [np.nan_to_num(values, copy=False, nan=0.0, posinf=50.0, neginf=-50.0)]
        if len(self.flagged):
            parts.append(np.isnan(x[:, self.flagged]).astype(np.float32))
        for j, count in zip(self.categorical, self.levels, strict=True):
            code = np.nan_to_num(x[:, j], nan=-1.0)
            parts.append((code[:, None] == np.arange(count, dtype=np.float32)).astype(np.float32))
        return np.concatenate(parts, axis=1, dtype=np.float32)
