"""Several server processes behind one port: each with its own model in memory, spool and shipper;
one page of metrics.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass import logs
from rareclass.config import Config
from rareclass.config import parse as parse_config
from rareclass.errors import ConfigError, RareclassError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from rareclass.adapters.serving.server import Options

_LOG = logging.getLogger(__name__)
_AGAIN_SECONDS = 1.0
_HIGHEST = frozenset(
    {
        "rareclass_serve_champion_info",
        "rareclass_serve_threshold_ratio",
        "python_info",
        "process_start_time_seconds",
        "process_max_fds",
    }
)
"""Gauges of which every worker has the same, or of which the newest counts; all others are added up."""
_GROWING = ("counter", "histogram", "summary")


def spool_of(root: str, worker: int) -> str:
    """Return the spool of a worker; the first has the one that a single server has."""
    return root if worker == 0 else str(Path(root) / f"worker-{worker}")


def serve_workers(
    config: Config,
    environment: Mapping[str, str],
    opts: Options,
    serve_one: Callable[..., None],
    model: str | None = None,
) -> None:
    """Serve with ``serve.workers`` processes until SIGTERM or SIGINT; one that dies is started again.

    opts : where to listen · serve_one : what each process runs, a function of a module (it is sent by its name)
    Raises what kept the first of them from serving.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    from rareclass.adapters.serving.server import BoundPorts, announce, listening_on

    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("this system cannot share a port between processes. Set serve.workers=1")
    # these sockets hold the ports, so that "a free one" is the same for all; who does not listen gets no connection
    held = [
        listening_on(opts.host, opts.http_port, "http_port", shared=True),
        listening_on(opts.host, opts.grpc_port, "grpc_port", shared=True),
    ]
    http_port, grpc_port = (each.getsockname()[1] for each in held)
    worker_environment = {
        **environment,
        "MLSERVER_HTTP_PORT": str(http_port),
        "MLSERVER_GRPC_PORT": str(grpc_port),
        "MLSERVER_METRICS_PORT": "0",
        "MLSERVER_METRICS_ENDPOINT": "/metrics",
    }
    workers = config.serve.workers
    group = _Group(config, worker_environment, model, serve_one)
    registry = CollectorRegistry()
    registry.register(group)  # type: ignore[arg-type]
    listening_on(opts.host, opts.metrics_port, "metrics_port").close()  # taken ports are said before models are loaded
    stopping = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stopping.set())
    scraped: Any = None
    try:
        version = group.start(stopping)
        if version is not None:
            scraped, _ = start_http_server(opts.metrics_port, opts.host, registry)
            announce(opts, version, BoundPorts(http_port, grpc_port, scraped.server_port), f", {workers} workers")
            group.keep(stopping)
    finally:
        group.stop()
        if scraped is not None:
            scraped.shutdown()
        for taken in held:
            taken.close()


class _Worker:
    """One process, from its start to its end."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *arguments), name="rareclass-worker")
        self.process.start()
        theirs.close()
        self.metrics_port: int | None = None
        self.seen: list[Metric] = []

    def scrape(self) -> list[Metric]:
        """Return what the process counts now, or what it counted last when it does not answer."""
        from prometheus_client.parser import text_string_to_metric_families

        if self.metrics_port is not None:
            try:
                url = f"http://127.0.0.1:{self.metrics_port}/metrics"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    self.seen = list(text_string_to_metric_families(answer.read().decode()))
            except OSError as error:
                _LOG.warning("a worker's metrics could not be read: %s", error)
        return self.seen


class _Group:
    """The workers, and their metrics as those of one server."""

    def __init__(
        self, config: Config, environment: Mapping[str, str], model: str | None, serve_one: Callable[..., None]
    ) -> None:
        self._arguments = [
            (serve_one, config.model_dump(mode="json"), spool_of(config.serve.spool, at), dict(environment), model)
            for at in range(config.serve.workers)
        ]
        self._workers: list[_Worker] = []
        self._gone: list[Metric] = []
        self._lock = threading.Lock()

    def start(self, stopping: threading.Event) -> str | None:
        """Start all and wait until they answer.

        Returns the version; None when asked to stop before. Raises why one failed.
        """
        for arguments in self._arguments:
            self._workers.append(_Worker(arguments))
        version = None
        for worker in self._workers:
            while not worker.connection.poll(0.2):
                if stopping.is_set():
                    return None
            version = self._started(worker)
        return version

    def _started(self, worker: _Worker) -> str:
        try:
            kind, said = worker.connection.recv()
        except EOFError:
            raise RareclassError("a worker of the server died while it started; its log is above") from None
        if kind == "failed":
            raise RareclassError(said)
        worker.metrics_port, version = said
        return str(version)

    def keep(self, stopping: threading.Event) -> None:
        """Start again what dies, until it is time to stop."""
        while not stopping.wait(_AGAIN_SECONDS):
            for at, worker in enumerate(self._workers):
                if worker.process.exitcode is not None:
                    _LOG.warning("worker %d ended (%s) and is started again", at, worker.process.exitcode)
                    with self._lock:
                        self._gone = [each for each in (*self._gone, *worker.seen) if each.type in _GROWING]
                        self._workers[at] = _Worker(self._arguments[at])
                elif worker.metrics_port is None and worker.connection.poll():
                    try:
                        self._started(worker)
                    except RareclassError as error:
                        _LOG.warning("worker %d did not start: %s", at, error)

    def stop(self) -> None:
        """Ask all to drain, and wait until they have."""
        for worker in self._workers:
            if worker.process.exitcode is None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            workers, gone = list(self._workers), list(self._gone)
        yield from merged([*gone, *(family for worker in workers for family in worker.scrape())])

    def describe(self) -> Iterator[Metric]:
        return iter(())


def merged(families: Iterable[Metric]) -> list[Metric]:
    """Return the families of several processes as those of one: samples with the same labels are added up, but for
    gauges that say the same everywhere, of which the highest is kept."""
    from prometheus_client.core import Metric

    out: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for family in families:
        out.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        sums = values.setdefault(family.name, {})
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            before = sums.get(key)
            if before is None:
                sums[key] = sample.value
            else:
                sums[key] = max(before, sample.value) if sample.name in _HIGHEST else before + sample.value
    for name, family in out.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return list(out.values())


def _work(
    connection: Connection,
    serve_one: Callable[..., None],
    raw: dict[str, Any],
    spool: str,
    environment: dict[str, str],
    model: str | None,
) -> None:
    """What a worker's process runs."""
    logs.configure()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    config = parse_config({**raw, "serve": {**raw["serve"], "spool": spool}})
    try:
        serve_one(
            config,
            model,
            environment,
            lambda version, ports: connection.send(("started", (ports.metrics, version))),
            shared=True,
        )
    except RareclassError as error:
        connection.send(("failed", str(error)))


def _end_with_parent(parent: int) -> None:
    """Drain when the process that started this one is gone, in whatever way."""
    never = threading.Event()
    while not never.wait(1.0):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return
