"""Batch scoring of files, and batch scores in the prediction log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

import small_model
from rareclass.adapters.registry import Registry
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config
from rareclass.core import operating
from rareclass.errors import ConfigError, DataError, ModelError
from rareclass.services import promotion
from rareclass.services.serving.score import NewColumns, check_paths, score, score_and_log

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def model(tmp_path: Path) -> str:
    small_model.model().save(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def rows() -> pd.DataFrame:
    return small_model.frame(300).assign(note="kept")


@pytest.mark.parametrize(
    ("source", "output"), [("in.parquet", "out.parquet"), ("in.csv", "out.csv"), ("in.csv", "deep/out.csv.gz")]
)
def test_every_row_keeps_its_place_and_its_columns(
    model: str, rows: pd.DataFrame, tmp_path: Path, source: str, output: str
) -> None:
    rows.to_parquet(tmp_path / source) if source.endswith("parquet") else rows.to_csv(tmp_path / source, index=False)
    done = score(model, str(tmp_path / source), str(tmp_path / output))
    scored = pd.read_parquet(tmp_path / output) if output.endswith("parquet") else pd.read_csv(tmp_path / output)
    pd.testing.assert_frame_equal(scored[list(rows.columns)], rows, check_dtype=False)
    expected = small_model.model().score(rows)
    assert scored["score"].to_numpy() == pytest.approx(expected)
    assert scored["decision"].tolist() == (expected >= 0.5).astype(int).tolist()
    assert (done.rows, done.flagged) == (300, int((expected >= 0.5).sum()))
    assert done.mean_score == pytest.approx(expected.mean())


def test_a_file_of_many_batches_is_scored_like_one(model: str, tmp_path: Path) -> None:
    rows = small_model.frame(150_000)
    rows.to_parquet(tmp_path / "in.parquet", row_group_size=40_000)
    done = score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"))
    assert done.rows == 150_000
    scored = pd.read_parquet(tmp_path / "out.parquet")
    assert scored["score"].to_numpy() == pytest.approx(small_model.model().score(rows))


def test_a_file_without_rows_gives_a_file_without_rows(model: str, rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.iloc[:0].to_parquet(tmp_path / "in.parquet")
    assert score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")).rows == 0
    assert list(pd.read_parquet(tmp_path / "out.parquet").columns) == [*rows.columns, "score", "decision"]


def test_another_operating_point_decides_when_asked(model: str, rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.to_parquet(tmp_path / "in.parquet")
    done = score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), point="strict")
    scored = pd.read_parquet(tmp_path / "out.parquet")
    assert done.threshold == 0.9
    assert scored["decision"].tolist() == (scored["score"] >= 0.9).astype(int).tolist()
    with pytest.raises(ModelError, match=r"unknown operating point 'strickt'. Did you mean 'strict'"):
        score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), point="strickt")


def test_reasons_name_the_features_that_count_most(model: str, rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.assign(amount=9.0).to_parquet(tmp_path / "in.parquet")
    score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), columns=NewColumns(reasons=2))
    found = json.loads(pd.read_parquet(tmp_path / "out.parquet")["reasons"][0])
    assert [each["feature"] for each in found] == ["amount", "channel"]


def test_columns_that_are_there_already_are_not_overwritten(model: str, rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.assign(score=1).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"a column 'score' already. Pass --prefix"):
        score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"))
    assert not (tmp_path / "out.parquet").exists()
    score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), columns=NewColumns(prefix="new_"))
    assert {"score", "new_score", "new_decision"} <= set(pd.read_parquet(tmp_path / "out.parquet").columns)


def test_a_missing_feature_is_named_and_no_file_is_left(model: str, rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.rename(columns={"amount": "amout"}).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(DataError, match=r"column 'amount' is missing. Did you mean 'amout'"):
        score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "model"]


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is the input"):
        check_paths(str(tmp_path / "a.csv"), str(tmp_path / "x" / ".." / "a.csv"))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A champion in a registry."""
    folder = tmp_path_factory.mktemp("registered")
    config = small_model.config(
        folder,
        data={"path": "none", "target": "label", "time": "ts", "id": "id", "entity": "card", "private": ["channel"]},
    )
    promotion.register(config, small_model.model(), Tracker(config.tracking.uri, "small").start("run").id, now=NOW)
    promotion.promote(config, now=NOW)
    return config


@pytest.fixture
def store(registered: Config) -> Iterator[Store]:
    with Store(registered.store.url) as opened:
        opened.migrate()
        yield opened


def _batch(tmp_path: Path, first: str) -> tuple[pd.DataFrame, str]:
    rows = small_model.frame(40)
    rows = rows.assign(
        id=[f"{first}{i:03d}" for i in range(40)],
        ts=pd.date_range("2026-02-01", periods=40, freq="h"),
        card=[f"c{i % 5}" for i in range(40)],
    )
    rows.to_parquet(tmp_path / "in.parquet")
    return rows, str(tmp_path / "in.parquet")


def test_logged_rows_carry_id_time_entity_version_and_only_what_may_be_stored(
    registered: Config, store: Store, tmp_path: Path
) -> None:
    rows, source = _batch(tmp_path, "a")
    done = score_and_log(registered, source, str(tmp_path / "out.parquet"), now=NOW)
    assert (done.version, done.logged) == ("1", 40)
    kept = store.window("small", "2026-01-01", "2026-03-01", features=True).set_index("request_id").loc["a007"]
    assert kept["ts"] == pd.Timestamp("2026-02-01 07:00")
    assert (kept["entity"], kept["version"], kept["threshold"]) == ("c2", "1", 0.5)
    assert json.loads(kept["features"]) == {"amount": pytest.approx(rows["amount"][7])}
    assert score_and_log(registered, source, str(tmp_path / "out.parquet"), now=NOW).logged == 0


def test_rows_without_an_id_are_told_apart_by_their_file_and_place(
    registered: Config, store: Store, tmp_path: Path
) -> None:
    rows, _ = _batch(tmp_path, "b")
    config = registered.model_copy(update={"data": registered.data.model_copy(update={"id": None})})
    twins = pd.concat([rows, rows.iloc[:3]]).drop(columns="id")
    twins.to_parquet(tmp_path / "in.parquet")
    assert score_and_log(config, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), now=NOW).logged == 43
    assert score_and_log(config, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"), now=NOW).logged == 0
    twins.to_csv(tmp_path / "in.csv", index=False)
    assert score_and_log(config, str(tmp_path / "in.csv"), str(tmp_path / "out.csv"), now=NOW).logged == 0
    logged = set(store.window("small", "2026-01-01", "2026-04-01")["request_id"])
    assert set(pd.read_parquet(tmp_path / "out.parquet")["request_id"]) == set(
        pd.read_csv(tmp_path / "out.csv")["request_id"]
    )
    assert set(pd.read_csv(tmp_path / "out.csv")["request_id"]) < logged  # what labels are to name


def test_equal_rows_of_another_day_are_logged_too(registered: Config, tmp_path: Path) -> None:
    config = registered.model_copy(update={"data": registered.data.model_copy(update={"id": None})})
    rows, _ = _batch(tmp_path, "e")
    paths = str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet")
    for day in (1, 2):
        rows.drop(columns="id").assign(ts=rows["ts"] + pd.Timedelta(days=20 + day)).to_parquet(paths[0])
        assert score_and_log(config, *paths, now=NOW).logged == 40
    untimed = rows.drop(columns=["id", "ts"])
    untimed.to_parquet(paths[0])
    assert score_and_log(config, *paths, now=NOW).logged == 40
    assert score_and_log(config, *paths, now=NOW).logged == 0
    assert score_and_log(config, *paths, now=NOW + pd.Timedelta(days=1)).logged == 40
    untimed.assign(request_id="x").to_parquet(paths[0])
    with pytest.raises(DataError, match="Pass --id request_id"):
        score_and_log(config, *paths, now=NOW)


def test_an_id_with_other_contents_and_times_out_of_sight_are_counted_and_told(
    registered: Config, tmp_path: Path
) -> None:
    rows, source = _batch(tmp_path, "f")
    score_and_log(registered, source, str(tmp_path / "out.parquet"), now=NOW)
    rows.assign(amount=rows["amount"] + 1.0).to_parquet(source)
    again = score_and_log(registered, source, str(tmp_path / "out.parquet"), now=NOW)
    assert (again.logged, again.reused) == (0, 40)
    assert "request id is there already with other contents" in again.notes[0]
    times = ["1971-01-01"] * 3 + ["2025-09-01"] * 5 + ["2026-02-27"] * 32
    rows.assign(id=[f"g{i}" for i in range(40)], ts=pd.to_datetime(times)).to_parquet(source)
    done = score_and_log(registered, source, str(tmp_path / "out.parquet"), now=NOW)
    assert (done.logged, done.expired, done.out_of_view, done.reused) == (37, 3, 5, 0)
    assert [note.split(" rows ")[0] for note in done.notes] == ["3", "5"]


def test_ids_that_do_not_identify_are_refused(registered: Config, tmp_path: Path) -> None:
    rows, source = _batch(tmp_path, "c")
    rows.assign(id="same").to_parquet(source)
    with pytest.raises(DataError, match="does not identify the rows"):
        score_and_log(registered, source, str(tmp_path / "out.parquet"), now=NOW)
    with pytest.raises(DataError, match=r"no id column 'idd'. Did you mean 'id'"):
        score_and_log(registered, source, str(tmp_path / "out.parquet"), now=NOW, id_column="idd")


def test_a_threshold_tuned_again_decides_at_once(registered: Config, tmp_path: Path) -> None:
    _, source = _batch(tmp_path, "d")
    registry = Registry(registered.tracking.uri)
    registry.tag("small", 1, {f"{operating.TAG}.default": 0.01})
    try:
        done = score_and_log(registered, source, str(tmp_path / "out.parquet"), now=NOW)
    finally:
        registry.tag("small", 1, {f"{operating.TAG}.default": 0.5})
    assert done.threshold == 0.01
    assert done.flagged == int((small_model.model().score(small_model.frame(40)) >= 0.01).sum())


def test_without_a_champion_the_line_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no champion yet. Promote a version with"):
        score_and_log(small_model.config(tmp_path), "in.parquet", "out.parquet", now=NOW)


@pytest.mark.parametrize("end", ["parquet", "csv"])
def test_rows_that_data_filter_keeps_out_stay_in_their_place_without_an_answer(
    tmp_path: Path, rows: pd.DataFrame, end: str
) -> None:
    asked = [["channel", "==", "shop"], ["amount", ">", -1.0], ["when", ">=", "2024-01-01"], ["absent", "==", 1]]
    made = small_model.model(config={"data": {"filter": asked, "time": "when"}})
    made.save(tmp_path / "model")
    output = tmp_path / f"out.{end}"
    rows.assign(when="1999-01-01").to_parquet(tmp_path / "in.parquet")
    done = score(str(tmp_path / "model"), str(tmp_path / "in.parquet"), str(output), columns=NewColumns(reasons=1))
    scored = pd.read_parquet(output) if end == "parquet" else pd.read_csv(output)
    inside = ((rows["channel"] == "shop") & (rows["amount"] > -1)).to_numpy()
    assert 0 < inside.sum() < len(rows)
    assert scored["note"].eq("kept").all()
    expected = small_model.model().score(rows[inside])
    assert scored["score"][inside].to_numpy() == pytest.approx(expected)
    assert scored.loc[~inside, ["score", "decision", "reasons"]].isna().all(axis=None)
    assert scored["decision"][inside].tolist() == (expected >= 0.5).astype(int).tolist()
    assert (done.rows, done.outside, done.mean_score) == (300, int((~inside).sum()), pytest.approx(expected.mean()))
    assert done.notes == [f"{(~inside).sum()} rows are outside data.filter and have no score and no decision"]


def test_values_that_training_did_not_keep_are_counted_by_column(
    model: str, rows: pd.DataFrame, tmp_path: Path
) -> None:
    rows["channel"] = rows["channel"].mask(rows.index < 7, "pigeon")
    rows.loc[9, "channel"] = None
    rows.to_parquet(tmp_path / "in.parquet")
    done = score(model, str(tmp_path / "in.parquet"), str(tmp_path / "out.parquet"))
    assert done.unknown == {"channel": (7, "pigeon")}
    assert done.notes == ["values that training did not keep as categories: channel 7 (like 'pigeon')"]


@pytest.mark.parametrize("name", ["out.xlsx", "out", "out.json", "out.parquet.gz"])
def test_a_format_that_is_not_known_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"has to end in one of: \.parquet, \.pq, \.parq, \.csv, \.csv\.gz"):
        check_paths("in.parquet", name)


def test_an_id_that_is_there_twice_leaves_neither_scores_nor_a_log(
    registered: Config, store: Store, rows: pd.DataFrame, tmp_path: Path
) -> None:
    before = store.counts("small")["predictions"]
    rows.assign(id="a", ts="2026-02-01", card="c").to_parquet(tmp_path / "in.parquet")
    output = tmp_path / "out.parquet"
    with pytest.raises(DataError, match="there twice"):
        score_and_log(registered, str(tmp_path / "in.parquet"), str(output), now=NOW)
    assert not output.exists()
    assert store.counts("small")["predictions"] == before
