"""Checks: each finds what it is for, says it in one line, and obeys its severity."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from rareclass.config import ChecksSettings, DataSettings
from rareclass.core import checks
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.errors import DataError

DATA = DataSettings(path="rows.csv", target="y", id="key", time="when")


def rows_of(columns, y):
    features = []
    for name in columns:
        levels = tuple("abcdefgh") if name.startswith("level") else ()
        features.append(Feature(name, "categorical" if levels else "numeric", levels))
    x = np.stack([np.asarray(values, dtype=np.float32) for values in columns.values()], axis=1)
    return Rows(Schema(tuple(features)), x, np.asarray(y, dtype=np.int64), np.arange(len(y), dtype=np.uint64))


def clean_rows(n=500, seed=0, **columns):
    rng = np.random.default_rng(seed)
    y = np.zeros(n, dtype=np.int64)
    y[rng.permutation(n)[: n // 20]] = 1
    return rows_of({"plain": rng.normal(size=n) + y, **{k: f(rng, y) for k, f in columns.items()}}, y)


def with_checks(**settings):
    return DATA.model_copy(update={"checks": ChecksSettings(**settings)})


def test_good_rows_have_no_findings():
    assert checks.check_rows(clean_rows(level=lambda rng, y: rng.integers(0, 5, len(y))), DATA) == []


LEAKS = {
    "high": lambda rng, y: y * 2 + rng.random(len(y)),
    "low": lambda rng, y: -y * 2 + rng.random(len(y)),
    "absent": lambda rng, y: np.where(y == 1, np.nan, rng.normal(size=len(y))),
    "present": lambda rng, y: np.where(y == 1, rng.normal(size=len(y)), np.nan),
    "level": lambda rng, y: np.where(y == 1, 3, rng.choice([0, 1, 2, 4], len(y))),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_feature_that_gives_the_target_away_is_found(name):
    (finding,) = checks.check_rows(clean_rows(**{name: LEAKS[name]}), DATA)
    assert (finding.check, finding.severity, finding.column) == ("leak", "warning", name)
    assert "data.drop" in finding.message


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_found_in_many_rows_too(name):
    found = checks.check_rows(clean_rows(60_000, **{name: LEAKS[name]}), with_checks(identical_rows="off"))
    assert [finding.column for finding in found] == [name]


def test_a_strong_feature_below_the_bound_is_no_leak():
    strong = {"strong": lambda rng, y: y * 3 + rng.normal(size=len(y))}
    assert checks.check_rows(clean_rows(**strong), DATA) == []
    (finding,) = checks.check_rows(clean_rows(**strong), with_checks(leak_ap=0.5))
    assert finding.column == "strong"


def test_the_screen_leaves_the_verdict_to_all_rows():
    rng = np.random.default_rng(0)
    y = np.zeros(200_000, dtype=np.int64)
    y[:400] = 1
    score = y + rng.normal(size=len(y)) * 0.23
    exact = average_precision_score(y, score.astype(np.float32))
    for bound, expected in ((exact - 1e-4, 1), (exact + 1e-4, 0)):
        found = list(checks.check_leaks(rows_of({"s": score}, y), ChecksSettings(leak_ap=bound)))
        assert len(found) == expected


def test_infinity_stops_and_can_be_allowed():
    rows = clean_rows(big=lambda rng, y: np.where(np.arange(len(y)) == 3, -np.inf, rng.normal(size=len(y))))
    with pytest.raises(DataError, match=r"column 'big' is infinite .* in 1 of 500 rows"):
        checks.check_rows(rows, DATA)
    assert [f.check for f in checks.check_rows(rows, with_checks(infinite_values="warning"))] == ["infinite_values"]
    assert checks.check_rows(rows, with_checks(infinite_values="off")) == []


def test_a_column_without_values_is_found():
    rows = clean_rows(empty=lambda rng, y: np.full(len(y), np.nan))
    (finding,) = checks.check_rows(rows, DATA)
    assert (finding.check, finding.column) == ("all_missing", "empty")


def test_identical_rows_are_counted_and_contradictions_said():
    x = [1, 1, 2, 2, 2, 3, np.nan, np.nan]
    rows = rows_of({"a": x, "b": x}, [0, 1, 0, 0, 0, 1, 0, 0])
    (finding,) = checks.check_identical(rows, ChecksSettings())
    assert finding.message.startswith("7 of 8 rows equal another one in every feature, 2 of them with both labels")


def test_several_errors_are_one_line_with_a_count():
    infinite = np.full(30, np.inf)
    rows = rows_of({"a": infinite, "b": infinite}, [0, 1] * 15)
    with pytest.raises(DataError) as caught:
        checks.check_rows(rows, DATA)
    assert str(caught.value).endswith("(and 1 more)")
    assert "\n" not in str(caught.value)


def test_a_missing_target_stops_or_warns():
    target = pd.Series([0, 1, None, 0])
    with pytest.raises(DataError, match="missing in 1 of 4 rows"):
        checks.check_target(target, DATA)
    (finding,) = checks.check_target(target, with_checks(missing_target="warning"))
    assert finding.severity == "warning"
    with pytest.raises(DataError, match="no value in any of 2 rows"):
        checks.check_target(pd.Series([None, None]), with_checks(missing_target="off"))
    assert checks.check_target(pd.Series(["a", "b"]), DATA) == []


def test_duplicate_ids_stop_or_warn():
    ids = pd.Series(["a", "b", "a"])
    with pytest.raises(DataError, match=r"'key' .* repeats in 2 of 3 rows, like 'a'"):
        checks.check_ids(ids, DATA)
    assert [f.check for f in checks.check_ids(ids, with_checks(duplicate_ids="warning"))] == ["duplicate_ids"]
    assert checks.check_ids(ids, with_checks(duplicate_ids="off")) == []
    assert checks.check_ids(pd.Series([1, 2, 3]), DATA) == []


def test_values_that_are_no_times_stop_or_warn():
    raw = pd.Series(["2024-01-01", "yesterday", None])
    parsed = pd.to_datetime(raw, errors="coerce")
    with pytest.raises(DataError, match=r"'when' .* is not a time, like 'yesterday', in 2 of 3 rows"):
        checks.check_time(raw, parsed, DATA)
    with pytest.raises(DataError, match="is missing in 1 of 2 rows"):
        checks.check_time(raw[[0, 2]], parsed[[0, 2]], DATA)
    assert len(checks.check_time(raw, parsed, with_checks(unparsable_time="warning"))) == 1
    assert checks.check_time(raw[:1], parsed[:1], DATA) == []
