"""Files as they come: the same meaning whatever the format, the rows beside a row, or the reader."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rareclass.adapters import tables
from rareclass.config import parse
from rareclass.core.dataset import decode, encode
from rareclass.errors import ConfigError, DataError

N = 400


def rows(size=N, seed=0, **columns):
    """A number, a target that follows it, and whatever else is asked for."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size).round(3)
    y = (x + rng.normal(size=size) > 1.2).astype(int)
    return pd.DataFrame({"x": x, **columns, "y": y})


def take(path, **data):
    settings = {"path": str(path), "target": "y", **data}
    return tables.ingest(parse({"name": "t", "data": settings, "split": data.pop("split", {})}))


def whole(ingested):
    parts = (ingested.train, ingested.validation, ingested.test)
    return pd.concat([decode(p.x, p.schema).assign(y=p.y) for p in parts], ignore_index=True)


def feature(ingested, name):
    return ingested.schema.features[ingested.schema.names.index(name)]


def scored(path, schema):
    """What the model sees of a file's rows."""
    frame = tables.read_frame(path, schema=schema)
    return decode(encode(frame, schema), schema)


def text(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding))
    return path


def cycle(values, n=N):
    return [values[i % len(values)] for i in range(n)]


# ------------------------------------------------------------------------- a category does not depend on its neighbours


@pytest.mark.parametrize(
    ("levels", "asked", "beside", "categorical"),
    [
        (["A1", "10", "007"], "007", ["A1", "10"], False),
        (["250.0", "250.83", "401.0"], "401.0", ["250.83", "250.0"], True),
        (["true", "false", "unknown"], "true", ["unknown", "false"], False),
        (["01234", "98765", "00501"], "01234", ["98765", "00501"], True),
        (["01234", "98765", "00501"], "01234", ["98765", "00501"], False),
        (["NA", "DE", "FR"], "NA", ["DE", "NA"], False),
        (["1", "2", "3"], "1", ["2", "3"], True),
        (["9007199254740993", "9007199254740992", "7"], "9007199254740993", ["9007199254740992", "7"], True),
        (["1e5", "abc", "100000"], "1e5", ["abc", "100000"], False),
        (["2024-01-01", "2024-02-01", "x"], "2024-01-01", ["2024-02-01", "x"], False),
    ],
)
def test_the_category_of_a_row_is_the_same_beside_any_other_row(tmp_path, levels, asked, beside, categorical):
    frame = rows(kind=cycle(levels))
    for name in ("a.csv", "a.parquet"):
        tables.write_frame(tmp_path / name, frame)
        found = take(tmp_path / name, categorical=["kind"] if categorical else [])
        kind = feature(found, "kind")
        assert kind.kind == "categorical"
        assert len(kind.categories) == 3
        seen = set()
        for number, other in enumerate(beside):
            file = text(tmp_path / f"new{number}.csv", f"x,kind\n0,{asked}\n1,{other}\n")
            pair = scored(file, found.schema)["kind"].tolist()
            tables.write_frame(tmp_path / "new.parquet", pd.DataFrame({"x": [0, 1], "kind": [asked, other]}))
            assert scored(tmp_path / "new.parquet", found.schema)["kind"].tolist() == pair
            seen.add(pair[0])
        assert len(seen) == 1
        assert seen <= set(kind.categories)


def test_a_postal_code_that_nobody_declared_is_not_learned_as_a_number(tmp_path):
    path = text(tmp_path / "a.csv", rows(zip=cycle(["01234", "98765"])).to_csv(index=False))
    found = take(path)
    assert set(feature(found, "zip").categories) == {"01234", "98765"}
    assert "digits behind a zero" in found.warnings[0].message


def test_what_is_written_out_is_read_back_as_it_was_in_either_format(tmp_path):
    frame = rows(
        id=[f"{i:05d}" for i in range(N)],
        country=cycle(["NA", "DE", None]),
        flag=cycle(["false", "true", "maybe"]),
        small=np.full(N, 2.3e-12) * np.arange(N),
    )
    found = take(text(tmp_path / "a.csv", frame.to_csv(index=False)), id="id")
    for name in ("out.csv", "out.parquet", "out.csv.gz"):
        tables.write_frames(tmp_path / name, tables.read_frames(tmp_path / "a.csv", schema=found.schema))
        back = tables.read_frame(tmp_path / name, schema=found.schema)
        assert back["id"].tolist() == frame["id"].tolist()
        assert back["country"].tolist()[:2] == ["NA", "DE"]
        assert back["country"].isna().sum() == frame["country"].isna().sum()
        pd.testing.assert_frame_equal(scored(tmp_path / name, found.schema), scored(tmp_path / "a.csv", found.schema))
        logged = feature(found, "small").logged(back["small"])
        assert logged[1:] == frame["small"].tolist()[1:]


def test_a_country_called_na_counts_in_csv_as_in_parquet(tmp_path):
    frame = rows(country=cycle(["NA", "DE", "FR", ""]))
    tables.write_frame(tmp_path / "a.parquet", frame)
    a, b = take(text(tmp_path / "a.csv", frame.to_csv(index=False))), take(tmp_path / "a.parquet")
    assert a.schema == b.schema
    assert a.card["content_hash"] == b.card["content_hash"]
    assert set(feature(a, "country").categories) == {"NA", "DE", "FR"}
    assert whole(a)["country"].isna().sum() == N // 4


# ------------------------------------------------------------------------------------------------------- missing values


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_missing_tokens_mean_missing_in_every_format_and_at_serving(tmp_path, name):
    frame = rows(age=cycle([-999, 30, 40]), shop=cycle(["unknown", "A", "B"]))
    tables.write_frame(tmp_path / name, frame)
    found = take(tmp_path / name, missing_values=[-999, "unknown"])
    assert whole(found)["age"].isna().sum() == (frame["age"] == -999).sum()
    assert set(feature(found, "shop").categories) == {"A", "B"}
    asked = encode(pd.DataFrame({"x": [0], "age": ["-999"], "shop": ["unknown"]}), found.schema)
    assert np.isnan(asked[0, 1:]).all()


def test_usual_tokens_are_missing_numbers_and_blanks_around_values_do_not_matter(tmp_path):
    values = cycle([" 1.5", "2.5 ", "?", "NA", "", " null "])
    path = text(
        tmp_path / "a.csv", "x ,v,k,y\n" + "".join(f"{i},{v}, b ,{i % 7 == 0:d}\n" for i, v in enumerate(values))
    )
    found = take(path)
    assert found.schema.names == ["x", "v", "k"]
    assert whole(found)["v"].isna().sum() == sum(v.strip() in ("?", "NA", "", "null") for v in values)
    assert feature(found, "k").categories == ("b",)


# ---------------------------------------------------------------------------------------------- numbers written as text


@pytest.mark.parametrize(
    ("written", "settings", "expected"),
    [
        (lambda v: f"{v:.2f}".replace(".", ","), {"decimal": ","}, lambda v: round(v, 2)),
        (lambda v: f"{v * 1e4:,.1f}", {"thousands": ","}, lambda v: round(v * 1e4, 1)),
        (
            lambda v: f"{v * 1e4:,.1f}".translate(str.maketrans(",.", ".,")),
            {"decimal": ",", "thousands": "."},
            lambda v: round(v * 1e4, 1),
        ),
        (lambda v: f"{v:.1%}", {}, lambda v: round(v, 3)),
        (lambda v: f"${v:.2f}", {}, lambda v: round(v, 2)),
        (lambda v: f" {v:.2f} ", {}, lambda v: round(v, 2)),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_numbers_in_any_writing_are_numbers(tmp_path, name, written, settings, expected):
    values = np.random.default_rng(1).uniform(0, 9, N)
    frame = rows(v=[written(v) for v in values]).assign(x=np.arange(N))
    if name == "a.csv":
        frame.to_csv(tmp_path / name, index=False, sep=";")
    else:
        frame.to_parquet(tmp_path / name)
    found = take(tmp_path / name, **settings)
    assert feature(found, "v").kind == "numeric"
    got = np.sort(whole(found)["v"].to_numpy())
    np.testing.assert_allclose(got, np.sort([expected(v) for v in values]).astype(np.float32), rtol=1e-6)
    again = encode(pd.DataFrame({"x": [0.0], "v": [written(values[0])]}), found.schema)
    np.testing.assert_allclose(again[0, 1], expected(values[0]), rtol=1e-6)


@pytest.mark.parametrize("value", ["1,5", "1,234", "1 234", "1.234,5"])
def test_a_comma_that_nobody_explained_is_asked_about(tmp_path, value):
    with pytest.raises(DataError, match=r"numbers like .*: set data\.decimal"):
        take(text(tmp_path / "a.csv", rows(v=cycle([value, "7"])).to_csv(index=False, sep=";")))
    found = take(tmp_path / "a.csv", categorical=["v"])
    assert set(feature(found, "v").categories) == {value, "7"}


def test_a_filter_sees_the_numbers_behind_their_writing(tmp_path):
    frame = pd.DataFrame({"v": [f"{i},5" for i in range(N)], "w": np.arange(N), "y": rows()["y"]})
    frame.to_csv(tmp_path / "a.csv", index=False, sep=";")
    found = take(tmp_path / "a.csv", decimal=",", filter=[["v", ">=", 100.5]])
    assert len(whole(found)) == N - 100
    assert whole(found)["v"].min() == 100.5


def test_columns_are_decided_from_the_rows_that_the_filter_keeps(tmp_path):
    v = [str(i) if i < N - 50 else "withdrawn" for i in range(N)]
    rows(v=v, year=np.where(np.arange(N) < N - 50, 2024, 2025)).to_csv(tmp_path / "a.csv", index=False)
    found = take(tmp_path / "a.csv", filter=[["year", "==", 2024]])
    assert feature(found, "v").kind == "numeric"
    assert not [each for each in found.warnings if "all but" in each.message]


def test_a_unit_for_what_is_a_time_already_is_refused(tmp_path):
    rows(when=pd.to_datetime(stamps("%Y-%m-%d %H:%M"))).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"holds times already.*Take data\.time_unit out"):
        take(tmp_path / "a.parquet", time="when", time_unit="hour")


def test_a_filter_compares_what_the_values_mean_or_is_refused(tmp_path):
    frame = rows(amount=np.arange(N), card=np.arange(N) % 40, iso=stamps("%Y-%m-%d %H:%M"), day=stamps("%d/%m/%Y"))
    frame.to_csv(tmp_path / "a.csv", index=False)
    aside = {"drop": ["amount", "day"], "time": "iso"}
    assert len(whole(take(tmp_path / "a.csv", **aside, filter=[["amount", ">=", 100]]))) == N - 100
    late = (frame["iso"] >= "2024-02-01").sum()
    assert len(whole(take(tmp_path / "a.csv", **aside, filter=[["iso", ">=", "2024-02-01"]]))) == late
    cards = take(tmp_path / "a.csv", **aside, entity="card", filter=[["card", "in", [5, 7]]])
    assert len(whole(cards)) == N // 20
    with pytest.raises(ConfigError, match="compares text with a number"):
        take(tmp_path / "a.csv", **aside, entity="card", filter=[["card", ">", 5]])
    with pytest.raises(DataError, match="text in another writing than ISO"):
        take(tmp_path / "a.csv", drop=["iso"], time="day", filter=[["day", ">=", "2024-02-01"]])


def test_points_where_the_comma_is_the_decimal_sign_are_asked_about(tmp_path):
    frame = rows(v=[f"{i},5" for i in range(N)])
    frame.to_csv(tmp_path / "a.csv", index=False, sep=";")
    with pytest.raises(DataError, match=r"column 'x' has numbers with a point, like .* though data\.decimal is ','"):
        take(tmp_path / "a.csv", decimal=",")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_number_in_all_but_a_few_values_says_so(tmp_path, name):
    many = rows(v=[*map(str, range(N - 3)), "oops", "oops", "n.a."])
    tables.write_frame(tmp_path / name, many)
    found = take(tmp_path / name)
    said = [each.message for each in found.warnings if each.column == "v"]
    assert "number in all but 3 of 400 values: 'oops' (2), 'n.a.' (1)" in said[0]
    assert "count as missing" in said[0]
    assert np.isnan(encode(pd.DataFrame({"x": [0.0], "v": ["oops"]}), found.schema)[0, 1])
    with pytest.raises(DataError, match=r"must hold numbers; 1 of 1 values are none: 'new' \(1\)"):
        encode(pd.DataFrame({"x": [0.0], "v": ["new"]}), found.schema)
    few = rows(v=[*cycle(["1", "2", "3"], N - 1), "oops"])
    tables.write_frame(tmp_path / name, few)
    found = take(tmp_path / name)
    assert feature(found, "v").kind == "categorical"
    assert "read as a category" in next(each.message for each in found.warnings if each.column == "v")
    quiet = take(tmp_path / name, missing_values=["oops"])
    assert feature(quiet, "v").kind == "numeric"
    assert not [each for each in quiet.warnings if "all but" in each.message]


# ------------------------------------------------------------------------------------------------------------- dialects


@pytest.mark.parametrize("sep", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_every_separator_and_encoding_gives_the_same_rows(tmp_path, sep, encoding):
    frame = rows(straße=cycle(["Köln", "a;b", "a,b", 'say "x"']))
    path = text(tmp_path / "a.csv", frame.to_csv(index=False, sep=sep), encoding)
    found = take(path, encoding="latin-1") if encoding == "latin-1" else take(path)
    assert set(feature(found, "straße").categories) == {"Köln", "a;b", "a,b", 'say "x"'}
    assert len(whole(found)) == N
    assert scored(path, found.schema)["straße"].tolist() == frame["straße"].tolist()


def test_the_line_that_names_the_separator_is_no_row(tmp_path):
    frame = rows(note=cycle(["a,b", "c"]))
    found = take(text(tmp_path / "a.csv", "sep=;\r\n" + frame.to_csv(index=False, sep=";", lineterminator="\r\n")))
    assert found.schema.names == ["x", "note"]


def test_a_row_number_without_a_name_is_no_feature_and_said(tmp_path):
    found = take(text(tmp_path / "a.csv", rows().to_csv()))
    assert found.schema.names == ["x"]
    assert "column 1 has no name" in found.warnings[0].message
    trailing = text(tmp_path / "b.csv", "x,y,\n" + "".join(f"{i},{i % 5 == 0:d},\n" for i in range(N)))
    assert take(trailing).schema.names == ["x"]


def test_a_cell_may_hold_a_line_break(tmp_path):
    frame = rows(note=cycle(["one\ntwo", "c"]))
    found = take(text(tmp_path / "a.csv", frame.to_csv(index=False)))
    assert set(feature(found, "note").categories) == {"one\ntwo", "c"}


def test_an_encoding_that_is_not_set_is_named(tmp_path):
    frame = rows(k=cycle(["Köln", "Bonn"]))
    with pytest.raises(DataError, match=r"not in the encoding UTF-8\. Set data\.encoding"):
        take(text(tmp_path / "a.csv", frame.to_csv(index=False), "latin-1"))
    late = rows(60_000, k=[*["Bonn"] * 59_999, "Köln"])
    with pytest.raises(DataError, match=r"Set data\.encoding"):
        take(text(tmp_path / "b.csv", late.to_csv(index=False), "latin-1"))
    with pytest.raises(DataError, match="unknown encoding 'latin1337'"):
        take(tmp_path / "a.csv", encoding="latin1337")
    with pytest.raises(DataError, match="utf-16"):
        take(text(tmp_path / "c.csv", rows().to_csv(index=False), "utf-16-le"))


@pytest.mark.parametrize("name", ["data [2024].csv", "what?.csv", "star*.csv"])
def test_a_path_that_exists_is_taken_as_it_is(tmp_path, name):
    rows().to_csv(tmp_path / name, index=False)
    rows(10).to_csv(tmp_path / "data 2.csv", index=False)
    assert len(whole(take(tmp_path / name))) == N


# ---------------------------------------------------------------------------------------------------------------- times


def stamps(form, n=N):
    return (pd.Timestamp("2024-01-01 07:16") + pd.to_timedelta(np.arange(n) * 18, unit="h")).strftime(form)


@pytest.mark.parametrize(
    "form", ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M", "%d.%m.%y %H:%M", "%Y%m%d%H%M", "%d-%b-%Y %H:%M", "%m/%d/%Y %I:%M %p"]
)
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_the_newest_rows_are_the_test_rows_however_times_are_written(tmp_path, form, name):
    frame = rows(when=stamps(form))
    tables.write_frame(tmp_path / name, frame.sample(frac=1, random_state=0))
    found = take(tmp_path / name, time="when")
    truth = pd.to_datetime(pd.Series(stamps("%Y-%m-%d %H:%M"))).to_numpy().astype("datetime64[us]")
    times = np.concatenate([found.train.time, found.validation.time, found.test.time])
    assert np.array_equal(times, truth)
    reading = found.schema.roles.time
    assert reading.read(tables.read_frame(tmp_path / name, schema=found.schema)["when"][:5])[1].tolist() == [False] * 5
    # one row alone, which does not tell its order, is read in the order of the whole history
    assert reading.read([frame["when"][1]])[0][0] == truth[1]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_epochs_in_every_unit_are_the_same_times(tmp_path, unit, name):
    truth = pd.to_datetime(pd.Series(stamps("%Y-%m-%d %H:%M"))).to_numpy().astype("datetime64[ns]")
    frame = rows(when=truth.astype(f"datetime64[{unit}]").astype(np.int64))
    tables.write_frame(tmp_path / name, frame)
    found = take(tmp_path / name, time="when")
    times = np.concatenate([found.train.time, found.validation.time, found.test.time])
    assert np.array_equal(times, truth.astype("datetime64[us]"))
    one = tables.read_frame(tmp_path / name, schema=found.schema)["when"][:3]
    assert np.array_equal(found.schema.roles.time.read(one)[0], truth[:3].astype("datetime64[us]"))


@pytest.mark.parametrize("form", ["%d/%m/%Y %H:%M", "%Y%m%d%H%M", "%s"])
def test_a_replay_reads_times_as_a_run_does_in_the_rows_that_the_filter_keeps(tmp_path, form):
    frame = rows(when=[*stamps(form, N - 1), "withdrawn"], kept=[*["yes"] * (N - 1), "no"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    data = {"path": str(tmp_path / "a.csv"), "target": "y", "time": "when", "filter": [["kept", "==", "yes"]]}
    config = parse({"name": "t", "data": data})
    assert tables.time_reading(config.data) == tables.ingest(config).schema.roles.time


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        (1_792_368_000.25 + 7200.0 * np.arange(N), {}),
        (1_792_368_000.0 + 7200.0 * np.arange(N), {}),
        (np.arange(N) - 50, {"time_unit": "hour"}),
        (np.arange(N) - 50.0, {"time_unit": "order"}),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_numbers_with_a_point_or_a_sign_are_the_same_times_to_later_readers(tmp_path, name, values, settings):
    rows(when=values).pipe(
        lambda frame: (
            frame.to_csv(tmp_path / name, index=False) if name == "a.csv" else frame.to_parquet(tmp_path / name)
        )
    )
    found = take(tmp_path / name, time="when", **settings)
    times = np.concatenate([found.train.time, found.validation.time, found.test.time])
    frame = tables.read_frame(tmp_path / name, schema=found.schema)
    read, wrong = found.schema.roles.time.read(frame["when"])
    assert not wrong.any()
    assert np.array_equal(read, times)


def test_dates_that_do_not_tell_their_order_are_asked_about(tmp_path):
    frame = rows(when=[f"{1 + i % 12:02d}/{1 + i % 11:02d}/2024" for i in range(N)])
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"day or month first.*data\.time_format: day-first or month-first"):
        take(tmp_path / "a.csv", time="when")
    found = take(tmp_path / "a.csv", time="when", time_format="day-first")
    assert found.schema.roles.time.order == "day-first"


def test_a_year_that_nobody_can_mean_is_said(tmp_path):
    when = pd.Series([*stamps("%Y-%m-%d", N - 1), "9999-12-31"])
    for name in ("a.csv", "a.parquet"):
        tables.write_frame(
            tmp_path / name, rows(when=when if name == "a.csv" else pd.to_datetime(when.str.replace("9999", "2199")))
        )
        with pytest.raises(DataError, match=r"outside 1970 to 2099.* in 1 of 400 rows.*data\.time_format: iso"):
            take(tmp_path / name, time="when")
        assert take(tmp_path / name, time="when", time_format="iso").kind == "time"


def test_an_order_without_a_clock_splits_by_time(tmp_path):
    step = np.sort(np.random.default_rng(0).integers(0, 743, N))
    rows(step=step).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"no times by themselves. Set data\.time_unit to what they count"):
        take(tmp_path / "a.csv", time="step")
    hours = take(tmp_path / "a.csv", time="step", time_unit="hour", time_origin="2024-03-01")
    assert hours.kind == "time"
    assert hours.train.time.min() == np.datetime64("2024-03-01", "us") + np.timedelta64(int(step[0]), "h")
    order = take(tmp_path / "a.csv", time="step", time_unit="order")
    assert order.train.time.max() < order.test.time.min()
    assert order.train.block().max() + 1 == len(np.unique(order.train.time))
    with pytest.raises(ConfigError, match="tells no calendar"):
        take(tmp_path / "a.csv", time="step", time_unit="order", label_delay="2d")
    from rareclass.services.live.replay import replay

    data = {"path": str(tmp_path / "a.csv"), "target": "y", "time": "step", "time_unit": "order"}
    with pytest.raises(ConfigError, match="tells no calendar"):
        parse({"name": "t", "data": data, "threshold": {"objective": "alerts_per_day", "max_alerts_per_day": 5}})
    with pytest.raises(ConfigError, match="needs a calendar"):
        replay(parse({"name": "t", "data": data}), tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([y * 100 + m for y in range(1994, 2028) for m in range(1, 13)][:N], "1994-01-01"),
        ([1950 + i // 8 for i in range(N)], "1950-01-01"),
        ([20240101 + 100 * (i % 12) + i % 28 for i in range(N)], "2024-01-01"),
    ],
)
def test_months_years_and_days_written_as_digits_are_recognised(tmp_path, values, first):
    rows(period=values).to_csv(tmp_path / "a.csv", index=False)
    found = take(tmp_path / "a.csv", time="period")
    assert str(found.train.time.min())[:10] == first


def test_a_pandas_index_is_a_column_by_its_name_and_never_a_feature_without_one(tmp_path):
    frame = rows(ts=pd.to_datetime(pd.Series(stamps("%Y-%m-%d %H:%M"))))
    frame.set_index("ts").to_parquet(tmp_path / "a.parquet")
    found = take(tmp_path / "a.parquet", time="ts")
    assert found.kind == "time"
    assert "ts" in tables.read_frame(tmp_path / "a.parquet").columns
    frame.drop(columns="ts")[frame["x"] > 0].to_parquet(tmp_path / "b.parquet")
    found = take(tmp_path / "b.parquet")
    assert found.schema.names == ["x"]
    assert len(scored(tmp_path / "b.parquet", found.schema)) == (frame["x"] > 0).sum()


# ------------------------------------------------------------------------------------------------------ nothing is lost


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_long_identifiers_keep_every_digit(tmp_path, name):
    long = [str(12345678901234567000 + i) for i in range(N)]
    frame = rows(id=long, order=pd.array([9007199254740993 + i if i % 3 else None for i in range(N)], dtype="Int64"))
    tables.write_frame(tmp_path / name, frame)
    found = take(tmp_path / name, id="id", drop=["order"])
    back = tables.read_frame(tmp_path / name, schema=found.schema)
    assert back["id"].tolist() == long
    assert [int(v) for v in back["order"].dropna()] == [9007199254740993 + i for i in range(N) if i % 3]
    tables.write_frame(tmp_path / "out.csv", back)
    assert tables.read_frame(tmp_path / "out.csv", schema=found.schema)["id"].tolist() == long
    assert str(9007199254740994) in (tmp_path / "out.csv").read_text()


def test_a_decimal_identifier_is_no_type_error(tmp_path):
    ids = [Decimal(12345678901234567000 + i) for i in range(N)]
    rows(id=ids).to_parquet(tmp_path / "a.parquet")
    assert len(whole(take(tmp_path / "a.parquet", id="id"))) == N


def test_durations_decimals_and_nullable_numbers_are_numbers(tmp_path):
    frame = rows(
        wait=pd.to_timedelta(np.arange(N), unit="s"),
        money=[Decimal(i) / 4 for i in range(N)],
        count=pd.array(cycle([1, None, 3]), dtype="Int32"),
        flag=pd.array(cycle([True, None, False]), dtype="boolean"),
    )
    frame.to_parquet(tmp_path / "a.parquet")
    found = take(tmp_path / "a.parquet")
    assert [f.kind for f in found.schema.features] == ["numeric"] * 4 + ["categorical"]
    table = whole(found)
    assert table["wait"].sum() == N * (N - 1) / 2
    assert table["money"].max() == (N - 1) / 4
    assert table["count"].isna().sum() == frame["count"].isna().sum()
    np.testing.assert_array_equal(
        encode(tables.read_frame(tmp_path / "a.parquet"), found.schema)[:, :4],
        encode(frame, found.schema)[:, :4],
    )


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_of_any_width_that_is_numbers_is_read_as_numbers_and_said(tmp_path, kind):
    table = pa.table(
        {
            "v": pa.array([f" {i}.5" for i in range(N)]).cast(kind),
            "k": pa.array(cycle(["a", "b"])).cast(kind),
            "code": pa.array(cycle(["1", "2"])).cast(kind),
            "y": rows()["y"].to_numpy(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    found = take(tmp_path / "a.parquet", categorical=["code"])
    assert [each.kind for each in found.schema.features] == ["numeric", "categorical", "categorical"]
    assert whole(found)["v"].sum() == sum(i + 0.5 for i in range(N))
    assert [each.column for each in found.warnings if "each of its 400 values is a number" in each.message] == ["v"]


def test_a_text_column_that_is_filled_late_is_written_and_read(tmp_path):
    n = 70_000
    frame = pd.DataFrame({"x": np.arange(n) / 7, "note": [None] * (n - 5) + ["late"] * 5})
    for name in ("a.parquet", "a.csv"):
        tables.write_frame(tmp_path / name, frame)
        for out in ("out.parquet", "out.csv"):
            assert tables.write_frames(tmp_path / out, tables.read_frames(tmp_path / name)) == n
            back = tables.read_frame(tmp_path / out)
            assert back["note"].tolist()[-5:] == ["late"] * 5
            assert back["note"].isna().sum() == n - 5
            np.testing.assert_array_equal(back["x"], frame["x"])


# -------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("values", "positive", "expected"),
    [
        ((">50K ", " <=50K"), ">50K", ">50K"),
        (("Yes", "No"), True, "Yes"),
        (("Yes", "No"), None, "Yes"),
        ((1.0, 0.0), 1.0, "1"),
        ((1, 0), "1.0", "1"),
        (("1.0", "0.0"), 1, "1"),
        (("true", "false"), True, "True"),
        (("007", "008"), "007", "007"),
        (("NA", "DE"), "NA", "NA"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_the_rare_class_is_remembered_as_it_was_read(tmp_path, values, positive, expected, name):
    frame = rows()
    truth = frame["y"] == 1
    frame["y"] = np.where(truth, *values) if not isinstance(values[0], str) else [values[not t] for t in truth]
    tables.write_frame(tmp_path / name, frame)
    found = take(tmp_path / name, positive=positive)
    target = found.schema.roles.target
    assert target.positive == expected
    assert whole(found)["y"].sum() == truth.sum()
    late = tables.read_frame(tmp_path / name, schema=found.schema)["y"]
    assert target.labels(late).tolist() == truth.astype(float).tolist()
    assert target.labels([values[0], values[1], None])[:2].tolist() == [1.0, 0.0]


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_files_of_a_folder_are_united_by_the_names_of_their_columns(tmp_path, form):
    folder = tmp_path / "parts"
    first, second, third = (rows(200, seed, n=np.arange(200), k=cycle(["a", "b"], 200)) for seed in range(3))
    second = second.assign(n=np.arange(200) + 0.5)[["y", "k", "n", "x"]]
    third = third.rename(columns={"k": "kind"})
    for number, part in enumerate((first, second, third)):
        tables.write_frame(folder / f"{number}.{form}", part)
    found = take(folder)
    said = [each.message for each in found.warnings if each.check == "columns"]
    assert any("column 'k' is missing in 1 of 3 files (33%)" in message and f"2.{form}" in message for message in said)
    assert any("column 'kind' is missing in 2 of 3 files (67%)" in message for message in said)
    assert len(said) == 2
    table = whole(found)
    assert feature(found, "n").kind == "numeric"
    assert sorted(table["n"]) == sorted([*map(float, range(200))] * 2 + [i + 0.5 for i in range(200)])
    assert table["k"].isna().sum() == 200
    frame = tables.read_frame(folder, schema=found.schema)
    assert frame["x"].tolist() == [*first["x"], *second["x"], *third["x"]]
    assert len(tables.read_frame(folder, columns=["x"], filter=[["n", ">", 198]])) == 4


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_column_of_another_type_in_one_file_is_said(tmp_path, form):
    for number in range(4):
        part = rows(200, number, v=np.arange(200) if number else [f"t{i % 3}" for i in range(200)])
        tables.write_frame(tmp_path / "parts" / f"{number}.{form}", part)
    found = (
        take(tmp_path / "parts", categorical=["v"], max_categories=400)
        if form == "parquet"
        else take(tmp_path / "parts", max_categories=400)
    )
    said = [each.message for each in found.warnings if each.check == "columns"]
    assert any("column 'v' holds text in 1 of 4 files (25%)" in message and f"0.{form}" in message for message in said)


def test_hive_folders_with_unlike_files_keep_the_partition(tmp_path):
    for number, kind in enumerate(("a", "b")):
        folder = tmp_path / "data" / f"kind={kind}"
        folder.mkdir(parents=True)
        part = rows(300, number, n=np.arange(300) if number else np.arange(300) / 2)
        pq.write_table(pa.Table.from_pandas(part, preserve_index=False), folder / "0.parquet")
    found = take(tmp_path / "data")
    assert set(feature(found, "kind").categories) == {"a", "b"}
    assert len(whole(found)) == 600


# ------------------------------------------------------------------------------------------------------- spreadsheets


@pytest.mark.parametrize("title", ["Report Q1;;;\n", "Report Q1;;;\n\n;;;\n", "Report Q1\n\n", '"Report; Q1"\n'])
def test_a_title_above_the_header_is_named(tmp_path, title):
    frame = rows(v=[f"{i},5" for i in range(N)], k=cycle(["a", "b"]))
    frame["x"] = frame["x"].astype(str).str.replace(".", ",")
    path = text(tmp_path / "a.csv", title + frame.to_csv(index=False, sep=";"))
    with pytest.raises(DataError, match=r"begins with a line that names no columns: .*Report.* Delete the lines above"):
        take(path, decimal=",")


def test_several_columns_without_a_name_are_no_features(tmp_path):
    path = text(tmp_path / "a.csv", ",x,y,,\n" + "".join(f"{i},{i},{i % 5 == 0:d},,7\n" for i in range(N)))
    found = take(path)
    assert found.schema.names == ["x"]
    assert "column 1, 4, 5 has no name" in found.warnings[0].message
    assert scored(path, found.schema)["x"].tolist() == list(range(N))


def test_what_a_file_is_counts_and_not_what_it_is_called(tmp_path):
    import bz2
    import gzip
    import zipfile

    plain = rows(k=cycle(["a", "b"])).to_csv(index=False).encode()
    for name, content in (("g.csv", gzip.compress(plain)), ("b.csv", bz2.compress(plain)), ("p.csv.gz", plain)):
        (tmp_path / name).write_bytes(content)
        assert len(whole(take(tmp_path / name))) == N
    with zipfile.ZipFile(tmp_path / "z.csv", "w") as archive:
        archive.writestr("a.csv", plain)
    with pytest.raises(DataError, match="is an archive or a workbook"):
        take(tmp_path / "z.csv")


@pytest.mark.parametrize(
    ("rare", "ordinary", "positive"),
    [
        (["true", "True", "1"], ["false", "0"], True),
        (["Yes", "YES"], ["no"], "Yes"),
        (["1", "true"], ["0"], 1),
        (["fraud", "Fraud"], ["ok", "review"], "fraud"),
    ],
)
def test_a_rare_class_in_two_spellings_is_not_half_of_it(tmp_path, rare, ordinary, positive):
    frame = rows()
    frame["y"] = [rare[i % len(rare)] if y else ordinary[i % len(ordinary)] for i, y in enumerate(frame["y"])]
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"writes the rare class '.*' \(\d+\) in other ways, too: '.*' \(\d+\)"):
        take(tmp_path / "a.csv", positive=positive)


def test_letters_that_only_may_mean_the_same_are_classes(tmp_path):
    frame = rows()
    frame["y"] = [("T" if i % 3 else "Y") if y else "N" for i, y in enumerate(frame["y"])]
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert take(tmp_path / "a.csv", positive="T").positive_value == "T"


def test_labels_that_are_no_class_are_named_with_their_counts():
    from rareclass.core.reading import Target

    two = Target("y", "yes", ("yes", "no"))
    with pytest.raises(DataError, match=r"'maybe' \(2\), 'Yes' \(1\) are no values of the target 'y'"):
        two.labels(["yes", "maybe", "no", "maybe", "Yes", None])
    three = Target("y", "true", ("true", "false", "unknown"))
    assert three.labels(["true", "open", None])[:2].tolist() == [1.0, 0.0]
    with pytest.raises(DataError, match=r"'1' \(2\) is no value"):
        three.labels(["1", "1", "false"])


def test_a_category_of_the_target_that_no_row_has_is_no_label():
    from rareclass.core.reading import Target

    typed = pd.Series(pd.Categorical(["bad", "good", None], categories=["never", "bad", "good"]))
    assert Target("y", "bad", ("good", "bad")).labels(typed)[:2].tolist() == [1.0, 0.0]


def test_lines_may_end_as_they_did_on_old_machines(tmp_path):
    found = take(text(tmp_path / "a.csv", rows(k=cycle(["a", "b"])).to_csv(index=False, lineterminator="\r")))
    assert len(whole(found)) == N
    with pytest.raises(DataError, match="not a well-formed CSV"):
        take(text(tmp_path / "b.csv", "x,y\n" + '"' + "1" * 60_000 + "\n" * 80_000))


@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_a_time_is_written_as_an_id_of_it_is(tmp_path, zone):
    when = pd.Series(pd.date_range("2026-01-01 00:00:00.007", periods=N, freq="h", tz=zone))
    tables.write_frame(tmp_path / "a.parquet", rows(when=when))
    schema = take(tmp_path / "a.parquet", id="when").schema
    tables.write_frames(tmp_path / "a.csv", tables.read_frames(tmp_path / "a.parquet", schema=schema))
    texts = [schema_text(tables.read_frame(tmp_path / name, schema=schema)["when"]) for name in ("a.parquet", "a.csv")]
    assert texts[0] == texts[1]


def schema_text(values):
    from rareclass.core.reading import TEXT

    return TEXT.texts(values).tolist()
