"""Partitions on Dask: workers on this machine, or those of a scheduler that exists."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import rareclass
from rareclass._memory import give_back_arrays
from rareclass.config import ComputeSettings
from rareclass.core.engines import ONE_JOB
from rareclass.errors import EngineError, RareclassError, need_package
from rareclass.retry import retry_until_deadline

_AHEAD = 2
"""Jobs of a worker that are under way or waiting for it: more would only take memory."""
_SENDINGS = 3
"""How often what all jobs share is sent, when the workers that held it are lost."""
CONNECTING = "10s"
STARTING_SECONDS = 300.0
"""How long a scheduler and its workers may take that were only just asked for."""


class DaskEngine:
    """The workers of a scheduler.

    A job whose worker is lost is done again by another one. Raises EngineError in one line when the scheduler is gone,
    or when every worker that took a job is lost.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        threads = client.nthreads()
        self.workers, self.threads = len(threads), min(threads.values(), default=1)
        there = client.scheduler_info(n_workers=-1)["workers"].values()
        alone = all(ONE_JOB in worker.get("resources", {}) for worker in there)
        self._each_takes = {ONE_JOB: 1} if alone else None  # a job uses all threads of its worker

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

    def on_each(self, function: Callable[[Any], Any], argument: Any) -> list[Any]:
        """Return ``function(argument)`` of every worker that is there now. Raises EngineError without a scheduler."""
        try:
            return list(self.client.run(function, argument).values())
        except Exception:
            self._alive()
            raise

    def _send(self, shared: Any) -> Any:
        return self.client.scatter([shared], broadcast=True, hash=False)[0]

    def _submit(self, function: Callable[[Any, Any], Any], held: Any, job: Any) -> Any:
        return self.client.submit(_work, function, held, job, pure=False, resources=self._each_takes)

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


_keep_small_arrays = cache(give_back_arrays)


_MORE_MEMORY = "Most often that is memory: set compute.dask.worker_memory higher, or look at the workers' logs"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def dask_engine(
    compute: ComputeSettings, *, address: str | None = None, tls: Mapping[str, str] | None = None
) -> Iterator[DaskEngine]:
    """Connect to a scheduler, or start workers on this machine; they end with the block.

    Workers of our own speak TLS with a certificate of this run, so that nobody else on the machine can send them work.

    Parameters
    ----------
    compute : which workers
    address : of a scheduler whose workers are still on their way; default: ``compute.dask.scheduler``
    tls : certificate and key to show it, see ``certificate``

    Raises
    ------
    EngineError
        Where nobody answers, or the workers have another version of this package.
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
        if address is not None:
            # until it listens, nobody or somebody else may answer
            starting = partial(_client, address, tls)
            with retry_until_deadline(starting, STARTING_SECONDS, on=EngineError, pause=1, log=False) as client:
                yield _checked(client, address, settings.workers, STARTING_SECONDS)
        elif settings.scheduler is not None:
            with _client(settings.scheduler) as client:
                yield _checked(client, settings.scheduler, 1, 30)
        else:
            with _cluster(compute) as cluster, Client(cluster, set_as_default=False) as client:
                yield _checked(client)


def certificate() -> dict[str, str]:
    """Return a new certificate and its key as settings of Dask, for scheduler, workers and client of one run."""
    need_package("distributed", "dask", "compute.engine: dask")
    from distributed import Security

    made = Security.temporary()
    return {setting: str(getattr(made, _argument(setting))) for setting in _TLS}


_TLS = ("ca-file", *(f"{role}.{what}" for role in ("client", "scheduler", "worker") for what in ("cert", "key")))
"""Dask's settings of TLS, below distributed.comm.tls."""


def _argument(setting: str) -> str:
    """Return what ``Security`` calls a setting of TLS."""
    return "tls_" + setting.replace("-", "_").replace(".", "_")


def _client(address: str, tls: Mapping[str, str] | None = None) -> Any:
    """Raise EngineError where no scheduler answers."""
    from distributed import Client, Security

    shown = {} if tls is None else {_argument(setting): text for setting, text in tls.items()}
    security = Security(require_encryption=True, **shown) if shown else None
    try:
        return Client(address, timeout=CONNECTING, set_as_default=False, security=security)
    except (OSError, TimeoutError, ValueError) as error:
        raise EngineError(
            f"Dask's scheduler '{address}' does not answer: {_one_line(error)}. Set compute.dask.scheduler"
        ) from None


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
        resources={ONE_JOB: 1},
        silence_logs=50,
        env={"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
    )


def _checked(client: Any, address: str = "", workers: int = 0, seconds: float = 0) -> DaskEngine:
    """Wait for the workers of a scheduler. Raises EngineError where they do not come, or have another version."""
    if workers:
        try:
            client.wait_for_workers(workers, timeout=seconds)
        except TimeoutError:
            raise EngineError(
                f"Dask's scheduler '{address}' has {len(client.nthreads())} of {workers} workers after {seconds:g} s. "
                f"Start some: dask worker {address} --nthreads 1; on Kubernetes look at the events of their pods"
            ) from None
    try:
        found = client.run(_version)
    except ModuleNotFoundError:
        found = {"a worker": "none"}
    for worker, version in found.items():
        if version != rareclass.__version__:
            raise EngineError(
                f"the worker {worker} has rareclass {version}, and this is {rareclass.__version__}: "
                "install the same on all of them"
            )
    return DaskEngine(client)


def _version() -> str:

    return rareclass.__version__
