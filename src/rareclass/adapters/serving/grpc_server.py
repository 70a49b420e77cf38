"""gRPC: the protocol's service, carried by the same signature and engine as HTTP.

Messages are decoded here and not by gRPC, so that bytes which are no message are refused as the client's mistake.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from grpc import aio

from rareclass.adapters.serving.batcher import Batcher, NotReadyError, status_of
from rareclass.adapters.serving.catalogue import READ_ONLY, Catalogue
from rareclass.adapters.serving.engine import Answer
from rareclass.adapters.serving.grpc_messages import METHODS, SERVICE, messages
from rareclass.adapters.serving.tracing import Tracing, interceptor
from rareclass.adapters.serving.v2_codec import (
    OUTPUTS,
    Request,
    Tensor,
    Wanted,
    check_datatype,
    check_output,
    check_shape,
    packed,
    request_id,
)
from rareclass.errors import InputError
from rareclass.network import allows

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    503: grpc.StatusCode.UNAVAILABLE,
    500: grpc.StatusCode.INTERNAL,
}
_OPEN = {"ServerLive", "ServerReady", "ModelReady"}
_FLOATS = {"fp32_contents": (6, "<f4", "FP32"), "fp64_contents": (7, "<f8", "FP64")}
_OTHERS = {"INT64": "int64_contents", "BYTES": "bytes_contents"}


class Servicer:
    """One method for each of the service; what they raise becomes a status with one line."""

    def __init__(self, batcher: Batcher, catalogue: Catalogue) -> None:
        self._batcher, self._catalogue, self.pb = batcher, catalogue, messages()

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say that the process answers."""
        return self.pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say whether a version is loaded and checked."""
        return self.pb.ServerReadyResponse(ready=self._catalogue.active is not None)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say whether the named model is loaded; an unknown name or version is an error."""
        self._catalogue.check(request.name, request.version)
        return self.pb.ModelReadyResponse(ready=self._catalogue.active is not None)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Describe the server."""
        return self.pb.ServerMetadataResponse(**self._catalogue.server())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Describe the model's inputs and outputs."""
        self._catalogue.check(request.name, request.version)
        return self.pb.ModelMetadataResponse(**self._catalogue.model())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        """List the one model and its state."""
        return self.pb.RepositoryIndexResponse(models=self._catalogue.index(ready=request.ready))

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Refuse: what is served follows the registry."""
        raise InputError(READ_ONLY)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Refuse: what is served follows the registry."""
        raise InputError(READ_ONLY)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Score the rows of a request, as ``POST .../infer`` does."""
        active = self._catalogue.active
        if active is None:
            raise NotReadyError("the model is still loading. Ask ServerReady")
        self._catalogue.check(request.model_name, request.model_version)
        parsed = _request(request)
        if parsed.id is None:
            given = dict(context.invocation_metadata() or ()).get("seldon-puid")
            parsed.id = request_id(given, "seldon-puid")
        answer = await self._batcher.answer(active.signature.read(parsed), active)
        context.set_trailing_metadata((("seldon-puid", answer.id),) if answer.id.isascii() else ())
        return _response(self.pb, answer, self._catalogue.name, raw=bool(request.raw_input_contents))

    def handlers(self) -> Any:
        """Return gRPC's generic handler of the service."""
        unary = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name))
            for name in METHODS
            if name != "ModelStreamInfer"
        }
        stream = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream)}
        return grpc.method_handlers_generic_handler(SERVICE, {**unary, **stream})

    def _unary(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        method, kind = getattr(self, name), getattr(self.pb, METHODS[name][0])
        request_metrics = self._batcher.engine.metrics.request if name == "ModelInfer" else None

        async def call(content: bytes, context: Any) -> bytes:
            started = time.perf_counter()
            code, message = 200, ""
            try:
                try:
                    request = kind.FromString(content)
                except DecodeError:
                    raise InputError(
                        f"the message is not a {METHODS[name][0]} of the Open Inference Protocol"
                    ) from None
                said: bytes = (await method(request, context)).SerializeToString()
            except Exception as error:
                code, message = status_of(error)
            if request_metrics is not None:
                request_metrics(code, time.perf_counter() - started)
            if code != 200:
                await context.abort(_CODES[code], message)
            return said

        return call

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        infer = self._unary("ModelInfer")
        async for content in requests:
            yield await infer(content, context)


class GrpcServer:
    """The gRPC server: bound when it is made, so that the port is known before the model is there."""

    def __init__(
        self,
        batcher: Batcher,
        catalogue: Catalogue,
        *,
        address: str,
        token: str | None,
        max_bytes: int,
        shared: bool,
        tracing: Tracing | None = None,
    ) -> None:
        """shared : other processes listen on the same port, and the kernel spreads connections over them."""
        self._server = aio.server(
            interceptors=[
                *([] if tracing is None else [interceptor(tracing)]),
                *([] if token is None else [_Token(token)]),
            ],
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", max_bytes),
                ("grpc.so_reuseport", int(shared)),
            ],
        )
        self._server.add_generic_rpc_handlers((Servicer(batcher, catalogue).handlers(),))
        self.port: int = self._server.add_insecure_port(address)

    async def start(self) -> None:
        """Listen; returns once the port is bound."""
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Take no more calls and answer those that came, for ``seconds`` at most."""
        await self._server.stop(seconds)


class _Token(aio.ServerInterceptor):  # type: ignore[misc]
    """Asks every call but the health checks for the bearer token."""

    def __init__(self, token: str) -> None:
        async def refuse(_: Any, context: Any) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "this server needs a bearer token. Send the metadata authorization: Bearer TOKEN",
            )

        self._token, self._refuse = token, grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        given = dict(details.invocation_metadata or ()).get("authorization")
        if details.method.rsplit("/", 1)[-1] in _OPEN or allows(given, self._token):
            return await continuation(details)
        return self._refuse


def _request(message: Any) -> Request:
    """Return a protobuf request as the same tensors as a JSON one. Raises InputError."""
    raws = list(message.raw_input_contents)
    if raws and len(raws) != len(message.inputs):
        raise InputError(f"{len(message.inputs)} inputs came with {len(raws)} raw_input_contents. Send one for each")
    if not message.inputs:
        raise InputError("'inputs' must hold at least one tensor")
    tensors = []
    for at, node in enumerate(message.inputs):
        check_datatype(node.name, node.datatype)
        tensor = Tensor(node.name, node.datatype, check_shape(node.name, list(node.shape)))
        contents = node.contents.ListFields()
        if raws:
            if contents:
                raise InputError(f"input '{node.name}' has both contents and raw_input_contents. Send one of them")
            tensor.raw = raws[at]
        elif len(contents) != 1:
            raise InputError(
                f"input '{node.name}' has no values"
                if not contents
                else f"input '{node.name}' has two kinds of contents"
            )
        elif _FLOATS.get(contents[0][0].name, (0, "", ""))[2] == node.datatype:
            tensor.raw = _floats(node.contents)
        else:
            tensor.data = [_text(node.name, value, i) for i, value in enumerate(contents[0][1])]
        tensors.append(tensor)
    options = {
        key: getattr(value, value.WhichOneof("parameter_choice") or "", None)
        for key, value in message.parameters.items()
    }
    names: list[str] = []
    for output in message.outputs:
        names.append(check_output(output.name, names))
    return Request(request_id(message.id, "id"), options, tensors, Wanted(tuple(names)))


def _floats(contents: Any) -> memoryview:
    """Return the only field of the contents as raw little-endian numbers, without a Python object for each.

    Packed numbers are on the wire as they are in memory, after the field's tag and length.
    """
    wire = contents.SerializeToString()
    start = 1
    while wire[start] & 0x80:  # a length takes as many bytes as have their highest bit set, and one more
        start += 1
    return memoryview(wire)[start + 1 :]


def _packed_floats(kind: Any, field: str, array: Any) -> Any:
    """Return contents whose packed ``field`` holds the array: the inverse of ``_floats``."""
    number, dtype, _ = _FLOATS[field]
    raw = np.ascontiguousarray(array, dtype=dtype).tobytes()
    size, length = len(raw), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return kind.FromString(bytes([number << 3 | 2]) + bytes(length) + raw)


def _text(name: str, value: Any, at: int) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise InputError(f"input '{name}' holds bytes at position {at} that are not UTF-8") from None


def _response(pb: Any, answer: Answer, name: str, *, raw: bool) -> Any:
    response = pb.ModelInferResponse(model_name=name, model_version=answer.active.version, id=answer.id)
    for key, value in answer.parameters().items():
        # the protocol's parameters have no floating point number
        response.parameters[key].string_param = value if isinstance(value, str) else repr(value)
    for output, array in answer.arrays().items():
        datatype = OUTPUTS[output]
        node = response.outputs.add(name=output, datatype=datatype, shape=[len(array)])
        if raw:
            response.raw_output_contents.append(packed(array))
        elif datatype == "FP64":
            node.contents.CopyFrom(_packed_floats(pb.InferTensorContents, "fp64_contents", array))
        else:
            plain = [value.encode() for value in array] if array.dtype == object else array.tolist()
            getattr(node.contents, _OTHERS[datatype]).extend(plain)
    return response
