"""Retention and erasure, also of what is still on its way."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from postgres import PostgresServer
from rareclass.adapters.spool import Spool
from rareclass.adapters.store import Store
from rareclass.config import Config, parse
from rareclass.errors import StoreError
from rareclass.services.admin.retention import forget, prune
from rareclass.services.live.labels import import_labels
from rareclass.services.serving.shipping import REJECTED, Shipper, encode

NOW = datetime(2026, 3, 20, tzinfo=UTC)
ALWAYS = (NOW - timedelta(days=900), NOW + timedelta(days=1))


@pytest.fixture
def config(store_url: str, tmp_path: Path) -> Config:
    data = {"path": "x", "target": "y"}
    store = {"url": store_url, "retention": "30d"}
    return parse({"name": "fraud", "data": data, "store": store, "serve": {"spool": str(tmp_path / "spool")}})


def add(config: Config, ages: list[int]) -> None:
    with Store(config.store.url) as store:
        store.migrate()
        frame = pd.DataFrame({"request_id": [f"d{age}" for age in ages], "ts": [NOW - timedelta(days=a) for a in ages]})
        store.add_predictions(frame.assign(model="fraud", version="1", score=0.5, decision=0, entity="ann"))


def test_predictions_older_than_the_retention_go(config: Config) -> None:
    add(config, [5, 29, 31, 400])
    assert prune(config, NOW).rows["predictions"] == 2
    assert prune(config, NOW + timedelta(seconds=1)).total == 0
    with Store(config.store.url) as store:
        (line,) = store.entries("fraud", "retention")
        empty = dict.fromkeys(("labels", "label_history", "shadow_scores", "reviews"), 0)
        assert line.payload["rows"] == {**empty, "predictions": 2}
        assert store.window("fraud", *ALWAYS)["request_id"].tolist() == ["d29", "d5"]


def test_what_waits_in_the_spool_is_forgotten_too(config: Config) -> None:
    add(config, [1, 2])
    record = {"kind": "prediction", "model": "fraud", "version": "1", "score": [0.5], "decision": [0]}
    with Spool(config.serve.spool) as spool:
        before, after = (int((NOW + timedelta(minutes=m)).timestamp() * 1_000_000) for m in (-1, 1))
        spool.append(encode({**record, "request_id": "waiting", "ts": before, "entity": "ann"}))
        spool.append(encode({**record, "request_id": "other", "ts": before, "entity": "bob"}))
        spool.append(encode({**record, "request_id": "returned", "ts": after, "entity": "ann"}))
        done = forget(config, NOW, entity="ann")
        assert (done.total, "A server uses" in done.remaining) == (2, True)
        spool.append(encode({**record, "request_id": "late", "ts": before, "entity": "ann"}))
        assert Shipper(config.serve.spool, config.store.url).start().stop(30)
        assert spool.drained()
    with Store(config.store.url) as store:
        assert sorted(store.window("fraud", *ALWAYS)["request_id"]) == ["other", "returned"]


def test_records_that_were_rejected_are_forgotten_too(config: Config) -> None:
    bad = {"kind": "prediction", "model": "fraud", "version": "1", "ts": 0, "score": [None], "decision": [0]}
    with Spool(config.serve.spool) as spool:
        spool.append([encode({**bad, "request_id": name, "entity": name}) for name in ("ann", "bob")])
        assert Shipper(config.serve.spool, config.store.url).start().stop(30)
    rejected = Path(config.serve.spool) / REJECTED
    assert len(rejected.read_text().splitlines()) == 2
    assert forget(config, NOW, request_id="ann").total == 0
    assert "ann" not in rejected.read_text()
    assert "bob" in rejected.read_text()


MARK = "Marker7461"


def installation(config: Config, folder: Path, server: PostgresServer | None) -> list[Path]:
    """Every file of the installation: spools, configuration, database.

    PostgreSQL's own log is recycled by the server.
    """
    files = [file for file in folder.rglob("*") if file.is_file()]
    return files + ([file for file in (server.data / "base").rglob("*") if file.is_file()] if server else [])


def marked(files: list[Path]) -> list[str]:
    found = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # the database drops files of its own accord
            found += [str(file)] if MARK.encode() in file.read_bytes() else []
    return found


def test_an_erased_entity_is_in_no_file_of_the_installation_and_labels_do_not_bring_it_back(
    config: Config, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("postgres_server") if config.store.url.startswith("postgresql") else None
    before = int((NOW - timedelta(days=1)).timestamp() * 1_000_000)
    record = {
        "kind": "prediction",
        "model": "fraud",
        "version": "1",
        "score": [0.5, 0.5],
        "decision": [0, 0],
        "ts": before,
    }
    theirs = {
        **record,
        "request_id": f"r-{MARK}",
        "entity": [f"e-{MARK}", "bob"],
        "features": {"name": [f"f-{MARK}", "x"]},
    }
    shadow = {
        "kind": "shadow",
        "model": "fraud",
        "version": "2",
        "role": "challenger",
        "request_id": f"r-{MARK}",
        "ts": before,
        "score": [0.1, 0.2],
        "decision": [0, 0],
    }
    labels = tmp_path / "labels.csv"
    labels.write_text(f"request_id,row,label\nr-{MARK},0,1\nlater-{MARK},0,1\nbobs,0,1\n")
    with Spool(config.serve.spool, seconds=0.05) as spool, Spool(Path(config.serve.spool) / "shadow") as shadows:
        spool.append(
            [encode(theirs), encode({**record, "score": [None], "request_id": f"r-{MARK}", "entity": f"e-{MARK}"})]
        )
        spool.append(encode({**record, "request_id": "bobs", "entity": "bob"}))
        shadows.append(encode(shadow))
    for folder in (config.serve.spool, f"{config.serve.spool}/shadow"):
        assert Shipper(folder, config.store.url).start().stop(30)
    assert import_labels(config, labels, NOW).inserted == 3
    with Spool(config.serve.spool) as spool:  # on its way when the erasure is asked for
        spool.append(encode({**theirs, "request_id": f"later-{MARK}"}))
    if server:
        checkpoint(config)
    kept = installation(config, tmp_path, server)
    assert marked([file for file in kept if file != labels])
    done = forget(config, NOW, entity=f"e-{MARK}")
    assert (done.rows["predictions"], done.rows["labels"], done.compacted, done.remaining) == (1, 1, True, "")
    for name in (f"r-{MARK}", f"later-{MARK}"):
        forget(config, NOW, request_id=name)  # bob's row of these requests
    report = import_labels(config, labels, NOW + timedelta(days=1))
    assert (report.inserted, report.unchanged, report.forgotten) == (0, 1, 2)
    labels.unlink()
    if server:
        checkpoint(config)
    assert marked(installation(config, tmp_path, server)) == []
    with Store(config.store.url) as store:
        assert store.window("fraud", *ALWAYS)["request_id"].unique().tolist() == ["bobs"]
        first = store.entries("fraud", "erasure")[0]
        assert first.payload["rows"]["predictions"] == 1
        assert first.payload["digest"] in store.query("SELECT digest FROM forgotten")["digest"].tolist()


def checkpoint(config: Config) -> None:
    import psycopg

    with psycopg.connect(config.store.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CHECKPOINT")


def test_what_a_running_server_shipped_leaves_its_spool_by_itself(config: Config) -> None:
    record = {"kind": "prediction", "model": "fraud", "version": "1", "score": [0.5], "decision": [0], "ts": 1}
    with Spool(config.serve.spool, seconds=0.02) as spool:
        spool.append(encode({**record, "request_id": MARK, "entity": MARK}))
        shipper = Shipper(config.serve.spool, config.store.url, poll_seconds=0.01).start()
        try:
            while marked(list(Path(config.serve.spool).glob("*.log"))):
                os.sched_yield()
        finally:
            assert shipper.stop(30)


def test_days_that_no_other_model_uses_are_dropped_and_the_others_keep_their_rows(
    postgres_url: str, tmp_path: Path
) -> None:
    config = parse(
        {
            "name": "fraud",
            "data": {"path": "x", "target": "y"},
            "store": {"url": postgres_url, "retention": "30d"},
            "serve": {"spool": str(tmp_path)},
        }
    )
    add(config, [40, 50, 5])
    with Store(postgres_url) as store:
        rows = pd.DataFrame({"request_id": ["n"], "ts": [NOW - timedelta(days=50)], "model": "loans", "version": "1"})
        store.add_predictions(rows.assign(score=0.5, decision=0))
        parts = (
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'predictions_2%' AND relnamespace = "
            "current_schema()::regnamespace"
        )
        assert len(store.query(parts)) == 3
        assert prune(config, NOW).rows["predictions"] == 2
        assert sorted(store.query(parts)["relname"]) == ["predictions_20260129", "predictions_20260315"]
        assert store.counts("loans")["predictions"] == 1


def test_forgetting_needs_exactly_one_of_request_and_entity(config: Config) -> None:
    with pytest.raises(StoreError, match="exactly one of request_id and entity"):
        forget(config, NOW)
    with pytest.raises(StoreError, match="exactly one of request_id and entity"):
        forget(config, NOW, request_id="a", entity="b")
