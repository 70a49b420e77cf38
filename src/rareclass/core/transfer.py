"""A neighbour's labels: what the rows of a related domain, or a model of it, lend to the fits of few target rows.

What is lent never scores and is never scored: every candidate is compared on rows of the target, paired, and the test
rows are the target's alone. TRANSFERS is the table of the ways to use it. What they were seen to be worth:
docs/decisions/0039.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rareclass.core.dataset import AnyArray, Feature, FloatArray, FloatMatrix, IntArray, Rows, Schema, concatenate
from rareclass.core.early_stopping import Watched
from rareclass.core.fit_task import FitTask
from rareclass.core.fitted import Fitted
from rareclass.core.hashing import content_groups
from rareclass.core.log_odds import logit
from rareclass.core.xgboost_learner import fit_xgboost
from rareclass.errors import DataError

UP = 5.0
"""How many rows of the source a row of the target counts for, where it is weighted up."""
_FIT_ROWS = 20_000
"""Rows of the target that its domain is learned from, at most."""
_LEAST, _MOST = 0.05, 20.0
"""Bounds of an importance weight, before they are brought to a mean of 1."""
_DOMAIN_FOLDS, _DOMAIN_ROUNDS, _SOURCE_ROUNDS = 3, 40, 150
_DOMAIN_PARAMS = {"tree_method": "hist", "max_bin": 256, "eta": 0.1, "cut_points": "rows"}


@dataclass(frozen=True)
class LentModel(Fitted):
    """A model of the source that reads rows of the target.

    scorer : what scores rows of its own columns · width : their number
    columns : (width,) column of the target that each one is; -1 where the target has none, which is missing then
    codes : of each column, (k,) its own code of the target's codes of a category; empty for numbers
    """

    scorer: Any
    columns: IntArray
    codes: tuple[AnyArray, ...]

    @staticmethod
    def of(scorer: Any, own: Schema, target: Schema, names: Mapping[str, str]) -> LentModel:
        """own : schema that the model reads · names : column of the target -> the model's name of it."""
        places = {names.get(feature.name, feature.name): at for at, feature in enumerate(target.features)}
        columns, codes = [], []
        for feature in own.features:
            at = places.get(feature.name, -1)
            if at >= 0 and target.features[at].kind != feature.kind:
                at = -1
            columns.append(at)
            codes.append(_codes(target.features[at], feature) if at >= 0 else np.empty(0, dtype=np.float32))
        return LentModel("lent", scorer=scorer, columns=np.array(columns, dtype=np.int64), codes=tuple(codes))

    @property
    def missing(self) -> int:
        """How many of its columns the target does not have."""
        return int((self.columns < 0).sum())

    def score(self, x: FloatMatrix) -> FloatArray:
        """Return (n,) raw scores of rows of the target."""
        made = np.full((len(x), len(self.columns)), np.nan, dtype=np.float32)
        for place, (column, codes) in enumerate(zip(self.columns, self.codes, strict=True)):
            if column >= 0 and not len(codes):
                made[:, place] = x[:, column]
            elif column >= 0:
                there = ~np.isnan(x[:, column])
                made[there, place] = codes[x[there, column].astype(np.int64)]
        return np.asarray(self.scorer.score(made), dtype=np.float64)


def _codes(target: Feature, own: Feature) -> AnyArray:
    """(k,) code that ``own`` has for each category of ``target``; empty where both are numbers."""
    if target.kind == "numeric":
        return np.empty(0, dtype=np.float32)
    return np.asarray(own.read(list(target.categories))[0] if target.categories else [np.nan], dtype=np.float32)


@dataclass(frozen=True)
class Widened(Fitted):
    """A learner that reads what the source says of a row, or, without ``source``, that a row is the target's.

    alone : it reads nothing else; otherwise this is one more column beside the target's
    """

    inner: Fitted
    source: Fitted | None = None
    alone: bool = False

    def score(self, x: FloatMatrix) -> FloatArray:
        return self.inner.score(widened(x, self.source, self.alone))

    def contributions(self, x: FloatMatrix) -> FloatArray | None:
        """Of the target's columns; None where what the source says has a part that is no column's."""
        if self.source is not None:
            return None
        contributions = self.inner.contributions(widened(x, None))
        return None if contributions is None else contributions[:, :-1]


FITTED: tuple[type, ...] = (LentModel, Widened)
"""What a fit with a neighbour's labels may consist of besides other learners, for `core.portable`."""


def widened(x: FloatMatrix, source: Fitted | None, alone: bool = False) -> FloatMatrix:
    """Return x with one more column, or that column ``alone``: the log-odds of ``source``, or 1 without one."""
    column = np.ones(len(x)) if source is None else logit(source.score(x))
    made = column.astype(np.float32)
    return made[:, None] if alone else np.column_stack([x, made])


@dataclass(frozen=True, eq=False)
class Lender:
    """What a related domain lends.

    name : where it comes from, for people
    rows : its labelled rows, encoded as the target's are, with their time where both have one; None of a model
    importance : (n,) how much more likely a row is among the target's than among its own, mean 1; None: not asked for
    model : the registered model that says what the source says; None of rows
    weight : of each of its rows beside one of the target's; None: 1, and other weights are tried
    apart : ROC-AUC of telling its rows from the target's; NaN of a model
    seed, threads : of fits of its rows
    """

    name: str
    rows: Rows | None = None
    importance: FloatArray | None = None
    model: Fitted | None = None
    weight: float | None = None
    apart: float = math.nan
    seed: int = 0
    threads: int = 1

    @cached_property
    def _sources(self) -> dict[int, Fitted]:
        """Number of lent rows -> the model of them; no field, so that it is not written with the lender."""
        return {}

    def until(self, rows: Rows) -> tuple[Rows, AnyArray]:
        """Return the lent rows that are not later than the latest of ``rows``, and the mask of them: a fit may not know
        more of a neighbour's future than of its own.
        """
        assert self.rows is not None
        if self.rows.time is None or rows.time is None or not len(rows):
            return self.rows, np.ones(len(self.rows), dtype=bool)
        earlier = np.asarray(self.rows.time <= rows.time.max())
        return self.rows.take(earlier), earlier

    def source(self, rows: Rows) -> Fitted | None:
        """Return what scores as the source did when ``rows`` were known; None while it had rows of one class only."""
        if self.model is not None:
            return self.model
        lent, _ = self.until(rows)
        if not 0 < lent.positives < len(lent):
            return None
        if len(lent) not in self._sources:  # of so many rows there is one: each moment's hold those of all before
            task = FitTask(lent, rounds=_SOURCE_ROUNDS, seed=self.seed, threads=self.threads)
            self._sources[len(lent)] = fit_xgboost(task, {})
        return self._sources[len(lent)]


@dataclass(frozen=True, eq=False)
class Reads:
    """How a fit with more columns than the target has reads rows of the target. source, alone : as of `Widened`"""

    source: Fitted | None = None
    alone: bool = False

    def watched(self, watched: Watched) -> Watched:
        """Return the watched rows, and no others, with the columns of the fit."""
        x = widened(watched.x[watched.index], self.source, self.alone)
        return Watched(x, np.arange(len(x)))

    def fitted(self, made: Fitted) -> Fitted:
        """Return what scores rows of the target."""
        return Widened(
            made.learner,
            rounds=made.rounds,
            negative_sampling_rate=made.negative_sampling_rate,
            inner=made,
            source=self.source,
            alone=self.alone,
        )


@dataclass(frozen=True, eq=False)
class Loan:
    """What one fit learns from. reads : how rows of the target are read; None: as they are"""

    rows: Rows
    weight: FloatArray | None
    reads: Reads | None = None


Lend = Callable[[Lender, Rows, FloatArray | None], Loan]


@dataclass(frozen=True)
class Transfer:
    """A way to use what is lent.

    needs : "rows", "weight" (rows whose weight is not set), "model" (no rows) or "any" · reason : for people
    learner : that learns from it
    """

    lend: Lend
    needs: str
    reason: str
    learner: str = "xgboost"

    def possible(self, lender: Lender) -> bool:
        """Whether a lender has what it needs."""
        rows = lender.rows is not None
        return {"any": True, "rows": rows, "weight": rows and lender.weight is None, "model": not rows}[self.needs]


def _known(rows: Rows, weight: FloatArray | None) -> FloatArray:
    return np.ones(len(rows)) if weight is None else np.asarray(weight, dtype=np.float64)


def source_only(lender: Lender, rows: Rows, weight: FloatArray | None) -> Loan:
    """The target's rows too while the source has rows of one class only."""
    lent, _ = lender.until(rows)
    return Loan(lent, None) if 0 < lent.positives < len(lent) else pooled(lender, rows, weight)


def pooled(lender: Lender, rows: Rows, weight: FloatArray | None) -> Loan:
    """The source's rows beside the target's."""
    return _pooled(lender, rows, weight, 1.0 if lender.weight is None else lender.weight)


def target_up(lender: Lender, rows: Rows, weight: FloatArray | None) -> Loan:
    """The same, one row of the target for UP of the source."""
    return _pooled(lender, rows, weight, 1 / UP)


def importance(lender: Lender, rows: Rows, weight: FloatArray | None) -> Loan:
    """The same, the source's rows by how likely they are among the target's."""
    assert lender.importance is not None
    return _pooled(lender, rows, weight, lender.importance)


def pooled_domain(lender: Lender, rows: Rows, weight: FloatArray | None) -> Loan:
    """The same as `pooled`, with a column that says whose a row is."""
    made = pooled(lender, rows, weight)
    theirs = np.arange(len(made.rows)) >= len(made.rows) - len(rows)
    features = (*rows.schema.features, Feature("neighbour"))
    x = np.column_stack([made.rows.x, theirs.astype(np.float32)])
    return replace(made, rows=replace(made.rows, schema=Schema(features), x=x), reads=Reads())


def source_score(lender: Lender, rows: Rows, weight: FloatArray | None) -> Loan:
    """The target's rows, with the log-odds that the source gives as one more column."""
    source = lender.source(rows)
    features = (*rows.schema.features, Feature("neighbour"))
    return Loan(replace(rows, schema=Schema(features), x=widened(rows.x, source)), weight, Reads(source))


def source_model(lender: Lender, rows: Rows, weight: FloatArray | None) -> Loan:
    """What the source says of the target's rows, and nothing else."""
    source = lender.source(rows)
    alone = replace(rows, schema=Schema((Feature("neighbour"),)), x=widened(rows.x, source, alone=True))
    return Loan(alone, weight, Reads(source, alone=True))


def _pooled(lender: Lender, rows: Rows, weight: FloatArray | None, times: float | FloatArray) -> Loan:
    assert lender.rows is not None
    lent, earlier = lender.until(rows)
    made = np.concatenate([(np.ones(len(earlier)) * times)[earlier], _known(rows, weight)])
    weights = None if np.all(made == 1) else made
    return Loan(replace(concatenate([lent, rows]), weight=weights), weights)


TRANSFERS: dict[str, Transfer] = {
    "source": Transfer(source_only, "rows", "A neighbour's rows alone; those of the target only judge."),
    "pooled": Transfer(pooled, "rows", "A neighbour's rows beside those of the target."),
    "pooled_domain": Transfer(
        pooled_domain, "rows", "Rows of both, with a column that says whose they are, for where they differ."
    ),
    "target_up": Transfer(target_up, "weight", f"Rows of both; one of the target counts for {UP:g}."),
    "importance": Transfer(
        importance, "weight", "Rows of both, a neighbour's by how much it looks like one of the target."
    ),
    "source_score": Transfer(source_score, "any", "Rows of the target, and what the neighbour says of each."),
    "source_model": Transfer(
        source_model, "model", "What the neighbour's model says, brought to scale.", "logistic_regression"
    ),
}
"""Name in a candidate -> the way to use what is lent."""


def of_rows(
    name: str, rows: Rows, target: Rows, weight: float | None, *, seed: int, threads: int = 1, left_out: str = ""
) -> Lender:
    """Return a lender of labelled rows.

    target : rows of the target that fits see; their labels are not looked at
    left_out : which rows are no longer among them and why, for the error
    Raises DataError where the rows are of one class only.
    """
    if not 0 < rows.positives < len(rows):
        raise DataError(
            f"{name} lends {rows.positives} rows of the rare class among {len(rows):,}{left_out}: nothing to learn "
            "from. Set transfer.path to rows of both classes"
        )
    importances, apart = importance_weights(rows, target, seed=seed, threads=threads)
    return Lender(name, rows, importances, weight=weight, apart=apart, seed=seed, threads=threads)


def importance_weights(rows: Rows, target: Rows, *, seed: int, threads: int = 1) -> tuple[FloatArray, float]:
    """Return (n,) weights, mean 1, of ``rows`` by how likely each is among the target's, and how well the two can be
    told apart (ROC-AUC). Columns that the source does not have tell nothing.

    Odds of a classifier that is told the domain and no label, from fits that have not seen the row, bounded to
    1/20 to 20. Source: Bickel, Brueckner and Scheffer, JMLR 2009.
    """
    from rareclass.core.ranking import roc_auc

    rng = np.random.default_rng(seed)
    theirs = target if len(target) <= _FIT_ROWS else target.take(np.sort(rng.permutation(len(target))[:_FIT_ROWS]))
    shared = np.asarray(~np.isnan(rows.x).all(axis=0))
    schema = Schema(tuple(feature for feature, filled in zip(rows.schema.features, shared, strict=True) if filled))
    x = np.concatenate([rows.x[:, shared], theirs.x[:, shared]])
    y = np.r_[np.zeros(len(rows)), np.ones(len(theirs))].astype(np.int64)
    part = rng.permutation(len(y)) % _DOMAIN_FOLDS
    odds = np.empty(len(y))
    for fold in range(_DOMAIN_FOLDS):
        seen = np.flatnonzero(part != fold)
        both = Rows(schema, x[seen], y[seen], np.zeros(len(seen), dtype=np.uint64))
        fitted = fit_xgboost(FitTask(both, rounds=_DOMAIN_ROUNDS, seed=seed + fold, threads=threads), _DOMAIN_PARAMS)
        odds[part == fold] = logit(fitted.score(x[part == fold]))
    made = np.clip(np.exp(odds[: len(rows)]) * len(rows) / len(theirs), _LEAST, _MOST)
    return made / made.mean(), float(roc_auc(y, odds))


def of_strangers(rows: Rows, target: Sequence[Rows]) -> Rows:
    """Return the rows of entities that the target does not know: one that judges is not learned from elsewhere."""
    own = [part.entity for part in target if part.entity is not None]
    if rows.entity is None or not own:
        return rows
    owned = np.isin(rows.entity, np.concatenate(own))
    return rows.take(~owned) if owned.any() else rows


def without_twins(rows: Rows, target: Sequence[Rows]) -> Rows:
    """Return the rows that equal no row of the target in every feature: what judges may not be learned from."""
    own = np.concatenate([content_groups(part.x) for part in target])
    twin = np.isin(content_groups(rows.x), own)
    return rows.take(~twin) if twin.any() else rows
