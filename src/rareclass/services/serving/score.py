"""Batch scoring: a file of rows in, the same rows with `score` and `decision` out; on request into the prediction log."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.config import Config
from rareclass.core import operating
from rareclass.core.dataset import AnyArray, BoolArray, FloatArray, Schema
from rareclass.core.reading import NUMBER, TEXT
from rareclass.errors import ConfigError, DataError, ModelError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.core.model import RareModel


ID = "request_id"
"""Column of the ids that are made for rows without one."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What was done. ``mean_score`` is the expected prevalence.

    logged : rows new in the prediction log
    reused : rows left out of it because their id is there with other contents;  expired : because they are older than
        ``store.retention``;  out_of_view : logged, but older than what the monitor looks at
    """

    rows: int
    flagged: int
    mean_score: float
    threshold: float
    operating_point: str
    output: str
    version: str | None = None
    logged: int = 0
    reused: int = 0
    expired: int = 0
    out_of_view: int = 0

    @property
    def notes(self) -> list[str]:
        """What a person should know about the logged rows, in words."""
        found = []
        if self.reused:
            found.append(
                f"{self.reused:,} rows are not in the log: their request id is there already with other contents. Give each row an id of its own (--id COLUMN)"
            )
        if self.expired:
            found.append(
                f"{self.expired:,} rows are not in the log: their time is older than store.retention. Check data.time, or set store.retention"
            )
        if self.out_of_view:
            found.append(
                f"{self.out_of_view:,} rows are older than the monitor looks back: they are kept for retraining and show in no window. Set monitor.windows to look further"
            )
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score(
    model: str,
    source: str,
    output: str,
    *,
    tracking_uri: str | None = None,
    point: str | None = None,
    serving: str | None = None,
    reasons: int = 0,
    prefix: str = "",
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Score every row of a file and write it with the columns ``score`` and ``decision``.

    model : uri of summary.json, models:/NAME@alias, ...; source, output : Parquet or CSV; the output keeps the order
    point : operating point that decides; default: the one chosen for the version in the registry, else ``serving``, else
        the version's own. A ``models:/`` URI decides with the cut-offs in force, any other with those it was made with
    serving : operating point of the servers (``serve.operating_point``)
    reasons : also write ``reasons``, a JSON list of this many features by contribution to the log-odds
    prefix : put before the new columns' names, where the source has such columns already
    Raises ModelError, DataError.
    """  # fmt: skip
    from rareclass.adapters import registry

    chosen = None
    if model.startswith("models:/"):
        known = registry.Registry(registry.tracking_of(model, tracking_uri))
        version = known.resolve(model)
        loaded, chosen = known.load(version), version.point
    else:
        loaded = registry.load_model(model, tracking_uri)
    decides = operating.decides(loaded.thresholds, loaded.primary, point, chosen, serving, where="--point")
    return _write(loaded, source, output, decides, reasons=reasons, prefix=prefix, progress=progress)


def _write(
    model: RareModel,
    source: str,
    output: str,
    decides: tuple[str, float],
    *,
    reasons: int,
    prefix: str,
    progress: Callable[[int], None] | None,
    identity: str | None = None,
) -> Scored:
    from rareclass.adapters import tables

    totals = _Totals()

    def scored(frame: pd.DataFrame) -> pd.DataFrame:
        if progress is not None:
            progress(len(frame))
        named = frame if identity is None else _named(frame, identity, totals.rows)
        return totals.add(_with_scores(model, named, decides[1], reasons, prefix))

    frames = iter(tables.read_frames(source, schema=model.schema))
    first = next(frames, None)
    if first is None:  # no rows in, no rows out, but the same columns
        first = tables.read_frame(source, schema=model.schema)
    tables.write_frames(output, map(scored, chain([first], frames)))
    return Scored(totals.rows, totals.flagged, totals.mean, decides[1], decides[0], output)


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
    model: RareModel, frame: pd.DataFrame, threshold: float, reasons: int, prefix: str
) -> tuple[pd.DataFrame, FloatArray, BoolArray]:
    new = [f"{prefix}{name}" for name in ("score", "decision", *(("reasons",) if reasons else ()))]
    taken = [name for name in new if name in frame.columns]
    if taken:
        raise DataError(
            f"the rows have a column '{taken[0]}' already. Pass --prefix TEXT to name the new columns otherwise, or drop it first"
        )
    score = model.score(frame)
    decision = np.asarray(score >= threshold, dtype=bool)
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

    id_column : request ids, to which labels are joined; default: `data.id`, else a column ``request_id`` is written: hash of
        the file's content (and, without times, of the day) and the row's position. The same ids again are not logged twice.
    now : time of the rows where there is no `data.time` column
    Raises ModelError when there is no such version, DataError when the id column is missing or holds an id twice.
    """  # fmt: skip
    import pandas as pd

    from rareclass.adapters import tables
    from rareclass.adapters.registry import Registry
    from rareclass.adapters.store import Store
    from rareclass.core import liveness

    found = Registry(config.tracking.uri)
    version = found.at(config.name, alias)
    if version is None:
        raise ModelError(
            f"model '{config.name}' has no {alias} yet. Promote a version with: rareclass promote -c CONFIG"
        )
    model = found.load(version)
    decides = operating.decides(
        model.thresholds, model.primary, point, version.point, config.serve.operating_point, where="--point"
    )
    column = id_column or config.data.id
    identity = None
    if column is None:
        identity = content_of(config, model, tables.read_frames(source, schema=model.schema), now)
    done = _write(model, source, output, decides, reasons=reasons, prefix=prefix, progress=progress, identity=identity)
    ids = _Ids(column or ID)
    oldest = pd.Timestamp(now - config.store.retention)
    seen = pd.Timestamp(liveness.boundaries(now, config.data.label_delay, config.monitor)[0][0], tz="UTC")
    counts = Counter[str]()
    with Store(config.store.url) as store:
        store.migrate()
        for frame in tables.read_frames(output, schema=model.schema, text=[ids.column]):
            rows = prediction_rows(
                config, model, version.version, frame, ids.of(frame), point=done.operating_point,
                threshold=done.threshold, now=now, prefix=prefix,
            )  # fmt: skip
            young = (rows["ts"] >= oldest).to_numpy()
            counts["expired"] += int((~young).sum())
            rows = rows[young]
            fresh = store.add_predictions(rows)
            counts["logged"] += fresh
            counts["out_of_view"] += int((rows["ts"] < seen).sum())
            if fresh < len(rows):
                counts["reused"] += store.reused(rows)
    return Scored(**{**asdict(done), **counts, "version": version.version})


def prediction_rows(
    config: Config, model: RareModel, version: str, frame: pd.DataFrame, ids: Any, *, point: str, threshold: float, now: datetime, prefix: str = "",
) -> pd.DataFrame:  # fmt: skip
    """Bring scored rows into the shape of the prediction log; ``now`` is their time where they carry none."""
    import pandas as pd

    data, names = config.data, [name for name in model.schema.names if name not in config.data.private]
    known = model.schema.roles.time
    # an order without a calendar is no moment: such rows happened when they were scored
    time = data.time if data.time in frame and (known is None or known.calendar) else None
    return pd.DataFrame(
        {
            "request_id": ids,
            "row": 0,
            "ts": _moments(model, time, frame[time]) if time else pd.Timestamp(now).tz_convert("UTC"),
            "model": config.name,
            "version": version,
            "operating_point": point,
            "threshold": threshold,
            "score": frame[f"{prefix}score"].astype(float),
            "decision": frame[f"{prefix}decision"].astype(int),
            "weight": 1.0,
            "propensity": NUMBER.numbers(frame[data.propensity])[0] if data.propensity in frame else 1.0,
            "entity": TEXT.texts(frame[data.entity]) if data.entity in frame else None,
            "features": _features(frame, model.schema, names),
        }
    ).reset_index(drop=True)


def _moments(model: RareModel, name: str, values: pd.Series[Any]) -> pd.DatetimeIndex:
    """The times of rows as the version reads them. Raises DataError for one that is none."""
    import pandas as pd

    from rareclass.core.times import TimeReading

    known = model.schema.roles.time
    reading = known if known is not None and known.name == name else TimeReading(name)
    times, wrong = reading.read(values)
    bad = wrong | np.isnat(times)
    if bad.any():
        example = values.iloc[int(np.argmax(bad))]
        raise DataError(
            f"column '{name}' (data.time) is no time in {int(bad.sum()):,} of {len(bad):,} rows, like {str(example)[:40]!r}. "
            "Write times as in training, or as 2024-05-31T12:00:00"
        )
    return pd.DatetimeIndex(times).tz_localize("UTC")


def _features(frame: pd.DataFrame, schema: Schema, names: Sequence[str]) -> list[str]:
    """Each row's features as JSON text, as the version reads them: numbers with all digits, categories as text, missing as null."""
    columns = [feature.logged(frame[feature.name]) for feature in schema.features if feature.name in names]
    return [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in zip(*columns, strict=True)]


def content_of(config: Config, model: RareModel, frames: Iterable[pd.DataFrame], now: datetime) -> str:
    """Return a hash of a file's rows as they are logged, with times and entities, whatever kind of file they came in.

    Rows without a time get that of the scoring, so that the day counts too: an equal file of another day is another file.
    """
    whole = hashlib.sha256(config.name.encode())
    data = config.data
    timed = False
    for frame in frames:
        parts = [_features(frame, model.schema, model.schema.names)]
        if data.time in frame:
            timed = True
            parts.append(_moments(model, str(data.time), frame[data.time]).astype(str).tolist())
        if data.entity in frame:
            parts.append([str(name) for name in TEXT.texts(frame[data.entity])])
        for row in zip(*parts, strict=True):
            whole.update("\0".join(row).encode("utf-8", "replace") + b"\n")
    if not timed:
        whole.update(f"{now:%Y-%m-%d}".encode())
    return f"f{whole.hexdigest()[:20]}"


def _named(frame: pd.DataFrame, identity: str, before: int) -> pd.DataFrame:
    """Put request ids in front of rows of which ``before`` came already."""
    if ID in frame.columns:
        raise DataError(f"the rows have a column '{ID}' and no id was named. Pass --id {ID}, or set data.id")
    made = frame.copy(deep=False)
    made.insert(0, ID, [f"{identity}-{before + at}" for at in range(len(frame))])
    return made


class _Ids:
    """Request ids of the rows of one file, batch by batch."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.seen: set[str] = set()
        self.rows = 0

    def of(self, frame: pd.DataFrame) -> AnyArray:
        """Return (n,) ids. Raises DataError when the column is missing, or an id is missing or there twice."""
        import pandas as pd

        if self.column not in frame:
            raise DataError(
                f"the rows have no id column '{self.column}'.{nearest(self.column, map(str, frame.columns))} Pass --id COLUMN"
            )
        ids = pd.Series(TEXT.texts(frame[self.column]), dtype="string")
        self.seen.update(ids.dropna())
        self.rows += len(ids)
        if ids.isna().any() or self.rows > len(self.seen):
            raise DataError(
                f"column '{self.column}' does not identify the rows: an id is missing or there twice. Pass --id with a column that does"
            )
        return np.asarray(ids.to_numpy(dtype=object))


def champion_uri(config: Config) -> str:
    """The registry URI of the configuration's champion."""
    return f"models:/{config.name}@champion"


def check_paths(source: str, output: str) -> None:
    """Refuse to overwrite the source. Raises ConfigError."""
    if "://" not in source and "://" not in output and Path(source).resolve() == Path(output).resolve():
        raise ConfigError(f"'{output}' is the input. Write the scores to another file")
