"""What drives a fitted model: how much worse it ranks rows when one feature is scrambled, and which way the feature
pushes.

Permutation importance: a feature's values are replaced by those of other rows, so it keeps its distribution and loses
its meaning; the average precision that is lost is what the model owes to it. Features that say the same share what they
say: each looks small while the other still says it. Source: Breiman, Machine Learning, 2001; Fisher et al., JMLR, 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass.core.bootstrap import Resamples, estimate
from rareclass.core.dataset import Feature, FloatArray, FloatMatrix, IntArray, Rows
from rareclass.core.estimate import Estimate
from rareclass.core.jsonable import Jsonable
from rareclass.core.ranking import average_precision, bootstrap_average_precision

SCORED_ROWS = 400_000
"""Rows scored for all features together: the cost is that of scoring so many,
however many rows and features there are.
"""
_LEAST_ROWS = 400
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles at which a number is set to see which way it pushes, of a mixture of as many positives as negatives: the
values that matter to a rare class are often rare themselves."""
_CATEGORIES = 5
_AT_ONCE = 8_000_000
"""Values scored at once (32 MB of float32)."""

Score = Callable[[FloatMatrix], FloatArray]


@dataclass(frozen=True)
class Importance(Jsonable):
    """What one feature is worth to a model.

    ap_lost : average precision of the rows less that with the feature scrambled (mean over repeats); the interval is
        over resampled rows, paired
    direction : "up" or "down" where higher values raise or lower the score throughout, "turns" where they do both,
        "category" where values have no order, "none" where the score does not move
    effect : mean score at the value where it is highest, over that where it is lowest (see ``at``); with its interval
    at : (value, mean score with every row set to it), quantiles of a number in order, of a category the commonest
        levels
    """

    feature: str
    ap_lost: Estimate
    direction: str
    effect: Estimate
    at: tuple[tuple[str, float], ...]


def permutation_importance(
    rows: Rows,
    score: Score,
    *,
    repeats: int = 3,
    block: NDArray[Any] | None = None,
    n_boot: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Importance, ...]:
    """Return the importance of the features, the greatest first; empty without both classes, or with 0 repeats.

    rows : rows the model has not been fitted on; where they are many, positives first, a sample with weights stands for
        them
    score : calibrated probability of the rare class, (m, n_features) -> (m,)
    block : (n,) rows that are resampled together
    At most about `SCORED_ROWS` rows are scored, whatever the number of features: where there are more than that allows
    on 400 rows each, those whose values tell most about the score are judged, and the others are left out.
    """
    if not repeats or not 0 < rows.positives < len(rows):
        return ()
    affordable = max(1, SCORED_ROWS // (_LEAST_ROWS * (repeats + len(_LEVELS))))
    width = min(len(rows.schema.features), affordable)
    most = max(_LEAST_ROWS, SCORED_ROWS // max(1, width * (repeats + len(_LEVELS))))
    index, weight = _sample(rows, most, seed)
    sample, own = rows.take(index), None if block is None else block[index]
    x = np.ascontiguousarray(sample.x)
    plain = np.asarray(score(x), dtype=np.float64)
    resamples = Resamples(len(sample), own, n_boot, seed)
    base = average_precision(sample.y, plain, weight)
    judged = []
    for position in _screened(x, plain, width):
        feature = rows.schema.features[position]
        scrambled = np.stack(list(_scrambled(rows, x, position, score, repeats, seed)))
        drawn = bootstrap_average_precision(
            sample.y, np.concatenate([plain[None], scrambled]), block=own, n_boot=n_boot, seed=seed, weight=weight
        )
        lost = float(np.mean([base - average_precision(sample.y, line, weight) for line in scrambled]))
        ap_lost = estimate(lost, (drawn[0] - drawn[1:]).mean(axis=0), confidence, rows.positives, len(rows))
        judged.append(_Push(x, sample.y, position, feature, score, weight, resamples, confidence).judge(ap_lost))
    return tuple(sorted(judged, key=lambda feature_loss: -feature_loss.ap_lost.value))


def _screened(x: FloatMatrix, score: FloatArray, most: int) -> Sequence[int]:
    """Return the features to judge: all, or those whose tenths of the rows differ most in the rank of the score."""
    if x.shape[1] <= most:
        return range(x.shape[1])
    rank = np.argsort(np.argsort(score, kind="stable"), kind="stable") - (len(score) - 1) / 2
    tenth = np.argsort(np.argsort(x, axis=0, kind="stable"), axis=0, kind="stable") * 10 // len(x)
    gains = [
        float((np.bincount(column, rank, 10) ** 2 / np.maximum(np.bincount(column, minlength=10), 1)).sum())
        for column in tenth.T
    ]
    return [int(position) for position in np.argsort(-np.asarray(gains), kind="stable")[:most]]


def _sample(rows: Rows, most: int, seed: int) -> tuple[IntArray, FloatArray]:
    """Return at most ``most`` rows and their weights: positives up to half of them, the rest negatives."""
    rng = np.random.default_rng(seed)
    own = np.ones(len(rows)) if rows.weight is None else np.asarray(rows.weight, dtype=np.float64)
    parts, weights = [], []
    room = most
    for label, limit in ((1, most // 2), (0, most)):
        index = np.flatnonzero(rows.y == label)
        size = min(len(index), limit if label else room)
        chosen = np.sort(rng.choice(index, size, replace=False)) if size < len(index) else index
        parts.append(chosen)
        weights.append(own[chosen] * (own[index].sum() / own[chosen].sum()))
        room -= size
    together = np.concatenate(parts)
    order = np.argsort(together, kind="stable")
    return together[order].astype(np.int64), np.concatenate(weights)[order]


def _scrambled(
    rows: Rows, x: FloatMatrix, position: int, score: Score, repeats: int, seed: int
) -> Iterator[FloatArray]:
    """Yield the scores with one feature replaced by that of rows drawn from all rows, so its distribution stays
    natural.
    """
    rng = np.random.default_rng([seed, position])
    share = None if rows.weight is None else np.asarray(rows.weight, dtype=np.float64) / rows.weight.sum()
    values = [
        rows.x[
            rng.permutation(len(rows))[: len(x)] if share is None else rng.choice(len(rows), len(x), p=share), position
        ]
        for _ in range(repeats)
    ]
    yield from _scores(x, position, values, score)


def _scores(x: FloatMatrix, position: int, values: Sequence[Any], score: Score) -> Iterator[FloatArray]:
    """Yield the scores of all rows with one feature set to each of ``values`` (a number, or one per row),
    many at once.
    """
    at_once = max(1, _AT_ONCE // max(1, x.size))
    for start in range(0, len(values), at_once):
        some = values[start : start + at_once]
        stacked = np.tile(x, (len(some), 1))
        stacked[:, position] = np.concatenate([np.broadcast_to(value, len(x)) for value in some])
        yield from np.asarray(score(stacked), dtype=np.float64).reshape(len(some), len(x))


@dataclass(frozen=True, eq=False)
class _Push:
    """Which way one feature pushes the score."""

    x: FloatMatrix
    y: IntArray
    position: int
    feature: Feature
    score: Score
    weight: FloatArray
    resamples: Resamples
    confidence: float

    def judge(self, ap_lost: Estimate) -> Importance:
        levels = self._levels()
        if len(levels) < 2:
            return Importance(self.feature.name, ap_lost, "none", Estimate(float("nan")), ())
        lines = np.stack(list(_scores(self.x, self.position, levels, self.score)))
        sums, drawn = lines @ self.weight, self.resamples.sums((lines * self.weight).T)
        means = sums / self.weight.sum()
        high, low = int(np.argmax(means)), int(np.argmin(means))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, resampled = sums[high] / sums[low], drawn[:, high] / drawn[:, low]
        effect = estimate(float(ratio), resampled, self.confidence, ap_lost.positives, ap_lost.rows)
        category = self.feature.kind == "categorical"
        direction = "none" if not effect.low > 1 else "category" if category else _direction(means)
        shown = tuple((self._text(value), float(mean)) for value, mean in zip(levels, means, strict=True))
        return Importance(self.feature.name, ap_lost, direction, effect, shown)

    def _levels(self) -> list[float]:
        column = self.x[:, self.position]
        there = ~np.isnan(column)
        values, weight, rare = column[there], self.weight[there], self.y[there] == 1
        if not len(values):
            return []
        if self.feature.kind == "categorical":
            codes, place = np.unique(values, return_inverse=True)
            return [float(code) for code in codes[np.argsort(-np.bincount(place, weight), kind="stable")][:_CATEGORIES]]
        mixed = weight / np.where(rare, weight[rare].sum(), weight[~rare].sum())
        order = np.argsort(values, kind="stable")
        share = np.cumsum(mixed[order]) / mixed.sum()
        levels = np.unique(values[order][np.minimum(np.searchsorted(share, _LEVELS), len(values) - 1)])
        if len(levels) < 2:  # one value in most rows
            levels = np.unique([values.min(), levels[0], values.max()])
        return [float(level) for level in levels]

    def _text(self, value: float) -> str:
        return self.feature.categories[int(value)] if self.feature.kind == "categorical" else f"{value:.4g}"


def _direction(means: FloatArray) -> str:
    """Whether the score follows the feature throughout; a step back by a tenth of the whole way is a turn."""
    steps, span = np.diff(means), means.max() - means.min()
    if (steps > -0.1 * span).all():
        return "up"
    return "down" if (steps < 0.1 * span).all() else "turns"
