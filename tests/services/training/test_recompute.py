"""What a run says can be computed again from its scored rows by software that shares nothing with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import recompute
from rareclass.config import parse
from rareclass.services.training import run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run with time, costs by row, slices, a resampled candidate, an ensemble,
    and a champion to compare with.
    """
    folder = tmp_path_factory.mktemp("recompute")
    rng = np.random.default_rng(0)
    n = 3600
    a, b, kind = rng.normal(size=n), rng.normal(size=n), rng.choice(["x", "y", "z"], size=n, p=[0.6, 0.3, 0.1])
    odds = -4 + 1.6 * a + 0.7 * b + (kind == "y")
    frame = pd.DataFrame({"a": a.round(2), "b": b, "kind": kind, "amount": rng.exponential(50, n)})
    frame["target"] = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int)
    frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n), unit="h")
    frame["seen"] = np.where(np.arange(n) % 3 == 0, 0.5, 1.0)
    frame.to_parquet(folder / "rows.parquet")
    frame.iloc[:1500].to_parquet(folder / "before.parquet")
    raw = {
        "name": "test",
        "data": {"target": "target", "time": "when", "amount": "amount", "propensity": "seen", "label_delay": "1d"},
        "costs": {"amount_share": 1, "false_positive": 5},
        "search": {
            "trials": 3,
            "tune": False,
            "ensemble": "voting",
            "candidates": [
                {"learner": "logistic_regression"},
                {"name": "under", "resample": [{"name": "random_under", "ratio": 3}]},
            ],
        },
        "split": {"prequential": 2},
        "threshold": {"fixed": 0.3, "points": [{"name": "f1", "objective": "f1"}]},
        "evaluate": {"bootstraps": 200, "slices": ["kind"]},
        "gate": {"mode": "dry_run"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "store": {"url": f"sqlite:///{folder}/store.db"},
    }
    for name, path in (("before", folder / "first"), ("rows", folder / "out")):
        run.run(parse({**raw, "data": {**raw["data"], "path": str(folder / f"{name}.parquet")}}), path)  # type: ignore[dict-item]
    return folder / "out"


def test_every_number_of_a_run_is_computed_again_from_its_scored_rows(out: Path) -> None:
    check = recompute.recompute(out)
    assert check.wrong == []
    assert len(check.seen) > 1500
    details = json.loads((out / "run.json").read_text())
    assert details["champion_metrics"]
    assert details["evaluation"]["slices"]
    assert any(name.startswith("champion_metrics.") for name in check.seen)


WRONG = (
    "evaluation.points.default.f2.value",
    "evaluation.metrics.ap.low",
    "evaluation.money.saving_vs_nothing.value",
    "selection.table.1.difference.value",
    "tradeoff.cost.7",
    "points.default.recall.high",
    "evaluation.calibration.1.rate",
    "champion_metrics.ap",
    "gate.numbers.champion.loss_low",
)


def test_a_number_that_is_wrong_and_one_that_nobody_computes_again_are_found(out: Path, tmp_path: Path) -> None:
    shutil.copy(out / "summary.json", tmp_path / "summary.json")
    found = json.loads((out / "run.json").read_text())
    for path in WRONG:
        keys = ["gate", "numbers", "champion.loss_low"] if path.startswith("gate.") else path.split(".")
        place = recompute.at(found, ".".join(keys[:-1])) if len(keys) > 1 else found
        last = int(keys[-1]) if isinstance(place, list) else keys[-1]
        place[last] += 7
    found["evaluation"]["new"] = {"value": 0.5}
    (tmp_path / "run.json").write_text(json.dumps(found))
    wrong = recompute.recompute(tmp_path).wrong
    assert "evaluation.new.value: was said and nobody computed it again" in wrong
    for path in WRONG:
        said = path.removesuffix(".low").removesuffix(".high").removesuffix("_low")
        assert any(line.startswith(said) for line in wrong), path
