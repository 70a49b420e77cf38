"""One rule for paired differences: what is called better is what has an interval that leaves 0 out, and nothing else
is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rareclass.core.dataset import FloatArray
from rareclass.core.estimate import Estimate


@dataclass(frozen=True)
class Difference:
    """A paired difference of two models on the same rows.

    estimate : its interval allows for the number of differences that were looked at together (Bonferroni)
    p_value : two-sided, allowing for the same number; below 1 - confidence exactly where the interval leaves 0 out
    """

    estimate: Estimate
    p_value: float

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above 0."""
        return bool(self.estimate.low > 0)

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out, on either side."""
        return bool(self.estimate.low > 0 or self.estimate.high < 0)


def joint_level(confidence: float, compared: int) -> float:
    """Return the level of each of so many intervals with which all of them hold together at ``confidence``."""
    return 1 - (1 - confidence) / max(compared, 1)


def judge_difference(
    value: float, draws: FloatArray, *, confidence: float, compared: int, positives: int, rows: int
) -> Difference:
    """Return the difference with its interval and p-value: Student's t for the positives, times the spread of the
    resamples.

    value : of all rows · draws : (n_boot,) of the resamples, paired
    compared : how many differences are looked at together
    A share of resamples beyond 0 could not be below 1 in their number, and ten comparisons would never be significant.
    """
    from scipy.stats import t

    finite = np.asarray(draws, dtype=np.float64)[np.isfinite(draws)]
    if np.isnan(value) or 2 * len(finite) < len(draws) or len(finite) < 2:
        return Difference(Estimate(float(value), positives=positives, rows=rows), 1.0)
    spread, freedom = float(finite.std(ddof=1)), max(positives - 1, 1)
    width = float(t.ppf(0.5 + joint_level(confidence, compared) / 2, freedom)) * spread
    beyond = 2 * float(t.sf(abs(value) / spread, freedom)) if spread > 0 else float(value == 0)
    difference = Estimate(float(value), float(value - width), float(value + width), positives, rows)
    return Difference(difference, min(1.0, beyond * max(compared, 1)))
