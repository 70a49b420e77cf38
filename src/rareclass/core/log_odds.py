"""Probabilities to log-odds and back, finite at both ends, and a logistic regression of few columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from rareclass.core.dataset import BoolArray, FloatArray

OPEN = (1e-300, 1 - 2.0**-53)
"""The ends of (0, 1) that float64 can still tell from 0 and 1: all that a map of probabilities needs to be undone."""


def expit(z: ArrayLike) -> FloatArray:
    """Return 1 / (1 + exp(-z)) as float64, without overflow."""
    from scipy import special  # not at the top: whoever only reads a version of the registry needs none of it

    return np.asarray(special.expit(np.asarray(z, dtype=np.float64)), dtype=np.float64)


def logit(p: ArrayLike, *, within: tuple[float, float] = (1e-9, 1 - 1e-9)) -> FloatArray:
    """Return log(p / (1 - p)), finite: a probability outside of ``within`` is moved to the nearer end.

    Not ``scipy.special.logit``: that changes its formula at .3 and .65, and neighbouring scores could change places
    there. Both terms of this one rise, so their sum never falls.
    """
    clipped = np.clip(np.asarray(p, dtype=np.float64), *within)
    return np.asarray(np.log(clipped) - np.log1p(-clipped), dtype=np.float64)


def fit_logistic(
    design: Sequence[FloatArray], y: ArrayLike, weight: FloatArray, start: FloatArray, free: BoolArray, pull: FloatArray
) -> FloatArray:
    """Minimise the weighted log loss of ``expit(design . w)``: damped Newton over the free coefficients.

    design : k columns, each (n,), the last of ones;  y : (n,) labels, or shares of positives;  weight : (n,)
    start : (k,) where the search begins; a coefficient that is not free keeps its value
    free : (k,) which coefficients move
    pull : (k,) rows' worth of a quadratic pull towards slopes of 1 and an intercept of 0: few positives cannot bend the
        line, and the equations have one solution
    Plain sums: for three coefficients a threaded BLAS costs more than it does.
    """
    y, w = np.asarray(y, dtype=np.float64), start
    target = np.append(np.ones(len(start) - 1), 0.0)

    def margin(at: FloatArray) -> FloatArray:
        return np.asarray(sum(a * column for a, column in zip(at, design, strict=True)))

    def loss(at: FloatArray) -> float:
        z = margin(at)
        return float((weight * (np.logaddexp(0, z) - y * z)).sum() + 0.5 * (pull * (at - target) ** 2).sum())

    index, best = [int(i) for i in np.flatnonzero(free)], loss(w)
    for _ in range(50):
        p = expit(margin(w))
        residual, curve = weight * (p - y), weight * p * (1 - p)
        gradient = np.array([(residual * design[i]).sum() for i in index]) + (pull * (w - target))[index]
        hessian = np.array([[(curve * design[i] * design[j]).sum() for j in index] for i in index])
        step = np.linalg.solve(hessian + np.diag(pull[index]), gradient)
        scale, new = 1.0, best
        while scale > 1e-6:
            trial = w.copy()
            trial[index] -= scale * step
            new = loss(trial)
            if new < best:
                break
            scale /= 2
        if not new < best:
            break
        done = best - new <= 1e-10 * abs(best)
        w, best = trial, new
        if done:
            break
    return w
