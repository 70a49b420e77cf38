"""Nearest neighbours in mixed, incomplete rows, and exact cleaning (ENN, Tomek links) that skips what cannot change."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rareclass.core.dataset import FloatArray, FloatMatrix, IntArray, Schema
from rareclass.core.thread_limits import at_most
from rareclass.errors import TooLargeError

MAX_PAIRS = 3e11
"""Distances between the two classes beyond which cleaning is refused."""
DIRECT_PAIRS = 1e7
"""Distances up to which every row is simply searched among all."""

_LEVELS = 16
_CELL = 512
"""Rows of a cell: k neighbours are nearly always among so many, and one product of a cell stays in the cache."""
_BLOCK = 4096
"""Rows of one product of a scan."""
_ROUNDS = 8
"""Rounds of random cells before the rest is scanned; they end earlier when a round decides less than three tenths."""
_FLOAT32_SAFE = 1e15
"""Values above which a square could overflow float32 (3.4e38), with room for the sum over columns."""
_STATISTICS_ROWS = 100_000
_FEW = 2_000
"""Queries up to which scikit-learn is not worth its import."""
_VALUES = 1 << 22
"""Distances held at once: 16 MiB of float32."""
_TREE_COLUMNS, _TREE_PAIRS = 6, 1e8
"""Columns and pairs above which a tree looks at nearly every row, five times slower than all distances at once."""


def distance_space(x: FloatMatrix, schema: Schema, *, scale: bool = True) -> FloatMatrix:
    """Return the (n, m) complete float32 matrix in which neighbours are looked for; ``x`` itself is not changed.

    Numeric columns: missing (and infinite) becomes the median, then each is divided by its standard deviation
    (``scale=False``: left in its own unit). Categorical columns become one indicator per level of height 1/sqrt(2), so
    that two different levels are as far apart as one standard deviation, as in SMOTENC; missing is a level of its own,
    and levels beyond the 16 most frequent count as one. Medians and deviations are of at most 100,000 rows, evenly
    spaced.
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
        finite = sample[:, column]
        finite = finite[np.isfinite(finite)]
        values = space[:, column]
        values[~np.isfinite(values)] = np.median(finite) if len(finite) else 0.0
        if scale and len(finite):
            deviation = float(finite.astype(np.float64).std())
            if deviation > 0:
                values -= np.float32(finite.astype(np.float64).mean())
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
    k = min(k, len(reference))
    with at_most(threads):
        if len(queries) <= _FEW and len(reference) > _CELL and np.abs(reference).max() < _FLOAT32_SAFE:
            return _nearest_to_few(reference, queries, k)
        from sklearn.neighbors import NearestNeighbors

        crowded = reference.shape[1] > _TREE_COLUMNS and len(queries) * len(reference) > _TREE_PAIRS
        search = NearestNeighbors(n_neighbors=k, n_jobs=threads, algorithm="brute" if crowded else "auto").fit(
            reference
        )
        distance, index = search.kneighbors(queries)
    return distance.astype(np.float64), index.astype(np.int64)


def _nearest_to_few(reference: FloatMatrix, queries: FloatMatrix, k: int) -> tuple[FloatArray, IntArray]:
    """Like ``nearest``, exact, without the second and a half that importing scikit-learn takes.

    In float32 every block of rows yields its nearest; the k-th best of those bounds how far the k nearest can be, and
    what rounding may have moved across that bound is kept. The few rows within it are compared in float64.
    """
    centre, slack = reference.mean(axis=0), _slack(reference.shape[1])
    marks, eyes = reference - centre, queries - centre
    norm = np.einsum("ij,ij->i", marks, marks)
    top = norm.max()
    marks = np.vstack([marks, np.zeros((-len(marks) % _CELL, marks.shape[1]), dtype=np.float32)])  # to whole blocks
    norm = np.concatenate([norm, np.full(len(marks) - len(norm), np.inf, dtype=np.float32)])
    distance, index = np.empty((len(queries), k)), np.empty((len(queries), k), dtype=np.int64)
    blocks = len(marks) // _CELL
    step = max(1, _VALUES // len(marks))
    for start in range(0, len(eyes), step):
        asked = eyes[start : start + step]
        value = (-2 * asked) @ marks.T
        value += norm  # |y|^2 - 2 x.y: the squared distance less |x|^2, which is the same for every y
        best = value.reshape(len(value), blocks, _CELL).min(axis=2)
        lost = slack * (top + np.einsum("ij,ij->i", asked, asked))
        bound = (
            np.partition(best, k - 1, axis=1)[:, k - 1]
            if k <= blocks
            else np.full(len(value), np.finfo(np.float32).max)
        )
        # The k-th best may be ``lost`` too small, and a row within it ``lost`` too large: twice that keeps them all.
        for row, near in enumerate(value <= (bound + 2 * lost)[:, None]):
            candidates = np.flatnonzero(near)
            exact = np.square(reference[candidates].astype(np.float64) - queries[start + row]).sum(axis=1)
            order = np.argsort(exact, kind="stable")[:k]
            distance[start + row], index[start + row] = np.sqrt(exact[order]), candidates[order]
    return distance, index


def kneighbors_excluding_self(
    space: FloatMatrix, asked: IntArray, k: int, *, threads: int = 1
) -> tuple[FloatArray, IntArray]:
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

    This is what Edited Nearest Neighbours (kind_sel="all") removes. Exact: a row is surrounded when fewer than k rows
    of its own class are nearer than the nearest of the other class, so most rows are decided as soon as k such rows are
    seen: in a few random cells of about 512 rows, or early in a scan. What rounding leaves open is searched in full.
    Raises TooLargeError when the distances between the classes alone would be more than 3e11.
    Source: Wilson, IEEE Transactions on Systems, Man and Cybernetics, 1972.
    """
    own, other = np.flatnonzero(y == target), np.flatnonzero(y != target)
    if not len(own) or not len(other):
        return np.empty(0, dtype=np.int64)
    _refuse_too_many(len(own), len(other))
    sure, asked = np.empty(0, dtype=np.int64), own
    if len(own) * len(y) > DIRECT_PAIRS and np.abs(space).max() < _FLOAT32_SAFE:
        sure, open_ = _lonely(space[own], space[other], k, seed=seed, threads=threads)
        sure, asked = own[sure], own[open_]
    index = kneighbors_excluding_self(space, asked, k, threads=threads)[1]
    return np.sort(np.concatenate([sure, asked[(y[index] != target).any(axis=1)]]))


def _refuse_too_many(own: int, other: int) -> None:
    if own * other > MAX_PAIRS:
        raise TooLargeError(
            f"neighbour cleaning of {own + other:,} rows needs {own * other:.0e} distances, more than {MAX_PAIRS:.0e}. "
            "Put a random_under step before it, or a higher ratio (or fewer rows) on the step before"
        )


def _lonely(own: FloatMatrix, other: FloatMatrix, k: int, *, seed: int, threads: int) -> tuple[IntArray, IntArray]:
    """Return rows of ``own`` with certainly fewer than k of their own nearer than any other, and those left open."""
    rng = np.random.default_rng(seed)
    with at_most(1, "blas"), ThreadPoolExecutor(threads) as pool:
        low, high = _square_radius(own, other, pool)
        # With the radius too short, whoever sees k rows of its own surely does, and is not lonely. With it too long,
        # whoever still does not see them surely does not, and is. What lies between the two is searched in full.
        certain = _Sight(own, low, k, sign=1)
        waiting = np.arange(len(own))
        for _ in range(_ROUNDS):
            before = len(waiting)
            waiting = certain.look_in_cells(waiting, rng, pool)
            if len(waiting) > 0.7 * before:
                break
        waiting = certain.scan(waiting, rng, pool)
        open_ = np.setdiff1d(waiting, _Sight(own, high, k, sign=-1).scan(waiting, rng, pool), assume_unique=True)
    return np.setdiff1d(waiting, open_, assume_unique=True), open_


def _slack(features: int) -> float:
    """How much of two norms at most, with room, float32 loses in their inner product."""
    # A product of m terms in float32 is off by at most m * u of the terms' absolute sum (u = 2^-24, half a unit of the
    # last place), and that sum is at most half of the two squared norms together. Norms and the last product round as
    # well: 2 m + 16 times 2^-23 holds all of it, and blocked sums, as BLAS makes them, lose less.
    return (2 * features + 16) * 2.0**-23


def _square_radius(own: FloatMatrix, other: FloatMatrix, pool: Executor) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bounds, (n_own,) each, of the squared distance to the nearest row of ``other``.

    Upper: the distance of the row found nearest in float32. Lower: what float32 found, less all it may have lost.
    """
    centre, slack = other.mean(axis=0), _slack(own.shape[1])
    eyes, marks = own - centre, other - centre
    norm = np.einsum("ij,ij->i", marks, marks, dtype=np.float64)
    # The largest x.y - |y|^2 / 2 is the nearest y. Norms are taken too short, so that the distance is never too long.
    marks = np.hstack([marks, (-norm[:, None] * (1 - slack) / 2).astype(np.float32)])

    def look(rows: IntArray) -> tuple[FloatArray, FloatArray]:
        asked = np.hstack([eyes[rows], np.ones((len(rows), 1), dtype=np.float32)])
        best, nearest_other = np.full(len(rows), -np.inf, dtype=np.float32), np.zeros(len(rows), dtype=np.int64)
        for start in range(0, len(marks), _BLOCK):
            value = asked @ marks[start : start + _BLOCK].T
            place = value.argmax(axis=1)
            value = value[np.arange(len(rows)), place]
            better = value > best
            best[better], nearest_other[better] = value[better], place[better] + start
        own_norm = np.einsum("ij,ij->i", asked[:, :-1], asked[:, :-1], dtype=np.float64)
        low = own_norm * (1 - slack) - 2 * best.astype(np.float64)
        return np.maximum(low, 0), np.square(own[rows].astype(np.float64) - other[nearest_other]).sum(axis=1)

    parts = list(pool.map(look, np.array_split(np.arange(len(own)), 1 + len(own) // 1024)))
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])


class _Sight:
    """Rows of one class with a squared radius each: which rows see k others of them within their radius?

    One test is one inner product of [x, 1, (r^2 - |x|^2) / 2] and [y, -|y|^2 / 2, 1], positive when y is within x's
    radius. With ``sign=1`` norms are taken too long and radii too short by more than float32 can round, so that what is
    seen is certain; ``sign=-1`` errs to the other side, so that what is not seen is certain.
    """

    def __init__(self, own: FloatMatrix, square_radius: FloatArray, k: int, *, sign: int) -> None:
        slack = sign * _slack(own.shape[1])
        centred = own - own.mean(axis=0)
        norm = np.einsum("ij,ij->i", centred, centred, dtype=np.float64)
        reach = (square_radius * (1 - slack) - norm * (1 + slack)) / 2
        ones = np.ones((len(own), 1), dtype=np.float32)
        half = norm[:, None] * (1 + slack) / 2
        self.k = k
        self.eyes = np.hstack([centred, ones, reach[:, None].astype(np.float32)])
        self.marks = np.hstack([centred, -half.astype(np.float32), ones])

    def look_in_cells(self, waiting: IntArray, rng: np.random.Generator, pool: Executor) -> IntArray:
        """Return the waiting rows that do not see k others in the cell, around random rows, that they are in."""
        order = rng.permutation(len(self.marks))
        centres = self.marks[order[: max(2, len(order) // _CELL)]].T.copy()
        ask = np.zeros(len(order), dtype=bool)
        ask[waiting] = True

        def assign(rows: IntArray) -> IntArray:
            eyes = self.eyes[rows]
            eyes[:, -1] = 0
            return np.asarray(np.argmax(eyes @ centres, axis=1))

        cell = np.concatenate(list(pool.map(assign, np.array_split(order, 1 + len(order) // _BLOCK))))
        by_cell = order[np.argsort(cell, kind="stable")]
        cells = np.split(by_cell, np.cumsum(np.bincount(cell, minlength=centres.shape[1]))[:-1])

        def look(members: IntArray) -> IntArray:
            place = np.flatnonzero(ask[members])
            seen = self._count(members[place], self.marks[members[:_BLOCK]], place)
            return members[place[seen < self.k]]

        return np.concatenate(list(pool.map(look, cells)))

    def scan(self, waiting: IntArray, rng: np.random.Generator, pool: Executor) -> IntArray:
        """Return the waiting rows that do not see k others among all; a row is dropped as soon as it does."""
        order = rng.permutation(len(self.marks))
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        seen = np.zeros(len(order), dtype=np.int64)
        for start in range(0, len(order), _BLOCK):
            marks = self.marks[order[start : start + _BLOCK]]

            def look(rows: IntArray, marks: FloatMatrix = marks, start: int = start) -> IntArray:
                return self._count(rows, marks, place[rows] - start)

            parts = np.array_split(waiting, 1 + len(waiting) // 1024)
            seen[waiting] += np.concatenate(list(pool.map(look, parts)))
            waiting = waiting[seen[waiting] < self.k]
        return waiting

    def _count(self, rows: IntArray, marks: FloatMatrix, place: IntArray) -> IntArray:
        """(n_rows,) how many of ``marks`` each sees; ``place``: its own among them, or out of their range."""
        near = self.eyes[rows] @ marks.T > 0
        inside = np.flatnonzero((place >= 0) & (place < len(marks)))
        near[inside, place[inside]] = False
        return np.bincount(np.flatnonzero(near) // max(1, near.shape[1]), minlength=len(rows))


def tomek_links(space: FloatMatrix, y: IntArray, *, threads: int = 1) -> tuple[IntArray, IntArray]:
    """Return the positions (of class 0, of class 1) of the pairs that are each other's nearest row.

    Exact: only rows of the smaller class, and those of the other class that are nearest to one, are searched.
    Raises TooLargeError when that is more than 3e11 distances. Source: Tomek, IEEE Trans. Systems, Man, Cybernetics,
    1976.
    """
    small = int(2 * y.sum() <= len(y))
    asked = np.flatnonzero(y == small)
    if not 0 < len(asked) < len(y):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    _refuse_too_many(len(asked), len(y) - len(asked))
    partner = kneighbors_excluding_self(space, asked, 1, threads=threads)[1][:, 0]
    asked, partner = asked[y[partner] != small], partner[y[partner] != small]
    back = kneighbors_excluding_self(space, partner, 1, threads=threads)[1].reshape(-1)
    small_side, large_side = asked[back == asked], partner[back == asked]
    return (large_side, small_side) if small else (small_side, large_side)
