"""The monitor as a small HTTP service: /metrics, /healthz, POST /labels, /review and the status page."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rareclass.adapters import exporter
from rareclass.config import Config
from rareclass.core.jsonable import dumps
from rareclass.errors import InputError, RareclassError
from rareclass.network import allows, bound, http_url
from rareclass.network import token as token_of
from rareclass.services.live import verdict as judgement

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from rareclass.adapters.reports.status import Status
    from rareclass.adapters.store import Store
    from rareclass.core.triage import Snapshot, Verdict
    from rareclass.services.live.monitor import Monitor

LABEL_BYTES = 1024
"""Bytes of a POST /labels body at most, per label of `labels.max_batch`."""
STALE_AFTER = 3
"""/healthz fails when this many evaluations in a row are overdue."""

_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
_LOG = logging.getLogger(__name__)


class Watch:
    """The latest evaluation, repeated in a thread; the thread is all the state there is."""

    def __init__(
        self, config: Config, clock: Callable[[], datetime], timer: Callable[[], float] = time.monotonic
    ) -> None:
        self.config, self.clock, self.timer = config, clock, timer
        self.snapshot: Snapshot | None = None
        self.verdict: Verdict | None = None
        self.status: Status | None = None
        self.duration = math.nan
        self.failures = 0
        self.error = ""
        self.started = timer()
        self.succeeded: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="evaluate", daemon=True)
        self._monitor: Monitor | None = None
        self._page: tuple[Status | None, str, str] = None, "", ""

    def start(self) -> None:
        """Begin to evaluate, every ``monitor.every``."""
        self._thread.start()

    def stop(self) -> None:
        """End after the evaluation in work, waiting a minute at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=60)
        if self._monitor is not None:
            self._monitor.close()

    def once(self) -> None:
        """Evaluate now. A failure is counted and told, and leaves the last snapshot with its old timestamp."""
        from rareclass.services.live.monitor import Monitor
        from rareclass.services.live.status import gather

        begun = self.timer()
        try:
            if self._monitor is None:
                self._monitor = Monitor(self.config)
            snapshot = self._monitor.evaluate(self.clock())
            verdict = judgement.triage(self.config, snapshot.now, snapshot=snapshot)
        except Exception as error:
            self.failures += 1
            self.error = _in_one_line(error)
            return
        self.duration = self.timer() - begun
        self.snapshot, self.verdict, self.error, self.succeeded = snapshot, verdict, "", self.timer()
        # after the numbers are out: the page may take longer, and may fail without an alert missing its evidence
        try:
            self.status = gather(self._monitor, snapshot, verdict)
        except Exception as error:
            _LOG.warning("the status page could not be made", exc_info=error)
            self.error = f"the page is of an earlier evaluation: {_in_one_line(error)}"

    def page(self) -> tuple[str, Mapping[str, str]]:
        """Return the status page with its headers; it is made once per evaluation, however often it is asked for."""
        from rareclass.adapters.reports.status import policy, status_page

        error = self.error or ("evaluations are overdue" if self.overdue() else "")
        status, (made_of, said, text) = self.status, self._page
        if made_of is not status or said != error or not text:
            every = self.config.monitor.every.total_seconds()
            text = status_page(self.config.name, status, error=error, every=every)
            self._page = status, error, text
        return text, {**_HEADERS, "Content-Security-Policy": policy(text)}

    def overdue(self) -> bool:
        """Whether evaluations stopped succeeding."""
        since = self.started if self.succeeded is None else self.succeeded
        return self.timer() - since > STALE_AFTER * max(self.config.monitor.every.total_seconds(), 20.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.once()
            self._stop.wait(self.config.monitor.every.total_seconds())


def _in_one_line(error: Exception) -> str:
    return str(error) if isinstance(error, RareclassError) else f"{type(error).__name__}: {error}"


class RateLimit:
    """At most ``limit`` events in any 60 seconds."""

    def __init__(self, limit: int, timer: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.timer = limit, timer
        self._times: deque[float] = deque()

    def allow(self) -> bool:
        """Say whether one more call fits into this minute, and count it."""
        now = self.timer()
        while self._times and now - self._times[0] >= 60:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return False
        self._times.append(now)
        return True


def build(config: Config, watch: Watch, store: Store, *, env: Mapping[str, str] | None = None) -> Starlette:
    """Return the ASGI application over a watch and a store."""
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    settings = os.environ if env is None else env
    label_token, look_token = (token_of(settings, name) for name in (config.labels.token_env, config.monitor.token_env))
    limit = RateLimit(config.labels.requests_per_minute)

    async def metrics(request: Request) -> Response:
        text = exporter.render(
            watch.snapshot, watch.verdict, model=config.name, duration=watch.duration, failures=watch.failures
        )
        return Response(text, media_type=exporter.CONTENT_TYPE)

    async def healthz(request: Request) -> Response:
        if watch.overdue():
            return _json({"status": "stale", "error": watch.error}, 503)
        return _json({"status": "ok", "evaluated": None if watch.snapshot is None else watch.snapshot.now.isoformat()})

    async def labels(request: Request) -> Response:
        return await _labels(request, config, watch, store, limit, label_token or "")

    def closed(request: Request) -> Response | None:
        """What is answered to who may not look: a browser asks for a password then, which is the token."""
        if look_token is None or allows(request.headers.get("authorization"), look_token, password=True):
            return None
        says = "this page needs the token: as Authorization: Bearer TOKEN, or as the password of any user"
        return _error(says, 401, {"WWW-Authenticate": 'Basic realm="rareclass: any user, the token as password"'})

    async def status(request: Request) -> Response:
        if (refused := closed(request)) is not None:
            return refused
        text, headers = watch.page()
        return HTMLResponse(text, headers=headers)

    async def snapshot(request: Request) -> Response:
        if (refused := closed(request)) is not None:
            return refused
        found = watch.snapshot
        return _json({} if found is None else {**found.to_json(), "verdict": watch.verdict and watch.verdict.to_json()})

    async def review(request: Request) -> Response:
        from rareclass.services.live.review import waiting

        if (refused := closed(request)) is not None:
            return refused
        try:
            return _json(await asyncio.to_thread(waiting, config, store, watch.clock()))
        except RareclassError as error:
            return _error(str(error), 503)

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/labels", labels, methods=["POST"]),
            Route("/snapshot.json", snapshot),
            Route("/review", review),
            Route("/", status),
        ]
    )


async def _labels(
    request: Request, config: Config, watch: Watch, store: Store, limit: RateLimit, token: str
) -> Response:
    """Take late labels. Who can write labels can steer retraining: closed without a token, limited in rate and size."""

    from rareclass.services.live import labels as service

    if not token:
        return _error(f"POST /labels is closed. Set {config.labels.token_env} to open it", 403)
    if not allows(request.headers.get("authorization"), token):
        return _error("the bearer token is missing or wrong", 401, {"WWW-Authenticate": "Bearer"})
    if not limit.allow():
        return _error(
            f"more than {limit.limit} requests a minute (labels.requests_per_minute)", 429, {"Retry-After": "60"}
        )
    most = LABEL_BYTES * config.labels.max_batch
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return _error(f"the body is longer than {most} bytes. Send fewer labels at once", 413)
    try:
        payload = json.loads(bytes(body))
    except (ValueError, RecursionError):
        return _error("the body is not valid JSON", 400)
    try:
        report = await asyncio.to_thread(service.receive_labels, config, payload, watch.clock(), store=store)
    except InputError as error:
        return _error(str(error), 400)
    except RareclassError as error:
        return _error(str(error), 503)
    return _json(asdict(report))


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import Response

    return Response(
        dumps(value),
        status,
        dict(headers or {}),
        media_type="application/json",
    )


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": message}, status, headers)


# --- running it ------------------------------------------------------------------------------------------------------


class Service:
    """The monitor's server on its own socket; ``url`` is known as soon as it is made."""

    def __init__(
        self, config: Config, *, clock: Callable[[], datetime] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        import uvicorn

        from rareclass.adapters.store import Store

        self.config = config
        watch = config.monitor
        self.socket = bound(watch.host, watch.port, port_setting="monitor.port", host_setting="monitor.host")
        self.socket.listen(128)
        self.url = http_url(self.socket)
        self.store = Store(config.store.url)
        self.store.migrate()
        self.watch = Watch(config, clock or (lambda: datetime.now(UTC)))
        application = build(config, self.watch, self.store, env=env)
        self.server = uvicorn.Server(
            uvicorn.Config(application, log_config=None, log_level="warning", access_log=False)
        )
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        self.watch.start()
        try:
            self.server.run(sockets=[self.socket])
        finally:
            self._close()

    def start(self) -> None:
        """Serve in a thread until ``stop``."""
        self.watch.start()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self.server.serve(sockets=[self.socket])), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and evaluating."""
        self.server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=60)
        self._close()

    def _close(self) -> None:
        self.watch.stop()
        self.store.close()
        self.socket.close()


def serve(config: Config) -> None:
    """Run the service in the foreground and say where it is."""
    service = Service(config)
    _LOG.info(
        "monitor of '%s' on %s (/metrics, /healthz, /labels)", config.name, service.url, extra={"model": config.name}
    )
    service.run()
