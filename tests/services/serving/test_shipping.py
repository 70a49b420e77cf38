"""From the spool to the store, with shippers, writers and databases that are really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rareclass.adapters.spool import Spool, SpoolReader
from rareclass.adapters.store import Store
from rareclass.errors import StoreError
from rareclass.services.serving.shipping import REJECTED, Shipper, decode, encode, ship

if TYPE_CHECKING:
    from conftest import PostgresServer

TS = 1_772_366_400_000_000  # 2026-03-01 12:00 UTC
ALWAYS = ("2026-01-01", "2027-01-01")


def prediction(request_id: str = "r0", **more: Any) -> dict[str, Any]:
    """A request of two rows."""
    return {
        "kind": "prediction",
        "model": "fraud",
        "version": "1",
        "request_id": request_id,
        "ts": TS,
        "operating_point": "default",
        "threshold": 0.5,
        "score": [0.25, 0.75],
        "decision": [0, 1],
        "entity": ["ann", None],
        "features": {"a": [1.5, float("nan")], "b": ["x", "ü"]},
    } | more


def shadow(request_id: str = "r0", **more: Any) -> dict[str, Any]:
    return {
        "kind": "shadow",
        "model": "fraud",
        "version": "2",
        "role": "challenger",
        "request_id": request_id,
        "ts": TS,
        "score": [0.3, 0.6],
        "decision": [0, 1],
        "error": None,
    } | more


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    with Store(sqlite_url) as opened:
        opened.migrate()
        yield opened


def test_a_record_becomes_one_line_per_row_in_the_store(tmp_path: Path, store: Store) -> None:
    with Spool(tmp_path / "spool") as spool, SpoolReader(tmp_path / "spool") as reader:
        spool.append(
            [
                encode(prediction()),
                encode(shadow()),
                encode(shadow("r1", score=None, decision=None, row=[0], error="hung")),
            ]
        )
        batch, fresh = ship(reader, store)
        assert (len(batch.records), fresh) == (3, 5)
        assert spool.drained()
    window = store.window("fraud", *ALWAYS, features=True)
    assert window["score"].tolist() == [0.25, 0.75]
    assert window["row"].tolist() == [0, 1]
    assert window["entity"].tolist() == ["ann", None]
    assert [json.loads(text) for text in window["features"]] == [{"a": 1.5, "b": "x"}, {"a": None, "b": "ü"}]
    assert store.shadows("fraud", *ALWAYS)["champion_score"].tolist() == [0.25, 0.75]
    assert store.query("SELECT error FROM shadow_scores WHERE request_id = 'r1'")["error"].tolist() == ["hung"]


def test_numpy_arrays_and_awkward_values_are_encoded_like_lists() -> None:
    plain = prediction(score=[0.25, 0.75], row=[3, 7])
    arrays = prediction(score=np.array([0.25, 0.75]), row=np.array([3, 7]), decision=np.array([0, 1], dtype=np.int8))
    assert decode([encode(plain)]).predictions.equals(decode([encode(arrays)]).predictions)
    odd = decode([encode(prediction("half\ud800", features={"a": np.array([np.nan, np.inf])}))])
    assert odd.predictions["features"].tolist() == ['{"a":null}', '{"a":null}']
    assert odd.rejected == ()


def test_one_value_stands_for_all_rows_and_lists_are_taken_row_by_row() -> None:
    rows = decode([encode(prediction(weight=[1, 10], propensity=0.05, ts=[TS, TS + 1], entity="ann"))]).predictions
    assert rows["weight"].tolist() == [1, 10]
    assert rows["propensity"].tolist() == [0.05, 0.05]
    assert rows["ts"].tolist() == [TS, TS + 1]
    assert rows["entity"].tolist() == ["ann", "ann"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"not json", "JSONDecodeError"),
        (b"[1]", "TypeError"),
        (b'{"kind": "surprise"}', "KeyError: 'surprise'"),
        (encode({"kind": "prediction"}), "KeyError: 'score'"),
        (encode(prediction(decision=[0])), "1 values for 2 rows"),
        (encode(prediction(row=[0])), "1 row numbers for 2 rows"),
        (encode(prediction(score=[0.5, None])), "TypeError"),
        (encode(prediction(features={"a": [1]})), "features are not 2 rows"),
    ],
)
def test_an_unreadable_record_is_kept_apart_with_its_reason(
    tmp_path: Path, store: Store, record: bytes, reason: str
) -> None:
    with Spool(tmp_path / "spool") as spool, SpoolReader(tmp_path / "spool") as reader:
        spool.append([encode(prediction("a")), record, encode(prediction("b"))])
        assert ship(reader, store)[1] == 4
        assert spool.drained()
    [line] = (tmp_path / "spool" / REJECTED).read_text().splitlines()
    assert reason in json.loads(line)["reason"]
    assert json.loads(line)["record"].encode() == record


def test_a_record_that_the_database_refuses_does_not_hold_up_the_others(tmp_path: Path, postgres_url: str) -> None:
    records = [encode(prediction(f"r{i}", row=[0, 2**31 if i == 5 else 1])) for i in range(9)]
    with Spool(tmp_path) as spool, SpoolReader(tmp_path) as reader, Store(postgres_url) as store:
        store.migrate()
        spool.append(records)
        assert ship(reader, store)[1] == 16
        assert spool.drained()
    [line] = (tmp_path / REJECTED).read_text().splitlines()
    assert "integer" in json.loads(line)["reason"]
    assert json.loads(line)["record"].encode() == records[5]


def test_nothing_is_committed_while_the_store_is_down(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool, SpoolReader(tmp_path) as reader:
        spool.append(encode(prediction()))
        with pytest.raises(StoreError, match="cannot be reached"):
            ship(reader, Store("postgresql://nobody@127.0.0.1:9/none"))
        assert not spool.drained()
        assert not (tmp_path / REJECTED).exists()


def test_a_shipper_thread_drains_when_it_is_stopped(tmp_path: Path, sqlite_url: str) -> None:
    with Spool(tmp_path / "spool") as spool:
        shipper = Shipper(tmp_path / "spool", sqlite_url).start()
        for i in range(50):
            spool.append(encode(prediction(f"r{i}")))
        assert shipper.stop(30)
        assert spool.drained()
    assert (shipper.shipped_rows, shipper.last_error) == (100, None)
    with Store(sqlite_url) as store:
        assert store.counts("fraud")["predictions"] == 100


def test_a_shipper_that_cannot_reach_its_store_says_why_and_keeps_the_spool(tmp_path: Path) -> None:
    with Spool(tmp_path) as spool:
        spool.append(encode(prediction()))
        shipper = Shipper(tmp_path, "postgresql://nobody:secret@127.0.0.1:9/none").start()
        assert not shipper.stop(0)
        assert shipper.last_error is not None
        assert "cannot be reached" in shipper.last_error
        assert "secret" not in shipper.last_error
        assert not spool.drained()


WRITER = """
import os, sys
from rareclass.adapters.spool import Spool
from rareclass.services.serving.shipping import encode
spool = Spool(sys.argv[1], limit=1 << 22)
first, last = int(sys.argv[2]), int(sys.argv[3])
for i in range(first, last):
    rows = {"score": [0.5] * 4, "decision": [0, 0, 0, 1], "features": {"a": [1, 2, 3, 4]}}
    spool.append(encode({"kind": "prediction", "model": "fraud", "version": "1", "request_id": f"r{i}",
                         "ts": 1772366400000000 + i * 40_000_000, **rows}))
    os.write(1, b"%d\\n" % i)
"""


def start_shipper(spool: Path, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rareclass.services.serving.shipping", str(spool), str(os.getpid())]
    return subprocess.Popen(command, env={**os.environ, "RARECLASS_STORE_URL": url}, stderr=subprocess.PIPE)


def wait_for_rows(url: str, at_least: int) -> None:
    """Look at the store until it has that many rows."""
    with Store(url) as store:
        store.migrate()
        while store.counts("fraud")["predictions"] < at_least:
            os.sched_yield()


def test_killed_writers_killed_shippers_and_a_killed_postgresql_lose_and_double_nothing(
    tmp_path: Path, own_postgres: PostgresServer
) -> None:
    answered: set[int] = set()
    shipper = start_shipper(tmp_path, own_postgres.url())
    for turn, fault in enumerate(("shipper", "postgresql", "writer", "nothing")):
        first, last = turn * 1500, (turn + 1) * 1500
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(first), str(last)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(700)]
        if fault == "shipper":
            wait_for_rows(own_postgres.url(), 1)
            os.kill(shipper.pid, signal.SIGKILL)
            shipper.communicate()
            shipper = start_shipper(tmp_path, own_postgres.url())
        elif fault == "postgresql":
            own_postgres.kill()
            own_postgres.start()
        elif fault == "writer":
            os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.read().splitlines(keepends=True)
        writer.wait()
        answered |= {int(line) for line in lines if line.endswith(b"\n")}
    shipper.terminate()
    said = shipper.communicate()[1].splitlines()
    assert [line for line in said if not line.startswith(b"the spool is not shipped: ")] == []
    assert shipper.returncode == 0
    with Store(own_postgres.url()) as store:
        window = store.window("fraud", *ALWAYS)
    stored = window["request_id"].str[1:].astype(int)
    assert not window.duplicated(["request_id", "row"]).any()
    assert (stored.value_counts() == 4).all()
    assert answered <= set(stored)
    assert len(set(stored) - answered) <= 1  # the killed writer's last: written, never answered
    assert len(answered) >= 3 * 1500 + 700


def test_a_shipper_process_outlives_its_parent_until_the_spool_is_empty(tmp_path: Path, sqlite_url: str) -> None:
    script = """
import os, sys
from rareclass.adapters.spool import Spool
from rareclass.config import parse
from rareclass.services.serving.shipping import encode, start_process
config = parse({"name": "fraud", "data": {"path": "x", "target": "y"}, "store": {"url": sys.argv[2]}, "serve": {"spool": sys.argv[1]}})
spool = Spool(sys.argv[1])
record = {"kind": "prediction", "model": "fraud", "version": "1", "ts": 1772366400000000, "score": [0.5], "decision": [0]}
for i in range(100):
    spool.append(encode({**record, "request_id": f"r{i}"}))
print(start_process(config).pid, flush=True)
os.kill(os.getpid(), 9)
"""  # noqa: E501
    read, write = os.pipe()  # the shipper inherits its end: the pipe ends when it does
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "spool"), sqlite_url], stdout=subprocess.PIPE, stderr=write
    )
    os.close(write)
    parent.wait()
    with os.fdopen(read, "rb") as errors:
        assert errors.read() == b""
    with Store(sqlite_url) as store:
        assert store.counts("fraud")["predictions"] == 100
