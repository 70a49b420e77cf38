"""One parser of times: a column is decided from all its values, and what it leaves open is asked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from rareclass.core.times import TimeReading, TimeSurvey, check_span
from rareclass.errors import DataError


def decided(*batches: object, **settings: str) -> TimeReading:
    survey = TimeSurvey("t", **settings)  # type: ignore[arg-type]
    for batch in batches:
        survey.add(batch)
    return survey.done()


def read(values: object, **settings: str) -> list[str]:
    times, _ = decided(values, **settings).read(values)
    return [str(time) for time in times.astype("datetime64[s]")]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["01/02/2024 07:16", "26/10/2024 01:00"], "2024-02-01T07:16:00"),
        (["01/02/2024 07:16", "10/26/2024 01:00"], "2024-01-02T07:16:00"),
        (["01.02.2024", "26.10.2024"], "2024-02-01T00:00:00"),
        (["1/2/24 3:04 PM", "12/31/23 12:00 am"], "2024-01-02T15:04:00"),
        (["01/02/2024 07:16:30+02:00", "26/10/2024 07:16:30Z"], "2024-02-01T05:16:30"),
        (["2024-02-01T07:16:00+09:00"], "2024-01-31T22:16:00"),
        (["2024/02/01 07:16"], "2024-02-01T07:16:00"),
        (["01-Feb-2024 07:16", "2 March 2024"], "2024-02-01T07:16:00"),
        ([1706771760, 1706771761], "2024-02-01T07:16:00"),
        ([1706771760.0, 1706771761.5], "2024-02-01T07:16:00"),
        (["1706771760"], "2024-02-01T07:16:00"),
        ([1706771760000], "2024-02-01T07:16:00"),
        ([1706771760000000], "2024-02-01T07:16:00"),
        ([1706771760000000000], "2024-02-01T07:16:00"),
        (["202402010716", "202412312359"], "2024-02-01T07:16:00"),
        ([202402010716, 202412312359], "2024-02-01T07:16:00"),
        (["20240201"], "2024-02-01T00:00:00"),
        ([199402, 199412], "1994-02-01T00:00:00"),
        ([1994, 2024], "1994-01-01T00:00:00"),
        (["20240201071600"], "2024-02-01T07:16:00"),
        (pd.Series(pd.to_datetime(["2024-02-01 07:16"])).dt.tz_localize("Asia/Tokyo"), "2024-01-31T22:16:00"),
    ],
)
def test_times_of_every_form_are_read(values, expected):
    assert read(values)[0] == expected


def test_the_date_order_is_one_for_all_batches():
    reading = decided(["01/02/2024"], ["03/04/2024"], ["26/10/2024"])
    assert reading.order == "day-first"
    assert str(reading.read(["03/04/2024"])[0][0])[:10] == "2024-04-03"
    times, bad = reading.read(["03/26/2024", None, "soon"])
    assert np.isnat(times).all()
    assert bad.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["01/02/2024", "03/04/2024"], "day or month first.*data.time_format: day-first or month-first"),
        (["13/02/2024", "02/13/2024"], "day or month first"),
        ([0, 5, 743], "no times by themselves. Set data.time_unit"),
        ([1706771760, 1706771760000], "times of s and of ms. Bring one unit"),
    ],
)
def test_what_the_values_leave_open_is_asked(values, message):
    with pytest.raises(DataError, match=message):
        decided(values)


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        (["01/02/2024"], {"format": "day-first"}, "2024-02-01T00:00:00"),
        (["01/02/2024"], {"format": "%m/%d/%Y"}, "2024-01-02T00:00:00"),
        ([2024020107], {"format": "%Y%m%d%H"}, "2024-02-01T07:00:00"),
        ([1706771760], {"format": "iso"}, "2024-02-01T07:16:00"),
        ([1706771760000], {"format": "day-first"}, "2024-02-01T07:16:00"),
        (["01h07 2024"], {"format": "%dh%m %Y"}, "2024-07-01T00:00:00"),
        ([24, 25], {"unit": "hour", "origin": "2024-01-31"}, "2024-02-01T00:00:00"),
        ([1.5], {"unit": "day", "origin": "2024-01-31"}, "2024-02-01T12:00:00"),
        ([13], {"unit": "month", "origin": "2023-01-01"}, "2024-02-01T00:00:00"),
        ([5], {"unit": "s"}, "1970-01-01T00:00:05"),
        (["7"], {"unit": "order"}, "1970-01-08T00:00:00"),
        (["1955-05-05"], {"format": "iso"}, "1955-05-05T00:00:00"),
    ],
)
def test_what_the_configuration_says_is_believed(values, settings, expected):
    assert read(values, **settings)[0] == expected


def test_implausible_years_are_no_times():
    _, bad = TimeReading("t").read(["1955-05-05", "9999-12-31", "2024-05-05"])
    assert bad.tolist() == [True, True, False]
    reading = decided([1706771760])
    assert reading.read([17])[1].tolist() == [True]


def test_seconds_taken_for_nanoseconds_are_noticed():
    stamps = pd.to_datetime(pd.Series([1706771760, 1706871760]))
    reading = decided(stamps)
    with pytest.raises(DataError, match="wrong unit"):
        check_span("t", reading.read(stamps)[0], reading)


def test_nanoseconds_and_large_numbers_keep_their_digits():
    assert str(decided([1706771760123456789]).read([1706771760123456789])[0][0]) == "2024-02-01T07:16:00.123456"
    nullable = pd.Series([1706771760123456, None], dtype="Int64")
    assert str(decided(nullable).read(nullable)[0][0]) == "2024-02-01T07:16:00.123456"
