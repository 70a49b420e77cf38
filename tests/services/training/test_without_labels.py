"""A run with no row of the rare class, or hardly any: a detector, said plainly, registered, and judged once labels
come.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

import rareclass
from rareclass import errors
from rareclass.adapters import tables
from rareclass.adapters.registry import Registry
from rareclass.config import dump, parse
from rareclass.core.profile import Profile
from rareclass.services import promotion
from rareclass.services.kubeflow import steps
from rareclass.services.live import labels, repair, replay
from rareclass.services.live.monitor import Monitor
from rareclass.services.serving import score
from rareclass.services.training import diagnose, run
from rareclass.services.training import steps as training

ROWS = 1_500


def frame(n=ROWS, seed=0, rare=()):
    rng = np.random.default_rng(seed)
    made = pd.DataFrame(rng.normal(size=(n, 3)), columns=["a", "b", "c"]).assign(kind=rng.choice(["x", "y"], n))
    made["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n) * 36, unit="min")
    made["target"] = 0
    made.loc[list(rare), ["a", "b", "target"]] = [6.0, -6.0, 1]
    return made.astype({"target": int})


def settings(folder, data, *, target="target", time=True, **sections):
    path = folder / f"{len(list(folder.glob('*.parquet')))}.parquet"
    data.to_parquet(path)
    return parse(
        {
            "name": "cold",
            "data": {"path": str(path), "target": target, **({"time": "when"} if time else {"drop": ["when"]})},
            "search": {"trials": 1, "tune": False},
            "evaluate": {"bootstraps": 50},
            "threshold": {"max_alerts_per_day": 2} if time else {"max_false_alarm_rate": 0.05},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cold")
    config = settings(folder, frame().drop(columns="target"), target=None)
    return config, folder, run.run(config, folder / "out")


def test_without_any_label_a_detector_is_trained_registered_and_served(unlabelled):
    config, _, summary = unlabelled
    assert (summary["regime"], summary["labelled"], summary["selected"]) == ("none", False, "detectors")
    assert summary["gate"]["verdict"] == "not enough evidence"
    assert summary["role"] == "champion"
    assert promotion.state(config)["champion"] == "1"
    assert any("no label has judged" in reason for reason in summary["gate"]["reasons"])
    assert any("labels" in step for step in summary["gate"]["next"])
    assert all(value is None for name, value in summary["metrics"].items() if name != "threshold")


def test_the_report_says_that_no_label_has_judged(unlabelled):
    _, folder, summary = unlabelled
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "No row is labelled: no label has judged this model." in page
    assert summary["detection"]["agreement_line"].partition("' ")[2] in page
    assert "not known" in page


def test_as_many_rows_of_the_next_period_alarm_as_were_asked_for(unlabelled):
    config, folder, _ = unlabelled
    later = frame(40 * 60, seed=5).drop(columns="target")
    later.to_parquet(folder / "later.parquet")
    score.score(
        "models:/cold/1",
        str(folder / "later.parquet"),
        str(folder / "scored.parquet"),
        tracking_uri=config.tracking.uri,
    )
    found = pd.read_parquet(folder / "scored.parquet")
    assert found["decision"].sum() / 60 == pytest.approx(2, rel=0.25)  # 120 alarms: within three standard errors
    assert found["score"].between(0, 1, inclusive="neither").all()
    odd = later.head(50).assign(a=9.0, b=-9.0)
    odd.to_parquet(folder / "odd.parquet")
    score.score(
        "models:/cold/1",
        str(folder / "odd.parquet"),
        str(folder / "odd_scored.parquet"),
        tracking_uri=config.tracking.uri,
    )
    assert pd.read_parquet(folder / "odd_scored.parquet")["decision"].all()


@pytest.mark.parametrize("rare", [(), (10,), (10, 700, 1_400), range(5, 1_500, 50)])
def test_diagnose_says_what_a_run_would_try(tmp_path, rare):
    config = settings(tmp_path, frame(rare=rare))
    report = diagnose.diagnose(config)
    read = tables.ingest(config)
    planned = training.detect_imbalance(config, read.train, read.validation)
    assert [each.name for each in report.plan] == [each.name for group in planned.groups.values() for each in group]
    assert report.diagnosis.regime == planned.diagnosis.regime
    assert "would be tried:" in report.lines()


def test_diagnose_takes_rows_without_any_label(tmp_path):
    empty = settings(tmp_path, frame().assign(target=pd.Series(dtype=float)))
    for config in (empty, settings(tmp_path, frame().drop(columns="target"), target=None)):
        assert [each.name for each in diagnose.diagnose(config).plan] == ["detectors"]


def test_diagnose_says_where_a_run_would_stop(tmp_path):
    config = settings(tmp_path, frame(rare=range(5, 1_500, 50)))
    late = config.model_copy(update={"data": config.data.model_copy(update={"label_delay": timedelta(days=400)})})
    report = diagnose.diagnose(late)
    assert any("a run would stop" in each and "data.label_delay" in each for each in report.warnings)
    assert report.plan[0].name == "xgboost"


def test_a_history_without_labels_teaches_no_classifier(unlabelled):
    config, folder, _ = unlabelled
    served = frame(600, seed=8, rare=range(0, 600, 20))
    served["when"] += pd.Timedelta(days=50)
    served["request"] = [f"r{number}" for number in range(600)]
    served.drop(columns="target").to_parquet(folder / "served.parquet")
    now = datetime(2024, 4, 1, tzinfo=UTC)
    score.score_and_log(
        config, str(folder / "served.parquet"), str(folder / "out.parquet"), now=now, id_column="request"
    )
    truth = pd.DataFrame({"request_id": served["request"], "label": served["target"]})
    truth.to_csv(folder / "truth.csv", index=False)
    labels.import_labels(config, str(folder / "truth.csv"), now)
    now += timedelta(days=60)  # labels came up to forty days late
    with Monitor(config) as monitor:
        champion = monitor.known()["champion"]
        rows = repair.history_rows(monitor, champion, now)
        assert (len(rows), rows.positives) == (600, 30)
        assert monitor.evaluate(now).new_positives == 30  # though the last windows in view hold none of them
        source = config.model_copy(update={"retrain": config.retrain.model_copy(update={"source": "data"})})
        with (
            Monitor(source) as other,
            pytest.raises(errors.DataError, match=r"no labelled row.*retrain\.source: store"),
        ):
            repair.history_rows(other, champion, now)
    empty = settings(folder, frame().assign(target=pd.Series(dtype=float)))  # a target that no row has a value of
    with Monitor(empty) as monitor:
        rows = repair.history_rows(monitor, champion, now)
        assert (len(rows), rows.positives) == (600, 30)


def test_labels_and_a_replay_say_that_no_target_is_named(unlabelled, tmp_path):
    config, _, _ = unlabelled
    pd.DataFrame({"request_id": ["a"], "truth": [1]}).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(errors.DataError, match=r"data\.target names none.* set data.target to it"):
        labels.import_labels(config, str(tmp_path / "labels.csv"), datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(errors.ConfigError, match=r"a replay needs the truth.* Set data\.target"):
        replay.replay(config, tmp_path / "replay")


def test_the_steps_of_the_pipeline_give_the_same_thresholds(unlabelled, tmp_path):
    config, _, summary = unlabelled
    apart = {"tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"}, "store": {"url": f"sqlite:///{tmp_path}/store.db"}}
    text = json.dumps({**dump(config), **apart})
    at = {
        name: str(tmp_path / name)
        for name in ("read", "train", "valid", "test", "plan", "fit", "chosen", "tuned", "judged", "said")
    }
    steps.ingest(text, at["read"], at["train"], at["valid"], at["test"])
    assert steps.detect_imbalance(text, at["read"], at["train"], at["valid"], at["plan"]) == ["none"]
    assert steps.train_group(text, "none", at["plan"], at["train"], at["valid"], "", at["fit"]) == 1
    assert steps.select(text, at["plan"], at["train"], at["valid"], [at["fit"]], at["chosen"]) == "detectors"
    tuned = steps.tune_threshold(text, at["train"], at["valid"], at["chosen"], at["tuned"])
    assert tuned == pytest.approx(summary["metrics"]["threshold"])
    read = [at[name] for name in ("read", "train", "valid", "test", "chosen", "tuned", "judged")]
    assert steps.evaluate(text, *read) == {}
    whole = [at[name] for name in ("read", "plan", "train", "valid", "chosen", "tuned", "judged", "said")]
    assert steps.register(text, *whole) == "1"
    assert json.loads((tmp_path / "said").read_text())["summary"]["regime"] == "none"


def test_known_normal_rows_and_unlabelled_ones_are_told_apart(tmp_path):
    normal = run.run(settings(tmp_path, frame(), time=False), tmp_path / "normal")
    assert (normal["labelled"], normal["regime"]) == (True, "none")
    model = Registry(f"sqlite:///{tmp_path}/mlflow.db").load(
        Registry(f"sqlite:///{tmp_path}/mlflow.db").at("cold", "champion")
    )
    assert model.schema.roles.target.positive == "1"
    assert model.meta["config"]["data"]["contamination"] == "unknown"
    empty = tables.ingest(settings(tmp_path, frame().assign(target=pd.Series(dtype=float))))
    assert empty.schema.roles.target is None
    assert "target" not in empty.schema.names


def test_one_class_whose_meaning_is_open_is_asked_for(tmp_path):
    with pytest.raises(errors.NoPositivesError, match=r"Set data\.positive to the value that the rare class has"):
        tables.ingest(settings(tmp_path, frame().assign(target="ok")))
    config = settings(tmp_path, frame().assign(target="ok"))
    told = config.model_copy(update={"data": config.data.model_copy(update={"positive": "broken"})})
    assert tables.ingest(told).schema.roles.target.values == ("ok", "broken")


def test_a_setting_keeps_an_unjudged_detector_out(tmp_path):
    config = settings(
        tmp_path, frame().drop(columns="target"), target=None, time=False, gate={"without_labels": "insufficient"}
    )
    summary = run.run(config, tmp_path / "out")
    assert summary["version"] is None
    assert summary["status"] == "not_registered"
    assert any("insufficient" in reason for reason in summary["gate"]["reasons"])


@pytest.mark.parametrize("rare", [(10,), (10, 700, 1400)])
def test_a_run_does_not_fail_for_want_of_positives(tmp_path, rare):
    for time in (True, False):
        summary = run.run(settings(tmp_path, frame(rare=rare), time=time), tmp_path / f"out{time}")
        assert summary["gate"]["verdict"] == "not enough evidence"
        assert (tmp_path / f"out{time}" / "report.html").is_file()
        assert json.loads((tmp_path / f"out{time}" / "summary.json").read_text())["regime"] in ("none", "few")


def test_a_detector_that_met_a_handful_of_rare_rows_still_says_that_its_scores_are_ranks(tmp_path):
    config = settings(tmp_path, frame(rare=(1_400, 1_450)))
    summary = run.run(config, tmp_path / "out")
    assert summary["selected"] == "detectors"
    profile = Profile.from_json(rareclass.load_version(summary["uri"]).profile)
    assert profile.positives == 2
    assert profile.ranks
    assert profile.unjudged


def test_a_classifier_is_compared_with_the_detector_on_the_same_labelled_rows(tmp_path):
    first = run.run(settings(tmp_path, frame().drop(columns="target"), target=None), tmp_path / "first")
    assert first["role"] == "champion"
    rng = np.random.default_rng(3)
    later = frame(3_000, seed=4, rare=rng.choice(3_000, 300, replace=False))
    later["when"] += pd.Timedelta(days=60)
    second = run.run(settings(tmp_path, later, gate={"min_positives": 20}), tmp_path / "second")
    assert second["champion_metrics"]["positives"] > 20
    assert second["gate"]["verdict"] == "approve"
    assert second["role"] == "champion"
    third = settings(tmp_path, frame().drop(columns="target"), target=None)
    assert run.run(third, tmp_path / "third")["version"] is None, "a detector does not replace what labels judged"


def test_a_classifier_that_few_labels_cannot_judge_stands_beside_the_detector(tmp_path):
    first = run.run(settings(tmp_path, frame().drop(columns="target"), target=None), tmp_path / "first")
    assert first["role"] == "champion"
    later = frame(1_500, seed=4, rare=range(100, 1_500, 175))
    later["when"] += pd.Timedelta(days=60)
    few = {"search": {"only": {"learner": "scarce", "params": {"rounds": 20, "trees": 20, "novelty": ["ecod"]}}}}
    config = settings(tmp_path, later, **few)
    summary = run.run(config, tmp_path / "second")
    assert summary["selected"].startswith("scarce")
    assert summary["gate"]["verdict"] == "not enough evidence"
    assert summary["role"] == "challenger"
    assert promotion.state(config) == {"champion": "1", "challenger": "2", "previous": None}
    assert any("is a detector that no label judged" in reason for reason in summary["gate"]["reasons"])
    kept = settings(tmp_path, later, **few, gate={"without_labels": "insufficient"})
    assert run.run(kept, tmp_path / "third")["version"] is None


def test_a_handful_of_labels_goes_live_where_nothing_is_and_more_have_to_judge_first(tmp_path):
    few = {"search": {"only": {"learner": "scarce", "params": {"rounds": 20, "trees": 20, "novelty": ["ecod"]}}}}
    summary = run.run(settings(tmp_path, frame(rare=range(100, 1_500, 175)), **few), tmp_path / "out")
    assert (summary["gate"]["verdict"], summary["role"]) == ("not enough evidence", "champion")
    more = settings(tmp_path, frame(rare=range(100, 1_500, 80)), name="more", **few)
    assert run.run(more, tmp_path / "more")["version"] is None
