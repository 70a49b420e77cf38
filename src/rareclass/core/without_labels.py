"""What a run does where no label can choose, tune or judge: one fixed detector, p-values, and the rates that they
allow.

A row's deployed score is 1 - p, p the conformal p-value of `core.conformal`: the share of normal rows that are less
unusual, no probability of the rare class. Cut-offs are rates of alerts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rareclass import config as settings
from rareclass.core import conformal
from rareclass.core.calibration import Calibration
from rareclass.core.candidates import Candidate
from rareclass.core.conformal import Conformal
from rareclass.core.dataset import Rows
from rareclass.core.estimate import Estimate
from rareclass.core.evaluation import Evaluation
from rareclass.core.gating import Champion, GateDecision, NotComparable, Rule, decide
from rareclass.core.learners import LEARNERS
from rareclass.core.selection import CandidateResult, Selection
from rareclass.core.splitting import Fold
from rareclass.core.thresholds import FIXED, TunedThreshold
from rareclass.core.training import Trained
from rareclass.errors import DataError

DETECTORS = "detectors"
"""Name of the candidate, and of its learner."""

DEFAULT_RATE = 0.01
"""Share of normal rows flagged where nothing else was asked for."""
UNKNOWN_SHARE = 0.02
"""Share left out as perhaps not normal where nobody says how many there are."""
SCALE = "p_value"
"""What ``meta["score"]`` of a version says: its score is 1 - p."""

NOTHING = Estimate(math.nan)


def teachable(dev: Rows, folds: Sequence[Fold]) -> bool:
    """Whether a classifier can be fitted on every fold and compared: positives in each fit,
    and among the scored rows.
    """
    return all(dev.y[fold.train].any() for fold in folds) and any(dev.y[fold.score].any() for fold in folds)


def labelled(rows: Rows) -> bool:
    """Whether anybody knows of the rows which are rare: a target says it, or labels that came later do."""
    return rows.schema.roles.target is not None or rows.positives > 0


def contamination(data: settings.DataSettings, labelled: bool) -> float:
    """Return the share of rows that may not be normal: what is set; unknown is 2 % where nothing is labelled."""
    if isinstance(data.contamination, float | int):
        return float(data.contamination)
    return UNKNOWN_SHARE if data.contamination == "unknown" and not labelled else 0.0


def candidate(
    data: settings.DataSettings, search: settings.SearchSettings, positives: int, labelled: bool
) -> Candidate:
    """Return the one candidate there is without labels to choose by; what `search.only` asks of detectors holds."""
    share = contamination(data, labelled)
    asked = search.only
    params = dict(asked.params) if asked is not None and asked.learner == DETECTORS else {}
    if share and "contamination" not in params:
        params["contamination"] = share
    if not labelled:
        why = "no row is labelled"
    elif not positives:
        why = "there is no row of the rare class"
    else:
        why = f"{positives} row(s) of the rare class are too few to learn from"
    said = (
        f"One-class: {why}, so what is usual is learned. A fixed ensemble: "
        "without labels nothing can be chosen honestly."
    )
    if asked is not None and asked.learner != DETECTORS:
        said += f" search.only ({asked.learner}) needs rows of both classes."
    return Candidate(DETECTORS, DETECTORS, params, reason=said)


def alone(trained: Sequence[Trained]) -> bool:
    """Whether only detectors were fitted, so that no label chooses."""
    return bool(trained) and all(LEARNERS[one.candidate.learner].one_class for one in trained)


def chosen(trained: Sequence[Trained]) -> Selection:
    """Return the selection that nothing was compared for. Raises DataError when the fit was not finished."""
    done = [one for one in trained if one.complete]
    if not done:
        raise DataError("the detectors were not finished on every fold. Set search.seconds higher")
    one = done[0]
    line = CandidateResult(one.candidate.name, NOTHING, NOTHING, math.nan, False, one.fit_seconds, one.candidate.reason)
    reason = "no label compares: a fixed ensemble of detectors stands alone"
    weights = {one.candidate.name: 1.0}
    return Selection(one.candidate.name, (line,), weights, one.oof, one.scored, (reason,), compared=False)


def calibrated(rows: Rows, raw: Any) -> Calibration:
    """Return the conformal map from raw scores of held-out rows; rows known to be rare are no normal ones."""
    return Calibration(conformal.fit(raw[rows.y == 0]), Conformal.kind, {}, math.nan)


def cut_offs(
    asked: settings.ThresholdSettings, map_: Conformal, rows: int, days: float | None
) -> dict[str, TunedThreshold]:
    """Return every operating point as a rate of alerts: alerts a day where they are bounded, else false alarms.

    days : that the held-out rows span, as rows a day come from it; None without time
    What needs labels (F1, cost, precision, recall) cannot be tuned and is said.
    """
    per_day = None if days is None or not days > 0 else rows / days
    points: dict[str, TunedThreshold] = {}
    named: list[tuple[str, Any]] = [("default", asked), *((point.name, point) for point in asked.points)]
    for name, point in named:
        rates, notes = [], []
        if point.max_alerts_per_day is not None and per_day is not None:
            rates.append(conformal.rate_of(point.max_alerts_per_day, per_day))
        if point.max_false_alarm_rate is not None:
            rates.append(point.max_false_alarm_rate)
        if point.objective not in ("auto", "alerts_per_day", "false_alarm_rate"):
            notes.append(f"objective {point.objective} needs rows of the rare class and could not be tuned")
        if not rates:
            rates = [DEFAULT_RATE]
            notes.append(
                f"no rate was asked for, so 1 normal row in {1 / DEFAULT_RATE:.0f} is flagged "
                "(threshold.max_false_alarm_rate, threshold.max_alerts_per_day)"
            )
        rate = min(rates)
        points[name] = _point(rate, map_, per_day, notes)
    if asked.fixed is not None:
        points[FIXED] = _point(1 - asked.fixed, map_, per_day, ["set by hand"], FIXED)
    return points


def _point(
    rate: float, map_: Conformal, per_day: float | None, notes: Sequence[str], objective: str = "false_alarm_rate"
) -> TunedThreshold:
    alerts = conformal.alerts(rate, per_day)
    said = f"threshold {1 - rate:.6g} flags {rate:.3g} of normal rows"
    said += "" if math.isnan(alerts) else f", {alerts:.3g} alerts a day at {per_day:,.0f} rows a day"
    fine = conformal.describe(rate, map_)
    message = "; ".join([said, *notes, *([fine] if fine else [])])
    value = Estimate(rate, rows=map_.rows)
    return TunedThreshold(1 - rate, math.nan, math.nan, objective, value, NOTHING, NOTHING, alerts, not fine, message)


_PROBABILITIES = ("brier", "log_loss", "ece", "mean_score_ratio")


def readable(found: Evaluation, test: Rows) -> Evaluation:
    """Return the figures that mean something: 1 - p is no probability, and rows without labels are neither hits nor
    false alarms."""
    known = bool(test.positives)
    lost = list(_PROBABILITIES) if known else list(found.metrics)
    blank = dict.fromkeys(lost, NOTHING)
    if known:
        return replace(found, metrics={**found.metrics, **blank})
    empty = {name: dict.fromkeys(point, NOTHING) for name, point in found.points.items()}
    return replace(
        found,
        metrics={**found.metrics, **blank},
        points=empty,
        untuned=dict.fromkeys(found.untuned, NOTHING),
        top_k={},
        slices=(),
    )


def decision(
    gate: settings.GateSettings, base: GateDecision, champion: Champion | NotComparable | None
) -> GateDecision:
    """Return the gate's answer about a detector. base : what the gate says of the test rows

    Where they hold enough positives (that came too late to learn from) these judge; its score being no probability is
    not held against it. Otherwise no label can, which is said, with what becomes of the version.
    """
    if gate.mode == "disabled":
        return base
    rest = tuple(rule for rule in base.rules if rule.name != "calibration")
    if any(rule.name == "positives" and rule.outcome == "pass" for rule in rest):
        return decide(rest, gate.mode)
    judged_champion = champion is not None and not champion.unjudged
    reason = "no label has judged this detector: nothing is known of what it finds, only how often it alarms"
    rules = [Rule("labels", "undecided", reason)]
    free = not judged_champion and gate.without_labels == "register"
    if champion is not None and judged_champion:
        rules.append(Rule("labels", "undecided", f"{champion.name} was judged by labels and stays until others judge"))
    elif free:
        rules.append(
            Rule(
                "without_labels",
                "pass",
                (
                    "there is no champion that labels judged, so it is registered all the same (gate.without_labels: "
                    "register)"
                ),
            )
        )
    else:
        rules.append(Rule("without_labels", "undecided", "it is not registered (gate.without_labels: insufficient)"))
    return replace(decide(tuple(rules), gate.mode), unjudged=free)


FEW_TO_JUDGE = 10
"""Labelled rows of the rare class below which no way of judging says anything."""


def beside(
    gate: settings.GateSettings, decision: GateDecision, champion: Champion | NotComparable | None, positives: int
) -> GateDecision:
    """Return the gate's answer about a classifier that too few labels could judge, and no judged champion is at stake.

    Beside a detector it becomes challenger, and live labels decide between the two. Without any champion, and with
    fewer than FEW_TO_JUDGE labelled rows of the rare class, it goes live as a detector would. ``gate.without_labels:
    insufficient`` keeps both out.
    """
    if gate.without_labels != "register" or decision.verdict != "not enough evidence" or decision.registers:
        return decision
    if champion is None and positives < FEW_TO_JUDGE:
        said = (
            f"{positives} labelled rows of the rare class judge nothing, and there is no champion to protect, so it is "
            "registered all the same, as a detector would be (gate.without_labels: register)"
        )
        return replace(decision, unjudged=True, reasons=(*decision.reasons, said))
    if champion is None or not champion.unjudged:
        return decision
    said = (
        f"{champion.name} is a detector that no label judged, so this one may stand beside it as challenger, and live "
        "labels decide between them (gate.without_labels: register)"
    )
    return replace(decision, challenger=True, reasons=(*decision.reasons, said))


def evidence(recipe: Any, test: Rows, score: Any, tuning: Any) -> Mapping[str, Any]:
    """Return what can be said of a detector without labels: agreement of its members, and whether p-values of the test
    rows are as uniform as those of normal rows that are drawn like the held-out ones."""
    learner, map_ = recipe.members[0].fitted, tuning.calibration.calibrator
    usual = np.asarray(score)[test.y == 0]
    uniform = conformal.uniformity(1 - usual, held_out=map_.rows)
    agreement = learner.agreement
    return {
        "agreement": agreement.to_json(),
        "agreement_line": agreement.line(),
        "uniformity": uniform.to_json(),
        "uniformity_line": uniform.line(),
        "held_out": map_.rows,
        "finest": map_.finest,
        "members": [each.fitted.detector for each in learner.members],
        "reference": {each.fitted.detector: each.fitted.reference for each in learner.members},
    }
