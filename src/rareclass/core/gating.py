"""Is a recipe good enough to replace the champion: approve, reject, or not enough evidence, each with its reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from rareclass import config
from rareclass.core.bootstrap import DEFAULT_BOOTSTRAP, Bootstrap, Sample, as_scores, estimate
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import AnyArray, BoolArray, FloatArray, IntArray
from rareclass.core.estimate import Estimate
from rareclass.core.evaluation import Evaluation
from rareclass.core.ranking import average_precision, bootstrap_average_precision

Verdict = Literal["approve", "reject", "not enough evidence"]
Outcome = Literal["pass", "fail", "undecided"]

MIN_SLICE_POSITIVES = 10
"""Positives below which a slice is not judged: its recall could be anything."""


@dataclass(frozen=True)
class Rule:
    """One rule's outcome, as a sentence with its numbers."""

    name: str
    outcome: Outcome
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GateDecision:
    """What the gate says.

    reasons : one sentence per rule, those that decided first
    numbers : flat {rule.number: value} for the ledger, NaN left out
    mode : disabled and dry_run register whatever the verdict is
    unjudged : a detector without labels, registered because there is no champion that labels judged
    challenger : a classifier that too few labels could judge, registered to stand beside a detector that none judged
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    numbers: dict[str, float]
    mode: str = "enabled"
    rules: tuple[Rule, ...] = ()
    unjudged: bool = False
    challenger: bool = False

    @property
    def registers(self) -> bool:
        """Whether the recipe may become a registered version."""
        return self.mode != "enabled" or self.verdict == "approve" or self.unjudged or self.challenger

    @property
    def next_steps(self) -> tuple[str, ...]:
        """What can be done about each rule that did not pass, one sentence each, most decisive first."""
        order = {"fail": 0, "undecided": 1}
        open_rules = sorted((r for r in self.rules if r.outcome in order), key=lambda rule: order[rule.outcome])
        return tuple(dict.fromkeys(_next_step(rule) for rule in open_rules))

    def to_json(self) -> dict[str, Any]:
        """Return the verdict with its reasons, numbers and rules, and what to do next."""
        return {
            "next": list(self.next_steps),
            "verdict": self.verdict,
            "mode": self.mode,
            "registers": self.registers,
            "challenger": self.challenger,
            "reasons": list(self.reasons),
            "numbers": self.numbers,
            "rules": [{"name": rule.name, "outcome": rule.outcome, "reason": rule.reason} for rule in self.rules],
        }


@dataclass(frozen=True, eq=False)
class Champion:
    """The current champion on the rows of the evaluation.

    score : (n,) its deployed scores; NaN where it has none
    unseen : (n,) True where it was not trained on the row; None means all
    decision : (n,) its decisions, for the cost; None where they are not known
    threshold : the cut-off behind the decisions
    name : how sentences call it
    note : what a reader has to know about the comparison, as a sentence; empty when there is nothing
    unjudged : no label ever judged it: a detector
    """

    score: FloatArray
    unseen: BoolArray | None = None
    decision: AnyArray | None = None
    threshold: float = math.nan
    name: str = "the champion"
    note: str = ""
    unjudged: bool = False

    def take(self, index: IntArray) -> Champion:
        """Return what it says to some of the rows."""
        return replace(
            self,
            score=np.asarray(self.score)[index],
            unseen=None if self.unseen is None else np.asarray(self.unseen)[index],
            decision=None if self.decision is None else np.asarray(self.decision)[index],
        )

    @property
    def compared(self) -> BoolArray:
        """(n,) True where it has a score and was not trained on the row."""
        there = np.isfinite(np.asarray(self.score, dtype=np.float64))
        return there if self.unseen is None else there & np.asarray(self.unseen, dtype=bool)


@dataclass(frozen=True)
class NotComparable:
    """A champion that cannot be judged on the rows of the evaluation.

    reason : follows on "cannot be compared, because" · unjudged : no label ever judged it
    """

    name: str
    reason: str
    unjudged: bool = False

    def __str__(self) -> str:
        return f"{self.name} cannot be compared, because {self.reason}"


@dataclass(frozen=True, eq=False)
class JudgedRows:
    """The rows that judge, and what is to be known about them.

    sample : labelled rows with scores (n,), or (repeats, n) of cross-fitting
    flagged : decisions in the shape of cross-fitting's scores; None: those of the threshold that decides
    where : how sentences call the rows
    unless : why no others judge, where these are too few
    looks : how often these rows judged a run before; the error of the comparison is divided by all looks (Bonferroni)
    """

    sample: Sample
    flagged: ArrayLike | None = None
    where: str = "the test rows"
    unless: str | None = None
    looks: int = 0


def judge(
    evaluation: Evaluation,
    rows: JudgedRows,
    champion: Champion | NotComparable | None,
    gate: config.GateSettings,
    *,
    costs: CostArrays | None = None,
    bootstrap: Bootstrap = DEFAULT_BOOTSTRAP,
) -> GateDecision:
    """Judge a recipe on the rows of its evaluation, against absolute bounds and against the champion.

    A rule passes when its interval lies on the right side of the bound, fails when it lies on the wrong side, and is
    undecided in between. Any failure rejects; otherwise anything undecided is "not enough evidence". Below
    ``gate.min_positives`` nothing is judged. The champion is compared on the rows it was not trained on, paired; what
    it means when it cannot be compared, ``gate.without_comparison`` says.

    Parameters
    ----------
    evaluation : Evaluation
    rows : JudgedRows
    champion : Champion, NotComparable or None
        The current champion on these rows, why it has no scores, or None without one.
    gate : GateSettings
    costs : CostArrays, optional
    bootstrap : Bootstrap

    Returns
    -------
    GateDecision

    Raises
    ------
    DataError
        Where labels are not 0 and 1, a score is not finite, or lengths differ.
    """
    if gate.mode == "disabled":
        return GateDecision("approve", ("the gate is disabled (gate.mode): nothing was judged",), {}, gate.mode)
    sample, where, unless, looks = rows.sample, rows.where, rows.unless, rows.looks
    lines = np.atleast_2d(np.asarray(sample.score, dtype=np.float64))
    labels, _, weights = as_scores(sample.y, lines[0], sample.weight)
    if rows.flagged is None:
        decisions = lines >= evaluation.thresholds[evaluation.primary]
    else:
        decisions = np.atleast_2d(np.asarray(rows.flagged, dtype=bool))
    positives = int(labels.sum())
    if positives < gate.min_positives:
        scarce = _scarce("positives", positives, len(labels), gate.min_positives, f"{where} hold")
        also = scarce if unless is None else replace(scarce, reason=f"{scarce.reason}; {unless}")
        return decide((also,), gate.mode)
    rules = [
        Rule(
            "positives",
            "pass",
            f"{where} hold {positives} positives, at least {gate.min_positives} are asked for",
            {"found": positives},
        ),
        *_absolute(evaluation, gate),
    ]
    if champion is None:
        rules.append(Rule("champion", "pass", "there is no champion to compare with"))
    elif isinstance(champion, NotComparable):
        rules.append(_without_comparison(champion, gate))
    else:
        level = 1 - (1 - bootstrap.confidence) / (1 + looks)
        if looks:
            rules.append(Rule("looks", "pass", _looked(looks, bootstrap.confidence, level), {"before": float(looks)}))
        pair = _Pair(labels, lines, decisions, weights, sample.block, champion, replace(bootstrap, confidence=level))
        rules.extend(pair.rules(gate, costs))
    return decide(tuple(rules), gate.mode)


_MORE = "bring more labelled rows of the rare class: a longer history, a larger split.test, or labels that came since"
_SHADOW = "or let live labels decide: gate.mode: dry_run with promotion.mode: shadow registers it as challenger"
_FAILED = {
    "ap_lift": (
        "the columns hardly tell the classes apart: look at the report's importance and slices, and add columns that "
        "are known when a row is scored"
    ),
    "min_ap": (
        "it is not good enough for gate.min_ap: look at the report's importance and slices, add columns, or give it "
        "more time (search.seconds)"
    ),
    "cost": "at these prices acting on it does not pay: check costs and the operating points (threshold.points)",
    "calibration": (
        "its scores do not fit the test rows' prevalence: split by time (data.time), shorten the history, or set "
        "threshold.calibration"
    ),
    "champion": (
        "keep the champion: it ranks better on the same rows; look in the report for what it knows and this one does "
        "not"
    ),
    "champion_cost": (
        "its decisions cost more than the champion's: compare the operating points (threshold.points) of both"
    ),
}


def _next_step(rule: Rule) -> str:
    """What can be done about a rule that did not pass."""
    if rule.name.startswith("slice "):
        return f"look at the rows of {rule.name.removeprefix('slice ')}: more of them, or columns that matter there"
    if rule.outcome == "fail":
        return _FAILED[rule.name]
    if rule.name in ("labels", "without_labels"):
        return (
            "let it alarm and label what it flags, and some rows that it does not: "
            "those labels come in by `rareclass labels import` "
            "or in data.target, and the next run can judge"
        )
    if rule.name != "champion":
        return _MORE
    if not rule.numbers:  # it cannot be compared at all
        return (
            "train on the columns and the target that the champion knows, set gate.without_comparison: "
            f"approve, {_SHADOW}"
        )
    if "found" in rule.numbers:
        return (
            "bring rows that the champion was not trained on: newer ones, with their labels. "
            "Running again on the same rows "
            f"cannot tell, because the champion was fitted on all of them (train.refit); {_SHADOW}"
        )
    return f"{_MORE}; {_SHADOW}"


def _looked(looks: int, confidence: float, level: float) -> str:
    return (
        f"these test rows judged {looks} run{'s' if looks > 1 else ''} before: "
        f"the champion is compared at {level:.1%} instead of "
        f"{confidence:.0%}, and what was chosen after a look is flattered. Newer rows judge afresh"
    )


def _without_comparison(champion: NotComparable, gate: config.GateSettings) -> Rule:
    allowed = gate.without_comparison == "approve"
    said = "is let pass" if allowed else "is not enough evidence"
    reason = f"{champion}; this {said} (gate.without_comparison: {gate.without_comparison})"
    return Rule("champion", "pass" if allowed else "undecided", reason)


def decide(rules: tuple[Rule, ...], mode: str) -> GateDecision:
    """Return the verdict that rules add up to: any failure rejects, otherwise anything undecided is not enough
    evidence.
    """
    outcomes = {rule.outcome for rule in rules}
    verdict: Verdict = (
        "reject" if "fail" in outcomes else "not enough evidence" if "undecided" in outcomes else "approve"
    )
    order = {"fail": 0, "undecided": 1, "pass": 2}
    ranked = sorted(rules, key=lambda rule: order[rule.outcome])
    numbers = {f"{r.name}.{key}": float(v) for r in rules for key, v in r.numbers.items() if math.isfinite(v)}
    return GateDecision(verdict, tuple(rule.reason for rule in ranked), numbers, mode, rules)


def _scarce(name: str, positives: int, rows: int, needed: int, where: str) -> Rule:
    reason = (
        f"{where} {positives} positives among {rows} rows; at least {needed} are needed to judge (gate.min_positives)"
    )
    return Rule(name, "undecided", reason, {"found": positives})


def _at_least(low: float, high: float, bound: float) -> Outcome:
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    return "pass" if low >= bound else "fail" if high < bound else "undecided"


_SAYS: dict[Outcome, str] = {"pass": "", "fail": "", "undecided": "; the interval cannot decide"}


def _numbers(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _absolute(evaluation: Evaluation, gate: config.GateSettings) -> Iterator[Rule]:
    """Rules that need no champion."""
    ap, prevalence = evaluation.metrics["ap"], evaluation.counts["prevalence"]
    yield _ap_rule(
        "ap_lift",
        ap,
        gate.min_ap_lift * prevalence,
        f"{gate.min_ap_lift:g} times the prevalence of {prevalence:.4g} (gate.min_ap_lift)",
    )
    if gate.min_ap is not None:
        yield _ap_rule("min_ap", ap, gate.min_ap, "the least that is asked for (gate.min_ap)")
    yield _cost_rule(evaluation)
    yield _calibration_rule(evaluation, gate)
    if gate.max_slice_recall_gap is not None:
        yield from _slice_rules(evaluation, gate.max_slice_recall_gap)


def _ap_rule(name: str, ap: Estimate, bound: float, text: str) -> Rule:
    outcome = _at_least(ap.low, ap.high, bound)
    verb = {"pass": "is at least", "fail": "is below", "undecided": "may or may not reach"}[outcome]
    reason = f"average precision {ap} {verb} {bound:.3f}, {text}{_SAYS[outcome]}"
    return Rule(name, outcome, reason, {**_numbers(ap), "bound": bound})


def _cost_rule(evaluation: Evaluation) -> Rule:
    """Against the cheaper of doing nothing and flagging everything."""
    money = evaluation.money
    nothing = money.cost_nothing.value <= money.cost_everything.value
    saved = money.saving_vs_nothing if nothing else money.saving_vs_everything
    other = "doing nothing" if nothing else "flagging everything"
    outcome = _at_least(saved.low, saved.high, 0.0)
    verb = {"pass": "saves", "fail": "costs more than", "undecided": "may or may not save anything against"}[outcome]
    amount = f"{_money(saved.value)} [{_money(saved.low)}, {_money(saved.high)}] {money.currency}"
    said = f"it {verb} {amount} against {other}" if outcome == "pass" else f"it {verb} {other}: saving {amount}"
    return Rule("cost", outcome, said + _SAYS[outcome], {**_numbers(saved), "cost": money.cost.value})


def _money(value: float) -> str:
    """Whole units of money where there are hundreds of them, three digits otherwise."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _calibration_rule(evaluation: Evaluation, gate: config.GateSettings) -> Rule:
    """Off by more than allowed, where the interval excludes 1."""
    ratio = evaluation.metrics["mean_score_ratio"]
    off = abs(ratio.value - 1) > gate.max_calibration_error
    sure = ratio.low > 1 or ratio.high < 1  # an interval that cannot be judged makes nothing sure
    bound = f"{gate.max_calibration_error:g} away from 1 (gate.max_calibration_error)"
    if off and sure:
        return Rule("calibration", "fail", f"mean score / prevalence is {ratio}, more than {bound}", _numbers(ratio))
    if off:
        return Rule(
            "calibration",
            "pass",
            f"mean score / prevalence is {ratio}, more than {bound}, but its interval holds 1",
            _numbers(ratio),
        )
    return Rule("calibration", "pass", f"mean score / prevalence is {ratio}, at most {bound}", _numbers(ratio))


def _slice_rules(evaluation: Evaluation, gap: float) -> Iterator[Rule]:
    """Recall of a slice may be at most ``gap`` below the whole; only significant gaps count."""
    overall = evaluation.metrics["recall"].value
    judged = [part for part in evaluation.slices if part.positives >= MIN_SLICE_POSITIVES]
    worse = [part for part in judged if part.recall.high < overall - gap]
    for part in worse:
        reason = (
            f"recall of {part.column}={part.level} is {part.recall} ({part.positives} positives), more than "
            f"{gap:g} below the whole, {overall:.3f} (gate.max_slice_recall_gap)"
        )
        yield Rule(f"slice {part.column}={part.level}", "fail", reason, _numbers(part.recall))
    if not judged:
        reason = (
            f"no slice could be judged (gate.max_slice_recall_gap): none has {MIN_SLICE_POSITIVES} positives among "
            "the rows that slices are taken of"
        )
        yield Rule("slices", "undecided", reason)
    elif not worse:
        few = len(evaluation.slices) - len(judged)
        left = f"; {few} with fewer than {MIN_SLICE_POSITIVES} positives were not judged" if few else ""
        yield Rule(
            "slices",
            "pass",
            (
                f"no slice of {len(judged)} has a recall significantly more than {gap:g} below the whole, "
                f"{overall:.3f}{left}"
            ),
        )


@dataclass(frozen=True, eq=False)
class _Pair:
    """Challenger and champion on the rows that neither was trained on.

    score, flagged : (repeats, n) of the challenger
    """

    y: IntArray
    score: FloatArray
    flagged: BoolArray
    weight: FloatArray | None
    block: AnyArray | None
    champion: Champion
    bootstrap: Bootstrap

    def rules(self, gate: config.GateSettings, costs: CostArrays | None) -> Iterator[Rule]:
        left = self.champion.compared
        positives = int(self.y[left].sum())
        if positives < gate.min_positives:
            where = f"the rows that {self.champion.name} was not trained on hold"
            yield _scarce("champion", positives, int(left.sum()), gate.min_positives, where)
            return
        yield self._ap(left, gate)
        if costs is not None and costs.given and self.champion.decision is not None:
            yield self._cost(left, costs)

    def _own(self, left: BoolArray) -> tuple[AnyArray | None, FloatArray | None]:
        return (None if self.block is None else self.block[left]), (None if self.weight is None else self.weight[left])

    def _ap(self, left: BoolArray, gate: config.GateSettings) -> Rule:
        """The share of the champion's AP that is lost: its upper bound has to stay below gate.max_ap_loss."""
        block, weight = self._own(left)
        pair = np.stack([*self.score[:, left], np.asarray(self.champion.score, dtype=np.float64)[left]])
        n_boot, seed = self.bootstrap.resamples, self.bootstrap.seed
        drawn = bootstrap_average_precision(self.y[left], pair, block=block, n_boot=n_boot, seed=seed, weight=weight)
        *repeats, theirs = (average_precision(self.y[left], line, weight) for line in pair)
        ours, lost = float(np.mean(repeats)), (1 - drawn[:-1] / drawn[-1]).ravel()
        loss = estimate(1 - ours / theirs, lost, self.bootstrap.confidence, int(self.y[left].sum()), int(left.sum()))
        outcome = _at_least(-loss.high, -loss.low, -gate.max_ap_loss)
        verb = {"pass": "at most", "fail": "more than", "undecided": "perhaps more than"}[outcome]
        change = "gains" if loss.value <= 0 else "loses"
        reason = (
            f"against {self.champion.name} on the same {int(left.sum())} rows ({int(self.y[left].sum())} positives) "
            "average precision "
            f"is {ours:.3f} to {theirs:.3f}: it {change} {abs(loss.value):.1%}, the loss lies between {loss.low:.1%} "
            f"and {loss.high:.1%}, "
            f"{verb} {gate.max_ap_loss:.1%} "
            f"(gate.max_ap_loss){_SAYS[outcome]}{f'; {self.champion.note}' if self.champion.note else ''}"
        )
        return Rule(
            "champion",
            outcome,
            reason,
            {"ours": ours, "theirs": theirs, **{f"loss_{k}": v for k, v in _numbers(loss).items()}},
        )

    def _cost(self, left: BoolArray, costs: CostArrays) -> Rule:
        """Significantly dearer than the champion fails; anything else passes, the AP rule decides about the rest."""
        n = len(self.y)
        mass = np.ones(n) if self.weight is None else self.weight
        at_stake = np.where(self.y == 1, -costs.misses(n), costs.alarms(n)) * mass
        more = self.flagged.astype(np.float64) - np.asarray(self.champion.decision, dtype=np.float64)
        extra = (at_stake * more)[:, left].T
        block, _ = self._own(left)
        drawn = self.bootstrap.of_rows(len(extra), block).sums(extra).ravel()
        value = float(extra.sum(axis=0).mean())
        extra_cost = estimate(value, drawn, self.bootstrap.confidence, int(self.y[left].sum()), len(extra))
        outcome: Outcome = "fail" if extra_cost.low > 0 else "pass"
        amount = f"{_money(extra_cost.value)} [{_money(extra_cost.low)}, {_money(extra_cost.high)}] {costs.currency}"
        verb = "costs significantly more than" if outcome == "fail" else "does not cost significantly more than"
        return Rule(
            "champion_cost",
            outcome,
            f"it {verb} {self.champion.name} on the same rows: difference {amount}",
            _numbers(extra_cost),
        )
