"""Boosted symmetric trees of CatBoost (extra ``catboost``), with its own statistics of categories."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rareclass.core.dataset import FloatArray, Rows
from rareclass.core.early_stopping import Watched, grow_whole, pace, threads_of_a_fit
from rareclass.core.fit_task import LARGE_ROWS, FitTask, check_params
from rareclass.core.fitted import CatTrees, catboost_rows

_KNOWN = {
    "learning_rate",
    "depth",
    "l2_leaf_reg",
    "rsm",
    "subsample",
    "bootstrap_type",
    "bagging_temperature",
    "random_strength",
    "border_count",
    "one_hot_max_size",
    "max_ctr_complexity",
    "min_data_in_leaf",
    "grow_policy",
    "max_leaves",
    "leaf_estimation_iterations",
    "monotone_constraints",
    "scale_pos_weight",
    "rounds",
    "patience",
}
_NOBODY_KNOWS = 0.5
"""Label of the watched rows: a fit does not know theirs, and no training row has it."""


def catboost_defaults(known: Rows) -> dict[str, Any]:
    """Return small steps while rows are few; the learning rate is said,
    because CatBoost's own depends on the rounds.
    """
    params: dict[str, Any] = {
        "depth": 6,
        "l2_leaf_reg": 3.0,
        "bootstrap_type": "Bernoulli",
        "subsample": 0.8,
        "border_count": 254,
        "one_hot_max_size": 2,
    }
    if len(known) <= LARGE_ROWS:
        return params | {"learning_rate": 0.06, "rounds": 600, "patience": 60}
    return params | {"learning_rate": 0.12, "rounds": 300, "patience": 25}


class _Looking:
    """CatBoost's way to be told what a metric is: it hands over the log-odds of every row after each round."""

    def __init__(self) -> None:
        self.margin: FloatArray = np.empty(0)

    def __deepcopy__(self, memo: Any) -> _Looking:
        return self  # CatBoost copies its parameters; what it tells the copy would be lost

    def is_max_optimal(self) -> bool:
        return True

    def get_final_error(self, error: float, weight: float) -> float:
        return error

    def evaluate(self, approxes: Any, target: Any, weight: Any) -> tuple[float, float]:
        if len(target) and target[0] == _NOBODY_KNOWS:
            self.margin = np.array(approxes[0], dtype=np.float64)
        return 0.0, 1.0


class _Turns:
    """Lets the thread of a fit go on for so many rounds at a time.

    CatBoost fits in one call. It asks after each round whether to go on; that question is answered when somebody wants
    the next round, so that the folds of a candidate grow in step like those of every other learner.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.allowed, self.done, self.stopping, self.ended = 0, 0, False, False

    def after_iteration(self, info: Any) -> bool:
        """Called by CatBoost after each round: True lets it go on."""
        with self.changed:
            self.done = int(info.iteration)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.stopping or self.allowed > self.done)
            return not self.stopping

    def go(self, rounds: int) -> None:
        """Allow so many rounds in all, and wait until they are done or the fit has ended."""
        with self.changed:
            self.allowed = max(self.allowed, rounds)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.ended or self.done >= self.allowed)

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.ended = True
            self.changed.notify_all()


class GrowingSymmetricTrees:
    """Trees of CatBoost. Source: Prokhorenkova et al., NeurIPS 2018. Weights and settings as `fit` takes them."""

    def __init__(self, task: FitTask, params: Mapping[str, Any], watched: Watched | None = None) -> None:
        check_params("catboost", params, _KNOWN)
        settings = catboost_defaults(task.rows) | dict(params)
        most, self.patience = int(settings.pop("rounds")), int(settings.pop("patience"))
        self.most, (self.step, self.least) = task.rounds or most, pace(float(settings["learning_rate"]))
        self.threads = threads_of_a_fit(len(task.rows), task.threads)
        self.levels = tuple(
            len(feature.categories) if feature.kind == "categorical" else 0 for feature in task.rows.schema.features
        )
        self._looking = None if watched is None else _Looking()
        options: dict[str, Any] = {
            **settings,
            "iterations": self.most,
            "loss_function": "CrossEntropy",
            "random_seed": task.seed,
            "thread_count": self.threads,
            "allow_writing_files": False,
            "logging_level": "Silent",
            "boosting_type": "Plain",
        }
        if self._looking is not None:
            options["eval_metric"] = self._looking
        self._turns, self._failure = _Turns(), list[Exception]()
        self._fit = _Fit(options, task, self.levels, watched)
        self._thread = threading.Thread(target=self._work(), name="rareclass-catboost", daemon=True)
        weakref.finalize(self, self._turns.stop)  # a fit that nobody asks to go on ends, and lets go of its rows

    def _work(self) -> Callable[[], None]:
        fit, turns, failure = self._fit, self._turns, self._failure

        def work() -> None:
            try:
                fit.run(turns)
            except Exception as error:  # told to whoever waits for the next round
                failure.append(error)
            finally:
                turns.end()

        return work

    def grow(self, rounds: int | None = None) -> None:
        """Let the fit go on for ``rounds`` more trees, by default one step of them. Raises what the fit raised."""
        if not self._thread.is_alive() and not self._turns.ended:
            self._thread.start()
        self._turns.go(min(self.most, self._turns.done + (rounds or self.step)))
        if self._failure:
            raise self._failure[0]

    @property
    def done(self) -> int:
        """Rounds fitted so far."""
        return self._turns.done

    def log_odds(self) -> FloatArray:
        """Return (n,) log-odds of the watched rows."""
        assert self._looking is not None
        return self._looking.margin.copy()

    def fitted(self, rounds: int) -> CatTrees:
        """Return the learner of the first ``rounds`` trees."""
        self._turns.stop()
        self._thread.join()
        trees = self._fit.trees
        if trees.tree_count_ > rounds:
            trees.shrink(rounds)
        return CatTrees("catboost", rounds=rounds, trees=trees, levels=self.levels, threads=self.threads)


class _Fit:
    """A fit that is ready to be made: it holds its rows until it has ended."""

    def __init__(
        self, options: dict[str, Any], task: FitTask, levels: tuple[int, ...], watched: Watched | None
    ) -> None:
        from catboost import CatBoost, Pool

        self.trees = CatBoost(options)
        self._train: Any = Pool(catboost_rows(task.rows.x, levels), label=task.rows.y, weight=task.weight)
        self._watched: Any = None
        if watched is not None:
            unknown_labels = np.full(len(watched), _NOBODY_KNOWS)
            self._watched = Pool(catboost_rows(watched.x[watched.index], levels), label=unknown_labels)

    def run(self, turns: _Turns) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a metric is faster with numba
            self.trees.fit(self._train, eval_set=self._watched, callbacks=[turns], use_best_model=False)
        self._train = self._watched = None


def fit_catboost(task: FitTask, params: Mapping[str, Any]) -> CatTrees:
    """Trees of a fixed number of rounds."""
    growing = GrowingSymmetricTrees(task, params)
    grow_whole(growing, task)
    return growing.fitted(growing.most)
