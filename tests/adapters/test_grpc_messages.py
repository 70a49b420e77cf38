"""Our own gRPC messages against those of a third-party client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import triton_messages
from rareclass.adapters.serving.grpc_messages import METHODS, PACKAGE, messages
from rareclass.adapters.serving.grpc_server import _floats, _packed_floats


def _fields(descriptor: Any) -> dict[str, tuple[Any, ...]]:
    out: dict[str, tuple[Any, ...]] = {}
    for field in descriptor.fields:
        kind = field.message_type and field.message_type.full_name
        out[field.name] = (field.number, field.type, field.is_repeated, kind)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            out |= {f"{field.name}.{key}": value for key, value in _fields(field.message_type).items()}
    for inner in descriptor.nested_types:
        out |= {f"{inner.name}.{key}": value for key, value in _fields(inner).items()}
    return out


def test_every_field_has_the_number_and_type_that_a_third_party_client_was_compiled_with() -> None:
    theirs, ours = triton_messages.messages(), messages()
    for name, kind in vars(ours).items():
        expected = _fields(theirs.pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for field, said in _fields(kind.DESCRIPTOR).items():
            assert expected[field] == said, f"{name}.{field}"
    service = theirs.pool.FindServiceByName(f"{PACKAGE}.GRPCInferenceService").methods_by_name
    for name, (taken, given) in METHODS.items():
        if name != "ModelStreamInfer":  # their answer to a stream wraps the response
            assert (service[name].input_type.name, service[name].output_type.name) == (taken, given)


@pytest.mark.parametrize("count", [1, 15, 16, 31, 32, 4095, 4096, 600_000])
@pytest.mark.parametrize(("field", "dtype"), [("fp32_contents", "<f4"), ("fp64_contents", "<f8")])
def test_numbers_are_read_and_written_as_protobuf_does_whatever_their_length(
    count: int, field: str, dtype: str
) -> None:
    kind = messages().InferTensorContents
    numbers = np.random.default_rng(count).normal(size=count).astype(dtype)
    sent = kind(**{field: numbers.tolist()})
    assert np.array_equal(np.frombuffer(_floats(sent), dtype=dtype), numbers)
    assert _packed_floats(kind, field, numbers) == sent
