"""Requests per second and latency of serving one model in several ways, measured in one run.

One model (30 features, 300 trees of depth 6), one and 100 rows in an FP32 tensor, 1 and 16 clients. Each server is a
process of its own; they take turns in short rounds, so that all of them see the same machine, and the median round
counts. MLServer runs in a virtual environment of its own, which the first run makes (``--mlserver`` names another). A
row of plain starlette on uvicorn answering a constant shows what is left to win. The order changes from round to round,
and after each turn of ours the next one waits until the log is in the store, so that nobody pays for another's backlog.
The clients are asyncio connections that send the next request when they have the whole answer.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FEATURES, TREES, DEPTH = 30, 300, 6
FLOOR = "starlette, a constant"
CASES = [(1, 1), (1, 16), (100, 1), (100, 16)]  # rows, clients
GOALS = {"ours, log": {1: 2.0, 100: 1.3}, "ours, log and shadow": {1: 1.5, 100: 1.2}}  # by rows of a request
ROOT = Path(__file__).parents[1]
PEER_HOME = ROOT / ".tools" / "peers" / "mlserver"
PEER_PACKAGES = ("mlserver==1.7.1", "mlserver-mlflow==1.7.1", "uvloop==0.21.0", "httptools")
SAME_PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "imbalanced-learn",
    "xgboost-cpu",
    "mlflow",
    "pyarrow",
    "joblib",
    "pydantic",
    "orjson",
)
"""What the model needs: the peer scores with the versions that we score with."""

BARE = '''
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from rareclass.core.model import RareModel


class Bare(MLModel):
    """The same model as a plain custom runtime, written as MLServer's documentation does."""

    async def load(self):
        self.model = RareModel.load(self.settings.parameters.uri)
        self.model.learner.booster.set_param({"nthread": 1})
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0])
        score = self.model.score(x)
        outputs = [NumpyCodec.encode_output("score", score), NumpyCodec.encode_output("decision", self.model.decide(score).astype("int64"))]
        return InferenceResponse(model_name=self.name, outputs=outputs)
'''  # noqa: E501


PYFUNC = '''
import mlflow
from mlflow.pyfunc import PythonModel
from rareclass.core.model import RareModel


class Wrapped(PythonModel):
    """The same model as mlserver-mlflow gets it: the request's tensor as an array."""

    def load_context(self, context):
        self.model = RareModel.load(context.artifacts["model"])
        self.model.learner.booster.set_param({"nthread": 1})

    def predict(self, context, model_input, params=None):
        score = self.model.score(model_input)
        return {"score": score, "decision": self.model.decide(score).astype("int64")}


mlflow.models.set_model(Wrapped())
'''


def fitted() -> Any:
    """Return the model as a version with golden rows."""
    import xgboost as xgb

    from rareclass.core.calibration import Identity
    from rareclass.core.dataset import Feature, Schema
    from rareclass.core.fitted import Boosted
    from rareclass.core.model import RareModel

    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, FEATURES)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + rng.normal(size=len(x)) > 3.5).astype(int)
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": DEPTH, "eta": 0.05, "nthread": 2}, xgb.DMatrix(x, y), TREES
    )
    schema = Schema(tuple(Feature(f"f{at}") for at in range(FEATURES)))
    learner = Boosted("xgboost", rounds=TREES, booster=booster, types=("float",) * FEATURES)
    return RareModel(schema, learner, Identity(), {"default": 0.1}).with_golden(x[:10])


def body(rows: int) -> bytes:
    """Return a request body."""
    x = np.random.default_rng(1).normal(size=rows * FEATURES).astype(np.float32)
    tensor = {"name": "rows", "shape": [rows, FEATURES], "datatype": "FP32", "data": [float(v) for v in x]}
    return json.dumps({"inputs": [tensor]}).encode()


CONSTANT = """
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route


async def infer(request):
    await request.body()
    return Response(ANSWER, media_type="application/json")


async def ready(request):
    return Response()


ANSWER = sys.argv[2].encode()
routes = [Route("/v2/models/bench/infer", infer, methods=["POST"]), Route("/v2/health/ready", ready)]
uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), access_log=False, log_level="warning")
"""


class Peer(NamedTuple):
    """A server that runs."""

    port: int
    pid: int

    def memory(self) -> int:
        """Return the bytes that it and its children (shipper, shadow) share or own, shared pages counted once."""
        pids, total = [self.pid], 0
        while pids:
            pid = pids.pop()
            for thread in Path(f"/proc/{pid}/task").iterdir():  # children are listed under the thread that made them
                pids += map(int, (thread / "children").read_text().split())
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total


async def _client(port: int, path: str, content: bytes, until: float, taken: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        f"{len(content)}\r\n\r\n"
    )
    request = head.encode() + content
    while (began := time.perf_counter()) < until:
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        lower = answer.lower()
        at = lower.index(b"content-length:") + 15
        await reader.readexactly(int(lower[at : lower.index(b"\r", at)]))
        taken.append(time.perf_counter() - began)
    writer.close()


async def _load(port: int, path: str, rows: int, clients: int, seconds: float) -> list[float]:
    content, taken = body(rows), list[float]()
    until = time.perf_counter() + seconds
    await asyncio.gather(*(_client(port, path, content, until, taken) for _ in range(clients)))
    return taken


def in_process(model: Any, rows: int, seconds: float) -> list[float]:
    """Score without any server."""
    x = np.random.default_rng(1).normal(size=(rows, FEATURES)).astype(np.float32)
    taken = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        model.decide(model.score(x))
        taken.append(time.perf_counter() - began)
    return taken


def _ready(port: int, path: str, process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(log.read_text()[-2000:])
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"no answer on port {port}: {log.read_text()[-2000:]}")


def _free() -> list[int]:
    import socket

    held = [socket.socket() for _ in range(3)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@contextmanager
def _process(name: str, command: list[str], folder: Path, port: int, ready: str, **environment: str) -> Iterator[Peer]:
    env = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", **environment}
    log = folder / f"{name}.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
        try:
            _ready(port, ready, process, log)
            yield Peer(port, process.pid)
        finally:
            process.terminate()
            process.wait(90)


def mlserver_python() -> Path:
    """Return the Python of MLServer's own environment, made when it is not there: its limits do not fit ours."""
    from importlib.metadata import version

    python = PEER_HOME / "bin" / "python"
    packages = [*PEER_PACKAGES, *(f"{name}=={version(name)}" for name in SAME_PACKAGES)]
    done = PEER_HOME / "packages.txt"
    if not done.is_file() or done.read_text().split() != packages:
        print(f"installing MLServer into {PEER_HOME}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEER_HOME], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
        done.write_text("\n".join(packages))
    return python


@contextmanager
def constant(folder: Path) -> Iterator[Peer]:
    """Plain starlette that reads the body and answers the same bytes each time: the floor of the stack."""
    folder.mkdir()
    (folder / "constant.py").write_text(CONSTANT)
    port = _free()[0]
    output = {"name": "score", "datatype": "FP64", "shape": [1], "data": [0.5]}
    answer = json.dumps({"model_name": "bench", "model_version": "1", "id": "0" * 32, "outputs": [output] * 4})
    with _process(
        "constant", [sys.executable, "constant.py", str(port), answer], folder, port, "/v2/health/ready"
    ) as peer:
        yield peer


@contextmanager
def mlserver(python: Path, name: str, folder: Path, implementation: str, uri: str, **parameters: str) -> Iterator[Peer]:
    """MLServer's own command with a custom runtime; zero workers and no debugging, its fast setting."""
    folder.mkdir()
    (folder / "bare.py").write_text(BARE)
    http_port, grpc_port, metrics_port = _free()
    settings = {
        "debug": False,
        "parallel_workers": 0,
        "host": "127.0.0.1",
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    model = {"name": "bench", "implementation": implementation, "parameters": {"uri": uri, **parameters}}
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = [str(python.with_name("mlserver")), "start", "."]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    with _process(name, command, folder, http_port, "/v2/models/bench/ready", **environment) as peer:
        yield peer


@contextmanager
def ours(name: str, folder: Path, model: Any, shadows: bool) -> Iterator[Peer]:
    """``rareclass serve`` with its durable log and store, and with the previous champion in the shadow if asked."""
    from datetime import UTC, datetime

    from rareclass.adapters.tracking import Tracker
    from rareclass.config import dump, parse
    from rareclass.services import promotion

    folder.mkdir()
    http_port, grpc_port, metrics_port = _free()
    serve = {
        "http_port": http_port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "spool": str(folder / "spool"),
        "shadows": shadows,
    }
    config = parse(
        {
            "name": "bench",
            "data": {"path": "none.parquet", "target": "y"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "serve": serve,
        }
    )
    now = datetime.now(UTC)
    tracker = Tracker(config.tracking.uri, "bench")
    for version in (1, 2):
        promotion.register(config, model, tracker.start(f"run {version}").id, now=now)
        promotion.promote(config, version, now=now, mode="immediate")
    (folder / "config.json").write_text(json.dumps(dump(config)))
    command = [str(Path(sys.executable).with_name("rareclass")), "serve", "-c", str(folder / "config.json")]
    with _process(name, command, folder, http_port, "/v2/health/ready") as peer:
        yield peer


def drained(folder: Path) -> float:
    """Wait until the spools below ``folder`` are shipped. Returns the seconds that took."""
    from rareclass.adapters.spool import unshipped_bytes

    began = time.monotonic()
    spools = [each for each in (folder / "spool", folder / "spool" / "shadow") if each.is_dir()]
    while any(unshipped_bytes(each) for each in spools) and time.monotonic() - began < 300:
        time.sleep(0.05)
    return time.monotonic() - began


def measure(
    seconds: float, rounds: int, python: Path
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float]]:
    """Return {server: {"rows x clients": {rps, p50_ms, p99_ms}}} and {server: MiB after the load}."""
    model = fitted()
    model.learner.booster.set_param({"nthread": 1})
    taken: dict[tuple[str, int, int], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        root = Path(work)
        model.save(root / "model")
        peers = {
            "bare MLServer": stack.enter_context(
                mlserver(python, "bare", root / "bare", "bare.Bare", str(root / "model"))
            ),
            "ours, log": stack.enter_context(ours("log", root / "log", model, shadows=False)),
            "ours, log and shadow": stack.enter_context(ours("shadow", root / "shadow", model, shadows=True)),
        }
        import mlflow

        (root / "wrapped.py").write_text(PYFUNC)
        mlflow.pyfunc.save_model(
            root / "pyfunc",
            python_model=str(root / "wrapped.py"),
            artifacts={"model": str(root / "model")},
            pip_requirements=[],
        )
        runtime, uri = "mlserver_mlflow.MLflowRuntime", str(root / "pyfunc")
        peers["mlserver-mlflow"] = stack.enter_context(
            mlserver(python, "mlflow", root / "mlflow", runtime, uri, content_type="np")
        )
        peers[FLOOR] = stack.enter_context(constant(root / "constant"))
        path = "/v2/models/bench/infer"
        for at in range(rounds + 1):  # the first round warms up
            for rows, clients in CASES:
                turn = list(peers.items())
                for name, peer in turn[at % len(turn) :] + turn[: at % len(turn)]:
                    try:
                        found = asyncio.run(_load(peer.port, path, rows, clients, seconds if at else 0.5))
                    except (RuntimeError, asyncio.IncompleteReadError) as error:
                        logs = "\n".join(log.read_text()[-1500:] for log in root.glob("*/*.log"))
                        raise RuntimeError(f"{name}: {error}\n{logs}") from None
                    taken.setdefault((name, rows, clients), []).append(found)
                    for folder in ("log", "shadow"):
                        waited = drained(root / folder)
                        if waited > 1:
                            print(
                                f"{name}, {rows} x {clients}: {waited:.1f} s until its log was in the store",
                                file=sys.stderr,
                            )
                if clients == 1:
                    taken.setdefault(("in-process", rows, 1), []).append(
                        in_process(model, rows, seconds if at else 0.2)
                    )
        memory = {name: peer.memory() / 2**20 for name, peer in peers.items()}
    return _table(taken), memory


def _table(taken: dict[tuple[str, int, int], list[list[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    out: dict[str, dict[str, dict[str, float]]] = {}
    for (name, rows, clients), found in taken.items():
        kept = found[1:]
        rates = [clients * len(each) / sum(each) for each in kept]
        every = [value for each in kept for value in each]
        out.setdefault(name, {})[f"{rows} x {clients}"] = {
            "rps": statistics.median(rates),
            "p50_ms": 1000 * float(np.percentile(every, 50)),
            "p99_ms": 1000 * float(np.percentile(every, 99)),
        }
    return out


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of one round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--mlserver", type=Path, metavar="PYTHON", help="Python of an environment with MLServer")
    options = parser.parse_args(arguments)
    table, memory = measure(options.seconds, options.rounds, options.mlserver or mlserver_python())
    cases = [f"{rows} x {clients}" for rows, clients in CASES]
    print(f"| requests/s (p50 / p99 ms) | {' | '.join(f'{case} (rows x clients)' for case in cases)} | MiB |")
    print("|---|" + "---|" * (len(cases) + 1))
    for name in ("in-process", FLOOR, "bare MLServer", "mlserver-mlflow", *GOALS):
        cells = [table.get(name, {}).get(case) for case in cases]
        text = [f"{c['rps']:.0f} ({c['p50_ms']:.2f} / {c['p99_ms']:.2f})" if c else "" for c in cells]
        text.append(f"{memory[name]:.0f}" if name in memory else "")
        print(f"| {name} | {' | '.join(text)} |")
    claims = []
    for name, goals in GOALS.items():
        for (rows, _), case in zip(CASES, cases, strict=True):
            goal = goals[rows]
            mine, peer = table[name][case]["rps"], table["bare MLServer"][case]["rps"]
            claims.append(
                {
                    "benchmark": "serving",
                    "claim": f"{name}: requests/s against bare MLServer, {case} rows x clients",
                    "ours": round(mine, 1),
                    "peer": round(peer, 1),
                    "ratio": round(mine / peer, 3),
                    "goal": goal,
                    "met": mine / peer >= goal,
                }
            )
    for claim in claims:
        print(json.dumps(claim))
    return claims


if __name__ == "__main__":
    main()
