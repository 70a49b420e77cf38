"""HTTP: a table of routes over small handlers, with every error in the protocol's form.

Read from the top: ``ROUTES`` is what the server speaks, a handler takes the ``Site`` and the request and returns the
response or raises what is wrong, and ``application`` puts them together.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rareclass.adapters.serving.batcher import INLINE_ROWS, Batcher, NotReadyError, status_of
from rareclass.adapters.serving.catalogue import READ_ONLY, Catalogue
from rareclass.adapters.serving.engine import Active, Answer
from rareclass.adapters.serving.openapi import document
from rareclass.adapters.serving.signature import Query
from rareclass.adapters.serving.tabular import ARROW, CSV, from_arrow, from_csv, from_mlflow, to_arrow
from rareclass.adapters.serving.v2_codec import Request as Tensors
from rareclass.adapters.serving.v2_codec import deflate, encode, inflate, parse, request_id, shown
from rareclass.errors import InputError
from rareclass.network import allows

_OPEN = {"/v2/health/live", "/v2/health/ready", "/ping", "/health"}
_COMPRESS_FROM = 16_384
_APART_FROM = 1 << 18
"""Bytes from which a body is read in a thread, so that health checks and small requests go on."""


@dataclass(frozen=True)
class Site:
    """What the handlers share."""

    catalogue: Catalogue
    batcher: Batcher


Handler = Callable[[Site, Request], Awaitable[Response]]


async def live(site: Site, request: Request) -> Response:
    """Answer that the process is there."""
    return _json({"live": True})


async def ready(site: Site, request: Request) -> Response:
    """Answer 200 once a version is loaded and checked, 400 before."""
    return _ready(site)


async def model_ready(site: Site, request: Request) -> Response:
    """Answer as ``ready`` does, for a model and version that are served; 404 for others."""
    _check(site, request)
    return _ready(site)


def _ready(site: Site) -> Response:
    loaded = site.catalogue.active is not None
    return _json({"name": site.catalogue.name, "ready": loaded}, 200 if loaded else 400)  # the protocol asks for a 4xx


async def server_metadata(site: Site, request: Request) -> Response:
    """Describe the server."""
    return _json(site.catalogue.server())


async def described(site: Site, request: Request) -> Response:
    """Describe all routes as OpenAPI."""
    active = site.catalogue.active
    version = None if active is None else active.version
    return _json(document(ROUTES, site.catalogue.name, version, site.catalogue.server()["version"]))


async def model_metadata(site: Site, request: Request) -> Response:
    """Describe the model's inputs and outputs."""
    _check(site, request)
    return _json(site.catalogue.model())


async def repository_index(site: Site, request: Request) -> Response:
    """List the one model and its state; with ``ready`` only when it is loaded."""
    body = await _body(request, 1 << 16)
    try:
        asked = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise InputError(f"the body is not valid JSON: {shown(str(error), 120)}") from None
    only_ready = asked.get("ready", False) if isinstance(asked, dict) else None
    if not isinstance(only_ready, bool):
        raise InputError('the body must be a JSON object like {"ready": true}')
    return _json(site.catalogue.index(ready=only_ready))


async def repository_change(site: Site, request: Request) -> Response:
    """Refuse to load or unload: what is served follows the registry."""
    raise InputError(READ_ONLY)


async def infer(site: Site, request: Request) -> Response:
    """Score, log and answer rows. ``*_stream`` is the same answer as one server-sent event."""
    _check(site, request)
    return await _score(site, request, _query, _reply)


async def invocations(site: Site, request: Request) -> Response:
    """The same for callers of ``mlflow models serve``: dataframe_split, dataframe_records or CSV in,
    predictions out.
    """
    return await _score(site, request, _invocation, _predictions)


async def _score(
    site: Site,
    request: Request,
    read: Callable[[Active, bytes, Mapping[str, str], int], Query],
    write: Callable[[str, Answer, Request], Response],
) -> Response:
    active = _active(site)
    limit = active.signature.body_limit()
    body = await _body(request, limit)
    # of a header that came twice the first counts
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in reversed(request.scope["headers"])}
    query = await _apart(site, len(body) > _APART_FROM, read, active, body, headers, limit)
    answer = await site.batcher.answer(query, active)
    response: Response = await _apart(site, len(query) > INLINE_ROWS, write, site.catalogue.name, answer, request)
    return response


_MODEL, _VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", f"{_MODEL}/infer", infer),
    ("POST", f"{_VERSION}/infer", infer),
    ("POST", f"{_MODEL}/generate", infer),
    ("POST", f"{_VERSION}/generate", infer),
    ("POST", f"{_MODEL}/infer_stream", infer),
    ("POST", f"{_VERSION}/infer_stream", infer),
    ("POST", f"{_MODEL}/generate_stream", infer),
    ("POST", f"{_VERSION}/generate_stream", infer),
    ("GET", "/v2/health/live", live),
    ("GET", "/v2/health/ready", ready),
    ("GET", f"{_MODEL}/ready", model_ready),
    ("GET", f"{_VERSION}/ready", model_ready),
    ("GET", "/v2", server_metadata),
    ("GET", "/v2/", server_metadata),
    ("GET", _MODEL, model_metadata),
    ("GET", _VERSION, model_metadata),
    ("POST", "/v2/repository/index", repository_index),
    ("POST", "/v2/repository/models/{name}/load", repository_change),
    ("POST", "/v2/repository/models/{name}/unload", repository_change),
    ("POST", "/invocations", invocations),
    ("GET", "/ping", ready),
    ("GET", "/health", ready),
    ("GET", "/openapi.json", described),
)


def application(catalogue: Catalogue, batcher: Batcher, *, token: str | None) -> ASGIApp:
    """Return the ASGI application. ``token`` is the bearer token that every route but health asks for; None = open."""
    site = Site(catalogue, batcher)
    every = Starlette(
        routes=[Route(path, _endpoint(site, handler), methods=[method]) for method, path, handler in ROUTES],
        middleware=[] if token is None else [Middleware(Token, token=token)],
        exception_handlers={HTTPException: _refused},
    )
    return Straight(every, _endpoint(site, infer), catalogue.name, token)


def _endpoint(site: Site, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler with its errors as responses; those of scoring requests are counted and timed."""
    count = site.batcher.engine.metrics.request if handler in (infer, invocations) else None

    async def endpoint(request: Request) -> Response:
        started = time.perf_counter()
        try:
            response = await handler(site, request)
        except Exception as error:
            response = _error(*status_of(error))
        if count is not None:
            count(response.status_code, time.perf_counter() - started)
        return response

    return endpoint


async def _refused(request: Request, error: Exception) -> Response:
    """Answer a path or method that is not in the table."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "")
    message = (
        f"{request.method} is not possible here. Use {allowed}"
        if error.status_code == 405
        else f"{shown(request.url.path)[1:-1]} is not served here. Use /v2/models/NAME/infer"
    )
    return _error(error.status_code, message, **({"allow": allowed} if allowed else {}))


class Straight:
    """Leads the one route of nearly all requests past the table and its middleware; all others go through them."""

    def __init__(
        self, others: ASGIApp, endpoint: Callable[[Request], Awaitable[Response]], name: str, token: str | None
    ) -> None:
        self._others, self._endpoint, self._token = others, endpoint, token
        self._path, self._params = f"/v2/models/{name}/infer", {"name": name}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST" or self._closed(scope):
            await self._others(scope, receive, send)
            return
        scope["path_params"] = self._params
        response = await self._endpoint(Request(scope, receive))
        await response(scope, receive, send)

    def _closed(self, scope: Scope) -> bool:
        return self._token is not None and not allows(_given(scope), self._token)


def _given(scope: Scope) -> bytes:
    return next((value for key, value in scope["headers"] if key == b"authorization"), b"")


class Token:
    """Asks for the bearer token before anything is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN and not allows(_given(scope), self._token):
            says = "this server needs a bearer token. Send the header Authorization: Bearer TOKEN"
            await _error(401, says, **{"www-authenticate": "Bearer"})(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _check(site: Site, request: Request) -> None:
    site.catalogue.check(request.path_params["name"], request.path_params.get("version"))


def _active(site: Site) -> Active:
    active = site.catalogue.active
    if active is None:
        raise NotReadyError("the model is still loading. Ask /v2/health/ready")
    return active


async def _apart(site: Site, large: bool, work: Callable[..., Any], *arguments: Any) -> Any:
    return await site.batcher.apart(work, *arguments) if large else work(*arguments)


async def _body(request: Request, limit: int) -> bytes:
    """Return the body, or raise when it is larger than ``limit``: it is read to its end then, but not kept."""
    parts: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise InputError("the client went away before the body was complete")
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        more = message.get("more_body", False)
    if size > limit:
        raise InputError(
            f"the body has {size} bytes; this model's largest request has {limit}. Send fewer rows at a time"
        )
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _unpacked(body: bytes, headers: Mapping[str, str], limit: int) -> bytes:
    encoding = headers.get("content-encoding")
    return body if encoding is None else inflate(body, encoding, limit)


def _query(active: Active, body: bytes, headers: Mapping[str, str], limit: int) -> Query:
    """Read an infer request: JSON, JSON with binary tensors, or an Arrow stream."""
    body = _unpacked(body, headers, limit)
    if _media(headers) == ARROW:
        request = from_arrow(body, active.signature, limit)
    else:
        request = parse(body, headers.get("inference-header-content-length"))
    return _identified(active, request, headers)


def _invocation(active: Active, body: bytes, headers: Mapping[str, str], limit: int) -> Query:
    """Read what a client of ``mlflow models serve`` sends."""
    body = _unpacked(body, headers, limit)
    read = from_csv if _media(headers) == CSV else from_mlflow
    return _identified(active, read(body, active.signature), headers)


def _identified(active: Active, request: Tensors, headers: Mapping[str, str]) -> Query:
    if request.id is None:
        request.id = request_id(headers.get("seldon-puid"), "Seldon-Puid")
    return active.signature.read(request)


def _media(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _reply(name: str, answer: Answer, request: Request) -> Response:
    """Write the answer of an infer request in the form that the request had."""
    if _media(request.headers) == ARROW:
        return _answered(answer, to_arrow(answer, name), ARROW.encode(), request)
    head = {
        "model_name": name,
        "model_version": answer.active.version,
        "id": answer.id,
        "parameters": answer.parameters(),
    }
    body, split = encode(head, answer.arrays(), answer.query.wanted)
    if request.scope["path"].endswith("_stream"):
        return _answered(answer, b"data: " + body + b"\n\n", b"text/event-stream", request)
    if split is not None:
        length = {b"inference-header-content-length": b"%d" % split}
        return _answered(answer, body, b"application/octet-stream", None, length)
    return _answered(answer, body, b"application/json", request)


def _predictions(name: str, answer: Answer, request: Request) -> Response:
    """Write score and decision as ``mlflow models serve`` does for a model that returns a table."""
    rows = zip(answer.score.tolist(), answer.decision.tolist(), strict=True)
    body = orjson.dumps({"predictions": [{"score": score, "decision": decision} for score, decision in rows]})
    return _answered(answer, body, b"application/json", request)


def _answered(
    answer: Answer, body: bytes, kind: bytes, request: Request | None, more: Mapping[bytes, bytes] | None = None
) -> Response:
    """Return the response with the request's id, packed where it is long and ``request`` accepts that."""
    reply = {b"content-type": kind, b"seldon-puid": answer.id.encode("utf-8"), **(more or {})}
    if request is not None and len(body) >= _COMPRESS_FROM:
        body, encoding = deflate(body, request.headers.get("accept-encoding", ""))
        reply[b"vary"] = b"Accept-Encoding"
        if encoding is not None:
            reply[b"content-encoding"] = encoding.encode()
    return _response(body, reply)


def _response(body: bytes, headers: Mapping[bytes, bytes], code: int = 200) -> Response:
    """Return a response with these headers as they are: an id may hold more than latin-1."""
    response = Response(status_code=code)
    response.body = body
    response.raw_headers = [*headers.items(), (b"content-length", b"%d" % len(body))]
    return response


def _json(said: Any, code: int = 200, **headers: str) -> Response:
    return Response(orjson.dumps(said), code, headers, "application/json")


def _error(code: int, message: str, **headers: str) -> Response:
    return _json({"error": " ".join(message.split())}, code, **headers)
