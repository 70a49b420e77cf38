"""What mistakes cost: one number each, or one per row where an amount is at stake."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rareclass.config import CostsSettings
from rareclass.core.dataset import AnyArray, FloatArray
from rareclass.errors import ConfigError, DataError


@dataclass(frozen=True)
class CostArrays:
    """Costs of mistakes, in ``currency``.

    false_negative, false_positive : a number, or (n,) one per row
    given : False where both are defaults, so that nobody takes them for money
    note : one sentence about what was derived, empty where all was given
    share : of the amount that a miss loses, where costs go by amount · typical : what a missing amount counts as
    """

    false_negative: float | FloatArray = 1.0
    false_positive: float | FloatArray = 1.0
    currency: str = "cost units"
    given: bool = True
    note: str = ""
    share: float | None = None
    typical: float = float("nan")

    def rule(self) -> CostArrays:
        """Return what outlives the rows: the numbers, and the share of the amount (beside the mean cost) where costs go
        by it.

        Raises DataError for costs by row that follow no amount: nobody could tell those of other rows.
        """
        by_row = isinstance(self.false_negative, np.ndarray) or isinstance(self.false_positive, np.ndarray)
        if by_row and self.share is None:
            raise DataError(
                "costs by row need an amount to be known of other rows. Set data.amount and costs.amount_share"
            )
        return replace(
            self, false_negative=float(np.mean(self.false_negative)), false_positive=float(np.mean(self.false_positive))
        )

    def of(self, amount: FloatArray | None) -> CostArrays:
        """Return the costs of other rows by the same rule. amount : (n,) of those rows, needed where costs go by it"""
        if self.share is None:
            return self.rule()
        if amount is None:
            raise DataError("costs go by amount (costs.amount_share) and these rows have none. Set data.amount")
        amounts = np.asarray(amount, dtype=np.float64)
        return replace(self, false_negative=self.share * np.where(np.isfinite(amounts), amounts, self.typical))

    def take(self, index: AnyArray) -> CostArrays:
        """Return the costs of the rows at an index or mask."""
        return replace(
            self,
            false_negative=_take(self.false_negative, index),
            false_positive=_take(self.false_positive, index),
        )

    def misses(self, n: int) -> FloatArray:
        """(n,) cost of missing each row, were it positive."""
        return _spread(self.false_negative, n, "false_negative")

    def alarms(self, n: int) -> FloatArray:
        """(n,) cost of a false alarm on each row, were it negative."""
        return _spread(self.false_positive, n, "false_positive")

    def to_json(self) -> dict[str, Any]:
        """Numbers for reports; a per-row cost is given as its mean."""
        return {
            "false_negative": float(np.mean(self.false_negative)),
            "false_positive": float(np.mean(self.false_positive)),
            "per_row": isinstance(self.false_negative, np.ndarray) or isinstance(self.false_positive, np.ndarray),
            "currency": self.currency,
            "given": self.given,
            "note": self.note,
        }


def _take(cost: float | FloatArray, index: AnyArray) -> float | FloatArray:
    return cost[index] if isinstance(cost, np.ndarray) else cost


def _spread(cost: float | FloatArray, n: int, name: str) -> FloatArray:
    values = np.asarray(cost, dtype=np.float64)
    if values.ndim and len(values) != n:
        raise DataError(f"{len(values)} {name} costs were given for {n} rows. Give one number, or one per row")
    return np.broadcast_to(values, (n,)).astype(np.float64)


def cost_arrays(config: CostsSettings, y_prevalence: float, amount: ArrayLike | None = None) -> CostArrays:
    """Return the costs of rows, with what is missing derived from the prevalence of the rare class.

    amount : (n,) amount at stake per row, needed by ``costs.amount_share``; a missing one counts as the mean
    Without any setting a false alarm costs 1 and a miss (1 - prevalence) / prevalence, so that doing nothing and
    flagging everything cost the same. Raises ConfigError when an amount share has no amounts, DataError for negative
    amounts.
    """
    balance = (1 - y_prevalence) / y_prevalence if 0 < y_prevalence < 1 else 1.0
    if config.amount_share is not None:
        return _by_amount(config, amount)
    miss, alarm = config.false_negative, config.false_positive
    if miss is not None and alarm is not None:
        return CostArrays(miss, alarm, config.currency)
    if miss is not None:
        alarm = miss / balance
        note = f"costs.false_positive was not set: {alarm:g}, false_negative * prevalence / (1 - prevalence)"
    elif alarm is not None:
        miss = alarm * balance
        note = f"costs.false_negative was not set: {miss:g}, false_positive * (1 - prevalence) / prevalence"
    else:
        miss, alarm = balance, 1.0
        note = f"no costs were set: a false alarm counts 1 and a miss {balance:g}, (1 - prevalence) / prevalence"
    given = config.false_negative is not None or config.false_positive is not None
    return CostArrays(miss, alarm, config.currency, given, note)


def _by_amount(config: CostsSettings, amount: ArrayLike | None) -> CostArrays:
    if amount is None or config.amount_share is None:
        raise ConfigError("costs.amount_share needs the amounts. Set data.amount to the column that holds them")
    amounts = np.array(amount, dtype=np.float64)
    missing = ~np.isfinite(amounts)
    if bool((amounts[~missing] < 0).any()):
        raise DataError(
            f"{int((amounts[~missing] < 0).sum())} amounts are negative: a cost cannot be. "
            "Set data.amount to a column of amounts from 0"
        )
    notes = []
    if len(amounts) and missing.all():
        raise DataError("no amount is known: every value of data.amount is missing. Set data.amount to another column")
    typical = float(amounts[~missing].mean()) if len(amounts) else float("nan")
    if missing.any():
        amounts[missing] = typical
        notes.append(f"{int(missing.sum())} missing amounts count as the mean, {typical:g}")
    alarm = config.false_positive
    if alarm is None:
        alarm = 1.0
        notes.append("costs.false_positive was not set: 1")
    share = config.amount_share
    return CostArrays(share * amounts, alarm, config.currency, True, "; ".join(notes), share, typical)
