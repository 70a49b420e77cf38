"""gRPC: MLServer's service with the infer call carried by the same signature and engine as HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from grpc import aio
from mlserver.grpc import dataplane_pb2 as pb
from mlserver.grpc.dataplane_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from mlserver.grpc.interceptors import PromServerInterceptor
from mlserver.grpc.server import GRPCServer
from mlserver.grpc.servicers import InferenceServicer

from rareclass.adapters.serving.batcher import Batcher, NotFound, NotReady, status_of
from rareclass.adapters.serving.engine import Answer
from rareclass.adapters.serving.http import authorized
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
)  # fmt: skip
from rareclass.errors import InputError

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    503: grpc.StatusCode.UNAVAILABLE,
    500: grpc.StatusCode.INTERNAL,
}
_OPEN = {"ServerLive", "ServerReady", "ModelReady"}


class Servicer(InferenceServicer):  # type: ignore[misc]
    """MLServer's service; only the infer calls are ours."""

    def __init__(self, data_plane: Any, handlers: Any, batcher: Batcher, name: str) -> None:
        super().__init__(data_plane, handlers)
        self._batcher, self._name = batcher, name

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        started = time.perf_counter()
        metrics = self._batcher.engine.metrics
        try:
            answer = await self._answer(request, context)
            response = _response(answer, self._name, raw=bool(request.raw_input_contents))
        except Exception as error:
            code, message = status_of(error)
            metrics.request(code, time.perf_counter() - started)
            await context.abort(_CODES[code], message)
            return None
        metrics.request(200, time.perf_counter() - started)
        context.set_trailing_metadata((("seldon-puid", answer.id),) if answer.id.isascii() else ())
        return response

    async def ModelStreamInfer(self, requests_stream: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests_stream:
            response = await self.ModelInfer(request, context)
            if response is not None:
                yield response

    async def _answer(self, request: Any, context: Any) -> Answer:
        active = self._batcher.engine.active
        if active is None:
            raise NotReady("the model is still loading. Ask ServerReady")
        if request.model_name != self._name or request.model_version not in ("", active.version):
            raise NotFound(
                f"model '{request.model_name}' version '{request.model_version}' is not served here; {self._name} version {active.version} is"
            )
        parsed = _request(request)
        if parsed.id is None:
            given = dict(context.invocation_metadata() or ()).get("seldon-puid")
            parsed.id = request_id(given, "seldon-puid")
        return await self._batcher.answer(active.signature.read(parsed), active)


class Server(GRPCServer):  # type: ignore[misc]
    """MLServer's gRPC server with our service, the bearer token, and the port that was really bound."""

    def __init__(
        self, settings: Any, data_plane: Any, handlers: Any, batcher: Batcher, name: str, token: str | None
    ) -> None:
        super().__init__(settings, data_plane, handlers)
        self._ours = (batcher, name, token)
        self.port = settings.grpc_port

    def bind(self) -> int:
        """Create the server and bind its port. Returns the port."""
        batcher, name, token = self._ours
        interceptors: list[Any] = [] if token is None else [_Token(token)]
        self._server = aio.server(
            interceptors=[*interceptors, PromServerInterceptor(enable_handling_time_histogram=True)],
            options=[*self._get_options(), ("grpc.so_reuseport", 0)],
        )
        servicer = Servicer(self._data_plane, self._model_repository_handlers, batcher, name)
        add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        self.port = self._server.add_insecure_port(f"{self._settings.host}:{self._settings.grpc_port}")
        return self.port

    async def start(self) -> None:
        await self._server.start()
        await self._server.wait_for_termination()


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
        if details.method.rsplit("/", 1)[-1] in _OPEN or authorized(given, self._token):
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


def _text(name: str, value: Any, at: int) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise InputError(f"input '{name}' holds bytes at position {at} that are not UTF-8") from None


_CONTENTS = {"FP64": "fp64_contents", "INT64": "int64_contents", "BYTES": "bytes_contents"}


def _response(answer: Answer, name: str, *, raw: bool) -> Any:
    response = pb.ModelInferResponse(model_name=name, model_version=answer.active.version, id=answer.id)
    for key, value in answer.parameters().items():
        # the protocol's parameters have no floating point number
        response.parameters[key].string_param = value if isinstance(value, str) else repr(value)
    for output, array in answer.arrays().items():
        node = response.outputs.add(name=output, datatype=OUTPUTS[output], shape=[len(array)])
        if raw:
            response.raw_output_contents.append(packed(array))
        else:
            plain = [value.encode() for value in array] if array.dtype == object else array.tolist()
            getattr(node.contents, _CONTENTS[OUTPUTS[output]]).extend(plain)
    return response
