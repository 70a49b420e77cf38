"""Predictions, shadow scores, labels and the ledger: SQLite embedded, PostgreSQL deployed.

Times are stored as microseconds since 1970 UTC, which both dialects index and compare alike. Every time given to a
method may be aware or naive (naive means UTC); every time column of a returned frame is datetime64[us] meaning UTC.

PostgreSQL: ``predictions`` and ``shadow_scores`` are partitioned by day; partitions are made as rows need them. A
unique key of a partitioned table must contain the partition column, so ``prediction_keys`` (not partitioned) holds the
promise that (model, request_id, row) is stored once, also when a client sends its request again on another day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from rareclass.errors import AlreadyDone, StoreError, StoreRefused, nearest

HEAD = "0001"  # newest revision in migrations/versions; a test compares the two
VERSION_TABLE = "rareclass_version"  # not alembic_version: MLflow may live in the same database
DAY = 86_400_000_000
METADATA = sa.MetaData()


def _key() -> list[sa.Column[Any]]:
    return [sa.Column("model", sa.Text), sa.Column("request_id", sa.Text), sa.Column("row", sa.Integer)]


PREDICTIONS = sa.Table(
    "predictions",
    METADATA,
    *_key(),
    sa.Column("ts", sa.BigInteger),
    sa.Column("version", sa.Text),
    sa.Column("operating_point", sa.Text),
    sa.Column("threshold", sa.Float),
    sa.Column("score", sa.Float),
    sa.Column("decision", sa.SmallInteger),
    sa.Column("weight", sa.Float),
    sa.Column("propensity", sa.Float),
    sa.Column("entity", sa.Text),
    sa.Column("features", sa.Text),
)
PREDICTION_KEYS = sa.Table("prediction_keys", METADATA, *_key(), sa.Column("ts", sa.BigInteger))
SHADOWS = sa.Table(
    "shadow_scores",
    METADATA,
    *_key(),
    sa.Column("version", sa.Text),
    sa.Column("ts", sa.BigInteger),
    sa.Column("role", sa.Text),
    sa.Column("score", sa.Float),
    sa.Column("decision", sa.SmallInteger),
    sa.Column("error", sa.Text),
)
LABELS = sa.Table(
    "labels",
    METADATA,
    *_key(),
    sa.Column("label", sa.SmallInteger),
    sa.Column("observed_at", sa.BigInteger),
    sa.Column("confirmed_at", sa.BigInteger),
    sa.Column("source", sa.Text),
    sa.Column("received_at", sa.BigInteger),
)
LABEL_HISTORY = sa.Table("label_history", METADATA, *(column._copy() for column in LABELS.columns))
LEDGER = sa.Table(
    "ledger",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("model", sa.Text),
    sa.Column("key", sa.Text),
    sa.Column("kind", sa.Text),
    sa.Column("actor", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("payload", sa.Text),
    sa.Column("at", sa.BigInteger),
)
FORGOTTEN = sa.Table(
    "forgotten",
    METADATA,
    sa.Column("model", sa.Text),
    sa.Column("kind", sa.Text),
    sa.Column("digest", sa.Text),
    sa.Column("at", sa.BigInteger),
)
KEY = ("model", "request_id", "row")
UNIQUE = {
    PREDICTIONS: KEY,
    PREDICTION_KEYS: KEY,
    SHADOWS: ("model", "request_id", "row", "version"),
    LABELS: KEY,
    LABEL_HISTORY: (*KEY, "observed_at", "label"),
}
_DEFAULTS: dict[str, Any] = {
    "row": 0,
    "operating_point": "default",
    "threshold": None,
    "weight": 1.0,
    "propensity": 1.0,
    "entity": None,
    "features": None,
    "error": None,
    "source": "unknown",
}


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What became of labels: new ones, ones that changed a known label, ones that changed nothing, and how many of all
    belong to a prediction that has not arrived (they are kept for it)."""

    inserted: int = 0
    corrected: int = 0
    unchanged: int = 0
    unknown: int = 0

    def __add__(self, other: LabelReport) -> LabelReport:
        return LabelReport(
            self.inserted + other.inserted,
            self.corrected + other.corrected,
            self.unchanged + other.unchanged,
            self.unknown + other.unknown,
        )


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One action that was taken; never changed, never deleted."""

    id: int
    model: str
    key: str
    kind: str
    actor: str
    reason: str
    payload: dict[str, Any]
    at: datetime


def to_micros(moment: Any) -> int:
    """Microseconds since 1970 UTC of a datetime, Timestamp, datetime64 or ISO text; naive means UTC."""
    stamp = pd.Timestamp(moment)
    stamp = stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
    return int(stamp.as_unit("us").to_datetime64().astype("int64"))


def micros(values: Any) -> pd.Series[Any]:
    """The same for a column; whole numbers are microseconds already. Raises StoreRefused for what is not a time."""
    series = pd.Series(values)
    if pd.api.types.is_integer_dtype(series.dtype):
        return series.astype("int64")
    try:
        stamps = pd.to_datetime(series, utc=True, format=None if series.dtype.kind == "M" else "ISO8601")
    except (ValueError, TypeError, OverflowError) as error:
        raise StoreRefused(f"column '{series.name}' holds something that is not a time: {_one_line(error)}") from None
    if stamps.isna().any():
        raise StoreRefused(f"column '{series.name}' has {int(stamps.isna().sum())} missing times. Every row needs one")
    return stamps.dt.as_unit("us").astype("int64")


def sqlalchemy_url(url: str) -> sa.URL:
    """Parse ``store.url``; postgres:// and postgresql:// mean the psycopg driver. Raises StoreError."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise StoreError(
            "store.url is not a database URL. Set store.url to sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None
    if parsed.drivername in ("postgres", "postgresql"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            f"store.url names '{parsed.drivername}'. Set store.url to sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise StoreError("store.url names no SQLite file, and memory is not durable. Set store.url to sqlite:///FILE")
    return parsed


class Store:
    """One database. Safe to use from several threads and processes at once."""

    def __init__(self, url: str) -> None:
        self._url = sqlalchemy_url(url)
        self._postgres = self._url.get_backend_name() == "postgresql"
        self._partitions: set[str] = set()
        self._engine = _postgres_engine(self._url) if self._postgres else _sqlite_engine(self._url)
        self._keys = PREDICTION_KEYS if self._postgres else PREDICTIONS
        driver: Any = self._engine.dialect.loaded_dbapi
        self._driver_error: type[Exception] = driver.Error
        self._refused: tuple[type[Exception], ...] = (driver.IntegrityError, driver.DataError)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL with its password masked."""
        return self._url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Give the connections back; the store can be used again afterwards."""
        self._engine.dispose()

    def ping(self) -> None:
        """Raise StoreError unless the database answers."""
        with self._transaction() as connection:
            connection.execute(sa.text("SELECT 1"))

    # -- schema ---------------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """Bring the schema to this version of the package; one query when it is there already."""
        if self._revision() == HEAD:
            return
        with self._transaction(write=True) as connection:
            if self._postgres:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(1919050604)"))
            if self._revision(connection) != HEAD:  # another process may have been faster
                _upgrade(connection, self.url)

    def _revision(self, connection: sa.Connection | None = None) -> str | None:
        if connection is None:
            with self._transaction() as fresh:
                return self._revision(fresh)
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608

    def _ensure_partitions(self, days: Sequence[int]) -> None:
        """Make the day partitions that rows need. ATTACH, unlike CREATE ... PARTITION OF, does not wait for readers."""
        for day in days:
            suffix = datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y%m%d")
            if suffix in self._partitions:
                continue
            with self._transaction(write=True) as connection:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(1919050605)"))
                for parent in (PREDICTIONS.name, SHADOWS.name):
                    name = f"{parent}_{suffix}"
                    if connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": name}).scalar() is None:
                        connection.execute(sa.text(f"CREATE TABLE {name} (LIKE {parent} INCLUDING ALL)"))
                        bounds = f"FROM ({day * DAY}) TO ({(day + 1) * DAY})"
                        connection.execute(sa.text(f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES {bounds}"))
            self._partitions.add(suffix)

    # -- predictions ----------------------------------------------------------------------------------------------

    def add_predictions(self, frame: pd.DataFrame) -> int:
        """Store predictions; return how many were new. A (model, request_id, row) is stored once, the first one wins.

        Columns: request_id, ts, model, version, score, decision; optional row (0), operating_point, threshold, weight
        (1: sampling weight), propensity (1), entity, features (JSON text).
        """
        rows = self._without_forgotten(_normal(frame, PREDICTIONS))
        if rows.empty:
            return 0
        if not self._postgres:
            return self._insert(PREDICTIONS, rows)
        self._ensure_partitions(sorted(set((rows["ts"] // DAY).tolist())))
        names = ", ".join(f'"{name}"' for name in rows.columns)
        with self._transaction(write=True) as connection:
            self._stage(connection, PREDICTIONS, rows.drop_duplicates(list(KEY)))
            # keys in one order, so that two processes with the same rows wait for each other instead of deadlocking
            statement = f"""
                WITH fresh AS (INSERT INTO prediction_keys (model, request_id, "row", ts)
                    SELECT model, request_id, "row", ts FROM stage_predictions ORDER BY model, request_id, "row"
                    ON CONFLICT DO NOTHING RETURNING model, request_id, "row")
                INSERT INTO predictions ({names})
                SELECT {names} FROM stage_predictions JOIN fresh USING (model, request_id, "row")"""  # noqa: S608
            return int(connection.exec_driver_sql(statement).rowcount)

    def add_shadow_scores(self, frame: pd.DataFrame) -> int:
        """Store what other versions said about the same rows; return how many were new.

        Columns: request_id, ts (of the prediction), model, version, role, score, decision; optional row (0), error.
        """
        rows = self._without_forgotten(_normal(frame, SHADOWS))
        if rows.empty:
            return 0
        if self._postgres:
            self._ensure_partitions(sorted(set((rows["ts"] // DAY).tolist())))
        return self._insert(SHADOWS, rows)

    def _insert(self, table: sa.Table, rows: pd.DataFrame) -> int:
        """INSERT ... ON CONFLICT DO NOTHING; return the number of new rows."""
        names = ", ".join(f'"{name}"' for name in rows.columns)
        with self._transaction(write=True) as connection:
            if self._postgres:
                self._stage(connection, table, rows)
                order = ", ".join(f'"{name}"' for name in UNIQUE[table])
                statement = f"INSERT INTO {table.name} ({names}) SELECT {names} FROM stage_{table.name} ORDER BY {order} ON CONFLICT DO NOTHING"  # noqa: S608
                return int(connection.exec_driver_sql(statement).rowcount)
            marks = ", ".join("?" * rows.shape[1])
            cursor = _driver(connection).cursor()
            cursor.executemany(f"INSERT OR IGNORE INTO {table.name} ({names}) VALUES ({marks})", _tuples(rows))  # noqa: S608
            return int(cursor.rowcount)

    def _stage(self, connection: sa.Connection, table: sa.Table, rows: pd.DataFrame) -> None:
        """Put rows into the temporary table ``stage_TABLE`` of this transaction."""
        stage, names = f"stage_{table.name}", ", ".join(f'"{name}"' for name in rows.columns)
        if self._postgres:
            kinds = ", ".join(f'"{c.name}" {c.type.compile(self._engine.dialect)}' for c in table.columns)
            connection.exec_driver_sql(f"CREATE TEMP TABLE IF NOT EXISTS {stage} ({kinds}) ON COMMIT DELETE ROWS")
            connection.exec_driver_sql(f"DELETE FROM {stage}")  # noqa: S608
            with (
                _driver(connection).cursor() as cursor,
                cursor.copy(f"COPY {stage} ({names}) FROM STDIN WITH (FORMAT csv)") as copy,
            ):
                copy.write(_csv(rows))
            return
        columns = ", ".join(f'"{c.name}"' for c in table.columns)
        connection.exec_driver_sql(f"CREATE TEMP TABLE IF NOT EXISTS {stage} ({columns})")
        connection.exec_driver_sql(f"DELETE FROM temp.{stage}")  # noqa: S608
        marks = ", ".join("?" * rows.shape[1])
        _driver(connection).cursor().executemany(f"INSERT INTO temp.{stage} ({names}) VALUES ({marks})", _tuples(rows))  # noqa: S608

    # -- labels ---------------------------------------------------------------------------------------------------

    def add_labels(self, frame: pd.DataFrame, *, model: str | None = None) -> LabelReport:
        """Store late truth. Idempotent; the latest ``observed_at`` (then ``received_at``) wins, the others are history.

        Columns: request_id, label (0 or 1), observed_at, received_at; optional row (0), source, and model unless given.
        The same label said again later confirms it and leaves its first ``observed_at``, so that the measured delay is
        the time until the truth was known. Labels without a prediction are kept until it arrives.
        """
        rows = _normal(frame.assign(model=model) if model is not None else frame, LABELS, confirmed_at="observed_at")
        if not rows["label"].isin((0, 1)).all():
            raise StoreError(f"labels must be 0 or 1; got {rows.loc[~rows['label'].isin((0, 1)), 'label'].iloc[0]}")
        rows = rows.sort_values(["observed_at", "received_at"], kind="stable")
        report = LabelReport()
        turn = rows.groupby(list(KEY), sort=False).cumcount()  # several labels of one row: one after the other
        for _, part in rows.groupby(turn):
            for name, one_model in part.groupby("model"):
                report += self._add_labels(str(name), one_model)
        return report

    def _add_labels(self, model: str, rows: pd.DataFrame) -> LabelReport:
        """Labels of one model, at most one per row of it."""
        with self._transaction(write=True) as connection:
            if self._postgres:  # two importers of one model take turns; SQLite has one writer anyway
                connection.execute(
                    sa.text("SELECT pg_advisory_xact_lock(1919050606, hashtext(:model))"), {"model": model}
                )
            self._stage(connection, LABELS, rows)
            stage = sa.table("stage_labels", *(sa.column(c.name, c.type) for c in LABELS.columns))
            on = _same(stage, LABELS, KEY)
            current = self._read(connection, sa.select(*LABELS.columns).select_from(sa.join(stage, LABELS, on)))
            matched = sa.select(sa.func.count()).select_from(sa.join(stage, self._keys, _same(stage, self._keys, KEY)))
            unknown = len(rows) - int(connection.execute(matched).scalar() or 0)
            keep, history, counts = _merge_labels(rows, current)
            for table, changed in ((LABELS, keep), (LABEL_HISTORY, history)):
                if len(changed):
                    self._upsert(connection, table, changed)
        return LabelReport(**counts, unknown=unknown)

    def _upsert(self, connection: sa.Connection, table: sa.Table, rows: pd.DataFrame) -> None:
        self._stage(connection, table, rows)
        names = ", ".join(f'"{name}"' for name in rows.columns)
        key = ", ".join(f'"{name}"' for name in UNIQUE[table])
        changes = ", ".join(f'"{name}" = excluded."{name}"' for name in rows.columns if name not in UNIQUE[table])
        stage = f"stage_{table.name}" if self._postgres else f"temp.stage_{table.name}"
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {stage} WHERE true ON CONFLICT ({key}) DO UPDATE SET {changes}"  # noqa: S608
        )

    # -- reading --------------------------------------------------------------------------------------------------

    def window(
        self,
        model: str,
        start: Any,
        end: Any,
        *,
        version: str | None = None,
        features: bool = False,
        labels_until: Any = None,
    ) -> pd.DataFrame:
        """Return the predictions with start <= ts < end, oldest first, joined with their labels.

        Columns: request_id, row, ts, version, operating_point, score, decision, threshold, weight, propensity, entity,
        label (float; NaN = none yet), label_observed_at (NaT), and features (JSON text) when asked for.
        ``labels_until``: the labels as they were known at that time, by their ``observed_at``. (Of a label that was said
        several times only the first and the last time are kept.)
        """
        names = ["request_id", "row", "ts", "version", "operating_point", "score", "decision", "threshold"]
        names += ["weight", "propensity", "entity"] + (["features"] if features else [])
        chosen = _between(PREDICTIONS, model, start, end, version)
        late = [LABELS.c.label, LABELS.c.observed_at.label("label_observed_at")]
        hidden = [LABELS.c.confirmed_at, LABELS.c.received_at] if labels_until is not None else []
        joined = sa.outerjoin(PREDICTIONS, LABELS, _same(PREDICTIONS, LABELS, KEY))
        query = sa.select(*(PREDICTIONS.c[name] for name in names), *late, *hidden).select_from(joined).where(*chosen)
        with self._transaction() as connection:
            frame = self._read(connection, query.order_by(PREDICTIONS.c.ts))
            if labels_until is not None:
                past = sa.join(PREDICTIONS, LABEL_HISTORY, _same(PREDICTIONS, LABEL_HISTORY, KEY))
                history = self._read(connection, sa.select(*LABEL_HISTORY.columns).select_from(past).where(*chosen))
                frame = _labels_as_of(frame, history, to_micros(labels_until))
        return _timed(frame, "ts", "label_observed_at").astype({"label": "float64"})

    def shadows(
        self, model: str, start: Any, end: Any, version: str | None = None, *, role: str | None = None
    ) -> pd.DataFrame:
        """Return shadow scores with start <= ts < end beside what the champion said about the same row, oldest first.

        Columns: request_id, row, ts, version, role, score (NaN), decision (NaN), error, champion_version,
        champion_score, champion_decision, weight, propensity, label (NaN), label_observed_at (NaT).
        """
        s, p = SHADOWS, PREDICTIONS
        mine = [s.c[name] for name in ("request_id", "row", "ts", "version", "role", "score", "decision", "error")]
        theirs = [p.c[name].label(f"champion_{name}") for name in ("version", "score", "decision")]
        late = [LABELS.c.label, LABELS.c.observed_at.label("label_observed_at")]
        # ts as well: both carry the time of the request, and PostgreSQL then reads one partition per row
        joined = sa.join(s, p, sa.and_(_same(s, p, KEY), s.c.ts == p.c.ts)).outerjoin(LABELS, _same(p, LABELS, KEY))
        where = [*_between(s, model, start, end, version), p.c.model == model, p.c.ts >= to_micros(start)]
        where += [p.c.ts < to_micros(end)] + ([s.c.role == role] if role is not None else [])
        query = sa.select(*mine, *theirs, p.c.weight, p.c.propensity, *late).select_from(joined).where(*where)
        with self._transaction() as connection:
            frame = self._read(connection, query.order_by(s.c.ts))
        return _timed(frame, "ts", "label_observed_at").astype(dict.fromkeys(("label", "score", "decision"), "float64"))

    def counts(self, model: str) -> dict[str, Any]:
        """Return how many predictions, shadow scores, labels and superseded labels a model has, and its first and last
        prediction time (None without any)."""
        p = PREDICTIONS.c
        with self._transaction() as connection:
            number, first, last = connection.execute(
                sa.select(sa.func.count(), sa.func.min(p.ts), sa.func.max(p.ts)).where(p.model == model)
            ).one()
            others = {
                name: int(connection.execute(sa.select(sa.func.count()).where(table.c.model == model)).scalar() or 0)
                for name, table in (("shadows", SHADOWS), ("labels", LABELS), ("label_history", LABEL_HISTORY))
            }
        return {"predictions": int(number), **others, "first": _moment(first), "last": _moment(last)}

    def query(self, statement: str) -> pd.DataFrame:
        """Run a SELECT of the user's own, or read a whole table when ``statement`` is only a name; types as stored."""
        text = statement.strip()
        if text.replace("_", "").replace(".", "").isalnum():
            text = "SELECT * FROM " + ".".join(f'"{part}"' for part in text.split("."))  # noqa: S608
        with self._transaction() as connection:
            if self._postgres:
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            result = connection.execution_options(no_parameters=True).exec_driver_sql(text)
            return pd.DataFrame(result.all(), columns=list(result.keys()))

    # -- erasure and retention ------------------------------------------------------------------------------------

    def forget(
        self, model: str, *, request_id: str | None = None, entity: str | None = None, at: datetime | None = None
    ) -> int:
        """Erase everything about a request or an entity; return the number of rows erased in all tables.

        With ``at`` the erasure also holds for rows up to that time that are still on their way (spool, retries): a
        digest of the id is kept to refuse them.
        """
        if (request_id is None) == (entity is None):
            raise StoreError("forget needs exactly one of request_id and entity")
        kind, value = ("request_id", request_id) if request_id is not None else ("entity", entity)
        with self._transaction(write=True) as connection:
            if at is not None:
                digest = _digest(str(value))
                connection.execute(sa.insert(FORGOTTEN).values(model=model, kind=kind, digest=digest, at=to_micros(at)))
            ids = [str(value)]
            if kind == "entity":
                found = sa.select(PREDICTIONS.c.request_id).where(
                    PREDICTIONS.c.model == model, PREDICTIONS.c.entity == value
                )
                pairs = connection.execute(found.add_columns(PREDICTIONS.c.row)).all()
                return sum(self._erase(connection, model, str(one), int(row)) for one, row in pairs)
            return sum(self._erase(connection, model, one, None) for one in ids)

    def _erase(self, connection: sa.Connection, model: str, request_id: str, row: int | None) -> int:
        erased = 0
        for table in (PREDICTIONS, SHADOWS, LABELS, LABEL_HISTORY, *((PREDICTION_KEYS,) if self._postgres else ())):
            where = [table.c.model == model, table.c.request_id == request_id]
            count = connection.execute(
                sa.delete(table).where(*where, *([table.c.row == row] if row is not None else []))
            )
            erased += 0 if table is PREDICTION_KEYS else int(count.rowcount)
        return erased

    def _without_forgotten(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Drop rows of requests and entities that were erased after the row was made."""
        if rows.empty:
            return rows
        f = FORGOTTEN.c
        with self._transaction() as connection:
            query = sa.select(f.model, f.kind, f.digest, f.at).where(f.at >= int(rows["ts"].min()))
            erased = connection.execute(query).all()
        for model, kind, digest, at in erased:
            if kind in rows.columns:
                same = (rows["model"] == model) & (rows["ts"] <= at)
                match = rows[kind].where(same).map(lambda v: isinstance(v, str) and _digest(v) == digest)  # noqa: B023
                rows = rows[~match.astype(bool)]
        return rows

    def prune(self, model: str, before: Any) -> int:
        """Delete predictions older than ``before`` with their shadow scores and labels; return the predictions deleted.

        Labels that never found a prediction go when they were received before that time. The ledger stays.
        """
        limit, p = to_micros(before), PREDICTIONS.c
        with self._transaction(write=True) as connection:
            old = sa.select(sa.literal(1)).where(p.model == model, p.ts < limit)
            for table in (LABELS, LABEL_HISTORY):
                gone = old.where(p.request_id == table.c.request_id, p.row == table.c.row).correlate(table).exists()
                there = sa.select(sa.literal(1)).where(_same(self._keys, table, KEY)).correlate(table).exists()
                orphan = sa.and_(table.c.received_at < limit, ~there)
                connection.execute(sa.delete(table).where(table.c.model == model, sa.or_(gone, orphan)))
            connection.execute(sa.delete(FORGOTTEN).where(FORGOTTEN.c.model == model, FORGOTTEN.c.at < limit))
            tables = (SHADOWS, PREDICTIONS) if not self._postgres else (SHADOWS, PREDICTION_KEYS, PREDICTIONS)
            for table in tables:
                deleted = connection.execute(
                    sa.delete(table).where(table.c.model == model, table.c.ts < limit)
                ).rowcount
        if self._postgres:
            self._drop_empty_partitions(limit)
        return int(deleted)

    def _drop_empty_partitions(self, limit: int) -> None:
        """Drop day partitions wholly before ``limit`` that no model uses any more."""
        with self._transaction(write=True) as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(1919050605)"))
            listing = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass(:parent)"
            last = datetime.fromtimestamp(limit // DAY * 86_400, UTC).strftime("%Y%m%d")
            for parent in (PREDICTIONS.name, SHADOWS.name):
                for (name,) in connection.execute(sa.text(listing), {"parent": parent}).all():
                    empty = connection.execute(sa.text(f"SELECT 1 FROM {name} LIMIT 1")).first() is None  # noqa: S608
                    if name.rpartition("_")[2] < last and empty:
                        connection.execute(sa.text(f"DROP TABLE {name}"))
        self._partitions.clear()

    # -- ledger ---------------------------------------------------------------------------------------------------

    def append(
        self, model: str, key: str, kind: str, actor: str, reason: str, payload: Mapping[str, Any], at: Any
    ) -> LedgerEntry:
        """Write one line of the ledger. Raises AlreadyDone when this (model, key) is there: the database refuses it."""
        values = {"model": model, "key": key, "kind": kind, "actor": actor, "reason": reason, "at": to_micros(at)}
        text = json.dumps(dict(payload), default=str)
        try:
            with self._transaction(write=True) as connection:
                number = connection.execute(sa.insert(LEDGER).values(**values, payload=text)).inserted_primary_key[0]
        except StoreRefused as error:
            if not isinstance(error.__context__, sa.exc.IntegrityError):
                raise
            raise AlreadyDone(
                f"'{key}' of model '{model}' is in the ledger already; `rareclass history` shows it"
            ) from None
        return LedgerEntry(int(number), model, key, kind, actor, reason, json.loads(text), _moment(values["at"]))  # type: ignore[arg-type]

    def entries(self, model: str, kind: str | None = None) -> list[LedgerEntry]:
        """Return the ledger of a model, oldest first."""
        query = sa.select(LEDGER).where(LEDGER.c.model == model).order_by(LEDGER.c.id)
        if kind is not None:
            query = query.where(LEDGER.c.kind == kind)
        with self._transaction() as connection:
            lines = connection.execute(query).mappings().all()
        return [
            LedgerEntry(**{**line, "payload": json.loads(line["payload"]), "at": _moment(line["at"])}) for line in lines
        ]

    # -- plumbing -------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction; every failure becomes a StoreError of one line with the password masked."""
        try:
            with self._engine.connect().execution_options(rareclass_write=write) as connection, connection.begin():
                yield connection
        except (sa.exc.SQLAlchemyError, self._driver_error, OSError) as error:
            raise _explain(error, self.url, self._refused) from error

    def _read(self, connection: sa.Connection, query: sa.Select[Any]) -> pd.DataFrame:
        """Run a SELECT into a frame: COPY into Arrow on PostgreSQL, whole columns on SQLite."""
        compiled = query.compile(dialect=self._engine.dialect, compile_kwargs={"render_postcompile": True})
        if self._postgres:
            return _copied(_driver(connection), str(compiled), dict(compiled.params), query)
        parameters = [compiled.params[name] for name in compiled.positiontup or ()]
        rows = _driver(connection).cursor().execute(str(compiled), parameters).fetchall()
        columns = zip(*rows, strict=True) if rows else ((),) * len(query.selected_columns)
        chosen = list(query.selected_columns)
        return pd.DataFrame({c.key: _array(values, c.type) for c, values in zip(chosen, columns, strict=True)})


def _array(values: Sequence[Any], kind: sa.types.TypeEngine[Any]) -> Any:
    """One column of the database; whole numbers with missing ones among them become floats, exact up to 2**53."""
    if isinstance(kind, sa.Text):
        return pd.Series(values, dtype=object)
    if not isinstance(kind, sa.Float):
        try:
            return np.array(values, dtype=np.int64)
        except TypeError:
            pass
    return np.array(values, dtype=np.float64)


def _merge_labels(rows: pd.DataFrame, current: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Decide between new and current labels of the same rows: what becomes current, what is history, and the counts."""
    both = rows.merge(current, on=list(KEY), how="left", suffixes=("", "_old"), indicator=True)
    names = list(rows.columns)
    old = both.pop("_merge") == "both"
    whole = dict.fromkeys(("label", "observed_at", "confirmed_at", "received_at"), "int64")
    both = both.fillna({f"{name}_old": -1 for name in whole}).astype({f"{name}_old": "int64" for name in whole})
    same = old & (both["label"] == both["label_old"])
    newer = ~old | (both["observed_at"] > both["confirmed_at_old"])
    tie = old & (both["observed_at"] == both["confirmed_at_old"]) & (both["received_at"] >= both["received_at_old"])
    wins = newer | tie
    past = both[[*KEY, *(f"{name}_old" for name in names if name not in KEY)]].set_axis(
        [*KEY, *(n for n in names if n not in KEY)], axis=1
    )
    confirmed = past[same].assign(  # said again: keep the earliest time it was known and the latest it was confirmed
        observed_at=np.minimum(both["observed_at"], both["observed_at_old"])[same],
        confirmed_at=np.maximum(both["observed_at"], both["confirmed_at_old"])[same],
    )
    keep = pd.concat([both.loc[wins & ~same, names], confirmed], ignore_index=True)
    history = pd.concat([past[old & wins & ~same], both.loc[~wins & ~same, names]], ignore_index=True)
    counts = {"inserted": int((~old).sum()), "corrected": int((old & wins & ~same).sum())}
    counts["unchanged"] = len(rows) - counts["inserted"] - counts["corrected"]
    return keep.astype(whole), history.astype(whole), counts


def _labels_as_of(frame: pd.DataFrame, history: pd.DataFrame, until: int) -> pd.DataFrame:
    """Replace the labels by the ones known at ``until``."""
    if history.empty:
        early = frame["label_observed_at"] > until
        frame[["label", "label_observed_at"]] = frame[["label", "label_observed_at"]].astype("float64").mask(early)
        return frame.drop(columns=["confirmed_at", "received_at"])
    current = frame.rename(columns={"label_observed_at": "observed_at"})[
        ["request_id", "row", "label", "observed_at", "confirmed_at", "received_at"]
    ]
    # the current ones last: of two that were observed and received together, they won
    events = pd.concat([history[current.columns], current.dropna(subset=["label"])], ignore_index=True)
    events = events[events["observed_at"] <= until]
    said = events["confirmed_at"].where(events["confirmed_at"] <= until, events["observed_at"])
    order = np.lexsort((events["received_at"].to_numpy("int64"), said.to_numpy("int64")))
    known = events.iloc[order].drop_duplicates(["request_id", "row"], keep="last")
    known = known[["request_id", "row", "label", "observed_at"]].rename(columns={"observed_at": "label_observed_at"})
    bare = frame.drop(columns=["label", "label_observed_at", "confirmed_at", "received_at"])
    return bare.merge(known, on=["request_id", "row"], how="left")


def _normal(frame: pd.DataFrame, table: sa.Table, **same_as: str) -> pd.DataFrame:
    """Bring a frame to the columns, order and types of a table. Raises StoreError when a column is missing."""
    columns: dict[str, pd.Series[Any]] = {}
    for column in table.columns:
        name = same_as.get(column.name, column.name)
        if name in frame.columns:
            values = frame[name]
        elif name in _DEFAULTS:
            values = pd.Series([_DEFAULTS[name]] * len(frame), index=frame.index, dtype=object, name=name)
        else:
            known = [str(c) for c in frame.columns]
            raise StoreRefused(
                f"column '{name}' is missing from the rows for '{table.name}'.{nearest(name, known)} It has: {', '.join(known)}"
            )
        columns[column.name] = _typed(values, column)
    return pd.DataFrame(columns).reset_index(drop=True)


def _typed(values: pd.Series[Any], column: sa.Column[Any]) -> pd.Series[Any]:
    nullable = column.name in ("threshold", "entity", "features", "error") or (
        column.table is SHADOWS and column.name in ("score", "decision")
    )
    if column.name in ("ts", "at") or column.name.endswith("_at"):
        return micros(values)
    if values.isna().any() and not nullable:
        raise StoreRefused(
            f"column '{column.name}' has {int(values.isna().sum())} missing values; '{column.table.name}' needs all of them"
        )
    if isinstance(column.type, sa.Text):
        return _clean_text(values.astype(object).where(values.notna(), None))
    try:
        numbers = pd.to_numeric(values)
        if isinstance(column.type, sa.Float):
            return numbers.astype("float64")
        return numbers.astype("Int64" if nullable else "int64")
    except (ValueError, TypeError, OverflowError) as error:
        raise StoreRefused(f"column '{column.name}' must hold numbers: {_one_line(error)}") from None


def _clean_text(values: pd.Series[Any]) -> pd.Series[Any]:
    """Text as both databases can hold it: neither NUL nor half a surrogate pair."""
    texts = values.tolist()
    if not set(map(type, texts)) <= {str, type(None)}:
        texts = [value if value is None or isinstance(value, str) else str(value) for value in texts]
    joined = "".join(filter(None, texts))
    if "\x00" in joined or (not joined.isascii() and any("\ud800" <= letter <= "\udfff" for letter in joined)):
        texts = [t if t is None else t.replace("\x00", "�").encode("utf-8", "replace").decode() for t in texts]
    return pd.Series(texts, index=values.index, dtype=object)


def _tuples(rows: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Rows as tuples of Python values, missing as None: what sqlite3 wants."""
    columns = []
    for name in rows.columns:
        values = rows[name]
        if values.dtype != object and values.isna().any():
            values = values.astype(object).where(values.notna(), None)
        columns.append(values.tolist())
    return zip(*columns, strict=True)


def _csv(rows: pd.DataFrame) -> bytes:
    """Rows as CSV in which every value is quoted and missing ones are not: how COPY tells '' from NULL."""
    import pyarrow as pa
    from pyarrow import csv

    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(rows, preserve_index=False)
    csv.write_csv(table, sink, csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    return sink.getvalue().to_pybytes()


def _copied(driver: Any, statement: str, parameters: Mapping[str, Any], query: sa.Select[Any]) -> pd.DataFrame:
    """COPY (SELECT ...) TO STDOUT, parsed by Arrow: several times faster than fetching rows."""
    import io

    import pyarrow as pa
    from pyarrow import csv

    kinds = {
        c.key: pa.string()
        if isinstance(c.type, sa.Text)
        else pa.float64()
        if isinstance(c.type, sa.Float)
        else pa.int64()
        for c in query.selected_columns
    }
    with driver.cursor() as cursor, cursor.copy(f"COPY ({statement}) TO STDOUT WITH (FORMAT csv)", parameters) as copy:
        data = b"".join(bytes(block) for block in copy)
    if not data:
        return pd.DataFrame({name: pd.Series(dtype=kind.to_pandas_dtype()) for name, kind in kinds.items()})
    table = csv.read_csv(
        io.BytesIO(data),
        read_options=csv.ReadOptions(column_names=list(kinds)),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=kinds, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )
    return table.to_pandas()


def _timed(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Turn microseconds into datetime64[us] (UTC), missing into NaT; score-like columns into numbers."""
    for name in names:
        missing = frame[name].isna()
        whole = frame[name].where(~missing, 0).astype("int64").to_numpy().astype("datetime64[us]")
        frame[name] = pd.Series(whole, index=frame.index).mask(missing)
    for name in ("threshold", "champion_score"):
        if name in frame.columns:
            frame[name] = frame[name].astype("float64")
    return frame


def _between(table: sa.Table, model: str, start: Any, end: Any, version: str | None) -> list[sa.ColumnElement[bool]]:
    where = [table.c.model == model, table.c.ts >= to_micros(start), table.c.ts < to_micros(end)]
    return where + ([table.c.version == str(version)] if version is not None else [])


def _same(left: Any, right: Any, names: Sequence[str]) -> sa.ColumnElement[bool]:
    return sa.and_(*(left.c[name] == right.c[name] for name in names))


def _moment(value: int | None) -> datetime | None:
    return (
        None
        if value is None
        else datetime.fromtimestamp(value // 1_000_000, UTC).replace(microsecond=value % 1_000_000)
    )


def _digest(value: str) -> str:
    return sha256(value.encode("utf-8", "replace")).hexdigest()


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _explain(error: Exception, url: str, refused: tuple[type[Exception], ...]) -> StoreError:
    """One line: cannot reach (try again) or refused (never will be accepted)."""
    cause = getattr(error, "orig", None) or error
    text = _one_line(cause)
    if "no such table" in text or "UndefinedTable" in type(cause).__name__:
        return StoreError(f"store {url} has no tables yet: {text.partition(' LINE')[0]}. Store.migrate() creates them")
    if isinstance(cause, refused):
        return StoreRefused(f"store {url} refused: {text}")
    return StoreError(f"store {url} cannot be reached: {text}. Start the database, or set store.url")


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    """WAL with full sync: a committed row survives a power cut, and readers do not wait for the writer."""
    Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": 60})

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: IMMEDIATE for writers, so that they wait in line
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=OFF",
            "cache_size=-65536",
            "temp_store=MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("rareclass_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgres_engine(url: sa.URL) -> sa.Engine:
    return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 5})


def _upgrade(connection: sa.Connection, url: str) -> None:
    """Run the Alembic migrations inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    settings.attributes["connection"] = connection
    try:
        command.upgrade(settings, "head")
    except CommandError as error:
        found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
        raise StoreError(
            f"store {url} is at revision {found}, which this rareclass does not know ({_one_line(error)}). Install the newer release"
        ) from None
