"""MLflow runs: one parent per training, one nested run per candidate; everything is written in batches."""

from __future__ import annotations

import json
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.adapters import _mlflow
from rareclass.core.jsonable import dumps
from rareclass.errors import ModelError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

    from rareclass.config import Config

# Limits of one MLflow batch: more are refused, longer values too.
_METRICS, _PARAMS, _TAGS, _PARAM_LENGTH = 1000, 100, 100, 6000
_OWNER = "rareclass.owner"
SCORES, HELDOUT = "evaluation/test_scores.parquet", "evaluation/heldout_scores.parquet"
CROSS_FITTED = "evaluation/cross_fitted_scores.parquet"


def check_reachable(uri: str) -> None:
    """Raise ModelError when nothing answers at ``uri``; without MLflow, which takes seconds and 80 MiB to import."""
    import requests
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        full = _mlflow.with_folder(uri)
        if full.startswith(("http://", "https://")):
            requests.get(f"{full.rstrip('/')}/health", timeout=30)  # an answer is an answer, whatever it says
        elif full.startswith(("postgresql", "mysql", "mssql")):
            create_engine(full).connect().close()
    except (OSError, SQLAlchemyError) as fault:  # what requests raises is an OSError
        raise ModelError(f"{_mlflow.unusable(uri)}: {_mlflow.first_line(fault)}") from fault


def untouched(uri: str) -> bool:
    """Whether ``uri`` is a SQLite file that nobody has written yet; told without MLflow."""
    full = _mlflow.absolute(uri)
    return full.startswith(_mlflow.SQLITE) and not Path(full.removeprefix(_mlflow.SQLITE)).exists()


class Tracker:
    """One experiment of a tracking store.

    uri : MLflow tracking URI; a relative SQLite path is made absolute
    artifacts : artifact root of a new experiment; default: `artifacts` beside a SQLite store
    """

    def __init__(self, uri: str, experiment: str, artifacts: str | None = None) -> None:
        self.uri = _mlflow.absolute(uri)
        self.experiment = experiment
        self.client: MlflowClient = _mlflow.client(uri)
        self._id = self._experiment_id(artifacts)

    @staticmethod
    def of(config: Config) -> Tracker:
        """Return the experiment that a configuration names; without a name it is called as the model is."""
        return Tracker(config.tracking.uri, config.tracking.experiment or config.name, config.tracking.artifacts)

    def _experiment_id(self, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        with _mlflow.translate_errors(_mlflow.unusable(self.uri)):
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None:
                root = _mlflow.artifact_root(self.uri, artifacts)
                location = root if root is None else f"{root.rstrip('/')}/{self.experiment}"
                try:
                    return str(self.client.create_experiment(self.experiment, artifact_location=location))
                except MlflowException:  # another process created it between the two calls
                    found = self.client.get_experiment_by_name(self.experiment)
                    if found is None:
                        raise
            if found.lifecycle_stage == "deleted":
                raise ModelError(
                    f"experiment '{self.experiment}' was deleted in MLflow. Restore it, or set tracking.experiment to "
                    "another name"
                )
            return str(found.experiment_id)

    def start(
        self, name: str, *, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
    ) -> TrackedRun:
        """Open a parent run; adopts the run that the environment's MLFLOW_RUN_ID names,
        where a pipeline injects one.
        """
        adopted = os.environ.get("MLFLOW_RUN_ID")
        if adopted:
            run = self.run(adopted)
        else:
            run = self._create(name, {})
        run.log(params=params, tags=tags)
        return run

    def _create(self, name: str, tags: Mapping[str, Any]) -> TrackedRun:
        owned = {_OWNER: f"{socket.gethostname()}:{os.getpid()}", **tags}
        with _mlflow.translate_errors(f"no run could be created in MLflow at '{self.uri}'"):
            made = self.client.create_run(
                self._id, run_name=name, tags={key: str(value) for key, value in owned.items()}
            )
        return TrackedRun(self, made.info.run_id, made.info.artifact_uri)

    def run(self, run_id: str) -> TrackedRun:
        """Open an existing run, for example from the next step of a pipeline. Raises ModelError when there is none."""
        with _mlflow.translate_errors(f"run '{run_id}' is not in MLflow at '{self.uri}'"):
            found = self.client.get_run(run_id)
        return TrackedRun(self, found.info.run_id, found.info.artifact_uri)

    def mark_dead_runs_killed(self) -> list[str]:
        """Mark the runs whose process on this machine has died as KILLED; returns their ids."""
        host = socket.gethostname()
        dead = []
        for found in self.client.search_runs([self._id], filter_string="attributes.status = 'RUNNING'"):
            owner, _, pid = found.data.tags.get(_OWNER, "").rpartition(":")
            if owner == host and pid.isdigit() and not _mlflow.alive(int(pid)):
                self.client.set_terminated(found.info.run_id, "KILLED")
                dead.append(found.info.run_id)
        return dead


class TrackedRun:
    """A run that is being written. ``artifact_uri`` is absolute: a path for a local store."""

    def __init__(self, tracker: Tracker, run_id: str, artifact_uri: str) -> None:
        self.tracker = tracker
        self.id = run_id
        local = _mlflow.local_path(artifact_uri)
        self.artifact_uri = str(local) if local is not None else artifact_uri
        self._kinds: dict[str, str] = {}

    @property
    def _client(self) -> MlflowClient:
        return self.tracker.client

    def child(
        self,
        name: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        series: Mapping[str, Sequence[float]] | None = None,
        steps: Sequence[int] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> TrackedRun:
        """Write one candidate as a nested run, complete and closed; returns it for artifacts."""
        run = self.tracker._create(name, {"mlflow.parentRunId": self.id, **(tags or {})})
        run.log(params=params, metrics=metrics)
        if series:
            run.series(series, steps)
        run.end()
        return run

    def log(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float | None] | None = None,
        tags: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        """Write any number of parameters, metrics (missing and non-finite ones are left out) and tags in few requests.

        Raises ValueError for a metric that is a curve of `series`, too.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        self._claim(metrics or {}, "one number")
        self._batch(
            metrics=[
                Metric(_key(key), float(value), now, step)
                for key, value in (metrics or {}).items()
                if value is not None and math.isfinite(value)
            ],
            params=[Param(_key(key), _text(value)) for key, value in _flat(params or {})],
            tags=[RunTag(_key(key), str(value)) for key, value in (tags or {}).items()],
        )

    def series(self, values: Mapping[str, Sequence[float]], steps: Sequence[int] | None = None) -> None:
        """Write one metric per round or epoch: {name: values}, at ``steps`` or at their positions.

        Raises ValueError for a name that `log` has written: MLflow would show the last of the curve in its place.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._claim(values, "a curve")
        self._batch(
            metrics=[
                Metric(_key(key), float(value), now, step)
                for key, each in values.items()
                for step, value in zip(steps or range(len(each)), each, strict=True)
                if math.isfinite(value)
            ]
        )

    def _claim(self, names: Iterable[str], kind: str) -> None:
        """Keep each metric's key for one meaning: MLflow would mix two without a word."""
        for name in map(_key, names):
            if self._kinds.setdefault(name, kind) != kind:
                raise ValueError(f"metric '{name}' of run '{self.id}' is {self._kinds[name]} already, not {kind}")

    def _batch(self, *, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()) -> None:
        with _mlflow.translate_errors(f"run '{self.id}' cannot be written in MLflow at '{self.tracker.uri}'"):
            for at in range(0, len(metrics), _METRICS):
                self._client.log_batch(self.id, metrics=metrics[at : at + _METRICS])
            for at in range(0, len(params), _PARAMS):
                self._client.log_batch(self.id, params=params[at : at + _PARAMS])
            for at in range(0, len(tags), _TAGS):
                self._client.log_batch(self.id, tags=tags[at : at + _TAGS])

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a file with the run."""
        with _mlflow.translate_errors(f"'{path}' cannot be kept with run '{self.id}'"):
            self._client.log_artifact(self.id, str(path), folder)

    def artifacts(self, path: str | Path, folder: str | None = None) -> None:
        """Keep a folder's content with the run."""
        with _mlflow.translate_errors(f"'{path}' cannot be kept with run '{self.id}'"):
            self._client.log_artifacts(self.id, str(path), folder)

    @contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(name).name
            yield path
            parent = str(Path(name).parent)
            self.artifact(path, None if parent == "." else parent)

    def json(self, name: str, value: Any) -> None:
        """Keep JSON-ready values as the artifact ``name``, like `curves/pr.json`."""
        with self._new(name) as path:
            path.write_text(dumps(value, indent=1), encoding="utf-8")

    def text(self, name: str, text: str) -> None:
        """Keep a text as the artifact ``name``, like `report.html`."""
        with self._new(name) as path:
            path.write_text(text, encoding="utf-8")

    def frame(self, name: str, frame: pd.DataFrame) -> None:
        """Keep a table as the Parquet artifact ``name``, like `evaluation/test_scores.parquet`."""
        with self._new(name) as path:
            frame.to_parquet(path, index=False)

    def dataset(
        self, name: str, *, source: str, digest: str, context: str, profile: Mapping[str, Any] | None = None
    ) -> None:
        """Record what the run learnt from: ``digest`` is the content hash, ``context`` like training, validation or
        test.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=name[:500],
            digest=digest[:36],
            source_type="rareclass",
            source=json.dumps({"uri": source}),
            profile=dumps(profile or {}),
        )
        with _mlflow.translate_errors(f"run '{self.id}' cannot be written in MLflow at '{self.tracker.uri}'"):
            self._client.log_inputs(self.id, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def end(self, status: str = "FINISHED", error: str | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED; ``error``, one line without secrets,
        is its tag and description.
        """
        if error is not None:
            self.log(tags={"error": error, "mlflow.note.content": error})
        with _mlflow.translate_errors(f"run '{self.id}' cannot be closed in MLflow at '{self.tracker.uri}'"):
            self._client.set_terminated(self.id, status)


def scores(uri: str, tracking_uri: str | None = None) -> pd.DataFrame:
    """Read the test scores of a run's judged recipe (the model before it was refitted on every row).

    uri : absolute artifact folder of the run, or `runs:/ID` with ``tracking_uri``
    Raises ModelError when the run has none.
    """
    import pandas as pd

    local = _mlflow.local_path(uri)
    if local is not None:
        path = local / SCORES
        if not path.is_file():
            raise ModelError(
                f"'{uri}' holds no {SCORES}, so it was not written by `rareclass run`. "
                "Pass --data PATH to score labelled rows instead"
            )
        return pd.read_parquet(path)
    _mlflow.quiet()
    from mlflow.artifacts import download_artifacts

    with (
        tempfile.TemporaryDirectory() as folder,
        _mlflow.translate_errors(f"'{uri}' holds no {SCORES}. Pass --data PATH to score labelled rows instead"),
    ):
        full = None if tracking_uri is None else _mlflow.absolute(tracking_uri)
        return pd.read_parquet(download_artifacts(f"{uri.rstrip('/')}/{SCORES}", dst_path=folder, tracking_uri=full))


def artifact_uri(run_id: str, tracking_uri: str) -> str:
    """Return the absolute artifact folder of a run: a path for a local store. Raises ModelError for an unknown run."""
    with _mlflow.translate_errors(f"run '{run_id}' is not in MLflow at '{tracking_uri}'"):
        root = str(_mlflow.client(tracking_uri).get_run(run_id).info.artifact_uri)
    local = _mlflow.local_path(root)
    return str(local) if local is not None else root.rstrip("/")


def _key(name: object) -> str:
    """MLflow allows letters, digits and some signs in a name."""
    return "".join(sign if sign.isalnum() or sign in "_-. /" else "_" for sign in str(name))[:250]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else dumps(value)
    return text if len(text) <= _PARAM_LENGTH else text[: _PARAM_LENGTH - 1] + "…"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
