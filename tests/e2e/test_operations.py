"""What runs beside the loop on a cluster: scheduled jobs, backup and restore, the plain backend, scaling, the
pipeline's cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube import (
    CHART,
    KIT,
    OBJECT_STORE_KEY,
    RELEASE,
    SPACE,
    Load,
    address,
    got,
    helm,
    kubectl,
    kubeflow_settings,
    lacking,
    model,
    ready,
    sets,
    sql,
    stored,
    turn,
    until,
)

missing = lacking("argo", "kubeflow", "minio", "monitoring")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing), reason=f"needs a cluster: {missing}"),
    pytest.mark.timeout(1500),
]


@pytest.fixture(scope="module", autouse=True)
def release() -> None:
    if helm("status", RELEASE, "-n", SPACE).returncode:
        pytest.skip(f"release {RELEASE} is not installed in namespace {SPACE}: make install")
    ready()


def run_job(job: str, *arguments: str) -> str:
    """Start a CronJob's job now, with other arguments where some are given; return what its pod said.

    A pod that finds the network closed, because its rules take a second, is followed by another: so are the schedule's.
    """
    name = f"{RELEASE}-{job}-{uuid.uuid4().hex[:6]}"
    made = json.loads(
        kubectl("-n", SPACE, "create", "job", name, f"--from=cronjob/{RELEASE}-{job}", "--dry-run=client", "-o", "json")
    )
    if arguments:
        made["spec"]["template"]["spec"]["containers"][0]["args"] = list(arguments)
    kubectl("-n", SPACE, "apply", "-f", "-", given=json.dumps(made))

    def over() -> dict[str, Any] | None:
        status: dict[str, Any] = got("-n", SPACE, "job", name)["status"]
        return (
            status
            if status.get("succeeded") or any(each["type"] == "Failed" for each in status.get("conditions", []))
            else None
        )

    status = until(over, 400, f"the end of {name}")
    said = kubectl("-n", SPACE, "logs", "-l", f"job-name={name}", "--tail=-1")
    assert status.get("succeeded"), said
    return said


@pytest.fixture(scope="module")
def answered() -> list[str]:
    """Requests that were answered and are in the store."""
    load = Load(ids=True)
    load.under_way()
    seen = load.stop()
    assert seen["failed"] == 0, seen
    until(lambda: stored(load.prefix) == seen["good"], 60, "the predictions in the store")
    return list(seen["ids"])


def test_the_job_of_labels_imports_what_lies_in_the_object_store(answered: list[str]) -> None:
    import boto3

    keys = {"aws_access_key_id": OBJECT_STORE_KEY, "aws_secret_access_key": OBJECT_STORE_KEY}
    store = boto3.client("s3", endpoint_url=address("minio", "minio", 9000), region_name="us-east-1", **keys)
    lines = ["request_id,label", *(f"{each},{number % 20 == 0:d}" for number, each in enumerate(answered))]
    store.put_object(Bucket="mlflow", Key="labels/today.csv", Body="\n".join(lines).encode())
    assert f"{len(answered):,} new" in run_job("labels")
    assert "0 new" in run_job("labels")


def test_the_job_of_evidently_reports_what_the_monitor_exports(answered: list[str]) -> None:
    from kube import prometheus

    load = Load(pause=0.2)  # the window is a minute, and a busy machine takes longer to start a job
    load.under_way()
    try:
        assert "drift" in run_job("evidently").lower()
    finally:
        load.stop()
    query = f'rareclass_evidently_drifted_ratio{{model="{model()}",namespace="{SPACE}"}}'
    assert until(lambda: prometheus(query), 120, query)


def test_a_backup_brings_back_a_lost_database_and_a_second_restore_changes_nothing(answered: list[str]) -> None:
    tables = ("predictions", "labels", "ledger")
    before = {table: sql(f"SELECT count(*) FROM {table}") for table in tables}
    assert "predictions" in run_job("backup")
    restore = partial(run_job, "backup", "restore", "-c", "/config/config.yaml", "/backup")
    sql("DROP SCHEMA public CASCADE")
    sql("CREATE SCHEMA public")
    assert f"predictions: {int(before['predictions']):,} rows, {int(before['predictions']):,} new" in restore()
    assert {table: sql(f"SELECT count(*) FROM {table}") for table in tables} == before
    again = restore()
    assert again.count(" 0 new") == again.count(" new")


def test_old_predictions_are_deleted_by_the_schedule_and_the_ledger_says_so(answered: list[str]) -> None:
    day = (datetime.now(UTC) - timedelta(days=500)).replace(hour=0, minute=0, second=0, microsecond=0)
    start = int(day.timestamp()) * 1_000_000
    bounds = f"FROM ('{start}') TO ('{start + 86_400_000_000}')"
    sql(f"CREATE TABLE predictions_{day:%Y%m%d} PARTITION OF predictions FOR VALUES {bounds}")
    rest = "row, version, operating_point, threshold, score, decision, weight, propensity, entity, features"
    sql(
        f"INSERT INTO predictions (model, request_id, ts, {rest}) SELECT model, 'long-ago', {start}, {rest} FROM "
        "predictions LIMIT 1"
    )
    count = "SELECT count(*) FROM predictions WHERE request_id = 'long-ago'"
    assert sql(count) == "1"
    young = int(sql("SELECT count(*) FROM predictions"))
    assert "older than 400d" in run_job("retention")
    assert sql(count) == "0"
    assert int(sql("SELECT count(*) FROM predictions")) >= young - 1
    assert sql("SELECT count(*) FROM ledger WHERE kind = 'retention'") == "1"


def test_what_is_erased_is_gone_from_database_and_spools_and_the_ledger_proves_it(answered: list[str]) -> None:
    marker, tables = (
        answered[0],
        ("predictions", "prediction_keys", "shadow_scores", "labels", "label_history", "reviews"),
    )
    before = int(sql("SELECT count(*) FROM ledger WHERE kind = 'erasure'"))
    assert int(sql(f"SELECT count(*) FROM predictions WHERE request_id = '{marker}'")) > 0
    forget = ("rareclass", "forget", "-c", "/config/config.yaml", "--request-id", marker)
    assert " erased" in kubectl("-n", SPACE, "exec", f"deploy/{RELEASE}-monitor", "-c", "monitor", "--", *forget)
    left = {table: sql(f"SELECT count(*) FROM {table} WHERE request_id = '{marker}'") for table in tables}
    assert left == dict.fromkeys(tables, "0")
    assert int(sql("SELECT count(*) FROM ledger WHERE kind = 'erasure'")) == before + 1
    assert sql(f"SELECT count(*) FROM ledger WHERE reason LIKE '%{marker}%' OR payload LIKE '%{marker}%'") == "0"
    look = (
        f"import pathlib; print(sum({marker.encode()!r} in each.read_bytes() for each in "
        "pathlib.Path('/spool').rglob('*') if each.is_file()))"
    )
    servers = got("-n", SPACE, "pods", "-l", "app.kubernetes.io/component=serving")["items"]
    places = [(each["metadata"]["name"], each["spec"]["containers"][0]["name"]) for each in servers]

    def clean() -> bool:
        said = [
            kubectl("-n", SPACE, "exec", pod, "-c", name, "--", "python", "-c", look).strip() for pod, name in places
        ]
        return set(said) == {"0"}

    until(clean, 150, "spools without the erased request")  # a segment is closed after a minute, and goes once shipped


# --- the plain backend -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    """The same model behind a Deployment that scales with its processor use."""
    name = "plain"
    values = sets(
        f"fullnameOverride={name}",
        f"tracking.uri=http://{RELEASE}-mlflow:5000",
        "tracking.existingSecret.name=mlflow-token",
        "serving.backend=deployment",
        "postgresql.persistence.keep=false",
        "monitor.enabled=false",
        "serving.autoscaling.enabled=true",
        "serving.autoscaling.minReplicas=1",
        "serving.autoscaling.maxReplicas=2",
        "serving.resources.requests.cpu=50m",
        "train.enabled=false",
        "retrain.runner=pod",
        "jobs.backup.enabled=false",
        "alerts.enabled=false",
        "dashboards.enabled=false",
    )
    done = helm("install", name, str(CHART), "-n", SPACE, "-f", KIT, *values, "--timeout", "5m")
    assert done.returncode == 0, done.stderr
    try:
        kubectl("-n", SPACE, "rollout", "status", f"deployment/{name}-serving", "--timeout=300s")
        yield name
    finally:
        helm("uninstall", name, "-n", SPACE, "--wait", "--timeout", "5m")


def test_the_plain_backend_answers_and_scales_under_load(plain: str) -> None:
    def replicas() -> int:
        return int(got("-n", SPACE, "deployment", f"{plain}-serving")["status"].get("readyReplicas", 0))

    load = Load(service=plain, pause=0.0)
    load.under_way()
    until(lambda: replicas() == 2, 400, "a second pod by the autoscaler")
    seen = load.stop()
    assert seen["failed"] == 0, seen
    until(lambda: stored(load.prefix, plain) == seen["good"], 120, "every answer in the store")


def test_a_turn_pins_the_plain_deployment_to_the_champion(plain: str) -> None:
    assert turn(plain, 600) == "Succeeded"
    deployed = sql("SELECT payload FROM ledger WHERE kind = 'deploy'", plain)
    template = got("-n", SPACE, "deployment", f"{plain}-serving")["spec"]["template"]["metadata"]["annotations"]
    assert f'"version": "{template["rareclass.io/version"]}"' in deployed


def rareclass(*words: str, environment: dict[str, str] | None = None) -> str:
    command = [str(Path(sys.executable).with_name("rareclass")), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=1400, env={**os.environ, **(environment or {})}
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def ask(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


# --- the flights through Kubeflow ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def submit(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`rareclass submit` with the cluster's settings as the chart gives them to its own workflow."""
    config = {
        **yaml.safe_load(Path(KIT).read_text(encoding="utf-8"))["config"],
        "cluster": kubeflow_settings(),
    }
    config["compute"] = {"cpu": "100m", "memory": "1500Mi", "threads": 2}
    file = tmp_path_factory.mktemp("submit") / "config.json"
    file.write_text(json.dumps(config))
    return lambda key: rareclass("submit", "-c", str(file), "--key", key)


@pytest.fixture(scope="module")
def once() -> str:
    """A run of a key is made once; another namespace is another registry."""
    return str(got("namespace", SPACE)["metadata"]["uid"][:8])


def kubeflow_run(name: str) -> dict[str, Any]:
    query = urllib.parse.urlencode({"page_size": 100, "sort_by": "created_at desc"})
    runs = ask(f"{address('kubeflow', 'ml-pipeline', 8888)}/apis/v2beta1/runs?{query}")["runs"]
    found = next(each["run_id"] for each in runs if each["display_name"] == name)
    return dict(ask(f"{address('kubeflow', 'ml-pipeline', 8888)}/apis/v2beta1/runs/{found}"))


def worked(run: dict[str, Any]) -> dict[str, bool]:
    """Task -> whether a pod of it did the work; False: the cache had it. From the workflow behind the run."""
    found = got("-n", "kubeflow", "workflows", "-l", f"pipeline/runid={run['run_id']}")["items"]
    nodes = found[0]["status"]["nodes"]
    executors = [each for each in nodes.values() if each["displayName"] == "executor"]
    return {nodes[each["boundaryID"]]["displayName"]: each["phase"] == "Succeeded" for each in executors}


def test_the_flights_pipeline_finishes_on_kubeflow(submit: Callable[[str], str], once: str) -> None:
    submit(f"flights-{once}")
    run = kubeflow_run(f"flights-{once}")
    assert run["state"] == "SUCCEEDED"
    assert all(worked(run).values())
    assert "register" in worked(run)


def test_the_same_data_a_second_time_come_from_the_cache_but_for_what_acts(
    submit: Callable[[str], str], once: str
) -> None:
    submit(f"flights-{once}")
    submit(f"flights-{once}-again")
    run = kubeflow_run(f"flights-{once}-again")
    assert run["state"] == "SUCCEEDED"
    found = worked(run)
    assert not any(done for task, done in found.items() if task in ("ingest", "resample", "train", "select")), found
    assert all(done for task, done in found.items() if task in ("register", "promote")), found
    assert {"ingest", "train", "register"} <= set(found)


# --- a person's word --------------------------------------------------------------------------------------------------

_COPY = """
import datetime, sys
from rareclass.adapters.registry import Registry
from rareclass.adapters.tracking import Tracker
from rareclass.config import load
from rareclass.services import promotion
from rareclass.services.training import results
config = load("/config/config.yaml", ["promotion.mode=manual", "promotion.four_eyes=true"])
registry, now = Registry(config.tracking.uri), datetime.datetime.now(datetime.UTC)
model = registry.load(registry.at(config.name, "champion"))
run = Tracker(config.tracking.uri, config.tracking.experiment or config.name, config.tracking.artifacts).start("a copy")
made = promotion.register(config, model, run.id, now=now, actor="ann", reason="a copy of the champion")
run.end()
results.promote(config, made.version, now=now, actor="ann")
print("version", made.version)
"""


@pytest.fixture
def manual() -> Iterator[None]:
    """The release with `promotion.mode: manual`, and as it was afterwards."""
    before = json.loads(helm("history", RELEASE, "-n", SPACE, "-o", "json").stdout)[-1]["revision"]
    settings = ("--set", "config.promotion.mode=manual", "--set", "config.promotion.four_eyes=true")
    done = helm("upgrade", RELEASE, str(CHART), "-n", SPACE, "--reuse-values", *settings, "--wait", "--timeout", "5m")
    assert done.returncode == 0, done.stderr
    try:
        ready()
        yield
    finally:
        helm("rollback", RELEASE, str(before), "-n", SPACE, "--wait", "--timeout", "5m")


def test_a_turn_stays_suspended_until_another_person_than_the_trainer_approves(manual: None) -> None:
    execute = ("-n", SPACE, "exec", "-i", f"deploy/{RELEASE}-monitor", "-c", "monitor", "--")
    version = kubectl(*execute, "python", "-", given=_COPY).split("version ")[1].split()[0]
    spec = {"entrypoint": "ask", "workflowTemplateRef": {"name": f"{RELEASE}-turn"}}
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": f"{RELEASE}-ask-", "namespace": SPACE},
        "spec": spec,
    }
    name = json.loads(kubectl("create", "-o", "json", "-f", "-", given=json.dumps(workflow)))["metadata"]["name"]

    def status() -> dict[str, Any]:
        return dict(got("-n", SPACE, "workflow", name).get("status", {}))

    def suspended() -> bool:
        nodes = status().get("nodes", {}).values()
        return any(node["displayName"] == "await-approval" and node["phase"] == "Running" for node in nodes)

    until(suspended, 240, "a turn that waits for a person")
    approve = ("rareclass", "approve", "-c", "/config/config.yaml", version, "--reason", "looked at it", "--actor")
    refused = kubectl(*execute, *approve, "ann", check=False)
    assert "approved" not in refused
    assert suspended()
    assert "approved" in kubectl(*execute, *approve, "bob")
    line = sql(f"SELECT actor FROM ledger WHERE kind = 'approve' AND key = 'approve:{version}'")
    assert line.startswith("bob")
    resumed = {
        "status": {
            "nodes": {
                each: {**node, "phase": "Succeeded"}
                for each, node in status()["nodes"].items()
                if node["displayName"] == "await-approval"
            }
        }
    }
    kubectl("-n", SPACE, "patch", "workflow", name, "--type=merge", "-p", json.dumps(resumed))
    assert (
        until(lambda: status().get("phase") in ("Succeeded", "Failed", "Error") and status()["phase"], 120, "its end")
        == "Succeeded"
    )


# --- thresholds by name -----------------------------------------------------------------------------------------------

_MOVE = """
import datetime, json
from rareclass.config import load
from rareclass.core.dataset import decode
from rareclass.services.live import repair
from rareclass.services.live.monitor import Monitor
config, now = load("/config/config.yaml"), datetime.datetime.now(datetime.UTC)
with Monitor(config) as monitor:
    champion = monitor.known()["champion"]
    model = champion.model
    moved = {name: value * SCALE for name, value in model.thresholds.items()}
    payload = {"version": champion.version, "thresholds": moved}
    monitor.store.append(config.name, f"rethreshold:e2e:{now.isoformat()}", "rethreshold", "e2e", "moved by a test", payload, now)
    repair.follow(monitor)
    table = decode(model.golden if hasattr(model.golden, "dtype") else model.matrix(model.golden), model.schema)
    inputs = []
    for feature in model.schema.features:
        values = table[feature.name].tolist()
        text = feature.kind == "categorical"
        data = [("" if value is None else str(value)) if text else float(value) for value in values]
        inputs.append({"name": feature.name, "shape": [len(values)], "datatype": "BYTES" if text else "FP64", "data": data})
    print(json.dumps({"thresholds": moved, "primary": model.primary, "inputs": inputs}))
"""  # noqa: E501
_ASK = """
import json, urllib.request
given = json.loads(GIVEN)
found = {}
for name in [None, *given["thresholds"]]:
    body = {"inputs": given["inputs"], "parameters": {} if name is None else {"operating_point": name}}
    url = "http://127.0.0.1:9000/v2/models/MODEL/infer"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as answer:
        said = json.load(answer)
    columns = {each["name"]: each["data"] for each in said["outputs"]}
    found[name or ""] = {"threshold": said["parameters"]["threshold"], "score": columns["score"], "decision": columns["decision"]}
print(json.dumps(found))
"""  # noqa: E501


def test_after_a_repair_the_pods_decide_with_the_moved_threshold_of_every_name() -> None:
    """A line of the ledger moves every cut-off; then, whichever point a request names,
    the pod decides with that one.
    """
    execute = ("-n", SPACE, "exec", "-i", f"deploy/{RELEASE}-monitor", "-c", "monitor", "--", "python", "-")
    assert turn(RELEASE, 600) == "Succeeded"  # the pods are pinned to the champion
    which = ("-l", f"app.kubernetes.io/component=serving,app.kubernetes.io/instance={RELEASE}")
    for scale in ("0.5", "2.0"):  # moved, and back to where it was
        given = kubectl(*execute, given=_MOVE.replace("SCALE", scale)).strip().splitlines()[-1]
        wanted = json.loads(given)
        script = _ASK.replace("GIVEN", repr(given)).replace("MODEL", model())

        def decided(script: str = script, wanted: dict[str, Any] = wanted) -> bool:
            ready()  # a pod that begins takes the place of one that is listed
            pods = [
                each
                for each in got("-n", SPACE, "pods", *which)["items"]
                if each["status"]["phase"] == "Running" and "deletionTimestamp" not in each["metadata"]
            ]
            for pod in pods:
                place = (pod["metadata"]["name"], "-c", pod["spec"]["containers"][0]["name"])
                text = kubectl("-n", SPACE, "exec", "-i", *place, "--", "python", "-", given=script, check=False)
                if "Connection refused" in text or "NotFound" in text:  # it ends, or has just begun
                    return False
                for name, answer in json.loads(text).items():
                    cut = wanted["thresholds"][name or wanted["primary"]]
                    if abs(answer["threshold"] - cut) > 1e-9:
                        return False
                    assert answer["decision"] == [int(score >= cut) for score in answer["score"]]
            return bool(pods)

        until(decided, 240, "pods that decide with the moved thresholds")
