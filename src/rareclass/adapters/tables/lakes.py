"""Tables of a data lake, Delta Lake and Iceberg, as of one version of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa

from rareclass.adapters.tables.sources import Batches, ScanDataset, Source, conformed, scan_batches
from rareclass.errors import ConfigError, DataError, need_package
from rareclass.masking import masked


def delta(path: str) -> Source:
    """Open ``delta://PATH`` (a folder, or ``delta://s3://...``), its newest version or that of ``?version=N``.

    Raises DataError with one line when there is no such table or version, or its files need what cannot be read.
    """
    need_package("deltalake", "delta", f"data.path '{masked(path)}'")
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, DeltaProtocolError

    place, version = _of_version(path, "version")
    try:
        data = DeltaTable(place, version=version).to_pyarrow_dataset()
        columns = dict(zip(data.schema.names, data.schema.types, strict=True))
        return Source(masked(path), columns, data.count_rows(), ScanDataset(data))
    except (DeltaError, DeltaProtocolError, OSError, pa.ArrowException) as error:
        raise _unreadable(path, error, "a Delta table, like delta://FOLDER or delta://FOLDER?version=3") from None


def iceberg(path: str) -> Source:
    """Open ``iceberg://CATALOG/NAMESPACE.TABLE`` (a catalog that PyIceberg is configured for) or ``iceberg://FILE`` of
    a table's metadata, its current snapshot or that of ``?snapshot=ID``.

    Raises DataError with one line when there is no such catalog, table or snapshot.
    """
    need_package("pyiceberg", "iceberg", f"data.path '{masked(path)}'")
    from pyiceberg.catalog import load_catalog
    from pyiceberg.io.pyarrow import schema_to_pyarrow
    from pyiceberg.table import StaticTable, Table

    place, snapshot = _of_version(path, "snapshot")
    table: Table
    try:
        if place.endswith(".metadata.json"):
            table = StaticTable.from_metadata(place)
        else:
            catalog, _, name = place.partition("/")
            table = load_catalog(catalog).load_table(name.replace("/", "."))
        scan = table.scan(snapshot_id=snapshot)
        schema = schema_to_pyarrow(scan.projection(), include_field_ids=False)
    except Exception as error:  # PyIceberg raises ValueError, KeyError, its own and those of its file systems
        near = "an Iceberg table, like iceberg://CATALOG/NAMESPACE.TABLE or iceberg:///PATH/TO/metadata/N.metadata.json"
        raise _unreadable(path, error, near) from None
    columns = dict(zip(schema.names, schema.types, strict=True))

    def batches(names: Sequence[str]) -> Batches:
        # a table of no columns cannot be scanned, and a filter may need none of what is kept
        wanted = table.scan(snapshot_id=snapshot, selected_fields=tuple(names))
        for batch in wanted.to_arrow_batch_reader():
            if batch.num_rows:
                yield conformed(batch, names, columns)

    return Source(masked(path), columns, None, scan_batches(batches, columns))


def _of_version(path: str, name: str) -> tuple[str, int | None]:
    """Return the place behind the scheme, and the version that is asked for by ``?NAME=N``."""
    place, _, question = path.partition("://")[2].partition("?")
    asked = dict(parse_qsl(question, keep_blank_values=True))
    text = asked.pop(name, None)
    if asked or (text is not None and not text.isdecimal()):
        raise ConfigError(f"data.path '{masked(path)}': only ?{name}=N, a number, may stand behind the table")
    return place, None if text is None else int(text)


def _unreadable(path: str, error: Any, near: str) -> DataError:
    reason = " ".join(str(error).split())[:250]
    return DataError(f"'{masked(path)}' cannot be read ({type(error).__name__}: {reason}). Set data.path to {near}")
