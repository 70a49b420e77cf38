"""What all that speaks to the API server of Kubernetes needs: whose namespace it is in, and what an error says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def own_namespace(config: Any) -> str:
    """Return the namespace of this pod, else that of the present context. config : the module of the client"""
    if _ACCOUNT.is_file():
        return _ACCOUNT.read_text(encoding="utf-8").strip()
    contexts: Sequence[Any] = config.list_kube_config_contexts()
    return str(contexts[1].get("context", {}).get("namespace") or "default")


def reason_of(error: BaseException) -> str:
    """Return what the API server says of an error, else the error, in one line."""
    status, reason = getattr(error, "status", None), getattr(error, "reason", None)
    said = f"{status} {reason}" if status else str(error)
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        said = str(json.loads(error.body)["message"])  # type: ignore[attr-defined]
    return " ".join(said.split())[:300]
