"""Boosted trees of LightGBM (extra ``lightgbm``), grown leaf by leaf, with cut points where positives are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rareclass.core.dataset import FloatArray, FloatMatrix, IntArray, Rows
from rareclass.core.early_stopping import Watched, grow_whole, pace, threads_of_a_fit
from rareclass.core.fit_task import LARGE_ROWS, FitTask, check_params, take_cut_points
from rareclass.core.fitted import LightTrees

_KNOWN = {
    "learning_rate",
    "num_leaves",
    "max_depth",
    "min_data_in_leaf",
    "min_sum_hessian_in_leaf",
    "bagging_fraction",
    "bagging_freq",
    "feature_fraction",
    "feature_fraction_bynode",
    "lambda_l1",
    "lambda_l2",
    "min_gain_to_split",
    "max_bin",
    "min_data_in_bin",
    "max_delta_step",
    "scale_pos_weight",
    "path_smooth",
    "extra_trees",
    "cat_smooth",
    "cat_l2",
    "max_cat_threshold",
    "max_cat_to_onehot",
    "min_data_per_group",
    "monotone_constraints",
    "rounds",
    "patience",
    "cut_points",
}
_REFERENCE_ROWS = 100_000


def lightgbm_defaults(known: Rows) -> dict[str, Any]:
    """Return small steps and fine bins while rows are few; large data take larger steps and 255 bins."""
    params: dict[str, Any] = {
        "num_leaves": 15,
        "min_data_in_leaf": 10,
        "min_sum_hessian_in_leaf": 0.1,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_fraction": 0.7,
        "lambda_l2": 3.0,
        "cat_smooth": 10.0,
        "cat_l2": 10.0,
    }
    if len(known) <= LARGE_ROWS:
        return params | {"max_bin": 1023, "learning_rate": 0.05, "rounds": 600, "patience": 60}
    return params | {"max_bin": 255, "learning_rate": 0.12, "rounds": 250, "patience": 20}


class GrowingLeaves:
    """Trees grown leaf by leaf. Source: Ke et al., NeurIPS 2017. Weights and settings as `fit` takes them."""

    def __init__(self, task: FitTask, params: Mapping[str, Any], watched: Watched | None = None) -> None:
        import lightgbm as lgb

        check_params("lightgbm", params, _KNOWN)
        settings = lightgbm_defaults(task.rows) | dict(params)
        most, self.patience = int(settings.pop("rounds")), int(settings.pop("patience"))
        cut_points = take_cut_points(settings)
        self.most, (self.step, self.least) = task.rounds or most, pace(float(settings["learning_rate"]))
        self.threads, self.done = threads_of_a_fit(len(task.rows), task.threads), 0
        self.watched, self.looked = watched, 0
        self.margin = np.zeros(0 if watched is None else len(watched))
        options = {
            **settings,
            "objective": "binary",
            "seed": task.seed,
            "num_threads": self.threads,
            "verbosity": -1,
            "deterministic": True,
            "force_col_wise": True,
            "feature_pre_filter": False,
        }
        shape: dict[str, Any] = {
            "categorical_feature": np.flatnonzero(task.rows.schema.categorical).tolist(),
            "params": options,
            "free_raw_data": True,
        }
        reference = None
        if cut_points == "classes":
            index = _both_classes_alike(task.rows.y, task.seed)
            reference = lgb.Dataset(task.rows.x[index], label=task.rows.y[index], **shape).construct()
        train = lgb.Dataset(task.rows.x, label=task.rows.y, weight=task.weight, reference=reference, **shape)
        self.booster = lgb.Booster(options, train)

    def grow(self, rounds: int | None = None) -> None:
        """Fit ``rounds`` more trees, by default one step of them."""
        for _ in range(rounds or self.step):
            self.booster.update()
            self.done += 1

    def log_odds(self) -> FloatArray:
        """Return (n,) log-odds of the watched rows; only trees that are new are asked."""
        assert self.watched is not None
        options = {"raw_score": True, "num_threads": self.threads}

        def look(part: slice, x: FloatMatrix) -> FloatArray:
            new = self.booster.predict(x, start_iteration=self.looked, num_iteration=self.done - self.looked, **options)
            return self.margin[part] + np.asarray(new, dtype=np.float64)

        if self.done > self.looked:
            self.margin = self.watched.each(look)
            self.looked = self.done
        return self.margin.copy()

    def fitted(self, rounds: int) -> LightTrees:
        """Return the learner of the first ``rounds`` trees."""
        import lightgbm as lgb

        # written and read once: a booster that holds its training rows would keep them in memory
        text = self.booster.model_to_string(num_iteration=rounds)
        return LightTrees("lightgbm", rounds=rounds, trees=lgb.Booster(model_str=text), threads=self.threads)


def _both_classes_alike(y: IntArray, seed: int) -> IntArray:
    """Return rows of which half are positives (repeated), by whose quantiles cut points are placed (decisions/0025).

    LightGBM's bins know no weights, so the rows themselves stand for them.
    """
    rng = np.random.default_rng(seed)
    rare, common = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    if not (len(rare) and len(common)):
        return np.arange(len(y))
    most = _REFERENCE_ROWS // 2
    common = rng.choice(common, min(most, len(common)), replace=False)
    repeated = np.tile(rare, -(-len(common) // len(rare)))[: max(len(common), min(len(rare), most))]
    return np.sort(np.concatenate([common, repeated]))


def fit_lightgbm(task: FitTask, params: Mapping[str, Any]) -> LightTrees:
    """Trees of a fixed number of rounds."""
    growing = GrowingLeaves(task, params)
    grow_whole(growing, task)
    return growing.fitted(growing.most)
