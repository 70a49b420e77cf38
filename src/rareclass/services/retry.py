"""Waiting for what starts beside this: a database, a first model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


def patiently(
    work: Callable[[], T],
    seconds: float,
    *,
    over: type[Exception],
    never: tuple[type[Exception], ...] = (),
    pause: float,
) -> T:
    """Do ``work``, again each ``pause`` seconds while it raises ``over``, for ``seconds``, saying why in the log.

    never : what is raised at once, though it is an ``over`` too. Raises the last ``over``.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return work()
        except never:
            raise
        except over as error:
            if time.monotonic() >= end:
                raise
            _LOG.warning("waiting: %s", error)
            time.sleep(min(pause, max(end - time.monotonic(), 0.0)))


def ticking(seconds: float, pause: float = 3.0) -> Callable[[], bool]:
    """Return a function that pauses and tells whether there is time left of ``seconds`` from now."""
    end = time.monotonic() + seconds

    def tick() -> bool:
        left = end - time.monotonic()
        if left > 0:
            time.sleep(min(pause, left))
        return left > 0

    return tick
