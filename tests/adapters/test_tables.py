"""The same rows from anywhere are the same rows; what is wrong with them is said in one line."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rareclass.adapters import tables
from rareclass.config import parse
from rareclass.core.dataset import OTHER, Feature, Rows, Schema, decode, encode, infer_schema
from rareclass.errors import ConfigError, DataError, RareclassError


def history(n=3000, seed=0):
    """Transactions: numbers, texts, booleans, missing values, an id, an entity, a time, an amount."""
    rng = np.random.default_rng(seed)
    amount = rng.lognormal(3, 1, n).round(2)
    frame = pd.DataFrame(
        {
            "id": [f"t{i:05d}" for i in rng.permutation(n)],
            "when": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 90 * 86400, n)), unit="s"),
            "card": rng.integers(0, n // 4, n),
            "amount": amount,
            "kind": rng.choice(["TRANSFER", "CASH_OUT", "PAYMENT"], n, p=[0.2, 0.3, 0.5]),
            "night": rng.random(n) < 0.3,
            "age": np.where(rng.random(n) < 0.1, np.nan, rng.normal(40, 12, n).round(1)),
            "count": rng.integers(0, 50, n),
        }
    )
    frame["kind"] = frame["kind"].where(rng.random(n) > 0.05)
    frame["fraud"] = (rng.random(n) < 0.02 + 0.1 * (frame["kind"] == "TRANSFER")).astype(int)
    return frame


def settings_for(path, **sections):
    data = sections.pop("data", {})
    aside = ["id"] if data.get("time") else ["id", "when"]
    data = {"path": str(path), "target": "fraud", "drop": aside, **data}
    return parse({"name": "t", "data": {k: v for k, v in data.items() if v is not None}, **sections})


def take(path, **sections):
    return tables.ingest(settings_for(path, **sections))


def written(folder, frame, name="rows.parquet"):
    path = folder / name
    if ".csv" in name:
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path, index=False)
    return path


def everything(ingested):
    parts = (ingested.train, ingested.validation, ingested.test)
    return pd.concat([decode(p.x, p.schema).assign(y=p.y, row_id=p.row_id) for p in parts], ignore_index=True)


TIME = {"time": "when", "entity": "card", "amount": "amount", "label_delay": "1d"}


# ------------------------------------------------------------------------------------------------------- sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    frame = history()
    (folder / "parts").mkdir()
    (folder / "csvs").mkdir()
    for number in range(3):
        written(folder / "parts", frame[number::3], f"part-{number}.parquet")
        written(folder / "csvs", frame[number::3], f"part-{number}.csv")
    frame.to_csv(folder / "semicolon.csv", sep=";", index=False)
    with gzip.open(folder / "rows.csv.gz", "wt") as stream:
        frame.to_csv(stream, index=False)
    import sqlite3

    connection = sqlite3.connect(folder / "rows.db")
    frame.assign(when=frame["when"].astype(str)).to_sql("history", connection, index=False)
    connection.close()
    written(folder, frame, "rows.csv")
    written(folder, frame)
    return folder


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("rows.csv", None),
        ("rows.csv.gz", None),
        ("semicolon.csv", None),
        ("parts", None),
        ("parts/*.parquet", None),
        ("**/part-?.csv", None),
        ("sqlite", "SELECT * FROM history;"),
    ],
)
def test_the_same_rows_from_anywhere_are_the_same_rows(sources, name, query):
    reference = take(sources / "rows.parquet", data=TIME)
    path = f"sqlite:///{sources}/rows.db" if query else sources / name
    found = take(path, data={**TIME, "query": query, "categorical": ["night"] if query else []})
    if query:  # SQLite has no booleans: they come as 0 and 1
        assert found.train.y.tolist() == reference.train.y.tolist()
        assert found.schema.names == reference.schema.names
        return
    assert found.card["content_hash"] == reference.card["content_hash"]
    assert found.schema == reference.schema
    for part in ("train", "validation", "test"):
        a, b = getattr(found, part), getattr(reference, part)
        np.testing.assert_array_equal(a.x, b.x)
        assert np.array_equal(a.row_id, b.row_id)
        assert np.array_equal(a.time, b.time)
        assert np.array_equal(a.entity, b.entity)
        assert np.array_equal(a.amount, b.amount)


def test_rows_come_from_object_stores(sources):
    import fsspec

    with fsspec.open("memory://bucket/rows.parquet", "wb") as stream:
        stream.write((sources / "rows.parquet").read_bytes())
    found = take("memory://bucket/rows.parquet", data=TIME)
    assert found.card["content_hash"] == take(sources / "rows.parquet", data=TIME).card["content_hash"]
    where = tables.export(found, "memory://bucket/out")
    assert sum(len(tables.read_frame(path)) for path in where.values()) == sum(found.card["rows"][p] for p in where)


def test_rows_come_from_postgresql(postgres_url, sources):
    import sqlalchemy

    frame = history()
    engine = sqlalchemy.create_engine(postgres_url)
    frame.to_sql("ingest_history", engine, index=False, if_exists="replace")
    engine.dispose()
    data = {
        **TIME,
        "query": "SELECT * FROM ingest_history",
        "filter": [["amount", ">", 5], ["kind", "in", ["TRANSFER", "PAYMENT"]]],
    }
    found = take(postgres_url, data=data)
    same = take(sources / "rows.parquet", data={**data, "query": None})
    assert found.card["content_hash"] == same.card["content_hash"]
    with pytest.raises(DataError, match=r"refused data\.query"):
        take(postgres_url, data={**TIME, "query": "SELECT * FROM nowhere"})


def test_the_order_of_the_rows_changes_nothing(tmp_path):
    frame = history()
    a = take(written(tmp_path, frame, "a.parquet"), data=TIME)
    b = take(written(tmp_path, frame.sample(frac=1, random_state=1), "b.parquet"), data=TIME)
    assert a.card["content_hash"] == b.card["content_hash"]
    np.testing.assert_array_equal(a.train.x, b.train.x)
    changed = frame.assign(fraud=frame["fraud"].where(frame.index != 7, 1 - frame["fraud"]))
    assert take(written(tmp_path, changed), data=TIME).card["content_hash"] != a.card["content_hash"]


@pytest.mark.parametrize("data", [{}, {"id": "id", "drop": []}], ids=["by content", "by id"])
@pytest.mark.parametrize("column", ["count", "kind", "night", "amount", "fraud", "when", "card", "share", "stake"])
def test_the_data_hash_changes_with_any_value_the_model_sees(tmp_path, data, column):
    frame = history(400).assign(share=1.0, stake=2.0)
    settings = {"time": "when", "entity": "card", "amount": "stake", "propensity": "share", **data}
    other = {
        "kind": "PAYMENT",
        "night": not frame["night"][7],
        "fraud": 1 - frame["fraud"][7],
        "share": 0.5,
        "when": frame["when"][7] + pd.Timedelta("1s"),
    }.get(column, 123)
    changed = frame.copy()
    changed.loc[7, column] = other
    assert changed.loc[7, column] != frame.loc[7, column]
    before, after = (take(written(tmp_path, each), data=settings) for each in (frame, changed))
    assert before.card["content_hash"] != after.card["content_hash"]


def test_the_data_hash_changes_with_what_a_fit_may_see(tmp_path):
    path = written(tmp_path, history(400))
    every, some = (take(path, train={"filter": condition}) for condition in ([], [["count", "<", 40]]))
    assert every.card["content_hash"] != some.card["content_hash"]


def test_labelled_rows_in_the_gap_are_there_for_the_final_fit(tmp_path):
    frame = history()
    found = take(written(tmp_path, frame), data={"time": "when", "label_delay": "10d"})
    assert len(found.rest) == found.dropped["gap"] > 0
    parts = (found.train, found.validation, found.test, found.rest)
    assert len({int(each) for part in parts for each in part.row_id}) == len(frame)
    assert take(written(tmp_path, frame), data={"time": "when"}).rest is None


def test_more_rows_later_keep_test_rows_test_rows(tmp_path):
    frame = history(4000).drop(columns="when")
    for data in ({"drop": ["id"]}, {"id": "id", "drop": []}):
        early = take(written(tmp_path, frame[:2500], "a.parquet"), data=data)
        late = take(written(tmp_path, frame, "b.parquet"), data=data)
        assert set(early.test.row_id) <= set(late.test.row_id)
        assert not set(early.test.row_id) & set(late.train.row_id)


def test_a_folder_of_hive_partitions_gives_the_partition_as_a_column(tmp_path):
    frame = history()
    pq.write_to_dataset(pa.Table.from_pandas(frame), tmp_path / "data", partition_cols=["kind"])
    found = take(tmp_path / "data")
    assert "kind" in found.schema.names
    assert len(everything(found)) == len(frame)


# ------------------------------------------------------------------------------------------------------ encoding


def test_categories_are_learned_from_training_rows_only(tmp_path):
    frame = history()
    frame.loc[frame.index[-100:], "kind"] = "NEW"
    found = take(written(tmp_path, frame), data={"time": "when"})
    train = frame.sort_values("when")[: len(found.train)]
    assert found.schema == infer_schema(train[found.schema.names])
    position = found.schema.names.index("kind")
    assert np.isnan(found.test.x[-100:, position]).all()


def test_rare_levels_are_pooled_and_encode_agrees(tmp_path):
    frame = history()
    rng = np.random.default_rng(1)
    frame["shop"] = [f"shop {i}" for i in rng.geometric(0.02, len(frame))]
    found = take(written(tmp_path, frame), data={"max_categories": 5, "time": "when"})
    shop = found.schema.features[found.schema.names.index("shop")]
    assert len(shop.categories) == 6
    assert shop.categories[-1] == OTHER
    last = frame.sort_values("when", kind="stable")[-len(found.test) :]
    expected = encode(last, found.schema)
    assert sorted(map(str, expected.tolist())) == sorted(map(str, found.test.x.tolist()))


def test_numeric_categories_and_whole_floats_are_text(tmp_path):
    frame = history().assign(code=lambda f: (f["count"] % 3).astype(float))
    found = take(written(tmp_path, frame), data={"categorical": ["code"]})
    assert set(found.schema.features[found.schema.names.index("code")].categories) == {"0", "1", "2"}


def test_a_csv_whose_types_widen_further_down_is_read_whole(tmp_path, monkeypatch):
    from rareclass.adapters.tables import csv_files

    monkeypatch.setattr(csv_files, "_BLOCK", 4096)
    frame = history(2000)
    frame["count"] = frame["count"].astype(object)
    frame.loc[1500, "count"] = 2.5
    found = take(written(tmp_path, frame, "rows.csv"))
    assert found.train.schema.features[found.schema.names.index("count")].kind == "numeric"
    assert len(everything(found)) == 2000
    frame.loc[1600, "count"] = "many"
    odd = take(written(tmp_path, frame, "rows.csv"))
    assert "number in all but 1 of 2,000 values: 'many' (1)" in odd.warnings[0].message
    ids = frame.assign(count=1, card=[*range(1500), *(f"c{i}" for i in range(500))])
    assert take(written(tmp_path, ids, "ids.csv"), data={"entity": "card"}).kind == "grouped"


def test_numbers_of_every_width_become_float32(tmp_path):
    frame = history(500)[["fraud"]]
    rng = np.random.default_rng(0)
    for kind in ("int8", "uint16", "int64", "uint64", "float16", "float64"):
        frame[kind] = rng.integers(0, 100, 500).astype(kind)
    table = pa.Table.from_pandas(frame)
    decimals = pa.array([None, *frame["int64"][1:]]).cast(pa.int64()).cast(pa.decimal128(24, 2))
    path = tmp_path / "rows.parquet"
    pq.write_table(table.append_column("money", decimals), path)
    found = everything(take(path, data={"drop": []}))
    assert all(found[name].dtype == np.float32 for name in found.columns if name not in ("y", "row_id"))
    assert found["money"].isna().sum() == 1


# ------------------------------------------------------------------------------------------------ target and time


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        ((0, 1), None, "1"),
        (("legit", "fraud"), None, "fraud"),
        ((False, True), True, "True"),
        ((0.0, 1.0), 1, "1"),
        (("no", "yes"), True, "yes"),
        ((1, 2), None, "2"),
        ((10, 20), "10", "10"),
    ],
)
def test_any_two_values_make_a_target(tmp_path, values, positive, expected):
    frame = history()
    frame["fraud"] = np.array(values, dtype=object if isinstance(values[0], str) else None)[frame["fraud"]]
    found = take(written(tmp_path, frame), data={"positive": positive})
    assert str(found.card["positive"]).removesuffix(".0") == expected
    total = found.card["target_values"]
    assert everything(found)["y"].sum() == total[expected]


def test_one_class_against_the_rest(tmp_path):
    frame = history().assign(fraud=lambda f: f["kind"].fillna("none"))
    found = take(written(tmp_path, frame), data={"positive": "TRANSFER", "drop": ["id", "kind", "when"]})
    assert everything(found)["y"].sum() == (frame["fraud"] == "TRANSFER").sum()


@pytest.mark.parametrize("form", ["text", "zone", "date", "seconds", "milliseconds", "slashes"])
def test_times_of_every_form_are_read_as_utc(tmp_path, form):
    frame = history()
    when = frame["when"].dt.floor("D") if form in ("date", "slashes") else frame["when"]
    frame["when"] = {
        "text": lambda: when.astype(str),
        "zone": lambda: when.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo"),
        "date": lambda: when.dt.date,
        "seconds": lambda: when.astype("datetime64[s]").astype("int64"),
        "milliseconds": lambda: when.astype("datetime64[ms]").astype("int64"),
        "slashes": lambda: when.dt.strftime("%m/%d/%Y"),
    }[form]()
    found = take(written(tmp_path, frame), data={"time": "when"})
    times = np.sort(np.concatenate([found.train.time, found.validation.time, found.test.time]))
    assert np.array_equal(times, np.sort(when.to_numpy().astype("datetime64[us]")))


def test_the_split_by_time_keeps_its_gap_in_the_card(tmp_path):
    found = take(written(tmp_path, history()), data=TIME)
    assert found.kind == "time"
    assert found.test.time.min() - found.validation.time.max() > np.timedelta64(1, "D")
    assert found.dropped["gap"] == found.card["rows"]["dropped"]["gap"] > 0
    counted = sum(found.card["rows"][part] for part in ("train", "validation", "test"))
    assert counted + found.dropped["gap"] == 3000
    assert len(found.card["by_time"]) == 14
    assert sum(entry["rows"] for entry in found.card["by_time"]) == counted
    json.dumps(found.card, allow_nan=False)


# --------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ([["kind", "in", ["TRANSFER", "CASH_OUT"]]], lambda f: f["kind"].isin(["TRANSFER", "CASH_OUT"])),
        ([["amount", ">", 20], ["night", "==", True]], lambda f: (f["amount"] > 20) & f["night"]),
        ([[["count", "<", 5]], [["count", ">=", 40]]], lambda f: (f["count"] < 5) | (f["count"] >= 40)),
        ([["when", ">=", "2024-02-01"]], lambda f: f["when"] >= "2024-02-01"),
        ([["kind", "not in", ["PAYMENT"]]], lambda f: f["kind"].notna() & (f["kind"] != "PAYMENT")),
    ],
)
@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.db"])
def test_the_filter_keeps_what_it_says_wherever_the_rows_are(sources, condition, expected, name):
    path = f"sqlite:///{sources}/{name}" if name.endswith("db") else sources / name
    query = "SELECT * FROM history" if name.endswith("db") else None
    found = take(path, data={"filter": condition, "query": query, "drop": ["id", "when"]})
    assert len(everything(found)) == expected(history()).sum()


def test_the_training_filter_sees_the_target_and_touches_training_rows_only(tmp_path):
    frame = history()
    path = written(tmp_path, frame)
    plain = take(path, data={"time": "when"})
    found = take(path, data={"time": "when"}, train={"filter": [[["fraud", "==", 1]], [["count", "<", 25]]]})
    assert np.array_equal(found.test.row_id, plain.test.row_id)
    assert np.array_equal(found.validation.row_id, plain.validation.row_id)
    assert np.array_equal(found.train.row_id, plain.train.row_id), "they stay to be scored"
    left = found.train.learnable()
    assert left.positives == plain.train.positives
    assert found.train_kept == pytest.approx((len(left) - left.positives) / (len(plain.train) - plain.train.positives))
    assert found.card["rows"]["train"] == len(left)
    assert 0.4 < found.train_kept < 0.6
    assert plain.train_kept == 1


def test_majority_outliers_leave_training_and_positives_stay(tmp_path):
    frame = history()
    frame.loc[frame["fraud"] == 1, "amount"] *= 1000
    path = written(tmp_path, frame)
    plain = take(path)
    found = take(path, train={"majority_quantile": 0.95})
    position = found.schema.names.index("amount")
    negative = plain.train.x[plain.train.y == 0, position]
    bound = np.quantile(negative, 0.95)
    for part in (found.train, found.validation, found.test):
        left = part.learnable()
        assert left.x[left.y == 0, position].max() <= bound + 1e-3, "a final fit on all rows leaves out the same"
        assert left.positives == part.positives
    left = found.train.learnable()
    assert found.dropped["majority_outliers"] == len(plain.train) - len(left)
    assert found.train_kept == pytest.approx(1 - found.dropped["majority_outliers"] / len(negative))


@pytest.mark.parametrize(("of", "label"), [("majority", 0), ("rare", 1)])
def test_outliers_of_one_named_column_of_one_class_teach_no_fit_and_nothing_else_changes(of, label, tmp_path):
    path = written(tmp_path, history())
    plain = take(path)
    found = take(path, train={"outliers": [{"column": "amount", "of": of, "below": 0.1, "above": 0.9}]})
    position = found.schema.names.index("amount")
    own = plain.train.x[plain.train.y == label, position]
    low, high = np.nanquantile(own, [0.1, 0.9])
    for part, before in zip(
        (found.train, found.validation, found.test), (plain.train, plain.validation, plain.test), strict=True
    ):
        left = part.learnable()
        values = left.x[left.y == label, position]
        assert low - 1e-3 <= np.nanmin(values) <= np.nanmax(values) <= high + 1e-3
        assert np.isnan(values).sum() == np.isnan(before.x[before.y == label, position]).sum(), (
            "a missing value is no outlier"
        )
        assert (left.y == 1 - label).sum() == (before.y == 1 - label).sum()
        assert len(part) == len(before), "they are still scored"
    gone = len(plain.train) - len(found.train.learnable())
    assert found.dropped["outliers of amount"] == gone > 0
    kept = 1 - gone / len(own)
    assert found.train_kept == pytest.approx(kept if label == 0 else 1 / kept)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"column": "amuont", "above": 0.9}, "no numeric feature. Did you mean 'amount'?"),
        ({"column": "kind", "above": 0.9}, "'kind' is no numeric feature"),
        ({"column": "amount"}, "an end is missing; set below or above"),
    ],
)
def test_outliers_of_no_numeric_column_and_without_an_end_are_refused(rule, said, tmp_path):
    path = written(tmp_path, history())
    with pytest.raises(ConfigError, match=re.escape(said)):
        take(path, train={"outliers": [rule]})


def test_empty_rows_are_dropped_when_asked(tmp_path):
    frame = history()
    frame["night"] = frame["night"].astype(object)
    frame.loc[:99, ["amount", "kind", "night", "age", "count", "card"]] = None
    path = written(tmp_path, frame.drop(columns="when"))
    assert len(everything(take(path, data={"drop_empty": True, "drop": ["id"]}))) == len(frame) - 100
    assert len(everything(take(path, data={"drop": ["id"]}))) == len(frame)


def test_known_positive_entities_leave_the_test(tmp_path):
    found = take(written(tmp_path, history()), data=TIME, split={"drop_known_entities": True})
    known = set(found.train.entity[found.train.y == 1]) | set(found.validation.entity[found.validation.y == 1])
    assert not known & set(found.test.entity)
    assert found.dropped["known_entities"] > 0


def test_propensities_become_weights(tmp_path):
    frame = history().assign(seen=lambda f: np.where(f["count"] < 25, 0.5, 1.0))
    found = take(written(tmp_path, frame), data={"propensity": "seen"})
    assert set(found.train.weight) == {1.0, 2.0}
    assert "seen" not in found.schema.names


# ---------------------------------------------------------------------------------------------------------- checks


def test_warnings_are_told_and_acted_on(tmp_path):
    frame = history()
    frame["nothing"] = np.nan
    frame["leak"] = frame["fraud"] + 0.1
    frame["huge"] = np.where(frame.index == 3, np.inf, 1.0)
    frame = pd.concat([frame, frame[:50]], ignore_index=True).drop(columns="when")
    frame["fraud"] = frame["fraud"].astype("Int64")
    frame.loc[100, "fraud"] = None
    path = written(tmp_path, frame)
    found = take(path, data={"drop": ["id"], "checks": {"infinite_values": "warning", "missing_target": "warning"}})
    names = {each.check for each in found.warnings}
    assert names == {"all_missing", "leak", "identical_rows", "infinite_values", "missing_target"}
    assert "nothing" not in found.schema.names
    assert not np.isinf(everything(found)["huge"]).any()
    assert found.card["rows"]["dropped"]["no_target"] == 1
    sides = [set(part.row_id) for part in (found.train, found.validation, found.test)]
    assert not (sides[0] & sides[2]) | (sides[0] & sides[1]) | (sides[1] & sides[2])


def bad(**change):
    return history(600).assign(**change)


N = 600
PROSE = [f"the customer {i} called about a card that was lost" for i in range(N)]
BAD = {
    "file": (None, {"path": "rows.parque"}, r"does not exist. Did you mean 'rows\.parquet'"),
    "empty folder": (None, {"path": "nothing/*.parquet"}, "has no files"),
    "scheme": (None, {"path": "ftpx://host/rows.parquet"}, "unknown scheme 'ftpx'"),
    "database": (None, {"path": "sqlite:///none.db", "query": "SELECT 1"}, "does not exist"),
    "no query": (None, {"path": "sqlite:///none.db"}, r"Set data\.query"),
    "demo": (None, {"path": "demo:flight"}, "Did you mean 'flights'"),
    "target": (
        bad(),
        {"target": "frauds"},
        r"column 'frauds' \(data\.target\) is not in the data. Did you mean 'fraud'",
    ),
    "drop": (bad(), {"drop": ["idd"]}, "Did you mean 'id'"),
    "time": (bad(), {"time": "amout"}, "Did you mean 'amount'"),
    "one class": (
        bad(fraud="ok"),
        {},
        "one class only: ok .600.*Set data.positive to the value that the rare class has",
    ),
    "no such positive": (bad(), {"positive": "2"}, r"Set data\.positive to one of: 0 .*, 1 "),
    "many values": (bad(fraud=[i % 3 for i in range(N)]), {}, r"has 3 values: 0 \(200\), 1 \(200\), 2 \(200\)"),
    "number target": (bad(fraud=np.arange(N) / 7), {}, r"has 600 values: .*\.\.\.\. Set data\.positive"),
    "missing target": (bad(fraud=[None, *[0, 1] * 299, 1]), {}, "missing in 1 of 600 rows"),
    "time text": (bad(when=["2024-01-01"] * (N - 1) + ["soon"]), {"time": "when"}, "is not a time, like 'soon'"),
    "time number": (bad(), {"time": "count", "drop": ["id", "when"]}, "no times by themselves. Set data.time_unit"),
    "time missing": (bad(when=[None, *["2024-01-01"] * (N - 1)]), {"time": "when"}, "is missing in 1 of 600"),
    "one time": (bad(when="2024-01-01"), {"time": "when"}, "same time"),
    "time feature": (bad(), {"drop": ["id"]}, "column 'when' is a time"),
    "gap": (bad(), {"time": "when", "label_delay": "365d"}, "label delay"),
    "infinite": (bad(age=[np.inf] * 3 + [1.0] * (N - 3)), {"time": "when"}, "'age' is infinite"),
    "ids": (
        bad(id=[str(i // 2) for i in range(N)]),
        {"id": "id", "drop": [], "time": "when"},
        r"repeats in 600 of 600",
    ),
    "free text": (bad(note=PROSE), {"time": "when"}, "free text .* bring embeddings as columns"),
    "image": (bad(picture=[[1, 2]] * N), {"time": "when"}, "bring embeddings as columns"),
    "blob": (bad(picture=[b"png"] * N), {"time": "when"}, "bring embeddings as columns"),
    "id column": (bad(), {"drop": [], "time": "when"}, "column 'id' has 600 different values"),
    "decimal": (bad(mix=[f"{i},5" for i in range(N)]), {"time": "when"}, r"numbers like '0,5': set data\.decimal"),
    "filter column": (bad(), {"time": "when", "filter": [["knd", "==", "A"]]}, "Did you mean 'kind'"),
    "filter operator": (bad(), {"time": "when", "filter": [["kind", "~", "A"]]}, "unknown operator '~'"),
    "filter list": (bad(), {"time": "when", "filter": [["kind", "in", "A"]]}, "needs a list"),
    "filter type": (bad(), {"time": "when", "filter": [["amount", ">", "much"]]}, "another type"),
    "filter all": (bad(), {"time": "when", "filter": [["amount", "<", -1]]}, r"data\.filter keeps none"),
    "amount text": (bad(), {"time": "when", "amount": "kind"}, "must hold numbers"),
    "amount missing": (bad(), {"time": "when", "amount": "age"}, "is missing in"),
    "propensity": (bad(), {"time": "when", "propensity": "amount"}, "probabilities"),
    "no feature": (
        bad(),
        {"drop": ["id", "when", "card", "amount", "kind", "night", "age", "count"]},
        "no column is left",
    ),
    "all missing": (bad()[["fraud"]].assign(a=np.nan), {"drop": []}, "every feature is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_gives_one_clear_line(tmp_path, name, monkeypatch):
    frame, data, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"")
    if frame is not None:
        frame.to_parquet(tmp_path / "rows.parquet", index=False)
    with pytest.raises(RareclassError, match=message) as caught:
        take(data.get("path", "rows.parquet"), data={k: v for k, v in data.items() if k != "path"})
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 420
    assert caught.value.exit_code == 2


def test_files_that_are_not_tables_are_named(tmp_path):
    for name, content, message in (
        ("a.parquet", b"nonsense" * 10, "cannot be read"),
        ("a.docx", b"PK nonsense", "neither Parquet nor CSV"),
        ("a.csv", b"", "is empty"),
        ("b.csv", b"x,fraud\n1,0\n1,2,3\n", "Expected 2 columns"),
        ("c.csv", b"x,x,fraud\n1,1,0\n1,2,1\n", "two columns named 'x'"),
        ("d.csv", b"x,fraud\n", "no rows"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            take(tmp_path / name, data={"drop": []})
        assert "\n" not in str(caught.value)


def test_a_password_is_never_shown():
    with pytest.raises(DataError) as caught:
        take("postgresql://me:secret@127.0.0.1:1/db", data={"query": "SELECT 1"})
    assert "secret" not in str(caught.value)


def test_a_target_of_one_ordinary_class_or_of_no_value_is_read_for_what_it_is(tmp_path):
    normal = take(written(tmp_path, bad(fraud=0)), data={"time": "when"})
    assert (normal.schema.roles.target.positive, normal.train.positives) == ("1", 0)
    unlabelled = take(written(tmp_path, bad(fraud=None)), data={"time": "when"})
    assert unlabelled.schema.roles.target is None
    assert "fraud" not in unlabelled.schema.names


# ------------------------------------------------------------------------------------------------- rows and frames


@st.composite
def any_rows(draw):
    n = draw(st.integers(0, 30))
    features = (Feature("a"), Feature("b", "categorical", ("x", "y", OTHER)), Feature("c"))
    numbers = hnp.arrays(np.float32, n, elements=st.floats(width=32, allow_infinity=False))
    codes = hnp.arrays(np.float32, n, elements=st.sampled_from([0, 1, 2, np.nan]))
    some = st.booleans()
    return Rows(
        schema=Schema(features),
        x=np.stack([draw(numbers), draw(codes), draw(numbers)], axis=1) if n else np.empty((0, 3), np.float32),
        y=draw(hnp.arrays(np.int64, n, elements=st.integers(0, 1))),
        row_id=draw(hnp.arrays(np.uint64, n)),
        time=np.arange(n).astype("datetime64[us]") if draw(some) else None,
        entity=draw(hnp.arrays(np.uint64, n)) if draw(some) else None,
        amount=np.arange(n) / 3 if draw(some) else None,
        weight=np.ones(n) if draw(some) else None,
        fold=np.arange(n) if draw(some) else None,
    )


@settings(max_examples=40, deadline=None)
@given(rows=any_rows())
def test_rows_come_back_from_a_file_as_they_were(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    tables.write_rows(path, rows)
    back = tables.read_rows(path)
    assert back.schema == rows.schema
    for name in ("x", "y", "row_id", "time", "entity", "amount", "weight", "fold"):
        a, b = getattr(rows, name), getattr(back, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_a_rows_file_is_readable_by_anybody(tmp_path):
    found = take(written(tmp_path, history()), data=TIME)
    tables.write_rows(tmp_path / "train.parquet", found.train)
    frame = pd.read_parquet(tmp_path / "train.parquet")
    assert set(frame["kind"].dropna().unique()) == {"TRANSFER", "CASH_OUT", "PAYMENT"}
    assert frame["__y"].sum() == found.train.positives


def test_a_foreign_file_is_not_taken_for_rows(tmp_path):
    with pytest.raises(DataError, match="not written by rareclass"):
        tables.read_rows(written(tmp_path, history(50)))
    with pytest.raises(DataError, match="cannot be read"):
        tables.read_rows(tmp_path / "none.parquet")


@pytest.mark.parametrize("name", ["out.parquet", "out.csv", "out.csv.gz"])
def test_frames_are_written_one_after_the_other_and_read_back(tmp_path, name):
    frame = history(1000)
    count = tables.write_frames(tmp_path / "new" / name, (frame[at : at + 300] for at in range(0, 1000, 300)))
    assert count == 1000
    back = tables.read_frame(tmp_path / "new" / name)
    pd.testing.assert_frame_equal(back, frame.reset_index(drop=True), check_dtype=False)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [name]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.parquet"
    tables.write_frame(path, history(10))

    def frames():
        yield history(5)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        tables.write_frames(path, frames())
    assert len(tables.read_frame(path)) == 10
    assert [p.name for p in tmp_path.iterdir()] == ["out.parquet"]


def test_read_frames_projects_and_filters(sources):
    frame = tables.read_frame(sources / "rows.csv", columns=["amount", "kind"], filter=[["amount", ">", 50]])
    assert list(frame.columns) == ["amount", "kind"]
    assert (frame["amount"] > 50).all()
    with pytest.raises(DataError, match="Did you mean 'amount'"):
        tables.read_frame(sources / "rows.csv", columns=["amunt"])
    empty = tables.read_frame(sources / "rows.parquet", filter=[["amount", "<", -1]])
    assert list(empty.columns) == list(history(8).columns)
    assert len(empty) == 0


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_the_prepared_splits_are_exported(tmp_path, form):
    found = take(written(tmp_path, history()), data=TIME)
    paths = tables.export(found, str(tmp_path / "out"), format=form)
    assert list(paths) == ["train", "validation", "test"]
    for name, path in paths.items():
        frame = tables.read_frame(path)
        rows = getattr(found, name)
        assert len(frame) == len(rows)
        assert frame["target"].sum() == rows.positives
        assert frame["kind"].isna().sum() == np.isnan(rows.x[:, rows.schema.names.index("kind")]).sum()


# ----------------------------------------------------------------------------------------------------- demo, memory


def test_the_flights_are_there_without_what_gives_the_target_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = tables.ingest(
        parse(
            {
                "name": "f",
                "data": {"path": "demo:flights", "target": "cancelled", "time": "sched_time", "label_delay": "1d"},
            }
        )
    )
    assert found.card["target_values"] == {"0": 328521, "1": 8255}
    assert not {"tailnum", "dep_time", "dep_delay", "arr_delay", "air_time"} & set(found.schema.names)
    assert not [each for each in found.warnings if each.check == "leak"]
    assert next(Path(".rareclass/demo").iterdir()).suffix == ".parquet"


MEASURE = """
import resource, sys
from rareclass.config import parse
from rareclass.adapters import tables
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def run(path):
    return tables.ingest(parse({"name": "m", "data": {"path": path, "target": "y", "filter": eval(sys.argv[3])}}))
run(sys.argv[1])  # imports and first use are not what is measured
before = peak()
found = run(sys.argv[2])
print(peak() - before, sum(len(p) for p in (found.train, found.validation, found.test)))
"""


@pytest.mark.parametrize("condition", [[], [["x0", ">", -9.0]]])
def test_ingest_needs_little_more_than_the_table_itself(tmp_path, condition):
    rng = np.random.default_rng(0)
    n = 800_000
    schema = pa.schema([(f"x{i}", pa.float64()) for i in range(30)] + [("y", pa.int8())])
    for name, rows in (("small", 20_000), ("large", n)):
        with pq.ParquetWriter(tmp_path / name, schema) as writer:
            for _ in range(0, rows, 20_000):
                columns = [rng.normal(size=20_000) for _ in range(30)]
                writer.write_table(
                    pa.table([*columns, (rng.random(20_000) < 0.02).astype("int8")], schema=schema), 100_000
                )
    arguments = [str(tmp_path / "small"), str(tmp_path / "large"), repr(condition)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True, timeout=300
    )
    grown, rows = map(int, done.stdout.split())
    assert rows == n
    assert grown < 1.5 * n * 30 * 4
