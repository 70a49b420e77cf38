"""From batches of any types to one growing float32 matrix, without a second copy of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rareclass.adapters.tables.sources import BATCH, floats, kind_of
from rareclass.core.dataset import OTHER, AnyArray, Feature, FloatMatrix, text_of
from rareclass.core.hashing import MISSING, HashArray, combine, number_hash, text_hash
from rareclass.errors import DataError

_GROWTH = 1 << 26  # bytes by which a matrix of unknown length grows
_MAX_LEVELS = 200_000
_PARTS = 4  # in which the columns of a batch are written at once
_WORDS = 4  # mean number of words from which text is prose

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class Grown:
    """An array that grows in place (realloc moves pages, it does not copy them); ``rows`` is a first guess."""

    def __init__(self, dtype: Any, width: int | None = None, rows: int | None = None) -> None:
        self.shape = () if width is None else (width,)
        self.array: AnyArray = np.empty((rows or 0, *self.shape), dtype=dtype)
        self.step = max(BATCH, _GROWTH // max(1, self.array.itemsize * (width or 1)))
        self.length = 0

    def room(self, count: int) -> AnyArray:
        """Return a writable view of ``count`` new rows."""
        needed = self.length + count
        if needed > len(self.array):
            self.array.resize((max(needed, len(self.array) + self.step), *self.shape), refcheck=False)
        view = self.array[self.length : needed]
        self.length = needed
        return view

    def done(self) -> AnyArray:
        """Return the rows, giving back what was not needed."""
        self.array.resize((self.length, *self.shape), refcheck=False)
        return self.array


class Levels:
    """The distinct values of a column in the order they were met; a value's code never changes."""

    def __init__(self) -> None:
        self.code: dict[Any, int] = {}
        self.hashes = np.empty(0, dtype=np.uint64)

    def encode(self, column: pa.Array) -> tuple[AnyArray, AnyArray]:
        """Return (n,) int64 codes of a batch, 0 where missing, and (n,) True where not missing."""
        encoded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
        found = [_plain(value) for value in encoded.dictionary.to_pylist()]
        places = [-1 if value is None else self.code.setdefault(value, len(self.code)) for value in found]
        index = pc.fill_null(pc.cast(encoded.indices, pa.int64()), len(found)).to_numpy(zero_copy_only=False)
        codes = np.array([*places, -1], dtype=np.int64)[index]
        return np.maximum(codes, 0), codes >= 0

    def hash(self, codes: AnyArray, valid: AnyArray) -> HashArray:
        """Return (n,) uint64 hash of the values as text, independent of the order in which they were met."""
        if len(self.hashes) < len(self.code):
            new = list(self.code)[len(self.hashes) :]
            text = pd.Series([_text(value) for value in new], dtype="string")
            self.hashes = np.concatenate([self.hashes, text_hash(text)])
        if not len(self.hashes):
            return np.full(len(codes), MISSING, dtype=np.uint64)
        return np.where(valid, self.hashes[codes], MISSING)

    def texts(self) -> list[str]:
        """The values as text, as ``encode`` of served rows will read them."""
        return [str(each) for each in text_of(pd.Series(list(self.code)))] if self.code else []


def _plain(value: Any) -> Any:
    """NaN as None, so that it is one value."""
    return None if isinstance(value, float) and value != value else value


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


class Encoder:
    """Writes the features of batch after batch into the matrix and remembers the categories it met.

    names, types : the features · categorical : numeric columns that are categories all the same
    After the last batch: ``finish(training rows)`` puts the categories into their final order, learned there.
    """

    def __init__(self, names: Sequence[str], types: Mapping[str, pa.DataType], categorical: Sequence[str]) -> None:
        self.names = list(names)
        self.levels: list[Levels | None] = []
        for name in self.names:
            kind = kind_of(types[name])
            if kind == "time":
                raise DataError(
                    f"column '{name}' is a time. Set data.time to it, or drop it with data.drop, or turn it into numbers first"
                )
            if kind == "nested":
                raise DataError(
                    f"column '{name}' holds {types[name]} values (images, lists or blobs): "
                    "bring embeddings as columns, one number each, or drop it with data.drop"
                )
            self.levels.append(Levels() if kind == "category" or name in categorical else None)

    def write(self, batch: pa.RecordBatch, x: FloatMatrix, hashed: HashArray | None, at_once: Map = map) -> None:
        """Fill ``x`` (n, n_features) and add every column to the rows' hash (n,) where one is wanted.

        at_once : the `map` of an executor; columns are shared out among its threads
        """

        def some(positions: Iterable[int]) -> HashArray | None:
            total = None if hashed is None else np.zeros_like(hashed)
            self._write(positions, batch, x, total)
            return total

        for total in at_once(some, np.array_split(range(len(self.names)), _PARTS)):
            if hashed is not None and total is not None:
                hashed += total  # modulo 2^64, so the order of the columns does not matter

    def _write(self, positions: Iterable[int], batch: pa.RecordBatch, x: FloatMatrix, hashed: HashArray | None) -> None:
        for position in positions:
            name, levels = self.names[position], self.levels[position]
            column = batch.column(name)
            if levels is None:
                x[:, position] = floats(column)
                if hashed is not None:
                    combine(hashed, number_hash(x[:, position]), name)
                continue
            codes, valid = levels.encode(column)
            if len(levels.code) > _MAX_LEVELS:
                raise self._too_many(name, levels, None)
            x[:, position] = np.where(valid, codes, np.nan)
            if hashed is not None:
                combine(hashed, levels.hash(codes, valid), name)

    def check_levels(self, x: FloatMatrix, max_categories: int) -> None:
        """Raise DataError for text that is prose or differs on most rows: no category can be learned from it."""
        for position, (name, levels) in enumerate(zip(self.names, self.levels, strict=True)):
            if levels is None or len(levels.code) <= max_categories:
                continue
            filled = int(np.count_nonzero(~np.isnan(x[:, position])))
            prose = _words(levels) >= _WORDS and len(levels.code) > 0.1 * filled
            if prose or len(levels.code) > 0.5 * filled:
                raise self._too_many(name, levels, filled)

    def _too_many(self, name: str, levels: Levels, filled: int | None) -> DataError:
        among = f" in {filled:,} rows" if filled else ""
        example = str(next(iter(levels.code)))[:40]
        if _words(levels) >= _WORDS:
            return DataError(
                f"column '{name}' is free text ('{example}...', {len(levels.code):,} different values{among}): "
                "bring embeddings as columns, one number each, or drop it with data.drop"
            )
        numbers = pd.to_numeric(pd.Series(list(levels.code)[:1000]), errors="coerce").notna()
        if 0.5 < numbers.mean() < 1:
            other = str(list(levels.code)[int(np.argmin(numbers.to_numpy()))])[:40]
            return DataError(
                f"column '{name}' holds numbers and text like '{other}'. Make that value empty (missing), or drop it with data.drop"
            )
        return DataError(
            f"column '{name}' has {len(levels.code):,} different values{among}, like '{example}': an id is no category. "
            "Drop it with data.drop, or set data.entity or data.id to it, or bring embeddings as columns"
        )

    def finish(self, x: FloatMatrix, train: AnyArray | slice, max_categories: int) -> list[Feature]:
        """Return the features and rewrite the codes in ``x`` in place: most frequent level of the training rows first."""
        return [
            Feature(name) if levels is None else _settle(name, levels, x[:, position], train, max_categories)
            for position, (name, levels) in enumerate(zip(self.names, self.levels, strict=True))
        ]


def _words(levels: Levels) -> float:
    sample = [value for value in list(levels.code)[:500] if isinstance(value, str)]
    return float(np.mean([len(value.split()) for value in sample])) if sample else 0.0


def _settle(name: str, levels: Levels, column: AnyArray, train: AnyArray | slice, max_categories: int) -> Feature:
    texts, codes = levels.texts(), column[train]
    counts = np.bincount(codes[~np.isnan(codes)].astype(np.int64), minlength=len(texts))
    order = sorted(map(int, np.flatnonzero(counts)), key=lambda code: (-int(counts[code]), texts[code]))
    kept = order[:max_categories]
    pooled = len(order) > max_categories
    final = np.full(len(levels.code) + 1, len(kept) if pooled else np.nan, dtype=np.float32)
    final[kept] = np.arange(len(kept))
    final[-1] = np.nan
    for start in range(0, len(column), BATCH):
        part = column[start : start + BATCH]
        part[:] = final[np.where(np.isnan(part), len(levels.code), part).astype(np.int64)]
    return Feature(name, "categorical", tuple(texts[code] for code in kept) + ((OTHER,) if pooled else ()))


def times_of(column: pa.Array) -> tuple[AnyArray, pd.Series[Any]]:
    """Return (n,) datetime64[us] in UTC, NaT where it is no time, and the raw values of those rows.

    Times without a zone are taken as UTC; numbers are seconds, milli-, micro- or nanoseconds since 1970 by their size.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        stamps = pc.cast(
            pc.cast(column, pa.timestamp("us", kind.tz if pa.types.is_timestamp(kind) else None), safe=False),
            pa.int64(),
        )
        values = pc.fill_null(stamps, np.iinfo(np.int64).min).to_numpy(zero_copy_only=False).view("datetime64[us]")
    elif kind_of(kind) == "number":
        values = _epoch(pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    else:
        raw = column.to_pandas()
        parsed = pd.to_datetime(raw, format="ISO8601", utc=True, errors="coerce")
        if bool((parsed.isna() & raw.notna()).any()):
            parsed = parsed.fillna(pd.to_datetime(raw.where(parsed.isna()), format="mixed", utc=True, errors="coerce"))
        values = parsed.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    bad = np.isnat(values)
    return values, column.filter(pa.array(bad)).to_pandas() if bad.any() else pd.Series([], dtype=object)


def _epoch(values: AnyArray) -> AnyArray:
    """Numbers below 1e8 are no times (they would lie in the first three years of the count)."""
    out = np.full(len(values), np.datetime64("NaT", "us"))
    for low, high, factor in ((1e8, 1e11, 1e6), (1e11, 1e14, 1e3), (1e14, 1e17, 1.0), (1e17, 1e20, 1e-3)):
        inside = (values >= low) & (values < high)
        out[inside] = (values[inside] * factor).astype(np.int64).view("datetime64[us]")
    return out


def reorder(array: AnyArray, order: AnyArray) -> None:
    """Permute the rows of an array in place, one column at a time."""
    for column in [array] if array.ndim == 1 else array.T:
        column[: len(order)] = column[order]


def without_columns(x: FloatMatrix, keep: AnyArray) -> FloatMatrix:
    """Return ``x[:, keep]`` in the memory of ``x``."""
    flat, width = x.reshape(-1), int(np.count_nonzero(keep))
    for start in range(0, len(x), BATCH):
        part = x[start : start + BATCH][:, keep]
        flat[start * width : start * width + part.size] = part.reshape(-1)
    return flat[: len(x) * width].reshape(len(x), width)
