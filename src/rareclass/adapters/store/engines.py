"""Connections, schema and errors of the two dialects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from rareclass.adapters.store.frames import one_line
from rareclass.adapters.store.tables import VERSION_TABLE
from rareclass.errors import StoreError, StoreRefusedError
from rareclass.masking import quoted


def sqlalchemy_url(url: str) -> sa.URL:
    """Parse ``store.url``; postgres:// and postgresql:// mean the psycopg driver. Raises StoreError."""
    try:
        parsed = sa.make_url(quoted(url))
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


def sqlite_engine(url: sa.URL) -> sa.Engine:
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
            "secure_delete=ON",
            "cache_size=-65536",
            "temp_store=MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        write = connection.get_execution_options().get("rareclass_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def postgres_engine(url: sa.URL) -> sa.Engine:
    """Return an engine that tests a pooled connection before it is used and gives up connecting after 5 s."""
    return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 5})


def upgrade(connection: sa.Connection, url: str) -> None:
    """Run the Alembic migrations inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parents[1] / "migrations"))
    settings.attributes["connection"] = connection
    try:
        command.upgrade(settings, "head")
    except CommandError as error:
        found = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
        raise StoreError(
            f"store {url} is at revision {found}, which this rareclass does not know ({one_line(error)}). "
            "Install the newer release"
        ) from None


def explain(error: Exception, url: str, refused: tuple[type[Exception], ...]) -> StoreError:
    """One line: cannot reach (try again) or refused (never will be accepted)."""
    cause = getattr(error, "orig", None) or error
    text = one_line(cause)
    if "no such table" in text or "UndefinedTable" in type(cause).__name__:
        return StoreError(f"store {url} has no tables yet: {text.partition(' LINE')[0]}. Store.migrate() creates them")
    if isinstance(cause, refused):
        return StoreRefusedError(f"store {url} refused: {text}")
    return StoreError(f"store {url} cannot be reached: {text}. Start the database, or set store.url")


def driver(connection: sa.Connection) -> Any:
    """Return the driver's own connection."""
    return connection.connection.driver_connection
