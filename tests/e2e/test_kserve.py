"""KServe on a cluster: a release of the chart behind it, and a version that somebody else deploys by its format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from kube import (
    BACKEND,
    RELEASE,
    SPACE,
    available,
    got,
    helm,
    inside,
    kubectl,
    lacking,
    model,
    pinned,
    pod_manifest,
    sql,
    turn,
    under_load,
    until,
)

missing = lacking("kserve", "argo", SPACE) or (
    "" if BACKEND == "kserve" else "BACKEND is not kserve: tools/cluster kserve"
)
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing), reason=f"needs a cluster: {missing}"),
    pytest.mark.timeout(1200),
]
ASK = """
    import json, time, urllib.request
    def ask(path, body=None):
        for left in range(60, -1, -1):
            try:
                with urllib.request.urlopen("http://{host}" + path, None if body is None else json.dumps(body).encode(), timeout=20) as answer:
                    return json.load(answer)
            except OSError:
                if not left:
                    raise
                time.sleep(0.5)
    columns = [dict(name=each["name"], datatype=each["datatype"], shape=[1], data=[1.0] if each["datatype"] == "FP32" else ["x"]) for each in ask("/v2/models/{model}")["inputs"]]
    print(json.dumps(ask("/v2/models/{model}/infer", dict(id="{name}", inputs=columns))))
"""  # noqa: E501


def test_a_turn_pins_the_inference_service_and_rolls_it_without_a_lost_request() -> None:
    """The version of the champion reaches the pods by the object's annotation; what they answered is in the store."""
    if pinned(SPACE, RELEASE):
        kubectl("-n", SPACE, "annotate", "inferenceservice", RELEASE, "rareclass.io/version-")
        until(lambda: available(SPACE, RELEASE), 300, "the roll back to the champion of the day")
    seen = under_load(lambda: turn_ends("Succeeded"))
    assert seen["failed"] == 0, seen
    assert seen["stored"] == seen["distinct"] == seen["good"]
    deployed = sql("SELECT payload FROM ledger WHERE kind = 'deploy'")
    assert f'"version": "{pinned(SPACE, RELEASE)}"' in deployed
    assert f"kserve {SPACE}/{RELEASE}" in deployed
    pods = got("-n", SPACE, "pods", "-l", f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=serving")[
        "items"
    ]
    alive = [each for each in pods if "deletionTimestamp" not in each["metadata"]]
    assert {each["metadata"]["annotations"].get("rareclass.io/version") for each in alive} == {pinned(SPACE, RELEASE)}


def turn_ends(phase: str) -> None:
    assert turn(RELEASE, 900) == phase


def test_an_upgrade_of_the_chart_that_changes_nothing_rolls_no_pod() -> None:
    def pods() -> set[str]:
        which = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=serving"
        return {each["metadata"]["uid"] for each in got("-n", SPACE, "pods", "-l", which)["items"]}

    until(lambda: available(SPACE, RELEASE), 300, "the last roll")
    before = until(lambda: len(pods()) == 1 and pods(), 200, "only the pods of the last roll")
    done = helm("upgrade", RELEASE, "helm/rareclass", "-n", SPACE, "--reuse-values", "--timeout", "10m")
    assert done.returncode == 0, done.stderr
    assert available(SPACE, RELEASE)
    assert pods() == before


@pytest.fixture(scope="module")
def volume() -> Iterator[str]:
    """A version of the release on a volume, as another team would bring it."""
    name = "by-format"
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "100Mi"}}},
    }
    kubectl("-n", SPACE, "apply", "-f", "-", given=json.dumps(claim))
    script = f"""
        import mlflow, os, shutil
        from rareclass.adapters.registry import fetched
        for left in range(60, -1, -1):
            try:
                with fetched("models:/{model()}@champion") as folder:
                    shutil.copytree(folder, "/volume/claims/1", dirs_exist_ok=True)
                break
            except Exception:
                if not left:
                    raise
                import time; time.sleep(1)  # the network's rules of a new pod
        print(sorted(os.listdir("/volume/claims/1")))
    """
    own = {
        "app.kubernetes.io/name": "rareclass",
        "app.kubernetes.io/instance": RELEASE,
        "app.kubernetes.io/component": "test",
    }
    pod: dict[str, Any] = json.loads(pod_manifest(f"{name}-copy", script, own))
    pod["spec"]["volumes"].append({"name": "volume", "persistentVolumeClaim": {"claimName": name}})
    pod["spec"]["securityContext"] = {"fsGroup": 10001}
    container = pod["spec"]["containers"][0]
    container["volumeMounts"].append({"name": "volume", "mountPath": "/volume"})
    container["env"] = [{"name": "MLFLOW_TRACKING_URI", "value": f"http://{RELEASE}-mlflow:5000"}]
    container["envFrom"] = [{"secretRef": {"name": "mlflow-token"}}]
    kubectl("-n", SPACE, "apply", "-f", "-", given=json.dumps(pod))
    until(
        lambda: got("-n", SPACE, "pod", f"{name}-copy")["status"]["phase"] in ("Succeeded", "Failed"), 300, "the copy"
    )
    said = kubectl("-n", SPACE, "logs", f"{name}-copy")
    assert got("-n", SPACE, "pod", f"{name}-copy")["status"]["phase"] == "Succeeded", said
    yield name
    kubectl("-n", SPACE, "delete", "pod", f"{name}-copy", "--wait=false", "--grace-period=0")
    kubectl("-n", SPACE, "delete", "pvc", name, "--wait=false")


def test_a_version_on_a_volume_is_served_by_its_format_and_logged_in_the_store(volume: str) -> None:
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "claims",
            "namespace": SPACE,
            "annotations": {"serving.kserve.io/autoscalerClass": "none"},
        },
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "model": {
                    "modelFormat": {"name": "rareclass"},
                    "protocolVersion": "v2",
                    "storageUri": f"pvc://{volume}/claims/1",
                },
            }
        },
    }
    kubectl("apply", "-f", "-", given=json.dumps(service))
    try:
        until(
            lambda: (
                "successfully"
                in kubectl(
                    "-n", SPACE, "rollout", "status", "deployment/claims-predictor", "--watch=false", check=False
                )
            ),
            400,
            "the runtime's pod ready",
        )
        script = ASK.format(host=f"claims-predictor.{SPACE}", model="claims", name="by-format-1")
        answer = json.loads(inside(script).splitlines()[-1])
        assert answer["model_name"] == "claims"
        assert 0 <= next(each["data"][0] for each in answer["outputs"] if each["name"] == "score") <= 1
        count = "SELECT count(*) FROM predictions WHERE model = 'claims' AND request_id = 'by-format-1'"
        until(lambda: sql(count) == "1", 120, "the answer in the release's store")
    finally:
        kubectl("-n", SPACE, "delete", "inferenceservice", "claims", "--wait=false")


HEARD, TOKEN = "heard", "said-by-the-logger"
STRANGER = """
    import http.server, json
    class Stranger(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            self.say({"name": "elsewhere", "inputs": [{"name": "amount", "datatype": "FP32"}]})
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            amount = asked["inputs"][0]["data"]
            outputs = [dict(name="probability", datatype="FP32", shape=[len(amount)], data=[min(1, each / 100) for each in amount])]
            self.say(dict(model_name="elsewhere", id=asked["id"], outputs=outputs))
        def say(self, answer):
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
    http.server.ThreadingHTTPServer(("", 8080), Stranger).serve_forever()
"""  # noqa: E501


@pytest.fixture(scope="module")
def listener() -> Iterator[str]:
    """A release that serves nothing and only listens, with a store of its own."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": HEARD},
        "stringData": {"token": TOKEN, "password": "of-a-test-alone"},
    }
    kubectl("-n", SPACE, "apply", "-f", "-", given=json.dumps(secret))
    values = {
        "config": {
            "name": "elsewhere",
            "data": {"path": "demo:flights", "target": "cancelled"},
            "listen": {"threshold": 0.5},
        },
        "image": {"pullPolicy": "IfNotPresent"},
        "tracking": {"uri": f"http://{RELEASE}-mlflow:5000"},
        "postgresql": {
            "image": "rareclass/postgresql:15",
            "existingSecret": {"name": HEARD},
            "persistence": {"size": "1Gi", "keep": False},
        },
        "listen": {"enabled": True, "tokenSecret": HEARD, "spool": {"whenDeleted": "Delete"}},
        **{name: {"enabled": False} for name in ("serving", "monitor", "mlflow", "alerts", "dashboards", "retrain")},
        "jobs": {"retention": {"enabled": False}},
    }
    words = ("install", HEARD, "helm/rareclass", "-n", SPACE, "-f", "-", "--timeout", "10m", "--wait")
    done = helm(*words, given=json.dumps(values))
    assert done.returncode == 0, done.stderr
    yield f"http://any:{TOKEN}@{HEARD}-listen.{SPACE}:8095/"
    helm("uninstall", HEARD, "-n", SPACE)
    kubectl("-n", SPACE, "delete", "secret", HEARD, "--ignore-not-found")


def test_what_kserve_s_logger_reports_of_a_model_of_others_is_in_the_prediction_log(listener: str) -> None:
    """Neither the server nor the logger is ours; both halves of an answer come by themselves and become one row."""
    container = json.loads(pod_manifest("stranger", STRANGER))["spec"]
    [main] = container["containers"]
    predictor = {
        "minReplicas": 1,
        "logger": {"mode": "all", "url": listener},
        "containers": [{**main, "name": "kserve-container", "ports": [{"containerPort": 8080, "protocol": "TCP"}]}],
        "volumes": container["volumes"],
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "elsewhere",
            "namespace": SPACE,
            "annotations": {
                "serving.kserve.io/autoscalerClass": "none",
                "serving.kserve.io/deploymentMode": "Standard",
            },
        },
        "spec": {"predictor": predictor},
    }
    kubectl("apply", "-f", "-", given=json.dumps(service))
    try:
        rollout = ("-n", SPACE, "rollout", "status", "deployment/elsewhere-predictor", "--watch=false")
        until(lambda: "successfully" in kubectl(*rollout, check=False), 400, "the stranger's pod ready")
        script = ASK.format(host=f"elsewhere-predictor.{SPACE}", model="elsewhere", name="by-logger-1")
        answer = json.loads(inside(script).splitlines()[-1])
        assert answer["outputs"][0]["data"] == [0.01]
        row = "SELECT model, version, score, decision, features FROM predictions"
        heard = until(lambda: sql(row, HEARD), 120, "the answer in the store of who listens")
        model, version, score, decision, features = heard.split("|")
        assert (model, version, decision) == ("elsewhere", "external", "0")
        assert float(score) == pytest.approx(0.01)
        assert json.loads(features) == {"amount": 1.0}
    finally:
        kubectl("-n", SPACE, "delete", "inferenceservice", "elsewhere", "--wait=false")
