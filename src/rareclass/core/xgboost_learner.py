"""Boosted trees of XGBoost, with settings for rare classes and cut points where positives are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rareclass.core.dataset import FloatArray, FloatMatrix, IntArray, Rows
from rareclass.core.early_stopping import Watched, grow_whole, pace, threads_of_a_fit
from rareclass.core.fit_task import LARGE_ROWS, FitTask, check_params, take_cut_points
from rareclass.core.fitted import Boosted
from rareclass.core.focal import focal_objective

_XGB_KNOWN = {
    "eta",
    "learning_rate",
    "max_depth",
    "min_child_weight",
    "subsample",
    "colsample_bytree",
    "colsample_bylevel",
    "colsample_bynode",
    "reg_lambda",
    "lambda",
    "reg_alpha",
    "alpha",
    "gamma",
    "max_delta_step",
    "max_bin",
    "max_leaves",
    "grow_policy",
    "tree_method",
    "num_parallel_tree",
    "base_score",
    "scale_pos_weight",
    "max_cat_to_onehot",
    "max_cat_threshold",
    "monotone_constraints",
    "interaction_constraints",
    "rounds",
    "patience",
    "focal_gamma",
    "focal_alpha",
    "cut_points",
}
_EXACT_ROWS, _FINE_ROWS = 4_000, 40_000
_EXACT_VALUES = 200_000  # rows times columns: exact splits sort every column
_VERY_RARE = 1 / 400
"""Prevalence below which a leaf has to hold more:
there a step of the second order rests on few rows (decisions/0014).
"""


def xgboost_defaults(known: Rows) -> dict[str, Any]:
    """Return settings right for rare classes: slow shallow trees, base_score 1/2 and fine cut points while rows are
    few.

    Large data take larger steps and 256 bins: there noise is no longer what limits the model, but time is. A class
    rarer than 1 in 400 takes heavier leaves and shrinkage.
    """
    params: dict[str, Any] = {
        "max_depth": 4,
        "subsample": 0.8,
        "colsample_bytree": 0.7,
        "reg_lambda": 3.0,
        "min_child_weight": 1.0,
        "base_score": 0.5,
        "tree_method": "hist",
    }
    rows = len(known)
    if rows and known.prevalence < _VERY_RARE:
        params |= {"min_child_weight": 3.0, "reg_lambda": 10.0}
    if rows <= _EXACT_ROWS and known.x.size <= _EXACT_VALUES and not known.schema.categorical.any():
        return params | {"tree_method": "exact", "eta": 0.05, "rounds": 800, "patience": 80 if rows > 1000 else 40}
    if rows <= _FINE_ROWS:
        return params | {"max_bin": 1024, "eta": 0.05, "rounds": 800, "patience": 60}
    if rows <= LARGE_ROWS:
        return params | {"max_bin": 512, "eta": 0.1, "rounds": 400, "patience": 30}
    return params | {"max_bin": 256, "eta": 0.15, "rounds": 220, "patience": 20}


def resolve_device(device: str) -> str:
    """Return 'cpu' or 'cuda'; 'auto' takes a GPU where both the build and the machine have one."""
    if device != "auto":
        return device
    import xgboost as xgb

    return "cuda" if xgb.build_info().get("USE_CUDA") and Path("/dev/nvidia0").exists() else "cpu"


def _matrix(rows: Rows, weight: FloatArray | None, types: list[str], params: Mapping[str, Any], cut_points: str) -> Any:
    """Rows as XGBoost fits them; cut points of a histogram are those of a second,
    short-lived matrix of other weights.
    """
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

    def __init__(self, task: FitTask, params: Mapping[str, Any], watched: Watched | None = None) -> None:
        import xgboost as xgb

        check_params("xgboost", params, _XGB_KNOWN)
        settings = xgboost_defaults(task.rows) | canonical(params)
        settings.setdefault("max_bin", 256)
        device = resolve_device(task.device)
        if device == "cuda" and settings["tree_method"] == "exact":
            settings |= {"tree_method": "hist", "max_bin": 1024}
        most, self.patience = int(settings.pop("rounds")), int(settings.pop("patience"))
        gamma, alpha = settings.pop("focal_gamma", 2.0), settings.pop("focal_alpha", 0.5)
        cut_points = take_cut_points(settings)
        self.threads, self.done = threads_of_a_fit(len(task.rows), task.threads), 0
        self.objective = focal_objective(gamma, alpha, self.threads) if task.loss == "focal" else None
        self.most, (self.step, self.least) = task.rounds or most, pace(float(settings["eta"]))
        self.types = tuple("c" if categorical else "q" for categorical in task.rows.schema.categorical)
        # as many threads as asked for also while the matrices are built: by default every processor would spin
        with xgb.config_context(nthread=self.threads, verbosity=0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.train = _matrix(task.rows, task.weight, list(self.types), settings, cut_points)
            self.watched, self.looked, self.margin = watched, 0, np.empty(0, dtype=np.float32)
            self.booster = xgb.Booster(
                {
                    **settings,
                    "objective": "binary:logistic",
                    "seed": task.seed,
                    "device": device,
                    "nthread": self.threads,
                    "verbosity": 0,
                    "seed_per_iteration": True,
                },  # folds that grow in turns share XGBoost's only generator
                [self.train],
            )

    def grow(self, rounds: int | None = None) -> None:
        """Fit ``rounds`` more trees, by default one step of them."""
        for _ in range(rounds or self.step):
            self.booster.update(self.train, self.done, self.objective)
            self.done += 1

    def log_odds(self) -> FloatArray:
        """Return (n,) log-odds of the watched rows; only trees that are new are asked."""
        assert self.watched is not None
        margin = self.margin if self.looked else None
        options = {"iteration_range": (self.looked, self.done), "predict_type": "margin", "validate_features": False}

        def look(part: slice, x: FloatMatrix) -> FloatArray:
            before = None if margin is None else margin[part]
            return np.asarray(self.booster.inplace_predict(x, base_margin=before, **options))

        self.margin = self.watched.each(look).astype(np.float32)
        self.looked = self.done
        return self.margin.astype(np.float64)

    def fitted(self, rounds: int) -> Boosted:
        """Return the learner of the first ``rounds`` trees."""
        first = self.booster[:rounds]
        return Boosted("xgboost", rounds=rounds, booster=first, types=self.types, threads=self.threads)


def fit_xgboost(task: FitTask, params: Mapping[str, Any]) -> Boosted:
    """Boosted trees of a fixed number of rounds."""
    growing = GrowingTrees(task, params)
    grow_whole(growing, task)
    return growing.fitted(growing.most)


def canonical(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters under one of the names that XGBoost takes for each."""
    names = {"learning_rate": "eta", "lambda": "reg_lambda", "alpha": "reg_alpha"}
    return {names.get(key, key): value for key, value in params.items()}
