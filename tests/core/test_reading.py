"""What a value means depends on the value and on what training decided, on nothing else."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from rareclass.core.dataset import OTHER, Feature, Roles, Schema, encode, infer_schema, text_of
from rareclass.core.reading import NUMBER, Reading, Target, number_of, reading_of
from rareclass.core.times import TimeReading
from rareclass.errors import DataError


def feature(*levels: str, **reading: object) -> Feature:
    return Feature("k", "categorical", levels, reading_of(levels, **reading))  # type: ignore[arg-type]


def read(one: Feature, values: object) -> list[str | None]:
    return [None if np.isnan(code) else one.categories[int(code)] for code in one.read(values)[0]]


CODES = feature("A1", "10", "007")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["007", "A1"], ["007", "A1"]),
        (["007", "10"], ["007", "10"]),
        ([10, 7], ["10", None]),
        ([10.0], ["10"]),
        ([" 10 ", "", None, "7"], ["10", None, None, None]),
        (np.array([10.0, np.nan]), ["10", None]),
        (pd.Series(["10", None], dtype="string"), ["10", None]),
        (pd.Categorical(["007", "zz"]), ["007", None]),
    ],
)
def test_a_code_is_the_same_whatever_stands_beside_it(values, expected):
    assert read(CODES, values) == expected


@pytest.mark.parametrize("beside", [250.83, 401.5, 7.0, None])
def test_a_category_of_numbers_does_not_depend_on_the_other_numbers(beside):
    levels = feature("250", "250.83", "401")
    assert levels.reading.kind == "number"
    for values in ([401.0, beside], ["401", beside], ["401.0", beside], pd.Series([401.0, beside])):
        assert read(levels, values)[0] == "401"
    assert read(levels, np.array([250.83], dtype=np.float32)) == ["250.83"]


def test_texts_that_are_codes_stay_exact():
    for levels in (("01234", "9"), ("250.0", "250.00"), ("A", "1")):
        assert feature(*levels).reading.kind == "text"
        assert read(feature(*levels), list(levels)) == list(levels)
    assert read(feature("250.0", "x"), [250.0]) == ["250.0"]


def test_truth_values_are_one_category_however_written():
    levels = feature("True", "False")
    assert read(levels, [True, "true", "TRUE", 1, "f", np.False_, "unknown"]) == [*["True"] * 4, "False", "False", None]
    assert read(feature("true", "false", "unknown"), [True, "false", "unknown"]) == ["true", "false", "unknown"]


def test_an_empty_text_is_missing_and_na_is_a_country():
    country = feature("NA", "DE")
    codes, unknown = country.read(["NA", "", "  ", None, "FR"])
    assert codes.tolist()[0] == 0
    assert np.isnan(codes[1:]).all()
    assert unknown.tolist() == [False, False, False, False, True]
    assert read(feature("DE", "FR", missing=("unknown", "NA")), ["unknown", "NA", "DE"]) == [None, None, "DE"]


def test_unknown_categories_are_pooled_and_counted():
    codes, unknown = feature("a", OTHER).read(["a", "b", None])
    assert codes.tolist()[:2] == [0.0, 1.0]
    assert np.isnan(codes[2])
    assert unknown.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("text", "signs", "expected"),
    [
        ("1.5", {}, 1.5),
        ("1,234", {}, None),
        ("1,234", {"thousands": ","}, 1234.0),
        ("1,23", {"thousands": ","}, None),
        ("1,5", {"decimal": ","}, 1.5),
        ("1.5", {"decimal": ","}, None),
        ("1.234,5", {"decimal": ",", "thousands": "."}, 1234.5),
        ("1 234,5", {"decimal": ",", "thousands": " "}, 1234.5),
        ("1\u202f234", {"thousands": " "}, 1234.0),
        ("12%", {}, 0.12),
        ("-12.5 %", {}, -0.125),
        ("$5", {}, 5.0),
        ("-€1,250.50", {"thousands": ","}, -1250.5),
        ("5 €", {}, 5.0),
        ("(7)", {}, -7.0),
        ("\u22123", {}, -3.0),
        ("1e-3", {}, 0.001),
        ("inf", {}, float("inf")),
        ("1_000", {}, None),
        ("0x10", {}, None),
        ("12 abc", {}, None),
    ],
)
def test_numbers_that_are_written_as_text(text, signs, expected):
    assert number_of(text, **signs) == (pytest.approx(expected) if expected is not None else None)


def test_numbers_of_any_type_are_read_and_what_is_none_is_counted():
    reading = Reading("number", missing=("-999", "oops"))
    values = [1, 2.5, "3", " 4 ", Decimal("5.5"), True, None, "", "NA", "?", -999, "-999", "oops", "x", "x"]
    numbers, wrong = reading.numbers(values)
    assert numbers[:6].tolist() == [1, 2.5, 3, 4, 5.5, 1]
    assert np.isnan(numbers[6:]).all()
    assert wrong == {"x": 2}
    assert np.isnan(reading.numbers(pd.Series([-999.0, 1.0]))[0]).tolist() == [True, False]
    assert NUMBER.numbers(pd.Series(pd.to_timedelta([90, None], unit="s")))[0].tolist()[0] == 90.0
    with pytest.raises(DataError, match=r"column 'x' must hold numbers; 2 of 3 values are none: 'much' \(2\)"):
        encode(pd.DataFrame({"x": ["much", "much", "1"]}), Schema((Feature("x"),)))


def test_the_rare_class_is_found_however_it_is_written():
    rich = Target("income", ">50K", (">50K", "<=50K"))
    assert rich.labels([">50K ", "<=50K", None])[:2].tolist() == [1.0, 0.0]
    yes = Target("churned", "Yes", ("No", "Yes"), reading_of(["No", "Yes"]))
    assert yes.labels(pd.Series(["Yes", "No", "Yes"])).tolist() == [1.0, 0.0, 1.0]
    one = Target("y", "1", ("0", "1"), reading_of(["0", "1"]))
    for values in ([1, 0], [1.0, 0.0], ["1", "0"], ["1.0", "0.0"], [True, False], np.array([1, 0], dtype=np.int8)):
        assert one.labels(values).tolist() == [1.0, 0.0]
    assert Target("y", "True", ("False", "True"), Reading("boolean")).labels(["true", 0, "FALSE"]).tolist() == [
        1.0,
        0.0,
        0.0,
    ]
    with pytest.raises(DataError, match=r"'yes' .1. is no value of the target 'churned'\. Did you mean 'Yes'"):
        yes.labels(["yes"])
    many = Target("kind", "a", ("a", "b", "c"))
    assert many.labels(["a", "new"]).tolist() == [1.0, 0.0]


def test_text_of_a_value_depends_on_the_value_alone():
    whole, mixed = text_of(pd.Series([7.0, 8.0])), text_of(pd.Series([7.0, 8.5]))
    assert whole[0] == mixed[0] == "7"
    assert text_of(pd.Series([9007199254740993, 1])).tolist() == ["9007199254740993", "1"]
    assert text_of(pd.Series([12345678901234567890], dtype=object)).tolist() == ["12345678901234567890"]
    assert text_of(pd.Series([True, None], dtype=object)).tolist() == ["True", pd.NA]


def test_a_schema_keeps_how_it_reads():
    schema = Schema(
        (Feature("x", reading=Reading("number", ("-999",), ",", ".")), CODES),
        Roles(Target("y", "1", ("0", "1")), TimeReading("when", order="day-first"), "card", "id", encoding="latin-1"),
    )
    back = Schema.from_json(schema.to_json())
    assert back == schema
    assert back.roles == schema.roles
    assert back.exact == ["k", "y", "when", "card", "id"]


def test_a_schema_that_did_not_say_how_it_reads_still_does():
    old = {
        "features": [
            {"name": "k", "kind": "categorical", "categories": ["1", "2"]},
            {"name": "x", "kind": "numeric", "categories": []},
        ]
    }
    schema = Schema.from_json(old)
    assert [each.reading.kind for each in schema.features] == ["number", "number"]
    assert read(schema.features[0], [1.0, "2"]) == ["1", "2"]


@pytest.mark.parametrize("value", [2.3e-12, 1 / 3, 123456789.123456789, 1e300, 7.0, -0.1])
def test_a_logged_number_is_read_back_to_the_last_digit(value):
    import json

    [text] = [json.dumps(each) for each in Feature("x").logged([value])]
    assert NUMBER.numbers([json.loads(text)])[0][0] == value


def test_a_learned_schema_reads_the_frame_it_was_learned_from():
    frame = pd.DataFrame(
        {"code": ["01", "10"], "flag": [True, False], "n": [1.5, None], "d": pd.to_timedelta([1, 2], unit="h")}
    )
    schema = infer_schema(frame)
    assert [f.reading.kind for f in schema.features] == ["text", "boolean", "number", "number"]
    assert encode(frame, schema)[:, 3].tolist() == [3600.0, 7200.0]
    assert encode(frame.astype({"flag": str}), schema)[:, 1].tolist() == encode(frame, schema)[:, 1].tolist()
