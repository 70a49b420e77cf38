"""Parts of a running cluster are killed under load: who asked is answered, the store has what was answered, turns end.

`cluster kill` of the kit (CLUSTER_KIT) takes parts of the node away; what is a pod is killed through its runtime.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import RELEASE, SPACE, Load, address, got, kubectl, lacking, model, ready, sql, stored, until

missing = lacking("argo", "seldon-system") or ("" if os.environ.get("CLUSTER_KIT") else "CLUSTER_KIT is not set")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(missing), reason=f"needs a cluster: {missing}"),
    pytest.mark.timeout(900),
]
KIT = Path(os.environ.get("CLUSTER_KIT", ""))
PROGRAM = str(KIT / "cluster" if KIT.is_dir() else KIT)
RULES_SECONDS = 10.0
"""Until the node's rules have a pod that became ready."""
SERVING = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=serving"


def kit(*words: str) -> None:
    done = subprocess.run([PROGRAM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def kill_container(namespace: str, selector: str) -> None:
    """SIGKILL for the first container of the first pod, as the kernel does it when memory runs out."""
    pod = got("-n", namespace, "pods", "-l", selector)["items"][0]
    before = pod["status"]["containerStatuses"][0]
    identity = before["containerID"].rpartition("/")[2]
    done = subprocess.run(["ctr", "tasks", "kill", "-s", "KILL", identity], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def restarted() -> bool:
        now = got("-n", namespace, "pod", pod["metadata"]["name"])["status"]["containerStatuses"][0]
        return now["restartCount"] > before["restartCount"] and now["ready"]

    until(restarted, 240, f"another container in {pod['metadata']['name']}")


@pytest.fixture
def load() -> Iterator[Load]:
    ready()
    asking = Load(pause=0.1, ids=True)
    asking.under_way()
    yield asking
    kubectl("-n", SPACE, "delete", "pod", asking.name, "--ignore-not-found", "--wait=false", "--grace-period=0")


def settled(load: Load) -> dict[str, Any]:
    """Stop the clients; the store must come to hold exactly what they were answered, and its labels too."""
    seen = load.stop()
    until(lambda: stored(load.prefix) >= seen["good"], 180, f"{seen['good']} predictions in the store")
    answered = set(seen["ids"])
    assert seen["distinct"] == seen["good"]
    in_store = set(
        sql(f"SELECT string_agg(request_id, '|') FROM predictions WHERE request_id LIKE '{load.prefix}-%'").split("|")
    )
    assert answered <= in_store
    # what was scored and whose answer was lost on the way is in the store too, never the other way round
    assert len(in_store) <= seen["good"] + seen["failed"]
    print({name: value for name, value in seen.items() if name != "ids"}, "stored", len(in_store))
    labels = "\n".join(
        ["request_id,label", *(f"{each},{number % 10 == 0:d}" for number, each in enumerate(sorted(answered)))]
    )
    for new in (len(answered), 0):  # a second time changes nothing
        assert f"{new:,} new" in imported(labels)
    count = f"SELECT count(*) FROM labels WHERE request_id LIKE '{load.prefix}-%'"
    assert int(sql(count)) == len(answered)
    return seen


def imported(labels: str) -> str:
    script = "cat > /tmp/labels.csv && rareclass labels import -c /config/config.yaml /tmp/labels.csv"
    words = ("exec", "-i", f"deploy/{RELEASE}-monitor", "-c", "monitor", "--", "sh", "-c", script)
    return kubectl("-n", SPACE, *words, given=labels + "\n")


@pytest.fixture
def two() -> Iterator[None]:
    """Two servers, as in production."""
    scale(2)
    yield
    scale(1)


def scale(replicas: int) -> None:
    patch = json.dumps([{"op": "replace", "path": "/spec/predictors/0/replicas", "value": replicas}])
    kubectl("-n", SPACE, "patch", "seldondeployment", RELEASE, "--type=json", "-p", patch)
    until(lambda: len(got("-n", SPACE, "pods", "-l", SERVING)["items"]) == replicas, 120, f"{replicas} servers")
    ready()


def test_a_killed_server_costs_what_it_was_answering_and_its_spool_is_shipped(two: None, load: Load) -> None:
    kill_container(SPACE, SERVING)
    seen = settled(load)
    # until its address is taken out, a new connection to it is refused at once; the other one answers
    assert set(seen["bad"]) <= {
        "nobody there",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "RemoteDisconnected",
        "IncompleteRead",
    }, seen["bad"]
    assert seen["failed"] < seen["good"] / 2


def test_a_killed_monitor_costs_no_request(load: Load) -> None:
    kill_container(SPACE, f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=monitor")
    assert settled(load)["failed"] == 0


def test_a_killed_database_costs_no_request_and_no_prediction(load: Load) -> None:
    kill_container(SPACE, f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=postgresql")
    assert settled(load)["failed"] == 0


def test_a_database_that_is_away_for_long_costs_no_request_and_no_prediction(load: Load) -> None:
    kubectl("-n", SPACE, "scale", f"statefulset/{RELEASE}-postgresql", "--replicas=0")
    kubectl("-n", SPACE, "wait", "--for=delete", f"pod/{RELEASE}-postgresql-0", "--timeout=120s")
    kubectl("-n", SPACE, "scale", f"statefulset/{RELEASE}-postgresql", "--replicas=1")
    kubectl("-n", SPACE, "rollout", "status", f"statefulset/{RELEASE}-postgresql", "--timeout=180s")
    assert settled(load)["failed"] == 0


# --- while a turn of the loop is at work -----------------------------------------------------------------------------


def turn() -> str:
    """Start a turn by hand; return its name once a step of it is at work."""
    name = f"{RELEASE}-fault-{uuid.uuid4().hex[:6]}"
    spec = {"workflowTemplateRef": {"name": f"{RELEASE}-turn"}}
    workflow = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": spec,
    }
    kubectl("create", "-f", "-", given=json.dumps(workflow))
    until(lambda: steps(name), 120, f"a step of {name}")
    return name


def steps(name: str) -> dict[str, Any]:
    nodes = got("-n", SPACE, "workflow", name).get("status", {}).get("nodes", {})
    return {each["displayName"]: each for each in nodes.values() if each["type"] == "Pod"}


def ends_well(name: str) -> None:
    def phase() -> str:
        found = got("-n", SPACE, "workflow", name)["status"].get("phase", "")
        return found if found in ("Succeeded", "Failed", "Error") else ""

    assert until(phase, 600, f"the end of {name}") == "Succeeded"
    # a step that was killed with its node is tried again: triage(1)
    done = {name.partition("(")[0] for name, each in steps(name).items() if each["phase"] == "Succeeded"}
    assert {"triage", "deploy"} <= done, done


def test_a_killed_argo_controller_resumes_the_turn(load: Load) -> None:
    name = turn()
    kill_container("argo", "app=workflow-controller")
    ends_well(name)
    assert settled(load)["failed"] == 0


def node_ready() -> bool:
    asked = ["kubectl", "get", "nodes", "-o", "json", "--request-timeout=5s"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        return False
    conditions = {each["type"]: each["status"] for each in json.loads(done.stdout)["items"][0]["status"]["conditions"]}
    return conditions["Ready"] == "True"


@pytest.fixture
def answers() -> Callable[[], None]:
    """Asks the Service a thousand times; its address is found while the API server is there."""
    url = f"{address(SPACE, f'{RELEASE}-serving', 80)}/v2/models/{model()}"

    def ask() -> None:
        for _ in range(1000):
            with urllib.request.urlopen(url, timeout=20) as answer:
                assert json.load(answer)["name"] == model()

    return ask


def test_a_killed_kubelet_costs_at_most_a_moment_when_it_is_back_and_the_turn_resumes(
    load: Load, answers: Callable[[], None]
) -> None:
    name = turn()
    kit("kill", "kubelet")
    try:
        answers()
    finally:
        back = time.time()
        kit("start", "kubelet")
    until(node_ready, 120, "the node ready again")
    ready()
    probed = time.time()
    ends_well(name)
    seen = settled(load)
    # a kubelet that is back calls its pods unready until it has probed them once: for that moment nobody is listed
    assert set(seen["bad"]) <= {"nobody there", "ConnectionRefusedError"}, seen["bad"]
    if seen["failed"]:  # while it was away nobody was refused, nor once its pods were probed
        first, last = seen["between"]
        assert back <= first, f"{back - first:.1f} s before the kubelet was back"
        assert last <= probed + RULES_SECONDS, f"{last - probed:.1f} s after the servers were ready"


def test_a_killed_etcd_costs_no_request_and_the_turn_resumes(load: Load, answers: Callable[[], None]) -> None:
    name = turn()
    kit("kill", "etcd")
    try:
        answers()
        asked = ["kubectl", "get", "nodes", "--request-timeout=3s"]
        assert subprocess.run(asked, capture_output=True, check=False).returncode, "etcd was to be away"
    finally:
        kit("start", "etcd")
    until(node_ready, 180, "the API server answers again")
    ends_well(name)
    assert settled(load)["failed"] == 0
