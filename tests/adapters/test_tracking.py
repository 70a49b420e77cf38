"""MLflow runs, in a real SQLite store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rareclass.adapters import tracking
from rareclass.adapters.tracking import Tracker, check_reachable
from rareclass.errors import ModelError


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    folder = tmp_path_factory.mktemp("mlflow")
    return Tracker(f"sqlite:///{folder}/deep/mlflow.db", "demo")


def test_artifacts_lie_beside_the_database_and_are_absolute(tracker: Tracker) -> None:
    run = tracker.start("a run")
    database = Path(tracker.uri.removeprefix("sqlite:///"))
    assert Path(run.artifact_uri).is_relative_to(database.parent / "artifacts" / "demo")


def test_a_relative_database_stays_valid_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    from rareclass.adapters import _mlflow

    before = _mlflow.absolute("sqlite:///.rareclass/mlflow.db")
    assert before == f"sqlite:///{tmp_path}/.rareclass/mlflow.db"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert _mlflow.absolute(before) == before


def test_many_values_of_every_kind_arrive(tracker: Tracker) -> None:
    run = tracker.start(
        "many", params={"search": {"seconds": 30, "extra": []}, "long": "x" * 9000}, tags={"gate": "approve"}
    )
    run.log(params={f"p{i}": i for i in range(150)}, metrics={f"m{i}": float(i) for i in range(1500)})
    run.series({"loss": [1.0, 0.5, float("nan"), 0.25]})
    found = tracker.client.get_run(run.id)
    assert found.data.params["search.seconds"] == "30"
    assert found.data.params["p149"] == "149"
    assert len(found.data.params["long"]) == 6000
    assert found.data.metrics["m1499"] == 1499.0
    assert found.data.tags["gate"] == "approve"
    history = tracker.client.get_metric_history(run.id, "loss")
    assert [(each.step, each.value) for each in history] == [(0, 1.0), (1, 0.5), (3, 0.25)]


def test_what_cannot_be_a_metric_is_left_out_and_names_are_made_to_fit(tracker: Tracker) -> None:
    run = tracker.start("odd")
    run.log(metrics={"nothing": None, "infinite": float("inf"), "precision@10 [day]": 0.5})
    assert tracker.client.get_run(run.id).data.metrics == {"precision_10 _day_": 0.5}


def test_candidates_are_closed_runs_nested_in_the_parent(tracker: Tracker) -> None:
    parent = tracker.start("parent")
    child = parent.child("xgboost", params={"depth": 4}, metrics={"ap": 0.4}, series={"ap_by_round": [0.1, 0.2]})
    found = tracker.client.get_run(child.id)
    assert found.data.tags["mlflow.parentRunId"] == parent.id
    assert found.info.status == "FINISHED"
    assert tracker.client.get_run(parent.id).info.status == "RUNNING"
    parent.end("FAILED")
    assert tracker.client.get_run(parent.id).info.status == "FAILED"


def test_files_tables_and_datasets_are_kept_with_the_run(tracker: Tracker, tmp_path: Path) -> None:
    run = tracker.start("artifacts")
    (tmp_path / "report.html").write_text("<p>")
    run.artifact(tmp_path / "report.html")
    run.json("curves/pr.json", {"recall": [0, 1]})
    scores = pd.DataFrame({"row_id": [1, 2], "label": [0, 1], "score": [0.1, 0.9], "decision": [0, 1]})
    run.frame(tracking.SCORES, scores)
    run.dataset("rows", source="rows.parquet", digest="f" * 64, context="training", profile={"rows": 2})
    assert (Path(run.artifact_uri) / "report.html").read_text() == "<p>"
    assert (Path(run.artifact_uri) / "curves" / "pr.json").is_file()
    pd.testing.assert_frame_equal(tracking.scores(run.artifact_uri), scores)
    pd.testing.assert_frame_equal(tracking.scores(f"runs:/{run.id}", tracker.uri), scores)
    assert tracking.artifact_uri(run.id, tracker.uri) == run.artifact_uri
    assert tracker.client.get_run(run.id).inputs.dataset_inputs[0].dataset.digest == "f" * 36


def test_a_pipelines_run_is_adopted(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = tracker.start("outer")
    monkeypatch.setenv("MLFLOW_RUN_ID", outer.id)
    assert tracker.start("inner").id == outer.id


def test_the_run_of_a_killed_process_is_buried_and_a_living_one_is_not(tracker: Tracker) -> None:
    code = (
        "import os; from rareclass.adapters.tracking import Tracker; "
        f"print(Tracker({tracker.uri!r}, 'demo').start('doomed').id, flush=True); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
    ).stdout.strip()
    alive = tracker.start("alive")
    assert dead
    assert tracker.mark_dead_runs_killed() == [dead]
    assert tracker.client.get_run(dead).info.status == "KILLED"
    assert tracker.client.get_run(alive.id).info.status == "RUNNING"


@pytest.mark.parametrize("uri", ["runs:/0123", "/nowhere/at/all"])
def test_scores_that_are_not_there_are_one_line_that_says_what_to_do(tracker: Tracker, uri: str) -> None:
    with pytest.raises(ModelError, match="--data PATH") as raised:
        tracking.scores(uri, tracker.uri)
    assert "\n" not in str(raised.value)


def test_an_unreachable_server_is_one_line() -> None:
    code = (
        "from rareclass.adapters.tracking import Tracker\ntry: Tracker('http://127.0.0.1:9', 'demo')\nexcept "
        "Exception as e: print(type(e).__name__, str(e))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
    )
    assert done.stdout.startswith("ModelError MLflow at 'http://127.0.0.1:9' cannot be used. Set tracking.uri")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "postgresql+psycopg://me:secret@127.0.0.1:9/mlflow"], ids=["server", "database"]
)
def test_that_nothing_answers_is_found_without_loading_mlflow_and_told_without_the_password(uri: str) -> None:
    code = (
        "import sys\nfrom rareclass.adapters.tracking import check_reachable\ntry: "
        f"check_reachable({uri!r})\nexcept Exception as e: print(type(e).__name__, str(e), 'mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("ModelError MLflow at '")
    assert "Set tracking.uri" in done.stdout
    assert done.stdout.strip().endswith("False")
    assert len(done.stdout.splitlines()) == 1
    assert "secret" not in done.stdout


def test_a_new_sqlite_store_is_reached_by_making_its_folder(tmp_path: Path) -> None:
    check_reachable(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="Set tracking"):
        check_reachable(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_metric_is_one_number_or_a_curve_but_never_both(tracker: Tracker) -> None:
    run = tracker.start("two meanings")
    run.log(metrics={"ap": 0.4})
    with pytest.raises(ValueError, match=r"'ap' .* is one number already"):
        run.series({"ap": [0.1, 0.2]})
    run.series({"round_ap": [0.1, 0.2]}, steps=[10, 20])
    with pytest.raises(ValueError, match=r"'round_ap' .* is a curve already"):
        run.log(metrics={"round_ap": 0.2})
    assert [each.step for each in tracker.client.get_metric_history(run.id, "round_ap")] == [10, 20]
    assert tracker.client.get_run(run.id).data.metrics["ap"] == 0.4
