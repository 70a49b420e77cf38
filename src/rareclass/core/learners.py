"""The learners: each fits labelled rows and gives back something that scores a matrix, and can be pickled.

All of them take rows with missing values and category codes as they are. Scores are raw probabilities; what the
learner's own sampling does to them is said in ``Fitted.kept``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rareclass.core.focal import focal_objective
from rareclass.core.preparing import Preparation
from rareclass.core.rows import AnyArray, FloatArray, FloatMatrix, IntArray, Rows
from rareclass.errors import ConfigError, unknown

Trace = tuple[dict[str, float], ...]

AS_GOOD = 0.002
"""Difference of average precision on stop rows that is never evidence."""


class Interrupted(Exception):
    """Time ran out before the fit was finished; nothing of it is used."""


def never() -> bool:
    """Out of time? Never."""
    return False


@dataclass(frozen=True)
class Task:
    """Everything a fit needs besides its settings.

    weight : (n,) training weights or None · stop : rows that end the fit early, never fitted on
    rounds : fixed number of rounds or epochs instead of early stopping
    """

    rows: Rows
    weight: FloatArray | None = None
    stop: Rows | None = None
    rounds: int | None = None
    loss: str = "logistic"
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    out_of_time: Callable[[], bool] = never


@dataclass(frozen=True)
class Fitted:
    """A fitted learner. rounds : rounds or epochs used · kept : share of negatives its sampling amounts to (NaN: none)

    trace : one dict per round or epoch with ``round``, and ``ap`` and ``loss`` on the stop rows where there are any
    """

    learner: str
    rounds: int | None = field(default=None, kw_only=True)
    kept: float = field(default=1.0, kw_only=True)
    trace: Trace = field(default=(), kw_only=True)

    def score(self, x: FloatMatrix) -> FloatArray:
        """Return (n,) raw probabilities of the rare class for x (n, n_features) float32."""
        raise NotImplementedError

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        """Return (n, n_features) contributions to the log-odds; None where the learner has none of its own."""
        return None


@dataclass(frozen=True)
class Boosted(Fitted):
    """Trees of XGBoost."""

    booster: Any = None
    types: tuple[str, ...] = ()

    def score(self, x: FloatMatrix) -> FloatArray:
        # margins, because float32 probabilities near 1 would tie
        # the caller has checked the columns; XGBoost's own check costs as much as scoring a row
        margin = self.booster.inplace_predict(x, predict_type="margin", validate_features=False)
        return np.asarray(expit(np.asarray(margin, dtype=np.float64)))

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        import xgboost as xgb

        matrix = xgb.DMatrix(x, feature_types=list(self.types), enable_categorical=True)
        return np.asarray(self.booster.predict(matrix, pred_contribs=True)[:, :-1], dtype=np.float64)


@dataclass(frozen=True)
class Trees:
    """All trees of a forest as flat arrays: a few rows walk down all of them at once, 30 times faster than tree by tree.

    left, right : child of each node, a leaf's are itself · value : share of positives in the node
    """

    roots: IntArray
    left: IntArray
    right: IntArray
    feature: IntArray
    threshold: FloatArray
    missing_left: AnyArray
    value: FloatArray
    depth: int

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
        )  # fmt: skip

    def score(self, x: FloatMatrix) -> FloatArray:
        """Return (n,) mean share of positives over the trees."""
        node = np.broadcast_to(self.roots, (len(x), len(self.roots)))
        line = np.arange(len(x))[:, None]
        for _ in range(self.depth):
            value = x[line, self.feature[node]]
            left = np.where(np.isnan(value), self.missing_left[node], value <= self.threshold[node])
            node = np.where(left, self.left[node], self.right[node])
        return np.asarray(self.value[node].mean(axis=1), dtype=np.float64)


_FEW_ROWS = 32


@dataclass(frozen=True)
class Classified(Fitted):
    """A scikit-learn classifier behind its preparation.

    votes : trees that vote; their share is shrunk a little towards the prior, so that no score is exactly 0 or 1
    """

    estimator: Any = None
    preparation: Preparation | None = None
    votes: int = 0
    prior: float = 0.5
    trees: Trees | None = None

    def score(self, x: FloatMatrix) -> FloatArray:
        made = x if self.preparation is None else self.preparation(x)
        if self.trees is not None and len(x) <= _FEW_ROWS:
            p = self.trees.score(made)
        else:
            p = np.asarray(self.estimator.predict_proba(made)[:, 1], dtype=np.float64)
        return p if not self.votes else (p * self.votes + self.prior) / (self.votes + 1)


def expit(z: FloatArray) -> FloatArray:
    """Return 1 / (1 + exp(-z)) without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -z)), dtype=np.float64)


def logit(p: FloatArray, *, margin: float = 1e-9) -> FloatArray:
    """Return log(p / (1 - p)), finite: probabilities nearer than ``margin`` to 0 or 1 are moved there."""
    q = np.clip(p, margin, 1 - margin)
    return np.asarray(np.log(q) - np.log1p(-q), dtype=np.float64)


class StopPrecision:
    """Average precision on the stop rows: exact, ties grouped, without a sort of all rows (called in every round)."""

    def __init__(self, y: IntArray) -> None:
        self.positive, self.negative = np.flatnonzero(y == 1), np.flatnonzero(y == 0)

    def __call__(self, score: Any) -> float:
        hits, rest = np.sort(score[self.positive]), np.sort(score[self.negative])
        tp = len(hits) - np.searchsorted(hits, hits, side="left")
        fp = len(rest) - np.searchsorted(rest, hits, side="left")
        return float(np.mean(tp / (tp + fp)))


class BestRound:
    """Keeps the curves of AP and loss by round, says when waiting is pointless and which round was best.

    AP is noisy where positives are few, so it is averaged over ``width`` rounds; where it is as good as equal, as it is
    once the stop rows are ranked without a mistake, the loss decides: scores of a fit cut too short fit no other's.
    """

    def __init__(self, *, patience: int, width: int, least: int) -> None:
        self.patience, self.width, self.least = patience, width, least
        self.values: list[float] = []
        self.losses: list[float] = []
        self.best, self.since = -1.0, 0

    def add(self, value: float, loss: float) -> bool:
        """Add a round; True when it is time to stop."""
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
        return first + 1 + int(np.argmin(np.where(near, losses[first:], np.inf)))

    def trace(self) -> Trace:
        pairs = enumerate(zip(self.values, self.losses, strict=True))
        return tuple({"round": float(i + 1), "ap": ap, "loss": loss} for i, (ap, loss) in pairs)


# --- XGBoost -----------------------------------------------------------------------------------------------------

_XGB_KNOWN = {
    "eta", "learning_rate", "max_depth", "min_child_weight", "subsample", "colsample_bytree", "colsample_bylevel",
    "colsample_bynode", "reg_lambda", "lambda", "reg_alpha", "alpha", "gamma", "max_delta_step", "max_bin", "max_leaves",
    "grow_policy", "tree_method", "num_parallel_tree", "base_score", "scale_pos_weight", "max_cat_to_onehot",
    "max_cat_threshold", "monotone_constraints", "interaction_constraints",
    "rounds", "patience", "focal_gamma", "focal_alpha",
}  # fmt: skip
_EXACT_ROWS, _FINE_ROWS, _LARGE_ROWS = 4_000, 40_000, 120_000
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
    if rows <= _EXACT_ROWS and not known.schema.categorical.any():
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


def _matrix(rows: Rows, weight: FloatArray | None, types: list[str], params: Mapping[str, Any], ref: Any = None) -> Any:
    import xgboost as xgb

    options: dict[str, Any] = {"label": rows.y, "weight": weight, "feature_types": types, "enable_categorical": True}
    if params["tree_method"] == "hist":
        return xgb.QuantileDMatrix(rows.x, max_bin=params["max_bin"], ref=ref, **options)
    return xgb.DMatrix(rows.x, **options)


def fit_xgboost(task: Task, params: Mapping[str, Any]) -> Boosted:
    """Boosted trees, stopped where AP on the stop rows is best. Source: Chen and Guestrin, KDD 2016."""
    import xgboost as xgb

    _known("xgboost", params, _XGB_KNOWN)
    categorical = task.rows.schema.categorical
    settings = xgboost_defaults(task.rows) | _canonical(params)
    settings.setdefault("max_bin", 256)
    device = resolve_device(task.device)
    if device == "cuda" and settings["tree_method"] == "exact":
        settings |= {"tree_method": "hist", "max_bin": 1024}
    rounds, patience = int(settings.pop("rounds")), int(settings.pop("patience"))
    gamma, alpha = settings.pop("focal_gamma", 2.0), settings.pop("focal_alpha", 0.5)
    types = ["c" if each else "q" for each in categorical]
    # as many threads as asked for also while the matrices are built: by default every processor would spin
    with xgb.config_context(nthread=task.threads, verbosity=0):
        return _boost(task, settings, types, rounds, patience, gamma, alpha, device)


def _boost(
    task: Task,
    settings: dict[str, Any],
    types: list[str],
    rounds: int,
    patience: int,
    gamma: float,
    alpha: float,
    device: str,
) -> Boosted:
    import xgboost as xgb

    train = _matrix(task.rows, task.weight, types, settings)
    watch = _Watch(task, settings, patience)
    stopping = task.stop is not None and task.rounds is None
    evals = [(_matrix(task.stop, None, types, settings, train), "stop")] if stopping and task.stop is not None else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        booster = xgb.train(
            {**settings, "objective": "binary:logistic", "eval_metric": "logloss", "seed": task.seed, "device": device,
             "nthread": task.threads, "verbosity": 0},
            train,
            task.rounds or rounds,
            evals=evals,
            obj=focal_objective(gamma, alpha) if task.loss == "focal" else None,
            custom_metric=watch.metric if evals else None,
            callbacks=[watch.callback()],
            verbose_eval=False,
        )  # fmt: skip
    if watch.interrupted:
        raise Interrupted
    used = watch.best.rounds() if evals else booster.num_boosted_rounds()
    kept = booster[:used]
    kept.set_param({"nthread": task.threads})
    return Boosted("xgboost", rounds=used, trace=watch.best.trace(), booster=kept, types=tuple(types))


def _canonical(params: Mapping[str, Any]) -> dict[str, Any]:
    names = {"learning_rate": "eta", "lambda": "reg_lambda", "alpha": "reg_alpha"}
    return {names.get(key, key): value for key, value in params.items()}


class _Watch:
    """Looks at every round of XGBoost: AP on the stop rows, and the time."""

    def __init__(self, task: Task, settings: Mapping[str, Any], patience: int) -> None:
        eta = float(settings["eta"])
        self.out_of_time, self.interrupted = task.out_of_time, False
        self.best = BestRound(patience=patience, width=max(1, round(0.5 / eta)), least=max(1, round(4 / eta)))
        self.precision = StopPrecision(task.stop.y) if task.stop is not None else None

    def metric(self, predicted: Any, matrix: Any) -> tuple[str, float]:
        assert self.precision is not None
        return "ap", self.precision(predicted)

    def callback(self) -> Any:
        import xgboost as xgb

        watch = self

        class Callback(xgb.callback.TrainingCallback):  # type: ignore[misc]
            def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
                if watch.out_of_time():
                    watch.interrupted = True
                    return True
                if "stop" not in evals_log:
                    return False
                log = evals_log["stop"]
                return watch.best.add(float(log["ap"][-1]), float(log["logloss"][-1]))

        return Callback()


# --- scikit-learn and imbalanced-learn ---------------------------------------------------------------------------

_FOREST_ROWS, _SLOW_ROWS = 40_000, 60_000


def _known(learner: str, params: Mapping[str, Any], known: Any) -> None:
    for name in params:
        if name not in known:
            raise unknown(f"{learner} parameter", name, known, "candidates.params")


def thin(task: Task, most: int) -> tuple[Rows, FloatArray | None]:
    """Return at most ``most`` rows: every positive and a random part of the negatives, each weighing what it stands for."""
    rows, weight = task.rows, task.weight
    negatives = np.flatnonzero(rows.y == 0)
    room = max(most - rows.positives, rows.positives)
    if len(rows) <= most or room >= len(negatives):
        return rows, weight
    chosen = np.random.default_rng(task.seed).choice(negatives, room, replace=False)
    index = np.sort(np.concatenate([np.flatnonzero(rows.y == 1), chosen]))
    full = np.ones(len(rows)) if weight is None else weight.copy()
    full[negatives] *= len(negatives) / room
    return rows.take(index), full[index]


def _forest(
    name: str, base: Mapping[str, Any], params: Mapping[str, Any], task: Task, make: Any, balanced: bool
) -> Classified:
    """Fit a forest whose trees vote. A balanced one draws as many negatives as positives for every tree."""
    rows, weight = thin(task, _FOREST_ROWS)
    settings = {**base, "n_jobs": task.threads, "random_state": task.seed, **params}
    estimator = make()
    _known(name, params, estimator.get_params())
    estimator.set_params(**settings)
    preparation = Preparation.learn(rows) if balanced and np.isnan(rows.x).any() else None
    x = rows.x if preparation is None else preparation(rows.x)
    estimator.fit(x, rows.y, sample_weight=None if balanced else weight)
    kept = task.rows.positives / max(1, len(task.rows) - task.rows.positives) if balanced else 1.0
    prior = 0.5 if balanced else float(np.average(rows.y, weights=weight))
    return Classified(
        name,
        kept=kept,
        estimator=estimator,
        preparation=preparation,
        votes=len(estimator.estimators_),
        prior=prior,
        trees=Trees.of(estimator.estimators_),
    )


def fit_random_forest(task: Task, params: Mapping[str, Any]) -> Classified:
    """Random forest. Source: Breiman, Machine Learning 2001."""
    from sklearn.ensemble import RandomForestClassifier

    base = {"n_estimators": 300 if len(task.rows) <= 10_000 else 150, "min_samples_leaf": 2, "max_features": "sqrt"}
    return _forest("random_forest", base, params, task, RandomForestClassifier, balanced=False)


def fit_extra_trees(task: Task, params: Mapping[str, Any]) -> Classified:
    """Extremely randomised trees over all features. Source: Geurts et al., Machine Learning 2006."""
    from sklearn.ensemble import ExtraTreesClassifier

    features = None if task.rows.x.shape[1] <= 40 else "sqrt"
    base = {"n_estimators": 300 if len(task.rows) <= 10_000 else 150, "min_samples_leaf": 3, "max_features": features}
    return _forest("extra_trees", base, params, task, ExtraTreesClassifier, balanced=False)


def fit_balanced_random_forest(task: Task, params: Mapping[str, Any]) -> Classified:
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
    steps = {"learning_rate": 0.05, "max_iter": 400, "n_iter_no_change": 30}
    return sizes | (steps if slow else {"learning_rate": 0.15, "max_iter": 150, "n_iter_no_change": 15})


def fit_hist_gradient_boosting(task: Task, params: Mapping[str, Any]) -> Classified:
    """Histogram gradient boosting of scikit-learn, stopped on AP of the stop rows."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    slow = len(task.rows) <= _LARGE_ROWS
    base = {"learning_rate": 0.05 if slow else 0.15, "max_iter": 400 if slow else 150, "max_leaf_nodes": 15,
            "min_samples_leaf": 10, "l2_regularization": 3.0, "n_iter_no_change": 30 if slow else 15}  # fmt: skip
    _known("hist_gradient_boosting", params, HistGradientBoostingClassifier().get_params())
    stopping = task.stop is not None and task.rounds is None
    few = np.array([each.kind == "categorical" and len(each.categories) <= 255 for each in task.rows.schema.features])
    settings = {**base, **params, "categorical_features": few if few.any() else None, "random_state": task.seed}
    settings |= {"early_stopping": stopping, "scoring": "average_precision"}
    if task.rounds is not None:
        settings["max_iter"] = task.rounds
    estimator = HistGradientBoostingClassifier(**settings)
    extra = {"X_val": task.stop.x, "y_val": task.stop.y} if stopping and task.stop is not None else {}
    estimator.fit(task.rows.x, task.rows.y, sample_weight=task.weight, **extra)
    curve = estimator.validation_score_[1:] if stopping else []
    least = min(len(curve), round(4 / estimator.learning_rate)) if stopping else 0
    rounds = max(least, int(np.argmax(curve)) + 1) if stopping and len(curve) else estimator.n_iter_
    trace = tuple({"round": float(i + 1), "ap": float(value)} for i, value in enumerate(curve))
    if rounds < estimator.n_iter_:
        estimator._predictors = estimator._predictors[:rounds]  # keep the best rounds, as XGBoost does
    return Classified("hist_gradient_boosting", rounds=max(1, rounds), trace=trace, estimator=estimator)


def fit_logistic_regression(task: Task, params: Mapping[str, Any]) -> Classified:
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
    return Classified("logistic_regression", estimator=estimator, preparation=preparation)


def fit_mlp(task: Task, params: Mapping[str, Any]) -> Classified:
    """Multi-layer perceptron, one epoch at a time; the epoch with the best AP on the stop rows is kept."""
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows, weight = thin(task, _SLOW_ROWS)
    preparation = Preparation.learn(rows)
    estimator = MLPClassifier()
    _known("mlp", params, {*estimator.get_params(), "epochs", "patience"})
    settings: dict[str, Any] = {"hidden_layer_sizes": (64, 32), "alpha": 1e-3, "learning_rate_init": 2e-3, "epochs": 60,
                                "patience": 10, **params}  # fmt: skip
    epochs, patience = task.rounds or settings.pop("epochs"), settings.pop("patience")
    settings.pop("epochs", None)
    settings.setdefault("batch_size", int(min(512, max(64, len(rows) // 20))))
    settings["hidden_layer_sizes"] = tuple(np.atleast_1d(settings["hidden_layer_sizes"]).tolist())
    estimator.set_params(**settings, random_state=task.seed)
    x = preparation(rows.x)
    stop = None if task.stop is None or task.rounds is not None else (preparation(task.stop.x), task.stop.y)
    with threadpool_limits(task.threads):  # small matrices: more threads than asked for only wait for each other
        rounds, trace = _epochs(estimator, task, x, rows.y, weight, stop, int(epochs), int(patience))
    return Classified("mlp", rounds=rounds, trace=trace, estimator=estimator, preparation=preparation)


def _epochs(
    estimator: Any,
    task: Task,
    x: FloatMatrix,
    y: IntArray,
    weight: FloatArray | None,
    stop: Any,
    epochs: int,
    patience: int,
) -> tuple[int, Trace]:
    """Train epoch by epoch; leave the coefficients of the best one in ``estimator``."""
    best, held, trace = BestRound(patience=patience, width=1, least=3), [], []
    for epoch in range(epochs):
        if task.out_of_time():
            raise Interrupted
        estimator.partial_fit(x, y, classes=np.array([0, 1]), sample_weight=weight)
        point = {"round": float(epoch + 1), "train_loss": float(estimator.loss_)}
        if stop is None:
            trace.append(point)
            continue
        p = estimator.predict_proba(stop[0])[:, 1]
        done = best.add(StopPrecision(stop[1])(p), _log_loss(stop[1], p))
        trace.append({**point, "ap": best.values[-1], "loss": best.losses[-1]})
        held.append(copy.deepcopy((estimator.coefs_, estimator.intercepts_)))
        if done:
            break
    if stop is None:
        return epochs, tuple(trace)
    rounds = best.rounds()
    estimator.coefs_, estimator.intercepts_ = held[rounds - 1]
    return rounds, tuple(trace)


def _log_loss(y: IntArray, p: Any) -> float:
    q = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-12)
    return float(-np.mean(np.where(y == 1, np.log(q), np.log1p(-q))))


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
    """Bag of AdaBoosts, each on balanced rows. Source: Liu, Wu and Zhou, 2009."""
    from imblearn.ensemble import EasyEnsembleClassifier

    base = {"n_estimators": 10, "n_jobs": task.threads}
    return _boosting("easy_ensemble", EasyEnsembleClassifier, base, params, task, weighted=False)


@dataclass(frozen=True)
class Learner:
    """A member of the family.

    stops : it takes stop rows · seeds : fits of different seeds are worth averaging
    defaults : settings that depend on how many rows there are; a refit on more rows must keep them
    """

    fit: Callable[[Task, Mapping[str, Any]], Fitted]
    stops: bool = False
    seeds: bool = False
    defaults: Callable[[Rows], dict[str, Any]] = lambda rows: {}


LEARNERS: dict[str, Learner] = {
    "xgboost": Learner(fit_xgboost, stops=True, seeds=True, defaults=xgboost_defaults),
    "random_forest": Learner(fit_random_forest),
    "balanced_random_forest": Learner(fit_balanced_random_forest),
    "extra_trees": Learner(fit_extra_trees),
    "hist_gradient_boosting": Learner(fit_hist_gradient_boosting, stops=True, defaults=hist_defaults),
    "logistic_regression": Learner(fit_logistic_regression),
    "mlp": Learner(fit_mlp, stops=True, seeds=True),
    "adaboost": Learner(fit_adaboost),
    "rusboost": Learner(fit_rusboost),
    "easy_ensemble": Learner(fit_easy_ensemble),
}


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
    stop: Rows | None = None,
    rounds: int | None = None,
    seed: int = 0,
    threads: int = 1,
    device: str = "cpu",
    out_of_time: Callable[[], bool] = never,
) -> Fitted:
    """Fit a member of LEARNERS on ``rows``.

    Raises ConfigError for an unknown learner or parameter, or a loss it does not have; Interrupted when
    ``out_of_time`` says so in the middle (XGBoost and the perceptron ask).
    """
    if name not in LEARNERS:
        raise unknown("learner", name, LEARNERS, "candidates.learner")
    if loss != "logistic" and name != "xgboost":
        raise ConfigError(
            f"loss '{loss}' works with learner 'xgboost' only, not with '{name}'. Set candidates.loss: logistic"
        )
    task = Task(rows, weight, stop, rounds, loss, seed, threads, device, out_of_time)
    asked: dict[str, Any] = dict(params) if params else {}
    try:
        return LEARNERS[name].fit(task, asked)
    except ValueError as error:
        if type(error).__name__ not in {"InvalidParameterError", "XGBoostError"}:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name} refused a parameter: {reason}. Mend candidates.params") from error
