"""Frames as the database wants them, and columns of the database as frames want them."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from rareclass.errors import StoreRefusedError, nearest

LAST = 9_214_646_400_000_000  # the end of 2261 in microseconds: the last whole year that pandas can hold
_DEFAULTS: dict[str, Any] = {
    "row": 0,
    "operating_point": "default",
    "threshold": None,
    "weight": 1.0,
    "propensity": 1.0,
    "entity": None,
    "features": None,
    "error": None,
    "source": "unknown",
}


def to_micros(moment: Any) -> int:
    """Microseconds since 1970 UTC of a datetime, Timestamp, datetime64 or ISO text; naive means UTC."""
    stamp = pd.Timestamp(moment)
    stamp = stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp.tz_convert("UTC")
    return int(stamp.as_unit("us").to_datetime64().astype("int64"))


def micros(values: Any) -> pd.Series[Any]:
    """The same for a column; whole numbers are microseconds already. Raises StoreRefusedError for what is not a
    time.
    """
    series = pd.Series(values)
    if pd.api.types.is_integer_dtype(series.dtype):
        return series.astype("int64")
    try:
        stamps = pd.to_datetime(series, utc=True, format=None if series.dtype.kind == "M" else "ISO8601")
    except (ValueError, TypeError, OverflowError) as error:
        raise StoreRefusedError(
            f"column '{series.name}' holds something that is not a time: {one_line(error)}"
        ) from None
    if stamps.isna().any():
        raise StoreRefusedError(
            f"column '{series.name}' has {int(stamps.isna().sum())} missing times. Every row needs one"
        )
    return stamps.dt.as_unit("us").astype("int64")


def to_moment(value: int | None) -> datetime | None:
    """Return microseconds since 1970 as a UTC time; None stays None."""
    return (
        None
        if value is None
        else datetime.fromtimestamp(value // 1_000_000, UTC).replace(microsecond=value % 1_000_000)
    )


def normal(frame: pd.DataFrame, table: sa.Table, **same_as: str) -> pd.DataFrame:
    """Bring a frame to the columns, order and types of a table. Raises StoreError when a column is missing."""
    columns: dict[str, pd.Series[Any]] = {}
    for column in table.columns:
        name = same_as.get(column.name, column.name)
        if name in frame.columns:
            values = frame[name]
        elif name in _DEFAULTS:
            values = pd.Series([_DEFAULTS[name]] * len(frame), index=frame.index, dtype=object, name=name)
        else:
            known = [str(c) for c in frame.columns]
            raise StoreRefusedError(
                f"column '{name}' is missing from the rows for '{table.name}'.{nearest(name, known)} It has: "
                f"{', '.join(known)}"
            )
        columns[column.name] = _typed(values, column)
    return pd.DataFrame(columns).reset_index(drop=True)


def _typed(values: pd.Series[Any], column: sa.Column[Any]) -> pd.Series[Any]:
    nullable = column.name in ("threshold", "entity", "features", "error") or (
        column.table.name == "shadow_scores" and column.name in ("score", "decision")
    )
    if column.name in ("ts", "at") or column.name.endswith("_at"):
        times = micros(values)
        if not times.between(0, LAST).all():
            raise StoreRefusedError(
                f"column '{column.name}' has times outside 1970 to 2261, like "
                f"{times[~times.between(0, LAST)].iloc[0]} microseconds"
            )
        return times
    if values.isna().any() and not nullable:
        raise StoreRefusedError(
            f"column '{column.name}' has {int(values.isna().sum())} missing values; "
            f"'{column.table.name}' needs all of them"
        )
    if isinstance(column.type, sa.Text):
        return _clean_text(values.astype(object).where(values.notna(), None))
    try:
        numbers = pd.to_numeric(values)
        if isinstance(column.type, sa.Float):
            return numbers.astype("float64")
        return numbers.astype("Int64" if nullable else "int64")
    except (ValueError, TypeError, OverflowError) as error:
        raise StoreRefusedError(f"column '{column.name}' must hold numbers: {one_line(error)}") from None


def _clean_text(values: pd.Series[Any]) -> pd.Series[Any]:
    """Text as both databases can hold it: neither NUL nor half a surrogate pair."""
    texts = values.tolist()
    if not set(map(type, texts)) <= {str, type(None)}:
        texts = [value if value is None or isinstance(value, str) else str(value) for value in texts]
    joined = "".join(filter(None, texts))
    if "\x00" in joined or (not joined.isascii() and any("\ud800" <= letter <= "\udfff" for letter in joined)):
        texts = [t if t is None else t.replace("\x00", "�").encode("utf-8", "replace").decode() for t in texts]
    return pd.Series(texts, index=values.index, dtype=object)


def tuples(rows: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Rows as tuples of Python values, missing as None: what sqlite3 wants."""
    columns = []
    for name in rows.columns:
        values = rows[name]
        if values.dtype != object and values.isna().any():
            values = values.astype(object).where(values.notna(), None)
        columns.append(values.tolist())
    return zip(*columns, strict=True)


def to_csv(rows: pd.DataFrame) -> bytes:
    """Rows as CSV in which every value is quoted and missing ones are not: how COPY tells '' from NULL."""
    import pyarrow as pa
    from pyarrow import csv

    sink = pa.BufferOutputStream()
    table = pa.Table.from_pandas(rows, preserve_index=False)
    csv.write_csv(table, sink, csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    return bytes(sink.getvalue().to_pybytes())


def copied(driver: Any, statement: str, parameters: Mapping[str, Any], query: sa.Select[Any]) -> pd.DataFrame:
    """COPY (SELECT ...) TO STDOUT, parsed by Arrow: several times faster than fetching rows."""

    import pyarrow as pa
    from pyarrow import csv

    kinds = {
        c.key: pa.string()
        if isinstance(c.type, sa.Text)
        else pa.float64()
        if isinstance(c.type, sa.Float)
        else pa.int64()
        for c in query.selected_columns
    }
    with driver.cursor() as cursor, cursor.copy(f"COPY ({statement}) TO STDOUT WITH (FORMAT csv)", parameters) as copy:
        data = b"".join(bytes(block) for block in copy)
    if not data:
        return pd.DataFrame({name: pd.Series(dtype=kind.to_pandas_dtype()) for name, kind in kinds.items()})
    table = csv.read_csv(
        io.BytesIO(data),
        read_options=csv.ReadOptions(column_names=list(kinds)),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types=kinds, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        ),
    )
    frame: pd.DataFrame = table.to_pandas()
    return frame


def array(values: Sequence[Any], kind: sa.types.TypeEngine[Any]) -> Any:
    """One column of the database; whole numbers with missing ones among them become floats, exact up to 2**53."""
    if isinstance(kind, sa.Text):
        return pd.Series(values, dtype=object)
    if not isinstance(kind, sa.Float):
        try:
            return np.array(values, dtype=np.int64)
        except TypeError:
            pass
    return np.array(values, dtype=np.float64)


def timed(frame: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Turn microseconds into datetime64[us] (UTC), missing into NaT; score-like columns into numbers."""
    for name in names:
        missing = frame[name].isna()
        whole = frame[name].where(~missing, 0).astype("int64").to_numpy().astype("datetime64[us]")
        frame[name] = pd.Series(whole, index=frame.index).mask(missing)
    for name in ("threshold", "champion_score"):
        if name in frame.columns:
            frame[name] = frame[name].astype("float64")
    return frame


def one_line(error: BaseException) -> str:
    """Return an error's message on one line of 300 characters at most."""
    return " ".join(str(error).split())[:300]
