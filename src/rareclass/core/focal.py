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


def focal_objective(gamma: float = 2.0, alpha: float = 0.5) -> Callable[[AnyArray, Any], tuple[FloatArray, FloatArray]]:
    """Return an XGBoost objective: (margins, DMatrix) -> (gradient, hessian), row weights applied."""
    check_focal(gamma, alpha)

    def objective(margin: AnyArray, matrix: Any) -> tuple[FloatArray, FloatArray]:
        y = matrix.get_label().astype(np.int64)
        z = np.asarray(margin, dtype=np.float64).reshape(-1)
        gradient, hessian = focal_gradient(y, z, gamma=gamma, alpha=alpha)
        hessian = floored(y, z, hessian, alpha=alpha)
        weight = matrix.get_weight()
        return (gradient * weight, hessian * weight) if len(weight) else (gradient, hessian)

    return objective
