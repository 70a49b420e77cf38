"""Figures over partitions are those of one process, whatever the partitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rareclass.core.partitions import PartitionCounts, count_partition, cut_points, poisson_weights
from rareclass.core.ranking import average_precision, roc_auc, sweep
from rareclass.errors import DataError


@st.composite
def tables(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores with ties, weights, and the partition of each row; classes and partitions may be empty."""
    n = draw(st.integers(0, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = (rng.random(n) < draw(st.sampled_from([0.0, 0.02, 0.2, 1.0]))).astype(int)
    levels = draw(st.sampled_from([3, 20, 10_000]))
    score = rng.integers(0, levels, n) / levels
    weight = rng.random(n) * 3 if draw(st.booleans()) else np.ones(n)
    return y, score, weight, rng.integers(0, draw(st.integers(1, 9)), n)


def counted(y: Any, score: Any, weight: Any, part: Any, parts: int = 10, **more: Any) -> PartitionCounts:
    masks = [part == number for number in range(parts)]
    cut = cut_points(score[mask & (y == 1)] for mask in masks)
    block = more.pop("block", None)
    return sum(
        count_partition(
            y[mask], score[mask], cut, weight=weight[mask], block=None if block is None else block[mask], **more
        )
        for mask in masks
    )  # type: ignore[return-value]


@given(tables())
@settings(max_examples=120, deadline=None)
def test_average_precision_and_roc_auc_are_those_of_one_process(table: Any) -> None:
    y, score, weight, part = table
    total = counted(y, score, weight, part)
    assert total.rows == len(y)
    assert total.found == y.sum()
    assert total.average_precision().value == pytest.approx(
        average_precision(y, score, weight), rel=1e-12, abs=1e-12, nan_ok=True
    )
    assert total.roc_auc().value == pytest.approx(roc_auc(y, score, weight), rel=1e-12, abs=1e-12, nan_ok=True)


@given(tables())
@settings(max_examples=60, deadline=None)
def test_the_best_cut_off_is_that_of_the_whole_sweep(table: Any) -> None:
    y, score, weight, part = table
    ours, whole = counted(y, score, weight, part).sweep(), sweep(y, score, weight)
    assert ours.positives == pytest.approx(whole.positives)
    assert ours.negatives == pytest.approx(whole.negatives)
    for worth in (0.5, 3.0, 40.0):  # gain of a find in false alarms
        best = [float((worth * each.tp - each.fp).max()) for each in (ours, whole)]
        assert best[0] == pytest.approx(best[1], rel=1e-12, abs=1e-9)
    for cutoff, tp, fp in zip(ours.cutoff, ours.tp, ours.fp, strict=True):
        at = score >= cutoff
        assert tp == pytest.approx(weight[at & (y == 1)].sum(), abs=1e-9)
        assert fp == pytest.approx(weight[at & (y == 0)].sum(), abs=1e-9)


@given(tables(), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_resamples_do_not_depend_on_the_partitions(table: Any, seed: int) -> None:
    y, score, weight, part = table
    block = np.arange(len(y)) // 4
    once = counted(y, score, weight, np.zeros(len(y)), parts=1, block=block, resamples=7, seed=seed)
    spread = counted(y, score, weight, part, block=block, resamples=7, seed=seed)
    for name in ("tp", "fp", "tied"):
        assert np.allclose(getattr(once, name), getattr(spread, name), rtol=1e-12, atol=1e-9)


def test_a_resample_is_the_figure_of_the_rows_repeated_as_their_blocks_were_drawn() -> None:
    rng = np.random.default_rng(1)
    y, score, block = (rng.random(400) < 0.1).astype(int), rng.random(400), rng.integers(0, 40, 400)
    total = counted(y, score, np.ones(400), np.zeros(400), parts=1, block=block, resamples=5)
    drawn = poisson_weights(np.arange(40), 5)
    from rareclass.core.ranking import ap_of_sums

    for number, value in enumerate(ap_of_sums(total.tp, total.fp)[1:]):
        assert value == pytest.approx(average_precision(y, score, drawn[number][block]), rel=1e-12)


def test_weights_of_blocks_are_poisson_and_independent_of_each_other() -> None:
    drawn = poisson_weights(np.arange(20_000), 4, seed=3)
    assert drawn.mean() == pytest.approx(1.0, abs=0.02)
    assert drawn.var() == pytest.approx(1.0, abs=0.03)
    assert (drawn == 0).mean() == pytest.approx(np.exp(-1), abs=0.01)
    assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 0.03
    assert np.abs(np.corrcoef(drawn[0][:-1], drawn[0][1:])[0, 1]) < 0.03


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        y = (rng.random(3_000) < 0.03).astype(int)
        score = rng.normal(size=3_000) + 1.5 * y
        found = counted(
            y, score, np.ones(3_000), np.zeros(3_000), parts=1, block=np.arange(3_000), resamples=100, seed=seed
        ).average_precision()
        inside += found.low <= 0.2488 <= found.high
    assert inside >= 35


def test_what_cannot_be_added_or_counted_is_refused() -> None:
    one, other = (count_partition([1, 0], [0.5, 0.1], np.array(cut)) for cut in ([0.5], [0.7, 0.5]))
    with pytest.raises(DataError, match="other cut points"):
        one + other
    with pytest.raises(DataError, match="is no cut point"):
        count_partition([1, 0], [0.6, 0.1], np.array([0.5]))
    with pytest.raises(DataError, match="Pass block"):
        count_partition([1, 0], [0.5, 0.1], np.array([0.5]), resamples=3)
    with pytest.raises(TypeError):
        1 + one
