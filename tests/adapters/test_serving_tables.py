"""Rows as tables over HTTP, without a socket: Arrow streams, MLflow's bodies, and what is packed."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from test_serving import ROWS, MemoryLog, _active, _engine, _signature

import small_model
from rareclass.adapters.serving import tabular
from rareclass.adapters.serving.batcher import Batcher
from rareclass.adapters.serving.catalogue import Catalogue
from rareclass.adapters.serving.engine import Active
from rareclass.adapters.serving.http import ROUTES, application
from rareclass.adapters.serving.signature import Signature
from rareclass.adapters.serving.tabular import ARROW
from rareclass.core.dataset import OTHER, Feature, Schema
from rareclass.core.reading import Reading
from rareclass.services.serving.shipping import decode

FRAME = pd.DataFrame({"amount": [1.0, 3.0], "channel": ["web", "shop"]})
EXPECTED = small_model.model().score(np.array([[1, 0], [3, 1]], dtype=np.float32))


class Site:
    """The application with a model, a log in memory, and a client that speaks ASGI to it."""

    def __init__(self, active: Active | None = None) -> None:
        self.log = MemoryLog()
        self.engine = _engine(self.log)
        self.engine.active = active or _active()

    def send(self, path: str, content: bytes, kind: str, method: str = "POST", **headers: str) -> httpx.Response:
        async def go() -> httpx.Response:
            batcher = Batcher(self.engine)
            app = application(Catalogue(self.engine, "small"), batcher, token=None)
            given = {"content-type": kind, **{key.replace("_", "-"): value for key, value in headers.items()}}
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://site") as client:
                answer = await client.request(method, path, content=content, headers=given)
            batcher.close()
            return answer

        return asyncio.run(go())

    def arrow(self, table: pa.Table, **headers: str) -> httpx.Response:
        return self.send("/v2/models/small/infer", stream(table), ARROW, **headers)

    def invoke(self, body: Any, kind: str = "application/json", **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("/invocations", content, kind, **headers)


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def test_arrow_rows_come_back_as_score_and_decision_and_are_logged() -> None:
    site = Site()
    table = pa.Table.from_pandas(FRAME).replace_schema_metadata(
        {"id": "a", "parameters": '{"operating_point": "strict"}'}
    )
    said = site.arrow(table)
    found = pa.ipc.open_stream(said.content).read_all()
    assert (said.status_code, said.headers["content-type"], said.headers["seldon-puid"]) == (200, ARROW, "a")
    assert found["score"].to_pylist() == EXPECTED.tolist()
    assert found["decision"].to_pylist() == (EXPECTED >= 0.9).astype(int).tolist()
    assert found.schema.metadata[b"model_version"] == b"3"
    assert json.loads(found.schema.metadata[b"parameters"])["operating_point"] == "strict"
    assert decode(site.log.records).predictions["request_id"].tolist() == ["a", "a"]


@pytest.mark.parametrize(
    "channel",
    [
        pa.array(["web", "shop"], pa.large_string()),
        pa.array(["web", "shop"]).dictionary_encode(),
        pa.chunked_array([["web"], ["shop"]]),
    ],
)
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int8(), pa.uint64(), pa.decimal128(23, 2)])
def test_every_numeric_and_text_type_of_arrow_is_the_same_rows(channel: Any, kind: Any) -> None:
    table = pa.table({"channel": channel, "amount": pa.array([1, 3]).cast(kind)})
    found = pa.ipc.open_stream(Site().arrow(table).content).read_all()
    assert found["score"].to_pylist() == EXPECTED.tolist()


def test_nulls_of_a_table_are_missing_values_of_every_type() -> None:
    columns = {"amount": pa.array([None, 3], pa.int32()), "channel": pa.array([None, "shop"])}
    missing = small_model.model().score(np.array([[np.nan, np.nan], [3, 1]], dtype=np.float32)).tolist()
    site = Site()
    assert pa.ipc.open_stream(site.arrow(pa.table(columns)).content).read_all()["score"].to_pylist() == missing
    for body in (
        {"dataframe_split": {"columns": ["amount", "channel"], "data": [[None, None], [3, "shop"]]}},
        {"dataframe_records": [{}, {"amount": 3, "channel": "shop"}]},
    ):
        assert [row["score"] for row in site.invoke(body).json()["predictions"]] == missing
    assert [
        row["score"] for row in site.invoke(b"amount,channel\n,\n3,shop\n", "text/csv").json()["predictions"]
    ] == missing


def test_times_and_entities_of_an_arrow_table_are_logged_with_its_rows() -> None:
    moments = pd.to_datetime(["2026-03-01", "2026-03-02"], utc=True)
    site = Site()
    assert site.arrow(pa.Table.from_pandas(FRAME.assign(ts=moments, entity=["x", "y"]))).status_code == 200
    rows = decode(site.log.records).predictions
    assert pd.to_datetime(rows["ts"], unit="us", utc=True).tolist() == moments.tolist()
    assert rows["entity"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a valid Arrow"),
        (b"ARROW1\0\0", "not a valid Arrow"),
        (stream(pa.table({"amount": [1.0], "channel": ["web"]})).replace(b"amount", b"am\xd5unt"), "not a valid Arrow"),
        (stream(pa.Table.from_pandas(FRAME))[:-40], "not a valid Arrow"),
        (stream(pa.Table.from_pandas(FRAME), compression="zstd"), "compressed buffers"),
        (stream(pa.Table.from_pandas(FRAME), compression="lz4"), "compressed buffers"),
        (stream(pa.Table.from_pandas(FRAME[:0])), "no rows"),
        (stream(pa.table({"amount": pa.nulls(2_000_000)})), "one request takes 1000"),
        (stream(pa.table({"amount": [1.0]})), "'channel' is missing"),
        (stream(pa.Table.from_pandas(FRAME.assign(more=1))), "unknown column 'more'"),
        (stream(pa.table({"amount": [[1.0]], "channel": ["web"]})), "send numbers, booleans or text"),
        (stream(pa.table({"amount": ["1"], "channel": ["web"]})), "must hold numbers"),
        (stream(pa.table({"amount": [np.inf], "channel": ["web"]})), "not finite"),
        (stream(pa.table({"amount": pd.to_datetime(["2026-01-01"]), "channel": ["web"]})), "send numbers, booleans"),
        (
            stream(
                pa.table(
                    {
                        "amount": np.ones(900),
                        "channel": pa.DictionaryArray.from_arrays(np.zeros(900, "i4"), ["x" * 2000]),
                    }
                )
            ),
            "unfolds to",
        ),
        (
            stream(pa.Table.from_pandas(FRAME).replace_schema_metadata({"parameters": "["})),
            "parameters is not valid JSON",
        ),
        (stream(pa.Table.from_pandas(FRAME).replace_schema_metadata({"id": "a\nb"})), "'id' must be"),
    ],
)
def test_a_bad_arrow_stream_is_refused_with_one_line(content: bytes, says: str) -> None:
    said = Site().send("/v2/models/small/infer", content, ARROW)
    assert said.status_code == 400
    assert says in said.json()["error"]
    assert "\n" not in said.json()["error"]


def test_damaged_arrow_streams_never_do_more_than_refuse() -> None:
    good, rng, site = stream(pa.Table.from_pandas(FRAME)), np.random.default_rng(0), Site()
    for _ in range(150):
        bad = bytearray(good)
        for at in rng.integers(0, len(bad), 3):
            bad[at] = rng.integers(0, 256)
        assert site.send("/v2/models/small/infer", bytes(bad), ARROW).status_code in (200, 400)


def test_bodies_of_mlflow_give_mlflows_answer_and_ignore_columns_the_model_does_not_take() -> None:
    site = Site()
    wide = FRAME.assign(note=["n", None])
    split = {"dataframe_split": json.loads(wide.to_json(orient="split"))}
    records = {"dataframe_records": json.loads(wide.to_json(orient="records"))}
    for body, kind in (
        (split, "application/json"),
        (records, "application/json; charset=utf-8"),
        (wide.to_csv(index=False).encode(), "text/csv"),
    ):
        said = site.invoke(body, kind, Seldon_Puid="p")
        assert said.headers["seldon-puid"] == "p"
        assert said.json() == {
            "predictions": [{"score": score, "decision": int(score >= 0.5)} for score in EXPECTED.tolist()]
        }
    strict = site.invoke({**records, "params": {"operating_point": "strict"}}).json()
    assert [row["decision"] for row in strict["predictions"]] == (EXPECTED >= 0.9).astype(int).tolist()
    assert set(decode(site.log.records).predictions["request_id"]) >= {"p"}
    for path in ("/ping", "/health"):
        assert site.send(path, b"", "text/plain", "GET").status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        ({}, "", "with one of: dataframe_split"),
        ([], "", "must be a JSON object"),
        (b"{", "", "not valid JSON"),
        ({"dataframe_records": [], "dataframe_split": {}}, "", "with one of"),
        ({"dataframe_records": {"amount": [1]}}, "", "list of objects"),
        ({"dataframe_records": []}, "", "no rows"),
        ({"dataframe_records": [{"amount": "1", "channel": "web"}]}, "", "holds '1' at position 0"),
        ({"dataframe_records": [{"amount": [1], "channel": "web"}]}, "", "a list or an object"),
        ({"dataframe_records": [{"amount": 1}]}, "", "'channel' is missing"),
        (
            {"dataframe_records": [{"amount": 1, "channel": "web"}], "params": {"operating_point": "x"}},
            "",
            "unknown operating point",
        ),
        ({"dataframe_records": [{"amount": 1, "channel": "web"}], "params": 3}, "", "'params' must be"),
        ({"dataframe_split": {"columns": ["amount"], "data": [[1, 2]]}}, "", "rows of 1 values"),
        ({"dataframe_split": {"columns": ["amount", "amount"], "data": [[1, 2]]}}, "", "twice"),
        ({"dataframe_split": [1]}, "", "'columns'"),
        ({"dataframe_split": {"columns": ["amount"], "data": []}}, "", "no rows"),
        (b"amount,channel\n1\n", "text/csv", "not a valid CSV"),
        (
            b"amount,channel\nmuch,web\n",
            "text/csv",
            "column 'amount' must hold numbers; 1 of 1 values are none: 'much'",
        ),
        (b"amount,channel\n", "text/csv", "no rows"),
        (b"amount,amount,channel\n1,2,web\n", "text/csv", "twice"),
        (b"", "text/csv", "not a valid CSV"),
        (b"am\xd5unt,channel\n1,web\n", "text/csv", "not a valid CSV"),
    ],
)
def test_a_bad_body_for_invocations_is_refused_with_one_line(body: Any, kind: str, says: str) -> None:
    said = Site().invoke(body, kind or "application/json")
    assert said.status_code == 400
    assert says in said.json()["error"]
    assert "\n" not in said.json()["error"]


def test_categories_of_every_json_type_are_read_as_the_protocol_reads_them() -> None:
    schema = Schema((Feature("code", "categorical", ("3", "2.5", "True", "x", OTHER)),))
    for values in ([3, 2.5], [3.0, 2.5], [True, False], ["3", "y"], [3, "x"], [True, "x"], [None, 3]):
        active = Active(small_model.model(), "3", "default", 0.5, _signature(schema))
        from rareclass.adapters.serving.tabular import from_mlflow

        body = json.dumps({"dataframe_records": [{"code": value} for value in values]}).encode()
        codes = active.signature.read(from_mlflow(body, active.signature)).matrix[:, 0].tolist()
        alone = [
            np.nan if value is None else {"3": 0, "2.5": 1, "True": 2, "x": 3}.get(str(value).removesuffix(".0"), 4)
            for value in values
        ]
        assert codes == pytest.approx(alone, nan_ok=True), values


def test_packed_bodies_are_unpacked_up_to_the_limit_and_long_answers_are_packed_as_accepted() -> None:
    site = Site()
    body = json.dumps({"inputs": [ROWS]}).encode()
    for name, pack in (("gzip", gzip.compress), ("zstd", lambda raw: pa.compress(raw, codec="zstd", asbytes=True))):
        packed = site.send("/v2/models/small/infer", pack(body), "application/json", Content_Encoding=name)
        assert packed.json()["outputs"][0]["data"] == EXPECTED.tolist()
        bomb = pack(b" " * (64 << 20))
        assert "when unpacked" in site.send("/v2/models/small/infer", bomb, "", Content_Encoding=name).json()["error"]
    for bad in (b"{}", pa.compress(body, codec="zstd", asbytes=True)[:-3]):
        assert site.send("/v2/models/small/infer", bad, "", Content_Encoding="zstd").status_code == 400
    many = {"name": "rows", "shape": [900, 2], "datatype": "FP32", "data": [1, 0] * 900}
    long = json.dumps({"inputs": [many]}).encode()
    for accepted, encoding in (("gzip", "gzip"), ("zstd, gzip", "zstd"), ("gzip;q=0", None), ("identity", None)):
        said = site.send("/v2/models/small/infer", long, "application/json", Accept_Encoding=accepted)
        assert said.headers.get("content-encoding") == encoding
        raw = said.content
        if encoding == "zstd" and raw[:4] == b"\x28\xb5\x2f\xfd":
            raw = pa.CompressedInputStream(pa.BufferReader(raw), "zstd").read()
        assert len(json.loads(raw)["outputs"][0]["data"]) == 900


def test_every_route_of_the_table_is_served_and_says_what_is_wrong_in_one_form() -> None:
    site = Site()
    for method, path, _ in ROUTES:
        said = site.send(path.format(name="other", version="9"), b"{", "application/json", method)
        assert said.status_code in (200, 400, 404), path
        assert said.status_code == 200 or set(said.json()) == {"error"}
        wrong = site.send(path.format(name="small", version="3"), b"", "", "PUT")
        assert (wrong.status_code, set(wrong.json())) == (405, {"error"})
        assert wrong.headers["allow"]


def test_a_csv_body_is_read_by_the_schema_and_not_by_its_looks() -> None:
    reading = Reading("number", missing=("-999",), decimal=",")
    country = Feature("country", "categorical", ("NA", "DE"), Reading("text"))
    code = Feature("code", "categorical", ("007", "7"), Reading("text"))
    signature = Signature(Schema((Feature("amount", reading=reading), country, code)), max_rows=9)
    body = b'amount,country,code\n"1,5",NA,007\n-999,,7\n'
    query = signature.read(tabular.from_csv(body, signature))
    np.testing.assert_array_equal(query.matrix, np.array([[1.5, 0, 0], [np.nan, np.nan, 1]], np.float32))
