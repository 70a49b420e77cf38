"""The exact samplers obey imbalanced-learn's contract and keep the rows that its own classes keep."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from imblearn.under_sampling import EditedNearestNeighbours, TomekLinks
from imblearn.utils.estimator_checks import parametrize_with_checks
from scipy import sparse
from sklearn.datasets import make_classification

from rareclass import ExactEditedNearestNeighbours, ExactTomekLinks

PAIRS = [
    (ExactEditedNearestNeighbours(), EditedNearestNeighbours()),
    (ExactEditedNearestNeighbours(n_neighbors=5, n_jobs=2), EditedNearestNeighbours(n_neighbors=5)),
    (ExactEditedNearestNeighbours(sampling_strategy="all"), EditedNearestNeighbours(sampling_strategy="all")),
    (ExactTomekLinks(), TomekLinks()),
    (ExactTomekLinks(sampling_strategy="all"), TomekLinks(sampling_strategy="all")),
]


@parametrize_with_checks([ExactEditedNearestNeighbours(), ExactTomekLinks()])
def test_the_contract_of_imbalanced_learn_holds(estimator: Any, check: Any) -> None:
    check(estimator)


def table(classes: int, rows: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_classification(
        rows,
        6,
        n_informative=4,
        n_classes=classes,
        weights=[0.8, *[0.2 / (classes - 1)] * (classes - 1)],
        n_clusters_per_class=1,
        class_sep=0.6,
        random_state=classes,
    )
    return x.astype(np.float32), y


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda each: repr(each)[:60])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_same_rows_stay(ours: Any, theirs: Any, classes: int) -> None:
    x, y = table(classes)
    theirs.fit_resample(x, y)
    kept_x, kept_y = ours.fit_resample(x, y)
    assert np.array_equal(ours.sample_indices_, np.sort(theirs.sample_indices_))
    assert np.array_equal(kept_x, x[ours.sample_indices_])
    assert np.array_equal(kept_y, y[ours.sample_indices_])
    assert 0 < len(kept_y) < len(y)


def test_a_sparse_table_stays_sparse_and_keeps_the_same_rows() -> None:
    x, y = table(2, 500)
    ours = ExactTomekLinks()
    kept, _ = ours.fit_resample(sparse.csr_matrix(x), y)
    dense = ExactTomekLinks()
    dense.fit_resample(x, y)
    assert sparse.issparse(kept)
    assert np.array_equal(ours.sample_indices_, dense.sample_indices_)
