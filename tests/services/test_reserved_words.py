"""A feature may be called what we call something of our own: score, decision, label, row, ts, request_id."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prometheus_client import CollectorRegistry

from rareclass.adapters.registry import Registry
from rareclass.adapters.serving.engine import Active, Engine
from rareclass.adapters.serving.metrics import Metrics
from rareclass.adapters.serving.signature import Signature
from rareclass.adapters.serving.v2_codec import parse as parse_request
from rareclass.adapters.store import Store
from rareclass.config import Config, dump, parse
from rareclass.core.model import RareModel
from rareclass.services.live import labels, replay
from rareclass.services.live.monitor import Monitor
from rareclass.services.serving import score as scoring
from rareclass.services.serving import shipping
from rareclass.services.training import run

RESERVED = ("score", "decision", "label", "row", "ts", "request_id")
NOW = datetime(2024, 3, 1, tzinfo=UTC)


def table(n: int = 1400) -> pd.DataFrame:
    """Every reserved word is a feature, of numbers or of text; `score` and `row` tell the rare rows."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({name: rng.normal(size=n).round(3) for name in ("score", "label", "row", "ts")})
    frame["decision"], frame["request_id"] = rng.choice(["yes", "no"], n), rng.choice(["a", "b", "c"], n)
    odds = -3 + 1.6 * frame["score"] + 1.2 * frame["row"] + (frame["decision"] == "yes")
    frame["y"] = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int)
    frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n), unit="h")
    return frame.assign(key=[f"k{at:05}" for at in range(n)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, pd.DataFrame, RareModel]:
    folder, frame = tmp_path_factory.mktemp("words"), table()
    frame.to_parquet(folder / "history.parquet")
    config = parse(
        {
            "name": "words",
            "data": {"path": str(folder / "history.parquet"), "target": "y", "time": "when", "id": "key"},
            "search": {"trials": 1, "tune": False, "ensemble": "none", "candidates": [{"params": {"rounds": 20}}]},
            "evaluate": {"bootstraps": 50, "slices": ["decision", "request_id"]},
            "gate": {"mode": "disabled"},
            "monitor": {"bootstraps": 50, "window": "7d", "min_rows": 50},
            "replay": {"train_until": "2024-02-15", "step": "7d", "peers": False},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
        }
    )
    run.run(config, folder / "out")
    registry = Registry(config.tracking.uri)
    version = registry.at("words", "champion")
    assert version is not None
    model = registry.load(version)
    assert set(RESERVED) == set(model.schema.names)
    return config, frame, model


def test_a_version_keeps_its_golden_rows_apart_from_their_scores(world: tuple[Config, pd.DataFrame, RareModel]) -> None:
    _, _, model = world
    model.check_golden()
    assert model.golden is not None
    assert [name for name in model.golden if name not in model.schema.names] == ["_score"]


@pytest.mark.parametrize("end", ["parquet", "csv"])
def test_scored_files_keep_the_features_and_the_log_has_both(
    world: tuple[Config, pd.DataFrame, RareModel], tmp_path: Path, end: str
) -> None:
    config, frame, model = world
    config = parse({**config.model_dump(mode="json"), "store": {"url": f"sqlite:///{tmp_path}/{end}.db"}})
    rows, output = frame.tail(300), tmp_path / f"out.{end}"
    rows.to_parquet(tmp_path / "in.parquet", index=False)
    done = scoring.score_and_log(config, str(tmp_path / "in.parquet"), str(output), now=NOW)
    written = pd.read_parquet(output) if end == "parquet" else pd.read_csv(output)
    assert done.columns == ("rareclass_score", "rareclass_decision")
    assert "rareclass_score, rareclass_decision" in done.notes[-1]
    np.testing.assert_array_equal(written["score"], rows["score"])
    np.testing.assert_allclose(written["rareclass_score"], model.score(rows), rtol=1e-12)
    with Store(config.store.url) as store:
        logged = store.window("words", datetime(2024, 1, 1, tzinfo=UTC), NOW, features=True).set_index("request_id")
        expected = rows.set_index("key").loc[logged.index]
        np.testing.assert_allclose(logged["score"], model.score(expected))
        kept = pd.DataFrame([json.loads(text) for text in logged["features"]], index=logged.index)
        for name in RESERVED:
            assert kept[name].tolist() == expected[name].tolist()
        truth = tmp_path / "truth.csv"
        rows[["key", "y"]].rename(columns={"key": "request_id"}).to_csv(truth, index=False)
        assert labels.import_labels(config, truth, NOW, store=store).inserted == 300
    with Monitor(config) as monitor:
        found = monitor.evaluate(NOW)
    assert found.schema_errors == ()
    assert found.drift is not None
    assert found.drift.broken == {}


def test_ids_that_scoring_makes_beside_a_feature_request_id_are_the_ones_labels_name(
    world: tuple[Config, pd.DataFrame, RareModel], tmp_path: Path
) -> None:
    config, frame, _ = world
    data = {**dump(config)["data"], "id": None}
    config = parse({**dump(config), "data": data, "store": {"url": f"sqlite:///{tmp_path}/made.db"}})
    frame.tail(50).drop(columns="key").to_parquet(tmp_path / "in.parquet", index=False)
    done = scoring.score_and_log(config, str(tmp_path / "in.parquet"), str(tmp_path / "out.csv"), now=NOW)
    assert done.logged == 50
    found = labels.import_labels(config, tmp_path / "out.csv", NOW)
    assert (found.inserted, found.unknown) == (50, 0)


def test_the_server_tells_features_from_its_own_names(world: tuple[Config, pd.DataFrame, RareModel]) -> None:
    _, frame, model = world

    class Log:
        def __init__(self) -> None:
            self.records: list[bytes] = []

        def append(self, records: Any) -> None:
            self.records += records

        def depth(self) -> int:
            return 0

        def over_limit(self) -> bool:
            return False

    rows = frame.tail(5)
    inputs = [
        {
            "name": name,
            "shape": [5],
            "datatype": "BYTES" if rows[name].dtype == object else "FP64",
            "data": rows[name].tolist(),
        }
        for name in RESERVED
    ]
    body = json.dumps({"id": "r1", "inputs": inputs}).encode()
    signature = Signature(model.schema, max_rows=10, points=tuple(model.thresholds))
    log = Log()
    metrics = Metrics(CollectorRegistry(), "words", depth=log.depth, limit=100)
    engine = Engine(log, metrics, name="words", sample_rate=1, clock=lambda: 1.7e9)
    active = Active(model, "1", model.primary, model.threshold(), signature)
    answer = engine.answer([(signature.read(parse_request(body)), active)])[0]
    assert not isinstance(answer, Exception)
    np.testing.assert_allclose(answer.arrays()["score"], model.score(rows))
    stored = shipping.decode(log.records).predictions
    np.testing.assert_allclose(stored["score"], model.score(rows))
    assert (stored["row"].tolist(), set(stored["request_id"])) == ([0, 1, 2, 3, 4], {"r1"})
    kept = pd.DataFrame([json.loads(text) for text in stored["features"]])
    for name in RESERVED:
        wanted = rows[name].tolist()
        assert kept[name].tolist() == (wanted if isinstance(wanted[0], str) else pytest.approx(wanted))


def test_a_replay_logs_the_features_and_not_its_own_answers(
    world: tuple[Config, pd.DataFrame, RareModel], tmp_path: Path
) -> None:
    config, frame, _ = world
    # the times as epochs, the target as words: a replay reads them as its first version does
    seconds = frame["when"].astype("datetime64[s]").astype("int64")
    written = frame.assign(when=seconds, y=frame["y"].map({1: "Yes", 0: "No"}))
    written.to_csv(tmp_path / "history.csv", index=False)
    data = {**dump(config)["data"], "path": str(tmp_path / "history.csv"), "positive": True}
    told = replay.replay(parse({**dump(config), "data": data}), tmp_path / "out")
    served = frame[frame["when"] >= "2024-02-15"]
    assert sum(period["positives"] for period in told["periods"]) == served["y"].sum()
    with Store(f"sqlite:///{tmp_path / 'out' / 'work' / 'store.db'}") as store:
        logged = store.window("words", datetime(2024, 1, 1, tzinfo=UTC), NOW, features=True)
    kept = pd.DataFrame([json.loads(text) for text in logged["features"]])
    assert sorted(logged["ts"]) == sorted(served["when"])
    for name in RESERVED:
        assert sorted(kept[name]) == sorted(served[name]), name
