"""Exact neighbour cleaning as imbalanced-learn samplers: the same rows as its own classes keep,
without quadratic work.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from imblearn.under_sampling.base import BaseCleaningSampler
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import _safe_indexing

from rareclass.core import neighbours
from rareclass.core.dataset import Feature, FloatMatrix, IntArray, Schema

__all__ = ["ExactEditedNearestNeighbours", "ExactTomekLinks"]

_DENSE_VALUES = 500_000_000
"""Values of a sparse table above which it is not made dense (2 GB of float32)."""


class _ExactCleaning(BaseCleaningSampler):  # type: ignore[misc]
    """What both samplers share: where neighbours are looked for, and which rows stay."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseCleaningSampler._parameter_constraints,
        "scale": ["boolean"],
        "n_jobs": [None, Integral],
    }

    def _space(self, X: Any) -> FloatMatrix:
        if sparse.issparse(X):
            if X.shape[0] * X.shape[1] > _DENSE_VALUES:
                raise ValueError(
                    f"a sparse table of {X.shape[0]:,} x {X.shape[1]:,} is too large to be made dense. "
                    "Reduce its columns first, for example with TruncatedSVD"
                )
            X = X.toarray()
        values = np.ascontiguousarray(X, dtype=np.float32)
        schema = Schema(tuple(Feature(f"x{column}") for column in range(values.shape[1])))
        return neighbours.distance_space(values, schema, scale=self.scale)

    def _without(self, X: Any, y: NDArray[Any], find: Callable[[Any], IntArray]) -> tuple[Any, NDArray[Any]]:
        """Drop, of every class that the strategy names, the rows that ``find`` returns."""
        kept = np.ones(len(y), dtype=bool)
        for label in self.sampling_strategy_:
            kept[find(label)] = False
        self.sample_indices_ = np.flatnonzero(kept)
        return _safe_indexing(X, self.sample_indices_), _safe_indexing(y, self.sample_indices_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.sampler_tags.sample_indices = True
        return tags


class ExactEditedNearestNeighbours(_ExactCleaning):
    """Drop rows that have a row of another class among their nearest (Edited Nearest Neighbours, ``kind_sel="all"``).

    Keeps exactly the rows that ``imblearn.under_sampling.EditedNearestNeighbours`` keeps where no distances tie.

    Parameters
    ----------
    sampling_strategy : str, list or callable, default="auto"
        Classes that are cleaned, as in imbalanced-learn: "auto" is every class but the smallest.

    n_neighbors : int, default=3
        Neighbours that all have to be of the row's own class.

    scale : bool, default=False
        Divide each column by its standard deviation before distances are taken.

    n_jobs : int, default=None
        Threads; None is one.

    Attributes
    ----------
    sampling_strategy_ : dict
        The classes that are cleaned.
    sample_indices_ : ndarray of shape (n_new_samples,)
        Positions of the rows that stayed.
    n_features_in_ : int
        Columns seen by ``fit_resample``.

    References
    ----------
    Wilson, "Asymptotic properties of nearest neighbor rules using edited data", IEEE Transactions on Systems, Man and
    Cybernetics, 1972.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **_ExactCleaning._parameter_constraints,
        "n_neighbors": [Integral],
    }

    def __init__(
        self, *, sampling_strategy: Any = "auto", n_neighbors: int = 3, scale: bool = False, n_jobs: int | None = None
    ) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.n_neighbors = n_neighbors
        self.scale = scale
        self.n_jobs = n_jobs

    def _fit_resample(self, X: Any, y: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        space = self._space(X)

        def find(label: Any) -> IntArray:
            own = (y == label).astype(np.int64)
            return neighbours.surrounded(space, own, 1, k=self.n_neighbors, threads=self.n_jobs or 1)

        return self._without(X, y, find)


class ExactTomekLinks(_ExactCleaning):
    """Drop rows that form a Tomek link: they and a row of another class are each other's nearest.

    Parameters
    ----------
    sampling_strategy : str, list or callable, default="auto"
        Classes that are cleaned, as in imbalanced-learn: "auto" is every class but the smallest.

    scale : bool, default=False
        Divide each column by its standard deviation before distances are taken.

    n_jobs : int, default=None
        Threads; None is one.

    Attributes
    ----------
    sampling_strategy_ : dict
        The classes that are cleaned.
    sample_indices_ : ndarray of shape (n_new_samples,)
        Positions of the rows that stayed.
    n_features_in_ : int
        Columns seen by ``fit_resample``.

    References
    ----------
    Tomek, "Two modifications of CNN", IEEE Transactions on Systems, Man and Cybernetics, 1976.
    """

    def __init__(self, *, sampling_strategy: Any = "auto", scale: bool = False, n_jobs: int | None = None) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.scale = scale
        self.n_jobs = n_jobs

    def _fit_resample(self, X: Any, y: NDArray[Any]) -> tuple[Any, NDArray[Any]]:
        space = self._space(X)

        def find(label: Any) -> IntArray:
            # a link between two other classes says nothing of this one: one class against the rest is enough
            return neighbours.tomek_links(space, (y == label).astype(np.int64), threads=self.n_jobs or 1)[1]

        return self._without(X, y, find)
