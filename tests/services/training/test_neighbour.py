"""A neighbour's labels: lent to fits, held against the target's own rows, dropped where they harm."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareclass.adapters import tables
from rareclass.config import Config, dump, parse
from rareclass.errors import ConfigError, DataError
from rareclass.services.kubeflow import steps
from rareclass.services.training import lending, run


def domain(n: int, *, seed: int, turned: bool = False, rate: float = -4.5) -> pd.DataFrame:
    """Rows whose rare class is told by a, b and a category; ``turned``: by the opposite of it."""
    rng = np.random.default_rng(seed)
    a, b, kind = rng.normal(size=n), rng.normal(size=n), rng.choice(["x", "y", "z"], size=n)
    odds = (1.8 * a - 1.4 * b + 1.2 * (kind == "z")) * (-1 if turned else 1)
    rare = rng.random(n) < 1 / (1 + np.exp(-(rate + odds)))
    return pd.DataFrame({"a": a, "b": b, "noise": rng.normal(size=n), "kind": kind, "target": rare.astype(int)})


def few(n: int, positives: int, *, seed: int) -> pd.DataFrame:
    """Rows of the target of which only so many are rare."""
    made = domain(4 * n, seed=seed)
    rare, others = made[made.target == 1].head(positives), made[made.target == 0].head(n - positives)
    return pd.concat([rare, others]).sample(frac=1, random_state=seed).reset_index(drop=True)


def settings(folder: Path, **sections: Any) -> Config:
    return parse(
        {
            "name": "target",
            "data": {"path": str(folder / "target.parquet"), "target": "target"},
            "search": {"trials": 4, "tune": False, "ensemble": "none"},
            "split": {"folds": 3},
            "evaluate": {"bootstraps": 50, "cross_fitting_repeats": 0, "importance_repeats": 0},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
            **sections,
        }
    )


NAMES = {"a": "alpha", "kind": "sort", "target": "fraud"}
"""Column of the target -> its name at the neighbour's."""


def neighbour(there: Path) -> dict[str, Any]:
    return {"path": str(there / "neighbour.parquet"), "columns": NAMES}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target of 12 positives, a neighbour of other names, and one that is the opposite."""
    folder = tmp_path_factory.mktemp("transfer")
    few(700, 12, seed=1).to_parquet(folder / "target.parquet")
    good = domain(1200, seed=2).drop(columns="noise").rename(columns=NAMES)
    good.to_parquet(folder / "neighbour.parquet")
    domain(1200, seed=3, turned=True).to_parquet(folder / "opposite.parquet")
    return folder


@pytest.fixture(scope="module")
def helped(there: Path) -> tuple[Config, dict[str, Any]]:
    lent = neighbour(there)
    config = settings(there, transfer=lent)
    return config, run.run(config, there / "helped")


def test_a_neighbour_of_the_same_kind_is_used_and_the_test_rows_are_the_targets_alone(
    helped: tuple[Config, dict[str, Any]], there: Path
) -> None:
    found = helped[1]["transfer"]
    assert found["used"], found["reason"]
    assert found["reason"].startswith("used: neighbour-")
    assert found["rows"] == 1200
    assert found["missing"] == ["noise"]
    assert len(found["candidates"]) == 3
    assert helped[1]["selected"].startswith("neighbour-")
    assert sum(helped[1]["rows"][part] for part in ("train", "validation", "test")) == 700
    assert sum(helped[1]["positives"].values()) == 12
    page = (there / "helped" / "report.html").read_text()
    assert "Did the neighbour&#39;s labels help?" in page
    assert "ways to use the neighbour&#39;s labels" in page


def test_its_version_scores_from_another_folder_as_it_did_when_it_was_judged(
    helped: tuple[Config, dict[str, Any]], there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rareclass.adapters.registry import load_model

    monkeypatch.chdir(tmp_path)
    model = load_model(helped[1]["uri"], helped[0].tracking.uri)  # checks its golden rows
    table = pd.read_parquet(there / "target.parquet")
    assert model.score(table)[table.target == 1].mean() > 3 * model.score(table)[table.target == 0].mean()


def test_a_neighbour_whose_rare_class_is_the_opposite_is_dropped_with_the_reason(there: Path) -> None:
    domain(1000, seed=5).to_parquet(there / "enough.parquet")
    data = {"path": str(there / "enough.parquet"), "target": "target"}
    few_ways = {"trials": 3, "tune": False}
    lent = {"path": str(there / "opposite.parquet")}
    found = run.run(settings(there, transfer=lent, data=data, search=few_ways), there / "harmed")
    assert found["transfer"]["candidates"] == ["neighbour-source", "neighbour-pooled"]
    assert not found["transfer"]["used"]
    assert not found["selected"].startswith("neighbour-")
    assert found["transfer"]["reason"].startswith("dropped: "), found["transfer"]["reason"]
    assert "rows of the target" in found["transfer"]["reason"]


def test_a_registered_model_lends_its_score_under_the_names_of_its_own_columns(there: Path) -> None:
    lent = {"path": str(there / "neighbour.parquet"), "target": "fraud"}
    source = settings(there, name="source", data=lent, search={"trials": 1, "tune": False}, gate={"mode": "disabled"})
    made = run.run(source, there / "source")
    names = {"a": "alpha", "kind": "sort"}
    lent = {"model": f"models:/source/{made['version']}", "columns": names}
    config = settings(there, transfer=lent, search={"trials": 3, "tune": False, "ensemble": "none"})
    found = run.run(config, there / "by-model")
    assert set(found["transfer"]["candidates"]) == {"neighbour-source_score", "neighbour-source_model"}
    assert not found["transfer"]["missing"]
    by_name = {each["name"]: each["ap"] for each in found["candidates"]}
    assert by_name["neighbour-source_model"] > 4 * found["prevalence"]["train"]  # it reads the right columns


def test_what_equals_a_row_of_the_target_is_not_lent(there: Path) -> None:
    own = pd.read_parquet(there / "target.parquet")
    pd.concat([own, domain(800, seed=9)]).to_parquet(there / "overlap.parquet")
    config = settings(there, transfer={"path": str(there / "overlap.parquet")}, search={"trials": 2, "tune": False})
    found = run.run(config, there / "overlap")["transfer"]
    assert (found["twins"], found["rows"]) == (700, 800)
    same = settings(there, transfer={"path": str(there / "target.parquet")})
    with pytest.raises(DataError, match="700 equal rows of the target"):
        run.run(same, there / "same")


@pytest.mark.parametrize(
    ("transfer", "says"),
    [
        ({"columns": {"a": "alpha", "kind": "sort"}}, "no column 'target' with the truth"),
        ({"columns": {**NAMES, "a": "alfa"}}, "'alfa' is no column of .* Did you mean 'alpha'"),
        ({"columns": {**NAMES, "aa": "alpha"}}, "has no column 'aa'. Did you mean 'a'"),
        ({"columns": NAMES, "filter": [["b", ">", 99]]}, "holds no labelled row"),
    ],
)
def test_what_cannot_be_lent_is_said_in_one_line(there: Path, transfer: dict[str, Any], says: str) -> None:
    config = settings(there, transfer={"path": str(there / "neighbour.parquet"), **transfer})
    with pytest.raises((ConfigError, DataError), match=says):
        run.run(config, there / "refused")


def test_two_sources_are_refused() -> None:
    with pytest.raises(ConfigError, match="Keep one of them"):
        parse({"name": "x", "data": {"path": "x", "target": "y"}, "transfer": {"path": "a", "model": "models:/a/1"}})


def test_without_rows_that_judge_a_neighbour_is_dropped_and_the_run_goes_on(there: Path) -> None:
    normal = domain(400, seed=7).query("target == 0")
    normal.to_parquet(there / "normal.parquet")
    data = {"path": str(there / "normal.parquet"), "target": "target", "positive": 1}
    lent = neighbour(there)
    found = run.run(settings(there, transfer=lent, data=data), there / "normal")
    assert found["regime"] == "none"
    assert not found["transfer"]["used"]
    assert "too few rows of the rare class are labelled in the target" in found["transfer"]["reason"]


def test_what_is_lent_travels_between_the_steps_of_the_pipeline(there: Path, tmp_path: Path) -> None:
    lent = neighbour(there)
    config = settings(there, transfer=lent, search={"trials": 2, "tune": False, "ensemble": "none"})
    text, names = json.dumps(dump(config)), ("ingested", "train", "validation", "test", "plan")
    at = {name: str(tmp_path / name) for name in names}
    steps.ingest(text, at["ingested"], at["train"], at["validation"], at["test"])
    groups = steps.detect_imbalance(text, at["ingested"], at["train"], at["validation"], at["plan"])
    parts = at["plan"], at["train"], at["validation"], at["train"], str(tmp_path / "trained")
    assert steps.train_group(text, groups[0], *parts) == 2
    fitted = steps._load(parts[-1]).value
    whole = run.fit(config, tables.ingest(config), watch=run.Stopwatch(), now=datetime.now(UTC))
    np.testing.assert_array_equal(fitted[1].oof, whole.trained[1].oof)
    assert fitted[1].candidate.transfer == "source"
    assert len(fitted[1].candidate.lender.rows) == 1200


def test_rows_of_an_entity_of_the_target_are_not_lent(there: Path) -> None:
    own = domain(900, seed=13).assign(card=np.arange(900) // 3)
    own.to_parquet(there / "cards.parquet")
    lent = domain(600, seed=14).assign(
        owner=(np.arange(600) // 3 + 200).astype(str)
    )  # 100 cards of 300 are the target's
    lent.to_parquet(there / "owners.parquet")
    data = {"path": str(there / "cards.parquet"), "target": "target", "entity": "card"}
    transfer = {"path": str(there / "owners.parquet"), "columns": {"card": "owner"}}
    config = settings(there, data=data, transfer=transfer)
    found = lending.with_lender(config, tables.ingest(config), lambda step, message: None)
    assert (found.card["transfer"]["known_entities"], found.card["transfer"]["rows"]) == (300, 300)
    nameless = settings(there, data=data, transfer={"path": str(there / "owners.parquet")})
    with pytest.raises(DataError, match="has no 'card', so its rows may belong to those that judge"):
        lending.with_lender(nameless, tables.ingest(nameless), lambda step, message: None)


def test_rows_that_may_come_from_the_targets_future_are_refused_or_said(there: Path) -> None:
    target = domain(900, seed=11)
    target["when"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(900), unit="h")
    target.to_parquet(there / "timed.parquet")
    data = {"path": str(there / "timed.parquet"), "target": "target", "time": "when"}
    lent = neighbour(there)
    search = {"trials": 2, "tune": False, "ensemble": "none"}
    with pytest.raises(DataError, match=r"no 'when', so its rows may be later .* transfer\.future: accept"):
        run.run(settings(there, data=data, transfer=lent, search=search), there / "timed")
    accepted = settings(there, data=data, transfer={**lent, "future": "accept"}, search=search)
    found = run.run(accepted, there / "timed")
    assert found["transfer"]["note"].startswith("figures may flatter: transfer.path has no 'when'")
    assert "figures may flatter" in (there / "timed" / "report.html").read_text()
