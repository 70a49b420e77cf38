"""Requests that arrive together are scored together: one model call and one write for all that are waiting.

Nothing waits for company: what is there when the event loop comes round is answered at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rareclass.adapters.serving.engine import Active, Answer, Engine
from rareclass.adapters.serving.signature import Query
from rareclass.errors import InputError, RareclassError, SpoolError

INLINE_ROWS = 512
_LOG = logging.getLogger(__name__)

_Waiting = tuple[Query, Active, asyncio.Future[Answer | Exception]]


class NotReadyError(RareclassError):
    """No version is loaded yet, or the server is stopping (HTTP 503)."""


class NotFoundError(RareclassError):
    """The request names another model or version than the one that answers (HTTP 404)."""


class Batcher:
    """Runs the engine for one event loop; large batches in a thread, so that health checks go on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._waiting: list[_Waiting] = []
        self.alone: Callable[[], bool] = lambda: False  # whether no other request is here: nothing could join this one
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rareclass-large")

    async def answer(self, query: Query, active: Active) -> Answer:
        """Return the logged answer. Raises what refused it."""
        loop = asyncio.get_running_loop()
        if not self._waiting and len(query) <= INLINE_ROWS and self.alone():
            [result] = self.engine.answer([(query, active)])
            loop.call_soon(self.engine.after, [result])
        else:
            future: asyncio.Future[Answer | Exception] = loop.create_future()
            self._waiting.append((query, active, future))
            if len(self._waiting) == 1:
                loop.call_soon(self._flush, loop)
            result = await future
        if isinstance(result, Exception):
            raise result
        return result

    async def apart(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run what would hold up the event loop in the thread of the large batches."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting, self._waiting = self._waiting, []
        small = [item for item in waiting if len(item[0]) <= INLINE_ROWS]
        if small:
            self._resolve(small, self.engine.answer([item[:2] for item in small]))
        for item in waiting:
            if len(item[0]) > INLINE_ROWS:
                task = loop.run_in_executor(self._thread, self.engine.answer, [item[:2]])
                task.add_done_callback(partial(self._resolve_one, item))

    def _resolve_one(self, item: _Waiting, done: asyncio.Future[list[Answer | Exception]]) -> None:
        self._resolve([item], done.result())

    def _resolve(
        self,
        items: list[_Waiting],
        results: list[Answer | Exception],
    ) -> None:
        for (_, _, future), result in zip(items, results, strict=True):
            if not future.done():
                future.set_result(result)
        self.engine.after(results)

    def close(self) -> None:
        """Wait for the batch in work and end the thread."""
        self._thread.shutdown()


def status_of(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and the one line for what went wrong; only faults of ours are 500, and are logged."""
    if isinstance(error, InputError):
        return 400, str(error)
    if isinstance(error, NotFoundError):
        return 404, str(error)
    if isinstance(error, NotReadyError):
        return 503, str(error)
    if isinstance(error, SpoolError):
        return 503, f"the answer cannot be logged, so it is not given: {error}"
    _LOG.error("a request failed", exc_info=error)
    return 500, f"the model failed on these rows ({type(error).__name__}); the server's log has the details"
