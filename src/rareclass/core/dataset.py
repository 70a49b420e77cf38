"""Labelled rows as one float32 matrix, and the schema that maps a table's columns to it and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.core.compatibility import check_fields
from rareclass.core.jsonable import Jsonable
from rareclass.core.reading import (
    NUMBER,
    Reading,
    Target,
    as_series,
    counted,
    factorize,
    plain_text,
    reading_of,
    spellings,
)
from rareclass.core.times import TimeReading
from rareclass.errors import DataError, nearest

FloatMatrix = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
AnyArray = NDArray[Any]

OTHER = "__other__"


@dataclass(frozen=True, slots=True)
class Feature(Jsonable):
    """One column. A categorical value is stored as its position in ``categories`` (as a float), an unknown one as NaN
    unless ``categories`` ends in OTHER, which then takes it. Missing is NaN for both kinds. ``reading`` is how its
    values become numbers or the texts of categories."""

    name: str
    kind: Literal["numeric", "categorical"] = "numeric"
    categories: tuple[str, ...] = ()
    reading: Reading = NUMBER

    def read(self, values: Any) -> tuple[FloatMatrix, BoolArray]:
        """Return (n,) float32 of a column's values (a Series, an array, a list) and (n,) True where a category is
        unknown.

        Raises DataError where a numeric column holds text.
        """
        if self.kind == "numeric":
            numbers, wrong = self.reading.numbers(values)
            if wrong:
                raise not_numbers(self.name, wrong, len(numbers))
            with np.errstate(over="ignore"):
                return numbers.astype(np.float32), np.zeros(len(numbers), dtype=bool)
        distinct, codes = factorize(pd.Series(values) if not isinstance(values, pd.Series) else values)
        code_of = {level: at for at, level in enumerate(self.categories)}
        pooled = float(len(self.categories) - 1) if self.categories[-1:] == (OTHER,) else np.nan
        table = np.full(len(distinct) + 1, np.nan, dtype=np.float32)
        unknown = np.zeros(len(distinct) + 1, dtype=bool)
        for position, value in enumerate(distinct):
            text = self.level(value, code_of)
            if text is not None:
                table[position], unknown[position] = code_of.get(text, pooled), text not in code_of
        return table[codes], unknown[codes]

    def texts(self, values: Any) -> list[str | None]:
        """Return the text of each value of a categorical column, None where it is missing."""
        distinct, codes = factorize(as_series(values))
        categories = dict.fromkeys(self.categories)
        table = [*(self.level(value, categories) for value in distinct), None]
        return [table[code] for code in codes.tolist()]

    def level(self, value: object, known: Mapping[str, Any]) -> str | None:
        """Return the text of one value: a category of ``known`` in whichever way it is spelled, None where missing."""
        text = self.reading.text(value)
        if text is None or text in known:
            return text
        return next((other for other in spellings(value) if other in known), text)

    def logged(self, values: Any) -> list[Any]:
        """Return (n,) values as they are kept in JSON and read back to the same: numbers with all their digits (7.0 is
        written 7, whatever the type of its column), or texts; None where missing.

        Raises DataError where a numeric column holds text.
        """
        if self.kind == "categorical":
            return list(self.reading.texts(values))
        numbers, wrong = self.reading.numbers(values)
        if wrong:
            raise not_numbers(self.name, wrong, len(numbers))
        return [_json_number(number) for number in numbers.tolist()]

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Feature:
        """Return the feature that ``to_json`` wrote, also of a version that did not say how it reads."""
        check_fields(Feature, raw, f"feature '{raw.get('name')}'")
        kind, categories = raw["kind"], tuple(raw["categories"])
        if "reading" in raw:
            return Feature(raw["name"], kind, categories, Reading.from_json(raw["reading"]))
        # of a version that did not say how it reads
        levels = [level for level in categories if level != OTHER]
        return Feature(raw["name"], kind, categories, NUMBER if kind == "numeric" else reading_of(levels))


def _json_number(number: float) -> int | float | None:
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def not_numbers(name: str, wrong: Mapping[str, int], rows: int) -> DataError:
    """The error for a numeric column with other values."""
    return DataError(
        f"column '{name}' must hold numbers; {sum(wrong.values()):,} of {rows:,} values are none: {counted(wrong)}. "
        "Make them empty, or add them to data.missing_values where they mean missing"
    )


@dataclass(frozen=True, slots=True)
class Roles(Jsonable):
    """The columns with a part of their own, and how they are read. Names are None where there is none.

    entity and id are exact text: an integer keeps all its digits, and `007` is not 7. encoding is that of its CSV
    files.
    """

    target: Target | None = None
    time: TimeReading | None = None
    entity: str | None = None
    id: str | None = None
    amount: str | None = None
    propensity: str | None = None
    encoding: str | None = None

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Roles:
        """Return the roles that ``to_json`` wrote; what is absent is None."""
        check_fields(Roles, raw, "the schema")
        target, time = raw.get("target"), raw.get("time")
        if target:
            check_fields(Target, target, "the target")
        if time:
            check_fields(TimeReading, time, "the time")
        return Roles(
            Target(**{**target, "values": tuple(target["values"]), "reading": Reading.from_json(target["reading"])})
            if target
            else None,
            TimeReading(**time) if time else None,
            *(raw.get(name) for name in ("entity", "id", "amount", "propensity", "encoding")),
        )


@dataclass(frozen=True, slots=True)
class Schema(Jsonable):
    """The features of a model, in order, and the roles of other columns: all that tells how to read a table.

    Every reader of a version uses it: ``encode(frame, schema)`` for features, ``schema.roles.target.labels(values)``,
    ``schema.roles.time.read(values)``, and ``schema.exact`` for the columns that a file has to give as exact text
    (``tables.read_frames(path, schema=schema)`` does). Schemas are equal when their features are.
    """

    features: tuple[Feature, ...]
    roles: Roles = field(default=Roles(), compare=False)

    @property
    def names(self) -> list[str]:
        """Names of the features in the order of the matrix."""
        return [feature.name for feature in self.features]

    @property
    def categorical(self) -> BoolArray:
        """(n_features,) True where the column is categorical."""
        return np.array([feature.kind == "categorical" for feature in self.features], dtype=bool)

    @property
    def exact(self) -> list[str]:
        """The columns whose values are text, whatever they look like: categories, target, entity, id, time."""
        roles = self.roles
        named = [role.name for role in (roles.target, roles.time) if role is not None]
        named += [name for name in (roles.entity, roles.id) if name is not None]
        return list(dict.fromkeys([f.name for f in self.features if f.kind == "categorical"] + named))

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Schema:
        """Return the schema that ``to_json`` wrote."""
        check_fields(Schema, raw, "the schema")
        return Schema(tuple(map(Feature.from_json, raw["features"])), Roles.from_json(raw.get("roles") or {}))


def text_of(values: pd.Series[Any]) -> pd.Series[Any]:
    """Values as text, each by itself: booleans 'True'/'False', whole floats without '.0', missing stays missing.

    For hashes and ids; the categories of a version are read with its schema.
    """
    if pd.api.types.is_integer_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype):
        return values.astype("string")
    distinct, codes = factorize(values)
    table = np.array([*map(plain_text, distinct), None], dtype=object)
    return pd.Series(table[codes], index=values.index, name=values.name, dtype="string")


def infer_schema(frame: pd.DataFrame, *, categorical: Sequence[str] = (), max_categories: int = 64) -> Schema:
    """Learn the schema from training rows, without looking at a target.

    Text, category and boolean columns, and those named in ``categorical``, become categories: the ``max_categories``
    most frequent levels, the rest pooled into OTHER. Everything else is numeric. Datetime columns are refused
    (DataError).
    """
    features = []
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_datetime64_any_dtype(column.dtype):
            raise DataError(
                f"column '{name}' is a time. Set data.time to it, or drop it with data.drop, or turn it into numbers "
                "first"
            )
        if str(name) in categorical or not (
            (pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype))
            or pd.api.types.is_timedelta64_dtype(column.dtype)
        ):
            reading = _reading_of_column(column)
            counts = pd.Series(reading.texts(column)).value_counts(dropna=True, sort=False)
            levels = sorted(counts.index, key=lambda level: (-int(counts[level]), str(level)))
            categories = tuple(str(level) for level in levels[:max_categories])
            features.append(
                Feature(
                    str(name), "categorical", categories + ((OTHER,) if len(levels) > max_categories else ()), reading
                )
            )
        else:
            features.append(Feature(str(name)))
    return Schema(tuple(features))


def _reading_of_column(column: pd.Series[Any]) -> Reading:
    if pd.api.types.is_bool_dtype(column.dtype):
        return Reading("boolean")
    if pd.api.types.is_numeric_dtype(column.dtype):
        return Reading("number")
    return reading_of([text for text in map(plain_text, factorize(column)[0]) if text is not None])


def encode(frame: pd.DataFrame, schema: Schema) -> FloatMatrix:
    """Return the (n_rows, n_features) float32 matrix of ``frame``, each column read as the schema says.

    Columns may be in any order and of any type, others are ignored.

    Raises DataError when a feature is missing from ``frame`` or a numeric one holds text.
    """
    matrix = np.empty((len(frame), len(schema.features)), dtype=np.float32)
    for position, feature in enumerate(schema.features):
        if feature.name not in frame.columns:
            raise DataError(
                f"column '{feature.name}' is missing.{nearest(feature.name, map(str, frame.columns))} The model "
                f"needs: {', '.join(schema.names)}"
            )
        matrix[:, position] = feature.read(frame[feature.name])[0]
    return matrix


def unknown_categories(frame: pd.DataFrame, schema: Schema) -> dict[str, tuple[int, str]]:
    """Return for each categorical column of ``frame`` how many values training did not keep, and one of them."""
    by_feature = {}
    for feature in schema.features:
        if feature.kind == "categorical" and feature.name in frame.columns:
            unknown = feature.read(frame[feature.name])[1]
            if unknown.any():
                first = frame[feature.name].iloc[int(np.argmax(unknown))]
                by_feature[feature.name] = (int(unknown.sum()), str(feature.reading.text(first))[:40])
    return by_feature


def decode(matrix: FloatMatrix, schema: Schema) -> pd.DataFrame:
    """Return the table behind an encoded matrix: float32 columns and pandas categories."""
    columns: dict[str, Any] = {}
    for position, feature in enumerate(schema.features):
        values = matrix[:, position]
        if feature.kind == "numeric":
            columns[feature.name] = values
        else:
            codes = np.where(np.isnan(values), -1, values).astype(np.int64)
            columns[feature.name] = pd.Categorical.from_codes(
                codes, categories=pd.Index(feature.categories, dtype=object)
            )
    return pd.DataFrame(columns)


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows. All arrays have the same length; the optional ones are None where the data has none.

    x : (n, n_features) float32, NaN = missing, categories as codes
    y : (n,) 0 or 1, 1 = the rare class
    row_id : (n,) uint64, stable hash of the row's id or content
    time : (n,) datetime64[us], UTC
    entity : (n,) uint64, hash of `data.entity`
    amount : (n,) amount at stake, in money
    weight : (n,) inverse-propensity weight, 1 = an ordinary row
    fold : (n,) int, fold of a resampled row (-1: the fit on all rows)
    keep : (n,) False where `train.filter` or `train.majority_quantile` keeps a fit from the row; None: nothing is kept
        from it
    drawn : (n,) probability with which the row was drawn from a table larger than memory, by its class; ``weight``
        holds its inverse already, so that whatever is estimated with it is on the natural prevalence. None: the rows
        are all there are
    most : (n,) weight with which a row enters a fit at most, however much it stands for in what is estimated; None:
        no bound
    """

    schema: Schema
    x: FloatMatrix
    y: IntArray
    row_id: NDArray[np.uint64]
    time: NDArray[np.datetime64] | None = None
    entity: NDArray[np.uint64] | None = None
    amount: FloatArray | None = None
    weight: FloatArray | None = None
    fold: IntArray | None = None
    keep: BoolArray | None = None
    drawn: FloatArray | None = None
    most: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def positives(self) -> int:
        """Rows of the rare class."""
        return int(self.y.sum())

    @property
    def prevalence(self) -> float:
        """Share of the rare class, among the rows that these were drawn from where they were; NaN without rows."""
        return float(np.average(self.y, weights=self.natural)) if len(self.y) else float("nan")

    @property
    def natural(self) -> FloatArray | None:
        """(n,) how many rows each one stands for; None where each stands for itself."""
        return None if self.drawn is None else 1.0 / self.drawn

    @property
    def represented(self) -> int:
        """How many rows these stand for: their number, where they are all there are."""
        natural = self.natural
        return len(self) if natural is None else round(float(natural.sum()))

    @property
    def weighted_prevalence(self) -> float:
        """Share of the rare class among the rows that these stand for; NaN without rows."""
        return float(np.average(self.y, weights=self.weight)) if len(self.y) else float("nan")

    def take(self, index: AnyArray | slice) -> Rows:
        """Return the rows at an index, mask or slice; these rows themselves where a mask leaves none out."""
        if isinstance(index, np.ndarray) and index.dtype == np.bool_ and index.all():
            return self
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "schema"}
        taken: dict[str, Any] = {name: None if array is None else array[index] for name, array in arrays.items()}
        return replace(self, **taken)

    def learnable(self) -> Rows:
        """Return the rows that a fit may see; these rows themselves where that is all of them."""
        return self if self.keep is None else self.take(self.keep)

    def as_drawn(self) -> Rows:
        """Return the rows as a fit takes them: those that were drawn count as they are, none counts more than it may,
        and the fit is corrected for that.
        """
        if self.drawn is None and self.most is None:
            return self
        weight = self.weight
        if weight is not None and self.drawn is not None:
            weight = weight * self.drawn
        if weight is not None and self.most is not None:
            weight = np.minimum(weight, self.most)
        plain = weight is None or np.allclose(weight, 1.0)
        return replace(self, drawn=None, most=None, weight=None if plain else weight)

    def block(self) -> NDArray[np.int64] | None:
        """(n,) bootstrap block: the day where there is time, else the entity, else None (rows are independent)."""
        if self.time is not None:
            return np.unique(self.time.astype("datetime64[D]"), return_inverse=True)[1].astype(np.int64)
        if self.entity is not None:
            return np.unique(self.entity, return_inverse=True)[1].astype(np.int64)
        return None


_WHOLE: dict[str, Any] = {"keep": True, "drawn": 1.0, "weight": 1.0, "most": np.inf}
"""What rows without an array have of it, where they are stacked with rows that have one."""


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Stack rows of one schema; nothing is copied where they lie one after the other in memory, as the parts of a split
    do.

    Raises DataError when the schemas differ.
    """
    first = parts[0]
    if any(part.schema != first.schema for part in parts):
        raise DataError("rows of different schemas cannot be stacked; encode both with the schema of the training rows")
    arrays: dict[str, Any] = {}
    drawn = any(part.drawn is not None for part in parts)
    for name in (f.name for f in fields(first) if f.name != "schema"):
        columns = [getattr(part, name) for part in parts]
        # parts without these are kept whole, and each of their rows counts once; what was drawn from a larger table
        # has weights
        some = any(array is not None for array in columns)
        if (name in _WHOLE and some) or (name == "weight" and drawn):
            columns = [
                np.full(len(part), _WHOLE[name]) if array is None else array
                for part, array in zip(parts, columns, strict=True)
            ]
        arrays[name] = None if any(array is None for array in columns) else _joined(columns)
    return Rows(schema=first.schema, **arrays)


def _joined(arrays: Sequence[AnyArray]) -> AnyArray:
    """Concatenate along the first axis: a view where all are views of one array, each beginning where the last one
    ends.
    """
    filled = [array for array in arrays if len(array)]
    if not filled:
        return arrays[0]
    first, owner = filled[0], filled[0].base
    if not isinstance(owner, np.ndarray) or not owner.flags.c_contiguous:
        return np.concatenate(arrays)
    place = first.ctypes.data
    for array in filled:
        inside = array.base is owner and array.dtype == owner.dtype and array.flags.c_contiguous
        if not inside or array.shape[1:] != first.shape[1:] or array.ctypes.data != place:
            return np.concatenate(arrays)
        place += array.nbytes
    start = (first.ctypes.data - owner.ctypes.data) // owner.itemsize
    size = sum(array.size for array in filled)
    return owner.reshape(-1)[start : start + size].reshape(-1, *first.shape[1:])
