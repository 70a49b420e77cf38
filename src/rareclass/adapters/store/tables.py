"""The tables; adapters/migrations makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from rareclass.adapters.store.frames import to_micros

HEAD = "0004"  # newest revision in migrations/versions; a test compares the two
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
REVIEWS = sa.Table(
    "reviews",
    METADATA,
    *_key(),
    sa.Column("ts", sa.BigInteger),
    sa.Column("probability", sa.Float),
    sa.Column("reason", sa.Text),
    sa.Column("at", sa.BigInteger),
)
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
    sa.Column("previous", sa.Text),
    sa.Column("hash", sa.Text),
)
FORGOTTEN = sa.Table(
    "forgotten",
    METADATA,
    sa.Column("model", sa.Text),
    sa.Column("kind", sa.Text),
    sa.Column("digest", sa.Text),
    sa.Column("at", sa.BigInteger),
    sa.Column("salt", sa.Text),
)
KEY = ("model", "request_id", "row")
UNIQUE = {
    PREDICTIONS: KEY,
    PREDICTION_KEYS: KEY,
    SHADOWS: ("model", "request_id", "row", "version"),
    LABELS: KEY,
    LABEL_HISTORY: (*KEY, "observed_at", "label"),
    REVIEWS: KEY,
}


def between(table: sa.Table, model: str, start: Any, end: Any, version: str | None) -> list[sa.ColumnElement[bool]]:
    """Return the conditions for a model's rows with ``start <= ts < end``, of one version where it is named."""
    where = [table.c.model == model, table.c.ts >= to_micros(start), table.c.ts < to_micros(end)]
    return where + ([table.c.version == str(version)] if version is not None else [])


def same(left: Any, right: Any, names: Sequence[str]) -> sa.ColumnElement[bool]:
    """Return the condition that two tables agree in these columns."""
    return sa.and_(*(left.c[name] == right.c[name] for name in names))
