"""Comparison of logged runs and versions on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

import small_model
from rareclass.adapters import tables, tracking
from rareclass.adapters.registry import Registry
from rareclass.adapters.tracking import Tracker
from rareclass.config import EvaluateSettings, parse
from rareclass.core.dataset import Roles
from rareclass.core.reading import Target
from rareclass.core.times import TimeReading
from rareclass.errors import ConfigError, DataError, ModelError
from rareclass.services.training.compare import Comparison, compare


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('compare')}/mlflow.db"


def _run(uri: str, noise: float, rows: Sequence[int], *, blocks: int | None = None, slope: float = 1.0) -> str:
    """A run whose logged scores are the truth plus noise on the given rows; returns its id."""
    everything = np.random.default_rng(0)
    label = (everything.random(3000) < 0.05).astype(int)
    score = 1 / (1 + np.exp(3 - 3 * label - np.random.default_rng(int(noise * 100)).normal(scale=noise, size=3000)))
    logged = pd.DataFrame(
        {
            "row_id": np.arange(3000, dtype=np.uint64),
            "label": label,
            "score": score,
            "decision": (score > 0.5).astype(int),
        }
    )
    if blocks:
        logged["block"] = np.arange(3000) * blocks // 3000
    run = Tracker(uri, "compare").start("run")
    Registry(uri).log(run.id, small_model.model(slope))
    run.frame(tracking.SCORES, logged.iloc[list(rows)].sample(frac=1, random_state=int(noise * 10)))
    run.end()
    return run.id


@pytest.fixture(scope="module")
def good(uri: str) -> str:
    return _run(uri, 1.0, range(2000))


@pytest.fixture(scope="module")
def bad(uri: str) -> str:
    return _run(uri, 4.0, range(500, 3000))


def _scores(uri: str, run: str, rows: Sequence[int]) -> pd.DataFrame:
    return tracking.scores(f"runs:/{run}", uri).set_index("row_id").loc[list(rows)]


def test_runs_are_compared_on_exactly_the_rows_they_share(uri: str, good: str, bad: str) -> None:
    found = compare([good, bad], tracking_uri=uri)
    assert found.rows == 1500
    for line, run in zip(found.lines, (good, bad), strict=True):
        scores = _scores(uri, run, range(500, 2000))
        assert line.ap.value == pytest.approx(average_precision_score(scores["label"], scores["score"]))
        assert line.alerts == scores["decision"].sum()
        assert line.ap.low < line.ap.value < line.ap.high
    assert "1,500 of 2,500" in " ".join(found.notes)


def test_the_difference_is_paired_and_its_sign_is_against_the_first(uri: str, good: str, bad: str) -> None:
    found = compare([good, bad], tracking_uri=uri)
    assert found.lines[0].difference is None
    worse = found.lines[1]
    assert worse.difference.value == pytest.approx(worse.ap.value - found.lines[0].ap.value)
    assert worse.difference.high < 0
    assert worse.significant
    assert compare([bad, good], tracking_uri=uri).lines[1].difference.low > 0


def test_a_run_against_itself_differs_by_nothing(uri: str, good: str) -> None:
    found = compare([good, good], tracking_uri=uri)
    again = found.lines[1]
    assert (again.difference.value, again.difference.low, again.difference.high) == (0, 0, 0)
    assert again.p_value == 1
    assert not again.significant
    assert len({line.name for line in found.lines}) == 2


def test_ten_models_can_differ_significantly_and_the_level_is_the_configured_one(uri: str, good: str) -> None:
    worse = [_run(uri, 3.0 + number, range(2000)) for number in range(9)]
    found = compare([good, *worse], tracking_uri=uri)
    assert len(found.lines) == 10
    assert all(line.significant and line.p_value < 0.05 for line in found.lines[1:])
    near = [_run(uri, noise, range(2000)) for noise in (1.01, 1.02, 1.04, 1.06, 1.1)]
    said = set()
    for confidence in (0.51, 0.8, 0.99):
        for line in compare([good, *near], tracking_uri=uri, config=EvaluateSettings(confidence=confidence)).lines[1:]:
            assert line.significant is (line.p_value < 1 - confidence)
            said.add((line.significant, line.p_value < 0.05))
    assert (True, False) in said or (False, True) in said, "another level than .05 decides"


def test_equal_rows_are_rows_and_the_logged_average_precision_comes_out_again(uri: str) -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 400, 2000).astype(np.uint64)
    score = rng.random(400)[ids.astype(int)]
    label = (rng.random(2000) < score**4).astype(int)
    weight = rng.choice([1.0, 3.0], 2000)
    runs = []
    for number in range(2):  # another run may have them in another order
        frame = pd.DataFrame({"row_id": ids, "label": label, "score": score, "decision": score > 0.8, "weight": weight})
        run = Tracker(uri, "compare").start("run")
        run.frame(tracking.SCORES, frame.sample(frac=1, random_state=number))
        run.end()
        runs.append(run.id)
    found = compare(runs, tracking_uri=uri)
    assert (found.rows, found.positives) == (2000, label.sum())
    expected = average_precision_score(label, score, sample_weight=weight)
    assert found.lines[0].ap.value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("key", ["no", None])
def test_rows_without_a_time_that_a_version_was_trained_on_are_left_out(
    uri: str, tmp_path: Path, key: str | None
) -> None:
    rows = small_model.frame(600).assign(no=range(600))
    rows.to_parquet(tmp_path / "rows.parquet", index=False)
    features = [name for name in rows if name not in ("label", "no")]
    data = {"path": "x", "target": "label", "id": key, "columns": features}
    read = parse({"name": "rows", "data": {**data, "path": str(tmp_path / "rows.parquet")}})
    ids = tables.row_ids(read, features)
    assert len(set(ids.tolist())) == 600
    run = Tracker(uri, "compare").start("run")
    trained = replace(small_model.model(config={"data": data}), trained_ids=np.sort(ids[:250]))
    location, _ = Registry(uri).log(run.id, trained)
    found = compare([location, location], data=str(tmp_path / "rows.parquet"))
    assert found.rows == 350
    assert found.notes == ("250 rows were left out, because a model was trained on them.",)
    rows[:250].to_parquet(tmp_path / "old.parquet", index=False)
    with pytest.raises(DataError, match="every one of these rows"):
        compare([location, location], data=str(tmp_path / "old.parquet"))


def test_days_are_drawn_as_blocks_where_they_were_logged(uri: str) -> None:
    single = _run(uri, 2.0, range(3000))
    blocked = _run(uri, 2.0, range(3000), blocks=6)
    plain, by_day = (compare([each, each], tracking_uri=uri).lines[0].ap for each in (single, blocked))
    assert plain.value == by_day.value
    assert (plain.low, plain.high) != (by_day.low, by_day.high)


def test_versions_folders_and_uris_name_the_same_run(uri: str, good: str, tmp_path: Path) -> None:
    registry = Registry(uri)
    location = f"{tracking.artifact_uri(good, uri)}/model"
    from rareclass.core.model import digest_of

    version = registry.register("small", location, run_id=good, digest=digest_of(Path(location) / "data" / "rareclass"))
    registry.point("small", {"champion": version.version})
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "summary.json").write_text(f'{{"uri": "{location}"}}')
    names = [
        "models:/small@champion",
        f"models:/small/{version.version}",
        f"runs:/{good}",
        location,
        str(tmp_path / "first"),
    ]
    found = compare(names, tracking_uri=uri)
    assert len({line.ap.value for line in found.lines}) == 1
    assert found.lines[0].name == "small version 1 (champion) #1"
    assert found.lines[4].name == "first"


def test_labelled_rows_are_scored_by_the_models_themselves(uri: str, good: str, bad: str, tmp_path: Path) -> None:
    rows = small_model.frame(600)
    rows.to_parquet(tmp_path / "rows.parquet")
    other = _run(uri, 1.0, range(10), slope=-1.0)
    found = compare([good, other], tracking_uri=uri, data=str(tmp_path / "rows.parquet"))
    assert found.rows == 600
    expected = average_precision_score(rows["label"], small_model.model().score(rows))
    assert found.lines[0].ap.value == pytest.approx(expected)
    assert found.lines[1].ap.value < found.lines[0].ap.value
    assert "cannot be told" in found.notes[0]


def test_rows_from_the_time_of_training_are_left_out(uri: str, tmp_path: Path) -> None:
    rows = small_model.frame(600).assign(ts=pd.date_range("2026-01-01", periods=600, freq="h"))
    rows.to_parquet(tmp_path / "rows.parquet")
    run = Tracker(uri, "compare").start("run")
    meta = {"trained": {"until": "2026-01-10T00:00:00"}, "config": {"data": {"time": "ts"}}}
    location, _ = Registry(uri).log(run.id, small_model.model(**meta))
    found = compare([location, location], data=str(tmp_path / "rows.parquet"))
    assert found.rows == int((rows["ts"] > "2026-01-10").sum())
    assert "left out" in found.notes[0]
    rows[rows["ts"] < "2026-01-09"].to_parquet(tmp_path / "old.parquet")
    with pytest.raises(DataError, match=r"with later rows"):
        compare([location, location], data=str(tmp_path / "old.parquet"))


def test_the_truth_and_the_times_of_new_rows_are_read_as_the_version_read_its_own(uri: str, tmp_path: Path) -> None:
    target = Target("label", "Yes", ("No", "Yes"))
    model = small_model.model(trained={"until": "2026-01-10T00:00:00"}, positive="Yes")
    schema = replace(model.schema, roles=Roles(target=target, time=TimeReading("ts", unit="ms")))
    location, _ = Registry(uri).log(Tracker(uri, "compare").start("run").id, replace(model, schema=schema))
    rows = small_model.frame(600).assign(ts=pd.date_range("2026-01-01", periods=600, freq="h"))
    written = rows.assign(label=rows["label"].map({1: "Yes ", 0: "No"}), ts=rows["ts"].astype("int64") // 1_000_000)
    written.to_csv(tmp_path / "rows.csv", index=False)
    found = compare([location, location], data=str(tmp_path / "rows.csv"))
    fresh = rows[rows["ts"] > "2026-01-10"]
    assert (found.rows, found.positives) == (len(fresh), int(fresh["label"].sum()))
    assert found.lines[0].ap.value == pytest.approx(
        average_precision_score(fresh["label"], small_model.model().score(fresh))
    )
    written.assign(label="yes").to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(DataError, match=r"'yes' .600. is no value of the target 'label'. Did you mean 'Yes'"):
        compare([location, location], data=str(tmp_path / "other.csv"))


def test_the_page_has_the_table_and_both_overlaid_curves_and_needs_no_network(
    uri: str, good: str, bad: str, tmp_path: Path
) -> None:
    found: Comparison = compare([good, bad], tracking_uri=uri)
    found.write_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("plotly-graph-div") == 2
    assert all(line.name in page and str(line.ap) in page for line in found.lines)
    assert "<script src=" not in page
    assert found.to_json()["lines"][1]["significant"] is True


@pytest.mark.parametrize("count", [1, 11])
def test_fewer_than_two_or_more_than_ten_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} models were given. Name 2 to 10"):
        compare(["a"] * count)


def test_runs_without_a_common_row_are_refused(uri: str) -> None:
    with pytest.raises(DataError, match=r"share no test row"):
        compare([_run(uri, 1.0, range(100)), _run(uri, 1.0, range(100, 200))], tracking_uri=uri)


def test_a_model_without_a_run_needs_rows(tmp_path: Path, uri: str, good: str) -> None:
    small_model.model().save(tmp_path / "alone")
    with pytest.raises(ModelError, match=r"belongs to no run"):
        compare([good, str(tmp_path / "alone")], tracking_uri=uri)
