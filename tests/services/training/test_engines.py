"""Runs on workers of Dask: the figures of one process; a lost worker costs time, a lost scheduler ends in one line."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.services.training.test_beyond import TIGHT, config, payments

from rareclass.adapters import dask_engine
from rareclass.adapters.dask_engine import DaskEngine
from rareclass.adapters.store import Store
from rareclass.adapters.tables import divided
from rareclass.config import CandidateSpec, ComputeSettings, Config, ResampleStep, dump, parse
from rareclass.core.candidates import Candidate, group_by_resampler
from rareclass.core.engines import ALONE, ComputeEngine
from rareclass.errors import EngineError
from rareclass.services.training import engines, run, steps

SMALL = {"rounds": 10, "eta": 0.4, "max_bin": 32}
CANDIDATES = [
    CandidateSpec(learner="xgboost", params=SMALL),
    CandidateSpec(learner="logistic_regression"),
    CandidateSpec(learner="xgboost", params=SMALL, resample=[ResampleStep(name="random_under", ratio=5.0)]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("engines")
    payments(24_000).to_parquet(made / "payments.parquet", row_group_size=3_500)
    return made


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divided, "LEAST_ROWS", 7_000)


@pytest.fixture(scope="module")
def workers() -> Iterator[DaskEngine]:
    with dask_engine.dask_engine(ComputeSettings(engine="dask", threads=1)) as engine:
        yield engine


def settings(folder: Path, kind: str = "time", memory: object = TIGHT, **sections: Any) -> Config:
    return parse(dump(config(folder, kind, memory)) | sections)


def fitted(wanted: Config, engine: ComputeEngine) -> steps.Run:
    ingested = steps.ingest(wanted, engine=engine)
    return run.fit(wanted, ingested, watch=run.Stopwatch(), now=steps.utc_now(), engine=engine)


class _Elsewhere:
    """Workers of another machine, which has nothing at this path."""

    workers, threads = 2, 1

    def map(self, function: Any, jobs: Any, shared: Any = None) -> Iterator[Any]:
        raise AssertionError("they would fall over")

    def on_each(self, function: Any, argument: Any) -> list[Any]:
        assert function(argument), "this machine has it"
        return [function("/nowhere"), function("/nowhere")]


def test_a_file_that_workers_do_not_see_is_read_here_and_that_is_said(folder: Path) -> None:
    said: list[str] = []
    found = steps.ingest(settings(folder), progress=lambda step, text: said.append(text), engine=_Elsewhere())
    assert found.card == steps.ingest(settings(folder)).card
    assert any("the workers do not see" in text for text in said)


def _began_and_ended(shared: object, job: int) -> tuple[float, float]:
    began = time.monotonic()
    sum(range(300_000))
    return began, time.monotonic()


def test_a_worker_of_several_threads_does_one_job_at_a_time() -> None:
    compute = ComputeSettings(engine="dask", threads=3, dask={"workers": 1})
    with dask_engine.dask_engine(compute) as engine:
        assert engine.threads == 3
        spans = sorted(engine.map(_began_and_ended, range(8)))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_two_workers_find_what_one_process_finds(folder: Path, workers: DaskEngine) -> None:
    one, two = (fitted(settings(folder), engine) for engine in (ALONE, workers))
    assert two.ingested.card == one.ingested.card
    assert two.ingested.beyond is not None
    assert len(two.ingested.beyond.reading.parts) == 4
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(two.ingested, part), getattr(one.ingested, part)
        assert np.array_equal(ours.row_id, theirs.row_id)
        assert np.array_equal(ours.x, theirs.x, equal_nan=True)
        assert np.array_equal(ours.weight, theirs.weight)
    assert np.array_equal(two.trained[0].oof, one.trained[0].oof, equal_nan=True)
    assert two.tuning.thresholds == one.tuning.thresholds
    assert np.array_equal(two.judged.score, one.judged.score)
    assert two.judged.evaluation.metrics["ap"] == one.judged.evaluation.metrics["ap"]
    assert two.judged.decision.verdict == one.judged.decision.verdict
    assert two.model.profile == one.model.profile


def test_candidates_side_by_side_are_those_of_one_process(folder: Path, workers: DaskEngine) -> None:
    wanted = settings(folder, search={"trials": 3, "tune": False})
    ingested = steps.ingest(wanted)
    plan = steps.detect_imbalance(wanted, ingested.train, ingested.validation)
    dev, folds = steps.development(wanted, ingested.train, ingested.validation)
    groups = group_by_resampler([Candidate.from_spec(each) for each in CANDIDATES])
    plan = replace(plan, groups=groups)
    members = [candidate for group in plan.groups.values() for candidate in group]
    ours = engines.train(workers, wanted, members, (dev, folds), steps.budget(wanted, wanted.search.seconds))
    theirs = [
        one
        for name, members in groups.items()
        for one in steps.train(
            wanted, dev, folds, members, steps.resample(wanted, dev, folds, members), steps.budget(wanted, 60)
        )
    ]
    assert [each.candidate for each in ours] == [each.candidate for each in theirs]
    assert all(np.array_equal(a.oof, b.oof, equal_nan=True) for a, b in zip(ours, theirs, strict=True))
    assert all(each.complete for each in ours)


@pytest.mark.parametrize(("kind", "memory"), [("time", "8GiB"), ("stratified", TIGHT), ("grouped", TIGHT)])
def test_a_table_is_read_by_workers_as_by_one_process(
    folder: Path, workers: DaskEngine, kind: str, memory: object
) -> None:
    one, two = (steps.ingest(settings(folder, kind, memory), engine=engine) for engine in (ALONE, workers))
    assert two.card == one.card
    assert [each.message for each in two.warnings] == [each.message for each in one.warnings]
    assert two.schema == one.schema
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(two, part), getattr(one, part)
        assert np.array_equal(ours.row_id, theirs.row_id)
        assert np.array_equal(ours.x, theirs.x, equal_nan=True)


def _die_once(mark: Path, job: int) -> int:
    """Kill the worker that takes job 5 first."""
    if job == 5:
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return job * job
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


def _new_pages(shared: None, job: int) -> int:
    """Return how many pages are touched for the first time where 50 arrays of 512 KiB are made one after the other."""
    np.ones(1 << 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(1 << 16)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_worker_does_not_give_back_what_the_next_block_needs(workers: DaskEngine) -> None:
    assert max(workers.map(_new_pages, range(4))) < 3_000  # of 6,400; other threads of a worker touch some, too


def _refuse(shared: None, job: int) -> int:
    raise EngineError(f"job {job} is refused")


def test_what_a_worker_refuses_is_said_as_by_one_process(workers: DaskEngine) -> None:
    with pytest.raises(EngineError, match="job 0 is refused"):
        list(workers.map(_refuse, range(3)))


def test_a_worker_killed_in_the_middle_changes_no_figure(workers: DaskEngine, tmp_path: Path) -> None:
    assert list(workers.map(_die_once, range(12), tmp_path / "died")) == [job * job for job in range(12)]
    assert (tmp_path / "died").exists()


@pytest.fixture
def scheduler() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A scheduler and a worker of somebody else, as processes."""
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    command += ["--port", "0", "--no-dashboard"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(
            found[0] for line in process.stderr if (found := re.findall(r"Scheduler at:\s+(tcp://\S+)", line))
        )
        serve = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1"]
        serve += ["--no-nanny", "--no-dashboard"]
        with subprocess.Popen(serve, stderr=subprocess.DEVNULL) as worker:
            yield address, process
            worker.kill()
        process.kill()


def test_a_lost_scheduler_ends_a_run_in_one_line_and_nothing_is_registered(
    folder: Path, scheduler: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    address, process = scheduler
    raw = dump(settings(folder))
    raw["compute"] |= {"engine": "dask", "dask": {"scheduler": address}}
    raw["tracking"]["uri"], raw["store"]["url"] = f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/store.db"
    wanted = parse(raw)

    def lose(step: str, message: str) -> None:
        if "read as a stream" in message:
            process.kill()

    with pytest.raises(EngineError, match="scheduler is gone") as error:
        run.run(wanted, tmp_path / "out", progress=lose)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    assert not (tmp_path / "out" / "summary.json").exists()
    with Store(wanted.store.url) as store:
        assert store.entries(wanted.name) == []


def test_a_scheduler_that_does_not_answer_is_refused_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_engine, "CONNECTING", "200ms")
    raw = dump(settings(folder))
    raw["compute"] |= {"engine": "dask", "dask": {"scheduler": "tcp://127.0.0.1:1"}}
    with pytest.raises(EngineError, match=r"does not answer.*compute\.dask\.scheduler"), engines.engine(parse(raw)):
        pass
