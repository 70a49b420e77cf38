"""All validation and test rows of a table that is larger than memory, scored as a stream by the chosen recipe.

Candidates are compared on the weighted sample that they are trained on. What is fitted once more here, on the same
sample, is the winner: before each window (or without each fold) for the validation rows, and on the development rows
for the test rows.
Calibration, thresholds, evaluation and gate then stand on all rows, at the prevalence they have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from rareclass.config import Config
from rareclass.core import evaluation, ranking, splitting, training
from rareclass.core.bootstrap import Bootstrap
from rareclass.core.dataset import AnyArray, BoolArray, FloatArray, FloatMatrix, IntArray, Rows, Schema, concatenate
from rareclass.core.drawn import half_of_negatives
from rareclass.core.hashing import content_groups, unit
from rareclass.core.log_odds import expit, logit
from rareclass.errors import DataError, nearest

if TYPE_CHECKING:
    from rareclass.adapters.tables import Ingested
    from rareclass.adapters.tables.streaming import Beyond, Piece
    from rareclass.core.estimate import Estimate
    from rareclass.core.model import RareModel
    from rareclass.core.splitting import Fold
    from rareclass.core.training import Ensemble

Fit = Callable[[Rows, bool], "Ensemble"]
_SALT = 27_644_437


@dataclass(frozen=True, eq=False)
class ScoredPart:
    """Rows without their features (but those that evaluation reports by), and the raw scores of fits that have not seen
    them.
    """

    rows: Rows
    raw: FloatArray
    sampled: int = 0
    """so many of the first rows are of the sample, and stand for more; the others are all there are of their part"""


@dataclass(frozen=True, eq=False)
class ScoredBeyond:
    """learner : the recipe fitted on the development rows, which scored the test rows
    half : average precision on the last held-out rows, less that of a fit with half as many negatives
    """

    held_out: ScoredPart
    test: ScoredPart
    learner: Ensemble
    half: Estimate


def score(
    config: Config,
    ingested: Ingested,
    dev: Rows,
    folds: Sequence[Fold],
    fit: Fit,
    *,
    shifts: bool,
    progress: Callable[[str], None],
) -> ScoredBeyond:
    """Fit the chosen recipe on the sample and let it score all validation and test rows in one reading.

    fit : rows, and whether once is enough -> the fitted recipe
    shifts : whether its scores are probabilities, which follow the prevalence of the rows it was fitted on
    """
    beyond = ingested.beyond
    assert beyond is not None
    rows = beyond.rows["validation"], beyond.rows["test"]
    progress(f"all {len(rows[0]):,} validation and {len(rows[1]):,} test rows, read as a stream")
    fits = [fit(dev.take(fold.train), True) for fold in folds]
    learner = fit(dev, False)
    held_out = _HeldOut(config, dev, folds, fits, shifts, len(ingested.train), rows[0])
    test = _Test(learner, ingested.schema, config.evaluate.slices, rows[1])
    take = {"validation": held_out.take, "test": test.take}
    for part, at, found in beyond.each({"validation": held_out.look, "test": test.look}, progress=progress):
        take[part](at, found)
    fitted = dev.take(folds[-1].train)
    fewer = fit(half_of_negatives(fitted), True)
    half = _worth(config, dev.take(folds[-1].score), fits[-1], fewer)
    progress(f"half as many negatives to train on would cost {half} average precision")
    return ScoredBeyond(held_out.done(), test.done(), learner, half)


def _worth(config: Config, rows: Rows, learner: Ensemble, other: Ensemble) -> Estimate:
    """Return by how much a fit is better than another one, paired on held-out rows that neither has seen."""
    return ranking.compare(
        rows.y,
        learner.score(rows.x),
        other.score(rows.x),
        block=rows.block(),
        weight=rows.weight,
        bootstrap=Bootstrap.of(config.evaluate, config.train.seed),
    )


@dataclass(frozen=True, eq=False)
class _TestLook:
    """What is made of some test rows: their scores, and their values in some columns."""

    learner: Ensemble
    columns: Sequence[int]

    def __call__(self, piece: Piece, rows: Rows) -> tuple[FloatArray, FloatMatrix]:
        return self.learner.score(piece.x), piece.x[:, list(self.columns)]


class _Test:
    """Scores of the test rows, with the columns that evaluation reports by."""

    def __init__(self, learner: Ensemble, schema: Schema, slices: Sequence[str], rows: Rows) -> None:
        self.rows, self.raw = rows, np.empty(len(rows))
        names = evaluation.sliced(schema, slices)
        columns = [schema.names.index(name) for name in names]
        self.look = _TestLook(learner, columns)
        self.schema = Schema(tuple(schema.features[at] for at in columns), schema.roles)
        self.x = np.empty((len(rows), len(names)), dtype=np.float32)

    def take(self, at: slice, found: tuple[FloatArray, FloatMatrix]) -> None:
        self.raw[at], self.x[at] = found

    def done(self) -> ScoredPart:
        return ScoredPart(replace(self.rows, schema=self.schema, x=self.x), self.raw)


class _HeldOut:
    """Scores of the validation rows by fits that have not seen them, with those of sampled training rows that folds
    held out.

    Log-odds are averaged over repeated folds, and brought to the prevalence that all development rows have, as in
    training.
    """

    def __init__(
        self,
        config: Config,
        dev: Rows,
        folds: Sequence[Fold],
        fits: Sequence[Ensemble],
        shifts: bool,
        train: int,
        rows: Rows,
    ) -> None:
        self.dev, self.folds, self.rows = dev, folds, rows
        kind = splitting.resolve_kind(config.split, has_time=dev.time is not None, has_entity=dev.entity is not None)
        apart = kind == "time" and config.split.entities_apart
        self.look = _HeldOutLook(
            fits,
            [training.prior_shift(dev, fold) if shifts else 0.0 for fold in folds],
            _Windows.of(dev, folds) if kind == "time" else _Units.of(dev, folds, kind == "grouped"),
            [_known_entities(dev, fold, apart, config.split.drop_known_entities) for fold in folds],
        )
        self.total, self.count = np.zeros(len(rows)), np.zeros(len(rows))
        self.train = train if kind != "time" else 0

    def take(self, at: slice, found: tuple[FloatArray, FloatArray]) -> None:
        self.total[at], self.count[at] = found

    def done(self) -> ScoredPart:
        known = self.count > 0
        rows, raw = self.rows.take(known), expit(np.asarray(self.total[known] / self.count[known]))
        if not self.train:
            return ScoredPart(rows, raw)
        total, count = np.zeros(self.train), np.zeros(self.train)
        for number, fold in enumerate(self.folds):
            at = fold.score[fold.score < self.train]
            self.look.add(number, total, count, at, self.dev.x[at])
        held = np.flatnonzero(count)
        sampled = self.dev.take(held)
        nothing: dict[str, Any] = {"schema": rows.schema, "x": np.empty((len(held), 0), dtype=np.float32), "keep": None}
        ones = np.ones(len(rows))
        rows = replace(rows, weight=ones if rows.weight is None else rows.weight, drawn=ones)
        both = concatenate([replace(sampled, **nothing), rows])
        return ScoredPart(both, np.concatenate([expit(np.asarray(total[held] / count[held])), raw]), len(held))


@dataclass(frozen=True, eq=False)
class _HeldOutLook:
    """What is made of some validation rows: the sum of their log-odds over repeated folds, and how many those are.

    shift : what the log-odds of each fit lack · known : entities that each fit has seen, whose rows its fold leaves out
    """

    fits: Sequence[Ensemble]
    shift: Sequence[float]
    which: _Windows | _Units
    known: Sequence[AnyArray | None]

    def __call__(self, piece: Piece, rows: Rows) -> tuple[FloatArray, FloatArray]:
        total, count = np.zeros(len(rows)), np.zeros(len(rows))
        for numbers in self.which(rows, piece.x):
            for number in np.unique(numbers):
                at = np.flatnonzero(numbers == number)
                known = self.known[number]
                if rows.entity is not None and known is not None:
                    at = at[~np.isin(rows.entity[at], known)]
                if len(at):
                    self.add(int(number), total, count, at, piece.x[at])
        return total, count

    def add(self, number: int, total: FloatArray, count: FloatArray, at: IntArray, x: FloatMatrix) -> None:
        """Add what one fit says of rows ``at``."""
        total[at] += logit(self.fits[number].score(x)) + self.shift[number]
        count[at] += 1


def _known_entities(dev: Rows, fold: Fold, apart: bool, drop_known: bool) -> AnyArray | None:
    """Return the entities whose rows a fold leaves out, because its fit has seen them; None for none."""
    if dev.entity is None or not (apart or drop_known):
        return None
    seen = fold.train if apart else fold.train[dev.y[fold.train] == 1]
    return np.unique(dev.entity[seen])


@dataclass(frozen=True, eq=False)
class _Windows:
    """Tells the fold of rows by their time: the last window that begins before them, for each repeat."""

    starts: AnyArray

    @staticmethod
    def of(dev: Rows, folds: Sequence[Fold]) -> _Windows:
        assert dev.time is not None
        return _Windows(np.array([dev.time[fold.score].min() for fold in folds]))

    def __call__(self, rows: Rows, x: FloatMatrix) -> list[IntArray]:
        return [np.maximum(np.searchsorted(self.starts, cast("AnyArray", rows.time), side="right") - 1, 0)]


@dataclass(frozen=True, eq=False)
class _Units:
    """Tells the fold that held out a row's unit, for each repeat: that of sampled rows of its entity, or of equal
    features, so that no fit knew its twin; any one of them where there is none.

    own : (repeats, n_dev) the fold that scores each sampled row, -1 for none
    found : what each key is, and where it is first
    """

    own: AnyArray
    found: Sequence[tuple[AnyArray, AnyArray]]
    grouped: bool

    @staticmethod
    def of(dev: Rows, folds: Sequence[Fold], grouped: bool) -> _Units:
        keys = [content_groups(dev.x)]
        if grouped and dev.entity is not None:
            keys.insert(0, dev.entity)
        repeats = sorted({fold.repeat for fold in folds})
        own = np.full((len(repeats), len(dev)), -1, dtype=np.int64)
        for number, fold in enumerate(folds):
            own[repeats.index(fold.repeat), fold.score] = number
        return _Units(own, [np.unique(key, return_index=True) for key in keys], grouped)

    def __call__(self, rows: Rows, x: FloatMatrix) -> list[IntArray]:
        of_rows: list[AnyArray] = [content_groups(x)]
        if self.grouped and rows.entity is not None:
            of_rows.insert(0, rows.entity)
        place = np.full(len(rows), -1, dtype=np.int64)
        for (known, first), wanted in zip(self.found, of_rows, strict=True):
            at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
            place = np.where((place < 0) & (known[at] == wanted), first[at], place)
        answers = []
        for repeat, folds_of in enumerate(self.own):
            mine = np.unique(folds_of[folds_of >= 0])
            any_of = mine[(unit(of_rows[0], _SALT + repeat) * len(mine)).astype(np.int64)]
            answers.append(np.where((place >= 0) & (folds_of[place] >= 0), folds_of[place], any_of))
        return answers


def scored_rows(beyond: ScoredBeyond, scores: tuple[FloatArray, FloatArray]) -> tuple[Rows, FloatArray]:
    """Return all validation and test rows with their calibrated scores, and of the rows what a profile of scores asks
    for.

    scores : of the held-out and of the test rows
    """
    rows, score = [], []
    for part, start, of_part in ((beyond.held_out, beyond.held_out.sampled, scores[0]), (beyond.test, 0, scores[1])):
        y, time = part.rows.y[start:], None if part.rows.time is None else part.rows.time[start:]
        weight = np.ones(len(y)) if part.rows.weight is None else part.rows.weight[start:]
        nothing = np.empty((len(y), 0), dtype=np.float32)
        rows.append(Rows(Schema(()), nothing, y, np.zeros(len(y), dtype=np.uint64), time, weight=weight))
        score.append(of_part[start:])
    return concatenate(rows), np.concatenate(score)


@dataclass(frozen=True, eq=False)
class _ChampionLook:
    """What a version says of some test rows, from its own columns as they are written."""

    model: RareModel

    def __call__(self, piece: Piece, rows: Rows) -> FloatArray:
        assert piece.table is not None
        return self.model.score(piece.table)


def champion_scores(beyond: Beyond, model: RareModel) -> tuple[FloatArray, BoolArray]:
    """Return (n_test,) scores and decisions of a version on its own columns, read as a stream.

    Raises DataError without one.
    """
    for name in model.schema.names:
        if name not in beyond.columns:
            raise DataError(
                f"column '{name}', which the version reads, is not in the data.{nearest(name, beyond.columns)}"
            )
    rows = beyond.rows["test"]
    scores = np.full(len(rows), np.nan)
    for _, at, found in beyond.each({"test": _ChampionLook(model)}, columns=model.schema.names):
        scores[at] = found
    return scores, np.asarray(model.decide(scores))
