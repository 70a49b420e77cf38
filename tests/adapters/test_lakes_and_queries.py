"""Tables of a lake, SQL over files, and how warehouses are asked: the same rows as from a Parquet file."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
import types
from pathlib import Path
from typing import Any

import adbc_driver_manager
import numpy as np
import pyarrow as pa
import pytest
from test_tables import TIME, history, take, written

from rareclass.adapters.tables.opening import open_source
from rareclass.adapters.tables.sources import Dialect, select
from rareclass.errors import ConfigError, DataError, MissingExtraError, RareclassError

FILTER = [["amount", ">", 5], ["kind", "in", ["TRANSFER", "PAYMENT"]], ["when", ">=", "2024-01-10"]]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("rows"), history())


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory, parquet: Path) -> str:
    """A Delta table whose version 0 is half of the rows and whose version 1 is all of them, in two files."""
    from deltalake import write_deltalake

    folder = tmp_path_factory.mktemp("lake") / "rows"
    rows = pa.Table.from_pandas(history(), preserve_index=False)
    for part in (rows.slice(0, 1500), rows.slice(1500)):
        write_deltalake(folder, part, mode="append")
    return f"delta://{folder}"


@pytest.fixture(scope="module")
def iceberg(tmp_path_factory: pytest.TempPathFactory, parquet: Path) -> Any:
    """An Iceberg table of two snapshots in a catalog that the environment names."""
    from pyiceberg.catalog.sql import SqlCatalog

    folder = tmp_path_factory.mktemp("iceberg")
    where = {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
    catalog = SqlCatalog("lake", **where)
    catalog.create_namespace("bank")
    frame = history()
    frame["when"] = frame["when"].astype("datetime64[us]")
    rows = pa.Table.from_pandas(frame, preserve_index=False)
    table = catalog.create_table("bank.rows", schema=rows.schema)
    for part in (rows.slice(0, 1500), rows.slice(1500)):
        table.append(part)
    return table, {"type": "sql", **where}


def same(path: str, parquet: Path, **data: Any) -> None:
    found, reference = take(path, data={**TIME, **data}), take(parquet, data={**TIME, **data, "query": None})
    assert found.card["content_hash"] == reference.card["content_hash"]
    assert found.schema.names == reference.schema.names
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(found, part).x, getattr(reference, part).x)


@pytest.mark.parametrize("kept", [[], FILTER])
def test_a_delta_table_holds_the_same_rows(delta: str, parquet: Path, kept: list[Any]) -> None:
    same(delta, parquet, filter=kept)


def test_an_old_version_of_a_delta_table_stays_what_it_was(delta: str) -> None:
    assert (open_source(f"{delta}?version=0").rows, open_source(delta).rows) == (1500, 3000)


@pytest.mark.parametrize("kept", [[], FILTER])
def test_an_iceberg_table_holds_the_same_rows(
    iceberg: Any, parquet: Path, kept: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyiceberg.catalog
    from pyiceberg.utils.config import Config

    table, catalog = iceberg
    same(f"iceberg://{table.metadata_location}", parquet, filter=kept)
    for key, value in catalog.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{key.upper()}", value)
    monkeypatch.setattr(
        pyiceberg.catalog, "_ENV_CONFIG", Config()
    )  # PyIceberg reads the environment when it is imported
    same("iceberg://lake/bank.rows", parquet, filter=kept)


def test_a_snapshot_of_an_iceberg_table_stays_what_it_was(iceberg: Any) -> None:
    table, _ = iceberg
    first = table.history()[0].snapshot_id
    source = open_source(f"iceberg://{table.metadata_location}?snapshot={first}")
    assert sum(batch.num_rows for batch in source.scan(["amount"], [], {})) == 1500


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("delta:///nowhere/rows", "cannot be read .* Set data.path to a Delta table"),
        ("DELTA?version=99", "cannot be read .* Set data.path to a Delta table"),
        ("DELTA?version=new", "only .version=N, a number"),
        ("DELTA?versoin=1", "only .version=N, a number"),
        ("iceberg:///nowhere/1.metadata.json", "cannot be read .* Set data.path to an Iceberg table"),
        ("iceberg://nocatalog/bank.rows", "cannot be read .* Set data.path to an Iceberg table"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(delta: str, path: str, said: str) -> None:
    with pytest.raises(RareclassError, match=said) as refused:
        open_source(path.replace("DELTA", delta))
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------- SQL over files


@pytest.mark.parametrize("kept", [[], FILTER])
def test_a_query_over_files_gives_the_rows_as_they_are_without_one(
    parquet: Path, tmp_path: Path, kept: list[Any]
) -> None:
    same(str(parquet), parquet, query="SELECT * FROM data;", filter=kept)
    csv = written(tmp_path, history(), "rows.csv")
    same(str(csv), parquet, query="SELECT * FROM data", filter=kept)


def test_a_query_over_files_joins_counts_and_chooses(parquet: Path) -> None:
    query = (
        """SELECT data.*, count(*) OVER (PARTITION BY card ORDER BY "when") AS "of card" FROM data WHERE amount > 10"""
    )
    found = take(parquet, data={**TIME, "query": query})
    frame = history()
    frame = frame[frame["amount"] > 10]
    assert "of card" in found.schema.names
    assert sum(found.card["rows"][part] for part in ("train", "validation", "test")) <= len(frame)
    assert take(parquet, data={**TIME, "query": query}).card["content_hash"] == found.card["content_hash"]


def test_a_query_over_a_lake_sees_its_rows(delta: str, parquet: Path) -> None:
    same(delta, parquet, query="SELECT * FROM data")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM nowhere",
        "SELECT amount FROM data) AS x; COPY (SELECT 1) TO '/tmp/harm.csv'; SELECT * FROM (SELECT 1",
        "DROP TABLE data",
        "SELECT",
    ],
)
def test_a_query_sees_and_writes_nothing_but_the_rows(parquet: Path, query: str) -> None:
    with pytest.raises(DataError, match=r"was refused: .* The rows are the table 'data'") as refused:
        open_source(str(parquet), query)
    assert "\n" not in str(refused.value)
    assert not Path("/tmp/harm.csv").exists()


# ----------------------------------------------------------------------------------------------------- warehouses


class FakeDriver(types.ModuleType):
    """Stands for a driver of a warehouse that this machine cannot reach: it keeps how it is called, and asks SQLite."""

    def __init__(self, name: str, database: Path) -> None:
        super().__init__(name)
        self.called: list[Any] = []
        self.database = database

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        from adbc_driver_sqlite import dbapi

        self.called.append((args, kwargs))
        return dbapi.connect(str(self.database))


@pytest.mark.parametrize(
    ("path", "driver", "call"),
    [
        (
            "snowflake://me:secret@account/db/schema?warehouse=w",
            "adbc_driver_snowflake",
            (("me:secret@account/db/schema?warehouse=w",), {}),
        ),
        (
            "bigquery://project/set",
            "adbc_driver_bigquery",
            (
                (),
                {
                    "db_kwargs": {
                        "adbc.bigquery.sql.project_id": "project",
                        "adbc.bigquery.sql.dataset_id": "set",
                        "adbc.bigquery.sql.auth_type": "adbc.bigquery.sql.auth_type.auth_bigquery",
                    }
                },
            ),
        ),
    ],
)
def test_a_warehouse_is_asked_as_its_driver_wants_it(
    path: str, driver: str, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = sqlite3.connect(tmp_path / "rows.db")
    history(50)[["amount", "fraud"]].to_sql("rows", connection, index=False)
    connection.close()
    fake = FakeDriver(f"{driver}.dbapi", tmp_path / "rows.db")
    monkeypatch.setitem(sys.modules, f"{driver}.dbapi", fake)
    source = open_source(path, "SELECT * FROM rows")
    assert fake.called == [call]
    assert "secret" not in source.label
    if driver.endswith("snowflake"):  # SQLite understands its names and texts
        assert sum(batch.num_rows for batch in source.scan(["amount"], [[("fraud", "==", 0)]], {})) > 0


def test_the_drivers_of_warehouses_know_the_options_that_they_are_given() -> None:
    from adbc_driver_bigquery import DatabaseOptions

    known = {each.value for each in DatabaseOptions}
    assert {"adbc.bigquery.sql.project_id", "adbc.bigquery.sql.dataset_id", "adbc.bigquery.sql.auth_type"} <= known
    assert importlib.util.find_spec("adbc_driver_snowflake.dbapi") is not None
    assert issubclass(adbc_driver_manager.Error, Exception)


def test_bigquery_writes_names_and_texts_in_its_own_way() -> None:
    groups = [[("of `day`", "==", "it's a \\"), ("n", ">", 2)], [("n", "in", [1, 2])]]
    asked = select(["of `day`"], "SELECT * FROM t", groups, Dialect("`", "\\"))
    assert asked == (
        "SELECT `of \\`day\\`` FROM (SELECT * FROM t) AS source"
        " WHERE (`of \\`day\\`` = 'it\\'s a \\\\' AND `n` > 2) OR (`n` IN (1, 2))"
    )
    assert (
        select(['a"b'], "q", [[("c", "!=", "it's")]]) == """SELECT "a""b" FROM (q) AS source WHERE ("c" <> 'it''s')"""
    )


def test_a_warehouse_without_its_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="bigquery://PROJECT/DATASET"):
        open_source("bigquery://project", "SELECT 1")
    with pytest.raises(ConfigError, match=r"Set data\.query"):
        open_source("snowflake://me@account/db")


@pytest.mark.parametrize(
    ("path", "query", "package", "extra"),
    [
        ("delta:///rows", None, "deltalake", "delta"),
        ("iceberg://lake/bank.rows", None, "pyiceberg", "iceberg"),
        ("PARQUET", "SELECT * FROM data", "duckdb", "duckdb"),
        ("snowflake://me@account/db", "SELECT 1", "adbc_driver_snowflake", "snowflake"),
        ("bigquery://project/set", "SELECT 1", "adbc_driver_bigquery", "bigquery"),
    ],
)
def test_what_is_not_installed_is_refused_with_the_name_of_its_extra(
    path: str, query: str | None, package: str, extra: str, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    monkeypatch.setitem(sys.modules, f"{package}.dbapi", None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'rareclass\[{extra}\]'"):
        open_source(path.replace("PARQUET", str(parquet)), query)
