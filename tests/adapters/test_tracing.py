"""Spans of requests, sent to a real OTLP collector: a small HTTP server that reads the protocol's protobuf."""

from __future__ import annotations

import asyncio
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from test_serving import MemoryLog, _active, _engine

from rareclass.adapters.serving.server import InferenceServer, Options
from rareclass.adapters.serving.tracing import tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ROWS = {"inputs": [{"name": "rows", "shape": [1, 2], "datatype": "FP32", "data": [1, 0]}]}


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    spans: list[Any] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
                service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
                spans.extend((self.path, service, span) for scope in resource.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", spans
    server.shutdown()
    thread.join()
    server.server_close()


def test_requests_over_http_and_grpc_are_spans_of_the_callers_trace(
    collector: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import grpc

    url, spans = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    engine = _engine(MemoryLog())
    engine.active = _active()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}

    async def main() -> None:
        server = await InferenceServer(Options("small", "127.0.0.1", 0, 0, 0), engine).start()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.ports.http}", headers=headers) as client:
            assert (await client.post("/v2/models/small/infer", json=ROWS)).status_code == 200
            assert (await client.post("/v2/models/small/infer", json={})).status_code == 400
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}") as channel:
            await channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(
                b"", metadata=tuple(headers.items())
            )
        await server.stop()

    asyncio.run(main())
    told = {each.key: each.value.int_value for _, _, span in spans for each in span.attributes}
    assert {path for path, _, _ in spans} == {"/v1/traces"}
    assert {service for _, service, _ in spans} == {"rareclass-small"}
    assert sorted(span.name for _, _, span in spans) == [
        "POST /v2/models/small/infer",
        "POST /v2/models/small/infer",
        "inference.GRPCInferenceService/ServerLive",
    ]
    assert {(span.trace_id.hex(), span.parent_span_id.hex()) for _, _, span in spans} == {(TRACE, PARENT)}
    assert told["http.response.status_code"] in (200, 400)


def test_without_an_endpoint_nothing_is_traced_and_nothing_of_it_imported() -> None:
    assert tracing("small", {}) is None
    code = "import rareclass.adapters.serving.server, sys; print([n for n in sys.modules if 'opentelemetry' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
