"""MLflow's server behind a token: a real process, asked as its clients and browsers ask."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rareclass.adapters import mlflow_gate
from rareclass.errors import ConfigError

TOKEN = "0123456789abcdef"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_TOKEN": TOKEN,
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/m.db",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "a"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", "rareclass.adapters.mlflow_gate:create_app", "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "running on" in line:
            break
    else:
        raise AssertionError("".join(seen))
    yield seen[-1].split("running on ")[1].split()[0]
    process.terminate()
    process.wait(30)


def asked(url: str, authorization: str | None = None) -> int:
    headers = {} if authorization is None else {"Authorization": authorization}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def test_without_the_token_only_health_is_answered(server: str) -> None:
    search = f"{server}/api/2.0/mlflow/experiments/search?max_results=1"
    for wrong in (
        None,
        "Bearer",
        "Bearer x",
        f"Bearer {TOKEN}x",
        basic("admin:x"),
        "Basic !",
        f"Digest {TOKEN}",
        "Bearer " + TOKEN[:-1],
    ):
        assert asked(search, wrong) == 401, wrong
        assert asked(f"{server}/", wrong) == 401
        assert asked(f"{server}/graphql", wrong) == 401
        assert asked(f"{server}/api/2.0/mlflow-artifacts/artifacts?path=", wrong) == 401
    assert asked(f"{server}/health") == 200
    assert asked(f"{server}/health/../api/2.0/mlflow/experiments/search") == 401


def test_clients_show_it_in_their_environment_and_browsers_as_a_password(server: str) -> None:
    search = f"{server}/api/2.0/mlflow/experiments/search?max_results=1"
    assert asked(search, f"Bearer {TOKEN}") == 200
    assert asked(search, basic(f"anybody:{TOKEN}")) == 200
    script = f"import mlflow; mlflow.set_tracking_uri({server!r}); print(mlflow.create_experiment('e'))"
    done = {}
    for token in (TOKEN, "wrong"):
        environment = {**os.environ, "MLFLOW_TRACKING_TOKEN": token, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        done[token] = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done[TOKEN].returncode == 0, done[TOKEN].stderr
    assert "set MLFLOW_TRACKING_TOKEN" in done["wrong"].stderr


def test_a_server_without_a_token_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for empty, says in (("", "is empty"), (" \n", "holds only space")):
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", empty)
        with pytest.raises(ConfigError, match=f"MLFLOW_TRACKING_TOKEN {says}"):
            mlflow_gate.create_app()


def test_mlflow_finds_it_by_the_name_that_the_chart_gives() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["mlflow.app"] == {"rareclass-token": "rareclass.adapters.mlflow_gate:create_app"}
    assert "--app-name=rareclass-token" in (ROOT / "helm/rareclass/templates/mlflow.yaml").read_text(encoding="utf-8")
