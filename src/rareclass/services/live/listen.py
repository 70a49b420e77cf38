"""Predictions of a model that something else serves, and labels, from CloudEvents and Kafka into the prediction log.

What is heard is in the spool (or waits in a file for its other half, see ``adapters.halves``) before it is acknowledged
or its offset is committed: at least once. Names make it idempotent. What can never become a row goes to
``dead_letters.jsonl`` in the folder of the spool and is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.adapters import halves, kafka
from rareclass.adapters.cloudevents import Event, is_event, parsed, read
from rareclass.adapters.halves import REQUEST, RESPONSE, Half, Halves
from rareclass.adapters.spool import Spool
from rareclass.config import Config
from rareclass.errors import InputError, RareclassError, need_package
from rareclass.network import allows, bound, http_url, token
from rareclass.services.live import dead_letters
from rareclass.services.live.heard import BodyReader, is_prediction
from rareclass.services.serving.serve import Shipping
from rareclass.services.serving.shipping import encode

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from rareclass.adapters.kafka import Message
    from rareclass.adapters.store import Store

MAX_BYTES = 64 << 20
"""Bytes of one HTTP body at most."""
KINDS = {"org.kubeflow.serving.inference.request": REQUEST, "org.kubeflow.serving.inference.response": RESPONSE}
"""Types of KServe's logger; others (feedback, custom) are ignored."""
OUTCOMES = ("logged", "waiting", "again", "ignored", "rejected", "unanswered", "without_request", "label")
_EXPIRE_SECONDS = 5.0
_LOG = logging.getLogger(__name__)


class Listener:
    """Takes what is heard, from several threads.

    names : columns of requests that do not name them, see `listen.features`
    clock : seconds since 1970
    """

    def __init__(
        self, config: Config, *, names: Callable[[], Sequence[str]] = tuple, clock: Callable[[], float] = time.time
    ) -> None:
        serve, listen = config.serve, config.listen
        self.config, self.folder, self.clock = config, Path(listen.spool), clock
        self.spool = Spool(listen.spool, serve.spool_limit_bytes, serve.durability, serve.sync_milliseconds)
        try:
            durable = serve.durability == "power"
            self.halves = Halves(listen.spool, limit=serve.spool_limit_bytes, durable=durable)
        except RareclassError:
            self.spool.close()
            raise
        self.counts: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.rows = 0
        self.kafka: bool | None = None
        self._reading = BodyReader(config, names, self.spool.over_limit)
        self._service = listen.service or config.name
        self._store: Store | None = None
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the spool, what waits for its half, and the store."""
        self.halves.close()
        self.spool.close()
        if self._store is not None:
            self._store.close()

    def event(self, event: Event) -> str:
        """Take an event and return its outcome, durable then. Raises InputError for what was rejected, SpoolError."""
        service = event.attributes.get("inferenceservicename", self._service)
        kind = KINDS.get(event.type)
        empty = not event.data or (kind == RESPONSE and not is_prediction(event.data))
        if kind is None or service != self._service or empty:  # another model, feedback, metadata
            return self._count("ignored")
        now = self.clock()
        half = Half(event.id, kind, now if event.time is None else event.time, now, event.data)
        with self._lock:  # the two halves of a pair may come at once
            other = self.halves.put(half)
            if isinstance(other, str):
                return self._count("waiting" if other == "waits" else other)
            request, response = (half, other) if kind == REQUEST else (other, half)
            try:
                return self._log(self._reading.pair(half.id, request.data, response.data, request.time, now))
            except InputError as error:
                raise self._rejected(error, f"event {half.id}", request=request.data, response=response.data) from None
            finally:
                self.halves.done(half.id, now)

    def expire(self) -> None:
        """Let go of halves whose other one did not come: an answer is logged without columns."""
        now = self.clock()
        for half in self.halves.expired(now - self.config.listen.join_seconds):
            if half.kind == REQUEST:
                self._count("unanswered")
            else:
                try:
                    self._log(self._reading.pair(half.id, None, half.data, half.time, now), "without_request")
                except InputError as error:
                    self._rejected(error, f"event {half.id}", response=half.data)
            self.halves.done(half.id, now, joined=False)

    def messages(self, found: Sequence[Message]) -> None:
        """Take messages in their order; they are durable when this returns. Raises what may pass by itself."""
        for message in found:
            try:
                if message.topic == self.config.listen.kafka.labels:
                    self._labels(message)
                elif is_event(message.headers, prefix="ce_"):
                    for event in read(message.headers, message.value, prefix="ce_"):
                        with contextlib.suppress(InputError):  # a bad one, noted there, does not hold up the others
                            self.event(event)
                else:
                    raw, now = parsed(message.value, "the message"), self.clock()
                    self._log(self._reading.message(raw, message.place, message.time, now))
            except InputError as error:
                self._rejected(error, f"message {message.place}", value=message.value)

    def reject(self, error: InputError, body: bytes) -> None:
        """Keep the body of a POST that is no event."""
        self._rejected(error, "POST", body=body)

    def metrics(self) -> str:
        """Return what Prometheus scrapes."""
        name = self.config.name
        lines = [
            "# HELP rareclass_listen_events_total Events and messages by what became of them",
            "# TYPE rareclass_listen_events_total counter",
            *(f'rareclass_listen_events_total{{model="{name}",outcome="{key}"}} {n}' for key, n in self.counts.items()),
        ]
        gauges = {
            "rows_total": ("counter", "Rows put into the prediction log", self.rows),
            "waiting": ("gauge", "Halves that wait for their other one", self.halves.waiting()),
            "spool_bytes": ("gauge", "Bytes in the spool that were not shipped", self.spool.depth()),
            "spool_limit_bytes": (
                "gauge",
                "Spool size from which rows are sampled",
                self.config.serve.spool_limit_bytes,
            ),
        }
        if self.kafka is not None:
            gauges["kafka_connected"] = ("gauge", "1 while the brokers answer", int(self.kafka))
        for key, (kind, text, value) in gauges.items():
            lines += [f"# HELP rareclass_listen_{key} {text}", f"# TYPE rareclass_listen_{key} {kind}"]
            lines.append(f'rareclass_listen_{key}{{model="{name}"}} {value}')
        return "\n".join(lines) + "\n"

    def _labels(self, message: Message) -> None:
        from rareclass.adapters.store import Store
        from rareclass.services.live.labels import receive_labels

        raw = parsed(message.value, "the message")
        if isinstance(raw, dict) and "labels" not in raw:
            raw = [raw]
        if self._store is None:
            self._store = Store(self.config.store.url)
            self._store.migrate()
        now = datetime.fromtimestamp(self.clock(), UTC)
        receive_labels(self.config, raw, now, store=self._store)
        self._count("label")

    def _log(self, records: Sequence[Mapping[str, Any]], outcome: str = "logged") -> str:
        if records:
            self.spool.append([encode(record) for record in records])
        self.rows += sum(len(record["score"]) for record in records)
        return self._count(outcome)

    def _rejected(self, error: InputError, source: str, **parts: bytes) -> InputError:
        dead_letters.keep(self.folder, str(error), source, parts, self.clock())
        self._count("rejected")
        _LOG.warning("%s goes to %s: %s", source, self.folder / dead_letters.FILE, error)
        return error

    def _count(self, outcome: str) -> str:
        self.counts[outcome] += 1
        return outcome


def application(listener: Listener, *, secret: str | None) -> Starlette:
    """Return the ASGI application: POST / (any path) takes events, GET /metrics and /healthz."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    async def take(request: Request) -> Response:
        if secret is not None and not allows(request.headers.get("authorization"), secret, password=True):
            says = "events need the token: as Authorization: Bearer TOKEN, or as the password of the sink's URL"
            return JSONResponse({"error": says}, 401, {"WWW-Authenticate": "Bearer"})
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                return JSONResponse({"error": f"an event has {MAX_BYTES} bytes at most"}, 413)
        try:
            done = await asyncio.to_thread(_taken, listener, dict(request.headers), bytes(body))
        except InputError as error:
            return JSONResponse({"error": str(error)}, 400)
        except (RareclassError, OSError) as error:  # a full disk: whoever sends again later is not refused
            return JSONResponse({"error": " ".join(str(error).split())}, 503)
        return JSONResponse(done)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(await asyncio.to_thread(listener.metrics))

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok", "kafka": listener.kafka})

    return Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", healthz),
            Route("/{path:path}", take, methods=["POST"]),
        ]
    )


def _taken(listener: Listener, headers: Mapping[str, str], body: bytes) -> dict[str, int]:
    """Take the events of a POST and count outcomes. A bad one does not hold up the rest of its batch."""
    try:
        events = read(headers, body)
    except InputError as error:
        listener.reject(error, body)
        raise
    found: Counter[str] = Counter()
    wrong = None
    for event in events:
        try:
            found[listener.event(event)] += 1
        except InputError as error:
            wrong = error
    if wrong is not None:
        raise wrong
    return dict(found)


def feature_names(config: Config) -> Sequence[str]:
    """Return `listen.features`, else the columns of the registered champion (or newest version), else none."""
    from rareclass.services.live.labels import Versions

    if config.listen.features is not None:
        return config.listen.features
    schema = Versions(config).schema
    return () if schema is None else schema.names


class ListenService:
    """The listener behind its socket, with its shipper; ``url`` is known as soon as it is made."""

    def __init__(self, config: Config, environment: Mapping[str, str] | None = None) -> None:
        from rareclass.adapters.serving.server import http_server

        env = os.environ if environment is None else environment
        listen = config.listen
        self.config = config
        self._topics = [topic for topic in (listen.kafka.predictions, listen.kafka.labels) if topic]
        self._options = kafka.options(listen.kafka, config.name, env) if self._topics else {}
        self.socket = bound(listen.host, listen.port, port_setting="listen.port", host_setting="listen.host")
        self.socket.listen(128)
        self.url = f"{http_url(self.socket)}/"
        names = functools.cache(lambda: tuple(feature_names(config)))
        try:
            self.listener = Listener(config, names=names)
        except RareclassError:
            self.socket.close()
            raise
        serve = config.serve.model_copy(update={"spool": listen.spool})
        self._shipping = Shipping(config.model_copy(update={"serve": serve}))
        self.server = http_server(application(self.listener, secret=token(env, listen.token_env)))

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then what was heard is shipped."""
        try:
            asyncio.run(self._main())
        finally:
            self.listener.close()
            self._shipping.stop()
            self.socket.close()

    def stop(self) -> None:
        """Take no more; `run` ends when what came is answered."""
        self.server.should_exit = True

    async def _main(self) -> None:
        others = [asyncio.create_task(self._expire())]
        if self._topics:
            others.append(asyncio.create_task(self._consume()))
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, self.stop)
        try:
            await self.server.serve(sockets=[self.socket])
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_SECONDS)
            try:
                await asyncio.to_thread(self.listener.expire)
            except (RareclassError, OSError) as error:
                _LOG.warning("events still wait: %s", error)

    async def _consume(self) -> None:

        self.listener.kafka = False

        async def keep(found: Sequence[Message]) -> None:
            await asyncio.to_thread(self.listener.messages, found)

        def connected(now: bool) -> None:
            self.listener.kafka = now

        await kafka.consume(self._options, self._topics, keep, connected)


def listen(config: Config) -> None:
    """Listen in the foreground, and say where."""

    need_package("starlette", "serving", "rareclass listen")
    if config.listen.kafka.servers:
        need_package("aiokafka", "kafka", "listen.kafka")
    service = ListenService(config)
    topics = f", topics {', '.join(service._topics)}" if service._topics else ""
    _LOG.info("listening for '%s' on %s%s", config.name, service.url, topics, extra={"model": config.name})
    service.run()


def erase_heard(folder: Path, value: str) -> int:
    """Erase what waits or was rejected and names an id anywhere; return how many."""
    return halves.erase(folder, value) + dead_letters.erase(folder, value)
