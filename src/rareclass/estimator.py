"""The training recipe as a scikit-learn estimator, for people who live in notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from rareclass import _features
from rareclass import config as settings
from rareclass.core.candidates import Candidate, with_unique_names
from rareclass.core.dataset import Rows, Schema, encode, infer_schema
from rareclass.core.hashing import content_groups, text_hash
from rareclass.errors import RareclassError
from rareclass.frames import as_pandas

_TIE = 0.05  # rows decided otherwise, per positive, up to which two thresholds are taken as equally good


class RareClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifier for a rare class: candidates compared out of fold, calibrated probabilities, tuned threshold.

    ``fit`` plans candidates as `rareclass run` does, fits each on stratified folds, keeps the first unless another (or
    their ensemble) is significantly better in average precision, calibrates, tunes the threshold, all on scores of rows
    not seen, and refits on all rows. Of a run it leaves out time (splits in order, label delay), amounts, the
    hyper-parameter search and its budget in seconds, repeated folds where positives are few, the test rows with the
    gate, and the registry. Missing values are welcome; in a DataFrame, text and category columns are used as
    categories.

    Parameters
    ----------
    candidates : str or sequence of str, default="auto"
        "auto" is the plan of a run, or names of learners like ``("xgboost", "extra_trees")``: these alone are tried,
        and the first wins ties.
    resample : str, mapping or sequence of these, default=None
        Resampling of training rows: a name like ``"smote"``, a step like ``{"name": "random_under", "ratio": 5}``, or a
        chain of them, as in the configuration. Named candidates all have it. Of the plan, the first candidate stays
        untouched, as in a run, so that resampling has to prove itself; candidates that resample already keep their own.
    weighting : str, default="none"
        Weighting of training rows: none, balanced, sqrt_balanced or cost; on the same candidates as ``resample``,
        except for learners of the plan that take no weights.
    max_candidates : int or None, default=4
        Candidates of the plan that are fitted, the most promising; None is all. Named ones are all fitted.
    objective : str, default="f1"
        What the threshold is tuned for: f1, f2, fbeta, mcc, cost, recall_at_precision or precision_at_recall.
    beta : float, default=1.0
        Beta of the objective "fbeta".
    min_precision : float, default=None
        Least precision at the threshold; the nearest threshold is taken when it cannot be met.
    min_recall : float, default=None
        Least recall at the threshold; likewise.
    cost_false_negative : float, default=None
        Cost of a miss, for the objective and the weighting "cost".
    cost_false_positive : float, default=None
        Cost of a false alarm; likewise.
    ensemble : str, default="auto"
        auto, none, voting, weighted or stacking.
    calibration : str, default="auto"
        auto, none, isotonic, platt or beta.
    folds : int, default=5
        Folds of cross-fitting; fewer where fewer rows are positive.
    positive : object, default=None
        Label of the rare class; None is the class with fewer rows (not counting those of weight 0).
    random_state : int, default=0
        The same one gives the same model.
    n_jobs : int, default=None
        Threads; None is 1, -1 all processors.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
        Sorted labels.
    positive_ : object
        The rare one of them.
    n_features_in_ : int
        Columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, where X had names that are all texts.
    plan_ : tuple of rareclass.core.candidates.Candidate
        The candidates that were fitted, each with its reason.
    selection_ : rareclass.core.selection.Selection
        The comparison of candidates.
    calibration_ : rareclass.core.calibration.Calibration
        The calibrator and what it was chosen from.
    tuned_ : rareclass.core.thresholds.TunedThreshold
        The threshold with intervals, and what is reachable when the constraints are not met.
    threshold_ : float
        Cut-off on the probability of the rare class: 1/2 where that decides nearly the same as the tuned one.
    model_ : rareclass.core.model.RareModel
        The fitted model.
    """

    def __init__(
        self,
        candidates: str | Sequence[str] = "auto",
        *,
        resample: Any = None,
        weighting: str = "none",
        max_candidates: int | None = 4,
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
        self.resample = resample
        self.weighting = weighting
        self.max_candidates = max_candidates
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

    def fit(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> RareClassifier:
        """Fit on rows of two classes.

        Both ``sample_weight`` and ``groups`` can be asked for with ``set_fit_request`` where metadata routing is
        enabled.

        Parameters
        ----------
        X : array-like or table of shape (n, n_features)
            Features: an array, or a table of pandas, polars, Arrow or another library that narwhals knows. Rows that
            are equal in every one of them stay on one side of a fold, as in a run.
        y : array-like of shape (n,)
            Labels of two classes.
        sample_weight : array-like of shape (n,), default=None
            How much a row counts, for learners, selection, calibration and threshold, like the inverse-propensity
            weight of a run. Rows of weight 0 are left out.
        groups : array-like of shape (n,), default=None
            Who a row belongs to (card, patient): rows of one group are never on both sides of a fold, and intervals
            draw them together.

        Returns
        -------
        RareClassifier
            The estimator itself.

        Raises
        ------
        ValueError
            For anything else than two classes, and for a recipe that does not exist or does not fit the rows.
        """
        from rareclass.core import calibration, selection, splitting, thresholds, training
        from rareclass.core.bootstrap import Bootstrap, Sample
        from rareclass.core.model import RareModel

        try:
            search, seed = self._search(), settings.parse_section("train", {"seed": _plain(self.random_state)}).seed
            threads = {None: 1, -1: None}.get(self.n_jobs, self.n_jobs)
            threads = settings.parse_section("compute", {"threads": threads}).processors()
            rows = self._rows(X, y, sample_weight, groups)
            keys = splitting.units(content_groups(rows.x), rows.entity)
            folds = splitting.stratified_folds(rows.y, keys, folds=self.folds, seed=self.random_state)
            self.plan_ = self._plan(rows, search, seed, threads)
            costs = self._costs(rows)
            effort = training.Effort(threads)
            trained = [
                training.train_candidate(each, rows, folds, seed=seed, costs=costs, effort=effort)
                for each in self.plan_
            ]
            rules = selection.SelectionRules(ensemble=search.ensemble)
            self.selection_ = selection.select(trained, rows, rules, seed=seed)
            held_out, known = self.selection_.oof[self.selection_.scored], rows.take(self.selection_.scored)
            sample = Sample(known.y, held_out, known.weight, known.block())
            self.calibration_ = calibration.fit(sample, method=self.calibration, seed=self.random_state)
            score = self.calibration_.calibrator(held_out)
            aim = thresholds.Aim(self.objective, self.beta, self.min_precision, self.min_recall)
            bootstrap = Bootstrap(seed=self.random_state)
            self.tuned_ = thresholds.tune(replace(sample, score=score), aim, costs=costs, bootstrap=bootstrap)
            learner = training.refit(trained, self.selection_.weights, rows, seed=seed, threads=threads)
        except RareclassError as error:
            raise ValueError(str(error)) from error
        self.threshold_ = self._threshold(score, known)
        self.model_ = RareModel(rows.schema, learner, self.calibration_.calibrator, {"default": self.threshold_})
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return calibrated probabilities.

        Parameters
        ----------
        X : array-like or table of shape (n, n_features)
            Features as in `fit`.

        Returns
        -------
        ndarray of shape (n, 2)
            Columns in the order of ``classes_``.
        """
        check_is_fitted(self)
        p = self.model_.score(_features.matrix(self, X, self._schema))
        both = np.column_stack([1 - p, p])
        return both if self.positive_ == self.classes_[1] else both[:, ::-1]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return labels: the rare class where its probability reaches ``threshold_``.

        Parameters
        ----------
        X : array-like or table of shape (n, n_features)
            Features as in `fit`.

        Returns
        -------
        ndarray of shape (n,)
            Labels as in `fit`.
        """
        p = self.predict_proba(X)[:, 1 if self.positive_ == self.classes_[1] else 0]
        other = self.classes_[0] if self.positive_ == self.classes_[1] else self.classes_[1]
        labels: NDArray[Any] = np.where(p >= self.threshold_, self.positive_, other)
        return labels.astype(self.classes_.dtype, copy=False)

    # --- what fit is made of ---

    def _rows(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None, groups: ArrayLike | None) -> Rows:
        X, y, sample_weight, groups = (as_pandas(each) for each in (X, y, sample_weight, groups))
        if _features.has_categories(X):
            frame = _features.named(self, X)
            labels = _labels(y, len(X))
        else:
            values, labels = validate_data(
                self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2
            )
            frame = _features.numeric(self, values)
        check_classification_targets(labels)
        if type_of_target(labels, input_name="y", raise_unknown=True) not in ("binary",):
            kind = type_of_target(labels)
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        weight = _weights(sample_weight, len(labels))
        entity = None if groups is None else _hashed(groups, len(labels))
        if weight is not None and not weight.all():  # nothing of these rows is looked at, not even their categories
            counted = weight > 0
            frame, labels, weight = frame[counted], labels[counted], weight[counted]
            entity = None if entity is None else entity[counted]
        self.classes_, coded, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            of_weight = "" if weight is None else " among rows of a weight above 0"
            raise ValueError(f"y has only one class{of_weight}, {self.classes_[0]!r}; two classes are needed.")
        self.positive_ = self._positive(counts)
        self._schema: Schema = infer_schema(frame)
        target = (self.classes_[coded.reshape(-1)] == self.positive_).astype(np.int64)
        keys = np.arange(len(target), dtype=np.uint64)
        x = _features.finite(encode(frame, self._schema))
        return Rows(self._schema, x, target, keys, entity=entity, weight=weight)

    def _positive(self, counts: NDArray[np.int64]) -> Any:
        if self.positive is None:
            return self.classes_[0] if counts[0] < counts[1] else self.classes_[1]
        if self.positive not in self.classes_:
            raise ValueError(f"positive={self.positive!r} is not a class of y: {self.classes_.tolist()}")
        return self.classes_[list(self.classes_).index(self.positive)]

    def _threshold(self, score: NDArray[np.float64], known: Rows) -> float:
        """One half, which everybody expects, where it decides all but a few held-out rows like the tuned threshold."""
        tuned = self.tuned_.value
        asked = self.min_precision is not None or self.min_recall is not None or self.objective == "cost"
        mass = np.ones(len(known)) if known.weight is None else known.weight
        otherwise = mass[(score >= tuned) != (score >= 0.5)].sum()
        return 0.5 if not asked and otherwise <= _TIE * mass[known.y == 1].sum() else tuned

    def _plan(self, rows: Rows, search: settings.SearchSettings, seed: int, threads: int) -> tuple[Candidate, ...]:
        """The named candidates; or those of a run, with what was asked for on all but the first."""
        from rareclass.core import diagnosis, planning

        if self.candidates != "auto":
            return with_unique_names(_checked(Candidate.from_spec(spec, "Named.")) for spec in search.candidates)
        limits, judging = settings.RegimeSettings(), settings.EvaluateSettings()
        found = diagnosis.diagnose(rows, limits, judging, seed=seed, threads=threads)
        first, *rest = planning.plan(found, search, rows.schema)
        if search.extra:
            rest = [_with(each, search.extra[0]) for each in rest]
        return with_unique_names([first, *rest])

    def _costs(self, rows: Rows) -> Any:
        from rareclass.core.costs import cost_arrays

        given = settings.CostsSettings(false_negative=self.cost_false_negative, false_positive=self.cost_false_positive)
        return cost_arrays(given, float(np.average(rows.y, weights=rows.weight)))

    def _search(self) -> settings.SearchSettings:
        """The parameters as the section of a configuration, which checks them."""
        if self.weighting == "amount":
            raise ValueError("weighting 'amount' needs data.amount of a run. Give the amounts as sample_weight instead")
        chain = [] if self.resample is None else self.resample
        chain = [chain] if isinstance(chain, str | Mapping | settings.ResampleStep) else list(chain)
        steps = [{"name": step} if isinstance(step, str) else step for step in chain]
        recipe = {"resample": steps, "weighting": self.weighting}
        search: dict[str, Any] = {"ensemble": self.ensemble}
        if self.candidates == "auto":
            # no clock: the number alone cuts the plan
            search |= {"seconds": 1e9} if self.max_candidates is None else {"trials": _plain(self.max_candidates)}
            search |= {"extra": [{"learner": "xgboost", **recipe}]} if steps or self.weighting != "none" else {}
        else:
            names = [self.candidates] if isinstance(self.candidates, str) else list(self.candidates)
            search["candidates"] = [{"learner": name, **recipe} for name in names]
        made: settings.SearchSettings = settings.parse_section("search", search)
        return made


def _plain(number: Any) -> Any:
    """A whole number of NumPy as one of Python; anything else as it is, to be refused."""
    return int(number) if isinstance(number, np.integer) else number


def _checked(candidate: Candidate) -> Candidate:
    from rareclass.core.planning import check_recipe

    check_recipe(candidate)
    return candidate


def _with(candidate: Candidate, asked: settings.CandidateSpec) -> Candidate:
    """The candidate with the resampling and the weighting asked for,
    unless it has its own or its learner takes none.
    """
    from rareclass.core.learners import LEARNERS

    changes: dict[str, Any] = {}
    if candidate.group == "none" and asked.resample:
        changes["resample"] = asked.resample
    if candidate.weighting == "none" and LEARNERS[candidate.learner].weighs:
        changes["weighting"] = asked.weighting
    return replace(candidate, **changes)


def _labels(y: ArrayLike, rows: int) -> NDArray[Any]:
    from sklearn.utils import check_consistent_length, column_or_1d

    labels = column_or_1d(y, warn=True)
    check_consistent_length(labels, np.empty(rows))
    return np.asarray(labels)


def _weights(sample_weight: ArrayLike | None, rows: int) -> NDArray[np.float64] | None:
    """Checked weights; None where all are 1, so that ones and nothing give the same model."""
    from sklearn.utils.validation import _check_sample_weight

    if sample_weight is None:
        return None
    weight = _check_sample_weight(sample_weight, np.empty(rows), dtype=np.float64, ensure_non_negative=True)
    return None if (weight == 1).all() else np.asarray(weight, dtype=np.float64)


def _hashed(groups: ArrayLike, rows: int) -> NDArray[np.uint64]:
    from sklearn.utils import check_consistent_length, column_or_1d

    named = column_or_1d(groups, dtype=None)
    check_consistent_length(named, np.empty(rows))
    return text_hash(pd.Series(named))
