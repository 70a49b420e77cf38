"""What must hold of any set of objects that the chart renders, found without a cluster.

Shapes come from the models of the Kubernetes client, which are generated from the API's own schema; references are
looked up among the objects themselves: what refers to something that nobody makes is accepted by an API server and
fails later.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from kubernetes import client

VERSIONS = {
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("v1", "Secret"): "V1Secret",
    ("v1", "Service"): "V1Service",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim",
    ("v1", "Pod"): "V1Pod",
    ("apps/v1", "Deployment"): "V1Deployment",
    ("apps/v1", "StatefulSet"): "V1StatefulSet",
    ("batch/v1", "Job"): "V1Job",
    ("batch/v1", "CronJob"): "V1CronJob",
    ("policy/v1", "PodDisruptionBudget"): "V1PodDisruptionBudget",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "V2HorizontalPodAutoscaler",
    ("networking.k8s.io/v1", "NetworkPolicy"): "V1NetworkPolicy",
    ("networking.k8s.io/v1", "Ingress"): "V1Ingress",
    ("rbac.authorization.k8s.io/v1", "Role"): "V1Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "V1RoleBinding",
}
CUSTOM = {
    "monitoring.coreos.com/v1",
    "monitoring.coreos.com/v1alpha1",
    "machinelearning.seldon.io/v1",
    "argoproj.io/v1alpha1",
    "serving.kserve.io/v1beta1",
    "serving.kserve.io/v1alpha1",
    "gateway.networking.k8s.io/v1",
}
PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def problems(objects: list[dict[str, Any]], space: str, outside: set[str]) -> list[str]:
    """Everything that is wrong with the objects of one release; empty: nothing.

    outside : names of Secrets and ConfigMaps that the values say are there already
    """
    if found := list(_shapes(objects)):
        return found
    return [*_names(objects, space), *_references(objects, space, outside), *_pods(objects), *_selectors(objects)]


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Where, labels and spec of every pod that comes of the objects; those of custom resources too."""
    for each in objects:
        where, spec = f"{each['kind']}/{each['metadata']['name']}", each.get("spec", {})
        if each["kind"] == "Pod":
            yield where, each["metadata"].get("labels", {}), spec
        elif each["kind"] == "CronJob":
            yield _template(where, spec["jobTemplate"]["spec"]["template"])
        elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield _template(where, spec["template"])
        elif each["kind"] == "SeldonDeployment":
            for part in spec["predictors"][0]["componentSpecs"]:
                yield _template(where, part)
        elif each["kind"] == "InferenceService" and "containers" in spec["predictor"]:
            ours = {name: value for name, value in spec["predictor"].items() if name not in KSERVE_FIELDS}
            yield where, {**each["metadata"].get("labels", {}), **spec["predictor"].get("labels", {})}, ours
        elif each["kind"] == "ServingRuntime":
            ours = {
                name: spec[name]
                for name in ("containers", "volumes", "imagePullSecrets", "nodeSelector", "tolerations", "affinity")
                if name in spec
            }
            yield where, spec.get("labels", {}), ours


KSERVE_FIELDS = {
    "minReplicas",
    "maxReplicas",
    "scaleTarget",
    "scaleMetric",
    "labels",
    "annotations",
    "deploymentStrategy",
    "logger",
    "timeout",
}


def _template(where: str, template: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    return where, template.get("metadata", {}).get("labels", {}), template["spec"]


# --- shapes ----------------------------------------------------------------------------------------------------------


def _shapes(objects: list[dict[str, Any]]) -> Iterator[str]:
    for each in objects:
        where = f"{each['kind']}/{each['metadata']['name']}"
        model = VERSIONS.get((each["apiVersion"], each["kind"]))
        if model is not None:
            yield from _shape(each, model, where)
        elif each["apiVersion"] not in CUSTOM:
            yield f"{where}: {each['apiVersion']} is no version that is known here"
        else:
            yield from _shape(each["metadata"], "V1ObjectMeta", f"{where}.metadata")
    for where, _, spec in pod_specs(objects):
        yield from _shape(spec, "V1PodSpec", where)


def _shape(value: Any, kind: str, where: str) -> Iterator[str]:
    if value is None:
        yield f"{where} is null"
    elif match := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            yield f"{where} is no list"
            return
        for number, each in enumerate(value):
            yield from _shape(each, match[1], f"{where}[{number}]")
    elif match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            yield f"{where} is no map"
            return
        for name, each in value.items():
            quantity = match[1] == "str" and isinstance(each, int) and where.endswith((".requests", ".limits"))
            if not quantity:
                yield from _shape(each, match[1], f"{where}.{name}")
    elif kind in PLAIN:
        if not isinstance(value, PLAIN[kind]) or (kind == "int" and isinstance(value, bool)):
            yield f"{where} is {value!r}, not {kind}"
    elif hasattr(client, kind):
        yield from _fields(value, kind, where)


def _fields(value: Any, kind: str, where: str) -> Iterator[str]:
    types, required = _known(kind)
    if not isinstance(value, dict):
        yield f"{where} is no {kind}"
        return
    for name, each in value.items():
        if name not in types:
            yield f"{where}.{name} is no field of {kind}"
        else:
            yield from _shape(each, types[name], f"{where}.{name}")
    for name in sorted(required - value.keys()):
        yield f"{where}.{name} is missing"


@cache
def _known(kind: str) -> tuple[dict[str, str], set[str]]:
    """Fields of one type with their own types, and those that must be there."""
    model: Any = getattr(client, kind)
    types = {model.attribute_map[name]: of for name, of in model.openapi_types.items()}
    needed = {
        model.attribute_map[name]
        for name in model.openapi_types
        if "must not be `None`" in inspect.getsource(getattr(model, name).fset)
    }
    return types, needed


# --- names, references, selectors ------------------------------------------------------------------------------------


def _names(objects: list[dict[str, Any]], space: str) -> Iterator[str]:
    seen = set()
    for each in objects:
        name = (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        if name in seen:
            yield f"{name} is there twice"
        seen.add(name)
        if name[1] not in (None, space):
            yield f"{name} is in another namespace, whose people could read or change it"


def _references(objects: list[dict[str, Any]], space: str, outside: set[str]) -> Iterator[str]:
    made: dict[tuple[str, str], dict[str, Any]] = {
        (each["kind"], each["metadata"]["name"]): each
        for each in objects
        if each["metadata"].get("namespace", space) == space
    }
    for each in objects:
        where = f"{each['kind']}/{each['metadata']['name']}"
        for path, kind, name, key in _mentions(each, where):
            if name in outside and kind in ("Secret", "ConfigMap"):
                continue
            found = made.get((kind, name))
            if found is None:
                yield f"{path} names {kind} {name}, which nobody makes"
            elif key and key not in _keys(found):
                yield f"{path} names key {key} of {kind} {name}, which has {sorted(_keys(found))}"
        for service, port in _addresses(each, space):
            found = made.get(("Service", service))
            if found is not None and port not in [p["port"] for p in found["spec"]["ports"]]:
                yield f"{where} names port {port} of Service {service}"
            elif found is None and re.search(r"-(mlflow|postgresql|monitor|serving)$", service):
                yield f"{where} names Service {service}, which nobody makes"


def _keys(found: dict[str, Any]) -> set[str]:
    token = {"token", "ca.crt"} if found.get("type") == "kubernetes.io/service-account-token" else set()
    return {*found.get("data", {}), *found.get("stringData", {}), *token}


def _mentions(value: Any, path: str) -> Iterator[tuple[str, str, str, str | None]]:
    """(where, kind, name, key) of whatever an object says that another one holds."""
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from _mentions(each, f"{path}[{number}]")
        return
    if not isinstance(value, dict):
        return
    for name, each in value.items():
        here = f"{path}.{name}"
        if name in ("secretKeyRef", "secretRef", "credentials"):
            yield here, "Secret", each["name"], each.get("key")
        elif name in ("configMapKeyRef", "configMapRef") or (
            name == "configMap" and isinstance(each, dict) and "name" in each
        ):
            yield here, "ConfigMap", each["name"], each.get("key")
        elif name == "secret" and isinstance(each, dict):
            yield here, "Secret", each.get("secretName") or each["name"], each.get("key")
        elif name == "secretName" and isinstance(each, str) and not path.endswith(".secret"):
            yield here, "Secret", each, None
        elif name == "persistentVolumeClaim" and isinstance(each, dict):
            yield here, "PersistentVolumeClaim", each["claimName"], None
        elif name == "serviceAccountName":
            yield here, "ServiceAccount", each, None
        elif name == "imagePullSecrets":
            for one in each:
                yield here, "Secret", one["name"], None
        elif name == "workflowTemplateRef":
            yield here, "WorkflowTemplate", each["name"], None
        elif name in ("roleRef", "scaleTargetRef"):
            yield here, each["kind"], each["name"], None
        else:
            yield from _mentions(each, here)


def _addresses(each: dict[str, Any], space: str) -> Iterator[tuple[str, int]]:
    text = str({name: value for name, value in each.items() if name != "metadata"})
    for service, port in re.findall(rf"(?:://|@)([a-z0-9-]+)(?:\.{space})?:(\d+)", text):
        if service != "localhost":
            yield service, int(port)


def _pods(objects: list[dict[str, Any]]) -> Iterator[str]:
    for where, _, spec in pod_specs(objects):
        volumes = [each["name"] for each in spec.get("volumes", [])]
        volumes += _claimed(objects, where)
        if len(set(volumes)) != len(volumes):
            yield f"{where} has a volume twice: {volumes}"
        containers = [*spec.get("initContainers", []), *spec["containers"]]
        mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
        if mounted - set(volumes):
            yield f"{where} mounts {mounted - set(volumes)}, which are no volumes of it"
        for container in containers:
            names = [each["name"] for each in container.get("env", [])]
            if len(set(names)) != len(names):
                yield f"{where} sets a variable twice: {sorted(name for name in names if names.count(name) > 1)}"
            targets = [each["mountPath"] for each in container.get("volumeMounts", [])]
            if len(set(targets)) != len(targets):
                yield f"{where} mounts two volumes at one place: {targets}"


def _claimed(objects: list[dict[str, Any]], where: str) -> list[str]:
    """Volumes that a StatefulSet makes for each of its pods."""
    return [
        claim["metadata"]["name"]
        for each in objects
        if f"{each['kind']}/{each['metadata']['name']}" == where
        for claim in each["spec"].get("volumeClaimTemplates", [])
    ]


def _selectors(objects: list[dict[str, Any]]) -> Iterator[str]:
    """Everything that chooses pods by labels finds some."""
    pods = [labels for _, labels, _ in pod_specs(objects)]
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "Service":
            chosen = spec.get("selector", {})
        elif each["kind"] in ("PodDisruptionBudget", "PodMonitor", "Deployment", "StatefulSet"):
            chosen = spec["selector"]["matchLabels"]
        elif each["kind"] == "NetworkPolicy":
            chosen = spec["podSelector"].get("matchLabels", {})
        else:
            continue
        if chosen.get("app.kubernetes.io/component") == "workflow":
            continue  # Argo makes those pods
        if not any(chosen.items() <= labels.items() for labels in pods):
            yield f"{each['kind']}/{each['metadata']['name']} selects no pod of the release: {chosen}"
