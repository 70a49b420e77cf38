"""The store on a real SQLite file and a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from rareclass.adapters.store import HEAD, LabelReport, Store
from rareclass.errors import AlreadyDone, StoreError

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as opened:
        opened.migrate()
        yield opened


def predictions(
    n: int = 6, start: int = 0, ts: datetime = T0, step: timedelta = timedelta(hours=6), **more: object
) -> pd.DataFrame:
    """n rows, request ids r0, r1, ..., six hours apart."""
    index = np.arange(start, start + n)
    frame = pd.DataFrame(
        {
            "request_id": [f"r{i}" for i in index],
            "row": 0,
            "ts": [ts + step * int(i) for i in index],
            "model": "fraud",
            "version": "1",
            "operating_point": "default",
            "threshold": 0.5,
            "score": index / 100,
            "decision": (index % 2),
            "weight": 1.0,
            "propensity": 1.0,
            "entity": [f"card{i % 2}" for i in index],
            "features": [json.dumps({"a": int(i), "b": 'x"y'}) for i in index],
        }
    )
    return frame.assign(**more)


def labels(
    ids: list[str], values: list[int], observed: datetime, received: datetime | None = None, source: str = "bank"
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "request_id": ids,
            "row": 0,
            "label": values,
            "observed_at": observed,
            "source": source,
            "received_at": received or observed,
            "model": "fraud",
        }
    )


ALWAYS = (T0 - timedelta(days=30), T0 + timedelta(days=300))


def test_predictions_come_back_as_they_were_stored(store: Store) -> None:
    assert store.add_predictions(predictions()) == 6
    window = store.window("fraud", *ALWAYS, features=True)
    assert window["request_id"].tolist() == [f"r{i}" for i in range(6)]
    assert window["score"].tolist() == [i / 100 for i in range(6)]
    assert window["ts"].dtype == "datetime64[us]"
    assert window["ts"].iloc[1] == pd.Timestamp("2026-03-01 18:00")
    assert window["entity"].tolist() == ["card0", "card1"] * 3
    assert json.loads(window["features"].iloc[3]) == {"a": 3, "b": 'x"y'}
    assert window["label"].isna().all()
    assert window["label_observed_at"].isna().all()
