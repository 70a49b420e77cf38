"""How many threads the libraries under NumPy and scikit-learn use for a while."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

_THREADED = ("scipy.linalg", "sklearn.utils._openmp_helpers", "xgboost", "lightgbm", "catboost")
"""Modules whose import brings a library with threads of its own."""


@cache
def _libraries(loaded: tuple[bool, ...]) -> Any:
    """What has threads of its own, found once for what is loaded: to find it is to read the map of the whole process,
    more work than an epoch of a small network."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def at_most(threads: int, api: str | None = None) -> AbstractContextManager[Any]:
    """Hold the libraries to so many threads while the block runs. api : "blas" or "openmp" alone"""
    libraries = _libraries(tuple(name in sys.modules for name in _THREADED))
    limits: AbstractContextManager[Any] = libraries.limit(limits=threads, user_api=api)
    return limits
