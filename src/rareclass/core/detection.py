"""Several detectors as one score, when no label can say which of them is right.

Without labels nothing can be chosen honestly (Ma et al., "A Large-scale Study on Unsupervised Outlier Model Selection",
arXiv 2104.01422: internal criteria do no better than chance), so the members are fixed, and what is reported is how far
they agree. Each member's score is read on rows it was not fitted on, as the share of them that score as high; the mean
of the logarithms is the score of all (Fisher's way to combine p-values, without its distribution: the members are not
independent).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rareclass.core import conformal, detectors
from rareclass.core.conformal import Conformal
from rareclass.core.dataset import FloatArray, FloatMatrix, IntArray, Rows
from rareclass.core.detectors import DETECTORS, Detected
from rareclass.core.fit_task import FitTask, check_params
from rareclass.core.fitted import Fitted
from rareclass.core.jsonable import Jsonable
from rareclass.errors import ConfigError

MEMBERS = ("ecod", "knn", "dte")
"""The default ensemble, chosen once on eleven sets (docs/decisions/0034) and never by anybody's data."""

_HELD, _MOST_HELD, _FEW_ROWS = 0.2, 5_000, 500


@dataclass(frozen=True)
class Surprise:
    """Minus the logarithm of the share of rows that score as high; continued beyond the highest seen, ever more slowly.

    value : (k,) scores, rising · amount : (k,) · beyond : how far the upper tenth of what was seen reaches
    """

    value: FloatArray
    amount: FloatArray
    beyond: float

    @staticmethod
    def learn(score: FloatArray) -> Surprise:
        """Learn from (n,) scores of rows that the detector was not fitted on."""
        ordered = np.sort(score)
        value, first = np.unique(ordered, return_index=True)
        amount = -np.log((len(ordered) - first) / (len(ordered) + 1))
        keep = conformal.knots(len(value))
        reach = float(ordered[-1] - np.quantile(ordered, 0.9))
        return Surprise(value[keep], amount[keep], max(reach, 1e-9 * abs(float(ordered[-1])), 1e-12))

    def __call__(self, score: FloatArray) -> FloatArray:
        """Return (n,) surprises, 0 or more."""
        further = np.log1p(np.maximum(score - self.value[-1], 0) / self.beyond)
        return np.asarray(np.interp(score, self.value, self.amount) + further)


@dataclass(frozen=True)
class DetectorMember:
    """A fitted detector and how its scores are read."""

    fitted: Detected
    surprise: Surprise


@dataclass(frozen=True)
class Agreement(Jsonable):
    """How far the members say the same of rows they were not fitted on.

    correlation : Spearman's, by pair "a, b" · top : share of the most unusual rows (hundredth) that a pair has in
        common
    rows : they were compared on
    """

    correlation: Mapping[str, float] = field(default_factory=dict)
    top: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0

    def line(self) -> str:
        """One sentence for a report."""
        if not self.correlation:
            return "one detector alone: nothing to agree with"
        correlations = list(self.correlation.values())
        return (
            f"the detectors' rankings of {self.rows:,} rows they were not fitted on correlate "
            f"{min(correlations):.2f} to {max(correlations):.2f} "
            f"(Spearman), and of the most unusual hundredth a pair shares {min(self.top.values()):.0%} to "
            f"{max(self.top.values()):.0%}"
        )


@dataclass(frozen=True)
class Detection(Fitted):
    """Fitted detectors that score together; its scores are no probabilities."""

    members: tuple[DetectorMember, ...]
    agreement: Agreement = Agreement()

    def surprises(self, x: FloatMatrix) -> FloatArray:
        """Return (n, members) surprises of x (n, n_features)."""
        return np.stack([member.surprise(member.fitted.score(x)) for member in self.members], axis=1)

    def score(self, x: FloatMatrix) -> FloatArray:
        """Return (n,) in [0, 1): 1 - exp(-mean surprise), which only ranks until it is calibrated (core.conformal)."""
        return np.asarray(-np.expm1(-self.surprises(x).mean(axis=1)))


FITTED: tuple[type, ...] = (Detection, DetectorMember, Surprise, Agreement, *detectors.FITTED)
"""What a fitted ensemble consists of, for `core.portable`."""


def fit(
    rows: Rows,
    *,
    members: Sequence[str] = MEMBERS,
    params: Mapping[str, Mapping[str, Any]] | None = None,
    contamination: float = 0.0,
    seed: int = 0,
    threads: int = 1,
    drawn: IntArray | None = None,
) -> Detection:
    """Fit the members on ``rows``, whose labels are not looked at.

    params : settings by member · contamination : share of rows that may not be normal, see `detectors.fit`
    drawn : (n,) which row each one is, where they were drawn and one may be there twice: held out with all its copies
    Raises ConfigError for no or an unknown member and for an unknown setting or one of no member, DataError for fewer
        than two rows.
    """
    if not members:
        raise ConfigError(
            f"no detector is named. Set candidates.params.members to some of: {', '.join(sorted(DETECTORS))}"
        )
    for name in params or {}:
        if name not in members:
            raise ConfigError(
                f"detector '{name}' has settings and is no member, so that they would be ignored. "
                f"Set candidates.params.members to [{', '.join([*members, name])}], or take the settings out"
            )
    options: dict[str, Any] = {"seed": seed, "threads": threads, "contamination": contamination}
    parts = _held_out(np.arange(len(rows)) if drawn is None else drawn, seed)
    scores, fitted_members = [], []
    names = list(dict.fromkeys(members))
    for name in names:
        own = (params or {}).get(name)
        judged = [
            detectors.fit(name, rows.take(learned), params=own, **options).score(rows.x[held])
            for learned, held in parts
        ]
        scores.append(np.concatenate(judged))
        fitted_members.append(
            DetectorMember(detectors.fit(name, rows, params=own, **options), Surprise.learn(scores[-1]))
        )
    agreement = _agreement(names, scores)
    return Detection("detectors", negative_sampling_rate=math.nan, members=tuple(fitted_members), agreement=agreement)


def _held_out(row: IntArray, seed: int) -> list[tuple[IntArray, IntArray]]:
    """Positions to learn from and to score: a fifth held out where rows are many, every row in turn where they are few,
    and all of both where there is nothing to hold out.

    row : (n,) copies of one row have one number, and stay together
    """
    distinct, of_row = np.unique(row, return_inverse=True)
    rows = len(distinct)
    turn = np.empty(rows, dtype=np.int64)
    turn[np.random.default_rng(seed).permutation(rows)] = np.arange(rows)
    if rows > _FEW_ROWS:
        held = turn[of_row] < min(round(_HELD * rows), _MOST_HELD)
        return [(np.flatnonzero(~held), np.flatnonzero(held))]
    folds = min(5, rows // detectors.LEAST_ROWS)
    if folds < 2:
        return [(np.arange(len(row)), np.arange(len(row)))]
    fold = turn[of_row] % folds
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]


def _agreement(names: Sequence[str], scores: Sequence[FloatArray]) -> Agreement:
    from scipy.stats import rankdata

    ranks = [rankdata(score) for score in scores]
    top = max(1, len(ranks[0]) // 100)
    highest = [set(np.argsort(-rank, kind="stable")[:top].tolist()) for rank in ranks]
    correlation, shared = {}, {}
    for a in range(len(names)):
        for b in range(a + 1, len(names)):
            pair = f"{names[a]}, {names[b]}"
            flat = ranks[a].std() == 0 or ranks[b].std() == 0
            correlation[pair] = 0.0 if flat else float(np.corrcoef(ranks[a], ranks[b])[0, 1])
            shared[pair] = len(highest[a] & highest[b]) / top
    return Agreement(correlation, shared, len(ranks[0]))


def fit_detectors(task: FitTask, params: Mapping[str, Any]) -> Detection:
    """Fit detectors on the rows that are not known to be rare: a learner that needs no row of the rare class.

    params : ``members``, ``contamination``, and settings of a member under its name
    """
    check_params("detectors", params, ("members", "contamination", *DETECTORS))
    usual, drawn = task.rows.take(task.rows.y == 0), None
    if task.weight is not None:  # drawn in proportion: detectors take no weights
        share = task.weight[task.rows.y == 0] / task.weight[task.rows.y == 0].sum()
        drawn = np.sort(np.random.default_rng(task.seed).choice(len(usual), len(usual), p=share))
        usual = usual.take(drawn)
    return fit(
        usual,
        members=params.get("members", MEMBERS),
        params={name: own for name, own in params.items() if name in DETECTORS},
        contamination=float(params.get("contamination", 0.0)),
        seed=task.seed,
        threads=task.threads,
        drawn=drawn,
    )


_FOLDS, _MOST_SCORED = 5, 20_000


def fit_calibrated(rows: Rows, *, seed: int = 0, **options: Any) -> tuple[Detection, Conformal]:
    """Fit on all rows, and calibrate on scores of rows that a fit on four fifths of them had not seen
    (cross-conformal).

    A fold scores at most 20,000 rows. options : as `fit` takes them
    """
    part = np.random.default_rng(seed).permutation(len(rows)) % min(_FOLDS, len(rows) // 2)
    held: list[FloatArray] = []
    for fold in range(int(part.max()) + 1) if part.max() else ():
        made = fit(rows.take(part != fold), seed=seed, **options)
        held.append(made.score(rows.x[part == fold][:_MOST_SCORED]))
    final = fit(rows, seed=seed, **options)
    return final, conformal.fit(np.concatenate(held) if held else final.score(rows.x))
