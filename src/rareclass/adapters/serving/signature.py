"""From tensors to the model's matrix: names, types, shapes and ranges are checked against the schema first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass.adapters.serving.row_filter import check
from rareclass.adapters.serving.v2_codec import Request, Tensor, Wanted, shown, text, values
from rareclass.config import Condition
from rareclass.core.dataset import OTHER, Feature, FloatMatrix, Schema
from rareclass.core.reading import number_of
from rareclass.errors import InputError, nearest

ROLES = ("ts", "entity", "propensity")
PARAMETERS = ("explain", "missing", "operating_point", "top", *ROLES)
"""Parameters of a request that mean something here."""
PROTOCOL = frozenset(
    {
        "binary_data_output",
        "content_type",
        "headers",
        "priority",
        "sequence_end",
        "sequence_id",
        "sequence_start",
        "timeout",
        "triton_enable_empty_final_response",
    }
)
"""Those that clients of the protocol send of their own accord; they change no answer."""
_LATEST = 4_102_444_800.0


@dataclass(slots=True)
class Query:
    """One request as the model reads it.

    matrix : (n, features) float32
    text : categorical columns as they were sent, for the log and for shadows with other categories
    others : columns that only a shadow knows
    time, entity, propensity : (n,) or None; what the client knows about the rows, for the log
    top : reasons per row, 0 = none
    """

    id: str | None
    matrix: FloatMatrix
    text: dict[str, list[str | None]] = field(default_factory=dict)
    others: dict[str, NDArray[Any]] = field(default_factory=dict)
    time: list[float] | None = None
    entity: list[str] | None = None
    propensity: list[float] | None = None
    point: str | None = None
    top: int = 0
    wanted: Wanted = field(default_factory=Wanted)
    unknown: int = 0

    def __len__(self) -> int:
        return len(self.matrix)


class Signature:
    """The inputs that one model version takes.

    max_rows : rows of one request at most
    aliases : further tensor names for ts, entity and propensity (the names that the training data had)
    known : columns that a shadow of this version wants; they are let through
    within : conditions that rows have to meet, or-ed groups of and-ed ones (see ``within.groups``); their columns are
        let through
    """

    def __init__(
        self,
        schema: Schema,
        *,
        max_rows: int,
        aliases: Mapping[str, str] | None = None,
        known: Sequence[str] = (),
        points: Sequence[str] = (),
        within: Sequence[Sequence[Condition]] = (),
    ) -> None:
        self.schema, self.max_rows, self.points = schema, max_rows, tuple(points)
        self.index = {feature.name: at for at, feature in enumerate(schema.features)}
        self.others = frozenset(known) - self.index.keys()
        self.within = within
        self._let_through = self.others | {column for group in within for column, _, _ in group}
        roles = {**{role: role for role in ROLES}, **(aliases or {})}
        self.roles = {name: role for name, role in roles.items() if name not in self.index}
        # numbers that mean missing, as training read them (data.missing_values)
        self.tokens = {at: found for at, f in enumerate(schema.features) if len(found := _tokens(f))}
        self.codes = [{level: float(at) for at, level in enumerate(f.categories)} for f in schema.features]
        self.numeric = not schema.categorical.any()

    def body_limit(self) -> int:
        """Return the bytes that a request of ``max_rows`` rows can need at most."""
        return max(1 << 20, self.max_rows * (len(self.index) + 8) * 64)

    def takes(self, name: str) -> bool:
        """Tell whether a column of this name is read."""
        return name in self.index or name in self.roles or name in self._let_through

    def kind(self, name: str) -> str:
        """Return the kind of a feature, or "" where the name is none."""
        at = self.index.get(name)
        return "" if at is None else self.schema.features[at].kind

    def read(self, request: Request) -> Query:
        """Return the query behind a request. Raises InputError with one line."""
        options = request.parameters
        for name in options:
            if name not in PARAMETERS and name not in PROTOCOL:
                raise InputError(
                    f"unknown parameter {shown(name)}.{nearest(str(name), PARAMETERS)} A request takes: "
                    f"{', '.join(PARAMETERS)}"
                )
        missing = _flag(options, "missing")
        columns, roles = self._sorted(request.tensors)
        if len(columns) == 1 and self._is_matrix(tensor := next(iter(columns.values()))):
            query = Query(request.id, self._matrix(tensor, missing))
        else:
            query = self._columns(columns, missing)
            query.id = request.id
        n = len(query)
        if self.within:
            check(self.within, lambda name: self._sent(query, name), n)
        query.wanted = request.wanted
        query.top = self._top(options, request.wanted)
        query.point = self._point(options)
        query.time = self._times(roles, options, n)
        query.entity = _role(roles, options, "entity", n, _entity)
        query.propensity = _role(roles, options, "propensity", n, propensity_of)
        return query

    def _sorted(self, tensors: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        columns: dict[str, Tensor] = {}
        roles: dict[str, Tensor] = {}
        for tensor in tensors:
            role = self.roles.get(tensor.name)
            place, key = (columns, tensor.name) if role is None else (roles, role)
            if key in place:
                raise InputError(f"input '{tensor.name}' is there twice. Send each column once")
            if tensor.shape[0] > self.max_rows:
                raise InputError(
                    f"input '{tensor.name}' has {tensor.shape[0]} rows; one request takes {self.max_rows} at most. "
                    "Split it, or set serve.max_rows"
                )
            place[key] = tensor
        return columns, roles

    def _is_matrix(self, tensor: Tensor) -> bool:
        return len(tensor.shape) == 2 and tensor.name not in self.index

    def _matrix(self, tensor: Tensor, missing: bool) -> FloatMatrix:
        width = len(self.index)
        if tensor.shape[1] != width:
            raise InputError(
                f"input '{tensor.name}' has {tensor.shape[1]} columns; the model needs {width}: "
                f"{shown(', '.join(self.index), 200)[1:-1]}"
            )
        if tensor.datatype in ("BYTES", "BOOL"):
            raise InputError(f"input '{tensor.name}' is {tensor.datatype}; a matrix of all features must be FP32")
        matrix = _float32(tensor.name, values(tensor, missing=missing)).reshape(tensor.shape)
        if not self.numeric:
            for at, feature in enumerate(self.schema.features):
                if feature.kind == "categorical":
                    _check_codes(tensor.name, matrix[:, at], feature)
        for at, tokens in self.tokens.items():
            matrix[np.isin(matrix[:, at], tokens), at] = np.nan
        return matrix

    def _columns(self, columns: Mapping[str, Tensor], missing: bool) -> Query:
        for name in columns:
            if name not in self.index and name not in self._let_through:
                raise InputError(
                    f"unknown column '{shown(name)[1:-1]}'.{nearest(name, self.index)} The model takes: "
                    f"{shown(', '.join(self.index), 300)[1:-1]}"
                )
        absent = [name for name in self.index if name not in columns]
        if absent:
            raise InputError(
                f"column '{absent[0]}' is missing{f' (and {len(absent) - 1} more)' if len(absent) > 1 else ''}. "
                f"The model needs: {shown(', '.join(self.index), 300)[1:-1]}"
            )
        n = next(iter(columns.values())).shape[0]
        query = Query(None, np.empty((n, len(self.index)), dtype=np.float32))
        for name, tensor in columns.items():
            _check_column(tensor, n)
            flat = values(tensor, missing=missing)
            at = self.index.get(name)
            if at is None:
                query.others[name] = flat
            elif self.schema.features[at].kind == "numeric":
                if flat.dtype == object:
                    raise InputError(f"column '{name}' must hold numbers, but it is BYTES. Send FP32, FP64 or INT64")
                numbers = _float32(name, flat)
                tokens = self.tokens.get(at)
                query.matrix[:, at] = numbers if tokens is None else np.where(np.isin(numbers, tokens), np.nan, numbers)
            else:
                self._category(query, at, name, flat)
        return query

    def _category(self, query: Query, at: int, name: str, flat: NDArray[Any]) -> None:
        levels, level = self.codes[at], self.schema.features[at].level
        other = levels.get(OTHER, np.nan)
        texts = [
            value if isinstance(value, str) and value in levels else level(value, levels) for value in flat.tolist()
        ]
        query.text[name] = texts
        query.matrix[:, at] = [np.nan if level is None else levels.get(level, other) for level in texts]
        query.unknown += sum(level is not None and level not in levels for level in texts)

    def _sent(self, query: Query, name: str) -> NDArray[Any] | None:
        """Return a column of the request as it was sent: categories as text, None when it is not there."""
        at = self.index.get(name)
        if at is None:
            return query.others.get(name)
        feature = self.schema.features[at]
        if feature.kind == "numeric":
            return query.matrix[:, at]
        texts = query.text.get(name) or [
            None if np.isnan(c) else feature.categories[int(c)] for c in query.matrix[:, at]
        ]
        return np.array(texts, dtype=object)

    def _times(self, roles: Mapping[str, Tensor], options: Mapping[str, Any], n: int) -> list[float] | None:
        """Return the rows' times in seconds since 1970; under the name of the training column they are read as in
        training.
        """
        tensor, reading = roles.get("ts"), self.schema.roles.time
        if tensor is None or reading is None or tensor.name != reading.name or not reading.calendar:
            return _role(roles, options, "ts", n, moment_of)
        _check_column(tensor, n)
        flat = values(tensor, missing=False)
        found = reading.read(flat)[0]
        seconds = found.astype(np.int64) / 1e6
        return [
            moment_of(sent) if lost or not 0 <= moment < _LATEST else moment
            for sent, lost, moment in zip(flat.tolist(), np.isnat(found).tolist(), seconds.tolist(), strict=True)
        ]

    def _top(self, options: Mapping[str, Any], wanted: Wanted) -> int:
        explain = _flag(options, "explain") or "reasons" in wanted.names
        top = options.get("top", min(3, len(self.index)))
        if type(top) is not int or not 1 <= top <= max(1, len(self.index)):
            raise InputError(f"parameter 'top' must be a number from 1 to {len(self.index)}; it is {shown(top)}")
        return top if explain else 0

    def _point(self, options: Mapping[str, Any]) -> str | None:
        point = options.get("operating_point")
        if point is not None and point not in self.points:
            raise InputError(
                f"unknown operating point {shown(point)}.{nearest(point, self.points)} Set parameters.operating_point "
                f"to one of: {', '.join(self.points)}"
            )
        return point


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise InputError(f"parameter '{name}' must be true or false; it is {shown(value)}")
    return value


def _check_column(tensor: Tensor, n: int) -> None:
    if len(tensor.shape) == 2 and tensor.shape[1] != 1:
        raise InputError(f"column '{tensor.name}' has shape {list(tensor.shape)}; a column is [rows] or [rows, 1]")
    if tensor.shape[0] != n:
        raise InputError(
            f"column '{tensor.name}' has {tensor.shape[0]} rows, the first column {n}. Send equally long columns"
        )


def _float32(name: str, flat: NDArray[Any]) -> NDArray[np.float32]:
    if flat.dtype != np.float64:
        return flat.astype(np.float32)
    with np.errstate(over="ignore"):
        narrow = flat.astype(np.float32)
    if (np.isinf(narrow) & np.isfinite(flat)).any():
        raise InputError(f"input '{name}' holds a value beyond 3.4e38, which the model cannot read")
    return narrow


def _check_codes(name: str, codes: NDArray[np.float32], feature: Feature) -> None:
    count = len(feature.categories)
    bad = ~(np.isnan(codes) | ((codes >= 0) & (codes < count) & (codes == np.floor(codes))))
    if bad.any():
        raise InputError(
            f"input '{name}' holds {codes[bad][0]:g} for the category '{feature.name}'; "
            f"codes are 0 to {count - 1}, or send named columns with BYTES"
        )


def _tokens(feature: Feature) -> NDArray[np.float32]:
    """The numbers among the texts that mean missing in a numeric column."""
    if feature.kind != "numeric":
        return np.empty(0, dtype=np.float32)
    found = [number_of(text) for text in feature.reading.missing]
    return np.array([each for each in found if each is not None], dtype=np.float32)


def _role(
    roles: Mapping[str, Tensor], options: Mapping[str, Any], role: str, n: int, read: Callable[[object], Any]
) -> list[Any] | None:
    tensor = roles.get(role)
    if tensor is not None:
        _check_column(tensor, n)
        found: list[Any] = values(tensor, missing=False).tolist()
    elif options.get(role) is not None:
        given = options[role]
        found = given if isinstance(given, list) else [given] * n
        if len(found) != n:
            raise InputError(f"parameter '{role}' has {len(found)} values for {n} rows. Send one, or one per row")
    else:
        return None
    return [read(value) for value in found]


def moment_of(value: object) -> float:
    """Return a time that a client sent in seconds since 1970. Raises InputError."""
    try:
        if isinstance(value, str | bytes):
            moment = datetime.fromisoformat(text("ts", value, 0))
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            seconds = float(value)
        else:
            raise ValueError
        if not 0 <= seconds < _LATEST:
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(f"'ts' must be ISO 8601 text or seconds since 1970 (UTC); it is {shown(value)}") from None
    return seconds


def _entity(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | bytes | int | float):
        raise InputError(f"'entity' must be text or a number; it is {shown(value)}")
    name = text("entity", value, 0)
    if not 0 < len(name) <= 200 or "\0" in name:
        raise InputError(f"'entity' must be 1 to 200 characters; it is {shown(value)}")
    return name


def propensity_of(value: object) -> float:
    """Return the chance that a row gets a label, as a client sent it. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"'propensity' must be a probability from 0 to 1; it is {shown(value)}")
    return float(value)
