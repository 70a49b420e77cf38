"""The chart: what it renders (where there is a helm) and what it does on a cluster (where kubectl reaches one)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "rareclass"
VALUES = sorted(each.name.removesuffix("-values.yaml") for each in (CHART / "ci").glob("*-values.yaml"))
SMALL = ("--set", "config.name=m", "--set", "config.data.path=s3://b/x", "--set", "config.data.target=y")

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="there is no helm on the PATH")


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def render(*arguments: str) -> list[dict[str, Any]]:
    done = helm("template", "release", str(CHART), "-n", "space", "--kube-version", "1.34.0", *arguments)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def refused(*arguments: str) -> str:
    done = helm("template", "release", str(CHART), "--kube-version", "1.34.0", *arguments)
    assert done.returncode != 0
    return done.stderr


def of(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    found = [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    assert len(found) == 1, [each["metadata"]["name"] for each in objects if each["kind"] == kind]
    return found[0]


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Where, spec, and whether somebody drops the pod's own security context on the way."""
    for each in objects:
        where, spec = f"{each['kind']}/{each['metadata']['name']}", each.get("spec", {})
        if each["kind"] == "Pod":
            yield where, spec, False
        elif each["kind"] == "CronJob":
            yield where, spec["jobTemplate"]["spec"]["template"]["spec"], False
        elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield where, spec["template"]["spec"], False
        elif each["kind"] == "SeldonDeployment":
            yield where, spec["predictors"][0]["componentSpecs"][0]["spec"], True


# --- rendering -------------------------------------------------------------------------------------------------------


@needs_helm
@pytest.mark.parametrize("values", VALUES)
def test_every_container_is_confined_by_its_own_security_context(values: str) -> None:
    seen = 0
    for where, spec, _ in pod_specs(render("-f", str(CHART / "ci" / f"{values}-values.yaml"))):
        assert spec.get("automountServiceAccountToken") is False, where
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            security, seen = container["securityContext"], seen + 1
            assert security["runAsNonRoot"] is True, where
            assert security["readOnlyRootFilesystem"] is True, where
            assert security["allowPrivilegeEscalation"] is False, where
            assert security["capabilities"] == {"drop": ["ALL"]}, where
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
            assert container["resources"]["requests"], where
            assert ":latest" not in container["image"], where
            assert ":" in container["image"].rpartition("/")[2], where
    assert seen >= 4


@needs_helm
@pytest.mark.parametrize("values", VALUES)
def test_no_password_is_outside_a_secret(values: str) -> None:
    objects = render("-f", str(CHART / "ci" / f"{values}-values.yaml"), "--set", "postgresql.password=hunter2hunter2")
    for each in objects:
        assert each["kind"] == "Secret" or "hunter2" not in json.dumps(each), each["metadata"]["name"]


@needs_helm
def test_names_of_objects_are_unique_and_carry_the_release() -> None:
    for values in VALUES:
        objects = render("-f", str(CHART / "ci" / f"{values}-values.yaml"))
        names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
        assert len(set(names)) == len(names)
        assert all(name.startswith("release") for _, _, name in names), names


@needs_helm
def test_an_unknown_value_is_refused_with_its_name() -> None:
    assert "replica" in refused(*SMALL, "--set", "serving.replica=3")
    assert "serach" in refused(*SMALL, "--set", "config.serach.seconds=3")
    assert "backend" in refused(*SMALL, "--set", "serving.backend=knative")


@needs_helm
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["serving.spool.persistent=true"], "set serving.backend to deployment"),
        (["postgresql.enabled=false"], "no store: set store.existingSecret.name"),
        (["mlflow.enabled=false"], "no MLflow: set tracking.uri"),
        (["jobs.labels.enabled=true"], "jobs.labels.enabled needs jobs.labels.source"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_set(settings: list[str], said: str) -> None:
    assert said in refused(*SMALL, *(part for each in settings for part in ("--set", each)))


@needs_helm
def test_a_release_without_a_configuration_says_what_is_missing() -> None:
    assert "config.name is missing" in refused()


@needs_helm
def test_the_configuration_that_the_pods_read_is_accepted_by_rareclass() -> None:
    from rareclass import config

    for values in VALUES:
        objects = render("-f", str(CHART / "ci" / f"{values}-values.yaml"))
        text = of(objects, "ConfigMap", "release-config")["data"]["config.yaml"]
        read = config.parse(yaml.safe_load(text))
        assert (read.serve.host, read.serve.http_port, read.serve.spool) == ("0.0.0.0", 9000, "/spool")
        assert "postgresql" not in text


@needs_helm
def test_no_template_sets_the_version_that_a_deployment_pins() -> None:
    for values in VALUES:
        for each in render("-f", str(CHART / "ci" / f"{values}-values.yaml")):
            if each["kind"] in ("SeldonDeployment", "Deployment", "StatefulSet"):
                assert "annotations" not in each["spec"], "a map that is absent is left alone by an upgrade"
                template = each["spec"].get("template", {}).get("metadata", {})
                assert "rareclass.io/version" not in template.get("annotations", {})


@needs_helm
def test_both_backends_run_the_same_pod_behind_the_same_service() -> None:
    seldon, plain = (render(*SMALL, "--set", f"serving.backend={each}") for each in ("seldon", "deployment"))
    assert of(seldon, "Service", "release-serving") == of(plain, "Service", "release-serving")
    mine = of(seldon, "SeldonDeployment")["spec"]["predictors"][0]["componentSpecs"][0]
    theirs = of(plain, "Deployment", "release-serving")["spec"]["template"]
    assert mine["metadata"]["labels"] == theirs["metadata"]["labels"]
    ours, others = mine["spec"]["containers"][0], theirs["spec"]["containers"][0]
    assert ours == {name: value for name, value in others.items() if name not in ("ports", "lifecycle")}
    assert mine["spec"]["initContainers"] == theirs["spec"]["initContainers"]


@needs_helm
def test_a_persistent_spool_is_a_stateful_set_with_a_volume_per_pod() -> None:
    objects = render(*SMALL, "--set", "serving.backend=deployment", "--set", "serving.spool.persistent=true")
    found = of(objects, "StatefulSet", "release-serving")["spec"]
    assert found["volumeClaimTemplates"][0]["metadata"]["name"] == "spool"
    assert "spool" not in [each["name"] for each in found["template"]["spec"]["volumes"]]


@needs_helm
def test_autoscaling_owns_the_number_of_pods() -> None:
    arguments = (*SMALL, "--set", "serving.autoscaling.enabled=true")
    assert "replicas" not in of(render(*arguments), "SeldonDeployment")["spec"]["predictors"][0]
    objects = render(*arguments, "--set", "serving.backend=deployment")
    assert "replicas" not in of(objects, "Deployment", "release-serving")["spec"]
    assert of(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "release-serving"


@needs_helm
def test_each_rule_sees_its_own_model_only_and_can_be_routed() -> None:
    objects = render(*SMALL, "--set", "alerts.holdFor=10s")
    rules = [
        rule
        for each in objects
        if each["kind"] == "PrometheusRule"
        for group in each["spec"]["groups"]
        for rule in group["rules"]
    ]
    assert len(rules) >= 20
    import re

    for rule in rules:
        for name, after in re.findall(r"\b(rareclass[a-z0-9_:]+)(.{0,10})", rule["expr"]):
            assert after.startswith('{model="m"'), (name, after)
        assert rule["labels"]["namespace"] == "space"
        if "alert" in rule:
            assert rule["labels"]["model"] == "m"
            assert rule["for"] == "10s"
            assert rule["labels"]["action"] in ("triage", "page")


@needs_helm
def test_the_chart_follows_the_version_of_the_package() -> None:
    import tomllib

    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert about["version"] == about["appVersion"] == version


# --- on a cluster ----------------------------------------------------------------------------------------------------

SPACE, RELEASE = os.environ.get("NAMESPACE", "rareclass"), os.environ.get("RELEASE", "flights")
KIT = os.environ.get("VALUES", str(CHART / "ci" / "kit-values.yaml"))


def kubectl(*arguments: str, given: str | None = None, check: bool = True) -> str:
    done = subprocess.run(["kubectl", *arguments], input=given, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster() -> None:
    if shutil.which("kubectl") is None or shutil.which("helm") is None:
        pytest.skip("kubectl and helm are not on the PATH: make e2e")
    if subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True, check=False, timeout=20).returncode:
        pytest.skip("kubectl reaches no cluster: make e2e")


@pytest.fixture(scope="module")
def release(cluster: None) -> str:
    if helm("status", RELEASE, "-n", SPACE).returncode:
        pytest.skip(f"release {RELEASE} is not installed in namespace {SPACE}: make install")
    return RELEASE


def pod_manifest(name: str, script: str, labels: dict[str, str] | None = None) -> str:
    security = {
        "runAsNonRoot": True, "runAsUser": 10001, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    container = {
        "name": "main", "image": os.environ.get("IMAGE", f"rareclass/pipeline:{version}"), "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", textwrap.dedent(script)], "securityContext": security,
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
    }  # fmt: skip
    spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    return json.dumps(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels or {}}, "spec": spec}
    )


def inside(script: str, *, space: str = SPACE, labels: dict[str, str] | None = None, seconds: int = 180) -> str:
    """Run a script in a pod of a namespace and return what it printed."""
    name = f"probe-{uuid.uuid4().hex[:8]}"
    kubectl("-n", space, "apply", "-f", "-", given=pod_manifest(name, script, labels))
    try:
        end = time.monotonic() + seconds
        while (phase := kubectl("-n", space, "get", "pod", name, "-o", "jsonpath={.status.phase}")) not in (
            "Succeeded",
            "Failed",
        ):
            assert time.monotonic() < end, kubectl("-n", space, "describe", "pod", name)
            time.sleep(1)
        said = kubectl("-n", space, "logs", name)
        assert phase == "Succeeded", said
        return said
    finally:
        kubectl("-n", space, "delete", "pod", name, "--wait=false", "--grace-period=0")


@pytest.mark.cluster
@pytest.mark.parametrize("values", VALUES)
def test_the_cluster_accepts_every_rendered_object(cluster: None, values: str) -> None:
    space = f"dry-{uuid.uuid4().hex[:6]}"
    kubectl("create", "namespace", space)
    try:
        kubectl("label", "namespace", space, "pod-security.kubernetes.io/enforce=restricted")
        arguments = ("template", RELEASE, str(CHART), "-n", space, "--kube-version", "1.34.0", "--skip-tests")
        done = helm(*arguments, "-f", str(CHART / "ci" / f"{values}-values.yaml"))
        assert done.returncode == 0, done.stderr
        apply = ("-n", space, "apply", "--server-side", "--dry-run=server", "-f", "-")
        said = subprocess.run(["kubectl", *apply], input=done.stdout, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        assert "would violate PodSecurity" not in said.stderr
        assert said.stdout.count("(server dry run)") == len([each for each in yaml.safe_load_all(done.stdout) if each])
    finally:
        kubectl("delete", "namespace", space, "--wait=false")


@pytest.mark.cluster
def test_a_prediction_is_answered_through_the_service(release: str) -> None:
    done = helm("test", release, "-n", SPACE, "--logs", "--timeout", "3m")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "answered" in done.stdout


@pytest.mark.cluster
def test_pods_run_under_the_restricted_profile_with_a_root_that_cannot_be_written(release: str) -> None:
    space = json.loads(kubectl("get", "namespace", SPACE, "-o", "json"))
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = json.loads(kubectl("-n", SPACE, "get", "pods", "-l", f"app.kubernetes.io/instance={release}", "-o", "json"))
    running = [each for each in pods["items"] if each["status"]["phase"] == "Running"]
    assert len(running) >= 4
    for pod in running:
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"], pod["metadata"]["name"]
            path = f"{pod['metadata']['name']}"
            said = kubectl(
                "-n", SPACE, "exec", path, "-c", container["name"], "--", "sh", "-c", "id -u; touch /x", check=False
            )
            assert said.splitlines()[0] != "0"
            assert "Read-only file system" in said


@pytest.mark.cluster
@pytest.mark.parametrize("account", ["serving", "monitor", "mlflow", "postgresql", "jobs"])
def test_accounts_of_the_servers_may_do_nothing(release: str, account: str) -> None:
    who = f"--as=system:serviceaccount:{SPACE}:{release}-{account}"
    for verb, what in (
        ("get", "secrets"),
        ("list", "pods"),
        ("create", "pods"),
        ("patch", "seldondeployments"),
        ("get", "configmaps"),
    ):
        said = kubectl("auth", "can-i", verb, what, "-n", SPACE, who, check=False)
        assert said.startswith("no"), (verb, what)


CONNECT = """
    import socket, time
    targets = {targets}
    time.sleep(3)  # the rules of a new pod take a second
    for host, port in targets:
        try:
            socket.create_connection((host, port), timeout=3).close()
            print(host, "open")
        except OSError as error:
            print(host, "closed")
"""


@pytest.mark.cluster
def test_the_network_denies_what_is_not_needed(release: str) -> None:
    targets = [
        (f"{release}-serving.{SPACE}", 80), (f"{release}-postgresql.{SPACE}", 5432), (f"{release}-mlflow.{SPACE}", 5000),
        (f"{release}-monitor.{SPACE}", 8090),
    ]  # fmt: skip
    serving, database, mlflow, monitor = (host for host, _ in targets)
    script = CONNECT.format(targets=targets)
    neighbour = dict(line.split() for line in inside(script).splitlines())
    assert neighbour == {serving: "open", database: "closed", mlflow: "closed", monitor: "open"}
    stranger = dict(line.split() for line in inside(script, space="default").splitlines())
    assert set(stranger.values()) == {"closed"}
    own = {"app.kubernetes.io/name": "rareclass", "app.kubernetes.io/instance": release}
    member = dict(
        line.split() for line in inside(script, labels={**own, "app.kubernetes.io/component": "test"}).splitlines()
    )
    assert set(member.values()) == {"open"}
    jailed = {**own, "app.kubernetes.io/component": "postgresql-probe"}
    outside = inside(CONNECT.format(targets=[("93.184.216.34", 80)]), labels=jailed)
    assert outside.split()[-1] == "closed"


LOAD = """
    import json, threading, time, urllib.request
    url, model, seconds = "http://{release}-serving.{space}", "{model}", {seconds}
    with urllib.request.urlopen(f"{{url}}/v2/models/{{model}}") as answer:
        inputs = json.load(answer)["inputs"]
    columns = [dict(name=each["name"], datatype=each["datatype"], shape=[1], data=[1.0] if each["datatype"] == "FP32" else ["x"]) for each in inputs]
    end, good, bad, versions, lock = time.monotonic() + seconds, [], [], set(), threading.Lock()
    def ask(number):
        turn = 0
        while time.monotonic() < end:
            turn += 1
            name = f"{prefix}-{{number}}-{{turn}}"
            body = json.dumps(dict(id=name, inputs=columns)).encode()
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{{url}}/v2/models/{{model}}/infer", body), timeout=20) as answer:
                    found = json.load(answer)
                with lock:
                    good.append(found["id"]); versions.add(found["model_version"])
            except Exception as error:
                with lock:
                    bad.append(repr(error))
            time.sleep(0.02)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    [each.start() for each in threads]; [each.join() for each in threads]
    print(json.dumps(dict(good=len(good), distinct=len(set(good)), bad=bad[:5], failed=len(bad), versions=sorted(versions))))
"""


def stored(prefix: str) -> int:
    """How many predictions with this prefix of their id are in the database."""
    statement = f"SELECT count(*) FROM predictions WHERE request_id LIKE '{prefix}-%'"
    pod = f"{RELEASE}-postgresql-0"
    said = kubectl("-n", SPACE, "exec", pod, "--", "psql", "-h", "/tmp", "-U", "rareclass", "-Atc", statement)
    return int(said.strip())


def under_load(change: Any, seconds: int = 90) -> dict[str, Any]:
    """Answer requests while something changes; return what the clients saw. Every answer must be in the store after."""
    prefix = uuid.uuid4().hex[:8]
    model = yaml.safe_load(Path(KIT).read_text())["config"]["name"]
    script = LOAD.format(release=RELEASE, space=SPACE, model=model, seconds=seconds, prefix=prefix)
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(inside(script, seconds=seconds + 120)))
    thread.start()
    time.sleep(10)
    change()
    thread.join()
    seen: dict[str, Any] = json.loads(said[0].splitlines()[-1])
    end = time.monotonic() + 60
    while stored(prefix) < seen["distinct"] and time.monotonic() < end:
        time.sleep(1)
    seen["stored"] = stored(prefix)
    print(seen)
    return seen


def ready() -> None:
    kubectl(
        "-n",
        SPACE,
        "wait",
        "--for=condition=Ready",
        "pod",
        "-l",
        "app.kubernetes.io/component=serving",
        "--timeout=240s",
    )


@pytest.mark.cluster
def test_an_upgrade_under_load_loses_no_request_and_no_prediction(release: str) -> None:
    def upgrade() -> None:
        stamp = f"serving.podAnnotations.turn={uuid.uuid4().hex[:6]}"
        done = helm("upgrade", release, str(CHART), "-n", SPACE, "--reuse-values", "--set", stamp, "--timeout", "5m")
        assert done.returncode == 0, done.stderr

    seen = under_load(upgrade)
    assert seen["failed"] == 0, seen
    assert seen["good"] > 100
    assert seen["stored"] == seen["distinct"] == seen["good"]
    ready()


@pytest.mark.cluster
def test_an_upgrade_leaves_the_pinned_version(release: str) -> None:
    pin = '{"spec":{"annotations":{"rareclass.io/version":"1"}}}'
    kubectl("-n", SPACE, "patch", "seldondeployment", release, "--type=merge", "-p", pin)
    stamp = f"serving.podAnnotations.turn={uuid.uuid4().hex[:6]}"
    done = helm("upgrade", release, str(CHART), "-n", SPACE, "--reuse-values", "--set", stamp, "--timeout", "5m")
    assert done.returncode == 0, done.stderr
    found = json.loads(kubectl("-n", SPACE, "get", "seldondeployment", release, "-o", "json"))
    assert found["spec"]["annotations"]["rareclass.io/version"] == "1"
    deployments = json.loads(
        kubectl("-n", SPACE, "get", "deployment", "-l", f"seldon-deployment-id={release}", "-o", "json")
    )
    template = deployments["items"][0]["spec"]["template"]["metadata"]["annotations"]
    assert template["rareclass.io/version"] == "1"
    ready()


@pytest.mark.cluster
def test_a_second_model_lives_beside_and_leaves_nothing_but_what_is_kept(release: str) -> None:
    """Several models in one namespace share MLflow; this one has its own store and a persistent spool."""
    values = [
        "--set", "fullnameOverride=second", "--set", f"tracking.uri=http://{release}-mlflow:5000",
        "--set", "config.name=flights", "--set", "serving.backend=deployment", "--set", "serving.spool.persistent=true",
        "--set", "serving.spool.size=100Mi", "--set", "train.enabled=false", "--set", "dashboards.enabled=false",
    ]  # fmt: skip
    done = helm("install", "second", str(CHART), "-n", SPACE, "-f", KIT, *values, "--timeout", "5m")
    try:
        assert done.returncode == 0, done.stderr
        kubectl("-n", SPACE, "rollout", "status", "statefulset/second-serving", "--timeout=240s")
        found = json.loads(kubectl("-n", SPACE, "get", "statefulset", "second-serving", "-o", "json"))
        assert found["spec"]["volumeClaimTemplates"]
    finally:
        gone = helm("uninstall", "second", "-n", SPACE, "--wait", "--timeout", "5m")
    assert gone.returncode == 0, gone.stderr
    kinds = "all,configmap,secret,pvc,serviceaccount,networkpolicy,role,rolebinding,poddisruptionbudget,podmonitor,servicemonitor,prometheusrule,alertmanagerconfig"
    left = json.loads(kubectl("-n", SPACE, "get", kinds, "-l", "app.kubernetes.io/instance=second", "-o", "json"))
    names = sorted(
        f"{each['kind']}/{each['metadata']['name']}"
        for each in left["items"]
        if "deletionTimestamp" not in each["metadata"]
    )
    assert [each for each in names if "spool" not in each] == [
        "PersistentVolumeClaim/second-postgresql",
        "Secret/second-postgresql",
    ]
    kubectl("-n", SPACE, "delete", "pvc,secret", "-l", "app.kubernetes.io/instance=second", "--wait=false")
