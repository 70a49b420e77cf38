"""Evidently's report on the live rows: pages for people, and its own drift verdict for the monitor to export.

The monitor's own drift is cheaper and sees skewed columns better; this is the second opinion, made on a schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.adapters import evidently
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config
from rareclass.core.jsonable import Jsonable
from rareclass.errors import DataError, ModelError
from rareclass.services.live import chosen

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.adapters.store import Store
    from rareclass.core.model import RareModel

ROWS = 20_000
"""Rows of either side at most; evenly thinned above. Evidently costs minutes on millions."""
RUN = "evidently"
"""Name of the MLflow runs, and kind of the ledger entries."""


@dataclass(frozen=True, slots=True)
class ReportFindings(Jsonable):
    """What a report found.

    share : drifted columns / columns;  quality : metric -> value on the newest matured window, empty with too few
        positives
    pages : files written;  run_id : MLflow run that keeps them
    """

    version: str
    rows: int
    reference_rows: int
    columns: int
    drifted: tuple[str, ...]
    share: float
    quality: dict[str, float]
    pages: tuple[str, ...]
    run_id: str


def report(
    config: Config, now: datetime, out: Path, *, progress: Callable[[str, str], None] | None = None
) -> ReportFindings:
    """Compare the newest window of the champion's rows with its history, and write, keep and record what was found.

    Reference: the validation and test rows of ``data``. Drift: the newest ``monitor.window``. Quality: the newest
    matured one. Raises ModelError without a champion, DataError with too few stored rows.
    """
    from rareclass.adapters.registry import Registry
    from rareclass.adapters.store import Store

    say = progress or (lambda step, message: None)
    registry = Registry(config.tracking.uri)
    version = registry.at(config.name, "champion")
    if version is None:
        raise ModelError(f"model '{config.name}' has no champion to report on. Train and promote one first")
    model = registry.load(version)
    with Store(config.store.url) as store:
        store.migrate()
        say("rows", "newest window of the store")
        newest = _window(store, config, version.version, now, matured=False)
        if len(newest) < config.monitor.min_rows:
            raise DataError(
                f"only {len(newest)} rows with features in the last {config.monitor.window.days} days, "
                f"{config.monitor.min_rows} needed (monitor.min_rows)"
            )
        say("reference", str(config.data.path))
        reference, answered = _reference(config, model)
        numeric, categorical = _columns(config, model)
        say("drift", f"{len(newest):,} against {len(reference):,} rows")
        current = _table(newest, model)
        pages = [out / "drift.html"]
        found = evidently.drift(current, reference, numeric=numeric, categorical=categorical, page=pages[0])
        matured = _window(store, config, version.version, now, matured=True)
        quality: dict[str, float] = {}
        if matured["label"].sum() >= config.monitor.min_positives:
            pages.append(out / "quality.html")
            threshold = float(newest["threshold"].iloc[-1])
            say("quality", f"{len(matured):,} labelled rows")
            quality = evidently.quality(matured, answered, threshold=threshold, page=pages[1])
        drifted = tuple(sorted(found.drifted_columns))
        run_id = _kept(config, version.version, found.to_json(), quality, pages, now)
        made = ReportFindings(
            version.version,
            len(newest),
            len(reference),
            found.columns,
            drifted,
            found.share,
            quality,
            tuple(str(page) for page in pages),
            run_id,
        )
        reason = f"{found.drifted} of {found.columns} columns drifted"
        store.append(config.name, f"{RUN}:{run_id}", RUN, RUN, reason, made.to_json(), now)
    return made


def _window(store: Store, config: Config, version: str, now: datetime, *, matured: bool) -> pd.DataFrame:
    """Rows the version answered in the newest window; with ``matured``, labelled ones one label delay back.

    Rows that stand for others (sampled log, control group) are drawn as often as they count: Evidently has no weights.
    """
    end = now - config.data.label_delay if matured else now
    start = end - config.monitor.window
    frame = chosen.window(config, store, start, end, version=version, features=not matured, labels_until=now)
    frame = frame[frame["label"].notna() & (frame["propensity"] > 0)] if matured else frame[frame["features"].notna()]
    weight = frame["weight"] / frame["propensity"] if matured else frame["weight"]
    if len(frame) and not (weight == 1).all():
        frame = frame.sample(len(frame), replace=True, weights=weight, random_state=config.train.seed)
    return _thinned(frame)


def _reference(config: Config, model: RareModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Validation and test rows of the history: the features as the model names them, and label and score."""
    import pandas as pd

    from rareclass.adapters import tables
    from rareclass.core.dataset import concatenate, decode
    from rareclass.core.drawn import natural_sample

    known = tables.ingest(config)
    rows = natural_sample(concatenate([known.validation, known.test]))
    rows = rows.take(_thinned(pd.DataFrame(index=range(len(rows)))).index.to_numpy())
    there, table = tables.table_for(config, rows, model.schema)
    frame = decode(model.matrix(table), model.schema)
    return frame, pd.DataFrame({"label": rows.y[there], "score": model.score(frame)})


def _table(newest: pd.DataFrame, model: RareModel) -> pd.DataFrame:
    """The stored features as a table in the model's columns, read with its schema."""
    from rareclass.services.live.monitor import features_of, readable

    return readable(features_of(newest["features"]), model.schema, [])[0]


def _columns(config: Config, model: RareModel) -> tuple[list[str], list[str]]:
    private = set(config.data.private)
    features = [feature for feature in model.schema.features if feature.name not in private]
    return (
        [feature.name for feature in features if feature.kind == "numeric"],
        [feature.name for feature in features if feature.kind != "numeric"],
    )


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[:: max(1, -(-len(frame) // ROWS))]


def _kept(
    config: Config, version: str, drift: dict[str, Any], quality: dict[str, float], pages: list[Path], now: datetime
) -> str:
    """Write the MLflow run with its pages; return its id."""
    run = Tracker.of(config).start(RUN, params={"version": version}, tags={"kind": RUN, "at": now.isoformat()})
    run.log(metrics={"drifted_share": drift["share"], **{f"live_{name}": value for name, value in quality.items()}})
    run.json("evidently/drift.json", drift)
    for page in pages:
        run.artifact(page, "evidently")
    run.end()
    return run.id
