"""The training recipe as a scikit-learn estimator, for people who live in notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from rareclass import config as settings
from rareclass.core.candidates import Candidate
from rareclass.core.dataset import FloatMatrix, Rows, Schema, encode, infer_schema
from rareclass.core.hashing import content_groups, text_hash

_SMALL, _LARGE = 1_000, 200_000
_TIE = 0.05  # rows decided otherwise, per positive, up to which two thresholds are taken as equally good


class RareClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier for a rare class: candidates compared out of fold, calibrated probabilities, tuned threshold.

    ``fit`` fits each candidate on stratified folds, keeps the first unless another (or their ensemble) is significantly
    better in average precision, calibrates, tunes the threshold, all on scores of rows not seen, and refits on all rows.
    Of a run it leaves out the plan of candidates, resampling, weighting, the hyper-parameter search, time and the gate, and it
    takes no ``sample_weight``.
    Missing values are welcome; in a DataFrame, text and category columns are used as categories.

    Parameters
    ----------
    candidates : "auto", or names of learners like ("xgboost", "extra_trees"); the first wins ties
    objective : what the threshold is tuned for: f1, f2, fbeta, mcc, cost, recall_at_precision, precision_at_recall
    beta : beta of fbeta
    min_precision, min_recall : constraints on the threshold; the nearest threshold is taken when they cannot be met
    cost_false_negative, cost_false_positive : costs of mistakes, for the objective "cost"
    ensemble : auto, none, voting, weighted or stacking
    calibration : auto, none, isotonic, platt or beta
    folds : folds of cross-fitting; fewer where fewer rows are positive
    positive : label of the rare class; default: the class with fewer rows
    random_state : whole number; the same one gives the same model
    n_jobs : threads; None is 1

    Attributes
    ----------
    classes_ : (2,) sorted labels · positive_ : the rare one · threshold_ : cut-off on its probability
        (1/2 where that decides nearly the same as the tuned one)
    selection_ : the comparison of candidates · calibration_ : the calibrator and what it was chosen from
    tuned_ : the threshold with intervals, and what is reachable when the constraints are not met
    model_ : the fitted `rareclass.core.model.RareModel`
    """

    def __init__(
        self,
        candidates: str | Sequence[str] = "auto",
        *,
        objective: str = "f1",
        beta: float = 1.0,
        min_precision: float | None = None,
        min_recall: float | None = None,
        cost_false_negative: float | None = None,
        cost_false_positive: float | None = None,
        ensemble: str = "auto",
        calibration: str = "auto",
        folds: int = 5,
        positive: Any = None,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.candidates = candidates
        self.objective = objective
        self.beta = beta
        self.min_precision = min_precision
        self.min_recall = min_recall
        self.cost_false_negative = cost_false_negative
        self.cost_false_positive = cost_false_positive
        self.ensemble = ensemble
        self.calibration = calibration
        self.folds = folds
        self.positive = positive
        self.random_state = random_state
        self.n_jobs = n_jobs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: ArrayLike, groups: ArrayLike | None = None) -> RareClassifier:
        """Fit on X (n, n_features), array or DataFrame, and y (n,) of two classes. Raises ValueError for anything else.

        groups : (n,) who a row belongs to (card, patient): rows of one group are never on both sides of a fold, and
            intervals draw them together. Rows that are equal in every feature stay together, too, as in a run.
        """
        from rareclass.core import calibration, selection, splitting, thresholds, training
        from rareclass.core.model import RareModel
        from rareclass.errors import RareclassError

        try:
            rows = self._rows(X, y)
            if groups is not None:
                rows = replace(rows, entity=_hashed(groups, len(rows)))
            keys = splitting.units(content_groups(rows.x), rows.entity)
            folds = splitting.stratified_folds(rows.y, keys, folds=self.folds, seed=self.random_state)
            plan = self._plan(len(rows))
            costs = self._costs(rows)
            options: dict[str, Any] = {"seed": self.random_state, "threads": self.n_jobs or 1}
            trained = [training.train_candidate(each, rows, folds, costs=costs, **options) for each in plan]
            self.selection_ = selection.select(trained, rows, config=self._config(), seed=self.random_state)
            held_out, truth = self.selection_.oof[self.selection_.scored], rows.y[self.selection_.scored]
            block = rows.take(self.selection_.scored).block()
            self.calibration_ = calibration.fit(
                truth, held_out, method=self.calibration, block=block, seed=self.random_state
            )
            self.tuned_ = thresholds.tune(
                truth, self.calibration_.calibrator(held_out), objective=self.objective, beta=self.beta,
                min_precision=self.min_precision, min_recall=self.min_recall, costs=costs, block=block, seed=self.random_state,
            )  # fmt: skip
            learner = training.refit(trained, self.selection_.weights, rows, **options)
        except RareclassError as error:
            raise ValueError(str(error)) from error
        self.threshold_ = self._threshold(self.calibration_.calibrator(held_out), int(truth.sum()))
        self.model_ = RareModel(rows.schema, learner, self.calibration_.calibrator, {"default": self.threshold_})
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return (n, 2) calibrated probabilities, columns in the order of ``classes_``."""
        check_is_fitted(self)
        p = self.model_.score(self._matrix(X))
        both = np.column_stack([1 - p, p])
        return both if self.positive_ == self.classes_[1] else both[:, ::-1]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return (n,) labels: the rare class where its probability reaches ``threshold_``."""
        p = self.predict_proba(X)[:, 1 if self.positive_ == self.classes_[1] else 0]
        other = self.classes_[0] if self.positive_ == self.classes_[1] else self.classes_[1]
        return np.where(p >= self.threshold_, self.positive_, other).astype(self.classes_.dtype, copy=False)

    # --- what fit is made of ---

    def _rows(self, X: Any, y: ArrayLike) -> Rows:
        if isinstance(X, pd.DataFrame) and not all(pd.api.types.is_numeric_dtype(kind) for kind in X.dtypes):
            validate_data(self, X, skip_check_array=True)
            labels = _labels(y, len(X))
            frame = X.set_axis([str(name) for name in X.columns], axis=1)
        else:
            values, labels = validate_data(
                self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2
            )
            names = getattr(self, "feature_names_in_", [f"x{i}" for i in range(values.shape[1])])
            frame = pd.DataFrame(values, columns=[str(name) for name in names])
        check_classification_targets(labels)
        if type_of_target(labels, input_name="y", raise_unknown=True) not in ("binary",):
            kind = type_of_target(labels)
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        self.classes_, coded, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has only one class, {self.classes_[0]!r}; two classes are needed.")
        self.positive_ = self._positive(counts)
        self._schema: Schema = infer_schema(frame)
        target = (self.classes_[coded.reshape(-1)] == self.positive_).astype(np.int64)
        keys = np.arange(len(target), dtype=np.uint64)
        return Rows(self._schema, _finite(encode(frame, self._schema)), target, keys)

    def _positive(self, counts: NDArray[np.int64]) -> Any:
        if self.positive is None:
            return self.classes_[0] if counts[0] < counts[1] else self.classes_[1]
        if self.positive not in self.classes_:
            raise ValueError(f"positive={self.positive!r} is not a class of y: {self.classes_.tolist()}")
        return self.classes_[list(self.classes_).index(self.positive)]

    def _matrix(self, X: Any) -> FloatMatrix:
        if isinstance(X, pd.DataFrame) and self._schema.categorical.any():
            validate_data(self, X, skip_check_array=True, reset=False)
            return encode(X.set_axis([str(name) for name in X.columns], axis=1), self._schema)
        values = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        return _finite(values.astype(np.float32))

    def _threshold(self, score: NDArray[np.float64], positives: int) -> float:
        """One half, which everybody expects, where it decides all but a few held-out rows like the tuned threshold."""
        tuned = self.tuned_.value
        asked = self.min_precision is not None or self.min_recall is not None or self.objective == "cost"
        otherwise = np.count_nonzero((score >= tuned) != (score >= 0.5))
        return 0.5 if not asked and otherwise <= _TIE * positives else tuned

    def _plan(self, rows: int) -> list[Candidate]:
        if self.candidates != "auto":
            names = [self.candidates] if isinstance(self.candidates, str) else list(self.candidates)
            return [Candidate(name, name) for name in names]
        plan = [Candidate("xgboost", "xgboost"), Candidate("logistic_regression", "logistic_regression")]
        if rows >= _SMALL:
            plan.append(Candidate("xgboost-shallow", "xgboost", {"max_depth": 3}))
        if _SMALL <= rows < _LARGE:
            plan.append(Candidate("extra_trees", "extra_trees"))
        return plan

    def _costs(self, rows: Rows) -> Any:
        from rareclass.core.costs import cost_arrays

        given = settings.Costs(false_negative=self.cost_false_negative, false_positive=self.cost_false_positive)
        return cost_arrays(given, rows.prevalence)

    def _config(self) -> settings.Config:
        return settings.parse(
            {"name": "rareclassifier", "data": {"path": "memory", "target": "y"}, "search": {"ensemble": self.ensemble}}
        )


def _labels(y: ArrayLike, rows: int) -> NDArray[Any]:
    from sklearn.utils import check_consistent_length, column_or_1d

    labels = column_or_1d(y, warn=True)
    check_consistent_length(labels, np.empty(rows))
    return np.asarray(labels)


def _hashed(groups: ArrayLike, rows: int) -> NDArray[np.uint64]:
    from sklearn.utils import check_consistent_length, column_or_1d

    named = column_or_1d(groups, dtype=None)
    check_consistent_length(named, np.empty(rows))
    return text_hash(pd.Series(named))


def _finite(x: FloatMatrix) -> FloatMatrix:
    """Values beyond float32 become its largest, so that no finite input turns into an infinity."""
    limit = np.finfo(np.float32).max
    return np.clip(x, -limit, limit)
