"""The model server of one machine or one pod: registry, spool and store handed to the serving adapter."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass import logs
from rareclass.config import Config, with_environment, with_overrides
from rareclass.config import parse as parse_config
from rareclass.errors import ModelError
from rareclass.masking import masked
from rareclass.network import token
from rareclass.retry import retry_until_deadline
from rareclass.services.serving.workers import serve_workers, spool_of

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from rareclass.adapters.registry import Version
    from rareclass.adapters.serving.interfaces import Release, Scorer, ServedVersion
    from rareclass.adapters.serving.server import BoundPorts, Options

PIN = "RARECLASS_VERSION"
"""Environment variable with the version that this server answers with; empty: the champion."""
HASH_PIN = "RARECLASS_MODEL_HASH"
"""Environment variable with the hash (`rareclass.hash` in the registry) that a version served by its URI must have."""
DRAIN_SECONDS = 30.0
_LOG = logging.getLogger(__name__)


class Releases:
    """Looks up what should be serving.

    model : URI of one version to serve as it is, without a registry; None = the aliases of ``config.name``
    """

    def __init__(self, config: Config, model: str | None = None) -> None:
        self._config, self._model = config, model
        self._registry: Any = None

    def __call__(self) -> Release:
        """Return the release. Raises ModelError when there is no champion."""
        from rareclass.adapters.serving.interfaces import Release, ServedVersion

        if self._model is not None:
            return Release(ServedVersion("champion", _name_of(self._model), self._model, hash=_pinned_hash()))
        from rareclass.adapters.registry import Registry

        if self._registry is None:
            self._registry = Registry(self._config.tracking.uri)
        versions = self._registry.versions(self._config.name)
        role = {alias: each for each in versions for alias in each.aliases}
        champion = self._pinned(versions) or role.get("champion")
        if champion is None:
            raise ModelError(
                f"model '{self._config.name}' has no champion in '{self._config.tracking.uri}'. Train one with: "
                "rareclass run -c CONFIG --out DIR, or promote one: rareclass promote -c CONFIG"
            )
        shadows = [
            ServedVersion(name, role[name].version, role[name].uri, role[name].thresholds, role[name].hash)
            for name in ("challenger", "previous")
            if self._config.serve.shadows and name in role and role[name].version != champion.version
        ]
        serving = ServedVersion("champion", champion.version, champion.uri, champion.thresholds, champion.hash)
        return Release(serving, tuple(shadows), champion.point)

    def _pinned(self, versions: Sequence[Version]) -> Version | None:
        """Return the version that a deployment pins, whatever the alias says: pods of one rollout answer alike."""
        pin = os.environ.get(PIN, "").strip()
        if not pin:
            return None
        found = next((each for each in versions if each.version == pin), None)
        if found is None:
            raise ModelError(
                f"model '{self._config.name}' has no version '{pin}', which {PIN} asks for. Set it to one of: "
                f"{', '.join(each.version for each in versions)}, or leave it empty for the champion"
            )
        return found


def wait_for_champion(config: Config, seconds: float, pause: float = 3.0) -> str:
    """Wait until there is a version to serve and return it; for a pod that starts before the first training ends.

    Raises what was wrong last when ``seconds`` are over.
    """
    releases = Releases(config)
    return retry_until_deadline(lambda: releases().champion.version, seconds, on=ModelError, pause=pause)


def _pinned_hash() -> str | None:
    """Return the hash that a version without a registry must have, where whoever deployed it said so."""
    return os.environ.get(HASH_PIN, "").strip() or None


def _name_of(uri: str) -> str:
    """Return a version for a model that has no number: the last part of its URI that says something."""
    parts = [part for part in uri.replace(":", "/").split("/") if part not in ("", "model", "data", "rareclass")]
    return parts[-1][:40] if parts else "local"


def load(config: Config, version: ServedVersion) -> Scorer:
    """Load a version that scores with one thread."""
    from rareclass.adapters.registry import load_model

    model = load_model(version.uri, config.tracking.uri, expect=version.hash)
    _one_thread(model.learner)
    return model


def _one_thread(learner: Any) -> None:
    """Let XGBoost score with one thread: for a few rows, starting a second costs many times what the trees cost, and
    where the processors are busy it waits for the slowest."""
    for member in getattr(learner, "members", ()):
        _one_thread(member.fitted)
    booster = getattr(learner, "booster", None)
    if booster is not None:
        booster.set_param({"nthread": 1})


def settings_of(model: str, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration to serve a version with that lies somewhere, without a registry or a file.

    Names and columns are those that it was trained with; where to log and to listen is this place's: the environment's
    (RARECLASS_STORE_URL), ``overrides`` and the defaults. Raises ModelError, ConfigError.
    """
    from rareclass.adapters.registry import load_model

    trained = load_model(model, expect=_pinned_hash()).meta.get("config") or {}
    if "data" not in trained:
        raise ModelError(f"the version at '{model}' does not say how it was trained. Pass -c CONFIG beside --model")
    raw = {name: trained[name] for name in ("name", "data") if name in trained}
    return parse_config(with_overrides(with_environment(raw), overrides))


def serve(config: Config, model: str | None = None, environment: Mapping[str, str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, with ``serve.workers`` processes; then what was logged is shipped to the store.

    model : URI of a version to serve instead of the champion
    Raises ModelError without a champion, or when its golden rows score differently here; SpoolError when another server
    uses the spool.
    """
    from rareclass.adapters.serving.server import announce

    env = os.environ if environment is None else environment
    what = f"the champion of '{config.name}' from {config.tracking.uri}" if model is None else model
    _LOG.info("loading %s", masked(what))  # until it answers, seconds pass, or minutes where artifacts are far
    _ship_what_others_left(config)
    if config.serve.workers > 1:
        serve_workers(config, env, listening(config, env), serve_one, model)
    else:
        serve_one(config, model, env, lambda version, ports: announce(listening(config, env), version, ports))


def listening(config: Config, environment: Mapping[str, str], *, shared: bool = False) -> Options:
    """Return where to listen: the configuration's ports, unless an operator injects others."""
    from rareclass.adapters.serving.server import Options, options

    settings = config.serve
    configured = Options(
        config.name,
        settings.host,
        settings.http_port,
        settings.grpc_port,
        settings.metrics_port,
        token=token(environment, settings.token_env),
        shared=shared,
    )
    return options(environment, configured)


def _ship_what_others_left(config: Config) -> None:
    """Ship the spools of workers that are no longer started, before there is a server."""
    from rareclass.adapters.spool import unshipped_bytes
    from rareclass.services.serving.shipping import Shipper, spools

    own = {Path(spool_of(config.serve.spool, at)) for at in range(config.serve.workers)}
    for folder in spools(config.serve.spool):
        server = folder.parent if folder.name == "shadow" else folder
        if server not in own and unshipped_bytes(folder):
            Shipper(str(folder), config.store.url).start().stop(DRAIN_SECONDS)


def serve_one(
    config: Config,
    model: str | None,
    environment: Mapping[str, str],
    started: Callable[[str, BoundPorts], None],
    *,
    shared: bool = False,
) -> None:
    """Serve in this process. ``started`` is told the version and the ports when it answers; ``shared``: see Options."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from prometheus_client import REGISTRY

    from rareclass.adapters.serving.engine import Engine, LogLimits
    from rareclass.adapters.serving.interfaces import Dependencies
    from rareclass.adapters.serving.metrics import Metrics
    from rareclass.adapters.serving.refresh import PointSource, Refresher
    from rareclass.adapters.serving.server import run
    from rareclass.adapters.serving.shadow import ShadowProcess
    from rareclass.adapters.spool import Spool
    from rareclass.services.serving.shipping import reused_ids

    settings, data = config.serve, config.data
    spool = Spool(settings.spool, settings.spool_limit_bytes, settings.durability, settings.sync_milliseconds)
    shipper = Shipping(config)
    shadows = None
    try:
        metrics = Metrics(
            REGISTRY,
            config.name,
            depth=spool.depth,
            limit=settings.spool_limit_bytes,
            reused=lambda: reused_ids(Path(settings.spool)),
        )
        if settings.shadows and model is None:
            raw = config.model_dump(mode="json")
            shadows = ShadowProcess(
                shadow_process, (raw,), seconds=settings.shadow_seconds, metrics=metrics, model=config.name
            )
        engine = Engine(
            spool,
            metrics,
            name=config.name,
            sample_rate=settings.sample_rate,
            clock=time.time,
            shadow=shadows,
            limits=LogLimits(data.private, config.store.retention.total_seconds()),
        )
        aliases = {
            name: role
            for name, role in ((data.time, "ts"), (data.entity, "entity"), (data.propensity, "propensity"))
            if name
        }
        refresher = Refresher(
            engine,
            Dependencies(Releases(config, model), lambda version: load(config, version), spool),
            max_rows=settings.max_rows,
            seconds=settings.refresh_seconds,
            point=PointSource(settings.operating_point, settings.operating_point_file),
            aliases=aliases,
            shadows=shadows,
        )
        opts = listening(config, environment, shared=shared)
        run(opts, engine, refresher, lambda ports: started(engine.active.version if engine.active else "", ports))
    finally:
        if shadows is not None:
            shadows.close(settings.shadow_seconds)
        spool.close()
        shipper.stop()


class Shipping:
    """The shipper's process: started again when it dies, and what it leaves behind is shipped at the end."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stopping = threading.Event()
        self._begin()
        self._watch = threading.Thread(target=self._keep, name="rareclass-shipping", daemon=True)
        self._watch.start()

    def _begin(self) -> None:
        from rareclass.services.serving.shipping import start_process

        self._process = start_process(self._config)
        with contextlib.suppress(OSError):
            # answers come first; the spool keeps what waits
            os.setpriority(os.PRIO_PROCESS, self._process.pid, 10)

    def _keep(self) -> None:
        while not self._stopping.wait(1.0):
            if self._process.poll() is not None:
                _LOG.warning("the shipper ended (%s) and is started again", self._process.returncode)
                self._begin()

    def stop(self) -> None:
        """Ship what is left within ``DRAIN_SECONDS``; say so when that was not possible."""
        from rareclass.adapters.spool import unshipped_bytes
        from rareclass.services.serving.shipping import Shipper

        self._stopping.set()
        self._watch.join()
        self._process.terminate()
        try:
            self._process.wait(DRAIN_SECONDS + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        folder = Path(self._config.serve.spool)
        if unshipped_bytes(folder):  # it died, or was stopped before it had begun
            Shipper(folder, self._config.store.url).start().stop(DRAIN_SECONDS)
        if unshipped_bytes(folder):
            _LOG.warning("not all of the spool could be shipped to the store; the next start ships it")


def shadow_process(connection: Connection, busy: Any, raw: dict[str, Any]) -> None:
    """What the shadow's process runs: it loads from the registry and writes to a spool and store of its own."""

    from rareclass.adapters.serving.shadow import limit_memory, work
    from rareclass.adapters.spool import Spool
    from rareclass.services.serving.shipping import Shipper, encode

    logs.configure()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(10)
    config = parse_config(raw)
    folder = str(Path(config.serve.spool) / "shadow")
    limit_memory(config.serve.shadow_memory_bytes)
    shipper = Shipper(folder, config.store.url).start()
    with Spool(folder, config.serve.spool_limit_bytes, "process", 1000) as spool:

        def write(records: list[dict[str, Any]]) -> None:
            if not spool.over_limit():
                spool.append([encode(record) for record in records])

        work(connection, busy, load=lambda version: load(config, version), write=write, model=config.name)
    shipper.stop(DRAIN_SECONDS)
