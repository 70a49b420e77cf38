"""What a notebook calls besides the estimator: each a few lines over the same functions that the commands use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from rareclass import config as settings
from rareclass.core import diagnosis, evaluation, ranking, thresholds
from rareclass.core.bootstrap import Bootstrap, Sample
from rareclass.core.costs import CostArrays, cost_arrays
from rareclass.core.dataset import Rows, encode, infer_schema
from rareclass.core.estimate import Estimate
from rareclass.core.model import RareModel
from rareclass.core.thresholds import TunedThreshold
from rareclass.errors import DataError, unknown
from rareclass.frames import as_pandas


def load_version(uri: str, *, tracking_uri: str | None = None) -> RareModel:
    """Load a model version, its files checked against the hash that was registered.

    Parameters
    ----------
    uri : str
        ``models:/NAME/VERSION``, ``models:/NAME@champion``, ``runs:/ID/model``, or a folder of a run.
    tracking_uri : str, optional
        MLflow store of ``models:/`` and ``runs:/`` names; default: ``MLFLOW_TRACKING_URI``.

    Returns
    -------
    RareModel
        Learner, calibrator and thresholds, which score and decide as the server does.

    Raises
    ------
    ModelError
        When there is no such version, or its files are not what was registered.
    """
    from rareclass.adapters.registry import load_model

    return load_model(uri, tracking_uri)


def score(model: RareModel | str, rows: Any, *, point: str | None = None) -> pd.DataFrame:
    """Score rows and decide them at an operating point.

    Parameters
    ----------
    model : RareModel or str
        What `load_version` returns, or what it takes.
    rows : table of shape (n, columns)
        The features by name, in pandas, polars or Arrow; other columns are ignored.
    point : str, optional
        Operating point; default: the one that decides.

    Returns
    -------
    DataFrame of shape (n, 2)
        ``score`` (calibrated probability of the rare class) and ``decision`` (0 or 1), with the index that ``rows`` has
        in pandas.
    """
    loaded = load_version(model) if isinstance(model, str) else model
    frame = as_pandas(rows)
    found = loaded.score(frame)
    return pd.DataFrame({"score": found, "decision": loaded.decide(found, point).astype(np.int64)}, index=frame.index)


def load_demo(name: str = "flights") -> pd.DataFrame:
    """Return a demo table that an installed package brings; nothing is downloaded.

    Parameters
    ----------
    name : str
        ``flights``: every departure from New York in 2013 with its weather, ``cancelled`` is the truth (extra
        ``examples``).

    Returns
    -------
    DataFrame
        The table as the package brings it.

    Raises
    ------
    ConfigError
        For an unknown name.
    MissingExtraError
        When the package is not installed.
    """
    from rareclass.adapters.tables import DEMOS

    if name not in DEMOS:
        raise unknown("demo", name, DEMOS, "name")
    return DEMOS[name]()


def diagnose(X: Any, y: ArrayLike) -> diagnosis.Diagnosis:
    """Say how rare and how hard a problem is: prevalence, regime, kinds of rare rows, overlap of the classes.

    Parameters
    ----------
    X : table of shape (n, n_features)
        Features by name, in pandas, polars or Arrow.
    y : array-like of shape (n,)
        1 for the rare class, 0 otherwise.

    Returns
    -------
    Diagnosis
        ``prevalence``, ``ratio``, ``regime``, ``overlap`` and others; ``notes`` say it in sentences.
    """
    frame = pd.DataFrame(as_pandas(X))
    labels = _binary(as_pandas(y), len(frame))
    schema = infer_schema(frame)
    rows = Rows(schema, encode(frame, schema), labels, np.arange(len(labels), dtype=np.uint64))
    return diagnosis.diagnose(rows, settings.RegimeSettings(), settings.EvaluateSettings())


def evaluate(
    y: ArrayLike,
    score: ArrayLike,
    threshold: float = evaluation.UNTUNED,
    *,
    block: NDArray[Any] | None = None,
    sample_weight: ArrayLike | None = None,
    confidence: float = 0.95,
    bootstraps: int = 1000,
    random_state: int = 0,
) -> dict[str, Estimate]:
    """Judge scores and a threshold on rows that neither has seen: every number with its interval.

    Parameters
    ----------
    y : array-like of shape (n,)
        1 for the rare class, 0 otherwise.
    score : array-like of shape (n,)
        Probability of the rare class.
    threshold : float
        A row is decided 1 where ``score >= threshold``.
    block : ndarray of shape (n,), optional
        Rows of one block (a day, a customer) are drawn together, because they are not independent.
    sample_weight : array-like of shape (n,), optional
        How much a row counts.
    confidence : float
        Coverage of the intervals.
    bootstraps : int
        Resamples behind them.
    random_state : int
        What they are drawn from.

    Returns
    -------
    dict of str to Estimate
        ``ap``, ``roc_auc``, ``brier``, ``ece``, ``precision``, ``recall``, ``f1``, ``mcc`` and others; each has
        ``value``, ``low``, ``high``, ``positives`` and ``rows``.

    Raises
    ------
    DataError
        Without rows, or where labels are not 0 and 1.
    """
    labels = _binary(y, len(np.asarray(score)))
    found = evaluation.evaluate(
        Sample(labels, score, block=block, weight=sample_weight),
        thresholds={"default": threshold},
        primary="default",
        costs=cost_arrays(settings.CostsSettings(), float(labels.mean()) or 0.5),
        config=settings.EvaluateSettings(confidence=confidence, bootstraps=bootstraps),
        seed=random_state,
    )
    return {name: value for name, value in found.metrics.items() if name != "cost"}


def estimate_ap(
    y: ArrayLike,
    score: ArrayLike,
    *,
    block: NDArray[Any] | None = None,
    n_boot: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    weight: ArrayLike | None = None,
) -> Estimate:
    """Return average precision with its bootstrap interval.

    Parameters
    ----------
    y : array-like of shape (n,)
        1 for the rare class, 0 otherwise.
    score : array-like of shape (n,)
        Finite; the higher, the likelier a positive.
    block : ndarray of shape (n,), optional
        Rows of one block (a day, a customer) are drawn together, because they are not independent.
    n_boot : int
        Resamples behind the interval.
    confidence : float
        Coverage of the interval.
    seed : int
        What the resamples are drawn from.
    weight : array-like of shape (n,), optional
        How much a row counts.

    Returns
    -------
    Estimate
        ``value``, ``low``, ``high``, ``positives`` and ``rows``; NaN without positives.

    References
    ----------
    Boyd, Eng and Page, "Area under the precision-recall curve: point estimates and confidence intervals", ECML 2013.
    """
    return ranking.estimate_ap(y, score, block=block, weight=weight, bootstrap=Bootstrap(n_boot, confidence, seed))


def compare(
    y: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    *,
    block: NDArray[Any] | None = None,
    n_boot: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    weight: ArrayLike | None = None,
) -> Estimate:
    """Return the difference of average precision, a - b, paired: both on the same resamples of the same rows.

    Parameters
    ----------
    y : array-like of shape (n,)
        1 for the rare class, 0 otherwise.
    score_a, score_b : array-like of shape (n,)
        Scores of the same rows.
    block : ndarray of shape (n,), optional
        Rows of one block (a day, a customer) are drawn together, because they are not independent.
    n_boot : int
        Resamples behind the interval.
    confidence : float
        Coverage of the interval.
    seed : int
        What the resamples are drawn from.
    weight : array-like of shape (n,), optional
        How much a row counts.

    Returns
    -------
    Estimate
        ``value``, ``low``, ``high``, ``positives`` and ``rows``.

    Raises
    ------
    DataError
        Where labels are not 0 and 1, a score is not finite, or lengths differ.
    """
    bootstrap = Bootstrap(n_boot, confidence, seed)
    return ranking.compare(y, score_a, score_b, block=block, weight=weight, bootstrap=bootstrap)


def tune_threshold(
    y: ArrayLike,
    score: ArrayLike,
    *,
    objective: str = "f1",
    beta: float = 1.0,
    min_precision: float | None = None,
    min_recall: float | None = None,
    max_alerts: float | None = None,
    max_false_alarms: float | None = None,
    costs: CostArrays | None = None,
    days: float | None = None,
    weight: ArrayLike | None = None,
    block: NDArray[Any] | None = None,
    n_boot: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> TunedThreshold:
    """Return the cut-off that is best for the objective among those that meet the constraints, exactly.

    All distinct scores are candidates, and flagging nothing is. Ties go to the higher cut-off. Constraints that no
    cut-off meets are no error: see ``feasible`` of what comes back.

    Parameters
    ----------
    y : array-like of shape (n,)
        1 for the rare class, 0 otherwise.
    score : array-like of shape (n,)
        Deployed scores of rows that the model was not fitted on.
    objective : str
        What is best, like ``f1``, ``cost`` or ``recall_at_precision``.
    beta : float
        Weight of recall in F-beta.
    min_precision, min_recall : float, optional
        Bounds that a cut-off has to meet.
    max_alerts : float, optional
        Alerts a day at most, over the ``days`` that the rows span.
    max_false_alarms : float, optional
        Share of negatives flagged at most.
    costs : CostArrays, optional
        What a miss and a false alarm cost, for the objective ``cost``.
    days : float, optional
        Days that the rows span.
    weight : array-like of shape (n,), optional
        How much a row counts.
    block : ndarray of shape (n,), optional
        Rows of one block (a day, a customer) are drawn together, because they are not independent.
    n_boot : int
        Resamples behind the intervals.
    confidence : float
        Coverage of the intervals.
    seed : int
        What the resamples are drawn from.

    Returns
    -------
    TunedThreshold
        ``value`` and what it gives, with intervals.

    Raises
    ------
    NoPositivesError
        Without a positive.
    ConfigError
        For an unknown objective, or one that lacks its constraint.

    References
    ----------
    Elkan, IJCAI 2001: for calibrated scores the cost-optimal cut-off tends to fp / (fp + fn).
    """
    aim = thresholds.Aim(objective, beta, min_precision, min_recall, max_alerts, max_false_alarms, days)
    sample, bootstrap = Sample(y, score, weight, block), Bootstrap(n_boot, confidence, seed)
    return thresholds.tune(sample, aim, costs=costs, bootstrap=bootstrap)


def _binary(y: ArrayLike, rows: int) -> NDArray[np.int64]:
    labels = np.asarray(y)
    if len(labels) != rows or not np.isin(labels, (0, 1)).all():
        raise DataError(f"y must hold {rows:,} labels, 1 for the rare class and 0 otherwise")
    return labels.astype(np.int64)
