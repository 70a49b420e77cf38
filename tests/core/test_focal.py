import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from rareclass.core.focal import HESSIAN_FLOOR, floored, focal_gradient, focal_loss, focal_objective
from rareclass.errors import ConfigError

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
