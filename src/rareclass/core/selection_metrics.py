"""What decides between candidates (`search.metric`): ranking alone, or what the decisions on top of it are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from rareclass.config import CostsSettings, SearchSettings, ThresholdSettings
from rareclass.core.bootstrap import Resamples
from rareclass.core.costs import cost_arrays
from rareclass.core.dataset import FloatArray, Rows
from rareclass.core.ranking import RankingTable, ap_of_sums

Sums = Callable[[FloatArray, FloatArray], FloatArray]


@dataclass(frozen=True)
class SelectionMetric:
    """A metric of a ranking, more is better, from its sums by step.

    name : as `search.metric` calls it · words : how sentences call it
    values : (n,) what a positive counts that is found, and a negative that is flagged; None: its weight
    of_sums : (..., K + 1) sums over positives and over negatives by step -> (...,) the metric
    """

    name: str
    words: str
    values: tuple[FloatArray | None, FloatArray | None]
    of_sums: Sums

    def judge(
        self, rows: Rows, scores: Sequence[FloatArray], n_boot: int, seed: int
    ) -> tuple[list[float], list[FloatArray]]:
        """Return the metric of each of (n,) scores, and its (n_boot,) resamples, the same for all of them."""
        resamples = Resamples(len(rows), rows.block(), n_boot, seed)
        columns = [(self.values[0], True), (self.values[1], False)]
        exact, drawn = [], []
        for score in scores:
            table = RankingTable.build(rows.y, score, rows.weight)
            exact.append(float(self.of_sums(*(table.totals(values, positive) for values, positive in columns))))
            parts = table.resampled(resamples, columns=columns)
            drawn.append(np.concatenate([self.of_sums(found, alarms) for found, alarms in parts]))
        return exact, drawn


@dataclass(frozen=True)
class SelectionCriterion:
    """What decides between candidates, whatever rows they are compared on: `search.metric`.

    floor : the least precision of "recall_at_precision" · costs : of mistakes, for "cost"
    """

    metric: str = "average_precision"
    floor: float = 0.0
    costs: CostsSettings = field(default_factory=CostsSettings)

    @staticmethod
    def of(search: SearchSettings, threshold: ThresholdSettings, costs: CostsSettings) -> SelectionCriterion:
        """Return the criterion that a configuration asks for."""
        return SelectionCriterion(search.metric, float(threshold.min_precision or 0.0), costs)

    def on(self, rows: Rows) -> SelectionMetric:
        """Return the metric on these rows."""
        if self.metric == "cost":
            return _saving(self.costs, rows)
        if self.metric == "recall_at_precision":
            words = f"recall at precision {self.floor:g}"
            return SelectionMetric(self.metric, words, (None, None), _recall_at(self.floor))
        return SelectionMetric("average_precision", "AP", (None, None), ap_of_sums)


def _saving(asked: CostsSettings, rows: Rows) -> SelectionMetric:
    """What the best threshold saves against doing nothing, per 1,000 rows."""
    costs = cost_arrays(asked, rows.weighted_prevalence, rows.amount)
    mass = np.ones(len(rows)) if rows.weight is None else rows.weight
    scale = 1000 * mass / mass.sum()

    def best(found: FloatArray, alarms: FloatArray) -> FloatArray:
        # step i is the cut-off at the i-th distinct score of a positive, the last one flags every row; 0 flags none
        return np.asarray(np.maximum((np.cumsum(found - alarms, axis=-1)).max(axis=-1), 0.0))

    return SelectionMetric(
        "cost",
        f"{costs.currency} saved per 1,000 rows",
        (costs.misses(len(rows)) * scale, costs.alarms(len(rows)) * scale),
        best,
    )


def _recall_at(floor: float) -> Sums:
    def best(found: FloatArray, alarms: FloatArray) -> FloatArray:
        tp, fp = np.cumsum(found, axis=-1), np.cumsum(alarms, axis=-1)
        total = tp[..., -1:]
        recall = np.divide(tp, total, out=np.full(np.shape(tp), np.nan), where=total > 0)
        return np.asarray(np.where(tp >= floor * (tp + fp), recall, np.where(total > 0, 0.0, np.nan)).max(axis=-1))

    return best
