"""Pinning a version to each kind of object that serves, over the Kubernetes API's own paths and merge patches."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

import live_rows
from rareclass.adapters.cluster import VERSION_ANNOTATION, Workload
from rareclass.adapters.cluster.serving import KINDS, RolloutFailedError
from rareclass.config import parse
from rareclass.core.model import golden_score
from rareclass.errors import ModelError, RareclassError, UnreachableError
from rareclass.services.serving import deploy

PATHS = {
    "seldon": "/apis/machinelearning.seldon.io/v1/namespaces/models/seldondeployments/flights",
    "kserve": "/apis/serving.kserve.io/v1beta1/namespaces/models/inferenceservices/flights",
    "deployment": "/apis/apps/v1/namespaces/models/deployments/flights",
    "statefulset": "/apis/apps/v1/namespaces/models/statefulsets/flights",
}
WORKLOADS = {
    "seldon": "/apis/apps/v1/namespaces/models/deployments/flights-main-0-x",
    "kserve": "/apis/apps/v1/namespaces/models/deployments/flights-predictor",
    "deployment": PATHS["deployment"],
    "statefulset": PATHS["statefulset"],
}


def merged(old: Any, patch: Any) -> Any:
    """RFC 7386: null takes a key away."""
    if not isinstance(patch, dict):
        return patch
    found = dict(old) if isinstance(old, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), value)
    return found


class Api(ThreadingHTTPServer):
    """Objects by path: what an API server does with GET and a merge PATCH, and nothing of what its controllers do."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        self.server.asked.append(("GET", self.path, ""))
        if "labelSelector" in query:
            name, value = query["labelSelector"][0].split("=")
            items = [
                each
                for key, each in self.server.objects.items()
                if key.startswith(path) and each["metadata"].get("labels", {}).get(name) == value
            ]
            self._answer(200, {"items": items})
        elif path in self.server.objects:
            self._answer(200, self.server.objects[path])
        else:
            self._answer(404, {"kind": "Status", "status": "Failure", "message": f"{path} not found"})

    def do_PATCH(self) -> None:
        self.server.asked.append(("PATCH", self.path, self.headers["Content-Type"]))
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.objects[self.path] = merged(self.server.objects[self.path], patch)
        self._answer(200, self.server.objects[self.path])

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    server = Api()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "k", "cluster": {"server": url}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "models"}}],
    }
    (tmp_path / "config").write_text(json.dumps(config))
    for module in ("kubernetes.config", "kubernetes.config.kube_config"):  # read when it was imported, from KUBECONFIG
        monkeypatch.setattr(f"{module}.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    yield server
    server.shutdown()
    server.server_close()


def workload(version: str | None, ready: int = 2, name: str = "flights") -> dict[str, Any]:
    annotations = {"annotations": {VERSION_ANNOTATION: version}} if version else {}
    return {
        "metadata": {"name": name, "generation": 3, "labels": {"seldon-deployment-id": "flights"}},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": annotations}},
        "status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "readyReplicas": ready},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_version_is_pinned_where_that_kind_hands_it_to_its_pods_and_taken_away_again(api: Api, kind: str) -> None:
    api.objects[PATHS[kind]] = workload(None)
    target = Workload(kind, "flights", "models")
    assert target.version() is None
    target.point("7")
    assert api.asked[-1] == ("PATCH", PATHS[kind], "application/merge-patch+json")
    found = api.objects[PATHS[kind]]
    where = {"seldon": found["spec"], "kserve": found["metadata"]}.get(kind, found["spec"]["template"]["metadata"])
    assert where["annotations"] == {VERSION_ANNOTATION: "7"}
    assert target.version() == "7"
    target.point(None)
    assert target.version() is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_is_done_when_every_pod_has_the_version_and_is_ready(api: Api, kind: str) -> None:
    api.objects[PATHS[kind]] = workload("7")
    target = Workload(kind, "flights", "models")
    for made, done in ((workload("6"), False), (workload("7", ready=1), False), (workload("7"), True)):
        api.objects[WORKLOADS[kind]] = made
        assert target.rollout("7").done is done, made
    assert target.rollout("7").text == "2/2 ready, 2 of version 7"


@pytest.mark.parametrize("kind", ["seldon", "kserve"])
def test_a_controller_that_made_no_deployment_yet_is_waited_for_and_then_named(api: Api, kind: str) -> None:
    api.objects[PATHS[kind]] = workload("7")
    target = Workload(kind, "flights", "models")
    assert target.rollout("7") == target.rollout("7").__class__(False, "no workload yet")
    times = iter([0.0, 1.0, 99.0])
    with pytest.raises(RolloutFailedError, match="did not get version 7 ready in 5 s: no workload yet"):
        target.wait("7", 5, lambda *_: None, clock=lambda: next(times), sleep=lambda _: None)


def test_what_is_not_there_and_a_kind_that_nobody_knows_are_refused_in_one_line(api: Api) -> None:
    with pytest.raises(ModelError, match=r"kserve models/flights cannot be read: .*not found\. Look at --kind"):
        Workload("kserve", "flights", "models").version()
    with pytest.raises(RareclassError, match="Did you mean 'kserve'"):
        Workload("kserv", "flights", "models")


class Recovering(BaseHTTPRequestHandler):
    """Answers 503, then hangs up, then what it is told to: a Service that takes a new pod in."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked += 1
        if self.server.asked == 2:
            self.close_connection = True
            return
        said = json.dumps(self.server.answer).encode()
        self.send_response(503 if self.server.asked == 1 else 200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def recovering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(deploy, "PAUSE", 0.001)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Recovering)
    server.asked, server.url = 0, f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_service_that_does_not_answer_yet_is_asked_again_and_a_wrong_answer_is_not(recovering: Any) -> None:
    model = live_rows.model(0.0)
    config = parse({"name": "flights", "data": {"path": "x.csv", "target": "y"}})
    score = model.golden[golden_score(model.schema)].head(deploy.GOLDEN_ROWS).tolist()
    recovering.answer = {"model_version": "7", "outputs": [{"name": "score", "data": score}]}
    assert deploy.smoke(config, recovering.url, model, "7") == len(score)
    assert recovering.asked == 2 + deploy.SMOKES
    with pytest.raises(ModelError, match="answers with version 7, not 8"):
        deploy.smoke(config, recovering.url, model, "8")
    assert recovering.asked == 2 + deploy.SMOKES + 1


def test_a_service_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "SILENCE", 0.0)
    with socket.socket() as taken:  # bound and not listening: nobody answers there, and nobody else can take it
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        config = parse({"name": "flights", "data": {"path": "x.csv", "target": "y"}})
        with pytest.raises(UnreachableError, match="does not answer"):
            deploy.smoke(config, url, live_rows.model(0.0), "1")
