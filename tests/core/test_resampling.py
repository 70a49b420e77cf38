"""Resamplers: one contract for every member, and imbalanced-learn as the oracle where it does the same thing."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.under_sampling import EditedNearestNeighbours, NearMiss, TomekLinks

from rareclass.config import ResampleStep
from rareclass.core import neighbours
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.neighbours import distance_space, kneighbors_excluding_self, surrounded, tomek_links
from rareclass.core.resampling import RANDOM, RESAMPLERS, check_chain, resample
from rareclass.errors import ConfigError, DataError, NoPositivesError, TooLargeError

OVER = ["random_over", "smote", "smotenc", "borderline_smote", "svm_smote", "kmeans_smote", "adasyn", "jitter"]
UNDER = ["random_under", "nearmiss"]
CLEANING = ["tomek", "enn"]


def step(name, **settings):
    return ResampleStep(name=name, **settings)


def numeric_rows(n=400, positives=40, features=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.zeros(n, dtype=np.int64)
    y[rng.permutation(n)[:positives]] = 1
    x = rng.normal(size=(n, features)).astype(np.float32)
    x[y == 1, 0] += 1
    schema = Schema(tuple(Feature(f"f{j}") for j in range(features)))
    return Rows(schema, x, y, np.arange(1, n + 1, dtype=np.uint64))


def mixed_rows(n=400, positives=40, seed=0):
    rng = np.random.default_rng(seed)
    plain = numeric_rows(n, positives, seed=seed)
    x = plain.x
    x[:, 2] = rng.integers(0, 4, n)
    x[:, 3] = rng.integers(0, 3, n)
    x[rng.random(x.shape) < 0.1] = np.nan
    schema = Schema((Feature("a"), Feature("b"), Feature("whole"), Feature("c", "categorical", ("x", "y", "z"))))
    time = np.datetime64("2024-01-01", "us") + np.arange(n).astype("timedelta64[h]")
    return Rows(
        schema,
        x,
        plain.y,
        plain.row_id,
        time=time,
        entity=np.arange(n, dtype=np.uint64) % 7,
        amount=rng.random(n),
        weight=1 + rng.random(n),
        fold=np.arange(n) % 3,
    )


CASES = {
    "numeric": numeric_rows(),
    "mixed": mixed_rows(),
    "two positives": mixed_rows(60, 2),
    "one positive": mixed_rows(60, 1),
    "already balanced": mixed_rows(60, 30),
    "positives in the majority": numeric_rows(60, 45),
}


def same(left, right):
    for name in ("x", "y", "row_id", "time", "entity", "amount", "weight", "fold"):
        a, b = getattr(left, name), getattr(right, name)
        if a is None or b is None:
            assert a is b
        else:
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", RESAMPLERS)
def test_every_resampler_keeps_the_contract(name, case):
    rows = CASES[case]
    before = rows.take(np.arange(len(rows)))
    done = resample(rows, [step(name)], seed=3)
    made = done.rows
    same(rows, before)
    same(made, resample(rows, [step(name)], seed=3).rows)
    assert made.schema == rows.schema
    assert made.x.dtype == np.float32
    assert done.steps == (
        ("start", rows.positives, len(rows) - rows.positives),
        (name, made.positives, len(made) - made.positives),
    )
    assert 0 < made.positives < len(made)
    real = made.row_id > 0
    assert (made.y[~real] == 1).all()
    same(made.take(real), rows.take(made.row_id[real].astype(int) - 1))
    codes = made.x[:, rows.schema.categorical]
    assert np.isin(codes[~np.isnan(codes)], [0, 1, 2]).all()
    assert not np.isinf(made.x).any()


@pytest.mark.parametrize("name", OVER)
def test_over_samplers_reach_a_ratio_or_a_number_of_rows(name):
    rows = mixed_rows()
    by_ratio = resample(rows, [step(name, ratio=4)], seed=0).rows
    assert (by_ratio.positives, len(by_ratio)) == (90, 450)
    by_rows = resample(rows, [step(name, rows=77)], seed=0).rows
    assert (by_rows.positives, len(by_rows)) == (77, 437)
    assert resample(rows, [step(name, ratio=100)], seed=0).rows is rows


@pytest.mark.parametrize("name", UNDER)
def test_under_samplers_reach_a_ratio_or_a_number_of_rows(name):
    rows = mixed_rows()
    by_ratio = resample(rows, [step(name, ratio=5)], seed=0).rows
    assert (by_ratio.positives, len(by_ratio)) == (40, 240)
    by_rows = resample(rows, [step(name, rows=77)], seed=0).rows
    assert (by_rows.positives, len(by_rows)) == (40, 117)
    assert resample(rows, [step(name, ratio=100)], seed=0).rows is rows


@pytest.mark.parametrize("name", CLEANING)
def test_cleaning_steps_drop_majority_rows_only_and_leave_what_is_asked_for(name):
    rows = mixed_rows()
    free = resample(rows, [step(name)], seed=0).rows
    assert free.positives == 40
    assert len(free) < len(rows)
    floor = len(free) - 40 + 5
    held = resample(rows, [step(name, rows=floor)], seed=0).rows
    assert (held.positives, len(held) - held.positives) == (40, floor)
    assert set(free.row_id) < set(held.row_id)


@pytest.mark.parametrize("name", ["random_over", "random_under", "smote", "adasyn", "smote_enn"])
def test_another_seed_gives_other_rows(name):
    rows = numeric_rows()
    one, two = (resample(rows, [step(name, ratio=2.3)], seed=seed).rows for seed in (1, 2))
    assert not (len(one) == len(two) and np.array_equal(one.x, two.x))


def test_chains_apply_in_order_and_say_what_each_step_left():
    chain = [step("random_under", ratio=5), step("smote", ratio=2), step("enn")]
    done = resample(mixed_rows(), chain, seed=0)
    assert [name for name, *_ in done.steps] == ["start", "random_under", "smote", "enn"]
    assert done.steps[:3] == (("start", 40, 360), ("random_under", 40, 200), ("smote", 100, 200))
    assert done.steps[3][1] == 100
    assert 0 < done.steps[3][2] < 200
    assert math.isnan(done.negative_sampling_rate)


def test_no_chain_changes_nothing_even_without_positives():
    rows = numeric_rows(20, 0)
    done = resample(rows, [], seed=0)
    assert done.rows is rows
    assert done.negative_sampling_rate == 1


def test_the_sampling_factor_of_random_steps_corrects_the_prior_exactly():
    rows = numeric_rows(4000, 200)
    for chain in (
        [step("random_under", ratio=3)],
        [step("random_over", ratio=3)],
        [step("random_under", ratio=6), step("random_over", ratio=2)],
    ):
        done = resample(rows, chain, seed=0)
        shifted, b = done.rows.prevalence, done.negative_sampling_rate
        assert b * shifted / (b * shifted - shifted + 1) == pytest.approx(rows.prevalence, rel=1e-12)


def test_only_a_calibrator_can_learn_the_shift_of_steps_that_are_not_random():
    rows = numeric_rows()
    for name in RESAMPLERS:
        kept = resample(rows, [step(name)], seed=0).negative_sampling_rate
        assert math.isnan(kept) == (name not in RANDOM), name
    assert resample(rows, [step("smote", ratio=100)], seed=0).negative_sampling_rate == 1


def test_synthetic_rows_lie_between_two_rows_of_the_rare_class_that_are_neighbours():
    rows = numeric_rows(200, 20, features=3)
    made = resample(rows, [step("smote", ratio=1, params={"k_neighbors": 3})], seed=0).rows
    own = rows.x[rows.y == 1].astype(float)
    space = distance_space(rows.x, rows.schema)[rows.y == 1]
    near = kneighbors_excluding_self(space, np.arange(20), 3)[1]
    starts, ends = np.repeat(own, 3, axis=0), own[near.ravel()]
    for point in made.x[200:].astype(float):
        along = ends - starts
        gap = np.clip(((point - starts) * along).sum(1) / (along**2).sum(1), 0, 1)
        assert np.linalg.norm(starts + gap[:, None] * along - point, axis=1).min() < 1e-5


def test_synthetic_rows_keep_missing_values_whole_numbers_and_what_belongs_to_their_base():
    rows = mixed_rows(600, 60)
    made = resample(rows, [step("smote", ratio=1)], seed=0).rows
    new, own = made.take(np.arange(600, len(made))), rows.take(rows.y == 1)
    assert (new.row_id == 0).all()
    base = np.array([int(np.flatnonzero(own.amount == amount)[0]) for amount in new.amount])
    for name in ("time", "entity", "weight", "fold"):
        np.testing.assert_array_equal(getattr(new, name), getattr(own, name)[base])
    numeric = ~rows.schema.categorical
    np.testing.assert_array_equal(np.isnan(new.x[:, numeric]), np.isnan(own.x[base][:, numeric]))
    whole = new.x[:, 2][~np.isnan(new.x[:, 2])]
    assert (whole == np.rint(whole)).all()


def test_jitter_moves_copies_by_the_noise_that_was_asked_for_on_normal_scores_and_inside_the_column():
    rng = np.random.default_rng(0)
    n = 4_000
    x = np.column_stack([np.exp(2 * rng.normal(size=n)), rng.integers(0, 9, n), np.full(n, 3.0)]).astype(np.float32)
    x[rng.random(n) < 0.1, 0] = np.nan
    y = (np.arange(n) % 100 == 0).astype(np.int64)
    rows = Rows(Schema(tuple(Feature(name) for name in "abc")), x, y, np.arange(n, dtype=np.uint64))
    made = resample(rows, [step("jitter", rows=4_000, params={"width": 0.25})], seed=1).rows
    new = made.x[n:]
    base = rows.x[rows.y == 1]
    base = np.concatenate([np.tile(base, (len(new) // len(base), 1)), base[: len(new) % len(base)]])
    np.testing.assert_array_equal(np.isnan(new), np.isnan(base))
    there = ~np.isnan(new[:, 0])
    score = {
        value: NormalDist().inv_cdf((rank + 0.5) / (~np.isnan(x[:, 0])).sum())
        for rank, value in enumerate(np.sort(x[~np.isnan(x[:, 0]), 0]))
    }
    known = np.array(sorted(score))
    moved = np.interp(new[there, 0], known, [score[v] for v in known]) - np.array([score[v] for v in base[there, 0]])
    assert np.std(moved) == pytest.approx(0.25, rel=0.05)
    assert abs(np.mean(moved)) < 0.02
    assert np.nanmax(new[:, 0]) <= np.nanmax(x[:, 0])
    assert set(np.unique(new[:, 1])) <= set(range(9))
    assert (new[:, 1] != base[:, 1]).any()
    assert (new[:, 2] == 3).all()


def test_a_synthetic_category_is_the_most_frequent_one_near_its_base():
    schema = Schema((Feature("v"), Feature("c", "categorical", ("x", "y"))))
    x = np.array([[0, 0], [0.01, 1], [0.02, 1], [0.03, 1], *[[5 + i, 0] for i in range(20)]], dtype=np.float32)
    y = np.array([1] * 4 + [0] * 20)
    rows = Rows(schema, x, y, np.arange(24, dtype=np.uint64))
    made = resample(rows, [step("smotenc", params={"k_neighbors": 3})], seed=0).rows
    assert (made.x[24:, 1] == 1).all()


def test_borderline_bases_are_in_danger_and_adasyn_prefers_them():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, 300), rng.normal(2, 0.3, 20), rng.normal(40, 1, 20)])[:, None]
    rows = Rows(
        Schema((Feature("v"),)), x.astype(np.float32), np.repeat([0, 1], [300, 40]), np.arange(340, dtype=np.uint64)
    )
    for name in ("borderline_smote", "adasyn"):
        made = resample(rows, [step(name)], seed=0).rows.x[340:, 0]
        assert (made < 10).mean() > 0.95, name


def test_rows_are_repeated_equally_often():
    rows = numeric_rows(100, 10)
    made = resample(rows, [step("random_over", rows=35)], seed=0).rows
    assert set(np.unique(made.row_id[made.y == 1], return_counts=True)[1]) == {3, 4}


# --- imbalanced-learn as the oracle -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _few_rows_go_the_way_of_many():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "DIRECT_PAIRS", 0)
        yield


@st.composite
def continuous_rows(draw, low=20, high=4000):
    """Rows without equidistant neighbours: 2 to 20 continuous columns, any overlap, any offset of the whole cloud."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(low, high))
    features = draw(st.integers(2, 20))
    y = (rng.random(n) < draw(st.sampled_from([0.01, 0.1, 0.5]))).astype(np.int64)
    y[:6], y[6:12] = 1, 0
    x = rng.normal(size=(n, features)) + draw(st.sampled_from([0.0, 0.5, 2.0])) * y[:, None]
    unit, offset = draw(st.sampled_from([(1e-3, 0.0), (1.0, 0.0), (1.0, 300.0), (50.0, 300.0)]))
    x = x * unit + offset
    x = np.concatenate([x[:, :1] + rng.normal(size=(n, 1)) * 20 * unit, x[:, 1:]], axis=1)
    return x.astype(np.float32), y


@settings(max_examples=25, deadline=None)
@given(continuous_rows())
def test_enn_keeps_the_rows_that_imbalanced_learn_keeps(data):
    x, y = data
    oracle = EditedNearestNeighbours(sampling_strategy=[0])
    oracle.fit_resample(x, y)
    kept = np.setdiff1d(np.arange(len(y)), surrounded(x, y, 0, threads=2))
    np.testing.assert_array_equal(kept, np.sort(oracle.sample_indices_))


@settings(max_examples=15, deadline=None)
@given(continuous_rows(high=1500), st.integers(1, 7))
def test_enn_of_both_classes_keeps_the_rows_that_imbalanced_learn_keeps(data, k):
    x, y = data
    oracle = EditedNearestNeighbours(sampling_strategy="all", n_neighbors=k)
    oracle.fit_resample(x, y)
    gone = np.concatenate([surrounded(x, y, 0, k=k), surrounded(x, y, 1, k=k)])
    np.testing.assert_array_equal(np.setdiff1d(np.arange(len(y)), gone), np.sort(oracle.sample_indices_))


@settings(max_examples=25, deadline=None)
@given(continuous_rows())
def test_tomek_finds_the_links_that_imbalanced_learn_finds(data):
    x, y = data
    both = TomekLinks(sampling_strategy="all")
    both.fit_resample(x, y)
    links = tomek_links(x, y)
    assert len(links[0]) == len(links[1])
    assert (y[links[0]] == 0).all()
    assert (y[links[1]] == 1).all()
    kept = np.setdiff1d(np.arange(len(y)), np.concatenate(links))
    np.testing.assert_array_equal(kept, np.sort(both.sample_indices_))


@settings(max_examples=15, deadline=None)
@given(continuous_rows(high=600), st.integers(0, 99))
def test_what_is_settled_without_a_search_is_what_brute_force_says(data, seed):
    x, y = data
    own, other = x[y == 0].astype(float), x[y == 1].astype(float)
    among = np.sqrt(((own[:, None] - own[None]) ** 2).sum(-1))
    np.fill_diagonal(among, np.inf)
    radius = np.sqrt(((own[:, None] - other[None]) ** 2).sum(-1)).min(1)
    expected = np.flatnonzero((among < radius[:, None]).sum(1) < 3)
    lonely, left_open = neighbours._lonely(x[y == 0], x[y == 1], 3, seed=seed, threads=1)
    assert set(lonely) <= set(expected)
    assert set(expected) <= set(lonely) | set(left_open)
    assert len(left_open) <= 1 + 0.1 * len(own)


def test_resample_gives_the_rows_of_imbalanced_learn_in_the_columns_own_units():
    rows = numeric_rows(3000, 90)
    own_units = {"scale": False}
    for name, oracle in (
        ("enn", EditedNearestNeighbours()),
        ("tomek", TomekLinks()),
        ("nearmiss", NearMiss(version=1, sampling_strategy=0.5)),
    ):
        oracle.fit_resample(rows.x, rows.y)
        ratio = 2 if name == "nearmiss" else None
        made = resample(rows, [step(name, ratio=ratio, params=own_units)], seed=0).rows
        np.testing.assert_array_equal(made.row_id - 1, np.sort(oracle.sample_indices_), err_msg=name)


def test_smote_then_enn_is_smote_enn():
    rows = numeric_rows(500, 30)
    both = resample(rows, [step("smote_enn", params={"scale": False})], seed=0).rows
    after = resample(rows, [step("smote", params={"scale": False})], seed=0).rows
    oracle = EditedNearestNeighbours(sampling_strategy="all")
    oracle.fit_resample(after.x, after.y)
    np.testing.assert_array_equal(both.x, after.x[np.sort(oracle.sample_indices_)])


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 40), st.sampled_from([0.0, 1e3, 1e6]))
@settings(max_examples=40)
def test_the_nearest_of_a_few_rows_are_those_of_scikit_learn(seed, k, columns, offset):
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rng.integers(600, 3000), columns)) + offset).astype(np.float32)
    x[rng.integers(0, len(x), 50)] = x[rng.integers(0, len(x), 50)]
    distance, index = neighbours.nearest(x, x[:20], k)
    oracle = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(x.astype(np.float64)).kneighbors(x[:20])[0]
    np.testing.assert_allclose(distance, oracle, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(x[index].astype(float) - x[:20, None], axis=2), distance, rtol=1e-9)


def test_identical_rows_are_not_their_own_neighbours():
    x = np.repeat(np.arange(4, dtype=np.float32), 5)[:, None]
    found = kneighbors_excluding_self(x, np.arange(20), 3)[1]
    assert (found != np.arange(20)[:, None]).all()
    np.testing.assert_array_equal(found // 5, np.repeat(np.arange(4), 5)[:, None].repeat(3, axis=1))


def test_values_beyond_the_reach_of_float32_squares_are_still_cleaned_exactly():
    rows = numeric_rows(3000, 90)
    np.testing.assert_array_equal(surrounded(rows.x * np.float32(2**70), rows.y, 0), surrounded(rows.x, rows.y, 0))


def test_the_direct_search_and_the_way_of_many_rows_agree(monkeypatch):
    rows = numeric_rows(3000, 300)
    quick = [surrounded(rows.x, rows.y, target, k=5) for target in (0, 1)]
    monkeypatch.setattr(neighbours, "DIRECT_PAIRS", 1e8)
    for target in (0, 1):
        np.testing.assert_array_equal(quick[target], surrounded(rows.x, rows.y, target, k=5))


def test_infinite_values_count_as_missing_for_distances_only():
    rows = numeric_rows(100, 20)
    rows.x[::7, 1] = np.inf
    made = resample(rows, [step("smote")], seed=0).rows
    same(made.take(np.arange(100)), rows)
    assert not np.isnan(made.x).any()


def test_threads_do_not_change_the_result():
    rows = numeric_rows(3000, 100)
    chain = [step("smote_enn", ratio=2)]
    same(resample(rows, chain, seed=0, threads=1).rows, resample(rows, chain, seed=0, threads=2).rows)


# --- distances --------------------------------------------------------------------------------------------------------


def test_distances_take_medians_for_missing_values_and_deviations_as_units():
    schema = Schema((Feature("a"), Feature("b"), Feature("empty")))
    x = np.array([[0, 10, np.nan], [2, np.nan, np.nan], [4, 30, np.nan]], dtype=np.float32)
    space = distance_space(x, schema)
    assert np.isnan(x[1, 1])
    assert np.isfinite(space).all()
    assert space[1, 1] == pytest.approx((space[0, 1] + space[2, 1]) / 2)
    np.testing.assert_allclose(space[:, 0].std(), 1, rtol=1e-6)
    np.testing.assert_array_equal(distance_space(x, schema, scale=False)[:, :2], [[0, 10], [2, 20], [4, 30]])


def test_two_levels_are_as_far_apart_as_one_deviation_and_missing_is_a_level():
    schema = Schema((Feature("c", "categorical", ("x", "y")),))
    space = distance_space(np.array([[0], [1], [np.nan], [0]], dtype=np.float32), schema)
    apart = np.linalg.norm(space[:, None] - space[None], axis=2)
    np.testing.assert_allclose(apart, [[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]], atol=1e-6)


def test_levels_beyond_the_most_frequent_count_as_one():
    schema = Schema((Feature("c", "categorical", tuple(map(str, range(40)))),))
    codes = np.concatenate([np.repeat(np.arange(15), 3), np.arange(15, 40)]).astype(np.float32)[:, None]
    space = distance_space(codes, schema)
    assert space.shape == (70, 16)
    assert len(np.unique(space, axis=0)) == 16


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "smoot"}, "unknown resampler 'smoot'. Did you mean 'smote'?"),
        ({"name": "smote", "params": {"k_neighbours": 3}}, "Did you mean 'k_neighbors'?"),
        ({"name": "smote", "params": {"k_neighbors": 0}}, "a whole number above 0"),
        ({"name": "smote", "params": {"k_neighbors": True}}, "a whole number above 0"),
        ({"name": "enn", "params": {"scale": "no"}}, "true or false"),
        ({"name": "random_under", "params": {"k": 3}}, "has no settings"),
        ({"name": "random_under", "ratio": 3, "rows": 7}, "both ratio and rows"),
    ],
)
def test_a_wrong_step_gives_one_line_that_says_what_to_set(wrong, message):
    with pytest.raises(ConfigError) as caught:
        check_chain([ResampleStep(**wrong)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_without_rows_is_said():
    with pytest.raises(NoPositivesError):
        resample(numeric_rows(20, 0), [step("smote")], seed=0)
    with pytest.raises(DataError, match="both classes"):
        resample(numeric_rows(20, 20), [step("smote")], seed=0)


def test_cleaning_refuses_more_rows_than_its_bound():
    y = np.repeat([0, 1], 600_000)
    with pytest.raises(TooLargeError, match="random_under"):
        surrounded(np.zeros((len(y), 1), dtype=np.float32), y, 0)
