from __future__ import annotations

import numpy as np
import pytest
from rows_for_learning import make_rows
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from rareclass.core import detection, detectors, portable
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.detectors import DETECTORS, REFERENCE_ROWS, Space, fit
from rareclass.core.fit_task import FitTask
from rareclass.core.fitted import Trees
from rareclass.core.preprocessing import Preparation
from rareclass.errors import ConfigError, DataError

NUMBERS = 4
TYPES = (*detection.FITTED, Preparation, Trees)
SCHEMA = Schema(tuple(Feature(f"x{i}") for i in range(NUMBERS)))


def rows_of(x, schema=SCHEMA):
    x = np.asarray(x, dtype=np.float32)
    return Rows(schema, x, np.zeros(len(x), dtype=np.int64), np.arange(len(x), dtype=np.uint64))


def normal(count, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(NUMBERS, NUMBERS))
    return rows_of(np.random.default_rng(seed + 1).normal(size=(count, NUMBERS)) @ mix)


TRAIN = normal(400)
MESSY = make_rows(500, category=True)  # with missing values and a category


@pytest.fixture(scope="module")
def fitted():
    return {name: fit(name, TRAIN, seed=3) for name in DETECTORS}


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_far_from_all_others_are_more_unusual_than_nearly_all_of_them(name, fitted):
    far = np.full((20, NUMBERS), 40.0, dtype=np.float32) * np.random.default_rng(1).choice([-1, 1], (20, NUMBERS))
    usual = fitted[name].score(normal(400).x)
    assert (fitted[name].score(far.astype(np.float32)) > np.quantile(usual, 0.99)).mean() > 0.9


@pytest.mark.parametrize("name", DETECTORS)
def test_missing_values_categories_and_levels_never_seen_are_scored(name):
    made = fit(name, MESSY, seed=1)
    x = MESSY.x[:50].copy()
    x[:20, 0] = np.nan
    x[20:30] = np.nan
    x[30:, MESSY.schema.categorical] = 99
    score = made.score(x)
    assert score.shape == (50,)
    assert score.dtype == np.float64
    assert np.isfinite(score).all()
    assert made.score(x[:0]).shape == (0,)


@pytest.mark.parametrize("name", DETECTORS)
def test_columns_without_any_difference_and_very_few_rows_are_no_fault(name):
    still = np.hstack([np.ones((60, 1)), np.full((60, 1), np.nan), np.zeros((60, 2))])
    for x in (still, np.arange(8.0).reshape(2, 4), np.arange(20.0).reshape(5, 4), np.full((40, 4), 1e30)):
        made = fit(name, rows_of(x), params={"trees": 10} if "trees" in DETECTORS[name].params else None)
        assert np.isfinite(made.score(np.vstack([x, np.full((1, 4), -3.0)]).astype(np.float32))).all()
    one = fit(name, rows_of(np.arange(30.0)[:, None], Schema((Feature("x"),))))
    assert one.score(np.array([[1e6]], np.float32)) > one.score(np.array([[15.0]], np.float32))


@pytest.mark.parametrize("name", DETECTORS)
def test_the_same_seed_gives_the_same_scores_and_labels_change_nothing(name, fitted):
    again = fit(name, Rows(SCHEMA, TRAIN.x, 1 - TRAIN.y, TRAIN.row_id), seed=3)
    assert np.array_equal(again.score(TRAIN.x), fitted[name].score(TRAIN.x))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_row_scores_the_same_alone_and_among_others(name, fitted):
    many = fitted[name].score(TRAIN.x)
    assert np.allclose([fitted[name].score(TRAIN.x[i : i + 1])[0] for i in range(5)], many[:5], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", DETECTORS)
def test_written_without_code_and_read_again_it_scores_the_same(name, fitted):
    files = portable.pack(fitted[name], TYPES)
    again = portable.unpack(files, TYPES)
    assert not [file for file in files if file.endswith("skops")]
    assert np.array_equal(again.score(TRAIN.x), fitted[name].score(TRAIN.x))


@pytest.mark.parametrize("name", ["ecod", "hbos", "knn", "isolation_forest", "mahalanobis"])
def test_a_million_rows_are_learned_from_a_part_of_them(name):
    x = np.random.default_rng(0).normal(size=(1_000_000, 2)).astype(np.float32)
    made = fit(
        name,
        rows_of(x, Schema((Feature("a"), Feature("b")))),
        params={"trees": 20} if "trees" in DETECTORS[name].params else None,
    )
    assert made.reference == (REFERENCE_ROWS if name == "knn" else detectors.SAMPLE_ROWS)
    assert made.score(np.array([[9, 9]], np.float32)) > made.score(x[:1000]).max()


def test_rows_that_are_not_normal_are_not_learned_as_normal_where_a_share_of_them_is_said():
    strange = np.random.default_rng(5).normal(0, 9, size=(40, NUMBERS)).astype(np.float32)
    spoilt, usual = rows_of(np.vstack([TRAIN.x, strange])), normal(200).x
    blind, told = fit("knn", spoilt, params={"k": 1}), fit("knn", spoilt, params={"k": 1}, contamination=0.1)
    assert told.reference == 396
    assert blind.reference == 440
    found = [(made.score(usual)[:, None] < made.score(strange)).mean() for made in (blind, told)]
    assert found[0] < found[1]
    assert found[1] > 0.98


def test_what_does_not_exist_is_refused_with_what_does():
    with pytest.raises(ConfigError, match="Did you mean 'knn'"):
        fit("kn", TRAIN)
    with pytest.raises(ConfigError, match="unknown knn parameter 'kk'"):
        fit("knn", TRAIN, params={"kk": 3})
    with pytest.raises(ConfigError, match="not a share"):
        fit("knn", TRAIN, contamination=0.5)
    with pytest.raises(DataError, match="at least 2 rows"):
        fit("knn", TRAIN.take(np.array([0])))


# --- each against a definition or a library ------------------------------------------------------------------------

Z, QUERY = Space.learn(TRAIN)(TRAIN.x), normal(60, seed=7).x


def space(x):
    return Space.learn(TRAIN)(x)


def test_ecod_is_the_sum_of_the_logarithms_of_the_thinner_tails(fitted):
    n = len(Z)
    for row, score in zip(space(QUERY), fitted["ecod"].score(QUERY), strict=True):
        tails = np.minimum((row >= Z).sum(axis=0), (row <= Z).sum(axis=0))
        assert np.isclose(score, -np.log((tails + 1) / (n + 1)).sum())


def test_hbos_is_the_sum_of_logarithms_of_bins(fitted):
    bins, expected = DETECTORS["hbos"].params["bins"], np.zeros(len(QUERY))
    for column, asked in zip(Z.T, space(QUERY).T, strict=True):
        count, edges = np.histogram(column.astype(np.float64), bins)
        for i, value in enumerate(asked):
            inside = [
                k for k in range(bins) if edges[k] <= value < edges[k + 1] or (k == bins - 1 and value == edges[-1])
            ]
            expected[i] -= np.log((count[inside[0]] / count.max() if inside else 0) + 1 / (len(Z) + 1))
    assert np.allclose(fitted["hbos"].score(QUERY), expected)


def test_knn_is_the_mean_distance_to_five_rows(fitted):
    assert np.allclose(
        fitted["knn"].score(QUERY), np.sort(cdist(space(QUERY), Z), axis=1)[:, :5].mean(axis=1), rtol=1e-5
    )


def test_dte_is_the_posterior_mean_of_the_variance_integrated_on_a_grid(fitted):
    square = np.sort(cdist(space(QUERY[:10]), Z), axis=1)[:, :5] ** 2
    v, near = np.exp(np.linspace(-14, 10, 60_001)), fitted["dte"].near
    for row, score in zip(square, fitted["dte"].score(QUERY[:10]), strict=True):
        density = sum(v ** (-NUMBERS / 2 - 3) * np.exp(-(near + d / 2) / v) for d in row)
        assert np.isclose(np.trapezoid(density * v, v) / np.trapezoid(density, v), score, rtol=1e-3)


def test_lof_is_that_of_scikit_learn(fitted):
    theirs = LocalOutlierFactor(n_neighbors=20, novelty=True).fit(Z)
    assert np.allclose(fitted["lof"].score(QUERY), -theirs.score_samples(space(QUERY)), rtol=1e-4)


def test_the_isolation_forest_is_that_of_scikit_learn(fitted):
    theirs = IsolationForest(n_estimators=200, max_samples=256, random_state=3).fit(Z)
    assert np.allclose(fitted["isolation_forest"].score(QUERY), -theirs.score_samples(space(QUERY)), rtol=1e-6)


def test_the_one_class_svm_is_that_of_scikit_learn_and_its_approximation_ranks_alike(fitted):
    z = Z.astype(np.float64)
    theirs = OneClassSVM(gamma=1 / z.var(axis=0).sum(), nu=0.1).fit(z)
    ours = fitted["ocsvm"].score(QUERY)
    assert np.allclose(ours, -theirs.score_samples(space(QUERY).astype(np.float64)), rtol=1e-4)
    many = normal(5_001)
    near, exact = fit("ocsvm", many).score(QUERY), fit("ocsvm", many.take(np.arange(5_000))).score(QUERY)
    assert np.corrcoef(np.argsort(np.argsort(near)), np.argsort(np.argsort(exact)))[0, 1] > 0.9


def test_mahalanobis_of_all_rows_is_that_of_the_shrunk_covariance():
    theirs = LedoitWolf().fit(Z.astype(np.float64))
    ours = fit("mahalanobis", TRAIN, params={"support": 1.0}).score(QUERY)
    assert np.allclose(ours, theirs.mahalanobis(space(QUERY).astype(np.float64)), rtol=1e-4)


def test_the_mixture_is_a_density_of_scikit_learn(fitted):
    z = Z.astype(np.float64)
    best = min(
        (GaussianMixture(parts, reg_covar=1e-3, max_iter=50, random_state=3).fit(z) for parts in (1, 2, 4)),
        key=lambda made: made.bic(z),
    )
    ours = fitted["gmm"].score(QUERY) - NUMBERS / 2 * np.log(2 * np.pi) * -1
    assert np.allclose(ours, -best.score_samples(space(QUERY).astype(np.float64)), rtol=1e-5)


def test_an_autoencoder_unfolds_what_lies_on_a_line_and_not_what_lies_beside_it():
    t = np.random.default_rng(0).uniform(-1, 1, 1500)
    line = np.stack([t, 2 * t, -t, t / 2], axis=1)
    made = fit("autoencoder", rows_of(line), seed=1)
    beside = line[:200] * np.array([1, -1, 1, 1])
    beside = beside[np.abs(t[:200]) > 0.5]
    assert np.median(made.score(beside.astype(np.float32))) > 5 * np.median(made.score(line[:200].astype(np.float32)))


def test_deep_svdd_draws_rows_nearer_to_its_centre_by_training():
    before, after = (
        fit("deep_svdd", TRAIN, params={"steps": steps}, seed=2).score(TRAIN.x).mean() for steps in (0, 1_000)
    )
    assert after < before / 2


# --- several together ----------------------------------------------------------------------------------------------


def test_the_default_ensemble_says_how_far_its_members_agree():
    made = detection.fit(TRAIN, seed=1)
    assert [each.fitted.detector for each in made.members] == list(detection.MEMBERS)
    assert len(made.agreement.correlation) == 3
    assert made.agreement.rows == 400
    assert all(-1 <= value <= 1 for value in made.agreement.correlation.values())
    assert "correlate" in made.agreement.line()
    alone = detection.fit(TRAIN, members=["knn"])
    assert alone.agreement.line() == "one detector alone: nothing to agree with"


def test_the_ensemble_scores_are_the_mean_of_what_its_members_find_surprising():
    made = detection.fit(TRAIN, seed=1)
    score = made.score(QUERY)
    parts = np.stack([m.surprise(m.fitted.score(QUERY)) for m in made.members])
    assert np.allclose(-np.log1p(-score), parts.mean(axis=0))
    assert ((score >= 0) & (score < 1)).all()
    far = made.score(np.array([[50.0] * 4, [500.0] * 4, [5000.0] * 4], np.float32))
    assert far[0] < far[1] < far[2] < 1


def test_a_surprise_of_k_in_n_rows_is_their_logarithm():
    learned = detection.Surprise.learn(np.arange(99.0))
    assert np.allclose(learned(np.array([98.0, 89.0, 0.0])), -np.log([1 / 100, 10 / 100, 99 / 100]))
    assert learned(np.array([1e9]))[0] > learned(np.array([200.0]))[0] > -np.log(1 / 100)


@pytest.mark.parametrize("n", [200, 900])
def test_rows_drawn_in_proportion_to_weights_are_no_measure_of_their_own_copies(n):
    weight = np.random.default_rng(0).lognormal(sigma=1.5, size=n)  # of rows drawn by these, every second is a copy
    rows = normal(2_900)
    made = detection.fit_detectors(FitTask(rows.take(np.arange(n)), weight), {"members": ["knn"]})
    (member,) = made.members
    surprise = member.surprise(member.fitted.score(rows.x[n:]))
    assert 0.7 < surprise.mean() < 1.3, "minus the logarithm of what is spread evenly over 0 to 1 is 1"


def test_known_positives_are_not_learned_as_normal():
    rng = np.random.default_rng(0)
    x = np.vstack([normal(300).x, rng.normal(8, 0.1, size=(60, NUMBERS))]).astype(np.float32)
    y = np.repeat([0, 1], [300, 60])
    rows = Rows(SCHEMA, x, y, np.arange(len(x), dtype=np.uint64))
    blind, told = detection.fit(rows, members=["knn"]), detection.fit_detectors(FitTask(rows), {"members": ["knn"]})
    assert told.score(x[y == 1]).mean() > blind.score(x[y == 1]).mean()


def test_an_ensemble_is_written_without_code_and_read_again():
    made = detection.fit(MESSY.take(np.arange(100)), members=["ecod", "lof", "isolation_forest"], seed=2)
    again = portable.unpack(portable.pack(made, TYPES), TYPES)
    assert np.array_equal(again.score(MESSY.x), made.score(MESSY.x))
    assert again.agreement == made.agreement
