"""The gRPC messages as a third-party client was compiled with them: an independent witness for our own.

``tritonclient.grpc`` itself refuses to be imported beside the protobuf that Kubeflow pins; the file descriptors that it
carries as bytes can be read all the same.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def messages() -> Any:
    """Return the message classes by name, and ``stub(channel, method)``.

    Skips the test where there is no tritonclient.
    """
    from google.protobuf import descriptor_pool, message_factory

    spec = find_spec("tritonclient")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "grpc"
    pool = descriptor_pool.DescriptorPool()
    for name in ("model_config_pb2.py", "service_pb2.py"):
        calls = [node for node in ast.walk(ast.parse((folder / name).read_text())) if isinstance(node, ast.Call)]
        [content] = [
            call.args[0].value
            for call in calls
            if isinstance(call.func, ast.Attribute)
            and call.func.attr == "AddSerializedFile"
            and isinstance(call.args[0], ast.Constant)
        ]
        file = pool.AddSerializedFile(content) or pool.FindFileByName("grpc_service.proto")
    found = {name: message_factory.GetMessageClass(kind) for name, kind in file.message_types_by_name.items()}
    service = file.services_by_name["GRPCInferenceService"]

    def call(channel: Any, name: str) -> Any:
        method = service.methods_by_name[name]
        return channel.unary_unary(
            f"/{service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )

    return SimpleNamespace(**found, pool=pool, call=call)
