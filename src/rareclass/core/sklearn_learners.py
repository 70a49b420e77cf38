"""Learners of scikit-learn and imbalanced-learn. They take rows with missing values and category codes as they are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rareclass.core.dataset import FloatArray, IntArray, Rows
from rareclass.core.early_stopping import Watched, threads_of_a_fit
from rareclass.core.fit_task import LARGE_ROWS, FitTask, InterruptedFitError, check_params
from rareclass.core.fitted import Classified, Forest, Logistic, Network, Trees
from rareclass.core.log_odds import logit
from rareclass.core.preprocessing import Preparation
from rareclass.core.thread_limits import at_most

_SMALL_ROWS, _FOREST_ROWS, _SLOW_ROWS = 10_000, 40_000, 60_000


def thin(task: FitTask, most: int, *, balanced: bool = False) -> tuple[Rows, FloatArray | None]:
    """Return at most ``most`` rows: every positive and a random part of the negatives, each weighing what it stands
    for.

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
    name: str, base: Mapping[str, Any], params: Mapping[str, Any], task: FitTask, make: Any, balanced: bool
) -> Forest:
    """Fit a forest whose trees vote. A balanced one draws as many negatives as positives for every tree."""
    rows, weight = thin(task, _FOREST_ROWS, balanced=balanced)
    settings = {**base, "n_jobs": task.threads, "random_state": task.seed, **params}
    estimator = make()
    check_params(name, params, estimator.get_params())
    estimator.set_params(**settings)
    preparation = Preparation.learn(rows) if balanced and np.isnan(rows.x).any() else None
    x = rows.x if preparation is None else preparation(rows.x)
    estimator.fit(x, rows.y, sample_weight=weight)
    rate = task.rows.positives / max(1, len(task.rows) - task.rows.positives) if balanced else 1.0
    mass = np.ones(len(rows)) if weight is None else weight
    means = [mass[rows.y == label].mean() for label in (0, 1)]
    prior = float(means[1] / sum(means)) if balanced else float(np.average(rows.y, weights=weight))
    trees = Trees.of(estimator.estimators_)
    return Forest(
        name, negative_sampling_rate=rate, trees=trees, preparation=preparation, prior=prior, threads=task.threads
    )


def _trees(rows: int) -> int:
    """Fewer where every tree has many rows to see and to score."""
    return 300 if rows <= _SMALL_ROWS else 150 if rows <= LARGE_ROWS else 80


def fit_random_forest(task: FitTask, params: Mapping[str, Any]) -> Forest:
    """Random forest. Source: Breiman, Machine Learning 2001."""
    from sklearn.ensemble import RandomForestClassifier

    base = {"n_estimators": _trees(len(task.rows)), "min_samples_leaf": 2, "max_features": "sqrt"}
    return _forest("random_forest", base, params, task, RandomForestClassifier, balanced=False)


def fit_extra_trees(task: FitTask, params: Mapping[str, Any]) -> Forest:
    """Extremely randomised trees, over all features while rows are few (docs/decisions/0017).

    Source: Geurts et al., Machine Learning 2006.
    """
    from sklearn.ensemble import ExtraTreesClassifier

    many = len(task.rows) > _SMALL_ROWS
    features = "sqrt" if many or task.rows.x.shape[1] > 40 else None
    base = {"n_estimators": _trees(len(task.rows)), "min_samples_leaf": 5 if many else 3, "max_features": features}
    return _forest("extra_trees", base, params, task, ExtraTreesClassifier, balanced=False)


def fit_balanced_random_forest(task: FitTask, params: Mapping[str, Any]) -> Forest:
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
    slow = len(known) <= LARGE_ROWS
    sizes = {"max_leaf_nodes": 15, "min_samples_leaf": 10, "l2_regularization": 3.0}
    steps = {"learning_rate": 0.05, "max_iter": 400, "n_iter_no_change": 60}
    return sizes | (steps if slow else {"learning_rate": 0.15, "max_iter": 150, "n_iter_no_change": 30})


class GrowingHistograms:
    """Histogram gradient boosting of scikit-learn; ``n_iter_no_change`` is its patience.

    It meets several times for every split of a tree: see `threads_of_a_fit`.
    """

    def __init__(self, task: FitTask, params: Mapping[str, Any], watched: Watched | None = None) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        check_params("hist_gradient_boosting", params, HistGradientBoostingClassifier().get_params())
        schema = task.rows.schema
        few = np.array(
            [feature.kind == "categorical" and len(feature.categories) <= 255 for feature in schema.features]
        )
        settings = hist_defaults(task.rows) | dict(params)
        settings |= {"categorical_features": few if few.any() else None, "random_state": task.seed}
        self.most, self.patience = task.rounds or int(settings["max_iter"]), int(settings["n_iter_no_change"])
        self.step, self.least = max(1, self.most // 16), max(1, round(4 / settings["learning_rate"]))
        self.estimator = HistGradientBoostingClassifier(**settings, early_stopping=False, warm_start=True)
        self.task, self.watched, self.done = task, watched, 0
        self.threads = threads_of_a_fit(len(task.rows), task.threads)

    def grow(self, rounds: int | None = None) -> None:
        """Fit ``rounds`` more trees, by default one step of them."""
        self.done = min(self.most, self.done + (rounds or self.step))
        self.estimator.set_params(max_iter=self.done)
        with at_most(self.threads, "openmp"):
            self.estimator.fit(self.task.rows.x, self.task.rows.y, sample_weight=self.task.weight)

    def log_odds(self) -> FloatArray:
        """Return (n,) log-odds of the watched rows."""
        assert self.watched is not None
        with at_most(self.threads, "openmp"):
            return self.watched.each(lambda part, x: self.estimator.decision_function(x))

    def fitted(self, rounds: int) -> Classified:
        """Return the learner of the first ``rounds`` trees."""
        self.estimator._predictors = self.estimator._predictors[:rounds]
        return Classified("hist_gradient_boosting", rounds=rounds, estimator=self.estimator)


def fit_hist_gradient_boosting(task: FitTask, params: Mapping[str, Any]) -> Classified:
    """Histogram gradient boosting of a fixed number of rounds."""
    growing = GrowingHistograms(task, params)
    growing.grow(growing.most)
    return growing.fitted(growing.most)


def fit_logistic_regression(task: FitTask, params: Mapping[str, Any]) -> Logistic:
    """Logistic regression on prepared columns."""
    from sklearn.linear_model import LogisticRegression

    rows, weight = thin(task, 2 * _SLOW_ROWS)
    preparation = Preparation.learn(rows)
    estimator = LogisticRegression()
    check_params("logistic_regression", params, estimator.get_params())
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

    def __init__(self, task: FitTask, params: Mapping[str, Any], watched: Watched | None = None) -> None:
        from sklearn.neural_network import MLPClassifier

        rows, self.weight = thin(task, _SLOW_ROWS)
        self.preparation, self.threads, self.y = Preparation.learn(rows), task.threads, rows.y
        self.estimator = MLPClassifier()
        check_params("mlp", params, {*self.estimator.get_params(), "epochs", "patience"})
        settings: dict[str, Any] = {
            "hidden_layer_sizes": (64, 32),
            "alpha": 1e-3,
            "learning_rate_init": 2e-3,
            "epochs": 60,
            "patience": 10,
            **params,
        }
        epochs, self.patience = int(settings.pop("epochs")), int(settings.pop("patience"))
        self.most = task.rounds or epochs
        settings.setdefault("batch_size", int(min(512, max(64, len(rows) // 20))))
        settings["hidden_layer_sizes"] = tuple(np.atleast_1d(settings["hidden_layer_sizes"]).tolist())
        self.estimator.set_params(**settings, random_state=task.seed)
        self.x = self.preparation(rows.x)
        self.watched = None if watched is None else self.preparation(watched.x[watched.index])
        self.held: list[Any] = []

    def grow(self) -> None:
        """Go once over the rows and keep the weights of that epoch."""
        with at_most(self.threads):  # small matrices: more threads than asked for only wait for each other
            self.estimator.partial_fit(self.x, self.y, classes=np.array([0, 1]), sample_weight=self.weight)
        self.held.append(copy.deepcopy((self.estimator.coefs_, self.estimator.intercepts_)))

    def log_odds(self) -> FloatArray:
        """Return (n,) log-odds of the watched rows."""
        return logit(self.estimator.predict_proba(self.watched)[:, 1])

    def fitted(self, rounds: int) -> Network:
        """Return the network as it was after so many epochs."""
        weights, biases = self.held[rounds - 1]
        return Network(
            "mlp",
            rounds=rounds,
            weights=tuple(weights),
            biases=tuple(biases),
            activation=self.estimator.activation,
            preparation=self.preparation,
        )


def fit_mlp(task: FitTask, params: Mapping[str, Any]) -> Network:
    """Multi-layer perceptron of a fixed number of epochs."""
    growing = GrowingNetwork(task, params)
    for _ in range(growing.most):
        if task.out_of_time():
            raise InterruptedFitError
        growing.grow()
    return growing.fitted(growing.most)


def _boosting(
    name: str, make: Any, base: Mapping[str, Any], params: Mapping[str, Any], task: FitTask, weighted: bool
) -> Classified:
    """AdaBoost and its balanced relatives: their scores are no probabilities, so only a calibrator can map them."""
    rows, weight = thin(task, _FOREST_ROWS)
    preparation = Preparation.learn(rows)
    estimator = make()
    check_params(name, params, estimator.get_params())
    estimator.set_params(**{**base, **params, "random_state": task.seed})
    options = {"sample_weight": weight} if weighted and weight is not None else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(preparation(rows.x), rows.y, **options)
    if "n_jobs" in estimator.get_params():
        estimator.set_params(n_jobs=1)  # scoring would start processes otherwise
    return Classified(name, negative_sampling_rate=float("nan"), estimator=estimator, preparation=preparation)


def _tree(depth: int) -> Any:
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(max_depth=depth)


def fit_adaboost(task: FitTask, params: Mapping[str, Any]) -> Classified:
    """AdaBoost of shallow trees. Source: Freund and Schapire, 1997."""
    from sklearn.ensemble import AdaBoostClassifier

    base = {"estimator": _tree(2), "n_estimators": 100, "learning_rate": 0.5}
    return _boosting("adaboost", AdaBoostClassifier, base, params, task, weighted=True)


def fit_rusboost(task: FitTask, params: Mapping[str, Any]) -> Classified:
    """Boosting with random under-sampling in every round. Source: Seiffert et al., 2010."""
    from imblearn.ensemble import RUSBoostClassifier

    base = {"estimator": _tree(3), "n_estimators": 100, "learning_rate": 0.3}
    return _boosting("rusboost", RUSBoostClassifier, base, params, task, weighted=True)


def fit_easy_ensemble(task: FitTask, params: Mapping[str, Any]) -> Classified:
    """Bag of AdaBoosts, each on balanced rows. Source: Liu, Wu and Zhou, 2009.

    It takes no weights, so rows of inverse-propensity weights are drawn in their proportion within each class first.
    """
    from imblearn.ensemble import EasyEnsembleClassifier

    base = {"n_estimators": 10, "n_jobs": task.threads}
    if task.weight is not None:
        task = replace(task, rows=task.rows.take(drawn_in_proportion(task)), weight=None)
    return _boosting("easy_ensemble", EasyEnsembleClassifier, base, params, task, weighted=False)


def drawn_in_proportion(task: FitTask) -> IntArray:
    """Index of as many rows of each class as there are, drawn in proportion to their weights."""
    rng, parts = np.random.default_rng(task.seed), []
    assert task.weight is not None
    for label in (0, 1):
        index = np.flatnonzero(task.rows.y == label)
        share = task.weight[index] / task.weight[index].sum()
        parts.append(rng.choice(index, len(index), p=share))
    return np.sort(np.concatenate(parts))
