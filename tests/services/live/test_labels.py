"""Label files, POSTed labels, and what a label that never came means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rareclass.adapters.store import LabelReport, Store
from rareclass.adapters.tables.sources import BATCH
from rareclass.config import Config, parse
from rareclass.errors import DataError, InputError, StoreError
from rareclass.services.live.labels import import_labels, receive_labels

NOW = datetime(2026, 3, 20, tzinfo=UTC)
ALWAYS = (NOW - timedelta(days=300), NOW + timedelta(days=1))


def make_config(url: str, **more: Any) -> Config:
    data = {"path": "x", "target": "outcome"} | more.pop("data", {})
    return parse({"name": "fraud", "data": data, "store": {"url": url}, **more})


@pytest.fixture
def config(sqlite_url: str) -> Config:
    """A project whose store has the predictions 001, 002 and 003 of two rows each."""
    with Store(sqlite_url) as store:
        store.migrate()
        ids = [f"00{i // 2 + 1}" for i in range(6)]
        frame = pd.DataFrame({"request_id": ids, "row": [0, 1] * 3, "model": "fraud", "version": "1", "score": 0.5})
        store.add_predictions(frame.assign(ts=NOW - timedelta(days=10), decision=0))
    return make_config(sqlite_url)


def labelled(config: Config) -> dict[tuple[str, int], float]:
    with Store(config.store.url) as store:
        window = store.window("fraud", *ALWAYS).dropna(subset=["label"])
    return {(r.request_id, r.row): r.label for r in window.itertuples()}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_file_is_imported_once_and_its_ids_stay_text(config: Config, tmp_path: Path) -> None:
    file = write(
        tmp_path / "bank.csv", "request_id,row,label,comment\n001,0,1,x\n001,1,0,\n002,0,,not yet\n999,0,true,\n"
    )
    assert import_labels(config, file, NOW) == LabelReport(inserted=3, unknown=1)
    assert import_labels(config, file, NOW + timedelta(days=1)) == LabelReport(unchanged=3, unknown=1)
    assert labelled(config) == {("001", 0): 1, ("001", 1): 0}
    with Store(config.store.url) as store:
        assert store.query("SELECT DISTINCT source FROM labels")["source"].tolist() == ["bank.csv"]
        assert store.window("fraud", *ALWAYS)["label_observed_at"].dropna().tolist() == [pd.Timestamp("2026-03-20")] * 2


def test_a_parquet_file_may_hold_numbers_as_ids_and_times_of_its_own(config: Config, tmp_path: Path) -> None:
    with Store(config.store.url) as store:
        rows = pd.DataFrame({"request_id": ["17"], "model": "fraud", "version": "1", "score": 0.5})
        store.add_predictions(rows.assign(ts=NOW, decision=0))
    observed = pd.Timestamp("2026-03-12T10:00:00")
    frame = pd.DataFrame({"request_id": [17], "label": [True], "observed_at": [observed], "source": ["court"]})
    frame.to_parquet(tmp_path / "l.parquet")
    assert import_labels(config, tmp_path / "l.parquet", NOW) == LabelReport(inserted=1)
    with Store(config.store.url) as store:
        [label] = store.query("SELECT * FROM labels").to_dict("records")
    assert (label["request_id"], label["source"]) == ("17", "court")
    assert label["observed_at"] == observed.timestamp() * 1_000_000


def test_the_targets_own_column_and_positive_value_are_understood(config: Config, tmp_path: Path) -> None:
    words = make_config(config.store.url, data={"positive": "fraud"})
    file = write(tmp_path / "l.csv", "request_id,outcome\n001,fraud\n002,fine\n003,\n")
    assert import_labels(words, file, NOW) == LabelReport(inserted=2)
    assert labelled(config) == {("001", 0): 1, ("002", 0): 0}


def test_labels_come_from_a_database_too(config: Config, tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "bank.db") as bank:
        bank.execute("CREATE TABLE chargebacks (request_id TEXT, label INT, at TEXT)")
        bank.executemany(
            "INSERT INTO chargebacks VALUES (?, ?, ?)", [("001", 1, "2026-03-15"), ("002", 0, "2026-03-16")]
        )
    url = f"sqlite:///{tmp_path / 'bank.db'}"
    assert import_labels(config, f"{url}#chargebacks", NOW) == LabelReport(inserted=2)
    later = f"{url}#SELECT request_id, label, at AS observed_at FROM chargebacks WHERE request_id LIKE '%1'"
    assert import_labels(config, later, NOW) == LabelReport(unchanged=1)
    with pytest.raises(DataError, match=r"names no labels\. Write sqlite:.*#TABLE"):
        import_labels(config, url, NOW)
    with pytest.raises(DataError, match=r"labels cannot be read: .*no such table: nothing"):
        import_labels(config, f"{url}#nothing", NOW)


def test_a_correction_in_a_later_file_wins(config: Config, tmp_path: Path) -> None:
    import_labels(config, write(tmp_path / "1.csv", "request_id,label,observed_at\n001,1,2026-03-12\n"), NOW)
    report = import_labels(config, write(tmp_path / "2.csv", "request_id,label,observed_at\n001,0,2026-03-14\n"), NOW)
    assert report == LabelReport(corrected=1)
    assert labelled(config) == {("001", 0): 0}


def test_a_clock_that_runs_ahead_cannot_make_a_label_final(config: Config, tmp_path: Path) -> None:
    import_labels(config, write(tmp_path / "1.csv", "request_id,label,observed_at\n001,1,2099-01-01\n"), NOW)
    report = import_labels(config, write(tmp_path / "2.csv", "request_id,label\n001,0\n"), NOW + timedelta(hours=1))
    assert report == LabelReport(corrected=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("request,label\n1,1\n", "no column 'request_id'. Did you mean 'request'"),
        (
            "request_id,labels\n1,1\n",
            r"no column 'label' and none named 'outcome' \(data.target\). Did you mean 'labels'",
        ),
        ("request_id,label\n1,2\n", "1 labels that are not 0 or 1, like '2'"),
        ("request_id,label\n1,maybe\n", "like 'maybe'"),
        ("request_id,label\n,1\n", "1 labels without a request_id"),
        ("request_id,row,label\n1,-1,1\n", "'row' that is not a whole number"),
        ("request_id,row,label\n1,first,1\n", "'row' that is not a whole number"),
        ("request_id,label,observed_at\n1,1,soon\n", "not a time"),
        ("request_id,label\n1,1,1,1\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_a_bad_label_file_is_one_clear_line(config: Config, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        import_labels(config, write(tmp_path / "bad.csv", text), NOW)
    assert "\n" not in str(caught.value)
    assert labelled(config) == {}


def test_a_file_that_is_not_there_or_not_parquet_is_one_clear_line(config: Config, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a file\. Pass a CSV or Parquet file"):
        import_labels(config, tmp_path / "nowhere.csv", NOW)
    with pytest.raises(DataError, match="cannot be read"):
        import_labels(config, write(tmp_path / "text.parquet", "request_id,label"), NOW)


def test_labels_are_read_from_an_address_of_an_object_store_like_from_a_path(config: Config, tmp_path: Path) -> None:
    (tmp_path / "late").mkdir()
    write(tmp_path / "late" / "l.csv", "request_id,label\n001,1\n")
    assert import_labels(config, (tmp_path / "late" / "l.csv").as_uri(), NOW) == LabelReport(inserted=1)
    assert import_labels(config, tmp_path / "late" / "l.csv", NOW) == LabelReport(unchanged=1)
    with pytest.raises(DataError, match=r"nowhere\.csv' is not a file.*like s3://bucket/labels\.csv"):
        import_labels(config, (tmp_path / "nowhere.csv").as_uri(), NOW)


def test_an_empty_label_file_changes_nothing(config: Config, tmp_path: Path) -> None:
    assert import_labels(config, write(tmp_path / "l.csv", "request_id,label\n"), NOW) == LabelReport()
    assert import_labels(config, write(tmp_path / "m.csv", "request_id,label\n001,\n"), NOW) == LabelReport()


def test_posted_labels_are_stored(config: Config) -> None:
    payload = [
        {"request_id": "001", "label": 1},
        {"request_id": "001", "row": 1, "label": 0, "source": "desk", "observed_at": "2026-03-12T00:00:00+01:00"},
    ]
    assert receive_labels(config, payload, NOW) == LabelReport(inserted=2)
    assert receive_labels(config, {"labels": payload}, NOW) == LabelReport(unchanged=2)
    assert receive_labels(config, [], NOW) == LabelReport()
    assert labelled(config) == {("001", 0): 1, ("001", 1): 0}


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("text", "labels must be a list"),
        ({"request_id": "1", "label": 1}, "labels must be a list"),
        ([{"request_id": "1", "label": 1}, 7], r"labels\[1\] must be an object"),
        ([{"request_id": "1", "lable": 1}], r"labels\[0\] has an unknown field 'lable'. Did you mean 'label'"),
        ([{"label": 1}], r"labels\[0\].request_id must be a text"),
        ([{"request_id": 5, "label": 1}], "request_id must be a text"),
        ([{"request_id": "x" * 300, "label": 1}], "request_id must be a text of 1 to 256"),
        (
            [{"request_id": "001", "label": 1}, {"request_id": "1", "label": "1"}],
            r"labels\[1\].label must be 0 or 1; it is '1'",
        ),
        ([{"request_id": "1", "label": None}], "label must be 0 or 1"),
        ([{"request_id": "1", "label": float("nan")}], "label must be 0 or 1"),
        ([{"request_id": "1", "label": 1, "row": True}], "row must be a whole number"),
        ([{"request_id": "1", "label": 1, "row": 2**40}], "row must be a whole number"),
        ([{"request_id": "1", "label": 1, "source": 4}], "source must be a text"),
        ([{"request_id": "1", "label": 1, "observed_at": "soon"}], "observed_at must be an ISO 8601 time"),
        ([{"request_id": "1", "label": 1, "observed_at": 12}], "observed_at must be an ISO 8601 time"),
        ([{"request_id": "1", "label": 1, "observed_at": "99999-01-01"}], "observed_at must be an ISO 8601 time"),
        ([{"request_id": "1", "label": 1, "observed_at": "NaT"}], "observed_at must be an ISO 8601 time"),
    ],
)
def test_a_bad_payload_is_one_clear_line_and_stores_nothing(config: Config, payload: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        receive_labels(config, payload, NOW)
    assert "\n" not in str(caught.value)
    assert labelled(config) == {}


def test_too_many_labels_in_one_request_are_refused(config: Config) -> None:
    small = make_config(config.store.url, labels={"max_batch": 2})
    with pytest.raises(InputError, match=r"3 labels in one request; at most 2 \(labels.max_batch\)"):
        receive_labels(small, [{"request_id": str(i), "label": 1} for i in range(3)], NOW)


def test_an_unreachable_store_is_not_the_payloads_fault() -> None:
    config = make_config("postgresql://u:p@127.0.0.1:9/none")
    with pytest.raises(StoreError, match="cannot be reached"):
        receive_labels(config, [{"request_id": "1", "label": 1}], NOW)


@pytest.fixture
def registered(config: Config, tmp_path: Path) -> Config:
    """The same project with a champion that learned the texts Yes and No, a true of YAML being Yes."""
    from dataclasses import replace

    import small_model
    from rareclass.adapters.tracking import Tracker
    from rareclass.core.dataset import Roles
    from rareclass.core.reading import Target
    from rareclass.services import promotion

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    known = make_config(config.store.url, data={"positive": True, "id": "key"}, tracking={"uri": uri})
    model = small_model.model()
    schema = replace(model.schema, roles=Roles(target=Target("outcome", "Yes", ("No", "Yes")), id="key"))
    promotion.register(known, replace(model, schema=schema), Tracker(uri, "x").start("run").id, now=NOW)
    promotion.promote(known, now=NOW)
    return known


def test_values_of_the_target_are_read_as_the_champion_read_them(registered: Config, tmp_path: Path) -> None:
    """`positive: Yes` is true in YAML; blanks around a value are none of it; `data.id` names the prediction."""
    file = write(tmp_path / "l.csv", "key,outcome\n001,Yes \n002,No\n003,\n")
    assert import_labels(registered, file, NOW) == LabelReport(inserted=2)
    assert labelled(registered) == {("001", 0): 1, ("002", 0): 0}
    posted = [{"request_id": "003", "label": "Yes"}, {"request_id": "003", "row": 1, "label": "No"}]
    assert receive_labels(registered, posted, NOW) == LabelReport(inserted=2)
    assert labelled(registered)["003", 0] == 1


def test_a_value_that_is_neither_class_stores_nothing(registered: Config, tmp_path: Path) -> None:
    file = write(tmp_path / "l.csv", "request_id,outcome\n001,Yes\n002,maybe\n")
    with pytest.raises(DataError, match=r"'maybe' .1. is no value of the target 'outcome'.*Training saw: No, Yes"):
        import_labels(registered, file, NOW)
    with pytest.raises(InputError, match=r"labels\[0\].label must be 0 or 1; it is 'yes'.*Did you mean 'Yes'"):
        receive_labels(registered, [{"request_id": "001", "label": "yes"}], NOW)
    assert labelled(registered) == {}


def test_without_a_version_a_true_of_yaml_cannot_say_which_value_is_rare(config: Config, tmp_path: Path) -> None:
    words = make_config(config.store.url, data={"positive": True}, tracking={"uri": f"sqlite:///{tmp_path}/none.db"})
    with pytest.raises(DataError, match="known once a version is registered"):
        import_labels(words, write(tmp_path / "l.csv", "request_id,outcome\n001,Yes\n"), NOW)


def test_a_file_with_all_features_is_history_and_a_feature_called_label_is_none_of_ours(
    registered: Config, tmp_path: Path
) -> None:
    from dataclasses import replace

    import small_model
    from rareclass.adapters.tracking import Tracker
    from rareclass.core.dataset import Feature, Roles, Schema
    from rareclass.core.model import RareModel
    from rareclass.core.reading import Target
    from rareclass.services import promotion

    made = small_model.model()
    roles = Roles(target=Target("outcome", "Yes", ("No", "Yes")), id="key")
    schema = Schema((Feature("label"), Feature("row")), roles)
    odd: RareModel = replace(made, schema=schema, golden=None)
    promotion.register(registered, odd, Tracker(registered.tracking.uri, "x").start("run").id, now=NOW)
    promotion.promote(registered, "2", now=NOW)
    file = write(tmp_path / "l.csv", "key,label,row,outcome\n001,0,7,Yes\n002,1,9,No\n")
    assert import_labels(registered, file, NOW) == LabelReport(inserted=2)
    assert labelled(registered) == {("001", 0): 1, ("002", 0): 0}


def test_a_file_longer_than_a_batch_is_imported_in_parts_and_a_wrong_line_at_its_end_leaves_nothing(
    tmp_path: Path, config: Config
) -> None:
    count = BATCH + 100
    lines = [f"p{at},{at % 50 == 0:d}" for at in range(count)]
    file = tmp_path / "long.csv"
    file.write_text("\n".join(["request_id,label", *lines[:-1], f"p{count},maybe", ""]))
    with pytest.raises(DataError, match="1 labels that are not 0 or 1, like 'maybe'"):
        import_labels(config, file, NOW)
    file.write_text("\n".join(["request_id,label", *lines, ""]))
    assert import_labels(config, file, NOW) == LabelReport(inserted=count, unknown=count)
    assert import_labels(config, file, NOW) == LabelReport(unchanged=count, unknown=count)
