"""Focal loss for gradient boosting: easy rows fade out, so that rare hard ones decide.

With u = z for positives and u = -z for negatives, and p_t = sigmoid(u), the loss of a row is
``-alpha_t (1 - p_t)^gamma log(p_t)``; gamma = 0 and alpha = .5 is half the log loss.
Source: Lin et al., ICCV 2017; the derivatives with respect to the logit z are worked out below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rareclass.core.rows import AnyArray, FloatArray, IntArray
from rareclass.errors import ConfigError

HESSIAN_FLOOR = 0.1  # share of the log loss's own curvature, which is always positive
_TINY = 1e-6


def check_focal(gamma: float, alpha: float) -> None:
    """Raise ConfigError unless gamma >= 0 and 0 < alpha < 1."""
    if not gamma >= 0:
        raise ConfigError(
            f"focal_gamma is {gamma}; the focus must not be negative. Set params.focal_gamma to 0 or more, like 2"
        )
    if not 0 < alpha < 1:
        raise ConfigError(
            f"focal_alpha is {alpha}; the share of the rare class lies between 0 and 1. Set params.focal_alpha, like 0.5"
        )


def _log_terms(y: IntArray, z: FloatArray, alpha: float) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return sign, alpha_t, log p_t and log (1 - p_t), without overflow at any logit."""
    sign = np.where(y == 1, 1.0, -1.0)
    u = sign * z
    return sign, np.where(y == 1, alpha, 1 - alpha), -np.logaddexp(0, -u), -np.logaddexp(0, u)


def focal_loss(y: IntArray, z: FloatArray, *, gamma: float = 2.0, alpha: float = 0.5) -> FloatArray:
    """Return the loss of each row. y : (n,) 0 or 1; z : (n,) logits."""
    _, a, log_p, log_q = _log_terms(y, z, alpha)
    return -a * np.exp(gamma * log_q) * log_p


def focal_gradient(
    y: IntArray, z: FloatArray, *, gamma: float = 2.0, alpha: float = 0.5
) -> tuple[FloatArray, FloatArray]:
    """Return (gradient, exact hessian) of each row's loss with respect to its logit.

    The hessian is negative where a row is badly wrong (the loss is not convex there); boosting needs ``floored``.
    """
    sign, a, log_p, log_q = _log_terms(y, z, alpha)
    p, q, focus = np.exp(log_p), np.exp(log_q), np.exp(gamma * log_q)
    gradient = sign * a * focus * (gamma * p * log_p - q)
    hessian = a * p * focus * (gamma * log_p * (q - gamma * p) + (2 * gamma + 1) * q)
    return gradient, hessian


def floored(y: IntArray, z: FloatArray, hessian: FloatArray, *, alpha: float = 0.5) -> FloatArray:
    """Lift the hessian to a share of the log loss's curvature ``alpha_t p (1 - p)``: Newton steps stay downhill and finite."""
    _, a, log_p, log_q = _log_terms(y, z, alpha)
    return np.maximum(hessian, HESSIAN_FLOOR * a * np.maximum(np.exp(log_p + log_q), _TINY))


def focal_objective(gamma: float = 2.0, alpha: float = 0.5) -> Callable[[AnyArray, Any], tuple[AnyArray, AnyArray]]:
    """Return an XGBoost objective: (margins, DMatrix) -> (gradient, hessian), row weights applied."""
    check_focal(gamma, alpha)

    seen: list[Any] = [None, None]  # the matrix of this fit (kept, so that no other takes its place) and its positives

    def objective(margin: AnyArray, matrix: Any) -> tuple[AnyArray, AnyArray]:
        if seen[0] is not matrix:
            seen[:] = matrix, matrix.get_label() == 1
        z = np.asarray(margin, dtype=np.float32).reshape(-1)
        gradient, hessian = _step(seen[1], z, np.float32(gamma), np.float32(alpha))
        weight = matrix.get_weight()
        return (gradient * weight, hessian * weight) if len(weight) else (gradient, hessian)

    return objective


def _step(positive: AnyArray, z: AnyArray, gamma: np.float32, alpha: np.float32) -> tuple[AnyArray, AnyArray]:
    """Return gradient and floored hessian in float32 with one exponential and one logarithm per row, as boosting asks
    for them in every round; ``focal_gradient`` and ``floored`` say the same more slowly.

    positive : (n,) bool · z : (n,) float32 logits
    """
    one = np.float32(1)
    u = np.where(positive, z, -z)
    small = np.exp(-np.abs(u))
    large = one / (one + small)
    log_p = np.minimum(u, np.float32(0)) - np.log1p(small)
    small *= large
    up = u >= 0
    p, q = np.where(up, large, small), np.where(up, small, large)
    base = np.where(positive, alpha, one - alpha)
    focused = base * (q * q if gamma == 2 else q**gamma)
    gradient = focused * (gamma * p * log_p - q)
    hessian = focused * p * (gamma * log_p * (q - gamma * p) + (2 * gamma + one) * q)
    floor = np.float32(HESSIAN_FLOOR) * base * np.maximum(p * q, np.float32(_TINY))
    return np.where(positive, gradient, -gradient), np.maximum(hessian, floor)
