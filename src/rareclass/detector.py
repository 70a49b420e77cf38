"""Detection without labels as a scikit-learn estimator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from rareclass import _features
from rareclass.core.dataset import Rows, Schema, encode, infer_schema
from rareclass.errors import RareclassError
from rareclass.frames import as_pandas


class RareDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Detector for a class of which no row is known yet: what is usual is learned, and what is unusual is flagged.

    ``fit`` takes rows that are normal, or nearly all of them, fits a fixed ensemble of detectors and calibrates it to
    p-values on held-out rows (cross-conformal), so that as many normal rows are flagged as ``false_alarm_rate`` says.
    No label judges it. Missing values are welcome; in a DataFrame, text and category columns are used as categories.

    Parameters
    ----------
    members : str or sequence of str, default="auto"
        Names of DETECTORS; "auto" is the fixed ensemble of a run.
    false_alarm_rate : float, default=0.1
        Share of normal rows that ``predict`` flags.
    trimmed : float, default=0.0
        Share of the rows that may not be normal: the most unusual are left out and the rest is learned again.
    random_state : int, default=0
        The same one gives the same model.
    n_jobs : int, default=None
        Threads; None is 1.

    Attributes
    ----------
    n_features_in_ : int
        Columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, where X had names that are all texts.
    detection_ : rareclass.core.detection.Detection
        The fitted detectors; ``detection_.agreement`` is how far they say the same.
    conformal_ : rareclass.core.conformal.Conformal
        The map of scores to p-values; ``conformal_.finest`` is the smallest rate that the rows can tell.
    offset_ : float
        The p-value below which a row is flagged.
    """

    def __init__(
        self,
        members: str | Sequence[str] = "auto",
        *,
        false_alarm_rate: float = 0.1,
        trimmed: float = 0.0,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.members = members
        self.false_alarm_rate = false_alarm_rate
        self.trimmed = trimmed
        self.random_state = random_state
        self.n_jobs = n_jobs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None) -> RareDetector:
        """Fit on normal rows.

        Parameters
        ----------
        X : array-like or table of shape (n, n_features)
            Features of at least two rows.
        y : ignored
            Not looked at; there so that it fits into pipelines.

        Returns
        -------
        RareDetector
            The estimator itself.

        Raises
        ------
        ValueError
            For a detector that does not exist, a rate that is none, or too few rows.
        """
        from rareclass.core import detection

        if not 0 < self.false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate={self.false_alarm_rate!r} is not between 0 and 1.")
        frame = self._frame(X)
        self._schema: Schema = infer_schema(frame)
        x = _features.finite(encode(frame, self._schema))
        rows = Rows(self._schema, x, np.zeros(len(x), dtype=np.int64), np.arange(len(x), dtype=np.uint64))
        members = detection.MEMBERS if isinstance(self.members, str) and self.members == "auto" else self.members
        try:
            self.detection_, self.conformal_ = detection.fit_calibrated(
                rows,
                members=[members] if isinstance(members, str) else members,
                contamination=self.trimmed,
                seed=int(self.random_state),
                threads=self.n_jobs or 1,
            )
        except RareclassError as error:
            raise ValueError(str(error)) from error
        self.offset_ = float(self.false_alarm_rate)
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return p-values: the share of normal rows that are at least as unusual.

        Parameters
        ----------
        X : array-like or table of shape (n, n_features)
            Features as in `fit`.

        Returns
        -------
        ndarray of shape (n,)
            The lower, the more unusual.
        """
        check_is_fitted(self)
        return np.asarray(
            1 - self.conformal_(self.detection_.score(_features.matrix(self, X, self._schema))), dtype=np.float64
        )

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return p-values less ``offset_``.

        Parameters
        ----------
        X : array-like or table of shape (n, n_features)
            Features as in `fit`.

        Returns
        -------
        ndarray of shape (n,)
            Below 0 where a row is flagged.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Flag unusual rows.

        Parameters
        ----------
        X : array-like or table of shape (n, n_features)
            Features as in `fit`.

        Returns
        -------
        ndarray of shape (n,)
            -1 where a row is flagged, 1 where it is not.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _frame(self, X: Any) -> pd.DataFrame:
        X = as_pandas(X)
        if _features.has_categories(X):
            return _features.named(self, X)
        values = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2)
        return _features.numeric(self, values)
