"""Where the test rows hold too few positives, repeated cross-fitting over all rows judges, and everything says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

sys.path.insert(0, str(Path(__file__).parents[2]))
import recompute
from rareclass import load_version
from rareclass.config import Config, parse
from rareclass.services.training import run


def table(path: Path, positives: int, *, signal: float = 2.0, n: int = 1200, seed: int = 0) -> Path:
    """Write rows over 50 days, of which exactly so many are rare, told by one number."""
    rng = np.random.default_rng(seed)
    y = np.zeros(n, dtype=int)
    y[rng.choice(n, positives, replace=False)] = 1
    frame = pd.DataFrame({"a": rng.normal(size=n) + signal * y, "b": rng.normal(size=n), "target": y})
    frame["shop"] = np.where(rng.random(n) < 0.5, "a", "b")
    frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n), unit="h")
    frame.to_parquet(path)
    return path


def settings(folder: Path, path: Path, **sections: Any) -> Config:
    raw: dict[str, Any] = {
        "name": "few",
        "data": {"path": str(path), "target": "target", "drop": ["when"]},
        "search": {"only": {"learner": "logistic_regression"}},
        "evaluate": {"bootstraps": 200, "importance_repeats": 0},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "store": {"url": f"sqlite:///{folder}/store.db"},
    }
    return parse({**raw, **sections})


def test_a_hundred_positives_are_judged_by_default_and_everything_says_how(tmp_path: Path) -> None:
    config = settings(tmp_path, table(tmp_path / "rows.parquet", 100), gate={"max_slice_recall_gap": 0.5})
    summary = run.run(config, tmp_path / "out")
    assert summary["positives"]["test"] < config.gate.min_positives
    assert summary["gate"]["verdict"] == "approve"
    assert "no slice of 2 has a recall significantly more than 0.5 below the whole" in " ".join(
        summary["gate"]["reasons"]
    )
    assert summary["version"] == "1"
    assert summary["judged_by"] == "cross_fitting"
    found = summary["cross_fitting"]
    assert (found["positives"], found["rows"], found["repeats"], found["folds"]) == (100, 1200, 3, 5)
    ap, test = found["metrics"]["ap"], summary["metrics"]
    assert ap["low"] < ap["value"] < ap["high"]
    assert ap["high"] - ap["low"] < test["ap_high"] - test["ap_low"], "five times the positives of the test rows"
    said = (
        f"the test rows hold only {summary['positives']['test']} positives, so the verdict is by cross-fitting over "
        "all rows"
    )
    assert any(reason.startswith(said) and "100 positives" in reason for reason in summary["gate"]["reasons"])
    assert "the verdict is by cross-fitting over all rows" in (tmp_path / "out" / "report.html").read_text("utf-8")
    fresh = pd.read_parquet(table(tmp_path / "fresh.parquet", 5000, n=60_000, seed=99))
    worth = average_precision_score(fresh["target"], load_version(summary["uri"]).score(fresh))
    assert ap["low"] <= worth <= ap["high"]


def test_columns_that_tell_nothing_are_not_approved(tmp_path: Path) -> None:
    summary = run.run(settings(tmp_path, table(tmp_path / "rows.parquet", 100, signal=0.0)), tmp_path / "out")
    assert summary["judged_by"] == "cross_fitting"
    assert summary["gate"]["verdict"] != "approve"


def test_a_dozen_positives_stay_not_enough_evidence_with_the_reason(tmp_path: Path) -> None:
    summary = run.run(settings(tmp_path, table(tmp_path / "rows.parquet", 12)), tmp_path / "out")
    assert summary["gate"]["verdict"] == "not enough evidence"
    assert (
        "all parts together hold 12 positives, and cross-fitting over all of them needs 50"
        in summary["gate"]["reasons"][0]
    )
    assert (summary["judged_by"], summary["cross_fitting"]) == ("test", None)


def test_by_time_only_later_windows_are_judged_and_a_champion_is_compared_on_the_rows_it_never_saw(
    tmp_path: Path,
) -> None:
    data = {"target": "target", "time": "when", "label_delay": "1d"}
    whole = pd.read_parquet(table(tmp_path / "rows.parquet", 180, n=1500))
    whole.iloc[:500].to_parquet(tmp_path / "before.parquet")
    costs = {"false_negative": 20, "false_positive": 1}
    first = settings(
        tmp_path,
        tmp_path,
        data={**data, "path": str(tmp_path / "before.parquet")},
        costs=costs,
        gate={"mode": "dry_run"},
    )
    assert run.run(first, tmp_path / "first")["role"] == "champion"
    second = settings(
        tmp_path,
        tmp_path,
        data={**data, "path": str(tmp_path / "rows.parquet")},
        costs=costs,
        gate={"min_positives": 50},
    )
    summary = run.run(second, tmp_path / "out")
    found, details = summary["cross_fitting"], json.loads((tmp_path / "out" / "run.json").read_text())
    assert found["rows"] < 1500
    assert "windows forward in time" in found["reason"]
    assert details["gate"]["numbers"]["champion.theirs"] > 0, "compared on all rows that it was not trained on"
    compared = next(reason for reason in summary["gate"]["reasons"] if reason.startswith("against version 1"))
    assert f"({summary['positives']['test']} positives)" not in compared
    check = recompute.Check()
    rows = pd.read_parquet(Path(summary["uri"]).parent / "evaluation" / "cross_fitted_scores.parquet")
    recompute.cross_fitted(check, details, rows)
    recompute.gate(check, details)
    assert check.wrong == []
    assert [(each["column"], each["level"]) for each in found["slices"]] == [("shop", "b"), ("shop", "a")], (
        "the commonest first"
    )
    assert {*recompute.numbers({"cross_fitting": details["cross_fitting"]})} <= check.seen
    assert {"gate.numbers.champion.loss_high", "gate.numbers.champion_cost.low"} <= check.seen
    assert summary["cross_fitting"] == details["cross_fitting"]
