"""Scores to probabilities: prior-shift correction, strictly monotone calibrators, and label shift.

Everything works on the logit, where rare-class scores have room: a calibrator is an increasing map of logits, continued
with a positive slope beyond what was seen, so it never changes the ranking (down to the resolution of float64).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from rareclass.core.bootstrap import Sample
from rareclass.core.compatibility import check_fields, newer
from rareclass.core.conformal import Conformal
from rareclass.core.dataset import AnyArray, FloatArray, IntArray
from rareclass.core.estimate import Estimate
from rareclass.core.jsonable import jsonable
from rareclass.core.log_odds import OPEN, expit, fit_logistic, logit
from rareclass.errors import DataError, NoPositivesError, unknown

MIN_SLOPE = 1e-3
"""Least slope of a calibrator on the logit: below it, neighbouring scores could meet in floating point."""

MAX_SLOPE = 100.0
"""Largest slope: boosted votes crowd around 0.5 and need a steep one."""

FEW_POSITIVES = 30
"""Positives below which only maps of two parameters are tried."""

_FAR = 16.0
"""Logits beyond this (1e-7) count as this when a map is fitted, so that scores of exactly 0 do not steer it."""


def probability(z: ArrayLike) -> FloatArray:
    """Return 1 / (1 + exp(-z)), kept inside (0, 1)."""
    return np.asarray(np.clip(expit(z), *OPEN), dtype=np.float64)


def _with_room(z: FloatArray) -> FloatArray:
    """Bend logits above 16 smoothly to stay below 20: nearer to 1, float64 has no room to keep scores apart."""
    above = np.maximum(z - 16, 0)
    bent: FloatArray = np.minimum(z, 16) + 4 * above / (above + 4)
    return bent


def prior_correction(score: ArrayLike, negative_sampling_rate: float) -> FloatArray:
    """Undo the shift of the prior by sampling or class weights: p = b ps / (b ps - ps + 1).

    Exact where rows were drawn at random within a class. On the logit it is an addition of log b.

    Parameters
    ----------
    score : array-like of shape (n,)
        Probability of the rare class as learnt from resampled rows.
    negative_sampling_rate : float
        b, share of negatives kept relative to positives; for weights or over-sampling 1 / (factor on positives).

    Returns
    -------
    ndarray of shape (n,)
        Probability of the rare class among rows as they come.

    Raises
    ------
    DataError
        Unless b > 0.

    References
    ----------
    Dal Pozzolo, Caelen, Johnson and Bontempi, "Calibrating probability with undersampling for unbalanced
    classification", IEEE SSCI 2015.
    """
    rate = _positive(negative_sampling_rate)
    return np.asarray(score, dtype=np.float64) if rate == 1 else probability(logit(score, within=OPEN) + math.log(rate))


class Calibrator(Protocol):
    """A strictly increasing map of raw scores to probabilities."""

    @property
    def kind(self) -> str:
        """The method's name, by which ``from_json`` finds the class."""

    def __call__(self, score: ArrayLike) -> FloatArray:
        """(n,) raw scores in [0, 1] -> (n,) probabilities in (0, 1)."""
        ...

    def inverse(self, p: ArrayLike) -> FloatArray:
        """(n,) probabilities -> the (n,) raw scores behind them."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the map's numbers and its kind."""


@dataclass(frozen=True)
class _Map:
    """What the calibrators share; ``offset`` is log b of the prior correction, applied first."""

    offset: float = 0.0

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    def __call__(self, score: ArrayLike) -> FloatArray:
        """(n,) raw scores in [0, 1] -> (n,) probabilities in (0, 1), in the same order."""
        return probability(_with_room(self.on_logit(logit(score, within=OPEN) + self.offset)))

    def inverse(self, p: ArrayLike) -> FloatArray:
        """(n,) probabilities that the map gave -> the (n,) raw scores behind them, to the resolution of float64."""
        z = logit(p, within=OPEN)
        above = np.clip(z - 16, 0, 3.999)
        straight = np.minimum(z, 16) + 4 * above / (4 - above)  # what _with_room bent
        return probability(self.off_logit(straight) - self.offset)

    def on_logit(self, z: FloatArray) -> FloatArray:
        """Map (n,) log-odds of raw scores to those of probabilities."""
        return z

    def off_logit(self, z: FloatArray) -> FloatArray:
        """Undo ``on_logit``, by bisection."""
        low, high = np.full_like(z, -1e6), np.full_like(z, 1e6)
        for _ in range(80):
            middle = (low + high) / 2
            below = self.on_logit(middle) < z
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray((low + high) / 2, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **jsonable(self)}


@dataclass(frozen=True)
class Identity(_Map):
    """The prior correction alone."""

    def __call__(self, score: ArrayLike) -> FloatArray:
        """(n,) raw scores -> (n,) probabilities in (0, 1); the very scores where there is nothing to correct."""
        if self.offset == 0:
            return np.clip(np.asarray(score, dtype=np.float64), *OPEN)
        return super().__call__(score)

    def inverse(self, p: ArrayLike) -> FloatArray:
        """(n,) probabilities -> the (n,) raw scores behind them."""
        return np.asarray(p, dtype=np.float64) if self.offset == 0 else super().inverse(p)

    def off_logit(self, z: FloatArray) -> FloatArray:
        return z


@dataclass(frozen=True)
class Platt(_Map):
    """A straight line on the logit. Source: Platt 1999, on log-odds."""

    slope: float = 1.0
    intercept: float = 0.0

    def on_logit(self, z: FloatArray) -> FloatArray:
        return self.slope * z + self.intercept

    def off_logit(self, z: FloatArray) -> FloatArray:
        return (z - self.intercept) / self.slope


@dataclass(frozen=True)
class Beta(_Map):
    """a ln p - b ln(1 - p) + c with a, b > 0. Source: Kull, Silva Filho and Flach, AISTATS 2017."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def on_logit(self, z: FloatArray) -> FloatArray:
        mapped: FloatArray = self.b * np.logaddexp(0, z) - self.a * np.logaddexp(0, -z) + self.c
        return mapped


@dataclass(frozen=True)
class Isotonic(_Map):
    """Isotonic regression, its steps joined at their centres so that it rises everywhere.

    x, y : logits of the centres and of their rates, both strictly increasing; beyond the ends the slope is 1
    Source: Oron and Flournoy, Statistics in Biopharmaceutical Research 2017 (centred isotonic regression).
    """

    x: tuple[float, ...] = (0.0,)
    y: tuple[float, ...] = (0.0,)

    def on_logit(self, z: FloatArray) -> FloatArray:
        x, y = np.array(self.x), np.array(self.y)
        mapped: FloatArray = np.interp(z, x, y) + np.minimum(z - x[0], 0) + np.maximum(z - x[-1], 0)
        return mapped


KINDS: dict[str, Callable[..., Calibrator]] = {
    "identity": Identity,
    "platt": Platt,
    "beta": Beta,
    "isotonic": Isotonic,
    "conformal": Conformal,
}


def from_json(raw: Mapping[str, Any]) -> Calibrator:
    """Return the calibrator that `to_json` wrote. Raises ModelError for an unknown kind or field."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items() if key != "kind"}
    if raw.get("kind") not in KINDS:
        raise newer(f"the calibrator is of the kind '{raw.get('kind')}', which this rareclass does not know")
    check_fields(KINDS[raw["kind"]], values, "the calibrator")
    return KINDS[raw["kind"]](**values)


def _fit_line(columns: FloatArray, y: IntArray, weight: FloatArray) -> FloatArray:
    """Minimise the log loss of expit(columns . w + c) with w in [MIN_SLOPE, MAX_SLOPE]; returns (w..., c).

    columns : (k, n). A slope that leaves its bounds is held there and the rest fitted again.
    """
    design = [*columns, np.ones(columns.shape[1])]
    w = np.append(np.ones(len(columns)), 0.0)
    free, pull = np.ones(len(w), dtype=bool), np.append(np.ones(len(columns)), 1e-9)
    for _ in range(len(w)):
        w = fit_logistic(design, y, weight, w, free, pull)
        bounded = np.append(np.clip(w[:-1], MIN_SLOPE, MAX_SLOPE), w[-1])
        out = free & (bounded != w)
        if not out.any():
            break
        worst = int(np.argmax(np.abs(bounded - w)))
        w[worst], free[worst] = bounded[worst], False
    return w


def _pooled(
    z: FloatArray, y: IntArray, weight: FloatArray, fold: IntArray, *, single: int = 2000, cells: int = 1000
) -> tuple[FloatArray, IntArray, FloatArray, IntArray]:
    """Pool, fold by fold, negatives of nearly the same logit, so that a fit costs the same for a million rows.

    Positives stay as they are, and so do the ``single`` highest negatives of a fold, where the classes meet; the others
    become ``cells`` rows of equal numbers, each at its mean logit with the sum of their weights.
    """
    parts = [np.flatnonzero(y == 1)]
    pools: list[tuple[FloatArray, FloatArray, IntArray]] = []
    for k in np.unique(fold):
        rows = np.flatnonzero((y == 0) & (fold == k))
        if len(rows) <= single + 2 * cells:
            parts.append(rows)
            continue
        order = rows[np.argsort(z[rows], kind="stable")]
        low = order[: len(order) - single]
        parts.append(order[len(order) - single :])
        starts = np.linspace(0, len(low), cells + 1).astype(np.int64)[:-1]
        total = np.add.reduceat(weight[low], starts)
        centre = np.add.reduceat(weight[low] * z[low], starts) / np.maximum(total, 1e-300)
        pools.append((centre, total, np.full(cells, k)))
    chosen = np.concatenate(parts)
    zeros = np.zeros(sum(len(pool[0]) for pool in pools), dtype=np.int64)
    return (
        np.concatenate([z[chosen], *(pool[0] for pool in pools)]),
        np.concatenate([y[chosen], zeros]),
        np.concatenate([weight[chosen], *(pool[1] for pool in pools)]),
        np.concatenate([fold[chosen], *(pool[2] for pool in pools)]),
    )


def _fit_identity(z: FloatArray, y: IntArray, weight: FloatArray, offset: float) -> Calibrator:
    return Identity(offset)


def _fit_platt(z: FloatArray, y: IntArray, weight: FloatArray, offset: float) -> Calibrator:
    z = np.clip(z, -_FAR, _FAR)
    slope, intercept = _fit_line(z[None], y, weight)
    return Platt(offset, float(slope), float(intercept))


def _fit_beta(z: FloatArray, y: IntArray, weight: FloatArray, offset: float) -> Calibrator:
    z = np.clip(z, -_FAR, _FAR)
    a, b, c = _fit_line(np.stack([-np.logaddexp(0, -z), np.logaddexp(0, z)]), y, weight)
    return Beta(offset, float(a), float(b), float(c))


def _fit_isotonic(z: FloatArray, y: IntArray, weight: FloatArray, offset: float) -> Calibrator:
    from scipy.optimize import isotonic_regression

    near = np.clip(z, -_FAR, _FAR)
    x, where = np.unique(near, return_inverse=True)
    mass = np.bincount(where, weight)
    hits = np.bincount(where, weight * y)
    used = mass > 0
    x, mass, hits = x[used], mass[used], hits[used]
    starts = isotonic_regression(hits / mass, weights=mass).blocks[:-1]
    size, positives = np.add.reduceat(mass, starts), np.add.reduceat(hits, starts)
    centre = np.add.reduceat(mass * x, starts) / size
    # A step without positives (or of positives only) has no finite logit: half a row of the other kind gives it one.
    rate = np.clip(positives / size, np.minimum(0.5 / (size + 1), 0.5), 1 - 0.5 / (size + 1))
    knots = _rising(centre, np.maximum.accumulate(logit(rate, within=OPEN)))
    shape = Isotonic(offset, tuple(centre.tolist()), tuple(knots.tolist()))
    shift = _matching_shift(shape.on_logit(near), float(hits.sum() / mass.sum()), weight)
    return Isotonic(offset, shape.x, tuple((knots + shift).tolist()))


def _rising(x: FloatArray, y: FloatArray) -> FloatArray:
    """Lift ``y`` where it rises by less than MIN_SLOPE between neighbours."""
    return np.asarray(np.maximum.accumulate(y - MIN_SLOPE * x) + MIN_SLOPE * x, dtype=np.float64)


def _matching_shift(z: FloatArray, rate: float, weight: FloatArray) -> float:
    """The addition to all logits that makes the mean probability the observed rate."""
    total = weight.sum()
    if not 0 < rate < 1:
        return 0.0
    return float(brentq(lambda shift: float((weight * expit(z + shift)).sum() / total) - rate, -100, 100, xtol=1e-9))


METHODS: dict[str, Callable[[FloatArray, IntArray, FloatArray, float], Calibrator]] = {
    "none": _fit_identity,
    "platt": _fit_platt,
    "beta": _fit_beta,
    "isotonic": _fit_isotonic,
}
"""In order of flexibility: a more flexible one has to be better, not equal."""


@dataclass(frozen=True)
class Calibration:
    """The chosen calibrator (prior correction included) and what it was chosen from.

    table : cross-fitted log loss in nats per row, by method
    negative_sampling_rate : the sampling factor that was corrected; NaN where only the calibrator could learn it
    """

    calibrator: Calibrator
    chosen: str
    table: dict[str, float]
    negative_sampling_rate: float = 1.0

    def __call__(self, score: ArrayLike) -> FloatArray:
        return self.calibrator(score)

    def to_json(self) -> dict[str, Any]:
        """Return the map, the method that was chosen, and the log loss of each; NaN becomes None."""
        return {**jsonable(self, without={"calibrator"}), "calibrator": self.calibrator.to_json()}


def fit(
    sample: Sample,
    *,
    method: str = "auto",
    negative_sampling_rate: float = 1.0,
    seed: int = 0,
    folds: int = 5,
) -> Calibration:
    """Fit a calibrator on scores of rows the model was not fitted on.

    sample : labels and raw scores in [0, 1]; rows of one block stay together in cross-fitting
    method : auto | none | platt | beta | isotonic. auto takes the lowest cross-fitted log loss; none (the prior
        correction alone) wins unless another is better by 0.05 %, and below 30 positives isotonic and beta are not
        tried
    negative_sampling_rate : b of `prior_correction`; NaN where the resampling has no exact correction, then the
        calibrator learns it
    Raises NoPositivesError without a positive, DataError for scores outside [0, 1], ConfigError for an unknown method.
    """
    labels, scores, weights = sample.checked()
    if method not in ("auto", *METHODS):
        raise unknown("calibration", method, ("auto", *METHODS), "threshold.calibration")
    if labels.sum() == 0:
        raise NoPositivesError(
            "no row of the rare class among the rows that calibrate. Give more rows: split.validation"
        )
    if scores.min() < 0 or scores.max() > 1:
        raise DataError(f"scores run from {scores.min():g} to {scores.max():g}; a calibrator needs them in [0, 1]")
    offset = (
        0.0
        if math.isnan(negative_sampling_rate) or negative_sampling_rate == 1
        else math.log(_positive(negative_sampling_rate))
    )
    mass = np.ones(len(labels)) if weights is None else weights
    fold = _folds(labels, sample.block, folds, seed)
    both = 0 < labels.sum() < len(labels)
    names = list(METHODS) if labels.sum() >= FEW_POSITIVES else ["none", "platt"]
    if method != "auto" and method not in names:
        names.append(method)
    z, labels, mass, fold = _pooled(logit(scores, within=OPEN) + offset, labels, mass, fold)
    table = {name: _cross_fitted(METHODS[name], z, labels, mass, fold) for name in names} if both else {}
    chosen = method if method != "auto" else _simplest_best(table)
    if not both:
        chosen = "none"
    return Calibration(METHODS[chosen](z, labels, mass, offset), chosen, table, negative_sampling_rate)


def _positive(negative_sampling_rate: float) -> float:
    if not negative_sampling_rate > 0:
        raise DataError(
            f"the share of negatives kept is {negative_sampling_rate}; it must be above 0. "
            "Use 1 where nothing was sampled"
        )
    return negative_sampling_rate


def _folds(y: IntArray, block: AnyArray | None, folds: int, seed: int) -> IntArray:
    """(n,) cross-fitting fold: whole blocks where there are enough, else both classes dealt out evenly."""
    rng = np.random.default_rng(seed)
    if block is not None:
        unit = np.unique(block, return_inverse=True)[1]
        if unit.max() + 1 >= 2 * folds:
            # Blocks are dealt by descending positives, so that no fold is left without.
            positives = np.bincount(unit, y)
            order = np.lexsort((rng.random(len(positives)), -positives))
            deal = np.empty(len(positives), dtype=np.int64)
            deal[order] = np.arange(len(positives)) % folds
            return np.asarray(deal[unit], dtype=np.int64)
    fold = np.empty(len(y), dtype=np.int64)
    for label in (0, 1):
        rows = rng.permutation(np.flatnonzero(y == label))
        fold[rows] = np.arange(len(rows)) % folds
    return fold


def _cross_fitted(
    method: Callable[[FloatArray, IntArray, FloatArray, float], Calibrator],
    z: FloatArray,
    y: IntArray,
    weight: FloatArray,
    fold: IntArray,
) -> float:
    """Mean log loss in nats of rows scored by a map fitted on the other folds."""
    total = 0.0
    for k in np.unique(fold):
        held, rest = fold == k, fold != k
        if y[rest].sum() == 0 or y[rest].all():
            mapped = z[held]
        else:
            calibrator = method(z[rest], y[rest], weight[rest], 0.0)
            mapped = calibrator.on_logit(z[held])  # type: ignore[attr-defined]
        total += float((weight[held] * np.logaddexp(0, np.where(y[held] == 1, -mapped, mapped))).sum())
    return total / float(weight.sum())


def _simplest_best(table: Mapping[str, float]) -> str:
    """The first method that none beats by more than 0.05 %."""
    if not table:
        return "none"
    best = min(table.values())
    return next(name for name in METHODS if name in table and table[name] <= best * 1.0005)


def label_shift_em(
    score: ArrayLike, prevalence: float, *, n_boot: int = 200, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Estimate the prevalence of unlabelled rows from calibrated scores, were only the prevalence to change.

    score : (n,) probabilities calibrated at ``prevalence``
    ``positives`` of the result is the expected number, rounded. Rows are pooled into 1000 cells of equal logit.
    Raises DataError without rows or for a prevalence outside (0, 1). Source: Saerens, Latinne and Decaestecker 2002.
    """
    z = logit(score, within=OPEN)
    if len(z) == 0 or not 0 < prevalence < 1:
        raise DataError(
            f"label shift needs rows and a prevalence between 0 and 1; there are {len(z)} rows and prevalence "
            f"{prevalence}"
        )
    edges = np.linspace(z.min(), z.max(), 1001)
    cell = np.clip(np.searchsorted(edges, z, side="right") - 1, 0, 999)
    counts = np.bincount(cell, minlength=1000)
    centre = np.bincount(cell, z, 1000)[counts > 0] / counts[counts > 0]
    counts = counts[counts > 0]
    ratio = centre - float(logit(prevalence, within=OPEN))
    draws = np.random.default_rng(seed).multinomial(len(z), counts / len(z), size=n_boot)
    prevalences = _fixed_points(ratio, np.vstack([counts, draws]).astype(np.float64))
    tail = (1 - confidence) / 2
    low, high = np.quantile(prevalences[1:], [tail, 1 - tail])
    return Estimate(float(prevalences[0]), float(low), float(high), round(float(prevalences[0]) * len(z)), len(z))


def _fixed_points(ratio: FloatArray, counts: FloatArray) -> FloatArray:
    """(m,) fixed points of p = mean posterior at prior p; ``ratio`` is the log likelihood ratio of each cell.

    The fixed point of the EM is where the likelihood is flat, which bisection finds in 60 steps whatever the prevalence
    (EM needs thousands where it is low). Without a fixed point inside (0, 1) the end it runs to is returned.
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    low, high = np.full(len(counts), -40.0), np.full(len(counts), 40.0)
    for _ in range(60):
        middle = (low + high) / 2
        prior = expit(middle)
        rises = (shares * (expit(middle[:, None] + ratio) - prior[:, None])).sum(axis=1) > 0
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    return np.asarray(expit((low + high) / 2), dtype=np.float64)
