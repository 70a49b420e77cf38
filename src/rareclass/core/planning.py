"""The plan: which candidates are worth their time on these rows, most promising first, each with its reason.

CANDIDATE_RULES is the table: one entry per candidate, in the order of what they were seen to win on sets of this kind,
most unlike learners first, because a blend gains from those (docs/decisions/0017). Adding one is one function (when,
and why) and one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rareclass.config import DataSettings, ResampleStep, SearchSettings
from rareclass.core import without_labels
from rareclass.core.candidates import Candidate, with_unique_names
from rareclass.core.dataset import Rows, Schema
from rareclass.core.diagnosis import NO_POSITIVES, Diagnosis, in_regime
from rareclass.core.resampling import check_chain
from rareclass.core.scarce import AMPLE, AMPLE_ROUNDS, shares
from rareclass.core.splitting import Fold
from rareclass.core.transfer import TRANSFERS, Lender
from rareclass.errors import ConfigError, NoPositivesError, unknown

LARGE = 200_000
"""Rows from which slow learners, and neighbours of all rows, take too long."""
DEEP, DEEP_POSITIVES = 100_000, 1_000
"""Rows and positives from which trees of depth 10 are worth a try."""
FOREST_ROWS = 40_000
"""Rows that a forest takes at most: it thins the negatives itself."""
FEW_ENOUGH = 50
"""Positives from which the recipe for few has handed over."""
SMALL = 50_000
"""Rows up to which synthetic rows are worth their neighbour search."""

AS_IT_COMES = {**AMPLE, "rounds": AMPLE_ROUNDS, "patience": AMPLE_ROUNDS}
"""What XGBClassifier() does; but the number of rounds is looked for here, too."""

_SECONDS_PER_VALUE = 5e-6
_DEEP_COST = 1.5
"""of trees of depth 6, by those of depth 4"""
_ENOUGH_SCORED = 200
"""Positives that a fold has to score to stand for all of them."""
_COST = {
    "xgboost": 1.0,
    "lightgbm": 0.8,
    "catboost": 4.0,
    "hist_gradient_boosting": 1.0,
    "extra_trees": 1.5,
    "random_forest": 3.0,
    "balanced_random_forest": 0.5,
    "logistic_regression": 0.3,
    "mlp": 2.0,
    "scarce": 4.0,
}


@dataclass(frozen=True, slots=True)
class Situation:
    """What the ideas look at."""

    found: Diagnosis
    numeric: bool
    amounts: bool

    @property
    def rows(self) -> int:
        """Rows to learn from."""
        return self.found.rows

    @property
    def enough(self) -> bool:
        """Whether positives are ample."""
        return self.found.regime == "ample"

    @property
    def large(self) -> bool:
        """Whether fits of slow learners would take too long."""
        return self.found.rows > LARGE

    @property
    def under_ratio(self) -> int | None:
        """Majority rows per positive after under-sampling: the most of 20, 10, 5 that still halves the majority."""
        return next((ratio for ratio in (20, 10, 5) if self.found.ratio >= 2 * ratio), None)


def plan_for(
    rows: Rows,
    folds: Sequence[Fold],
    found: Diagnosis,
    search: SearchSettings,
    *,
    data: DataSettings,
    by_amount: bool,
    lender: Lender | None = None,
) -> tuple[Diagnosis, tuple[Candidate, ...]]:
    """Return what a run tries on development rows and their folds, with its regime: classifiers where every fold can
    teach and judge one, else detectors alone, whose regime is "none".

    data : for detectors · by_amount, lender : as of `plan`

    Raises as `plan`, but never for want of rows of the rare class.
    """
    if without_labels.teachable(rows, folds):
        return found, plan(found, search, rows.schema, by_amount=by_amount, lender=lender)
    only = without_labels.candidate(data, search, rows.positives, without_labels.labelled(rows))
    return in_regime(found, "none"), (only,)


def plan(
    found: Diagnosis, search: SearchSettings, schema: Schema, *, by_amount: bool = False, lender: Lender | None = None
) -> tuple[Candidate, ...]:
    """Return the candidates to try, candidate 0 (XGBoost on untouched rows) first, most promising next.

    `search.only` is all there is. `search.candidates` replaces everything after candidate 0 but what a ``lender``
    lends, `search.extra` comes before the rest; `search.trials` cuts the plan exactly, `search.seconds` drops the end
    that would hardly be reached (by a rough estimate: twice the budget). Raises NoPositivesError without a row of the
    rare class, ConfigError for a recipe that does not exist. by_amount : a missed row costs a share of its amount
    """
    if found.regime == "none":
        raise NoPositivesError(NO_POSITIVES)
    if search.only is not None:
        forced = Candidate.from_spec(search.only, "Forced by search.only: nothing was tried beside it.")
        check_recipe(forced)
        return (forced,)
    asked = [Candidate.from_spec(spec) for spec in search.candidates]
    extra = [Candidate.from_spec(spec) for spec in search.extra]
    for candidate in (*asked, *extra):
        check_recipe(candidate)
    situation = Situation(found, not schema.categorical.any(), by_amount)
    lent = [] if lender is None else with_neighbour(lender)
    ideas = with_unique_names(made for idea in CANDIDATE_RULES if (made := idea(situation)))
    rest = asked or within_budget(ideas, situation, search, len(extra) + len(lent))
    candidates = with_unique_names([candidate_0(situation, search), *extra, *lent, *rest])
    return candidates if search.trials is None else candidates[: search.trials]


def with_neighbour(lender: Lender) -> list[Candidate]:
    """Return a candidate for every way to use what is lent."""
    return [
        Candidate(f"neighbour-{name}", way.learner, reason=way.reason, transfer=name, lender=lender)
        for name, way in TRANSFERS.items()
        if way.possible(lender)
    ]


def check_recipe(candidate: Candidate) -> None:
    """Raise ConfigError with one line when a recipe names something that does not exist, or parts that do not fit."""
    from rareclass.core.learners import LEARNERS, check_weighting
    from rareclass.core.weighting import WEIGHTINGS

    if candidate.learner not in LEARNERS:
        raise unknown("learner", candidate.learner, LEARNERS, "search.candidates[].learner")
    if candidate.weighting not in WEIGHTINGS:
        raise unknown("weighting", candidate.weighting, WEIGHTINGS, "search.candidates[].weighting")
    check_weighting(candidate.learner, candidate.weighting)
    if candidate.loss == "focal" and candidate.learner != "xgboost":
        raise ConfigError(f"loss 'focal' is for learner 'xgboost', not '{candidate.learner}'. Set loss: logistic")
    check_chain(candidate.resample)


def within_budget(
    ideas: Sequence[Candidate], situation: Situation, search: SearchSettings, before: int
) -> Sequence[Candidate]:
    """Drop the end of the ideas that twice the budget would not reach; at least two always stay."""
    if search.trials is not None:
        return ideas
    spent = (1 + before) * seconds(candidate_0(situation, search), situation)
    kept: list[Candidate] = []
    for candidate in ideas:
        spent += seconds(candidate, situation)
        if len(kept) >= 2 and spent > 2 * search.seconds:
            continue
        kept.append(candidate)
    return kept


def seconds(candidate: Candidate, situation: Situation) -> float:
    """Rough time to fit one candidate on all folds with two processors; for ordering and cutting a plan only."""
    rows = situation.rows
    for step in candidate.resample:
        if step.name == "random_under":
            rows = round(situation.found.positives * (1 + (step.ratio or 1)))
    if candidate.learner.endswith(("forest", "trees")):
        rows = min(rows, FOREST_ROWS)
    depth = candidate.params.get("max_depth", 0)
    cost = _COST.get(candidate.learner, 2.0) * (2.0 if depth > 6 else _DEEP_COST if depth > 4 else 1.0)
    return _price(rows, situation.found.features, cost)


def _price(rows: int, features: int, cost: float) -> float:
    return _SECONDS_PER_VALUE * rows * max(features, 5) * cost


# --- the ideas ------------------------------------------------------------------------------------------------------


def candidate_0(s: Situation, search: SearchSettings) -> Candidate:
    """Return what all others have to beat: XGBoost as it comes where there is no time for smaller steps.

    Cut at so few of them it was far behind a fit that anybody makes in the same time (docs/decisions/0026).
    """
    unhurried = untouched(s)
    if search.trials is not None or seconds(unhurried, s) <= 2 * search.seconds:  # the estimate is rough
        return unhurried
    reason = f"Candidate 0: XGBoost as it comes, because {search.seconds:g} s are too few for smaller steps."
    return Candidate(unhurried.name, "xgboost", AS_IT_COMES, reason=reason)


def affordable(folds: Sequence[Fold], rows: Rows, search: SearchSettings) -> Sequence[Fold]:
    """Return as many of the folds, the last ones, as XGBoost as it comes can be fitted on in ``search.seconds``.

    What is scored is still enough to judge by: each fold has `_ENOUGH_SCORED` positives or none is left out. Nor is one
    where the rows were drawn from a table that is larger than memory: there the folds' fits score every validation row,
    and one that only a fold that was left out has not learned from could be scored by none of them.
    """
    if search.trials is not None or search.only is not None or rows.drawn is not None or not folds:
        return folds
    price = _price(len(rows), len(rows.schema.features), _DEEP_COST)
    fewer = max(1, int(len(folds) * search.seconds / price))
    if fewer >= len(folds) or min(int(rows.y[fold.score].sum()) for fold in folds) < _ENOUGH_SCORED:
        return folds
    return folds[-fewer:]


def untouched(s: Situation) -> Candidate:
    """Candidate 0."""
    return Candidate(
        "xgboost", "xgboost", reason="Candidate 0: a strong learner on untouched rows; all others must beat it."
    )


def very_deep(s: Situation) -> Candidate | None:
    """Propose trees of depth 10 where rows and positives are many."""
    if s.rows < DEEP or s.found.positives < DEEP_POSITIVES:
        return None
    reason = f"{s.rows:,} rows with {s.found.positives:,} positives have details that only deep trees can hold."
    params = {"max_depth": 10, "min_child_weight": 5.0}
    return Candidate("xgboost-very-deep", "xgboost", params, reason=reason)


def extra_trees(s: Situation) -> Candidate | None:
    """Propose extremely randomised trees, always."""
    return Candidate(
        "extra-trees",
        "extra_trees",
        reason="Random trees averaged: robust with few positives, and they err unlike boosting, which helps a blend.",
    )


def linear(s: Situation) -> Candidate | None:
    """Propose a logistic regression."""
    return Candidate(
        "logistic-regression",
        "logistic_regression",
        reason="A linear model needs the fewest positives, carries furthest in time, and errs unlike trees.",
    )


def as_it_comes(s: Situation) -> Candidate | None:
    """Propose XGBoost with its own defaults, unless positives are few."""
    if s.found.regime == "few":
        return None
    return Candidate(
        "xgboost-as-it-comes",
        "xgboost",
        AS_IT_COMES,
        reason="XGBoost's own defaults, as most people try it first: quick, and what all others should be ahead of.",
    )


def shallow(s: Situation) -> Candidate | None:
    """Propose trees of depth 3, always."""
    why = "hold back where positives are few" if not s.enough else "rank best when few features matter together"
    return Candidate(
        "xgboost-shallow",
        "xgboost",
        {"max_depth": 3},
        reason=f"Trees of depth 3 {why} ({s.found.positives:,} positives).",
    )


def deep(s: Situation) -> Candidate | None:
    """Propose trees of depth 6 from 100 positives on."""
    if s.found.positives < 100:
        return None
    reason = f"{s.found.positives:,} positives are enough for deeper interactions."
    return Candidate("xgboost-deep", "xgboost", {"max_depth": 6}, reason=reason)


def random_forest(s: Situation) -> Candidate | None:
    """Propose a random forest, unless rows are many or positives few."""
    if s.large or s.found.regime == "few":
        return None
    return Candidate(
        "random-forest",
        "random_forest",
        reason="A forest of deep trees ranks rare classes about as well as boosting and errs unlike it.",
    )


def sqrt_balanced(s: Situation) -> Candidate | None:
    """Propose positives weighted by the root of the ratio, from 1:10 on."""
    if s.found.ratio < 10 or s.found.regime == "few":
        return None
    reason = (
        f"At 1:{s.found.ratio:,.0f} a mild weight on positives can help the splits; "
        "full balancing mostly harms the ranking."
    )
    return Candidate("xgboost-sqrt-weights", "xgboost", weighting="sqrt_balanced", reason=reason)


def by_amount(s: Situation) -> Candidate | None:
    """Propose rows weighted by their amount, where amounts are given."""
    if not s.amounts:
        return None
    return Candidate(
        "xgboost-amount-weights",
        "xgboost",
        weighting="amount",
        reason="Losses follow the amount, so rows are weighted by the money at stake.",
    )


def under_xgboost(s: Situation) -> Candidate | None:
    """Propose under-sampled negatives, where rows are many."""
    if s.under_ratio is None or s.found.regime == "few" or s.rows < 20_000:
        return None
    reason = (
        f"Most of {s.rows:,} rows are easy negatives; under-sampled to 1:{s.under_ratio} the fit is a fraction of the "
        "time, and the prior is corrected exactly."
    )
    return Candidate(f"xgboost-under-{s.under_ratio}", "xgboost", resample=_under(s.under_ratio), reason=reason)


def histogram(s: Situation) -> Candidate | None:
    """Propose scikit-learn's leaf-wise boosting from 2,000 rows on."""
    if s.rows < 2_000 or s.found.regime == "few":
        return None
    return Candidate(
        "hist-gradient-boosting",
        "hist_gradient_boosting",
        reason="Another boosting with leaf-wise trees, quick on many rows.",
    )


def balanced_forest(s: Situation) -> Candidate | None:
    """Propose a forest whose trees see both classes alike, from 1:10 on."""
    if s.large or s.found.ratio < 10 or s.found.regime == "few":
        return None
    return Candidate(
        "balanced-random-forest",
        "balanced_random_forest",
        reason="Each tree sees as many negatives as positives: cheap, and strong where classes overlap.",
    )


def perceptron(s: Situation) -> Candidate | None:
    """Propose a neural network, where features are numeric and positives ample."""
    if s.large or not s.enough or not s.numeric or s.rows < 2_000:
        return None
    return Candidate("mlp", "mlp", reason="Smooth boundaries on numeric features, which trees only approximate.")


def synthetic(s: Situation) -> Candidate | None:
    """Propose rows made between positives, where these have their kind near."""
    isolated = s.found.point_types.get("outlier", 1.0)
    if s.rows > SMALL or not s.numeric or s.found.positives < 30 or isolated > 0.5 or s.found.ratio < 4:
        return None
    ratio = 10.0 if s.found.ratio >= 20 else 2.0
    reason = (
        f"Features are numeric and {1 - isolated:.0%} of positives have their kind near, so rows between them are "
        "plausible."
    )
    return Candidate(
        f"xgboost-smote-{ratio:g}", "xgboost", resample=(ResampleStep(name="smote", ratio=ratio),), reason=reason
    )


def scarce(s: Situation) -> Candidate | None:
    """Propose the recipe for few positives, the more so the fewer there are."""
    if s.enough or s.found.positives >= FEW_ENOUGH:
        return None
    share = shares(s.found.positives, {})["share"]
    return Candidate(
        "scarce",
        "scarce",
        reason=f"With {s.found.positives} rows of the rare class, a recipe for few counts {share:.0%} (jittered "
        "copies, discriminants, a balanced forest on normal scores and detectors' ranks), boosted trees the rest.",
    )


def jittered(s: Situation) -> Candidate | None:
    """Propose copies of positives with noise, where they are few."""
    if s.found.regime != "few":
        return None
    copies = max(10 * s.found.positives, 100)
    return Candidate(
        "xgboost-jitter",
        "xgboost",
        resample=(ResampleStep(name="jitter", rows=s.found.positives + copies),),
        reason=(
            f"With {s.found.positives} rows of the rare class, {copies} copies moved by noise give the trees "
            "something to split."
        ),
    )


def focal(s: Situation) -> Candidate | None:
    """Propose the focal loss, where positives are ample and rare."""
    if not s.enough or s.found.ratio < 10:
        return None
    return Candidate(
        "xgboost-focal",
        "xgboost",
        loss="focal",
        reason="Focal loss spends the fit on hard rows instead of easy negatives.",
    )


def _under(ratio: int) -> tuple[ResampleStep, ...]:
    return (ResampleStep(name="random_under", ratio=float(ratio)),)


CANDIDATE_RULES: tuple[Callable[[Situation], Candidate | None], ...] = (
    scarce,
    very_deep,
    extra_trees,
    linear,
    as_it_comes,
    shallow,
    deep,
    histogram,
    random_forest,
    sqrt_balanced,
    by_amount,
    under_xgboost,
    balanced_forest,
    jittered,
    synthetic,
    perceptron,
    focal,
)
