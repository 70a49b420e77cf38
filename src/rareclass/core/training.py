"""Fit one candidate on every fold, score the rows it has not seen, and fit the chosen recipe on all rows.

Boosting and networks grow on all folds in step and stop together, where the average precision of all scored rows is
best: one number learned from all positives instead of one per fold from a few of them (docs/decisions/0016). Apart from
it the scored rows are touched by nothing.

A fit never sees rows that `train.filter` leaves out; they are scored all the same, so that calibrator and thresholds
stand on rows as they come. Every fit, of a fold or of all rows, is corrected for what was left out, sampled and
weighted in its own rows: what leaves this module is on the natural prevalence, exactly where rows were left out or
weighted alike within a class, nearly where not, and then the calibrator learns the rest, which the folds and the final
fit have in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rareclass.config import ResampleStep
from rareclass.core import detection, learners, scarce, transfer
from rareclass.core.calibration import prior_correction
from rareclass.core.candidates import Candidate
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import BoolArray, FloatArray, FloatMatrix, Rows, concatenate
from rareclass.core.early_stopping import BestRound, Growing, Trace, Watched, threads_of_a_fit
from rareclass.core.fit_task import FitTask, InterruptedFitError, never
from rareclass.core.fitted import FITTED, Fitted
from rareclass.core.log_odds import expit, logit
from rareclass.core.ranking import FastPrecision
from rareclass.core.splitting import Fold
from rareclass.core.transfer import Loan, Reads
from rareclass.core.weighting import weigh
from rareclass.errors import DataError

_MOST_GROWTH = 1.3
_PLENTY = 1_000
"""Positives from which a final fit on more than 120,000 rows is fitted once."""


@dataclass(frozen=True)
class Trained:
    """A candidate and what its folds said.

    oof : (n_dev,) scores of rows not seen in their fit, corrected for the prior where that is exact, and for a
        prevalence of the rows they were fitted on that is not that of all development rows; NaN = never scored
    negative_sampling_rate : share of negatives that training amounted to, already corrected; NaN = scores that are no
        probabilities, left as they are for the calibrator
    rounds : rounds or epochs of each fold · fitted_rows : rows each was fitted on
    params : settings as fitted, with the defaults that depend on the number of rows
    trace : AP and loss of all scored rows by round · complete : every fold was scored before the deadline
    """

    candidate: Candidate
    oof: FloatArray
    negative_sampling_rate: float = 1.0
    rounds: tuple[int, ...] = ()
    fitted_rows: tuple[int, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    fit_seconds: float = 0.0
    folds_done: int = 0
    trace: Trace = ()
    complete: bool = False
    costs: CostArrays | None = None
    """the rule by which the costs of other rows follow"""

    @property
    def scored(self) -> Any:
        """(n_dev,) True where there is a score."""
        return np.isfinite(self.oof)

    def rounds_for(self, rows: int) -> int | None:
        """Return the rounds of a fit on ``rows`` rows; None for a learner that does not grow.

        Where the folds were still getting better when a limit or the clock ended them, more rounds would stretch the
        scores beyond those that the calibrator was fitted on: the fit gets as many as they had.
        """
        if not self.rounds:
            return None
        unfinished = bool(self.trace) and max(self.rounds) > self.trace[-1]["round"] - self.trace[0]["round"]
        return scaled_rounds(self.rounds, self.fitted_rows, 0 if unfinished else rows)

    def trial(self) -> dict[str, Any]:
        """Return what a repetition needs and what it can be checked against."""
        return {
            "candidate": self.candidate.to_json(),
            "rounds": list(self.rounds),
            "folds_done": self.folds_done,
            "complete": self.complete,
            "fit_seconds": self.fit_seconds,
        }


# --- resampling of folds -----------------------------------------------------------------------------------------


def resample_folds(
    chain: Sequence[ResampleStep], dev: Rows, folds: Sequence[Fold], *, seed: int, threads: int = 1
) -> Rows:
    """Return the resampled training rows of every fold, stacked, with a ``fold`` column."""
    from rareclass.core.resampling import resample

    parts = []
    for k, fold in enumerate(folds):
        made = resample(dev.take(fold.train).learnable().as_drawn(), chain, seed=seed + k, threads=threads).rows
        parts.append(replace(made, fold=np.full(len(made), k, dtype=np.int64)))
    return concatenate(parts)


def sampling_factor(before: Rows, after: Rows) -> float:
    """Return the share of negatives kept per positive kept, by weight: what sampling, synthesis and leaving out amount
    to.

    Undoing it is exact where rows were drawn at random within a class. Raises DataError where a class is gone.
    """
    if before is after:
        return 1.0
    (n0, p0), (n1, p1) = (_mass(rows) for rows in (before, after))
    if n1 and not p0:  # one class, and nothing to keep in proportion
        return 1.0
    if not (n1 and p1):
        gone = "positive" if n1 else "negative"
        raise DataError(
            f"no {gone} is left to train on. Mend train.filter or the resampling chain so that both classes are"
        )
    return (n1 / n0) / (p1 / p0)


def _mass(rows: Rows) -> tuple[float, float]:
    """Weight of the negatives and of the positives."""
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    positive = float(weight[rows.y == 1].sum())
    return float(weight.sum()) - positive, positive


# --- one candidate -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Setting:
    """What every fit of a candidate shares."""

    candidate: Candidate
    params: Mapping[str, Any]
    seed: int
    threads: int
    device: str
    out_of_time: Callable[[], bool]

    @contextmanager
    def at_once(self, fits: int, rows: int) -> Iterator[Callable[..., Iterable[Any]]]:
        """Give a ``map`` over so many fits of so many rows: one in each thread where a fit has no use for more than
        one.
        """
        apart = learners.LEARNERS[self.candidate.learner].apart
        threads = min(fits, self.threads) if apart and threads_of_a_fit(rows, self.threads) == 1 else 1
        if threads == 1:
            yield map
        else:
            with ThreadPoolExecutor(threads) as pool:
                yield pool.map

    def _weights(self, rows: Rows, costs: CostArrays | None) -> tuple[FloatArray | None, float]:
        weights = weigh(rows, self.candidate.weighting, costs)
        plain = self.candidate.weighting == "none" and rows.weight is None
        return None if plain else weights.weight, weights.negative_sampling_rate

    def fit(
        self, rows: Rows, costs: CostArrays | None, *, rounds: int | None = None, salt: int = 0
    ) -> tuple[Fitted, float]:
        """Return the fitted learner and the share of negatives that weights and the learner's own sampling amount
        to.
        """
        return self.fit_loan(*self.loan(rows, costs), rounds=rounds, salt=salt)

    def fit_loan(self, loan: Loan, rate: float, *, rounds: int | None, salt: int) -> tuple[Fitted, float]:
        """The same from what `loan` gave: several seeds need it once."""
        made = learners.fit(self.candidate.learner, self._task(loan.rows, loan.weight, rounds, salt), self.params)
        fitted = made if loan.reads is None else loan.reads.fitted(made)
        return fitted, rate * made.negative_sampling_rate

    def loan(self, rows: Rows, costs: CostArrays | None) -> tuple[Loan, float]:
        """Return what is learned from, a neighbour's rows too where the candidate uses them, and the share of negatives
        that this amounts to.
        """
        weight, rate = self._weights(rows, costs)
        loan = loan_of(self.candidate, rows, weight)
        return loan, rate if loan.rows is rows else rate * sampling_factor(rows, loan.rows)

    def _task(self, rows: Rows, weight: FloatArray | None, rounds: int | None, salt: int) -> FitTask:
        return FitTask(
            rows,
            weight,
            rounds,
            self.candidate.loss,
            self.seed + 1009 * salt,
            self.threads,
            self.device,
            self.out_of_time,
        )

    def grow(self, part: _Part, watched: Watched, salt: int) -> tuple[Growing, float, int, Reads | None]:
        """Begin a fit that is watched on rows it does not see; with the share of negatives as `fit` gives it, the rows
        it learns from, and how it reads others.
        """
        loan, rate = self.loan(part.rows, part.costs)
        task = self._task(loan.rows, loan.weight, None, salt)
        seen = watched if loan.reads is None else loan.reads.watched(watched)
        begun = learners.grow(self.candidate.learner, task, seen, self.params)
        return begun, rate * part.negative_sampling_rate, len(loan.rows), loan.reads


def loan_of(candidate: Candidate, rows: Rows, weight: FloatArray | None) -> Loan:
    """Return what a candidate learns from beside ``rows`` of the target: these alone where nothing is lent to it."""
    if candidate.transfer == "none":
        return Loan(rows, weight)
    if candidate.lender is None:
        raise DataError(f"{candidate.name} needs what a neighbour lends. Set transfer.path or transfer.model")
    return transfer.TRANSFERS[candidate.transfer].lend(candidate.lender, rows, weight)


def corrected(score: FloatArray, rate: float) -> FloatArray:
    """Undo the prior shift; leave scores alone that are no probabilities (NaN): a calibrator has to learn them."""
    return score if not np.isfinite(rate) or rate == 1.0 else prior_correction(score, rate)


@dataclass(frozen=True)
class Effort:
    """What a fit may spend.

    threads, device : where it runs
    out_of_time : asked between folds and steps; then ``complete`` is False and the scores are of no use
    seconds_left : by the clock; a candidate whose first fold or step shows that it would not be finished is given up
        there
    cut : one that grows is kept however little it has grown when time is out; others need their least rounds for that
    clock : seconds, from any origin
    """

    threads: int = 1
    device: str = "cpu"
    out_of_time: Callable[[], bool] = never
    seconds_left: Callable[[], float] | None = None
    cut: bool = False
    clock: Callable[[], float] = lambda: 0.0


DEFAULT_EFFORT = Effort()
"""One thread, until it is done."""


def train_candidate(
    candidate: Candidate,
    dev: Rows,
    folds: Sequence[Fold],
    *,
    seed: int,
    costs: CostArrays | None = None,
    resampled: Rows | None = None,
    effort: Effort = DEFAULT_EFFORT,
) -> Trained:
    """Fit a candidate on every fold and score the rows it has not seen.

    costs : of the development rows · resampled : from ``resample_folds``, made here when the candidate needs it
    Raises ConfigError for settings the learner does not have, DataError when a fold cannot be fitted.
    """
    threads, clock = effort.threads, effort.clock
    start = clock()
    learners.check_weighting(candidate.learner, candidate.weighting)
    rule = None if costs is None else costs.rule()
    if resampled is None and candidate.group != "none":
        resampled = resample_folds(candidate.resample, dev, folds, seed=seed, threads=threads)

    def part(k: int) -> _Part:  # its rows are a copy: whoever asks lets go of them before the next
        return _part(dev, folds[k], k, resampled, rule, learners.LEARNERS[candidate.learner].one_class)

    known = int(dev.y.sum() if dev.keep is None else dev.y[dev.keep].sum())
    learned = loan_of(candidate, part(0).rows, None).rows
    params = learners.with_defaults(candidate.learner, learned, candidate.params, known)
    del learned
    setting = _Setting(candidate, params, seed, threads, effort.device, effort.out_of_time)
    hopeless = _Projection(clock, effort.seconds_left)
    trace: Trace = ()
    if learners.LEARNERS[candidate.learner].grow is None:
        done = _one_by_one(setting, part, dev, folds, hopeless)
    else:
        done, trace, grown = _together(setting, part, dev, folds, effort.cut, hopeless)
        if grown is not None:  # a repetition has no clock to cut it at the same step
            candidate = replace(candidate, params={**candidate.params, **grown})
    total, count = np.zeros(len(dev)), np.zeros(len(dev))
    for one, fold in zip(done, folds, strict=False):
        total[fold.score] += logit(one.score) + (
            prior_shift(dev, fold) if np.isfinite(one.negative_sampling_rate) else 0.0
        )
        count[fold.score] += 1
    with np.errstate(invalid="ignore"):
        oof = expit(total / count)
    return Trained(
        candidate=candidate,
        oof=oof,
        negative_sampling_rate=float(np.mean([one.negative_sampling_rate for one in done])) if done else float("nan"),
        rounds=tuple(one.rounds for one in done if one.rounds is not None),
        fitted_rows=tuple(one.rows for one in done),
        params=params,
        fit_seconds=clock() - start,
        folds_done=len(done),
        trace=trace,
        complete=len(done) == len(folds),
        costs=rule,
    )


@dataclass(frozen=True)
class _Part:
    """Rows that one fold is fitted on; with the factor of leaving out and resampling, and the costs."""

    rows: Rows
    negative_sampling_rate: float
    costs: CostArrays | None


@dataclass(frozen=True)
class _Scored:
    score: FloatArray
    negative_sampling_rate: float
    rounds: int | None
    rows: int


def _part(
    dev: Rows, fold: Fold, k: int, resampled: Rows | None, rule: CostArrays | None, one_class: bool = False
) -> _Part:
    train = dev.take(fold.train)
    if not (train.positives > 0 or one_class) or train.positives == len(train):
        raise DataError(
            f"fold {k} trains on {train.positives} positives of {len(train)} rows. "
            "Set split.validation lower, or split.kind: stratified"
        )
    if resampled is None or resampled.fold is None:
        return _fitted_on(train, train.learnable(), rule)
    return _fitted_on(train, resampled.take(resampled.fold == k), rule)


def _fitted_on(known: Rows, rows: Rows, rule: CostArrays | None) -> _Part:
    """What a fit is given of the rows that are ``known`` to it: the same for a fold and for the final fit."""
    rows = rows.as_drawn()
    return _Part(rows, sampling_factor(known, rows), None if rule is None else rule.of(rows.amount))


@dataclass
class _Projection:
    """Says whether the rest of a piece of work, at the speed so far, takes longer than is left."""

    clock: Callable[[], float]
    left: Callable[[], float] | None
    began: float = 0.0

    def start(self) -> None:
        if self.left is not None:
            self.began = self.clock()

    def __call__(self, share: float) -> bool:
        """share : of the work that is done, above 0"""
        return self.left is not None and (self.clock() - self.began) * (1 / share - 1) > self.left()


def _one_by_one(
    setting: _Setting, part_of: Callable[[int], _Part], dev: Rows, folds: Sequence[Fold], hopeless: _Projection
) -> list[_Scored]:
    """Fit and score fold by fold, until time is out."""
    done: list[_Scored] = []

    def scored(k: int, part: _Part) -> _Scored:
        fitted, rate = setting.fit(part.rows, part.costs, salt=k)
        rate *= part.negative_sampling_rate
        return _Scored(corrected(fitted.score(dev.x[folds[k].score]), rate), rate, None, len(part.rows))

    hopeless.start()
    for k in range(len(folds)):
        if setting.out_of_time():
            break
        try:
            done.append(scored(k, part_of(k)))
        except InterruptedFitError:
            break
        if k == 0 and hopeless(1 / len(folds)):
            break
    return done


def _together(
    setting: _Setting,
    part_of: Callable[[int], _Part],
    dev: Rows,
    folds: Sequence[Fold],
    cut: bool,
    hopeless: _Projection,
) -> tuple[list[_Scored], Trace, dict[str, int] | None]:
    """Grow all folds in step and keep the rounds at which the scored rows are ranked best.

    The end of time ends the growth of what has its least rounds, or any with ``cut``; then the third value says how far
    it had come. Nothing where it had not come that far.
    """
    name = setting.candidate.learner
    if setting.out_of_time() and not cut:
        return [], (), None

    def begun(k: int, part: _Part) -> tuple[Growing, float, int, Reads | None]:
        return setting.grow(part, Watched(dev.x, folds[k].score), k)

    growing, factors, sizes, reads = zip(*(begun(k, part_of(k)) for k in range(len(folds))), strict=True)
    shifts = [prior_shift(dev, fold) + float(np.log(rate)) for fold, rate in zip(folds, factors, strict=True)]
    first = growing[0]
    best = BestRound(step=first.step, patience=first.patience, least=first.least)
    scored, count = _scored_rows(folds, len(dev))
    sign, weight = np.where(dev.y[scored] == 1, -1.0, 1.0), None if dev.weight is None else dev.weight[scored]
    precision = FastPrecision(dev.y[scored], weight)
    grown, short = 0, False

    def step(one: Growing) -> bool:
        if setting.out_of_time() and (grown or not cut):
            return False
        learners.as_config_error(name, one.grow)
        return True

    hopeless.start()
    with setting.at_once(len(folds), max(sizes)) as each:
        while grown < first.most:
            if not all(each(step, growing)):
                if grown < (1 if cut else first.least):
                    return [], (), None
                short = True
                break
            grown += first.step
            if grown == first.step and not cut and hopeless(min(1.0, first.step / first.least)):
                return [], (), None
            total = np.zeros(len(dev))
            margins = each(lambda one: one.log_odds(), growing)
            for margin, fold, shift in zip(margins, folds, shifts, strict=True):
                total[fold.score] += margin + shift
            z = total[scored] / count[scored]
            if best.add(precision(z), float(np.average(np.logaddexp(0, sign * z), weights=weight))):
                break
    rounds = min(best.rounds(), first.most)
    made = [one.fitted(rounds) for one in growing]
    made = [fitted if how is None else how.fitted(fitted) for fitted, how in zip(made, reads, strict=True)]
    del growing, first  # the rows they hold
    done = []
    for fitted, fold, size, rate in zip(made, folds, sizes, factors, strict=True):
        score = fitted.score(dev.x[fold.score])
        done.append(_Scored(corrected(score, rate), rate, rounds, size))
    return done, best.trace(), {learners.LIMITS[name]: grown} if short else None


def prior_shift(dev: Rows, fold: Fold) -> float:
    """Return what a fold's log-odds lack against those of a fit on all ``dev`` rows, whose prevalence may be another.

    Windows of a class that gets commoner are scored by fits that knew it rarer: without this the calibrator would make
    good for that, and the final fit, which knows better, would promise too much. Nothing under a random split.
    """
    known = np.average(dev.y[fold.train], weights=None if dev.weight is None else dev.weight[fold.train])
    whole = np.average(dev.y, weights=dev.weight)
    return float(logit(np.asarray(whole)) - logit(np.asarray(known)))


def _scored_rows(folds: Sequence[Fold], n: int) -> tuple[BoolArray, FloatArray]:
    """(n,) which rows are scored, and how often."""
    count = np.zeros(n)
    for fold in folds:
        count[fold.score] += 1
    return count > 0, count


def scaled_rounds(rounds: Sequence[int], fitted_rows: Sequence[int], rows: int) -> int:
    """Return the rounds for a fit on ``rows`` rows: the median of the folds, growing with the root of the rows (at most
    1.3 times).
    """
    growth = np.clip(np.sqrt(rows / max(1.0, float(np.mean(fitted_rows)))), 1.0, _MOST_GROWTH)
    return max(1, round(float(np.median(rounds)) * float(growth)))


# --- the chosen recipe -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One fitted learner of an ensemble, the weight of its log-odds, and the prior shift to undo."""

    fitted: Fitted
    weight: float
    negative_sampling_rate: float = 1.0


@dataclass(frozen=True)
class Ensemble:
    """Weighted mean of the log-odds of fitted learners; one learner is an ensemble of one."""

    members: tuple[Member, ...]

    def score(self, x: FloatMatrix) -> FloatArray:
        """Return (n,) raw scores for x (n, n_features)."""
        if len(self.members) == 1:
            only = self.members[0]
            return corrected(only.fitted.score(x), only.negative_sampling_rate)
        total = sum(m.weight * logit(corrected(m.fitted.score(x), m.negative_sampling_rate)) for m in self.members)
        return expit(np.asarray(total))

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        """Return (n, n_features) contributions to the log-odds, from the members that have them; None without any."""
        found = [(m.weight, m.fitted.contributions(x)) for m in self.members]
        known = [(weight, values) for weight, values in found if values is not None]
        whole = sum(weight for weight, _ in known)
        if not known or whole < 0.5:
            return None
        return np.asarray(sum(weight * values for weight, values in known) / whole)


SAVED: tuple[type, ...] = (*detection.FITTED, *scarce.FITTED, *transfer.FITTED, Ensemble, Member, *FITTED)
"""What a version's learner may consist of, for `core.portable`."""


def combine(scores: Sequence[FloatArray], weights: Sequence[float]) -> FloatArray:
    """Return the score of an ensemble from its members' scores, each (n,)."""
    if len(scores) == 1:
        return scores[0]
    return expit(np.asarray(sum(w * logit(s) for s, w in zip(scores, weights, strict=True))))


def refit(
    trained: Sequence[Trained],
    weights: Mapping[str, float],
    rows: Rows,
    *,
    seed: int,
    threads: int = 1,
    device: str = "cpu",
    once: bool = False,
) -> Ensemble:
    """Fit the chosen candidates on all ``rows``, rounds scaled up to their number, and weight them.

    weights : candidate name -> weight of its log-odds, as ``Selection.weights``
    What the folds were trained with holds here too: what `train.filter` leaves out, the resampling chain, the weighting
    and the costs, by amount where there is one. Several seeds are averaged where that is cheap, unless ``once``. The
    same arguments give the same scores.
    """
    members: list[Member] = []
    for one in trained:
        if weights.get(one.candidate.name, 0.0) <= 0:
            continue
        members += _refit_one(one, weights[one.candidate.name], rows, seed, threads, device, once)
    if not members:
        raise DataError(
            f"none of the chosen candidates {', '.join(weights)} was trained. Pass the candidates that selection saw"
        )
    return Ensemble(tuple(members))


def _refit_one(
    one: Trained, weight: float, rows: Rows, seed: int, threads: int, device: str, once: bool
) -> list[Member]:
    candidate, fit_rows = one.candidate, rows.learnable()
    if candidate.group != "none":
        from rareclass.core.resampling import resample

        fit_rows = resample(fit_rows.as_drawn(), candidate.resample, seed=seed, threads=threads).rows
    part = _fitted_on(rows, fit_rows, one.costs)
    setting = _Setting(candidate, one.params, seed, threads, device, never)
    loan, lent_rate = setting.loan(part.rows, part.costs)
    rounds = one.rounds_for(len(loan.rows))
    worth = 1 if once else seeds_worth(candidate.learner, len(fit_rows), fit_rows.positives)
    seeds = max(1, round(weight * worth))
    with setting.at_once(seeds, len(loan.rows)) as each:
        fits = each(lambda number: setting.fit_loan(loan, lent_rate, rounds=rounds, salt=number), range(seeds))
        return [Member(fitted, weight / seeds, rate * part.negative_sampling_rate) for fitted, rate in fits]


def seeds_worth(learner: str, rows: int, positives: int = 0) -> int:
    """Return how many seeds a final fit averages: only learners that differ by seed, fewer as rows get many.

    A member of an ensemble takes its share of them: the ensemble is an average already.

    Mean test AP of ten small sets with 1, 2, 5 and 8: .5252, .5264, .5266, .5258. Many rows with many positives need no
    second one: flights had .137 with one and .133 with two, synthetic fires with 217 positives .061 and .066.
    """
    if not learners.LEARNERS[learner].seeds:
        return 1
    return 3 if rows <= 40_000 else 2 if rows <= 120_000 or positives < _PLENTY else 1
