import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from rareclass.core.focal import HESSIAN_FLOOR, floored, focal_gradient, focal_loss, focal_objective
from rareclass.errors import ConfigError


class Matrix:
    """What an objective asks of XGBoost's matrix."""

    def __init__(self, label, weight=()):
        self.label, self.weight = np.asarray(label, np.float32), np.asarray(weight, np.float32)

    def get_label(self):
        return self.label

    def get_weight(self):
        return self.weight


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.9])
def test_the_objective_of_boosting_is_gradient_and_floored_hessian(gamma, alpha):
    y = np.arange(400) % 2
    z = np.linspace(-14, 14, 400)
    gradient, exact = focal_gradient(y, z, gamma=gamma, alpha=alpha)
    hessian = floored(y, z, exact, alpha=alpha)
    objective = focal_objective(gamma, alpha)
    for matrix, factor in ((Matrix(y), 1.0), (Matrix(y, np.full(400, 3.0)), 3.0)):
        found = objective(z, matrix)
        np.testing.assert_allclose(found[0], factor * gradient, rtol=2e-4, atol=2e-6)
        np.testing.assert_allclose(found[1], factor * hessian, rtol=2e-4, atol=2e-6)


def test_threads_share_the_rows_without_changing_a_number():
    rng = np.random.default_rng(0)
    y, z = np.arange(100_000) % 7 == 0, rng.normal(size=100_000)
    alone, shared = (focal_objective(threads=threads)(z, Matrix(y)) for threads in (1, 3))
    np.testing.assert_array_equal(alone, shared)


logits = st.floats(-12, 12)
gammas = st.floats(0, 5)
alphas = st.floats(0.05, 0.95)


@settings(max_examples=200, deadline=None)
@given(z=logits, gamma=gammas, alpha=alphas, label=st.integers(0, 1))
def test_gradient_and_hessian_agree_with_finite_differences(z, gamma, alpha, label):
    y, step = np.array([label]), 1e-4
    gradient, hessian = focal_gradient(y, np.array([z]), gamma=gamma, alpha=alpha)
    lower, middle, upper = (focal_loss(y, np.array([z + d * step]), gamma=gamma, alpha=alpha)[0] for d in (-1, 0, 1))
    assert gradient[0] == pytest.approx((upper - lower) / (2 * step), rel=1e-4, abs=1e-7)
    below, above = (focal_gradient(y, np.array([z + d * step]), gamma=gamma, alpha=alpha)[0][0] for d in (-1, 1))
    assert hessian[0] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-7)
    assert middle >= 0


def test_without_focus_it_is_half_the_log_loss():
    z, y = np.linspace(-6, 6, 50), np.arange(50) % 2
    gradient, hessian = focal_gradient(y, z, gamma=0.0, alpha=0.5)
    np.testing.assert_allclose(gradient, 0.5 * (expit(z) - y), atol=1e-12)
    np.testing.assert_allclose(hessian, 0.5 * expit(z) * (1 - expit(z)), atol=1e-12)


def test_the_hessian_is_lifted_where_the_loss_is_not_convex():
    y, z = np.array([1, 0]), np.array([-4.0, 4.0])
    _, exact = focal_gradient(y, z, gamma=2.0, alpha=0.5)
    assert (exact < 0).all(), "badly wrong rows lie where the loss bends downwards"
    lifted = floored(y, z, exact, alpha=0.5)
    np.testing.assert_allclose(lifted, HESSIAN_FLOOR * 0.5 * expit(z) * (1 - expit(z)))
    _, easy = focal_gradient(y, -z / 8, gamma=2.0, alpha=0.5)
    np.testing.assert_array_equal(floored(y, -z / 8, easy, alpha=0.5), easy)


def test_extreme_logits_stay_finite():
    y, z = np.array([0, 1, 0, 1]), np.array([-800.0, -800.0, 800.0, 800.0])
    for values in (*focal_gradient(y, z), focal_loss(y, z), floored(y, z, focal_gradient(y, z)[1])):
        assert np.isfinite(values).all()


@pytest.mark.parametrize("wrong", [{"gamma": -1.0}, {"alpha": 0.0}, {"alpha": 1.0}, {"gamma": float("nan")}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"params\.focal"):
        focal_objective(**wrong)
