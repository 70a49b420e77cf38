"""Decide how the columns of a source are read, from all their values; read Arrow columns so. The rules are
core.reading's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rareclass.adapters.tables.csv_files import Format, without_missing
from rareclass.adapters.tables.sources import Conditions, Source, floats, kind_of
from rareclass.config import DataSettings
from rareclass.core.checks import Finding
from rareclass.core.dataset import AnyArray, FloatMatrix
from rareclass.core.hashing import MISSING, text_hash
from rareclass.core.reading import USUAL_MISSING, Reading, counted, is_code, number_of, trimmed
from rareclass.core.times import TimeReading, TimeSurvey
from rareclass.errors import DataError

_ODD = 0.1  # share of other values up to which a column still counts as numbers
_MOST_ODD = 20  # different ones
_TEXT_AFTER = 2000  # values after which a column of mostly other text is not asked any further
_COMMA = re.compile(r"[+-]?\d[\d.]*,\d+|[+-]?\d{1,3}(?:[' \u00a0]\d{3})+")
_INTEGERS = {
    kind: getattr(pd, f"{name}Dtype")()
    for kind, name in (
        (pa.int8(), "Int8"),
        (pa.int16(), "Int16"),
        (pa.int32(), "Int32"),
        (pa.int64(), "Int64"),
        (pa.uint8(), "UInt8"),
        (pa.uint16(), "UInt16"),
        (pa.uint32(), "UInt32"),
        (pa.uint64(), "UInt64"),
    )
}


@dataclass(frozen=True, slots=True)
class Readings:
    """What was decided.

    features : name -> how its numbers are read; columns that are not in it are categories
    time : how `data.time` is read, None where there is none
    """

    form: Format
    features: Mapping[str, Reading]
    time: TimeReading | None = None
    findings: list[Finding] = field(default_factory=list)


def format_of(data: DataSettings) -> Format:
    """Return what the configuration says of how the source is written."""
    return Format(data.encoding, data.decimal, data.thousands, data.missing_values)


def decide(data: DataSettings, source: Source, names: Sequence[str], filter: Conditions) -> Readings:
    """Look at every text column among the features ``names``, and at the time, once, in the rows that ``filter`` keeps.

    Raises DataError where the values leave open what they mean, with what to set.
    """
    form, columns = format_of(data), source.columns
    texts = {name: TextSurvey(name, form) for name in names if name not in data.categorical and _is_text(columns[name])}
    time = TimeSurvey(data.time, data.time_format, data.time_unit, data.time_origin) if data.time else None
    if data.time is not None and data.time_unit is not None and kind_of(columns[data.time]) == "time":
        raise DataError(
            f"column '{data.time}' (data.time) holds times already, so data.time_unit '{data.time_unit}' counts "
            "nothing. Take data.time_unit out"
        )
    asked = [name for name, survey in texts.items() if survey is not None]
    if time is not None and not time.told and kind_of(columns[str(data.time)]) != "time":
        asked.append(str(data.time))
    if asked:
        for batch in source.scan(list(dict.fromkeys(asked)), filter, {}):
            for name, survey in texts.items():
                survey.add(batch.column(name))
            if data.time in asked:
                assert time is not None
                time.add(series_of(batch.column(str(data.time))))
    features, findings = {}, [Finding("columns", "warning", None, note) for note in source.notes]
    plain = Reading("number", form.missing, form.decimal, form.thousands)
    for name in names:
        if name in texts:
            reading, finding = texts[name].done(data.max_categories)
            findings += [finding] if finding is not None else []
            if reading is not None:
                features[name] = reading
        elif name not in data.categorical and kind_of(columns[name]) in ("number", "empty"):
            features[name] = plain
    return Readings(form, features, None if time is None else time.done(), findings)


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column is text without a word about what it means; a dictionary says that it is categories."""
    return kind_of(kind) == "category" and not pa.types.is_boolean(kind) and not pa.types.is_dictionary(kind)


class TextSurvey:
    """Looks at all values of a text column and says whether they are numbers."""

    def __init__(self, name: str, form: Format) -> None:
        self.name, self.form = name, form
        self.numbers = self.plain = self.padded = self.commas = 0
        self.other: Counter[str] = Counter()
        self.distinct: set[Any] = set()
        self.example = ""
        self.surely_text = False

    def add(self, column: pa.Array) -> None:
        """Look at the values of one batch."""
        if self.surely_text:
            return
        column = _as_string(column)
        if not self._plain(column):
            for entry in pc.value_counts(column).to_pylist():
                if entry["values"] is not None:
                    self._count(trimmed(entry["values"]), entry["counts"])
        odd = self.other.total()
        self.surely_text = odd > _TEXT_AFTER and odd > self.numbers and self.commas < odd / 2

    def _plain(self, column: pa.Array) -> bool:
        """Take a batch in which every value is a plain number, at once; False where it is not one."""
        if self.form.decimal != "." or self.form.thousands:
            return False
        known = without_missing(pc.utf8_trim_whitespace(column), (*self.form.missing, *USUAL_MISSING))
        try:
            pc.cast(known[:1], pa.float64())
            pc.cast(known, pa.float64())
        except pa.ArrowInvalid:
            return False
        if pc.any(pc.match_substring_regex(known, r"^[+-]?0[0-9]+$")).as_py():
            return False
        self.numbers += len(known)
        self.plain += len(known)
        if len(self.distinct) < 1000:
            self.distinct.update(pc.unique(known).to_pylist()[:1000])
        return True

    def _count(self, text: str, count: int) -> None:
        if not text or text in self.form.missing or text in USUAL_MISSING:
            return
        if number_of(text, self.form.decimal, self.form.thousands) is None:
            self.commas += count if _COMMA.fullmatch(text) else 0
            self.other[text] += count
        else:
            self.numbers += count
            self.plain += count if number_of(text) is not None and text[-1:].isdecimal() else 0
            if is_code(text):
                self.padded += count
                self.example = self.example or text
            if len(self.distinct) < 1000:
                self.distinct.add(text)

    def done(self, max_categories: int) -> tuple[Reading | None, Finding | None]:
        """Return how the numbers are read, None for a category, and what is worth saying about it."""
        odd = self.other.total()
        total = self.numbers + odd
        if self.commas and (self.numbers + self.commas) >= (1 - _ODD) * total:
            example = next(text for text in self.other if _COMMA.fullmatch(text))
            raise DataError(
                f"column '{self.name}' has numbers like '{example}': set data.decimal: "
                "',' where the comma stands before fractions, or data.thousands "
                "to the sign between groups of three digits; or add the column to data.categorical if these are no "
                "numbers"
            )
        points = sum(count for text, count in self.other.items() if number_of(text) is not None)
        if self.form.decimal != "." and points and self.numbers + points >= (1 - _ODD) * total:
            example = next(text for text in self.other if number_of(text) is not None)
            raise DataError(
                f"column '{self.name}' has numbers with a point, like '{example}', though data.decimal is ','. "
                "Set data.thousands: '.' if the point groups digits, write all columns in one way, or add the column "
                "to data.categorical"
            )
        if not total or self.surely_text or odd > _ODD * total:
            return None, None
        if self.padded:
            return None, self._said(
                f"column '{self.name}' has digits behind a zero in {self.padded:,} of {total:,} values, like "
                f"'{self.example}': it is read as text, a category. "
                "Add it to data.categorical to say so, or to data.drop"
            )
        reading = Reading("number", self.form.missing, self.form.decimal, self.form.thousands)
        if not odd and self.plain == total:
            return reading, self._said(
                f"column '{self.name}' is text, but each of its {total:,} values is a number: it is read as numbers. "
                "Store it as numbers to say so, or add it to data.categorical if they are codes"
            )
        if not odd:
            return reading, None
        some = f"column '{self.name}' is a number in all but {odd:,} of {total:,} values: {counted(self.other)}"
        if len(self.other) > _MOST_ODD or len(self.distinct) <= max_categories:
            return None, self._said(
                f"{some}. It is read as a category. Add those values to data.missing_values to read numbers, or the "
                "column to data.categorical"
            )
        return Reading(
            "number", (*self.form.missing, *sorted(self.other)), self.form.decimal, self.form.thousands
        ), self._said(
            f"{some}. They count as missing. Add them to data.missing_values if they are, or the column to "
            "data.categorical"
        )

    def _said(self, message: str) -> Finding:
        return Finding("columns", "warning", self.name, message)


# ------------------------------------------------------------------------------------------------------- reading


def series_of(column: pa.Array) -> pd.Series[Any]:
    """Return a column as a Series in which integers keep all their digits, also beside missing values."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode() if pa.types.is_integer(column.type.value_type) else column
    if pa.types.is_integer(column.type) and column.null_count:
        whole: pd.Series[Any] = column.to_pandas(types_mapper=_INTEGERS.get)
        return whole
    if pa.types.is_date(column.type):
        column = pc.cast(column, pa.timestamp("us"))
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = pc.cast(column, pa.timestamp("us", column.type.tz), safe=False)
    series: pd.Series[Any] = column.to_pandas()
    return series


_PLAIN = r"(?s)^[!-~](.*[!-~])?$"
"""Text that nothing is trimmed off, and that is not empty."""


def _is_plain_text(column: pa.Array) -> bool:
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return text and bool(pc.all(pc.match_substring_regex(column, _PLAIN), min_count=0).as_py())


def hashed(column: pa.Array) -> AnyArray:
    """Return (n,) uint64 hash of a column's values as text: what ``text_hash`` gives, without a Python object per step.

    Whole numbers and text take a tenth to a quarter of its time; whatever else there is goes through it.
    """
    if pa.types.is_integer(column.type):
        column = pc.cast(column, pa.string())
    elif not _is_plain_text(column):
        return text_hash(series_of(column))
    missing = column.is_null().to_numpy(zero_copy_only=False)
    texts = pc.fill_null(column, "").to_numpy(zero_copy_only=False)
    found = pd.util.hash_array(texts, categorize=False)
    return np.asarray(np.where(missing, MISSING, found), dtype=np.uint64)


def _as_string(column: pa.Array) -> pa.Array:
    """Text of any width as the type that all functions take."""
    return column if pa.types.is_string(column.type) else pc.cast(column, pa.string())


def numbers(name: str, column: pa.Array, reading: Reading) -> FloatMatrix:
    """Return (n,) float32 of a column, NaN where it is missing. Raises DataError where it holds other text."""
    if kind_of(column.type) in ("number", "empty"):
        found = floats(column)
        tokens = [np.float32(each) for each in map(number_of, reading.missing) if each is not None]
        return np.where(np.isin(found, tokens), np.float32("nan"), found) if tokens else found
    if pa.types.is_boolean(column.type):
        return cast("FloatMatrix", floats(pc.cast(column, pa.int8())))
    if not pa.types.is_dictionary(column.type) and reading.decimal == "." and not reading.thousands:
        text = pc.utf8_trim_whitespace(_as_string(column))
        gone = pc.is_in(text, value_set=pa.array(["", *reading.missing, *USUAL_MISSING], text.type))
        try:
            found = floats(pc.cast(pc.if_else(gone, pa.scalar(None, text.type), text), pa.float64()))
            return cast("FloatMatrix", found)
        except pa.ArrowInvalid:
            pass  # a percent sign, a currency, or no number: one by one
    found, wrong = reading.numbers(series_of(column))
    if wrong:
        from rareclass.core.dataset import not_numbers

        raise not_numbers(name, wrong, len(found))
    with np.errstate(over="ignore"):
        return found.astype(np.float32)


def times(column: pa.Array, reading: TimeReading) -> tuple[AnyArray, pd.Series[Any]]:
    """Return (n,) datetime64[us] in UTC, NaT where it is no time, and the raw values of those rows."""
    found, _ = reading.read(series_of(column))
    bad = np.isnat(found)
    return found, column.filter(pa.array(bad)).to_pandas() if bad.any() else pd.Series([], dtype=object)


def frame_of(batch: pa.RecordBatch) -> pd.DataFrame:
    """Return a batch as a frame: integers keep all digits beside missing values, text is text also where all is
    missing.
    """
    columns = {name: _column(batch.column(place)) for place, name in enumerate(batch.schema.names)}
    return pd.DataFrame(columns) if columns else pd.DataFrame(index=range(batch.num_rows))


def _column(column: pa.Array) -> pd.Series[Any]:
    if pa.types.is_string(column.type) and column.null_count == len(column):
        return pd.Series([pd.NA] * len(column), dtype="string")
    if pa.types.is_date(column.type):
        dates: pd.Series[Any] = column.to_pandas()
        return dates
    return series_of(column)
