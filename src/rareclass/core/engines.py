"""Where work on partitions is done: the port that an engine fills, and the one that is this process.

What is computed does not depend on it. A pass over a table is a function of what all partitions share and of one
partition; an engine calls it for each of them, wherever it likes, and gives back the results in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

ONE_JOB = "rareclass-job"
"""What a worker has one of and a job takes: it does one job at a time, which uses all of its threads and memory."""


class ComputeEngine(Protocol):
    """workers : processes beside this one; 0 = this process works alone · threads : of each of them"""

    workers: int
    threads: int

    def map(self, function: Callable[[Any, Any], Any], jobs: Iterable[Any], shared: Any = None) -> Iterator[Any]:
        """Yield ``function(shared, job)`` of each job, in the order of the jobs. Raises EngineError when it cannot.

        A function may be called again for the same job, on another worker: it returns what it made and leaves nothing.
        """
        ...

    def on_each(self, function: Callable[[Any], Any], argument: Any) -> list[Any]:
        """Return ``function(argument)`` of every worker; none where this process works alone."""
        ...


class Alone:
    """This process."""

    workers = 0
    threads = 0

    def map(self, function: Callable[[Any, Any], Any], jobs: Iterable[Any], shared: Any = None) -> Iterator[Any]:
        """Yield ``function(shared, job)`` for each job, here and in order."""
        for job in jobs:
            yield function(shared, job)

    def on_each(self, function: Callable[[Any], Any], argument: Any) -> list[Any]:
        """Return nothing: there is no worker."""
        return []


ALONE = Alone()
