"""The table of engines, and candidates that train side by side on the workers of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rareclass.adapters.cluster import DaskPods, dask_cluster
from rareclass.adapters.dask_engine import certificate, dask_engine
from rareclass.config import ComputeSettings, Config, step_memory
from rareclass.core.engines import ALONE, ComputeEngine
from rareclass.services.training import steps

if TYPE_CHECKING:
    from rareclass.core.candidates import Candidate
    from rareclass.core.dataset import Rows
    from rareclass.core.search import GroupBudget
    from rareclass.core.splitting import Fold
    from rareclass.core.training import Trained
    from rareclass.core.transfer import Lender
    from rareclass.services.training.steps import Progress


@contextmanager
def _local(compute: ComputeSettings) -> Iterator[ComputeEngine]:
    yield ALONE


def _dask(compute: ComputeSettings) -> AbstractContextManager[ComputeEngine]:
    beside_this_pod = compute.dask.image is not None and compute.dask.scheduler is None
    return _on_kubernetes(compute) if beside_this_pod else dask_engine(compute)


@contextmanager
def _on_kubernetes(compute: ComputeSettings) -> Iterator[ComputeEngine]:
    """Begin workers beside this pod, and end them with the block."""
    settings, tls = compute.dask, certificate()
    pods = DaskPods(
        image=str(settings.image),
        workers=settings.workers,
        cpu=compute.cpu,
        memory=step_memory(settings.worker_memory or compute.memory),
        threads=compute.threads,
    )
    with dask_cluster(pods, tls) as address, dask_engine(compute, address=address, tls=tls) as workers:
        yield workers


ENGINES: Mapping[str, Callable[[ComputeSettings], AbstractContextManager[ComputeEngine]]] = {
    "local": _local,
    "dask": _dask,
}
"""`compute.engine` -> what begins it, and ends it with the block."""


def engine(config: Config) -> AbstractContextManager[ComputeEngine]:
    """Return the engine of a configuration. Raises EngineError where it cannot begin."""
    return ENGINES[config.compute.engine](config.compute)


@dataclass(frozen=True, eq=False)
class _Sample:
    """What every candidate trains on."""

    config: Config
    dev: Rows
    folds: Sequence[Fold]
    seconds: float
    lender: Lender | None


def fits_a_worker(config: Config, dev: Rows) -> bool:
    """Whether a worker's memory holds what a candidate takes."""
    from rareclass.adapters.tables.room import Room

    most = config.compute.dask.worker_memory
    return most is None or len(dev) <= Room(most).rows(dev.x.shape[1])


def train(
    engine: ComputeEngine,
    config: Config,
    members: Sequence[Candidate],
    rows: tuple[Rows, Sequence[Fold]],
    may_spend: GroupBudget,
    progress: Progress = steps.silent,
) -> list[Trained]:
    """Fit every candidate on a worker of its own, then search the leader's settings with what is left of the time.

    The fits are those of one process: each depends on its rows, settings and seed alone. Each has its share of what may
    be spent, times the number of workers, at most all of it.
    rows : the development rows and their folds
    """
    start = may_spend.clock()
    seconds = min(may_spend.seconds, may_spend.seconds * engine.workers / (len(members) + 1))
    trained = _side_by_side(engine, config, members, rows, seconds, progress)
    left = max(0.0, may_spend.seconds - (may_spend.clock() - start))
    tuned = steps.tune(config, *rows, trained, replace(may_spend, seconds=left), progress)
    untouched = sum(each.group == "none" for each in members)  # the order of one process: sums and ties go by it
    return [*trained[:untouched], *tuned, *trained[untouched:]]


def _side_by_side(
    engine: ComputeEngine,
    config: Config,
    candidates: Sequence[Candidate],
    rows: tuple[Rows, Sequence[Fold]],
    seconds: float,
    progress: Progress,
) -> list[Trained]:
    """Fit each candidate for ``seconds`` at most; no search of settings. What is lent travels once, as the rows do."""
    there = config.compute.model_copy(update={"threads": engine.threads})
    no_search = config.search.model_copy(update={"tune": False})
    on_workers = config.model_copy(update={"compute": there, "search": no_search})
    lender = next((each.lender for each in candidates if each.lender is not None), None)
    sample = _Sample(on_workers, *rows, seconds, lender)
    trained: list[Trained] = []
    for number, fitted in enumerate(engine.map(_train_one, [_with(each, None) for each in candidates], sample), 1):
        progress("train", f"{number} of {len(candidates)} candidates, {engine.workers} at once")
        trained += [replace(one, candidate=_with(one.candidate, lender)) for one in fitted]
    return trained


def _train_one(sample: _Sample, candidate: Candidate) -> list[Trained]:
    """Fit one candidate; on untouched rows it is kept as far as it has grown when its time is out, like candidate 0."""
    candidate = _with(candidate, sample.lender)
    resampled = steps.resample(sample.config, sample.dev, sample.folds, [candidate])
    budget = steps.budget(sample.config, sample.seconds)
    fitted = steps.train(sample.config, sample.dev, sample.folds, [candidate], resampled, budget)
    return [replace(one, candidate=_with(one.candidate, None)) for one in fitted]


def _with(candidate: Candidate, lender: Lender | None) -> Candidate:
    """Return a candidate that learns from a neighbour with what it lends, or without; others as they are."""
    return candidate if candidate.transfer == "none" else replace(candidate, lender=lender)
