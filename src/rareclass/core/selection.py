"""Compare candidates on the same rows none of them has seen, and decide whether a combination is worth more.

Candidate 0 wins ties: another one must be better in a paired bootstrap, by an interval that allows for how many were
compared (core.differences). An ensemble is held against the best single candidate in turn, judged with weights learned
on other rows than it is judged on. It has to be significantly better where positives are very few; elsewhere an average
of unlike learners is the safer bet, and a higher AP is enough (docs/decisions/0013, 0017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rareclass.config import RegimeSettings
from rareclass.core.bootstrap import bounded_estimate
from rareclass.core.dataset import BoolArray, FloatArray, IntArray, Rows
from rareclass.core.diagnosis import regime
from rareclass.core.differences import Difference, judge_difference
from rareclass.core.estimate import Estimate
from rareclass.core.jsonable import Jsonable, jsonable
from rareclass.core.log_odds import expit, logit
from rareclass.core.ranking import FastPrecision, average_precision, bootstrap_average_precision, curves
from rareclass.core.search import leaders
from rareclass.core.selection_metrics import SelectionCriterion, SelectionMetric
from rareclass.core.training import Trained, combine
from rareclass.errors import DataError

MOST_MEMBERS = 6
EVIDENCE = 100.0
"""Positives at which learned ensemble weights and equal weights count the same (below, equal weights do better)."""
AVERAGING_PAYS = 20
"""Positives from which an ensemble may win without significance."""
_BOOTSTRAPS, _LEAST_BOOTSTRAPS, _BOOTSTRAP_WORK = 1000, 200, 3e7
_WEIGHT_ROWS = 60_000


@dataclass(frozen=True)
class CandidateResult(Jsonable):
    """One line of the comparison, an ensemble's too: ``difference`` and ``p_value`` (of candidates adjusted for their
    number) are against candidate 0; ``significant`` says that the interval of the difference lies above 0."""

    name: str
    ap: Estimate
    difference: Estimate
    p_value: float
    significant: bool
    fit_seconds: float
    reason: str = ""
    value: float = float("nan")
    """of `search.metric`, which decides"""
    UNWRITTEN = frozenset({"value"})


@dataclass(frozen=True)
class Selection:
    """What was chosen and why.

    weights : candidate -> weight of its log-odds; one entry of 1 for a single winner
    oof : (n_dev,) score of the winner on rows not seen, NaN where never scored · scored : (n_dev,) mask of the others
    curves : name -> both curves, as `ranking.curves` gives them, for overlaying
    """

    winner: str
    table: tuple[CandidateResult, ...]
    weights: Mapping[str, float]
    oof: FloatArray
    scored: BoolArray
    reasons: tuple[str, ...] = ()
    curves: Mapping[str, Mapping[str, Mapping[str, list[float]]]] = field(default_factory=dict)
    crossed: Mapping[str, FloatArray] = field(default_factory=dict)
    """name of an ensemble -> (n_scored,) the scores it was judged by, with weights learned on other rows"""
    transfer: str = ""
    """what became of what a related domain lent, as a sentence; empty where nothing was"""
    compared: bool = True
    """whether labels compared the candidates; False of detectors that stand alone, whose figures are NaN (null)"""

    def to_json(self) -> dict[str, Any]:
        """Return the table, the weights and the curves, JSON-ready; scores of rows are left out."""
        written = jsonable(self, without={"oof", "scored", "crossed", "table", "compared"})
        return {**written, "table": [line.to_json() for line in self.table]}


@dataclass(frozen=True)
class _Ground:
    """The rows everything is compared on, and how. metric : what decides"""

    rows: Rows
    metric: SelectionMetric
    n_boot: int
    confidence: float
    seed: int

    @cached_property
    def block(self) -> IntArray | None:
        return self.rows.block()

    def precision(self, scores: Sequence[FloatArray]) -> tuple[list[float], Any]:
        """Return the average precision of each score, and its paired resamples."""
        y, weight = self.rows.y, self.rows.weight
        drawn = bootstrap_average_precision(
            y, np.stack(scores), block=self.block, n_boot=self.n_boot, seed=self.seed, weight=weight
        )
        return [average_precision(y, score, weight) for score in scores], drawn

    @property
    def by_precision(self) -> bool:
        """Whether average precision itself decides."""
        return self.metric.name == "average_precision"

    def judge(self, scores: Sequence[FloatArray]) -> tuple[list[float], Any]:
        """Return what decides of each score, and its paired resamples."""
        return (
            self.precision(scores)
            if self.by_precision
            else self.metric.judge(self.rows, scores, self.n_boot, self.seed)
        )

    def bounded(self, value: float, draws: FloatArray) -> Estimate:
        return bounded_estimate(float(value), draws, self.confidence, self.rows.positives, len(self.rows))

    def difference(self, value: float, draws: FloatArray, *, compared: int = 1) -> Difference:
        return judge_difference(
            float(value),
            draws,
            confidence=self.confidence,
            compared=compared,
            positives=self.rows.positives,
            rows=len(self.rows),
        )


@dataclass(frozen=True)
class SelectionRules:
    """How candidates are compared.

    criterion : what decides · ensemble : `search.ensemble` · regime : how many positives are ample
    confidence : of intervals and of what is significantly better
    """

    criterion: SelectionCriterion = field(default_factory=SelectionCriterion)
    ensemble: str = "auto"
    regime: RegimeSettings = field(default_factory=RegimeSettings)
    confidence: float = 0.95


def select(trained: Sequence[Trained], dev: Rows, rules: SelectionRules, *, seed: int) -> Selection:
    """Choose a candidate or a combination of some, by `search.metric` on the rows that all finished candidates scored.

    trained : in the order of the plan, candidate 0 first; those that did not finish are left out
    Raises DataError when none was finished.
    """
    done = [one for one in trained if one.complete]
    if not done:
        raise DataError("no candidate was finished on every fold. Set search.seconds higher")
    scored = np.logical_and.reduce([one.scored for one in done])
    rows = dev.take(scored)
    ground = _Ground(
        rows,
        rules.criterion.on(rows),
        _resamples(rows.positives, len(done)),
        rules.confidence,
        seed,
    )
    scores = {one.candidate.name: one.oof[scored] for one in done}
    table = _compare(ground, done, scores)
    lent = {one.candidate.name for one in done if one.candidate.transfer != "none"}
    own = tuple(line for line in table if line.name not in lent)
    best = _winner(own)
    reasons = [_why_single(own, best, ground.metric.words, compared=len(table) - 1)]
    lines = [line for line in table if line.name in lent]
    won, said = _neighbour(ground, best, lines, scores, rules) if lent else (None, "")
    if won is not None:
        best = won
    elif lent:  # what harms alone is no part of an average either
        done = [one for one in done if one.candidate.name not in lent]
    reasons += [said] if said else []
    weights, oof, crossed = {best: 1.0}, scores[best], {}
    if rules.ensemble != "none" and len(done) > 1:
        line, found, combined, sure, note, judged = _ensemble(ground, done, scores, best, dev, rules)
        reasons.append(note)
        if line is not None:
            crossed = {line.name: judged}
            table = (*table, line)
            alone = next(each.value for each in table if each.name == best)
            if adopted(line, sure, alone, rows, rules.ensemble):
                if not sure:
                    reasons.append(
                        f"{line.name} is taken all the same: ahead, and averages of unlike learners are safer"
                    )
                best, weights, oof = line.name, found, combined
    full = np.full(len(dev), np.nan)
    full[scored] = oof
    shown = {line.name: scores[line.name] for line in table if line.name in scores}
    drawn = {name: curves(rows.y, score, rows.weight) for name, score in ({**shown, best: oof}).items()}
    return Selection(best, table, weights, full, scored, tuple(reasons), drawn, crossed, said)


def _resamples(positives: int, candidates: int) -> int:
    """Fewer resamples where many candidates and many positives would make them slow; intervals are narrow there."""
    return int(np.clip(_BOOTSTRAP_WORK / max(1, positives * candidates), _LEAST_BOOTSTRAPS, _BOOTSTRAPS))


# --- single candidates -------------------------------------------------------------------------------------------


def _compare(ground: _Ground, done: Sequence[Trained], scores: Mapping[str, FloatArray]) -> tuple[CandidateResult, ...]:
    """Return a line per candidate."""
    each = list(scores.values())
    values, judged = ground.judge(each)
    aps, draws = (values, judged) if ground.by_precision else ground.precision(each)
    lines = []
    for position, one in enumerate(done):
        found = ground.difference(
            values[position] - values[0], judged[position] - judged[0], compared=max(len(done) - 1, 1)
        )
        lines.append(
            CandidateResult(
                one.candidate.name,
                ground.bounded(aps[position], draws[position]),
                found.estimate,
                found.p_value,
                found.better,
                one.fit_seconds,
                one.candidate.reason,
                values[position],
            )
        )
    return tuple(lines)


def _winner(table: Sequence[CandidateResult]) -> str:
    """The best of those significantly better than candidate 0, else candidate 0."""
    better = [line for line in table if line.significant]
    return max(better, key=lambda line: line.value).name if better else table[0].name


def _neighbour(
    ground: _Ground,
    rival: str,
    lent: Sequence[CandidateResult],
    scores: Mapping[str, FloatArray],
    rules: SelectionRules,
) -> tuple[str | None, str]:
    """Return the candidate with a neighbour's labels that is taken, None where all of them are dropped, and why.

    The best of them is held against ``rival``, which is taken without them: the higher one is taken. An interval that
    leaves 0 out is asked for only where positives are ample: with few it would never come, and whoever names a
    neighbour expects it to help (docs/decisions/0039).
    """
    lead = max(lent, key=lambda line: line.value)
    values, draws = ground.judge([scores[lead.name], scores[rival]])
    found = ground.difference(values[0] - values[1], draws[0] - draws[1], compared=len(lent))
    positives = ground.rows.positives
    ample = regime(positives, rules.regime) == "ample"
    paired = (
        f"{lead.name}, the best of {len(lent)} ways to use the neighbour's labels, against {rival}, which would be "
        f"taken without: {found.estimate} {ground.metric.words} on the same rows of the target, "
        f"{positives:,} of them rare"
    )
    if not values[0] > values[1]:
        return None, f"dropped: {paired}"
    if ample and not found.better:
        return None, f"dropped, because with so many of the target's own it has to be surely better: {paired}"
    return lead.name, f"used: {paired}"


def _why_single(table: Sequence[CandidateResult], best: str, words: str, *, compared: int) -> str:
    """Say why ``best`` is the best of ``table``. compared : differences that the p-values allow for"""
    line = next(each for each in table if each.name == best)
    if line is not table[0]:
        return (
            f"{best} beats {table[0].name} by {line.difference} {words} (p = {line.p_value:.3g}, adjusted for "
            f"{compared} comparisons)"
        )
    others = len(table) - 1
    if not others:
        return f"{best} was the only candidate finished"
    return f"none of {others} other candidates is significantly better than {best}: ties go to the simpler"


# --- ensembles ---------------------------------------------------------------------------------------------------


def adopted(line: CandidateResult, sure: bool, alone: float, rows: Rows, asked: str) -> bool:
    """Whether the ensemble of ``line`` replaces the best single candidate, whose `search.metric` is ``alone``.

    Always when ``sure``, significantly better than that one. With ``search.ensemble: auto`` also when it is higher and
    positives are enough: measured on held-out tests, it then won more often than it lost (docs/decisions/0013, 0017).
    """
    if sure:
        return True
    return asked == "auto" and rows.positives >= AVERAGING_PAYS and line.value > alone


def _ensemble(
    ground: _Ground,
    done: Sequence[Trained],
    scores: Mapping[str, FloatArray],
    best: str,
    dev: Rows,
    rules: SelectionRules,
) -> tuple[CandidateResult | None, dict[str, float], FloatArray, bool, str, FloatArray]:
    """Return the ensemble's line, its weights and its scores, whether it beats ``best``, what is to be said about it,
    and the scores that it was judged by."""
    pool = [one.candidate.name for one in leaders(done, dev, MOST_MEMBERS)]
    pool = sorted({*pool, best}, key=list(scores).index)
    logits = np.stack([logit(scores[name]) for name in pool])
    kind = "weighted" if rules.ensemble == "auto" else rules.ensemble
    learn = ENSEMBLES[kind]
    weights = learn(ground.rows.y, logits, ground.rows.weight)
    crossed = _cross_fitted(ground, logits, learn)
    kept = {name: float(w) for name, w in zip(pool, weights, strict=True) if w > 0}
    if len(kept) < 2:
        return None, {}, scores[best], False, f"the {kind} ensemble puts all its weight on one candidate", crossed
    combined = combine([scores[name] for name in kept], list(kept.values()))
    zero = next(iter(scores))
    values, judged = ground.judge([crossed, scores[best], scores[zero]])  # one call: paired resamples
    gain = ground.difference(values[0] - values[1], judged[0] - judged[1])
    against_zero = ground.difference(values[0] - values[2], judged[0] - judged[2])  # one, not the best of many
    (ap,), (draws,) = ground.precision([crossed])
    seconds = sum(one.fit_seconds for one in done if one.candidate.name in kept)
    parts = ", ".join(f"{weight:.0%} {name}" for name, weight in sorted(kept.items(), key=lambda item: -item[1]))
    reason = f"Mean of log-odds: {parts}."
    line = CandidateResult(
        f"ensemble-{kind}",
        ground.bounded(ap, draws),
        against_zero.estimate,
        against_zero.p_value,
        against_zero.better,
        seconds,
        reason,
        values[0],
    )
    verdict = "beats" if gain.better else "does not beat"
    return (
        line,
        kept,
        combined,
        gain.better,
        f"the {kind} ensemble {verdict} {best}: {gain.estimate} {ground.metric.words} (p = {gain.p_value:.3g})",
        crossed,
    )


def _cross_fitted(ground: _Ground, logits: FloatArray, learn: Any) -> FloatArray:
    """Score each part of the rows with weights learned on the other parts; whole blocks stay in one part."""
    rows = ground.rows
    keys = np.arange(len(rows)) if ground.block is None else ground.block
    distinct, code = np.unique(keys, return_inverse=True)
    part_of = np.random.default_rng(ground.seed).permutation(len(distinct)) % 4
    part = part_of[code]
    out = np.empty(len(rows))
    for number in range(4):
        inside = part == number
        weight = None if rows.weight is None else rows.weight[~inside]
        learned = learn(rows.y[~inside], logits[:, ~inside], weight)
        out[inside] = learned @ logits[:, inside]
    return expit(out)


def equal_weights(y: IntArray, logits: FloatArray, weight: FloatArray | None = None) -> FloatArray:
    """Voting: every member counts the same. logits : (m, n)"""
    return np.full(len(logits), 1 / len(logits))


def greedy_weights(y: IntArray, logits: FloatArray, weight: FloatArray | None = None, *, steps: int = 25) -> FloatArray:
    """Return weights by forward selection with replacement, by AP. Source: Caruana et al., ICML 2004.

    Shrunk towards equal weights of the members near the best: with few positives the best weights here are mostly luck.
    """
    positives = int(y.sum())
    if positives == 0 or positives == len(y):
        return equal_weights(y, logits)
    y, logits, weight = _enough(y, logits, weight)
    ap = FastPrecision(y, weight)
    counts, total = np.zeros(len(logits)), np.zeros(logits.shape[1])
    best_value, best_counts = -1.0, counts
    for _ in range(steps):
        values = [ap(total + line) for line in logits]
        chosen = int(np.argmax(values))
        counts[chosen] += 1
        total = total + logits[chosen]
        if values[chosen] > best_value + 1e-12:
            best_value, best_counts = values[chosen], counts.copy()
    share = positives / (positives + EVIDENCE)
    alone = np.array([ap(line) for line in logits])
    behind = max(0.1, 1.5 / np.sqrt(positives))  # relative AP that luck may cost a member
    near = np.where(alone >= (1 - behind) * alone.max(), 1.0, 0.0)
    weights = share * best_counts / best_counts.sum() + (1 - share) * near / near.sum()
    return _without_crumbs(weights)


def stacked_weights(y: IntArray, logits: FloatArray, weight: FloatArray | None = None) -> FloatArray:
    """Return weights of a nonnegative logistic regression on the log-odds. Source: Wolpert, 1992; Breiman, 1996.

    A ridge pulls them towards equal weights, the more the fewer positives there are.
    """
    from scipy.optimize import minimize

    if int(y.sum()) in (0, len(y)):
        return equal_weights(y, logits)
    m, sign = len(logits), np.where(y == 1, 1.0, -1.0)
    pull, mass = 10.0, np.ones(len(y)) if weight is None else weight / weight.mean()

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        share, shift = parameters[:m], parameters[m]
        margin = sign * (share @ logits + shift)
        slope = -sign * mass / (1 + np.exp(np.clip(margin, -500, 500)))
        away = share - 1 / m
        value = float(mass @ np.logaddexp(0, -margin) + pull * (away @ away))
        return value, np.append(logits @ slope + 2 * pull * away, slope.sum())

    start = np.append(equal_weights(y, logits), 0.0)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * m + [(None, None)])
    weights = found.x[:m]
    return _without_crumbs(weights / weights.sum()) if weights.sum() > 0 else equal_weights(y, logits)


ENSEMBLES = {"voting": equal_weights, "weighted": greedy_weights, "stacking": stacked_weights}


def _without_crumbs(weights: FloatArray, least: float = 0.03) -> FloatArray:
    """Drop members that hardly count: each costs a fit and time at serving."""
    kept = np.where(weights >= least, weights, 0.0)
    return np.asarray(kept / kept.sum(), dtype=np.float64)


def _enough(
    y: IntArray, logits: FloatArray, weight: FloatArray | None
) -> tuple[IntArray, FloatArray, FloatArray | None]:
    """Thin the negatives evenly where rows are very many: weights do not need them all.

    Those left stand for the others.
    """
    if len(y) <= _WEIGHT_ROWS:
        return y, logits, weight
    negatives = np.flatnonzero(y == 0)
    step = int(np.ceil(len(negatives) / _WEIGHT_ROWS))
    index = np.sort(np.concatenate([np.flatnonzero(y == 1), negatives[::step]]))
    mass = (np.ones(len(y)) if weight is None else weight)[index] * np.where(y[index] == 1, 1.0, float(step))
    return y[index], logits[:, index], mass
