"""The family of learners: each fits labelled rows and gives back something that scores a matrix (core.fitted).

All of them take rows with missing values and category codes as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from rareclass.core.catboost_learner import GrowingSymmetricTrees, catboost_defaults, fit_catboost
from rareclass.core.dataset import Rows
from rareclass.core.detection import fit_detectors
from rareclass.core.early_stopping import Growing, Watched
from rareclass.core.fit_task import FitTask
from rareclass.core.fitted import Fitted
from rareclass.core.lightgbm_learner import GrowingLeaves, fit_lightgbm, lightgbm_defaults
from rareclass.core.scarce import fit_scarce, shares
from rareclass.core.sklearn_learners import (
    GrowingHistograms,
    GrowingNetwork,
    fit_adaboost,
    fit_balanced_random_forest,
    fit_easy_ensemble,
    fit_extra_trees,
    fit_hist_gradient_boosting,
    fit_logistic_regression,
    fit_mlp,
    fit_random_forest,
    fit_rusboost,
    hist_defaults,
)
from rareclass.core.xgboost_learner import GrowingTrees, canonical, fit_xgboost, xgboost_defaults
from rareclass.errors import ConfigError, need_package, unknown

_T = TypeVar("_T")


@dataclass(frozen=True)
class Learner:
    """A member of the family.

    grow : makes a `Growing`, where the number of rounds is to be found · seeds : fits of different seeds are worth
        averaging
    defaults : settings that depend on how many rows there are; a refit on more rows must keep them
    of_known : settings that depend on how many rows of the rare class development knows; folds and refit keep them
    apart : fits of it do not disturb each other, so that several may go on at once
    weighs : a weighting changes what it learns; one that draws the classes alike and takes no weights refuses them
    extra : of this package and the library that it brings, where it is not installed anyway
    one_class : it learns from rows that are not rare alone, so there need be none that are
    """

    fit: Callable[[FitTask, Mapping[str, Any]], Fitted]
    grow: Callable[[FitTask, Mapping[str, Any], Watched], Growing] | None = None
    seeds: bool = False
    apart: bool = False
    weighs: bool = True
    one_class: bool = False
    defaults: Callable[[Rows], dict[str, Any]] = lambda rows: {}
    of_known: Callable[[int, Mapping[str, Any]], dict[str, Any]] = lambda known, params: {}
    extra: str | None = None


LEARNERS: dict[str, Learner] = {
    "xgboost": Learner(fit_xgboost, grow=GrowingTrees, seeds=True, apart=True, defaults=xgboost_defaults),
    "lightgbm": Learner(
        fit_lightgbm, grow=GrowingLeaves, seeds=True, apart=True, defaults=lightgbm_defaults, extra="lightgbm"
    ),
    "catboost": Learner(
        fit_catboost, grow=GrowingSymmetricTrees, seeds=True, apart=True, defaults=catboost_defaults, extra="catboost"
    ),
    "random_forest": Learner(fit_random_forest),
    "balanced_random_forest": Learner(fit_balanced_random_forest),
    "extra_trees": Learner(fit_extra_trees),
    "hist_gradient_boosting": Learner(
        fit_hist_gradient_boosting, grow=GrowingHistograms, apart=True, defaults=hist_defaults
    ),
    "logistic_regression": Learner(fit_logistic_regression),
    "mlp": Learner(fit_mlp, grow=GrowingNetwork, seeds=True),
    "adaboost": Learner(fit_adaboost),
    "rusboost": Learner(fit_rusboost),
    "easy_ensemble": Learner(fit_easy_ensemble, weighs=False),
    "scarce": Learner(fit_scarce, weighs=False, of_known=shares),
    "detectors": Learner(fit_detectors, weighs=False, one_class=True),
}
LIMITS = {
    "xgboost": "rounds",
    "lightgbm": "rounds",
    "catboost": "rounds",
    "hist_gradient_boosting": "max_iter",
    "mlp": "epochs",
}
"""The parameter that says how far a learner grows at most."""


def check_weighting(name: str, weighting: str) -> None:
    """Raise ConfigError for a weighting that the learner would ignore, or a learner that does not exist."""
    if not _member(name, "logistic").weighs and weighting != "none":
        able = ", ".join(sorted(other for other, learner in LEARNERS.items() if learner.weighs))
        raise ConfigError(
            f"learner '{name}' takes no weights and would ignore weighting '{weighting}'. "
            f"Set weighting: none, or the learner to one of: {able}"
        )


def with_defaults(name: str, rows: Rows, params: Mapping[str, Any], known: int | None = None) -> dict[str, Any]:
    """Return ``params`` over the defaults that ``rows`` call for. Raises ConfigError for an unknown learner.

    known : rows of the rare class that all fits of the recipe draw on, where ``rows`` are those of one of them
    """
    if name not in LEARNERS:
        raise unknown("learner", name, LEARNERS, "candidates.learner")
    asked = canonical(params) if name == "xgboost" else dict(params)
    member = LEARNERS[name]
    return member.defaults(rows) | member.of_known(rows.positives if known is None else known, asked) | asked


def fit(name: str, task: FitTask, params: Mapping[str, Any] | None = None) -> Fitted:
    """Fit a member of LEARNERS.

    Raises ConfigError for an unknown learner or parameter, or a loss it does not have; InterruptedFitError when
    ``task.out_of_time`` says so in the middle (XGBoost and the perceptron ask).
    """
    return as_config_error(name, lambda: _member(name, task.loss).fit(task, dict(params or {})))


def grow(name: str, task: FitTask, watched: Watched, params: Mapping[str, Any] | None = None) -> Growing:
    """Begin a fit of a member of LEARNERS that grows, to be looked at on ``watched`` rows.

    Raises ConfigError as `fit`.
    """
    member = _member(name, task.loss)
    if member.grow is None:
        raise ConfigError(f"learner '{name}' has no rounds to be found. Fit it as a whole")
    begin = member.grow
    return as_config_error(name, lambda: begin(task, dict(params or {}), watched))


def _member(name: str, loss: str) -> Learner:
    if name not in LEARNERS:
        raise unknown("learner", name, LEARNERS, "candidates.learner")
    if loss != "logistic" and name != "xgboost":
        raise ConfigError(
            f"loss '{loss}' works with learner 'xgboost' only, not with '{name}'. Set candidates.loss: logistic"
        )
    extra = LEARNERS[name].extra
    if extra is not None:
        need_package(extra, extra, f"learner '{name}'")
    return LEARNERS[name]


def as_config_error(name: str, work: Callable[[], _T]) -> _T:
    """Return what ``work`` returns; a parameter that the library refuses becomes a ConfigError of one line."""
    try:
        return work()
    except Exception as error:
        if isinstance(error, ValueError) and "worse than random" in str(error):
            raise ConfigError(
                f"{name} found nothing better than chance in its first steps. "
                "Leave it out of search.candidates, or set its params"
            ) from error
        if type(error).__name__ not in {"InvalidParameterError", "XGBoostError", "LightGBMError", "CatBoostError"}:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name} refused a parameter: {reason}. Mend candidates.params") from error
