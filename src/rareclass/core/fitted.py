"""Fitted learners: what scores a matrix and can be written without code (core.portable). Numbers of our own where a few
lines score with them, the library's object where not.

Scores are raw probabilities; what the learner's own sampling does to them is said in ``Fitted.negative_sampling_rate``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rareclass.core.dataset import AnyArray, FloatArray, FloatMatrix, IntArray
from rareclass.core.log_odds import expit
from rareclass.core.preprocessing import Preparation
from rareclass.errors import ModelError


@dataclass(frozen=True)
class Fitted:
    """A fitted learner. rounds : rounds or epochs used · negative_sampling_rate : share of negatives its sampling
    amounts to (NaN: none)
    """

    learner: str
    rounds: int | None = field(default=None, kw_only=True)
    negative_sampling_rate: float = field(default=1.0, kw_only=True)

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
    shape, dimensions, margins = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64(), ctypes.POINTER(ctypes.c_float)()
    xgboost._check_call(
        xgboost._LIB.XGBoosterPredictFromDense(
            booster.handle, array, _MARGINS, None, ctypes.byref(shape), ctypes.byref(dimensions), ctypes.byref(margins)
        )
    )
    # the result belongs to the booster and lives until this thread's next call: copied at once
    return np.frombuffer(ctypes.string_at(margins, 4 * len(rows)), dtype=np.float32).astype(np.float64)


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
        return expit(_margins(self.booster, x))

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        import xgboost as xgb

        matrix = xgb.DMatrix(x, feature_types=list(self.types), enable_categorical=True)
        return np.asarray(self.booster.predict(matrix, pred_contribs=True)[:, :-1], dtype=np.float64)


@dataclass(frozen=True)
class Trees:
    """All trees of a forest as flat arrays: a few rows walk down all of them at once, 30 times faster than tree by
    tree.

    left, right : child of each node, a leaf's are itself · value : what the node says, of a classifier the share of
    positives in it · features : of a row
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
    def of(estimators: Any, value: Callable[[Any], FloatArray] = lambda tree: tree.value[:, 0, 1]) -> Trees:
        """Flatten fitted decision trees of scikit-learn. value : (nodes,) what the nodes of one tree say"""
        trees = [estimator.tree_ for estimator in estimators]
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
            roots,
            children[0],
            children[1],
            np.where(leaf, 0, np.concatenate([tree.feature for tree in trees])),
            np.concatenate([tree.threshold for tree in trees]),
            np.concatenate([tree.missing_go_to_left for tree in trees]).astype(bool),
            np.concatenate([value(tree) for tree in trees]),
            max(tree.max_depth for tree in trees),
            int(trees[0].n_features),
        )

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
            scores = np.zeros(len(matrix))
            for tree in share:
                scores += tree.predict(matrix)[:, 1]
            return scores

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
    """A linear model of the log-odds.

    coefficient : (n_prepared,) · without a preparation a missing value counts as 0
    """

    coefficient: AnyArray
    intercept: AnyArray
    preparation: Preparation | None = None

    def score(self, x: FloatMatrix) -> FloatArray:
        made = np.nan_to_num(x) if self.preparation is None else self.preparation(x)
        return expit(made @ self.coefficient + self.intercept)


@dataclass(frozen=True)
class Network(Fitted):
    """A multi-layer perceptron. weights, biases : of each layer · activation : of the hidden ones, as scikit-learn
    names it
    """

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


_WORTH_A_SECOND_THREAD = 2_000
"""Rows from which scoring with more than one thread pays for waking it."""


@dataclass(frozen=True)
class LightTrees(Fitted):
    """Trees of LightGBM. threads : it scores many rows with"""

    trees: Any = None
    threads: int = 1

    def _predict(self, x: FloatMatrix, **what: bool) -> FloatArray:
        threads = self.threads if len(x) >= _WORTH_A_SECOND_THREAD else 1
        return np.asarray(self.trees.predict(np.ascontiguousarray(x), num_threads=threads, **what), dtype=np.float64)

    def score(self, x: FloatMatrix) -> FloatArray:
        return expit(self._predict(x, raw_score=True))

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        return self._predict(x, pred_contrib=True)[:, :-1]


@dataclass(frozen=True)
class CatTrees(Fitted):
    """Trees of CatBoost. levels : categories of each column, 0 for a number · threads : it scores many rows with"""

    trees: Any = None
    levels: tuple[int, ...] = ()
    threads: int = 1

    def score(self, x: FloatMatrix) -> FloatArray:
        threads = self.threads if len(x) >= _WORTH_A_SECOND_THREAD else 1
        rows = catboost_rows(x, self.levels)
        return expit(np.atleast_1d(self.trees.predict(rows, "RawFormulaVal", thread_count=threads)))

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        from catboost import EFstrType, Pool

        shares = self.trees.get_feature_importance(
            Pool(catboost_rows(x, self.levels)), EFstrType.ShapValues, thread_count=self.threads
        )
        categories = np.asarray(self.levels) > 0
        order = np.argsort(np.concatenate([np.flatnonzero(~categories), np.flatnonzero(categories)]))
        return np.asarray(shares, dtype=np.float64)[:, :-1][:, order]


def catboost_rows(x: FloatMatrix, levels: tuple[int, ...]) -> Any:
    """Return rows as CatBoost takes them without a Python object per number: numbers first, then categories as bytes.

    levels : categories of each column, 0 for a number. A missing category is a level of its own, and so are all that
    training did not know.
    """
    from catboost import FeaturesData

    counts = np.asarray(levels)
    numbers, categories = np.flatnonzero(counts == 0), np.flatnonzero(counts > 0)
    values = np.ascontiguousarray(x[:, numbers], dtype=np.float32) if len(numbers) else None
    if not len(categories):
        return FeaturesData(num_feature_data=values)
    texts = np.empty((len(x), len(categories)), dtype=object)
    for place, column in enumerate(categories):
        names = np.array([b"%d" % code for code in range(counts[column])] + [b"unknown", b"missing"], dtype=object)
        code, count = x[:, column], counts[column]
        missing = np.isnan(code)
        codes = np.where(missing, 0, code).astype(np.int64)
        texts[:, place] = names[np.where(missing, count + 1, np.where((codes < 0) | (codes >= count), count, codes))]
    return FeaturesData(num_feature_data=values, cat_feature_data=texts)


FITTED: tuple[type, ...] = (
    Boosted, LightTrees, CatTrees, Forest, Trees, Logistic, Network, Classified, Preparation
)  # fmt: skip
"""What a fitted learner consists of, for `core.portable`."""
