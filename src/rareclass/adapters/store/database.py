"""What every table needs: connections, transactions, bulk writes, fast reads, day partitions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from rareclass.adapters.store.engines import driver, explain, postgres_engine, sqlalchemy_url, sqlite_engine, upgrade
from rareclass.adapters.store.frames import array, copied, to_csv, tuples
from rareclass.adapters.store.tables import (
    DAY,
    HEAD,
    PREDICTION_KEYS,
    PREDICTIONS,
    SHADOWS,
    UNIQUE,
    VERSION_TABLE,
)
from rareclass.errors import StoreError
from rareclass.masking import masked


def _suffix(day: int) -> str:
    """Name of the day's partitions behind the name of their table."""
    return datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y%m%d")


class Database:
    """One database: transactions, bulk writes and reads. Safe to use from several threads and processes at once."""

    def __init__(self, url: str) -> None:
        self._url = sqlalchemy_url(url)
        self.postgres = self._url.get_backend_name() == "postgresql"
        self._engine = postgres_engine(self._url) if self.postgres else sqlite_engine(self._url)
        self.keys = PREDICTION_KEYS if self.postgres else PREDICTIONS
        dbapi: Any = self._engine.dialect.loaded_dbapi
        self._driver_error: type[Exception] = dbapi.Error
        self._refused: tuple[type[Exception], ...] = (dbapi.IntegrityError, dbapi.DataError)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL with its password masked."""
        return masked(self._url.render_as_string(hide_password=True))

    def close(self) -> None:
        """Give the connections back; the store can be used again afterwards."""
        self._engine.dispose()

    def ping(self) -> None:
        """Raise StoreError unless the database answers."""
        with self.transaction() as connection:
            connection.execute(sa.text("SELECT 1"))

    def migrate(self) -> None:
        """Bring the schema to this version of the package; one query when it is there already."""
        if self._revision() == HEAD:
            return
        with self.transaction(write=True) as connection:
            if self.postgres:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(1919050604)"))
            if self._revision(connection) != HEAD:  # another process may have been faster
                upgrade(connection, self.url)

    def _revision(self, connection: sa.Connection | None = None) -> str | None:
        if connection is None:
            with self.transaction() as fresh:
                return self._revision(fresh)
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608

    def ensure_partitions(self, rows: pd.DataFrame) -> None:
        """Make the day partitions that rows need. ATTACH, unlike CREATE ... PARTITION OF, does not wait for readers."""
        days = sorted(set((rows["ts"] // DAY).tolist()))
        wanted = [
            (parent, day, f"{parent}_{_suffix(day)}") for parent in (PREDICTIONS.name, SHADOWS.name) for day in days
        ]
        # pg_class itself: to_regclass may answer from a cache that is older than the lock
        there = sa.text(
            "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
            " AND relname = ANY(CAST(:names AS text[]))"
        )
        names = {"names": [name for _, _, name in wanted]}
        with self.transaction() as connection:  # asked each time: another process may have pruned
            if len(set(connection.execute(there, names).scalars())) == len(wanted):
                return
        with self.transaction(write=True) as connection:
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(1919050605)"))
            found = set(connection.execute(there, names).scalars())
            for parent, day, name in wanted:
                if name not in found:
                    bounds = f"FROM ({day * DAY}) TO ({(day + 1) * DAY})"
                    connection.execute(sa.text(f"CREATE TABLE {name} (LIKE {parent} INCLUDING ALL)"))
                    connection.execute(sa.text(f"ALTER TABLE {parent} ATTACH PARTITION {name} FOR VALUES {bounds}"))

    def drop_partitions(self, connection: sa.Connection, model: str, limit: int) -> dict[str, int]:
        """Drop day partitions wholly before ``limit`` that hold nothing of another model;
        return rows dropped by table.
        """
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(1919050605)"))
        listing = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass(:parent)"
        last, dropped = _suffix(limit // DAY), {}
        for parent in (SHADOWS.name, PREDICTIONS.name):
            dropped[parent] = 0
            for (name,) in connection.execute(sa.text(listing), {"parent": parent}).all():
                if name.rpartition("_")[2] >= last:
                    continue
                others = sa.text(f"SELECT 1 FROM {name} WHERE model <> :model LIMIT 1")  # noqa: S608
                if connection.execute(others, {"model": model}).first() is None:
                    dropped[parent] += int(connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar() or 0)  # noqa: S608
                    connection.execute(sa.text(f"DROP TABLE {name}"))
        return dropped

    def compact(self, parts: Sequence[str] = ()) -> None:
        """Take deleted rows out of the files of the database. Raises StoreError when another process holds it too long.

        SQLite: the file is written anew and its write-ahead log emptied. PostgreSQL: the tables and partitions
        ``parts`` are rewritten; the server's own log keeps old pages until it is recycled.
        """
        try:
            with self._engine.connect() as pooled:
                connection = driver(pooled)
                if self.postgres:
                    self._rewrite(connection, parts)
                else:
                    connection.execute("PRAGMA temp_store=FILE")
                    connection.execute("VACUUM")
                    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                    connection.execute("PRAGMA temp_store=MEMORY")
                    if busy:
                        raise StoreError(
                            f"store {self.url} is read by another process for long: "
                            "old pages stay in its log until then. Run `rareclass retention` once it has ended"
                        )
        except (sa.exc.SQLAlchemyError, self._driver_error, OSError) as error:
            raise explain(error, self.url, self._refused) from error

    def _rewrite(self, connection: Any, parts: Sequence[str]) -> None:
        connection.rollback()
        connection.autocommit = True
        try:
            connection.execute("SET lock_timeout = '60s'")
            for name in parts:
                connection.execute(f"VACUUM (FULL) {name}")
        finally:
            connection.execute("RESET lock_timeout")
            connection.autocommit = False

    def insert(self, table: sa.Table, rows: pd.DataFrame) -> int:
        """Insert the rows whose key is not there; return how many were new."""
        names = list(rows.columns)
        with self.transaction(write=True) as connection:
            if self.postgres:
                self.stage(connection, table, rows)
                # keys in one order, so that two processes with the same rows wait for each other instead of deadlocking
                staged = sa.select(*self.staged(table, names).columns).order_by(*map(sa.column, UNIQUE[table]))
                statement = self.insert_into(table).from_select(names, staged).on_conflict_do_nothing()
                return int(connection.execute(statement.inline()).rowcount)
            # one statement for all rows, given to the driver: SQLAlchemy would make a dictionary of every row
            compiled = self.insert_into(table).on_conflict_do_nothing().compile(connection, column_keys=names)
            cursor = driver(connection).cursor()
            cursor.executemany(str(compiled), tuples(rows[list(compiled.positiontup or ())]))
            return int(cursor.rowcount)

    def insert_into(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        """Return the dialect's INSERT, which knows ON CONFLICT."""
        return postgresql.insert(table) if self.postgres else sqlite.insert(table)

    def staged(self, table: sa.Table, names: Sequence[str]) -> sa.TableClause:
        """Return what ``stage`` put down in this transaction, to be selected from."""
        schema = None if self.postgres else "temp"
        return sa.table(f"stage_{table.name}", *map(sa.column, names), schema=schema)

    def stage(self, connection: sa.Connection, table: sa.Table, rows: pd.DataFrame) -> None:
        """Put rows into the temporary table ``stage_TABLE`` of this transaction."""
        stage, names = f"stage_{table.name}", ", ".join(f'"{name}"' for name in rows.columns)
        if self.postgres:
            kinds = ", ".join(f'"{c.name}" {c.type.compile(self._engine.dialect)}' for c in table.columns)
            connection.exec_driver_sql(f"CREATE TEMP TABLE IF NOT EXISTS {stage} ({kinds}) ON COMMIT DELETE ROWS")
            connection.exec_driver_sql(f"DELETE FROM {stage}")  # noqa: S608
            with (
                driver(connection).cursor() as cursor,
                cursor.copy(f"COPY {stage} ({names}) FROM STDIN WITH (FORMAT csv)") as copy,
            ):
                copy.write(to_csv(rows))
            return
        columns = ", ".join(f'"{c.name}"' for c in table.columns)
        connection.exec_driver_sql(f"CREATE TEMP TABLE IF NOT EXISTS {stage} ({columns})")
        connection.exec_driver_sql(f"DELETE FROM temp.{stage}")  # noqa: S608
        marks = ", ".join("?" * rows.shape[1])
        driver(connection).cursor().executemany(f"INSERT INTO temp.{stage} ({names}) VALUES ({marks})", tuples(rows))  # noqa: S608

    def upsert(self, connection: sa.Connection, table: sa.Table, rows: pd.DataFrame) -> None:
        """Insert rows, and replace those whose key is there."""
        self.stage(connection, table, rows)
        names = list(rows.columns)
        # SQLite would read ON CONFLICT after a SELECT without WHERE as the ON of a join
        staged = sa.select(*self.staged(table, names).columns).where(sa.true())
        insert = self.insert_into(table).from_select(names, staged)
        changes = {name: insert.excluded[name] for name in names if name not in UNIQUE[table]}
        connection.execute(insert.on_conflict_do_update(index_elements=list(UNIQUE[table]), set_=changes))

    @contextmanager
    def transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction; every failure becomes a StoreError of one line with the password masked."""
        # an INSERT ... SELECT keeps no count of its rows unless it is asked to
        options: dict[str, Any] = {"rareclass_write": write, "preserve_rowcount": True}
        try:
            with self._engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except (sa.exc.SQLAlchemyError, self._driver_error, OSError) as error:
            raise explain(error, self.url, self._refused) from error

    def read(self, connection: sa.Connection, query: sa.Select[Any]) -> pd.DataFrame:
        """Run a SELECT into a frame: COPY into Arrow on PostgreSQL, whole columns on SQLite."""
        compiled = query.compile(dialect=self._engine.dialect, compile_kwargs={"render_postcompile": True})
        if self.postgres:
            return copied(driver(connection), str(compiled), dict(compiled.params), query)
        parameters = [compiled.params[name] for name in compiled.positiontup or ()]
        rows = driver(connection).cursor().execute(str(compiled), parameters).fetchall()
        columns = zip(*rows, strict=True) if rows else ((),) * len(query.selected_columns)
        chosen = list(query.selected_columns)
        return pd.DataFrame({c.key: array(values, c.type) for c, values in zip(chosen, columns, strict=True)})
