"""Retention and erasure, also of what is still on its way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from rareclass.adapters.spool import Spool
from rareclass.adapters.store import Store
from rareclass.config import Config, parse
from rareclass.errors import StoreError
from rareclass.services.admin.retention import forget, prune
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
    assert prune(config, NOW) == 2
    assert prune(config, NOW) == 0
    with Store(config.store.url) as store:
        assert store.window("fraud", *ALWAYS)["request_id"].tolist() == ["d29", "d5"]


def test_what_waits_in_the_spool_is_forgotten_too(config: Config) -> None:
    add(config, [1, 2])
    record = {"kind": "prediction", "model": "fraud", "version": "1", "score": [0.5], "decision": [0]}
    with Spool(config.serve.spool) as spool:
        before, after = (int((NOW + timedelta(minutes=m)).timestamp() * 1_000_000) for m in (-1, 1))
        spool.append(encode({**record, "request_id": "waiting", "ts": before, "entity": "ann"}))
        spool.append(encode({**record, "request_id": "other", "ts": before, "entity": "bob"}))
        spool.append(encode({**record, "request_id": "returned", "ts": after, "entity": "ann"}))
        assert forget(config, NOW, entity="ann") == 2
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
    assert forget(config, NOW, request_id="ann") == 0
    assert "ann" not in rejected.read_text()
    assert "bob" in rejected.read_text()


def test_forgetting_needs_exactly_one_of_request_and_entity(config: Config) -> None:
    with pytest.raises(StoreError, match="exactly one of request_id and entity"):
        forget(config, NOW)
    with pytest.raises(StoreError, match="exactly one of request_id and entity"):
        forget(config, NOW, request_id="a", entity="b")
