"""What holds rows, scanned in batches: Parquet, CSV, folders, globs, object stores, SQL; filters as conditions."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import and_, or_
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rareclass.adapters.tables.csv_files import PACKED, SUFFIXES, CsvFiles, Format, differences, united
from rareclass.config import filter_groups
from rareclass.core.reading import factorize, number_text, plain_text
from rareclass.errors import ConfigError, DataError, MissingExtraError, nearest
from rareclass.masking import masked

BATCH = 65_536
OPERATORS = ("==", "=", "!=", "<", ">", "<=", ">=", "in", "not in")
_PARQUET_NAMES = (".parquet", ".pq", ".parq")
INDEX = re.compile(r"__index_level_\d+__|Unnamed: \d+")  # an index that pandas wrote without a name: nobody's column

Batches = Iterator[pa.RecordBatch]
Conditions = list[list[tuple[str, str, Any]]]  # or-ed lists of and-ed ones: column, operator, value
Scan = Callable[[Sequence[str], Conditions, Mapping[str, Any]], Batches]


@dataclass(frozen=True, slots=True)
class Source:
    """Rows that can be scanned.

    columns : type of each column, by name; SQL may refine it when scanned
    rows : number of rows before any filter where that is known without reading them, else None
    scan : (names, filter as conditions, expressions over those names) -> batches of at most BATCH rows
    notes : where the files of a folder differ from each other, in words
    divided : rows of a piece -> the same rows in the same order as several sources, which other processes can read;
        None where they can only be read from the first to the last
    """

    label: str
    columns: Mapping[str, pa.DataType]
    rows: int | None
    scan: Scan
    notes: Sequence[str] = ()
    divided: Callable[[int], Sequence[Source]] | None = None


def unreadable(path: str, error: BaseException) -> DataError:
    """Return the error for a file that cannot be read, with the reason and without what is secret in its address."""
    # pyarrow repeats the path in each layer of its message; what was wrong stands behind the last of them
    reason = " ".join(str(error).split()).rsplit("': Invalid: ", 1)[-1]
    return DataError(f"'{masked(path)}' cannot be read: {reason[:300]}. Set data.path to rows in Parquet or CSV")


# ------------------------------------------------------------------------------------------------------ filters


def conditions(
    raw: Sequence[Any], columns: Mapping[str, pa.DataType], setting: str
) -> list[list[tuple[str, str, Any]]]:
    """Return a filter as or-ed lists of and-ed conditions. Raises ConfigError for unknown columns and operators."""
    return [[_condition(condition, columns, setting) for condition in group] for group in filter_groups(raw)]


def _condition(raw: Sequence[Any], columns: Mapping[str, pa.DataType], setting: str) -> tuple[str, str, Any]:
    column, operator, value = raw
    if column not in columns:
        raise missing_column(column, columns, setting)
    if operator not in OPERATORS:
        raise ConfigError(
            f"{setting}: unknown operator '{operator}' on '{column}'. Set it to one of: {', '.join(OPERATORS)}"
        )
    if operator in ("in", "not in"):
        if not isinstance(value, list | tuple | set):
            raise ConfigError(
                f"{setting}: ['{column}', '{operator}', ...] needs a list of values, like [A, B]; it has {value!r}"
            )
        return column, operator, [_typed(member, columns[column]) for member in value]
    typed = _typed(value, columns[column])
    if operator in ("<", ">", "<=", ">=") and typed is not value and isinstance(typed, str):
        raise ConfigError(
            f"{setting}: ['{column}', '{operator}', {value!r}] compares text with a number ('{column}' is an id, an "
            "entity, the target or a category). "
            "Use == or in, or take it out of that role"
        )
    return column, operator, typed


def _typed(value: Any, kind: pa.DataType) -> Any:
    """Read a time from text where the column holds times."""
    if pa.types.is_timestamp(kind) and not isinstance(value, int | float):
        time = pd.Timestamp(value)
        return time.tz_localize("UTC") if kind.tz and time.tzinfo is None else time
    if pa.types.is_date(kind) and isinstance(value, str):
        return pd.Timestamp(value).date()
    if pa.types.is_string(kind) and isinstance(value, int | float) and not isinstance(value, bool):
        return number_text(value)
    return value


def expression(groups: list[list[tuple[str, str, Any]]]) -> Any:
    """Return the pyarrow expression of or-ed lists of conditions, None for no filter.

    A missing value meets no condition.
    """
    either = [reduce(and_, (_one(condition) for condition in group)) for group in groups]
    return reduce(or_, either) if either else None


def _one(condition: tuple[str, str, Any]) -> Any:
    matching = pq.filters_to_expression([condition])
    return matching & ds.field(condition[0]).is_valid() if condition[1] == "not in" else matching


def missing_column(name: str, columns: Mapping[str, Any], setting: str) -> DataError:
    """The error for a column that is not there: the nearest name, or the first of those there are."""
    near = nearest(name, columns) or _contained(name, columns)
    names = ", ".join(list(columns)[:12]) + (", ..." if len(columns) > 12 else "")
    return DataError(f"column '{name}' ({setting}) is not in the data.{near} Set {setting} to one of: {names}")


def _contained(name: str, columns: Mapping[str, Any]) -> str:
    near = [column for column in columns if name.lower() in column.lower() or column.lower() in name.lower()]
    return f" Did you mean '{near[0]}'?" if near else ""


def _wrong_filter(error: BaseException) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"data.filter or train.filter compares a column with a value of another type: {reason[:200]}")


# -------------------------------------------------------------------------------------------------------- files


def files(path: str, text: tuple[str, ...], form: Format) -> Source:
    """Return the source of a file, folder or pattern of Parquet or CSV files. Raises DataError for mixed kinds."""
    filesystem, names = _locate(path)
    packed = tuple(end + pack for end in SUFFIXES for pack in ("", *PACKED))
    if all(name.lower().endswith(packed) for name in names):
        return _csv(path, filesystem, names, text, form)
    if any(name.lower().endswith(packed) for name in names):
        raise DataError(
            f"'{path}' holds CSV and Parquet files. Set data.path to one kind, like '{path.rstrip('/')}/*.parquet'"
        )
    other = [name for name in names if "." in Path(name).name and not name.lower().endswith(_PARQUET_NAMES)]
    if other and not _is_parquet(filesystem, other[0]):
        raise DataError(
            f"'{other[0]}' is neither Parquet nor CSV (.parquet, .csv, .csv.gz). "
            "Set data.path to such a file, or convert it"
        )
    return _parquet(path, filesystem, names)


def _parquet(path: str, filesystem: pafs.FileSystem, names: list[str]) -> Source:
    """The rows of Parquet files, united by the names of their columns."""
    data = ds.dataset(
        names, filesystem=filesystem, format=_PARQUET, partitioning="hive", partition_base_dir=_base(path)
    )
    pieces = list(data.get_fragments())
    seen = {
        piece.path: dict(zip(piece.physical_schema.names, piece.physical_schema.types, strict=True)) for piece in pieces
    }
    columns = dict(zip(data.schema.names, data.schema.types, strict=True))
    if all(list(types.items()) == list(seen[pieces[0].path].items()) for types in seen.values()):
        return Source(path, columns, data.count_rows(), ScanDataset(data), divided=partial(_row_groups, path, data))
    for types in seen.values():
        for column, kind in types.items():
            columns[column] = united(columns[column], kind) if column in columns else kind
    parts = {name: kind for name, kind in columns.items() if all(name not in types for types in seen.values())}

    def batches(wanted: Sequence[str]) -> Batches:
        for piece in pieces:
            own = pa.schema([*seen[piece.path].items(), *parts.items()])
            present = [name for name in wanted if name in own.names]
            scanner = piece.scanner(schema=own, columns=present, batch_size=BATCH, batch_readahead=2)
            for batch in scanner.to_batches():
                if batch.num_rows:
                    yield conformed(batch, wanted, columns)

    return Source(path, columns, data.count_rows(), scan_batches(batches, columns), differences(seen))


def _row_groups(path: str, data: ds.Dataset, rows: int) -> list[Source]:
    """Return consecutive row groups as sources of about so many rows each, or of one group where that is larger."""
    columns = dict(zip(data.schema.names, data.schema.types, strict=True))
    halves: list[Source] = []
    held: list[Any] = []
    counts: list[int] = []

    def close() -> None:
        if held:
            part = ds.FileSystemDataset([*held], data.schema, data.format, data.filesystem)
            halves.append(Source(path, columns, sum(counts), ScanDataset(part)))
        held.clear()
        counts.clear()

    for piece in data.get_fragments():
        for group in piece.split_by_row_group():
            count = sum(row_group.num_rows for row_group in group.row_groups)
            if counts and sum(counts) + count > rows:
                close()
            held.append(group)
            counts.append(count)
    close()
    return halves


def conformed(batch: pa.RecordBatch, wanted: Sequence[str], columns: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """Bring the columns of a batch to the types of the whole source; absent ones are null."""
    arrays = []
    for name in wanted:
        place, kind = batch.schema.get_field_index(name), columns[name]
        arrays.append(pa.nulls(batch.num_rows, kind) if place < 0 else _cast(batch.column(place), kind))
    return pa.RecordBatch.from_arrays(arrays, names=list(wanted))


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(kind) and not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        distinct, codes = factorize(column.to_pandas(integer_object_nulls=True))
        texts = pa.array([*map(plain_text, distinct), None], pa.string())
        return texts.take(pa.array(codes % len(texts)))
    return pc.cast(column, kind, safe=False)


def scan_batches(batches: Callable[[Sequence[str]], Batches], columns: Mapping[str, pa.DataType]) -> Scan:
    """Filter and project batches that were read whole."""

    def scan(names: Sequence[str], groups: Any, extra: Mapping[str, Any]) -> Batches:
        asked = [column for group in groups for column, _, _ in group]
        wanted = list(dict.fromkeys([*names, *asked]))
        chosen = {name: ds.field(name) for name in names} | dict(extra)
        plain = not groups and not extra
        for batch in batches(wanted):
            try:
                filtered = (
                    [batch]
                    if plain
                    else ds.dataset(batch).to_table(columns=chosen, filter=expression(groups)).to_batches()
                )
            except (pa.ArrowNotImplementedError, pa.ArrowTypeError, pa.ArrowInvalid) as error:
                raise _wrong_filter(error) from None
            for part in filtered:
                yield from (part.slice(at, BATCH) for at in range(0, part.num_rows, BATCH))

    return scan


# Buffered streams and no pre-buffering: a row group is decoded in pieces instead of being held whole.
_PARQUET = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(
        use_buffered_stream=True, pre_buffer=False, buffer_size=1 << 20
    )
)


def _base(path: str) -> str:
    return path if "://" not in path else path.split("://", 1)[1]


def _is_parquet(filesystem: pafs.FileSystem, name: str) -> bool:
    with filesystem.open_input_file(name) as stream:
        return bool(stream.read(4) == b"PAR1")


def _locate(path: str) -> tuple[pafs.FileSystem, list[str]]:
    """Return the file system and the files that a path, folder, glob or URL names."""
    filesystem, inside = _filesystem(path)
    exists = filesystem.get_file_info(inside).type != pafs.FileType.NotFound
    if not exists and any(char in inside for char in "*?["):
        root = inside[: re.search(r"[*?\[]", inside).start()].rpartition("/")[0] or "."  # type: ignore[union-attr]
        listed = _listed(filesystem, root) if filesystem.get_file_info(root).type == pafs.FileType.Directory else []
        pattern = _glob(inside)
        names = sorted(name for name in listed if pattern.fullmatch(name) or pattern.fullmatch(f"./{name}"))
    else:
        info = filesystem.get_file_info(inside)
        if info.type == pafs.FileType.NotFound:
            raise DataError(
                f"data.path '{path}' does not exist.{_neighbour(filesystem, inside)} Set data.path to a file, folder, "
                "glob or URL"
            )
        names = [inside] if info.type == pafs.FileType.File else sorted(_listed(filesystem, inside))
    if not names:
        raise DataError(f"data.path '{path}' has no files. Set data.path to Parquet or CSV files")
    return filesystem, names


def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in path:
        return pafs.LocalFileSystem(), os.path.expanduser(path)
    try:
        return pafs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, ValueError):
        import fsspec

        scheme = path.split("://", 1)[0]
        try:
            inner, inside = fsspec.core.url_to_fs(path)
        except ImportError:
            raise MissingExtraError(scheme, "cloud", f"data.path '{path}'") from None
        except ValueError:
            raise DataError(
                f"data.path '{path}': unknown scheme '{scheme}'. Use s3, gs, abfs, hdfs, sqlite, postgresql or a path"
            ) from None
        return pafs.PyFileSystem(pafs.FSSpecHandler(inner)), inside


def _listed(filesystem: pafs.FileSystem, folder: str) -> list[str]:
    entries = filesystem.get_file_info(pafs.FileSelector(folder, recursive=True))
    files = [info.path for info in entries if info.type == pafs.FileType.File]
    return [
        name for name in files if not any(part.startswith(("_", ".")) for part in Path(name).relative_to(folder).parts)
    ]


def _glob(pattern: str) -> re.Pattern[str]:
    """``**`` crosses folders, ``*`` and ``?`` do not."""
    pieces = re.split(r"(\*\*/?|\*|\?|\[[^\]]*\])", pattern)
    patterns = {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(patterns.get(piece) or (piece if piece.startswith("[") else re.escape(piece)) for piece in pieces)
    )


def _neighbour(filesystem: pafs.FileSystem, inside: str) -> str:
    parent = inside.rpartition("/")[0] or "."
    if filesystem.get_file_info(parent).type != pafs.FileType.Directory:
        return ""
    names = [Path(info.path).name for info in filesystem.get_file_info(pafs.FileSelector(parent))]
    close = difflib.get_close_matches(Path(inside).name, names, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


@dataclass(frozen=True, slots=True)
class ScanDataset:
    """Scans a data set of pyarrow; another process can be sent it."""

    data: ds.Dataset

    def __call__(self, names: Sequence[str], groups: Any, extra: Mapping[str, Any]) -> Batches:
        columns = {name: ds.field(name) for name in names} | dict(extra)
        try:
            scanner = self.data.scanner(
                columns=columns, filter=expression(groups), batch_size=BATCH, batch_readahead=2, fragment_readahead=1
            )
            # a pandas index is a column like any other: what pandas noted about it is not passed on
            yield from (batch.replace_schema_metadata(None) for batch in scanner.to_batches() if batch.num_rows)
        except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise _wrong_filter(error) from None


# ---------------------------------------------------------------------------------------------------------- CSV


def _csv(path: str, filesystem: pafs.FileSystem, names: list[str], text: tuple[str, ...], form: Format) -> Source:
    files = CsvFiles(path, filesystem, names, text, form)
    return Source(path, files.types, None, scan_batches(files.batches, files.types), files.notes)


# ---------------------------------------------------------------------------------------------------------- SQL


def database(path: str, query: str | None) -> Source:
    """Return the source of a SELECT statement. Raises ConfigError without one."""
    if not query:
        raise ConfigError(f"data.path '{masked(path)}' is a database. Set data.query to a SELECT statement")
    body = query.strip().rstrip(";")
    schema = _run_sql(path, f"SELECT * FROM ({body}) AS source LIMIT 1000", lambda reader: reader.schema)  # noqa: S608

    def scan(names: Sequence[str], groups: Any, extra: Mapping[str, Any]) -> Batches:
        statement = select(names, body, groups, _DIALECTS.get(scheme(path), ANSI))
        with _connect(path) as connection, connection.cursor() as cursor:
            try:
                reader = _execute(path, cursor, statement)
                yield from projected(reader, names, extra)
            except (_database_errors(), pa.ArrowException) as error:
                raise _query_failed(path, error) from None

    return Source(masked(path), dict(zip(schema.names, schema.types, strict=True)), None, scan)


def projected(reader: pa.RecordBatchReader, names: Sequence[str], extra: Mapping[str, Any]) -> Batches:
    """Yield the batches of rows that a query chose already: some columns of them, and what is computed from them."""
    columns = {name: ds.field(name) for name in names} | dict(extra)
    for batch in ds.Scanner.from_batches(reader, columns=columns, batch_size=BATCH).to_batches():
        yield from (batch.slice(at, BATCH) for at in range(0, batch.num_rows, BATCH))


def scheme(path: str) -> str:
    """Return what stands before ``://`` without its driver, like ``sqlite``; empty where a path is no URL."""
    return path.partition("://")[0].partition("+")[0] if "://" in path else ""


DRIVERS = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "snowflake": "snowflake",
    "bigquery": "bigquery",
}
EXTRAS = {"snowflake": "snowflake", "bigquery": "bigquery"}
"""Extra that brings the driver of a scheme; default: ``sql``."""


def _address(kind: str, url: str) -> str:
    """Return a URL as its driver takes it: Snowflake's is written without a scheme."""
    return url.removeprefix("snowflake://") if kind == "snowflake" else url


def _bigquery(path: str) -> dict[str, Any]:
    """Return how ``bigquery://PROJECT/DATASET`` is asked for; who asks is what Google's environment says."""
    project, _, dataset = path.removeprefix("bigquery://").partition("/")
    if not project or not dataset or "/" in dataset:
        raise ConfigError(f"data.path '{masked(path)}' names no data set. Set data.path to bigquery://PROJECT/DATASET")
    names = {"adbc.bigquery.sql.project_id": project, "adbc.bigquery.sql.dataset_id": dataset}
    return {"db_kwargs": names | {"adbc.bigquery.sql.auth_type": "adbc.bigquery.sql.auth_type.auth_bigquery"}}


def _database_errors() -> type[BaseException]:
    import adbc_driver_manager

    return adbc_driver_manager.Error  # type: ignore[no-any-return]


def _run_sql(path: str, statement: str, use: Callable[[pa.RecordBatchReader], Any]) -> Any:
    with _connect(path) as connection, connection.cursor() as cursor:
        try:
            return use(_execute(path, cursor, statement))
        except (_database_errors(), pa.ArrowException) as error:
            raise _query_failed(path, error) from None


def _query_failed(path: str, error: BaseException) -> DataError:
    reason = " ".join(str(error).split())
    return DataError(f"the database '{masked(path)}' refused data.query: {reason[:250]}. Mend data.query")


def _execute(path: str, cursor: Any, statement: str) -> pa.RecordBatchReader:
    if path.startswith("sqlite"):  # the driver takes the types from its first batch
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH)})
    cursor.execute(statement)
    return cursor.fetch_record_batch()


def _connect(path: str) -> Any:
    """Open a database for reading. Raises MissingExtraError or DataError."""
    kind = scheme(path)
    driver = f"adbc_driver_{DRIVERS[kind]}"
    try:
        dbapi = importlib.import_module(f"{driver}.dbapi")
    except ImportError:
        raise MissingExtraError(
            driver.replace("_", "-"), EXTRAS.get(kind, "sql"), f"data.path '{kind}://...'"
        ) from None
    plain = re.sub(r"^(\w+)\+\w+://", r"\1://", path)
    if kind == "sqlite":
        plain = plain.removeprefix("sqlite:///").removeprefix("sqlite://")
        if not Path(plain).is_file():
            raise DataError(
                f"the database file '{plain}' does not exist. Set data.path to sqlite:///FILE (four slashes for an "
                "absolute path)"
            )
    try:
        return dbapi.connect(**_bigquery(path)) if kind == "bigquery" else dbapi.connect(_address(kind, plain))
    except _database_errors() as error:
        raise DataError(
            f"the database '{masked(path)}' cannot be reached: {' '.join(str(error).split())[:200]}. Set data.path"
        ) from None


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a database writes names and texts. quote : around a name · escape : what stands before a quote inside of
    either
    """

    quote: str = '"'
    escape: str = ""

    def name(self, text: str) -> str:
        """Return a column's name, quoted."""
        return self._between(text, self.quote)

    def literal(self, value: Any) -> str:
        """Return a value as SQL."""
        if isinstance(value, bool):
            return "TRUE" if value else "FALSE"
        if isinstance(value, int | float):
            return repr(value)
        return self._between(str(value), "'")

    def _between(self, text: str, mark: str) -> str:
        if self.escape:
            text = text.replace(self.escape, 2 * self.escape)
        return mark + text.replace(mark, (self.escape or mark) + mark) + mark


ANSI = Dialect()
_DIALECTS = {"bigquery": Dialect("`", "\\")}
"""Scheme -> how it writes, where that is not ANSI's way."""


def select(
    names: Sequence[str], body: str, groups: Sequence[Sequence[tuple[str, str, Any]]], dialect: Dialect = ANSI
) -> str:
    """Return the SELECT of some columns of a query, for the rows that meet the conditions."""
    either = [" AND ".join(_clause(condition, dialect) for condition in group) for group in groups]
    where = " WHERE " + " OR ".join(f"({clause})" for clause in either) if either else ""
    return f"SELECT {', '.join(map(dialect.name, names))} FROM ({body}) AS source{where}"  # noqa: S608


def _clause(condition: tuple[str, str, Any], dialect: Dialect) -> str:
    column, operator, value = condition
    if operator in ("in", "not in"):
        return f"{dialect.name(column)} {operator.upper()} ({', '.join(map(dialect.literal, value))})"
    sign = {"==": "=", "!=": "<>"}.get(operator, operator)
    return f"{dialect.name(column)} {sign} {dialect.literal(value)}"


def kind_of(kind: pa.DataType) -> str:
    """Say what a column's type is to us: 'number', 'category', 'time', 'empty', or 'nested' (lists, images, blobs)."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        return "category" if not pa.types.is_nested(kind) else "nested"
    if pa.types.is_null(kind):
        return "empty"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "number"
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        return "number"
    if (
        pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
    ):
        return "category"
    if pa.types.is_temporal(kind):
        return "time"
    return "nested"


def floats(column: pa.Array) -> Any:
    """Return (n,) float32 of a numeric column, NaN where it is null; durations and times of the day are seconds."""
    if pa.types.is_null(column.type):
        return pc.cast(column, pa.float32()).to_numpy(zero_copy_only=False)
    if pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    if pa.types.is_duration(column.type) or pa.types.is_time(column.type):
        scale = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[column.type.unit]
        integers = pc.cast(column, pa.int32() if pa.types.is_time32(column.type) else pa.int64())
        column = pc.divide(pc.cast(integers, pa.float64(), safe=False), scale)
    return pc.cast(column, pa.float32(), safe=False).to_numpy(zero_copy_only=False)
