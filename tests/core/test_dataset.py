"""Rows that are put together without a copy where they can be, and with one where they cannot."""

import numpy as np
import pytest

from rareclass.core.dataset import Feature, Rows, Schema, concatenate
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
