"""Calibrators rise strictly, put probabilities right, and are chosen by cross-fitted log loss."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import average_precision_score
from sklearn.metrics import log_loss as sk_log_loss

from rareclass.core import calibration
from rareclass.core.bootstrap import Sample
from rareclass.core.calibration import METHODS, fit, from_json, label_shift_em, prior_correction
from rareclass.core.log_odds import OPEN, logit
from rareclass.errors import ConfigError, DataError, ModelError, NoPositivesError


def world(n=20_000, seed=0, prevalence=0.03):
    """Labels drawn from known probabilities."""
    rng = np.random.default_rng(seed)
    p = expit(rng.normal(np.log(prevalence) - 1, 1.8, n))
    return (rng.random(n) < p).astype(int), p


@st.composite
def messy(draw):
    """Few rows, ties, exact zeros and ones, scores squeezed to one end."""
    n = draw(st.integers(12, 60))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    score = rng.random(n).astype(np.float32) ** draw(st.sampled_from([0.2, 1, 6, 20]))
    if draw(st.booleans()):
        score = np.round(score, 1)
    y = (rng.random(n) < draw(st.sampled_from([0.05, 0.3]))).astype(int)
    y[0] = 1
    return y, score.astype(np.float64)


@pytest.mark.parametrize("method", list(METHODS))
@given(case=messy(), kept=st.sampled_from([1.0, 0.01, 0.3, 40.0]))
@settings(max_examples=25, deadline=None)
def test_every_calibrator_rises_strictly_over_all_single_precision_scores(method, case, kept):
    y, score = case
    calibrated = fit(Sample(y, score), method=method, negative_sampling_rate=kept)
    rng = np.random.default_rng(0)
    grid = np.unique(np.concatenate([score, rng.random(100), rng.random(100) ** 12]).astype(np.float32))
    grid = grid[(grid == 0) | (grid > 1e-30)]
    close = np.nextafter(grid[:-1], np.float32(1))
    every = np.unique(np.concatenate([grid, close])).astype(np.float64)
    mapped = calibrated(every)
    assert (np.diff(mapped) > 0).all()
    assert mapped.min() > 0
    assert mapped.max() < 1


@pytest.mark.parametrize("method", list(METHODS))
def test_calibration_never_changes_average_precision(method):
    y, p = world()
    score = (p**0.5).astype(np.float32).astype(np.float64)
    assert average_precision_score(y, fit(Sample(y, score), method=method)(score)) == average_precision_score(y, score)


@pytest.mark.parametrize("method", ["platt", "beta", "isotonic"])
@pytest.mark.parametrize("distort", [lambda p: p**0.5, lambda p: p**2, lambda p: expit(3 * logit(p, within=OPEN) + 4)])
def test_distorted_scores_come_back_to_the_truth(method, distort):
    y, p = world(60_000)
    calibrated = fit(Sample(y, distort(p)), method=method)(distort(p))
    assert calibrated.mean() / y.mean() == pytest.approx(1, abs=0.01)
    assert sk_log_loss(y, calibrated) <= sk_log_loss(y, p) * 1.02


@pytest.mark.parametrize("method", list(METHODS))
def test_a_calibrator_survives_its_json(method):
    y, p = world(3000)
    found = fit(Sample(y, p), method=method, negative_sampling_rate=0.2)
    again = from_json(json.loads(json.dumps(found.calibrator.to_json())))
    assert again == found.calibrator
    np.testing.assert_array_equal(again(p), found(p))
    json.dumps(found.to_json(), allow_nan=False)


def test_an_unknown_calibrator_in_a_model_is_refused():
    with pytest.raises(ModelError, match="spline"):
        from_json({"kind": "spline"})


@given(st.floats(1e-6, 1 - 1e-6), st.floats(1e-3, 10))
def test_prior_correction_is_the_published_formula(score, kept):
    assert prior_correction([score], kept)[0] == pytest.approx(kept * score / (kept * score - score + 1), rel=1e-9)


def test_prior_correction_undoes_random_under_sampling():
    y, p = world(60_000)
    kept = 0.1
    biased = p / (p + kept * (1 - p))  # the posterior among rows of which a tenth of the negatives is left
    np.testing.assert_allclose(prior_correction(biased, kept), p)
    assert fit(Sample(y, biased), negative_sampling_rate=kept).chosen == "none"
    assert fit(Sample(y, biased), negative_sampling_rate=kept)(biased).mean() == pytest.approx(y.mean(), rel=0.05)


def test_a_factor_that_is_not_known_is_learnt_by_the_calibrator():
    y, p = world(60_000)
    biased = p / (p + 0.05 * (1 - p))
    found = fit(Sample(y, biased), negative_sampling_rate=float("nan"))
    assert found.chosen != "none"
    assert found(biased).mean() / y.mean() == pytest.approx(1, abs=0.01)
    assert found.to_json()["negative_sampling_rate"] is None


def test_scores_that_are_calibrated_already_are_left_alone():
    y, p = world(40_000)
    found = fit(Sample(y, p))
    assert found.chosen == "none"
    np.testing.assert_array_equal(found(p), p)


def test_the_table_holds_cross_fitted_losses_and_the_best_is_chosen():
    y, p = world(40_000)
    found = fit(Sample(y, p**0.5))
    assert set(found.table) == set(METHODS)
    assert found.table[found.chosen] <= min(found.table.values()) * 1.0005
    assert found.table["none"] == pytest.approx(sk_log_loss(y, p**0.5))


def test_few_positives_try_only_maps_of_two_parameters():
    y, p = world(400)
    y[:] = 0
    y[np.argsort(-p)[:20]] = 1
    assert set(fit(Sample(y, p)).table) == {"none", "platt"}
    assert fit(Sample(y, p), method="isotonic").chosen == "isotonic"


def test_one_positive_or_only_positives_still_calibrate():
    assert np.isfinite(fit(Sample([0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4]))([0.1])).all()
    assert fit(Sample([1, 1], [0.1, 0.2])).chosen == "none"


def test_weights_count_as_repeated_rows():
    y, p = world(4000)
    weight = np.random.default_rng(1).integers(1, 4, len(y))
    again = np.repeat(np.arange(len(y)), weight)
    for method in ("platt", "beta", "isotonic"):
        weighted, repeated = (
            fit(Sample(y, p**0.5, weight=weight), method=method),
            fit(Sample(y[again], (p**0.5)[again]), method=method),
        )
        np.testing.assert_allclose(weighted(p), repeated(p), rtol=2e-3)


def test_blocks_stay_together_in_cross_fitting():
    y, _ = world(2000)
    block = np.random.default_rng(0).integers(0, 40, 2000)
    fold = calibration._folds(y, block, 5, 0)
    assert all(len(np.unique(fold[block == value])) == 1 for value in range(40))
    assert all(y[fold == k].sum() > 0 for k in range(5))


@pytest.mark.parametrize("method", ["platt", "beta", "isotonic"])
def test_pooling_negatives_changes_the_fit_by_less_than_its_noise(method):
    y, p = world(30_000)
    z, one, fold = logit(p**0.5, within=OPEN), np.ones(len(y)), np.zeros(len(y), dtype=int)
    pooled = calibration._pooled(z, y, one, fold, single=500, cells=500)
    assert len(pooled[0]) < 5000
    assert pooled[2].sum() == pytest.approx(len(y))
    exact, quick = METHODS[method](z, y, one, 0.0), METHODS[method](*pooled[:3], 0.0)
    assert sk_log_loss(y, quick(p**0.5)) == pytest.approx(sk_log_loss(y, exact(p**0.5)), rel=2e-3)
    assert quick(p**0.5).mean() == pytest.approx(y.mean(), rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"method": "plat"}, ConfigError, "Did you mean 'platt'"),
        ({"negative_sampling_rate": 0.0}, DataError, "above 0"),
        ({"score": [0.1, 1.7]}, DataError, r"in \[0, 1\]"),
        ({"y": [0, 0]}, NoPositivesError, "rare class"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_with_one_line(arguments, error, says):
    rows = Sample(arguments.get("y", [0, 1]), arguments.get("score", [0.1, 0.2]))
    options = {name: value for name, value in arguments.items() if name not in ("y", "score")}
    with pytest.raises(error, match=says) as caught:
        fit(rows, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [0.005, 0.03, 0.12])
def test_label_shift_em_finds_the_new_prevalence(new):
    y, p = world(100_000)
    old = y.mean()
    rng = np.random.default_rng(1)
    n = 40_000
    rows = np.concatenate(
        [rng.choice(np.flatnonzero(y == 1), int(n * new)), rng.choice(np.flatnonzero(y == 0), n - int(n * new))]
    )
    found = label_shift_em(p[rows], old)
    assert found.low <= new <= found.high or found.value == pytest.approx(new, rel=0.1)
    assert found.rows == n


def test_label_shift_needs_rows_and_a_prevalence():
    with pytest.raises(DataError, match="between 0 and 1"):
        label_shift_em([0.1], 0.0)
    with pytest.raises(DataError, match="rows"):
        label_shift_em([], 0.1)


@pytest.mark.parametrize(
    "made",
    [
        calibration.Identity(),
        calibration.Identity(-2.0),
        calibration.Platt(0.3, 1.7, -0.4),
        calibration.Beta(-1.0, 0.6, 2.0, 0.3),
        calibration.Isotonic(0.0, (-6.0, -2.0, 1.0), (-7.0, -3.0, 2.0)),
    ],
    ids=lambda made: made.kind,
)
def test_a_calibrator_can_be_undone(made):
    raw = np.concatenate([[1e-12, 1e-6], np.linspace(0.001, 0.999, 200)])
    np.testing.assert_allclose(logit(made.inverse(made(raw)), within=OPEN), logit(raw, within=OPEN), atol=1e-5)
