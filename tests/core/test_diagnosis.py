"""Diagnosis and plan: what is said about the imbalance, and what follows from it."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from rareclass.config import RegimeSettings, parse
from rareclass.core import diagnosis, planning, splitting
from rareclass.core.candidates import group_by_resampler
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.estimate import share_of
from rareclass.errors import ConfigError, NoPositivesError


def config(**sections):
    return parse({"name": "test", "data": {"path": "rows.csv", "target": "y"}, **sections})


def rows_of(n=2000, positives=100, *, shift=2.0, categorical=False, seed=0, days=0, features=4):
    rng = np.random.default_rng(seed)
    y = np.zeros(n, dtype=np.int64)
    y[rng.permutation(n)[:positives]] = 1
    x = rng.normal(size=(n, features)).astype(np.float32)
    x[y == 1] += np.float32(shift)
    schema = [Feature(f"f{j}") for j in range(features)]
    if categorical:
        x[:, -1] = rng.integers(0, 3, n)
        schema[-1] = Feature("level", "categorical", ("a", "b", "c"))
    time = None
    if days:
        time = np.datetime64("2024-01-01", "us") + (np.arange(n) * days * 86_400_000_000 // n).astype("timedelta64[us]")
    return Rows(Schema(tuple(schema)), x, y, np.arange(n, dtype=np.uint64), time=time)


def plan_of(rows, settings=None):
    settings = settings or config()
    found, by_amount = diagnose(rows, settings), settings.costs.amount_share is not None
    return planning.plan(found, settings.search, rows.schema, by_amount=by_amount)


def diagnose(rows, settings):
    return diagnosis.diagnose(rows, settings.regime, settings.evaluate, seed=settings.train.seed)


# --- shares and regimes -----------------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_intervals_are_those_of_scipy(rows, share, confidence):
    positives = round(rows * share)
    found = share_of(positives, rows, confidence)
    oracle = binomtest(positives, rows).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)
    assert found.low <= found.value <= found.high
    assert (found.positives, found.rows) == (positives, rows)


def test_a_share_of_no_rows_is_nan():
    assert np.isnan(share_of(0, 0).value)


@pytest.mark.parametrize(
    ("positives", "name"), [(0, "none"), (1, "few"), (29, "few"), (30, "scarce"), (299, "scarce"), (300, "ample")]
)
def test_the_regime_follows_the_number_of_positives(positives, name):
    assert diagnosis.regime(positives, RegimeSettings()) == name


def test_the_bounds_of_the_regimes_are_settings():
    assert diagnosis.regime(50, RegimeSettings(few=51)) == "few"
    assert diagnosis.regime(50, RegimeSettings(few=10, scarce=50)) == "ample"


@pytest.mark.parametrize(
    ("days", "periods", "first"), [(20, 20, "2024-01-01"), (200, 29, "2024-01-01"), (900, 30, "2024-01")]
)
def test_prevalence_is_reported_by_the_shortest_period_that_stays_readable(days, periods, first):
    found = diagnosis.prevalence_by_period(rows_of(days=days))
    assert len(found) == periods
    assert next(iter(found)) == first
    assert sum(period.rows for period in found.values()) == 2000
    assert sum(period.positives for period in found.values()) == 100


def test_weeks_begin_on_monday():
    found = diagnosis.prevalence_by_period(rows_of(days=200))
    assert {np.datetime64(name).item().weekday() for name in found} == {0}


def test_prevalence_by_segment_counts_every_level_and_missing_values():
    rows = rows_of(categorical=True)
    rows.x[:50, -1] = np.nan
    found = diagnosis.prevalence_by_segment(rows)
    assert set(found) == {"level"}
    assert set(found["level"]) == {"a", "b", "c", "(missing)"}
    for position, level in enumerate("abc"):
        mask = rows.x[:, -1] == position
        share = found["level"][level]
        assert (share.positives, share.rows) == (rows.y[mask].sum(), mask.sum())
    assert found["level"]["(missing)"].rows == 50
    assert diagnosis.prevalence_by_segment(rows, ["f0"]) == {}


# --- neighbourhoods ---------------------------------------------------------------------------------------------------


def brute_force_types(rows):
    x = rows.x.astype(np.float64)
    x = (x - x.mean(0)) / x.std(0)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    same = (rows.y[np.argsort(apart, axis=1)[:, :5]] == 1).sum(1)[rows.y == 1]
    share = np.bincount(same, minlength=6) / len(same)
    return {"safe": share[4] + share[5], "borderline": share[2] + share[3], "rare": share[1], "outlier": share[0]}


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_point_types_are_those_of_the_five_nearest_rows(shift):
    rows = rows_of(800, 80, shift=shift)
    kinds, _, asked, reference = diagnosis.point_types(rows)
    assert kinds == pytest.approx(brute_force_types(rows))
    assert (asked, reference) == (80, 800)


def test_overlap_falls_as_the_classes_move_apart():
    values = [diagnosis.point_types(rows_of(shift=shift))[1] for shift in (0, 1, 2, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.9
    assert values[-1] < 0.01


def test_neighbourhoods_of_many_rows_are_judged_on_a_bounded_thinning_of_both_classes(monkeypatch):
    monkeypatch.setattr(diagnosis, "MAX_REFERENCE", 5000)
    monkeypatch.setattr(diagnosis, "MAX_ASKED", 100)
    rows = rows_of(50_000, 5000, shift=0.8)
    kinds, overlap, asked, reference = diagnosis.point_types(rows)
    assert (asked, reference) == (100, 5000)
    monkeypatch.undo()
    full, overlap_full, *_ = diagnosis.point_types(rows)
    for kind in kinds:
        assert abs(kinds[kind] - full[kind]) < 0.2
    assert abs(overlap - overlap_full) < 0.2


def test_neighbourhoods_of_a_handful_are_not_judged():
    kinds, overlap, *_ = diagnosis.point_types(rows_of(100, 5))
    assert kinds == {}
    assert np.isnan(overlap)


# --- the report -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positives", [0, 1, 5, 100, 2000])
def test_every_diagnosis_is_finite_json_and_readable_lines(positives):
    found = diagnose(rows_of(positives=positives, categorical=True, days=30), config())
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["positives"] == positives
    lines = found.lines()
    assert all("\n" not in line and "nan" not in line for line in lines)
    assert f"{positives:,} of 2,000" in lines[0]


def test_a_diagnosis_is_the_same_twice():
    rows = rows_of(categorical=True)
    assert diagnose(rows, config()) == diagnose(rows, config())


def test_prevalence_that_moves_over_time_is_noted():
    rows = rows_of(4000, 0, days=10)
    rows.y[:400:4] = 1
    rows.y[2000::50] = 1
    assert any("prevalence changes over time" in note for note in diagnose(rows, config()).notes)
    steady = diagnose(rows_of(4000, 400, days=10), config())
    assert not any("prevalence changes" in note for note in steady.notes)


# --- the plan ---------------------------------------------------------------------------------------------------------


SITUATIONS = {
    "few": rows_of(500, 10),
    "scarce": rows_of(3000, 100),
    "ample": rows_of(30_000, 600),
    "mixed": rows_of(30_000, 600, categorical=True),
    "large": rows_of(300_000, 3000),
    "balanced": rows_of(1000, 450),
}


@pytest.mark.parametrize("case", SITUATIONS)
def test_every_plan_begins_with_the_untouched_learner_and_gives_reasons(case):
    plan = plan_of(SITUATIONS[case])
    assert (plan[0].name, plan[0].learner, plan[0].params, plan[0].group) == ("xgboost", "xgboost", {}, "none")
    assert (plan[0].weighting, plan[0].loss) == ("none", "logistic")
    assert len(plan) >= 3
    assert len({candidate.name for candidate in plan}) == len(plan)
    assert len(group_by_resampler(plan)) <= 3
    for candidate in plan:
        planning.check_recipe(candidate)
        assert candidate.reason.endswith(".")


def test_where_time_is_short_candidate_0_is_what_anybody_would_fit_in_it():
    rows = SITUATIONS["large"]
    for seconds, params in ((60, {}), (4, {}), (3, planning.AS_IT_COMES)):
        plan = plan_of(rows, config(search={"seconds": seconds}))
        assert (plan[0].name, plan[0].params, plan[0].group) == ("xgboost", params, "none")
        assert sum(candidate.params == planning.AS_IT_COMES for candidate in plan) <= 1
    assert plan_of(rows, config(search={"seconds": 3, "trials": 3}))[0].params == {}


def test_where_time_is_short_the_last_folds_stand_for_all_if_they_hold_enough_positives():
    rows = SITUATIONS["large"]
    settings = config(split={"kind": "stratified", "folds": 5})
    half = len(rows) // 2
    dev, folds = splitting.development(
        rows.take(np.arange(half)), rows.take(np.arange(half, len(rows))), settings.split, settings.data.label_delay
    )

    def kept(**search):
        return planning.affordable(folds, dev, config(search=search).search)

    assert [len(kept(seconds=seconds)) for seconds in (600, 8, 4, 0.1)] == [3, 2, 1, 1]
    assert kept(seconds=4)[0] is folds[-1]
    for search in ({"seconds": 1, "trials": 2}, {"seconds": 1, "only": {"learner": "logistic_regression"}}):
        assert len(kept(**search)) == 3
    sampled = dataclasses.replace(dev, weight=np.ones(len(dev)), drawn=np.ones(len(dev)))
    assert len(planning.affordable(folds, sampled, config(search={"seconds": 1}).search)) == 3, "they score every row"
    few = dataclasses.replace(dev, y=np.where(np.cumsum(dev.y) > 500, 0, dev.y))
    assert len(planning.affordable(folds, few, config(search={"seconds": 1}).search)) == 3


def test_fewer_positives_give_a_shorter_plan():
    sizes = [len(plan_of(SITUATIONS[case])) for case in ("few", "scarce", "ample")]
    assert sizes == sorted(sizes)
    assert sizes[0] <= 6


def test_unlike_learners_come_first_and_very_deep_trees_only_where_rows_and_positives_are_many():
    plans = {case: [c.name for c in plan_of(rows)] for case, rows in SITUATIONS.items()}
    assert plans["scarce"][:3] == ["xgboost", "extra-trees", "logistic-regression"]
    assert plans["large"][1] == "xgboost-very-deep"
    assert [case for case, names in plans.items() if "xgboost-very-deep" in names] == ["large"]


def test_many_rows_leave_out_what_would_take_too_long():
    plan = plan_of(SITUATIONS["large"], config(search={"trials": 50}))
    slow = {"random_forest", "balanced_random_forest", "mlp"}
    assert not [c.name for c in plan if c.learner in slow and c.group == "none"]
    assert not [c.name for c in plan if "smote" in c.group]
    assert [c.name for c in plan if c.group == "random_under(ratio=20)"]


def test_synthetic_rows_are_for_few_numeric_rows_whose_positives_have_their_kind_near():
    def smote(rows):
        return any("smote" in candidate.group for candidate in plan_of(rows, config(search={"trials": 50})))

    assert smote(SITUATIONS["ample"])
    assert not smote(SITUATIONS["mixed"])
    assert not smote(rows_of(30_000, 600, shift=0))


def test_trials_cut_the_plan_exactly_and_seconds_cut_its_end():
    rows = SITUATIONS["ample"]
    assert len(plan_of(rows, config(search={"trials": 1}))) == 1
    assert len(plan_of(rows, config(search={"trials": 4}))) == 4
    short, long = (plan_of(rows, config(search={"seconds": s})) for s in (0.5, 600))
    assert 3 <= len(short) < len(long)
    assert [c.name for c in short] == [c.name for c in long if c.name in {s.name for s in short}]


def test_candidates_of_the_configuration_replace_the_plan_and_extra_ones_join_it():
    mine = {"learner": "random_forest", "resample": [{"name": "random_under", "ratio": 5}]}
    rows = SITUATIONS["scarce"]
    assert [c.learner for c in plan_of(rows, config(search={"candidates": [mine]}))] == ["xgboost", "random_forest"]
    joined = plan_of(rows, config(search={"extra": [mine]}))
    assert joined[1].group == "random_under(ratio=5)"
    assert joined[2:] == plan_of(rows)[1:]


def test_amounts_bring_weights_by_amount():
    money = config(
        data={"path": "rows.csv", "target": "y", "amount": "paid"}, costs={"amount_share": 1.0, "false_positive": 5}
    )
    assert "amount" in {candidate.weighting for candidate in plan_of(SITUATIONS["ample"], money)}
    assert "amount" not in {candidate.weighting for candidate in plan_of(SITUATIONS["ample"])}


def test_no_positives_name_the_one_class_regime():
    with pytest.raises(NoPositivesError, match="one-class regime") as caught:
        plan_of(rows_of(100, 0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"learner": "xgbost"}, "Did you mean 'xgboost'?"),
        ({"weighting": "balance"}, "Did you mean 'balanced'?"),
        ({"resample": [{"name": "smotte"}]}, "Did you mean 'smote'?"),
        ({"learner": "random_forest", "loss": "focal"}, "loss 'focal' is for learner 'xgboost'"),
    ],
)
def test_a_recipe_that_does_not_exist_is_one_line(spec, message):
    with pytest.raises(ConfigError) as caught:
        plan_of(SITUATIONS["few"], config(search={"extra": [spec]}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
