"""Partitions on Dask: workers on this machine, or those of a scheduler that exists."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import cache
from typing import Any

import rareclass
from rareclass._memory import give_back_arrays
from rareclass.config import ComputeSettings, DaskSettings
from rareclass.errors import EngineError, RareclassError, need_package

_AHEAD = 2
"""Jobs of a worker that are under way or waiting for it: more would only take memory."""
_SENDINGS = 3
"""How often what all jobs share is sent, when the workers that held it are lost."""
CONNECTING = "10s"


class DaskEngine:
    """The workers of a scheduler.

    A job whose worker is lost is done again by another one. Raises EngineError in one line when the scheduler is gone,
    or when every worker that took a job is lost.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        threads = client.nthreads()
        self.workers, self.threads = len(threads), min(threads.values(), default=1)

    def map(self, function: Callable[[Any, Any], Any], jobs: Iterable[Any], shared: Any = None) -> Iterator[Any]:
        """Yield ``function(shared, job)`` of each job in order; a few more than there are workers are under way."""
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        waiting: deque[tuple[Any, Any, Any]] = deque()
        left = iter(jobs)
        try:
            held, sendings = self._send(shared), 1
            while True:
                while len(waiting) < _AHEAD * self.workers:
                    try:
                        job = next(left)
                    except StopIteration:
                        break
                    waiting.append((self._submit(function, held, job), held, job))
                if not waiting:
                    return
                future, sent, job = waiting[0]
                try:
                    found = future.result()
                except (FutureCancelledError, CancelledError, asyncio.CancelledError):
                    self._alive()
                    if sent is held:  # the workers that held it are gone
                        if sendings == _SENDINGS:
                            raise EngineError(
                                f"the workers that held what a step needs were lost {sendings} times. {_MORE_MEMORY}"
                            ) from None
                        held, sendings = self._send(shared), sendings + 1
                    waiting[0] = (self._submit(function, held, job), held, job)
                    continue
                waiting.popleft()
                yield found
        except KilledWorker as error:
            raise EngineError(
                f"every worker that took a part of the table was lost ({error}). {_MORE_MEMORY}"
            ) from None
        except RareclassError:
            raise
        except Exception:  # a client that was cut off says so in many ways
            self._alive()
            raise
        finally:
            for future, _, _ in waiting:
                future.release()

    def _send(self, shared: Any) -> Any:
        return self.client.scatter([shared], broadcast=True, hash=False)[0]

    def _submit(self, function: Callable[[Any, Any], Any], held: Any, job: Any) -> Any:
        return self.client.submit(_work, function, held, job, pure=False)

    def _alive(self) -> None:
        """Raise EngineError where the scheduler does not answer."""
        try:
            self.client.sync(self.client.scheduler.identity, callback_timeout=5)
        except Exception as error:
            raise EngineError(
                f"Dask's scheduler is gone ({_one_line(error)}). Nothing was registered: start it, and run again"
            ) from None


def _work(function: Callable[[Any, Any], Any], shared: Any, job: Any) -> Any:
    """Do a job on a worker, with memory that is handled as in this process: whoever started the worker, and when."""
    _keep_small_arrays()
    return function(shared, job)


@cache
def _keep_small_arrays() -> None:
    give_back_arrays()


_MORE_MEMORY = "Most often that is memory: set compute.dask.worker_memory higher, or look at the workers' logs"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def dask_engine(compute: ComputeSettings) -> Iterator[DaskEngine]:
    """Connect to ``compute.dask.scheduler``, or start workers on this machine; they end with the block.

    Workers of our own speak TLS with a certificate of this run, so that nobody else on the machine can send them work.
    """
    need_package("distributed", "dask", "compute.engine: dask")
    import dask
    from distributed import Client

    settings = compute.dask
    quiet = {
        "distributed.comm.timeouts.connect": CONNECTING,
        "distributed.admin.large-graph-warning-threshold": "1GiB",
        "distributed.logging.distributed": "error",
        "distributed.scheduler.allowed-failures": 3,
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.worker.profile.enabled": False,
    }
    with dask.config.set(quiet):
        if settings.scheduler is not None:
            try:
                client = Client(settings.scheduler, timeout=CONNECTING, set_as_default=False)
            except (OSError, TimeoutError, ValueError) as error:
                raise EngineError(
                    f"Dask's scheduler '{settings.scheduler}' does not answer: {_one_line(error)}. "
                    "Set compute.dask.scheduler"
                ) from None
            with client:
                yield _checked(client, settings)
            return
        with _cluster(compute) as cluster, Client(cluster, set_as_default=False) as client:
            yield _checked(client, settings)


def _cluster(compute: ComputeSettings) -> Any:
    from distributed import LocalCluster, Security

    settings = compute.dask
    threads = max(1, compute.processors() // settings.workers)
    return LocalCluster(
        n_workers=settings.workers,
        threads_per_worker=threads,
        processes=True,
        host="127.0.0.1",
        protocol="tls",
        security=Security.temporary(),
        dashboard_address="127.0.0.1:0",
        memory_limit=settings.worker_memory or "auto",
        silence_logs=50,
        env={"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
    )


def _checked(client: Any, settings: DaskSettings) -> DaskEngine:
    """Raise EngineError where there is no worker, or one of another version of this package."""

    if settings.scheduler is not None:
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError:
            raise EngineError(
                f"Dask's scheduler '{settings.scheduler}' has no workers. "
                f"Start some: dask worker {settings.scheduler} --nthreads 1"
            ) from None
    try:
        found = client.run(_version)
    except ModuleNotFoundError:
        found = {"a worker": "none"}
    for address, version in found.items():
        if version != rareclass.__version__:
            raise EngineError(
                f"the worker {address} has rareclass {version}, and this is {rareclass.__version__}: "
                "install the same on all of them"
            )
    return DaskEngine(client)


def _version() -> str:

    return rareclass.__version__
