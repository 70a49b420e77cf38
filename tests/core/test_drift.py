"""Drift against a stored profile, and telling damaged data from changed data."""

from __future__ import annotations

import json
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rareclass.config import MonitorSettings
from rareclass.core import drift, ranking
from rareclass.core.dataset import OTHER, Feature, Rows, Schema
from rareclass.core.drift import ServedWindow
from rareclass.core.profile import Profile, psi, reference_profile

SCHEMA = Schema(
    (
        Feature("amount"),
        Feature("temperature"),
        Feature("count"),
        Feature("balance"),
        Feature("season"),
        Feature("country", "categorical", ("us", "de", "fr", "nl")),
        Feature("shop", "categorical", ("a", "b", "c", OTHER)),
    )
)
COLUMN = {name: position for position, name in enumerate(SCHEMA.names)}


def make_rows(n: int = 8000, seed: int = 0, days: int = 56) -> Rows:
    rng = np.random.default_rng(seed)
    time = np.datetime64("2024-01-01", "us") + (np.arange(n) * days * 86_400_000_000 // n).astype("timedelta64[us]")
    week = np.arange(n) * days // n // 7
    x = np.column_stack(
        [
            rng.lognormal(3, 1, n),
            rng.normal(15, 8, n),
            rng.poisson(0.4, n),
            rng.normal(0, 100, n),
            week % 4,
            rng.choice(4, n, p=[0.6, 0.25, 0.1, 0.05]),
            rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05]),
        ]
    ).astype(np.float32)
    x[rng.random(n) < 0.05, COLUMN["temperature"]] = np.nan
    logit = -4 + 0.02 * x[:, 0] + 0.5 * x[:, 2]
    y = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    return Rows(SCHEMA, x, y, np.arange(n, dtype=np.uint64), time=time)


def scores_of(rows: Rows) -> np.ndarray:
    return 1 / (1 + np.exp(4 - 0.02 * rows.x[:, 0].astype(np.float64) - 0.5 * rows.x[:, 2]))


@pytest.fixture(scope="module")
def profile() -> Profile:
    rows = make_rows()
    return reference_profile(rows, scores_of(rows), threshold=0.1)


def test_values_that_no_longer_occur_are_damage_where_the_model_leans_on_them_and_drift_where_not():
    rng = np.random.default_rng(4)
    n, days = 14_000, 70

    def rows(n: int, days: int, seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        zeros = np.where(rng.random(n) < 0.96, 0.0, rng.poisson(3, n) + 1.0)
        level = rng.choice(3, n, p=[0.9, 0.07, 0.03]).astype(float)
        months = (np.arange(n) * 3 // n).astype(float)
        x = np.column_stack([zeros, level, months, rng.normal(size=n)]).astype(np.float32)
        time = np.datetime64("2024-01-01", "us") + (np.arange(n) * (days * 86_400_000_000 // n)).astype(
            "timedelta64[us]"
        )
        kinds = (Feature("zeros"), Feature("level", "categorical", ("a", "b", "c")), Feature("month"), Feature("noise"))
        return Rows(Schema(kinds), x, (rng.random(n) < 0.05).astype(np.int64), np.arange(n, dtype=np.uint64), time=time)

    before = rows(n, days, 1)
    profile = reference_profile(before, rng.random(n), threshold=0.5)
    read = Profile.from_json(json.loads(json.dumps(profile.to_json())))
    assert read.to_json() == profile.to_json()  # a missing number is NaN, which equals nothing
    for seed in range(20):  # nothing is gone by chance, nor a month that was over already
        now = rows(1400, 7, 100 + seed).x
        now[:, 2] = 2
        assert [f.gone for f in drift.compare(profile, now).features] == [()] * 4
    now = rows(1400, 7, 7).x
    now[:, 0] = 0
    now[now[:, 1] == 1, 1] = 0
    report = drift.compare(profile, now)
    assert profile.features[0].may_be_constant
    (words,) = report.broken["zeros"]
    assert words.startswith("only 0 arrives; ")
    assert words.endswith("% of the reference has other values")
    assert "'b' no longer occurs" in report.broken["level"][0]
    quiet = drift.compare(profile, now, window=ServedWindow(loud={"level"}))
    assert set(quiet.broken) == {"level"}
    assert {"zeros", "level"} <= set(quiet.drifted)
    few = drift.compare(profile, now[:60], limits=MonitorSettings(min_rows=50))  # sixty zeros are no surprise
    assert few.broken == {}


def test_a_profile_survives_json_unchanged(profile):
    text = json.dumps(profile.to_json(), allow_nan=False)
    again = Profile.from_json(json.loads(text))
    assert again.to_json() == profile.to_json()
    fresh = make_rows(3000, seed=9)
    assert drift.compare(again, fresh.x, scores_of(fresh)) == drift.compare(profile, fresh.x, scores_of(fresh))


def test_the_profile_holds_what_the_scores_reached(profile):
    rows = make_rows()
    assert profile.prevalence == pytest.approx(rows.y.mean())
    assert profile.ap == pytest.approx(ranking.average_precision(rows.y, scores_of(rows)))
    assert len(profile.window_prevalence) == 8
    assert profile.recall == pytest.approx((scores_of(rows) >= 0.1)[rows.y == 1].mean())


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_the_same_distribution_neither_drift_nor_look_broken(profile, seed):
    fresh = make_rows(2000, seed=100 + seed)
    report = drift.compare(profile, fresh.x, scores_of(fresh))
    assert report.drifted == []
    assert report.broken == {}
    assert not report.score.drifted


def test_a_column_that_moves_with_every_week_of_the_reference_is_no_drift(profile):
    one_week = make_rows(8000, seed=5)
    one_week = one_week.take((np.arange(8000) * 56 // 8000 // 7) == 2)
    report = drift.compare(profile, one_week.x)
    season = report.features[COLUMN["season"]]
    assert season.psi > 1
    assert not season.drifted
    assert season.broken == ()


def damage(rows: Rows, cause: str) -> np.ndarray:
    x, rng = rows.x.copy(), np.random.default_rng(1)
    if cause == "cents":
        x[:, COLUMN["amount"]] *= 100
    elif cause == "thousands":
        x[:, COLUMN["balance"]] /= 1000
    elif cause == "fahrenheit":
        x[:, COLUMN["temperature"]] = x[:, COLUMN["temperature"]] * 1.8 + 32
    elif cause == "sign":
        x[:, COLUMN["amount"]] *= -1
    elif cause == "constant":
        x[:, COLUMN["amount"]] = 0
    elif cause == "half stuck":
        x[rng.random(len(x)) < 0.6, COLUMN["balance"]] = 7
    elif cause == "missing":
        x[rng.random(len(x)) < 0.4, COLUMN["amount"]] = np.nan
    elif cause == "gone":
        x[:, COLUMN["country"]] = np.nan
    elif cause == "constant category":
        x[:, COLUMN["country"]] = 1
    elif cause == "swapped categories":
        x[:, COLUMN["country"]] = 3 - x[:, COLUMN["country"]]
    elif cause == "renamed and pooled":
        shop = x[:, COLUMN["shop"]]
        shop[shop == 1] = 3
    return x


@pytest.mark.parametrize(
    ("cause", "column", "word"),
    [
        ("cents", "amount", "unit"),
        ("thousands", "balance", "unit"),
        ("fahrenheit", "temperature", "Celsius"),
        ("sign", "amount", "sign"),
        ("constant", "amount", "constant"),
        ("half stuck", "balance", "stuck"),
        ("missing", "amount", "missing"),
        ("gone", "country", "missing"),
        ("constant category", "country", "'de'"),
        ("swapped categories", "country", "names"),
        ("renamed and pooled", "shop", "unknown"),
    ],
)
def test_damaged_data_is_named_with_its_column_and_its_reason(profile, cause, column, word):
    fresh = make_rows(3000, seed=7)
    report = drift.compare(profile, damage(fresh, cause), scores_of(fresh))
    assert list(report.broken) == [column]
    assert word in " ".join(report.broken[column])


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, COLUMN["temperature"]].__iadd__(12),
        lambda x: x[:, COLUMN["amount"]].__imul__(1.7),
        lambda x: x[:, COLUMN["balance"]].__iadd__(150),
        lambda x: x[:, COLUMN["country"]].__setitem__(slice(0, 1200), 2),
    ],
)
def test_a_shift_of_the_population_is_drift_and_not_damage(profile, change):
    x = make_rows(3000, seed=8).x.copy()
    change(x)
    report = drift.compare(profile, x)
    assert len(report.drifted) == 1
    assert report.broken == {}


def test_a_change_between_scales_of_temperature_is_seen_where_both_have_the_same_values():
    known, fresh = make_rows(9000, seed=1), make_rows(3000, seed=2)
    rng = np.random.default_rng(0)
    known.x[:, COLUMN["temperature"]] = 54 + 18 * rng.normal(size=len(known))
    celsius = (54 + 18 * rng.normal(size=len(fresh)) - 32) / 1.8
    fresh.x[:, COLUMN["temperature"]] = celsius
    reference = reference_profile(known, scores_of(known), threshold=0.1)
    feature = reference.features[COLUMN["temperature"]]
    assert feature.low < np.median(celsius) < feature.high
    assert "Celsius" in " ".join(drift.compare(reference, fresh.x).broken["temperature"])


def test_too_few_rows_are_not_judged(profile):
    fresh = make_rows(150, seed=3)
    report = drift.compare(profile, damage(fresh, "constant"), limits=MonitorSettings(min_rows=200))
    assert not report.judged
    assert report.drifted == []
    assert report.broken == {}


def test_unknown_categories_are_counted_on_the_raw_values(profile):
    frame = pd.DataFrame({"country": ["us", "US", None, "de"], "shop": ["a", "zz", "b", "c"]})
    assert drift.unknown_shares(frame, SCHEMA) == {"country": 0.25}
    fresh = make_rows(1000, seed=4)
    report = drift.compare(profile, fresh.x, window=ServedWindow(unknown={"country": 0.06}))
    assert "unknown categories" in report.broken["country"][0]


def test_sampling_weights_undo_the_sampling(profile):
    fresh = make_rows(6000, seed=11)
    score = scores_of(fresh)
    keep = (score > np.quantile(score, 0.8)) | (np.random.default_rng(0).random(6000) < 0.2)
    weight = np.where(score > np.quantile(score, 0.8), 1.0, 5.0)[keep]
    biased = drift.compare(profile, fresh.x[keep], score[keep])
    undone = drift.compare(profile, fresh.x[keep], score[keep], weight=weight)
    assert biased.score.psi > 10 * undone.score.psi
    assert undone.score.psi < 0.05


def test_a_heavy_atom_gets_a_bin_of_its_own():
    rows = make_rows(4000)
    rows.x[:, COLUMN["balance"]] = np.where(np.arange(4000) % 10 < 7, 5.0, rows.x[:, COLUMN["balance"]])
    profile = reference_profile(rows, scores_of(rows), threshold=0.1)
    moved = rows.x.copy()
    moved[:, COLUMN["balance"]] = np.where(np.arange(4000) % 10 < 7, 6.0, moved[:, COLUMN["balance"]])
    assert "balance" in drift.compare(profile, moved).drifted


@given(st.integers(0, 2**31), st.integers(20, 400), st.floats(-2, 2), st.floats(0.3, 3))
@settings(max_examples=40, deadline=None)
def test_ks_on_percentiles_is_never_above_the_exact_one_and_within_a_percentile_of_it(seed, n, shift, scale):
    from scipy.stats import ks_2samp

    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(1000, 1)).astype(np.float32)
    rows = Rows(Schema((Feature("v"),)), reference, np.zeros(1000, np.int64), np.arange(1000, dtype=np.uint64))
    profile = reference_profile(rows, np.full(1000, 0.1), threshold=0.5)
    current = (rng.normal(size=(n, 1)) * scale + shift).astype(np.float32)
    got = drift.compare(profile, current, limits=MonitorSettings(min_rows=1)).features[0].ks
    exact = ks_2samp(reference[:, 0], current[:, 0]).statistic
    assert exact - 0.011 <= got <= exact + 1e-6


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=20), st.lists(st.integers(0, 1000), min_size=20, max_size=20)
)
def test_psi_is_zero_for_equal_shares_and_never_negative(counts, others):
    a = np.array(counts, dtype=float)
    b = np.array(others[: len(counts)], dtype=float)
    assert psi(a, a) == pytest.approx(0)
    assert psi(a, b) >= 0
    assert psi(a, b) == pytest.approx(psi(b, a))


@given(st.floats(0.001, 0.5), st.integers(0, 1000))
def test_weights_at_a_prevalence_give_that_prevalence(prevalence, seed):
    y = (np.random.default_rng(seed).random(300) < 0.1).astype(np.int64)
    y[0] = 1
    weight = ranking.at_prevalence(y, prevalence)
    assert float(np.average(y, weights=weight)) == pytest.approx(prevalence)


def test_windows_of_the_reference_follow_the_given_length():
    rows = make_rows(3000, days=30)
    profile = reference_profile(rows, scores_of(rows), threshold=0.1, window=timedelta(days=10))
    assert len(profile.window_prevalence) == 3
