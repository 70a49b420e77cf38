"""One parser of times, for every reader: what a column's values mean is decided once, from all of them.

ISO text, other text with one date order for the whole column, epochs by their size, dates written as digits (199401,
20240131), and counts of a unit from an origin or in plain order. Times without a zone are UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.core.reading import USUAL_MISSING, Values, as_series, factorize, trimmed
from rareclass.errors import DataError

TimeArray = NDArray[np.datetime64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

EPOCHS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0}
"""Microseconds of one unit; a nanosecond is less than one."""
COUNTS: dict[str, Any] = {"minute": "m", "hour": "h", "day": "D", "week": "W", "month": "M", "year": "Y"}
UNITS = (*EPOCHS, *COUNTS, "order")
LAYOUTS = {"YYYY": 4, "YYYYMM": 6, "YYYYMMDD": 8, "YYYYMMDDHH": 10, "YYYYMMDDHHMM": 12, "YYYYMMDDHHMMSS": 14}
ORDERS = ("day-first", "month-first", "iso")

_NAT = np.datetime64("NaT", "us")
_FIRST, _LAST = np.datetime64("1970-01-01", "us"), np.datetime64("2100-01-01", "us")
_RANGES = {
    "s": (10**8, 4_102_444_800),
    "ms": (10**11, 4_102_444_800_000),
    "us": (10**14, 4_102_444_800_000_000),
    "ns": (10**17, 4_102_444_800_000_000_000),
}
_DATE = re.compile(
    r"^(?P<a>\d{1,2})\s*[/.\-]\s*(?P<b>\d{1,2})\s*[/.\-]\s*(?P<y>\d{4}|\d{2})"
    r"(?:[T,\s]+(?P<h>\d{1,2})[:.h](?P<m>\d{2})(?:[:.](?P<s>\d{2}(?:[.,]\d{1,9})?))?\s*(?P<p>[AaPp]\.?[Mm]\.?)?\s*(?P<z>Z|UTC|GMT|[+-]\d{2}:?\d{2})?)?$"
)


@dataclass(frozen=True, slots=True)
class TimeReading:
    """How one column becomes times.

    order : ``day-first`` or ``month-first`` of dates like 03/04/2024, empty where there are none
    unit : of numbers: a member of UNITS or of LAYOUTS, empty where there are none; origin : where counts begin (ISO)
    format : an explicit format of text like ``%d.%m.%Y``
    given : said by the configuration, so that years are not doubted
    """

    name: str
    order: Literal["", "day-first", "month-first"] = ""
    unit: str = ""
    origin: str = ""
    format: str = ""
    given: bool = False

    @property
    def calendar(self) -> bool:
        """Whether the values are moments; False where they only tell an order."""
        return self.unit != "order"

    def read(self, values: Values) -> tuple[TimeArray, BoolArray]:
        """Return (n,) datetime64[us] in UTC, NaT where there is none, and (n,) True where a value is no time.

        Missing values are NaT and not True. Times of 1970 to 2099 are believed, others only where the configuration
        named a format or unit.
        """
        series = as_series(values)
        if pd.api.types.is_datetime64_any_dtype(series.dtype):
            stamps, missing = _of_stamps(series), series.isna().to_numpy()
        elif pd.api.types.is_numeric_dtype(series.dtype) and not pd.api.types.is_bool_dtype(series.dtype):
            stamps, missing = self._of_numbers(series), series.isna().to_numpy()
        else:
            distinct, codes = factorize(series)
            table, gone = self._of_objects(distinct)
            stamps, missing = table[codes], gone[codes]
        if self.calendar and not self.given:
            first = np.datetime64("1900-01-01", "us") if self.unit in LAYOUTS else _FIRST
            stamps = np.where((stamps >= first) & (stamps < _LAST), stamps, _NAT)
        return stamps, np.isnat(stamps) & ~missing

    def _of_objects(self, distinct: Sequence[Any]) -> tuple[TimeArray, BoolArray]:
        """The times of distinct values of any type, and which are missing; one entry more for a missing value."""
        table, gone = np.full(len(distinct) + 1, _NAT), np.zeros(len(distinct) + 1, dtype=bool)
        gone[-1] = True
        texts: dict[int, str] = {}
        for position, value in enumerate(distinct):
            if isinstance(value, (str, bytes)):
                text = trimmed(value)
                gone[position] = not text or text in USUAL_MISSING
                texts[position] = text
            elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
                table[position] = self._of_numbers(pd.Series([value]))[0]
            elif hasattr(value, "isoformat"):
                texts[position] = value.isoformat()
            else:
                texts[position] = str(value)
        if texts:
            table[list(texts)] = self._of_text(list(texts.values()))
        return table, gone

    def _of_text(self, texts: Sequence[str]) -> TimeArray:
        stamps = np.full(len(texts), _NAT)
        if self.format and self.format not in ORDERS:
            return _utc(pd.to_datetime(pd.Series(texts, dtype=object), format=self.format, utc=True, errors="coerce"))
        digits = np.array([_is_digits(text) for text in texts], dtype=bool)
        if digits.any():
            numbers = pd.Series([int(text) for text, is_digit in zip(texts, digits, strict=True) if is_digit])
            stamps[digits] = self._of_numbers(numbers)
        # where the column was numbers, its texts are, too: of a CSV that is read as text (1792368000.0, -5)
        other = np.array([bool(self.unit) and bool(_NUMBER.fullmatch(text)) for text in texts], dtype=bool) & ~digits
        if other.any():
            floats = [float(text) for text, is_number in zip(texts, other, strict=True) if is_number]
            stamps[other] = self._of_numbers(pd.Series(floats))
        rest = np.flatnonzero(~digits & ~other)
        if len(rest):
            stamps[rest] = self._of_words(pd.Series([texts[int(at)] for at in rest], dtype=object))
        return stamps

    def _of_words(self, texts: pd.Series[Any]) -> TimeArray:
        dates = texts.str.match(_DATE.pattern).to_numpy(dtype=bool)
        stamps = np.full(len(texts), _NAT)
        if (~dates).any():
            other = texts[~dates]
            stamps[~dates] = _utc(pd.to_datetime(other, format="ISO8601", utc=True, errors="coerce"))
            left = np.flatnonzero(~dates)[np.isnat(stamps[~dates])]
            named = [
                at for at in left if re.search(r"[A-Za-z]{3}", texts.iloc[at]) and re.search(r"\d", texts.iloc[at])
            ]
            if named:  # the month is a word: no order to be mistaken in
                words = pd.to_datetime(texts.iloc[named], format="mixed", utc=True, errors="coerce")
                stamps[named] = _utc(words)
        if dates.any() and self.order:
            stamps[dates] = _ordered(texts[dates], self.order == "day-first")
        return stamps

    def _of_numbers(self, series: pd.Series[Any]) -> TimeArray:
        numbers, valid, fraction = _whole(series)
        if self.format:  # digits that are written in it
            texts = [str(number) if good else "" for number, good in zip(numbers, valid & ~fraction, strict=True)]
            return self._of_text(texts)
        unit = self.unit
        stamps = np.full(len(numbers), _NAT)
        if unit in LAYOUTS:
            valid &= ~fraction
            stamps[valid] = _laid_out(numbers[valid], unit)
        elif unit == "order":
            valid &= ~fraction
            stamps[valid] = numbers[valid].astype("datetime64[D]").astype("datetime64[us]")
        elif unit in COUNTS:
            stamps[valid] = _counted(series, numbers, fraction, unit, self.origin)[valid]
        else:
            for name in EPOCHS if not unit else (unit,):
                low, high = (-(2**63), 2**63 - 1) if self.given and unit else _RANGES[name]
                inside = valid & (numbers >= low) & (numbers < high)
                stamps[inside] = _epoch(series, numbers, fraction, name)[inside]
        return stamps


_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")


def _is_digits(text: str) -> bool:
    return text.isdecimal() and len(text) < 20 and int(text) < 2**63


def _utc(parsed: pd.Series[Any]) -> TimeArray:
    return np.asarray(parsed.dt.tz_localize(None).to_numpy().astype("datetime64[us]"))


def _of_stamps(series: pd.Series[Any]) -> TimeArray:
    if isinstance(series.dtype, pd.DatetimeTZDtype):
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    return np.asarray(series.to_numpy().astype("datetime64[us]"))


def _whole(series: pd.Series[Any]) -> tuple[IntArray, BoolArray, BoolArray]:
    """(n,) the numbers as int64, exact where they are integers; which are there; which have a fraction."""
    if pd.api.types.is_integer_dtype(series.dtype):
        valid = series.notna().to_numpy()
        return series.fillna(0).to_numpy(dtype=np.int64, na_value=0), valid, np.zeros(len(series), dtype=bool)
    floats = series.to_numpy(dtype=np.float64, na_value=np.nan)
    valid = np.isfinite(floats) & (np.abs(floats) < 2.0**62)
    floor = np.floor(np.where(valid, floats, 0))
    return floor.astype(np.int64), valid, valid & (floats != floor)


def _epoch(series: pd.Series[Any], numbers: IntArray, fraction: BoolArray, unit: str) -> TimeArray:
    if unit == "ns":
        return (numbers // 1000).view("datetime64[us]")
    factor = EPOCHS[unit]
    with np.errstate(over="ignore"):
        stamps = numbers * factor
    if fraction.any():
        floats = series.to_numpy(dtype=np.float64, na_value=np.nan)
        stamps[fraction] += np.rint((floats - numbers)[fraction] * factor).astype(np.int64)
    return stamps.view("datetime64[us]")


def _counted(series: pd.Series[Any], numbers: IntArray, fraction: BoolArray, unit: str, origin: str) -> TimeArray:
    code = COUNTS[unit]
    start = np.datetime64(_origin(origin), "us")
    if unit in ("month", "year"):  # no fixed length; a fraction of one is not told
        stamps = (start.astype(f"datetime64[{code}]") + numbers.astype(f"timedelta64[{code}]")).astype("datetime64[us]")
        return np.where(fraction, _NAT, stamps)
    length = np.timedelta64(1, code).astype("timedelta64[us]").astype(np.int64)
    steps = numbers * length
    if fraction.any():
        floats = series.to_numpy(dtype=np.float64, na_value=np.nan)
        steps[fraction] += np.rint((floats - numbers)[fraction] * length).astype(np.int64)
    return np.asarray(start + steps.astype("timedelta64[us]"))


def _origin(origin: str) -> Any:
    stamp = pd.Timestamp(origin or "1970-01-01")
    return (stamp.tz_convert("UTC").tz_localize(None) if stamp.tzinfo else stamp).to_datetime64()


def _laid_out(numbers: IntArray, layout: str) -> TimeArray:
    """Times of dates that are written as digits; NaT where the digits are no date."""
    digits = LAYOUTS[layout]
    parts, rest = [], numbers.copy()
    for _ in range((digits - 4) // 2):
        parts.append(rest % 100)
        rest = rest // 100
    year = rest
    month, day, hour, minute, second = ([*reversed(parts)] + [None] * 5)[:5]
    ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
    month, day = ones if month is None else month, ones if day is None else day
    hour, minute, second = (zeros if part is None else part for part in (hour, minute, second))
    return _composed(year, month, day, hour, minute, second * 1_000_000)


def _composed(year: Any, month: Any, day: Any, hour: Any, minute: Any, micro: Any) -> TimeArray:
    """Times of their parts, NaT where a part is out of its range (the 31st of April, 25 o'clock)."""
    good = (year >= 1) & (year <= 9999) & (month >= 1) & (month <= 12) & (day >= 1) & (hour <= 23) & (minute <= 59)
    good &= micro < 60_000_000
    months = np.where(good, (year - 1970) * 12 + month - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + (day - 1).astype("timedelta64[D]")
    good &= days.astype("datetime64[M]") == months
    rest = (hour * 3600 + minute * 60) * 1_000_000 + micro
    return np.where(good, days.astype("datetime64[us]") + rest.astype("timedelta64[us]"), _NAT)


def _ordered(texts: pd.Series[Any], day_first: bool) -> TimeArray:
    """Times of texts like 03/04/2024 07:16, all in one order."""
    parts = texts.str.extract(_DATE)
    first, second, year = (parts[name].astype(np.int64).to_numpy() for name in ("a", "b", "y"))
    short = (parts["y"].str.len() == 2).to_numpy()
    year = np.where(short, year + np.where(year < 70, 2000, 1900), year)
    hour, minute = (parts[name].fillna("0").astype(np.int64).to_numpy() for name in ("h", "m"))
    half = parts["p"].fillna("").str[:1].str.lower().to_numpy()
    wrong = (half != "") & ((hour < 1) | (hour > 12))
    hour = np.where(half == "", hour, hour % 12 + np.where(half == "p", 12, 0))
    seconds = parts["s"].fillna("0").str.replace(",", ".").astype(np.float64).to_numpy()
    day, month = (first, second) if day_first else (second, first)
    local = _composed(year, month, day, hour, minute, np.rint(seconds * 1e6).astype(np.int64))
    offset = parts["z"].fillna("").map(_offset).to_numpy(dtype="timedelta64[m]")
    return np.where(wrong, _NAT, local - offset)


def _offset(zone: str) -> np.timedelta64:
    if zone in ("", "Z", "UTC", "GMT"):
        return np.timedelta64(0, "m")
    digits = zone[1:].replace(":", "")
    return np.timedelta64((-1 if zone[0] == "-" else 1) * (int(digits[:2]) * 60 + int(digits[2:])), "m")


def check_span(name: str, times: TimeArray, reading: TimeReading) -> None:
    """Raise DataError where all times lie in the first year of the count: numbers taken in a wrong unit look so."""
    if reading.given or not reading.calendar or reading.unit or not len(times):
        return
    first, last = times.min(), times.max()
    if first < last < np.datetime64("1971-01-01"):
        raise DataError(
            f"column '{name}' (data.time) lies between {first} and {last}: numbers taken in a wrong unit look so. "
            "Write the times anew, or set data.time_format: iso if they are right"
        )


class TimeSurvey:
    """Looks at all values of a column, batch by batch, and decides how they are read.

    format, unit, origin : ``data.time_format``, ``data.time_unit`` and ``data.time_origin``, None where not set
    """

    def __init__(
        self, name: str, format: str | None = None, unit: str | None = None, origin: str | None = None
    ) -> None:
        self.name, self.format, self.unit, self.origin = name, format, unit, origin
        self.first_large, self.second_large, self.dates = 0, 0, 0
        self.example: str | None = None
        self.number: object = None
        self.low, self.high, self.fractions, self.numbers = 2**63 - 1, -(2**63), False, 0
        self.layouts = dict.fromkeys(LAYOUTS, True)
        self.units = dict.fromkeys(EPOCHS, 0)
        self.other = 0

    @property
    def told(self) -> bool:
        """Whether the configuration decides alone, so that no value needs to be looked at."""
        return bool(self.unit) or bool(self.format)

    def add(self, values: Values) -> None:
        """Look at the values of one batch."""
        series = as_series(values)
        if pd.api.types.is_datetime64_any_dtype(series.dtype):
            return  # told by their type
        if pd.api.types.is_numeric_dtype(series.dtype):
            self._add_numbers(series)
        else:
            distinct = factorize(series)[0]
            texts = [trimmed(v) if isinstance(v, (str, bytes)) else str(v) for v in distinct]
            texts = [text for text in texts if text and text not in USUAL_MISSING]
            digits = [int(text) for text in texts if _is_digits(text)]
            if digits:
                self._add_numbers(pd.Series(digits))
            self._add_dates([text for text in texts if not _is_digits(text)])

    def _add_numbers(self, series: pd.Series[Any]) -> None:
        numbers, valid, fraction = _whole(series)
        self.fractions |= bool(fraction.any())
        numbers = numbers[valid]
        if not len(numbers):
            return
        self.numbers += len(numbers)
        self.number = numbers[0] if self.number is None else self.number
        self.low, self.high = min(self.low, int(numbers.min())), max(self.high, int(numbers.max()))
        distinct = np.unique(numbers)
        for layout, possible in self.layouts.items():
            if possible:
                times = _laid_out(distinct, layout)
                fits = (
                    (times >= np.datetime64("1900-01-01")) & (times < _LAST) & (distinct >= 10 ** (LAYOUTS[layout] - 1))
                )
                self.layouts[layout] = bool(fits.all())
        inside = np.zeros(len(numbers), dtype=bool)
        for unit, (low, high) in _RANGES.items():
            here = (numbers >= low) & (numbers < high)
            self.units[unit] += int(here.sum())
            inside |= here
        self.other += int((~inside).sum())

    def _add_dates(self, texts: Sequence[str]) -> None:
        for text in texts:
            match = _DATE.match(text)
            if match is not None:
                self.example = self.example or text
                self.dates += 1
                self.first_large += int(match["a"]) > 12
                self.second_large += int(match["b"]) > 12

    def done(self) -> TimeReading:
        """Return how the column is read. Raises DataError with what to set where the values leave it open."""
        if self.unit:
            return TimeReading(self.name, unit=self.unit, origin=self.origin or "", given=True)
        if self.format:
            return self._as_told(self.format)
        unit = self._unit() if self.numbers else ""
        return TimeReading(self.name, order=self._order() if self.dates else "", unit=unit)

    def _as_told(self, format: str) -> TimeReading:
        if format in LAYOUTS:
            return TimeReading(self.name, unit=format, given=True)
        if format in ("day-first", "month-first"):
            return TimeReading(self.name, order=format, given=True)  # type: ignore[arg-type]
        return TimeReading(self.name, format="" if format == "iso" else format, given=True)

    def _order(self) -> Literal["day-first", "month-first"]:
        if self.first_large == self.second_large:
            what = (
                "no value tells"
                if not self.first_large
                else f"{self.first_large:,} values tell one and as many the other"
            )
            raise DataError(
                f"column '{self.name}' (data.time) has dates like '{self.example}': day or month first? {what}. "
                "Set data.time_format: day-first or month-first"
            )
        return "day-first" if self.first_large > self.second_large else "month-first"

    def _unit(self) -> str:
        if not self.fractions:
            for layout in sorted(LAYOUTS, key=lambda name: -LAYOUTS[name]):
                if self.layouts[layout]:
                    return layout
        units = [unit for unit, count in self.units.items() if count]
        if len(units) == 1 and not self.other:
            return units[0]
        if len(units) > 1:
            raise DataError(
                f"column '{self.name}' (data.time) has numbers from {self.low} to {self.high}, which are times of "
                f"{' and of '.join(units)}. "
                "Bring one unit, or set data.time_unit: s, ms, us or ns"
            )
        if units and self.other * 20 < self.numbers:
            return units[0]  # a few values are no times: they are counted where they are read
        raise DataError(
            f"column '{self.name}' (data.time) has numbers from {self.low} to {self.high}, which are no times by "
            "themselves. "
            "Set data.time_unit to what they count (hour, day, month, ... "
            "from data.time_origin, or order), or data.time_format"
        )
