"""What the server publishes about its routes holds: requests made from it get answers of its form, never a 5xx."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from test_serving_tables import Site

from rareclass.adapters.serving.batcher import Batcher
from rareclass.adapters.serving.catalogue import Catalogue
from rareclass.adapters.serving.http import ROUTES, application
from rareclass.adapters.serving.openapi import OPERATIONS, SCHEMAS
from rareclass.adapters.serving.tabular import ARROW

SITE = Site()
APP = application(Catalogue(SITE.engine, "small"), Batcher(SITE.engine), token=None)
schemathesis.serializer.alias(ARROW, "application/octet-stream")
# one of each handler: the other paths of infer are the same function
PUBLISHED = schemathesis.openapi.from_asgi("/openapi.json", APP).exclude(
    path_regex=r"generate|version}/infer|infer_stream$"
)
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
]


@PUBLISHED.parametrize()
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_generated_requests_get_answers_of_the_published_form_and_never_a_server_error(case: Any) -> None:
    case.call_and_validate(checks=CHECKS)


MODEL, VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
SPOKEN = {
    # the Open Inference Protocol, with its extensions generate and the repository
    *(("get", path) for path in ("/v2", "/v2/", "/v2/health/live", "/v2/health/ready")),
    *(("get", path + end) for path in (MODEL, VERSION) for end in ("", "/ready")),
    *(
        ("post", f"{path}/{verb}{stream}")
        for path in (MODEL, VERSION)
        for verb in ("infer", "generate")
        for stream in ("", "_stream")
    ),
    ("post", "/v2/repository/index"),
    *(("post", f"/v2/repository/models/{{name}}/{verb}") for verb in ("load", "unload")),
    # MLflow's scoring server
    ("post", "/invocations"), ("get", "/ping"), ("get", "/health"),
    ("get", "/openapi.json"),
}  # fmt: skip


def test_what_is_published_is_what_clients_of_the_protocol_and_of_mlflow_ask_for() -> None:
    published = SITE.send("/openapi.json", b"", "", "GET").json()["paths"]
    assert {(method, path) for path, methods in published.items() for method in methods} == SPOKEN
    assert {handler.__name__ for _, _, handler in ROUTES} == OPERATIONS.keys()


@pytest.mark.parametrize(("method", "path"), sorted(SPOKEN))
def test_each_published_operation_is_answered_by_its_own_handler(method: str, path: str) -> None:
    asked = path.replace("{name}", "small").replace("{version}", "3")
    said = SITE.send(asked, b"{}" if method == "post" else b"", "application/json", method.upper())
    operation = SITE.send("/openapi.json", b"", "", "GET").json()["paths"][path][method]
    assert str(said.status_code) in operation["responses"], said.text
    assert said.status_code not in (404, 405), "no route of this path, or of another method only"


_VALUES = {
    "FP32": st.floats(-1e6, 1e6, width=32), "FP64": st.floats(-1e6, 1e6), "INT64": st.integers(-1000, 1000),
    "BYTES": st.text(max_size=5),
}  # fmt: skip


@st.composite
def _requests(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.integers(1, 4))
    columns = {"amount": draw(st.sampled_from(["FP32", "FP64", "INT64"])), "channel": "BYTES"}
    inputs = [
        {
            "name": name,
            "shape": draw(st.sampled_from([[rows], [rows, 1]])),
            "datatype": kind,
            "data": draw(st.lists(_VALUES[kind], min_size=rows, max_size=rows)),
        }
        for name, kind in draw(st.permutations(list(columns.items())))
    ]
    names = draw(st.lists(st.sampled_from(["score", "decision", "threshold", "version", "reasons"]), unique=True))
    return {"inputs": inputs, "outputs": [{"name": name} for name in names]}


@given(_requests())
@settings(max_examples=25, deadline=None)
def test_rows_that_the_metadata_asks_for_are_scored_in_the_published_form(request: dict[str, Any]) -> None:
    said = SITE.send("/v2/models/small/infer", json.dumps(request).encode(), "application/json")
    assert said.status_code == 200, said.text
    form = {"$ref": "#/components/schemas/inference_response", "components": {"schemas": dict(SCHEMAS)}}
    jsonschema.validate(said.json(), form)
    rows = request["inputs"][0]["shape"][0]
    names = [output["name"] for output in request["outputs"]] or ["score", "decision", "threshold", "version"]
    assert [output["name"] for output in said.json()["outputs"]] == names
    assert all(np.shape(output["data"]) == (rows,) for output in said.json()["outputs"])
