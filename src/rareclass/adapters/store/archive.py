"""A model's rows as a stream of frames, and back: the part of backup and restore that knows the tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from rareclass.adapters.store import ledger
from rareclass.adapters.store.frames import normal
from rareclass.adapters.store.tables import (
    DAY,
    FORGOTTEN,
    LABEL_HISTORY,
    LABELS,
    LEDGER,
    PREDICTIONS,
    REVIEWS,
    SHADOWS,
)

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.adapters.store import Store

ORDER = (FORGOTTEN, LEDGER, PREDICTIONS, SHADOWS, LABELS, LABEL_HISTORY, REVIEWS)
"""Who was forgotten comes first: a restore of older rows does not bring them back."""
NAMES = tuple(table.name for table in ORDER)


def columns(table: str) -> dict[str, str]:
    """Return column -> type of Arrow of a table's rows in an archive."""
    found = next(each for each in ORDER if each.name == table)
    return {column.name: _kind(column.type) for column in found.columns if column.name != "id"}


def _kind(kind: Any) -> str:
    return "string" if isinstance(kind, sa.Text) else "float64" if isinstance(kind, sa.Float) else "int64"


@contextmanager
def snapshot(store: Store, model: str) -> Iterator[Mapping[str, Iterator[pd.DataFrame]]]:
    """Yield table -> its rows in pieces, as of one moment, in the columns and units of the database."""
    with store.transaction() as connection:
        if store.postgres:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield {table.name: _pieces(store, connection, table, model) for table in ORDER}


def _pieces(store: Store, connection: sa.Connection, table: sa.Table, model: str) -> Iterator[pd.DataFrame]:
    """Tables with a time come day by day, so that a year of features need not fit into memory;
    the others as a whole.
    """
    whole = sa.select(*(column for column in table.columns if column.name != "id")).where(table.c.model == model)
    if table is LEDGER:
        whole = whole.order_by(table.c.id)
    if "ts" not in table.c:
        yield store.read(connection, whole)
        return
    span = sa.select(sa.func.min(table.c.ts), sa.func.max(table.c.ts)).where(table.c.model == model)
    first, last = connection.execute(span).one()
    if first is None:
        yield store.read(connection, whole)
        return
    for day in range(int(first) // DAY, int(last) // DAY + 1):
        found = store.read(connection, whole.where(table.c.ts >= day * DAY, table.c.ts < (day + 1) * DAY))
        if len(found) or day == int(first) // DAY:
            yield found


def restore(store: Store, table: str, frame: pd.DataFrame, erased: set[str]) -> int:
    """Insert rows that are not there; return how many were new. What is there stays as it is.

    erased : ids of requests that were forgotten since, filled by predictions and left out of what comes after them
    """
    if "request_id" in frame.columns:
        frame = frame[~frame["request_id"].isin(erased)]
    if frame.empty:
        return 0
    if table == PREDICTIONS.name:
        kept = store._without_forgotten(normal(frame, PREDICTIONS))
        erased.update(set(frame["request_id"]) - set(kept["request_id"]))
        return store.add_predictions(kept)
    if table == SHADOWS.name:
        return store.add_shadow_scores(frame)
    target = next(each for each in ORDER if each.name == table)
    if table in (LABELS.name, LABEL_HISTORY.name, REVIEWS.name):
        rows = normal(frame, target)
        with store.transaction() as connection:
            rows, _ = store.not_erased(connection, rows)
        return store.insert(target, rows) if len(rows) else 0
    if table == LEDGER.name and "hash" not in frame.columns:  # a backup from before the chain
        return _chained(store, frame)
    statement = store.insert_into(target).on_conflict_do_nothing().inline()
    lines: list[dict[str, Any]] = [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]
    with store.transaction(write=True) as connection:
        return sum(connection.execute(statement, _plain(line)).rowcount for line in lines)


def _chained(store: Store, frame: pd.DataFrame) -> int:
    new = 0
    for line in frame.to_dict("records"):
        row = _plain(line)
        there = sa.select(LEDGER.c.id).where(LEDGER.c.model == row["model"], LEDGER.c.key == row["key"])
        with store.transaction(write=True) as connection:
            if connection.execute(there).first() is None:
                ledger.write(connection, row)
                new += 1
    return new


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    """NumPy's numbers as Python's, which drivers understand."""
    return {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
