"""How this process talks to MLflow: without telemetry, without log noise, with absolute local paths."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from rareclass.errors import ModelError
from rareclass.masking import masked, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow import MlflowClient

SQLITE = "sqlite:///"


def absolute(uri: str) -> str:
    """Make a relative SQLite or folder URI absolute, so that what is written stays valid from another folder."""
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).expanduser().resolve())
    if "://" not in uri and uri != "databricks":
        return str(Path(uri).expanduser().resolve())
    return quoted(uri)


def with_folder(uri: str) -> str:
    """Return the absolute URI; of a SQLite file the folder is there then."""
    full = absolute(uri)
    if full.startswith(SQLITE):
        Path(full.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    return full


def artifact_root(uri: str, artifacts: str | None) -> str | None:
    """Return where a new experiment keeps its artifacts: as configured, else `artifacts` beside a SQLite file,
    else None (the tracking server decides)."""
    if artifacts is not None:
        return artifacts if "://" in artifacts else str(Path(artifacts).expanduser().resolve())
    full = absolute(uri)
    if full.startswith(SQLITE):
        return str(Path(full.removeprefix(SQLITE)).parent / "artifacts")
    return None


def local_path(uri: str) -> Path | None:
    """Return the path behind a plain path or file:// URI, None for anything remote."""
    if uri.startswith("file:"):
        return Path(unquote(urlparse(uri).path))
    return None if ":/" in uri else Path(uri).expanduser().resolve()


def client(uri: str) -> MlflowClient:
    """Open tracking and registry at ``uri``. The first use of a SQLite store creates its tables (some seconds)."""
    quiet()
    import mlflow

    with translate_errors(unusable(uri)):
        full = with_folder(uri)
        return mlflow.MlflowClient(tracking_uri=full, registry_uri=full)


def unusable(uri: str) -> str:
    """What is said of a store that does not answer, its password left out."""
    return f"MLflow at '{masked(uri)}' cannot be used. Set tracking.uri to a reachable store"


def quiet() -> None:
    """Switch telemetry off and keep migration and store messages out of the terminal.

    Must run before mlflow is imported.
    """
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    for name in ("mlflow", "alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", module=r"mlflow\..*")


@contextmanager
def translate_errors(what: str, error: type[ModelError] = ModelError) -> Iterator[None]:
    """Turn MLflow's and the network's errors into one line that begins with ``what``."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as fault:
        raise error(f"{what}: {first_line(fault)}") from fault


def first_line(fault: Any) -> str:
    """The first non-empty line of an error's text, shortened to a terminal's width or two."""
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return (lines[0] if lines else type(fault).__name__)[:240]


def alive(pid: int) -> bool:
    """Whether a process of this machine still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
