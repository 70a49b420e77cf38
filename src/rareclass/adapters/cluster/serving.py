"""The objects that serve a model: which version they are pinned to, whether every pod has it, what they answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from rareclass.adapters.cluster.api import own_namespace, reason_of
from rareclass.errors import MissingExtraError, ModelError, RareclassError, UnreachableError, unknown

VERSION_ANNOTATION = "rareclass.io/version"
PAUSE_SECONDS = 2.0
_AWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
_BROKEN = ("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "CreateContainerConfigError", "InvalidImageName")


class RolloutFailedError(RareclassError):
    """The pods of a version did not become ready."""

    exit_code = 1


@dataclass(frozen=True)
class Rollout:
    """How far a rollout is. done: every pod that there should be has the version and is ready, no other pod is left."""

    done: bool
    text: str


@dataclass(frozen=True)
class Kind:
    """One kind of object that serves.

    resource : group, version and plural of its API
    annotated : where in it the annotations stand that reach the pods
    label, suffix : how its Deployments are found: by a label whose value is the object's name, or by their own name,
        which is the object's and a suffix; neither: it is the workload itself
    """

    resource: tuple[str, str, str]
    annotated: tuple[str, ...]
    label: str = ""
    suffix: str = ""


KINDS: Mapping[str, Kind] = {
    # Seldon copies spec.annotations to its pods, and not those of the object itself (seen with operator 1.16)
    "seldon": Kind(("machinelearning.seldon.io", "v1", "seldondeployments"), ("spec",), label="seldon-deployment-id"),
    "kserve": Kind(("serving.kserve.io", "v1beta1", "inferenceservices"), ("metadata",), suffix="-predictor"),
    "deployment": Kind(("apps", "v1", "deployments"), ("spec", "template", "metadata")),
    "statefulset": Kind(("apps", "v1", "statefulsets"), ("spec", "template", "metadata")),
}
DEPLOYMENTS = KINDS["deployment"].resource


class Workload:
    """One object that serves: a SeldonDeployment, an InferenceService, a Deployment or a StatefulSet.

    The version is an annotation of its pods that the server reads as RARECLASS_VERSION: changing it is a rolling
    update.
    """

    def __init__(self, kind: str, name: str, namespace: str | None = None) -> None:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS, "--kind")
        try:
            from kubernetes import client, config
        except ImportError:
            raise MissingExtraError("kubernetes", "pipelines", "deploy") from None
        with self._translate_errors("no Kubernetes is configured"):
            config.load_config()
        self.kind, self.name = kind, name
        self.namespace = namespace or own_namespace(config)
        self._api = KINDS[kind]
        self._core, self._objects = client.CoreV1Api(), client.CustomObjectsApi()

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    def version(self) -> str | None:
        """Return the version it is pinned to; None: whatever the alias says. Raises ModelError when it is not there."""
        where: Any = self._read()
        for part in self._api.annotated:
            where = where.get(part) or {}
        value = (where.get("annotations") or {}).get(VERSION_ANNOTATION)
        return value or None

    def point(self, version: str | None) -> None:
        """Pin it to a version; None takes the pin away."""
        change: dict[str, Any] = {"annotations": {VERSION_ANNOTATION: version}}
        for part in reversed(self._api.annotated):
            change = {part: change}
        group, number, plural = self._api.resource
        with self._translate_errors(f"{self} cannot be changed"):
            self._objects.patch_namespaced_custom_object(group, number, self.namespace, plural, self.name, change)

    def wait(
        self,
        version: str | None,
        seconds: float,
        progress: Callable[[str, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wait until every pod has the version and is ready: it has scored its golden rows.

        Raises RolloutFailedError.
        """
        end, said = clock() + seconds, ""
        while True:
            now = self.rollout(version)
            if now.text != said:
                said = now.text
                progress("rollout", said)
            if now.done:
                return
            if clock() > end:
                raise RolloutFailedError(
                    f"{self} did not get version {version} ready in {seconds:g} s: {said}{self._why()}"
                )
            sleep(PAUSE_SECONDS)

    def rollout(self, version: str | None) -> Rollout:
        """Return how far the rollout of a version is."""
        objects = self._workloads()
        if not objects:
            return Rollout(False, "no workload yet")
        parts = []
        done = True
        for each in objects:
            spec, status = each["spec"], each.get("status") or {}
            pinned = (spec["template"]["metadata"].get("annotations") or {}).get(VERSION_ANNOTATION) or None
            wanted = int(spec.get("replicas", 1))
            ready, total = int(status.get("updatedReplicas") or 0), int(status.get("replicas") or 0)
            up = int(status.get("readyReplicas") or 0)
            known = int(status.get("observedGeneration") or 0) >= int(each["metadata"]["generation"])
            done = done and known and pinned == version and ready == wanted == total == up
            parts.append(f"{up}/{wanted} ready, {ready} of version {version}" if pinned == version else "not begun")
        return Rollout(done, "; ".join(parts))

    def _workloads(self) -> list[dict[str, Any]]:
        """The Deployments or the StatefulSet whose pods answer; none while nobody has made them yet."""
        if self._api.suffix:
            made = self._read(DEPLOYMENTS, f"{self.name}{self._api.suffix}", optional=True)
            return [made] if made else []
        if not self._api.label:
            return [self._read()]
        group, number, plural = DEPLOYMENTS
        with self._translate_errors(f"{self} cannot be read"):
            found = self._objects.list_namespaced_custom_object(
                group, number, self.namespace, plural, label_selector=f"{self._api.label}={self.name}"
            )
        return list(found["items"])

    def _read(
        self, resource: tuple[str, str, str] | None = None, name: str | None = None, *, optional: bool = False
    ) -> dict[str, Any]:
        """One object as it stands in the API, by default the one that serves; with ``optional`` empty when it is not
        there.
        """
        group, number, plural = resource or self._api.resource
        with self._translate_errors(f"{self} cannot be read"):
            try:
                found: dict[str, Any] = self._objects.get_namespaced_custom_object(
                    group, number, self.namespace, plural, name or self.name
                )
            except Exception as error:
                if optional and getattr(error, "status", None) == HTTPStatus.NOT_FOUND:
                    return {}
                raise
            return found

    def _why(self) -> str:
        """What the pods that are not ready say."""
        said = set()
        with contextlib.suppress(Exception):
            for workload in self._workloads():
                labels = ",".join(
                    f"{key}={value}" for key, value in workload["spec"]["selector"]["matchLabels"].items()
                )
                for pod in self._core.list_namespaced_pod(self.namespace, label_selector=labels).items:
                    for container in pod.status.container_statuses or []:
                        waiting = container.state.waiting
                        if waiting is not None and waiting.reason in _BROKEN:
                            said.add(f"{pod.metadata.name}: {waiting.reason}")
        return f" ({'; '.join(sorted(said))})" if said else ""

    @contextlib.contextmanager
    def _translate_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except RareclassError:
            raise
        except Exception as error:
            raise ModelError(f"{what}: {reason_of(error)}. Look at --kind, --name and --namespace") from error


def ask(url: str, body: Mapping[str, Any] | None = None, *, token: str | None = None, seconds: float = 10) -> Any:
    """Return what a server answers as JSON. Raises ModelError with what it said, UnreachableError where it said
    nothing.
    """
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(  # noqa: S310 (the address is the operator's)
            urllib.request.Request(url, data, headers),  # noqa: S310
            timeout=seconds,
        ) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        kind = UnreachableError if error.code in _AWAY else ModelError
        said = " ".join(error.read(500).decode(errors="replace").split())
        raise kind(f"{url} answered {error.code}: {said}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreachableError(f"{url} does not answer: {error}") from None
