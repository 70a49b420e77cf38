"""The entry point: HTTP, gRPC and metrics in one event loop, with sockets, signals and shutdown in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import uvicorn

from rareclass.adapters.serving import grpc_server
from rareclass.adapters.serving.batcher import Batcher
from rareclass.adapters.serving.catalogue import Catalogue
from rareclass.adapters.serving.engine import Engine
from rareclass.adapters.serving.http import application
from rareclass.adapters.serving.refresh import Refresher
from rareclass.adapters.serving.tracing import Traced, tracing
from rareclass.network import bound, taken

_LOG = logging.getLogger(__name__)
_DRAIN_SECONDS = 20
_KEEP_ALIVE_SECONDS = 75
"""Longer than the minute after which most clients and proxies drop an idle connection themselves: the side that closes
first should not be the one that a request is on its way to."""


@dataclass(frozen=True)
class Options:
    """Where the server listens and what it calls itself. Ports of 0 are picked free.

    shared : other processes listen on the same HTTP and gRPC ports; this one does once it can answer
    """

    name: str
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    metrics_path: str = "/metrics"
    token: str | None = None
    max_body_bytes: int = 64 << 20
    shared: bool = False


@dataclass(frozen=True)
class BoundPorts:
    """The ports that were bound."""

    http: int
    grpc: int
    metrics: int


def options(environment: Mapping[str, str], configured: Options) -> Options:
    """Return the options with what an operator injects (MLSERVER_HTTP_PORT, MLSERVER_MODEL_NAME, ...) taking
    precedence.
    """

    def port(key: str, value: int) -> int:
        text = environment.get(key, "")
        return int(text) if text.isdecimal() and int(text) < 65536 else value

    return replace(
        configured,
        name=environment.get("MLSERVER_MODEL_NAME") or configured.name,
        host=environment.get("MLSERVER_HOST") or configured.host,
        http_port=port("MLSERVER_HTTP_PORT", configured.http_port),
        grpc_port=port("MLSERVER_GRPC_PORT", configured.grpc_port),
        metrics_port=port("MLSERVER_METRICS_PORT", configured.metrics_port),
        metrics_path=environment.get("MLSERVER_METRICS_ENDPOINT") or configured.metrics_path,
        token=configured.token or None,
    )


class HttpServer(uvicorn.Server):
    """uvicorn on a socket that is bound already; signals are handled by ``run``."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever runs this server beside others."""
        yield


def http_server(app: Any) -> HttpServer:
    """Return a server for an ASGI application, quiet, with the limits of all of ours."""
    return HttpServer(
        uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            log_level="warning",
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # nothing here asks who the client is
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
        )
    )


def metrics_application(path: str, registry: Any) -> Any:
    """Return the application that Prometheus scrapes."""
    from prometheus_client.exposition import choose_encoder
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def scrape(request: Request) -> Response:
        encoder, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(registry), headers={"content-type": kind})

    return Starlette(routes=[Route(path, scrape)])


class InferenceServer:
    """The listening sockets, bound when it is made, and what answers on them."""

    def __init__(self, opts: Options, engine: Engine) -> None:
        self.batcher = Batcher(engine)
        self._tracing = tracing(opts.name, os.environ)
        catalogue = Catalogue(engine, opts.name)
        self._sockets = [
            listening_on(opts.host, opts.http_port, "http_port", shared=opts.shared),
            listening_on(opts.host, opts.metrics_port, "metrics_port"),
        ]
        self._servers = [
            http_server(self._traced(application(catalogue, self.batcher, token=opts.token))),
            http_server(metrics_application(opts.metrics_path, engine.metrics.registry)),
        ]
        requests = self._servers[0].server_state.tasks
        self.batcher.alone = lambda: len(requests) == 1  # 0: the one that asks came over gRPC
        try:
            self._grpc = grpc_server.GrpcServer(
                self.batcher,
                catalogue,
                address=f"{opts.host}:{opts.grpc_port}",
                token=opts.token,
                max_bytes=opts.max_body_bytes,
                shared=opts.shared,
                tracing=self._tracing,
            )
        except RuntimeError:
            raise taken(
                opts.host, opts.grpc_port, None, port_setting="serve.grpc_port", host_setting="serve.host"
            ) from None
        self.ports = BoundPorts(self._sockets[0].getsockname()[1], self._grpc.port, self._sockets[1].getsockname()[1])

    async def start(self) -> InferenceServer:
        """Listen, so that whoever is told the ports is not refused; what connects waits for the loop."""
        await self._grpc.start()
        for server, listening in zip(self._servers, self._sockets, strict=True):
            listening.listen(server.config.backlog)
        self._serving = [
            asyncio.create_task(server.serve([listening]))
            for server, listening in zip(self._servers, self._sockets, strict=True)
        ]
        return self

    async def stop(self) -> None:
        """Take no more requests, answer those that came, and let Prometheus look until the last one is answered."""
        self._servers[0].should_exit = True
        await asyncio.gather(self._grpc.stop(_DRAIN_SECONDS), self._serving[0])
        self._servers[1].should_exit = True
        await self._serving[1]
        self.batcher.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _traced(self, app: Any) -> Any:
        return app if self._tracing is None else Traced(app, self._tracing)


def announce(opts: Options, version: str, ports: BoundPorts, more: str = "") -> None:
    """Log that the model answers, and where."""
    _LOG.info(
        "serving %s version %s at http://%s:%d/v2/models/%s/infer (gRPC %d, metrics http://%s:%d%s%s)",
        opts.name,
        version,
        opts.host,
        ports.http,
        opts.name,
        ports.grpc,
        opts.host,
        ports.metrics,
        opts.metrics_path,
        more,
        extra={"model": opts.name, "version": version},
    )


def listening_on(host: str, port: int, setting: str, *, shared: bool = False) -> socket.socket:
    """Return a socket that is bound for a port of `serve`.

    Raises ConfigError when it is taken or not of this machine.
    """
    made = bound(host, port, port_setting=f"serve.{setting}", host_setting="serve.host", shared=shared)
    made.setblocking(False)
    return made


def run(opts: Options, engine: Engine, refresher: Refresher, started: Callable[[BoundPorts], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``started`` is told the ports when the model answers.

    Raises what kept the first version from loading.
    """

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, stopping.set)
        # alone, it says on its port that it is not ready yet; beside others, it would take requests that they could
        # answer
        server = None if opts.shared else await InferenceServer(opts, engine).start()
        stopped = asyncio.create_task(stopping.wait())
        loading = loop.run_in_executor(None, refresher.first)
        try:
            either: set[asyncio.Future[Any]] = {stopped, loading}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                server = server or await InferenceServer(opts, engine).start()
                refresher.start()
                started(server.ports)
                await stopped
        finally:
            if server is not None:
                await server.stop()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            runner.run(main())
        finally:
            refresher.stop()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop  # type: ignore[no-any-return]
