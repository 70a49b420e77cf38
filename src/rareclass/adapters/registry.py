"""MLflow model versions and their aliases.

A version counts only once its ``rareclass.complete`` tag holds the hash of its files: a process killed before that
leaves something that nobody sees and the next registration removes.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.adapters import _mlflow
from rareclass.core import operating
from rareclass.core.model import RareModel
from rareclass.errors import ModelError, nearest

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

FOLDER = "model"
COMPLETE, HASH, OWNER = "rareclass.complete", "rareclass.hash", "rareclass.owner"
ALIAS_TRIES = 4
# What scoring needs; everything else of this package is for training and operating.
_REQUIREMENTS = ("rareclass", "numpy", "pandas", "scipy", "scikit-learn", "imbalanced-learn", "xgboost-cpu", "skops")
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Version:
    """A complete registered version. ``uri`` is the absolute artifact location, ``hash`` that of its files."""

    name: str
    version: str
    uri: str
    run_id: str
    hash: str
    created: datetime
    tags: Mapping[str, str]
    aliases: tuple[str, ...] = ()

    @property
    def thresholds(self) -> dict[str, float]:
        """Cut-offs that were re-tuned after the registration, by operating point (see ``core.operating``)."""
        return operating.retuned(self.tags)

    @property
    def point(self) -> str | None:
        """Operating point that was chosen for the version in the registry; None: none was."""
        return self.tags.get(operating.POINT_TAG)


class Registry:
    """The versions of all models behind one tracking URI."""

    def __init__(self, uri: str) -> None:
        self.uri = _mlflow.absolute(uri)
        self.client: MlflowClient = _mlflow.client(uri)

    def log(
        self, run_id: str, model: RareModel, *, card: str = "", metadata: Mapping[str, Any] | None = None
    ) -> tuple[str, str]:
        """Keep a version's folder with a run as a pyfunc; returns (absolute artifact URI, hash). Registers nothing."""
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / FOLDER
            digest = save_pyfunc(model, folder, card=card, metadata=metadata)
            with _mlflow.translate_errors(f"the model cannot be kept with run '{run_id}'"):
                self.client.log_artifacts(run_id, str(folder), FOLDER)
                self.client.set_tag(run_id, HASH, digest)
                root = self.client.get_run(run_id).info.artifact_uri
        local = _mlflow.local_path(root)
        return (str(local / FOLDER) if local is not None else f"{root.rstrip('/')}/{FOLDER}"), digest

    def register(
        self,
        name: str,
        uri: str,
        *,
        run_id: str,
        digest: str,
        tags: Mapping[str, Any] | None = None,
        description: str = "",
    ) -> Version:
        """Make the logged model at ``uri`` the next version of ``name``; doing it again returns the version that is
        there.
        """
        self.clean(name)
        for registered in self.versions(name):
            if registered.run_id == run_id and registered.hash == digest:
                return registered
        with self._translate_errors(name):
            self._ensure(name)
            made = self.client.create_model_version(
                name,
                source=uri,
                run_id=run_id,
                description=description or None,
                tags={
                    **{key: str(value) for key, value in (tags or {}).items()},
                    HASH: digest,
                    OWNER: f"{socket.gethostname()}:{os.getpid()}",
                },
            )
            self.client.set_model_version_tag(name, str(made.version), COMPLETE, digest)
            return _version(self.client.get_model_version(name, str(made.version)))

    def _ensure(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def clean(self, name: str, *, now: float | None = None) -> list[str]:
        """Delete versions that were never completed and whose process is gone; returns their numbers.

        What a live process of this machine, or any process of another one, began less than an hour ago is left alone.
        """
        seconds = time.time() if now is None else now
        removed = []
        for stored in self._all(name):
            if _complete(stored):
                continue
            host, _, pid = stored.tags.get(OWNER, "").rpartition(":")
            here = host == socket.gethostname() and pid.isdigit()
            if (
                here and not _mlflow.alive(int(pid))
            ) or seconds - stored.creation_timestamp / 1000 > _ABANDONED_SECONDS:
                with self._translate_errors(name):
                    self.client.delete_model_version(name, str(stored.version))
                removed.append(str(stored.version))
        return removed

    def versions(self, name: str) -> list[Version]:
        """List the complete versions, newest first; empty for an unknown model."""
        return [_version(stored) for stored in self._all(name) if _complete(stored)]

    def _all(self, name: str) -> list[Any]:
        with self._translate_errors(name):
            pages, token = [], None
            while True:
                page = self.client.search_model_versions(f"name = '{name}'", page_token=token)
                pages += list(page)
                token = page.token
                if not token:
                    break
            aliases = self._aliases(name) if pages else {}
        for stored in pages:  # a search leaves aliases out
            stored._aliases = [alias for alias, version in aliases.items() if version == str(stored.version)]
        return sorted(pages, key=lambda stored: -int(stored.version))

    def _aliases(self, name: str) -> dict[str, str]:
        return {alias: str(version) for alias, version in self.client.get_registered_model(name).aliases.items()}

    def version(self, name: str, number: str | int) -> Version:
        """Return one complete version. Raises ModelError with the ones there are."""
        by_number = {version.version: version for version in self.versions(name)}
        if str(number) not in by_number:
            there = ", ".join(sorted(by_number, key=int)) or "none: `rareclass run` registers the first"
            raise ModelError(
                f"model '{name}' has no version {number} in '{self.uri}'. Set the version to one of: {there}"
            )
        return by_number[str(number)]

    def at(self, name: str, alias: str) -> Version | None:
        """Return the version that an alias points to, None when there is none."""
        return next((version for version in self.versions(name) if alias in version.aliases), None)

    def point(self, name: str, targets: Mapping[str, str | None]) -> None:
        """Move aliases: {alias: version, or None to remove it}. Champion moves last, so a reader never sees it half
        done.

        Two processes may set the same alias at once; MLflow's store refuses one of them, which then looks again.
        """
        from mlflow.exceptions import MlflowException

        for _ in range(ALIAS_TRIES - 1):
            try:
                return self._point(name, targets)
            except MlflowException:
                continue
        with self._translate_errors(name):
            self._point(name, targets)

    def _point(self, name: str, targets: Mapping[str, str | None]) -> None:
        present = self._aliases(name)
        for alias in sorted(targets, key=lambda role: role == "champion"):
            wanted = targets[alias]
            if wanted is None and alias in present:
                self.client.delete_registered_model_alias(name, alias)
            elif wanted is not None and present.get(alias) != str(wanted):
                self.client.set_registered_model_alias(name, alias, str(wanted))

    def tag(self, name: str, number: str | int, tags: Mapping[str, Any]) -> None:
        """Set tags of a version, for example re-tuned thresholds."""
        with self._translate_errors(name):
            for key, value in tags.items():
                self.client.set_model_version_tag(name, str(number), key, str(value))

    def load(self, version: Version) -> RareModel:
        """Load a version as it is deployed: its files checked to be the registered ones, re-tuned thresholds in force.

        Raises ModelError.
        """
        model = load_model(version.uri, self.uri, expect=version.hash)
        return model.retuned(version.thresholds)

    def resolve(self, uri: str) -> Version:
        """Return the version behind ``models:/name@alias`` or ``models:/name/number``. Raises ModelError."""
        match = re.fullmatch(r"models:/([^/@]+)(?:@([\w.-]+)|/(\d+))", uri)
        if match is None:
            raise ModelError(
                f"'{uri}' is not a model. Write models:/NAME@champion, models:/NAME/3, or the uri that summary.json "
                "names"
            )
        name, alias, number = match.groups()
        if number is not None:
            return self.version(name, number)
        version = self.at(name, alias)
        if version is None:
            aliases = self._aliases(name) if self._all(name) else {}
            there = ", ".join(sorted(aliases)) or "none"
            raise ModelError(
                f"model '{name}' has no '{alias}' in '{self.uri}'.{nearest(alias, aliases)} It has: {there}"
            )
        return version

    def _translate_errors(self, name: str) -> Any:
        return _mlflow.translate_errors(f"the registry '{self.uri}' refused model '{name}'")


def save_pyfunc(model: RareModel, folder: Path, *, card: str = "", metadata: Mapping[str, Any] | None = None) -> str:
    """Write ``model`` as an MLflow pyfunc folder that scores without this project's configuration; returns its hash.

    Nothing of the wrapper is pickled: MLflow calls ``_load_pyfunc`` of this module. Requirements are given explicitly,
    because inferring them takes MLflow 6 to 18 s.
    """
    _mlflow.quiet()
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "rareclass"
        digest = model.save(source)
        mlflow.pyfunc.save_model(
            path=str(folder),
            loader_module="rareclass.adapters.registry",
            data_path=str(source),
            signature=_signature(model),
            pip_requirements=requirements(),
            metadata={**(metadata or {}), HASH: digest},
        )
    (folder / "README.md").write_text(card or model_card(model), encoding="utf-8")
    return digest


def requirements() -> list[str]:
    """Exact versions of what scoring imports, as installed here."""
    return [f"{package}=={installed(package)}" for package in _REQUIREMENTS]


def _signature(model: RareModel) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

    # MLflow refuses whole numbers in a 'double' and booleans or categories in a 'string' column. The model takes all
    # of them and says itself what it cannot read, so the signature fixes the columns and leaves their type open.
    columns: list[ColSpec | TensorSpec] = [
        ColSpec(AnyType(), name)  # type: ignore[no-untyped-call]  # MLflow gives it no types
        for name in model.schema.names
    ]
    return ModelSignature(
        inputs=Schema(columns),
        outputs=Schema([ColSpec(DataType.double, "score"), ColSpec(DataType.long, "decision")]),
        params=ParamSchema([ParamSpec("operating_point", DataType.string, model.primary)]),
    )


def model_card(model: RareModel) -> str:
    """A page of Markdown that says what the version is, how good it was on rows it had not seen, and what it needs."""
    meta = model.meta
    trained, gate = meta.get("trained") or {}, meta.get("gate") or {}
    facts = {
        "Rare class": f"`{meta['target']}` = {meta.get('positive')}" if "target" in meta else None,
        "Recipe": meta.get("selected"),
        "Calibration": meta.get("calibration"),
        "Trained on": f"{trained['rows']:,} rows, {trained['positives']:,} of the rare class"
        if "rows" in trained
        else None,
        "Period of the rows": f"{trained.get('from')} to {trained['until']}" if trained.get("until") else None,
        "Prevalence": f"{meta['prevalence']:.4%}" if isinstance(meta.get("prevalence"), float) else None,
        "Data hash": meta.get("data_hash"),
        "Gate": "; ".join([str(gate["verdict"]), *map(str, gate.get("reasons", ()))]) if "verdict" in gate else None,
        "Made": f"{meta['created']} by rareclass {meta.get('rareclass', '')}" if "created" in meta else None,
    }
    lines = [
        f"# {meta.get('name', 'rareclass model')}",
        "",
        (
            "Answers `score` (calibrated probability of the rare class) and `decision` (1 when the score reaches the "
            "threshold of an operating point)."
        ),
        "",
        *(f"- {name}: {value}" for name, value in facts.items() if value),
        "",
        "## Operating points",
        "",
        "| name | threshold |",
        "|---|---|",
        *(
            f"| {name}{' (decides)' if name == model.primary else ''} | {value:.6g} |"
            for name, value in model.thresholds.items()
        ),
        "",
        *_quality(meta.get("metrics") or {}),
        "## Features",
        "",
        "| name | kind | values |",
        "|---|---|---|",
        *(
            f"| {f.name} | {f.kind} | {', '.join(f.categories[:8])}{' …' if len(f.categories) > 8 else ''} |"
            for f in model.schema.features
        ),
        "",
        "## Limits",
        "",
        "Scores are probabilities at the prevalence above: after a shift of the prevalence they need a recalibration. "
        "Contributions to a score describe the model, not causes.",
        "",
    ]
    return "\n".join(lines)


def _quality(metrics: Mapping[str, Any]) -> list[str]:
    """Metrics with their intervals, each given as the JSON of an Estimate."""
    if not metrics:
        return []
    head = [
        "## Quality of the recipe on test rows, before the refit",
        "",
        "| metric | value | interval | positives |",
        "|---|---|---|---|",
    ]
    lines = []
    for name, estimate in metrics.items():
        if isinstance(estimate, Mapping) and estimate.get("value") is not None:
            ends = [estimate.get("low"), estimate.get("high")]
            interval = "" if None in ends else f"{ends[0]:.4g} to {ends[1]:.4g}"
            lines.append(f"| {name} | {estimate['value']:.4g} | {interval} | {estimate.get('positives', '')} |")
    return [*head, *lines, ""]


class _Scorer:
    """What ``mlflow.pyfunc.load_model`` hands out."""

    def __init__(self, model: RareModel) -> None:
        self.model = model

    def predict(self, data: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return columns score and decision for a table with the model's features; params: operating_point."""
        import pandas as pd

        score = self.model.score(data)
        decision = self.model.decide(score, (params or {}).get("operating_point"))
        return pd.DataFrame({"score": score, "decision": decision.astype("int64")}, index=getattr(data, "index", None))


def _load_pyfunc(path: str) -> _Scorer:
    return _Scorer(RareModel.load(path))


def load_model(uri: str | Path, tracking_uri: str | None = None, *, expect: str | None = None) -> RareModel:
    """Load a version from where it lies; needs no configuration.

    A version of the registry, and a run's model where the tracking store is known, must have the hash that was recorded
    for it there. Elsewhere the hashes beside the files only tell of damage; what is loaded is never code.

    uri : the ``uri`` of summary.json (absolute path, s3://...), the --out folder of a run, ``runs:/ID``,
        ``models:/NAME@alias`` or ``models:/NAME/3``; the last three with ``tracking_uri`` or MLFLOW_TRACKING_URI
    expect : hash that the files must have; default: what the tracking store knows
    Raises ModelError.
    """
    text = str(uri)
    if text.startswith("models:/"):
        registry = Registry(tracking_of(text, tracking_uri))
        return registry.load(registry.resolve(text))
    with fetched(text, tracking_uri) as folder:
        return RareModel.load(folder, expect=expect or _recorded(text, folder, tracking_uri))


def _recorded(uri: str, folder: Path, tracking_uri: str | None) -> str | None:
    """Return the hash that the tracking store keeps of the run whose model this is; None where neither is known."""
    server = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    run = re.search(r"(?:runs:/|/)([0-9a-f]{32})(?:/|$)", uri) or re.search(r"/([0-9a-f]{32})/artifacts/", str(folder))
    if not server or run is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        return _mlflow.client(server).get_run(run.group(1)).data.tags.get(HASH)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # a run of another store
            return None
        raise ModelError(
            f"the hash of '{uri}' cannot be asked for, so it is not loaded: {_mlflow.unusable(server)}"
        ) from None


@contextmanager
def fetched(uri: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """Give the local folder of the RareModel at ``uri``, downloaded for the time of the block where it is remote."""
    local = _mlflow.local_path(uri)
    if local is not None:
        yield _inner(local, uri)
        return
    _mlflow.quiet()
    from mlflow.artifacts import download_artifacts

    if uri.startswith("runs:/"):
        tracking_uri = tracking_of(uri, tracking_uri)
        uri = uri if uri.count("/") > 1 else f"{uri}/{FOLDER}"
    with tempfile.TemporaryDirectory() as work:
        with _mlflow.translate_errors(f"the model '{uri}' cannot be read"):
            try:
                path = download_artifacts(
                    uri, dst_path=work, tracking_uri=None if tracking_uri is None else _mlflow.absolute(tracking_uri)
                )
            except ImportError as error:
                raise ModelError(
                    f"the model '{uri}' needs the package '{error.name}' to be read. Install it with: "
                    f"pip install {error.name}"
                ) from None
        yield _inner(Path(path), uri)


def _inner(folder: Path, uri: str) -> Path:
    """Find the RareModel inside a pyfunc folder or beside a run's summary."""
    if (folder / "summary.json").is_file():
        return _inner(Path(of_summary(folder)), uri)
    for inner in (folder, folder / "data" / "rareclass", folder / FOLDER / "data" / "rareclass"):
        if (inner / "model.json").is_file():
            return inner
    what = "holds no rareclass model" if folder.is_dir() else "does not exist"
    raise ModelError(
        f"'{uri}' {what}. Pass the uri that summary.json names, or models:/NAME@champion with --tracking-uri or -c"
    )


def of_summary(folder: Path) -> str:
    """Return the model's URI that the summary in a run's --out folder names. Raises ModelError."""

    try:
        return str(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["uri"])
    except (OSError, ValueError, KeyError):
        raise ModelError(
            f"'{folder / 'summary.json'}' names no model. Run `rareclass run` again, or pass the uri of a version"
        ) from None


def tracking_of(uri: str, tracking_uri: str | None) -> str:
    """Return the tracking URI to use for ``uri``: the given one, else MLFLOW_TRACKING_URI.

    Raises ModelError without.
    """
    server = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not server:
        raise ModelError(f"'{uri}' needs a registry. Pass -c CONFIG or --tracking-uri URI, or set MLFLOW_TRACKING_URI")
    return server


def _complete(stored: Any) -> bool:
    return bool(stored.tags.get(COMPLETE)) and stored.tags.get(COMPLETE) == stored.tags.get(HASH)


def _version(stored: Any) -> Version:
    return Version(
        name=stored.name,
        version=str(stored.version),
        uri=str(stored.source),
        run_id=str(stored.run_id or ""),
        hash=stored.tags[HASH],
        created=datetime.fromtimestamp(stored.creation_timestamp / 1000, UTC),
        tags=dict(stored.tags),
        aliases=tuple(sorted(stored.aliases or ())),
    )
