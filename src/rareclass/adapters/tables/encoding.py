"""From batches of any types to one growing float32 matrix, without a second copy of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rareclass.adapters.tables.columns import Readings, numbers
from rareclass.adapters.tables.sources import BATCH, kind_of
from rareclass.core.dataset import OTHER, AnyArray, Feature, FloatMatrix
from rareclass.core.hashing import MISSING, HashArray, combine, number_hash, text_hash
from rareclass.core.reading import Reading, plain_text, reading_of
from rareclass.errors import DataError

_GROWTH = 1 << 26  # bytes by which a matrix of unknown length grows at most
_MAX_LEVELS = 200_000
_PARTS = 4  # in which the columns of a batch are written at once
_WORDS = 4  # mean number of words from which text is prose

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class Grown:
    """An array that grows in place (realloc moves pages, it does not copy them); ``rows`` is a first guess."""

    def __init__(self, dtype: Any, width: int | None = None, rows: int | None = None) -> None:
        self.shape = () if width is None else (width,)
        self.array: AnyArray = np.empty((rows or 0, *self.shape), dtype=dtype)
        self.most = _GROWTH // max(1, self.array.itemsize * (width or 1))
        self.length = 0

    def room(self, count: int) -> AnyArray:
        """Return a writable view of ``count`` new rows."""
        needed = self.length + count
        if needed > len(self.array):
            step = max(
                BATCH, min(self.most, len(self.array) // 4)
            )  # what is not used is filled with zeros all the same
            self.array.resize((max(needed, len(self.array) + step), *self.shape), refcheck=False)
        view = self.array[self.length : needed]
        self.length = needed
        return view

    def done(self) -> AnyArray:
        """Return the rows, giving back what was not needed."""
        self.array.resize((self.length, *self.shape), refcheck=False)
        return self.array


class Levels:
    """The distinct values of a column as text, in the order they were met; a text's code never changes.

    kind : type of the column · missing : texts that count as missing
    """

    def __init__(self, kind: pa.DataType, missing: Sequence[str] = ()) -> None:
        self.kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        self.missing = frozenset(missing)
        self.code: dict[str, int] = {}
        self.hashes = np.empty(0, dtype=np.uint64)

    def encode(self, column: pa.Array) -> tuple[AnyArray, AnyArray]:
        """Return (n,) int64 codes of a batch, 0 where missing, and (n,) True where not missing."""
        encoded = column if pa.types.is_dictionary(column.type) else pc.dictionary_encode(column)
        distinct = encoded.dictionary
        # a float32 is written with its own digits, not with those of the double beside it
        single = pa.types.is_float32(distinct.type)
        values = distinct.to_numpy(zero_copy_only=False) if single else distinct.to_pylist()
        texts = map(plain_text, values)
        places = [
            -1 if text is None or text in self.missing else self.code.setdefault(text, len(self.code)) for text in texts
        ]
        index = pc.fill_null(pc.cast(encoded.indices, pa.int64()), len(places)).to_numpy(zero_copy_only=False)
        codes = np.array([*places, -1], dtype=np.int64)[index]
        return np.maximum(codes, 0), codes >= 0

    def codes(self, texts: Sequence[str]) -> AnyArray:
        """Return the code of each text, a new one where it was not met yet."""
        return np.array([self.code.setdefault(text, len(self.code)) for text in texts], dtype=np.int64)

    def hash(self, codes: AnyArray, valid: AnyArray) -> HashArray:
        """Return (n,) uint64 hash of the values as text, independent of the order in which they were met."""
        if len(self.hashes) < len(self.code):
            new = pd.Series(list(self.code)[len(self.hashes) :], dtype="string")
            self.hashes = np.concatenate([self.hashes, text_hash(new)])
        if not len(self.hashes):
            return np.full(len(codes), MISSING, dtype=np.uint64)
        return np.where(valid, self.hashes[codes], MISSING)

    def reading(self) -> Reading:
        """How the values become the texts of categories, decided by the column's type, else by all its texts."""
        missing = tuple(sorted(self.missing))
        if pa.types.is_boolean(self.kind):
            return Reading("boolean", missing)
        if kind_of(self.kind) == "number":
            return Reading("number", missing)
        return reading_of(list(self.code), missing)

    def texts(self) -> list[str]:
        """The texts of the categories by code; two codes of one category have the same text."""
        reading = self.reading()
        return [reading.text(text) or text for text in self.code]


class Encoder:
    """Writes the features of batch after batch into the matrix and remembers the categories it met.

    names, types : the features · readings : which of them are numbers and how they are read; the others are categories
    After the last batch: ``finish(training rows)`` puts the categories into their final order, learned there.
    """

    def __init__(self, names: Sequence[str], types: Mapping[str, pa.DataType], readings: Readings) -> None:
        self.names = list(names)
        self.readings = readings
        self.levels: list[Levels | None] = []
        self.final: list[AnyArray | None] = []
        for name in self.names:
            kind = kind_of(types[name])
            if kind == "time":
                raise DataError(
                    f"column '{name}' is a time. Set data.time to it, or drop it with data.drop, or turn it into "
                    "numbers first"
                )
            if kind == "nested":
                raise DataError(
                    f"column '{name}' holds {types[name]} values (images, lists or blobs): "
                    "bring embeddings as columns, one number each, or drop it with data.drop"
                )
            self.levels.append(None if name in readings.features else Levels(types[name], readings.form.missing))

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
                x[:, position] = numbers(name, column, self.readings.features[name])
                if hashed is not None:
                    combine(hashed, number_hash(x[:, position]), name)
                continue
            codes, valid = levels.encode(column)
            if len(levels.code) > _MAX_LEVELS:
                raise self._too_many(name, levels, None)
            x[:, position] = np.where(valid, codes, np.nan)
            if hashed is not None:
                combine(hashed, levels.hash(codes, valid), name)

    def learn(self, levels: Sequence[Sequence[str] | None]) -> None:
        """Take in categories that other encoders of the columns met, in order. Raises DataError for too many."""
        for name, own, met in zip(self.names, self.levels, levels, strict=True):
            if own is not None and met is not None:
                own.codes(met)
                if len(own.code) > _MAX_LEVELS:
                    raise self._too_many(name, own, None)

    def check_levels(self, x: FloatMatrix, max_categories: int, counted: AnyArray | None = None) -> None:
        """Raise DataError for text that is prose or differs on most rows: no category can be learned from it.

        counted : (n_features,) values that are not missing, where they were counted already
        """
        for position, (name, levels) in enumerate(zip(self.names, self.levels, strict=True)):
            if levels is None or len(levels.code) <= max_categories:
                continue
            filled = int(np.count_nonzero(~np.isnan(x[:, position])) if counted is None else counted[position])
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
        return DataError(
            f"column '{name}' has {len(levels.code):,} different values{among}, like '{example}': "
            "an id is no category. "
            "Drop it with data.drop, or set data.entity or data.id to it, or bring embeddings as columns"
        )

    def finish(self, x: FloatMatrix, train: AnyArray | slice, max_categories: int) -> list[Feature]:
        """Return the features and rewrite the codes in ``x`` in place:
        most frequent level of the training rows first.
        """
        features = []
        for position, (name, levels) in enumerate(zip(self.names, self.levels, strict=True)):
            if levels is None:
                features.append(Feature(name, reading=self.readings.features[name]))
                self.final.append(None)
            else:
                feature, final = _final_codes(name, levels, x[train, position], max_categories)
                features.append(feature)
                self.final.append(final)
        self.recode(x)
        return features

    def recode(self, x: FloatMatrix) -> None:
        """Rewrite the codes of rows in place, as ``finish`` put the categories into order."""
        for position, final in enumerate(self.final):
            if final is None:
                continue
            column = x[:, position]
            for start in range(0, len(column), BATCH):
                part = column[start : start + BATCH]
                part[:] = final[np.where(np.isnan(part), len(final) - 1, part).astype(np.int64)]

    def grown(self) -> bool:
        """Whether levels were met since ``finish``: the rows are not those that were read first."""
        columns = zip(self.levels, self.final, strict=True)
        return any(
            final is not None and levels is not None and len(levels.code) >= len(final) for levels, final in columns
        )


def _words(levels: Levels) -> float:
    sample = list(levels.code)[:500]
    return float(np.mean([len(value.split()) for value in sample])) if sample else 0.0


def _final_codes(name: str, levels: Levels, codes: AnyArray, max_categories: int) -> tuple[Feature, AnyArray]:
    """Return the feature, and its final codes by the codes of the reading, the last one for missing values."""
    texts = levels.texts()
    met = np.bincount(codes[~np.isnan(codes)].astype(np.int64), minlength=len(texts))
    counts: dict[str, int] = {}
    for text, count in zip(texts, met.tolist(), strict=True):
        if count:
            counts[text] = counts.get(text, 0) + count
    order = sorted(counts, key=lambda text: (-counts[text], text))
    kept = {text: place for place, text in enumerate(order[:max_categories])}
    pooled = len(order) > max_categories
    final = np.full(len(levels.code) + 1, len(kept) if pooled else np.nan, dtype=np.float32)
    final[:-1] = [kept.get(text, final[0]) for text in texts]
    final[-1] = np.nan
    feature = Feature(name, "categorical", (*kept, *((OTHER,) if pooled else ())), levels.reading())
    return feature, final


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
