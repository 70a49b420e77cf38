"""Backup and restore of a store, between both databases."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from postgres import PostgresServer
from rareclass.adapters.store import Store
from rareclass.config import Config, parse
from rareclass.errors import DataError, StoreError
from rareclass.services.admin import backup

NOW = datetime(2026, 3, 20, tzinfo=UTC)
ALWAYS = (NOW - timedelta(days=900), NOW + timedelta(days=1))
TABLES = ("forgotten", "ledger", "predictions", "shadow_scores", "labels", "label_history", "reviews")


def configured(url: str, name: str = "fraud") -> Config:
    return parse({"name": name, "data": {"path": "x", "target": "y"}, "store": {"url": url}})


@pytest.fixture
def config(store_url: str) -> Config:
    found = configured(store_url)
    fill(found)
    return found


def fill(config: Config) -> None:
    ids = [f"r{i}" for i in range(6)]
    rows = pd.DataFrame({"request_id": ids, "ts": [NOW - timedelta(days=7 * i) for i in range(6)], "version": "1"})
    rows = rows.assign(model=config.name, score=0.25, decision=0, entity=[None, "ann", "ann", "bob", None, "é"])
    rows["features"] = [json.dumps({"x": i, "text": 'a,"b"\nc'}) for i in range(6)]
    with Store(config.store.url) as store:
        store.migrate()
        store.add_predictions(rows)
        store.add_predictions(rows.assign(model="another"))
        store.add_shadow_scores(rows.assign(role="previous", version="0", score=[0.5] * 5 + [None]))
        for label in (0, 1):
            truth = pd.DataFrame({"request_id": ids[:3], "label": label, "observed_at": NOW + timedelta(hours=label)})
            store.add_labels(truth.assign(model=config.name, received_at=NOW, source="desk"))
        chosen = rows[:2][["request_id", "ts"]].assign(probability=[1.0, 0.1], reason=["top", "control"], at=NOW)
        store.add_reviews(chosen, model=config.name)
        for key in ("a", "b"):
            store.append(config.name, key, "promote", "ann", "because", {"version": key}, NOW)


def window(config: Config) -> pd.DataFrame:
    with Store(config.store.url) as store:
        found = store.window(config.name, *ALWAYS, features=True, reviews=True)
        return found.sort_values("request_id", ignore_index=True)


def test_a_backup_goes_into_an_empty_store_of_the_other_kind_and_says_the_same(config: Config, tmp_path: Path) -> None:
    folder, counts = backup.backup(config, str(tmp_path / "kept"), NOW)
    assert counts == {
        "forgotten": 0,
        "ledger": 2,
        "predictions": 6,
        "shadow_scores": 6,
        "labels": 3,
        "label_history": 3,
        "reviews": 2,
    }
    fresh = configured(f"sqlite:///{tmp_path}/fresh.db")
    assert backup.restore(fresh, folder) == {table: (counts[table], counts[table]) for table in TABLES}
    pd.testing.assert_frame_equal(window(fresh), window(config), check_dtype=False)
    with Store(fresh.store.url) as new, Store(config.store.url) as old:
        assert [(e.key, e.payload, e.at) for e in new.entries("fraud")] == [
            (e.key, e.payload, e.at) for e in old.entries("fraud")
        ]
        assert new.window("another", *ALWAYS).empty


def test_a_restore_into_the_store_itself_changes_nothing(config: Config, tmp_path: Path) -> None:
    folder, counts = backup.backup(config, str(tmp_path), NOW)
    before = window(config)
    assert backup.restore(config, folder) == {table: (counts[table], 0) for table in TABLES}
    pd.testing.assert_frame_equal(window(config), before)


def test_what_was_lost_comes_back_and_what_was_forgotten_does_not(config: Config, tmp_path: Path) -> None:
    folder, _ = backup.backup(config, str(tmp_path), NOW)
    with Store(config.store.url) as store:
        assert store.forget("fraud", entity="ann", at=NOW + timedelta(days=1)).total > 0
        assert store.prune("fraud", NOW - timedelta(days=20))["predictions"] > 0
    assert backup.restore(config, folder)["labels"] == (3, 0)
    assert window(config)["request_id"].tolist() == ["r0", "r3", "r4", "r5"]


def test_the_newest_backup_of_the_model_is_taken_and_older_ones_go(config: Config, tmp_path: Path) -> None:
    (tmp_path / "fraud-20260101T000000Z").mkdir()  # has no manifest: was interrupted
    for day in range(4):
        backup.backup(config, str(tmp_path), NOW + timedelta(days=day), keep=2)
    left = sorted(each.name for each in tmp_path.glob("fraud-2026032*"))
    assert left == ["fraud-20260322T000000Z", "fraud-20260323T000000Z"]
    fresh = configured(f"sqlite:///{tmp_path}/fresh.db")
    assert backup.restore(fresh, str(tmp_path))["predictions"] == (6, 6)


def test_a_backup_of_another_model_is_refused_in_one_line(config: Config, tmp_path: Path) -> None:
    folder, _ = backup.backup(config, str(tmp_path), NOW)
    with pytest.raises(DataError, match="is a backup of 'fraud', not of 'loans'"):
        backup.restore(configured(f"sqlite:///{tmp_path}/fresh.db", "loans"), folder)
    with pytest.raises(DataError, match="there is no backup of 'loans'"):
        backup.restore(configured(f"sqlite:///{tmp_path}/fresh.db", "loans"), str(tmp_path))


def test_a_damaged_backup_is_refused(config: Config, tmp_path: Path) -> None:
    folder, _ = backup.backup(config, str(tmp_path), NOW)
    file = Path(folder) / "ledger.parquet"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match="cannot be read"):
        backup.restore(configured(f"sqlite:///{tmp_path}/fresh.db"), folder)


def test_migrate_waits_for_a_database_and_gives_up_in_one_line(tmp_path: Path) -> None:
    away = configured("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreError):
        backup.migrate(away, wait=0.0)
    here = configured(f"sqlite:///{tmp_path}/s.db")
    assert backup.migrate(here) == backup.migrate(here) == backup.HEAD


def test_a_command_waits_for_a_database_that_does_not_answer_yet(
    own_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    own_postgres.kill()
    config = configured(own_postgres.url())
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        if len(asked) == 3:
            own_postgres.start()
        with Store(config.store.url) as store:
            store.ping()
        return "there"

    assert backup.when_it_answers(ask, wait=120, pause=0.0) == "there"
    assert len(asked) == 3
    assert sum(said.startswith("waiting: store postgresql") for said in caplog.messages) == 2
    patient = config.store.model_copy(update={"wait": timedelta(minutes=1)})
    assert backup.ready(config.model_copy(update={"store": patient})).store.wait == timedelta(minutes=1)


def test_nothing_is_waited_for_unless_the_settings_say_so(tmp_path: Path) -> None:
    nobody = configured("postgresql://nobody@127.0.0.1:1/none")
    assert backup.ready(nobody) is nobody
    with pytest.raises(StoreError, match="cannot be reached"):
        backup.when_it_answers(lambda: backup.migrate(nobody), wait=0.0)
