"""Write rows and frames, and read them back: Parquet (or CSV) that anybody can open, never half a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rareclass.adapters.tables.columns import format_of, frame_of
from rareclass.adapters.tables.csv_files import Format
from rareclass.adapters.tables.opening import open_source
from rareclass.adapters.tables.sources import BATCH, Source, _filesystem, conditions, missing_column
from rareclass.config import DataSettings
from rareclass.core.dataset import AnyArray, Rows, Schema, decode, encode
from rareclass.core.reading import plain_text
from rareclass.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rareclass.adapters.tables.ingest import Ingested

_META = b"rareclass_schema"
_ARRAYS = {
    "y": pa.int64(), "row_id": pa.uint64(), "time": pa.timestamp("us"), "entity": pa.uint64(),
    "amount": pa.float64(), "weight": pa.float64(), "fold": pa.int64(),
    "keep": pa.bool_(), "drawn": pa.float64(), "most": pa.float64(),
}  # fmt: skip


@contextmanager
def _replacing(path: str) -> Iterator[Any]:
    """Open a stream that becomes ``path`` only when all was written."""
    filesystem, inside = _filesystem(path)
    if not isinstance(filesystem, pafs.LocalFileSystem):
        with filesystem.open_output_stream(inside) as stream:  # object stores show an object when it is complete
            yield stream
        return
    target = Path(inside)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with pa.OSFile(str(temporary), "wb") as stream:
            yield stream
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- rows


def write_rows(path: str | Path, rows: Rows) -> None:
    """Write rows as Parquet: the decoded features, then ``__y``, ``__row_id``, ``__time`` ... ;
    the schema as metadata.
    """
    schema = _arrow_schema(rows)
    with _replacing(str(path)) as stream, pq.ParquetWriter(stream, schema) as writer:
        for start in range(0, max(1, len(rows)), BATCH):
            writer.write_table(_table(rows.take(slice(start, start + BATCH)), schema))


def _arrow_schema(rows: Rows) -> pa.Schema:
    text = pa.dictionary(pa.int32(), pa.string())
    fields = [pa.field(f.name, text if f.kind == "categorical" else pa.float32()) for f in rows.schema.features]
    fields += [pa.field(f"__{name}", kind) for name, kind in _ARRAYS.items() if getattr(rows, name) is not None]
    return pa.schema(fields, metadata={_META: json.dumps(rows.schema.to_json()).encode()})


def _table(rows: Rows, schema: pa.Schema) -> pa.Table:
    frame = decode(rows.x, rows.schema)
    arrays = [pa.Array.from_pandas(frame[feature.name]) for feature in rows.schema.features]
    arrays += [pa.array(getattr(rows, name)) for name in _ARRAYS if getattr(rows, name) is not None]
    return pa.Table.from_arrays(
        [array.cast(field.type) for array, field in zip(arrays, schema, strict=True)], schema=schema
    )


def read_rows(path: str | Path) -> Rows:
    """Read what ``write_rows`` wrote. Raises DataError when the file is something else."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read as rows: {' '.join(str(error).split())[:200]}") from None
    with file:
        meta = (file.schema_arrow.metadata or {}).get(_META)
        if meta is None:
            raise DataError(
                f"'{path}' was not written by rareclass: its schema is missing. Pass data through ingest first"
            )
        schema = Schema.from_json(json.loads(meta))
        count, present = file.metadata.num_rows, [name for name in _ARRAYS if f"__{name}" in file.schema_arrow.names]
        x = np.empty((count, len(schema.features)), dtype=np.float32)
        arrays = {name: np.empty(count, dtype=_dtype(name)) for name in present}
        start = 0
        for batch in file.iter_batches(BATCH):
            end = start + batch.num_rows
            x[start:end] = encode(batch.select(schema.names).to_pandas(), schema)
            for name, array in arrays.items():
                array[start:end] = batch.column(f"__{name}").to_numpy(zero_copy_only=False)
            start = end
    return Rows(schema=schema, x=x, **arrays)


def _dtype(name: str) -> Any:
    return "datetime64[us]" if name == "time" else _ARRAYS[name].to_pandas_dtype()


def export(ingested: Ingested, destination: str, *, format: str = "parquet") -> dict[str, str]:
    """Write train, validation and test to a folder or an object store; return the file of each.

    Of ``train`` only what `train.filter` and `train.majority_quantile` leave, which is what a fit sees; of a table that
    is larger than memory the weighted sample that a fit sees, while validation and test rows are all there, read as a
    stream.
    The features are decoded; ``target`` (0 or 1), ``row_id`` and what else the rows have stand behind them.
    Raises ConfigError for an unknown format.
    """
    if format not in ("parquet", "csv"):
        raise ConfigError(f"unknown format '{format}'. Set it to one of: csv, parquet")
    written = {}
    for name in ("train", "validation", "test"):
        path = f"{destination.rstrip('/')}/{name}.{format}"
        write_frames(path, map(_plain_frame, _parts(ingested, name)))
        written[name] = path
    return written


def _parts(ingested: Ingested, name: str) -> Iterator[Rows]:
    """Yield the rows of a part of the split, some at a time."""
    beyond = ingested.beyond
    if beyond is not None and name != "train":
        for piece in beyond.pieces([name]):
            yield replace(beyond.rows[name].take(piece.at), schema=ingested.schema, x=piece.x)
        return
    rows: Rows = getattr(ingested, name)
    rows = rows.learnable() if name == "train" else rows
    for at in range(0, max(1, len(rows)), BATCH):
        yield rows.take(slice(at, at + BATCH))


def _plain_frame(rows: Rows) -> pd.DataFrame:
    frame = decode(rows.x, rows.schema)
    taken = set(frame.columns)
    for name in ("y", "row_id", "time", "entity", "amount", "weight"):
        array: AnyArray | None = getattr(rows, name)
        if array is not None:
            label = "target" if name == "y" else name
            frame[f"__{label}" if label in taken else label] = array
    return frame


# -------------------------------------------------------------------------------------------------------- frames


def read_frames(
    path: str | Path,
    *,
    query: str | None = None,
    columns: Sequence[str] | None = None,
    filter: Sequence[Any] = (),
    text: Sequence[str] = (),
    schema: Schema | None = None,
    data: DataSettings | None = None,
) -> Iterator[pd.DataFrame]:
    """Yield the rows of any source in order, in frames of at most 65,536 rows.

    columns : only these · filter : conditions as in `data.filter` · text : columns of a CSV that are text whatever they
        look like
    schema : of the version that will read the rows: its categories, target, entity, id and time come as they are
        written
    data : how a configuration says that its source is written (encoding, signs of numbers, what means missing), and its
        roles
    Raises DataError when the source or a column is not there.
    """
    source = _opened(path, query, text, schema, data)
    wanted = list(columns) if columns is not None else list(source.columns)
    for name in wanted:
        if name not in source.columns:
            raise missing_column(name, source.columns, "columns")
    for batch in source.scan(wanted, conditions(filter, source.columns, "filter"), {}):
        yield frame_of(batch)


def _opened(
    path: str | Path, query: str | None, text: Sequence[str], schema: Schema | None, data: DataSettings | None
) -> Source:
    exact, form = [*text], Format()
    if data is not None:
        exact += [*data.categorical, *_given(data.id, data.entity, data.target)]
        form = format_of(data)
    if schema is not None:
        exact += schema.exact
        form = replace(form, encoding=form.encoding or schema.roles.encoding)
    return open_source(str(path), query, text=exact, form=form)


def _given(*names: str | None) -> list[str]:
    """Return the names that there are."""
    return [name for name in names if name is not None]


def read_frame(
    path: str | Path,
    *,
    query: str | None = None,
    columns: Sequence[str] | None = None,
    filter: Sequence[Any] = (),
    text: Sequence[str] = (),
    schema: Schema | None = None,
    data: DataSettings | None = None,
) -> pd.DataFrame:
    """Read all rows of any source as one frame; see ``read_frames``."""
    given: dict[str, Any] = {"query": query, "text": text, "schema": schema, "data": data}
    frames = list(read_frames(path, columns=columns, filter=filter, **given))
    if frames:
        return pd.concat(frames, ignore_index=True)
    source = _opened(path, *given.values())
    chosen = columns if columns is not None else list(source.columns)
    empty: pd.DataFrame = pa.schema([(name, source.columns[name]) for name in chosen]).empty_table().to_pandas()
    return empty


def write_frame(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a frame as Parquet, or as CSV where the name ends in .csv or .csv.gz."""
    write_frames(path, [frame])


def write_frames(path: str | Path, frames: Iterable[pd.DataFrame]) -> int:
    """Write frames of the same columns one after the other into one file; return the number of rows.

    The file appears when it is complete. Raises DataError when there is no frame at all or their columns differ.
    """
    name, count, writer, schema = str(path).lower(), 0, None, None
    packed = name.endswith(".csv.gz")
    with _replacing(str(path)) as plain:
        stream = pa.CompressedOutputStream(plain, "gzip") if packed else plain
        try:
            for frame in frames:
                table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False)
                given = table.schema
                if packed or name.endswith(".csv"):
                    table = _flat(table)
                if writer is None:  # later frames come with times, too, and with the types of the first one
                    times = [pa.types.is_timestamp(field.type) for field in given]
                    schema = pa.schema(
                        [a if is_time else b for a, b, is_time in zip(given, table.schema, times, strict=True)]
                    )
                    make = pacsv.CSVWriter if packed or name.endswith(".csv") else pq.ParquetWriter
                    writer = make(stream, table.schema)
                writer.write_table(table)
                count += len(frame)
            if writer is None:
                raise DataError(f"there are no rows to write to '{path}'")
        except pa.ArrowException as error:
            raise DataError(f"'{path}' cannot be written: {' '.join(str(error).split())[:200]}") from None
        finally:
            if writer is not None:
                writer.close()
            if packed:
                stream.close()
    return count


def _flat(table: pa.Table) -> pa.Table:
    """Categories as text, nested values as JSON: what a CSV can hold."""
    for position, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(position, field.name, pc.cast(table.column(position), field.type.value_type))
        elif pa.types.is_timestamp(field.type):  # as an id of the same time is written, which is then found again
            stamps = table.column(position).to_pandas().astype(object)
            table = table.set_column(position, field.name, pa.array([plain_text(each) for each in stamps], pa.string()))
        elif pa.types.is_nested(field.type):
            texts = [
                None if value is None else json.dumps(value, default=str)
                for value in table.column(position).to_pylist()
            ]
            table = table.set_column(position, field.name, pa.array(texts, pa.string()))
    return table
