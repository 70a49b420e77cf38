"""Months of history through the whole loop: the live services, a virtual clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rareclass import _terminal as terminal
from rareclass.config import Config, parse
from rareclass.errors import ConfigError, DataError
from rareclass.services.live import replay


def history(path: Path, *, days: int = 140, a_day: int = 60, change: int | None = None, seed: int = 1) -> Path:
    """Write rows of `days` days, about one in 12 rare; from day `change` on another column tells the rare rows."""
    rng = np.random.default_rng(seed)
    n = days * a_day
    day = np.arange(n) // a_day
    x = rng.normal(size=(n, 4))
    told_by = x[:, 0] if change is None else np.where(day < change, x[:, 0], x[:, 1])
    y = (rng.random(n) < 1 / (1 + np.exp(4.3 - 2.4 * told_by))).astype(float)
    y[rng.random(n) < 0.02] = np.nan
    when = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(n) * 86400 / a_day, unit="s")
    pd.DataFrame(x, columns=list("abcd")).assign(when=when, target=y).to_parquet(path)
    return path


def settings(data: Path, *, timed: bool = True, **sections: object) -> Config:
    return parse(
        {
            "name": "stream",
            "data": {
                "path": str(data),
                "target": "target",
                "positive": 1,
                **({"time": "when", "label_delay": "2d"} if timed else {}),
            },
            "search": {"trials": 1, "tune": False, "candidates": [{"params": {"rounds": 40}}]},
            "evaluate": {"bootstraps": 50},
            "monitor": {"bootstraps": 50},
            "costs": {"false_negative": 50, "false_positive": 2, "currency": "EUR"},
            "replay": {"train_until": "2024-03-11", "step": "7d"},
            "tracking": {"uri": f"sqlite:///{data.parent}/untouched.db"},
            **sections,
        }
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("replay")
    config = settings(history(folder / "data.parquet", change=77))
    return folder, replay.replay(config, folder / "out")


def test_the_money_is_printed_beside_both_peers(told: tuple[Path, dict], capsys: pytest.CaptureFixture[str]) -> None:
    terminal.replayed(told[1])
    said, money = capsys.readouterr().out, told[1]["money"]
    assert f"cost: {money['ours']:,.2f} {money['currency']}" in said
    assert f"never retraining ({money['never']:,.2f})" in said
    assert f"retraining every week ({money['weekly']:,.2f})" in said
    assert f"{sum(period['positives'] for period in told[1]['periods']):,} labelled positives" in said


def test_replay_json_has_the_keys_that_other_tools_rely_on(told: tuple[Path, dict]) -> None:
    found = json.loads((told[0] / "out" / "replay.json").read_text())
    assert {"periods", "alerts", "verdicts", "actions", "money"} <= set(found)
    wanted = {
        "start",
        "end",
        "rows",
        "positives",
        "version",
        "ap",
        "ap_low",
        "ap_high",
        "ap_estimated",
        "prevalence",
        "precision",
        "recall",
        "cost",
        "drifted_features",
    }
    assert all(wanted <= set(period) for period in found["periods"])
    assert {"ours", "never", "weekly", "currency"} <= set(found["money"])
    assert all({"time", "verdict", "evidence"} <= set(each) for each in found["verdicts"])
    assert all({"time", "kind", "from_version", "to_version", "outcome"} <= set(each) for each in found["actions"])


def test_every_row_after_the_first_training_is_served_once(told: tuple[Path, dict]) -> None:
    from rareclass.adapters.store import Store

    folder, found = told
    served = sum(period["rows"] for period in found["periods"])
    assert served == (pd.read_parquet(folder / "data.parquet")["when"] >= "2024-03-11").sum()
    with Store(f"sqlite:///{folder / 'out' / 'work' / 'store.db'}") as store:
        assert store.counts("stream")["predictions"] == served


def test_a_new_pattern_of_positives_leads_to_a_retrain_and_the_loop_beats_standing_still(
    told: tuple[Path, dict],
) -> None:
    found = told[1]
    assert "retrain" in {each["verdict"] for each in found["verdicts"]}
    assert any(each["kind"] == "retrain" and each["outcome"] not in ("refused", "failed") for each in found["actions"])
    assert found["money"]["ours"] < found["money"]["never"]


def test_nothing_of_the_live_system_is_touched(told: tuple[Path, dict]) -> None:
    assert not (told[0] / "untouched.db").exists()


def test_a_quiet_history_needs_no_repair(tmp_path: Path) -> None:
    frame = pd.read_parquet(history(tmp_path / "data.parquet", days=110))
    frame["when"] = frame["when"].dt.strftime("%d/%m/%Y %H:%M")  # days first, which only the whole column tells
    frame.to_csv(tmp_path / "data.csv", index=False)
    ample = {"few": 30, "scarce": 100}  # so that it waits for no other regime
    config = settings(tmp_path / "data.csv", replay={"train_until": "2024-03-11", "peers": False}, regime=ample)
    found = replay.replay(config, tmp_path / "out")
    assert not [each for each in found["verdicts"] if each["verdict"] in ("retrain", "page")]
    assert found["money"]["never"] is None


def test_a_loop_that_begins_without_a_label_grows_up_by_itself(tmp_path: Path) -> None:
    data = history(tmp_path / "data.parquet", days=49)
    plan = {"train_until": "2024-01-20", "step": "7d", "unlabelled": True}
    found = replay.replay(settings(data, replay=plan, governor={"cooldown": "1d"}), tmp_path / "out")
    regimes = [period["regime"] for period in found["periods"]]
    assert regimes[0] == "none"
    assert found["periods"][0]["learned_positives"] == 0
    assert regimes[-1] != "none"
    assert found["verdicts"][0]["evidence"]["graduates"]
    money = found["money"]
    assert money["saved_vs_waited"] == money["waited"] - money["ours"]
    assert "without a single label" in (tmp_path / "out" / "replay.html").read_text()


def test_without_labels_the_rare_class_must_be_named(tmp_path: Path) -> None:
    config = settings(history(tmp_path / "data.parquet", days=20), replay={"unlabelled": True})
    nameless = config.model_copy(update={"data": config.data.model_copy(update={"positive": None})})
    with pytest.raises(ConfigError, match=r"Set data\.positive"):
        replay.replay(nameless, tmp_path / "out")


def test_bad_dates_and_a_missing_time_are_one_clear_line(tmp_path: Path) -> None:
    data = history(tmp_path / "data.parquet", days=20)
    with pytest.raises(DataError, match=r"replay\.train_until 2030-01-01 leaves no rows on one side"):
        replay.replay(settings(data, replay={"train_until": "2030-01-01"}), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"Set data\.time"):
        replay.replay(settings(data, timed=False), tmp_path / "out")


def test_a_folder_somebody_else_filled_is_left_alone(tmp_path: Path) -> None:
    data = history(tmp_path / "data.parquet", days=20)
    (tmp_path / "out" / "work").mkdir(parents=True)
    (tmp_path / "out" / "work" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists and is not of a replay"):
        replay.replay(settings(data, replay={"train_until": "2024-01-10"}), tmp_path / "out")
    assert (tmp_path / "out" / "work" / "mine.txt").read_text() == "keep"


def test_alerts_of_a_replay_are_alerts_of_the_rules() -> None:
    rules = "".join(path.read_text() for path in (Path(__file__).parents[3] / "monitoring" / "rules").glob("*.yaml"))
    assert [name for name in replay.ALERTS if f"alert: {name}\n" not in rules] == []
