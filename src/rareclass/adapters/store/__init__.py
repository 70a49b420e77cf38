"""Predictions, shadow scores, labels and the ledger: SQLite embedded, PostgreSQL deployed.

Times are stored as microseconds since 1970 UTC, which both dialects index and compare alike. Every time given to a
method may be aware or naive (naive means UTC); every time column of a returned frame is datetime64[us] meaning UTC.

PostgreSQL: ``predictions`` and ``shadow_scores`` are partitioned by day; partitions are made as rows need them. A
unique key of a partitioned table must contain the partition column, so ``prediction_keys`` (not partitioned) holds the
promise that (model, request_id, row) is stored once, also when a client sends its request again on another day.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from rareclass.adapters.store import erasure, ledger
from rareclass.adapters.store.database import Database
from rareclass.adapters.store.erasure import Erased
from rareclass.adapters.store.frames import micros, normal, timed, to_micros, to_moment
from rareclass.adapters.store.label_history import as_of, merge
from rareclass.adapters.store.tables import (
    KEY,
    LABEL_HISTORY,
    LABELS,
    LEDGER,
    PREDICTION_KEYS,
    PREDICTIONS,
    REVIEWS,
    SHADOWS,
    between,
    same,
)
from rareclass.core.jsonable import dumps
from rareclass.errors import AlreadyDoneError, StoreError, StoreRefusedError

__all__ = ["Erased", "LabelReport", "LedgerEntry", "Store", "Tally", "micros", "to_micros"]


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What became of labels: new ones, ones that changed a known label, ones that changed nothing, how many of all
    belong to a prediction that has not arrived (they are kept for it), and how many were refused because their row was
    erased.
    """

    inserted: int = 0
    corrected: int = 0
    unchanged: int = 0
    unknown: int = 0
    forgotten: int = 0

    def __add__(self, other: LabelReport) -> LabelReport:
        return LabelReport(
            self.inserted + other.inserted,
            self.corrected + other.corrected,
            self.unchanged + other.unchanged,
            self.unknown + other.unknown,
            self.forgotten + other.forgotten,
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


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of a stretch of prediction time.

    rows : answers in the store;  left_out : answers that sampling kept out of it, which the others stand for
    due : rows whose label should be there;  owed : those without one, the oldest of ``owed_since``
    """

    rows: int
    left_out: int
    due: int
    owed: int
    owed_since: datetime | None


def _with_labels(source: Any, *, reviews: bool = False) -> tuple[Any, list[Any]]:
    """Join what holds predictions with their labels, and with the record of rows to look at; return it and the columns
    of those.
    """
    joined = sa.outerjoin(source, LABELS, same(PREDICTIONS, LABELS, KEY))
    columns = [LABELS.c.label, LABELS.c.observed_at.label("label_observed_at")]
    if reviews:
        joined = sa.outerjoin(joined, REVIEWS, same(PREDICTIONS, REVIEWS, KEY))
        columns += [REVIEWS.c.probability.label("review"), REVIEWS.c.reason.label("review_reason")]
    return joined, columns


class Store(Database):
    """Predictions, shadow scores, labels and the ledger in one database."""

    def add_predictions(self, frame: pd.DataFrame) -> int:
        """Store predictions; return how many were new. A (model, request_id, row) is stored once, the first one wins.

        Columns: request_id, ts, model, version, score, decision; optional row (0), operating_point, threshold, weight
        (1: sampling weight), propensity (1), entity, features (JSON text).
        """
        rows = self._without_forgotten(normal(frame, PREDICTIONS))
        if rows.empty:
            return 0
        if not self.postgres:
            return self.insert(PREDICTIONS, rows)
        self.ensure_partitions(rows)
        keys, names = [*KEY, "ts"], list(rows.columns)
        staged = self.staged(PREDICTIONS, names)
        # keys in one order, so that two processes with the same rows wait for each other instead of deadlocking
        ordered = sa.select(*(staged.c[name] for name in keys)).order_by(*(staged.c[name] for name in KEY))
        fresh = (
            postgresql.insert(PREDICTION_KEYS)
            .from_select(keys, ordered)
            .on_conflict_do_nothing()
            .returning(*(PREDICTION_KEYS.c[name] for name in KEY))
            .cte("fresh")
        )
        same_key = sa.and_(*(staged.c[name] == fresh.c[name] for name in KEY))
        new = sa.select(*staged.columns).select_from(staged.join(fresh, same_key))
        with self.transaction(write=True) as connection:
            self.stage(connection, PREDICTIONS, rows.drop_duplicates(list(KEY)))
            insert = sa.insert(PREDICTIONS).from_select(names, new)
            return int(connection.execute(insert).rowcount)

    def reused(self, frame: pd.DataFrame) -> int:
        """Count the rows whose id is stored with other contents: they were not stored, the first one won.

        The columns of ``add_predictions``. A request that was sent again, with the same features, is no such row.
        """
        rows = normal(frame, PREDICTIONS)
        columns = [PREDICTIONS.c[name] for name in ("request_id", "row", "version", "score", "features")]
        keys, source = self.keys, sa.select(*columns)
        if self.postgres:  # by way of the keys, so that each row is looked for in the partition of its day only
            both = sa.and_(same(keys, PREDICTIONS, KEY), keys.c.ts == PREDICTIONS.c.ts)
            source = source.select_from(sa.join(keys, PREDICTIONS, both))
        count = 0
        with self.transaction() as connection:
            for model, mine in rows.groupby("model"):
                for at in range(0, len(mine), 500):
                    part = mine.iloc[at : at + 500]
                    where = keys.c.model == str(model), keys.c.request_id.in_(set(part["request_id"]))
                    known = {(line.request_id, line.row): line for line in connection.execute(source.where(*where))}
                    for row in part.itertuples():
                        line = known.get((row.request_id, row.row))
                        count += line is not None and _differs(row, line)
        return count

    def add_shadow_scores(self, frame: pd.DataFrame) -> int:
        """Store what other versions said about the same rows; return how many were new.

        Columns: request_id, ts (of the prediction), model, version, role, score, decision; optional row (0), error.
        """
        rows = self._without_forgotten(normal(frame, SHADOWS))
        if rows.empty:
            return 0
        if self.postgres:
            self.ensure_partitions(rows)
        return self.insert(SHADOWS, rows)

    def add_labels(self, frame: pd.DataFrame, *, model: str | None = None) -> LabelReport:
        """Store late truth. Idempotent; the latest ``observed_at`` (then ``received_at``) wins, the others are history.

        Columns: request_id, label (0 or 1), observed_at, received_at; optional row (0), source, and model unless given.
        The same label said again later confirms it and leaves its first ``observed_at``, so that the measured delay is
        the time until the truth was known. Labels without a prediction are kept until it arrives.
        """
        rows = normal(frame.assign(model=model) if model is not None else frame, LABELS, confirmed_at="observed_at")
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
        with self.transaction(write=True) as connection:
            if self.postgres:  # two importers of one model take turns; SQLite has one writer anyway
                connection.execute(
                    sa.text("SELECT pg_advisory_xact_lock(1919050606, hashtext(:model))"), {"model": model}
                )
            rows, forgotten = self.not_erased(connection, rows)
            if rows.empty:
                return LabelReport(forgotten=forgotten)
            self.stage(connection, LABELS, rows)
            stage = sa.table("stage_labels", *(sa.column(c.name, c.type) for c in LABELS.columns))
            on = same(stage, LABELS, KEY)
            current = self.read(connection, sa.select(*LABELS.columns).select_from(sa.join(stage, LABELS, on)))
            matched = sa.select(sa.func.count()).select_from(sa.join(stage, self.keys, same(stage, self.keys, KEY)))
            unknown = len(rows) - int(connection.execute(matched).scalar() or 0)
            keep, history, counts = merge(rows, current)
            for table, changed in ((LABELS, keep), (LABEL_HISTORY, history)):
                if len(changed):
                    self.upsert(connection, table, changed)
        return LabelReport(**counts, unknown=unknown, forgotten=forgotten)

    def add_reviews(self, frame: pd.DataFrame, *, model: str) -> int:
        """Record rows that were chosen to be looked at; return how many were new.

        Columns: request_id, row, ts (of the prediction), probability, reason, at. A row that several draws chose keeps
        the largest of its probabilities, which is the one of being chosen by any of them (`core.review`).
        """
        rows = normal(frame.assign(model=model), REVIEWS)
        if rows.empty:
            return 0
        names = list(rows.columns)
        with self.transaction(write=True) as connection:
            rows, _ = self.not_erased(connection, rows)
            self.stage(connection, REVIEWS, rows)
            # keys in one order, so that two draws of the same rows wait for each other instead of deadlocking
            staged = sa.select(*self.staged(REVIEWS, names).columns).where(sa.true()).order_by(*map(sa.column, KEY))
            before = self._count(connection, REVIEWS, model)
            insert = self.insert_into(REVIEWS).from_select(names, staged)
            changes = {name: insert.excluded[name] for name in ("probability", "reason")}
            larger = insert.excluded.probability > REVIEWS.c.probability
            connection.execute(insert.on_conflict_do_update(index_elements=list(KEY), set_=changes, where=larger))
            return self._count(connection, REVIEWS, model) - before

    @staticmethod
    def _count(connection: sa.Connection, table: sa.Table, model: str) -> int:
        found = connection.execute(sa.select(sa.func.count()).select_from(table).where(table.c.model == model))
        return int(found.scalar() or 0)

    def reviews(self, model: str, start: Any, end: Any) -> pd.DataFrame:
        """Return the rows with start <= ts < end that were chosen to be looked at, those most likely to be of the rare
        class first.

        Columns: request_id, row, ts, version, score, decision, threshold, probability, reason, at, label (NaN = not
        looked at yet), label_observed_at.
        """
        r, p = REVIEWS, PREDICTIONS
        mine = [p.c[name] for name in ("request_id", "row", "ts", "version", "score", "decision", "threshold")]
        # ts as well: PostgreSQL then reads one partition per row
        joined, late = _with_labels(sa.join(r, p, sa.and_(same(r, p, KEY), r.c.ts == p.c.ts)))
        columns = [*mine, r.c.probability, r.c.reason, r.c.at, *late]
        query = sa.select(*columns).select_from(joined).where(*between(r, model, start, end, None))
        with self.transaction() as connection:
            frame = self.read(connection, query.order_by(p.c.score.desc(), p.c.request_id, p.c.row))
        return timed(frame, "ts", "at", "label_observed_at").astype({"label": "float64"})

    def not_erased(self, connection: sa.Connection, rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
        """Leave out labels of rows that were erased, unless the id was used again since;
        return the others and a count.
        """
        gone = (erasure.matches(connection, rows, None, ("request_id", "row")) >= 0).any(axis=1)
        if gone.any():
            keys = [self.keys.c[name] for name in KEY]
            for at in rows.index[gone.to_numpy()]:
                values = [rows.at[at, "model"], rows.at[at, "request_id"], int(cast("int", rows.at[at, "row"]))]
                mine = sa.select(sa.literal(1)).where(*(key == value for key, value in zip(keys, values, strict=True)))
                gone[at] = connection.execute(mine).first() is None
        return rows[~gone.to_numpy()], int(gone.sum())

    def window(
        self,
        model: str,
        start: Any,
        end: Any,
        *,
        version: str | None = None,
        features: bool = False,
        labels_until: Any = None,
        reviews: bool = False,
    ) -> pd.DataFrame:
        """Return the predictions with start <= ts < end, oldest first, joined with their labels.

        Columns: request_id, row, ts, version, operating_point, score, decision, threshold, weight, propensity, entity,
        label (float; NaN = none yet), label_observed_at (NaT), and features (JSON text) when asked for.
        ``labels_until``: the labels as they were known at that time, by their ``observed_at``. (Of a label that was
        said several times only the first and the last time are kept.)
        ``reviews``: also review (the probability with which the row was chosen to be looked at; NaN = it was not) and
        review_reason.
        """
        names = ["request_id", "row", "ts", "version", "operating_point", "score", "decision", "threshold"]
        names += ["weight", "propensity", "entity"] + (["features"] if features else [])
        chosen = between(PREDICTIONS, model, start, end, version)
        hidden = [LABELS.c.confirmed_at, LABELS.c.received_at] if labels_until is not None else []
        joined, late = _with_labels(PREDICTIONS, reviews=reviews)
        query = sa.select(*(PREDICTIONS.c[name] for name in names), *late, *hidden).select_from(joined).where(*chosen)
        with self.transaction() as connection:
            frame = self.read(connection, query.order_by(PREDICTIONS.c.ts))
            if labels_until is not None:
                past = sa.join(PREDICTIONS, LABEL_HISTORY, same(PREDICTIONS, LABEL_HISTORY, KEY))
                history = self.read(connection, sa.select(*LABEL_HISTORY.columns).select_from(past).where(*chosen))
                frame = as_of(frame, history, to_micros(labels_until))
        return timed(frame, "ts", "label_observed_at").astype({"label": "float64"})

    def first(self, model: str, version: str, *, since: Any = None) -> datetime | None:
        """Return the time of the first prediction of a version, at or after ``since``; None without one."""
        p = PREDICTIONS.c
        where = [p.model == model, p.version == str(version)]
        where += [p.ts >= to_micros(since)] if since is not None else []
        with self.transaction() as connection:
            return to_moment(connection.execute(sa.select(sa.func.min(p.ts)).where(*where)).scalar())

    def positives(self, model: str, start: Any, end: Any, *, labels_until: Any, reviews: bool = False) -> int:
        """Count the predictions with start < ts <= end whose label, observed by ``labels_until``, is the rare class.

        reviews : only those that were chosen to be looked at
        """
        p, label = PREDICTIONS.c, LABELS.c
        where = [p.model == model, p.ts > to_micros(start), p.ts <= to_micros(end), label.label == 1]
        where += [label.observed_at <= to_micros(labels_until)]
        where += [REVIEWS.c.probability.is_not(None)] if reviews else []
        joined, _ = _with_labels(PREDICTIONS, reviews=reviews)
        with self.transaction() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(joined).where(*where)).scalar() or 0)

    def shadows(
        self,
        model: str,
        start: Any,
        end: Any,
        version: str | None = None,
        *,
        role: str | None = None,
        reviews: bool = False,
    ) -> pd.DataFrame:
        """Return shadow scores with start <= ts < end beside what the champion said about the same row, oldest first.

        Columns: request_id, row, ts, version, role, score (NaN), decision (NaN), error, champion_version,
        champion_score, champion_decision, weight, propensity, label (NaN), label_observed_at (NaT); with ``reviews``
        as in ``window``.
        """
        s, p = SHADOWS, PREDICTIONS
        mine = [s.c[name] for name in ("request_id", "row", "ts", "version", "role", "score", "decision", "error")]
        theirs = [p.c[name].label(f"champion_{name}") for name in ("version", "score", "decision")]
        # ts as well: both carry the time of the request, and PostgreSQL then reads one partition per row
        joined, late = _with_labels(sa.join(s, p, sa.and_(same(s, p, KEY), s.c.ts == p.c.ts)), reviews=reviews)
        where = [*between(s, model, start, end, version), p.c.model == model, p.c.ts >= to_micros(start)]
        where += [p.c.ts < to_micros(end)] + ([s.c.role == role] if role is not None else [])
        query = sa.select(*mine, *theirs, p.c.weight, p.c.propensity, *late).select_from(joined).where(*where)
        with self.transaction() as connection:
            frame = self.read(connection, query.order_by(s.c.ts))
        return timed(frame, "ts", "label_observed_at").astype(dict.fromkeys(("label", "score", "decision"), "float64"))

    def tally(self, model: str, start: Any, end: Any, *, due_before: Any, reviews: bool = False) -> Tally:
        """Count the predictions with start <= ts < end and the labels that are owed for them.

        due_before : rows of before it should have their label, where one can come at all (propensity above 0)
        reviews : only rows that were chosen to be looked at owe one
        """
        p, late = PREDICTIONS.c, to_micros(due_before)
        due = sa.and_(p.ts < late, p.propensity > 0)
        joined, _ = _with_labels(PREDICTIONS, reviews=reviews)
        if reviews:
            due = sa.and_(due, REVIEWS.c.probability.is_not(None))
        owed = sa.and_(due, LABELS.c.label.is_(None))
        numbers = (
            sa.func.count(),
            sa.func.sum(p.weight - 1),
            sa.func.sum(sa.case((due, 1), else_=0)),
            sa.func.sum(sa.case((owed, 1), else_=0)),
            sa.func.min(sa.case((owed, p.ts))),
        )
        query = sa.select(*numbers).select_from(joined).where(*between(PREDICTIONS, model, start, end, None))
        with self.transaction() as connection:
            rows, more, due_rows, owed_rows, since = connection.execute(query).one()
        return Tally(int(rows or 0), round(more or 0), int(due_rows or 0), int(owed_rows or 0), to_moment(since))

    def counts(self, model: str) -> dict[str, Any]:
        """Return how many predictions, shadow scores, labels and superseded labels a model has, and its first and last
        prediction time (None without any)."""
        p = PREDICTIONS.c
        with self.transaction() as connection:
            number, first, last = connection.execute(
                sa.select(sa.func.count(), sa.func.min(p.ts), sa.func.max(p.ts)).where(p.model == model)
            ).one()
            others = {
                name: int(connection.execute(sa.select(sa.func.count()).where(table.c.model == model)).scalar() or 0)
                for name, table in (("shadows", SHADOWS), ("labels", LABELS), ("label_history", LABEL_HISTORY))
            }
        return {"predictions": int(number), **others, "first": to_moment(first), "last": to_moment(last)}

    def query(self, statement: str) -> pd.DataFrame:
        """Run a SELECT of the user's own, or read a whole table when ``statement`` is only a name; types as stored."""
        text = statement.strip()
        if text.replace("_", "").replace(".", "").isalnum():
            text = "SELECT * FROM " + ".".join(f'"{part}"' for part in text.split("."))  # noqa: S608
        with self.transaction() as connection:
            if self.postgres:
                connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            result = connection.execution_options(no_parameters=True).exec_driver_sql(text)
            return pd.DataFrame(result.all(), columns=list(result.keys()))

    def forget(
        self, model: str, *, request_id: str | None = None, entity: str | None = None, at: datetime | None = None
    ) -> Erased:
        """Erase everything about a request or an entity in all tables.

        With ``at`` the erasure also holds for rows up to that time that are still on their way (spool, retries), and
        for labels of the erased rows whenever they are imported again: salted digests of the ids are kept to refuse
        them. ``compact`` afterwards takes the erased rows out of the database's files.
        """
        if (request_id is None) == (entity is None):
            raise StoreError("forget needs exactly one of request_id and entity")
        kind, value = ("request_id", str(request_id)) if request_id is not None else ("entity", str(entity))
        with self.transaction(write=True) as connection:
            p = PREDICTIONS.c
            chosen: list[tuple[str, int | None]] = [(value, None)]
            if kind == "entity":
                mine = sa.select(p.request_id, p.row).where(p.model == model, p.entity == value)
                chosen = [(str(name), int(row)) for name, row in connection.execute(mine).all()]
            salt = erasure.salt_of(connection, model)
            if at is not None:
                names = [(kind, value)]
                names += [("row", erasure.row_name(*each)) for each in chosen] if kind == "entity" else []
                erasure.remember(connection, model, names, to_micros(at), salt)
            rows, parts = self._erase(connection, model, chosen)
        return Erased(kind, erasure.digest(salt, value), rows, parts)

    def _erase(
        self, connection: sa.Connection, model: str, chosen: Sequence[tuple[str, int | None]]
    ) -> tuple[dict[str, int], tuple[str, ...]]:
        """Delete (request_id, row) everywhere; row None: all rows of the request.

        Returns the rows by table, and the tables and partitions of PostgreSQL they were in.
        """
        erased: dict[str, int] = {}
        parts: set[str] = set()
        place: sa.ColumnElement[str] = sa.literal_column("tableoid::regclass::text")
        for table in (
            PREDICTIONS,
            SHADOWS,
            LABELS,
            LABEL_HISTORY,
            REVIEWS,
            *((PREDICTION_KEYS,) if self.postgres else ()),
        ):
            count = 0
            for request_id, row in chosen:
                where = [table.c.model == model, table.c.request_id == request_id]
                where += [table.c.row == row] if row is not None else []
                if self.postgres:
                    found = connection.execute(sa.delete(table).where(*where).returning(place)).scalars().all()
                    count, parts = count + len(found), parts.union(found)
                else:
                    count += int(connection.execute(sa.delete(table).where(*where)).rowcount)
            if table is not PREDICTION_KEYS:
                erased[table.name] = count
        return erased, tuple(sorted(parts))

    def _without_forgotten(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Drop rows of requests and entities that were erased after the row was made."""
        if rows.empty:
            return rows
        with self.transaction() as connection:
            gone = erasure.matches(connection, rows, int(rows["ts"].min()), ("request_id", "entity", "row"))
        refused = gone.ge(rows["ts"], axis=0)
        by_entity = rows[refused["entity"].to_numpy()] if "entity" in rows.columns else rows.iloc[:0]
        if len(by_entity):
            self._forget_rows(by_entity, gone["entity"])
        return rows[~refused.any(axis=1).to_numpy()]

    def _forget_rows(self, rows: pd.DataFrame, at: pd.Series[Any]) -> None:
        """Let rows that arrive after their entity was erased take their labels and shadow scores with them."""
        with self.transaction(write=True) as connection:
            for model, part in rows.groupby("model"):
                chosen = list(zip(part["request_id"], part["row"].astype(int), strict=True))
                salt = erasure.salt_of(connection, str(model))
                names = [("row", erasure.row_name(*each)) for each in chosen]
                erasure.remember(connection, str(model), names, int(at[part.index].max()), salt)
                self._erase(connection, str(model), [(str(name), row) for name, row in chosen])

    def forgotten(self, rows: pd.DataFrame) -> Any:
        """Return (n,) which rows (model, request_id, row, ts, entity) belong to what was erased."""
        with self.transaction() as connection:
            gone = erasure.matches(connection, rows, None, ("request_id", "entity", "row"))
        return gone.ge(rows["ts"], axis=0).any(axis=1).to_numpy()

    def prune(self, model: str, before: Any) -> dict[str, int]:
        """Delete predictions older than ``before`` with their shadow scores and labels; return the rows deleted by
        table.

        Labels that never found a prediction go when they were received before that time. The ledger stays, and so does
        what was forgotten. PostgreSQL drops whole days that no other model uses.
        """
        limit, keys = to_micros(before), self.keys
        deleted: dict[str, int] = {}
        with self.transaction(write=True) as connection:
            old = sa.select(sa.literal(1)).where(keys.c.model == model, keys.c.ts < limit)
            for table in (LABELS, LABEL_HISTORY):
                gone = (
                    old.where(keys.c.request_id == table.c.request_id, keys.c.row == table.c.row)
                    .correlate(table)
                    .exists()
                )
                there = sa.select(sa.literal(1)).where(same(keys, table, KEY)).correlate(table).exists()
                orphan = sa.and_(table.c.received_at < limit, ~there)
                chosen = sa.delete(table).where(table.c.model == model, sa.or_(gone, orphan))
                deleted[table.name] = int(connection.execute(chosen).rowcount)
            dropped = self.drop_partitions(connection, model, limit) if self.postgres else {}
            for table in (SHADOWS, REVIEWS, *((PREDICTION_KEYS,) if self.postgres else ()), PREDICTIONS):
                chosen = sa.delete(table).where(table.c.model == model, table.c.ts < limit)
                deleted[table.name] = int(connection.execute(chosen).rowcount) + dropped.get(table.name, 0)
        deleted.pop(PREDICTION_KEYS.name, None)
        return deleted

    def append(
        self, model: str, key: str, kind: str, actor: str, reason: str, payload: Mapping[str, Any], at: Any
    ) -> LedgerEntry:
        """Write one line of the ledger.

        Raises AlreadyDoneError when this (model, key) is there: the database refuses it.
        """
        values = {"model": model, "key": key, "kind": kind, "actor": actor, "reason": reason, "at": to_micros(at)}
        text = dumps(payload)
        try:
            with self.transaction(write=True) as connection:
                number = ledger.write(connection, {**values, "payload": text})
        except StoreRefusedError as error:
            if not isinstance(error.__context__, sa.exc.IntegrityError):
                raise
            raise AlreadyDoneError(
                f"'{key}' of model '{model}' is in the ledger already; `rareclass history` shows it"
            ) from None
        return LedgerEntry(number, model, key, kind, actor, reason, json.loads(text), to_moment(values["at"]))  # type: ignore[arg-type]

    def entries(self, model: str, kind: str | None = None) -> list[LedgerEntry]:
        """Return the ledger of a model, oldest first."""
        columns = [column for column in LEDGER.columns if column.name not in ("previous", "hash")]
        query = sa.select(*columns).where(LEDGER.c.model == model).order_by(LEDGER.c.id)
        if kind is not None:
            query = query.where(LEDGER.c.kind == kind)
        with self.transaction() as connection:
            lines = connection.execute(query).mappings().all()
        return [
            LedgerEntry(**{**line, "payload": json.loads(line["payload"]), "at": to_moment(line["at"])})
            for line in lines
        ]

    def verify_ledger(self, model: str, expect: str | None = None) -> ledger.Chain:
        """Walk along the chain of a model's ledger; ``expect``: a hash that it had earlier."""
        query = sa.select(LEDGER).where(LEDGER.c.model == model).order_by(LEDGER.c.id)
        with self.transaction() as connection:
            lines = cast("Sequence[Mapping[str, Any]]", connection.execute(query).mappings().all())
            return ledger.verify(lines, expect)


def _differs(row: Any, stored: Any) -> bool:
    """True when two predictions of one id are of different rows."""
    if isinstance(row.features, str) and isinstance(stored.features, str):
        return row.features != stored.features and json.loads(row.features) != json.loads(stored.features)
    return str(row.version) == str(stored.version) and abs(row.score - stored.score) > 1e-9
