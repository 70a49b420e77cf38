"""Batch scoring: a file of rows in, the same rows with `score` and `decision` out; on request into the prediction log."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.config import Config
from rareclass.core.rows import AnyArray, BoolArray, FloatArray
from rareclass.errors import ConfigError, DataError, ModelError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.core.model import RareModel

_LOGGED_AT_ONCE = 50_000


@dataclass(frozen=True, slots=True)
class Scored:
    """What was done. ``mean_score`` is the expected prevalence; ``logged`` counts rows new in the prediction log."""

    rows: int
    flagged: int
    mean_score: float
    threshold: float
    operating_point: str
    output: str
    version: str | None = None
    logged: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score(
    model: str,
    source: str,
    output: str,
    *,
    tracking_uri: str | None = None,
    point: str | None = None,
    reasons: int = 0,
    prefix: str = "",
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Score every row of a file and write it with the columns ``score`` and ``decision``.

    model : uri of summary.json, models:/NAME@alias, ...; source, output : Parquet or CSV; the output keeps the order
    point : operating point that decides; default: the version's own
    reasons : also write ``reasons``, a JSON list of this many features by contribution to the log-odds
    prefix : put before the new columns' names, where the source has such columns already
    Raises ModelError, DataError.
    """  # fmt: skip
    from rareclass.adapters import registry, tables

    loaded = registry.load_model(model, tracking_uri)
    threshold = loaded.threshold(point)
    totals = _Totals()

    def scored(frame: pd.DataFrame) -> pd.DataFrame:
        if progress is not None:
            progress(len(frame))
        return totals.add(_with_scores(loaded, frame, point, reasons, prefix))

    tables.write_frames(output, map(scored, tables.read_frames(source)))
    return Scored(totals.rows, totals.flagged, totals.mean, threshold, point or loaded.primary, output)


class _Totals:
    """Counts over the batches."""

    def __init__(self) -> None:
        self.rows, self.flagged, self.sum = 0, 0, 0.0

    def add(self, batch: tuple[pd.DataFrame, FloatArray, BoolArray]) -> pd.DataFrame:
        frame, score, decision = batch
        self.rows += len(score)
        self.flagged += int(decision.sum())
        self.sum += float(score.sum())
        return frame

    @property
    def mean(self) -> float:
        return self.sum / self.rows if self.rows else float("nan")


def _with_scores(
    model: RareModel, frame: pd.DataFrame, point: str | None, reasons: int, prefix: str
) -> tuple[pd.DataFrame, FloatArray, BoolArray]:
    new = [f"{prefix}{name}" for name in ("score", "decision", *(("reasons",) if reasons else ()))]
    taken = [name for name in new if name in frame.columns]
    if taken:
        raise DataError(
            f"the rows have a column '{taken[0]}' already. Pass --prefix TEXT to name the new columns otherwise, or drop it first"
        )
    score = model.score(frame)
    decision = model.decide(score, point)
    columns: dict[str, Any] = {new[0]: score, new[1]: decision.astype(np.int8)}
    if reasons:
        columns[new[2]] = [json.dumps(each) for each in model.reasons(frame, reasons)] if len(frame) else []
    return frame.assign(**columns), score, decision


def score_and_log(
    config: Config,
    source: str,
    output: str,
    *,
    now: datetime,
    alias: str = "champion",
    point: str | None = None,
    id_column: str | None = None,
    reasons: int = 0,
    prefix: str = "",
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Score with a registered version and put every row into the prediction log, where labels and monitoring find it.

    id_column : request ids, to which labels are joined; default: `data.id`, else a hash of the row. The same ids
        again are not logged twice.
    now : time of the rows where there is no `data.time` column
    Raises ModelError when there is no such version, DataError when the id column is missing or holds an id twice.
    """  # fmt: skip
    from rareclass.adapters import registry, tables
    from rareclass.adapters.registry import Registry
    from rareclass.adapters.store import Store

    found = Registry(config.tracking.uri)
    version = found.at(config.name, alias)
    if version is None:
        raise ModelError(
            f"model '{config.name}' has no {alias} yet. Promote a version with: rareclass promote -c CONFIG"
        )
    done = score(version.uri, source, output, point=point, reasons=reasons, prefix=prefix, progress=progress)
    model = registry.load_model(version.uri, expect=version.hash)
    store = Store(config.store.url)
    try:
        store.migrate()
        logged = sum(
            store.add_predictions(_predictions(config, model, version.version, part, done, prefix, id_column, now))
            for frame in tables.read_frames(output)
            for part in (frame.iloc[at : at + _LOGGED_AT_ONCE] for at in range(0, len(frame), _LOGGED_AT_ONCE))
        )
    finally:
        store.close()
    return Scored(**{**asdict(done), "version": version.version, "logged": logged})


def _predictions(
    config: Config,
    model: RareModel,
    version: str,
    frame: pd.DataFrame,
    done: Scored,
    prefix: str,
    id_column: str | None,
    now: datetime,
) -> pd.DataFrame:
    """Bring scored rows into the shape of the prediction log."""
    import pandas as pd

    data, names = config.data, [name for name in model.schema.names if name not in config.data.private]
    time = data.time if data.time in frame else None
    return pd.DataFrame(
        {
            "request_id": _request_ids(frame, id_column or data.id, model.schema.names),
            "row": 0,
            "ts": pd.to_datetime(frame[time], utc=True) if time else pd.Timestamp(now).tz_convert("UTC"),
            "model": config.name,
            "version": version,
            "operating_point": done.operating_point,
            "threshold": done.threshold,
            "score": frame[f"{prefix}score"].astype(float),
            "decision": frame[f"{prefix}decision"].astype(int),
            "weight": 1.0,
            "propensity": frame[data.propensity].astype(float) if data.propensity in frame else 1.0,
            "entity": frame[data.entity].astype("string").astype(object) if data.entity in frame else None,
            "features": _features(frame, names),
        }
    ).reset_index(drop=True)


def _features(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Each row's features as JSON text, missing values as null."""
    lines = frame[list(names)].to_json(orient="records", lines=True, date_format="iso").splitlines()
    return lines


def _request_ids(frame: pd.DataFrame, column: str | None, names: Sequence[str]) -> AnyArray:
    import pandas as pd

    if column is None:
        return np.array(
            [f"{value:016x}" for value in pd.util.hash_pandas_object(frame[list(names)], index=False)], dtype=object
        )
    if column not in frame:
        raise DataError(
            f"the rows have no id column '{column}'.{nearest(column, map(str, frame.columns))} Pass --id COLUMN"
        )
    ids = frame[column].astype("string")
    if ids.isna().any() or ids.duplicated().any():
        raise DataError(
            f"column '{column}' does not identify the rows: an id is missing or there twice. Pass --id with a column that does"
        )
    return ids.to_numpy(dtype=object)


def champion_uri(config: Config) -> str:
    """The registry URI of the configuration's champion."""
    return f"models:/{config.name}@champion"


def check_paths(source: str, output: str) -> None:
    """Refuse to overwrite the source. Raises ConfigError."""
    if "://" not in source and "://" not in output and Path(source).resolve() == Path(output).resolve():
        raise ConfigError(f"'{output}' is the input. Write the scores to another file")


Summary = Mapping[str, Any]
