"""What a step asks Dask's operator for; tests/e2e/test_dask.py has it done by a real one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rareclass.adapters.cluster import DaskPods, dask_cluster
from rareclass.adapters.cluster.dask import manifest, secret
from rareclass.adapters.dask_engine import certificate
from rareclass.errors import EngineError

PODS = DaskPods("registry/pipeline:1", 3, "1500m", "2Gi")
BY_REFERENCE = {"name": "RARECLASS_STORE_URL", "valueFrom": {"secretKeyRef": {"name": "s", "key": "url"}}}
STEP: dict[str, Any] = {
    "metadata": {"name": "step-1", "uid": "u1"},
    "spec": {
        "containers": [
            {"name": "wait", "env": [{"name": "ARGO_POD", "value": "x"}]},
            {"name": "main", "env": [{"name": "AWS_REGION", "value": "eu"}, BY_REFERENCE, {"name": "KFP_X"}]},
        ]
    },
}


def containers(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [part["spec"]["containers"][0] for part in (made["spec"]["scheduler"], made["spec"]["worker"])]


def test_scheduler_and_workers_see_the_variables_of_the_step_and_keys_by_reference_only() -> None:
    tls = certificate()
    made = manifest("c", PODS, STEP, tls)
    assert "PRIVATE KEY" not in json.dumps(made)
    for container in containers(made):
        variables = {each["name"]: each for each in container["env"]}
        assert variables["AWS_REGION"]["value"] == "eu"
        assert variables["RARECLASS_STORE_URL"] == BY_REFERENCE
        assert not {"ARGO_POD", "KFP_X"} & variables.keys()
        key = variables["DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY"]["valueFrom"]["secretKeyRef"]
        assert (
            "PRIVATE KEY" in secret("c", made | {"metadata": {"name": "c", "uid": "u2"}}, tls)["stringData"][key["key"]]
        )


def test_what_is_started_belongs_to_the_step_and_is_as_a_restricted_namespace_asks() -> None:
    made = manifest("c", PODS, STEP, certificate())
    assert made["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "step-1", "uid": "u1"}]
    assert made["spec"]["idleTimeout"] > 0
    scheduler, worker = containers(made)
    for container in (scheduler, worker):
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert made["spec"]["worker"]["replicas"] == 3
    assert worker["resources"] == {"requests": {"cpu": "1500m", "memory": "2Gi"}, "limits": {"memory": "2Gi"}}
    assert worker["args"][worker["args"].index("--nthreads") + 1] == "2"


def test_outside_of_a_pod_no_workers_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with (
        pytest.raises(EngineError, match=r"this process is in none\. Set compute\.dask\.scheduler"),
        dask_cluster(PODS, {}),
    ):
        pass
