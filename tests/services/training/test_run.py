"""The training pipeline, whole: real files, a real MLflow store, a real ledger."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareclass.config import Config, parse
from rareclass.services import promotion
from rareclass.services.kubeflow import local
from rareclass.services.training import run

HERE = Path(__file__).parents[3]


def table(path: Path, n: int = 3000, *, time: bool = False, seed: int = 0) -> Path:
    """Write rows of which about one in 15 is rare, told by two numbers, a category and noise."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.exponential(size=n)
    kind = rng.choice(["x", "y", "z"], size=n, p=[0.6, 0.3, 0.1])
    odds = -4.2 + 1.6 * a + 0.7 * b + 1.5 * (kind == "z")
    frame = pd.DataFrame({"a": a, "b": b, "noise": rng.normal(size=n), "kind": kind})
    frame.loc[rng.random(n) < 0.05, "b"] = np.nan
    frame["target"] = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int)
    if time:
        frame["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n) * 40, unit="min")
    frame.to_parquet(path)
    return path


def settings(folder: Path, data: Path, *, time: bool = False, **sections: object) -> Config:
    return parse(
        {
            "name": "test",
            "data": {"path": str(data), "target": "target", **({"time": "when", "label_delay": "1d"} if time else {})},
            "search": {"trials": 2, "tune": False},
            "evaluate": {"bootstraps": 60},
            "gate": {"min_positives": 20},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, dict]:
    folder = tmp_path_factory.mktemp("run")
    config = settings(folder, table(folder / "data.parquet", time=True), time=True)
    return config, folder, run.run(config, folder / "out")


def test_the_summary_has_the_keys_that_other_tools_rely_on(finished: tuple[Config, Path, dict]) -> None:
    summary = json.loads((finished[1] / "out" / "summary.json").read_text())
    wanted = {
        "status",
        "model",
        "version",
        "uri",
        "selected",
        "candidates",
        "metrics",
        "champion_metrics",
        "gate",
        "rows",
        "prevalence",
        "seconds",
        "peak_memory_bytes",
    }
    assert wanted <= set(summary)
    metrics = {
        "ap",
        "ap_low",
        "ap_high",
        "roc_auc",
        "brier",
        "ece",
        "threshold",
        "precision",
        "recall",
        "f1",
        "f2",
        "mcc",
        "cost",
    }
    assert metrics <= set(summary["metrics"])
    assert {"name", "ap", "ap_low", "ap_high", "fit_seconds"} <= set(summary["candidates"][0])
    assert set(summary["gate"]) >= {"verdict", "reasons"}
    assert summary["metrics"]["ap_low"] < summary["metrics"]["ap"] < summary["metrics"]["ap_high"]
    assert summary["rows"]["train"] + summary["rows"]["validation"] + summary["rows"]["test"] <= 3000


def test_the_first_approved_model_becomes_champion_and_the_ledger_says_so(finished: tuple[Config, Path, dict]) -> None:
    from rareclass.adapters.registry import Registry
    from rareclass.adapters.store import Store

    config, _, summary = finished
    assert summary["gate"]["verdict"] == "approve"
    version = Registry(config.tracking.uri).at("test", "champion")
    assert version is not None
    assert version.version == summary["version"]
    store = Store(config.store.url)
    assert [entry.kind for entry in store.entries("test")] == ["register", "promote"]
    store.close()


def test_the_uri_scores_from_another_folder_without_the_configuration(
    finished: tuple[Config, Path, dict], tmp_path: Path
) -> None:
    _, folder, summary = finished
    command = [
        sys.executable,
        "-m",
        "rareclass.cli",
        "score",
        "--model",
        summary["uri"],
        str(folder / "data.parquet"),
        "scored.parquet",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "MLFLOW_TRACKING_URI": ""}
    )
    assert done.returncode == 0, done.stderr
    scored = pd.read_parquet(tmp_path / "scored.parquet")
    assert scored["score"].between(0, 1).all()
    assert set(scored["decision"]) == {0, 1}
    assert (scored["decision"] == (scored["score"] >= summary["metrics"]["threshold"])).all()


def test_mlflow_holds_one_parent_run_with_a_nested_run_per_candidate(finished: tuple[Config, Path, dict]) -> None:
    import mlflow

    config, _, summary = finished
    client = mlflow.MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name("test")
    runs = client.search_runs([experiment.experiment_id])
    parents = [each for each in runs if "mlflow.parentRunId" not in each.data.tags]
    assert len(parents) == 1
    assert parents[0].info.status == "FINISHED"
    assert parents[0].data.metrics["test_ap"] == pytest.approx(summary["metrics"]["ap"])
    assert len(runs) - 1 == sum(1 for each in summary["candidates"] if not each["name"].startswith("ensemble"))
    assert {each.path for each in client.list_artifacts(parents[0].info.run_id)} >= {
        "model",
        "evaluation.json",
        "data_card.json",
        "trials.json",
    }
    assert parents[0].inputs.dataset_inputs


def test_a_second_run_on_the_same_rows_cannot_judge_the_champion_and_says_so(
    finished: tuple[Config, Path, dict],
) -> None:
    config, folder, _ = finished
    summary = run.run(config, folder / "again")
    assert summary["gate"]["verdict"] == "not enough evidence"
    assert summary["status"] == "not_registered"
    assert Path(summary["uri"]).is_dir()
    line = promotion.history(config, kind="reject")[-1]
    assert line.reason.startswith("not enough evidence: ")
    assert (line.payload["run_id"], line.payload["reasons"]) == (summary["run_id"], summary["gate"]["reasons"])


def test_a_run_repeated_from_its_recorded_trials_gives_the_same_model(
    finished: tuple[Config, Path, dict], tmp_path: Path
) -> None:
    from rareclass.core.model import RareModel

    config, folder, first = finished
    replayed = {"trials": None, "tune": False, "replay": str(folder / "out" / "trials.json")}
    again = settings(tmp_path, folder / "data.parquet", time=True, search=replayed)
    second = run.run(again, tmp_path / "out")
    frame = pd.read_parquet(folder / "data.parquet")
    one, two = (RareModel.load(Path(each["uri"]) / "data" / "rareclass") for each in (first, second))
    np.testing.assert_array_equal(one.score(frame), two.score(frame))
    assert dict(one.thresholds) == dict(two.thresholds)
    assert config.name == again.name


def rounded(value: Any) -> Any:
    """To twelve digits: libraries that other tests loaded may sum in another order than a fresh process."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def test_the_pipeline_under_kubeflows_local_runner_gives_the_same_summary(tmp_path: Path) -> None:
    chain = {"resample": [{"name": "random_under", "ratio": 3}], "params": {"rounds": 40}}
    search = {"trials": 2, "tune": False, "candidates": [chain]}
    data = table(tmp_path / "data.parquet", 2500)
    few = {"min_positives": 80}  # more than the test rows hold: cross-fitting over all rows judges
    here = run.run(settings(tmp_path / "a", data, search=search, gate=few), tmp_path / "a")
    there = local.run(settings(tmp_path / "b", data, search=search, gate=few), tmp_path / "b")
    assert here["judged_by"] == "cross_fitting"
    differing = {"seconds", "peak_memory_bytes", "uri", "run_id", "report", "candidates"}
    assert rounded({key: value for key, value in here.items() if key not in differing}) == rounded(
        {key: value for key, value in there.items() if key not in differing}
    )
    timeless = [
        [{key: value for key, value in each.items() if key != "fit_seconds"} for each in summary["candidates"]]
        for summary in (here, there)
    ]
    assert timeless[0] == timeless[1]
    assert set(here["seconds"]) - {"register", "promote", "resample"} == set(there["seconds"])


def test_prequential_windows_are_reported_in_order_of_time_each_with_its_interval(tmp_path: Path) -> None:
    config = settings(tmp_path, table(tmp_path / "data.parquet", time=True), time=True, split={"prequential": 3})
    found = run.run(config, tmp_path / "out")["prequential"]
    assert len(found) == 3
    assert all(
        before["to"] <= after["from"] and before["trained_on"] < after["trained_on"]
        for before, after in itertools.pairwise(found)
    )
    assert all(
        each["ap"]["low"] <= each["ap"]["value"] <= each["ap"]["high"] and each["ap"]["positives"] > 0 for each in found
    )


@pytest.mark.parametrize("step", ["train", "register"])
def test_a_run_killed_in_the_middle_leaves_nothing_half_registered_and_the_next_one_works(
    step: str, tmp_path: Path
) -> None:
    from rareclass.adapters.registry import Registry

    config = settings(tmp_path, table(tmp_path / "data.parquet", 1500))
    script = (
        "import os, signal, sys, json\n"
        "from pathlib import Path\n"
        "from rareclass.config import parse\n"
        "from rareclass.services.training import run\n"
        "def die(step, message):\n"
        f"    if step == {step!r}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "run.run(parse(json.loads(sys.argv[1])), Path(sys.argv[2]), progress=die)\n"
    )
    from rareclass.config import dump

    killed = subprocess.run(
        [sys.executable, "-c", script, json.dumps(dump(config)), str(tmp_path / "out")], capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "summary.json").exists()
    assert Registry(config.tracking.uri).versions("test") == []
    summary = run.run(config, tmp_path / "out")
    assert Path(summary["uri"]).is_dir()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["uri"] == summary["uri"]


def test_the_report_is_one_page_that_needs_nothing_from_the_network(finished: tuple[Config, Path, dict]) -> None:
    page = (finished[1] / "out" / "report.html").read_text()
    assert "Approved" in page
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(", own)
