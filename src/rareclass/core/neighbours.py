"""Nearest neighbours in mixed, incomplete rows, and exact cleaning (ENN, Tomek links) that skips what cannot change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rareclass.core.rows import BoolArray, FloatArray, FloatMatrix, IntArray, Schema
from rareclass.errors import TooLarge

MAX_PAIRS = 3e11
_LEVELS = 16
_CELL = 512
_CELL_CAP = 2048
_ROUNDS = 8
_STATISTICS_ROWS = 100_000


def distance_space(x: FloatMatrix, schema: Schema, *, scale: bool = True) -> FloatMatrix:
    """Return the (n, m) complete float32 matrix in which neighbours are looked for; ``x`` itself is not changed.

    Numeric columns: missing becomes the median, then each is divided by its standard deviation (``scale=False``: left
    in its own unit). Categorical columns become one indicator per level of height 1/sqrt(2), so that two different
    levels are as far apart as one standard deviation, as in SMOTENC; missing is a level of its own, and levels beyond
    the 16 most frequent count as one. Medians and deviations are of at most 100,000 rows, evenly spaced.
    Source: Chawla et al., SMOTE, JAIR 2002, section 6.1.
    """
    sample = x[:: max(1, -(-len(x) // _STATISTICS_ROWS))]
    parts = []
    numeric = np.flatnonzero(~schema.categorical)
    if len(numeric):
        parts.append(_numeric_space(x[:, numeric], sample[:, numeric], scale))
    parts += [_levels_space(x[:, column]) for column in np.flatnonzero(schema.categorical)]
    return np.hstack(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0])


def _numeric_space(x: FloatMatrix, sample: FloatMatrix, scale: bool) -> FloatMatrix:
    space = np.array(x, dtype=np.float32, order="C")
    for column in range(x.shape[1]):
        known = sample[:, column]
        known = known[~np.isnan(known)]
        values = space[:, column]
        values[np.isnan(values)] = np.median(known) if len(known) else 0.0
        if scale and len(known):
            deviation = float(known.astype(np.float64).std())
            if deviation > 0:
                values -= np.float32(known.astype(np.float64).mean())
                values /= np.float32(deviation)
    return space


def _levels_space(codes: NDArray[np.float32]) -> FloatMatrix:
    position = np.where(np.isnan(codes), -1, codes).astype(np.int64) + 1
    counts = np.bincount(position)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    level = np.minimum(rank, _LEVELS - 1)[position]
    space = np.zeros((len(codes), int(level.max(initial=0)) + 1), dtype=np.float32)
    space[np.arange(len(codes)), level] = np.sqrt(0.5)
    return space


def nearest(reference: FloatMatrix, queries: FloatMatrix, k: int, *, threads: int = 1) -> tuple[FloatArray, IntArray]:
    """Return distances and positions, both (n_queries, k), of the k nearest reference rows, nearest first.

    k is cut to the number of reference rows. A query that is itself a reference row finds itself, at distance 0.
    """
    from sklearn.neighbors import NearestNeighbors
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=threads):
        search = NearestNeighbors(n_neighbors=min(k, len(reference)), n_jobs=threads).fit(reference)
        distance, index = search.kneighbors(queries)
    return distance.astype(np.float64), index.astype(np.int64)


def others_nearest(space: FloatMatrix, asked: IntArray, k: int, *, threads: int = 1) -> tuple[FloatArray, IntArray]:
    """Like ``nearest`` for rows of ``space`` itself, each without itself (also where it has duplicates)."""
    k = min(k, len(space) - 1)
    if k <= 0 or not len(asked):
        return np.empty((len(asked), 0)), np.empty((len(asked), 0), dtype=np.int64)
    distance, index = nearest(space, space[asked], k + 1, threads=threads)
    keep = index != asked[:, None]
    keep[keep.all(axis=1), -1] = False
    return distance[keep].reshape(len(asked), k), index[keep].reshape(len(asked), k)


def surrounded(
    space: FloatMatrix, y: IntArray, target: int, *, k: int = 3, seed: int = 0, threads: int = 1
) -> IntArray:
    """Return the positions of rows of class ``target`` that have a row of the other class among their k nearest.

    This is what Edited Nearest Neighbours (kind_sel="all") removes. Exact: a row is settled without a full search only
    when k rows of its own class are seen to be nearer than the nearest row of the other class; seeing them takes a few
    random cells of about 512 rows. Only the rest is searched among all rows.
    Raises TooLarge when the distances between the classes alone would be more than 3e11.
    Source: Wilson, IEEE Transactions on Systems, Man and Cybernetics, 1972.
    """
    own, other = np.flatnonzero(y == target), np.flatnonzero(y != target)
    if not len(own) or not len(other):
        return np.empty(0, dtype=np.int64)
    _refuse_too_many(len(own), len(other))
    asked = own
    if len(own) > 4 * _CELL:
        radius = nearest(space[other], space[own], 1, threads=threads)[0][:, 0]
        asked = own[_undecided(space[own], radius, k, seed=seed, threads=threads)]
    index = others_nearest(space, asked, k, threads=threads)[1]
    found: IntArray = asked[(y[index] != target).any(axis=1)]
    return found


def _refuse_too_many(own: int, other: int) -> None:
    if own * other > MAX_PAIRS:
        raise TooLarge(
            f"neighbour cleaning of {own + other:,} rows needs {own * other:.0e} distances, more than {MAX_PAIRS:.0e}. "
            "Put a random_under step before it, or a higher ratio (or fewer rows) on the step before"
        )


def _undecided(own: FloatMatrix, radius: FloatArray, k: int, *, seed: int, threads: int) -> BoolArray:
    """(n,) False where at least k other rows of ``own`` are certainly nearer than ``radius``."""
    rng = np.random.default_rng(seed)
    centred = own - own.mean(axis=0)
    # Norms a little too long make every computed distance an upper bound of the true one, whatever float32 rounds.
    slack = 1 + (2 * own.shape[1] + 16) * 2.0**-23
    norm = (np.einsum("ij,ij->i", centred, centred, dtype=np.float64) * slack).astype(np.float32)
    bound = (np.square(radius) * (1 - 1e-6)).astype(np.float32)
    undecided = np.ones(len(own), dtype=bool)
    seen_nearer = np.zeros(len(own), dtype=np.int64)
    for _ in range(_ROUNDS):
        before = int(undecided.sum())
        cells = _random_cells(centred, norm, rng, threads)
        settle = partial(_count_nearer, centred, norm, bound, undecided)
        with ThreadPoolExecutor(threads) as pool:
            for asked, count in pool.map(settle, cells):
                seen_nearer[asked] = np.maximum(seen_nearer[asked], count)
        undecided &= seen_nearer < k
        if undecided.sum() > 0.9 * before:
            break
    return undecided


def _random_cells(
    centred: FloatMatrix, norm: NDArray[np.float32], rng: np.random.Generator, threads: int
) -> list[IntArray]:
    """Cut rows into cells around random rows, each row with its nearest centre; members in random order."""
    order = rng.permutation(len(centred))
    pivots = order[: max(2, len(centred) // _CELL)]
    centres, centre_norm = centred[pivots].T.copy(), norm[pivots] / 2

    def assign(rows: IntArray) -> IntArray:
        return np.asarray(np.argmin(centre_norm - centred[rows] @ centres, axis=1))

    with ThreadPoolExecutor(threads) as pool:
        cell = np.concatenate(list(pool.map(assign, np.array_split(order, max(1, len(order) // 8192)))))
    by_cell = order[np.argsort(cell, kind="stable")]
    return np.split(by_cell, np.cumsum(np.bincount(cell, minlength=len(pivots)))[:-1])


def _count_nearer(
    centred: FloatMatrix, norm: NDArray[np.float32], bound: NDArray[np.float32], undecided: BoolArray, cell: IntArray
) -> tuple[IntArray, IntArray]:
    """Count, for each undecided row of a cell, the (at most 2048) cell members certainly within its bound."""
    places = np.flatnonzero(undecided[cell])
    asked, members = cell[places], cell[:_CELL_CAP]
    counts = np.empty(len(asked), dtype=np.int64)
    for start in range(0, len(asked), _CELL_CAP):
        part = slice(start, start + _CELL_CAP)
        square = centred[asked[part]] @ centred[members].T
        square *= -2
        square += norm[members]
        near = square < (bound[asked[part]] - norm[asked[part]])[:, None]
        inside = places[part] < len(members)
        near[np.flatnonzero(inside), places[part][inside]] = False
        counts[part] = near.sum(axis=1)
    return asked, counts


def tomek_links(space: FloatMatrix, y: IntArray, *, threads: int = 1) -> tuple[IntArray, IntArray]:
    """Return the positions (of class 0, of class 1) of the pairs that are each other's nearest row.

    Exact: only rows of the smaller class, and those of the other class that are nearest to one, are searched.
    Raises TooLarge when that is more than 3e11 distances. Source: Tomek, IEEE Trans. Systems, Man, Cybernetics, 1976.
    """
    small = int(2 * y.sum() <= len(y))
    asked = np.flatnonzero(y == small)
    if not 0 < len(asked) < len(y):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    _refuse_too_many(len(asked), len(y) - len(asked))
    partner = others_nearest(space, asked, 1, threads=threads)[1][:, 0]
    asked, partner = asked[y[partner] != small], partner[y[partner] != small]
    back = others_nearest(space, partner, 1, threads=threads)[1].reshape(-1)
    small_side, large_side = asked[back == asked], partner[back == asked]
    return (large_side, small_side) if small else (small_side, large_side)
