"""Predictions and labels from a real Kafka: what is kept, what is committed, what comes again."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import small_model
from conftest import missing
from kafka_broker import Broker
from postgres import NotInstalledError
from rareclass.adapters import kafka
from rareclass.adapters.kafka import Message
from rareclass.adapters.spool import SpoolReader
from rareclass.adapters.store import Store
from rareclass.config import Config, KafkaSettings, dump
from rareclass.errors import ConfigError, SpoolFullError
from rareclass.services.live import dead_letters
from rareclass.services.live.listen import Listener
from rareclass.services.serving.shipping import ship
from waiting import until

NOW = time.time()
ALWAYS = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC))
TYPE = "org.kubeflow.serving.inference."


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    try:
        made = Broker(tmp_path_factory.mktemp("kafka"))
    except NotInstalledError as error:
        missing(str(error))
        raise
    yield made
    made.stop()


def produce(broker: Broker, *messages: tuple[str, Any, dict[str, str]]) -> None:
    from aiokafka import AIOKafkaProducer

    async def send() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=broker.address)
        await producer.start()
        for topic, value, headers in messages:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            await producer.send_and_wait(topic, body, headers=[(key, text.encode()) for key, text in headers.items()])
        await producer.stop()

    asyncio.run(send())


def committed(broker: Broker, group: str, topic: str) -> int | None:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    async def ask() -> int | None:
        consumer = AIOKafkaConsumer(bootstrap_servers=broker.address, group_id=group, enable_auto_commit=False)
        await consumer.start()
        try:
            return await consumer.committed(TopicPartition(topic, 0))
        finally:
            await consumer.stop()

    return asyncio.run(ask())


def test_offsets_are_committed_when_the_messages_are_kept_and_not_before(broker: Broker) -> None:
    produce(broker, ("early", {"at": 1}, {}), ("early", {"at": 2}, {}))
    options = kafka.options(KafkaSettings(servers=broker.address, predictions="early"), "once")
    came: list[list[int]] = []
    seen: list[int | None] = []

    async def keep(found: Sequence[Message]) -> None:
        came.append([message.offset for message in found])
        if len(came) == 1:
            raise SpoolFullError("the disk is full")
        seen.append(await asyncio.to_thread(committed, broker, "rareclass-once", "early"))

    async def main() -> None:
        states: list[bool] = []
        task = asyncio.create_task(kafka.consume(options, ["early"], keep, states.append))
        while await asyncio.to_thread(committed, broker, "rareclass-once", "early") != 2:
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert states[:3] == [True, False, True]

    asyncio.run(asyncio.wait_for(main(), 60))
    assert came == [[0, 1], [0, 1]]
    assert seen == [None]


def make_config(broker: Broker, folder: Path) -> Config:
    topics = {"servers": broker.address, "predictions": "predictions", "labels": "late"}
    listen = {"spool": str(folder / "listen"), "threshold": 0.5, "port": 0, "kafka": topics}
    return small_model.config(folder, data={"path": "x", "target": "label", "private": ["ssn"]}, listen=listen)


def test_the_command_takes_posts_and_both_topics_past_what_is_poison_and_ships_before_it_ends(
    broker: Broker, tmp_path: Path
) -> None:
    config = make_config(broker, tmp_path)
    (tmp_path / "c.json").write_text(json.dumps(dump(config)))
    answer = {"model_version": "5", "outputs": [{"name": "score", "shape": [1], "datatype": "FP64", "data": [0.7]}]}
    asked = {"inputs": [{"name": "amount", "shape": [1], "datatype": "FP64", "data": [3]}]}
    event = {"ce_specversion": "1.0", "ce_id": "e1", "ce_source": "x"}
    produce(
        broker,
        (
            "predictions",
            {"request_id": "p1", "score": [0.2, 0.9], "features": {"amount": [1, 2], "ssn": ["a", "b"]}},
            {},
        ),
        ("predictions", b"not json", {}),
        ("predictions", {"score": 7}, {}),
        ("predictions", asked, {**event, "ce_type": TYPE + "request"}),
        ("predictions", answer, {**event, "ce_type": TYPE + "response"}),
        ("late", {"request_id": "p1", "row": 1, "label": 1}, {}),
        ("late", [{"request_id": "e1", "label": 2}], {}),
        ("late", [{"request_id": "p1", "row": 0, "label": 0}, {"request_id": "e1", "label": 1}], {}),
    )
    command = [str(Path(sys.executable).with_name("rareclass")), "listen", "-c", str(tmp_path / "c.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "listening for 'small'" in line)
        url = next(word for word in line.split() if word.startswith("http")).rstrip(",")
        headers = {"ce-specversion": "1.0", "ce-source": "x"}
        for kind, body in (("request", asked), ("response", answer)):
            sent = {**headers, "ce-id": "h1", "ce-type": TYPE + kind}
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), sent), timeout=60).close()
        until(lambda: committed(broker, "rareclass-small", "late") == 3, 90)
        until(lambda: committed(broker, "rareclass-small", "predictions") == 5, 90)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    with Store(config.store.url) as store:
        window = store.window("small", *ALWAYS)
        kept = store.query("SELECT request_id, row, features FROM predictions WHERE request_id = 'p1'")
    window = window.set_index(["request_id", "row"]).sort_index()
    assert window["score"].to_dict() == {("e1", 0): 0.7, ("h1", 0): 0.7, ("p1", 0): 0.2, ("p1", 1): 0.9}
    assert window["label"].dropna().to_dict() == {("e1", 0): 1, ("p1", 0): 0, ("p1", 1): 1}
    assert window["version"].to_dict()["e1", 0] == "5"
    assert sorted(kept["features"]) == ['{"amount":1}', '{"amount":2}']
    assert len((tmp_path / "listen" / dead_letters.FILE).read_text().splitlines()) == 3


def test_messages_that_come_again_make_no_second_row(tmp_path: Path) -> None:
    config = small_model.config(tmp_path, listen={"spool": str(tmp_path / "listen"), "threshold": 0.5})
    listener = Listener(config)
    body = json.dumps({"score": [0.2, 0.7], "features": {"amount": [1, 2]}}).encode()
    for _ in range(2):
        listener.messages([Message("t", 0, 4, NOW - 5, {}, body)])
    listener.close()
    with Store(config.store.url) as store, SpoolReader(tmp_path / "listen") as reader:
        store.migrate()
        assert ship(reader, store)[1] == 2
        assert store.window("small", *ALWAYS)["request_id"].tolist() == ["t-0-4"] * 2


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "must be a JSON object"),
        ({"score": 0.5, "row": 1}, "unknown field 'row'"),
        ({}, "no rows"),
        ({"score": "high"}, "must be numbers"),
        ({"score": [0.1, 0.2], "features": {"a": [1]}}, "'a' has 1 values for 2 rows"),
        ({"score": 0.5, "threshold": "x"}, "'threshold' must be a number"),
        ({"score": 0.5, "decision": 2}, "'decision' must be 0 or 1"),
        ({"score": 0.5, "propensity": 3}, "'propensity' must be a probability"),
        ({"score": 0.5, "ts": "soon"}, "'ts' must be ISO 8601"),
        ({"score": 0.5, "ts": 0}, "older than store.retention"),
        ({"score": 0.5, "request_id": "x" * 201}, "up to 200 printable"),
    ],
)
def test_a_prediction_that_can_never_be_a_row_is_kept_with_its_reason(tmp_path: Path, value: Any, says: str) -> None:
    listen = {"spool": str(tmp_path / "listen"), "threshold": 0.5}
    listener = Listener(small_model.config(tmp_path, listen=listen))
    good = json.dumps({"score": 0.25, "entity": "anna"}).encode()
    bad = json.dumps(value).encode()
    listener.messages([Message("t", 0, at, NOW, {}, body) for at, body in enumerate((bad, good))])
    listener.close()
    [letter] = (json.loads(line) for line in (tmp_path / "listen" / dead_letters.FILE).read_text().splitlines())
    assert (says in letter["reason"], letter["value"]) == (True, bad.decode())
    with SpoolReader(tmp_path / "listen") as reader:
        [record] = [json.loads(record) for record in reader.read().records]
    assert (record["request_id"], record["ts"], record["entity"]) == ("t-0-1", round(NOW * 1e6), ["anna"])


def test_what_the_brokers_ask_for_is_said_before_anything_starts(tmp_path: Path) -> None:
    settings = KafkaSettings(servers="b:1", labels="l", security="sasl_ssl", username="u")
    with pytest.raises(ConfigError, match="RARECLASS_KAFKA_PASSWORD"):
        kafka.options(settings, "m", {})
    found = kafka.options(settings, "m", {"RARECLASS_KAFKA_PASSWORD": "p\n"})
    assert (found["security_protocol"], found["sasl_plain_password"], found["group_id"]) == (
        "SASL_SSL",
        "p",
        "rareclass-m",
    )
    with pytest.raises(ConfigError, match="ca_file"):
        kafka.options(
            settings.model_copy(update={"ca_file": str(tmp_path / "no")}), "m", {"RARECLASS_KAFKA_PASSWORD": "p"}
        )
