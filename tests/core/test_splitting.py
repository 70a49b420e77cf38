"""Sides of a split are stable, leave the gap empty and never separate rows that belong together."""

import itertools
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rareclass import config
from rareclass.core import splitting
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.hashing import SetHash, content_groups, mix, number_hash, text_hash, unit
from rareclass.errors import DataError

DAY = np.timedelta64(1, "D").astype("timedelta64[us]")


def make_rows(n=4000, *, prevalence=0.05, days=100, entities=None, seed=0, duplicates=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    if duplicates:
        x = x[rng.integers(0, n // 2, n)]
    time = None
    if days:
        start = np.datetime64("2024-01-01", "us")
        time = np.sort(start + (rng.random(n) * days * 86_400_000_000).astype("timedelta64[us]"))
    return Rows(
        schema=Schema(tuple(Feature(f"x{i}") for i in range(3))),
        x=x,
        y=(rng.random(n) < prevalence).astype(np.int64),
        row_id=mix(np.arange(n, dtype=np.uint64)),
        time=time,
        entity=None if entities is None else mix(rng.integers(0, entities, n).astype(np.uint64), 3),
    )


def cut(rows, *, groups=None, delay=timedelta(0), seed=0, **options):
    return splitting.split(
        y=rows.y,
        row_id=rows.row_id if groups is None else groups,
        time=rows.time,
        entity=rows.entity,
        config=config.SplitSettings(**options),
        label_delay=delay,
        seed=seed,
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    delay=st.integers(0, 10),
    test=st.floats(0.1, 0.4),
    validation=st.floats(0.1, 0.4),
    days=st.sampled_from([5, 40, 100]),
)
def test_the_time_split_is_ordered_and_the_gap_belongs_to_nobody(seed, delay, test, validation, days):
    rows = make_rows(1500, prevalence=0.2, days=days, seed=seed)
    gap = timedelta(days=delay * days / 100)
    parts = cut(rows, delay=gap, test=test, validation=validation)
    assert rows.time[parts.validation].min() - rows.time[parts.train].max() > np.timedelta64(gap)
    assert rows.time[parts.test].min() - rows.time[parts.validation].max() > np.timedelta64(gap)
    used = np.concatenate([parts.train, parts.validation, parts.test])
    assert len(np.unique(used)) == len(used) == len(rows) - parts.dropped["gap"]
    assert len(parts.test) / len(rows) == pytest.approx(test, abs=0.03 if days >= 30 else 0.01)


def test_times_are_never_divided_and_long_histories_are_cut_at_midnight():
    rows = make_rows(days=100)
    parts = cut(rows)
    first = rows.time[parts.test].min()
    assert first - first.astype("datetime64[D]") < np.timedelta64(6, "h")
    daily = rows.time.astype("datetime64[D]")
    assert not set(daily[parts.test]) & set(daily[parts.validation])


def test_a_gap_longer_than_the_history_says_so():
    with pytest.raises(DataError, match=r"label delay .* leaves no rows before it: the data span"):
        cut(make_rows(days=20), delay=timedelta(days=30))


def test_rows_of_one_time_cannot_be_split_by_time():
    rows = make_rows(200, prevalence=0.3)
    rows.time[:] = rows.time[0]
    with pytest.raises(DataError, match="same time"):
        cut(rows)


def test_the_test_part_is_moved_back_until_it_has_positives():
    rows = make_rows(2000, prevalence=0)
    rows.y[:1000:50] = 1
    parts = cut(rows)
    assert all(rows.y[part].any() for part in (parts.train, parts.validation, parts.test))


@pytest.mark.parametrize("kind", ["stratified", "grouped"])
def test_more_rows_later_keep_every_row_on_its_side(kind):
    rows = make_rows(6000, days=None, entities=2000 if kind == "grouped" else None)
    early = rows.take(np.random.default_rng(1).permutation(6000)[:3000])
    now, then = cut(rows, kind=kind), cut(early, kind=kind)
    for name in ("train", "validation", "test"):
        assert set(early.row_id[getattr(then, name)]) <= set(rows.row_id[getattr(now, name)])
    assert now.boundaries["salt"] == then.boundaries["salt"] == 0


def test_the_order_of_the_rows_does_not_matter():
    rows = make_rows(days=None)
    shuffled = rows.take(np.random.default_rng(2).permutation(len(rows)))
    assert set(rows.row_id[cut(rows).test]) == set(shuffled.row_id[cut(shuffled).test])


def test_the_stratified_shares_are_as_asked():
    rows = make_rows(40_000, days=None)
    parts = cut(rows, test=0.3, validation=0.5)
    assert len(parts.test) / len(rows) == pytest.approx(0.3, abs=0.01)
    assert len(parts.validation) / len(rows) == pytest.approx(0.35, abs=0.01)
    assert rows.y[parts.test].mean() == pytest.approx(rows.y.mean(), rel=0.1)


def test_another_seed_is_another_split():
    rows = make_rows(days=None)
    assert not np.array_equal(cut(rows, seed=0).test, cut(rows, seed=1).test)


def test_few_positives_are_on_every_side():
    rows = make_rows(3000, prevalence=0, days=None)
    rows.y[:4] = 1
    parts = cut(rows)
    assert all(rows.y[part].any() for part in (parts.train, parts.validation, parts.test))


@pytest.mark.parametrize("days", [None, 60])
@pytest.mark.parametrize("positives", [0, 1, 2])
def test_with_hardly_any_positive_the_parts_keep_their_shares_and_need_none(days, positives):
    rows = make_rows(3000, prevalence=0, days=days)
    rows.y[:positives] = 1
    parts = cut(rows)
    assert len(parts.test) == pytest.approx(600, rel=0.2)
    _dev, folds = splitting.development(
        rows.take(parts.train), rows.take(parts.validation), config=config.SplitSettings()
    )
    assert len(folds) >= 2
    assert not any(np.isin(fold.train, fold.score).any() for fold in folds)


def test_an_entity_is_on_one_side():
    rows = make_rows(entities=300, days=None)
    parts = cut(rows)
    assert parts.kind == "grouped"
    sides = [set(rows.entity[part]) for part in (parts.train, parts.validation, parts.test)]
    assert all(not a & b for a, b in itertools.combinations(sides, 2))


def test_identical_rows_are_on_one_side():
    rows = make_rows(days=None, duplicates=True)
    groups = content_groups(rows.x)
    parts = cut(rows, groups=groups)
    assert not set(groups[parts.test]) & set(groups[np.concatenate([parts.train, parts.validation])])


def test_a_coarse_table_is_not_taken_for_duplicates():
    rows = make_rows(days=None)
    rows.x[:] = (rows.x > 1).astype(np.float32)
    parts = cut(rows, groups=content_groups(rows.x))
    assert len(parts.test) / len(rows) == pytest.approx(0.2, abs=0.04)


def test_identical_rows_join_entities_unless_that_chains_everything():
    entity = mix(np.arange(400, dtype=np.uint64) // np.uint64(4))
    content = mix(np.arange(400, dtype=np.uint64))
    content[399] = content[0]
    keys = splitting.units(content, entity)
    assert keys[399] == keys[396] == keys[0] == keys[3]
    assert len(np.unique(keys)) == 99
    assert np.array_equal(splitting.units(content % np.uint64(7), entity), entity)


def test_known_positive_entities_leave_the_test():
    rows = make_rows(entities=400, prevalence=0.02)
    everything, kept = cut(rows), cut(rows, drop_known_entities=True)
    seen = np.concatenate([kept.train, kept.validation])
    known = set(rows.entity[seen[rows.y[seen] == 1]])
    assert not known & set(rows.entity[kept.test])
    assert kept.dropped["known_entities"] == len(everything.test) - len(kept.test) > 0


def test_entities_may_be_kept_on_one_side_of_a_split_by_time():
    rows = make_rows(entities=2500, prevalence=0.1)
    everything, apart = cut(rows), cut(rows, entities_apart=True)
    sides = [set(rows.entity[part]) for part in (apart.train, apart.validation, apart.test)]
    assert not sides[0] & sides[1]
    assert not (sides[0] | sides[1]) & sides[2]
    assert np.array_equal(apart.train, everything.train)
    lost = sum(len(getattr(everything, name)) - len(getattr(apart, name)) for name in ("validation", "test"))
    assert apart.dropped["seen_entities"] == lost > 0
    _, folds = splitting.development(
        rows.take(apart.train), rows.take(apart.validation), config.SplitSettings(entities_apart=True)
    )
    dev = np.concatenate([rows.entity[apart.train], rows.entity[apart.validation]])
    assert folds
    assert all(not set(dev[fold.train]) & set(dev[fold.score]) for fold in folds)
    with pytest.raises(DataError, match=r"split\.entities_apart took"):
        cut(make_rows(entities=3), entities_apart=True)


def test_kinds_that_the_rows_cannot_give_are_refused():
    rows = make_rows(days=None)
    for kind in ("time", "grouped"):
        with pytest.raises(DataError, match=r"Set data\."):
            cut(rows, kind=kind)


def test_forward_windows_only_ever_see_the_labelled_past():
    rows = make_rows(6000)
    parts = cut(rows, delay=timedelta(days=2))
    dev, folds = splitting.development(
        rows.take(parts.train),
        rows.take(parts.validation),
        config.SplitSettings(windows=4),
        label_delay=timedelta(days=2),
    )
    assert len(folds) == 4
    scored = np.concatenate([fold.score for fold in folds])
    assert np.array_equal(np.sort(scored), np.arange(len(parts.train), len(dev)))
    for fold in folds:
        assert dev.time[fold.score].min() - dev.time[fold.train].max() > 2 * DAY
    assert len(folds[-1].train) > len(folds[0].train)


def test_windows_without_positives_are_joined():
    rows = make_rows(1000, prevalence=0)
    rows.y[[10, 500, 900, 999]] = 1
    folds = splitting.forward_folds(rows.time, rows.y, np.arange(1000) >= 600, windows=5)
    assert all(rows.y[fold.score].any() for fold in folds)
    assert sum(len(fold.score) for fold in folds) == 400


@pytest.mark.parametrize("entities", [None, 200])
def test_stratified_folds_partition_the_rows_and_keep_units_whole(entities):
    rows = make_rows(3000, days=None, entities=entities, duplicates=entities is None)
    half = np.arange(3000) < 2000
    dev, folds = splitting.development(rows.take(half), rows.take(~half), config.SplitSettings(folds=4))
    assert np.array_equal(np.sort(np.concatenate([fold.score for fold in folds])), np.arange(len(dev)))
    keys = content_groups(dev.x) if entities is None else dev.entity
    for fold in folds:
        assert not set(keys[fold.train]) & set(keys[fold.score])
        assert dev.y[fold.score].sum() == pytest.approx(dev.positives / 4, abs=4)
        assert len(fold.score) == pytest.approx(len(dev) / 4, rel=0.1)


def test_few_positives_raise_the_repeats_and_lower_the_folds():
    rows = make_rows(400, prevalence=0, days=None)
    rows.y[:3] = 1
    dev, folds = splitting.development(
        rows.take(np.arange(300)), rows.take(np.arange(300, 400)), config.SplitSettings()
    )
    assert {fold.repeat for fold in folds} == {0, 1, 2, 3, 4}
    assert len(folds) == 15
    assert all(dev.y[fold.score].sum() == 1 for fold in folds)


def test_one_positive_cannot_be_cross_fitted():
    y = np.zeros(50, dtype=np.int64)
    y[3] = 1
    with pytest.raises(DataError, match="two are needed"):
        splitting.stratified_folds(y, mix(np.arange(50, dtype=np.uint64)), folds=5)


def test_very_many_rows_take_three_folds_at_most():
    rows = make_rows(110_000, prevalence=0.02, days=None)
    dev, folds = splitting.development(
        rows.take(np.arange(90_000)), rows.take(np.arange(90_000, 110_000)), config.SplitSettings()
    )
    assert dev.positives > 1_000
    assert len(folds) == 3


def test_prequential_folds_walk_over_the_last_half():
    rows = make_rows()
    folds = splitting.prequential(rows, windows=4, label_delay=timedelta(days=1))
    assert len(folds) == 4
    assert sum(len(fold.score) for fold in folds) == pytest.approx(len(rows) / 2, rel=0.05)
    with pytest.raises(DataError, match=r"data\.time"):
        splitting.prequential(make_rows(days=None), windows=2)


def test_hashes_are_written_in_stone():
    """A change here would move rows of existing projects to another side."""
    import pandas as pd

    assert [f"{value:016x}" for value in mix(np.array([0, 1], dtype=np.uint64))] == [
        "e220a8397b1dcdaf",
        "910a2dec89025cc1",
    ]
    assert text_hash(pd.Series(["a"])).tolist() == [text_hash(pd.Series(["b", "a"]))[1]]
    assert text_hash(pd.Series([7.0, None]))[0] == text_hash(pd.Series(["7"]))[0]


def whole(rows, names):
    total = SetHash()
    total.add(rows[:30])
    total.add(rows[30:])
    return total.hex(names)


def test_equal_numbers_hash_alike_and_order_does_not_change_the_set():
    a = number_hash(np.array([0.0, -0.0, np.nan, -np.nan], dtype=np.float32))
    assert a[0] == a[1]
    assert a[2] == a[3] != a[0]
    rows = mix(np.arange(100, dtype=np.uint64))
    assert whole(rows, ["a", "b"]) == whole(rows[::-1], ["b", "a"]) != whole(rows[1:], ["a", "b"])
    assert 0 <= unit(rows).min() <= unit(rows).max() < 1
