"""Fit candidates inside a budget, search the leader's hyper-parameters with what is left, and record every trial."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rareclass.config import ResampleStep, SearchSettings
from rareclass.core.candidates import Candidate
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import Rows
from rareclass.core.fit_task import never
from rareclass.core.ranking import FastPrecision
from rareclass.core.splitting import Fold
from rareclass.core.training import Effort, Trained, train_candidate

Progress = Callable[[str], None]

ZERO_SHARE = 0.5
"""Share of a group's time after which candidate 0 stops growing, so that something is held against it."""


@dataclass(frozen=True)
class GroupBudget:
    """What a group of candidates may spend.

    seconds : from now, by the clock
    planned : candidates of all groups together; None: those of this one
    """

    seconds: float
    clock: Callable[[], float]
    threads: int = 1
    planned: int | None = None
    device: str = "cpu"
    progress: Progress = lambda message: None


@dataclass(frozen=True, eq=False)
class FoldWork:
    """The development rows and folds that candidates are fitted on, with what belongs to the rows.

    costs : of the development rows · resampled : the training rows of all folds, None where they are as they are
    """

    dev: Rows
    folds: Sequence[Fold]
    seed: int
    costs: CostArrays | None = None
    resampled: Rows | None = None


def train_group(
    candidates: Sequence[Candidate], work: FoldWork, search: SearchSettings, budget: GroupBudget
) -> list[Trained]:
    """Fit the candidates of one group in their order until the budget's seconds are spent.

    With ``search.trials`` the clock is not looked at: every candidate is finished, and the group of untouched rows goes
    on searching until that many candidates were fitted in all (``planned``: candidates of all groups together).
    The first candidate of the untouched group is always there, grown as far as half of the time allowed, or all of it
    where time is short. With ``search.replay`` and ``search.only`` nothing is searched, and what is asked for is
    finished.
    """
    clock, seconds, planned = budget.clock, budget.seconds, budget.planned
    start = clock()
    counted = any(each is not None for each in (search.trials, search.replay, search.only))
    late = never if counted else lambda: clock() - start >= seconds
    left = None if counted else lambda: start + seconds - clock()
    hurried = bool(candidates and candidates[0].params)  # as it comes, for want of time: it has all there is
    share = ZERO_SHARE if len(candidates) > 1 and not hurried else 1.0
    zero_late = never if counted else lambda: clock() - start >= share * seconds
    effort = Effort(budget.threads, budget.device, late, left, clock=clock)
    found: list[Trained] = []
    for position, candidate in enumerate(candidates):
        first = position == 0 and candidate.group == "none"
        if late() and not first:
            break
        budget.progress(f"{candidate.name} ({position + 1} of {len(candidates)})")
        own = replace(effort, out_of_time=zero_late, seconds_left=None, cut=True) if first else effort
        found.append(_trained(candidate, work, own))
    if candidates and candidates[0].group == "none":
        trials = trials_left(search, planned or len(candidates))
        own = replace(effort, seconds_left=None)
        found += tune_hyperparameters(found, work, own, trials=trials, progress=budget.progress)
    return found


def trials_left(search: SearchSettings, planned: int) -> int | None:
    """Return how many settings are tried after so many candidates; None for as many as time allows."""
    if not search.tune or search.replay is not None or search.only is not None:
        return 0
    return None if search.trials is None else max(0, search.trials - planned)


def _trained(candidate: Candidate, work: FoldWork, effort: Effort) -> Trained:
    return train_candidate(
        candidate,
        work.dev,
        work.folds,
        seed=work.seed,
        costs=work.costs,
        resampled=work.resampled,
        effort=effort,
    )


# --- hyper-parameters --------------------------------------------------------------------------------------------


def tune_hyperparameters(
    trained: Sequence[Trained],
    work: FoldWork,
    effort: Effort,
    *,
    trials: int | None = None,
    progress: Progress = lambda message: None,
    most: int = 40,
) -> list[Trained]:
    """Search the settings of XGBoost with Optuna's TPE on the same folds; return the trials that were finished.

    How many negatives per positive a fit sees is one of the settings: random under-sampling, from one to as many as
    there are.
    trials : how many (deterministic); default: until ``effort.out_of_time``, at most ``most``
    The untouched candidate's own settings are the first point the search knows about.
    """
    base = next((one for one in trained if one.complete and one.candidate.learner == "xgboost"), None)
    if base is None or trials == 0:
        return []
    import optuna

    dev, seed = work.dev, work.seed
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=6))
    space, natural = _space(), (len(dev) - dev.positives) / max(1, dev.positives)
    if natural >= _WORTH_SAMPLING:
        space |= _ratio_space(natural)
    for one in trained:
        _tell(study, one, dev, space, natural)
    found: list[Trained] = []
    for number in range(most if trials is None else trials):
        if effort.out_of_time():
            break
        trial = study.ask(space)
        proposed = _rounded(trial.params)
        ratio = float(proposed.pop(_RATIO, natural))
        sampled = () if ratio > _ALL * natural else (ResampleStep(name="random_under", ratio=ratio),)
        params = {**base.candidate.params, **proposed}
        candidate = replace(
            base.candidate,
            name=f"{base.candidate.name} tuned {number + 1}",
            params=params,
            resample=sampled,
            reason="Proposed by the hyper-parameter search.",
        )
        progress(candidate.name)
        one = _trained(candidate, replace(work, resampled=None) if sampled else work, effort)
        if not one.complete:
            break
        study.tell(trial, precision(one, dev))
        found.append(one)
    return found


def precision(one: Trained, dev: Rows) -> float:
    """Return the average precision of the scored rows."""
    weight = None if dev.weight is None else dev.weight[one.scored]
    return FastPrecision(dev.y[one.scored], weight)(one.oof[one.scored])


def _space() -> dict[str, Any]:
    from optuna.distributions import FloatDistribution, IntDistribution

    return {
        "max_depth": IntDistribution(2, 9),
        "min_child_weight": FloatDistribution(0.05, 20.0, log=True),
        "subsample": FloatDistribution(0.5, 1.0),
        "colsample_bytree": FloatDistribution(0.3, 1.0),
        "reg_lambda": FloatDistribution(0.1, 30.0, log=True),
        "reg_alpha": FloatDistribution(0.001, 3.0, log=True),
    }


_RATIO, _ALL, _WORTH_SAMPLING = "negatives_per_positive", 0.8, 4.0
"""The setting's name; the share of all negatives from which none is left out; the ratio from which there is something
to sample.
"""


def _ratio_space(natural: float) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution

    return {_RATIO: FloatDistribution(1.0, natural, log=True)}


def _rounded(params: Mapping[str, Any]) -> dict[str, Any]:
    """Settings short enough to read, and the same when read back from JSON."""
    return {key: value if isinstance(value, int) else float(f"{value:.3g}") for key, value in params.items()}


def _tell(study: Any, one: Trained, dev: Rows, space: Mapping[str, Any], natural: float) -> None:
    """Let the search know a finished XGBoost candidate on untouched rows."""
    from optuna.trial import create_trial

    plain = one.candidate.group == "none" and one.candidate.weighting == "none" and one.candidate.loss == "logistic"
    plain = plain and one.candidate.transfer == "none"
    if not (one.complete and one.candidate.learner == "xgboost" and plain):
        return
    known = {
        "reg_alpha": 0.001,
        **({_RATIO: natural} if _RATIO in space else {}),
        **{k: v for k, v in one.params.items() if k in space},
    }
    if set(known) == set(space) and all(space[name]._contains(value) for name, value in known.items()):
        study.add_trial(create_trial(params=known, distributions=space, value=precision(one, dev)))


# --- records -----------------------------------------------------------------------------------------------------


def record(trained: Iterable[Trained]) -> list[dict[str, Any]]:
    """Return the trials as JSON-ready values, in order: what ``search.replay`` reads."""
    return [one.trial() for one in trained]


def replayed(trials: Iterable[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    """Return the candidates of recorded trials that were finished, in order: fitting them all gives the same model."""
    return tuple(Candidate.from_json(trial["candidate"]) for trial in trials if trial.get("complete", True))


def folds_of(trials: Iterable[Mapping[str, Any]]) -> int:
    """Return on how many folds the recorded trials that were finished were fitted; 0 where the record does not say."""
    return max((int(trial.get("folds_done", 0)) for trial in trials if trial.get("complete", True)), default=0)


def leaders(trained: Sequence[Trained], dev: Rows, most: int) -> list[Trained]:
    """Return the first candidate, the best of every learner and the best of the rest by AP, ``most`` in all, in the
    order they were fitted.

    A blend gains from learners that err unlike each other: forty tunings of one learner must not crowd out the others.
    """
    done = [one for one in trained if one.complete]
    if len(done) <= most:
        return done
    values = np.array([precision(one, dev) for one in done])
    order = [int(i) for i in np.argsort(-values, kind="stable")]
    names = [one.candidate.learner for one in done]
    firsts = [i for at, i in enumerate(order) if names[i] not in {names[j] for j in order[:at]}]
    wanted = dict.fromkeys([0, *firsts, *order])
    return [done[i] for i in sorted(list(wanted)[:most])]
