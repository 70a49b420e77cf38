"""Resamples are paired, respect blocks, and their sums by step equal recounting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rareclass.core.bootstrap import MIN_BLOCKS, Resamples, as_scores, interval
from rareclass.core.ranking import RankingTable
from rareclass.errors import DataError


@st.composite
def scored(draw, smallest=2):
    n = draw(st.integers(smallest, 40))
    y = np.array(draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    levels = draw(st.integers(1, 12))
    score = np.array(draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))) / (levels + 1)
    return y, score


def test_every_row_resample_has_as_many_rows_as_the_data():
    weights = np.concatenate(list(Resamples(50, None, 30, 1).weights()))
    assert weights.shape == (30, 50)
    assert (weights.sum(axis=1) == 50).all()
    assert len(np.unique(weights, axis=0)) == 30


def test_rows_of_one_block_are_always_drawn_together():
    block = np.repeat(np.arange(10), 7)[np.random.default_rng(0).permutation(70)]
    weights = np.concatenate(list(Resamples(70, block, 20, 0).weights()))
    for value in range(10):
        assert (weights[:, block == value] == weights[:, block == value][:, :1]).all()
    assert set(np.unique(weights.sum(axis=1) % 7)) == {0}


def test_too_few_blocks_fall_back_to_rows():
    few = Resamples(40, np.arange(40) % (MIN_BLOCKS - 1), 5, 0)
    assert few.units == 40
    assert Resamples(40, np.arange(40) % MIN_BLOCKS, 5, 0).units == MIN_BLOCKS


def test_very_many_rows_are_drawn_in_random_groups_with_the_same_spread(monkeypatch):
    values = np.random.default_rng(0).exponential(size=20_000)
    plain = Resamples(20_000, None, 400, 1)
    spread = plain.sums(values).std()
    monkeypatch.setattr("rareclass.core.bootstrap.MAX_UNITS", 4000)
    grouped = Resamples(20_000, None, 400, 1)
    assert (plain.units, grouped.units, grouped.independent) == (20_000, 4000, True)
    assert np.bincount(grouped.unit).tolist() == [5] * 4000
    assert grouped.sums(values).std() == pytest.approx(spread, rel=0.12)
    blocks = Resamples(20_000, np.arange(20_000) // 2, 5, 1)
    assert blocks.units == 4000
    assert (blocks.unit[::2] == blocks.unit[1::2]).all()


def test_draws_are_the_same_whether_kept_or_drawn_again(monkeypatch):
    kept = np.concatenate(list(Resamples(30, None, 12, 4).chunks()))
    monkeypatch.setattr("rareclass.core.bootstrap._KEPT", 0)
    again = np.concatenate(list(Resamples(30, None, 12, 4).chunks(width=100_000)))
    np.testing.assert_array_equal(kept, again)


def test_sums_equal_weighting_the_rows():
    rng = np.random.default_rng(0)
    values, block = rng.normal(size=(60, 3)), rng.integers(0, 9, 60)
    resamples = Resamples(60, block, 25, 3)
    expected = np.concatenate(list(resamples.weights())) @ values
    np.testing.assert_allclose(resamples.sums(values), expected)
    np.testing.assert_allclose(resamples.sums(values[:, 0]), expected[:, 0])


def test_a_block_of_the_wrong_length_is_refused():
    with pytest.raises(DataError, match="3 blocks were given for 4 rows"):
        Resamples(4, np.arange(3)).units  # noqa: B018


def test_interval_leaves_out_what_could_not_be_judged():
    values = np.append(np.linspace(0, 1, 101), [np.nan] * 5)
    low, high = interval(values, 0.9)
    assert (low, high) == (pytest.approx(0.05), pytest.approx(0.95))
    assert np.isnan(interval([np.nan, np.nan, 1.0])).all()
    assert np.isnan(interval([])).all()


def test_an_end_that_too_many_resamples_do_not_bound_is_infinite():
    known = np.linspace(1, 2, 90)
    assert interval(np.append(known, [np.inf] * 10), 0.9) == (pytest.approx(1.055, abs=0.01), np.inf)
    assert interval(np.append(known, np.inf), 0.9)[1] < 2, "fewer than the tail do not count"
    assert interval(np.append(known, [-np.inf] * 10), 0.9)[0] == -np.inf
    assert interval([np.inf] * 9, 0.9) == (np.inf, np.inf)


@given(scored())
def test_rungs_sum_to_the_counts_at_every_positive_score(case):
    y, score = case
    table = RankingTable.build(y, score)
    tp = np.cumsum(table.totals(None, True))
    fp = np.cumsum(table.totals(None, False))
    assert tp[-1] == y.sum()
    assert fp[-1] == (y == 0).sum()
    for k, cut in enumerate(table.cut):
        assert tp[k] == ((score >= cut) & (y == 1)).sum()
        assert fp[k] == ((score >= cut) & (y == 0)).sum()
        lower = score[score < cut]
        assert table.below[k] == (lower.max() if len(lower) else -np.inf)


@given(scored(), st.booleans(), st.integers(0, 5))
@settings(max_examples=60)
def test_resampled_rungs_equal_recounting_the_resampled_rows(case, blocked, seed):
    y, score = case
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 8, len(y)) if blocked else None
    weight = rng.random(len(y))
    table, resamples = RankingTable.build(y, score, weight), Resamples(len(y), block, 7, seed)
    drawn = list(table.resampled(resamples, columns=[(None, True), (None, False)]))
    tp, fp = (np.concatenate([chunk[i] for chunk in drawn]) for i in (0, 1))
    for line, rows in enumerate(np.concatenate(list(resamples.weights())) * weight):
        for k, cut in enumerate(table.cut):
            assert np.cumsum(tp[line])[k] == pytest.approx(rows[(score >= cut) & (y == 1)].sum())
            assert np.cumsum(fp[line])[k] == pytest.approx(rows[(score >= cut) & (y == 0)].sum())


def test_counts_drawn_without_touching_rows_have_the_bootstrap_distribution():
    rng = np.random.default_rng(0)
    y = (rng.random(3000) < 0.05).astype(int)
    score = np.round(rng.random(3000) + 0.2 * y, 3)
    table, resamples = RankingTable.build(y, score), Resamples(3000, None, 2000, 1)
    fast = list(table.counted(resamples))
    slow = list(table.resampled(resamples, columns=[(None, True), (None, False)]))
    for i in (0, 1):
        quick, plain = (np.concatenate([chunk[i] for chunk in way]) for way in (fast, slow))
        np.testing.assert_allclose(quick.mean(axis=0), table.totals(None, i == 0), rtol=0.15, atol=0.15)
        steps_quick, steps_plain = (np.cumsum(a, axis=1)[:, ::20].std(axis=0) for a in (quick, plain))
        np.testing.assert_allclose(steps_quick, steps_plain, rtol=0.12)
    total = np.concatenate([tp.sum(axis=1) + fp.sum(axis=1) for tp, fp in fast])
    assert (total == 3000).all()


@pytest.mark.parametrize(
    ("y", "score", "weight", "says"),
    [
        ([0, 1], [0.1], None, "one score per label"),
        ([0, 2], [0.1, 0.2], None, "0 or 1"),
        ([0, 1], [0.1, np.nan], None, "1 of 2 scores are not finite"),
        ([0, 1], [0.1, 0.2], [1, -1], "not negative"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_with_one_line(y, score, weight, says):
    with pytest.raises(DataError, match=says) as caught:
        as_scores(y, score, weight)
    assert "\n" not in str(caught.value)
