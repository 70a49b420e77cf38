"""OpenTelemetry spans of requests, sent where the environment says; without an endpoint nothing of this is imported.

The endpoint and what else there is to say (headers, sampling, service name) come from OpenTelemetry's own variables. A
span continues the caller's trace (W3C `traceparent`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from rareclass.errors import need_package

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """Makes the server's spans."""

    def __init__(self, model: str, environment: Mapping[str, str]) -> None:
        """Raises MissingExtraError without the packages of the extra `telemetry`."""
        need_package("opentelemetry", "telemetry", f"{ENDPOINTS[0]} is set, and tracing")
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.propagate import extract
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind

        service = {} if environment.get("OTEL_SERVICE_NAME") else {"service.name": f"rareclass-{model}"}
        self._provider = TracerProvider(resource=Resource.create(service))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("rareclass")
        self._extract, self._kind = extract, SpanKind.SERVER

    def span(self, name: str, carrier: Mapping[str, str], attributes: Mapping[str, str]) -> AbstractContextManager[Any]:
        """Return the span of a request as a context. carrier : its headers, lower case"""
        return self._tracer.start_as_current_span(  # type: ignore[no-any-return]
            name, context=self._extract(carrier), kind=self._kind, attributes=attributes
        )

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


def tracing(model: str, environment: Mapping[str, str]) -> Tracing | None:
    """Return what makes spans, None where no endpoint is set."""
    return Tracing(model, environment) if any(environment.get(name) for name in ENDPOINTS) else None


class Traced:
    """An ASGI application whose requests are spans."""

    def __init__(self, app: Any, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with self._tracing.span(f"{scope['method']} {scope['path']}", headers, attributes) as span:

            async def told(message: Any) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self._app(scope, receive, told)


def interceptor(tracing: Tracing) -> Any:
    """Return a gRPC interceptor whose unary calls are spans."""
    import grpc

    class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            handler = await continuation(details)
            if handler is None or handler.unary_unary is None:
                return handler
            carrier = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
            attributes = {"rpc.system": "grpc", "rpc.method": details.method}

            async def call(request: Any, context: Any) -> Any:
                with tracing.span(details.method.lstrip("/"), carrier, attributes):
                    return await handler.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)

    return Interceptor()
