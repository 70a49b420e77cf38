"""Open what ``data.path`` names: the table of sources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from rareclass.adapters.tables.csv_files import Format
from rareclass.adapters.tables.file_queries import queried
from rareclass.adapters.tables.lakes import delta, iceberg
from rareclass.adapters.tables.sources import DRIVERS, Source, database, files, scheme, unreadable

LAKES: Mapping[str, Callable[[str], Source]] = {"delta": delta, "iceberg": iceberg}
"""Scheme -> what opens a table of a data lake."""


def open_source(path: str, query: str | None = None, *, text: Sequence[str] = (), form: Format | None = None) -> Source:
    """Open what ``data.path`` names. ``text`` are columns of a CSV that stay text (ids, categories, the target).

    query : SELECT statement of a database, or over the table ``data`` of what else there is. Raises DataError with one
    line when it is not there or cannot be read.
    """
    kind = scheme(path)
    try:
        if kind in DRIVERS:
            return database(path, query)
        source = LAKES[kind](path) if kind in LAKES else files(path, tuple(text), form or Format())
        return source if query is None else queried(source, query)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from None
