"""The loop on a real Kubernetes, arrow by arrow; each test asks the real system's own API. `make e2e` starts the
cluster.

The release is installed when it is not there (RARECLASS_E2E_NAMESPACE, default `loop`); the tests stand on each other
in the order of the file and may be run again on what an earlier run left.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from kube import BACKEND, address, available, got, kubectl, kubeflow_settings, lacking, pinned, prometheus, until

from rareclass.core.verdicts import EXIT_CODES

HERE = Path(__file__).parents[2]
VALUES = Path(__file__).with_name("loop-values.yaml")
NAMESPACE, RELEASE, MODEL = os.environ.get("RARECLASS_E2E_NAMESPACE", "loop"), "stream", "stream"
TAG = os.environ.get("RARECLASS_E2E_TAG", "")
S3_USER = os.environ.get("RARECLASS_E2E_S3", "minioadmin")
MINUTES = 60.0


def ask(url: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    with urllib.request.urlopen(request, timeout=30, context=context if url.startswith("https") else None) as answer:
        return json.load(answer)


def mlflow(path: str, **query: str) -> Any:
    return ask(
        f"{address(NAMESPACE, f'{RELEASE}-mlflow', 5000)}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}",
        headers={"Host": f"{RELEASE}-mlflow:5000"},
    )


def champion() -> str | None:
    try:
        found = mlflow("registered-models/alias", name=MODEL, alias="champion")
    except urllib.error.HTTPError:
        return None
    return str(found["model_version"]["version"])


def ledger() -> list[Any]:
    """The ledger as the monitor's pod reads it from PostgreSQL."""
    return list(
        json.loads(
            kubectl(
                "-n",
                NAMESPACE,
                "exec",
                f"deploy/{RELEASE}-monitor",
                "-c",
                "monitor",
                "--",
                "rareclass",
                "history",
                "-c",
                "/config/config.yaml",
                "--json",
            )
        )
    )


def rows(n: int, seed: int, sign: float = 1.0) -> pd.DataFrame:
    """One row in ten is rare; with ``sign`` -1 the strongest feature points the other way."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(size=n)
    kind = rng.choice(["x", "y", "z"], size=n, p=[0.6, 0.3, 0.1])
    odds = -3.6 + 2.0 * sign * a + 1.0 * b + 1.0 * (kind == "z")
    frame = pd.DataFrame({"a": a, "b": b, "noise": rng.normal(size=n), "kind": kind})
    return frame.assign(target=(rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int))


class Stream:
    """Clients that ask row by row without a pause in their own time; the labels come right after."""

    def __init__(self, per_minute: int = 1000) -> None:
        self.per_minute, self.sign, self.shift, self.negatives = per_minute, 1.0, 0.0, 1.0
        self.until = datetime.now(UTC) - timedelta(minutes=6)
        self.seed = int(time.time())

    def flow(self) -> None:
        """Ask for the predictions since the last call and import their labels.

        sign : -1 turns the strongest feature round;  shift : what is added to it after the label is drawn;
        negatives : share of the negatives that come at all
        """
        url = f"{address(NAMESPACE, f'{RELEASE}-serving', 80)}/v2/models/{MODEL}/infer"
        labels, now = [], datetime.now(UTC)
        while (now - self.until).total_seconds() > 1:
            end = min(self.until + timedelta(minutes=1), now)
            seconds = (end - self.until).total_seconds()
            n = max(1, round(self.per_minute * seconds / 60))
            self.seed += 1
            frame, name = rows(n, self.seed, self.sign), uuid.uuid4().hex
            kept = (frame["target"] == 1) | (np.random.default_rng(self.seed).random(n) < self.negatives)
            frame = frame.assign(a=frame["a"] + self.shift)[kept]
            n = len(frame)
            when = [(self.until + timedelta(seconds=seconds * i / n)).isoformat() for i in range(n)]
            tensors = [
                {
                    "name": column,
                    "shape": [n],
                    "datatype": "BYTES" if column == "kind" else "FP32",
                    "data": frame[column].tolist(),
                }
                for column in ("a", "b", "noise", "kind")
            ]
            answer = ask(url, {"id": name, "inputs": tensors, "parameters": {"ts": when}})
            assert len(next(each["data"] for each in answer["outputs"] if each["name"] == "score")) == n
            labels += [f"{name},{row},{label}" for row, label in enumerate(frame["target"])]
            self.until = end
        script = (
            "cat > /tmp/labels.csv && rareclass labels import -c /config/config.yaml /tmp/labels.csv --set "
            "store.wait=5m"
        )
        text = "\n".join(["request_id,row,label", *labels]) + "\n"
        said = kubectl(
            "-n",
            NAMESPACE,
            "exec",
            "-i",
            f"deploy/{RELEASE}-monitor",
            "-c",
            "monitor",
            "--",
            "sh",
            "-c",
            script,
            given=text,
        )
        assert f"{len(labels):,} new" in said, said

    def while_waiting(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        """Let the rows flow until the condition holds."""

        def step() -> Any:
            if (datetime.now(UTC) - self.until).total_seconds() > 20:
                self.flow()
            return condition()

        return until(step, seconds, what)


@pytest.fixture(scope="module")
def stream(release: None) -> Stream:
    return Stream()


def fire(**labels: str) -> None:
    """Post what Alertmanager posts, with the account that the chart made for it."""
    secret = got("-n", NAMESPACE, "secret", f"{RELEASE}-events-token")["data"]["token"]
    body = {"status": "firing", "commonLabels": {"action": "triage", "model": MODEL, "alertname": "Test", **labels}}
    url = f"{address('argo', 'argo-server', 2746)}/api/v1/events/{NAMESPACE}/{RELEASE}"
    ask(url, body, {"Authorization": f"Bearer {base64.b64decode(secret).decode()}"})


def turns() -> dict[str, Any]:
    return {each["metadata"]["name"]: each for each in got("-n", NAMESPACE, "workflows")["items"]}


def nodes(turn: Any) -> dict[str, Any]:
    return {each["displayName"]: each for each in turn["status"].get("nodes", {}).values() if each["type"] != "Pod"}


def output(turn: Any, name: str) -> str:
    found = nodes(turn)["triage"]["outputs"]["parameters"]
    return str(next(each.get("value", "") for each in found if each["name"] == name))


def finished(name: str, seconds: float) -> Any:
    def over() -> Any:
        found = turns().get(name)
        return found if found and found["status"].get("phase") in ("Succeeded", "Failed", "Error") else None

    return until(over, seconds, f"the end of workflow {name}")


def cause(turn: Any) -> str | None:
    given = {p["name"]: p.get("value") for p in turn["spec"].get("arguments", {}).get("parameters", [])}
    return given.get("cause")


def started(before: set[str], because: str, seconds: float) -> str:
    def new() -> str | None:
        for name, each in turns().items():
            if name not in before and cause(each) == because:
                return name
        return None

    return str(until(new, seconds, f"a workflow because of {because}"))


missing = lacking("kubeflow", "argo", "monitoring", "seldon-system" if BACKEND == "seldon" else "kserve", "minio")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing), reason=f"needs a cluster: {missing}"),
    pytest.mark.timeout(1800),
]


def settings() -> dict[str, Any]:
    values = yaml.safe_load(VALUES.read_text(encoding="utf-8"))
    values["serving"]["backend"] = BACKEND
    if TAG:
        values["image"] = {"tag": TAG}
    return dict(values)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The chart in a namespace that enforces the restricted profile, the history in the object store."""
    folder = tmp_path_factory.mktemp("loop")
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), S3_USER)
    secrets = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": where}, "stringData": keys}
        for name, where in (("s3", NAMESPACE), ("stream-s3", "kubeflow"))
    ]
    if "NotFound" in kubectl("-n", NAMESPACE, "get", "secret", "database", check=False):
        password = {"password": uuid.uuid4().hex}
        secrets += [
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": where},
                "stringData": password,
            }
            for name, where in (("database", NAMESPACE), ("loop-database", "kubeflow"))
        ]
    for each in (namespace, *secrets):
        kubectl("apply", "-f", "-", given=json.dumps(each))
    import boto3

    store = boto3.client(
        "s3",
        endpoint_url=address("minio", "minio", 9000),
        region_name="us-east-1",
        aws_access_key_id=S3_USER,
        aws_secret_access_key=S3_USER,
    )
    if "stream" not in [each["Name"] for each in store.list_buckets()["Buckets"]]:
        store.create_bucket(Bucket="stream")
    if not store.list_objects_v2(Bucket="stream").get("KeyCount"):
        history = rows(4000, 1)
        history["ts"] = pd.Timestamp.now("UTC").tz_localize(None).floor("s") - pd.to_timedelta(
            np.arange(4000)[::-1] * 60 + 86400, unit="s"
        )
        history.to_parquet(folder / "history.parquet")
        store.upload_file(str(folder / "history.parquet"), "stream", "history.parquet")
    (folder / "values.yaml").write_text(yaml.safe_dump(settings()))
    if subprocess.run(["helm", "status", RELEASE, "-n", NAMESPACE], capture_output=True, check=False).returncode:
        command = [
            "helm",
            "install",
            RELEASE,
            str(HERE / "helm/rareclass"),
            "-n",
            NAMESPACE,
            "-f",
            str(folder / "values.yaml"),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
    kubectl(
        "-n",
        NAMESPACE,
        "rollout",
        "status",
        f"deployment/{RELEASE}-mlflow",
        f"deployment/{RELEASE}-monitor",
        "--timeout=600s",
    )


@pytest.fixture(scope="module")
def submitted(release: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The first version, trained by a run of the pipeline; a run of that key that went well is not repeated."""
    config = {**settings()["config"], "cluster": kubeflow_settings(NAMESPACE, RELEASE)}
    file = tmp_path_factory.mktemp("submit") / "config.json"
    file.write_text(json.dumps(config))
    environment = {
        **os.environ,
        "AWS_ENDPOINT_URL": address("minio", "minio", 9000),
        "AWS_ACCESS_KEY_ID": S3_USER,
        "AWS_SECRET_ACCESS_KEY": S3_USER,
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def submit(*words: str) -> str:
        command = [str(HERE / ".venv/bin/rareclass"), "submit", "-c", str(file), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=1500)
        assert done.returncode == 0, done.stderr
        return done.stderr + done.stdout

    return submit, file


def kubeflow(path: str, **query: str) -> Any:
    return ask(f"{address('kubeflow', 'ml-pipeline', 8888)}/apis/v2beta1/{path}?{urllib.parse.urlencode(query)}")


def test_submit_trains_on_kubeflow_and_says_so_once(submitted: tuple[Any, Path]) -> None:
    submit, _ = submitted
    key = f"loop-{got('namespace', NAMESPACE)['metadata']['uid'][:8]}"
    said = submit("--key", key)
    run = said.split()[-1]
    assert kubeflow(f"runs/{run}")["state"] == "SUCCEEDED"
    again = submit("--key", key)
    assert run in again
    assert "uploaded" not in again


def test_the_version_is_registered_whole_behind_postgres_and_the_object_store(submitted: tuple[Any, Path]) -> None:
    number = until(champion, 60, "a champion in MLflow")
    version = mlflow("model-versions/get", name=MODEL, version=number)["model_version"]
    tags = {each["key"]: each["value"] for each in version["tags"]}
    assert len(tags["rareclass.complete"]) == 64
    assert version["source"].startswith("mlflow-artifacts:")
    assert {"register", "promote"} <= {entry["kind"] for entry in ledger()}


def test_the_backend_serves_the_champion(submitted: tuple[Any, Path]) -> None:
    until(lambda: available(NAMESPACE, RELEASE), 10 * MINUTES, f"{BACKEND} says that it is available")
    url = f"{address(NAMESPACE, f'{RELEASE}-serving', 80)}/v2/models/{MODEL}"
    assert ask(url)["name"] == MODEL


def test_events_start_turns_of_their_own_model_and_action_only(submitted: tuple[Any, Path]) -> None:
    before = set(turns())
    fire(model="another", alertname="NotOurs")
    fire(action="page", alertname="NotOurs")
    fire(alertname="Ours")
    started(before, "Ours", 60)
    assert not [name for name, each in turns().items() if cause(each) == "NotOurs"]


def test_a_turn_triages_branches_and_finishes(submitted: tuple[Any, Path]) -> None:
    turn = finished(next(name for name, each in turns().items() if cause(each) == "Ours"), 15 * MINUTES)
    found = nodes(turn)
    assert turn["status"]["phase"] == "Succeeded", turn["status"].get("message")
    assert found["triage"]["phase"] == "Succeeded"
    kind = output(turn, "kind")
    assert kind in EXIT_CODES
    assert (found["retrain"]["phase"] == "Skipped") == (kind != "retrain")
    assert found["deploy"]["phase"] == "Succeeded"


def test_the_turn_pins_the_served_version_to_the_champion_and_records_it(submitted: tuple[Any, Path]) -> None:
    deployed = [entry for entry in ledger() if entry["kind"] == "deploy"]
    assert pinned(NAMESPACE, RELEASE) == deployed[-1]["payload"]["version"]


def test_the_schedule_starts_a_turn_by_itself(submitted: tuple[Any, Path]) -> None:
    before = set(turns())
    name = started(before, "schedule", 6 * MINUTES)
    assert turns()[name]["metadata"]["labels"]["workflows.argoproj.io/cron-workflow"] == f"{RELEASE}-turn"


def test_a_recurring_run_of_kubeflow_starts_by_itself(submitted: tuple[Any, Path]) -> None:
    submit, _ = submitted
    said = submit("--recurring", "0 * * * * *")
    job = said.split()[-1]
    try:
        runs = until(
            lambda: [
                each
                for each in kubeflow("runs", page_size="100", sort_by="created_at desc").get("runs", [])
                if each.get("recurring_run_id") == job and "state" in each
            ],
            3 * MINUTES,
            "a run of the schedule",
        )
        assert runs[0]["state"] in ("PENDING", "RUNNING", "SUCCEEDED")
    finally:  # its runs go with it
        request = urllib.request.Request(
            f"{address('kubeflow', 'ml-pipeline', 8888)}/apis/v2beta1/recurringruns/{job}", method="DELETE"
        )
        urllib.request.urlopen(request, timeout=30)


def test_labels_come_late_and_prometheus_has_the_live_ap(submitted: tuple[Any, Path], stream: Stream) -> None:
    stream.flow()
    query = f'rareclass_ap_ratio{{model="{MODEL}",namespace="{NAMESPACE}"}}'
    found = stream.while_waiting(lambda: prometheus(query), 5 * MINUTES, query)
    assert all(0 <= float(each["value"][1]) <= 1 for each in found)


# --- the pattern of the rare class changes; from here on nobody but the alert and the schedule does anything ----------


@pytest.fixture(scope="module")
def drifted(submitted: tuple[Any, Path], stream: Stream) -> Iterator[dict[str, Any]]:
    """What was so before the change. The schedule rests meanwhile, so that what happens is the alert's doing."""
    suspend(True)
    until(
        lambda: all(each["status"].get("phase") != "Running" for each in turns().values()),
        15 * MINUTES,
        "no turn at work",
    )
    stream.sign = -1.0
    yield {"turns": set(turns()), "champion": champion(), "outcomes": len(outcomes())}
    suspend(False)


def suspend(resting: bool) -> None:
    patch = json.dumps({"spec": {"suspend": resting}})
    kubectl("-n", NAMESPACE, "patch", "cronworkflow", f"{RELEASE}-turn", "--type=merge", "-p", patch)


def outcomes() -> list[Any]:
    return [entry for entry in ledger() if entry["kind"] == "outcome"]


def test_a_changed_pattern_shows_in_the_live_ap(drifted: dict[str, Any], stream: Stream) -> None:
    query = f'rareclass_ap_degraded_ratio{{model="{MODEL}",namespace="{NAMESPACE}"}} == 1'
    stream.while_waiting(lambda: prometheus(query), 10 * MINUTES, query)


def test_our_rule_fires_in_prometheus(drifted: dict[str, Any], stream: Stream) -> None:
    query = f'ALERTS{{alertname="RareclassApDegraded",alertstate="firing",model="{MODEL}",namespace="{NAMESPACE}"}}'
    stream.while_waiting(lambda: prometheus(query), 5 * MINUTES, query)


def test_alertmanager_routes_the_alert_to_the_event_endpoint(drifted: dict[str, Any], stream: Stream) -> None:
    query = urllib.parse.urlencode({"filter": "alertname=RareclassApDegraded"})
    url = f"{address('monitoring', 'alertmanager-operated', 9093)}/api/v2/alerts?{query}"
    found = stream.while_waiting(
        lambda: [each for each in ask(url) if each["labels"]["model"] == MODEL],
        2 * MINUTES,
        "the alert in Alertmanager",
    )
    assert [each["name"] for each in found[0]["receivers"]] == [f"{NAMESPACE}/{RELEASE}/triage"]


def test_alertmanager_itself_starts_the_turn(drifted: dict[str, Any], stream: Stream) -> None:
    causes = ("RareclassApDegraded", "several alerts")

    def new() -> str | None:
        return next(
            (name for name, each in turns().items() if name not in drifted["turns"] and cause(each) in causes), None
        )

    name = stream.while_waiting(new, 5 * MINUTES, "a turn started by Alertmanager")
    assert turns()[name]["metadata"]["labels"]["app.kubernetes.io/instance"] == RELEASE


def test_the_turn_retrains_through_kubeflow(drifted: dict[str, Any], stream: Stream) -> None:
    fired = 0

    def retrained() -> Any:
        """The retrain that the gate admits; right after a change one may still find too few rows, and says so."""
        nonlocal fired
        new = [entry["payload"] for entry in outcomes()[drifted["outcomes"] :]]
        for each in new:
            assert (each["verdict"], each["from_version"]) == ("retrain", drifted["champion"])
            assert each["outcome"] == "challenger" or each["reason"].startswith("gate: "), each["reason"]
        if len(new) > fired and new[-1]["outcome"] == "rejected":  # the alert lasts, and is told again only after hours
            fired = len(new)
            fire(alertname="RareclassApDegraded")
        return next((each for each in new if each["outcome"] == "challenger"), None)

    last = stream.while_waiting(retrained, 25 * MINUTES, "a retrain with a challenger")

    def ended() -> Any:
        new = [each for name, each in turns().items() if name not in drifted["turns"]]
        return [each for each in new if each["status"].get("phase") in ("Succeeded", "Failed", "Error")]

    done = until(lambda: [each for each in ended() if output(each, "kind") == "retrain"], 5 * MINUTES, "the turn's end")
    assert all(each["status"]["phase"] == "Succeeded" and cause(each) != "schedule" for each in done)
    runs = kubeflow("runs", page_size="100", sort_by="created_at desc")["runs"]
    run = next(each for each in runs if each["display_name"] == last["numbers"]["run"])
    assert run["state"] == "SUCCEEDED"


def test_the_challenger_wins_on_live_labels(drifted: dict[str, Any], stream: Stream) -> None:
    suspend(False)
    stream.while_waiting(lambda: champion() != drifted["champion"], 25 * MINUTES, "another champion")
    promoted = [entry for entry in ledger() if entry["kind"] == "promote"][-1]
    assert promoted["payload"]["version"] == champion()
    assert promoted["actor"] == "rareclass-governor"


def test_the_backend_serves_the_new_version(drifted: dict[str, Any], stream: Stream) -> None:
    url = f"{address(NAMESPACE, f'{RELEASE}-serving', 80)}/v2/models/{MODEL}/infer"
    tensors = [
        {"name": n, "shape": [1], "datatype": "BYTES" if n == "kind" else "FP32", "data": ["x" if n == "kind" else 0.0]}
        for n in ("a", "b", "noise", "kind")
    ]
    stream.while_waiting(
        lambda: ask(url, {"inputs": tensors})["model_version"] == champion(),
        10 * MINUTES,
        "the new version behind the Service",
    )

    def rolled() -> bool:
        return pinned(NAMESPACE, RELEASE) == champion() and available(NAMESPACE, RELEASE)

    stream.while_waiting(rolled, 10 * MINUTES, f"{BACKEND} rolled to it")


def test_the_ledger_tells_the_whole_story(drifted: dict[str, Any], stream: Stream) -> None:
    def deployed() -> Any:
        return [e for e in ledger() if e["kind"] == "deploy" and e["payload"]["version"] == champion()]

    smoke = stream.while_waiting(deployed, 10 * MINUTES, "the deployment in the ledger")[-1]
    assert "golden rows agree" in smoke["reason"]
    kinds = [entry["kind"] for entry in ledger()]
    story = iter(kinds)
    assert all(
        kind in story
        for kind in ("register", "promote", "deploy", "repair", "register", "outcome", "promote", "deploy")
    ), kinds


# --- the cheaper branches: the ranking holds, scores or prevalence do not ---------------------------------------------


def repaired(stream: Stream, kind: str) -> Any:
    """The rows flow until a turn of the alert's, the schedule's or ours does that repair; the turn."""
    before = set(turns())
    query = f'rareclass_verdict_ratio{{model="{MODEL}",namespace="{NAMESPACE}",verdict="{kind}"}} == 1'

    def turn() -> Any:
        new = [each for name, each in turns().items() if name not in before]
        if all(each["status"].get("phase") in ("Succeeded", "Failed", "Error") for each in new) and prometheus(query):
            fire()  # what an alert or the schedule would start a moment later
        return next(
            (each for each in new if each["status"].get("phase") == "Succeeded" and output(each, "kind") == kind), None
        )

    return stream.while_waiting(turn, 20 * MINUTES, f"a turn that does a {kind}")


def test_scores_that_are_off_are_recalibrated_into_a_version_that_is_served(
    drifted: dict[str, Any], stream: Stream
) -> None:
    old = champion()
    stream.shift = 0.7
    turn = repaired(stream, "recalibrate")
    assert (nodes(turn)["repair"]["phase"], nodes(turn)["retrain"]["phase"]) == ("Succeeded", "Skipped")
    last = outcomes()[-1]["payload"]
    assert (last["verdict"], last["outcome"], last["from_version"]) == ("recalibrate", "done", old), last["reason"]
    assert champion() == last["to_version"] != old
    assert pinned(NAMESPACE, RELEASE) == champion()


def test_a_moved_prevalence_moves_the_threshold_of_the_running_pods(drifted: dict[str, Any], stream: Stream) -> None:
    version, pods = champion(), got("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/component=serving")["items"]
    stream.negatives = 0.3
    turn = repaired(stream, "rethreshold")
    assert (nodes(turn)["repair"]["phase"], nodes(turn)["retrain"]["phase"]) == ("Succeeded", "Skipped")
    last = outcomes()[-1]["payload"]
    assert (last["verdict"], last["outcome"]) == ("rethreshold", "done"), last["reason"]
    assert champion() == version
    moved = [entry for entry in ledger() if entry["kind"] == "rethreshold"][-1]["payload"]["thresholds"]
    query = f'rareclass_serve_threshold_ratio{{model="{MODEL}",namespace="{NAMESPACE}"}}'
    stream.while_waiting(
        lambda: any(
            abs(float(each["value"][1]) - value) < 1e-6 for each in prometheus(query) for value in moved.values()
        ),
        2 * MINUTES,
        query,
    )
    now = got("-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/component=serving")["items"]
    assert {each["metadata"]["uid"] for each in now} == {each["metadata"]["uid"] for each in pods}


def test_the_workflow_account_can_do_its_work_and_nothing_else(release: None) -> None:
    def may(account: str, verb: str, what: str) -> bool:
        words = [
            "auth",
            "can-i",
            verb,
            what,
            "-n",
            NAMESPACE,
            "--as",
            f"system:serviceaccount:{NAMESPACE}:{RELEASE}-{account}",
        ]
        return subprocess.run(["kubectl", *words], capture_output=True, text=True, check=False).stdout.strip() == "yes"

    objects = {"seldon": "seldondeployments.machinelearning.seldon.io", "kserve": "inferenceservices.serving.kserve.io"}
    assert may("workflow", "patch", f"{objects[BACKEND]}/{RELEASE}")
    assert may("workflow", "create", "workflowtaskresults.argoproj.io")
    assert not may("workflow", "patch", f"{objects[BACKEND]}/other")
    assert not any(
        may("workflow", verb, what) for verb, what in (("get", "secrets"), ("delete", "pods"), ("create", "pods/exec"))
    )
    assert may("events", "create", "workflows.argoproj.io")
    assert not any(
        may("events", verb, what)
        for verb, what in (("get", "secrets"), ("list", "workflows.argoproj.io"), ("get", "pods"))
    )
