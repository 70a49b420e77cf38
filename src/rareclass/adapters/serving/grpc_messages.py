"""The messages of the Open Inference Protocol over gRPC, built from the table below when they are first needed.

The names, numbers and types of the fields are the public protocol's (version 2, package ``inference``); nothing is
generated, so there is no generated file that an update of protobuf can refuse. They live in a pool of their own: a
process that also imports another package's copy of the protocol (a client, an engine) meets no clash of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_TENSOR = "name=1 string, datatype=2 string, shape=3 [int64]"
_MESSAGES: Mapping[str, str] = {
    "InferParameter": (
        "bool_param=1 bool?, int64_param=2 int64?, string_param=3 string?, double_param=4 double?, uint64_param=5 "
        "uint64?"
    ),
    "InferTensorContents": (
        "bool_contents=1 [bool], int_contents=2 [int32], int64_contents=3 [int64], uint_contents=4 [uint32],"
        " uint64_contents=5 [uint64], fp32_contents=6 [float], fp64_contents=7 [double], bytes_contents=8 [bytes]"
    ),
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live=1 bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready=1 bool",
    "ModelReadyRequest": "name=1 string, version=2 string",
    "ModelReadyResponse": "ready=1 bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name=1 string, version=2 string, extensions=3 [string]",
    "ModelMetadataRequest": "name=1 string, version=2 string",
    "ModelMetadataResponse": (
        "name=1 string, versions=2 [string], platform=3 string, inputs=4 [.TensorMetadata], outputs=5 [.TensorMetadata]"
    ),
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "ModelInferRequest": (
        "model_name=1 string, model_version=2 string, id=3 string, parameters=4 {InferParameter},"
        " inputs=5 [.InferInputTensor], outputs=6 [.InferRequestedOutputTensor], raw_input_contents=7 [bytes]"
    ),
    "ModelInferRequest.InferInputTensor": f"{_TENSOR}, parameters=4 {{InferParameter}}, contents=5 InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name=1 string, parameters=2 {InferParameter}",
    "ModelInferResponse": (
        "model_name=1 string, model_version=2 string, id=3 string, parameters=4 {InferParameter},"
        " outputs=5 [.InferOutputTensor], raw_output_contents=6 [bytes]"
    ),
    "ModelInferResponse.InferOutputTensor": (
        f"{_TENSOR}, parameters=4 {{InferParameter}}, contents=5 InferTensorContents"
    ),
    "RepositoryIndexRequest": "repository_name=1 string, ready=2 bool",
    "RepositoryIndexResponse": "models=1 [.ModelIndex]",
    "RepositoryIndexResponse.ModelIndex": "name=1 string, version=2 string, state=3 string, reason=4 string",
    "RepositoryModelLoadRequest": "repository_name=1 string, model_name=2 string",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name=1 string, model_name=2 string",
    "RepositoryModelUnloadResponse": "",
}
"""Message: its fields, ``name=number type``. ``[type]`` is repeated, ``{type}`` a map from text, ``type?`` a member of
the message's one-of, ``.Name`` a message nested in this one. ``Outer.Inner`` follows its ``Outer``."""

METHODS: Mapping[str, tuple[str, str]] = {
    **{name: (f"{name}Request", f"{name}Response") for name in (
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "RepositoryIndex",
        "RepositoryModelLoad", "RepositoryModelUnload",
    )},
    "ModelStreamInfer": ("ModelInferRequest", "ModelInferResponse"),
}  # fmt: skip
"""Method of the service: the messages that it takes and gives. ``ModelStreamInfer`` streams both ways."""


@cache
def messages() -> Any:
    """Return the message classes by name; a nested one is an attribute of the one that holds it."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE, syntax="proto3")
    built: dict[str, Any] = {}
    for name, fields in _MESSAGES.items():
        outer, _, inner = name.rpartition(".")
        message = built[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
        built[name] = message
        for text in filter(None, fields.split(", ")):
            _add_field(message, name, text)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return SimpleNamespace(
        **{
            name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
            for name in _MESSAGES
            if "." not in name
        }
    )


def _add_field(message: Any, name: str, text: str) -> None:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

    label, kind = text.split(" ", 1)
    key, _, number = label.partition("=")
    field = message.field.add(name=key, number=int(number), label=Field.LABEL_OPTIONAL)
    if kind.startswith("{"):
        entry = message.nested_type.add(name=f"{key.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, f"{name}.{entry.name}", "key=1 string")
        _add_field(entry, f"{name}.{entry.name}", f"value=2 {kind[1:-1]}")
        kind = f"[.{entry.name}]"
    if kind.endswith("?"):
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index, kind = 0, kind[:-1]
    if kind.startswith("["):
        field.label, kind = Field.LABEL_REPEATED, kind[1:-1]
    if kind[0] == ".":
        field.type, field.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{name}{kind}"
    elif kind[0].isupper():
        field.type, field.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(Field, f"TYPE_{kind.upper()}")
