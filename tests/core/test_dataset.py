"""Rows that are put together without a copy where they can be, and with one where they cannot."""

from dataclasses import replace

import numpy as np
import pytest

from rareclass.core.dataset import Feature, Rows, Schema, concatenate
from rareclass.core.training import sampling_factor
from rareclass.errors import DataError

SCHEMA = Schema((Feature("a"), Feature("b")))


def whole(n: int = 12) -> Rows:
    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    return Rows(SCHEMA, x, np.arange(n) % 2, np.arange(n, dtype=np.uint64), time=np.arange(n).astype("datetime64[us]"))


def same(one: Rows, two: Rows) -> None:
    for name in ("x", "y", "row_id", "time"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_the_parts_of_a_split_are_put_together_without_a_copy():
    rows = whole()
    parts = [rows.take(slice(0, 5)), rows.take(slice(5, 5)), rows.take(slice(5, 12))]
    found = concatenate(parts)
    same(found, rows)
    assert np.shares_memory(found.x, rows.x)
    same(concatenate(parts[2:]), parts[2])


@pytest.mark.parametrize(
    "cuts", [[slice(5, 12), slice(0, 5)], [slice(0, 5), slice(6, 12)], [slice(0, 12, 2), slice(1, 12, 2)]]
)
def test_rows_that_do_not_follow_each_other_are_copied(cuts):
    rows = whole()
    found = concatenate([rows.take(cut) for cut in cuts])
    same(found, rows.take(np.concatenate([np.arange(12)[cut] for cut in cuts])))
    assert not np.shares_memory(found.x, rows.x)


def test_rows_of_different_tables_are_copied_and_of_different_schemas_refused():
    one, two = whole(), whole(4)
    found = concatenate([one.take(slice(0, 3)), two])
    assert len(found) == 7
    np.testing.assert_array_equal(found.x[3:], two.x)
    with pytest.raises(DataError, match="different schemas"):
        concatenate([one, Rows(Schema((Feature("c"),)), two.x[:, :1], two.y, two.row_id)])


def test_a_mask_that_leaves_nothing_out_copies_nothing():
    rows = whole()
    assert rows.take(np.ones(12, dtype=bool)) is rows
    assert len(rows.take(np.arange(12) < 3)) == 3


def test_rows_that_weigh_and_rows_that_do_not_are_stacked_with_their_weights():
    plain, weighed = whole(3), replace(whole(2), weight=np.array([2.0, 40.0]), most=np.full(2, 5.0))
    found = concatenate([plain, weighed])
    np.testing.assert_array_equal(found.weight, [1, 1, 1, 2, 40])
    np.testing.assert_array_equal(found.most, [np.inf, np.inf, np.inf, 5, 5])
    assert concatenate([plain, plain]).weight is None


def test_no_row_enters_a_fit_with_more_than_it_may_and_the_prior_is_corrected_for_it():
    rows = replace(whole(4), weight=np.array([40.0, 1.0, 20.0, 2.0]), most=np.full(4, 5.0))
    fit = rows.as_drawn()
    np.testing.assert_array_equal(fit.weight, [5, 1, 5, 2])
    assert fit.most is None
    assert sampling_factor(rows, fit) == (10 / 60) / (3 / 3)
    np.testing.assert_array_equal(rows.weight, [40, 1, 20, 2])
    half = replace(rows, drawn=np.full(4, 0.5))
    np.testing.assert_array_equal(half.as_drawn().weight, [5, 0.5, 5, 1])
