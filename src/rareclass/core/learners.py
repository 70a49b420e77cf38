"""The learners: each fits labelled rows and gives back something that scores a matrix and can be written
without code (core.portable): numbers of our own where a few lines score with them, the library's object where not.

All of them take rows with missing values and category codes as they are. Scores are raw probabilities; what the
learner's own sampling does to them is said in ``Fitted.kept``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from scipy import special

from rareclass.core.dataset import AnyArray, FloatArray, FloatMatrix, IntArray, Rows
from rareclass.core.focal import focal_objective
from rareclass.core.preprocessing import Preparation
from rareclass.errors import ConfigError, ModelError, unknown

Trace = tuple[dict[str, float], ...]
_T = TypeVar("_T")

AS_GOOD = 0.002
"""Difference of average precision that is never evidence."""


class InterruptedFitError(Exception):
    """Time ran out before the fit was finished; nothing of it is used."""


def never() -> bool:
    """Out of time? Never."""
    return False


@dataclass(frozen=True)
class Task:
    """Everything a fit needs besides its settings.

    weight : (n,) training weights or None · rounds : of boosting, or epochs; default: as many as the settings say
    """

    rows: Rows
    weight: FloatArray | None = None
    rounds: int | None = None
    loss: str = "logistic"
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    out_of_time: Callable[[], bool] = never


@dataclass(frozen=True)
class Fitted:
    """A fitted learner. rounds : rounds or epochs used · kept : share of negatives its sampling amounts to (NaN: none)"""

    learner: str
    rounds: int | None = field(default=None, kw_only=True)
    kept: float = field(default=1.0, kw_only=True)

    def score(self, x: FloatMatrix) -> FloatArray:
        """Return (n,) raw probabilities of the rare class for x (n, n_features) float32."""
        raise NotImplementedError

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        """Return (n, n_features) contributions to the log-odds; None where the learner has none of its own."""
        return None


_MARGINS = (
    b'{"type":1,"training":false,"iteration_begin":0,"iteration_end":0,"missing":NaN,"strict_shape":false,"cache_id":0}'
)


def _margins(booster: Any, x: FloatMatrix) -> FloatArray:
    """Return the (n,) log-odds of an XGBoost booster, through the C call that ``inplace_predict`` makes.

    Its Python around that call (checks of types and columns that callers have made) takes as long as scoring a row.
    """
    import ctypes

    from xgboost import core as xgboost

    rows = np.ascontiguousarray(x, dtype=np.float32)
    array = b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}' % (rows.ctypes.data, *rows.shape)
    shape, dimensions, found = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64(), ctypes.POINTER(ctypes.c_float)()
    xgboost._check_call(
        xgboost._LIB.XGBoosterPredictFromDense(
            booster.handle, array, _MARGINS, None, ctypes.byref(shape), ctypes.byref(dimensions), ctypes.byref(found)
        )
    )
    # the result belongs to the booster and lives until this thread's next call: copied at once
    return np.frombuffer(ctypes.string_at(found, 4 * len(rows)), dtype=np.float32).astype(np.float64)


@dataclass(frozen=True)
class Boosted(Fitted):
    """Trees of XGBoost. threads : it scores with"""

    booster: Any = None
    types: tuple[str, ...] = ()
    threads: int = 0

    def __post_init__(self) -> None:
        # a booster forgets its threads when it is written, and would take every processor
        if self.threads:
            self.booster.set_param({"nthread": self.threads})

    def score(self, x: FloatMatrix) -> FloatArray:
        # margins, because float32 probabilities near 1 would tie
        return np.asarray(expit(_margins(self.booster, x)))

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        import xgboost as xgb

        matrix = xgb.DMatrix(x, feature_types=list(self.types), enable_categorical=True)
        return np.asarray(self.booster.predict(matrix, pred_contribs=True)[:, :-1], dtype=np.float64)


@dataclass(frozen=True)
class Trees:
    """All trees of a forest as flat arrays: a few rows walk down all of them at once, 30 times faster than tree by tree.

    left, right : child of each node, a leaf's are itself · value : share of positives in the node · features : of a row
    """

    roots: IntArray
    left: IntArray
    right: IntArray
    feature: IntArray
    threshold: FloatArray
    missing_left: AnyArray
    value: FloatArray
    depth: int
    features: int

    def __post_init__(self) -> None:
        sizes = np.diff(np.append(self.roots, len(self.left)))
        leaf = self.left == np.arange(len(self.left))
        left, right = np.where(leaf, -1, self.left), np.where(leaf, -1, self.right)
        check_nodes(left, right, self.feature, self.features, np.repeat(self.roots + sizes, sizes))

    @staticmethod
    def of(estimators: Any) -> Trees:
        """Flatten fitted decision trees of scikit-learn."""
        trees = [each.tree_ for each in estimators]
        roots = np.cumsum([0, *(tree.node_count for tree in trees[:-1])]).astype(np.int64)
        at = [np.arange(tree.node_count) for tree in trees]
        leaf = np.concatenate([tree.children_left < 0 for tree in trees])
        children = []
        for side in ("children_left", "children_right"):
            pairs = zip(trees, at, roots, strict=True)
            children.append(
                np.concatenate(
                    [np.where(tree.children_left < 0, own, getattr(tree, side)) + root for tree, own, root in pairs]
                )
            )
        return Trees(
            roots, children[0], children[1],
            np.where(leaf, 0, np.concatenate([tree.feature for tree in trees])),
            np.concatenate([tree.threshold for tree in trees]),
            np.concatenate([tree.missing_go_to_left for tree in trees]).astype(bool),
            np.concatenate([tree.value[:, 0, 1] for tree in trees]),
            max(tree.max_depth for tree in trees),
            int(trees[0].n_features),
        )  # fmt: skip

    def score(self, x: FloatMatrix, threads: int = 1) -> FloatArray:
        """Return (n,) mean share of positives over the trees."""
        return self._walk(x) if len(x) <= _FEW_ROWS else self._compiled_score(x, threads)

    def _walk(self, x: FloatMatrix) -> FloatArray:
        node = np.broadcast_to(self.roots, (len(x), len(self.roots)))
        line = np.arange(len(x))[:, None]
        for _ in range(self.depth):
            value = x[line, self.feature[node]]
            left = np.where(np.isnan(value), self.missing_left[node], value <= self.threshold[node])
            node = np.where(left, self.left[node], self.right[node])
        return np.asarray(self.value[node].mean(axis=1), dtype=np.float64)

    def _compiled_score(self, x: FloatMatrix, threads: int) -> FloatArray:
        """Each thread sums its share of the trees, in order, so that the same threads give the same digits."""
        matrix = np.ascontiguousarray(x)
        threads = max(1, min(threads, len(self.roots)))

        def total(share: Any) -> FloatArray:
            found = np.zeros(len(matrix))
            for tree in share:
                found += tree.predict(matrix)[:, 1]
            return found

        shares = [self._compiled[start::threads] for start in range(threads)]
        if threads == 1:
            return total(shares[0]) / len(self.roots)
        with ThreadPoolExecutor(threads) as pool:
            return np.asarray(sum(pool.map(total, shares)) / len(self.roots), dtype=np.float64)

    @cached_property
    def _compiled(self) -> list[Any]:
        """scikit-learn's own trees, made from the arrays: for many rows they are faster than the walk."""
        from sklearn.tree._tree import NODE_DTYPE, Tree

        leaf = self.left == np.arange(len(self.left))
        ends = [*self.roots[1:], len(self.left)]
        made = []
        for start, end in zip(self.roots, ends, strict=True):
            part = slice(int(start), int(end))
            nodes = np.zeros(part.stop - part.start, dtype=NODE_DTYPE)
            for name, child in (("left_child", self.left), ("right_child", self.right)):
                nodes[name] = np.where(leaf[part], -1, child[part] - start)
            nodes["feature"], nodes["threshold"] = self.feature[part], self.threshold[part]
            nodes["missing_go_to_left"] = self.missing_left[part]
            share = self.value[part]
            values = np.stack([1 - share, share], axis=1)[:, None, :]
            tree = Tree(self.features, np.array([2], dtype=np.intp), 1)
            tree.__setstate__(
                {
                    "max_depth": self.depth,
                    "node_count": len(nodes),
                    "nodes": nodes,
                    "values": np.ascontiguousarray(values),
                }
            )
            made.append(tree)
        return made


_FEW_ROWS = 32


def check_nodes(left: AnyArray, right: AnyArray, feature: AnyArray, features: int, end: AnyArray | None = None) -> None:
    """Raise ModelError where nodes of a tree point outside of it: compiled code would follow them into foreign memory.

    Children lie behind their parent, as scikit-learn writes them, so a walk also ends. A leaf has no left child (-1).
    end : (n,) where the tree of each node ends; default: behind the last node
    """
    at, inner = np.arange(len(left)), left >= 0
    ends = np.full(len(left), len(left)) if end is None else end
    for child in (left, right):
        if not ((child[inner] > at[inner]) & (child[inner] < ends[inner])).all():
            raise ModelError("a tree's node points outside of the tree: the model is damaged. Train again")
    if not ((feature[inner] >= 0) & (feature[inner] < features)).all():
        raise ModelError("a tree's node asks for a column that is not there: the model is damaged. Train again")


@dataclass(frozen=True)
class Forest(Fitted):
    """Trees that vote; their share is shrunk a little towards the prior, so that no score is exactly 0 or 1.

    threads : it scores many rows with
    """

    trees: Trees
    preparation: Preparation | None = None
    prior: float = 0.5
    threads: int = 1

    def score(self, x: FloatMatrix) -> FloatArray:
        p = self.trees.score(x if self.preparation is None else self.preparation(x), self.threads)
        votes = len(self.trees.roots)
        return (p * votes + self.prior) / (votes + 1)


@dataclass(frozen=True)
class Logistic(Fitted):
    """A linear model of the log-odds. coefficient : (n_prepared,) · without a preparation a missing value counts as 0"""

    coefficient: AnyArray
    intercept: AnyArray
    preparation: Preparation | None = None

    def score(self, x: FloatMatrix) -> FloatArray:
        made = np.nan_to_num(x) if self.preparation is None else self.preparation(x)
        return np.asarray(special.expit(made @ self.coefficient + self.intercept), dtype=np.float64)


@dataclass(frozen=True)
class Network(Fitted):
    """A multi-layer perceptron. weights, biases : of each layer · activation : of the hidden ones, as scikit-learn names it"""

    weights: tuple[AnyArray, ...]
    biases: tuple[AnyArray, ...]
    activation: str
    preparation: Preparation

    def score(self, x: FloatMatrix) -> FloatArray:
        from sklearn.neural_network._base import ACTIVATIONS

        values = self.preparation(x)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True), 1):
            values = values @ weight
            values += bias
            ACTIVATIONS["logistic" if layer == len(self.weights) else self.activation](values)
        return np.asarray(values[:, 0], dtype=np.float64)


@dataclass(frozen=True)
class Classified(Fitted):
    """A scikit-learn classifier behind its preparation."""

    estimator: Any
    preparation: Preparation | None = None

    def score(self, x: FloatMatrix) -> FloatArray:
        made = x if self.preparation is None else self.preparation(x)
        return np.asarray(self.estimator.predict_proba(made)[:, 1], dtype=np.float64)


FITTED: tuple[type, ...] = (Boosted, Forest, Trees, Logistic, Network, Classified, Preparation)
"""What a fitted learner consists of, for `core.portable`."""


def expit(z: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-z)) without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -z)), dtype=np.float64)


def logit(p: FloatArray, *, margin: float = 1e-9) -> FloatArray:
    """Return log(p / (1 - p)), finite: probabilities nearer than ``margin`` to 0 or 1 are moved there."""
    q = np.clip(p, margin, 1 - margin)
    return np.asarray(np.log(q) - np.log1p(-q), dtype=np.float64)


class StopPrecision:
    """Average precision of labelled rows: exact, ties grouped, without a sort of all rows (called in every step)."""

    def __init__(self, y: IntArray) -> None:
        self.positive, self.negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)

    def __call__(self, score: Any) -> float:
        hits, rest = np.sort(score[self.positive]), np.sort(score[self.negative])
        tp = len(hits) - np.searchsorted(hits, hits, side="left")
        fp = len(rest) - np.searchsorted(rest, hits, side="left")
        return float(np.mean(tp / (tp + fp)))


class BestRound:
    """Keeps the curves of AP and loss by step of so many rounds, says when waiting is pointless and which round was best.

    AP is noisy where positives are few, so it is averaged over ``width`` steps; where it is as good as equal, as it is
    once all rows are ranked without a mistake, the loss decides: scores of a fit cut too short fit no other's.
    patience, least : in rounds
    """

    def __init__(self, *, step: int, patience: int, least: int, width: int = 3) -> None:
        self.step, self.patience, self.width = step, patience / step, width
        self.least = max(1, round(least / step))
        self.values: list[float] = []
        self.losses: list[float] = []
        self.best, self.since = -1.0, 0

    def add(self, value: float, loss: float) -> bool:
        """Add a step; True when it is time to stop."""
        self.values.append(value)
        self.losses.append(loss)
        mean = float(np.mean(self.values[-self.width :]))
        self.best, self.since = (mean, 0) if mean > self.best + 1e-9 else (self.best, self.since + 1)
        return self.since >= self.patience and len(self.values) >= self.least + self.patience

    def rounds(self) -> int:
        """Return how many rounds to keep, at least ``least``."""
        values, losses = np.asarray(self.values), np.asarray(self.losses)
        half = self.width // 2
        padded = np.concatenate([np.full(half, values[0]), values, np.full(self.width - 1 - half, values[-1])])
        smooth = np.convolve(padded, np.full(self.width, 1 / self.width), mode="valid")
        first = min(self.least, len(values)) - 1
        near = smooth[first:] >= smooth[first:].max() - AS_GOOD
        return self.step * (first + 1 + int(np.argmin(np.where(near, losses[first:], np.inf))))

    def trace(self) -> Trace:
        """Return one dict per step with ``round``, ``ap`` and ``loss``."""
        pairs = enumerate(zip(self.values, self.losses, strict=True), 1)
        return tuple({"round": float(i * self.step), "ap": ap, "loss": loss} for i, (ap, loss) in pairs)


@dataclass(frozen=True)
class Watched:
    """Rows that a fit is looked at on while it grows: the lines ``index`` of ``x``, copied one block at a time.

    x : (n, n_features) float32 · index : (m,)
    """

    x: FloatMatrix
    index: IntArray
    BLOCK: ClassVar[int] = 65_536

    def __len__(self) -> int:
        return len(self.index)

    def each(self, look: Callable[[slice, FloatMatrix], FloatArray]) -> FloatArray:
        """Return (m,) what ``look`` says of every block: it is given the block's place among the m, and its rows."""
        out = np.empty(len(self))
        for start in range(0, len(self), self.BLOCK):
            part = slice(start, min(start + self.BLOCK, len(self)))
            out[part] = look(part, self.x[self.index[part]])
        return out


class Growing(Protocol):
    """A fit that goes on step by step, so that the folds of a candidate can be stopped together.

    step : rounds (or epochs) of a step · most : where it ends · patience, least : as `BestRound` takes them
    """

    step: int
    most: int
    patience: int
    least: int

    def grow(self) -> None:
        """Take one step."""
        ...

    def log_odds(self) -> FloatArray:
        """Return (n,) log-odds of the watched rows as far as it has grown."""
        ...

    def fitted(self, rounds: int) -> Fitted:
        """Return its first ``rounds``."""
        ...


ALONE_ROWS = 120_000
"""Rows up to which one thread fits boosted trees; the folds of a candidate then grow side by side, one in each thread."""


def threads_of_a_fit(rows: int, threads: int) -> int:
    """Return how many of the threads a fit of boosted trees uses.

    The threads of a fit meet after every level or node of a tree. Where rows are few they mostly wait for each other, and
    a neighbour on the machine makes that worse (docs/decisions/0019).
    """
    return 1 if rows <= ALONE_ROWS else threads


# --- XGBoost -----------------------------------------------------------------------------------------------------

_XGB_KNOWN = {
    "eta", "learning_rate", "max_depth", "min_child_weight", "subsample", "colsample_bytree", "colsample_bylevel",
    "colsample_bynode", "reg_lambda", "lambda", "reg_alpha", "alpha", "gamma", "max_delta_step", "max_bin", "max_leaves",
    "grow_policy", "tree_method", "num_parallel_tree", "base_score", "scale_pos_weight", "max_cat_to_onehot",
    "max_cat_threshold", "monotone_constraints", "interaction_constraints",
    "rounds", "patience", "focal_gamma", "focal_alpha", "cut_points",
}  # fmt: skip
_CUT_POINTS = ("classes", "rows")
"""What weighs the same when a histogram's cut points are placed (docs/decisions/0025); "rows" is XGBoost's own way."""
_EXACT_ROWS, _FINE_ROWS, _LARGE_ROWS = 4_000, 40_000, 120_000
_EXACT_VALUES = 200_000  # rows times columns: exact splits sort every column
_VERY_RARE = 1 / 400
"""Prevalence below which a leaf has to hold more: there a step of the second order rests on few rows (decisions/0014)."""


def xgboost_defaults(known: Rows) -> dict[str, Any]:
    """Return settings right for rare classes: slow shallow trees, base_score 1/2 and fine cut points while rows are few.

    Large data take larger steps and 256 bins: there noise is no longer what limits the model, but time is. A class rarer
    than 1 in 400 takes heavier leaves and shrinkage.
    """
    params: dict[str, Any] = {"max_depth": 4, "subsample": 0.8, "colsample_bytree": 0.7, "reg_lambda": 3.0,
                              "min_child_weight": 1.0, "base_score": 0.5, "tree_method": "hist"}  # fmt: skip
    rows = len(known)
    if rows and known.prevalence < _VERY_RARE:
        params |= {"min_child_weight": 3.0, "reg_lambda": 10.0}
    if rows <= _EXACT_ROWS and known.x.size <= _EXACT_VALUES and not known.schema.categorical.any():
        return params | {"tree_method": "exact", "eta": 0.05, "rounds": 800, "patience": 80 if rows > 1000 else 40}
    if rows <= _FINE_ROWS:
        return params | {"max_bin": 1024, "eta": 0.05, "rounds": 800, "patience": 60}
    if rows <= _LARGE_ROWS:
        return params | {"max_bin": 512, "eta": 0.1, "rounds": 400, "patience": 30}
    return params | {"max_bin": 256, "eta": 0.15, "rounds": 220, "patience": 20}


def resolve_device(device: str) -> str:
    """Return 'cpu' or 'cuda'; 'auto' takes a GPU where both the build and the machine have one."""
    if device != "auto":
        return device
    import xgboost as xgb

    return "cuda" if xgb.build_info().get("USE_CUDA") and Path("/dev/nvidia0").exists() else "cpu"


def _matrix(rows: Rows, weight: FloatArray | None, types: list[str], params: Mapping[str, Any], cut_points: str) -> Any:
    """Rows as XGBoost fits them; cut points of a histogram are those of a second, short-lived matrix of other weights."""
    import xgboost as xgb

    options: dict[str, Any] = {"feature_types": types, "enable_categorical": True}
    if params["tree_method"] != "hist":
        return xgb.DMatrix(rows.x, label=rows.y, weight=weight, **options)
    options["max_bin"] = params["max_bin"]
    even = _even(rows.y, weight) if cut_points == "classes" else None
    reference = None if even is None else xgb.QuantileDMatrix(rows.x, weight=even, **options)
    return xgb.QuantileDMatrix(rows.x, label=rows.y, weight=weight, ref=reference, **options)


def _even(y: IntArray, weight: FloatArray | None) -> FloatArray | None:
    """Return (n,) weights with which both classes weigh the same; None where a class has no weight at all."""
    made = np.ones(len(y)) if weight is None else np.array(weight, dtype=np.float64)
    rare = y == 1
    positive, negative = made[rare].sum(), made[~rare].sum()
    if not (positive > 0 and negative > 0):
        return None
    made[rare] *= negative / positive
    return made


class GrowingTrees:
    """Boosted trees. Source: Chen and Guestrin, KDD 2016. Weights and settings as `fit` takes them.

    What it watches is scored by the new trees only, from the rows as they are: a matrix of XGBoost would double them.
    """

    def __init__(self, task: Task, params: Mapping[str, Any], watched: Watched | None = None) -> None:
        import xgboost as xgb

        _known("xgboost", params, _XGB_KNOWN)
        settings = xgboost_defaults(task.rows) | _canonical(params)
        settings.setdefault("max_bin", 256)
        device = resolve_device(task.device)
        if device == "cuda" and settings["tree_method"] == "exact":
            settings |= {"tree_method": "hist", "max_bin": 1024}
        most, self.patience = int(settings.pop("rounds")), int(settings.pop("patience"))
        gamma, alpha = settings.pop("focal_gamma", 2.0), settings.pop("focal_alpha", 0.5)
        cut_points = settings.pop("cut_points", _CUT_POINTS[0])
        if cut_points not in _CUT_POINTS:
            raise unknown("cut_points", cut_points, _CUT_POINTS, "candidates.params")
        self.threads, self.done = threads_of_a_fit(len(task.rows), task.threads), 0
        self.objective = focal_objective(gamma, alpha, self.threads) if task.loss == "focal" else None
        eta = float(settings["eta"])
        self.most, self.step, self.least = task.rounds or most, max(1, round(0.5 / eta)), max(1, round(4 / eta))
        self.types = tuple("c" if each else "q" for each in task.rows.schema.categorical)
        # as many threads as asked for also while the matrices are built: by default every processor would spin
        with xgb.config_context(nthread=self.threads, verbosity=0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.train = _matrix(task.rows, task.weight, list(self.types), settings, cut_points)
            self.watched, self.looked, self.margin = watched, 0, np.empty(0, dtype=np.float32)
            self.booster = xgb.Booster(
                {**settings, "objective": "binary:logistic", "seed": task.seed, "device": device, "nthread": self.threads,
                 "verbosity": 0, "seed_per_iteration": True},  # folds that grow in turns share XGBoost's only generator
                [self.train],
            )  # fmt: skip

    def grow(self, rounds: int | None = None) -> None:
        for _ in range(rounds or self.step):
            self.booster.update(self.train, self.done, self.objective)
            self.done += 1

    def log_odds(self) -> FloatArray:
        assert self.watched is not None
        known = self.margin if self.looked else None
        options = {"iteration_range": (self.looked, self.done), "predict_type": "margin", "validate_features": False}

        def look(part: slice, x: FloatMatrix) -> FloatArray:
            before = None if known is None else known[part]
            return np.asarray(self.booster.inplace_predict(x, base_margin=before, **options))

        self.margin = self.watched.each(look).astype(np.float32)
        self.looked = self.done
        return self.margin.astype(np.float64)

    def fitted(self, rounds: int) -> Boosted:
        kept = self.booster[:rounds]
        return Boosted("xgboost", rounds=rounds, booster=kept, types=self.types, threads=self.threads)


def fit_xgboost(task: Task, params: Mapping[str, Any]) -> Boosted:
    """Boosted trees of a fixed number of rounds."""
    growing = GrowingTrees(task, params)
    while growing.done < growing.most:
        if task.out_of_time():
            raise InterruptedFitError
        growing.grow(1)
    return growing.fitted(growing.most)


def _canonical(params: Mapping[str, Any]) -> dict[str, Any]:
    names = {"learning_rate": "eta", "lambda": "reg_lambda", "alpha": "reg_alpha"}
    return {names.get(key, key): value for key, value in params.items()}


# --- scikit-learn and imbalanced-learn ---------------------------------------------------------------------------

_SMALL_ROWS, _FOREST_ROWS, _SLOW_ROWS = 10_000, 40_000, 60_000


def _known(learner: str, params: Mapping[str, Any], known: Any) -> None:
    for name in params:
        if name not in known:
            raise unknown(f"{learner} parameter", name, known, "candidates.params")


def thin(task: Task, most: int, *, balanced: bool = False) -> tuple[Rows, FloatArray | None]:
    """Return at most ``most`` rows: every positive and a random part of the negatives, each weighing what it stands for.

    balanced : the learner draws the classes alike anyway, so that negatives keep the weight they have
    """
    rows, weight = task.rows, task.weight
    negatives = np.flatnonzero(rows.y == 0)
    room = max(most - rows.positives, rows.positives)
    if len(rows) <= most or room >= len(negatives):
        return rows, weight
    chosen = np.random.default_rng(task.seed).choice(negatives, room, replace=False)
    index = np.sort(np.concatenate([np.flatnonzero(rows.y == 1), chosen]))
    if balanced:
        return rows.take(index), None if weight is None else weight[index]
    full = np.ones(len(rows)) if weight is None else weight.copy()
    full[negatives] *= len(negatives) / room
    return rows.take(index), full[index]


def _forest(
    name: str, base: Mapping[str, Any], params: Mapping[str, Any], task: Task, make: Any, balanced: bool
) -> Forest:
    """Fit a forest whose trees vote. A balanced one draws as many negatives as positives for every tree."""
    rows, weight = thin(task, _FOREST_ROWS, balanced=balanced)
    settings = {**base, "n_jobs": task.threads, "random_state": task.seed, **params}
    estimator = make()
    _known(name, params, estimator.get_params())
    estimator.set_params(**settings)
    preparation = Preparation.learn(rows) if balanced and np.isnan(rows.x).any() else None
    x = rows.x if preparation is None else preparation(rows.x)
    estimator.fit(x, rows.y, sample_weight=weight)
    kept = task.rows.positives / max(1, len(task.rows) - task.rows.positives) if balanced else 1.0
    mass = np.ones(len(rows)) if weight is None else weight
    means = [mass[rows.y == label].mean() for label in (0, 1)]
    prior = float(means[1] / sum(means)) if balanced else float(np.average(rows.y, weights=weight))
    trees = Trees.of(estimator.estimators_)
    return Forest(name, kept=kept, trees=trees, preparation=preparation, prior=prior, threads=task.threads)


def _trees(rows: int) -> int:
    """Fewer where every tree has many rows to see and to score."""
    return 300 if rows <= _SMALL_ROWS else 150 if rows <= _LARGE_ROWS else 80


def fit_random_forest(task: Task, params: Mapping[str, Any]) -> Forest:
    """Random forest. Source: Breiman, Machine Learning 2001."""
    from sklearn.ensemble import RandomForestClassifier

    base = {"n_estimators": _trees(len(task.rows)), "min_samples_leaf": 2, "max_features": "sqrt"}
    return _forest("random_forest", base, params, task, RandomForestClassifier, balanced=False)


def fit_extra_trees(task: Task, params: Mapping[str, Any]) -> Forest:
    """Extremely randomised trees, over all features while rows are few (docs/decisions/0017).

    Source: Geurts et al., Machine Learning 2006.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    many = len(task.rows) > _SMALL_ROWS
    features = "sqrt" if many or task.rows.x.shape[1] > 40 else None
    base = {"n_estimators": _trees(len(task.rows)), "min_samples_leaf": 5 if many else 3, "max_features": features}
    return _forest("extra_trees", base, params, task, ExtraTreesClassifier, balanced=False)


def fit_balanced_random_forest(task: Task, params: Mapping[str, Any]) -> Forest:
    """Forest on balanced bootstraps. Source: Chen, Liaw and Breiman, 2004."""
    from imblearn.ensemble import BalancedRandomForestClassifier

    base = {
        "n_estimators": 200,
        "min_samples_leaf": 2,
        "sampling_strategy": "all",
        "replacement": True,
        "bootstrap": False,
    }
    return _forest("balanced_random_forest", base, params, task, BalancedRandomForestClassifier, balanced=True)


def hist_defaults(known: Rows) -> dict[str, Any]:
    """Return small steps while rows are few."""
    slow = len(known) <= _LARGE_ROWS
    sizes = {"max_leaf_nodes": 15, "min_samples_leaf": 10, "l2_regularization": 3.0}
    steps = {"learning_rate": 0.05, "max_iter": 400, "n_iter_no_change": 60}
    return sizes | (steps if slow else {"learning_rate": 0.15, "max_iter": 150, "n_iter_no_change": 30})


class GrowingHistograms:
    """Histogram gradient boosting of scikit-learn; ``n_iter_no_change`` is its patience.

    It meets several times for every split of a tree: see `threads_of_a_fit`.
    """

    def __init__(self, task: Task, params: Mapping[str, Any], watched: Watched | None = None) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        _known("hist_gradient_boosting", params, HistGradientBoostingClassifier().get_params())
        schema = task.rows.schema
        few = np.array([each.kind == "categorical" and len(each.categories) <= 255 for each in schema.features])
        settings = hist_defaults(task.rows) | dict(params)
        settings |= {"categorical_features": few if few.any() else None, "random_state": task.seed}
        self.most, self.patience = task.rounds or int(settings["max_iter"]), int(settings["n_iter_no_change"])
        self.step, self.least = max(1, self.most // 16), max(1, round(4 / settings["learning_rate"]))
        self.estimator = HistGradientBoostingClassifier(**settings, early_stopping=False, warm_start=True)
        self.task, self.watched, self.done = task, watched, 0
        self.threads = threads_of_a_fit(len(task.rows), task.threads)

    def grow(self, rounds: int | None = None) -> None:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        self.done = min(self.most, self.done + (rounds or self.step))
        self.estimator.set_params(max_iter=self.done)
        with threadpool_limits(self.threads, user_api="openmp"):
            self.estimator.fit(self.task.rows.x, self.task.rows.y, sample_weight=self.task.weight)

    def log_odds(self) -> FloatArray:
        from threadpoolctl import threadpool_limits

        assert self.watched is not None
        with threadpool_limits(self.threads, user_api="openmp"):
            return self.watched.each(lambda part, x: self.estimator.decision_function(x))

    def fitted(self, rounds: int) -> Classified:
        self.estimator._predictors = self.estimator._predictors[:rounds]
        return Classified("hist_gradient_boosting", rounds=rounds, estimator=self.estimator)


def fit_hist_gradient_boosting(task: Task, params: Mapping[str, Any]) -> Classified:
    """Histogram gradient boosting of a fixed number of rounds."""
    growing = GrowingHistograms(task, params)
    growing.grow(growing.most)
    return growing.fitted(growing.most)


def fit_logistic_regression(task: Task, params: Mapping[str, Any]) -> Logistic:
    """Logistic regression on prepared columns."""
    from sklearn.linear_model import LogisticRegression

    rows, weight = thin(task, 2 * _SLOW_ROWS)
    preparation = Preparation.learn(rows)
    estimator = LogisticRegression()
    _known("logistic_regression", params, estimator.get_params())
    estimator.set_params(**{"C": 0.3, "max_iter": 300, **params, "random_state": task.seed})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(preparation(rows.x), rows.y, sample_weight=weight)
    return Logistic(
        "logistic_regression",
        coefficient=estimator.coef_[0],
        intercept=estimator.intercept_[0],
        preparation=preparation,
    )


class GrowingNetwork:
    """Multi-layer perceptron of scikit-learn, one epoch at a time."""

    step, least = 1, 3

    def __init__(self, task: Task, params: Mapping[str, Any], watched: Watched | None = None) -> None:
        from sklearn.neural_network import MLPClassifier

        rows, self.weight = thin(task, _SLOW_ROWS)
        self.preparation, self.threads, self.y = Preparation.learn(rows), task.threads, rows.y
        self.estimator = MLPClassifier()
        _known("mlp", params, {*self.estimator.get_params(), "epochs", "patience"})
        settings: dict[str, Any] = {"hidden_layer_sizes": (64, 32), "alpha": 1e-3, "learning_rate_init": 2e-3, "epochs": 60,
                                    "patience": 10, **params}  # fmt: skip
        epochs, self.patience = int(settings.pop("epochs")), int(settings.pop("patience"))
        self.most = task.rounds or epochs
        settings.setdefault("batch_size", int(min(512, max(64, len(rows) // 20))))
        settings["hidden_layer_sizes"] = tuple(np.atleast_1d(settings["hidden_layer_sizes"]).tolist())
        self.estimator.set_params(**settings, random_state=task.seed)
        self.x = self.preparation(rows.x)
        self.watched = None if watched is None else self.preparation(watched.x[watched.index])
        self.held: list[Any] = []

    def grow(self) -> None:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        with threadpool_limits(self.threads):  # small matrices: more threads than asked for only wait for each other
            self.estimator.partial_fit(self.x, self.y, classes=np.array([0, 1]), sample_weight=self.weight)
        self.held.append(copy.deepcopy((self.estimator.coefs_, self.estimator.intercepts_)))

    def log_odds(self) -> FloatArray:
        return logit(self.estimator.predict_proba(self.watched)[:, 1])

    def fitted(self, rounds: int) -> Network:
        weights, biases = self.held[rounds - 1]
        return Network(
            "mlp", rounds=rounds, weights=tuple(weights), biases=tuple(biases), activation=self.estimator.activation,
            preparation=self.preparation,
        )  # fmt: skip


def fit_mlp(task: Task, params: Mapping[str, Any]) -> Network:
    """Multi-layer perceptron of a fixed number of epochs."""
    growing = GrowingNetwork(task, params)
    for _ in range(growing.most):
        if task.out_of_time():
            raise InterruptedFitError
        growing.grow()
    return growing.fitted(growing.most)


def _boosting(
    name: str, make: Any, base: Mapping[str, Any], params: Mapping[str, Any], task: Task, weighted: bool
) -> Classified:
    """AdaBoost and its balanced relatives: their scores are no probabilities, so only a calibrator can map them."""
    rows, weight = thin(task, _FOREST_ROWS)
    preparation = Preparation.learn(rows)
    estimator = make()
    _known(name, params, estimator.get_params())
    estimator.set_params(**{**base, **params, "random_state": task.seed})
    options = {"sample_weight": weight} if weighted and weight is not None else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(preparation(rows.x), rows.y, **options)
    if "n_jobs" in estimator.get_params():
        estimator.set_params(n_jobs=1)  # scoring would start processes otherwise
    return Classified(name, kept=float("nan"), estimator=estimator, preparation=preparation)


def _tree(depth: int) -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(max_depth=depth)


def fit_adaboost(task: Task, params: Mapping[str, Any]) -> Classified:
    """AdaBoost of shallow trees. Source: Freund and Schapire, 1997."""
    from sklearn.ensemble import AdaBoostClassifier

    base = {"estimator": _tree(2), "n_estimators": 100, "learning_rate": 0.5}
    return _boosting("adaboost", AdaBoostClassifier, base, params, task, weighted=True)


def fit_rusboost(task: Task, params: Mapping[str, Any]) -> Classified:
    """Boosting with random under-sampling in every round. Source: Seiffert et al., 2010."""
    from imblearn.ensemble import RUSBoostClassifier

    base = {"estimator": _tree(3), "n_estimators": 100, "learning_rate": 0.3}
    return _boosting("rusboost", RUSBoostClassifier, base, params, task, weighted=True)


def fit_easy_ensemble(task: Task, params: Mapping[str, Any]) -> Classified:
    """Bag of AdaBoosts, each on balanced rows. Source: Liu, Wu and Zhou, 2009.

    It takes no weights, so rows of inverse-propensity weights are drawn in their proportion within each class first.
    """
    from imblearn.ensemble import EasyEnsembleClassifier

    base = {"n_estimators": 10, "n_jobs": task.threads}
    if task.weight is not None:
        task = replace(task, rows=task.rows.take(_drawn(task)), weight=None)
    return _boosting("easy_ensemble", EasyEnsembleClassifier, base, params, task, weighted=False)


def _drawn(task: Task) -> IntArray:
    """Index of as many rows of each class as there are, drawn in proportion to their weights."""
    rng, parts = np.random.default_rng(task.seed), []
    assert task.weight is not None
    for label in (0, 1):
        index = np.flatnonzero(task.rows.y == label)
        share = task.weight[index] / task.weight[index].sum()
        parts.append(rng.choice(index, len(index), p=share))
    return np.sort(np.concatenate(parts))


@dataclass(frozen=True)
class Learner:
    """A member of the family.

    grow : makes a `Growing`, where the number of rounds is to be found · seeds : fits of different seeds are worth averaging
    defaults : settings that depend on how many rows there are; a refit on more rows must keep them
    apart : fits of it do not disturb each other, so that several may go on at once
    weighs : a weighting changes what it learns; one that draws the classes alike and takes no weights refuses them
    """

    fit: Callable[[Task, Mapping[str, Any]], Fitted]
    grow: Callable[[Task, Mapping[str, Any], Watched], Growing] | None = None
    seeds: bool = False
    apart: bool = False
    weighs: bool = True
    defaults: Callable[[Rows], dict[str, Any]] = lambda rows: {}


LEARNERS: dict[str, Learner] = {
    "xgboost": Learner(fit_xgboost, grow=GrowingTrees, seeds=True, apart=True, defaults=xgboost_defaults),
    "random_forest": Learner(fit_random_forest),
    "balanced_random_forest": Learner(fit_balanced_random_forest),
    "extra_trees": Learner(fit_extra_trees),
    "hist_gradient_boosting": Learner(
        fit_hist_gradient_boosting, grow=GrowingHistograms, apart=True, defaults=hist_defaults
    ),
    "logistic_regression": Learner(fit_logistic_regression),
    "mlp": Learner(fit_mlp, grow=GrowingNetwork, seeds=True),
    "adaboost": Learner(fit_adaboost),
    "rusboost": Learner(fit_rusboost),
    "easy_ensemble": Learner(fit_easy_ensemble, weighs=False),
}


LIMITS = {"xgboost": "rounds", "hist_gradient_boosting": "max_iter", "mlp": "epochs"}
"""The parameter that says how far a learner grows at most."""


def check_weighting(name: str, weighting: str) -> None:
    """Raise ConfigError for a weighting that the learner would ignore, or a learner that does not exist."""
    if not _member(name, "logistic").weighs and weighting != "none":
        able = ", ".join(sorted(other for other, learner in LEARNERS.items() if learner.weighs))
        raise ConfigError(
            f"learner '{name}' draws both classes alike and would ignore weighting '{weighting}'. "
            f"Set weighting: none, or the learner to one of: {able}"
        )


def settle(name: str, rows: Rows, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``params`` over the defaults that ``rows`` call for. Raises ConfigError for an unknown learner."""
    if name not in LEARNERS:
        raise unknown("learner", name, LEARNERS, "candidates.learner")
    asked = _canonical(params) if name == "xgboost" else dict(params)
    return LEARNERS[name].defaults(rows) | asked


def fit(
    name: str,
    rows: Rows,
    *,
    params: Mapping[str, Any] | None = None,
    loss: str = "logistic",
    weight: FloatArray | None = None,
    rounds: int | None = None,
    seed: int = 0,
    threads: int = 1,
    device: str = "cpu",
    out_of_time: Callable[[], bool] = never,
) -> Fitted:
    """Fit a member of LEARNERS on ``rows``.

    Raises ConfigError for an unknown learner or parameter, or a loss it does not have; InterruptedFitError when
    ``out_of_time`` says so in the middle (XGBoost and the perceptron ask).
    """
    task = Task(rows, weight, rounds, loss, seed, threads, device, out_of_time)
    return refused(name, lambda: _member(name, loss).fit(task, dict(params or {})))


def grow(name: str, task: Task, watched: Watched, params: Mapping[str, Any] | None = None) -> Growing:
    """Begin a fit of a member of LEARNERS that grows, to be looked at on ``watched`` rows. Raises ConfigError as `fit`."""
    member = _member(name, task.loss)
    if member.grow is None:
        raise ConfigError(f"learner '{name}' has no rounds to be found. Fit it as a whole")
    begin = member.grow
    return refused(name, lambda: begin(task, dict(params or {}), watched))


def _member(name: str, loss: str) -> Learner:
    if name not in LEARNERS:
        raise unknown("learner", name, LEARNERS, "candidates.learner")
    if loss != "logistic" and name != "xgboost":
        raise ConfigError(
            f"loss '{loss}' works with learner 'xgboost' only, not with '{name}'. Set candidates.loss: logistic"
        )
    return LEARNERS[name]


def refused(name: str, work: Callable[[], _T]) -> _T:
    """Return what ``work`` returns; a parameter that the library refuses becomes a ConfigError of one line."""
    try:
        return work()
    except ValueError as error:
        if "worse than random" in str(error):
            raise ConfigError(
                f"{name} found nothing better than chance in its first steps. Leave it out of search.candidates, or set its params"
            ) from error
        if type(error).__name__ not in {"InvalidParameterError", "XGBoostError"}:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name} refused a parameter: {reason}. Mend candidates.params") from error
