"""The training pipeline: one function per step, in the order the data walks.

A Kubeflow component calls exactly one of the steps; ``run`` calls the same ones in the same order in one process.
Steps take and return plain objects; files, MLflow and the store are touched by ``ingest``, ``register`` and ``promote``
only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import rareclass
from rareclass.config import Config, public
from rareclass.core import candidates
from rareclass.core.engines import ALONE, ComputeEngine
from rareclass.errors import ConfigError, RareclassError

if TYPE_CHECKING:
    from rareclass.adapters.tables import Ingested
    from rareclass.core.bootstrap import Sample
    from rareclass.core.calibration import Calibration
    from rareclass.core.candidates import Candidate
    from rareclass.core.conformal import Conformal
    from rareclass.core.costs import CostArrays
    from rareclass.core.crossfitting import CrossFitting
    from rareclass.core.dataset import FloatArray, Rows
    from rareclass.core.diagnosis import Diagnosis
    from rareclass.core.estimate import Estimate
    from rareclass.core.evaluation import Evaluation
    from rareclass.core.gating import Champion, GateDecision, NotComparable
    from rareclass.core.importance import Importance
    from rareclass.core.model import RareModel
    from rareclass.core.search import GroupBudget
    from rareclass.core.selection import Selection, SelectionRules
    from rareclass.core.selection_metrics import SelectionCriterion
    from rareclass.core.splitting import Fold
    from rareclass.core.thresholds import TunedThreshold
    from rareclass.core.training import Trained
    from rareclass.core.transfer import Lender
    from rareclass.services.training.beyond import ScoredBeyond, ScoredPart

Progress = Callable[[str, str], None]
"""Called with the step and what it is doing."""


def silent(step: str, message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Plan:
    """What ``detect_imbalance`` found and what is worth trying.

    groups : resampling chain -> candidates that train on its rows
    seconds : budget of each group, in seconds of wall time
    """

    diagnosis: Diagnosis
    groups: Mapping[str, Sequence[Candidate]]
    seconds: Mapping[str, float]

    @property
    def candidates(self) -> int:
        """How many candidates there are in all groups."""
        return sum(len(members) for members in self.groups.values())


@dataclass(frozen=True)
class Tuning:
    """Calibrator and thresholds, fitted on scores of rows the models had not seen."""

    calibration: Calibration
    points: Mapping[str, TunedThreshold]
    primary: str
    score: FloatArray
    """(n_scored,) calibrated out-of-fold scores, in the order of the scored development rows"""
    sampled: FloatArray | None = None
    """of a table that is larger than memory: (n,) the same of the sample's scored development rows;
    ``score`` is of all
    """

    @property
    def thresholds(self) -> dict[str, float]:
        """Cut-off by operating point."""
        return {name: point.value for name, point in self.points.items()}


@dataclass(frozen=True)
class Judgement:
    """What the test rows said, once."""

    evaluation: Evaluation
    score: FloatArray
    """(n_test,) calibrated scores of the recipe fitted on the development rows"""
    decision: GateDecision
    champion: str | None = None
    champion_metrics: Mapping[str, Any] = field(default_factory=dict)
    """on the test rows the champion was not trained on; empty where there are none"""
    champion_left_out: str | None = None
    """why the champion cannot be compared; None where it can, and where there is none"""
    prequential: Sequence[Mapping[str, Any]] = ()
    """windows of ``split.prequential``, oldest first: the recipe fitted before each, and its average precision in it"""
    importance: Sequence[Importance] = ()
    """what drives the scores on the test rows, the greatest first; looked at after the verdict,
    nothing is chosen by it
    """
    tradeoff: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """cost and alerts at every threshold, on the test rows"""
    learner: Any = None
    """the very fit that was judged, on the development rows: what ``train.refit: none`` serves"""
    sampled: FloatArray | None = None
    """of a table that is larger than memory: (n,) the same of the sample's test rows; ``score`` is of all test rows"""
    detection: Mapping[str, Any] | None = None
    """what can be said of a detector that no label chose: agreement, uniformity of p-values; None where labels chose"""
    crossed: CrossFitting | None = None
    """what the gate judged instead of the test rows, which hold too few positives; None where the test rows judged"""


@dataclass(frozen=True)
class Run:
    """Everything a run made, from the rows to the refitted model."""

    config: Config
    ingested: Ingested
    dev: Rows
    plan: Plan
    trained: Sequence[Trained]
    chosen: Selection
    tuning: Tuning
    judged: Judgement
    model: RareModel
    seconds: Mapping[str, float]
    drawn: Estimate | None = None
    """of a table that is larger than memory: what half as many negatives to train on would cost in average precision"""


def ingest(config: Config, progress: Progress = silent, engine: ComputeEngine = ALONE) -> Ingested:
    """Read the source once; check, split and encode it. Raises DataError. engine : whose workers read its parts"""
    from rareclass.adapters import tables

    progress("ingest", f"reading {config.data.path}")
    return tables.ingest(config, progress=lambda message: progress("ingest", message), engine=engine)


def development(config: Config, train: Rows, validation: Rows) -> tuple[Rows, Any]:
    """Return the development rows and the folds that score them; the same for every caller."""
    known, folds, _ = _development(config, train, validation)
    return known, folds


def _development(config: Config, train: Rows, validation: Rows) -> tuple[Rows, Any, int]:
    """Return what `development` returns, and how many folds there would be without haste."""
    from rareclass.core import planning, splitting

    known, folds = splitting.development(
        train, validation, config=config.split, label_delay=config.data.label_delay, seed=config.train.seed
    )
    if config.search.replay is not None:  # as many as then, whatever is affordable now
        return known, folds[-_recorded(config.search.replay).folds :], len(folds)
    return known, planning.affordable(folds, known, config.search), len(folds)


def detect_imbalance(
    config: Config, train: Rows, validation: Rows, progress: Progress = silent, lender: Lender | None = None
) -> Plan:
    """Say how rare, how hard, what regime, and plan the candidates:
    detectors alone where no classifier can be fitted.

    lender : of a related domain
    """

    progress("detect_imbalance", "how rare, how hard, what is worth trying")
    known, folds, every = _development(config, train, validation)
    found = diagnosed(config, known)
    wanted: Sequence[Candidate]
    if config.search.replay is not None:
        wanted = [replace(one, lender=lender) for one in _recorded(config.search.replay).candidates]
    else:
        found, wanted = planned(config, known, folds, found, lender)
        if found.regime == "none":
            progress("detect_imbalance", wanted[0].reason)
    if len(folds) < every:
        fewer = f"candidates are judged on {len(folds)} of {every} folds, as many as search.seconds allows"
        progress("detect_imbalance", fewer)
        found = replace(found, notes=(*found.notes, fewer))
    groups = candidates.group_by_resampler(wanted)
    return Plan(found, groups, budgets(config, groups))


def diagnosed(config: Config, rows: Rows, part: Diagnosis | None = None) -> Diagnosis:
    """Return what a run says of the imbalance of labelled rows; see `diagnosis.diagnose`."""
    from rareclass.core import diagnosis

    threads = config.compute.processors()
    return diagnosis.diagnose(rows, config.regime, config.evaluate, seed=config.train.seed, threads=threads, part=part)


def planned(
    config: Config, rows: Rows, folds: Sequence[Fold], found: Diagnosis, lender: Lender | None = None
) -> tuple[Diagnosis, tuple[Candidate, ...]]:
    """Return what a run tries on development rows, with its regime; see `planning.plan_for`."""
    from rareclass.core import planning

    return planning.plan_for(
        rows,
        folds,
        found,
        config.search,
        data=config.data,
        by_amount=config.costs.amount_share is not None,
        lender=lender,
    )


@dataclass(frozen=True)
class Recording:
    """What a run recorded: its candidates in order, and on how many folds, the last ones, they were fitted (0: all)."""

    candidates: tuple[Candidate, ...]
    folds: int


def _recorded(path: str) -> Recording:
    """Return what `search.replay` names. Raises ConfigError where that is no record of a run."""
    try:
        file = os.stat(path)
        return _recording(path, (file.st_mtime_ns, file.st_size, file.st_ino))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"search.replay '{path}' is not a trials.json of a run ({type(error).__name__}). "
            "Set it to OUT/trials.json of a finished run"
        ) from None


@lru_cache(maxsize=1)
def _recording(path: str, state: tuple[int, ...]) -> Recording:
    """The record in this state of its file: folds, plan and order of one run come from one reading."""
    from rareclass.core import search

    trials = json.loads(Path(path).read_text(encoding="utf-8"))["trials"]
    return Recording(search.replayed(trials), search.folds_of(trials))


def as_recorded(config: Config, trained: Sequence[Trained]) -> list[Trained]:
    """Return the fits of a replay in the order they were recorded in, whatever groups they were made in: sums and ties
    go by it.
    """
    if config.search.replay is None:
        return list(trained)
    place = {candidate.name: number for number, candidate in enumerate(_recorded(config.search.replay).candidates)}
    return sorted(trained, key=lambda one: place.get(one.candidate.name, len(place)))


def budgets(config: Config, groups: Mapping[str, Sequence[Candidate]]) -> dict[str, float]:
    """Divide ``search.seconds`` over the groups by their candidates; the group of candidate 0 counts double."""
    shares = {
        name: len(members) + (1 if position == 0 else 0) for position, (name, members) in enumerate(groups.items())
    }
    whole = sum(shares.values())
    return {name: config.search.seconds * share / whole for name, share in shares.items()}


def resample(
    config: Config, dev: Rows, folds: Any, members: Sequence[Candidate], progress: Progress = silent
) -> Rows | None:
    """Rebalance the training rows of every fold for one group; None where the group leaves rows as they are."""
    from rareclass.core import training

    chain = members[0].resample
    if members[0].group == "none":
        return None
    progress("resample", members[0].group)
    return training.resample_folds(chain, dev, folds, seed=config.train.seed, threads=config.compute.processors())


def budget(config: Config, seconds: float, planned: int | None = None) -> GroupBudget:
    """Return what the candidates of a group may spend from now on.

    planned : candidates of all groups together
    """
    from rareclass.core.search import GroupBudget

    return GroupBudget(seconds, time.monotonic, config.compute.processors(), planned, config.compute.device)


def train(
    config: Config,
    dev: Rows,
    folds: Any,
    members: Sequence[Candidate],
    resampled: Rows | None,
    may_spend: GroupBudget,
    progress: Progress = silent,
) -> list[Trained]:
    """Fit the candidates of one group on every fold, until the budget is spent; the first one is always finished."""
    from rareclass.core import search

    work = search.FoldWork(dev, folds, config.train.seed, costs_of(config, dev, dev), resampled)
    budget = replace(may_spend, progress=lambda message: progress("train", message))
    return search.train_group(members, work, config.search, budget)


def tune(
    config: Config,
    dev: Rows,
    folds: Any,
    trained: Sequence[Trained],
    may_spend: GroupBudget,
    progress: Progress = silent,
) -> list[Trained]:
    """Search the settings of the candidate on untouched rows with what is left, after all candidates were fitted."""
    from rareclass.core import search
    from rareclass.core.training import Effort

    clock, start = may_spend.clock, may_spend.clock()
    trials = search.trials_left(config.search, may_spend.planned or len(trained))
    effort = Effort(
        may_spend.threads,
        config.compute.device,
        out_of_time=lambda: trials is None and clock() - start >= may_spend.seconds,
        clock=clock,
    )
    tuned = search.tune_hyperparameters(
        [one for one in trained if one.candidate.group == "none"],
        search.FoldWork(dev, folds, config.train.seed, costs_of(config, dev, dev)),
        effort,
        trials=trials,
        progress=lambda message: progress("train", message),
    )
    return list(tuned)


def costs_of(config: Config, dev: Rows, rows: Rows) -> CostArrays:
    """Return the costs of mistakes on ``rows``; those that were not set follow from the prevalence that ``dev`` rows
    stand for.
    """
    from rareclass.core import costs

    return costs.cost_arrays(config.costs, dev.weighted_prevalence, rows.amount)


def select(config: Config, dev: Rows, trained: Sequence[Trained], progress: Progress = silent) -> Selection:
    """Compare the candidates on the same out-of-fold rows, paired."""
    from rareclass.core import selection, without_labels

    if without_labels.alone(trained):
        return without_labels.chosen(trained)
    progress("select", f"{len(trained)} candidates, paired on the same rows")
    return selection.select(trained, dev, selection_rules(config), seed=config.train.seed)


def selection_rules(config: Config) -> SelectionRules:
    """Return how candidates are compared."""
    from rareclass.core.selection import SelectionRules

    evaluate = config.evaluate
    return SelectionRules(criterion(config), config.search.ensemble, config.regime, evaluate.confidence)


def criterion(config: Config) -> SelectionCriterion:
    """Return what decides between candidates."""
    from rareclass.core.selection_metrics import SelectionCriterion

    return SelectionCriterion.of(config.search, config.threshold, config.costs)


def tune_threshold(
    config: Config, dev: Rows, chosen: Selection, progress: Progress = silent, *, held_out: ScoredPart | None = None
) -> Tuning:
    """Calibrate and tune the operating points on out-of-fold scores, which are on the natural prevalence already.

    held_out : all held-out rows of a table that is larger than memory, of which ``dev`` is a sample
    """
    from rareclass.core import calibration, thresholds, without_labels
    from rareclass.core.bootstrap import Bootstrap, Sample

    sample = dev.take(chosen.scored), chosen.oof[chosen.scored]
    rows, raw = sample if held_out is None else (held_out.rows, held_out.raw)
    share = rows.represented / dev.represented if held_out is None else 1.0
    span = days(rows, share_of_all(config, dev, (1 - config.split.test) * share))
    if not chosen.compared:
        progress("tune_threshold", "p-values from held-out rows, cut-offs by rate")
        fitted = without_labels.calibrated(rows, raw)
        score = fitted.calibrator(raw)
        points = without_labels.cut_offs(config.threshold, cast("Conformal", fitted.calibrator), len(rows), span)
    else:
        progress("tune_threshold", "calibrate, then sweep every distinct score")
        known = Sample(rows.y, raw, weight=rows.weight, block=rows.block())
        fitted = calibration.fit(known, method=config.threshold.calibration, seed=config.train.seed)
        score = fitted.calibrator(raw)
        points = thresholds.tune_points(
            replace(known, score=score),
            config.threshold,
            costs=costs_of(config, dev, rows),
            days=span,
            bootstrap=Bootstrap.of(config.evaluate, config.train.seed),
        )
    sampled = None if held_out is None else fitted.calibrator(sample[1])
    return Tuning(fitted, points, next(iter(points)), score, sampled)


def share_of_all(config: Config, rows: Rows, spread: float) -> float:
    """Return the share that scored rows are of all rows of their period: by time it is all of them, otherwise
    ``spread``, because the others lie on the same days, and a day has more alerts than those on the scored rows."""
    from rareclass.core import splitting

    kind = splitting.resolve_kind(config.split, has_time=rows.time is not None, has_entity=rows.entity is not None)
    return 1.0 if kind == "time" else spread


def days(rows: Rows, share: float = 1.0) -> float | None:
    """Length of the period the rows cover, in days of all rows, of which these are a share; None without time."""
    import numpy as np

    if rows.time is None or not len(rows):
        return None
    span = (rows.time.max() - rows.time.min()) / np.timedelta64(1, "D")
    return max(float(span), 1.0) * share


def fit_recipe(
    config: Config,
    trained: Sequence[Trained],
    chosen: Selection,
    rows: Rows,
    seed: int | None = None,
    once: bool = False,
) -> Any:
    """Fit the selected recipe (one candidate or an ensemble) on the given rows.

    seed : ``train.seed`` where it is not given · once : without an average of several seeds
    """
    from rareclass.core import training

    members = [one for one in trained if one.candidate.name in chosen.weights]
    return training.refit(
        members,
        chosen.weights,
        rows,
        seed=config.train.seed if seed is None else seed,
        threads=config.compute.processors(),
        device=config.compute.device,
        once=once,
    )


def with_incumbent(
    config: Config, ingested: Ingested, found: tuple[str, RareModel] | NotComparable | None, progress: Progress = silent
) -> Ingested:
    """Let the champion score the test rows, or say why it cannot be compared; done before anything is fitted.

    It reads its own columns: as they were encoded where nothing of them was lost, else from the source once more.
    Whatever stands against that is a reason, never an end of the run.
    """
    from rareclass.core import dataset, splitting
    from rareclass.core.gating import Champion

    parts = [ingested.train, ingested.validation, ingested.test]
    everywhere, crossed = None, who_judges(config, parts) == ""
    if ingested.beyond is not None:
        parts[-1] = replace(ingested.beyond.rows["test"], schema=ingested.schema)
    judges = dataset.concatenate(parts) if crossed else parts[-1]
    incumbent = _incumbent(config, ingested, judges, found, progress)
    taught = sum(part.positives for part in parts) >= splitting.FEWEST  # below, detectors have a rule of their own
    if config.gate.mode == "enabled" and taught and (hopeless := undecidable(config, parts, judges, incumbent)):
        progress("gate", f"warning: {hopeless}")
    if crossed and isinstance(incumbent, Champion):
        everywhere, incumbent = incumbent, incumbent.take(_last(len(judges), len(ingested.test)))
    return replace(ingested, incumbent=incumbent, incumbent_everywhere=everywhere)


def _last(rows: int, test: int) -> Any:
    import numpy as np

    return np.arange(rows - test, rows)


def who_judges(config: Config, parts: Sequence[Rows]) -> str | None:
    """Say who judges: None for the test rows, the last of the parts; "" for all rows by cross-fitting, because the test
    rows hold too few positives; else why cross-fitting cannot do it either, so that nobody judges."""
    from rareclass.core import crossfitting

    if config.gate.mode == "disabled" or parts[-1].positives >= config.gate.min_positives:
        return None
    if any(part.drawn is not None for part in parts):
        return "cross-fitting over all rows is left out for a table that is larger than compute.memory"
    positives, rows = sum(part.positives for part in parts), sum(len(part) for part in parts)
    return crossfitting.why_not(positives, rows, config.gate, config.evaluate.cross_fitting_repeats) or ""


def undecidable(config: Config, parts: Sequence[Rows], judges: Rows, incumbent: Champion | NotComparable | None) -> str:
    """Say, before anything is fitted, why the gate will not be able to decide; empty where it may.

    parts : the test rows last · judges : the rows that the gate will judge on · incumbent : on these
    """
    from rareclass.core.gating import Champion

    needed, ways = config.gate.min_positives, "Set gate.mode: dry_run to register it all the same"
    if unable := who_judges(config, parts):
        return (
            f"this run can register nothing: the test rows hold {parts[-1].positives} positives, and the gate judges "
            f"{needed} "
            f"(gate.min_positives); {unable}. Bring more labelled rows, or a larger split.test"
        )
    if not isinstance(incumbent, Champion):
        return ""
    fresh = int(judges.y[incumbent.compared].sum())
    if fresh >= needed:
        return ""
    which = "test rows" if judges is parts[-1] else "labelled rows"
    return (
        f"this run can register nothing: {incumbent.name} was trained on all but {fresh} of the {judges.positives} "
        f"positives of the {which}, "
        f"and {needed} are needed to compare (gate.min_positives). Bring rows that are newer than its own. {ways}, "
        "with promotion.mode: shadow so that live labels decide"
    )


def _incumbent(
    config: Config,
    ingested: Ingested,
    rows: Rows,
    found: tuple[str, RareModel] | NotComparable | None,
    progress: Progress,
) -> Champion | NotComparable | None:
    from rareclass.core.gating import NotComparable

    if found is None or isinstance(found, NotComparable):
        return found
    name, model = found
    return replace(_compared(config, ingested, rows, name, model, progress), unjudged=model.meta.get("judged") is False)


def _compared(
    config: Config, ingested: Ingested, rows: Rows, name: str, model: RareModel, progress: Progress
) -> Champion | NotComparable:
    from rareclass.core.gating import NotComparable
    from rareclass.core.incumbent import other_question, unseen

    different = other_question(model.meta, config.data, ingested.positive_value)
    if different is not None:
        return NotComparable(name, different)
    fresh = unseen(model, rows, config.data)
    if fresh is None:
        return NotComparable(
            name,
            (
                "it cannot be told which of the test rows it was trained on. "
                "Set data.time or data.id, so that rows are "
                "known again"
            ),
        )
    progress("ingest", f"{name} scores the rows that judge")
    try:
        return _on_own_columns(config, ingested, rows, name, model, fresh)
    except RareclassError as error:
        return NotComparable(name, " ".join(str(error).split()))


def _on_own_columns(
    config: Config, ingested: Ingested, test: Rows, name: str, model: RareModel, fresh: Any
) -> Champion:
    import numpy as np

    from rareclass.adapters import tables
    from rareclass.core.gating import Champion

    if ingested.beyond is not None:
        from rareclass.services.training import beyond

        score, decision = beyond.champion_scores(ingested.beyond, model)
    else:
        there, table = tables.table_for(config, test, model.schema)
        score, decision = np.full(len(test), np.nan), np.zeros(len(test), dtype=bool)
        score[there] = model.score(table)
        decision[there] = model.decide(score[there])
    only = [column for column in model.schema.names if column not in test.schema.names]
    note = f"{name} also reads {', '.join(map(repr, only[:5]))}, which this run does not" if only else ""
    mask = np.isin(np.arange(len(test)), fresh)
    return Champion(score, unseen=mask, decision=decision, threshold=model.threshold(), name=name, note=note)


@dataclass(frozen=True)
class Recipe:
    """What the development rows decided: how a version is made.

    beyond : all rows of a table that is larger than memory, with the fit that scored them; the rows at hand are a
        sample of them
    """

    trained: Sequence[Trained]
    chosen: Selection
    tuning: Tuning
    beyond: ScoredBeyond | None = None


@dataclass(frozen=True)
class Incumbent:
    """What a recipe is compared with.

    champion : on the test rows · everywhere : on development and test rows, for cross-fitting
    looks : runs that were judged on these very test rows before, by the ledger
    """

    champion: Champion | NotComparable | None = None
    everywhere: Champion | None = None
    looks: int = 0


def evaluate(
    config: Config,
    dev: Rows,
    test: Rows,
    recipe: Recipe,
    incumbent: Incumbent | None = None,
    progress: Progress = silent,
) -> Judgement:
    """Fit the recipe on the development rows, touch the test rows once, compare with the champion and judge; where the
    test rows hold too few positives, judge by cross-fitting over all rows.
    """
    from rareclass.core import dataset as tables
    from rareclass.core import evaluation, gating, importance, tradeoff, without_labels
    from rareclass.core.bootstrap import Bootstrap, Sample

    trained, chosen, tuning, beyond = recipe.trained, recipe.chosen, recipe.tuning, recipe.beyond
    held = incumbent or Incumbent()
    champion, everywhere, looks = held.champion, held.everywhere, held.looks
    sample = test
    if beyond is not None:
        test = beyond.test.rows
    progress("evaluate", f"the test rows, once: {len(test)} rows, {test.positives} positives")
    learner = fit_recipe(config, trained, chosen, dev) if beyond is None else beyond.learner
    score = tuning.calibration.calibrator(learner.score(test.x) if beyond is None else beyond.test.raw)
    money = costs_of(config, dev, test)
    share = share_of_all(config, test, config.split.test)
    judging = Sample(test.y, score, test.weight, test.block(), test.time, share)
    found = evaluation.evaluate(
        judging,
        thresholds=tuning.thresholds,
        primary=tuning.primary,
        costs=money,
        config=config.evaluate,
        rows=test,
        seed=config.train.seed,
    )
    sampled = None if beyond is None else tuning.calibration.calibrator(learner.score(sample.x))
    if not chosen.compared:
        judged = _of_detector(config, test, learner, judging, found, tuning, held)
        return replace(judged, sampled=sampled)
    metrics = _champion_metrics(config, test, champion, score) if isinstance(champion, gating.Champion) else {}
    crossed, unless = cross_fitting(config, dev, sample, trained, chosen, progress)
    progress("gate", "approve, reject or not enough evidence")
    bootstrap = Bootstrap.of(config.evaluate, config.train.seed)
    if crossed is None:
        asked = gating.JudgedRows(judging, unless=unless, looks=looks)
        decision = gating.judge(found, asked, champion, config.gate, costs=money, bootstrap=bootstrap)
    else:
        judges = tables.concatenate([dev, sample]).take(crossed.rows)
        other = champion if everywhere is None else everywhere.take(crossed.rows)
        sampled_rows = Sample(judges.y, crossed.score, judges.weight, judges.block())
        asked = gating.JudgedRows(sampled_rows, crossed.flagged, where=crossed.reason, looks=looks)
        prices = costs_of(config, dev, judges)
        decision = gating.judge(crossed.evaluation, asked, other, config.gate, costs=prices, bootstrap=bootstrap)
    decision = without_labels.beside(config.gate, decision, champion, dev.positives + test.positives)
    windows = prequential(config, tables.concatenate([dev, sample]), trained, chosen, progress)
    progress("evaluate", "what drives the scores")
    drives = importance.permutation_importance(
        sample,
        lambda x: tuning.calibration.calibrator(learner.score(x)),
        repeats=config.evaluate.importance_repeats,
        block=sample.block(),
        n_boot=config.evaluate.bootstraps,
        confidence=config.evaluate.confidence,
        seed=config.train.seed,
    )
    swept = tradeoff.tradeoff(
        test.y,
        score,
        costs=money,
        resamples=bootstrap.of_rows(len(test), judging.block),
        days=days(test, share),
        weight=test.weight,
        confidence=config.evaluate.confidence,
    )
    left_out = champion.reason if isinstance(champion, gating.NotComparable) else None
    name = champion.name if champion else None
    return Judgement(
        found,
        score,
        decision,
        name,
        metrics,
        left_out,
        windows,
        drives,
        swept,
        learner=learner,
        sampled=sampled,
        crossed=crossed,
    )


def _of_detector(
    config: Config,
    test: Rows,
    learner: Any,
    sample: Sample,
    judged: Evaluation,
    tuning: Tuning,
    incumbent: Incumbent,
) -> Judgement:
    """What is known of a detector: how often it alarms, and what few labels there may be in the test rows say."""
    import numpy as np

    from rareclass.core import gating, without_labels
    from rareclass.core.bootstrap import Bootstrap

    champion, score = incumbent.champion, np.asarray(sample.score)
    readable = without_labels.readable(judged, test)
    asked = gating.JudgedRows(sample, looks=incumbent.looks)
    base = gating.judge(
        judged, asked, champion, config.gate, bootstrap=Bootstrap.of(config.evaluate, config.train.seed)
    )
    decision = without_labels.decision(config.gate, base, champion)
    name = champion.name if champion else None
    left_out = champion.reason if isinstance(champion, gating.NotComparable) else None
    said = without_labels.evidence(learner, test, score, tuning)
    return Judgement(readable, score, decision, name, {}, left_out, learner=learner, detection=said)


def cross_fitting(
    config: Config,
    dev: Rows,
    test: Rows,
    trained: Sequence[Trained],
    chosen: Selection,
    progress: Progress = silent,
) -> tuple[CrossFitting | None, str | None]:
    """Cross-fit the recipe over development and test rows where the test rows hold too few positives to judge it.

    Returns None where the test rows judge all the same, and then why, where cross-fitting could not be done.
    """
    from rareclass.core import crossfitting, dataset

    unable = who_judges(config, [dev, test])
    if unable != "":
        return None, unable
    rows, repeats = dataset.concatenate([dev, test]), config.evaluate.cross_fitting_repeats
    procedure = crossfitting.Procedure(
        fit=lambda part, seed: fit_recipe(config, trained, chosen, part, seed),
        shifts=crossfitting.shifts(trained, chosen.weights),
        threshold=config.threshold,
        costs=lambda part: costs_of(config, dev, part),
        days=lambda part, share: days(part, share_of_all(config, part, share)),
    )
    delay, seed = config.data.label_delay, config.train.seed
    try:
        folds = crossfitting.folds(rows, config.split, repeats, label_delay=delay, seed=seed)
        return crossfitting.cross_fit(
            rows,
            folds,
            procedure,
            config=config.evaluate,
            seed=seed,
            reason=lambda judged, parts: (
                f"the test rows hold only {test.positives} positives, so the verdict is by cross-fitting over all rows "
                f"({repeats} repeats of {parts} {'windows forward in time' if judged < len(rows) else 'folds'}): "
                f"its {judged:,} rows"
            ),
            progress=lambda message: progress("evaluate", message),
        ), None
    except RareclassError as error:
        return None, f"cross-fitting over all rows cannot be done: {' '.join(str(error).split())}"


def prequential(
    config: Config, rows: Rows, trained: Sequence[Trained], chosen: Selection, progress: Progress = silent
) -> list[dict[str, Any]]:
    """Fit the recipe again before each of ``split.prequential`` windows and judge it in the window; empty unless asked
    for.

    The recipe was chosen on some of these rows, so the windows tell how steady it is, not how good: that the test says.
    Raises DataError when the rows have no time.
    """
    from rareclass.core import ranking, splitting
    from rareclass.core.bootstrap import Bootstrap

    if not config.split.prequential:
        return []
    found = []
    folds = splitting.prequential(rows, windows=config.split.prequential, label_delay=config.data.label_delay)
    for number, fold in enumerate(folds, 1):
        progress("evaluate", f"prequential window {number} of {len(folds)}")
        window = rows.take(fold.score)
        score = fit_recipe(config, trained, chosen, rows.take(fold.train)).score(window.x)
        ap = ranking.estimate_ap(
            window.y,
            score,
            block=window.block(),
            weight=window.weight,
            bootstrap=Bootstrap.of(config.evaluate, config.train.seed),
        )
        assert window.time is not None
        found.append(
            {
                "from": str(window.time.min()),
                "to": str(window.time.max()),
                "ap": ap.to_json(),
                "trained_on": len(fold.train),
            }
        )
    return found


def _champion_metrics(config: Config, test: Rows, champion: Champion, score: Any) -> dict[str, Any]:
    """Compare on the test rows that the champion was not trained on; empty where they hold no positive."""
    import numpy as np

    from rareclass.core import evaluation, ranking
    from rareclass.core.bootstrap import Bootstrap

    index = np.flatnonzero(champion.compared)
    fresh, old, new = test.take(index), np.asarray(champion.score)[index], score[index]
    if not fresh.positives or champion.decision is None:
        return {}
    block, bootstrap = fresh.block(), Bootstrap.of(config.evaluate, config.train.seed)
    ap = ranking.estimate_ap(fresh.y, old, block=block, weight=fresh.weight, bootstrap=bootstrap)
    difference = ranking.compare(fresh.y, new, old, block=block, weight=fresh.weight, bootstrap=bootstrap)
    decided = evaluation.decision_metrics(fresh.y, np.asarray(champion.decision)[index], fresh.weight)
    keys = ("precision", "recall", "f1", "f2", "mcc")
    return {
        "ap": ap.value,
        "ap_low": ap.low,
        "ap_high": ap.high,
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "rows": len(fresh),
        "positives": fresh.positives,
        "threshold": champion.threshold,
        **{key: float(decided[key]) for key in keys},
    }


def refit(
    config: Config,
    ingested: Ingested,
    dev: Rows,
    recipe: Recipe,
    judged: Judgement,
    *,
    now: datetime,
    progress: Progress = silent,
) -> RareModel:
    """Fit the recipe on every labelled row, or take the judged fit (``train.refit``), and wrap it with all a version
    carries.
    """
    import numpy as np

    from rareclass.core import dataset, drawn, without_labels
    from rareclass.core.model import RareModel
    from rareclass.core.profile import reference_profile

    trained, chosen, tuning, beyond = recipe.trained, recipe.chosen, recipe.tuning, recipe.beyond
    everything = config.train.refit == "all"
    rest = [] if ingested.rest is None else [ingested.rest]
    known = dataset.concatenate([dev, ingested.test, *rest]) if everything else dev
    final = known.learnable()
    progress("refit", f"{chosen.winner} on {len(final)} rows")
    learner = fit_recipe(config, trained, chosen, known) if everything else judged.learner
    scored = dataset.concatenate([dev.take(chosen.scored), ingested.test])
    held_out = np.concatenate(
        [one.score if one.sampled is None else one.sampled for one in (tuning, judged)]  # of the rows at hand
    )
    usual = drawn.natural_mask(scored)
    described: dict[str, Any] = {
        "threshold": tuning.thresholds[tuning.primary],
        "window": config.monitor.window,
        "ranks": judged.detection is not None,
    }
    reference = scored.take(usual)
    profile = reference_profile(reference, held_out[usual], **described)
    if beyond is not None:  # of the scores and decisions on all rows; the features are those of the sample
        from rareclass.services.training.beyond import scored_rows

        reference, score = scored_rows(beyond, (tuning.score, judged.score))
        of_all = reference_profile(reference, score, **described)
        profile = replace(of_all, features=profile.features)
    metrics = {key: value.to_json() for key, value in judged.evaluation.metrics.items()}
    span = (str(final.time.min()), str(final.time.max())) if final.time is not None else (None, None)
    meta = {
        "name": config.name,
        "created": now.isoformat(),
        "rareclass": rareclass.__version__,
        "config": public(config),
        "target": config.data.target,
        "positive": _text(ingested.positive_value),
        "data_hash": ingested.card["content_hash"],
        "trained": {
            "from": span[0],
            "until": span[1],
            "rows": len(final),
            "positives": final.positives,
            "refit": config.train.refit,
        },
        "selected": chosen.winner,
        "members": dict(chosen.weights),
        **({"score": without_labels.SCALE, "judged": False} if judged.detection is not None else {}),
        "calibration": tuning.calibration.chosen,
        "metrics": metrics,
        "prevalence": scored.weighted_prevalence,
        "typical": _typical(drawn.natural_sample(final)),
        "gate": {"verdict": judged.decision.verdict, "reasons": list(judged.decision.reasons)},
    }
    model = RareModel(
        schema=ingested.schema,
        learner=learner,
        calibrator=tuning.calibration.calibrator,
        thresholds=tuning.thresholds,
        primary=tuning.primary,
        profile=profile.to_json(),
        meta=meta,
        trained_ids=None if final.time is not None else np.sort(final.row_id),
    )
    return model.with_golden(_golden(ingested.test))


def _golden(test: Rows, per_class: int = 10) -> Any:
    import numpy as np

    picks = [np.flatnonzero(test.y == value)[:per_class] for value in (1, 0)]
    return test.x[np.concatenate(picks)]


def _typical(rows: Rows, most: int = 100_000) -> list[float | None]:
    """Median of each numeric column and commonest code of each category, for reasons by occlusion."""
    import numpy as np

    sample = rows.x[:: max(1, len(rows) // most)]
    found: list[float | None] = []
    for column, categorical in zip(sample.T, rows.schema.categorical, strict=True):
        present = column[~np.isnan(column)]
        if not len(present):
            found.append(None)
        elif categorical:
            found.append(float(np.bincount(present.astype(int)).argmax()))
        else:
            found.append(float(np.median(present)))
    return found


def _text(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)
