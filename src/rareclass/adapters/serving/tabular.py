"""Rows as tables: Arrow streams, and the bodies of MLflow's /invocations, read as the protocol's tensors.

A table has no place for the protocol's ``missing``: its nulls are missing values. In Arrow a stream's schema metadata
may carry ``id`` and ``parameters`` (a JSON object), and the answer's carries ``model_name``, ``model_version``, ``id``
and ``parameters``. MLflow leaves out columns that a model does not take, and so does ``/invocations``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.adapters.serving.engine import Answer
from rareclass.adapters.serving.signature import Signature
from rareclass.adapters.serving.v2_codec import Request, Tensor, check_shape, request_id, shown
from rareclass.core.dataset import Feature, not_numbers
from rareclass.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
CSV = "text/csv"
_FORMS = "dataframe_split, dataframe_records"


def from_arrow(body: bytes, signature: Signature, limit: int) -> Request:
    """Return the rows of an Arrow IPC stream. Raises InputError.

    limit : bytes that the rows may take once dictionaries are unfolded
    """
    import pyarrow as pa

    _refuse_packed_buffers(body)
    try:
        table = pa.ipc.open_stream(pa.py_buffer(body)).read_all()
        _check_rows(table.num_rows, signature)
        table.validate(full=True)
        columns = list(_columns(table))
    except (
        pa.ArrowException,
        OSError,
        UnicodeDecodeError,
    ) as error:  # a name that is not UTF-8 is seen when it is read
        raise InputError(f"the body is not a valid Arrow IPC stream: {shown(str(error), 120)}") from None
    said = {key.decode(errors="replace"): value for key, value in (table.schema.metadata or {}).items()}
    given = request_id(said["id"].decode(errors="replace"), "id") if "id" in said else None
    parameters = _json_object(said["parameters"], "parameters") if "parameters" in said else {}
    tensors = [_from_column(name, column, signature, limit) for name, column in columns]
    return Request(given, {**parameters, "missing": True}, tensors)


def to_arrow(answer: Answer, name: str) -> bytes:
    """Return score and decision, and reasons where they were asked for, as an Arrow IPC stream."""
    import orjson
    import pyarrow as pa

    arrays = answer.arrays()
    names = answer.query.wanted.names or tuple(each for each in arrays if each in ("score", "decision", "reasons"))
    said = {
        "model_name": name,
        "model_version": answer.active.version,
        "id": answer.id,
        "parameters": orjson.dumps(answer.parameters()).decode(),
    }
    table = pa.table({each: pa.array(arrays[each]) for each in names}).replace_schema_metadata(said)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def from_csv(body: bytes, signature: Signature) -> Request:
    """Return the rows of a CSV file with a header, every feature read from its text as training read it.

    Raises InputError.
    """
    import pyarrow as pa
    from pyarrow import csv

    features = {feature.name: feature for feature in signature.schema.features}
    exact = [*features, *(name for name, role in signature.roles.items() if role == "entity")]
    try:
        # only the empty cell is missing here: NA may be a country, and the schema knows what else means missing
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(exact, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        table = csv.read_csv(pa.BufferReader(body), convert_options=convert)
        columns = list(_columns(table))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"the body is not a valid CSV file: {shown(str(error), 160)}") from None
    _check_rows(table.num_rows, signature)
    tensors = [
        _from_text(features[name], column)
        if name in features and features[name].kind == "numeric"
        else _from_column(name, column, signature, len(body))
        for name, column in columns
        if signature.takes(name)
    ]
    return Request(None, {"missing": True}, tensors)


def _from_text(feature: Feature, column: pa.ChunkedArray) -> Tensor:
    """Return the numbers behind a column of text, as the version reads them."""
    found, wrong = feature.reading.numbers(column.to_pylist())
    if wrong:
        raise InputError(str(not_numbers(feature.name, wrong, len(found))))
    return Tensor(feature.name, "FP64", check_shape(feature.name, [len(found)]), raw=found.data.cast("B"))


def from_mlflow(body: bytes, signature: Signature) -> Request:
    """Return the rows of a JSON body as ``mlflow models serve`` takes it. Raises InputError."""
    raw = _json_object(body, "the body")
    parameters = raw.get("params") or {}
    if not isinstance(parameters, dict):
        raise InputError(f"'params' must be an object; it is {shown(parameters)}")
    known: Mapping[str, Callable[[Any], dict[str, list[Any]]]] = {
        "dataframe_split": _split,
        "dataframe_records": _records,
    }
    forms = [name for name in known if name in raw]
    if len(forms) != 1:
        raise InputError(f"the body must be a JSON object with one of: {_FORMS}")
    columns = known[forms[0]](raw[forms[0]])
    rows = len(next(iter(columns.values()), []))
    _check_rows(rows, signature)
    tensors = [
        _from_values(name, values, signature.kind(name)) for name, values in columns.items() if signature.takes(name)
    ]
    return Request(None, {**parameters, "missing": True}, tensors)


def _split(node: object) -> dict[str, list[Any]]:
    columns, data = (node.get("columns"), node.get("data")) if isinstance(node, dict) else (None, None)
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        raise InputError(
            "'dataframe_split' must be an object with 'columns', a list of names, and 'data', a list of rows"
        )
    if len(set(columns)) < len(columns):
        raise InputError("'dataframe_split' names a column twice. Send each column once")
    if not isinstance(data, list) or any(type(row) is not list or len(row) != len(columns) for row in data):
        raise InputError(f"'data' of dataframe_split must be a list of rows of {len(columns)} values")
    return (
        dict(zip(columns, map(list, zip(*data, strict=True)), strict=True)) if data else {name: [] for name in columns}
    )


def _records(node: object) -> dict[str, list[Any]]:
    if not isinstance(node, list) or any(type(row) is not dict for row in node):
        raise InputError("'dataframe_records' must be a list of objects, one for each row")
    # a record that leaves a column out has no value there, as in a pandas table made of these records
    names = list(dict.fromkeys(name for row in node for name in row))
    return {name: [row.get(name) for row in node] for name in names}


def _from_values(name: str, values: list[Any], kind: str) -> Tensor:
    """Return a column of JSON values as a tensor: numbers as numbers, and categories as text unless all are numbers."""
    shape = check_shape(name, [len(values)])
    types = set(map(type, values)) - {type(None)}
    if types & {list, dict}:
        raise InputError(f"column '{shown(name)[1:-1]}' holds a list or an object; a value is a number, text or null")
    if types == {bool} and len(set(values)) <= 2 and None not in values:
        return Tensor(name, "BOOL", shape, values)
    if types <= {int, float} and (types or kind == "numeric"):
        return Tensor(name, "INT64" if types == {int} and None not in values else "FP64", shape, values)
    if kind == "numeric":
        return Tensor(name, "FP64", shape, values)  # refused with the position of what is no number
    return Tensor(
        name, "BYTES", shape, [value if value is None or type(value) is str else str(value) for value in values]
    )


def _columns(table: pa.Table) -> Iterable[tuple[str, pa.ChunkedArray]]:
    return zip(table.column_names, table.columns, strict=True)


def _from_column(name: str, column: pa.ChunkedArray, signature: Signature, limit: int) -> Tensor:
    import pyarrow as pa
    from pyarrow import compute, types

    shape = check_shape(name, [len(column)])
    kind = column.type
    if types.is_dictionary(kind):
        column = _unfolded(name, column, limit)
        kind = column.type
    if types.is_timestamp(kind) and signature.roles.get(name) == "ts":
        seconds = compute.divide(column.cast(pa.timestamp("us")).cast(pa.int64()).cast(pa.float64()), 1e6)
        return Tensor(name, "FP64", shape, raw=_raw(seconds, np.float64))
    if types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
        return Tensor(
            name,
            "BYTES" if signature.kind(name) != "numeric" or not types.is_null(kind) else "FP64",
            shape,
            column.to_pylist(),
        )
    if types.is_boolean(kind):
        if column.null_count:
            return Tensor(name, "BYTES", shape, [None if each is None else str(each) for each in column.to_pylist()])
        return Tensor(name, "BOOL", shape, raw=_raw(column, np.bool_))
    if types.is_float32(kind):
        return Tensor(name, "FP32", shape, raw=_raw(column, np.float32))
    if types.is_integer(kind) and not column.null_count and not types.is_uint64(kind):
        return Tensor(name, "INT64", shape, raw=_raw(column.cast(pa.int64()), np.int64))
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return Tensor(name, "FP64", shape, raw=_raw(column.cast(pa.float64(), safe=False), np.float64))
    raise InputError(f"column '{shown(name)[1:-1]}' is {shown(str(kind))[1:-1]}; send numbers, booleans or text")


def _unfolded(name: str, column: pa.ChunkedArray, limit: int) -> pa.ChunkedArray:
    """Return a dictionary column as plain values; what a few long texts would unfold to is counted first."""
    import pyarrow as pa
    from pyarrow import compute, types

    if types.is_string(column.type.value_type) or types.is_large_string(column.type.value_type):
        size = sum(
            compute.sum(compute.take(compute.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0
            for chunk in column.chunks
        )
        if size > limit:
            raise InputError(f"column '{shown(name)[1:-1]}' unfolds to {size} bytes; a request has {limit} at most")
    elif not types.is_primitive(column.type.value_type):
        raise InputError(
            f"column '{shown(name)[1:-1]}' is {shown(str(column.type))[1:-1]}; send numbers, booleans or text"
        )
    return pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks])


def _raw(column: pa.ChunkedArray, dtype: Any) -> memoryview:
    """Return the column's numbers as raw bytes; a null is NaN."""
    return np.ascontiguousarray(column.to_numpy(zero_copy_only=False), dtype=dtype).data.cast("B")


def _check_rows(rows: int, signature: Signature) -> None:
    if rows < 1:
        raise InputError("the table has no rows. Send at least one row")
    if rows > signature.max_rows:
        raise InputError(
            f"the table has {rows} rows; one request takes {signature.max_rows} at most. "
            "Split it, or set serve.max_rows"
        )


def _json_object(text: bytes, where: str) -> dict[str, Any]:
    import orjson

    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{where} is not valid JSON: {shown(str(error), 120)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{where} must be a JSON object; it is {type(found).__name__}")
    return found


def _refuse_packed_buffers(body: bytes) -> None:
    """Refuse a stream whose buffers are compressed: a few bytes of it may unfold to all of the memory.

    pyarrow does not say whether a message is compressed, so its header (a FlatBuffers table, Message.fbs of the Arrow
    format) is looked at: RecordBatch is member 2 of a message, or of a DictionaryBatch its member 1; its member 3 is
    the compression. Content-Encoding does the same job with a bound.
    """
    import pyarrow as pa

    try:
        reader = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
        while True:
            try:
                message = reader.read_next_message()
            except StopIteration:
                return
            header = bytes(message.metadata)
            batch = _member(header, struct.unpack_from("<I", header)[0], 2)
            if message.type == "dictionary":
                batch = None if batch is None else _member(header, batch, 1)
            if message.type != "schema" and (batch is None or _member(header, batch, 3) is not None):
                raise InputError(
                    "the Arrow stream has compressed buffers. Send them plain, with Content-Encoding gzip or zstd"
                )
    except (pa.ArrowException, OSError, EOFError, struct.error) as error:
        raise InputError(f"the body is not a valid Arrow IPC stream: {shown(str(error), 120)}") from None


def _member(buffer: bytes, table: int, index: int) -> int | None:
    """Return where the table lies that a FlatBuffers table holds as a member; None when it has none."""
    directory = table - struct.unpack_from("<i", buffer, table)[0]
    if directory < 0 or 4 + 2 * index >= struct.unpack_from("<H", buffer, directory)[0]:
        return None
    offset = struct.unpack_from("<H", buffer, directory + 4 + 2 * index)[0]
    return table + offset + struct.unpack_from("<I", buffer, table + offset)[0] if offset else None
