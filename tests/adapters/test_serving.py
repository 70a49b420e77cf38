"""The serving adapter without a server: requests, answers, the log, shadows and what is swapped."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import poisoned
import small_model
from poisoned import Raising
from rareclass.adapters.serving.batcher import Batcher
from rareclass.adapters.serving.engine import Active, Answer, Engine, LogLimits
from rareclass.adapters.serving.interfaces import Dependencies, Release, ServedVersion
from rareclass.adapters.serving.metrics import Metrics
from rareclass.adapters.serving.refresh import PointSource, Refresher, parse_point
from rareclass.adapters.serving.server import InferenceServer, Options
from rareclass.adapters.serving.shadow import STRIKES, WAITING_ROWS, ShadowProcess, Work, _scored
from rareclass.adapters.serving.signature import Query, Signature
from rareclass.adapters.serving.v2_codec import Tensor, Wanted, encode, inflate, parse, values
from rareclass.core.calibration import Identity
from rareclass.core.dataset import OTHER, Feature, Roles, Schema
from rareclass.core.dataset import encode as encode_frame
from rareclass.core.model import RareModel
from rareclass.core.reading import Reading
from rareclass.core.times import TimeReading
from rareclass.errors import ConfigError, InputError, ModelError, SpoolError, SpoolFullError
from rareclass.services.serving.shipping import decode
from waiting import until

NOW = 1_800_000_000.0
ROWS = {"name": "rows", "shape": [2, 2], "datatype": "FP32", "data": [1, 0, 3, 1]}
AMOUNT = {"name": "amount", "shape": [2], "datatype": "FP32", "data": [1, 3]}
CHANNEL = {"name": "channel", "shape": [2], "datatype": "BYTES", "data": ["web", "shop"]}


class MemoryLog:
    """A log that keeps records in a list; ``fail`` makes the disk full, ``full`` the spool long."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.fail: Exception | None = None
        self.full = False

    def append(self, records: Sequence[bytes]) -> None:
        if self.fail is not None:
            raise self.fail
        self.records += records

    def depth(self) -> int:
        return sum(map(len, self.records))

    def over_limit(self) -> bool:
        return self.full


def _engine(log: MemoryLog, **more: Any) -> Engine:
    metrics = Metrics(CollectorRegistry(), "small", depth=log.depth, limit=100)
    return Engine(log, metrics, **{"name": "small", "sample_rate": 0.1, "clock": lambda: NOW, **more})


def _scrape(engine: Engine) -> bytes:
    return generate_latest(engine.metrics.registry)


def _families(engine: Engine) -> list[Any]:
    return list(text_string_to_metric_families(_scrape(engine).decode()))


def _signature(schema: Schema = small_model.SCHEMA, **more: Any) -> Signature:
    return Signature(schema, **{"max_rows": 1000, "points": ("default", "strict"), **more})


def _active(model: RareModel | None = None) -> Active:
    return Active(model or small_model.model(), "3", "default", 0.5, _signature())


def _read(*inputs: dict[str, Any], signature: Signature | None = None, **rest: Any) -> Query:
    return (signature or _signature()).read(parse(json.dumps({"inputs": inputs, **rest}).encode()))


def _answer(engine: Engine, query: Query, active: Active | None = None) -> Answer:
    [found] = engine.answer([(query, active or _active())])
    if isinstance(found, Exception):
        raise found
    return found


def test_a_server_that_says_it_started_takes_connections_even_before_the_loop_turns_again() -> None:
    async def connect_at_once() -> None:
        server = await InferenceServer(Options("small", "127.0.0.1", 0, 0, 0), _engine(MemoryLog())).start()
        for port in (server.ports.http, server.ports.metrics):
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        await asyncio.sleep(0)  # the tasks that serve have begun and can be asked to end
        await server.stop()

    asyncio.run(connect_at_once())


def test_one_matrix_and_named_columns_in_any_order_are_the_same_rows() -> None:
    assert np.array_equal(_read(ROWS).matrix, _read(CHANNEL, AMOUNT).matrix)
    assert np.array_equal(_read(ROWS).matrix, [[1, 0], [3, 1]])


def test_nested_data_and_shapes_of_one_column_are_taken() -> None:
    nested = {**ROWS, "data": [[1, 0], [3, 1]]}
    tall = {**AMOUNT, "shape": [2, 1], "data": [[1], [3]]}
    assert np.array_equal(_read(nested).matrix, _read(tall, CHANNEL).matrix)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"{}", "'inputs' must be a list"),
        ({"inputs": {}}, "'inputs' must be a list"),
        ({"inputs": []}, "'inputs' must be a list"),
        ({"inputs": [3]}, "an input must be an object"),
        ({"inputs": [{**ROWS, "name": None}]}, "must have a 'name'"),
        ({"inputs": [{**ROWS, "datatype": "FP31"}]}, "Did you mean 'FP32'?"),
        ({"inputs": [{**ROWS, "datatype": ["FP32"]}]}, "unknown datatype"),
        ({"inputs": [{**ROWS, "shape": None}]}, "'shape' of integers"),
        ({"inputs": [{**ROWS, "shape": [2.0, 2]}]}, "'shape' of integers"),
        ({"inputs": [{**ROWS, "shape": [True, 2]}]}, "'shape' of integers"),
        ({"inputs": [{**ROWS, "shape": []}]}, "a column is [rows]"),
        ({"inputs": [{**ROWS, "shape": [1, 2, 2]}]}, "a column is [rows]"),
        ({"inputs": [{**ROWS, "shape": [-2, -2]}]}, "below 1"),
        ({"inputs": [{**ROWS, "shape": [0, 2], "data": []}]}, "no rows"),
        ({"inputs": [{**ROWS, "shape": [2, 3]}]}, "has 3 columns; the model needs 2: amount, channel"),
        ({"inputs": [{**ROWS, "shape": [4, 2]}]}, "= 8 values, but 'data' holds 4"),
        ({"inputs": [{**ROWS, "shape": [1001, 2]}]}, "1000 at most"),
        ({"inputs": [{**ROWS, "shape": [2**62, 2]}]}, "1000 at most"),
        ({"inputs": [{**ROWS, "data": None}]}, "no 'data' list"),
        ({"inputs": [{**ROWS, "data": [[1, 0], [3]]}]}, "nested 'data' has another"),
        ({"inputs": [{**ROWS, "data": [1, 0, 3, [1]]}]}, "holds [1] at position 3"),
        ({"inputs": [{**ROWS, "data": [1, 0, None, 1]}]}, 'Set parameters {"missing": true}'),
        ({"inputs": [{**ROWS, "data": [1, 0, "NaN", 1]}]}, "holds 'NaN' at position 2"),
        ({"inputs": [{**ROWS, "data": [1, 0, True, 1]}]}, "holds True at position 2"),
        ({"inputs": [{**ROWS, "data": [1, 0, 1e39, 1]}]}, "not finite"),
        ({"inputs": [{**ROWS, "data": [1, 2, 3, 1]}]}, "codes are 0 to 1"),
        ({"inputs": [{**ROWS, "data": [1, 0.5, 3, 1]}]}, "codes are 0 to 1"),
        ({"inputs": [{**ROWS, "datatype": "FP64", "data": [1, 0, 1e300, 1]}]}, "beyond 3.4e38"),
        ({"inputs": [{**ROWS, "datatype": "INT64", "data": [1, 0, 2**63, 1]}]}, "does not fit into INT64"),
        ({"inputs": [{**ROWS, "datatype": "INT64", "data": [1, 0, 2**65, 1]}]}, "at position 2"),
        ({"inputs": [{**ROWS, "datatype": "UINT8", "data": [1, 0, -3, 1]}]}, "does not fit into UINT8"),
        ({"inputs": [{**ROWS, "datatype": "INT8", "data": [1, 0, 300, 1]}]}, "does not fit into INT8"),
        ({"inputs": [{**ROWS, "datatype": "BYTES", "data": ["1", "0", "3", "1"]}]}, "must be FP32"),
        ({"inputs": [ROWS, ROWS]}, "there twice"),
        ({"inputs": [AMOUNT, AMOUNT, CHANNEL]}, "'amount' is there twice"),
        ({"inputs": [AMOUNT]}, "column 'channel' is missing"),
        ({"inputs": [AMOUNT, {**CHANNEL, "name": "chanel"}]}, "Did you mean 'channel'?"),
        ({"inputs": [AMOUNT, {**CHANNEL, "shape": [1], "data": ["web"]}]}, "equally long"),
        ({"inputs": [AMOUNT, {**CHANNEL, "shape": [1, 2]}]}, "a column is [rows]"),
        ({"inputs": [AMOUNT, {**CHANNEL, "data": ["web", 1]}]}, "holds 1 at position 1"),
        ({"inputs": [AMOUNT, {**CHANNEL, "data": ["web", None]}]}, "missing values as null"),
        ({"inputs": [{**AMOUNT, "datatype": "BYTES", "data": ["1", "3"]}, CHANNEL]}, "must hold numbers"),
        ({"inputs": [ROWS], "parameters": []}, "'parameters' of the request"),
        ({"inputs": [ROWS], "parameters": {"explian": True}}, "Did you mean 'explain'?"),
        ({"inputs": [ROWS], "parameters": {"explain": "yes"}}, "'explain' must be true or false"),
        ({"inputs": [ROWS], "parameters": {"explain": True, "top": 3}}, "'top' must be a number from 1 to 2"),
        ({"inputs": [ROWS], "parameters": {"operating_point": "strikt"}}, "Did you mean 'strict'?"),
        ({"inputs": [ROWS], "parameters": {"operating_point": ["strict"]}}, "unknown operating point"),
        ({"inputs": [ROWS], "parameters": {"ts": "yesterday"}}, "'ts' must be ISO 8601"),
        ({"inputs": [ROWS], "parameters": {"ts": -1}}, "'ts' must be ISO 8601"),
        ({"inputs": [ROWS], "parameters": {"entity": [1]}}, "1 values for 2 rows"),
        ({"inputs": [ROWS], "parameters": {"entity": {"a": 1}}}, "'entity' must be text"),
        ({"inputs": [ROWS], "parameters": {"propensity": 1.5}}, "'propensity' must be a probability"),
        ({"inputs": [ROWS], "outputs": [{"name": "scores"}]}, "Did you mean 'score'?"),
        ({"inputs": [ROWS], "outputs": ["score"]}, "an output must be an object"),
        ({"inputs": [ROWS], "outputs": [{"name": "score"}, {"name": "score"}]}, "asked for twice"),
        ({"inputs": [ROWS], "id": 7}, "'id' must be"),
        ({"inputs": [ROWS], "id": "a\nb"}, "'id' must be"),
        ({"inputs": [ROWS], "id": "x" * 201}, "'id' must be"),
        ({"inputs": [{**ROWS, "parameters": {"binary_data_size": 16}}]}, "0 bytes follow"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_with_one_line_that_says_what_to_change(body: Any, says: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(InputError) as raised:
        _signature().read(parse(raw))
    message = str(raised.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 500


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["FP32", "BYTES", "rows", "amount", "channel", "web", "ts"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "missing", "ts"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]), _json, _json)
def test_whatever_stands_in_a_request_only_an_input_error_comes_out(key: str, value: Any, options: Any) -> None:
    body = json.dumps({"inputs": [{**AMOUNT, key: value}, CHANNEL], "parameters": options}).encode()
    with suppress(InputError):
        assert len(_signature().read(parse(body))) >= 1


def test_what_clients_of_the_protocol_send_of_their_own_accord_is_let_through() -> None:
    assert (
        len(_read(ROWS, parameters={"sequence_id": 0, "priority": 0, "timeout": 5, "binary_data_output": False})) == 2
    )


def test_missing_values_are_taken_when_the_request_says_so() -> None:
    amount, channel = {**AMOUNT, "data": [None, 3]}, {**CHANNEL, "data": ["web", None]}
    query = _read(amount, channel, parameters={"missing": True})
    assert np.isnan(query.matrix).tolist() == [[True, False], [False, True]]
    assert query.unknown == 0
    coded = _signature(Schema((Feature("code", "categorical", ("3", OTHER)),)))
    code = {"name": "code", "shape": [2], "datatype": "FP64", "data": [None, 3]}
    numbers = _read(code, signature=coded, parameters={"missing": True})
    assert np.isnan(numbers.matrix).tolist() == [[True], [False]]
    assert numbers.unknown == 0


def test_an_unknown_category_is_scored_counted_and_logged_as_it_was_sent() -> None:
    log = MemoryLog()
    engine = _engine(log)
    _answer(engine, _read(AMOUNT, {**CHANNEL, "data": ["web", "fax"]}, id="a"))
    stored = decode(log.records).predictions
    assert [json.loads(text)["channel"] for text in stored["features"]] == ["web", "fax"]
    assert b'rareclass_serve_unknown_categories_total{model="small"} 1.0' in _scrape(engine)


def test_categories_are_read_as_in_training_also_when_they_are_numbers() -> None:
    schema = Schema((Feature("code", "categorical", ("3", "2.5", "True", OTHER)),))
    signature = _signature(schema)
    import pandas as pd

    for datatype, data in (("INT64", [3, 9]), ("FP64", [3.0, 2.5]), ("BYTES", ["3", "x"]), ("BOOL", [True, False])):
        read = _read({"name": "code", "shape": [2], "datatype": datatype, "data": data}, signature=signature).matrix
        alone = [encode_frame(pd.DataFrame({"code": [value]}), schema)[0, 0] for value in data]
        assert read[:, 0].tolist() == alone, datatype


def test_values_that_meant_missing_in_training_mean_missing_here_and_the_empty_text_always_does() -> None:
    reading = Reading("number", ("-999", "unknown"))
    schema = Schema(
        (Feature("age", reading=reading), Feature("kind", "categorical", ("007", "a"), Reading("text", ("unknown",))))
    )
    age = {"name": "age", "shape": [4], "datatype": "INT64", "data": [-999, 1, 2, 3]}
    kind = {"name": "kind", "shape": [4], "datatype": "BYTES", "data": ["007", "", "unknown", " a "]}
    query = _read(age, kind, signature=_signature(schema))
    np.testing.assert_array_equal(query.matrix, np.array([[np.nan, 0], [1, np.nan], [2, np.nan], [3, 1]], np.float32))
    assert query.unknown == 0
    matrix = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [-999, 1]}
    assert np.isnan(_read(matrix, signature=_signature(schema)).matrix).tolist() == [[True, False]]


def test_times_under_the_name_of_the_training_column_are_read_as_in_training() -> None:
    roles = Roles(time=TimeReading("when", order="day-first"))
    signature = _signature(Schema(small_model.SCHEMA.features, roles), aliases={"when": "ts"})
    sent = ["02/01/2024 00:00", "2024-01-02T00:00:00Z"]
    when = {"name": "when", "shape": [2], "datatype": "BYTES", "data": sent}
    assert _read(AMOUNT, CHANNEL, when, signature=signature).time == [1704153600.0, 1704153600.0]
    with pytest.raises(InputError, match="'ts' must be ISO 8601"):
        _read(AMOUNT, CHANNEL, {**when, "data": ["31/31/2024", sent[1]]}, signature=signature)


def _binary(*tensors: tuple[str, str, list[int], bytes], **rest: Any) -> tuple[bytes, str]:
    inputs = [
        {"name": n, "datatype": d, "shape": s, "parameters": {"binary_data_size": len(raw)}} for n, d, s, raw in tensors
    ]
    head = json.dumps({"inputs": inputs, **rest}).encode()
    return head + b"".join(raw for *_, raw in tensors), str(len(head))


def test_binary_tensors_are_the_same_rows_as_json_ones() -> None:
    texts = b"".join(struct.pack("<I", len(each)) + each for each in (b"web", b"shop"))
    body, length = _binary(("amount", "FP64", [2], np.array([1, 3.0]).tobytes()), ("channel", "BYTES", [2], texts))
    assert np.array_equal(_signature().read(parse(body, length)).matrix, _read(ROWS).matrix)


@pytest.mark.parametrize(
    ("datatype", "raw", "says"),
    [
        ("FP32", b"\0" * 15, "= 16 bytes, but 15 came"),
        ("FP32", np.array([1, 0, np.nan, 1], dtype="f4").tobytes(), "not finite"),
        ("FP32", np.array([1, 0, np.inf, 1], dtype="f4").tobytes(), "not finite"),
        ("BOOL", b"\0\1\2\1", "other than 0 and 1"),
        ("BYTES", b"\xff\xff\xff\xff", "ends inside value 0"),
        ("BYTES", b"\2\0\0\0\xff\xfe" * 4, "not UTF-8"),
        ("BYTES", b"\1\0\0\0a" * 5, "bytes after its 4 values"),
    ],
)
def test_damaged_binary_tensors_are_refused(datatype: str, raw: bytes, says: str) -> None:
    name, shape = ("channel", [4]) if datatype in ("BYTES", "BOOL") else ("rows", [2, 2])
    columns = [(name, datatype, shape, raw)] + [("amount", "INT8", [4], b"\1\1\1\1")] * (name == "channel")
    body, length = _binary(*columns)
    with pytest.raises(InputError, match=says):
        _signature().read(parse(body, length))


@pytest.mark.parametrize("length", ["-1", "0", "x", "99999", "1e3", "²"])
def test_a_wrong_header_length_is_refused(length: str) -> None:
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        parse(json.dumps({"inputs": [ROWS]}).encode(), length)


def test_bytes_that_no_input_claims_are_refused() -> None:
    head = json.dumps({"inputs": [ROWS]}).encode()
    with pytest.raises(InputError, match="4 bytes follow"):
        parse(head + b"\0\0\0\0", str(len(head)))


def test_a_compressed_body_is_unpacked_up_to_the_limit_and_no_further() -> None:
    import gzip
    import zlib

    body = b"x" * 1000
    assert inflate(gzip.compress(body), "gzip", 1000) == body
    assert inflate(zlib.compress(body), "deflate", 1000) == body
    for encoding, packed in (
        ("gzip", gzip.compress(body + b"y")),
        ("br", body),
        ("gzip", gzip.compress(body)[:-4]),
        ("gzip", body),
    ):
        with pytest.raises(InputError):
            inflate(packed, encoding, 1000)


def test_an_answer_has_every_output_for_every_row_and_the_version_beside() -> None:
    answer = _answer(_engine(MemoryLog()), _read(ROWS, id="a"))
    body, split = encode({"id": answer.id, "parameters": answer.parameters()}, answer.arrays(), Wanted())
    said = json.loads(body)
    assert split is None
    assert {node["name"]: (node["datatype"], node["shape"]) for node in said["outputs"]} == {
        "score": ("FP64", [2]),
        "decision": ("INT64", [2]),
        "threshold": ("FP64", [2]),
        "version": ("BYTES", [2]),
    }
    assert said["parameters"] == {"version": "3", "threshold": 0.5, "operating_point": "default"}
    assert said["outputs"][0]["data"] == pytest.approx(small_model.model().score(_read(ROWS).matrix).tolist())


def test_binary_outputs_can_be_read_back() -> None:
    answer = _answer(
        _engine(MemoryLog()), _read(ROWS, parameters={"explain": True, "top": 1, "binary_data_output": True})
    )
    body, split = encode({}, answer.arrays(), answer.query.wanted)
    assert split is not None
    head, offset, found = json.loads(body[:split]), split, {}
    for node in head["outputs"]:
        size = node["parameters"]["binary_data_size"]
        found[node["name"]] = body[offset : offset + size]
        offset += size
    assert offset == len(body)
    assert np.frombuffer(found["score"]).tolist() == answer.score.tolist()
    assert found["version"] == b"\1\0\0\x003" * 2
    assert len(json.loads(found["reasons"][4 : 4 + struct.unpack_from("<I", found["reasons"])[0]])) == 1


def test_an_operating_point_of_the_request_decides_and_is_logged() -> None:
    log = MemoryLog()
    answer = _answer(_engine(log), _read(ROWS, parameters={"operating_point": "strict"}))
    assert (answer.point, answer.threshold) == ("strict", 0.9)
    assert set(decode(log.records).predictions["threshold"]) == {0.9}


@pytest.mark.parametrize("error", [SpoolFullError("no space"), SpoolError("closed"), OSError(5, "input/output error")])
def test_what_cannot_be_logged_is_not_answered(error: Exception) -> None:
    log = MemoryLog()
    log.fail = error
    engine = _engine(log)
    with pytest.raises(SpoolError):
        _answer(engine, _read(ROWS))
    assert b'rareclass_serve_unlogged_requests_total{model="small"} 1.0' in _scrape(engine)
    assert b"rareclass_serve_rows_total{" not in _scrape(engine)


def test_the_log_holds_every_answered_row_with_what_the_client_knows_about_it() -> None:
    log = MemoryLog()
    query = _read(ROWS, id="a", parameters={"ts": "2026-05-01T00:00:00Z", "entity": ["x", 7], "propensity": 0.1})
    answer = _answer(_engine(log), query)
    stored = decode(log.records)
    assert not stored.rejected
    rows = stored.predictions
    assert rows["request_id"].tolist() == ["a", "a"]
    assert rows["row"].tolist() == [0, 1]
    assert rows["score"].tolist() == answer.score.tolist()
    assert rows["entity"].tolist() == ["x", "7"]
    assert rows["propensity"].tolist() == [0.1, 0.1]
    assert set(rows["ts"]) == {1777593600 * 10**6}
    assert json.loads(rows["features"][1]) == {"amount": 3.0, "channel": "shop"}


def test_rows_with_different_event_times_keep_them_and_a_clock_that_is_ahead_does_not_count() -> None:
    log = MemoryLog()
    engine = _engine(log)
    _answer(engine, _read(ROWS, id="a", parameters={"ts": [NOW - 50, NOW + 3600]}))
    rows = decode(log.records).predictions.sort_values("row")
    assert rows["ts"].tolist() == [(NOW - 50) * 10**6, NOW * 10**6]
    assert [json.loads(text)["amount"] for text in rows["features"]] == [1.0, 3.0]
    assert b'rareclass_serve_clock_skew_total{model="small"} 1.0' in _scrape(engine)


def test_an_event_time_that_the_log_would_not_keep_is_refused_and_nothing_is_logged() -> None:
    log = MemoryLog()
    engine = _engine(log, limits=LogLimits(oldest=86_400.0))
    (found,) = engine.answer([(_read(ROWS, parameters={"ts": "1971-01-01T00:00:00Z"}), _active())])
    assert isinstance(found, InputError)
    assert "'ts' is more than 1 days ago" in str(found)
    assert log.records == []


def test_event_time_and_entity_may_have_the_names_of_the_training_columns() -> None:
    signature = _signature(aliases={"booked_at": "ts", "card": "entity"})
    card = {"name": "card", "shape": [2], "datatype": "INT64", "data": [7, 8]}
    query = _read(AMOUNT, CHANNEL, card, signature=signature, parameters={"ts": 5})
    assert query.entity == ["7", "8"]
    assert query.time == [5.0, 5.0]


def test_private_columns_never_reach_the_log() -> None:
    log = MemoryLog()
    _answer(_engine(log, limits=LogLimits(("channel",))), _read(AMOUNT, {**CHANNEL, "data": ["secret", "shop"]}))
    assert [set(json.loads(text)) for text in decode(log.records).predictions["features"]] == [{"amount"}] * 2
    assert b"secret" not in b"".join(log.records)


def test_over_the_limit_rows_decided_0_are_sampled_with_weights_that_keep_sums_unbiased() -> None:
    log = MemoryLog()
    log.full = True
    engine = _engine(log)
    rng = np.random.default_rng(0)
    amount = rng.normal(size=1000).astype(np.float32)
    answered = positives = 0
    for at in range(20):
        query = Query(f"r{at}", np.column_stack([amount, np.zeros(1000, np.float32)]))
        positives += int(_answer(engine, query).decision.sum())
        answered += 1000
    rows = decode(log.records).predictions
    assert (rows["decision"] == 1).sum() == positives
    assert set(rows["weight"]) == {1.0, 10.0}
    assert rows["weight"].sum() == pytest.approx(answered, rel=0.05)
    sampled = next(f for f in _families(engine) if f.name == "rareclass_serve_sampled_rows").samples[0].value
    assert sampled == answered - len(rows)


def test_the_same_request_sent_again_keeps_the_same_sample() -> None:
    log = MemoryLog()
    log.full = True
    engine = _engine(log)
    query = Query("same", np.zeros((500, 2), np.float32))
    _answer(engine, query)
    _answer(engine, query)
    assert log.records[0] == log.records[1]


def test_requests_scored_together_get_their_own_scores_and_a_poisoned_one_fails_alone() -> None:
    model = RareModel(small_model.SCHEMA, Raising(), Identity(), {"default": 0.5})
    active, log = _active(model), MemoryLog()
    matrices = [np.array([[value, 0]], np.float32) for value in (1, 200, 3)]
    results = _engine(log).answer([(Query(str(at), x), active) for at, x in enumerate(matrices)])
    assert [type(result) for result in results] == [Answer, RuntimeError, Answer]
    assert set(decode(log.records).predictions["request_id"]) == {"0", "2"}
    good = _active()
    together = _engine(MemoryLog()).answer([(Query(str(at), x), good) for at, x in enumerate(matrices)])
    assert [each.score.tolist() for each in together if isinstance(each, Answer)] == [
        good.model.score(x).tolist() for x in matrices
    ]


def test_the_score_histogram_counts_every_row_once() -> None:
    engine = _engine(MemoryLog())
    _answer(engine, _read(ROWS))
    _answer(engine, _read(ROWS))
    [family] = [each for each in _families(engine) if each.name == "rareclass_serve_score_ratio"]
    value = {(s.name.rsplit("_", 1)[-1], s.labels.get("le")): s.value for s in family.samples}
    assert value["count", None] == value["bucket", "+Inf"] == 4
    assert value["bucket", "0.2"] == 0
    assert value["bucket", "0.3"] == 2
    assert value["sum", None] == pytest.approx(2 * small_model.model().score(_read(ROWS).matrix).sum())


class Registry:
    """Releases and models that a test changes."""

    def __init__(self) -> None:
        self.release = Release(ServedVersion("champion", "1", "a"))
        self.models = {"a": small_model.model(1), "b": small_model.model(2)}
        self.loads = 0

    def ports(self, log: MemoryLog) -> Dependencies:
        def load(version: ServedVersion) -> RareModel:
            self.loads += 1
            return self.models[version.uri]

        return Dependencies(lambda: self.release, load, log)


def _refresher(registry: Registry, **more: Any) -> tuple[Engine, Refresher]:
    log = MemoryLog()
    engine = _engine(log)
    return engine, Refresher(engine, registry.ports(log), **{"max_rows": 10, "seconds": 1, **more})


def test_a_new_champion_takes_over_and_an_unchanged_one_is_not_loaded_again() -> None:
    registry = Registry()
    engine, refresher = _refresher(registry)
    refresher.first()
    refresher.look(True)
    assert engine.active is not None
    assert (engine.active.version, registry.loads) == ("1", 1)
    registry.release = Release(ServedVersion("champion", "2", "b"), point="strict")
    refresher.look(True)
    assert (engine.active.version, engine.active.point, engine.active.threshold) == ("2", "strict", 0.9)


def test_a_champion_whose_golden_rows_score_differently_never_answers() -> None:
    registry = Registry()
    engine, refresher = _refresher(registry)
    refresher.first()
    wrong = small_model.model(2)
    registry.models["b"] = RareModel(
        wrong.schema, small_model.linear(3), wrong.calibrator, wrong.thresholds, golden=wrong.golden
    )
    registry.release = Release(ServedVersion("champion", "2", "b"))
    with pytest.raises(ModelError, match="golden rows"):
        refresher.look(True)
    assert engine.active is not None
    assert engine.active.version == "1"
    other, fresh = _refresher(registry)
    with pytest.raises(ModelError, match="golden rows"):
        fresh.first()
    assert other.active is None


def test_the_watched_file_wins_over_the_registry_and_nonsense_in_it_changes_nothing(tmp_path: Path) -> None:
    registry, file = Registry(), tmp_path / "point.json"
    registry.release = Release(ServedVersion("champion", "1", "a", {"": 0.7}))
    engine, refresher = _refresher(registry, point=PointSource(file=str(file)))

    def point() -> tuple[str, float]:
        assert engine.active is not None
        return engine.active.point, engine.active.threshold

    refresher.first()
    assert point() == ("default", 0.7)
    file.write_text('{"operating_point": "strict"}')
    refresher.look(False)
    assert point() == ("strict", 0.9)
    file.write_text('{"operating_point": "strictest"}')
    with pytest.raises(ModelError, match="Did you mean 'strict'"):
        refresher.look(False)
    assert point() == ("strict", 0.9)
    file.write_text("{")
    with pytest.raises(ConfigError, match="not understood"):
        refresher.look(False)
    file.write_text("0.25")
    refresher.look(False)
    assert point() == ("custom", 0.25)
    file.unlink()
    refresher.look(False)
    assert point() == ("default", 0.7)


@pytest.mark.parametrize("content", ["", "[]", "2", "-1", "true", "null", '{"threshold": "x"}', '{"a": 1}', "{}"])
def test_an_operating_point_file_that_says_nothing_is_refused(content: str) -> None:
    with pytest.raises(ConfigError, match="Write"):
        parse_point(content, "point.json")


def _work(query: Query) -> Work:
    schema = json.dumps(small_model.SCHEMA.to_json())
    return Work("a", 5, schema, query.matrix, query.text, query.others, "default")


def test_a_shadow_with_other_categories_and_columns_gets_what_the_request_carried() -> None:
    signature = _signature(known=("age",))
    age = {"name": "age", "shape": [2], "datatype": "INT64", "data": [30, 40]}
    query = _read(AMOUNT, {**CHANNEL, "data": ["fax", "web"]}, age, signature=signature)

    class Seeing:
        def score(self, x: np.ndarray) -> np.ndarray:
            return x[:, 0] / 100 + x[:, 1] / 10

    schema = Schema((Feature("age"), Feature("channel", "categorical", ("web", "fax"))))
    shadow = RareModel(schema, Seeing(), Identity(), {"default": 0.41})
    [record] = _scored(shadow, ServedVersion("challenger", "4", "u"), [_work(query)], "small")
    assert record["score"] == pytest.approx([0.4, 0.4])
    assert (record["decision"], record["error"], record["role"]) == ([0, 0], None, "challenger")


def test_a_shadow_whose_column_did_not_come_is_marked_unscored() -> None:
    schema = Schema((Feature("amount"), Feature("age")))
    shadow = RareModel(schema, small_model.linear(1), Identity(), {"default": 0.5})
    records = _scored(shadow, ServedVersion("previous", "2", "u"), [_work(_read(ROWS))], "small")
    assert records[0]["score"] is None
    assert records[0]["error"] == "column 'age' is not in the request"
    stored = decode([json.dumps(record).encode() for record in records])
    assert not stored.rejected
    assert stored.shadows["row"].tolist() == [0, 1]


def test_a_shadow_that_raises_on_one_request_still_scores_the_others() -> None:
    shadow = RareModel(small_model.SCHEMA, Raising(), Identity(), {"default": 0.5})
    parcel = [_work(Query("x", np.array([[value, 0]], np.float32))) for value in (1, 200)]
    good, bad = _scored(shadow, ServedVersion("challenger", "4", "u"), parcel, "small")
    assert (good["score"], good["error"]) == ([0.5], None)
    assert (bad["score"], bad["error"]) == (None, "poisoned in two lines")


@pytest.fixture
def shadows(tmp_path: Path) -> Iterator[tuple[ShadowProcess, Engine, Path]]:
    """Shadows in a real process, the engine that feeds them, and the file with their records."""
    engine, out = _engine(MemoryLog()), tmp_path / "records.jsonl"
    pool = ShadowProcess(poisoned.shadow_process, (str(out),), seconds=1, metrics=engine.metrics, model="small")
    engine.shadow = pool
    yield pool, engine, out
    pool.close(5)


def _send(engine: Engine, key: str, amount: float) -> None:
    engine.after(engine.answer([(Query(key, np.array([[amount, 0]], np.float32)), _active())]))


def _value(engine: Engine, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in _families(engine)
        for sample in family.samples
        if sample.name == f"rareclass_serve_{name}" and labels.items() <= sample.labels.items()
    )


@pytest.mark.parametrize("harm", ["raises", "eats memory"])
def test_a_version_that_fails_on_a_row_leaves_the_other_version_and_the_next_rows_alone(
    shadows: tuple[ShadowProcess, Engine, Path], harm: str
) -> None:
    pool, engine, out = shadows
    pool.set([ServedVersion("challenger", "4", harm), ServedVersion("previous", "2", "good")])
    for key, amount in (("a", 200.0), ("b", 1.0)):
        _send(engine, key, amount)
    until(lambda: out.exists() and len(out.read_text().splitlines()) == 4)
    found = {(r["version"], r["request_id"]): r for r in map(json.loads, out.read_text().splitlines())}
    assert found["4", "a"]["score"] is None
    assert "\n" not in found["4", "a"]["error"]
    assert found["4", "b"]["score"] == [0.5]
    assert found["2", "a"]["score"] == pytest.approx([1.0])
    until(lambda: _value(engine, "shadow_rows_total", outcome="scored") == 3)
    assert _value(engine, "shadow_rows_total", outcome="failed") == 1
    assert _value(engine, "shadow_restarts_total") == 0


@pytest.mark.parametrize("harm", ["hangs", "dies"])
def test_a_version_that_stops_the_process_is_left_out_after_three_strikes_and_the_others_score_on(
    shadows: tuple[ShadowProcess, Engine, Path], harm: str
) -> None:
    pool, engine, out = shadows
    pool.set([ServedVersion("previous", "2", "good"), ServedVersion("challenger", "4", harm)])
    count = 0

    def struck() -> bool:
        nonlocal count
        count += 1
        _send(engine, f"r{count}", 200.0)
        return _value(engine, "shadow_restarts_total") >= STRIKES

    until(struck)
    _send(engine, "later", 200.0)
    until(lambda: '"later"' in out.read_text())
    assert {r["version"] for r in map(json.loads, out.read_text().splitlines())} == {"2"}
    assert _value(engine, "shadow_restarts_total") == STRIKES
    assert _value(engine, "rows_total") == count + 1


def test_what_a_slow_shadow_cannot_take_is_dropped_and_counted(shadows: tuple[ShadowProcess, Engine, Path]) -> None:
    pool, engine, _ = shadows
    pool.set([ServedVersion("challenger", "4", "hangs")])
    rows = np.full((WAITING_ROWS // 4, 2), 200, np.float32)
    rows[:, 1] = 0
    for at in range(12):
        engine.after(engine.answer([(Query(f"r{at}", rows), _active())]))
    until(lambda: _value(engine, "shadow_rows_total", outcome="dropped") >= len(rows))


def test_the_columns_that_a_shadow_wants_are_let_through(shadows: tuple[ShadowProcess, Engine, Path]) -> None:
    pool, _, _ = shadows
    pool.set([ServedVersion("challenger", "4", "good")])
    until(lambda: pool.columns() == {"amount", "channel"})
    pool.set([])
    assert pool.columns() == frozenset()


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16"])
@pytest.mark.parametrize("bad", [True, False, "1.5", None, [1.0]])
def test_a_number_is_not_true_false_or_text_wherever_it_stands(datatype: str, bad: Any) -> None:
    """What only looks like a plain number is refused with its position."""
    tensor = {"name": "rows", "shape": [2, 2], "datatype": datatype, "data": [0, 1.0, bad, 2.5]}
    with pytest.raises(InputError, match=r"position 2"):
        _read(tensor)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-3, 3), min_size=1))
def test_numbers_are_read_as_numpy_reads_them(data: list[float]) -> None:
    for datatype, dtype in (("FP32", np.float32), ("FP64", np.float64)):
        tensor = Tensor("x", datatype, (len(data),), data)
        assert values(tensor, missing=False).tobytes() == np.array(data, dtype=dtype).tobytes()


def test_a_request_that_is_alone_is_answered_at_once_and_the_shadows_get_it_after() -> None:
    log = MemoryLog()
    offered: list[str] = []

    class Watching:
        def offer(self, frame: Any) -> None:
            offered.append(frame.id)

    engine = _engine(log, shadow=Watching())
    engine.active = _active()
    query = _read(ROWS, id="a")

    async def main() -> None:
        batcher = Batcher(engine)
        batcher.alone = lambda: True
        answer = await batcher.answer(query, engine.active)
        assert (answer.id, len(log.records), offered) == ("a", 1, [])
        await asyncio.sleep(0)
        assert offered == ["a"]
        log.fail = SpoolFullError("full")
        with pytest.raises(SpoolError, match="full"):
            await batcher.answer(query, engine.active)
        batcher.close()

    asyncio.run(main())
