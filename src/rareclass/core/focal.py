"""Focal loss for gradient boosting: easy rows fade out, so that rare hard ones decide.

With u = z for positives and u = -z for negatives, and p_t = sigmoid(u), the loss of a row is
``-alpha_t (1 - p_t)^gamma log(p_t)``; gamma = 0 and alpha = .5 is half the log loss.
Source: Lin et al., ICCV 2017; the derivatives with respect to the logit z are worked out below.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from rareclass.core.dataset import AnyArray, FloatArray, IntArray
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
            f"focal_alpha is {alpha}; the share of the rare class lies between 0 and 1. "
            "Set params.focal_alpha, like 0.5"
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
    """Lift the hessian to a share of the log loss's curvature ``alpha_t p (1 - p)``: Newton steps stay downhill and
    finite.
    """
    _, a, log_p, log_q = _log_terms(y, z, alpha)
    return np.maximum(hessian, HESSIAN_FLOOR * a * np.maximum(np.exp(log_p + log_q), _TINY))


def focal_objective(
    gamma: float = 2.0, alpha: float = 0.5, threads: int = 1
) -> Callable[[AnyArray, Any], tuple[AnyArray, AnyArray]]:
    """Return an XGBoost objective: (margins, DMatrix) -> (gradient, hessian), row weights applied."""
    check_focal(gamma, alpha)
    seen: list[tuple[Any, _Steps]] = []  # the matrix of this fit (kept, so that no other takes its place) and its rows

    def objective(margin: AnyArray, matrix: Any) -> tuple[AnyArray, AnyArray]:
        if not seen or seen[0][0] is not matrix:
            seen[:] = [(matrix, _Steps(matrix.get_label() == 1, matrix.get_weight(), gamma, alpha, threads))]
        return seen[0][1](np.asarray(margin, dtype=np.float32).reshape(-1))

    return objective


class _Steps:
    """Gradient and floored hessian of the same rows in every round of boosting: float32, one exponential and one
    logarithm per row, in blocks that stay in the processor's cache; ``focal_gradient`` and ``floored`` say the same
    more slowly.

    positive : (n,) bool · weight : (n,) row weights, or none
    """

    BLOCK = 16_384

    def __init__(self, positive: AnyArray, weight: AnyArray, gamma: float, alpha: float, threads: int = 1) -> None:
        self._sign = np.where(positive, np.float32(1), np.float32(-1))
        self._base = np.where(positive, np.float32(alpha), np.float32(1 - alpha))
        if len(weight):
            self._base *= weight
        self._gamma = np.float32(gamma)
        blocks = range(0, max(len(positive), 1), self.BLOCK)
        self._shares = [blocks[at::threads] for at in range(min(threads, len(blocks)))]
        self._pool = ThreadPoolExecutor(len(self._shares)) if len(self._shares) > 1 else None
        self._scratch = np.empty((len(self._shares), 6, min(self.BLOCK, max(len(positive), 1))), dtype=np.float32)

    def __call__(self, z: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Return (gradient, hessian), each (n,) float32, at the (n,) float32 logits."""
        gradient, hessian = np.empty_like(z), np.empty_like(z)

        def fill(starts: range, scratch: AnyArray) -> None:
            for start in starts:
                part = slice(start, start + self.BLOCK)
                self._block(z[part], self._sign[part], self._base[part], gradient[part], hessian[part], scratch)

        every = map if self._pool is None else self._pool.map
        list(every(fill, self._shares, self._scratch))
        return gradient, hessian

    def _block(
        self, z: AnyArray, sign: AnyArray, base: AnyArray, gradient: AnyArray, hessian: AnyArray, scratch: AnyArray
    ) -> None:
        """Fill ``gradient`` and ``hessian``.

        Written in place: half of the time of a plain formula is its temporaries.
        """
        gamma, unity = self._gamma, np.float32(1)
        u, small, log_p, p, q, focus = scratch[:, : len(z)]
        np.multiply(sign, z, out=u)
        np.exp(np.negative(np.abs(u, out=small), out=small), out=small)
        np.add(small, unity, out=focus)
        np.subtract(np.minimum(u, np.float32(0), out=p), np.log(focus, out=log_p), out=log_p)
        large = np.reciprocal(focus, out=focus)
        small *= large
        up = u >= 0
        np.copyto(p, small)
        np.copyto(p, large, where=up)
        np.copyto(q, large)
        np.copyto(q, small, where=up)
        if gamma == 2:
            np.multiply(q, q, out=focus)
        else:
            np.power(q, gamma, out=focus)
        focus *= base
        log_p *= gamma
        # sign * focus * (gamma p log p - q)
        np.subtract(np.multiply(p, log_p, out=gradient), q, out=gradient)
        gradient *= focus
        gradient *= sign
        # focus * p * (gamma log p (q - gamma p) + (2 gamma + 1) q)
        np.subtract(q, np.multiply(p, gamma, out=hessian), out=hessian)
        hessian *= log_p
        hessian += np.multiply(q, 2 * gamma + unity, out=u)
        hessian *= np.multiply(focus, p, out=focus)
        floor = np.maximum(np.multiply(p, q, out=u), np.float32(_TINY), out=u)
        floor *= base
        floor *= np.float32(HESSIAN_FLOOR)
        np.maximum(hessian, floor, out=hessian)
