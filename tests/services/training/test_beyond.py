"""Runs on tables that are larger than memory: the bound holds, and all validation and test rows judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rareclass.adapters import tables
from rareclass.adapters.tables.room import BASE
from rareclass.config import Config, dump, parse
from rareclass.core.drawn import natural_sample
from rareclass.core.ranking import average_precision
from rareclass.services.training import run, steps

TIGHT = BASE + (3 << 20)


def payments(rows: int, seed: int = 0) -> pd.DataFrame:
    """18 features, 1:60, over 90 days, of 2,000 cards."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({f"f{k}": rng.normal(size=rows).astype(np.float32) for k in range(17)})
    frame["shop"] = rng.choice(["books", "cars", "food"], rows, p=[0.5, 0.3, 0.2])
    logit = 1.8 * frame["f0"] + 1.5 * frame["f1"] * (frame["shop"] == "cars") - 5.6
    frame["fraud"] = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    frame["id"] = np.arange(rows)
    frame["when"] = pd.Timestamp("2025-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 90 * 86400, rows)), unit="s")
    frame["card"] = rng.integers(0, 2000, rows)
    return frame


def config(folder: Path, kind: str, memory: object = TIGHT, **sections: Any) -> Config:
    roles = {"time": "when", "entity": "card"} if kind != "stratified" else {}
    only = {"learner": "xgboost", "params": {"rounds": 40, "eta": 0.15, "max_bin": 64}}
    return parse(
        {
            "name": f"payments-{kind}",
            "data": {
                "path": str(folder / "payments.parquet"),
                "target": "fraud",
                "id": "id",
                "drop": [] if roles else ["when", "card"],
                **roles,
            },
            "split": {"kind": kind, "folds": 3},
            "search": {"seconds": 60, "only": only},
            "evaluate": {"bootstraps": 50, "importance_repeats": 0},
            "gate": {"mode": "dry_run"},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
            "compute": {"memory": memory, "threads": 1},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("beyond")
    payments(24_000).to_parquet(made / "payments.parquet", row_group_size=7_000)
    return made


def fitted(settings: Config) -> steps.Run:
    return run.fit(settings, steps.ingest(settings), watch=run.Stopwatch(), now=steps.utc_now())


@pytest.mark.parametrize("kind", ["time", "grouped", "stratified"])
def test_all_validation_and_test_rows_judge_at_their_own_prevalence(folder: Path, kind: str) -> None:
    settings = config(folder, kind)
    streamed = fitted(settings)
    whole = tables.ingest(config(folder, kind, "8GiB"))
    found = streamed.judged.evaluation
    assert len(streamed.judged.score) == len(whole.test) > len(streamed.ingested.test)
    assert found.counts["positives"] == whole.test.positives
    assert found.counts["prevalence"] == pytest.approx(whole.test.prevalence)
    # the very scores that the recipe gives the rows of the whole table
    order = np.argsort(whole.test.row_id)
    assert streamed.ingested.beyond is not None
    rows = streamed.ingested.beyond.rows["test"]
    raw = streamed.judged.learner.score(whole.test.x[order])
    expected = streamed.tuning.calibration.calibrator(raw)
    assert np.allclose(streamed.judged.score[np.argsort(rows.row_id)], expected, rtol=1e-6)
    assert found.metrics["ap"].value == pytest.approx(average_precision(whole.test.y[order], expected), rel=1e-6)
    assert 0.7 < streamed.judged.score.mean() / whole.test.prevalence < 1.4
    # thresholds and calibration know all validation rows, at the natural prevalence
    assert len(streamed.tuning.score) >= len(whole.validation)
    natural = np.average(streamed.tuning.score, weights=None) if kind == "time" else None
    if natural is not None:
        assert natural == pytest.approx(whole.validation.prevalence, rel=0.15)
    profile = streamed.model.profile
    assert profile["rows"] == len(whole.validation) + len(whole.test)
    assert profile["prevalence"] == pytest.approx(
        (whole.validation.positives + whole.test.positives) / profile["rows"], rel=1e-6
    )
    assert streamed.drawn is not None
    assert streamed.drawn.low <= streamed.drawn.value <= streamed.drawn.high


def test_the_sample_ranks_nearly_as_well_as_all_rows(folder: Path) -> None:
    streamed, whole = (fitted(config(folder, "time", memory)) for memory in (TIGHT, "8GiB"))
    ours, theirs = (one.judged.evaluation.metrics["ap"] for one in (streamed, whole))
    assert theirs.low < ours.value
    assert ours.positives == theirs.positives
    assert streamed.plan.diagnosis.prevalence.value == pytest.approx(whole.plan.diagnosis.prevalence.value, rel=0.05)
    assert streamed.plan.diagnosis.rows == pytest.approx(whole.plan.diagnosis.rows, rel=0.05)
    for ours_in, theirs_in in zip(
        streamed.plan.diagnosis.by_period.values(), whole.plan.diagnosis.by_period.values(), strict=True
    ):
        assert ours_in.rows == pytest.approx(theirs_in.rows, rel=0.3)
    assert streamed.model.meta["prevalence"] == pytest.approx(whole.model.meta["prevalence"], rel=0.05)


def test_a_champion_is_compared_on_all_test_rows_it_never_saw(folder: Path) -> None:
    settings = config(folder, "time", train={"refit": "none"}, gate={"mode": "enabled", "min_positives": 20})
    first = run.run(settings, folder / "first")
    assert first["version"] == "1"
    assert first["drawn"]["negatives_rate"] < 1
    second = run.run(settings, folder / "second")
    whole = tables.ingest(config(folder, "time", "8GiB"))
    assert second["champion_metrics"]["rows"] == len(whole.test)
    assert second["champion_metrics"]["ap"] == pytest.approx(first["metrics"]["ap"])
    assert second["rows"]["test"] == len(whole.test)
    assert second["positives"]["train"] == whole.train.positives
    report = (folder / "second" / "report.html").read_text()
    assert "of memory hold: trained on" in report
    assert "Half as many negatives to train on would cost" in report


def test_a_natural_sample_has_the_prevalence_of_the_table(folder: Path) -> None:
    ingested = tables.ingest(config(folder, "time"))
    natural = natural_sample(ingested.train)
    assert natural.y.mean() == pytest.approx(ingested.train.prevalence, rel=0.25)
    assert natural_sample(natural) is natural
    whole = tables.ingest(config(folder, "time", "8GiB")).train
    assert natural_sample(whole) is whole


_CHILD = """
import json, resource, sys
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from rareclass._memory import give_back_arrays
give_back_arrays()
from pathlib import Path
from rareclass.config import parse
from rareclass.services.training import run
folder = Path(sys.argv[1])
summary = run.run(parse(json.loads(sys.argv[3])), folder / "out")
print(json.dumps({"drawn": summary["drawn"], "rows": summary["rows"], "peak": summary["peak_memory_bytes"]}))
"""


def test_a_run_stays_below_a_hard_limit_that_the_table_does_not_fit_into(tmp_path: Path) -> None:
    rows, width, limit = 300_000, 80, 640 << 20
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(
        tmp_path / "payments.parquet",
        pa.schema([*((f"f{k}", pa.float32()) for k in range(width)), ("fraud", pa.int8()), ("id", pa.int64())]),
    ) as writer:
        for start in range(0, rows, 50_000):
            x = rng.standard_normal((50_000, width), dtype=np.float32)
            y = rng.random(50_000) < 1 / (1 + np.exp(7 - 2 * x[:, 0]))
            columns = [*x.T, y.astype(np.int8), np.arange(start, start + 50_000)]
            writer.write_batch(pa.record_batch([pa.array(each) for each in columns], schema=writer.schema))
    settings = config(tmp_path, "stratified", BASE + (24 << 20)).model_dump(mode="json")
    settings["data"]["drop"] = []
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path), str(limit), json.dumps(settings)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["drawn"]["rows"] == rows
    assert found["drawn"]["negatives_rate"] < 0.5
    assert sum(found["rows"][part] for part in ("train", "validation", "test")) == rows
    assert 4 * rows * width * 3 + BASE > limit  # what three copies of the matrix alone would take
    assert found["peak"] < limit


def test_a_detector_takes_its_rates_from_all_held_out_rows(tmp_path: Path) -> None:
    payments(24_000).drop(columns="fraud").to_parquet(tmp_path / "payments.parquet", row_group_size=7_000)
    raw = dump(config(tmp_path, "time", search={"seconds": 60, "trials": 1}))
    raw["data"]["target"] = None
    streamed = fitted(parse(raw))
    assert streamed.ingested.beyond is not None
    held_out, test = (streamed.ingested.beyond.rows[part] for part in ("validation", "test"))
    assert (len(streamed.tuning.score), len(streamed.judged.score)) == (len(held_out), len(test))
    assert streamed.tuning.sampled is not None
    assert len(streamed.tuning.sampled) == streamed.chosen.scored.sum() < len(held_out)
    assert streamed.model.profile["rows"] == len(held_out) + len(test)
