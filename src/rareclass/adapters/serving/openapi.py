"""What the server speaks over HTTP as an OpenAPI document: the Open Inference Protocol, and what is spoken beside it.

Published at ``/openapi.json`` with the name and version that answer, so that a client can be generated from it, and
requests for a test (tests/adapters/test_openapi.py). Source: the protocol's REST description, version 2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rareclass.adapters.serving.tabular import ARROW, CSV
from rareclass.adapters.serving.v2_codec import DTYPES, OUTPUTS

Json = dict[str, Any]
_TEXT, _ANY_OBJECT = {"type": "string"}, {"type": "object"}
_BYTES = {"type": "string", "format": "binary"}


def _object(required: str, **properties: Json) -> Json:
    return {"type": "object", "required": required.split(), "properties": properties}


def _list(of: Json, **more: Any) -> Json:
    return {"type": "array", "items": of, **more}


def _of(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_SHAPE = _list({"type": "integer"})
_DATA = _of("tensor_data")
_TENSOR = {"name": _TEXT, "shape": _SHAPE, "datatype": {"enum": sorted(DTYPES)}, "parameters": _ANY_OBJECT}
_METADATA = _object("name datatype shape", name=_TEXT, datatype={"enum": sorted(DTYPES)}, shape=_SHAPE)
SCHEMAS: Mapping[str, Json] = {
    "live": _object("live", live={"type": "boolean"}),
    "ready": _object("name ready", name=_TEXT, ready={"type": "boolean"}),
    "metadata_server": _object("name version extensions", name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
    "metadata_model": _object(
        "name platform inputs outputs",
        name=_TEXT, versions=_list(_TEXT), platform=_TEXT, inputs=_list(_METADATA), outputs=_list(_METADATA),
    ),
    "tensor_data": _list({"anyOf": [_DATA, {"type": ["number", "string", "boolean", "null"]}]}),
    "inference_request": _object(
        "inputs",
        id={"type": "string", "maxLength": 200},
        parameters=_ANY_OBJECT,
        inputs=_list(_object("name shape datatype", **_TENSOR, data=_DATA), minItems=1),
        outputs=_list(_object("name", name={"enum": list(OUTPUTS)}, parameters=_ANY_OBJECT)),
    ),
    "inference_response": _object(
        "model_name model_version id outputs",
        model_name=_TEXT, model_version=_TEXT, id=_TEXT, parameters=_ANY_OBJECT,
        outputs=_list(_object("name shape datatype", **_TENSOR | {"name": {"enum": list(OUTPUTS)}}, data=_DATA)),
    ),
    "repository_index_request": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
    "repository_index": _list(_object("name state reason", name=_TEXT, version=_TEXT, state=_TEXT, reason=_TEXT)),
    "mlflow_request": {
        "type": "object",
        "properties": {"dataframe_split": _ANY_OBJECT, "dataframe_records": _list(_ANY_OBJECT), "params": _ANY_OBJECT},
    },
    "mlflow_response": _object(
        "predictions",
        predictions=_list(_object("score decision", score={"type": "number"}, decision={"enum": [0, 1]})),
    ),
    "error": _object("error", error=_TEXT),
}  # fmt: skip
_STREAM = {"text/event-stream": _TEXT}
_INFER = {
    "application/json": _of("inference_request"), "application/octet-stream": _BYTES, ARROW: _BYTES,
}  # fmt: skip
_INFERRED = {
    "application/json": _of("inference_response"), "application/octet-stream": _BYTES, ARROW: _BYTES,
}  # fmt: skip
OPERATIONS: Mapping[str, tuple[Json | None, Json, str]] = {
    "live": (None, {"application/json": _of("live")}, "200"),
    "ready": (None, {"application/json": _of("ready")}, "200 400"),
    "model_ready": (None, {"application/json": _of("ready")}, "200 400 404"),
    "server_metadata": (None, {"application/json": _of("metadata_server")}, "200"),
    "model_metadata": (None, {"application/json": _of("metadata_model")}, "200 404"),
    "described": (None, {"application/json": _ANY_OBJECT}, "200"),
    "infer": (_INFER, _INFERRED, "200 400 404 503"),
    "invocations": (
        {"application/json": _of("mlflow_request"), CSV: _TEXT},
        {"application/json": _of("mlflow_response")},
        "200 400 503",
    ),
    "repository_index": (
        {"application/json": _of("repository_index_request")},
        {"application/json": _of("repository_index")},
        "200 400",
    ),
    "repository_change": (None, {}, "400"),
}
"""Handler of a route -> bodies by media type, answers by media type, statuses. Beside these a server with a token
answers 401."""


def document(
    routes: Iterable[tuple[str, str, Callable[..., Any]]], name: str, version: str | None, software: str
) -> Json:
    """Return the document for a table of routes. name, version : of the model that answers; None while it loads"""
    paths: dict[str, Json] = {}
    known = {"name": {"enum": [name]}, "version": _TEXT if version is None else {"enum": [version]}}
    for method, path, handler in routes:
        parameters = [
            {"name": key, "in": "path", "required": True, "schema": known[key] if "/repository/" not in path else _TEXT}
            for key in re.findall(r"{(\w+)}", path)
        ]
        paths.setdefault(path, {})[method.lower()] = _operation(handler.__name__, path, parameters)
    return {
        "openapi": "3.1.0",
        "info": {"title": "rareclass: Open Inference Protocol", "version": software},
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _operation(handler: str, path: str, parameters: list[Json]) -> Json:
    bodies, answers, statuses = OPERATIONS[handler]
    if path.endswith("_stream"):
        answers = _STREAM | {ARROW: _BYTES, "application/octet-stream": _BYTES}
    responses: Json = {}
    for status in (*statuses.split(), "401"):
        kept = answers if status == "200" else {"application/json": _of("error")}
        if handler in ("ready", "model_ready") and status == "400":
            kept = answers
        responses[status] = {"description": _MEANINGS[status], "content": _content(kept)}
    found: Json = {
        "operationId": re.sub(r"\W+", "_", path[1:]),
        "parameters": parameters,
        "responses": responses,
    }
    if bodies is not None:
        found["requestBody"] = {"content": _content(bodies)}
    return found


def _content(by_media: Json) -> Json:
    return {media: {"schema": schema} for media, schema in by_media.items()}


_MEANINGS = {
    "200": "OK",
    "400": "What is wrong with the request, in one line",
    "401": "The token is missing or another",
    "404": "Another model or version answers here",
    "503": "The model is loading, or the answer cannot be logged",
}
