"""What the tests on a cluster share: commands, pods of their own, and load while something changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import textwrap
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "rareclass"
SPACE, RELEASE = os.environ.get("NAMESPACE", "rareclass"), os.environ.get("RELEASE", "flights")
KIT = os.environ.get("VALUES", str(CHART / "ci" / "kit-values.yaml"))
OBJECT_STORE_KEY = os.environ.get("RARECLASS_E2E_S3", "minioadmin")

BACKEND = os.environ.get("BACKEND") or "seldon"
"""What serves: `tools/cluster install` gives it to the release."""
_OBJECTS = {"seldon": "seldondeployment", "kserve": "inferenceservice"}


def serving(space: str, release: str) -> dict[str, Any]:
    """The object that serves a release."""
    return dict(got("-n", space, _OBJECTS[BACKEND], release))


def pinned(space: str, release: str) -> str | None:
    """The version that the object that serves is pinned to."""
    found = serving(space, release)["spec" if BACKEND == "seldon" else "metadata"]
    return found.get("annotations", {}).get("rareclass.io/version")


def pin(space: str, release: str, version: str) -> None:
    annotations = {"annotations": {"rareclass.io/version": version}}
    patch = {"spec" if BACKEND == "seldon" else "metadata": annotations}
    kubectl("-n", space, "patch", _OBJECTS[BACKEND], release, "--type=merge", "-p", json.dumps(patch))


def available(space: str, release: str) -> bool:
    """Whether every pod that serves is of the newest kind and ready."""
    if BACKEND == "seldon":
        return serving(space, release).get("status", {}).get("state") == "Available"
    waiting = ("rollout", "status", f"deployment/{release}-predictor", "--watch=false")
    return "successfully rolled out" in kubectl("-n", space, *waiting, check=False)


def model() -> str:
    return str(yaml.safe_load(Path(KIT).read_text(encoding="utf-8"))["config"]["name"])


def sets(*values: str) -> tuple[str, ...]:
    """Return Helm's arguments for values of a chart."""
    return tuple(word for each in values for word in ("--set", each))


def helm(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], cwd=ROOT, input=given, capture_output=True, text=True, check=False)


def kubectl(*arguments: str, given: str | None = None, check: bool = True) -> str:
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


def got(*words: str) -> Any:
    return json.loads(kubectl("get", *words, "-o", "json"))


def lacking(*namespaces: str) -> str:
    """Empty when kubectl reaches a cluster with these namespaces, else what is missing."""
    if shutil.which("kubectl") is None or shutil.which("helm") is None:
        return "kubectl and helm are not on the PATH: make e2e"
    asked = ["kubectl", "get", "--raw", "/readyz", "--request-timeout=5s"]
    if subprocess.run(asked, capture_output=True, check=False).returncode:
        return "kubectl reaches no cluster: make e2e"
    for name in namespaces:
        if subprocess.run(["kubectl", "get", "namespace", name], capture_output=True, check=False).returncode:
            return f"the cluster has no namespace {name}"
    return ""


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"never seen: {what}"
        time.sleep(1)
    return value


def turn(release: str, seconds: float) -> str:
    """Run one turn of a release's loop and return the phase that the workflow ended in."""
    spec = {"workflowTemplateRef": {"name": f"{release}-turn"}}
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{release}-turn-", "namespace": SPACE},
        "spec": spec,
    }
    name = json.loads(kubectl("create", "-o", "json", "-f", "-", given=json.dumps(workflow)))["metadata"]["name"]

    def over() -> str:
        phase = str(got("-n", SPACE, "workflow", name).get("status", {}).get("phase", ""))
        return phase if phase in ("Succeeded", "Failed", "Error") else ""

    return str(until(over, seconds, f"the end of {name}"))


def kubeflow_settings(space: str = SPACE, release: str = RELEASE) -> dict[str, Any]:
    """Return what the chart tells its own workflow of Kubeflow, with an address that is reached from here."""
    templates = got("-n", space, "workflowtemplate", f"{release}-turn")["spec"]["templates"]
    step = next(each for each in templates if each["name"] == "retrain")
    given = next(word for word in step["container"]["args"] if word.startswith("cluster=")).partition("=")[2]
    return {**yaml.safe_load(given), "host": address("kubeflow", "ml-pipeline", 8888)}


@cache
def address(namespace: str, service: str, port: int) -> str:
    """Base URL of a Service, or of a pod behind a headless one; the nodes of the tests' cluster reach both."""
    host = got("-n", namespace, "service", service)["spec"]["clusterIP"]
    if host == "None":
        host = got("-n", namespace, "endpoints", service)["subsets"][0]["addresses"][0]["ip"]
    return f"{'https' if service == 'argo-server' else 'http'}://{host}:{port}"


def prometheus(query: str) -> list[Any]:
    from urllib.parse import urlencode

    url = f"{address('monitoring', 'prometheus', 9090)}/api/v1/query?{urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return list(json.load(answer)["data"]["result"])


# --- pods of the tests -----------------------------------------------------------------------------------------------


def pod_manifest(name: str, script: str, labels: dict[str, str] | None = None) -> str:
    security = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    version = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"]
    container = {
        "name": "main",
        "image": os.environ.get("IMAGE", f"rareclass/pipeline:{version}"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", textwrap.dedent(script)],
        "securityContext": security,
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    return json.dumps(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}}, "spec": spec}
    )


def ended(space: str, name: str, seconds: float) -> str:
    """Wait for a pod to end; return what it printed. Fails when the pod failed."""

    def over() -> str:
        phase = kubectl("-n", space, "get", "pod", name, "-o", "jsonpath={.status.phase}", check=False)
        return phase if phase in ("Succeeded", "Failed") else ""

    phase = until(over, seconds, f"the end of pod {name}")
    said = kubectl("-n", space, "logs", name)
    assert phase == "Succeeded", said
    return said


def inside(script: str, *, space: str = SPACE, labels: dict[str, str] | None = None, seconds: int = 180) -> str:
    """Run a script in a pod of a namespace and return what it printed."""
    name = f"probe-{uuid.uuid4().hex[:8]}"
    kubectl("-n", space, "apply", "-f", "-", given=pod_manifest(name, script, labels))
    try:
        return ended(space, name, seconds)
    finally:
        kubectl("-n", space, "delete", "pod", name, "--wait=false", "--grace-period=0")


# --- load ------------------------------------------------------------------------------------------------------------

LOAD = """
    import collections, json, os, socket, threading, time, urllib.error, urllib.parse, urllib.request
    url, model, prefix = "http://{release}-serving.{space}", "{model}", "{prefix}"
    def patient(work):
        for left in range(60, -1, -1):
            try:
                return work()
            except OSError:
                if not left:
                    raise
                time.sleep(0.5)  # the network's rules of a new pod
    with patient(lambda: urllib.request.urlopen(f"{{url}}/v2/models/{{model}}")) as answer:
        inputs = json.load(answer)["inputs"]
    columns = [dict(name=each["name"], datatype=each["datatype"], shape=[1], data=[1.0] if each["datatype"] == "FP32" else ["x"]) for each in inputs]
    # the address of the Service stays: what a busy name server leaves unanswered says nothing of the servers
    host = patient(lambda: socket.gethostbyname(urllib.parse.urlsplit(url).hostname))
    url = f"http://{{host}}"
    end, good, bad, versions, lock = time.monotonic() + {seconds}, [], collections.Counter(), set(), threading.Lock()
    failed = []
    def ask(number):
        turn = 0
        while time.monotonic() < end and not os.path.exists("/tmp/stop"):
            turn += 1
            name = f"{{prefix}}-{{number}}-{{turn}}"
            body = json.dumps(dict(id=name, inputs=columns)).encode()
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{{url}}/v2/models/{{model}}/infer", body), timeout=20) as answer:
                    found = json.load(answer)
                with lock:
                    good.append(found["id"]); versions.add(found["model_version"])
                    if len(good) == 50:
                        print("under way", flush=True)
            except urllib.error.HTTPError as error:
                said = error.read(300).decode()
                with lock:
                    # where a Service has no address left, a test cluster may let the packet out to a stranger
                    ours = error.headers.get("server") == "uvicorn"
                    bad[f"{{error.code}} {{said}}" if ours else "nobody there"] += 1; failed.append(time.time())
            except Exception as error:
                with lock:
                    bad[type(getattr(error, "reason", error)).__name__] += 1; failed.append(time.time())
            time.sleep({pause})
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    [each.start() for each in threads]; [each.join() for each in threads]
    print(json.dumps(dict(good=len(good), ids=good if {ids} else [], distinct=len(set(good)), bad=bad, failed=len(failed), between=[min(failed), max(failed)] if failed else None, versions=sorted(versions))))
"""  # noqa: E501


class Load:
    """Four clients that ask until they are told to stop, and remember what they were answered."""

    def __init__(self, *, seconds: int = 400, pause: float = 0.05, ids: bool = False, service: str = RELEASE) -> None:
        self.prefix = uuid.uuid4().hex[:8]
        self.name = f"load-{self.prefix}"
        script = LOAD.format(
            release=service, space=SPACE, model=model(), seconds=seconds, prefix=self.prefix, pause=pause, ids=ids
        )
        kubectl("-n", SPACE, "apply", "-f", "-", given=pod_manifest(self.name, script))

    def under_way(self) -> None:
        until(lambda: "under way" in kubectl("-n", SPACE, "logs", self.name, check=False), 120, "fifty answers")

    def stop(self) -> dict[str, Any]:
        """Let the clients stop; return what they saw."""

        def told() -> bool:
            return "touched" in kubectl(
                "-n", SPACE, "exec", self.name, "--", "sh", "-c", "touch /tmp/stop && echo touched", check=False
            )

        until(told, 120, "the clients told to stop")
        seen: dict[str, Any] = json.loads(ended(SPACE, self.name, 120).splitlines()[-1])
        kubectl("-n", SPACE, "delete", "pod", self.name, "--wait=false", "--grace-period=0")
        return seen


def stored(prefix: str, release: str = RELEASE) -> int:
    """How many predictions with this prefix of their id are in the database."""
    return int(sql(f"SELECT count(*) FROM predictions WHERE request_id LIKE '{prefix}-%'", release) or -1)


def sql(statement: str, release: str = RELEASE) -> str:
    words = ("exec", f"{release}-postgresql-0", "--", "psql", "-h", "/tmp", "-U", "rareclass", "-Atc", statement)
    said = kubectl("-n", SPACE, *words, check=False).strip()
    return "" if "error" in said.lower().split(":")[0] else said


def under_load(change: Callable[[], Any], *, pause: float = 0.05) -> dict[str, Any]:
    """Answer requests before, while and after something changes; return what the clients saw,
    and what the store has.
    """
    load = Load(pause=pause)
    load.under_way()
    try:
        change()
    finally:
        seen = load.stop()
    seen["stored"] = until(lambda: (n := stored(load.prefix)) >= seen["distinct"] and n, 120, f"{seen} in the store")
    print({name: value for name, value in seen.items() if name != "ids"})
    return seen


def ready(space: str = SPACE, release: str = RELEASE) -> None:
    """Wait until every server that is meant to stay answers."""
    which = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=serving"

    def all_ready() -> bool:
        pods = [
            each
            for each in got("-n", space, "pods", "-l", which)["items"]
            if "deletionTimestamp" not in each["metadata"]
        ]
        conditions = [{c["type"]: c["status"] for c in each["status"].get("conditions", [])} for each in pods]
        return bool(pods) and all(each.get("Ready") == "True" for each in conditions)

    until(all_ready, 300, "every server ready")


def names(objects: Iterable[Any]) -> list[str]:
    return sorted(f"{each['kind']}/{each['metadata']['name']}" for each in objects)
