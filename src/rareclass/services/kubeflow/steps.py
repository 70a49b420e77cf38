"""The pipeline's steps with files between them: read, call the step, write. One function per Kubeflow component.

Rows travel as Parquet that anybody can read; what a step found travels with the seconds it took, as a zip of JSON and
npz that holds no code (core.portable): whoever can write to the artifact store must not be able to run something here.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import pkgutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rareclass.core
from rareclass.config import Config, ResampleStep, parse, with_environment
from rareclass.core.jsonable import dumps
from rareclass.errors import DataError
from rareclass.services import promotion
from rareclass.services.live.ledger import ACTOR
from rareclass.services.training import engines, lending, results, run, steps

if TYPE_CHECKING:
    from rareclass.core.dataset import Rows


@dataclass(frozen=True)
class Kept:
    """What a step found, and the seconds it took."""

    value: Any
    seconds: dict[str, float]


def _timed(path: str, step: str, function: Callable[[], Any]) -> Any:
    start = time.monotonic()
    value = function()
    _dump(path, Kept(value, {step: time.monotonic() - start}))
    return value


def _types() -> list[type]:
    """Everything that may travel between steps: the values of core, the rows that were read,
    and what the steps return.
    """
    from rareclass.adapters.tables import Ingested

    found: dict[str, type] = {
        each.__name__: each for each in (Kept, Ingested, ResampleStep, *vars(steps).values()) if isinstance(each, type)
    }
    for module in pkgutil.iter_modules(rareclass.core.__path__, "rareclass.core."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.name and name[0] != "_":
                found.setdefault(name, value)  # of two of one name the second is refused when it is written
    return list(found.values())


def _dump(path: str, kept: Kept) -> None:
    from rareclass.core import portable

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with zipfile.ZipFile(temporary, "w") as archive:
        for name, content in portable.pack(kept, _types(), small=False).items():
            archive.writestr(name, content)
    temporary.replace(target)


def _load(path: str) -> Kept:
    from rareclass.core import portable

    try:
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile:
        raise DataError(f"'{path}' is not what a step of this version leaves. Run the pipeline again") from None
    found = portable.unpack(files, _types())
    assert isinstance(found, Kept)
    return found


def _settings(config: str) -> Config:
    return parse(with_environment(json.loads(config)))


def _failure_logged(step: Callable[..., Any]) -> Callable[..., Any]:
    """Leave a FAILED MLflow run of a step that does not come to its end, as a run in one process does."""

    @functools.wraps(step)
    def logged(config: str, *arguments: Any, **options: Any) -> Any:
        with results.failures_logged(_settings(config), now=steps.utc_now(), reason=f"pipeline step {step.__name__}"):
            return step(config, *arguments, **options)

    return logged


def _rows(path: str) -> Rows:
    from rareclass.adapters import tables

    return tables.read_rows(path)


@_failure_logged
def ingest(
    config: str, ingested_path: str, train_path: str, validation_path: str, test_path: str, *, repair: str = ""
) -> dict[str, float]:
    """Read the source once into three Parquet files; returns rows and positives for the pipeline's own display.

    repair : empty, or JSON of the repair that this run is (see ``_relearned``): its rows are the history that serves
        best
    """
    from rareclass.adapters import tables

    settings = _settings(config)

    def read() -> Any:
        if repair:
            rows = _relearned(settings, json.loads(repair))
        else:
            with engines.engine(settings) as workers:
                rows = steps.ingest(settings, engine=workers)
        rows = replace(rows, beyond=None)  # the other steps have files of rows: they judge on the weighted sample
        rows = steps.with_incumbent(settings, rows, run.champion(settings))
        return lending.with_lender(settings, rows, steps.silent)

    found = _timed(ingested_path, "ingest", read)
    parts = {
        "train": (train_path, found.train),
        "validation": (validation_path, found.validation),
        "test": (test_path, found.test),
    }
    for path, rows in parts.values():
        tables.write_rows(path, rows)
    return {
        f"{name}_{what}": float(value)
        for name, (_, rows) in parts.items()
        for what, value in (("rows", len(rows)), ("positives", rows.positives))
    }


def _relearned(settings: Config, repair: Mapping[str, Any]) -> Any:
    """Rows of a retrain: the training history and the served rows whose labels had matured when it was decided.

    repair : number of the repair in the ledger, the moment of the decision, the reason
    """
    from rareclass.services.live import repair as repairing
    from rareclass.services.live.monitor import Monitor

    own = Monitor(settings)
    try:
        found, numbers = repairing.relearned(settings, datetime.fromisoformat(repair["now"]), monitor=own)
    finally:
        own.close()
    reason = f"{repair['reason']}. {numbers['reason']}"
    found.card.update(repair=repair["number"], reason=reason, actor=ACTOR, history=numbers)
    return found


@_failure_logged
def detect_imbalance(
    config: str, ingested_path: str, train_path: str, validation_path: str, plan_path: str
) -> list[str]:
    """Diagnose and plan; returns the names of the groups to fan out over."""
    settings = _settings(config)
    lender = None if settings.transfer.source is None else _load(ingested_path).value.lender
    plan = _timed(
        plan_path,
        "detect_imbalance",
        lambda: steps.detect_imbalance(settings, _rows(train_path), _rows(validation_path), lender=lender),
    )
    return list(plan.groups)


@_failure_logged
def resample(
    config: str, group: str, plan_path: str, train_path: str, validation_path: str, resampled_path: str
) -> int:
    """Rebalance the training rows of every fold for one group; returns how many rows came out (0: left as they are)."""
    from rareclass.adapters import tables

    settings = _settings(config)
    dev, folds = steps.development(settings, _rows(train_path), _rows(validation_path))
    rows = steps.resample(settings, dev, folds, _load(plan_path).value.groups[group])
    tables.write_rows(resampled_path, dev.take(slice(0, 0)) if rows is None else rows)
    return 0 if rows is None else len(rows)


@_failure_logged
def train_group(
    config: str,
    group: str,
    plan_path: str,
    train_path: str,
    validation_path: str,
    resampled_path: str,
    trained_path: str,
) -> int:
    """Fit the candidates of one group; returns how many were fitted."""
    settings, plan = _settings(config), _load(plan_path).value
    dev, folds = steps.development(settings, _rows(train_path), _rows(validation_path))
    members = plan.groups[group]
    budget = steps.budget(settings, plan.seconds[group], plan.candidates)

    def fit() -> Any:
        if len(members) > 1 and engines.fits_a_worker(settings, dev):
            with engines.engine(settings) as workers:
                if workers.workers:
                    return engines.train(workers, settings, members, (dev, folds), budget)
        resampled = None if group == "none" else _rows(resampled_path)
        return steps.train(settings, dev, folds, members, resampled, budget)

    fitted = _timed(trained_path, "train", fit)
    return len(fitted)


@_failure_logged
def select(
    config: str,
    plan_path: str,
    train_path: str,
    validation_path: str,
    trained_paths: Sequence[str],
    selection_path: str,
) -> str:
    """Compare all candidates; returns the winner's name."""
    settings = _settings(config)
    dev, _ = steps.development(settings, _rows(train_path), _rows(validation_path))
    trained, seconds = _trained(_load(plan_path).value, trained_paths)
    start = time.monotonic()
    chosen = steps.select(settings, dev, trained)
    _dump(selection_path, Kept((chosen, trained), {**seconds, "select": time.monotonic() - start}))
    return str(chosen.winner)


def _trained(plan: steps.Plan, paths: Sequence[str]) -> tuple[list[Any], dict[str, float]]:
    """All fitted candidates, in the order of the plan whatever order the parallel steps ended in."""
    parts = [_load(path) for path in paths]
    order = {
        candidate.name: position
        for position, candidate in enumerate(each for group in plan.groups.values() for each in group)
    }
    fitted = [one for part in parts for one in part.value]
    known = sorted(fitted, key=lambda one: order.get(one.candidate.name, len(order)))
    return known, {"train": sum(part.seconds["train"] for part in parts)}


@_failure_logged
def tune_threshold(config: str, train_path: str, validation_path: str, selection_path: str, tuning_path: str) -> float:
    """Calibrate and tune the operating points; returns the threshold that decides."""
    settings = _settings(config)
    chosen, _ = _load(selection_path).value
    dev, _ = steps.development(settings, _rows(train_path), _rows(validation_path))
    tuning = _timed(tuning_path, "tune_threshold", lambda: steps.tune_threshold(settings, dev, chosen))
    return float(tuning.thresholds[tuning.primary])


@_failure_logged
def evaluate(
    config: str,
    ingested_path: str,
    train_path: str,
    validation_path: str,
    test_path: str,
    selection_path: str,
    tuning_path: str,
    judgement_path: str,
) -> dict[str, float]:
    """Touch the test rows once and judge; returns the metrics."""
    from rareclass.core import hashing

    settings = _settings(config)
    chosen, trained = _load(selection_path).value
    dev, _ = steps.development(settings, _rows(train_path), _rows(validation_path))
    test, tuning, ingested = _rows(test_path), _load(tuning_path).value, _load(ingested_path).value
    judged = _timed(
        judgement_path,
        "evaluate",
        lambda: steps.evaluate(
            settings,
            dev,
            test,
            steps.Recipe(trained, chosen, tuning),
            steps.Incumbent(
                ingested.incumbent,
                ingested.incumbent_everywhere,
                promotion.looks(settings, hashing.of_rows(test.row_id, test.y)),
            ),
        ),
    )
    values = {name: metric.value for name, metric in judged.evaluation.metrics.items()}
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def register(
    config: str,
    ingested_path: str,
    plan_path: str,
    train_path: str,
    validation_path: str,
    selection_path: str,
    tuning_path: str,
    judgement_path: str,
    details_path: str,
    *,
    now: datetime | None = None,
) -> str:
    """Refit on every labelled row, log everything, register what the gate admits; returns the version or ''."""
    settings = _settings(config)
    kept = {
        name: _load(path)
        for name, path in (
            ("ingested", ingested_path),
            ("plan", plan_path),
            ("selection", selection_path),
            ("tuning", tuning_path),
            ("judged", judgement_path),
        )
    }
    dev, _ = steps.development(settings, _rows(train_path), _rows(validation_path))
    chosen, trained = kept["selection"].value
    ingested, tuning, judged = (kept[name].value for name in ("ingested", "tuning", "judged"))
    seconds = {step: value for each in kept.values() for step, value in each.seconds.items()}
    when = now or steps.utc_now()
    start = time.monotonic()
    with results.failures_logged(settings, now=when, reason="pipeline step register"):
        model = steps.refit(settings, ingested, dev, steps.Recipe(trained, chosen, tuning), judged, now=when)
    seconds["refit"] = time.monotonic() - start
    made = steps.Run(settings, ingested, dev, kept["plan"].value, trained, chosen, tuning, judged, model, seconds)
    card = ingested.card
    details = results.register(made, now=when, reason=card.get("reason", "run"), actor=card.get("actor"))
    results.write(Path(details_path), dumps(details))
    return details["summary"]["version"] or ""


def promote(config: str, details_path: str, summary_path: str, report_path: str, *, now: datetime | None = None) -> str:
    """Give the registered version its role and leave summary and report; returns the role or ''."""
    settings, details = _settings(config), json.loads(Path(details_path).read_text(encoding="utf-8"))
    card = details["data_card"]
    role = results.promote(
        settings,
        details["summary"]["version"],
        now=now or steps.utc_now(),
        reason=card.get("reason", "run"),
        actor=card.get("actor"),
        challenger=details["gate"]["challenger"],
    )
    ended = results.with_role(details, role)
    results.write(Path(summary_path), dumps(ended))
    results.write(Path(report_path), results.logged_report(settings, ended))
    return role or ""
