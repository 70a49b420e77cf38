"""Tables that are larger than memory: the same split, every positive, and weights that make a sample stand for the
table.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rareclass.adapters import tables
from rareclass.adapters.tables import streaming
from rareclass.adapters.tables.columns import hashed, series_of
from rareclass.adapters.tables.ingest import Ingested
from rareclass.adapters.tables.room import BASE
from rareclass.config import Config, parse
from rareclass.core.dataset import concatenate
from rareclass.core.hashing import text_hash
from rareclass.errors import DataError

SMALL, LARGE = BASE + (3 << 20), "8GiB"
"""bytes that hold some 9,000 of the rows below, and all of them"""
ROWS = 24_000


def payments(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    """Rows of 18 features, two of them categories, 1:100, with ids, times, entities and amounts."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({f"f{k}": rng.normal(size=rows).astype(np.float32) for k in range(16)})
    frame["shop"] = rng.choice(["books", "cars", "food", "rare shop"], rows, p=[0.5, 0.3, 0.1998, 0.0002])
    frame["online"] = rng.random(rows) < 0.4
    logit = 1.5 * frame["f0"] + frame["f1"] * frame["f2"] + (frame["shop"] == "cars") - 6.2
    frame["fraud"] = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    frame["id"] = [f"p{k}" for k in range(rows)]
    frame["when"] = pd.Timestamp("2025-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 90 * 86400, rows)), unit="s")
    frame["card"] = rng.integers(0, 3000, rows)
    frame["amount"] = rng.gamma(2, 20, rows)
    return frame


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("payments") / "payments.parquet"
    payments().to_parquet(path, row_group_size=7_000)
    return path


def config(path: object, memory: object, split: str = "time", **data: Any) -> Config:
    roles = {"time": "when", "entity": "card"} if split != "stratified" else {}
    drop = [] if roles else ["when", "card"]
    return parse(
        {
            "name": "payments",
            "data": {
                "path": str(path),
                "target": "fraud",
                "id": "id",
                "amount": "amount",
                "drop": drop,
                **roles,
                **data,
            },
            "split": {"kind": split},
            "compute": {"memory": memory, "threads": 1},
        }
    )


def both(path: object, split: str, **data: Any) -> tuple[Ingested, Ingested]:
    whole, streamed = (tables.ingest(config(path, memory, split, **data)) for memory in (LARGE, SMALL))
    assert whole.beyond is None
    assert streamed.beyond is not None
    return whole, streamed


@pytest.mark.parametrize("split", ["time", "stratified", "grouped"])
def test_a_table_larger_than_memory_is_split_and_hashed_as_one_that_fits(source: Path, split: str) -> None:
    whole, streamed = both(source, split)
    assert streamed.card["content_hash"] == whole.card["content_hash"]
    for same in ("rows", "parts", "prevalence", "by_time", "split", "target_values"):
        assert streamed.card[same] == whole.card[same], same
    for name in ("validation", "test"):
        ours, all_of = streamed.beyond.rows[name], getattr(whole, name)
        assert set(ours.row_id.tolist()) == set(all_of.row_id.tolist())
        order, other = np.argsort(ours.row_id), np.argsort(all_of.row_id)
        for field in ("y", "amount") + (("time", "entity") if split != "stratified" else ()):
            assert np.array_equal(getattr(ours, field)[order], getattr(all_of, field)[other])


def test_every_positive_and_a_share_of_the_negatives_stand_for_all_rows(source: Path) -> None:
    whole, streamed = both(source, "time")
    drawn = streamed.beyond.drawn
    assert drawn.positives_rate == 1
    assert 0 < drawn.negatives_rate < 1
    for name in ("train", "validation", "test"):
        rows, all_of = getattr(streamed, name), getattr(whole, name)
        assert rows.positives == all_of.positives
        assert set(rows.row_id.tolist()) < set(all_of.row_id.tolist())
        assert rows.represented == pytest.approx(len(all_of), rel=0.05)
        assert rows.prevalence == pytest.approx(all_of.prevalence, rel=0.05)
        assert np.array_equal(rows.weight, 1 / rows.drawn)
    parts = (streamed.train, streamed.validation, streamed.test, streamed.rest)
    total = sum(len(part) for part in parts if part is not None)
    assert total == drawn.sampled


def test_the_same_rows_are_drawn_again_whatever_their_order(source: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled.parquet"
    pd.read_parquet(source).sample(frac=1, random_state=1).to_parquet(shuffled)
    first, second = (tables.ingest(config(path, SMALL)) for path in (source, shuffled))
    assert np.array_equal(first.train.row_id, second.train.row_id)
    assert np.array_equal(first.train.x, second.train.x, equal_nan=True)


def test_all_validation_and_test_rows_come_back_encoded_as_the_whole_table_encodes_them(source: Path) -> None:
    whole, streamed = both(source, "time")
    beyond = streamed.beyond
    names = streamed.schema.names
    numeric = [k for k, feature in enumerate(streamed.schema.features) if feature.kind == "numeric"]
    for part in ("validation", "test"):
        pieces = list(beyond.pieces([part], ["shop"]))
        x = np.concatenate([piece.x for piece in pieces])
        ours, all_of = beyond.rows[part], getattr(whole, part)
        assert [piece.at.start for piece in pieces[1:]] == [piece.at.stop for piece in pieces[:-1]]
        order, other = np.argsort(ours.row_id), np.argsort(all_of.row_id)
        assert np.array_equal(x[order][:, numeric], all_of.x[other][:, numeric])
        categories = streamed.schema.features[names.index("shop")].categories
        codes = x[:, names.index("shop")]
        written = pd.concat([piece.table for piece in pieces])["shop"].to_numpy()
        known = ~np.isnan(codes)
        assert [categories[int(code)] for code in codes[known]] == written[known].tolist()
        assert set(written[~known]) <= {"rare shop"}  # a level that the sample may not have


def test_a_csv_whose_length_nobody_knows_goes_over_to_streaming_on_the_way(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "payments.csv"
    pd.read_parquet(source).to_csv(path, index=False)
    whole, streamed = both(path, "time")
    assert streamed.card["content_hash"] == whole.card["content_hash"]
    assert streamed.card["rows"] == whole.card["rows"]


def test_columns_without_a_value_and_infinite_values_are_found_without_the_table(tmp_path: Path) -> None:
    frame = payments()
    frame["empty"] = np.nan
    frame.loc[5, "f3"] = np.inf
    path = tmp_path / "odd.parquet"
    frame.to_parquet(path)
    with pytest.raises(DataError, match=r"'f3' is infinite .* in 1 of 24,000 rows"):
        tables.ingest(config(path, SMALL))
    checks = {"infinite_values": "warning"}
    whole, streamed = both(path, "time", checks=checks)
    found = [[each.message for each in one.warnings if each.check != "larger_than_memory"] for one in (whole, streamed)]
    assert found[0] == found[1]
    assert "empty" not in streamed.schema.names
    assert streamed.beyond is not None
    assert not any(np.isinf(piece.x).any() for piece in streamed.beyond.pieces(["test"]))


def test_a_table_that_changes_between_the_readings_ends_in_one_line(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "changing.parquet"
    frame = pd.read_parquet(source)
    frame.to_parquet(path)
    beyond = tables.ingest(config(path, SMALL)).beyond
    assert beyond is not None
    frame.sample(frac=1, random_state=2).to_parquet(path)
    with pytest.raises(DataError, match="gave other rows, or in another order"):
        list(beyond.pieces(["test"]))


def test_a_query_is_streamed_like_a_file(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    with sqlite3.connect(path) as connection:
        pd.read_parquet(source).assign(when=lambda frame: frame["when"].astype(str)).to_sql(
            "payments", connection, index=False
        )
    streamed = tables.ingest(config(f"sqlite:///{path}", SMALL, query="SELECT * FROM payments"))
    assert streamed.beyond is not None
    assert sum(len(piece.x) for piece in streamed.beyond.pieces(["test"])) == len(streamed.beyond.rows["test"])


def test_memory_that_holds_no_sample_is_refused_with_what_to_set(source: Path) -> None:
    with pytest.raises(DataError, match=r"Set compute\.memory higher"):
        tables.ingest(config(source, BASE + (1 << 19)))


def test_a_survey_of_a_table_larger_than_memory_is_a_weighted_sample(source: Path) -> None:
    rows, warnings = tables.survey(config(source, SMALL))
    assert "described by" in warnings[-1].message
    assert rows.drawn is not None
    assert rows.represented == pytest.approx(ROWS, rel=0.02)


@pytest.mark.parametrize(
    ("rows", "positives", "most", "expected"),
    [
        (1_000_000, 1_000, 100_000, (1.0, 0.0990)),
        (1_000_000, 200_000, 100_000, (0.25, 0.0625)),
        (1_000, 10, 100_000, (1.0, 1.0)),
    ],
)
def test_positives_are_thinned_only_where_they_alone_take_half_of_the_room(
    rows: int, positives: int, most: int, expected: tuple[float, float]
) -> None:
    assert streaming.rates(rows, positives, most) == expected


def test_a_drawn_row_is_drawn_with_a_smaller_share_too_so_samples_are_nested(source: Path) -> None:
    smaller, larger = (tables.ingest(config(source, BASE + (size << 20))) for size in (2, 3))
    counts = Counter(larger.train.row_id.tolist())
    assert len(smaller.train) < len(larger.train)
    assert all(counts[row] for row in smaller.train.row_id.tolist())


def test_an_export_holds_all_validation_and_test_rows_and_the_weighted_sample_that_a_fit_sees(
    source: Path, tmp_path: Path
) -> None:
    whole, streamed = both(source, "time")
    written = tables.export(streamed, str(tmp_path))
    expected = tables.export(whole, str(tmp_path / "whole"))
    for part in ("validation", "test"):
        ours, theirs = (pd.read_parquet(each[part]).sort_values("row_id") for each in (written, expected))
        assert ours["row_id"].tolist() == theirs["row_id"].tolist()
        assert np.array_equal(ours["f3"], theirs["f3"])
        assert ours["target"].sum() == theirs["target"].sum()
    train = pd.read_parquet(written["train"])
    assert len(train) == len(streamed.train) < len(whole.train)
    assert train["weight"].sum() == pytest.approx(len(whole.train), rel=0.05)


def test_a_sample_beside_rows_without_weights_keeps_its_own(source: Path) -> None:
    whole, streamed = both(source, "time")
    fresh = whole.test.take(slice(0, 50))
    fresh = replace(fresh, schema=streamed.schema)
    joined = concatenate([streamed.train, fresh])
    assert joined.weight is not None
    assert joined.weight[-50:].tolist() == [1.0] * 50
    assert joined.represented == streamed.train.represented + 50
    assert streamed.judging.positives == whole.judging.positives == whole.test.positives


_COLUMNS = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))).map(lambda each: pa.array(each, pa.int64())),
    st.lists(st.one_of(st.none(), st.integers(0, 2**64 - 1))).map(lambda each: pa.array(each, pa.uint64())),
    st.lists(st.one_of(st.none(), st.text(st.sampled_from(" ab9.\n\t\u00a0\u3000é"), max_size=4))).map(
        lambda each: pa.array(each, pa.string())
    ),
    st.lists(st.one_of(st.none(), st.floats())).map(lambda each: pa.array(each, pa.float64())),
    st.lists(st.one_of(st.none(), st.sampled_from(["a", " b", ""]))).map(
        lambda each: pa.array(each, pa.string()).dictionary_encode()
    ),
)


@given(_COLUMNS)
@example(pa.array(["a", None, "b c"], pa.large_string()))
def test_ids_are_hashed_by_arrow_as_by_their_texts(column: pa.Array) -> None:
    assert np.array_equal(hashed(column), text_hash(series_of(column)))
