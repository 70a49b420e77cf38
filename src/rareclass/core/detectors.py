"""The detectors: each learns from rows without a label what rows usually look like, and says of any row how unusual it
is.

They take rows with missing values and category codes as they are (`Space`), and what they fitted is numbers of our own
that can be written without code (core.portable). A higher score is a more unusual row; scores of different detectors
have nothing in common, that is what `core.detection` is for. Where a method would have to look at every row it was
fitted on for every row it scores, a random part of them stands for all: `Detected.reference` says how many.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import linalg, special

from rareclass.core import neighbours
from rareclass.core.dataset import AnyArray, FloatArray, FloatMatrix, Rows
from rareclass.core.fit_task import check_range
from rareclass.core.fitted import Trees
from rareclass.core.preprocessing import Preparation
from rareclass.core.thread_limits import at_most
from rareclass.errors import ConfigError, DataError, unknown

REFERENCE_ROWS = 10_000
"""Rows that stand for all where neighbours are looked for."""
SAMPLE_ROWS = 50_000
"""Rows that distributions, trees, mixtures and networks are learned from at most."""
EXACT_ROWS = 5_000
"""Rows up to which the one-class SVM is exact, beyond them Nystroem's approximation; and rows that a mixture takes."""
LEAST_ROWS = 2
_GRID = 2_048
"""Quantiles that stand for a column."""
_LEVEL = np.float32(math.sqrt(0.5))
"""Height of an indicator: two different levels are as far apart as one unit of a number."""


@dataclass(frozen=True)
class Space:
    """Complete numbers in which distances mean something: `Preparation`, its indicators at height 1 / sqrt(2)."""

    preparation: Preparation

    @staticmethod
    def learn(rows: Rows) -> Space:
        """Learn medians, spreads and levels from rows."""
        return Space(Preparation.learn(rows))

    def __call__(self, x: FloatMatrix) -> FloatMatrix:
        """Return the (n, m) float32 matrix of x (n, n_features)."""
        made = self.preparation(x)
        made[:, len(self.preparation.numeric) :] *= _LEVEL
        return made


@dataclass(frozen=True)
class Detected:
    """A fitted detector. reference : rows it keeps or learned from"""

    detector: str
    space: Space
    reference: int = field(kw_only=True)

    def score(self, x: FloatMatrix) -> FloatArray:
        """Return (n,) finite scores for x (n, n_features) float32: the higher, the more unusual."""
        step = 65_536
        parts = [self.unusual(self.space(x[start : start + step])) for start in range(0, len(x), step)]
        scores = np.concatenate(parts) if parts else np.empty(0)
        return np.nan_to_num(scores.astype(np.float64, copy=False), nan=0.0, posinf=1e300, neginf=-1e300)

    def unusual(self, z: FloatMatrix) -> FloatArray:
        """Return (n,) scores of rows of the space."""
        raise NotImplementedError


@dataclass(frozen=True)
class Learning:
    """What a fit is given: rows of the space, at most SAMPLE_ROWS of those there are, drawn at random."""

    space: Space
    z: FloatMatrix
    seed: int
    threads: int

    def part(self, most: int) -> FloatMatrix:
        """Return at most so many of the rows, drawn at random."""
        return _part(self.z, most, self.seed)


def _part(x: AnyArray, most: int, seed: int) -> AnyArray:
    """Return at most so many of the rows, drawn at random, in their order."""
    if len(x) <= most:
        return x
    return x[np.sort(np.random.default_rng(seed).choice(len(x), most, replace=False))]


# --- distributions of single columns -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ecod(Detected):
    """values : (m, g) sorted values of each column"""

    values: AnyArray

    def unusual(self, z: FloatMatrix) -> FloatArray:
        total, size = np.zeros(len(z)), self.values.shape[1]
        for column, values in zip(z.T, self.values, strict=True):
            below = np.searchsorted(values, column, side="right")
            above = size - np.searchsorted(values, column, side="left")
            total -= np.log((np.minimum(below, above) + 1) / (size + 1))
        return total


def fit_ecod(learning: Learning, params: Mapping[str, Any]) -> Ecod:
    """The thinner empirical tail of every column, added up. Source: Li et al., ECOD, IEEE TKDE 2022; the greatest is
    taken column by column, as in its authors' code, so that a row high here and low there is found as well."""
    z = learning.z
    return Ecod("ecod", learning.space, reference=len(z), values=_sorted(z))


def _sorted(z: FloatMatrix) -> AnyArray:
    """(m, g) sorted values of each column; evenly spaced ones where there are many."""
    ordered = np.sort(z.T, axis=1)
    if ordered.shape[1] <= _GRID:
        return ordered
    return np.ascontiguousarray(ordered[:, np.linspace(0, ordered.shape[1] - 1, _GRID).astype(np.int64)])


@dataclass(frozen=True)
class Hbos(Detected):
    """edges : (m, b + 1) bounds of the bins · surprise : (m, b + 2) -log density of each, outside ones at the ends"""

    edges: AnyArray
    surprise: AnyArray

    def unusual(self, z: FloatMatrix) -> FloatArray:
        total = np.zeros(len(z))
        for column, edges, surprise in zip(z.T, self.edges, self.surprise, strict=True):
            place = np.searchsorted(edges, column, side="right")
            place[column == edges[-1]] = len(edges) - 1
            total += surprise[place]
        return total


def fit_hbos(learning: Learning, params: Mapping[str, Any]) -> Hbos:
    """Histogram of every column, log densities added up. Source: Goldstein and Dengel, KI 2012."""
    z, bins = learning.z, int(params["bins"])
    edges = np.empty((z.shape[1], bins + 1))
    surprise = np.empty((z.shape[1], bins + 2))
    for column, values in enumerate(z.T):
        low, high = float(values.min()), float(values.max())
        edges[column] = np.linspace(low, high if high > low else low + 1, bins + 1)
        count, _ = np.histogram(values, edges[column])
        density = np.concatenate([[0.0], count / count.max(), [0.0]])
        surprise[column] = -np.log(density + 1 / (len(z) + 1))
    return Hbos("hbos", learning.space, reference=len(z), edges=edges, surprise=surprise)


# --- neighbours ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours(Detected):
    """rows : (r, m) reference rows · k : neighbours looked at"""

    rows: AnyArray
    k: int

    def unusual(self, z: FloatMatrix) -> FloatArray:
        distance, _ = neighbours.nearest(self.rows, z, self.k)
        return np.asarray(distance.mean(axis=1))


def fit_knn(learning: Learning, params: Mapping[str, Any]) -> Neighbours:
    """Mean distance to the k nearest rows. Source: Angiulli and Pizzuti, PKDD 2002."""
    rows = learning.part(REFERENCE_ROWS)
    return Neighbours("knn", learning.space, reference=len(rows), rows=rows, k=_k(params, rows))


def _k(params: Mapping[str, Any], rows: FloatMatrix) -> int:
    return min(int(params["k"]), len(rows) - 1)


@dataclass(frozen=True)
class DiffusionTime(Detected):
    """rows : (r, m) reference rows · k : neighbours looked at · near : half the squared distance of neighbours among
    them
    """

    rows: AnyArray
    k: int
    near: float

    def unusual(self, z: FloatMatrix) -> FloatArray:
        distance, _ = neighbours.nearest(self.rows, z, self.k)
        shape, scale = z.shape[1] / 2 + 2, self.near + distance**2 / 2
        weight = special.softmax(-shape * np.log(scale), axis=1)  # of each neighbour's inverse gamma
        return np.asarray((weight * scale).sum(axis=1) / (shape - 1))


def fit_dte(learning: Learning, params: Mapping[str, Any]) -> DiffusionTime:
    """Posterior mean of the variance of the noise that turned a row of training into this one.

    Each of the k nearest rows may be the one it came from; the prior of the variance is an inverse gamma of shape 2
    whose scale is that of noise between usual neighbours, so that a row that was seen before is not told from one
    beside it; the posterior is a mixture of inverse gammas of shape m / 2 + 2. Source: Livernoche et al., ICLR 2024
    (nonparametric form).
    """
    rows = learning.part(REFERENCE_ROWS)
    some = np.arange(0, len(rows), max(1, len(rows) // 500))
    apart = neighbours.kneighbors_excluding_self(rows, some, 1)[0]
    near = max(float(np.median(apart**2)) / 2, 1e-9)
    return DiffusionTime("dte", learning.space, reference=len(rows), rows=rows, k=_k(params, rows), near=near)


@dataclass(frozen=True)
class OutlierFactor(Detected):
    """rows : (r, m) reference rows · reach : (r,) distance to the k-th neighbour of each · density : (r,) local one"""

    rows: AnyArray
    reach: FloatArray
    density: FloatArray
    k: int

    def unusual(self, z: FloatMatrix) -> FloatArray:
        distance, near = neighbours.nearest(self.rows, z, self.k)
        own = 1 / (np.maximum(distance, self.reach[near]).mean(axis=1) + _LITTLE)
        return np.asarray(self.density[near].mean(axis=1) / own)


_LITTLE = 1e-10  # what keeps a density finite where rows are equal, as scikit-learn has it


def fit_lof(learning: Learning, params: Mapping[str, Any]) -> OutlierFactor:
    """Local outlier factor of rows it has not seen. Source: Breunig et al., SIGMOD 2000."""
    rows = learning.part(REFERENCE_ROWS)
    k = _k(params, rows)
    distance, near = neighbours.kneighbors_excluding_self(rows, np.arange(len(rows)), k, threads=learning.threads)
    reach = distance[:, -1]
    density = 1 / (np.maximum(distance, reach[near]).mean(axis=1) + _LITTLE)
    return OutlierFactor("lof", learning.space, reference=len(rows), rows=rows, reach=reach, density=density, k=k)


# --- trees, boundaries, densities ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class IsolationForest(Detected):
    """trees : whose leaves hold path lengths · usual : mean path length of a tree of that many rows"""

    trees: Trees
    usual: float

    def unusual(self, z: FloatMatrix) -> FloatArray:
        return np.asarray(np.exp2(-self.trees.score(z) / self.usual))


def fit_isolation_forest(learning: Learning, params: Mapping[str, Any]) -> IsolationForest:
    """How few random cuts part a row from the others. Source: Liu, Ting and Zhou, ICDM 2008."""
    from sklearn.ensemble import IsolationForest as Forest

    z = learning.z
    rows = min(int(params["rows"]), len(z))
    forest = Forest(n_estimators=int(params["trees"]), max_samples=rows, random_state=learning.seed, n_jobs=1).fit(z)
    trees = Trees.of(forest.estimators_, _path_lengths)
    return IsolationForest(
        "isolation_forest", learning.space, reference=len(z), trees=trees, usual=max(_path_length(rows), 1e-9)
    )


def _path_length(rows: float) -> float:
    """Mean number of cuts until a row is alone among so many."""
    return 0.0 if rows < 2 else 1.0 if rows < 3 else 2 * (math.log(rows - 1) + np.euler_gamma) - 2 * (rows - 1) / rows


def _path_lengths(tree: Any) -> FloatArray:
    """(nodes,) cuts up to each node of a tree of scikit-learn, and at a leaf those that its rows would still need."""
    leaf, depth = tree.children_left < 0, np.zeros(tree.node_count)
    for node in np.flatnonzero(~leaf):  # children lie behind their parent
        depth[[tree.children_left[node], tree.children_right[node]]] = depth[node] + 1
    depth[leaf] += [_path_length(rows) for rows in tree.n_node_samples[leaf]]
    return depth


@dataclass(frozen=True)
class OneClassSvm(Detected):
    """rows : (r, m) support vectors or landmarks · weight : (r,) of their kernels · gamma : of the kernel exp(-gamma
    d^2)
    """

    rows: AnyArray
    weight: FloatArray
    gamma: float

    def unusual(self, z: FloatMatrix) -> FloatArray:
        return -(_kernel(z, self.rows, self.gamma) @ self.weight)


def _kernel(a: AnyArray, b: AnyArray, gamma: float) -> FloatArray:
    square = (a.astype(np.float64) ** 2).sum(axis=1)[:, None] + (b.astype(np.float64) ** 2).sum(axis=1)
    square -= 2.0 * (a.astype(np.float64) @ b.T.astype(np.float64))
    return np.asarray(np.exp(-gamma * np.maximum(square, 0)))


def fit_ocsvm(learning: Learning, params: Mapping[str, Any]) -> OneClassSvm:
    """Half-space that holds all but a share nu of the rows, in the space of a Gaussian kernel; beyond 5,000 rows by the
    Nystroem approximation. Sources: Schölkopf et al., Neural Computation 2001; Williams and Seeger, NIPS 2000."""
    from sklearn.linear_model import SGDOneClassSVM
    from sklearn.svm import OneClassSVM

    z, nu = learning.z.astype(np.float64), float(params["nu"])
    gamma = 1 / max(float(z.var(axis=0).sum()), 1e-12)
    if len(z) <= EXACT_ROWS:
        exact = OneClassSVM(gamma=gamma, nu=nu).fit(z)
        rows, weight = exact.support_vectors_.astype(np.float32), exact.dual_coef_[0]
        return OneClassSvm("ocsvm", learning.space, reference=len(z), rows=rows, weight=weight, gamma=gamma)
    rng = np.random.default_rng(learning.seed)
    rows = z[np.sort(rng.choice(len(z), int(params["landmarks"]), replace=False))].astype(np.float32)
    values, vectors = linalg.eigh(_kernel(rows, rows, gamma))
    root = vectors / np.sqrt(np.maximum(values, 1e-10))
    linear = SGDOneClassSVM(nu=nu, random_state=learning.seed).fit(_kernel(z, rows, gamma) @ root)
    return OneClassSvm("ocsvm", learning.space, reference=len(z), rows=rows, weight=root @ linear.coef_, gamma=gamma)


@dataclass(frozen=True)
class Mahalanobis(Detected):
    """centre : (m,) · factor : (m, m) with precision = factor factor'"""

    centre: FloatArray
    factor: FloatArray

    def unusual(self, z: FloatMatrix) -> FloatArray:
        return np.asarray((((z - self.centre) @ self.factor) ** 2).sum(axis=1))


def fit_mahalanobis(learning: Learning, params: Mapping[str, Any]) -> Mahalanobis:
    """Distance from the middle of the nearest rows in units of their shrunk covariance.

    The rows that say what the middle is are those nearest to it, found by concentration steps, so that unusual rows do
    not stretch their own measure. Sources: Rousseeuw and Van Driessen, Technometrics 1999; Ledoit and Wolf, JMVA 2004.
    """
    from sklearn.covariance import LedoitWolf

    z = learning.z.astype(np.float64)
    central, held = np.ones(len(z), dtype=bool), max(LEAST_ROWS, round(float(params["support"]) * len(z)))
    for _ in range(5):
        part = z[central]
        centre = part.mean(axis=0)
        covariance = LedoitWolf(store_precision=False).fit(part).covariance_
        values, vectors = linalg.eigh(covariance)
        factor = vectors / np.sqrt(np.maximum(values, max(1e-6 * float(values[-1]), 1e-12)))
        distance = (((z - centre) @ factor) ** 2).sum(axis=1)
        nearest = np.zeros(len(z), dtype=bool)
        nearest[np.argsort(distance, kind="stable")[:held]] = True
        if (nearest == central).all():
            break
        central = nearest
    return Mahalanobis("mahalanobis", learning.space, reference=len(z), centre=centre, factor=factor)


@dataclass(frozen=True)
class Mixture(Detected):
    """weight : (c,) · mean : (c, m) · factor : (c, m, m) with precision = factor factor'"""

    weight: FloatArray
    mean: FloatArray
    factor: FloatArray

    def unusual(self, z: FloatMatrix) -> FloatArray:
        parts = [
            math.log(weight)
            + float(np.log(np.maximum(np.diagonal(factor), 1e-300)).sum())
            - 0.5 * (((z - mean) @ factor) ** 2).sum(axis=1)
            for weight, mean, factor in zip(self.weight.tolist(), self.mean, self.factor, strict=True)
        ]
        return -np.asarray(special.logsumexp(np.stack(parts), axis=0))


def fit_gmm(learning: Learning, params: Mapping[str, Any]) -> Mixture:
    """Density of a Gaussian mixture; how many parts it has is chosen by the Bayesian information criterion."""
    from sklearn.mixture import GaussianMixture

    z = learning.part(EXACT_ROWS).astype(np.float64)
    best, least = None, math.inf
    for parts in sorted({min(int(parts), max(1, len(z) // (5 * z.shape[1]))) for parts in params["parts"]}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = GaussianMixture(parts, reg_covar=1e-3, max_iter=50, random_state=learning.seed).fit(z)
        if (criterion := float(made.bic(z))) < least:
            best, least = made, criterion
    assert best is not None
    return Mixture(
        "gmm",
        learning.space,
        reference=len(z),
        weight=np.maximum(best.weights_, 1e-300),
        mean=best.means_,
        factor=best.precisions_cholesky_,
    )


# --- networks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Autoencoder(Detected):
    """weights, biases : of each layer, hidden ones tanh"""

    weights: tuple[AnyArray, ...]
    biases: tuple[AnyArray, ...]

    def unusual(self, z: FloatMatrix) -> FloatArray:
        values: AnyArray = z
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True), 1):
            values = values @ weight + bias
            if layer < len(self.weights):
                values = np.tanh(values)
        return np.asarray(((z - values) ** 2).mean(axis=1), dtype=np.float64)


def fit_autoencoder(learning: Learning, params: Mapping[str, Any]) -> Autoencoder:
    """Error of rows that were pressed through a narrow layer and unfolded again. Source: Hawkins et al., DaWaK 2002."""
    from sklearn.neural_network import MLPRegressor

    z = learning.part(2 * REFERENCE_ROWS)
    width = z.shape[1]
    narrow = max(1, min(16, width // 3))
    wide = max(2, min(32, 2 * width))
    made = MLPRegressor(
        hidden_layer_sizes=(wide, narrow, wide),
        activation="tanh",
        alpha=1e-4,
        learning_rate_init=3e-3,
        batch_size=min(256, len(z)),
        max_iter=int(params["epochs"]),
        n_iter_no_change=10,
        random_state=learning.seed,
    )
    with warnings.catch_warnings(), at_most(learning.threads):
        warnings.simplefilter("ignore")
        made.fit(z, z if width > 1 else z[:, 0])
    return Autoencoder(
        "autoencoder", learning.space, reference=len(z), weights=tuple(made.coefs_), biases=tuple(made.intercepts_)
    )


@dataclass(frozen=True)
class DeepSvdd(Detected):
    """weights : of each layer, none has a bias · centre : where rows are drawn to"""

    weights: tuple[AnyArray, ...]
    centre: FloatArray

    def unusual(self, z: FloatMatrix) -> FloatArray:
        return np.asarray(((_through(z, self.weights)[-1] - self.centre) ** 2).sum(axis=1), dtype=np.float64)


def _through(z: AnyArray, weights: tuple[AnyArray, ...]) -> list[AnyArray]:
    """What every layer makes of rows: leaky rectifiers inside, nothing at the end."""
    values = [z]
    for layer, weight in enumerate(weights, 1):
        made = values[-1] @ weight
        values.append(made if layer == len(weights) else np.where(made > 0, made, 0.1 * made))
    return values


def fit_deep_svdd(learning: Learning, params: Mapping[str, Any]) -> DeepSvdd:
    """Distance from a fixed centre after a network that was trained to draw rows there; without biases it cannot draw
    all rows to one point for nothing. Source: Ruff et al., ICML 2018 (one-class objective), by Adam."""
    z = learning.part(2 * REFERENCE_ROWS).astype(np.float64)
    rng, steps, batch = np.random.default_rng(learning.seed), int(params["steps"]), min(128, len(z))
    sizes = (z.shape[1], max(4, min(64, 2 * z.shape[1])), max(2, min(16, z.shape[1])))
    weights = [rng.normal(0, math.sqrt(2 / a), (a, b)) for a, b in itertools.pairwise(sizes)]
    centre = _through(z, tuple(weights))[-1].mean(axis=0)
    centre = np.where(np.abs(centre) < 0.1, np.where(centre < 0, -0.1, 0.1), centre)
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for step in range(1, steps + 1):
        values = _through(z[rng.integers(0, len(z), batch)], tuple(weights))
        back = 2 * (values[-1] - centre) / batch
        rate = 3e-3 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for layer in range(len(weights) - 1, -1, -1):
            slope = values[layer].T @ back + 1e-3 * weights[layer]
            if layer:
                back = (back @ weights[layer].T) * np.where(values[layer] > 0, 1.0, 0.1)
            first[layer] = 0.9 * first[layer] + 0.1 * slope
            second[layer] = 0.999 * second[layer] + 0.001 * slope**2
            weights[layer] = weights[layer] - rate * first[layer] / (np.sqrt(second[layer]) + 1e-8)
    return DeepSvdd("deep_svdd", learning.space, reference=len(z), weights=tuple(weights), centre=centre)


# --- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detector:
    """A member of the family. params : its settings and their defaults"""

    fit: Callable[[Learning, Mapping[str, Any]], Detected]
    params: Mapping[str, Any] = field(default_factory=dict)


DETECTORS: dict[str, Detector] = {
    "ecod": Detector(fit_ecod),
    "hbos": Detector(fit_hbos, {"bins": 20}),
    "knn": Detector(fit_knn, {"k": 5}),
    "dte": Detector(fit_dte, {"k": 5}),
    "lof": Detector(fit_lof, {"k": 20}),
    "isolation_forest": Detector(fit_isolation_forest, {"trees": 200, "rows": 256}),
    "ocsvm": Detector(fit_ocsvm, {"nu": 0.1, "landmarks": 300}),
    "mahalanobis": Detector(fit_mahalanobis, {"support": 0.9}),
    "gmm": Detector(fit_gmm, {"parts": (1, 2, 4)}),
    "autoencoder": Detector(fit_autoencoder, {"epochs": 60}),
    "deep_svdd": Detector(fit_deep_svdd, {"steps": 1_000}),
}

FITTED: tuple[type, ...] = (
    Space, Ecod, Hbos, Neighbours, DiffusionTime, OutlierFactor, IsolationForest, OneClassSvm, Mahalanobis, Mixture,
    Autoencoder, DeepSvdd,
)  # fmt: skip
"""What a fitted detector consists of, for `core.portable`."""


def fit(
    name: str,
    rows: Rows,
    *,
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    threads: int = 1,
    contamination: float = 0.0,
) -> Detected:
    """Fit a member of DETECTORS on ``rows``, whose labels it does not look at.

    contamination : share of the rows that may not be normal: it is fitted, the most unusual share left out, and fitted
        again
    Raises ConfigError for an unknown detector or setting, DataError for fewer than two rows.
    """
    if name not in DETECTORS:
        raise unknown("detector", name, DETECTORS, "candidates.params.members")
    member = DETECTORS[name]
    for given, value in (params or {}).items():
        if given not in member.params:
            raise unknown(f"{name} parameter", given, member.params, "candidates.params")
        check_range(name, given, value, "candidates.params")
    if len(rows) < LEAST_ROWS:
        raise DataError(
            f"a detector learns from at least {LEAST_ROWS} rows, and there are {len(rows)}. Bring more rows"
        )
    if not 0 <= contamination < 0.5:
        raise ConfigError(f"contamination {contamination:g} is not a share from 0 to below 0.5. Set data.contamination")
    settings = {**member.params, **(params or {})}
    # no member learns from more, so no more have to be scored for trimming
    if contamination and len(rows) > SAMPLE_ROWS:
        rows = rows.take(_part(np.arange(len(rows)), SAMPLE_ROWS, seed))
    learning = _learning(rows.x, Space.learn(rows), seed, threads)
    made = member.fit(learning, settings)
    if not contamination:
        return made
    usual = rows.take(_usual(made.score(rows.x), contamination))
    return member.fit(_learning(usual.x, Space.learn(usual), seed, threads), settings)


def _usual(score: FloatArray, contamination: float) -> AnyArray:
    """Positions of all rows but the most unusual share."""
    count = max(LEAST_ROWS, round((1 - contamination) * len(score)))
    return np.sort(np.argsort(score, kind="stable")[:count])


def _learning(x: FloatMatrix, space: Space, seed: int, threads: int) -> Learning:
    """At most SAMPLE_ROWS rows of the space: no member learns from more."""
    return Learning(space, space(_part(x, SAMPLE_ROWS, seed)), seed, threads)
