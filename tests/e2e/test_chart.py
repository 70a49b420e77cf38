"""The chart: what it renders (where there is a helm) and what it does on a cluster (where kubectl reaches one)."""

from __future__ import annotations

import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube import (
    CHART,
    KIT,
    RELEASE,
    ROOT,
    SPACE,
    Load,
    got,
    helm,
    inside,
    kubectl,
    lacking,
    pin,
    pinned,
    ready,
    sets,
    stored,
    under_load,
    until,
)

VALUES = sorted(each.name.removesuffix("-values.yaml") for each in (CHART / "ci").glob("*-values.yaml"))
SMALL = sets(
    "config.name=m",
    "config.data.path=s3://b/x",
    "config.data.target=y",
    "postgresql.existingSecret.name=p",
    "networkPolicy.apiServer.cidrs={10.0.0.1/32}",
    "networkPolicy.egress[0].ports[0].port=443",
)

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="there is no helm on the PATH")


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
        elif each["kind"] == "InferenceService":
            yield where, spec["predictor"], False
        elif each["kind"] == "ServingRuntime":
            yield where, {"automountServiceAccountToken": False, **spec}, True


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
    given = ("--set", "postgresql.existingSecret.name=", "--set", "postgresql.password=hunter2hunter2")
    objects = render("-f", str(CHART / "ci" / f"{values}-values.yaml"), *given)
    assert ("hunter2" in json.dumps(objects)) == (values != "production")
    for each in objects:
        assert each["kind"] == "Secret" or "hunter2" not in json.dumps(each), each["metadata"]["name"]


@needs_helm
def test_names_of_objects_are_unique_and_carry_the_release() -> None:
    for values in VALUES:
        objects = render("-f", str(CHART / "ci" / f"{values}-values.yaml"))
        names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects]
        assert len(set(names)) == len(names)
        assert all("release" in name for _, _, name in names), names


@needs_helm
def test_an_unknown_value_is_refused_with_its_name() -> None:
    assert "replica" in refused(*SMALL, "--set", "serving.replica=3")
    assert "serach" in refused(*SMALL, "--set", "config.serach.seconds=3")
    assert "backend" in refused(*SMALL, "--set", "serving.backend=knative")


@needs_helm
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["serving.spool.persistent=true", "serving.backend=kserve"], "set serving.backend to deployment"),
        (["postgresql.enabled=false"], "no store: set store.existingSecret.name"),
        (["mlflow.enabled=false"], "no MLflow: set tracking.uri"),
        (["jobs.labels.enabled=true"], "jobs.labels.enabled needs jobs.labels.source"),
        (
            ["store.existingSecret.name=s", "retrain.enabled=true"],
            "Set retrain.kubeflow.existingSecret to a Secret there (key url",
        ),
        (["retrain.enabled=true"], "Set retrain.kubeflow.existingSecret to a Secret there (key password"),
        (["postgresql.existingSecret.name="], "then set postgresql.existingSecret.name to release-database"),
        (
            ["networkPolicy.egress=null", "s3.endpoint=http://minio:9000"],
            "networkPolicy.egress is empty, so no pod reaches what these values name: s3.endpoint",
        ),
        (
            ["networkPolicy.apiServer.cidrs=null", "retrain.enabled=true", "retrain.runner=pod"],
            "networkPolicy.apiServer.cidrs is empty",
        ),
        (
            [
                "networkPolicy.egress=null",
                "listen.enabled=true",
                "config.listen.kafka.servers=kafka:9092",
                "config.listen.kafka.labels=labels",
            ],
            "config.listen.kafka.servers",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_to_set(settings: list[str], said: str) -> None:
    assert said in refused(*SMALL, *sets(*settings))


@needs_helm
@pytest.mark.parametrize(
    "settings",
    [
        ["store.existingSecret.name=s", "retrain.enabled=true", "retrain.kubeflow.existingSecret=there"],
        ["store.existingSecret.name=s", "retrain.enabled=true", "retrain.runner=pod"],
        ["retrain.enabled=true", "retrain.kubeflow.existingSecret=there"],
    ],
)
def test_a_store_of_ones_own_goes_together_with_a_pipeline_that_is_told_of_it(settings: list[str]) -> None:
    objects = render(*SMALL, *sets(*settings))
    assert not [each for each in objects if each["metadata"].get("namespace") == "kubeflow"]
    assert ("there" in json.dumps(of(objects, "WorkflowTemplate"))) == ("runner=pod" not in settings[-1])


@needs_helm
def test_the_workflow_tells_a_kubeflow_with_users_who_it_is() -> None:
    from rareclass import config

    turn = (
        "retrain.enabled=true",
        "retrain.kubeflow.namespace=space",
        "retrain.kubeflow.multiUser=true",
        "retrain.kubeflow.account=editor",
    )
    spec = of(render(*SMALL, *sets(*turn)), "WorkflowTemplate")["spec"]
    step = next(each for each in spec["templates"] if each["name"] == "retrain")["container"]
    given = yaml.safe_load(next(word for word in step["args"] if word.startswith("cluster=")).partition("=")[2])
    read = config.parse({"name": "m", "data": {"path": "x", "target": "y"}, "cluster": given}).cluster
    assert (read.namespace, read.account, read.run_as_user) == ("space", "editor", None)
    [mount] = [each for each in step["volumeMounts"] if each["name"] == "kubeflow-token"]
    [volume] = [each for each in spec["volumes"] if each["name"] == "kubeflow-token"]
    [source] = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"
    assert f"{mount['mountPath']}/{source['serviceAccountToken']['path']}" == read.token_file


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
            if each["kind"] in ("SeldonDeployment", "InferenceService", "Deployment", "StatefulSet"):
                assert "annotations" not in each["spec"], "a map that is absent is left alone by an upgrade"
                assert "rareclass.io/version" not in each["metadata"].get("annotations", {})
                template = each["spec"].get("template", {}).get("metadata", {})
                assert "rareclass.io/version" not in template.get("annotations", {})


@needs_helm
def test_every_backend_runs_the_same_pod_behind_the_same_service() -> None:
    rendered = {each: render(*SMALL, "--set", f"serving.backend={each}") for each in ("seldon", "kserve", "deployment")}
    services = [of(objects, "Service", "release-serving") for objects in rendered.values()]
    assert services[0] == services[1] == services[2]
    plain = of(rendered["deployment"], "Deployment", "release-serving")["spec"]["template"]
    seldon = of(rendered["seldon"], "SeldonDeployment")["spec"]["predictors"][0]["componentSpecs"][0]
    kserve = of(rendered["kserve"], "InferenceService")
    wanted, labels = plain["spec"]["containers"][0], plain["metadata"]["labels"]
    assert seldon["metadata"]["labels"] == kserve["metadata"]["labels"] == labels
    ours = seldon["spec"]["containers"][0]
    assert ours == {name: value for name, value in wanted.items() if name not in ("ports", "lifecycle")}
    predictor = kserve["spec"]["predictor"]
    assert predictor["containers"] == [wanted | {"name": "kserve-container"}]
    assert seldon["spec"]["initContainers"] == predictor["initContainers"] == plain["spec"]["initContainers"]
    assert all(predictor[name] == value for name, value in plain["spec"].items() if name != "containers")
    assert (
        predictor["deploymentStrategy"]
        == of(rendered["deployment"], "Deployment", "release-serving")["spec"]["strategy"]
    )


@needs_helm
@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ((), "Deployment"),
        (("machinelearning.seldon.io/v1",), "SeldonDeployment"),
        (("serving.kserve.io/v1beta1",), "InferenceService"),
        (("machinelearning.seldon.io/v1", "serving.kserve.io/v1beta1"), "SeldonDeployment"),
    ],
)
def test_the_backend_is_what_the_cluster_has_unless_the_values_name_one(found: tuple[str, ...], kind: str) -> None:
    there = [word for each in found for word in ("--api-versions", each)]
    names = {each["kind"]: each["metadata"]["name"] for each in render(*SMALL, *there)}
    assert ({"SeldonDeployment", "InferenceService"} & names.keys()) == ({kind} - {"Deployment"})
    named = {each["kind"] for each in render(*SMALL, *there, "--set", "serving.backend=kserve")}
    assert "InferenceService" in named
    assert "SeldonDeployment" not in named


@needs_helm
def test_no_label_of_an_inference_service_changes_with_the_chart() -> None:
    """KServe gives its labels and annotations to the pods: one that changes with every release would roll them all."""
    found = of(render(*SMALL, "--set", "serving.backend=kserve"), "InferenceService")["metadata"]
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & found["labels"].keys()


@needs_helm
def test_requests_pass_kserves_agent_where_it_logs_them() -> None:
    logger = ("--set", "serving.kserve.logger.url=http://sink/", "--set", "serving.kserve.logger.mode=all")
    objects = render(*SMALL, "--set", "serving.backend=kserve", *logger)
    assert of(objects, "InferenceService")["spec"]["predictor"]["logger"] == {"url": "http://sink/", "mode": "all"}
    assert of(objects, "Service", "release-serving")["spec"]["ports"][0]["targetPort"] == 9081
    assert {"port": 9081} in of(objects, "NetworkPolicy", "release-serving")["spec"]["ingress"][0]["ports"]


@needs_helm
def test_the_workflow_may_change_the_inference_service_and_deploys_that_kind() -> None:
    turn = ("--set", "retrain.enabled=true", "--set", "retrain.runner=pod", "--set", "serving.backend=kserve")
    objects = render(*SMALL, *turn)
    rules = of(objects, "Role", "release-workflow")["rules"]
    assert {
        "apiGroups": ["serving.kserve.io"],
        "resources": ["inferenceservices"],
        "resourceNames": ["release"],
        "verbs": ["get", "patch"],
    } in rules
    step = next(each for each in of(objects, "WorkflowTemplate")["spec"]["templates"] if each["name"] == "deploy")
    words = step["container"]["args"]
    assert words[words.index("--kind") + 1 : words.index("--kind") + 4] == ["kserve", "--name", "release"]


@needs_helm
def test_a_persistent_spool_is_a_stateful_set_with_a_volume_per_pod() -> None:
    objects = render(*SMALL, "--set", "serving.backend=deployment", "--set", "serving.spool.persistent=true")
    found = of(objects, "StatefulSet", "release-serving")["spec"]
    assert found["volumeClaimTemplates"][0]["metadata"]["name"] == "spool"
    assert "spool" not in [each["name"] for each in found["template"]["spec"]["volumes"]]


@needs_helm
def test_the_listener_is_off_unless_asked_for_and_lets_in_the_models_that_it_hears() -> None:
    plain = render(*SMALL)
    assert not [each for each in plain if each["metadata"]["name"].endswith("-listen")]
    peers = [{"namespaceSelector": {"matchLabels": {"team": "scoring"}}}]
    objects = render(*SMALL, "--set", "listen.enabled=true", "--set-json", f"listen.clients={json.dumps(peers)}")
    pod = of(objects, "StatefulSet", "release-listen")["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"][0] == "listen"
    port = pod["containers"][0]["ports"][0]["containerPort"]
    text = of(objects, "ConfigMap", "release-config")["data"]["config.yaml"]
    told = yaml.safe_load(text)["listen"]
    assert (told["host"], told["port"], told["spool"]) == ("0.0.0.0", port, "/listen")
    assert "/listen" in [each["mountPath"] for each in pod["containers"][0]["volumeMounts"]]
    [rule] = of(objects, "NetworkPolicy", "release-listen")["spec"]["ingress"]
    assert rule["from"][-1:] == peers
    assert rule["ports"] == [{"port": port}]
    assert of(objects, "Service", "release-listen")["spec"]["ports"][0]["targetPort"] == port


@needs_helm
def test_autoscaling_owns_the_number_of_pods() -> None:
    arguments = (*SMALL, "--set", "serving.autoscaling.enabled=true")
    seldon = of(render(*arguments, "--set", "serving.backend=seldon"), "SeldonDeployment")
    assert "replicas" not in seldon["spec"]["predictors"][0]
    kserve = of(render(*arguments, "--set", "serving.backend=kserve"), "InferenceService")
    assert kserve["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "hpa"
    assert (kserve["spec"]["predictor"]["minReplicas"], kserve["spec"]["predictor"]["scaleTarget"]) == (2, 70)
    objects = render(*arguments, "--set", "serving.backend=deployment")
    assert "replicas" not in of(objects, "Deployment", "release-serving")["spec"]
    assert of(objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "release-serving"


@needs_helm
def test_what_the_configuration_says_is_deleted_is_deleted_daily_unless_somebody_turns_it_off() -> None:
    job = of(render(*SMALL), "CronJob", "release-retention")["spec"]
    assert job["schedule"].split()[2:] == ["*", "*", "*"]
    [container] = job["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["retention", "-c", "/config/config.yaml"]
    off = render(*SMALL, "--set", "jobs.retention.enabled=false")
    assert not [each for each in off if each["metadata"]["name"] == "release-retention"]


@needs_helm
def test_a_turn_waits_for_a_person_where_one_approves_and_holds_no_lock_meanwhile() -> None:
    turn = ("--set", "retrain.enabled=true", "--set", "retrain.runner=pod", "--set", "retrain.approvalSeconds=7200")
    objects = render(*SMALL, *turn, "--set", "config.promotion.mode=manual")
    spec = of(objects, "WorkflowTemplate")["spec"]
    templates = {each["name"]: each for each in spec["templates"]}
    assert templates["await-approval"]["suspend"] == {"duration": "7200s"}
    assert spec["activeDeadlineSeconds"] == 14400 + 7200
    assert "synchronization" not in spec
    assert templates["act"]["synchronization"] == {"mutexes": [{"name": "release-turn"}]}
    assert [step["name"] for group in templates["turn"]["steps"] for step in group] == ["act", "ask", "deploy"]
    assert "{{steps.approval.outputs.parameters.code}} == 20" in templates["ask"]["steps"][1][0]["when"]
    assert of(objects, "CronWorkflow")["spec"]["concurrencyPolicy"] == "Allow"
    called = {step["template"] for each in templates.values() for group in each.get("steps", []) for step in group}
    assert called <= templates.keys()
    plain = of(render(*SMALL, *turn), "WorkflowTemplate")["spec"]
    assert "suspend" not in json.dumps(plain)
    assert plain["synchronization"] == {"mutexes": [{"name": "release-turn"}]}


@needs_helm
@pytest.mark.parametrize(("code", "ended"), [(0, 0), (20, 0), (21, 0), (2, 2), (1, 1)])
def test_the_step_that_asks_for_an_approval_ends_well_with_every_answer_and_badly_with_none(
    code: int, ended: int, tmp_path: Path
) -> None:
    turn = ("--set", "retrain.enabled=true", "--set", "retrain.runner=pod", "--set", "config.promotion.mode=manual")
    spec = of(render(*SMALL, *turn), "WorkflowTemplate")["spec"]
    container = next(each for each in spec["templates"] if each["name"] == "approval")["container"]
    (tmp_path / "rareclass").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "rareclass").chmod(0o755)
    words = [*container["command"], container["args"][0].replace("/tmp/approval", str(tmp_path / "code"))]
    done = subprocess.run(words, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert (done.returncode, (tmp_path / "code").read_text().strip()) == (ended, str(code))


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


@needs_helm
@pytest.mark.parametrize("way", ["ingress", "gateway"])
def test_every_route_of_the_monitor_is_published_but_those_of_machines(way: str) -> None:
    import re

    source = (ROOT / "src/rareclass/services/live/monitor_app.py").read_text(encoding="utf-8")
    routes = set(re.findall(r'Route\(\s*"([^"]+)"', source))
    values = {
        "ingress": ("ingress.enabled=true", "ingress.host=h", "ingress.tlsSecret=t"),
        "gateway": (
            "gateway.enabled=true",
            "gateway.hostnames={h}",
            "gateway.parentRefs[0].name=g",
            "gateway.parentRefs[0].sectionName=s",
        ),
    }[way]
    tokens = (
        "monitor.labelsTokenSecret=a",
        "monitor.statusTokenSecret=a",
        "networkPolicy.proxies[0].podSelector.matchLabels.a=b",
    )
    objects = render(*SMALL, *sets(*values, *tokens))
    if way == "ingress":
        spec = of(objects, "Ingress")["spec"]
        assert spec["tls"] == [{"hosts": ["h"], "secretName": "t"}]
        paths = [each["path"] for each in spec["rules"][0]["http"]["paths"]]
    else:
        paths = [each["path"]["value"] for each in of(objects, "HTTPRoute")["spec"]["rules"][0]["matches"]]
    assert set(paths) == routes - {"/metrics", "/healthz"}
    proxies = of(objects, "NetworkPolicy", "release-monitor")["spec"]["ingress"][0]["from"]
    assert {"podSelector": {"matchLabels": {"a": "b"}}} in proxies


def test_the_page_of_the_platform_names_the_versions_that_are_pinned() -> None:
    import re

    page = (ROOT / "manifests/README.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line.split("|")[2] for line in page.splitlines() if line.startswith("| ")}
    parts = {
        "minio": "MinIO, for trials",
        "metrics": "metrics-server",
        "argo": "Argo Workflows",
        "kfp": "Kubeflow Pipelines",
        "seldon": "Seldon Core",
        "prometheus": "kube-prometheus-stack with Grafana",
        "kserve": "KServe",
        "cert-manager": "cert-manager",
        "gateway-api": "Gateway API, its objects alone",
        "dask-operator": "Dask operator, for `compute.engine: dask`",
        "kind": "kind node",
    }
    assert {each.name for each in (ROOT / "manifests").iterdir() if each.is_dir()} == parts.keys()
    for folder, row in parts.items():
        text = "".join(each.read_text(encoding="utf-8") for each in (ROOT / "manifests" / folder).rglob("*.yaml"))
        pins = re.findall(r"(?:download/v|ref=v?|version: v?|node:v)(\d+\.\d+\.\d+)|RELEASE\.(\d{4}-\d\d-\d\d)", text)
        assert pins, folder
        for number, date in pins:
            assert (number or date) in rows[row], (folder, number or date)


def test_what_is_not_ours_is_pinned_by_digest() -> None:
    import re

    pinned = re.compile(r"[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
    text = (ROOT / "components/Dockerfile").read_text(encoding="utf-8")
    [base] = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert pinned.fullmatch(base)
    stages = set(re.findall(r" AS (\S+)$", text, re.MULTILINE))
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= {"${BASE}", *stages}
    database = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["postgresql"]["image"]
    assert pinned.fullmatch(database)


# --- on a cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> None:
    if why := lacking():
        pytest.skip(why)


@pytest.fixture(scope="module")
def release(cluster: None) -> str:
    if helm("status", RELEASE, "-n", SPACE).returncode:
        pytest.skip(f"release {RELEASE} is not installed in namespace {SPACE}: make install")
    return RELEASE


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
        objects = [each for each in yaml.safe_load_all(done.stdout) if each]
        for each in objects:  # but what the steps of a pipeline need in their own namespace
            each["metadata"].setdefault("namespace", space)
        apply = ("apply", "--server-side", "--dry-run=server", "-f", "-")
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        said = subprocess.run(["kubectl", *apply], input=given, capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        assert "would violate PodSecurity" not in said.stderr
        assert said.stdout.count("(server dry run)") == len(objects)
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
        ("patch", "inferenceservices"),
        ("get", "configmaps"),
    ):
        said = kubectl("auth", "can-i", verb, what, "-n", SPACE, who, check=False)
        assert said.startswith("no"), (verb, what)


CONNECT = """
    import socket, time
    expected, end = {expected}, time.monotonic() + 60
    while True:  # the rules of a new pod take a moment
        found = dict()
        for (host, port), _ in expected:
            try:
                socket.create_connection((host, port), timeout=3).close()
                found[host] = "open"
            except OSError:
                found[host] = "closed"
        if time.monotonic() > end or all(found[host] == wanted for (host, _), wanted in expected):
            break
        time.sleep(0.5)
    [print(*each) for each in found.items()]
"""


def reached(expected: list[tuple[tuple[str, int], str]], **where: Any) -> dict[str, str]:
    return dict(line.split() for line in inside(CONNECT.format(expected=expected), **where).splitlines())


@pytest.mark.cluster
def test_the_network_denies_what_is_not_needed(release: str) -> None:
    serving, database, mlflow, monitor = targets = [
        (f"{release}-serving.{SPACE}", 80),
        (f"{release}-postgresql.{SPACE}", 5432),
        (f"{release}-mlflow.{SPACE}", 5000),
        (f"{release}-monitor.{SPACE}", 8090),
    ]
    own = {"app.kubernetes.io/name": "rareclass", "app.kubernetes.io/instance": release}
    cases: list[tuple[dict[str, Any], list[tuple[tuple[str, int], str]]]] = [
        ({}, [(serving, "open"), (database, "closed"), (mlflow, "closed"), (monitor, "open")]),
        ({"space": "default"}, [(each, "closed") for each in targets]),
        ({"labels": {**own, "app.kubernetes.io/component": "test"}}, [(each, "open") for each in targets]),
        # the database connects to nobody, not even to the release; others reach it
        ({"labels": {**own, "app.kubernetes.io/component": "postgresql"}}, [(each, "closed") for each in targets]),
    ]
    for where, expected in cases:
        assert reached(expected, **where) == {host: wanted for (host, _), wanted in expected}, where


@pytest.mark.cluster
def test_an_upgrade_and_a_rollback_under_load_lose_no_request_and_no_prediction(release: str) -> None:
    def there_and_back() -> None:
        before = stamps(release)
        stamp = uuid.uuid4().hex[:6]
        change = ("--reuse-values", "--set-string", f"serving.podAnnotations.turn={stamp}", "--timeout", "5m")
        done = helm("upgrade", release, str(CHART), "-n", SPACE, *change)
        assert done.returncode == 0, done.stderr
        rolled(release, {stamp})
        done = helm("rollback", release, "-n", SPACE, "--timeout", "5m")
        assert done.returncode == 0, done.stderr
        rolled(release, before)

    seen = under_load(there_and_back)
    assert seen["failed"] == 0, seen
    assert seen["good"] > 100
    assert seen["stored"] == seen["distinct"] == seen["good"]


def stamps(release: str) -> set[str | None]:
    """The annotation `turn` of every pod that serves, also of those that are on their way out."""
    which = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=serving"
    pods = got("-n", SPACE, "pods", "-l", which)["items"]
    return {each["metadata"].get("annotations", {}).get("turn") for each in pods}


def rolled(release: str, wanted: set[str | None]) -> None:
    until(lambda: stamps(release) == wanted, 400, f"only pods of turn {wanted}")
    ready(release=release)


@pytest.mark.cluster
def test_an_upgrade_leaves_the_pinned_version(release: str) -> None:
    pin(SPACE, release, "1")
    stamp = uuid.uuid4().hex[:6]
    change = ("--reuse-values", "--set-string", f"serving.podAnnotations.turn={stamp}", "--timeout", "5m")
    done = helm("upgrade", release, str(CHART), "-n", SPACE, *change)
    assert done.returncode == 0, done.stderr
    assert pinned(SPACE, release) == "1"
    rolled(release, {stamp})

    def versions() -> set[str | None]:
        which = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=serving"
        pods = got("-n", SPACE, "pods", "-l", which)["items"]
        return {each["metadata"]["annotations"].get("rareclass.io/version") for each in pods}

    until(lambda: versions() == {"1"}, 120, "only pods of the pinned version")


@pytest.mark.cluster
def test_a_second_model_keeps_its_spool_on_a_volume_and_leaves_nothing_but_what_is_kept(release: str) -> None:
    """Several models in one namespace share MLflow; this one has its own store and a persistent spool."""
    values = sets(
        "fullnameOverride=second",
        f"tracking.uri=http://{release}-mlflow:5000",
        "tracking.existingSecret.name=mlflow-token",
        "serving.backend=deployment",
        "serving.spool.persistent=true",
        "serving.spool.size=100Mi",
        "train.enabled=false",
        "dashboards.enabled=false",
        "retrain.enabled=false",
        "jobs.backup.enabled=false",
        "serving.terminationGracePeriodSeconds=20",
    )
    done = helm("install", "second", str(CHART), "-n", SPACE, "-f", KIT, *values, "--timeout", "5m")
    try:
        assert done.returncode == 0, done.stderr
        kubectl("-n", SPACE, "rollout", "status", "statefulset/second-serving", "--timeout=300s")
        load = Load(service="second")
        load.under_way()
        seen = load.stop()
        assert seen["failed"] == 0, seen
        until(lambda: stored(load.prefix, "second") == seen["good"], 60, "everything in the second store")
        # the store is away, the pod goes and cannot drain: the next one finds the spool on its volume
        kubectl("-n", SPACE, "scale", "statefulset/second-postgresql", "--replicas=0")
        kubectl("-n", SPACE, "wait", "--for=delete", "pod/second-postgresql-0", "--timeout=60s")
        load = Load(service="second")
        load.under_way()
        seen = load.stop()
        assert seen["failed"] == 0, seen
        kubectl("-n", SPACE, "delete", "pod", "second-serving-0", "--timeout=120s")
        kubectl("-n", SPACE, "scale", "statefulset/second-postgresql", "--replicas=1")
        kubectl("-n", SPACE, "rollout", "status", "statefulset/second-postgresql", "--timeout=120s")
        kubectl("-n", SPACE, "rollout", "status", "statefulset/second-serving", "--timeout=300s")
        until(lambda: stored(load.prefix, "second") == seen["good"], 120, "the spool of the lost pod in the store")
    finally:
        gone = helm("uninstall", "second", "-n", SPACE, "--wait", "--timeout", "5m")
    assert gone.returncode == 0, gone.stderr
    core = "all,configmap,secret,pvc,serviceaccount,networkpolicy,role,rolebinding,poddisruptionbudget"
    kinds = f"{core},podmonitor,servicemonitor,prometheusrule,alertmanagerconfig"
    which = ("-l", "app.kubernetes.io/instance=second")
    left = [each for each in got("-n", SPACE, kinds, *which)["items"] if "deletionTimestamp" not in each["metadata"]]
    assert sorted(f"{each['kind']}/{each['metadata']['name']}" for each in left) == [
        "PersistentVolumeClaim/second-postgresql",
        "PersistentVolumeClaim/spool-second-serving-0",
    ]
    assert not got("-n", "kubeflow", "secret", *which)["items"]
    kubectl("-n", SPACE, "delete", "pvc", *which, "--wait=false")
