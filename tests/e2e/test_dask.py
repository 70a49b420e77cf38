"""Steps of a pipeline that get workers from Dask's operator, lose one on the way, and find what one process finds."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube import KIT, RELEASE, ROOT, SPACE, got, kubectl, kubeflow_settings, lacking, until

STEPS = "kubeflow"
MODEL = "flights-on-workers"
OURS = ("-l", "app.kubernetes.io/name=rareclass,app.kubernetes.io/component=dask")
SMALL = {"rounds": 60, "eta": 0.2, "max_bin": 64}
CANDIDATES = [
    {"learner": "xgboost", "params": SMALL},
    {"learner": "xgboost", "params": {**SMALL, "max_depth": 8}},
    {"learner": "logistic_regression"},
    {"learner": "xgboost", "params": SMALL, "resample": [{"name": "random_under", "ratio": 5.0}]},
]
AT_WORK = 12.0
"""Seconds after which workers that are there have something to do."""
SAME = ("data_hash", "test_rows", "ap", "selected", "verdict")
"""What the ledger's line of a registration says of rows, figures and verdict."""

missing = lacking(STEPS, "dask-operator", SPACE)
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing), reason=f"needs a cluster: {missing}"),
    pytest.mark.timeout(2400),
]


def configuration(**compute: Any) -> dict[str, Any]:
    found = yaml.safe_load(Path(KIT).read_text(encoding="utf-8"))["config"]
    return {
        **found,
        "name": MODEL,
        # counted, so that nothing depends on how fast this node is today
        "search": {"candidates": CANDIDATES, "trials": len(CANDIDATES) + 1, "tune": False, "ensemble": "none"},
        "compute": {**found["compute"], "threads": 1, **compute},
    }


def rareclass(*words: str) -> str:
    command = [str(ROOT / ".venv/bin/rareclass"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2000)
    assert done.returncode == 0, done.stderr
    return done.stdout


def registered(history: str) -> dict[str, Any]:
    lines = [entry for entry in json.loads(history) if entry["kind"] == "register"]
    return {name: lines[-1]["payload"][name] for name in SAME}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process on this machine registers."""
    folder = tmp_path_factory.mktemp("alone")
    own = {
        "store": {"url": f"sqlite:///{folder}/store.db"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    file = folder / "config.json"
    file.write_text(json.dumps({**configuration(), **own}), encoding="utf-8")
    rareclass("run", "-c", str(file), "--out", str(folder / "out"))
    return registered(rareclass("history", "-c", str(file), "--json"))


def test_a_killed_worker_costs_time_and_the_verdict_is_that_of_one_process(
    alone: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    workers = {"engine": "dask", "dask": {"workers": 2}}
    file.write_text(json.dumps({**configuration(**workers), "cluster": kubeflow_settings()}), encoding="utf-8")
    command = [str(ROOT / ".venv/bin/rareclass"), "submit", "-c", str(file)]
    with (tmp_path / "said").open("w+") as said:
        run = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        seen: set[str] = set()
        killed: set[str] = set()
        together: dict[str, float] = {}

        def ended() -> bool:
            pods = got("-n", STEPS, "pods", *OURS)["items"]
            for pod in pods:
                assert_hardened(pod)
                seen.add(pod["metadata"]["name"])
            for name, both in pairs(pods).items():
                began = together.setdefault(name, time.monotonic())
                if name not in killed and time.monotonic() - began > AT_WORK:  # one of each step
                    kubectl("-n", STEPS, "delete", "pod", both[0], "--grace-period=0", "--force", "--wait=false")
                    killed.add(name)
            return run.poll() is not None

        try:
            until(ended, 2200, "the end of the run")
        finally:
            run.kill()
        said.seek(0)
        assert run.returncode == 0, said.read()
    assert seen
    assert killed
    words = ("history", "-c", "/config/config.yaml", "--set", f"name={MODEL}", "--json")
    history = kubectl("-n", SPACE, "exec", f"deploy/{RELEASE}-monitor", "-c", "monitor", "--", "rareclass", *words)
    assert registered(history) == alone
    until(lambda: not got("-n", STEPS, "daskclusters")["items"], 60, "every DaskCluster is gone")
    until(lambda: not got("-n", STEPS, "pods", *OURS)["items"], 120, "every worker is gone")
    assert not [
        each
        for each in got("-n", STEPS, "secrets")["items"]
        if each["metadata"]["name"].startswith("rareclass-") and "ca-file" in each["data"]
    ]


def assert_hardened(pod: Any) -> None:
    """A pod that helps a step is as a restricted namespace asks, and holds no key but by reference."""
    [container] = pod["spec"]["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert security["runAsNonRoot"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert "PRIVATE KEY" not in json.dumps(pod)


def pairs(pods: list[Any]) -> dict[str, list[str]]:
    """Return cluster -> its workers, of those that have both."""
    found: dict[str, list[str]] = {}
    for pod in pods:
        labels = pod["metadata"]["labels"]
        if labels["dask.org/component"] == "worker" and pod["status"]["phase"] == "Running":
            found.setdefault(labels["dask.org/cluster-name"], []).append(pod["metadata"]["name"])
    return {name: sorted(workers) for name, workers in found.items() if len(workers) == 2}


def test_a_cluster_whose_step_is_gone_goes_too() -> None:
    """Its owner is the step's pod, so that nobody has to be alive to remove it."""
    owner = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "step-that-ends", "namespace": STEPS},
        "spec": {"containers": [{"name": "main", "image": "rareclass/pipeline:none", "imagePullPolicy": "Never"}]},
    }
    kubectl("apply", "-f", "-", given=json.dumps(owner))
    try:
        orphaned_by(got("-n", STEPS, "pod", "step-that-ends"))
    finally:
        kubectl("-n", STEPS, "delete", "pod", "step-that-ends", "--grace-period=0", "--force", "--ignore-not-found")


def orphaned_by(own: Any) -> None:
    from rareclass.adapters.cluster.dask import DaskPods, manifest, secret
    from rareclass.adapters.dask_engine import certificate

    tls = certificate()
    pods = DaskPods("rareclass/pipeline:none", 1, "100m", "256Mi")
    made = json.loads(
        kubectl("-n", STEPS, "create", "-o", "json", "-f", "-", given=json.dumps(manifest("orphan", pods, own, tls)))
    )
    kubectl("-n", STEPS, "create", "-f", "-", given=json.dumps(secret("orphan", made, tls)))
    until(lambda: "orphan-scheduler" in kubectl("-n", STEPS, "get", "deployments"), 60, "the operator takes it up")
    kubectl("-n", STEPS, "delete", "pod", own["metadata"]["name"], "--grace-period=0", "--force")
    for kind, name in (("daskcluster", "orphan"), ("secret", "orphan"), ("deployment", "orphan-scheduler")):
        until(lambda k=kind, n=name: "NotFound" in kubectl("-n", STEPS, "get", k, n, check=False), 120, f"no {kind}")
