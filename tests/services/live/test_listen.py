"""Predictions of another server: CloudEvents over HTTP, what waits, what is rejected, what is erased."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from starlette.testclient import TestClient

import small_model
from rareclass.adapters.cloudevents import BATCH, STRUCTURED, Event, read
from rareclass.adapters.spool import SpoolReader
from rareclass.adapters.store import Store
from rareclass.config import Config, ConfigError
from rareclass.errors import InputError, SpoolFullError
from rareclass.services.admin.retention import forget
from rareclass.services.live import dead_letters
from rareclass.services.live.listen import Listener, application
from rareclass.services.serving.shipping import ship

NOW = 1_800_000_000.0
TYPE = "org.kubeflow.serving.inference."
REQUEST = {"id": "r1", "inputs": [
    {"name": "amount", "shape": [2], "datatype": "FP32", "data": [1.5, 3]},
    {"name": "channel", "shape": [2], "datatype": "BYTES", "data": ["web", "shop"]},
    {"name": "card", "shape": [2], "datatype": "INT64", "data": [7, 8]},
    {"name": "ssn", "shape": [2], "datatype": "BYTES", "data": ["1-2", "3-4"]},
]}  # fmt: skip
RESPONSE = {
    "id": "r1",
    "model_version": "5",
    "outputs": [{"name": "proba", "shape": [2, 2], "datatype": "FP64", "data": [0.9, 0.1, 0.25, 0.75]}],
}


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def make_config(folder: Path, **listen: Any) -> Config:
    data = {"path": "x", "target": "label", "entity": "card", "private": ["ssn"]}
    spool = {"spool": str(folder / "listen"), "threshold": 0.5}
    return small_model.config(folder, data=data, listen={**spool, **listen})


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(make_config(tmp_path), clock=Clock())
    yield made
    made.close()


def event(kind: str, body: object, key: str = "e1", **attributes: str) -> Event:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return Event(key, TYPE + kind, "http://here/", NOW - 5, "application/json", data, attributes)


def logged(listener: Listener) -> list[dict[str, Any]]:
    with SpoolReader(listener.config.listen.spool) as reader:
        return [json.loads(record) for record in reader.read().records]


def letters(listener: Listener) -> list[dict[str, Any]]:
    file = Path(listener.config.listen.spool) / dead_letters.FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("order", [("request", "response"), ("response", "request")])
def test_a_request_and_its_answer_become_one_prediction_in_either_order(
    listener: Listener, order: tuple[str, str]
) -> None:
    bodies = {"request": REQUEST, "response": RESPONSE}
    assert [listener.event(event(kind, bodies[kind])) for kind in order] == ["waiting", "logged"]
    [record] = logged(listener)
    assert (record["request_id"], record["version"], record["ts"]) == ("r1", "5", round((NOW - 5) * 1e6))
    assert (record["score"], record["decision"], record["row"]) == ([0.1, 0.75], [0, 1], [0, 1])
    assert record["entity"] == ["7", "8"]
    assert record["features"] == {"amount": [1.5, 3.0], "channel": ["web", "shop"]}
    assert listener.event(event("request", REQUEST)) == "again"
    assert listener.halves.waiting() == 0


def test_what_waits_survives_the_process_and_is_joined_by_the_next(tmp_path: Path) -> None:
    first = Listener(make_config(tmp_path), clock=Clock())
    first.event(event("response", RESPONSE))
    first.close()
    second = Listener(make_config(tmp_path), clock=Clock())
    assert second.event(event("request", REQUEST)) == "logged"
    second.close()
    assert len(logged(second)) == 1


def test_a_request_without_an_answer_is_let_go_and_an_answer_without_a_request_is_logged(listener: Listener) -> None:
    listener.event(event("request", REQUEST, "a"))
    listener.event(event("response", {**RESPONSE, "id": None}, "b"))
    listener.expire()
    assert listener.halves.waiting() == 2
    listener.clock.now += 601  # type: ignore[attr-defined]
    listener.expire()
    [record] = logged(listener)
    assert (record["request_id"], record["score"], record["features"]) == ("b", [0.1, 0.75], {})
    assert (listener.counts["unanswered"], listener.counts["without_request"], listener.halves.waiting()) == (1, 1, 0)
    listener.clock.now = NOW  # type: ignore[attr-defined]


def test_events_of_other_models_metadata_and_feedback_are_ignored(listener: Listener) -> None:
    assert listener.event(event("request", REQUEST, inferenceservicename="other")) == "ignored"
    assert listener.event(event("request", b"")) == "ignored"
    assert listener.event(event("response", {"name": "small", "versions": ["1"]})) == "ignored"
    assert listener.event(event("feedback", REQUEST)) == "ignored"
    assert listener.event(event("request", REQUEST, inferenceservicename="small")) == "waiting"


V1 = {"instances": [[1.5, "web", 7, "x"], [3, "shop", 8, "y"]]}
NAMES = ("amount", "channel", "card", "ssn")


@pytest.mark.parametrize(
    ("request_body", "response_body"),
    [
        (V1, {"predictions": [[0.9, 0.1], [0.25, 0.75]]}),
        (V1, {"predictions": [0.1, 0.75]}),
        (V1, {"predictions": [{"score": 0.1, "decision": 0}, {"score": 0.75, "decision": 1}]}),
        (
            {"instances": [dict(zip(NAMES, row, strict=True)) for row in V1["instances"]]},
            {"predictions": [[0.1], [0.75]]},
        ),
    ],
)
def test_bodies_of_the_v1_protocol_are_read(
    tmp_path: Path, request_body: dict[str, Any], response_body: dict[str, Any]
) -> None:
    listener = Listener(make_config(tmp_path), names=lambda: NAMES, clock=Clock())
    listener.event(event("request", request_body))
    listener.event(event("response", response_body))
    listener.close()
    [record] = logged(listener)
    assert (record["request_id"], record["version"], record["decision"]) == ("e1", "external", [0, 1])
    assert record["score"] == [0.1, 0.75]
    assert record["features"] == {"amount": [1.5, 3], "channel": ["web", "shop"]}


def test_binary_tensors_are_read_without_the_header_that_the_logger_drops(listener: Listener) -> None:
    rows = np.array([1.5, 3], dtype="<f4").tobytes()
    head = {"inputs": [{"name": "amount", "shape": [2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}]}
    listener.event(event("request", orjson.dumps(head) + rows))
    assert listener.event(event("response", RESPONSE)) == "logged"
    assert logged(listener)[0]["features"] == {"amount": [1.5, 3.0]}


def outputs(*tensors: tuple[str, str, list[Any]]) -> dict[str, Any]:
    return {"outputs": [{"name": n, "shape": [len(d)], "datatype": t, "data": d} for n, t, d in tensors]}


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (outputs(("label", "INT64", [0, 1])), "which output is the score is not known. Set listen.score"),
        (outputs(("a", "FP64", [0, 1]), ("b", "FP64", [0, 1])), "Set listen.score to one of: a, b"),
        (outputs(("score", "FP64", [0.5, -3.5])), "-3.5, which is no probability"),
        (outputs(("score", "FP64", [0.5])), "1 scores for 2 rows"),
        (outputs(("score", "INT64", [0, 1])), "is INT64, not a probability"),
        ({"predictions": [0, 1]}, "whole numbers, not probabilities"),
        ({"predictions": ["a", "b"]}, "must be numbers"),
        (b'{"outputs": [', "the answer is not valid JSON"),
        ({"outputs": [{"name": "score", "shape": [2], "datatype": "FP99", "data": [1, 2]}]}, "unknown datatype"),
    ],
)
def test_an_answer_that_is_no_score_goes_to_the_dead_letters_and_blocks_nobody(
    listener: Listener, response: Any, says: str
) -> None:
    listener.event(event("request", REQUEST))
    with pytest.raises(InputError):
        listener.event(event("response", response))
    [letter] = letters(listener)
    assert says in letter["reason"]
    assert json.loads(letter["request"]) == REQUEST
    assert (listener.counts["rejected"], listener.halves.waiting()) == (1, 0)
    listener.event(event("request", REQUEST, "e2"))
    assert listener.event(event("response", RESPONSE, "e2")) == "logged"


def test_without_a_threshold_an_answer_needs_its_own_decision(tmp_path: Path) -> None:
    listener = Listener(make_config(tmp_path, threshold=None), clock=Clock())
    listener.event(event("request", REQUEST))
    with pytest.raises(InputError, match=r"Set listen\.threshold"):
        listener.event(event("response", RESPONSE))
    decided = outputs(("score", "FP64", [0.1, 0.4]), ("decision", "INT64", [0, 1]))
    listener.event(event("request", {**REQUEST, "id": "r2"}, "e2"))
    assert listener.event(event("response", {**decided, "id": "r2"}, "e2")) == "logged"
    listener.close()
    assert logged(listener)[0]["decision"] == [0, 1]


def test_a_matrix_needs_names_for_its_columns(tmp_path: Path) -> None:
    listener = Listener(make_config(tmp_path), names=lambda: ("a", "b", "c"), clock=Clock())
    listener.event(event("request", V1))
    with pytest.raises(InputError, match=r"4 columns without names, and 3 names are known.*listen\.features"):
        listener.event(event("response", {"predictions": [0.1, 0.2]}))
    listener.close()


def test_a_column_that_identifies_rows_gives_each_row_its_own_id(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"id": "card", "entity": None})})
    listener = Listener(config, clock=Clock())
    listener.event(event("request", REQUEST))
    listener.event(event("response", RESPONSE))
    listener.close()
    assert [(r["request_id"], r["row"], r["score"]) for r in logged(listener)] == [
        ("7", [0], [0.1]),
        ("8", [0], [0.75]),
    ]


def test_rows_decided_0_are_sampled_with_weights_above_the_limit_and_waiting_events_are_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    serve = config.serve.model_copy(update={"spool_limit_bytes": 1 << 16})
    listener = Listener(config.model_copy(update={"serve": serve}), clock=Clock())
    scores = [0.9] + [0.1] * 2000
    wide = outputs(("score", "FP64", scores))
    for key in ("a", "b"):
        listener.event(event("request", {"inputs": [{**REQUEST["inputs"][0], "shape": [2001], "data": scores}]}, key))
        listener.event(event("response", wide, key))
        listener.spool._depth_at = -1.0
    first, second = logged(listener)
    assert len(first["score"]) == 2001
    assert second["decision"][0] == 1
    assert 100 < len(second["score"]) < 400
    assert second["weight"][:2] == [1.0, 10.0]
    listener.event(event("request", b"x" * (1 << 16), "c"))
    with pytest.raises(SpoolFullError, match="wait for their other half"):
        listener.event(event("request", b"x", "d"))
    listener.close()


def test_events_come_over_http_in_all_three_modes_behind_a_token(listener: Listener) -> None:
    def attributes(kind: str) -> dict[str, str]:
        return {
            "specversion": "1.0",
            "id": kind,
            "source": "http://x/",
            "type": TYPE + "request",
            "time": "2027-01-15T08:00:00Z",
        }

    with TestClient(application(listener, secret="s3")) as client:
        binary = {f"ce-{key}": value for key, value in attributes("b%20c").items()}
        body = orjson.dumps(REQUEST)
        assert client.post("/", content=body, headers=binary).status_code == 401
        client.auth = ("anyone", "s3")  # what Go's client makes of http://anyone:s3@listener/
        assert client.post("/", content=body, headers=binary).json() == {"waiting": 1}
        structured = {**attributes("s"), "data": REQUEST}
        sent = client.post("/some/path", content=orjson.dumps(structured), headers={"content-type": STRUCTURED})
        assert sent.json() == {"waiting": 1}
        packed = {**attributes("t"), "data_base64": base64.b64encode(body).decode()}
        bad = {"specversion": "1.0", "id": "x"}
        batch = client.post("/", content=orjson.dumps([packed, packed]), headers={"content-type": BATCH})
        assert batch.json() == {"waiting": 1, "again": 1}
        refused = client.post("/", content=orjson.dumps(bad), headers={"content-type": STRUCTURED})
        assert (refused.status_code, "no 'source'" in refused.json()["error"]) == (400, True)
        scraped = client.get("/metrics").text
    assert 'rareclass_listen_events_total{model="small",outcome="waiting"} 3' in scraped
    assert 'rareclass_listen_waiting{model="small"} 3' in scraped
    assert [half.id for half in listener.halves.expired(NOW + 1)] == ["b c", "s", "t"]
    assert "no 'source'" in letters(listener)[0]["reason"]


@pytest.mark.parametrize(
    ("headers", "body", "says"),
    [
        ({}, b"", "it has no 'id'"),
        ({"content-type": STRUCTURED}, b"{", "not valid JSON"),
        ({"content-type": STRUCTURED}, b"[]", "must be a JSON object"),
        ({"content-type": BATCH}, b"{}", "must be a JSON list"),
        ({"ce-id": "a", "ce-source": "b", "ce-type": "c", "ce-specversion": "0.3"}, b"", "Send version 1.0"),
        ({"ce-id": "a", "ce-source": "b", "ce-type": "c", "ce-specversion": "1.0", "ce-time": "9"}, b"", "ISO 8601"),
        (
            {"content-type": STRUCTURED},
            b'{"id": "a", "source": "b", "type": "c", "specversion": "1.0", "data_base64": "?"}',
            "not base64",
        ),
    ],
)
def test_what_is_no_cloudevent_is_refused_in_one_line(headers: dict[str, str], body: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read(headers, body)


def test_erasure_reaches_what_waits_and_what_was_rejected(listener: Listener) -> None:
    person = {"inputs": [{"name": "card", "shape": [1], "datatype": "BYTES", "data": ["card-of-anna"]}]}
    listener.event(event("request", person, "a"))
    listener.event(event("request", REQUEST, "b"))
    listener.event(event("request", person, "c"))
    with pytest.raises(InputError):
        listener.event(event("response", outputs(("label", "INT64", [1])), "c"))
    forget(listener.config, datetime.fromtimestamp(NOW, UTC), entity="card-of-anna")
    assert listener.halves.waiting() == 1
    assert letters(listener) == []


def test_what_was_heard_reaches_the_store(listener: Listener, tmp_path: Path) -> None:
    listener.event(event("request", REQUEST))
    listener.event(event("response", RESPONSE))
    with Store(listener.config.store.url) as store, SpoolReader(listener.config.listen.spool) as reader:
        store.migrate()
        assert ship(reader, store)[1] == 2
        at = datetime.fromtimestamp(NOW, UTC)
        window = store.window("small", at.replace(year=at.year - 1), at)
    assert window["score"].tolist() == [0.1, 0.75]
    assert "ssn" not in str(window.to_dict())


def test_kafka_needs_servers_and_topics_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Set listen\.kafka\.servers"):
        make_config(tmp_path, kafka={"labels": "late"})
