"""What is missing is null, to whatever library it belongs, and every number and time has one form."""

import datetime
import decimal
import json
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from rareclass.core.jsonable import dumps, jsonable

NAT = np.datetime64("NaT")
MISSING = [
    None, math.nan, math.inf, -math.inf, np.nan, np.float32("nan"), np.array(np.nan), NAT, np.timedelta64("NaT"),
    np.datetime64("NaT", "ns"), np.ma.masked, pd.NaT, pd.NA, decimal.Decimal("NaN"), decimal.Decimal("Infinity"),
    decimal.Decimal("sNaN"),
]  # fmt: skip


@dataclass(frozen=True)
class Held:
    value: object


@pytest.mark.parametrize("missing", MISSING, ids=lambda value: f"{type(value).__name__} {value!r}")
def test_what_is_missing_is_null_wherever_it_stands(missing):
    held = {"alone": missing, "listed": [missing, (missing,)], "field": Held(Held(missing)), 3: {"deep": missing}}
    expected = {"alone": None, "listed": [None, [None]], "field": {"value": {"value": None}}, "3": {"deep": None}}
    assert jsonable(held) == expected
    assert jsonable(missing) is None
    assert json.loads(dumps(held)) == expected


@pytest.mark.parametrize("missing", [None, math.nan, np.float32("nan"), NAT, pd.NaT, pd.NA], ids=repr)
def test_a_missing_key_is_text_as_every_key_is(missing):
    assert jsonable({missing: 1}) == {"None": 1}


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.array([1.5, np.inf]), [1.5, None]),
        (np.array([pd.NA, pd.NaT, 1], dtype=object), [None, None, 1]),
        (pd.Series([pd.NaT, pd.Timestamp("2020-01-01")]), [None, "2020-01-01T00:00:00"]),
        (pd.array([1, None], dtype="Int64"), [1, None]),
        (pd.Categorical(["a", None]), ["a", None]),
        (pd.DatetimeIndex(["2020-01-01", None]), ["2020-01-01T00:00:00", None]),
        (np.datetime64("2020-01-01", "ns"), "2020-01-01T00:00:00"),
        (np.array(["2020-01-01", "NaT"], "M8[ns]"), ["2020-01-01T00:00:00", None]),
        (np.array([3, "NaT"], "m8[ns]").astype("m8[s]"), ["PT0S", None]),
        (np.timedelta64(5, "s").astype("m8[ns]"), "PT5S"),
        (pd.Timedelta("1d"), "P1D"),
        (datetime.timedelta(seconds=90), "PT1M30S"),
        (datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC), "2020-01-01T00:00:00Z"),
        (pd.Timestamp("2020-01-01", tz="UTC"), "2020-01-01T00:00:00Z"),
        (pd.Period("2020-01"), "2020-01"),
        (decimal.Decimal("1.50"), "1.50"),
        (np.bool_(True), True),
        (b"\xff", "\\xff"),
        (b"text", "text"),
    ],
)
def test_values_have_one_form(value, plain):
    assert jsonable(value) == plain
    assert jsonable(Held({"a": value})) == {"value": {"a": plain}}


def test_fields_of_the_outermost_value_can_be_left_out():
    assert jsonable(Held(Held(1)), without={"value"}) == {}
    assert jsonable({"value": 1, "other": Held(2)}, without={"value"}) == {"other": {"value": 2}}
