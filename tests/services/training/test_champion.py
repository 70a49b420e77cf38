"""A champion of another schema is compared on its own columns where the source has them, and never ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rareclass.adapters.registry import Registry
from rareclass.config import Config, parse
from rareclass.core import hashing
from rareclass.core.gating import Champion, NotComparable
from rareclass.core.model import RareModel
from rareclass.errors import ConfigError, StoreError
from rareclass.services import promotion
from rareclass.services.training import run, steps


def table(n: int, *, start: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    a, kind = rng.normal(size=n), rng.choice(["x", "y", "z", "q"], n, p=[0.5, 0.3, 0.1, 0.1])
    target = (rng.random(n) < 1 / (1 + np.exp(3.5 - 1.6 * a - 1.5 * (kind == "z")))).astype(int)
    when = pd.Timestamp(start) + pd.to_timedelta(np.arange(n) * 40, unit="min")
    leak = target + rng.normal(scale=0.7, size=n)
    return pd.DataFrame({"a": a, "leak": leak, "kind": kind, "when": when, "target": target})


def settings(folder: Path, source: Path, **sections: Any) -> Config:
    return parse(
        {
            "name": "own",
            "search": {"trials": 1, "tune": False, "ensemble": "none", "candidates": [{"params": {"rounds": 20}}]},
            "evaluate": {"bootstraps": 50},
            "gate": {"min_positives": 10},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
            **sections,
            "data": {"path": str(source), "target": "target", "time": "when", **sections.get("data", {})},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A folder with a champion that reads a, leak and kind, and the history with later rows in it."""
    folder = tmp_path_factory.mktemp("champion")
    old, new = table(2100, start="2024-01-01", seed=0), table(1500, start="2024-03-01", seed=1)
    old.to_parquet(folder / "old.parquet")
    summary = run.run(settings(folder, folder / "old.parquet"), folder / "first")
    assert summary["role"] == "champion"
    return folder, pd.concat([old, new], ignore_index=True)


def incumbent(folder: Path, frame: pd.DataFrame, name: str, **data: Any) -> tuple[Any, Any, RareModel]:
    """What the champion says to the test rows of a changed source: (the answer, the test rows, the champion)."""
    path = folder / name
    frame.sample(frac=1, random_state=3).to_parquet(path, index=False)  # the order of a source means nothing
    config = settings(folder, path, data=data)
    found = run.champion(config)
    assert isinstance(found, tuple)
    made = steps.with_incumbent(config, steps.ingest(config), found)
    return made.incumbent, made.test, found[1]


def test_a_run_that_can_register_nothing_says_so_before_it_fits_anything(trained: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = trained
    config = settings(folder, folder / "old.parquet")
    said: list[str] = []
    found = run.champion(config)
    steps.with_incumbent(config, steps.ingest(config), found, lambda step, message: said.append(message))
    assert "can register nothing: version 1 was trained on all but 0 of the" in said[-1]
    many = settings(folder, folder / "old.parquet", gate={"min_positives": 10_000})
    steps.with_incumbent(many, steps.ingest(many), None, lambda step, message: said.append(message))
    assert "the gate judges 10000" in said[-1]
    free = settings(folder, folder / "old.parquet", gate={"min_positives": 10, "mode": "dry_run"})
    heard: list[str] = []
    steps.with_incumbent(free, steps.ingest(free), found, lambda step, message: heard.append(message))
    assert not any("warning" in each for each in heard)


def expected(frame: pd.DataFrame, test: Any, model: RareModel) -> Any:
    """Scores of the test rows (told by their time) from the raw columns."""
    rows = frame.set_index("when").loc[pd.DatetimeIndex(test.time)].reset_index()
    return model.score(rows)


@pytest.mark.parametrize(
    "data", [{"drop": ["leak"]}, {"max_categories": 2}, {"drop": ["kind"], "categorical": ["a"], "max_categories": 2}]
)
def test_a_champion_of_other_columns_or_categories_is_scored_on_its_own(
    trained: tuple[Path, pd.DataFrame], data: dict[str, Any]
) -> None:
    folder, frame = trained
    frame = frame.assign(a=frame["a"].round(1)) if "categorical" in data else frame
    found, test, model = incumbent(folder, frame, "own.parquet", **data)
    assert isinstance(found, Champion)
    np.testing.assert_array_equal(found.score, expected(frame, test, model))
    assert found.compared.all(), "every test row is later than what it was trained on"
    gone = [f"'{name}'" for name in data.get("drop", [])]
    assert all(name in found.note for name in gone)
    assert bool(found.note) == bool(gone)


def test_what_stands_against_a_comparison_is_a_reason_with_the_column_in_it(
    trained: tuple[Path, pd.DataFrame],
) -> None:
    folder, frame = trained
    gone, _, _ = incumbent(folder, frame.rename(columns={"leak": "leaking"}), "gone.parquet")
    assert isinstance(gone, NotComparable)
    assert "column 'leak'" in gone.reason
    assert "'leaking'" in gone.reason
    text, _, _ = incumbent(folder, frame.assign(leak=np.where(frame["leak"] > 0.5, "high", "low")), "text.parquet")
    assert isinstance(text, NotComparable)
    assert "'leak'" in text.reason
    flipped, _, _ = incumbent(folder, frame, "flipped.parquet", positive=0)
    assert isinstance(flipped, NotComparable)
    assert "rare class is '1'" in flipped.reason


def test_a_run_whose_champion_cannot_be_compared_goes_on_and_every_result_says_why(
    trained: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    folder, frame = trained
    path = tmp_path / "renamed.parquet"
    frame.rename(columns={"leak": "other"}).to_parquet(path)
    summary = run.run(settings(folder, path), tmp_path / "strict")
    assert summary["gate"]["verdict"] == "not enough evidence"
    assert "version 1 cannot be compared, because column 'leak'" in summary["gate"]["reasons"][0]
    assert summary["champion_left_out"].startswith("column 'leak'")
    assert "cannot be compared, because" in (tmp_path / "strict" / "report.html").read_text(encoding="utf-8")
    gate = {"min_positives": 10, "without_comparison": "approve"}
    allowed = run.run(settings(folder, path, gate=gate, name="own"), tmp_path / "allowed")
    assert allowed["role"] == "champion"
    assert any("without_comparison: approve" in reason for reason in allowed["gate"]["reasons"])


def test_a_champion_whose_files_are_damaged_is_not_compared_and_ends_nothing(
    trained: tuple[Path, pd.DataFrame],
) -> None:
    folder, _ = trained
    config = settings(folder, folder / "old.parquet")
    version = Registry(config.tracking.uri).at("own", "champion")
    assert version is not None
    learner = next(Path(version.uri).rglob("model.json"))
    whole = learner.read_bytes()
    learner.write_bytes(whole + b" ")
    try:
        found = run.champion(config)
    finally:
        learner.write_bytes(whole)
    assert isinstance(found, NotComparable)
    assert "cannot be loaded" in found.reason


def test_what_a_run_would_stumble_over_at_its_end_is_told_before_a_row_is_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "absent.parquet"
    with pytest.raises(StoreError, match="store"):
        run.run(settings(tmp_path, nowhere, store={"url": "postgresql://nobody@127.0.0.1:1/none"}), tmp_path / "out")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        run.run(settings(tmp_path, nowhere), tmp_path / "file" / "out")
    timeless = parse(
        {
            "name": "m",
            "data": {"path": str(nowhere), "target": "y"},
            "split": {"prequential": 2},
            "tracking": {"uri": f"sqlite:///{tmp_path}/m.db"},
        }
    )
    with pytest.raises(ConfigError, match="prequential folds need a time"):
        run.run(timeless, tmp_path / "out")


def test_the_ledger_knows_how_often_test_rows_judged_a_run(trained: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = trained
    config = settings(folder, folder / "old.parquet")
    test = steps.ingest(config).test
    assert promotion.looks(config, hashing.of_rows(test.row_id, test.y)) >= 1
    assert promotion.looks(config, hashing.of_rows(test.row_id[1:], test.y[1:])) == 0


def test_a_retrain_keeps_the_categories_that_a_new_look_at_the_history_would_pool(
    trained: tuple[Path, pd.DataFrame],
) -> None:
    from rareclass.services.live import repair

    folder, frame = trained
    path = folder / "past.parquet"
    frame.sample(frac=1, random_state=4).to_parquet(path, index=False)
    config = settings(folder, path, data={"max_categories": 2})
    registry = Registry(config.tracking.uri)
    model = registry.load(registry.version("own", 1))
    past = repair._past(config, model, np.datetime64("2024-03-20"))
    assert past is not None
    rows = frame.set_index("when").loc[pd.DatetimeIndex(past.time)].reset_index()
    np.testing.assert_array_equal(past.x, model.matrix(rows))
    assert len(past) == (frame["when"] < "2024-03-20").sum()
