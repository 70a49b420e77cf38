"""A number with the evidence behind it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval and what it rests on.

    low, high : ends of the interval at the configured confidence; NaN where it cannot be judged
    positives, rows : how many rows of the rare class, and in all, stand behind it
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    positives: int = 0
    rows: int = 0

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} ({self.positives} positives)"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, Any]:
        return {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in asdict(self).items()
        }
