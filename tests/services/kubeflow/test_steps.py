"""The steps with files between them judge as one process does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from rareclass.config import dump, parse
from rareclass.services.kubeflow import steps
from rareclass.services.training import run


def test_test_rows_that_judged_a_run_before_are_counted_in_the_pipeline_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=2000)
    frame = pd.DataFrame({"a": a, "target": (rng.random(2000) < 1 / (1 + np.exp(2.5 - 1.6 * a))).astype(int)})
    frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(2000), unit="h")
    frame.to_parquet(tmp_path / "data.parquet")
    config = parse(
        {
            "name": "looked",
            "data": {"path": str(tmp_path / "data.parquet"), "target": "target", "time": "when", "label_delay": "1d"},
            "search": {"only": {"learner": "logistic_regression"}},
            "evaluate": {"bootstraps": 50, "importance_repeats": 0},
            "gate": {"min_positives": 20},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
            "store": {"url": f"sqlite:///{tmp_path}/store.db"},
        }
    )
    assert run.run(config, tmp_path / "out")["version"] == "1"
    text = json.dumps(dump(config))
    at = {
        name: str(tmp_path / name)
        for name in ("ingested", "train", "validation", "test", "plan", "trained", "selection", "tuning", "judged")
    }
    parts = (at["train"], at["validation"])
    steps.ingest(text, at["ingested"], *parts, at["test"])
    assert steps.detect_imbalance(text, at["ingested"], *parts, at["plan"]) == ["none"]
    steps.train_group(text, "none", at["plan"], *parts, "", at["trained"])
    steps.select(text, at["plan"], *parts, [at["trained"]], at["selection"])
    steps.tune_threshold(text, *parts, at["selection"], at["tuning"])
    steps.evaluate(text, at["ingested"], *parts, at["test"], at["selection"], at["tuning"], at["judged"])
    found = steps._load(at["judged"]).value.decision
    assert found.numbers["looks.before"] == 1
