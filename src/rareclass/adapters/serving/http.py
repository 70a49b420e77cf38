"""HTTP: the infer route without pydantic, every error in the protocol's form, the rest by MLServer's application."""

from __future__ import annotations

import hmac
import re
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from rareclass.adapters.serving.batcher import Batcher, NotFound, NotReady, status_of
from rareclass.adapters.serving.engine import Answer
from rareclass.adapters.serving.v2_codec import encode, inflate, parse, request_id, shown
from rareclass.errors import InputError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/.*)?")
_INFER = {"/infer", "/generate", "/infer_stream", "/generate_stream"}
_OPEN = {"/v2/health/live", "/v2/health/ready"}
_COMPRESS_FROM = 16_384


class Gate:
    """An ASGI application in front of MLServer's.

    token : bearer token that every route but health asks for; None = open
    """

    def __init__(self, app: Any, batcher: Batcher, *, name: str, token: str | None) -> None:
        self.app, self.batcher, self.engine = app, batcher, batcher.engine
        self.name, self._token = name, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        path = scope["path"]
        if self._token is not None and path not in _OPEN and not authorized(headers.get(b"authorization"), self._token):
            extra = [(b"www-authenticate", b"Bearer")]
            await _error(
                send, 401, "this server needs a bearer token. Send the header Authorization: Bearer TOKEN", extra
            )
            return
        if path.startswith("/v2/repository/models/"):
            await _error(
                send, 400, "models are loaded by their alias here. Use rareclass promote or rareclass rollback"
            )
            return
        found = _MODEL.fullmatch(path)
        if found is not None:
            if found[3] in _INFER:
                await self._infer(scope, receive, send, headers, found[1], found[2])
                return
            try:
                self._version(found[1], found[2])
            except NotFound as error:
                await _error(send, 404, str(error))
                return
            scope = {**scope, "path": f"/v2/models/{found[1]}{found[3] or ''}"}
        await self.app(scope, receive, send)

    def _version(self, name: str, version: str | None) -> None:
        if name != self.name:
            raise NotFound(f"model '{shown(name)[1:-1]}' is not served here. Use /v2/models/{self.name}")
        active = self.engine.active
        if version is not None and active is not None and version != active.version:
            raise NotFound(
                f"version '{shown(version)[1:-1]}' of {name} is not the champion; version {active.version} is. Leave /versions/... out"
            )

    async def _infer(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, str], name: str, version: str | None
    ) -> None:
        started = time.perf_counter()
        try:
            if scope["method"] != "POST":
                await _error(send, 405, f"{scope['method']} is not possible here. Use POST", [(b"allow", b"POST")])
                self.engine.metrics.request(405, time.perf_counter() - started)
                return
            answer = await self._answer(receive, headers, name, version)
            body, reply = self._reply(answer, headers, stream=scope["path"].endswith("_stream"))
            code = 200
        except Exception as error:
            code, message = status_of(error)
            self.engine.metrics.request(code, time.perf_counter() - started)
            await _error(send, code, message)
            return
        self.engine.metrics.request(code, time.perf_counter() - started)
        await send({"type": "http.response.start", "status": code, "headers": reply})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, receive: Receive, headers: dict[bytes, str], name: str, version: str | None) -> Answer:
        self._version(name, version)
        active = self.engine.active
        if active is None:
            await _body(receive, 0)
            raise NotReady("the model is still loading. Ask /v2/health/ready")
        limit = active.signature.body_limit()
        body = await _body(receive, limit)
        encoding = headers.get(b"content-encoding")
        if encoding is not None:
            body = inflate(body, encoding, limit)
        request = parse(body, headers.get(b"inference-header-content-length"))
        if request.id is None:
            request.id = request_id(headers.get(b"seldon-puid"), "Seldon-Puid")
        return await self.batcher.answer(active.signature.read(request), active)

    def _reply(
        self, answer: Answer, headers: dict[bytes, str], stream: bool
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        head = {
            "model_name": self.name,
            "model_version": answer.active.version,
            "id": answer.id,
            "parameters": answer.parameters(),
        }
        body, split = encode(head, answer.arrays(), answer.query.wanted)
        kind = b"application/json" if split is None else b"application/octet-stream"
        if stream:
            body, kind = b"data: " + body + b"\n\n", b"text/event-stream"
        reply = [(b"content-type", kind), (b"seldon-puid", answer.id.encode("utf-8"))]
        if split is not None:
            reply.append((b"inference-header-content-length", str(split).encode()))
        elif len(body) >= _COMPRESS_FROM and "gzip" in headers.get(b"accept-encoding", ""):
            packer = zlib.compressobj(1, wbits=31)
            body = packer.compress(body) + packer.flush()
            reply += [(b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
        return body, [*reply, (b"content-length", str(len(body)).encode())]


def authorized(header: str | None, token: str) -> bool:
    """Tell whether an Authorization header carries the token, in constant time."""
    scheme, _, given = (header or "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


async def _body(receive: Receive, limit: int) -> bytes:
    """Return the body, or raise when it is larger than ``limit``: it is read to its end then, but not kept."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InputError("the client went away before the body was complete")
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        more = message.get("more_body", False)
    if size > limit > 0:
        raise InputError(
            f"the body has {size} bytes; this model's largest request has {limit}. Send fewer rows at a time"
        )
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _error(send: Send, code: int, message: str, extra: list[tuple[bytes, bytes]] | None = None) -> None:
    import orjson

    body = orjson.dumps({"error": " ".join(message.split())})
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *(extra or [])]
    await send({"type": "http.response.start", "status": code, "headers": head})
    await send({"type": "http.response.body", "body": body})


def error_handlers(app: Any) -> None:
    """Give MLServer's own routes the protocol's errors: one line under ``error``, never a traceback."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    async def invalid(_: Any, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{where}: {shown(first['msg'], 200)[1:-1]}"}, 400)

    async def refused(_: Any, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": shown(error.detail, 200)[1:-1]}, error.status_code, error.headers)

    async def failed(_: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"error": status_of(error)[1]}, 500)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(Exception, failed)
