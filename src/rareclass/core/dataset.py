"""Labelled rows as one float32 matrix, and the schema that maps a table's columns to it and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.errors import DataError, nearest

FloatMatrix = NDArray[np.float32]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
AnyArray = NDArray[Any]

OTHER = "__other__"


@dataclass(frozen=True, slots=True)
class Feature:
    """One column. A categorical value is stored as its position in ``categories`` (as a float), an unknown one as NaN
    unless ``categories`` ends in OTHER, which then takes it. Missing is NaN for both kinds."""

    name: str
    kind: Literal["numeric", "categorical"] = "numeric"
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Schema:
    """The features of a model, in order."""

    features: tuple[Feature, ...]

    @property
    def names(self) -> list[str]:
        return [feature.name for feature in self.features]

    @property
    def categorical(self) -> BoolArray:
        """(n_features,) True where the column is categorical."""
        return np.array([feature.kind == "categorical" for feature in self.features], dtype=bool)

    def to_json(self) -> dict[str, Any]:
        return {"features": [asdict(feature) for feature in self.features]}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Schema:
        return Schema(tuple(Feature(f["name"], f["kind"], tuple(f["categories"])) for f in raw["features"]))


def text_of(values: pd.Series[Any]) -> pd.Series[Any]:
    """Category values as text: booleans 'True'/'False', whole floats without '.0', missing stays missing."""
    if pd.api.types.is_bool_dtype(values.dtype):
        return values.astype("string")
    if pd.api.types.is_float_dtype(values.dtype):
        whole = values.dropna()
        if len(whole) and bool((whole % 1 == 0).all()):
            return values.astype("Int64").astype("string")
    return values.astype("string")


def infer_schema(frame: pd.DataFrame, *, categorical: Sequence[str] = (), max_categories: int = 64) -> Schema:
    """Learn the schema from training rows, without looking at a target.

    Text, category and boolean columns, and those named in ``categorical``, become categories: the ``max_categories``
    most frequent levels, the rest pooled into OTHER. Everything else is numeric. Datetime columns are refused (DataError).
    """
    features = []
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_datetime64_any_dtype(column.dtype):
            raise DataError(
                f"column '{name}' is a time. Set data.time to it, or drop it with data.drop, or turn it into numbers first"
            )
        if str(name) in categorical or not (
            pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
        ):
            counts = text_of(column).value_counts(dropna=True, sort=False)
            levels = sorted(counts.index, key=lambda level: (-int(counts[level]), str(level)))
            kept = tuple(str(level) for level in levels[:max_categories])
            features.append(
                Feature(str(name), "categorical", kept + ((OTHER,) if len(levels) > max_categories else ()))
            )
        else:
            features.append(Feature(str(name)))
    return Schema(tuple(features))


def encode(frame: pd.DataFrame, schema: Schema) -> FloatMatrix:
    """Return the (n_rows, n_features) float32 matrix of ``frame``; columns may be in any order, others are ignored.

    Raises DataError when a feature is missing from ``frame`` or a numeric one holds text.
    """
    matrix = np.empty((len(frame), len(schema.features)), dtype=np.float32)
    for position, feature in enumerate(schema.features):
        if feature.name not in frame.columns:
            raise DataError(
                f"column '{feature.name}' is missing.{nearest(feature.name, map(str, frame.columns))} The model needs: {', '.join(schema.names)}"
            )
        column = frame[feature.name]
        if feature.kind == "numeric":
            try:
                matrix[:, position] = pd.to_numeric(column).to_numpy(dtype=np.float32, na_value=np.nan)
            except (ValueError, TypeError):
                raise DataError(
                    f"column '{feature.name}' must hold numbers; it holds {column.dtype} values like {column.dropna().iloc[0]!r}"
                ) from None
        else:
            text = text_of(column)
            codes = pd.Categorical(text, categories=list(feature.categories)).codes.astype(np.float32)
            codes[codes < 0] = np.nan
            if feature.categories and feature.categories[-1] == OTHER:
                codes[np.isnan(codes) & text.notna().to_numpy()] = len(feature.categories) - 1
            matrix[:, position] = codes
    return matrix


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

    def __len__(self) -> int:
        return len(self.y)

    @property
    def positives(self) -> int:
        return int(self.y.sum())

    @property
    def prevalence(self) -> float:
        """Share of the rare class; NaN without rows."""
        return float(self.y.mean()) if len(self.y) else float("nan")

    def take(self, index: AnyArray) -> Rows:
        """Return the rows at an index or mask; these rows themselves where a mask leaves none out."""
        if isinstance(index, np.ndarray) and index.dtype == np.bool_ and index.all():
            return self
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "schema"}
        taken: dict[str, Any] = {name: None if array is None else array[index] for name, array in arrays.items()}
        return replace(self, **taken)

    def block(self) -> NDArray[np.int64] | None:
        """(n,) bootstrap block: the day where there is time, else the entity, else None (rows are independent)."""
        if self.time is not None:
            return np.unique(self.time.astype("datetime64[D]"), return_inverse=True)[1].astype(np.int64)
        if self.entity is not None:
            return np.unique(self.entity, return_inverse=True)[1].astype(np.int64)
        return None


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Stack rows of one schema; nothing is copied where they lie one after the other in memory, as the parts of a split do.

    Raises DataError when the schemas differ.
    """
    first = parts[0]
    if any(part.schema != first.schema for part in parts):
        raise DataError("rows of different schemas cannot be stacked; encode both with the schema of the training rows")
    arrays: dict[str, Any] = {}
    for name in (f.name for f in fields(first) if f.name != "schema"):
        found = [getattr(part, name) for part in parts]
        arrays[name] = None if any(array is None for array in found) else _joined(found)
    return Rows(schema=first.schema, **arrays)


def _joined(arrays: Sequence[AnyArray]) -> AnyArray:
    """Concatenate along the first axis: a view where all are views of one array, each beginning where the last one ends."""
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
