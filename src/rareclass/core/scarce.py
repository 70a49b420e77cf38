"""A recipe for one to some dozens of known rows of the rare class: what few rows can teach, handed over to boosted
trees as they become more.

Columns become normal scores among the usual rows, bounded, so that no tail decides; beside them stands how unusual
the detectors find a row, which needs no label. On these columns learn trees from jittered copies of the known rows, a
balanced forest and two linear discriminants. The other part is boosted trees on the rows as they are, and counts
k / (k + 10) with k known rows. What the parts say is added up as tail shares among the usual rows: scores rank, and
only a calibrator makes probabilities of them. What it was seen to be worth: docs/decisions/0038.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import linalg, special

from rareclass.core import detection
from rareclass.core.dataset import AnyArray, Feature, FloatArray, FloatMatrix, IntArray, Rows, Schema
from rareclass.core.detection import Detection, Surprise
from rareclass.core.fit_task import FitTask, check_params
from rareclass.core.fitted import Boosted, Fitted, Forest, Logistic
from rareclass.core.resampling import normal_scores
from rareclass.core.sklearn_learners import drawn_in_proportion, fit_balanced_random_forest
from rareclass.core.xgboost_learner import fit_xgboost

HAND_OVER = 10.0
"""Known rows at which the two halves count the same."""
NOVELTY = ("ecod", "hbos", "knn", "isolation_forest")
MOST_OTHERS = 20_000
"""Rows of the other class that are learned from at most, drawn at random, and as many that are not."""
_CLIP, _LEVELS, _GRID = 3.5, 15, 512
_WIDTH, _COPIES, _LEAST_COPIES = 0.25, 10, 100
_ROUNDS, _TREES = 200, 200
_PARAMS = ("hand_over", "share", "novelty", "width", "rounds", "trees", "unseen")
UNSEEN = 1 / 3
"""Share of the usual rows that nothing is learned from but how high usual rows score."""

AMPLE = {
    "max_depth": 6,
    "eta": 0.3,
    "subsample": 1.0,
    "colsample_bytree": 1.0,
    "reg_lambda": 1.0,
    "min_child_weight": 1.0,
    "tree_method": "hist",
    "max_bin": 256,
    "cut_points": "rows",
}
"""Boosted trees as XGBoost has them by default, at AMPLE_ROUNDS."""
AMPLE_ROUNDS = 100


@dataclass(frozen=True)
class NormalColumns:
    """Rows as bounded normal scores; a missing value is 0 beside a column that says so, a category is 0/1 columns.

    value, score : of each numeric column, (g,) rising values and the normal quantile of each one's rank
    flagged : numeric columns with a column for missing values · levels : codes of each categorical column
    """

    numeric: IntArray
    categorical: IntArray
    value: tuple[AnyArray, ...]
    score: tuple[AnyArray, ...]
    flagged: IntArray
    levels: tuple[AnyArray, ...]

    @staticmethod
    def learn(rows: Rows) -> NormalColumns:
        """Learn ranks and levels from rows."""
        mask = rows.schema.categorical
        numeric, categorical = np.flatnonzero(~mask), np.flatnonzero(mask)
        pairs = [_normal_scores(rows.x[:, column]) for column in numeric]
        flagged = numeric[np.isnan(rows.x[:, numeric]).any(axis=0)]
        levels = []
        for column in categorical:
            code, count = np.unique(rows.x[:, column][~np.isnan(rows.x[:, column])], return_counts=True)
            levels.append(np.sort(code[np.argsort(-count, kind="stable")[:_LEVELS]]))
        return NormalColumns(
            numeric, categorical, tuple(v for v, _ in pairs), tuple(s for _, s in pairs), flagged, tuple(levels)
        )

    def __call__(self, x: FloatMatrix) -> FloatMatrix:
        """Return the (n, m) float32 matrix of x (n, n_features): numeric columns first."""
        made = np.zeros((len(x), len(self.numeric)), dtype=np.float32)
        for place, (column, value, score) in enumerate(zip(self.numeric, self.value, self.score, strict=True)):
            values = x[:, column].astype(np.float64)
            if len(value):
                made[:, place] = np.where(np.isnan(values), 0.0, _read(values, value, score))
        parts = [made]
        if len(self.flagged):
            parts.append(np.isnan(x[:, self.flagged]).astype(np.float32))
        parts += [
            (x[:, column][:, None] == level).astype(np.float32)
            for column, level in zip(self.categorical, self.levels, strict=True)
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)


def _read(values: FloatArray, value: AnyArray, score: AnyArray) -> FloatArray:
    """Normal scores of values; a value beyond all that were seen is one score further out than the last."""
    normal = np.interp(values, value, score)
    normal = np.where(values > value[-1], np.maximum(score[-1], 0) + 1, normal)
    normal = np.where(values < value[0], np.minimum(score[0], 0) - 1, normal)
    return np.clip(normal, -_CLIP, _CLIP)


def _normal_scores(column: FloatMatrix) -> tuple[AnyArray, AnyArray]:
    """(g,) of the distinct finite values, rising, and their normal scores, bounded."""
    value, score = normal_scores(column)
    grid = np.unique(np.linspace(0, max(len(value) - 1, 0), _GRID).round().astype(np.int64))[: len(value)]
    return value[grid], np.clip(score, -_CLIP, _CLIP)[grid]


@dataclass(frozen=True)
class Part:
    """One voice of the recipe. weight : its share · described : it reads the columns of the recipe, not the rows"""

    weight: float
    described: bool
    fitted: Fitted
    surprise: Surprise


@dataclass(frozen=True)
class Scarce(Fitted):
    """The fitted recipe; its scores rank, and are no probabilities."""

    columns: NormalColumns
    novelty: Detection | None
    parts: tuple[Part, ...]

    def score(self, x: FloatMatrix) -> FloatArray:
        made = describe(self.columns, self.novelty, x)
        total = np.zeros(len(x))
        for part in self.parts:
            total += part.weight * part.surprise(part.fitted.score(made if part.described else x))
        return np.asarray(-np.expm1(-total - 1e-9))


FITTED: tuple[type, ...] = (Scarce, Part, NormalColumns)
"""What a fitted recipe consists of besides parts of other learners, for `core.portable`."""


def describe(columns: NormalColumns, novelty: Detection | None, x: FloatMatrix) -> FloatMatrix:
    """Return the (n, m) float32 columns that few rows are learned from: normal scores, then one a detector."""
    made = columns(x)
    if novelty is None:
        return made
    rank = -special.ndtri(np.exp(-np.maximum(novelty.surprises(x), 1e-6)))
    return np.hstack([made, np.clip(rank, -_CLIP, _CLIP).astype(np.float32)])


def fit_scarce(task: FitTask, params: Mapping[str, Any]) -> Scarce:
    """Fit the recipe. Weights of rows are honoured by drawing rows of each class in their proportion.

    params : ``hand_over`` (known rows at which boosted trees count half), or at once the ``share`` of what is for few;
        ``novelty`` (detectors whose ranks are columns), ``width`` of the jitter in standard deviations, ``rounds`` of
        boosted trees, ``trees`` of the forest, ``unseen`` (share of the usual rows that only tails are learned from)
    """
    check_params("scarce", params, _PARAMS)
    learned, held = _held_out(task, float(params.get("unseen", UNSEEN)))
    rows, unseen = task.rows.take(learned), task.rows.take(held)
    usual = rows.take(rows.y == 0)
    columns = NormalColumns.learn(usual)
    members = tuple(params.get("novelty", NOVELTY))
    drawn = learned[rows.y == 0]
    novelty = (
        detection.fit(usual, members=members, seed=task.seed, threads=task.threads, drawn=drawn) if members else None
    )
    made = describe(columns, novelty, rows.x)
    moved = np.concatenate([np.arange(len(columns.numeric)), np.arange(made.shape[1] - len(members), made.shape[1])])
    width, rounds = float(params.get("width", _WIDTH)), int(params.get("rounds", _ROUNDS))
    few = [
        _trees(made, rows.y, moved, width, rounds, task),
        _forest(made, rows.y, int(params.get("trees", _TREES)), task),
        _discriminant(made, rows.y, shrink=False),
        _discriminant(made, rows.y, shrink=True),
    ]
    share = float(params.get("share", shares(rows.positives, params)["share"]))
    described = describe(columns, novelty, unseen.x)
    parts = [_part(share / len(few), True, learner, described) for learner in few]
    if share < 1:
        ample = fit_xgboost(
            FitTask(rows, seed=task.seed, threads=task.threads), {**AMPLE, "rounds": min(rounds, AMPLE_ROUNDS)}
        )
        parts.append(_part(1 - share, False, ample, unseen.x))
    return Scarce("scarce", negative_sampling_rate=math.nan, columns=columns, novelty=novelty, parts=tuple(parts))


def shares(known: int, params: Mapping[str, Any]) -> dict[str, float]:
    """Return what the parts for few count together, as a setting, where so many rows of the rare class are known."""
    hand_over = float(params.get("hand_over", HAND_OVER))
    return {"share": hand_over / (known + hand_over)}


def _held_out(task: FitTask, share: float) -> tuple[IntArray, IntArray]:
    """Return the index of the rows that are learned from, every one of the rare class among them, and that of others,
    which only say how high usual rows score.

    Rows that trees were grown on score lower than any other ever will: tails of those would be tails of nothing.
    """
    draws = np.arange(len(task.rows)) if task.weight is None else drawn_in_proportion(task)
    rare = task.rows.y[draws] == 1
    others = np.unique(draws[~rare])
    others = np.random.default_rng(task.seed).permutation(others)
    count = min(round(share * len(others)), MOST_OTHERS)
    held = others[:count] if count else others  # what was drawn twice is held out twice
    return (
        np.sort(np.concatenate([draws[rare], _draws_of(others[count:], draws)])),
        np.sort(_draws_of(held, draws)),
    )


def _draws_of(rows: IntArray, draws: IntArray) -> IntArray:
    """Return the draws of ``rows``, in their order, MOST_OTHERS at most: a row may have been drawn many times."""
    turn = np.full(draws.max() + 1, len(rows), dtype=np.int64)
    turn[rows] = np.arange(len(rows))
    turns = np.sort(turn[draws])
    return np.asarray(rows[turns[turns < len(rows)][:MOST_OTHERS]])


def _part(weight: float, described: bool, fitted: Fitted, usual: FloatMatrix) -> Part:
    return Part(weight, described, fitted, Surprise.learn(fitted.score(usual)))


def _described(made: FloatMatrix, y: IntArray) -> Rows:
    schema = Schema(tuple(Feature(f"c{place}", "numeric") for place in range(made.shape[1])))
    return Rows(schema, np.ascontiguousarray(made), y, np.arange(len(y), dtype=np.uint64))


def _trees(made: FloatMatrix, y: IntArray, moved: IntArray, width: float, rounds: int, task: FitTask) -> Boosted:
    """Shallow trees on jittered copies; hessians that weights make large are held against bounds as large."""
    rng, rare = np.random.default_rng(task.seed), np.flatnonzero(y == 1)
    copies = np.resize(rare, max(_COPIES * len(rare), _LEAST_COPIES))
    more = made[copies].copy()
    more[:, moved] += rng.normal(0, width, (len(copies), len(moved))).astype(np.float32)
    rows = _described(np.vstack([made, more]), np.concatenate([y, np.ones(len(copies), dtype=y.dtype)]))
    ratio = max((len(rows) - rows.positives) / rows.positives, 1.0)
    params = {
        "max_depth": 3,
        "eta": 0.05,
        "subsample": 0.8,
        "colsample_bytree": 1.0,
        "colsample_bynode": 0.5,
        "base_score": 0.5,
        "scale_pos_weight": ratio,
        "reg_lambda": ratio,
        "min_child_weight": 0.2 * ratio,
        "tree_method": "hist",
        "max_bin": 256,
        "rounds": rounds,
    }
    return fit_xgboost(FitTask(rows, seed=task.seed, threads=task.threads), params)


def _forest(made: FloatMatrix, y: IntArray, trees: int, task: FitTask) -> Forest:
    described = FitTask(_described(made, y), seed=task.seed, threads=task.threads)
    return fit_balanced_random_forest(described, {"n_estimators": trees})


def _discriminant(made: FloatMatrix, y: IntArray, *, shrink: bool) -> Logistic:
    """Linear discriminant whose covariance, of the usual rows, is shrunk by Ledoit and Wolf.

    shrink : the difference of the means is shrunk too, column by column, by the noise that k rows leave in it
    Sources: Ledoit and Wolf, JMVA 2004; Efron and Morris, JASA 1973, for shrinking by the own noise.
    """
    from sklearn.covariance import ledoit_wolf

    usual, rare = made[y == 0].astype(np.float64), made[y == 1].astype(np.float64)
    middle, spread = usual.mean(axis=0), np.maximum(usual.std(axis=0), 1e-3)
    covariance, _ = ledoit_wolf((usual - middle) / spread, assume_centered=True)
    difference = (rare.mean(axis=0) - middle) / spread
    if shrink:
        square = difference**2
        difference = difference * square / (square + 1 / len(rare))
    values, vectors = linalg.eigh(covariance)
    floor = 1e-3 * float(values[-1]) if values[-1] > 0 else 1.0  # usual rows that are all alike span nothing
    weight = vectors @ ((vectors.T @ difference) / np.maximum(values, floor))
    weight /= max(float(np.linalg.norm(weight)), 1e-12)
    direction = weight / spread
    return Logistic("discriminant", coefficient=direction, intercept=np.asarray(-middle @ direction))
