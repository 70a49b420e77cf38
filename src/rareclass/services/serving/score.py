"""Batch scoring: a file of rows in, the same rows with `score` and `decision` out;
on request into the prediction log.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.config import Config
from rareclass.core import operating
from rareclass.core.dataset import AnyArray, BoolArray, FloatArray, FloatMatrix, Schema
from rareclass.core.jsonable import Jsonable
from rareclass.core.reading import NUMBER, TEXT
from rareclass.errors import ConfigError, DataError, ModelError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.core.model import RareModel


ID = "request_id"
"""Column of the ids that are made for rows without one."""
FORMATS = (".parquet", ".pq", ".parq", ".csv", ".csv.gz")
"""Ends of the names that scores can be written to."""
ASIDE = "rareclass_"
"""Put before the names of the new columns where the version itself knows a column of such a name."""


@dataclass(frozen=True, slots=True)
class ScoreSummary(Jsonable):
    """What was done.

    mean_score : expected prevalence of the scored rows · logged : rows new in the prediction log
    reused : rows left out of the log because their id is there with other contents · expired : because they are older
        than ``store.retention`` · out_of_view : logged, but older than what the monitor looks at
    outside : rows that `data.filter` keeps out; they have neither score nor decision and are not logged
    unknown : categorical column -> how many values training did not keep, and one of them
    columns : names of the new columns
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
    outside: int = 0
    unknown: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a person should know about the scored and logged rows, a line each."""
        notes = []
        if self.reused:
            notes.append(
                f"{self.reused:,} rows are not in the log: their request id is there already with other contents. "
                "Give each row an id of its own (--id COLUMN)"
            )
        if self.expired:
            notes.append(
                f"{self.expired:,} rows are not in the log: their time is older than store.retention. "
                "Check data.time, or set store.retention"
            )
        if self.out_of_view:
            notes.append(
                f"{self.out_of_view:,} rows are older than the monitor looks back: "
                "they are kept for retraining and show in no window. Set monitor.windows to look further"
            )
        if self.outside:
            notes.append(f"{self.outside:,} rows are outside data.filter and have no score and no decision")
        if self.unknown:
            each = ", ".join(f"{name} {count:,} (like '{like}')" for name, (count, like) in self.unknown.items())
            notes.append(f"values that training did not keep as categories: {each}")
        if self.columns and self.columns[0].startswith(ASIDE):
            notes.append(f"the version has such columns of its own, so the new ones are {', '.join(self.columns)}")
        return notes


@dataclass(frozen=True, slots=True)
class NewColumns:
    """What is written beside score and decision, and how it is called.

    reasons : also write ``reasons``, a JSON list of this many features by contribution to the log-odds
    prefix : put before the new columns' names, where the source has such columns already; default: nothing, or
        ``rareclass_`` where the version itself has a column (a feature, the target, ...) of such a name
    """

    reasons: int = 0
    prefix: str = ""


PLAIN = NewColumns()


def score(
    model: str,
    source: str,
    output: str,
    *,
    tracking_uri: str | None = None,
    point: str | None = None,
    serving: str | None = None,
    columns: NewColumns = PLAIN,
) -> ScoreSummary:
    """Score every row of a file and write it with the columns ``score`` and ``decision``.

    model : uri of summary.json, models:/NAME@alias, ...; source, output : Parquet or CSV; the output keeps the order
    point : operating point that decides; default: the one chosen for the version in the registry, else ``serving``,
        else the version's own. A ``models:/`` URI decides with the cut-offs in force, any other with those it was made
        with
    serving : operating point of the servers (``serve.operating_point``)
    A row that `data.filter` of the version keeps out stays in its place without score and decision.
    Raises ModelError, DataError.
    """
    from rareclass.adapters import registry

    chosen = None
    if model.startswith("models:/"):
        known = registry.Registry(registry.tracking_of(model, tracking_uri))
        version = known.resolve(model)
        loaded, chosen = known.load(version), version.point
    else:
        loaded = registry.load_model(model, tracking_uri)
    decides = operating.decides(loaded.thresholds, loaded.primary, point, chosen, serving, where="--point")
    return _write(loaded, source, output, decides, columns)


def _as_they_are(frame: pd.DataFrame, before: int) -> pd.DataFrame:
    return frame


@dataclass(frozen=True)
class _Logging:
    """What else is done with the rows.

    text : columns that are text beside those that the version reads so
    named : puts ids in front of rows of which so many came before
    log : takes each batch as it was read; what it raises leaves no output
    """

    text: Sequence[str] = ()
    named: Callable[[pd.DataFrame, int], pd.DataFrame] = _as_they_are
    log: Callable[[_Batch], None] = lambda batch: None


def _write(
    model: RareModel,
    source: str,
    output: str,
    decides: tuple[str, float],
    columns: NewColumns,
    logging: _Logging | None = None,
) -> ScoreSummary:
    """Score batch after batch into ``output``, which appears when all are written."""
    from rareclass.adapters import tables

    reasons, also = columns.reasons, logging or _Logging()
    new = _new_columns(model, columns.prefix, reasons)
    totals = _Totals()

    def scored(frame: pd.DataFrame) -> pd.DataFrame:
        batch = _scored(model, also.named(frame, totals.rows), decides[1])
        also.log(batch)
        totals.add(batch)
        return _with_scores(model, batch, new, reasons)

    frames = iter(tables.read_frames(source, schema=model.schema, text=also.text))
    first = next(frames, None)
    if first is None:  # no rows in, no rows out, but the same columns
        first = tables.read_frame(source, schema=model.schema, text=also.text)
    tables.write_frames(output, map(scored, chain([first], frames)))
    return ScoreSummary(
        totals.rows,
        totals.flagged,
        totals.mean,
        decides[1],
        decides[0],
        output,
        outside=totals.outside,
        unknown=totals.unknown,
        columns=new,
    )


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows as they were read and what the model says to them.

    score : (n,) NaN outside · decision : (n,) False outside · inside : (n,) whether data.filter keeps the row
    unknown : categorical column -> (values that are no category, one of them)
    """

    frame: pd.DataFrame
    score: FloatArray
    decision: BoolArray
    inside: BoolArray
    unknown: Mapping[str, tuple[int, str]]


class _Totals:
    """Counts over the batches."""

    def __init__(self) -> None:
        self.rows, self.flagged, self.outside, self.sum = 0, 0, 0, 0.0
        self.unknown: dict[str, tuple[int, str]] = {}

    def add(self, batch: _Batch) -> None:
        self.rows += len(batch.score)
        self.outside += int((~batch.inside).sum())
        self.flagged += int(batch.decision.sum())
        self.sum += float(batch.score[batch.inside].sum())
        for name, (count, like) in batch.unknown.items():
            before = self.unknown.get(name, (0, like))
            self.unknown[name] = (before[0] + count, before[1])

    @property
    def mean(self) -> float:
        scored = self.rows - self.outside
        return self.sum / scored if scored else float("nan")


def _new_columns(model: RareModel, prefix: str, reasons: int) -> tuple[str, ...]:
    """Names of the columns that scoring adds, decided by the version alone:
    two files of one model get the same ones.
    """
    names = ("score", "decision", *(("reasons",) if reasons else ()))
    if not prefix and own_names(model) & {"score", "decision", "reasons"}:
        prefix = ASIDE
    return tuple(f"{prefix}{name}" for name in names)


def own_names(model: RareModel) -> set[str]:
    """The columns that a version knows: its features, and the roles of its configuration."""
    data = (model.meta.get("config") or {}).get("data") or {}
    roles = (data.get(role) for role in ("target", "time", "entity", "id", "amount"))
    return {*model.schema.names, *filter(None, roles)}


def _scored(model: RareModel, frame: pd.DataFrame, threshold: float) -> _Batch:
    from rareclass.core import dataset

    x = model.matrix(frame)
    inside = _inside(model, frame, x)
    score, decision = np.full(len(frame), np.nan), np.zeros(len(frame), dtype=bool)
    score[inside] = model.score(x[inside])
    decision[inside] = score[inside] >= threshold
    return _Batch(frame, score, decision, inside, dataset.unknown_categories(frame[inside], model.schema))


def _inside(model: RareModel, frame: pd.DataFrame, x: FloatMatrix) -> BoolArray:
    """(n,) True for the rows that training would have kept, asked as the server asks: time only bounds the history."""
    from rareclass.adapters.serving import row_filter

    features = {feature.name: (at, feature) for at, feature in enumerate(model.schema.features)}

    def column(name: str) -> AnyArray | None:
        at, feature = features.get(name, (0, None))
        if feature is None:
            return frame[name].astype(object).to_numpy() if name in frame else None
        return x[:, at] if feature.kind == "numeric" else np.array(feature.texts(frame[name]), dtype=object)

    return row_filter.inside(row_filter.of_version(model.meta), column, len(frame))


def _with_scores(model: RareModel, batch: _Batch, new: Sequence[str], reasons: int) -> pd.DataFrame:
    import pandas as pd

    frame, inside = batch.frame, batch.inside
    taken = [name for name in new if name in frame.columns]
    if taken:
        raise DataError(
            f"the rows have a column '{taken[0]}' already. Pass --prefix TEXT to name the new columns otherwise, or "
            "drop it first"
        )
    columns: dict[str, Any] = {new[0]: batch.score, new[1]: batch.decision.astype(np.int8)}
    if not inside.all():
        columns[new[1]] = pd.array(columns[new[1]], dtype="Int8")
        columns[new[1]][~inside] = pd.NA
    if reasons:
        explanations = np.full(len(frame), None, dtype=object)
        explanations[inside] = (
            [json.dumps(each) for each in model.reasons(frame[inside], reasons)] if inside.any() else []
        )
        columns[new[2]] = explanations
    return frame.assign(**columns)


def score_and_log(
    config: Config,
    source: str,
    output: str,
    *,
    now: datetime,
    point: str | None = None,
    id_column: str | None = None,
    columns: NewColumns = PLAIN,
) -> ScoreSummary:
    """Score with a registered version and put every row into the prediction log, where labels and monitoring find it.

    id_column : request ids, to which labels are joined; default: `data.id`, else a column ``request_id`` is written:
        hash of the file's content (and, without times, of the day) and the row's position. The same ids again are not
        logged twice.
    now : time of the rows where there is no `data.time` column
    Raises ModelError when there is no such version, DataError when the id column is missing or holds an id twice.
    """
    import pandas as pd

    from rareclass.adapters import tables
    from rareclass.adapters.registry import Registry
    from rareclass.adapters.store import Store
    from rareclass.core import liveness

    found = Registry(config.tracking.uri)
    version = found.at(config.name, "champion")
    if version is None:
        raise ModelError(
            f"model '{config.name}' has no champion yet. Promote a version with: rareclass promote -c CONFIG"
        )
    model = found.load(version)
    decides = operating.decides(
        model.thresholds, model.primary, point, version.point, config.serve.operating_point, where="--point"
    )
    column = id_column or config.data.id
    named: Callable[[pd.DataFrame, int], pd.DataFrame]
    if column is not None:
        ids, named = _Ids(column), _as_they_are
    else:
        ids = _Ids(ID if ID not in own_names(model) else f"{ASIDE}{ID}")
        named = _named(ids.column, content_of(config, model, tables.read_frames(source, schema=model.schema), now))
    oldest = pd.Timestamp(now - config.store.retention)
    seen = pd.Timestamp(liveness.boundaries(now, config.data.label_delay, config.monitor)[0][0], tz="UTC")
    counts = Counter[str]()
    with tempfile.TemporaryDirectory() as work:  # the log gets what was read, whatever the output's format keeps of it
        waiting: list[Path] = []

        def keep(batch: _Batch) -> None:
            names = ids.of(batch.frame)[batch.inside]
            if not len(names):
                return
            waiting.append(Path(work) / f"{len(waiting)}.parquet")
            inside = ScoredRows(
                batch.frame[batch.inside], names, batch.score[batch.inside], batch.decision[batch.inside]
            )
            rows = prediction_rows(config, model, version.version, inside, decides, now=now)
            young = (rows["ts"] >= oldest).to_numpy()
            counts["expired"] += int((~young).sum())
            counts["out_of_view"] += int((rows["ts"][young] < seen).sum())
            tables.write_frame(waiting[-1], rows[young])

        with Store(config.store.url) as store:
            store.migrate()
            done = _write(model, source, output, decides, columns, _Logging([ids.column], named, keep))
            for path in waiting:
                rows = tables.read_frame(path)
                fresh = store.add_predictions(rows)
                counts["logged"] += fresh
                if fresh < len(rows):
                    counts["reused"] += store.reused(rows)
    counted: dict[str, Any] = dict(counts)
    return replace(done, version=version.version, **counted)


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """Rows as they were read, their request ids, and what a version says to them: (n,) each."""

    frame: pd.DataFrame
    ids: Any
    score: FloatArray
    decision: BoolArray


def prediction_rows(
    config: Config, model: RareModel, version: str, scored: ScoredRows, decides: tuple[str, float], *, now: datetime
) -> pd.DataFrame:
    """Bring scored rows into the shape of the prediction log, every column as the version reads it.

    now : their time where they carry none, or only an order. Raises DataError when a row's time cannot be read.
    """
    import pandas as pd

    frame, (point, threshold) = scored.frame, decides
    data, names = config.data, [name for name in model.schema.names if name not in config.data.private]
    stamps = _moments(model, str(data.time), frame[data.time]) if data.time in frame else None
    return pd.DataFrame(
        {
            "request_id": scored.ids,
            "row": 0,
            "ts": pd.Timestamp(now).tz_convert("UTC") if stamps is None else stamps,
            "model": config.name,
            "version": version,
            "operating_point": point,
            "threshold": threshold,
            "score": np.asarray(scored.score, dtype=np.float64),
            "decision": np.asarray(scored.decision, dtype=np.int64),
            "weight": 1.0,
            "propensity": NUMBER.numbers(frame[data.propensity])[0] if data.propensity in frame else 1.0,
            "entity": TEXT.texts(frame[data.entity]) if data.entity in frame else None,
            "features": _features(frame, model.schema, names),
        }
    )


def _moments(model: RareModel, name: str, values: pd.Series[Any]) -> pd.DatetimeIndex | None:
    """The times of rows as the version reads them, None where they only tell an order.

    Raises DataError for one that is none.
    """
    import pandas as pd

    from rareclass.core.times import TimeReading

    known = model.schema.roles.time
    reading = known if known is not None and known.name == name else TimeReading(name)
    if not reading.calendar:
        return None
    times, wrong = reading.read(values)
    bad = wrong | np.isnat(times)
    if bad.any():
        example = values.iloc[int(np.argmax(bad))]
        raise DataError(
            f"column '{name}' (data.time) is no time in {int(bad.sum()):,} of {len(bad):,} rows, like "
            f"{str(example)[:40]!r}. "
            "Write times as in training, or as 2024-05-31T12:00:00"
        )
    return pd.DatetimeIndex(times).tz_localize("UTC")


def _features(frame: pd.DataFrame, schema: Schema, names: Sequence[str]) -> list[str]:
    """Each row's features as JSON text, as the version reads them: numbers with all digits, categories as text, missing
    as null.
    """
    features = [feature for feature in schema.features if feature.name in names]
    columns = [feature.logged(frame[feature.name]) for feature in features]
    if not columns:
        return ["{}"] * len(frame)
    own = [feature.name for feature in features]
    return [json.dumps(dict(zip(own, row, strict=True)), ensure_ascii=False) for row in zip(*columns, strict=True)]


def content_of(config: Config, model: RareModel, frames: Iterable[pd.DataFrame], now: datetime) -> str:
    """Return a hash of a file's rows as they are logged, with times and entities, whatever kind of file they came in.

    Rows without a time get that of the scoring, so that the day counts too: an equal file of another day is another
    file.
    """
    whole = hashlib.sha256(config.name.encode())
    data = config.data
    timed = False
    for frame in frames:
        parts: list[Iterable[Any]] = [_features(frame, model.schema, model.schema.names)]
        if data.time in frame:
            moments = _moments(model, str(data.time), frame[data.time])
            timed = moments is not None
            parts.append(TEXT.texts(frame[data.time]) if moments is None else moments.astype(str).tolist())
        if data.entity in frame:
            parts.append([str(name) for name in TEXT.texts(frame[data.entity])])
        for row in zip(*parts, strict=True):
            whole.update("\0".join(map(str, row)).encode("utf-8", "replace") + b"\n")
    if not timed:
        whole.update(f"{now:%Y-%m-%d}".encode())
    return f"f{whole.hexdigest()[:20]}"


def _named(column: str, identity: str) -> Callable[[pd.DataFrame, int], pd.DataFrame]:
    """Return what puts request ids in front of rows of which so many came before."""

    def put(frame: pd.DataFrame, before: int) -> pd.DataFrame:
        if column in frame.columns:
            raise DataError(
                f"the rows have a column '{column}' and no id was named. Pass --id {column}, or set data.id"
            )
        made = frame.copy(deep=False)
        made.insert(0, column, [f"{identity}-{before + at}" for at in range(len(frame))])
        return made

    return put


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
                f"the rows have no id column '{self.column}'.{nearest(self.column, map(str, frame.columns))} Pass "
                "--id COLUMN"
            )
        ids = pd.Series(TEXT.texts(frame[self.column]), dtype="string")
        self.seen.update(ids.dropna())
        self.rows += len(ids)
        if ids.isna().any() or self.rows > len(self.seen):
            raise DataError(
                f"column '{self.column}' does not identify the rows: an id is missing or there twice. "
                "Pass --id with a column that does"
            )
        return np.asarray(ids.to_numpy(dtype=object))


def champion_uri(config: Config) -> str:
    """The registry URI of the configuration's champion."""
    return f"models:/{config.name}@champion"


def check_paths(source: str, output: str) -> None:
    """Refuse to overwrite the source, and a format that cannot be written. Raises ConfigError."""
    if not output.lower().endswith(FORMATS):
        raise ConfigError(f"'{output}' cannot be written: its name has to end in one of: {', '.join(FORMATS)}")
    if "://" not in source and "://" not in output and Path(source).resolve() == Path(output).resolve():
        raise ConfigError(f"'{output}' is the input. Write the scores to another file")
