"""Retry until a deadline: for what starts beside this, such as a database, or for what a person has to answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

T = TypeVar("T")

_LOG = logging.getLogger(__name__)


def retry_until_deadline(
    work: Callable[[], T],
    seconds: float,
    *,
    on: type[Exception],
    never: tuple[type[Exception], ...] = (),
    pause: float,
    log: bool = True,
) -> T:
    """Call ``work`` until it returns, again each ``pause`` seconds while it raises ``on``, and log why.

    seconds : after so many the last error is raised; with 0 there is one attempt
    never : kinds of ``on`` that are raised at once
    """
    from tenacity import retry_if_exception_type, retry_if_not_exception_type

    again = retry_if_exception_type(on) & retry_if_not_exception_type(never)
    said = {"before_sleep": _log} if log else {}
    return _retrying(seconds, pause, retry=again, reraise=True, **said)(work)


def poll_until_deadline(work: Callable[[], T], seconds: float, *, while_: Callable[[T], bool], pause: float = 3.0) -> T:
    """Call ``work`` each ``pause`` seconds while ``while_`` holds of what it returns; return the last it returned."""
    from tenacity import retry_if_result

    return _retrying(seconds, pause, retry=retry_if_result(while_), retry_error_callback=_last)(work)


def _retrying(seconds: float, pause: float, **how: Any) -> Retrying:
    from tenacity import Retrying, stop_after_delay

    def until_the_end(state: RetryCallState) -> float:  # the last attempt is made at the deadline
        return min(pause, max(seconds - (state.seconds_since_start or 0.0), 0.0))

    return Retrying(stop=stop_after_delay(seconds), wait=until_the_end, **how)


def _log(state: RetryCallState) -> None:
    if state.outcome is not None:
        _LOG.warning("waiting: %s", state.outcome.exception())


def _last(state: RetryCallState) -> Any:
    return None if state.outcome is None else state.outcome.result()
