"""Rows that were drawn from a table larger than memory, by class: what they say of the table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rareclass.core.dataset import BoolArray, Rows
from rareclass.core.hashing import unit

_SALT = 86_028_121


def natural_mask(rows: Rows) -> BoolArray:
    """(n,) True for a part of the rows in which the classes are as frequent as in the table they were drawn from, by
    hash.
    """
    if rows.drawn is None or not len(rows):
        return np.ones(len(rows), dtype=bool)
    return np.asarray(unit(rows.row_id, _SALT) < rows.drawn.min() / rows.drawn, dtype=bool)


def natural_sample(rows: Rows) -> Rows:
    """Return the rows of ``natural_mask``; these rows themselves where they are all there are. For what knows no
    weights: quantiles, medians, neighbours."""
    return rows if rows.drawn is None else rows.take(natural_mask(rows))


def half_of_negatives(rows: Rows) -> Rows:
    """Return all positives and half of the negatives, taken by hash, as if the table had been drawn from at half the
    rate.
    """
    drawn = np.ones(len(rows)) if rows.drawn is None else rows.drawn
    stays = (rows.y == 1) | (unit(rows.row_id, _SALT + 1) < 0.5)
    halved = np.where(rows.y == 1, drawn, drawn / 2)
    weight = np.ones(len(rows)) if rows.weight is None else rows.weight
    return replace(rows, drawn=halved, weight=weight * drawn / halved).take(stays)
