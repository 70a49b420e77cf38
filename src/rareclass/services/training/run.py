"""The whole training pipeline in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.adapters.tracking import check_reachable, untouched
from rareclass.config import Config
from rareclass.core.engines import ALONE, ComputeEngine
from rareclass.core.jsonable import jsonable
from rareclass.errors import ModelError
from rareclass.services import promotion
from rareclass.services.training import engines, lending, results, steps, validate
from rareclass.services.training.steps import Progress, silent

if TYPE_CHECKING:
    from rareclass.adapters.tables import Ingested
    from rareclass.core.dataset import Rows
    from rareclass.core.gating import NotComparable
    from rareclass.core.model import RareModel
    from rareclass.core.training import Trained


class Stopwatch:
    """Seconds by step, in the order the steps first ran."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = self.clock()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + self.clock() - start


def run(
    config: Config, out: Path, *, progress: Progress = silent, now: datetime | None = None, reason: str = "run"
) -> dict[str, Any]:
    """Train, judge, refit, register and promote; leave summary.json and report.html in ``out``. Returns the summary."""

    validate.check(config)
    check_reachable(config.tracking.uri)
    promotion.check_reachable(config)
    results.writable(out)
    watch, when = Stopwatch(), now or steps.utc_now()
    with ExitStack() as stack:
        with watch("ingest"), results.failures_logged(config, now=when, reason=reason):
            engine = stack.enter_context(engines.engine(config))
            ingested = steps.ingest(config, progress, engine)
        context = RunContext(reason, engine=engine)
        return run_rows(config, ingested, out, watch=watch, progress=progress, now=when, context=context)


@dataclass(frozen=True)
class RunContext:
    """Why a run is made, by whom, and where.

    reason, actor : what the ledger says; default: the user of this process
    engine : whose workers train candidates
    """

    reason: str = "retrain"
    actor: str | None = None
    engine: ComputeEngine = ALONE


RETRAIN = RunContext()


def run_rows(
    config: Config,
    ingested: Ingested,
    out: Path | None,
    *,
    now: datetime,
    watch: Stopwatch | None = None,
    progress: Progress = silent,
    context: RunContext = RETRAIN,
) -> dict[str, Any]:
    """The same from rows at hand. Without ``out`` no file is left, only the MLflow run and the version."""
    watch, reason, actor = watch or Stopwatch(), context.reason, context.actor
    from rareclass.core import hashing

    with results.failures_logged(config, now=now, reason=reason):
        made = fit(
            config,
            ingested,
            watch=watch,
            progress=progress,
            now=now,
            registered=Registered(
                lambda: champion(config),
                lambda rows: promotion.looks(config, hashing.of_rows(rows.row_id, rows.y)),
            ),
            engine=context.engine,
        )
    with watch("register"):
        details = results.register(made, now=now, reason=reason, actor=actor, progress=progress)
    with watch("promote"):
        role = results.promote(
            config,
            details["summary"]["version"],
            now=now,
            reason=reason,
            actor=actor,
            challenger=details["gate"]["challenger"],
            progress=progress,
        )
    details["summary"]["seconds"] = jsonable(watch.seconds)
    ended = results.with_role(details, role)
    page = results.logged_report(config, ended)
    return ended["summary"] if out is None else results.write_outputs(ended, out, page)


@dataclass(frozen=True)
class Registered:
    """What the registry and the ledger know when a recipe is to be judged.

    champion : asked for first, so that whatever is wrong with it is known before the search; only its scores stay in
        memory
    looks : how often rows judged a run before
    """

    champion: Callable[[], tuple[str, RareModel] | NotComparable | None] = lambda: None
    looks: Callable[[Rows], int] = lambda rows: 0


def fit(
    config: Config,
    ingested: Ingested,
    *,
    watch: Stopwatch,
    now: datetime,
    progress: Progress = silent,
    registered: Registered | None = None,
    engine: ComputeEngine = ALONE,
) -> steps.Run:
    """Everything up to the refitted model; writes nothing.

    registered : what it is compared with; default: nothing
    engine : whose workers train candidates
    """
    known = registered or Registered()
    with watch("ingest"):
        ingested = steps.with_incumbent(config, ingested, known.champion(), progress)
        ingested = lending.with_lender(config, ingested, progress)
    with watch("detect_imbalance"):
        plan = steps.detect_imbalance(config, ingested.train, ingested.validation, progress, ingested.lender)
        dev, folds = steps.development(config, ingested.train, ingested.validation)
    if engine.workers and engines.fits_a_worker(config, dev):
        with watch("train"):
            members = [candidate for group in plan.groups.values() for candidate in group]
            budget = steps.budget(config, config.search.seconds)
            trained = engines.train(engine, config, members, (dev, folds), budget, progress)
    else:
        trained = _train_here(config, plan, dev, folds, watch, progress)
    trained = steps.as_recorded(config, trained)
    with watch("select"):
        chosen = steps.select(config, dev, trained, progress)
    with watch("tune_threshold"):
        scored = None
        if ingested.beyond is not None:
            from rareclass.core import crossfitting
            from rareclass.services.training import beyond

            scored = beyond.score(
                config,
                ingested,
                dev,
                folds,
                lambda rows, once: steps.fit_recipe(config, trained, chosen, rows, once=once),
                shifts=crossfitting.shifts(trained, chosen.weights),
                progress=lambda message: progress("tune_threshold", message),
            )
        tuning = steps.tune_threshold(
            config, dev, chosen, progress, held_out=None if scored is None else scored.held_out
        )
    recipe = steps.Recipe(trained, chosen, tuning, scored)
    with watch("evaluate"):
        incumbent = steps.Incumbent(ingested.incumbent, ingested.incumbent_everywhere, known.looks(ingested.judging))
        judged = steps.evaluate(config, dev, ingested.test, recipe, incumbent, progress)
    with watch("refit"):
        model = steps.refit(config, ingested, dev, recipe, judged, now=now, progress=progress)
    cost = None if scored is None else scored.half
    return steps.Run(config, ingested, dev, plan, trained, chosen, tuning, judged, model, watch.seconds, cost)


def _train_here(
    config: Config, plan: steps.Plan, dev: Rows, folds: Any, watch: Stopwatch, progress: Progress
) -> list[Trained]:
    """Fit group after group in this process; what one leaves of its budget the next ones may use."""
    trained: list[Trained] = []
    saved = 0.0
    for name, members in plan.groups.items():
        with watch("resample"):
            resampled = steps.resample(config, dev, folds, members, progress)
        start = time.monotonic()
        with watch("train"):
            trained += steps.train(
                config,
                dev,
                folds,
                members,
                resampled,
                steps.budget(config, plan.seconds[name] + saved, plan.candidates),
                progress,
            )
        saved = max(0.0, saved + plan.seconds[name] - (time.monotonic() - start))
    return trained


def champion(config: Config) -> tuple[str, RareModel] | NotComparable | None:
    """Return the registered champion and its name, None when there is none yet.

    One that cannot be loaded (files gone or changed, a newer format) is not comparable. Raises ModelError when the
    registry does not answer.
    """

    if untouched(config.tracking.uri):  # nobody's champion: MLflow need not be in memory
        return None
    from rareclass.adapters.registry import Registry
    from rareclass.core.gating import NotComparable

    registry = Registry(config.tracking.uri)
    version = registry.at(config.name, "champion")
    if version is None:
        return None
    name = f"version {version.version}"
    try:
        return name, registry.load(version)
    except ModelError as error:
        return NotComparable(name, f"it cannot be loaded: {' '.join(str(error).split())}")
