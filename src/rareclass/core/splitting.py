"""Set rows apart: by time with a gap of one label delay, stratified, or grouped by entity; and folds inside a part.

A row's side depends on its own hash (or its time) alone, so that a later run with more rows keeps test rows test rows.
Rows that are equal in every feature, and rows of one entity where rows are grouped, are one *unit* and stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rareclass import config as settings
from rareclass.core.dataset import BoolArray, IntArray, Rows, concatenate
from rareclass.core.hashing import HashArray, content_groups, mix, unit
from rareclass.errors import DataError

TimeArray = NDArray[np.datetime64]

FEWEST = 6
"""Positives from which every part of a split has to have one."""
FEW, SOME = 30, 100  # positives below which folds are repeated five and three times
MANY_ROWS, MANY_POSITIVES = 100_000, 1_000  # above both, at most three folds
_LARGEST_UNIT = 0.05  # a unit with more of the rows than this is not a duplicate but a coarse table
_SALTS = 200


@dataclass(frozen=True, slots=True)
class Split:
    """Positions of the rows of each part.

    train, validation, test : ascending positions; rows in none of them are counted in ``dropped`` by reason
    boundaries : what decided (first times of validation and test, or the salt and shares of the hash)
    """

    train: IntArray
    validation: IntArray
    test: IntArray
    kind: str
    dropped: dict[str, int] = field(default_factory=dict)
    boundaries: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fold:
    """Positions of the rows that fit and of the rows that are scored; ``repeat`` numbers independent partitions."""

    train: IntArray
    score: IntArray
    repeat: int = 0


def resolve_kind(config: settings.SplitSettings, *, has_time: bool, has_entity: bool) -> str:
    """Return 'time', 'grouped' or 'stratified' for ``split.kind: auto``.

    Raises DataError when the rows lack what it needs.
    """
    if config.kind == "time" and not has_time:
        raise DataError("split.kind is 'time' but the rows have no time. Set data.time, or split.kind: stratified")
    if config.kind == "grouped" and not has_entity:
        raise DataError(
            "split.kind is 'grouped' but the rows have no entity. Set data.entity, or split.kind: stratified"
        )
    if config.kind != "auto":
        return config.kind
    return "time" if has_time else "grouped" if has_entity else "stratified"


def split(
    *,
    y: NDArray[Any],
    row_id: HashArray,
    time: TimeArray | None = None,
    entity: HashArray | None = None,
    config: settings.SplitSettings,
    label_delay: timedelta = timedelta(0),
    seed: int = 0,
) -> Split:
    """Set training, validation and test rows apart.

    y : (n,) 0 or 1
    row_id : (n,) uint64, stable; one number for rows that stay together because they are equal in every feature. Not
        used where time decides: there, a later equal row is a new event
    time : (n,) datetime64
    entity : (n,) uint64, rows that belong together
    Raises DataError when a part would lack one of the two classes; with fewer than six positives it may lack those.
    """
    kind = resolve_kind(config, has_time=time is not None, has_entity=entity is not None)
    if kind == "time":
        assert time is not None
        # so few that no part need have one: the parts do not become lopsided for the sake of one row
        result = _by_time(y if y.sum() >= FEWEST else np.zeros_like(y), time, config, label_delay)
        if config.entities_apart and entity is not None:
            result = _entities_apart(result, entity)
    else:
        keys = units(row_id, entity if kind == "grouped" else None)
        result = _by_hash(y, keys, config, kind, seed)
    if config.drop_known_entities and entity is not None:
        result = _without_known(result, y, entity)
    for name in ("train", "validation", "test"):
        _need_both(y[getattr(result, name)], name, result, positives=int(y.sum()) >= FEWEST)
    return result


def _need_both(y: NDArray[Any], name: str, result: Split, positives: bool) -> None:
    positive = int(np.count_nonzero(y))
    if positive < len(y) and (positive or not positives):
        return
    what = "no rows" if not len(y) else "no positive" if not positive else "no negative"
    if result.dropped.get("seen_entities"):
        raise DataError(
            f"the {name} part has {what} left (of {len(y)} rows) after split.entities_apart took "
            f"{result.dropped['seen_entities']:,} rows of entities "
            "seen earlier. Set split.entities_apart: false, or split.kind: grouped"
        )
    way = {
        "time": "Set split.test and split.validation higher, data.label_delay lower, or split.kind: stratified",
        "grouped": "Set split.test or split.validation higher, or split.kind: stratified",
        "stratified": "Bring more labelled rows, or set split.test and split.validation higher",
    }[result.kind]
    raise DataError(f"the {name} part of the {result.kind} split has {what} (of {len(y)} rows). {way}")


def _cut(time: TimeArray, y: NDArray[Any], share: float, days: bool) -> Any:
    """Return the first time of the last ``share`` of rows, moved back until a positive is behind it."""
    position = min(len(time) - 1, max(1, round(len(time) * (1 - share))))
    cut = np.partition(time, position)[position]
    positive = time[y == 1]
    if len(positive) and not (positive >= cut).any():
        rank = max(0, min(len(positive) - 1, int(len(positive) * (1 - share))))
        cut = np.partition(positive, rank)[rank]
    midnight = cut.astype("datetime64[D]").astype(time.dtype)
    return midnight if days and (time < midnight).any() else cut


def _by_time(y: NDArray[Any], time: TimeArray, config: settings.SplitSettings, delay: timedelta) -> Split:
    """train < gap < validation < gap < test; equal times stay together, and days where there are 30 or more."""
    gap = np.timedelta64(delay)
    first, last = time.min(), time.max()
    if first == last:
        raise DataError(
            f"every row has the same time {first}: rows cannot be split by time. Set split.kind: stratified"
        )
    days = bool(last - first >= np.timedelta64(30, "D"))
    test_from = _cut(time, y, config.test, days)
    before = time < test_from - gap
    if not before.any():
        raise _gap_too_long(delay, last - first)
    validation_from = _cut(time[before], y[before], config.validation, days)
    train = time < validation_from - gap
    if not train.any():
        raise _gap_too_long(delay, last - first)
    validation = before & (time >= validation_from)
    test = time >= test_from
    return Split(
        train=np.flatnonzero(train),
        validation=np.flatnonzero(validation),
        test=np.flatnonzero(test),
        kind="time",
        dropped={"gap": int(len(y) - train.sum() - validation.sum() - test.sum())},
        boundaries={"validation_from": str(validation_from), "test_from": str(test_from)},
    )


def _gap_too_long(delay: timedelta, span: np.timedelta64) -> DataError:
    span_days = float(span / np.timedelta64(1, "D"))
    return DataError(
        f"the gap of one label delay ({settings.format_duration(delay)}) leaves no rows before it: "
        f"the data span {span_days:.1f} days. "
        "Set data.label_delay lower, or bring a longer history"
    )


def _by_hash(y: NDArray[Any], keys: HashArray, config: settings.SplitSettings, kind: str, seed: int) -> Split:
    """Assign whole units by their hash.

    The first salt under which no part lacks a class is taken: 0 unless rows are few.
    """
    edge, least = config.test + (1 - config.test) * config.validation, 1 if y.any() else 0
    for attempt in range(_SALTS):
        place = unit(keys, _salt(seed, attempt))
        test, train = place < config.test, place >= edge
        validation = ~test & ~train
        if all(least <= np.count_nonzero(y[part]) < np.count_nonzero(part) for part in (train, validation, test)):
            break
    return Split(
        train=np.flatnonzero(train),
        validation=np.flatnonzero(validation),
        test=np.flatnonzero(test),
        kind=kind,
        boundaries={"salt": attempt, "test_below": config.test, "validation_below": edge},
    )


def _salt(seed: int, attempt: int) -> int:
    return seed * 1_000_003 + attempt


def _without_known(parts: Split, y: NDArray[Any], entity: HashArray) -> Split:
    """Drop test rows of entities that are positive in training or validation rows (Fraud Detection Handbook, ch. 5)."""
    seen = np.concatenate([parts.train, parts.validation])
    caught = np.unique(entity[seen[y[seen] == 1]])
    keep = ~np.isin(entity[parts.test], caught)
    dropped = {**parts.dropped, "known_entities": int((~keep).sum())}
    return Split(parts.train, parts.validation, parts.test[keep], parts.kind, dropped, parts.boundaries)


def _entities_apart(parts: Split, entity: HashArray) -> Split:
    """Drop validation rows of entities in the training rows, and test rows of entities in either."""
    validation = parts.validation[~np.isin(entity[parts.validation], entity[parts.train])]
    earlier = np.concatenate([entity[parts.train], entity[parts.validation]])
    test = parts.test[~np.isin(entity[parts.test], earlier)]
    gone = len(parts.validation) - len(validation) + len(parts.test) - len(test)
    dropped = {**parts.dropped, "seen_entities": gone}
    return Split(parts.train, validation, test, parts.kind, dropped, parts.boundaries)


def units(identical: HashArray, entity: HashArray | None) -> HashArray:
    """Return (n,) keys that are equal for rows that must stay together.

    With an entity, rows of one entity and rows that are equal in every feature are joined (connected components),
    unless that chains more than 5 % of the rows together: then the entity alone decides. Without one, a group of
    equal rows larger than that is no duplicate but a coarse table: its rows are told apart by their number.
    """
    if entity is not None:
        joined = _components(entity, identical)
        return entity if _chained(joined) else joined
    if not _chained(identical):
        return identical
    _, code, counts = np.unique(identical, return_inverse=True, return_counts=True)
    order = np.argsort(code, kind="stable")
    number = np.empty(len(code), dtype=np.uint64)
    number[order] = np.arange(len(code)) - np.repeat(np.cumsum(counts) - counts, counts)
    large = counts[code] > _LARGEST_UNIT * len(code)
    return np.where(large, mix(identical ^ mix(number)), identical)


def _chained(keys: HashArray, share: float = _LARGEST_UNIT) -> bool:
    """Whether one unit has more than ``share`` of the rows (of a table that is not tiny)."""
    if len(keys) < 2 / _LARGEST_UNIT:
        return False
    ordered, lag = np.sort(keys), int(share * len(keys))
    return bool((ordered[lag:] == ordered[: len(keys) - lag]).any())


def _components(entity: HashArray, identical: HashArray) -> HashArray:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    entities, left = np.unique(entity, return_inverse=True)
    contents, right = np.unique(identical, return_inverse=True)
    if len(contents) == len(identical):
        return entity
    size = len(entities) + len(contents)
    graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right + len(entities))), shape=(size, size))
    _, label = connected_components(graph, directed=False)
    key = np.full(label.max() + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(key, label[: len(entities)], entities)
    return np.asarray(key[label[left]], dtype=np.uint64)


def development(
    train: Rows, validation: Rows, config: settings.SplitSettings, label_delay: timedelta = timedelta(0), seed: int = 0
) -> tuple[Rows, tuple[Fold, ...]]:
    """Return the rows on which candidates are compared, and the folds that score them out of sample.

    Time: forward windows over the validation rows, each fitted on everything that was labelled before it. Otherwise
    stratified (or grouped) folds over all rows, whatever they hold where no positives can be dealt out, repeated where
    positives are few: under 30 five times, under 100 three; at most three folds where rows and positives are so many
    that time is scarcer than either.
    """
    dev = concatenate([train, validation])
    kind = resolve_kind(config, has_time=dev.time is not None, has_entity=dev.entity is not None)
    if kind == "time":
        assert dev.time is not None
        scored = np.arange(len(dev)) >= len(train)
        options: dict[str, Any] = {"windows": config.windows, "label_delay": label_delay}
        try:
            folds = forward_folds(dev.time, dev.y, scored, **options)
        except DataError:
            if dev.positives >= FEWEST:
                raise
            folds = forward_folds(dev.time, np.zeros_like(dev.y), scored, **options)
    else:
        repeats = max(config.repeats, 5 if dev.positives < FEW else 3 if dev.positives < SOME else 1)
        keys = units(content_groups(dev.x), dev.entity if kind == "grouped" else None)
        many = len(dev) > MANY_ROWS and dev.positives > MANY_POSITIVES
        count = min(config.folds, 3) if many else config.folds
        y = dev.y if dev.positives >= FEWEST or len(np.unique(keys[dev.y == 1])) > 1 else np.zeros_like(dev.y)
        folds = stratified_folds(y, keys, folds=count, repeats=repeats if y.any() else 1, seed=seed)
    return dev, as_split(folds, dev, config, kind)


def as_split(folds: Sequence[Fold], rows: Rows, config: settings.SplitSettings, kind: str) -> tuple[Fold, ...]:
    """Leave out of the folds what the split leaves out of the parts: rows of entities that a fit has seen.

    Raises DataError when ``split.entities_apart`` leaves nothing to score.
    """
    if rows.entity is None:
        return tuple(folds)
    if kind == "time" and config.entities_apart:
        folds = _folds_apart(folds, rows.y, rows.entity)
    if config.drop_known_entities:
        folds = [_unknown_only(fold, rows.y, rows.entity) for fold in folds]
    return tuple(folds)


def _folds_apart(folds: Sequence[Fold], y: IntArray, entity: HashArray) -> tuple[Fold, ...]:
    """Drop the scored rows of entities that a fold was fitted on, and folds that have none left."""
    disjoint = (Fold(f.train, f.score[~np.isin(entity[f.score], entity[f.train])], f.repeat) for f in folds)
    apart = tuple(fold for fold in disjoint if len(fold.score))
    if not any(y[fold.score].any() for fold in apart):
        raise DataError(
            "split.entities_apart leaves no positive of a new entity in the validation windows. "
            "Set split.validation higher, split.windows lower, or split.entities_apart: false"
        )
    return apart


def _unknown_only(fold: Fold, y: IntArray, entity: HashArray) -> Fold:
    caught = np.unique(entity[fold.train[y[fold.train] == 1]])
    keep = ~np.isin(entity[fold.score], caught)
    usable = keep if y[fold.score[keep]].any() else np.ones(len(keep), dtype=bool)
    return Fold(fold.train, fold.score[usable], fold.repeat)


def forward_folds(
    time: TimeArray, y: IntArray, scored: BoolArray, *, windows: int, label_delay: timedelta = timedelta(0)
) -> tuple[Fold, ...]:
    """Cut the ``scored`` rows into windows of about equal size; each is fitted on all rows one label delay before it.

    Windows without a positive are joined with the next one, where there is any. Raises DataError when nothing can be
    fitted or scored.
    """
    span = time[scored]
    if not len(span):
        raise DataError("there are no rows to score forward in time. Set split.validation higher")
    days = bool(span.max() - span.min() >= np.timedelta64(10 * windows, "D"))
    edges = _window_edges(span, y[scored], windows, days)
    gap, least = np.timedelta64(label_delay), 1 if y.any() else 0
    folds = []
    for position, start in enumerate(edges):
        inside = scored & (time >= start)
        if position + 1 < len(edges):
            inside &= time < edges[position + 1]
        fit = np.flatnonzero(time < start - gap)
        if least <= np.count_nonzero(y[fit]) < len(fit):
            folds.append(Fold(fit, np.flatnonzero(inside)))
    if not folds or (least and not any(y[fold.score].any() for fold in folds)):
        raise DataError(
            "no window of the validation rows has positives both before and inside it. "
            "Set split.validation higher, split.windows lower, or split.kind: stratified"
        )
    return tuple(folds)


def _window_edges(time: TimeArray, y: IntArray, windows: int, days: bool) -> list[np.datetime64]:
    """First times of the windows: distinct, and each window with at least one positive."""
    ordered = np.sort(time)
    starts = [ordered[len(ordered) * number // windows] for number in range(windows)]
    if days:
        starts = [starts[0], *(start.astype("datetime64[D]").astype(time.dtype) for start in starts[1:])]
    positive = np.sort(time[y == 1])
    edges = [starts[0]]
    for start in sorted(set(starts[1:])):
        in_last = np.searchsorted(positive, start) - np.searchsorted(positive, edges[-1])
        parted = in_last > 0 and np.searchsorted(positive, start) < len(positive)
        if start > edges[-1] and (parted or not len(positive)):
            edges.append(start)
    return edges


def stratified_folds(y: IntArray, keys: HashArray, *, folds: int, repeats: int = 1, seed: int = 0) -> tuple[Fold, ...]:
    """Return ``repeats`` partitions into ``folds`` (fewer where fewer units have positives); units stay together.

    y : (n,) 0 or 1 · keys : (n,) equal for rows that stay together
    Units are dealt out in the order of their positives, then size, then hash, back and forth over the folds.
    Raises DataError when fewer than two units hold a positive, where there are any, or a negative.
    """
    distinct, code = np.unique(keys, return_inverse=True)
    size = np.bincount(code)
    positives = np.bincount(code, weights=y).astype(np.int64)
    count = min(folds, int(np.count_nonzero(positives)) if y.any() else len(distinct))
    if count < 2 or np.count_nonzero(positives < size) < 2:
        raise DataError(
            f"only {np.count_nonzero(positives)} group(s) of rows hold a positive outside the test part: "
            "two are needed "
            "for cross-fitting. Bring more labelled positives, or set split.test lower"
        )
    made = []
    for repeat in range(repeats):
        order = np.lexsort((mix(distinct, _salt(seed, 7919 + repeat)), -size, -positives))
        fold_of_unit = np.empty(len(distinct), dtype=np.int64)
        fold_of_unit[order] = _deal(len(distinct), count)
        fold_of = fold_of_unit[code]
        made += [Fold(np.flatnonzero(fold_of != k), np.flatnonzero(fold_of == k), repeat) for k in range(count)]
    return tuple(made)


def _deal(length: int, folds: int) -> IntArray:
    """0 1 2 2 1 0 0 1 2 ...: no fold is always first."""
    cycle = np.concatenate([np.arange(folds), np.arange(folds)[::-1]])
    return np.asarray(np.resize(cycle, length), dtype=np.int64)


def prequential(
    rows: Rows, *, windows: int, label_delay: timedelta = timedelta(0), share: float = 0.5
) -> tuple[Fold, ...]:
    """Return folds over the last ``share`` of the rows, each fitted on everything labelled before its window.

    Source: Gama, Sebastiao and Rodrigues, Machine Learning 2013; with the delay of Dal Pozzolo et al., 2018.
    Raises DataError when the rows have no time.
    """
    if rows.time is None:
        raise DataError("prequential folds need a time. Set data.time, or split.prequential: 0")
    first = _cut(rows.time, rows.y, share, False)
    return forward_folds(rows.time, rows.y, rows.time >= first, windows=windows, label_delay=label_delay)


def describe(parts: Sequence[tuple[str, Rows]]) -> dict[str, dict[str, Any]]:
    """Return rows, positives, prevalence and the range of times of each named part."""
    table: dict[str, dict[str, Any]] = {}
    for name, rows in parts:
        table[name] = {
            "rows": len(rows),
            "positives": rows.positives,
            "prevalence": rows.prevalence if len(rows) else None,
        }
        if rows.time is not None and len(rows):
            table[name] |= {"from": str(rows.time.min()), "to": str(rows.time.max())}
    return table
