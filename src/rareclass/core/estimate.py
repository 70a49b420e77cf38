"""A number with the evidence behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from rareclass.core.jsonable import Jsonable


@dataclass(frozen=True, slots=True)
class Estimate(Jsonable):
    """A value with its interval and what it rests on.

    Attributes
    ----------
    value : float
        The number itself; NaN where it is not defined.
    low, high : float
        Ends of the interval at the configured confidence; NaN where it cannot be judged, infinite where nothing bounds
        it (both are null in JSON; beside an end that is a number, null means unbounded).
    positives, rows : int
        How many rows of the rare class, and in all, stand behind it.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    positives: int = 0
    rows: int = 0

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} ({self.positives} positives)"
        return f"{self.value:.3f} {between(self.low, self.high, '{:.3f}'.format)}"


def between(low: float | None, high: float | None, written: Callable[[float], str], gap: str = " ") -> str:
    """Return an interval for people; an end that is None or infinite is unbounded."""
    ends = [
        f"no {side} bound" if end is None or math.isinf(end) else written(end)
        for side, end in (("lower", low), ("upper", high))
    ]
    return f"[{ends[0]},{gap}{ends[1]}]"


def normal_quantile(share: float) -> float:
    """Return the quantile of the standard normal distribution, without the second that importing scipy.stats takes."""
    return NormalDist().inv_cdf(share)


def wilson(hits: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share of n independent rows; NaN without rows.

    Source: Wilson, Journal of the American Statistical Association, 1927.
    """
    if n <= 0:
        return math.nan, math.nan
    z, share = normal_quantile(0.5 + confidence / 2), hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if hits == 0 else max(0.0, middle - half)), (1.0 if hits == n else min(1.0, middle + half))


def share_of(positives: int, rows: int, confidence: float = 0.95) -> Estimate:
    """Return a share with its Wilson score interval; NaN without rows."""
    if rows == 0:
        return Estimate(math.nan)
    return Estimate(positives / rows, *wilson(positives, rows, confidence), positives, rows)
