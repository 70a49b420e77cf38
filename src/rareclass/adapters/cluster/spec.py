"""The compiled pipeline as one installation runs it: its image, its resources, its environment, its Secrets."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CACHED = "ingest"
"""The step whose input is outside of the pipeline: cached only when the version of that input is known."""


@dataclass(frozen=True)
class Placement:
    """Where and with what every step runs.

    cpu : request, like 500m;  memory : request and limit, like 4Gi (a step that is over it is killed, not its
        neighbours)
    env : plain environment;  secrets : Secret -> {environment variable: key}
    cache : whether `data_version` says what will be read, so that reading it may be skipped
    user : user and group id of every step, where the backend takes a securityContext; None: the image's
    """

    image: str
    cpu: str
    memory: str
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cache: bool = False
    user: int | None = None


def placed(compiled: Path, placement: Placement) -> str:
    """Return the compiled pipeline with the placement put in, as the YAML that Kubeflow takes.

    Secrets are references: their values never enter the pipeline, its parameters or its runs.
    """
    import yaml

    spec = next(yaml.safe_load_all(compiled.read_text(encoding="utf-8")))
    executors = spec["deploymentSpec"]["executors"]
    for executor in executors.values():
        container = executor["container"]
        container["image"] = placement.image
        container["resources"] = _resources(placement)
        if placement.env:
            container["env"] = [{"name": name, "value": value} for name, value in sorted(placement.env.items())]
    if placement.cache:
        spec["root"]["dag"]["tasks"][CACHED]["cachingOptions"] = {"enableCache": True}
    step = {"imagePullPolicy": "IfNotPresent", **_secrets(placement), **_security(placement)}
    platform = dict.fromkeys(sorted(executors), step)
    # copies, so that YAML writes no anchors: Kubeflow reads the file as JSON
    documents = [spec, {"platforms": {"kubernetes": {"deploymentSpec": {"executors": copy.deepcopy(platform)}}}}]
    return "---\n".join(_Plain.dump(each) for each in documents)


def digest(text: str) -> str:
    """Return the name of a pipeline version: its content, so that the same pipeline is uploaded once."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _resources(placement: Placement) -> dict[str, Any]:
    return {
        "resourceCpuRequest": placement.cpu,
        "resourceMemoryLimit": placement.memory,
        "resourceMemoryRequest": placement.memory,
    }


def _secrets(placement: Placement) -> dict[str, Any]:
    if not placement.secrets:
        return {}
    return {
        "secretAsEnv": [
            {
                "secretName": secret,
                "secretNameParameter": {"runtimeValue": {"constant": secret}},
                "keyToEnv": [{"envVar": name, "secretKey": key} for name, key in sorted(variables.items())],
            }
            for secret, variables in sorted(placement.secrets.items())
        ]
    }


def _security(placement: Placement) -> dict[str, Any]:
    """What a task may ask for; capabilities, privileges and seccomp are the backend's own defaults then."""
    if placement.user is None:
        return {}
    # int64 in the backend's message, which JSON writes as text
    user = str(placement.user)
    return {"securityContext": {"runAsUser": user, "runAsGroup": user, "runAsNonRoot": True}}


class _Plain:
    @staticmethod
    def dump(value: Any) -> str:
        import yaml

        class Dumper(yaml.SafeDumper):
            def ignore_aliases(self, data: Any) -> bool:
                return True

        return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, width=10_000))
