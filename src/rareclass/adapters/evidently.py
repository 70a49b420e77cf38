"""Evidently: its drift verdict and its report pages. Telemetry is switched off before its first import."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.core.jsonable import Jsonable
from rareclass.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

DRIFT_SHARE = 0.5
"""Share of drifted columns from which Evidently calls the data set drifted: its own default."""
TARGET, SCORE = "label", "score"


@dataclass(frozen=True, slots=True)
class Drift(Jsonable):
    """What Evidently's drift preset found.

    share : drifted / columns;  scores : column -> method, value (a distance or a p-value), threshold, drifted
    """

    columns: int
    drifted: int
    share: float
    scores: dict[str, dict[str, Any]]

    @property
    def drifted_columns(self) -> list[str]:
        """Columns whose test says that they moved."""
        return [name for name, score in self.scores.items() if score["drifted"]]


def drift(
    current: pd.DataFrame, reference: pd.DataFrame, *, numeric: Sequence[str], categorical: Sequence[str], page: Path
) -> Drift:
    """Compare two tables column by column with Evidently's default tests and write the page.

    Columns that are wholly empty on either side cannot be tested and are left out.
    """
    Report = _evidently().Report
    presets = _presets()
    used = [name for name in (*numeric, *categorical) if current[name].notna().any() and reference[name].notna().any()]
    if not used:
        raise ConfigError("Evidently has no column to compare: every stored feature is empty or private")
    with _quiet():
        made = Report([presets.DataDriftPreset(columns=used, drift_share=DRIFT_SHARE)], include_tests=False).run(
            _dataset(current[used], numeric, categorical), _dataset(reference[used], numeric, categorical)
        )
        page.parent.mkdir(parents=True, exist_ok=True)
        made.save_html(str(page))
    return _drift(made.dict()["metrics"], len(used))


def quality(current: pd.DataFrame, reference: pd.DataFrame | None, *, threshold: float, page: Path) -> dict[str, float]:
    """Write Evidently's page on classification quality with our PR-AUC on it, and return its scalars.

    current, reference : columns label (0 or 1) and score;  threshold : the cut-off that decides
    """
    Report = _evidently().Report
    columns = [TARGET, SCORE]
    with _quiet():
        made = Report(
            [pr_auc(), _presets().ClassificationPreset(probas_threshold=threshold)],
            include_tests=False,
        ).run(
            _labelled(current[columns]),
            None if reference is None else _labelled(reference[columns]),
        )
        page.parent.mkdir(parents=True, exist_ok=True)
        made.save_html(str(page))
    return {
        metric["metric_name"].partition("(")[0]: float(metric["value"])
        for metric in made.dict()["metrics"]
        if isinstance(metric["value"], int | float)
    }


@functools.cache
def _pr_auc_type() -> type:
    """The custom metric's class; made once, because Evidently keeps a registry of metric types."""
    _evidently()
    from evidently.core.metric_types import SingleValueCalculation, SingleValueMetric
    from evidently.core.report import Context  # noqa: F401  (the base class resolves it)
    from evidently.legacy.renderers.html_widgets import CounterData, WidgetSize, counter

    from rareclass.core.ranking import average_precision

    class PrAuc(SingleValueMetric):  # type: ignore[misc]  # Evidently has no types
        """Average precision, exact, as `rareclass` computes it everywhere."""

    class PrAucCalculation(SingleValueCalculation[PrAuc]):  # type: ignore[misc]  # Evidently has no types
        def calculate(self, context: Any, current_data: Any, reference_data: Any) -> Any:
            values = [
                None if data is None else average_precision(_values(data, TARGET).astype(int), _values(data, SCORE))
                for data in (current_data, reference_data)
            ]
            results = [None if value is None else self.result(float(value)) for value in values]
            shown = [
                CounterData(label, f"{value:.3f}")
                for label, value in zip(("current", "reference"), values, strict=True)
                if value is not None
            ]
            results[0].widget = [counter(title=self.display_name(), size=WidgetSize.FULL, counters=shown)]  # type: ignore[union-attr]
            return results[0] if results[1] is None else tuple(results)

        def display_name(self) -> str:
            return "PR-AUC (average precision)"

    return PrAuc


def pr_auc() -> Any:
    """Return the custom metric: Evidently itself has no scalar PR-AUC."""
    return _pr_auc_type()()


def _values(data: Any, name: str) -> Any:
    return data.column(name).data.to_numpy(float)


def _drift(metrics: Sequence[dict[str, Any]], columns: int) -> Drift:
    scores: dict[str, dict[str, Any]] = {}
    drifted, share = 0, 0.0
    for metric in metrics:
        config, value = metric["config"], metric["value"]
        if "column" in config:
            method, bound = str(config["method"]), float(config["threshold"])
            beyond = float(value) < bound if "p_value" in method else float(value) >= bound
            scores[config["column"]] = {"method": method, "value": float(value), "threshold": bound, "drifted": beyond}
        else:
            drifted, share = int(value["count"]), float(value["share"])
    return Drift(columns, drifted, share, scores)


def _dataset(frame: pd.DataFrame, numeric: Sequence[str], categorical: Sequence[str]) -> Any:
    evidently = _evidently()
    names = set(frame.columns)
    frame = frame.astype({name: object for name in categorical if name in names})
    definition = evidently.DataDefinition(
        numerical_columns=[name for name in numeric if name in names],
        categorical_columns=[name for name in categorical if name in names],
    )
    return evidently.Dataset.from_pandas(frame.reset_index(drop=True), data_definition=definition)


def _labelled(frame: pd.DataFrame) -> Any:
    evidently = _evidently()
    binary = evidently.BinaryClassification(target=TARGET, prediction_probas=SCORE, pos_label=1)
    definition = evidently.DataDefinition(classification=[binary], numerical_columns=[SCORE])
    whole = frame.astype({TARGET: int, SCORE: float}).reset_index(drop=True)
    return evidently.Dataset.from_pandas(whole, data_definition=definition)


def _evidently() -> Any:
    os.environ.setdefault("DO_NOT_TRACK", "true")
    try:
        with _quiet():
            import evidently
    except ImportError:
        raise ConfigError(
            "Evidently is not installed. Install the extra: pip install 'rareclass[monitoring]'"
        ) from None
    return evidently


def _presets() -> Any:
    import evidently.presets

    return evidently.presets


@contextmanager
def _quiet() -> Iterator[None]:
    """Evidently divides by zero on constant columns and says so; the page shows it, the terminal need not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
