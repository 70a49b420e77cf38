"""Judge a recipe by repeated cross-fitting over all rows, where the test part holds too few positives to tell anything.

The recipe (its candidates, weights and rounds) stays as it was selected; every fold fits it anew, and calibrator and
threshold are learned from scores of rows that the fold's fit knew the labels of, never from the rows they are judged
on. What selection chose among candidates was chosen on part of these rows, so the figures flatter a little more than an
untouched test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rareclass import config as settings
from rareclass.core import calibration, evaluation, splitting, thresholds, training
from rareclass.core.bootstrap import Bootstrap, Sample
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import BoolArray, FloatArray, IntArray, Rows
from rareclass.core.hashing import content_groups
from rareclass.core.log_odds import expit, logit
from rareclass.core.splitting import Fold
from rareclass.errors import DataError

FLOOR = 20
"""Positives in all parts below which cross-fitting cannot tell anything either."""
MOST_ROWS = 100_000
"""Rows above which every repeat would take too long."""


@dataclass(frozen=True, eq=False)
class CrossFitting:
    """What cross-fitting found.

    rows : (m,) positions among development and test rows that were scored and decided on by every repeat
    score, flagged : (repeats, m) calibrated scores, and decisions at the threshold of each fold
    folds : of each repeat, that were judged
    evaluation : ranking, calibration, decisions and money, pooled over the repeats
    reason : why the test rows do not judge, and which rows do instead, as a sentence without its end
    """

    rows: IntArray
    score: FloatArray
    flagged: BoolArray
    folds: int
    evaluation: evaluation.Evaluation
    reason: str

    @property
    def repeats(self) -> int:
        """How often all rows were scored."""
        return len(self.score)

    def to_json(self) -> dict[str, Any]:
        """Return what the report shows: counts, metrics, slices and money; no scores of rows."""
        evaluation = self.evaluation
        return {
            "reason": self.reason,
            "repeats": self.repeats,
            "folds": self.folds,
            "rows": len(self.rows),
            "positives": int(evaluation.counts["positives"]),
            "prevalence": evaluation.counts["prevalence"],
            "notes": list(evaluation.notes),
            "slices": [part.to_json() for part in evaluation.slices],
            "metrics": {name: metric.to_json() for name, metric in evaluation.metrics.items()},
            "money": evaluation.money.to_json(),
        }


def why_not(positives: int, rows: int, gate: settings.GateSettings, repeats: int) -> str | None:
    """Say why cross-fitting cannot stand in for a test part that is too small; None where it can.

    positives, rows : of all parts together · repeats : that are asked for
    """
    needed = max(gate.min_positives, FLOOR)
    if positives < needed:
        return f"all parts together hold {positives} positives, and cross-fitting over all of them needs {needed}"
    if not repeats:
        return "cross-fitting over all rows is switched off (evaluate.cross_fitting_repeats: 0)"
    if rows > MOST_ROWS:
        return f"cross-fitting over all rows is left out above {MOST_ROWS:,} rows, here are {rows:,}"
    return None


def folds(
    rows: Rows, config: settings.SplitSettings, repeats: int, *, label_delay: Any, seed: int
) -> tuple[tuple[Fold, ...], ...]:
    """Return the folds of each repeat: over all rows, units kept together; by time forward over the last three
    quarters.

    Windows of time are the same in every repeat: only the seed of the fits changes.
    """
    kind = splitting.resolve_kind(config, has_time=rows.time is not None, has_entity=rows.entity is not None)
    if kind == "time":
        forward = splitting.prequential(rows, windows=config.folds + 1, label_delay=label_delay, share=0.75)
        return (splitting.as_split(forward, rows, config, kind),) * repeats
    keys = splitting.units(content_groups(rows.x), rows.entity if kind == "grouped" else None)
    dealt = splitting.stratified_folds(rows.y, keys, folds=config.folds, repeats=repeats, seed=seed)
    return tuple(
        splitting.as_split([fold for fold in dealt if fold.repeat == number], rows, config, kind)
        for number in range(repeats)
    )


@dataclass(frozen=True)
class Procedure:
    """How a fold goes from rows to decisions.

    fit : rows and a seed -> the fitted recipe · shifts : whether its scores are probabilities, which follow the
        prevalence
    costs : of given rows · days : of all rows on the days of given rows, of a share of all
    """

    fit: Callable[[Rows, int], training.Ensemble]
    shifts: bool
    threshold: settings.ThresholdSettings
    costs: Callable[[Rows], CostArrays]
    days: Callable[[Rows, float], float | None]


def shifts(trained: Sequence[training.Trained], weights: Mapping[str, float]) -> bool:
    """Whether the scores of the chosen candidates are probabilities,
    on the prevalence of the rows they were fitted on.
    """
    return all(
        bool(np.isfinite(fit.negative_sampling_rate)) for fit in trained if weights.get(fit.candidate.name, 0.0) > 0
    )


def cross_fit(
    rows: Rows,
    repeats: Sequence[Sequence[Fold]],
    procedure: Procedure,
    *,
    config: settings.EvaluateSettings,
    seed: int,
    reason: Callable[[int, int], str],
    progress: Callable[[str], None],
) -> CrossFitting:
    """Fit, calibrate, tune and score every fold of every repeat, and pool what they say.

    reason : number of rows and of folds that were judged -> why the test rows do not judge, and which rows do instead
    """
    scores, flags = [], []
    for number, parts in enumerate(repeats):
        progress(f"cross-fitting over all rows, repeat {number + 1} of {len(repeats)}")
        score, flagged = _repeat(rows, parts, procedure, config, seed + 7919 * number)
        scores.append(score)
        flags.append(flagged)
    stacked = np.stack(scores)
    index = np.flatnonzero(np.isfinite(stacked).all(axis=0)).astype(np.int64)
    if not rows.y[index].any():
        raise DataError("no positive lies in a window that could be calibrated on earlier ones")
    score, flagged, judged = stacked[:, index], np.stack(flags)[:, index], rows.take(index)
    judgement = evaluation.pooled(judged, score, flagged, costs=procedure.costs(judged), config=config, seed=seed)
    count = sum(bool(np.isin(fold.score, index).any()) for fold in repeats[0])
    return CrossFitting(index, score, flagged, count, judgement, reason(len(judged), count))


def _repeat(
    rows: Rows, parts: Sequence[Fold], procedure: Procedure, config: settings.EvaluateSettings, seed: int
) -> tuple[FloatArray, BoolArray]:
    """(n,) calibrated scores, NaN where a row was not judged, and (n,) decisions.

    Log-odds are kept relative to the prevalence that the fit knew, so that calibrating rows of another window say what
    the fit at hand would have said of them.
    """
    relative = np.full(len(rows), np.nan)
    offsets: list[float] = []
    for number, fold in enumerate(parts):
        train = rows.take(fold.train)
        prevalence = np.asarray(np.average(train.y, weights=train.weight))
        offsets.append(float(logit(prevalence)) if procedure.shifts else 0.0)
        raw = procedure.fit(train, seed + number).score(rows.x[fold.score])
        relative[fold.score] = logit(raw) - offsets[-1]
    score, flagged = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool)
    for base, fold in zip(offsets, parts, strict=True):
        others = fold.train[np.isfinite(relative[fold.train])]
        learn = rows.take(others)
        if not 0 < learn.positives < len(learn):  # the first window of time: nothing to calibrate on yet
            continue
        raw = expit(relative[others] + base)
        sample = Sample(learn.y, raw, weight=learn.weight, block=learn.block())
        calibrator = calibration.fit(sample, method=procedure.threshold.calibration, seed=seed).calibrator
        tuned = thresholds.tune_points(
            replace(sample, score=calibrator(raw)),
            procedure.threshold.model_copy(update={"points": (), "fixed": None}),
            costs=procedure.costs(learn),
            days=procedure.days(learn, len(learn) / len(rows)),
            bootstrap=Bootstrap.of(config, seed),
        )
        score[fold.score] = calibrator(expit(relative[fold.score] + base))
        flagged[fold.score] = score[fold.score] >= next(iter(tuned.values())).value
    return score, flagged
