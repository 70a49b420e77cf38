"""Workers of Dask on Kubernetes: a DaskCluster that its operator turns into pods, gone with the step that wanted it."""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from rareclass.adapters.cluster.api import own_namespace, reason_of
from rareclass.core.engines import ONE_JOB
from rareclass.errors import EngineError, MissingExtraError, RareclassError
from rareclass.retry import poll_until_deadline

GROUP, VERSION, PLURAL = "kubernetes.dask.org", "v1", "daskclusters"
IDLE_SECONDS = 600
"""How long a cluster that nobody uses is kept: the step that wanted it was killed and could not remove it."""
STARTING_SECONDS = 300.0
PAUSE_SECONDS = 1.0
_NOT_OURS = ("KFP_", "ARGO_", "KUBERNETES_", "HOSTNAME")
"""Beginnings of variables that belong to one step and not to what helps it."""
_COMM, _HTTP = 8786, 8787
_ROUTES = '["distributed.http.scheduler.api", "distributed.http.health"]'
_WRITABLE = "/tmp"  # noqa: S108 (of the pod: an empty volume)
_HARDENED = {
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclass(frozen=True)
class DaskPods:
    """What a DaskCluster is made of.

    image : of scheduler and workers, with this package in it
    workers : how many pods
    cpu, memory : request of each worker as Kubernetes writes it, memory also as its limit
    threads : of each worker; None: as many as it requests processors
    """

    image: str
    workers: int
    cpu: str
    memory: str
    threads: int | None = None

    @property
    def threads_each(self) -> int:
        """Threads of each worker: those asked for, else a processor of the request each, at least one."""
        processors = float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)
        return self.threads or max(1, math.ceil(processors))


@contextlib.contextmanager
def dask_cluster(pods: DaskPods, tls: Mapping[str, str]) -> Iterator[str]:
    """Ask the operator for a cluster in this pod's namespace; yield the address of its scheduler, remove it at the end.

    It belongs to this pod, so that it goes with it, and to nobody after ``IDLE_SECONDS`` without work.

    Parameters
    ----------
    pods : what is asked for
    tls : certificate and key as settings of Dask (``ca-file``, ``scheduler.cert`` ...), given to the pods in a Secret

    Raises
    ------
    EngineError
        Outside of a pod, where there is no operator, or when it makes nothing within ``STARTING_SECONDS``.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise MissingExtraError("kubernetes", "pipelines", "compute.dask.image") from None
    try:
        config.load_incluster_config()
    except config.ConfigException:
        raise EngineError(
            "compute.dask.image starts workers beside a pod of Kubernetes, and this process is in none. "
            "Set compute.dask.scheduler, or leave image out for workers on this machine"
        ) from None
    space = own_namespace(config)
    objects, core = client.CustomObjectsApi(), client.CoreV1Api()
    with _translated("this step's own pod cannot be read"):
        own = client.ApiClient().sanitize_for_serialization(core.read_namespaced_pod(_pod_name(), space))
    name = f"rareclass-{uuid.uuid4().hex[:12]}"
    with _translated(f"DaskCluster {space}/{name} cannot be made", not_found=_NO_OPERATOR):
        made = objects.create_namespaced_custom_object(GROUP, VERSION, space, PLURAL, manifest(name, pods, own, tls))
    try:
        with _translated(f"the Secret of DaskCluster {space}/{name} cannot be made"):
            core.create_namespaced_secret(space, secret(name, made, tls))
        _until_taken_up(objects, space, name)
        yield f"tls://{name}-scheduler.{space}:{_COMM}"
    finally:
        with contextlib.suppress(Exception):  # it goes by itself when it is idle
            objects.delete_namespaced_custom_object(GROUP, VERSION, space, PLURAL, name)


def manifest(name: str, pods: DaskPods, own: Mapping[str, Any], tls: Mapping[str, str]) -> dict[str, Any]:
    """Return the DaskCluster; scheduler and workers see the variables of the pod ``own``, and nothing else of it."""
    variables = [*_inherited(own), *_certificates(name, tls)]
    workload = {
        "image": pods.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": _HARDENED,
        "volumeMounts": [{"name": "tmp", "mountPath": _WRITABLE}],
    }
    around = {
        "automountServiceAccountToken": False,
        "imagePullSecrets": own["spec"].get("imagePullSecrets") or [],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    scheduler = {
        **workload,
        "name": "scheduler",
        "command": ["python", "-m", "distributed.cli.dask_scheduler"],
        "args": ["--protocol", "tls", "--port", str(_COMM), "--dashboard-address", f":{_HTTP}"],
        # what the operator asks to know that nobody works; all that matters speaks TLS
        "env": [*variables, {"name": "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES", "value": _ROUTES}],
        "ports": [{"name": "tcp-comm", "containerPort": _COMM}, {"name": "http-dashboard", "containerPort": _HTTP}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http-dashboard"}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": pods.memory}},
    }
    threads = str(pods.threads_each)
    worker = {
        **workload,
        "name": "worker",
        "command": ["python", "-m", "distributed.cli.dask_worker"],
        "args": [
            f"tls://{name}-scheduler:{_COMM}",
            "--name",
            "$(DASK_WORKER_NAME)",
            "--nthreads",
            threads,
            "--no-dashboard",
            "--resources",
            f"{ONE_JOB}=1",
            "--local-directory",
            _WRITABLE,
        ],
        "env": [
            {"name": "OMP_NUM_THREADS", "value": threads},
            {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
            {"name": "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES", "value": "[]"},
            *variables,
        ],
        "resources": {"requests": {"cpu": pods.cpu, "memory": pods.memory}, "limits": {"memory": pods.memory}},
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "DaskCluster",
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": "rareclass", "app.kubernetes.io/component": "dask"},
            "ownerReferences": [_owner(own, "v1", "Pod")],
        },
        "spec": {
            "idleTimeout": IDLE_SECONDS,
            "worker": {"replicas": pods.workers, "spec": {**around, "containers": [worker]}},
            "scheduler": {
                "spec": {**around, "containers": [scheduler]},
                "service": {
                    "type": "ClusterIP",
                    # or a busy scheduler that misses a probe would take its address away from its own workers
                    "publishNotReadyAddresses": True,
                    "selector": {"dask.org/cluster-name": name, "dask.org/component": "scheduler"},
                    "ports": [
                        {"name": "tcp-comm", "protocol": "TCP", "port": _COMM, "targetPort": "tcp-comm"},
                        {"name": "http-dashboard", "protocol": "TCP", "port": _HTTP, "targetPort": "http-dashboard"},
                    ],
                },
            },
        },
    }


def secret(name: str, cluster: Mapping[str, Any], tls: Mapping[str, str]) -> dict[str, Any]:
    """Return the Secret with the certificate of one cluster, which goes with it."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "ownerReferences": [_owner(cluster, f"{GROUP}/{VERSION}", "DaskCluster")]},
        "stringData": dict(tls),
    }


def _certificates(name: str, tls: Mapping[str, str]) -> list[dict[str, Any]]:
    """The settings of Dask as variables whose values stay in the Secret."""
    return [
        {
            "name": "DASK_DISTRIBUTED__COMM__TLS__" + setting.upper().replace(".", "__").replace("-", "_"),
            "valueFrom": {"secretKeyRef": {"name": name, "key": setting}},
        }
        for setting in sorted(tls)
    ] + [{"name": "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION", "value": "true"}]


def _inherited(own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the step's container was given: how to reach the data, as values or as references to Secrets."""
    containers = own["spec"]["containers"]
    main = next((each for each in containers if each["name"] == "main"), containers[0])
    return [each for each in main.get("env") or [] if not each["name"].startswith(_NOT_OURS)]


def _owner(owner: Mapping[str, Any], version: str, kind: str) -> dict[str, Any]:
    named = owner["metadata"]
    return {"apiVersion": version, "kind": kind, "name": named["name"], "uid": named["uid"]}


def _pod_name() -> str:
    return os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME", "")


def _until_taken_up(objects: Any, space: str, name: str) -> None:
    """Wait until the operator has made the parts of a cluster; whether they answer is seen by who connects to them.

    Its phase is no sign of that: "Pending" is what it may say for good (operator 2026.3, a Service without a balancer).
    """

    def ask() -> str:
        with _translated(f"DaskCluster {space}/{name} cannot be read"):
            found = objects.get_namespaced_custom_object(GROUP, VERSION, space, PLURAL, name)
        return str((found.get("status") or {}).get("phase", ""))

    phase = poll_until_deadline(
        ask, STARTING_SECONDS, while_=lambda phase: phase not in (*_MADE, "Error"), pause=PAUSE_SECONDS
    )
    if phase not in _MADE:
        said = f"it says {phase}" if phase else "nobody takes it up: is the operator running?"
        raise EngineError(f"DaskCluster {space}/{name} did not start; {said}")


_MADE = ("Pending", "Running")
_NO_OPERATOR = "this cluster does not know its kind: install the Dask operator (manifests/dask-operator)"


@contextlib.contextmanager
def _translated(what: str, *, not_found: str = "") -> Iterator[None]:
    """Say in one line what failed and why. not_found : why, where the API server knows nothing of that name"""
    try:
        yield
    except RareclassError:
        raise
    except Exception as error:
        status, why = getattr(error, "status", None), reason_of(error)
        if status == HTTPStatus.NOT_FOUND and not_found:
            why = not_found
        elif status == HTTPStatus.FORBIDDEN:
            why = "this step's account may not: give it the role of manifests/dask-operator"
        raise EngineError(f"{what}: {why}. Or set compute.dask.scheduler") from None
