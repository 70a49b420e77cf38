"""How results become JSON: fields by their names, numbers that are not finite as null, NumPy's values as Python's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from pydantic_core import to_jsonable_python


def jsonable(value: Any, *, without: Collection[str] = ()) -> Any:
    """Return a value with all that it holds as dictionaries, lists, text and numbers that JSON knows.

    without : fields (or keys) of the outermost value that are left out
    Times become ISO 8601 (UTC as ``Z``); what has no form of its own becomes its text.
    """
    return to_jsonable_python(value, exclude=set(without) or None, inf_nan_mode="null", fallback=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


class Jsonable:
    """A dataclass whose JSON is its fields, nested ones too."""

    __slots__ = ()
    UNWRITTEN: ClassVar[frozenset[str]] = frozenset()
    """Fields that are no part of the JSON, where the object stands alone (nested ones are written whole)."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields, JSON-ready; numbers that are not finite become None."""
        written: dict[str, Any] = jsonable(self, without=self.UNWRITTEN)
        return written
