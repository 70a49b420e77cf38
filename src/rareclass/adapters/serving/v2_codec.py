"""The Open Inference Protocol on the wire: a request as tensors, an answer as bytes. Nothing here knows the model.

JSON bodies, and the binary tensor extension (a JSON header, then the raw little-endian tensors in order) in both
directions. Everything is checked before it is decoded; what is wrong raises InputError with one line.
"""

from __future__ import annotations

import array as plain
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass.errors import InputError, nearest, unknown

DTYPES: dict[str, str] = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BYTES": "O",
}  # fmt: skip
OUTPUTS: dict[str, str] = {
    "score": "FP64",
    "decision": "INT64",
    "threshold": "FP64",
    "version": "BYTES",
    "reasons": "BYTES",
}
_PLAIN: dict[str, set[type]] = {"?": {bool}, "u": {int}, "i": {int}, "f": {int, float}, "O": {str}}
_NULL = type(None)


@dataclass(slots=True)
class Tensor:
    """One input as it came: ``data`` is a flat or nested list, ``raw`` the bytes of the binary extension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any = None
    raw: bytes | memoryview | None = None


@dataclass(slots=True)
class Wanted:
    """The outputs a client asked for, in order, and which of them as binary tensors."""

    names: tuple[str, ...] = ()
    binary: frozenset[str] = frozenset()
    all_binary: bool = False


@dataclass(slots=True)
class Request:
    """A parsed request, before the model's signature is looked at."""

    id: str | None
    parameters: Mapping[str, Any]
    tensors: list[Tensor]
    wanted: Wanted = field(default_factory=Wanted)


def shown(value: object, limit: int = 60) -> str:
    """Return a value for an error line: one line, shortened."""
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def parse(body: bytes, header_length: str | None = None) -> Request:
    """Read the body of an infer request. ``header_length`` is Inference-Header-Content-Length, if there is one."""
    import orjson

    head, blob = body, b""
    if header_length is not None:
        if not header_length.isdecimal() or not 0 < int(header_length) <= len(body):
            raise InputError(
                f"header Inference-Header-Content-Length is {shown(header_length)}, not a length up to the body's "
                f"{len(body)}"
            )
        head, blob = body[: int(header_length)], body[int(header_length) :]
    try:
        raw = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise InputError(
            f"the body is not valid JSON: {shown(str(error), 120)}. Send an Open Inference Protocol request"
        ) from None
    if not isinstance(raw, dict):
        raise InputError(f"the body must be a JSON object with 'inputs', not {type(raw).__name__}")
    parameters = _parameters(raw, "the request")
    found = tensors(raw.get("inputs"), memoryview(blob))
    return Request(request_id(raw.get("id"), "id"), parameters, found, _wanted(raw.get("outputs"), parameters))


def request_id(value: object, where: str) -> str | None:
    """Return a request id, None when it is absent or empty. Raises InputError when it cannot be a key."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > 200 or not value.isprintable() or value != value.strip():
        raise InputError(f"'{where}' must be up to 200 printable characters; it is {shown(value)}")
    return value


def _parameters(node: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    found = node.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InputError(f"'parameters' of {where} must be an object; it is {type(found).__name__}")
    return found


def tensors(nodes: object, blob: memoryview) -> list[Tensor]:
    """Return the tensors of `inputs` (or `outputs`, which look the same). Raises InputError."""
    if not isinstance(nodes, list) or not nodes:
        raise InputError(
            "'inputs' must be a list with at least one tensor {name, shape, datatype, data}"
            if nodes is None or isinstance(nodes, list)
            else f"'inputs' must be a list of tensors; it is {type(nodes).__name__}"
        )
    found, offset = [], 0
    for node in nodes:
        if not isinstance(node, dict):
            raise InputError(f"an input must be an object {{name, shape, datatype, data}}; it is {shown(node)}")
        tensor = _tensor(node)
        size = _parameters(node, f"input '{tensor.name}'").get("binary_data_size")
        if size is not None:
            if type(size) is not int or size < 0 or offset + size > len(blob):
                raise InputError(
                    f"input '{tensor.name}' has binary_data_size {shown(size)}, but {len(blob) - offset} bytes follow "
                    "the JSON header"
                )
            if tensor.data is not None:
                raise InputError(f"input '{tensor.name}' has both data and binary_data_size. Send one of them")
            tensor.raw = blob[offset : offset + size]
            offset += size
        elif not isinstance(tensor.data, list):
            raise InputError(f"input '{tensor.name}' has no 'data' list; it is {shown(tensor.data)}")
        found.append(tensor)
    if offset != len(blob):
        raise InputError(
            f"{len(blob) - offset} bytes follow the JSON header that no input claims with binary_data_size"
        )
    return found


def _tensor(node: Mapping[str, Any]) -> Tensor:
    name, datatype, shape = node.get("name"), node.get("datatype"), node.get("shape")
    if not isinstance(name, str) or not name:
        raise InputError(f"an input must have a 'name' (text); it is {shown(name)}")
    check_datatype(name, datatype)
    return Tensor(name, str(datatype), check_shape(name, shape), node.get("data"))


def check_datatype(name: str, datatype: object) -> None:
    """Refuse a datatype that the protocol, or numpy, does not have."""
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise InputError(
            f"input '{shown(name)[1:-1]}' has the unknown datatype {shown(datatype)}.{nearest(datatype, DTYPES)} Use "
            f"one of: {', '.join(DTYPES)}"
        )


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """Return a shape of one or two positive dimensions."""
    if not isinstance(shape, list) or any(type(size) is not int for size in shape):
        raise InputError(f"input '{shown(name)[1:-1]}' must have a 'shape' of integers; it is {shown(shape)}")
    if not 1 <= len(shape) <= 2:
        raise InputError(
            f"input '{shown(name)[1:-1]}' has shape {shown(shape)}; a column is [rows] or [rows, 1], a matrix [rows, "
            "features]"
        )
    if min(shape) < 1:
        why = "no rows" if shape[0] == 0 else "a dimension below 1"
        raise InputError(f"input '{shown(name)[1:-1]}' has shape {shown(shape)}: {why}. Send at least one row")
    return tuple(shape)


def _wanted(nodes: object, parameters: Mapping[str, Any]) -> Wanted:
    all_binary = parameters.get("binary_data_output", False)
    if not isinstance(all_binary, bool):
        raise InputError(f"parameter 'binary_data_output' must be true or false; it is {shown(all_binary)}")
    if nodes is None or nodes == []:
        return Wanted(all_binary=all_binary)
    if not isinstance(nodes, list):
        raise InputError(f"'outputs' must be a list of {{name}}; it is {type(nodes).__name__}")
    names: list[str] = []
    binary: set[str] = set()
    for node in nodes:
        if not isinstance(node, dict) or not isinstance(node.get("name"), str):
            raise InputError(f"an output must be an object with a 'name'; it is {shown(node)}")
        name = check_output(node["name"], names)
        asked = _parameters(node, f"output '{name}'")
        if asked.get("classification") is not None:
            raise InputError(f"output '{name}' asks for 'classification', which is not offered. Ask for 'decision'")
        if asked.get("binary_data", all_binary) is True:
            binary.add(name)
        names.append(name)
    return Wanted(tuple(names), frozenset(binary), False)


def check_output(name: str, before: Sequence[str]) -> str:
    """Return the name of a requested output, or refuse it."""
    if name not in OUTPUTS:
        raise unknown("output", shown(name)[1:-1], OUTPUTS, "outputs", InputError)
    if name in before:
        raise InputError(f"output '{name}' is asked for twice")
    return name


def values(tensor: Tensor, *, missing: bool) -> NDArray[Any]:
    """Return the flat values of a tensor: the datatype's array, or objects for BYTES.

    missing : null (and NaN) is a missing value; otherwise both are refused
    Raises InputError for a wrong number of values, a wrong type, an overflow or a value that is not finite.
    """
    flat = _from_raw(tensor) if tensor.raw is not None else _from_list(tensor, missing)
    if flat.dtype.kind == "f":
        finite = np.isfinite(flat)
        if missing:
            finite |= np.isnan(flat)
        if not finite.all():
            at = int(np.argmin(finite))
            raise InputError(
                f"input '{tensor.name}' holds {flat[at]} at position {at}, which is not finite"
                + (
                    '. Set parameters {"missing": true} to send missing values as null or NaN'
                    if np.isnan(flat[at])
                    else ""
                )
            )
    return flat


def _from_list(tensor: Tensor, missing: bool) -> NDArray[Any]:
    flat = _flat(tensor)
    dtype = np.dtype(DTYPES[tensor.datatype])
    kind = "?" if dtype.kind == "b" else dtype.kind
    quick = _floats(flat, dtype)
    if quick is not None:
        return quick
    wrong = set(map(type, flat)) - _PLAIN[kind]
    if missing and kind in "fO":
        wrong.discard(_NULL)
    if wrong:
        at = next(i for i, value in enumerate(flat) if type(value) in wrong)
        hint = (
            '. Set parameters {"missing": true} to send missing values as null'
            if flat[at] is None and kind in "fO"
            else ""
        )
        raise InputError(
            f"input '{tensor.name}' is {tensor.datatype} but holds {shown(flat[at])} at position {at}{hint}"
        )
    if kind == "O":
        out = np.empty(len(flat), dtype=object)
        out[:] = flat
        return out
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=dtype)
    except (OverflowError, ValueError):
        raise InputError(f"input '{tensor.name}' holds a value that does not fit into {tensor.datatype}") from None


def _floats(flat: list[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Return plain numbers as floats, None where one of them may be something else.

    An array refuses null, text and lists, and takes true and false for 1 and 0: only what is 0 or 1 is looked at again.
    Asking each value for its type costs as much as reading all of them.
    """
    code = {"<f4": "f", "<f8": "d"}.get(dtype.str)
    if code is None:
        return None
    try:
        found = np.frombuffer(plain.array(code, flat), dtype=dtype)
    except (TypeError, OverflowError):
        return None
    doubtful = np.flatnonzero((found == 0) | (found == 1))
    return None if any(type(flat[at]) is bool for at in doubtful) else found


def _flat(tensor: Tensor) -> list[Any]:
    data: list[Any] = tensor.data
    shape = tensor.shape
    if len(shape) == 2 and data and type(data[0]) is list:
        if len(data) != shape[0] or any(type(row) is not list or len(row) != shape[1] for row in data):
            raise InputError(f"input '{tensor.name}' has shape {list(shape)}, but its nested 'data' has another one")
        data = list(chain.from_iterable(data))
    size = shape[0] * (shape[1] if len(shape) == 2 else 1)
    if len(data) != size:
        raise InputError(f"input '{tensor.name}' has shape {list(shape)} = {size} values, but 'data' holds {len(data)}")
    return data


def _from_raw(tensor: Tensor) -> NDArray[Any]:
    raw = tensor.raw or b""
    size = tensor.shape[0] * (tensor.shape[1] if len(tensor.shape) == 2 else 1)
    if tensor.datatype == "BYTES":
        return _texts(tensor.name, bytes(raw), size)
    dtype = np.dtype(DTYPES[tensor.datatype])
    if len(raw) != size * dtype.itemsize:
        raise InputError(
            f"input '{tensor.name}' has shape {list(tensor.shape)} of {tensor.datatype} = {size * dtype.itemsize} "
            f"bytes, but {len(raw)} came"
        )
    if dtype.kind == "b" and np.frombuffer(raw, dtype=np.uint8).max(initial=0) > 1:
        raise InputError(f"input '{tensor.name}' is BOOL but holds a byte other than 0 and 1")
    return np.frombuffer(raw, dtype=dtype)


def _texts(name: str, raw: bytes, size: int) -> NDArray[Any]:
    out, offset = np.empty(size, dtype=object), 0
    for at in range(size):
        end = offset + 4
        length = struct.unpack_from("<I", raw, offset)[0] if end <= len(raw) else -1
        if length < 0 or end + length > len(raw):
            raise InputError(
                f"input '{name}' of {size} BYTES ends inside value {at}: each needs 4 bytes of length first"
            )
        out[at] = text(name, raw[end : end + length], at)
        offset = end + length
    if offset != len(raw):
        raise InputError(f"input '{name}' has {len(raw) - offset} bytes after its {size} values")
    return out


def text(name: str, value: object, at: int) -> str:
    """Return a BYTES value as text. Raises InputError when it is not UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise InputError(f"input '{name}' holds bytes at position {at} that are not UTF-8") from None


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo Content-Encoding gzip, deflate or zstd, up to ``limit`` bytes. Raises InputError."""
    names = [part.strip().lower() for part in encoding.split(",") if part.strip().lower() not in ("", "identity")]
    for name in reversed(names):
        if name not in ("gzip", "x-gzip", "deflate", "zstd"):
            raise InputError(f"Content-Encoding {shown(encoding)} is not known. Use gzip, deflate, zstd or none")
        try:
            body, ended = (_unzstd if name == "zstd" else _unzip)(body, limit + 1)
        except (zlib.error, OSError) as error:
            raise InputError(f"the body is not valid {name}: {shown(str(error))}") from None
        if len(body) > limit:
            raise InputError(f"the body is larger than {limit} bytes when unpacked. Send fewer rows at a time")
        if not ended:
            raise InputError(f"the body is not valid {name}: it ends early")
    return body


def _unzip(body: bytes, most: int) -> tuple[bytes, bool]:
    unpack = zlib.decompressobj(47)
    return unpack.decompress(body, most), unpack.eof


def _unzstd(body: bytes, most: int) -> tuple[bytes, bool]:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.BufferReader(body), "zstd").read(most), True  # it raises where a frame is cut


def deflate(body: bytes, accepted: str) -> tuple[bytes, str | None]:
    """Pack a body as an Accept-Encoding header allows.

    Returns it with its Content-Encoding, None when it is as it was.
    """
    parts = [part.replace(" ", "").lower().split(";") for part in accepted.split(",")]
    names = {name for name, *more in parts if not any(each in ("q=0", "q=0.0", "q=0.00", "q=0.000") for each in more)}
    if "zstd" in names:
        import pyarrow as pa

        return pa.compress(body, codec="zstd", asbytes=True), "zstd"
    if "gzip" in names:
        packer = zlib.compressobj(1, wbits=31)
        return packer.compress(body) + packer.flush(), "gzip"
    return body, None


def encode(head: dict[str, Any], arrays: Mapping[str, NDArray[Any]], wanted: Wanted) -> tuple[bytes, int | None]:
    """Write an answer. Returns the body and, when there are binary tensors, the length of its JSON header."""
    import orjson

    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, array in arrays.items():
        node: dict[str, Any] = {"name": name, "shape": [len(array)], "datatype": OUTPUTS[name]}
        if wanted.all_binary or name in wanted.binary:
            blob = packed(array)
            node["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            node["data"] = array.tolist() if array.dtype == object or len(array) < 8 else array
        outputs.append(node)
    head["outputs"] = outputs
    body = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return (body + b"".join(blobs), len(body)) if blobs else (body, None)


def packed(array: NDArray[Any]) -> bytes:
    """Return an array as protocol v2's binary tensor: numbers as they lie, texts with their length in front."""
    if array.dtype != object:
        return array.tobytes()
    encoded = [str(value).encode() for value in array]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)
