"""The server as a process: protocol, spool, shipper and shadows as a user starts them, and what may happen to them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import gzip
import http.client
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import poisoned
import small_model
import triton_messages
from rareclass.adapters.registry import Registry
from rareclass.adapters.serving.grpc_messages import METHODS
from rareclass.adapters.spool import Spool
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, dump, parse
from rareclass.core.calibration import Identity
from rareclass.core.model import RareModel
from rareclass.errors import StoreError
from rareclass.services import promotion
from waiting import until

TESTS = Path(__file__).parents[1]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ROWS = {"name": "rows", "shape": [2, 2], "datatype": "FP32", "data": [1, 0, 3, 1]}


class Running:
    """A server that was started with the command of the documentation."""

    def __init__(self, config: Config, folder: Path, **environment: str) -> None:
        self.config, self.folder = config, folder
        file = folder / "config.json"
        file.write_text(json.dumps(dump(config)))
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS / "harm"), str(TESTS)]),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **environment,
        }
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.log = (folder / "server.log").open("w+")
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("rareclass")), "serve", "-c", str(file)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=env,
            text=True,
        )
        assert self.process.stdout is not None
        line = next((said for said in self.process.stdout if said.startswith("serving ")), "")  # it loads before
        assert line, (folder / "server.log").read_text()
        words = line.replace(":", " ").replace("/", " ").replace(",", " ").replace(")", " ").split()
        self.http, self.grpc, self.metrics = [int(word) for word in words if word.isdigit() and int(word) > 1023]
        self.name = line.split()[1]

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Content-Type": "application/json", **{key.replace("_", "-"): value for key, value in headers.items()}}
        try:
            connection.request(method, path, data, given)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def infer(self, *inputs: Any, **rest: Any) -> dict[str, Any]:
        status, _, body = self.request("POST", f"/v2/models/{self.name}/infer", {"inputs": inputs or [ROWS], **rest})
        assert status == 200, body
        return dict(json.loads(body))

    def metric(self, name: str, **labels: str) -> float:
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        found = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith(name) and all(f'{key}="{value}"' in line for key, value in labels.items())
        ]
        return sum(found)

    def children(self, of: str) -> list[int]:
        """Return the processes that this one started, by a part of their command line."""
        command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(self.process.pid)]
        listing = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        return [int(line.split()[0]) for line in listing if of in line]

    def kill_shipper(self) -> None:
        [pid] = self.children("rareclass.services.serving.shipping")
        os.kill(pid, signal.SIGKILL)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.log.close()
        return code

    def stored(self) -> pd.DataFrame:
        with Store(self.config.store.url) as store:
            try:
                return store.window(self.config.name, "1970-01-01", "2100-01-01", features=True)
            except StoreError:  # the shipper has not made the tables yet
                return pd.DataFrame({"request_id": [], "row": [], "version": []})

    def shadows(self) -> pd.DataFrame:
        with Store(self.config.store.url) as store:
            store.migrate()  # the shipper may not have made the tables yet
            return store.shadows(self.config.name, "1970-01-01", "2100-01-01")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A registry with two good versions and one that hangs."""
    folder = tmp_path_factory.mktemp("registry")
    config = small_model.config(folder)
    tracker = Tracker(config.tracking.uri, "small")
    hanging = RareModel(small_model.SCHEMA, poisoned.Hanging(), Identity(), {"default": 0.6})
    for model in [small_model.model(1), small_model.model(2), hanging]:
        promotion.register(config, model, tracker.start("run").id, now=NOW)
    return config


def _config(registry: Config, folder: Path, **serve: Any) -> Config:
    """The registry's models with a ledger, store and spool of their own."""
    settings = {
        "http_port": 0,
        "grpc_port": 0,
        "metrics_port": 0,
        "spool": str(folder / "spool"),
        "refresh_seconds": 0.3,
        "shadow_seconds": 2,
        **serve,
    }
    return parse({**dump(registry), "store": {"url": f"sqlite:///{folder}/store.db"}, "serve": settings})


@pytest.fixture
def start(registry: Config, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a server with version 1 as champion, and the given challenger; stop all of them in the end."""
    running: list[Running] = []

    def begin(challenger: int | None = None, environment: dict[str, str] | None = None, **serve: Any) -> Running:
        config = _config(registry, tmp_path, **serve)
        if not running:
            aliases = {"champion": "1", "challenger": None if challenger is None else str(challenger), "previous": None}
            Registry(config.tracking.uri).point(config.name, aliases)
        running.append(Running(config, tmp_path, **(environment or {})))
        return running[-1]

    yield begin
    for server in running:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="module")
def server(registry: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for what does not harm it."""
    folder = tmp_path_factory.mktemp("server")
    config = _config(registry, folder, shadows=False)
    Registry(config.tracking.uri).point(config.name, {"champion": "1"})
    running = Running(config, folder)
    yield running
    running.stop()


def test_the_protocol_says_what_the_model_takes_and_gives(server: Running) -> None:
    said = json.loads(server.request("GET", "/v2/models/small")[2])
    assert (said["name"], said["versions"], said["platform"]) == ("small", ["1"], "rareclass")
    assert said["inputs"] == [
        {"name": "amount", "datatype": "FP32", "shape": [-1]},
        {"name": "channel", "datatype": "BYTES", "shape": [-1]},
    ]
    assert [node["name"] for node in said["outputs"]] == ["score", "decision", "threshold", "version", "reasons"]
    about = json.loads(server.request("GET", "/v2")[2])
    assert (about["name"], about["extensions"]) == ("rareclass", ["binary_tensor_data"])
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/small/ready", "/v2/models/small/versions/1/ready"):
        assert server.request("GET", path)[0] == 200
    index = json.loads(server.request("POST", "/v2/repository/index", {})[2])
    assert [(item["name"], item["state"]) for item in index] == [("small", "READY")]


def test_an_answer_equals_the_model_and_is_in_the_store_a_moment_later(server: Running) -> None:
    said = server.infer(id="joined")
    outputs = {node["name"]: node["data"] for node in said["outputs"]}
    scores = small_model.model(1).score(np.array([[1, 0], [3, 1]], dtype=np.float32))
    assert outputs["score"] == pytest.approx(scores.tolist(), abs=1e-15)
    assert outputs["decision"] == (scores >= 0.5).astype(int).tolist()
    assert (said["model_version"], said["id"]) == ("1", "joined")
    rows = until(
        lambda: (found := server.stored())[found["request_id"] == "joined"].sort_values("row").to_dict("records")
    )
    assert [row["score"] for row in rows] == outputs["score"]
    assert json.loads(rows[1]["features"]) == {"amount": 3.0, "channel": "shop"}


@pytest.mark.parametrize(("sent", "header"), [("a-1", None), (None, "puid-1"), ("a-2", "puid-2"), (None, None)])
def test_the_request_id_comes_back_both_ways(server: Running, sent: str | None, header: str | None) -> None:
    body = {"inputs": [ROWS], **({"id": sent} if sent else {})}
    headers = {"Seldon_Puid": header} if header else {}
    _, said, raw = server.request("POST", "/v2/models/small/infer", body, **headers)
    found = json.loads(raw)["id"]
    assert said["seldon-puid"] == found
    assert found == (sent or header or found)
    assert len(found) > 2


def test_reasons_are_given_when_asked(server: Running) -> None:
    said = server.infer(parameters={"explain": True, "top": 1})
    reasons = {node["name"]: node["data"] for node in said["outputs"]}["reasons"]
    assert [json.loads(text)[0]["feature"] for text in reasons] == ["amount", "amount"]


HOSTILE: list[tuple[str, str, Any, dict[str, str], int]] = [
    ("POST", "/v2/models/small/infer", b"", {}, 400),
    ("POST", "/v2/models/small/infer", b"{" * 10_000, {}, 400),
    ("POST", "/v2/models/small/infer", b"\xff\xfe\x00", {}, 400),
    ("POST", "/v2/models/small/infer", b"x" * (2 << 20), {}, 400),
    ("POST", "/v2/models/small/infer", b"no gzip", {"Content_Encoding": "gzip"}, 400),
    ("POST", "/v2/models/small/infer", gzip.compress(b"[" * (64 << 20)), {"Content_Encoding": "gzip"}, 400),
    ("POST", "/v2/models/small/infer", b"{}", {"Content_Encoding": "zstd"}, 400),
    ("POST", "/v2/models/small/infer", {"inputs": [ROWS]}, {"Inference_Header_Content_Length": "-5"}, 400),
    ("POST", "/v2/models/small/infer", {"inputs": [ROWS]}, {"Seldon_Puid": "x" * 300}, 400),
    ("POST", "/v2/models/small/infer", {"inputs": [{**ROWS, "shape": [2**40, 2]}]}, {}, 400),
    ("POST", "/v2/models/small/infer", {"inputs": [{**ROWS, "data": [1, 0, "nan", 0]}]}, {}, 400),
    ("POST", "/v2/models/small/generate", {"inputs": []}, {}, 400),
    ("POST", "/v2/models/small/infer_stream", {"inputs": []}, {}, 400),
    ("GET", "/v2/models/small/infer", None, {}, 405),
    ("DELETE", "/v2/models/small", None, {}, 405),
    ("POST", "/v2/models/other/infer", {"inputs": [ROWS]}, {}, 404),
    ("POST", "/v2/models/small/versions/9/infer", {"inputs": [ROWS]}, {}, 404),
    ("GET", "/v2/models/other", None, {}, 404),
    ("GET", "/v3", None, {}, 404),
    ("POST", "/v2/repository/index", b"{", {}, 400),
    ("POST", "/v2/repository/models/small/unload", b"", {}, 400),
    ("POST", "/v2/repository/models/small/load", b"", {}, 400),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "headers", "status"), HOSTILE)
def test_a_hostile_request_gets_one_line_in_the_protocols_form(
    server: Running, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    got, _, raw = server.request(method, path, body, **headers)
    said = json.loads(raw)
    assert (got, set(said)) == (status, {"error"})
    assert "\n" not in said["error"]
    assert len(raw) < 1000
    assert server.infer()["model_version"] == "1"


def test_a_third_party_client_gets_the_same_over_json_and_binary_tensors(server: Running) -> None:
    client = pytest.importorskip("tritonclient.http").InferenceServerClient(f"127.0.0.1:{server.http}")
    import tritonclient.http as triton

    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("small")
    assert client.get_model_metadata("small")["versions"] == ["1"]
    x = np.array([[1, 0], [3, 1]], dtype=np.float32)
    expected = small_model.model(1).score(x)
    for binary in (True, False):
        rows = triton.InferInput("rows", [2, 2], "FP32")
        rows.set_data_from_numpy(x, binary_data=binary)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("version", "score")]
        for outputs in (None, wanted):
            result = client.infer("small", [rows], request_id="t", outputs=outputs)
            assert result.as_numpy("score").tolist() == expected.tolist()
            assert [bytes(v) if isinstance(v, bytes) else v.encode() for v in result.as_numpy("version")] == [
                b"1",
                b"1",
            ]
            assert result.get_response()["id"] == "t"
    columns = [triton.InferInput("amount", [2], "FP32"), triton.InferInput("channel", [2], "BYTES")]
    columns[0].set_data_from_numpy(x[:, 0])
    columns[1].set_data_from_numpy(np.array(["web", "shop"], dtype=object))
    for compression in (None, "gzip", "deflate"):
        result = client.infer(
            "small", columns, request_compression_algorithm=compression, response_compression_algorithm="gzip"
        )
        assert result.as_numpy("score").tolist() == expected.tolist()
    with pytest.raises(
        pytest.importorskip("tritonclient.utils").InferenceServerException, match="'channel' is missing"
    ):
        client.infer("small", columns[:1])


def test_grpc_gives_the_same_and_refuses_in_the_same_way(server: Running) -> None:
    """With the messages of a third-party client."""
    import grpc

    pb = triton_messages.messages()
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc}")
    stub = SimpleNamespace(**{name: pb.call(channel, name) for name in METHODS if name != "ModelStreamInfer"})
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="small")).ready
    assert stub.ModelMetadata(pb.ModelMetadataRequest(name="small")).versions == ["1"]
    x = np.array([[1, 0], [3, 1]], dtype=np.float32)
    expected = small_model.model(1).score(x).tolist()

    def tensor(name: str, datatype: str, shape: list[int], **contents: Any) -> Any:
        return pb.ModelInferRequest.InferInputTensor(
            name=name, datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents) if contents else None
        )

    rows = tensor("rows", "FP32", [2, 2])
    columns = [
        tensor("amount", "FP64", [2], fp64_contents=[1, 3]),
        tensor("channel", "BYTES", [2], bytes_contents=[b"web", b"shop"]),
    ]
    parameters = {"explain": pb.InferParameter(bool_param=True), "top": pb.InferParameter(int64_param=1)}
    said = stub.ModelInfer(
        pb.ModelInferRequest(
            model_name="small", id="over-grpc", inputs=[rows], raw_input_contents=[x.tobytes()], parameters=parameters
        )
    )
    raw = dict(zip([node.name for node in said.outputs], said.raw_output_contents, strict=True))
    assert np.frombuffer(raw["score"]).tolist() == expected
    assert b'"amount"' in raw["reasons"]
    assert (said.id, said.model_version, said.parameters["threshold"].string_param) == ("over-grpc", "1", "0.5")
    plain, call = stub.ModelInfer.with_call(
        pb.ModelInferRequest(model_name="small", inputs=columns), metadata=(("seldon-puid", "from-header"),)
    )
    assert list(plain.outputs[0].contents.fp64_contents) == expected
    assert plain.id == dict(call.trailing_metadata())["seldon-puid"] == "from-header"
    bad = {
        grpc.StatusCode.INVALID_ARGUMENT: [
            {"inputs": [tensor("rows", "FP32", [2, 3])], "raw_input_contents": [bytes(24)]},
            {"inputs": [rows], "raw_input_contents": [b"123"]},
            {"inputs": [rows], "raw_input_contents": [x.tobytes()] * 2},
            {"inputs": [rows]},
            {"inputs": columns[:1]},
            {"inputs": []},
            {"inputs": [tensor("rows", "FP32", [2, 2], fp32_contents=[1, 0, 3])]},
            {"inputs": [tensor("rows", "FP32", [-1, 2], fp32_contents=[1, 0])]},
            {"inputs": [tensor("rows", "FP31", [2, 2], fp32_contents=[1, 0, 3, 1])]},
            {"inputs": [tensor("amount", "FP32", [2], fp32_contents=[float("nan"), 1]), columns[1]]},
            {"inputs": [columns[0], tensor("channel", "BYTES", [2], bytes_contents=[b"\xff", b"web"])]},
        ],
        grpc.StatusCode.NOT_FOUND: [
            {"inputs": columns, "model_version": "9"},
            {"inputs": columns, "model_name": "other"},
        ],
    }
    for code, requests in bad.items():
        for request in requests:
            with pytest.raises(grpc.RpcError) as raised:
                stub.ModelInfer(pb.ModelInferRequest(**{"model_name": "small", **request}))
            assert raised.value.code() == code, request
            assert "\n" not in raised.value.details()
    anything = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for content in (b"\xff\xff\xff", b"\x0a\x05ab", b"\x0a\x01\xff"):  # no message, a short one, text that is not UTF-8
        with pytest.raises(grpc.RpcError) as raised:
            anything(content)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    for change in (stub.RepositoryModelUnload, stub.RepositoryModelLoad):
        message = (
            pb.RepositoryModelUnloadRequest if change == stub.RepositoryModelUnload else pb.RepositoryModelLoadRequest
        )
        with pytest.raises(grpc.RpcError) as raised:
            change(message(model_name="small"))
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [(each.name, each.state) for each in stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models] == [
        ("small", "READY")
    ]
    channel.close()
    assert server.infer()["model_version"] == "1"
    until(lambda: (server.stored()["request_id"] == "over-grpc").sum() == 2)


def test_ports_and_name_come_from_the_environment_and_a_token_is_asked_for(start: Callable[..., Running]) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    injected = {"MLSERVER_HTTP_PORT": str(port), "MLSERVER_MODEL_NAME": "graph-node", "RARECLASS_SERVE_TOKEN": "s3cret"}
    running = start(environment=injected, shadows=False)
    assert (running.http, running.name) == (port, "graph-node")
    body = {"inputs": [ROWS], "id": "t"}
    path = "/v2/models/graph-node/infer"
    assert running.request("GET", "/v2/health/ready")[0] == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        status, said, raw = running.request("POST", path, body, **headers)
        assert (status, said["www-authenticate"], set(json.loads(raw))) == (401, "Bearer", {"error"})
    assert running.request("POST", path, body, Authorization="Bearer s3cret")[0] == 200
    assert running.stop() == 0
    assert running.stored()["request_id"].tolist() == ["t", "t"]


class Load:
    """Clients that send without pause and remember every id that was answered."""

    def __init__(self, running: Running, clients: int = 4) -> None:
        self.running, self.answered, self.versions, self.bad = running, set[str](), set[str](), list[Any]()
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(clients)
        self._work = [self._pool.submit(self._send, at) for at in range(clients)]

    def _send(self, client: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.running.http, timeout=30)
        count = 0
        while not self._stop.is_set():
            key = f"{id(self)}-{client}-{count}"
            count += 1
            try:
                connection.request(
                    "POST", f"/v2/models/{self.running.name}/infer", json.dumps({"id": key, "inputs": [ROWS]})
                )
                answer = connection.getresponse()
                said = json.loads(answer.read())
            except (OSError, http.client.HTTPException):
                self.bad.append(key)
                if self.running.process.poll() is not None:
                    return
                connection.close()
                continue
            if answer.status == 200:
                self.answered.add(key)
                self.versions.add(said["model_version"])
            else:
                self.bad.append(said)

    def stop(self) -> None:
        self._stop.set()
        for each in self._work:
            each.result(60)


def test_kill_9_of_shipper_and_server_under_load_loses_no_answered_row_and_none_is_double(
    start: Callable[..., Running],
) -> None:
    answered: set[str] = set()
    for _ in range(2):
        running = start(shadows=False)
        load = Load(running)
        until(lambda load=load: len(load.answered) > 500)
        running.kill_shipper()
        until(lambda load=load: len(load.answered) > 800)
        running.process.kill()
        running.process.wait()
        load.stop()
        answered |= load.answered
    last = start(shadows=False)
    assert last.stop() == 0
    rows = last.stored()
    assert not rows.duplicated(["request_id", "row"]).any()
    assert answered <= set(rows["request_id"])
    assert set(rows.groupby("request_id").size()) == {2}


def test_a_promotion_under_load_drops_no_request_and_sigterm_loses_none(
    start: Callable[..., Running],
) -> None:
    running = start()
    load = Load(running, clients=2)
    until(lambda: len(load.answered) > 50)
    promotion.promote(running.config, 2, now=NOW, mode="immediate")
    until(lambda: "2" in load.versions)
    assert not load.bad
    assert load.versions == {"1", "2"}
    running.infer(id="after")
    pairs = until(lambda: (found := running.shadows())[found["request_id"] == "after"].to_dict("records"))
    assert [(row["version"], row["role"], row["champion_version"]) for row in pairs] == [("1", "previous", "2")] * 2
    assert pairs[0]["score"] != pairs[0]["champion_score"]
    # SIGTERM answers what came and ships everything
    assert running.stop() == 0
    load.stop()
    assert load.answered <= set(running.stored()["request_id"])
    assert not (running.folder / "spool" / "rejected.jsonl").exists()


def _disk_full(running: Running) -> None:
    """What the disk cannot take is refused, and requests are answered again when it can."""
    running.infer(id="before")
    pid = running.process.pid
    free = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, free[1]))  # every write to a file fails from now on
    status, _, raw = running.request("POST", "/v2/models/small/infer", {"id": "during", "inputs": [ROWS]})
    assert (status, set(json.loads(raw))) == (503, {"error"})
    assert running.metric("rareclass_serve_unlogged_requests_total") == 1
    resource.prlimit(pid, resource.RLIMIT_FSIZE, free)
    running.infer(id="after")
    assert running.stop() == 0
    stored = set(running.stored()["request_id"])
    assert {"before", "after"} <= stored
    assert "during" not in stored


def test_the_operating_point_changes_without_a_restart_and_a_full_disk_refuses_requests(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    file = tmp_path / "point.json"
    running = start(operating_point_file=str(file), shadows=False)
    assert running.infer()["parameters"]["operating_point"] == "default"
    file.write_text('{"operating_point": "strict"}')
    until(lambda: running.infer()["parameters"] == {"version": "1", "threshold": 0.9, "operating_point": "strict"})
    file.write_text("nonsense {")
    until(lambda: running.metric("rareclass_serve_refresh_failures_total") > 0)
    assert running.infer()["parameters"]["threshold"] == 0.9
    file.unlink()
    until(lambda: running.infer()["parameters"]["threshold"] == 0.5)
    _disk_full(running)


def test_a_challenger_that_hangs_never_touches_the_champion(start: Callable[..., Running]) -> None:
    running = start(challenger=3)
    poison_rows = {**ROWS, "data": [1000, 0, 3, 1]}
    slowest, sent = 0.0, 0

    def left_out() -> bool:
        nonlocal slowest, sent
        for _ in range(20):
            began = time.perf_counter()
            assert running.infer(poison_rows, id=f"p{sent}")["model_version"] == "1"
            slowest, sent = max(slowest, time.perf_counter() - began), sent + 1
        return (
            running.metric("rareclass_serve_shadow_restarts_total") >= 3
            and running.metric("rareclass_serve_shadow_rows_total", outcome="dropped") > 0
        )

    until(left_out, 120)
    assert slowest < running.config.serve.shadow_seconds
    assert running.stop() == 0
    assert len(running.stored()) == 2 * sent
    assert set(running.stored()["version"]) == {"1"}


def test_workers_share_one_port_and_one_page_of_metrics_and_one_that_dies_is_started_again(
    start: Callable[..., Running],
) -> None:
    running = start(workers=2, shadows=False)
    answered = [running.infer(id=f"w{at}")["id"] for at in range(40)]  # a connection each: the kernel spreads them
    assert running.metric("rareclass_serve_rows_total") == 80
    assert running.metric("rareclass_serve_champion_info") == 1
    workers = running.children("multiprocessing.spawn")
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)

    def restarted() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):  # a connection that the dead one had accepted
            answered.append(running.infer(id=f"x{len(answered)}")["id"])
        return running.metric("process_start_time_seconds") > began

    began = running.metric("process_start_time_seconds")
    until(restarted)
    assert running.metric("rareclass_serve_rows_total") >= 80  # what the dead worker had counted is not forgotten
    assert running.stop() == 0
    assert set(answered) <= set(running.stored()["request_id"])
    assert not running.stored().duplicated(["request_id", "row"]).any()


def test_rows_that_a_worker_left_behind_are_shipped_by_a_server_with_fewer(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    with Spool(tmp_path / "spool" / "worker-5", 1 << 20, "process", 50) as left:
        engine_record = {
            "kind": "prediction",
            "model": "small",
            "version": "1",
            "request_id": "left",
            "ts": 1_772_000_000_000_000,
            "operating_point": "default",
            "threshold": 0.5,
            "score": [0.25],
            "decision": [0],
            "row": [0],
            "weight": 1.0,
            "propensity": 1.0,
            "entity": None,
            "features": {"amount": [1.0], "channel": ["web"]},
        }
        left.append([json.dumps(engine_record).encode()])
    running = start(shadows=False)
    assert running.stored()["request_id"].tolist() == ["left"]


def test_without_a_champion_it_says_what_to_do_and_ends(registry: Config, tmp_path: Path) -> None:
    config = parse({**dump(_config(registry, tmp_path)), "name": "nobody"})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(dump(config)))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("rareclass")), "serve", "-c", str(file)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "has no champion" in done.stderr
    assert "Traceback" not in done.stderr
