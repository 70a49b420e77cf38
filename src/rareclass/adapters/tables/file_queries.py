"""SQL over files, by DuckDB: the rows of ``data.path`` are its table ``data``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from rareclass.adapters.tables.sources import BATCH, Batches, Source, projected, select
from rareclass.errors import DataError, need_package
from rareclass.masking import masked

TABLE = "data"


def queried(source: Source, query: str) -> Source:
    """Return what a SELECT says of a source, whose rows it finds in the table ``data``, read as they are without a
    query.

    The query sees nothing else: no file, no network, no extension. Raises MissingExtraError, DataError.
    """
    need_package("duckdb", "duckdb", "data.query on files")
    body = query.strip().rstrip(";")
    # no row is read for the names: an empty table of the same types stands for the rows
    empty = pa.schema(list(source.columns.items())).empty_table()
    with _translate_errors(source, query), _connection() as connection:
        connection.register(TABLE, empty)
        schema = connection.sql(f"SELECT * FROM ({body}) AS source").to_arrow_table().schema  # noqa: S608

    def scan(names: Sequence[str], groups: Any, extra: Mapping[str, Any]) -> Batches:
        rows = pa.RecordBatchReader.from_batches(empty.schema, source.scan(list(source.columns), [], {}))
        with _translate_errors(source, query), _connection() as connection:
            connection.register(TABLE, rows)
            reader = connection.sql(select(names, body, groups)).to_arrow_reader(BATCH)
            yield from projected(reader, names, extra)

    return Source(source.label, dict(zip(schema.names, schema.types, strict=True)), None, scan, source.notes)


@contextmanager
def _connection() -> Iterator[Any]:
    import duckdb

    # one thread: the groups of an aggregation come in the same order each time, and so does the model
    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1,
        "enable_external_access": False,
        "autoinstall_known_extensions": False,
    }
    connection = duckdb.connect(":memory:", config=settings)
    try:
        connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        connection.close()


@contextmanager
def _translate_errors(source: Source, query: str) -> Iterator[None]:
    import duckdb

    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:250]
        near = f"The rows are the table '{TABLE}', like SELECT * FROM {TABLE}"  # noqa: S608 (no statement)
        raise DataError(f"data.query on '{masked(source.label)}' was refused: {reason}. {near}") from None
