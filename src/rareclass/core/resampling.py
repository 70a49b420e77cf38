"""Change the share of the classes in training rows: one table of resamplers, applied as a chain, deterministic by seed.

Every resampler takes labelled rows and one step of a chain and returns labelled rows. What they have in common:

- Distances are taken in ``neighbours.distance_space``: medians for missing values, standard deviations as units
  (``params: {scale: false}`` keeps the columns' own), indicators for categories. Rows that are kept are never changed:
  a missing value stays missing.
- A synthetic row lies between a real row of the rare class (its base) and one of its neighbours. Where the base misses
  a value it misses it too; where only the neighbour does it takes the base's. Columns of whole numbers stay whole. A
  category is the most frequent one among the base and its neighbours. Time, entity, amount, weight and fold are
  the base's; row_id is 0.
- ``ratio`` is majority rows per minority row after the step (default 1), ``rows`` the number of rows of the class that
  changes. A step that has nothing to do does nothing. On a cleaning step (tomek, enn) they are a floor: so many rows of
  the majority stay at least.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rareclass.config import ResampleStep
from rareclass.core.dataset import FloatArray, FloatMatrix, IntArray, Rows, concatenate
from rareclass.core.neighbours import distance_space, kneighbors_excluding_self, nearest, surrounded, tomek_links
from rareclass.errors import ConfigError, DataError, NoPositivesError, unknown
from rareclass.errors import nearest as nearest_name

_SVM_ROWS = 10_000
_KMEANS_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Resampled:
    """Rows after a chain.

    negative_sampling_rate : share of negatives kept, relative to the share of positives kept (over 1: not possible by
        dropping negatives alone); the factor b of the prior correction p = b*ps / (b*ps - ps + 1). 1 = classes as they
        were; NaN when rows were not changed at random, so that only a calibrator can learn the shift.
    steps : (name, positives, negatives) before the chain ("start") and after each step
    """

    rows: Rows
    negative_sampling_rate: float
    steps: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class ResamplingTask:
    """What one step may use besides the rows."""

    ratio: float | None
    count: int | None
    seed: int
    threads: int

    @property
    def rng(self) -> np.random.Generator:
        """A generator that begins at the task's seed, each time anew."""
        return np.random.default_rng(self.seed)

    def minority(self, rows: Rows) -> int:
        """Rows of the rare class wanted after an over-sampling step; never fewer than there are."""
        negatives = len(rows) - rows.positives
        wanted = self.count if self.count is not None else round(negatives / (self.ratio or 1.0))
        return max(wanted, rows.positives)

    def majority(self, rows: Rows) -> int:
        """Rows of the other class wanted after an under-sampling step; at least 1, never more than there are."""
        wanted = self.count if self.count is not None else round(rows.positives * (self.ratio or 1.0))
        return min(max(wanted, 1), len(rows) - rows.positives)

    def floor(self, rows: Rows) -> int:
        """Rows of the other class that a cleaning step must leave."""
        return 0 if self.ratio is None and self.count is None else self.majority(rows)


def resample(rows: Rows, chain: Sequence[ResampleStep], *, seed: int, threads: int = 1) -> Resampled:
    """Apply a chain of resampling steps to training rows.

    The result depends on rows, chain and seed only. Kept rows keep their order; new ones come after them.
    Raises NoPositivesError or DataError when a class is empty, ConfigError for an unknown resampler or setting,
    TooLargeError when a step is out of its bound.
    """
    check_chain(chain)
    positives = rows.positives
    if any(step.name != "none" for step in chain) and positives == 0:
        raise NoPositivesError(
            "resampling needs rows of the rare class and there are none. Check data.target and data.positive"
        )
    if any(step.name != "none" for step in chain) and positives == len(rows):
        raise DataError("resampling needs rows of both classes and all are of the rare one. Check data.positive")
    rate, steps = 1.0, [("start", positives, len(rows) - positives)]
    for position, step in enumerate(chain):
        before = rows
        task = ResamplingTask(
            step.ratio, step.rows, int(np.random.SeedSequence([seed, position]).generate_state(1)[0]), threads
        )
        rows = RESAMPLERS[step.name](rows, task, **step.params)
        steps.append((step.name, rows.positives, len(rows) - rows.positives))
        if rows is not before:
            rate *= _factor(before, rows) if step.name in RANDOM else math.nan
    return Resampled(rows, rate, tuple(steps))


def check_chain(chain: Sequence[ResampleStep]) -> None:
    """Raise ConfigError with one line when a step names an unknown resampler or setting, or a value of a wrong kind."""
    for step in chain:
        if step.name not in RESAMPLERS:
            raise unknown("resampler", step.name, RESAMPLERS, "resample[].name")
        if step.ratio is not None and step.rows is not None:
            raise ConfigError(f"resampler '{step.name}' has both ratio and rows. Keep one of them")
        _check_params(step.name, step.params)


def _check_params(name: str, params: Mapping[str, Any]) -> None:
    defaults = {
        key: p.default for key, p in inspect.signature(RESAMPLERS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    for key, value in params.items():
        if key not in defaults:
            allowed = f"It knows: {', '.join(sorted(defaults))}" if defaults else "It has no settings; take params out"
            raise ConfigError(f"unknown setting '{key}' of resampler '{name}'.{nearest_name(key, defaults)} {allowed}")
        kind = type(defaults[key])
        fits = (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))) or (
            kind is float and type(value) is int
        )
        if not fits or (kind is not bool and value <= 0):
            wanted = {bool: "true or false", int: "a whole number above 0", float: "a number above 0"}[kind]
            raise ConfigError(
                f"setting '{key}' of resampler '{name}' must be {wanted}, like {defaults[key]}; it is {value!r}"
            )


def _factor(before: Rows, after: Rows) -> float:
    negatives = (len(after) - after.positives) / (len(before) - before.positives)
    return negatives / (after.positives / before.positives)


# --- random ---------------------------------------------------------------------------------------------------------


def keep_rows(rows: Rows, task: ResamplingTask) -> Rows:
    """Leave the rows as they are."""
    return rows


def random_over(rows: Rows, task: ResamplingTask) -> Rows:
    """Repeat rows of the rare class: every one equally often, the remainder at random without replacement."""
    index = np.flatnonzero(rows.y == 1)
    more = task.minority(rows) - len(index)
    if more == 0:
        return rows
    return rows.take(np.concatenate([np.arange(len(rows)), _equally_often(index, more, task.rng)]))


def _equally_often(index: IntArray, more: int, rng: np.random.Generator) -> IntArray:
    """Return so many members of ``index``, all equally often, the remainder at random without replacement."""
    times, rest = divmod(more, len(index))
    return np.concatenate([np.tile(index, times), np.sort(rng.choice(index, rest, replace=False))])


def random_under(rows: Rows, task: ResamplingTask) -> Rows:
    """Drop rows of the majority at random."""
    index = np.flatnonzero(rows.y == 0)
    wanted = task.majority(rows)
    if wanted == len(index):
        return rows
    stays = rows.y == 1
    stays[task.rng.choice(index, wanted, replace=False)] = True
    return rows.take(np.flatnonzero(stays))


# --- synthetic rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pairs:
    """Between which rows the synthetic ones lie: base and neighbour, positions among all rows, and how far (0 to 1)."""

    base: IntArray
    neighbour: IntArray
    gap: FloatArray


def smote(rows: Rows, task: ResamplingTask, *, k_neighbors: int = 5, scale: bool = True) -> Rows:
    """Synthetic rows between rows of the rare class and their k nearest of it; bases equally likely.

    Source: Chawla et al., JAIR 2002. Categories by the most frequent of the neighbours: SMOTENC of the same paper.
    """
    return _oversample(rows, task, _uniform, k_neighbors, scale)


def borderline_smote(
    rows: Rows, task: ResamplingTask, *, k_neighbors: int = 5, m_neighbors: int = 10, scale: bool = True
) -> Rows:
    """SMOTE from bases in danger only: at least half, but not all, of their m nearest rows are of the majority.

    All bases are used when none is in danger. Source: Han et al., ICIC 2005 (borderline-1).
    """

    def choose(space: FloatMatrix, index: IntArray, rows: Rows, task: ResamplingTask) -> FloatArray:
        share = _majority_share(space, index, rows, m_neighbors, task.threads)
        return ((share >= 0.5) & (share < 1)).astype(np.float64)

    return _oversample(rows, task, choose, k_neighbors, scale)


def adasyn(rows: Rows, task: ResamplingTask, *, k_neighbors: int = 5, scale: bool = True) -> Rows:
    """SMOTE with bases as likely as their share of majority rows among the k nearest.

    All bases are equally likely when none has any. Source: He et al., IJCNN 2008.
    """

    def choose(space: FloatMatrix, index: IntArray, rows: Rows, task: ResamplingTask) -> FloatArray:
        return _majority_share(space, index, rows, k_neighbors, task.threads)

    return _oversample(rows, task, choose, k_neighbors, scale)


def svm_smote(
    rows: Rows, task: ResamplingTask, *, k_neighbors: int = 5, m_neighbors: int = 10, scale: bool = True
) -> Rows:
    """SMOTE from bases that are support vectors of a radial SVM and not surrounded by the majority.

    The SVM sees at most 10,000 rows: up to half of them of the rare class, at random. All bases are used when it has
    none. Interpolates only. Source: Nguyen et al., IJKESDP 2011.
    """

    def choose(space: FloatMatrix, index: IntArray, rows: Rows, task: ResamplingTask) -> FloatArray:
        from sklearn.svm import SVC

        rng, other = task.rng, np.flatnonzero(rows.y == 0)
        own = rng.permutation(index)[: _SVM_ROWS // 2]
        seen = np.sort(np.concatenate([own, rng.permutation(other)[: _SVM_ROWS - len(own)]]))
        support = seen[SVC(gamma="scale", class_weight="balanced").fit(space[seen], rows.y[seen]).support_]
        surrounded_by_majority = _majority_share(space, index, rows, m_neighbors, task.threads) == 1
        return np.asarray(np.isin(index, support) & ~surrounded_by_majority, dtype=np.float64)

    return _oversample(rows, task, choose, k_neighbors, scale)


def kmeans_smote(
    rows: Rows, task: ResamplingTask, *, k_neighbors: int = 5, clusters: int = 20, scale: bool = True
) -> Rows:
    """SMOTE inside clusters in which the rare class is over-represented, sparse ones more; neighbours of one cluster.

    Clusters are found on at most 50,000 rows. A cluster counts when its prevalence is above that of all rows and it has
    two rows of the rare class; all bases are used when none does. Source: Douzas et al., Information Sciences 2018.
    """

    def choose(space: FloatMatrix, index: IntArray, rows: Rows, task: ResamplingTask) -> tuple[FloatArray, IntArray]:
        from sklearn.cluster import MiniBatchKMeans

        seen = np.sort(task.rng.permutation(len(rows))[:_KMEANS_ROWS])
        model = MiniBatchKMeans(min(clusters, len(seen)), random_state=task.seed % 2**31, n_init=3).fit(space[seen])
        cluster = model.predict(space)
        positives = np.bincount(cluster[index], minlength=clusters)
        good = (positives > rows.prevalence * np.bincount(cluster, minlength=clusters)) & (positives > 1)
        away = np.square(space[index] - model.cluster_centers_[cluster[index]]).sum(axis=1)
        spread = np.bincount(cluster[index], away, minlength=clusters) / np.maximum(positives, 1)
        sparsity = np.where(good, np.sqrt(spread) + 1e-9, 0) / np.maximum(positives, 1) ** 2
        return sparsity[cluster[index]], cluster[index].astype(np.int64)

    return _oversample(rows, task, choose, k_neighbors, scale)


def jitter(rows: Rows, task: ResamplingTask, *, width: float = 0.25) -> Rows:
    """Copies of rows of the rare class whose numbers are moved by noise of ``width`` standard deviations.

    A column is moved on its normal scores (the normal quantile of a value's rank among all rows), so that a long tail
    sets no scale, and stays between its least and its greatest value. Every base is copied equally often; categories
    and missing values stay as they are. Noise does not need neighbours of the rare class, so it works from one row on.
    Source: for noise as a regulariser, Bishop, Neural Computation 1995; normal scores, van der Waerden 1952.
    """
    index = np.flatnonzero(rows.y == 1)
    more = task.minority(rows) - len(index)
    if more == 0:
        return rows
    rng = task.rng
    made = rows.take(_equally_often(index, more, rng))
    x = made.x.copy()
    for column in np.flatnonzero(~rows.schema.categorical):
        value, score = normal_scores(rows.x[:, column])
        noise = rng.normal(0, width, more)  # drawn for every column, so that one more does not change the others' rows
        if len(value) > 1:
            moved = np.interp(np.interp(x[:, column], value, score) + noise, score, value)
            x[:, column] = np.where(np.isnan(x[:, column]), np.nan, moved)
    _round_whole(x, rows.x)
    return concatenate([rows, replace(made, x=x, row_id=np.zeros(more, dtype=np.uint64))])


def normal_scores(column: FloatMatrix) -> tuple[FloatArray, FloatArray]:
    """Return the (k,) distinct finite values of a column, rising, and the normal quantile of each one's middle rank."""
    from scipy.special import ndtri

    value, count = np.unique(column[np.isfinite(column)], return_counts=True)
    middle = (np.cumsum(count) - count / 2) / max(int(count.sum()), 1)
    return value.astype(np.float64), np.asarray(ndtri(middle), dtype=np.float64)


Choose = Callable[[FloatMatrix, IntArray, Rows, ResamplingTask], FloatArray | tuple[FloatArray, IntArray]]


def _uniform(space: FloatMatrix, index: IntArray, rows: Rows, task: ResamplingTask) -> FloatArray:
    return np.ones(len(index))


def _majority_share(space: FloatMatrix, index: IntArray, rows: Rows, k: int, threads: int) -> FloatArray:
    """(n_index,) share of majority rows among the k nearest other rows."""
    near = kneighbors_excluding_self(space, index, k, threads=threads)[1]
    return np.asarray((rows.y[near] == 0).mean(axis=1))


def _oversample(rows: Rows, task: ResamplingTask, choose: Choose, k: int, scale: bool) -> Rows:
    """Add synthetic rows until the step's target; ``choose`` weighs the bases and may keep neighbours in a group."""
    index = np.flatnonzero(rows.y == 1)
    more = task.minority(rows) - len(index)
    if more == 0:
        return rows
    space = distance_space(rows.x, rows.schema, scale=scale)
    chosen = choose(space, index, rows, task)
    weight, group = chosen if isinstance(chosen, tuple) else (chosen, np.zeros(len(index), dtype=np.int64))
    if weight.sum() == 0:
        weight, group = np.ones(len(index)), np.zeros(len(index), dtype=np.int64)
    near = _neighbours_in_group(space[index], group, k, task.threads)
    rng = task.rng
    base = rng.choice(len(index), more, p=weight / weight.sum())
    neighbour = near[base, rng.integers(0, near.shape[1], more)]
    neighbour = np.where(neighbour < 0, base, neighbour)
    return concatenate([rows, _between(rows, index, Pairs(base, neighbour, rng.random(more)), near)])


def _neighbours_in_group(space: FloatMatrix, group: IntArray, k: int, threads: int) -> IntArray:
    """(n, k) positions of the nearest other rows of the same group, cycled where it has fewer; -1 where it has none."""
    near = np.full((len(space), max(k, 1)), -1, dtype=np.int64)
    for value in np.unique(group):
        members = np.flatnonzero(group == value)
        neighbours = kneighbors_excluding_self(space[members], np.arange(len(members)), k, threads=threads)[1]
        if neighbours.shape[1]:
            near[members] = members[neighbours[:, np.arange(near.shape[1]) % neighbours.shape[1]]]
    return near


def _between(rows: Rows, index: IntArray, pairs: Pairs, near: IntArray) -> Rows:
    """Make the synthetic rows; pairs and near count in ``index``."""
    own = rows.x[index]
    start, gap = own[pairs.base], pairs.gap[:, None].astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        step = own[pairs.neighbour] - start
    x = start + gap * np.where(np.isfinite(step), step, np.float32(0))
    _round_whole(x, rows.x)
    for column in np.flatnonzero(rows.schema.categorical):
        x[:, column] = _modes(own[:, column], near)[pairs.base]
    made = rows.take(index[pairs.base])
    return replace(made, x=x, row_id=np.zeros(len(x), dtype=np.uint64))


def _round_whole(made: FloatMatrix, x: FloatMatrix) -> None:
    """Round the columns of ``made``, in place, that hold whole numbers only in ``x``."""
    integral = [j for j in range(x.shape[1]) if _is_whole(x[:, j])]
    made[:, integral] = np.rint(made[:, integral])


def _is_whole(column: FloatMatrix) -> bool:
    def whole(values: FloatMatrix) -> bool:
        return bool(np.all((values == np.rint(values)) | np.isnan(values)))

    return whole(column[:1000]) and whole(column)


def _modes(codes: FloatMatrix, near: IntArray) -> FloatMatrix:
    """(n,) most frequent category among each row and its neighbours; ties go to the row's own,
    then to the lower code.
    """
    votes = np.concatenate([codes[:, None], codes[np.where(near < 0, np.arange(len(codes))[:, None], near)]], axis=1)
    same = (votes[:, :, None] == votes[:, None, :]) | (np.isnan(votes)[:, :, None] & np.isnan(votes)[:, None, :])
    count = same.sum(axis=2).astype(np.float64)
    count[:, 0] += 0.5
    count -= 1e-6 * np.nan_to_num(votes)
    return np.asarray(votes[np.arange(len(votes)), count.argmax(axis=1)])


# --- cleaning -------------------------------------------------------------------------------------------------------


def enn(rows: Rows, task: ResamplingTask, *, n_neighbors: int = 3, scale: bool = True) -> Rows:
    """Drop majority rows with a row of the rare class among their k nearest (Edited Nearest Neighbours)."""
    return _clean(rows, task, *_enn(rows, task, n_neighbors, scale, (0,)))


def tomek(rows: Rows, task: ResamplingTask, *, scale: bool = True) -> Rows:
    """Drop majority rows that form a Tomek link: they and a row of the rare class are each other's nearest."""
    links = tomek_links(distance_space(rows.x, rows.schema, scale=scale), rows.y, threads=task.threads)
    return _clean(rows, task, links[0])


def near_miss(rows: Rows, task: ResamplingTask, *, n_neighbors: int = 3, scale: bool = True) -> Rows:
    """Keep the majority rows whose mean distance to their k nearest rows of the rare class is smallest (NearMiss-1).

    Source: Mani and Zhang, ICML workshop on learning from imbalanced data sets, 2003.
    """
    index = np.flatnonzero(rows.y == 0)
    wanted = task.majority(rows)
    if wanted == len(index):
        return rows
    space = distance_space(rows.x, rows.schema, scale=scale)
    distance = nearest(space[rows.y == 1], space[index], n_neighbors, threads=task.threads)[0].mean(axis=1)
    stays = rows.y == 1
    stays[index[np.argsort(distance, kind="stable")[:wanted]]] = True
    return rows.take(np.flatnonzero(stays))


def smote_enn(
    rows: Rows, task: ResamplingTask, *, k_neighbors: int = 5, n_neighbors: int = 3, scale: bool = True
) -> Rows:
    """SMOTE, then drop rows of either class with a row of the other among their k nearest. Batista et al., 2004."""
    made = smote(rows, task, k_neighbors=k_neighbors, scale=scale)
    return _clean(made, replace(task, ratio=None, count=None), *_enn(made, task, n_neighbors, scale, (0, 1)))


def smote_tomek(rows: Rows, task: ResamplingTask, *, k_neighbors: int = 5, scale: bool = True) -> Rows:
    """SMOTE, then drop both rows of every Tomek link. Batista et al., SIGKDD Explorations 2004."""
    made = smote(rows, task, k_neighbors=k_neighbors, scale=scale)
    links = tomek_links(distance_space(made.x, made.schema, scale=scale), made.y, threads=task.threads)
    return _clean(made, replace(task, ratio=None, count=None), *links)


def _enn(rows: Rows, task: ResamplingTask, k: int, scale: bool, targets: Sequence[int]) -> list[IntArray]:
    space = distance_space(rows.x, rows.schema, scale=scale)
    return [surrounded(space, rows.y, target, k=k, seed=task.seed, threads=task.threads) for target in targets]


def _clean(rows: Rows, task: ResamplingTask, *dropped: IntArray) -> Rows:
    """Take the dropped rows out; as many majority ones as the floor asks for, and one row per class, stay."""
    gone = np.zeros(len(rows), dtype=bool)
    gone[np.concatenate(dropped)] = True
    for label, least in ((0, max(task.floor(rows), 1)), (1, 1)):
        mine = np.flatnonzero(gone & (rows.y == label))
        back = least - int((~gone & (rows.y == label)).sum())
        if back > 0:
            gone[task.rng.permutation(mine)[:back]] = False
    return rows.take(np.flatnonzero(~gone)) if gone.any() else rows


RESAMPLERS: dict[str, Callable[..., Rows]] = {
    "none": keep_rows,
    "random_over": random_over,
    "random_under": random_under,
    "smote": smote,
    "smotenc": smote,
    "borderline_smote": borderline_smote,
    "svm_smote": svm_smote,
    "kmeans_smote": kmeans_smote,
    "adasyn": adasyn,
    "jitter": jitter,
    "tomek": tomek,
    "enn": enn,
    "nearmiss": near_miss,
    "smote_enn": smote_enn,
    "smote_tomek": smote_tomek,
}
"""Name in the configuration -> function. `smote` treats categories as SMOTENC does: both names are one thing."""

RANDOM = frozenset({"none", "random_over", "random_under"})
"""Resamplers that choose rows at random within a class, so that the sampling factor is exact."""
