"""How results become JSON: fields by their names, numbers that are not finite and values that are missing as null,
NumPy's and pandas' values as Python's.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
from pydantic_core import to_jsonable_python


def jsonable(value: Any, *, without: Collection[str] = ()) -> Any:
    """Return a value with all that it holds as dictionaries, lists, text and numbers that JSON knows.

    without : fields (or keys) of the outermost value that are left out
    Times become ISO 8601 (UTC as ``Z``), to the microsecond; what is missing, to whatever library, becomes None; what
    has no form of its own becomes its text.
    """
    return to_jsonable_python(_present(value), exclude=set(without) or None, inf_nan_mode="null", fallback=str)


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that every reader takes: Python's own would write NaN and Infinity, which JSON has not."""
    return json.dumps(jsonable(value), indent=indent, allow_nan=False)


def _present(value: Any) -> Any:
    """The same value in Python's own containers, with None for what is missing.

    pydantic takes pandas' NaT for a time and fails, and a Decimal that is no number for a text.
    """
    if isinstance(value, Mapping):
        return {_present(key): _present(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_present(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _present(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, np.ndarray | np.generic):
        return _python(value)
    if type(value).__name__ in _MISSING or (isinstance(value, Decimal) and not value.is_finite()):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return _present(value.tolist()) if hasattr(value, "tolist") else value


_MISSING = frozenset({"NaTType", "NAType"})
"""Types of pandas' missing values, by name: nothing here needs pandas."""


def _python(value: Any) -> Any:
    """NumPy's values as Python's; finer units of time than Python has would become bare numbers of that unit."""
    if value.dtype.kind in "mM" and np.datetime_data(value.dtype)[0] in ("ns", "ps", "fs", "as"):
        value = value.astype(f"{value.dtype.kind}8[us]")
    plain = value.tolist()
    return _present(plain) if value.dtype.hasobject else plain


class Jsonable:
    """A dataclass whose JSON is its fields, nested ones too."""

    __slots__ = ()
    UNWRITTEN: ClassVar[frozenset[str]] = frozenset()
    """Fields that are no part of the JSON, where the object stands alone (nested ones are written whole)."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready; numbers that are not finite become None."""
        written: dict[str, Any] = jsonable(self, without=self.UNWRITTEN)
        return written
