"""Kubeflow Pipelines: versions of the pipeline, its runs, its schedules."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from rareclass.adapters.cluster.local import PipelineFailedError
from rareclass.adapters.cluster.spec import digest
from rareclass.errors import ConfigError, MissingExtraError, RareclassError

DONE = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")
ALIVE = ("PENDING", "RUNNING", "SUCCEEDED", "PAUSED", "RUNTIME_STATE_UNSPECIFIED", None)
STEPS = (
    "ingest", "detect-imbalance", "resample", "train", "select", "tune-threshold", "evaluate", "register", "promote",
)  # fmt: skip
REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
PAUSE_SECONDS = 5.0
PATIENCE_SECONDS = 180.0
"""How long an API server that does not answer is waited for while a run is followed: the run itself goes on."""


@dataclass(frozen=True)
class Submitted:
    """What Kubeflow took: the version of the pipeline, and the run or the schedule. new: False when it was there
    already.
    """

    pipeline: str
    version: str
    id: str
    name: str
    new: bool


@dataclass(frozen=True)
class Access:
    """How an API knows who asks, where Kubeflow has users or stands behind a proxy.

    namespace : of the user;  token : bearer token;  token_file : file that holds it, read again as it is renewed
    header : one more of each request, NAME: VALUE;  ca_file : certificate authorities to trust
    """

    namespace: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    header: str | None = field(default=None, repr=False)
    ca_file: str | None = None


class Kubeflow:
    """One Kubeflow Pipelines API.

    host : like http://ml-pipeline.kubeflow:8888
    Raises ConfigError when it does not answer, or when token or header cannot be sent.
    """

    def __init__(self, host: str, access: Access | None = None) -> None:
        try:
            import kfp
            import kfp_server_api
        except ImportError:
            raise MissingExtraError("kfp", "pipelines", "submit") from None
        access = access or Access()
        header = _header(access.header)
        credentials = None if access.token_file is None else _credentials(access.token_file)

        class Client(kfp.Client):  # type: ignore[misc]
            """The first request is made in the constructor, so what it needs has to be there by then."""

            def _load_context_setting_or_default(self) -> None:
                super()._load_context_setting_or_default()
                if header is not None:
                    self._context_setting["client_authentication_header_name"] = header[0]
                    self._context_setting["client_authentication_header_value"] = header[1]

            def get_kfp_healthz(self, sleep_duration: int = 1) -> Any:
                """As the library does, but whoever is refused is told so at once."""
                from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_fixed

                again = retry_if_exception(
                    lambda error: isinstance(error, kfp_server_api.ApiException) and error.status not in REFUSED
                )
                retrying = Retrying(
                    stop=stop_after_attempt(5), wait=wait_fixed(sleep_duration), retry=again, reraise=True
                )
                return retrying(self._healthz_api.healthz_service_get_healthz)

        self.host, self.namespace = host, access.namespace
        with self._translate_errors("is not reached"), _silent():
            self._client: Any = Client(
                host=host,
                namespace=access.namespace or "kubeflow",
                existing_token=access.token,
                credentials=credentials,
                ssl_ca_cert=access.ca_file,
            )
            self._client.get_kfp_healthz()

    def upload(self, pipeline: str, text: str) -> tuple[str, str, bool]:
        """Make ``text`` a version of the pipeline unless that content is one; returns (pipeline id, version id,
        new).
        """
        import kfp_server_api

        name = digest(text)
        with (
            self._translate_errors(f"refused the pipeline '{pipeline}'"),
            _silent(),
            tempfile.TemporaryDirectory() as folder,
        ):
            # the library's own look-up by name knows the shared namespace only
            listed = self._client.list_pipelines(filter=_named(pipeline), namespace=self.namespace).pipelines or []
            if listed:
                found = listed[0].pipeline_id
            else:
                body = kfp_server_api.V2beta1Pipeline(display_name=pipeline, namespace=self.namespace)
                found = self._client._pipelines_api.pipeline_service_create_pipeline(pipeline=body).pipeline_id
            known = self._client.list_pipeline_versions(found, filter=_named(name)).pipeline_versions or []
            if known:
                return found, known[0].pipeline_version_id, False
            file = Path(folder) / "pipeline.yaml"
            file.write_text(text, encoding="utf-8")
            made = self._client.upload_pipeline_version(str(file), pipeline_version_name=name, pipeline_id=found)
            return found, made.pipeline_version_id, True

    def run(
        self,
        experiment: str,
        key: str,
        pipeline: str,
        version: str,
        arguments: Mapping[str, Any],
        account: str | None = None,
    ) -> Submitted:
        """Start a run named ``key``, unless a run of that name is there that did not fail: then that one is meant."""
        with self._translate_errors(f"refused the run '{key}'"), _silent():
            place = self._client.create_experiment(experiment, namespace=self.namespace).experiment_id
            for known in self._runs(place, key):
                if known.state in ALIVE:
                    return Submitted(pipeline, version, known.run_id, key, False)
            made = self._client.run_pipeline(
                place, key, params=dict(arguments), pipeline_id=pipeline, version_id=version, service_account=account
            )
            return Submitted(pipeline, version, made.run_id, key, True)

    def schedule(
        self,
        experiment: str,
        key: str,
        cron: str,
        pipeline: str,
        version: str,
        arguments: Mapping[str, Any],
        account: str | None = None,
    ) -> Submitted:
        """Run on a schedule of six fields, replacing the schedule of that name unless it is the same."""
        with self._translate_errors(f"refused the schedule '{key}'"), _silent():
            place = self._client.create_experiment(experiment, namespace=self.namespace).experiment_id
            found = self._client.list_recurring_runs(
                experiment_id=place, namespace=self.namespace, filter=_named(key), page_size=100
            )
            for known in found.recurring_runs or []:
                if self._same(known, cron, version, arguments):
                    return Submitted(pipeline, version, known.recurring_run_id, key, False)
                self._client.delete_recurring_run(known.recurring_run_id)
            made = self._client.create_recurring_run(
                place,
                key,
                cron_expression=cron,
                no_catchup=True,
                max_concurrency=1,
                params=dict(arguments),
                pipeline_id=pipeline,
                version_id=version,
                service_account=account,
            )
            return Submitted(pipeline, version, made.recurring_run_id, key, True)

    @staticmethod
    def _same(known: Any, cron: str, version: str, arguments: Mapping[str, Any]) -> bool:
        schedule = known.trigger.cron_schedule if known.trigger is not None else None
        reference = known.pipeline_version_reference
        given = (known.runtime_config.parameters or {}) if known.runtime_config is not None else {}
        return (
            known.status == "ENABLED"
            and schedule is not None
            and schedule.cron == cron
            and reference is not None
            and reference.pipeline_version_id == version
            and dict(given) == dict(arguments)
        )

    def follow(
        self,
        run: str,
        progress: Callable[[str, str], None],
        *,
        pause: float = PAUSE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wait for the end of a run and say what its steps do. Raises PipelineFailedError with the step that failed."""
        seen: dict[str, str] = {}
        answered = clock()
        while True:
            try:
                found = self._client.get_run(run)
                answered = clock()
            except Exception as error:  # the run goes on without whoever follows it
                if clock() - answered > PATIENCE_SECONDS:
                    raise PipelineFailedError(
                        f"{self.host} stopped answering while run {run} was followed: {_line(error)}"
                    ) from None
                sleep(pause)
                continue
            for name, state in _steps(found):
                if state is not None and seen.get(name) != state:
                    seen[name] = state
                    progress(name, state.lower())
            if found.state in DONE:
                break
            sleep(pause)
        if found.state != "SUCCEEDED":
            raise PipelineFailedError(f"run {run} ended as {found.state}: {_failure(found)}")

    def state(self, run: str) -> str:
        """Return the state of a run as Kubeflow says it."""
        with self._translate_errors(f"does not know run {run}"):
            return str(self._client.get_run(run).state)

    def _runs(self, experiment: str, name: str) -> list[Any]:
        """Runs of that name, newest first."""
        found = self._client.list_runs(
            experiment_id=experiment,
            namespace=self.namespace,
            filter=_named(name),
            sort_by="created_at desc",
            page_size=100,
        )
        return list(found.runs or [])

    @contextlib.contextmanager
    def _translate_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except RareclassError:
            raise
        except Exception as error:
            refused = getattr(error, "status", None) in REFUSED
            way = (
                "Pass --token FILE and --namespace NAME (cluster.token_file, cluster.namespace), or --header where a "
                "proxy asks for one"
                if refused
                else "Set cluster.host, or pass --host"
            )
            said = "does not know who asks, or does not let them" if refused else what
            raise ConfigError(f"Kubeflow at '{self.host}' {said}: {_line(error)}. {way}") from error


def _header(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not (name and colon and value) or "\n" in text:
        raise ConfigError(
            "cluster.header is no header. Set cluster.header, or pass --header, like 'kubeflow-userid: me@example.org'"
        )
    return name, value


def _credentials(file: str) -> Any:
    """A token that is read again each time: Kubernetes renews those of service accounts in place."""
    from kfp.client import ServiceAccountTokenVolumeCredentials

    if not Path(file).is_file():
        raise ConfigError(
            f"cluster.token_file '{file}' is not a file. Set it to where the pod's token is mounted, or unset it"
        )
    return ServiceAccountTokenVolumeCredentials(path=file)


def _named(name: str) -> str:
    """A filter of the API for one display name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _steps(run: Any) -> list[tuple[str, str | None]]:
    """Steps with their states, without the drivers, retries and loops around them."""
    details = run.run_details.task_details if run.run_details is not None else None
    return [(each.display_name, each.state) for each in details or [] if each.display_name in STEPS]


def _failure(run: Any) -> str:
    failed = [name for name, state in _steps(run) if state == "FAILED"]
    said = _line(run.error.message) if run.error is not None and run.error.message else ""
    where = f"failed at {', '.join(sorted(set(failed)))}" if failed else "no step says why"
    return (
        f"{where}{f' ({said})' if said else ''}. Look at: kubectl logs -l pipeline/runid={run.run_id} -c main --tail=20"
    )


def _line(error: object) -> str:
    """One line of what an API said."""
    body = getattr(error, "body", None)
    if body:
        with contextlib.suppress(ValueError, AttributeError):
            return " ".join(str(json.loads(body).get("message") or json.loads(body).get("error") or body).split())[:300]
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The client warns of old backends and prints links to a browser interface; the terminal is for progress."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
