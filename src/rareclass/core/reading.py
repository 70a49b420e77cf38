"""How the values of a column are read: decided once, when a version is trained, and the same for every later reader.

The text of a category depends on the value alone: not on the rows beside it, nor on the format it came in. Whoever has
values of a column (a file, a request, a stored row) and the version's schema reads them here and guesses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.core.compatibility import check_fields
from rareclass.core.jsonable import Jsonable
from rareclass.errors import DataError, nearest

Values = Any  # a Series, an array or a list of a column's values
AnyArray = NDArray[Any]
FloatArray = NDArray[np.float64]

USUAL_MISSING = (
    "NA",
    "N/A",
    "n/a",
    "#N/A",
    "#NA",
    "NaN",
    "nan",
    "-NaN",
    "-nan",
    "null",
    "NULL",
    "None",
    "<NA>",
    "NaT",
    "?",
    "-",
    ".",
)
"""Texts that mean missing where numbers or times are expected; `NA` as a country is a country."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WHOLE = re.compile(r"[+-]?\d+")
_PADDED = re.compile(r"[+-]?0\d+")
_INFINITE = re.compile(r"[+-]?inf(?:inity)?", re.IGNORECASE)
_MONEY = "$€£¥₹"
_TRUE, _FALSE = ("true", "t", "1", "1.0"), ("false", "f", "0", "0.0")
_SAME = ({"true", "t", "yes", "y", "1", "1.0"}, {"false", "f", "no", "n", "0", "0.0"})


@dataclass(frozen=True, slots=True)
class Reading(Jsonable):
    """What training decided about the values of a column.

    kind : what its values were. Categories of kind ``text`` are exact text (`007` is not 7), of kind ``number`` the
        number behind the text (7, 7.0 and '7' are one category), of kind ``boolean`` True or False however written
    missing : texts that mean missing, besides the empty one; where they are numbers, also as numbers
    decimal, thousands : how numbers are written in text; ``thousands`` is empty where there is none
    """

    kind: Literal["number", "text", "boolean"] = "number"
    missing: tuple[str, ...] = ()
    decimal: str = "."
    thousands: str = ""

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Reading:
        """Return the reading that ``to_json`` wrote."""
        check_fields(Reading, raw, "the reading of a column")
        return Reading(**{**raw, "missing": tuple(raw.get("missing", ()))})

    def text(self, value: object) -> str | None:
        """Return one value as the text of a category, None where it is missing."""
        text = plain_text(value)
        if text is None or text in self.missing:
            return None
        if self.kind == "number" and isinstance(value, (str, bytes)):
            return _as_number(text, self.decimal, self.thousands)
        if self.kind == "boolean":
            low = text.lower()
            return "True" if low in _TRUE else "False" if low in _FALSE else text
        return text

    def number(self, text: str) -> float | None:
        """Return the number that a trimmed text is, NaN where it means missing, None where it is no number."""
        if not text or text in self.missing or text in USUAL_MISSING:
            return float("nan")
        return number_of(text, self.decimal, self.thousands)

    def texts(self, values: Values) -> AnyArray:
        """Return (n,) object: the text of each value, None where it is missing."""
        return _mapped(values, self.text)

    def numbers(self, values: Values) -> tuple[FloatArray, dict[str, int]]:
        """Return (n,) float64, NaN where missing, and the texts that are no numbers (NaN as well) with their counts.

        Durations are seconds, times of the day seconds since midnight, booleans 0 and 1.
        """
        series = as_series(values)
        if pd.api.types.is_timedelta64_dtype(series.dtype):
            return series.dt.total_seconds().to_numpy(dtype=np.float64), {}
        if pd.api.types.is_numeric_dtype(series.dtype) and not isinstance(series.dtype, pd.CategoricalDtype):
            numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
            tokens = [token for token in map(number_of, self.missing) if token is not None]
            return (np.where(np.isin(numbers, tokens), np.nan, numbers) if tokens else numbers), {}
        distinct, codes = factorize(series)
        table, wrong = np.full(len(distinct) + 1, np.nan), {}
        counts = np.bincount(codes[codes >= 0], minlength=len(distinct))
        for position, value in enumerate(distinct):
            read = self._number_of(value)
            if read is None:
                wrong[str(value)] = int(counts[position])
            else:
                table[position] = read
        return table[codes], wrong

    def _number_of(self, value: object) -> float | None:
        if isinstance(value, (bool, int, float, np.number, np.bool_, Decimal)):
            read = float(value)
            return float("nan") if self.missing and number_text(value) in self.missing else read
        if isinstance(value, (timedelta, np.timedelta64)):
            return pd.Timedelta(value).total_seconds()
        if isinstance(value, clock_time):
            return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
        return self.number(trimmed(value)) if isinstance(value, (str, bytes)) else None


NUMBER, TEXT = Reading("number"), Reading("text")


@dataclass(frozen=True, slots=True)
class Target:
    """The target as training read it.

    name : its column · positive : the text of the rare class, also where it was chosen by default
    values : the texts that training saw, as far as they are known
    """

    name: str
    positive: str
    values: tuple[str, ...] = ()
    reading: Reading = TEXT

    def labels(self, values: Values) -> FloatArray:
        """Return (n,) 1 where a value is the rare class, 0 where it is another one, NaN where it is missing.

        Raises DataError for values that training never saw where the target had two values, or that are the rare class
        or another known value in another spelling: none of them can be told to be an ordinary one.
        """
        distinct, codes = factorize(as_series(values))
        table = np.full(len(distinct) + 1, np.nan)
        counts = np.bincount(codes[codes >= 0], minlength=len(distinct))
        strange: dict[str, int] = {}
        for position, value in enumerate(distinct):
            text = self._known(value)
            if text is not None and counts[position]:  # a typed column also names categories that no row has
                table[position] = float(text == self.positive)
                if self._is_strange(text):
                    strange[text] = strange.get(text, 0) + int(counts[position])
        if strange:
            raise self._refused(strange)
        return table[codes]

    def _known(self, value: object) -> str | None:
        text = self.reading.text(value)
        if text is None or not self.values or text in self.values:
            return text
        return next((spelling for spelling in spellings(value) if spelling in self.values), text)

    def _is_strange(self, text: str) -> bool:
        if not self.values or text in self.values:
            return False
        return (
            len(self.values) == 2
            or same_word(text, self.positive)
            or any(seen.lower() == text.lower() for seen in self.values)
        )

    def _refused(self, strange: Mapping[str, int]) -> DataError:
        text = max(strange, key=lambda spelling: strange[spelling])
        near = [seen for seen in self.values if seen.lower() == text.lower()]
        hint = f" Did you mean '{near[0]}'?" if near else nearest(text, self.values)
        listed = ", ".join(self.values[:10])
        are = "is no value" if len(strange) == 1 else "are no values"
        return DataError(f"{counted(strange)} {are} of the target '{self.name}'.{hint} Training saw: {listed}")


def counted(values: Mapping[str, int], most: int = 3) -> str:
    """Return the commonest values with their counts, for a message."""
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - most:,} more" if len(ordered) > most else ""
    return ", ".join(f"'{value[:40]}' ({count:,})" for value, count in ordered[:most]) + more


def same_word(word: str, other: str) -> bool:
    """Whether two values of a target can only mean the same: they differ in capitals, or are one truth value as `true`
    and 1.
    """
    word, other = word.lower(), other.lower()
    if word == other:
        return True
    letters = len(word) == len(other) == 1 and word.isalpha() and other.isalpha()  # `T` and `Y` may be codes
    return not letters and any({word, other} <= words for words in _SAME)


def reading_of(levels: Sequence[str], missing: tuple[str, ...] = ()) -> Reading:
    """Return how categories are read of which only the texts are known.

    Numbers are one category however they are written, unless a leading zero or two spellings of one number say that
    the texts are codes (`01234`, or 250.0 beside 250.00).
    """
    if levels and all(level.lower() in ("true", "false") for level in levels):
        return Reading("boolean", missing)
    numbers = [_as_number(level) for level in levels if not _PADDED.fullmatch(level) and _NUMBER.fullmatch(level)]
    if levels and len(numbers) == len(levels) == len(set(numbers)):
        return Reading("number", missing)
    return Reading("text", missing)


def trimmed(value: str | bytes) -> str:
    """Return a text without the blanks around it."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    return text.strip(" \t\r\n\f\v\u00a0\u200b\ufeff")


def plain_text(value: object) -> str | None:
    """Return a value of any type as text, None where there is none: whole numbers without '.0', text trimmed."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, (str, bytes)):
        return trimmed(value) or None
    if isinstance(value, (bool, np.bool_)):
        return "True" if value else "False"
    if isinstance(value, (int, float, np.number, Decimal)):
        return None if value != value else number_text(value)
    if isinstance(value, (date, datetime, clock_time)):
        return value.isoformat()
    return str(value)


def number_text(value: Any) -> str:
    """Return the shortest text of a number: 7 for 7.0, all digits of an integer, .83 of a float32 as .83."""
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        return str(int(value))
    if isinstance(value, Decimal):
        integral = value.is_finite() and value == value.to_integral_value()
        return str(int(value)) if integral else format(value.normalize(), "f") if value.is_finite() else str(value)
    if float(value).is_integer():
        return str(int(value))
    return str(value) if isinstance(value, np.floating) else repr(float(value))


def spellings(value: object) -> tuple[str, ...]:
    """The texts in which a value that is no text may have been written: 7.0 is 7 or 7.0, True is True or true."""
    text = plain_text(value)
    if text is None or isinstance(value, (str, bytes)):
        return ()
    if isinstance(value, (bool, np.bool_)):
        return (text, text.lower(), text.upper(), str(int(value)))
    if isinstance(value, (int, float, np.number, Decimal)) and _WHOLE.fullmatch(text):
        return (text, f"{text}.0")
    return (text,)


def _as_number(text: str, decimal: str = ".", thousands: str = "") -> str:
    """The shortest spelling of the number that a text is; the text itself where it is none, or a code like 007."""
    if _PADDED.fullmatch(text):
        return text
    if _WHOLE.fullmatch(text):
        return str(int(text))
    number = number_of(text, decimal, thousands)
    return text if number is None or not np.isfinite(number) else number_text(number)


def number_of(text: str, decimal: str = ".", thousands: str = "") -> float | None:
    """Return the number that a trimmed text is, also with a currency sign, a percent sign (12% is .12) or in
    parentheses (negative), None where it is none."""
    if _NUMBER.fullmatch(text) and decimal == ".":
        return float(text)
    negative, share = False, 1.0
    bare = text.replace("\u2212", "-")
    if bare.startswith("(") and bare.endswith(")"):
        negative, bare = True, bare[1:-1]
    if bare.endswith("%"):
        share, bare = 100.0, bare[:-1].rstrip()
    sign = bare[:1] if bare[:1] in ("-", "+") else ""
    bare = sign + bare[len(sign) :].strip(f"{_MONEY} \u00a0")
    if _INFINITE.fullmatch(bare):
        return float(bare)
    mark = r"[ \u00a0\u202f]" if thousands == " " else re.escape(thousands)
    if thousands and re.search(mark, bare):
        integer, point, rest = bare.partition(decimal)
        if not re.fullmatch(rf"[+-]?\d{{1,3}}(?:{mark}\d{{3}})+", integer):
            return None
        bare = re.sub(mark, "", integer) + point + rest
    if decimal != ".":
        if "." in bare:
            return None
        bare = bare.replace(decimal, ".")
    if not _NUMBER.fullmatch(bare):
        return None
    return float(bare) / share * (-1.0 if negative else 1.0)


def is_code(text: str) -> bool:
    """Whether a text is digits behind a zero, like a postal code: a number only by its looks."""
    return bool(_PADDED.fullmatch(text))


def as_series(values: Values) -> pd.Series[Any]:
    """Return the values of a column as a Series; a list keeps its values as they are."""
    if isinstance(values, pd.Series):
        return values
    if isinstance(values, np.ndarray):
        return pd.Series(values)
    return pd.Series(list(values), dtype=object)


def factorize(series: pd.Series[Any]) -> tuple[list[Any], AnyArray]:
    """Return the distinct values and (n,) the position of each row's value in them, -1 where it is missing.

    1, 1.0 and True are different values: they are equal to Python, but are not written alike.
    """
    if isinstance(series.dtype, pd.CategoricalDtype):
        return list(series.cat.categories), series.cat.codes.to_numpy(dtype=np.int64)
    if series.dtype == object and pd.api.types.infer_dtype(series, skipna=True) not in ("string", "empty"):
        places: dict[Any, int] = {}
        met = [-1 if _absent(v) else places.setdefault((type(v), _hashable(v)), len(places)) for v in series]
        return [value for _, value in places], np.array(met, dtype=np.int64)
    codes, distinct = pd.factorize(series)
    values = distinct.to_numpy() if isinstance(series.dtype, np.dtype) else distinct
    return list(values), np.asarray(codes, dtype=np.int64)


def _absent(value: object) -> bool:
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, (float, np.floating)) and value != value)
    )


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return str(value)
    return value


def _mapped(values: Values, text: Any) -> AnyArray:
    distinct, codes = factorize(as_series(values))
    table = np.empty(len(distinct) + 1, dtype=object)
    table[: len(distinct)] = [text(value) for value in distinct]
    return table[codes]
