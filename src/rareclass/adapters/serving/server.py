"""The entry point: MLServer built in this process, with our infer routes, errors, sockets and shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import uvicorn
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.errors import ModelNotFound
from mlserver.handlers import ModelRepositoryHandlers
from mlserver.metrics import MetricsServer
from mlserver.registry import MultiModelRegistry
from mlserver.rest import RESTServer
from mlserver.settings import ModelParameters
from mlserver.types import (
    MetadataTensor,
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryIndexResponseItem,
    State,
)  # fmt: skip

from rareclass.adapters.serving import grpc_server
from rareclass.adapters.serving.batcher import Batcher
from rareclass.adapters.serving.engine import Engine
from rareclass.adapters.serving.http import Gate, error_handlers
from rareclass.adapters.serving.refresh import Refresher
from rareclass.adapters.serving.v2_codec import OUTPUTS

_LOG = logging.getLogger("rareclass.serving")


@dataclass(frozen=True)
class Options:
    """Where the server listens and what it calls itself. Ports of 0 are picked free."""

    name: str
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    metrics_path: str = "/metrics"
    token: str | None = None
    max_body_bytes: int = 64 << 20


@dataclass(frozen=True)
class Ports:
    """The ports that were bound."""

    http: int
    grpc: int
    metrics: int


def options(
    environment: Mapping[str, str],
    *,
    name: str,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    token: str | None,
) -> Options:
    """Return the options with what an operator injects (MLSERVER_HTTP_PORT, MLSERVER_MODEL_NAME, ...) taking precedence."""

    def port(key: str, value: int) -> int:
        text = environment.get(key, "")
        return int(text) if text.isdecimal() and int(text) < 65536 else value

    return Options(
        name=environment.get("MLSERVER_MODEL_NAME") or name,
        host=environment.get("MLSERVER_HOST") or host,
        http_port=port("MLSERVER_HTTP_PORT", http_port),
        grpc_port=port("MLSERVER_GRPC_PORT", grpc_port),
        metrics_port=port("MLSERVER_METRICS_PORT", metrics_port),
        metrics_path=environment.get("MLSERVER_METRICS_ENDPOINT") or "/metrics",
        token=token or None,
    )


class Runtime(MLModel):  # type: ignore[misc]
    """The model as MLServer sees it: its metadata, and whether it is ready."""

    engine: Engine

    @property
    def ready(self) -> bool:
        return self.engine.active is not None

    @ready.setter
    def ready(self, value: bool) -> None:
        """MLServer sets it; what counts is whether a version answers."""

    async def metadata(self) -> Any:
        active = self.engine.active
        if active is not None:
            schema = active.signature.schema
            self.inputs = [
                MetadataTensor(name=f.name, datatype="FP32" if f.kind == "numeric" else "BYTES", shape=[-1])
                for f in schema.features
            ]
            self.outputs = [MetadataTensor(name=name, datatype=kind, shape=[-1]) for name, kind in OUTPUTS.items()]
        found = await super().metadata()
        found.platform = "rareclass"
        found.versions = [] if active is None else [active.version]
        return found


class Registry(MultiModelRegistry):  # type: ignore[misc]
    """One model, whose version is the champion's."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self._runtime = runtime

    async def get_model(self, name: str, version: str | None = None) -> Runtime:
        active = self._runtime.engine.active
        if name != self._runtime.name or (version and (active is None or version != active.version)):
            raise ModelNotFound(name, version or None)
        return self._runtime

    async def get_models(self, name: str | None = None) -> list[Runtime]:
        return [self._runtime]


class Handlers(ModelRepositoryHandlers):  # type: ignore[misc]
    """The repository extension, read-only: versions are changed by their alias."""

    async def index(self, payload: RepositoryIndexRequest) -> RepositoryIndexResponse:
        runtime = await self._model_registry.get_models()
        active = runtime[0].engine.active
        items = [
            RepositoryIndexResponseItem(
                name=runtime[0].name,
                version=None if active is None else active.version,
                state=State.LOADING if active is None else State.READY,
                reason="",
            )
        ]
        return RepositoryIndexResponse(root=[] if payload.ready and active is None else items)

    async def load(self, name: str) -> bool:
        raise ModelNotFound(f"{name}: models are loaded by their alias here; use rareclass promote")

    async def unload(self, name: str) -> bool:
        raise ModelNotFound(f"{name}: models are unloaded by their alias here; use rareclass rollback")


class _Http(uvicorn.Server):
    """uvicorn on a socket that is bound already; signals are handled by MLServer."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Any) -> uvicorn.Config:
    return uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off", timeout_graceful_shutdown=20)


class _Rest(RESTServer):  # type: ignore[misc]
    def __init__(
        self, settings: Settings, data_plane: Any, handlers: Any, gate: Callable[[Any], Gate], bound: socket.socket
    ) -> None:
        super().__init__(settings, data_plane, handlers)
        error_handlers(self._app)
        self._app = gate(self._app)
        self._bound = bound

    async def start(self) -> None:
        self._server = _Http(_config(self._app))
        await self._server.serve(sockets=[self._bound])


class _Metrics(MetricsServer):  # type: ignore[misc]
    def __init__(self, settings: Settings, bound: socket.socket) -> None:
        super().__init__(settings)
        self._bound = bound

    async def start(self) -> None:
        self._server = _Http(_config(self._app))
        await self._server.serve(sockets=[self._bound])


class Server(MLServer):  # type: ignore[misc]
    """MLServer with zero workers and our parts. ``run`` serves until a signal and then stops in order."""

    def __init__(self, opts: Options, engine: Engine, refresher: Refresher) -> None:
        self.opts, self.engine, self.refresher = opts, engine, refresher
        self.batcher = Batcher(engine)
        self._sockets = [_bound(opts.host, opts.http_port), _bound(opts.host, opts.metrics_port)]
        settings = Settings(
            debug=False, parallel_workers=0, host=opts.host, http_port=opts.http_port, grpc_port=opts.grpc_port,
            metrics_port=opts.metrics_port, metrics_endpoint=opts.metrics_path, server_name="rareclass", server_version=version("rareclass"),
            extensions=["binary_tensor_data"], load_models_at_startup=False, gzip_enabled=True,
            grpc_max_message_length=opts.max_body_bytes, model_repository_root=os.devnull,
        )  # fmt: skip
        super().__init__(settings)
        self._metrics_server = _Metrics(settings, self._sockets[1])

    def _create_model_registry(self) -> Registry:
        runtime = Runtime(
            ModelSettings(name=self.opts.name, implementation=Runtime, parameters=ModelParameters(uri="champion"))
        )
        runtime.engine = self.engine
        return Registry(runtime)

    def _create_servers(self) -> None:
        self._kafka_server = None
        self._model_repository_handlers = Handlers(self._model_repository, self._model_registry)
        self._rest_server = _Rest(
            self._settings,
            self._data_plane,
            self._model_repository_handlers,
            lambda app: Gate(app, self.batcher, name=self.opts.name, token=self.opts.token),
            self._sockets[0],
        )
        self._grpc_server = grpc_server.Server(
            self._settings,
            self._data_plane,
            self._model_repository_handlers,
            self.batcher,
            self.opts.name,
            self.opts.token,
        )

    def _configure_logger(self) -> None:
        """Logging is the caller's."""

    def bind(self) -> Ports:
        """Bind gRPC too and return the ports."""
        grpc_port = self._grpc_server.bind()
        return Ports(self._sockets[0].getsockname()[1], grpc_port, self._sockets[1].getsockname()[1])

    async def stop(self, sig: int | None = None) -> None:
        """Stop taking requests; those that came are answered."""
        if self._stopping:
            return
        self._stopping = True
        await super().stop(sig)

    _stopping = False


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    bound.listen(1024)
    bound.setblocking(False)
    return bound


def run(opts: Options, engine: Engine, refresher: Refresher, started: Callable[[Ports], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``started`` is told the ports when the model answers.

    Raises what kept the first version from loading.
    """
    failure: list[BaseException] = []

    async def main() -> None:
        server = Server(opts, engine, refresher)
        ports = server.bind()
        serving = asyncio.create_task(server.start([]))
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(None, refresher.first)
        except Exception as error:
            failure.append(error)
            while not getattr(server._rest_server, "_server", None):
                await asyncio.sleep(0)
            await server.stop()
        else:
            refresher.start()
            started(ports)
        await serving
        server.batcher.close()

    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.install()
    asyncio.run(main())
    refresher.stop()
    if failure:
        raise failure[0]
