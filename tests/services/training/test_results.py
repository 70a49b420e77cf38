"""What a run leaves in MLflow, also when it does not come to its end; a real SQLite store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareclass.config import Config, dump, parse
from rareclass.errors import DataError, NoPositivesError, StoreError
from rareclass.services.kubeflow import steps
from rareclass.services.training import results, run
from rareclass.services.training.steps import utc_now


def settings(folder: Path, **sections: Any) -> Config:
    rng = np.random.default_rng(0)
    a = rng.normal(size=1200)
    target = (rng.random(1200) < 1 / (1 + np.exp(3.5 - 1.8 * a))).astype(int)
    pd.DataFrame({"a": a, "b": rng.normal(size=1200), "target": target}).to_parquet(folder / "rows.parquet")
    return parse(
        {
            "name": "test",
            "data": {"path": str(folder / "rows.parquet"), "target": "target"},
            "search": {"trials": 2, "tune": False, "ensemble": "none"},
            "evaluate": {"bootstraps": 50},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
            **sections,
        }
    )


def logged(config: Config) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name("test")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def test_every_metric_of_a_run_has_one_meaning_and_the_report_is_an_artifact(tmp_path: Path) -> None:
    import mlflow

    config = settings(tmp_path)
    summary = run.run(config, tmp_path / "out")
    runs = logged(config)
    by_name = {each["name"]: each for each in summary["candidates"]}
    children = [each for each in runs if "mlflow.parentRunId" in each.data.tags]
    assert len(children) == 2
    for child in children:
        found = by_name[child.info.run_name]
        assert child.data.metrics["heldout_ap"] == pytest.approx(found["ap"])
        assert "ap" not in child.data.metrics
    assert any("round_ap" in child.data.metrics for child in children)
    client = mlflow.MlflowClient(config.tracking.uri)
    assert "report.html" in {each.path for each in client.list_artifacts(summary["run_id"])}
    kept = Path(client.get_run(summary["run_id"]).info.artifact_uri) / "report.html"
    assert kept.read_text() == (tmp_path / "out" / "report.html").read_text()


def test_costs_that_were_invented_are_said_in_the_report(tmp_path: Path) -> None:
    config = settings(tmp_path, search={"trials": 1, "tune": False})
    run.run(config, tmp_path / "out")
    money = json.loads((tmp_path / "out" / "run.json").read_text())["evaluation"]["money"]
    assert money["note"].startswith("no costs were set")
    assert money["note"] in (tmp_path / "out" / "report.html").read_text()


def test_a_run_that_fails_is_logged_as_failed_with_its_error_in_one_line(tmp_path: Path) -> None:
    config = settings(tmp_path)
    frame = pd.read_parquet(tmp_path / "rows.parquet")
    frame.assign(target=7).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(DataError) as raised:
        run.run(config, tmp_path / "out")
    (found,) = logged(config)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == found.data.tags["mlflow.note.content"] == str(raised.value)
    assert found.data.params["data.target"] == "target"
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("step", ["detect_imbalance", "train_group"])
def test_a_pipeline_step_that_fails_is_logged_as_failed(step: str, tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises((OSError, DataError), match="No such file"):
        getattr(steps, step)(json.dumps(dump(config)), *["nowhere"] * (4 if step == "detect_imbalance" else 6))
    (found,) = logged(config)
    assert found.info.status == "FAILED"
    assert found.data.tags["reason"] == f"pipeline step {step}"
    assert "No such file" in found.data.tags["error"]


def test_an_interrupted_run_is_killed_and_a_password_never_reaches_the_log(tmp_path: Path) -> None:
    config = settings(tmp_path)
    with pytest.raises(KeyboardInterrupt), results.failures_logged(config, now=utc_now()):
        raise KeyboardInterrupt
    fault = StoreError("no answer\nfrom postgresql://me:secret@host/db")
    with pytest.raises(StoreError), results.failures_logged(config, now=utc_now()):
        raise fault
    failed, killed = logged(config)
    assert (failed.info.status, killed.info.status) == ("FAILED", "KILLED")
    assert failed.data.tags["error"] == "no answer from postgresql://me:***@host/db"


def test_a_failure_that_cannot_be_logged_stays_the_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = settings(tmp_path, tracking={"uri": f"sqlite:///{tmp_path}/file/mlflow.db"})
    with pytest.raises(NoPositivesError) as raised, results.failures_logged(config, now=utc_now()):
        raise NoPositivesError("none")
    assert raised.value.__notes__[0].startswith("not logged: ")


def test_one_recipe_is_forced_and_a_threshold_set_by_hand_is_judged_beside_the_tuned_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rareclass import _terminal

    only = {"learner": "logistic_regression", "resample": [{"name": "random_under", "ratio": 3}]}
    config = settings(tmp_path, search={"seconds": 0.001, "only": only}, threshold={"fixed": 0.3})
    summary = run.run(config, tmp_path / "out")
    details = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [each["name"] for each in summary["candidates"]] == [summary["selected"]]
    assert summary["forced"]
    assert summary["selected"].startswith("logistic_regression")
    scores = pd.read_parquet(Path(summary["uri"]).parent / "evaluation" / "test_scores.parquet")
    flagged = scores[scores["score"] >= 0.3]
    fixed = details["evaluation"]["points"]["fixed"]
    assert (fixed["alerts"]["value"], fixed["tp"]["value"]) == (len(flagged), flagged["label"].sum())
    assert details["evaluation"]["primary"] == "default"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "was forced (search.only)" in page
    assert "0.3000 set by hand" in page
    _terminal.summary(summary, details)
    shown = capsys.readouterr().out
    assert "one recipe, forced by search.only" in shown
    assert "fixed: threshold 0.3, set by hand, gives precision" in shown
