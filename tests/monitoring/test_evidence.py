"""Evidently's report over a real store and a real registry."""

from __future__ import annotations

import os
from datetime import UTC, timedelta
from pathlib import Path

import numpy as np
import pytest

import live_rows
from rareclass.adapters import evidently, exporter
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, parse
from rareclass.core.dataset import decode
from rareclass.core.ranking import average_precision
from rareclass.errors import DataError, ModelError
from rareclass.services import promotion
from rareclass.services.live import evidently_report
from rareclass.services.live.monitor import Monitor

NOW = (live_rows.START + timedelta(days=50)).replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("evidence")
    known = live_rows.history(days=40, per_day=200)
    table = decode(known.x, known.schema).assign(ts=known.time, label=known.y)
    table.to_parquet(folder / "history.parquet")
    made = parse(
        {
            "name": "live",
            "data": {"path": str(folder / "history.parquet"), "target": "label", "time": "ts", "label_delay": "7d"},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/live.db"},
            "monitor": {"bootstraps": 60},
        }
    )
    frame, x = live_rows.stream("covariate shift", days=50, per_day=400)
    with Store(made.store.url) as store:
        store.migrate()
        store.add_predictions(live_rows.stored(frame, x, made.name))
        store.add_labels(live_rows.labels_of(frame), model=made.name)
    return made


@pytest.fixture(scope="module")
def found(config: Config, tmp_path_factory) -> evidently_report.ReportFindings:
    with pytest.raises(ModelError, match="no champion"):
        evidently_report.report(config, NOW, tmp_path_factory.mktemp("none"))
    run = Tracker(config.tracking.uri, config.name).start("run")
    version = promotion.register(config, live_rows.model(), run.id, now=NOW).version
    promotion.promote(config, version, now=NOW, mode="immediate")
    return evidently_report.report(config, NOW, tmp_path_factory.mktemp("pages"))


def test_the_drifted_columns_are_those_that_were_moved(found):
    assert set(found.drifted) == {"age", "balance"}
    assert found.columns == 6
    assert found.share == pytest.approx(2 / 6)


def test_quality_has_our_average_precision_of_the_newest_matured_window(config, found):
    with Store(config.store.url) as store:
        end = NOW - config.data.label_delay
        rows = store.window("live", end - config.monitor.window, end, labels_until=NOW)
    rows = rows[rows["label"].notna()]
    expected = average_precision(rows["label"].to_numpy(int), rows["score"].to_numpy(float))
    assert found.quality["PrAuc"] == pytest.approx(expected)
    assert {"Precision", "Recall", "RocAuc"} <= set(found.quality)
    flagged = rows["score"] >= live_rows.THRESHOLD
    assert found.quality["Recall"] == pytest.approx((flagged & (rows["label"] == 1)).sum() / (rows["label"] == 1).sum())


def test_the_pages_are_written_and_kept_with_their_run(config, found):
    drift, quality = map(Path, found.pages)
    assert "balance" in drift.read_text()
    assert "PR-AUC (average precision)" in quality.read_text()
    run = Tracker(config.tracking.uri, config.name).run(found.run_id)
    kept = {path.name for path in (Path(run.artifact_uri) / "evidently").iterdir()}
    assert kept == {"drift.html", "quality.html", "drift.json"}


def test_the_monitor_exports_the_verdict_of_the_champions_latest_report_and_no_earlier_than_it_was_made(config, found):
    with Monitor(config) as monitor:
        text = exporter.render(monitor.evaluate(NOW), model="live").decode()
        before = exporter.render(monitor.evaluate(NOW - timedelta(days=1)), model="live").decode()
    line = next(line for line in text.splitlines() if line.startswith("rareclass_evidently_drifted_ratio{"))
    assert float(line.split()[-1]) == pytest.approx(2 / 6)
    assert f'version="{found.version}"' in line
    assert "rareclass_evidently_drifted_ratio{" not in before
    assert 'rareclass_ledger_entries_total{kind="evidently",model="live"} 1.0' in text


def test_too_few_rows_are_said_in_one_line(config, found, tmp_path):
    with pytest.raises(DataError, match=r"only 0 rows .*monitor\.min_rows"):
        evidently_report.report(config, NOW + timedelta(days=60), tmp_path)


def test_telemetry_is_off_and_columns_without_values_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    import pandas as pd

    table = pd.DataFrame({"a": rng.normal(size=500), "b": np.nan, "c": ["x", "y"] * 250})
    found = evidently.drift(table, table, numeric=["a", "b"], categorical=["c"], page=tmp_path / "drift.html")
    assert (found.columns, found.drifted) == (2, 0)
    assert os.environ["DO_NOT_TRACK"]
    from evidently.telemetry import event_logger

    assert not event_logger.is_enabled()


def test_a_p_value_drifts_below_its_bound_and_a_distance_above(tmp_path):
    import pandas as pd

    rng = np.random.default_rng(0)
    reference = pd.DataFrame({"same": rng.normal(size=300), "moved": rng.normal(size=300)})
    current = pd.DataFrame({"same": rng.normal(size=300), "moved": rng.normal(2, size=300)})
    few = evidently.drift(current, reference, numeric=["same", "moved"], categorical=[], page=tmp_path / "few.html")
    assert "p_value" in few.scores["moved"]["method"]
    assert few.drifted_columns == ["moved"]
    assert few.drifted == 1
    many = evidently.drift(
        pd.concat([current] * 10),
        pd.concat([reference] * 10),
        numeric=["same", "moved"],
        categorical=[],
        page=tmp_path / "many.html",
    )
    assert "distance" in many.scores["moved"]["method"]
    assert many.drifted_columns == ["moved"]
