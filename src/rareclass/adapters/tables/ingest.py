"""Read labelled history once: project, filter, encode, check and split it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from rareclass.adapters.tables import card, divided, streaming
from rareclass.adapters.tables.columns import decide, format_of
from rareclass.adapters.tables.demos import demo_file
from rareclass.adapters.tables.encoding import Encoder, reorder, without_columns
from rareclass.adapters.tables.opening import open_source
from rareclass.adapters.tables.reader import OF_ROWS, Raw, Reader, ReadPlan
from rareclass.adapters.tables.room import Room
from rareclass.adapters.tables.sources import Source, conditions, kind_of, missing_column
from rareclass.config import Config, DataSettings
from rareclass.core import checks, splitting
from rareclass.core.checks import Finding
from rareclass.core.dataset import AnyArray, BoolArray, Feature, Rows, Schema
from rareclass.core.drawn import natural_sample
from rareclass.core.engines import ALONE, ComputeEngine
from rareclass.core.gating import Champion, NotComparable
from rareclass.core.hashing import CHUNK, data_hash
from rareclass.core.outliers import leave_out
from rareclass.core.times import TimeReading
from rareclass.core.transfer import Lender
from rareclass.errors import DataError, NoLabelsError
from rareclass.masking import masked

Progress = Callable[[str], None]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Ingested:
    """Labelled history, set apart.

    card : source, rows, prevalence by split and by time, missing shares, categories, content_hash; JSON-ready
    positive_value : the text of the target's rare class
    train_kept : share of negatives kept relative to positives by `train.filter` and `train.majority_quantile` in the
        training part; 1 = all. They stay in ``train``, marked in ``keep``: no fit sees them
    incumbent : what the champion says to the test rows, or why it cannot be compared; the service fills it in
    incumbent_everywhere : what it says to training, validation and test rows, where all of them judge
        (core.crossfitting)
    rest : labelled rows that judge and choose nothing, because they lie in a gap of the split or belong to known
        entities; the final fit takes them, too
    beyond : of a table that is larger than memory, all validation and test rows; the parts are a weighted sample then
    lender : what a related domain lends to fits (`transfer`); the service fills it in
    """

    train: Rows
    validation: Rows
    test: Rows
    schema: Schema
    card: dict[str, Any]
    warnings: list[Finding]
    positive_value: Any
    train_kept: float = 1.0
    kind: str = "stratified"
    dropped: dict[str, int] = field(default_factory=dict)
    incumbent: Champion | NotComparable | None = None
    rest: Rows | None = None
    incumbent_everywhere: Champion | None = None
    beyond: streaming.Beyond | None = None
    lender: Lender | None = None

    @property
    def judging(self) -> Rows:
        """All rows of the test part; without their features where the table is larger than memory."""
        return self.test if self.beyond is None else self.beyond.rows["test"]


def location(data: DataSettings) -> str:
    """Return where the rows are: ``data.path``, or the file of ``demo:NAME`` (made when it is not there)."""
    return str(demo_file(data.path.removeprefix("demo:"))) if data.path.startswith("demo:") else data.path


def open_data(data: DataSettings) -> Source:
    """Open ``data.path``; ``demo:NAME`` is demo data."""
    path = location(data)
    text = [*data.categorical, *filter(None, (data.id, data.entity, data.target))]
    return open_source(path, data.query, text=text, form=format_of(data))


def time_reading(data: DataSettings) -> TimeReading:
    """Return how `data.time` is read, decided from its values in the rows that `data.filter` keeps, as a run does.

    Raises DataError where they leave it open.
    """
    source = open_data(data)
    if data.time not in source.columns:
        raise missing_column(str(data.time), source.columns, "data.time")
    found = decide(data, source, [], conditions(data.filter, source.columns, "data.filter")).time
    assert found is not None
    return found


def ingest(config: Config, progress: Progress | None = None, engine: ComputeEngine = ALONE) -> Ingested:
    """Read the source once, in batches, and return its rows checked, encoded and split.

    engine : whose workers read the parts of a table that can be divided; what is returned does not depend on them

    Numbers become float32, texts and booleans categories learned from the training rows. The three parts are views of
    one matrix. Of a table that needs more than `compute.memory` they are a weighted sample, read in a second pass, and
    ``beyond`` reads all validation and test rows. Raises DataError, ConfigError or NoPositivesError with one line.
    """
    say = progress or (lambda message: None)
    return _labelled_or_not(lambda settings, tell: _ingest(settings, tell, engine), config, say)


def _labelled_or_not(read: Callable[[Config, Progress], _T], config: Config, say: Progress) -> _T:
    """Read, once more without a target where not a single row has a value of it."""
    try:
        return read(config, say)
    except NoLabelsError as error:
        say(f"{error}: the rows count as not labelled")
        return read(without_target(config), say)


def _ingest(config: Config, say: Progress, engine: ComputeEngine) -> Ingested:
    source, room = open_data(config.data), Room.of(config)
    reading = _read(config, source, ReadPlan.of(config, source), room, say, engine)
    raw = reading.first
    say(f"{len(raw.y):,} rows read; splitting")
    if raw.counts is not None and room is not None:
        return _streamed(reading, room, say)
    warnings = _checked(config, raw)
    content_hash = data_hash(raw.digest[True], raw.digest[False], raw.encoder.names)
    parts = _split(config, raw)
    raw.content = None
    return _ingested(config, raw, parts, warnings, content_hash)


def _read(
    config: Config, source: Source, plan: ReadPlan, room: Room | None, say: Progress, engine: ComputeEngine = ALONE
) -> streaming.TableReading:
    say(f"{source.rows:,} rows, {len(plan.features)} features" if source.rows else f"{len(plan.features)} features")
    if parts := divided.parts_of(source, engine, say):
        raw, ends = divided.read(config, source, plan, room, parts, engine, say)
        found = streaming.TableReading(config, source, plan, raw, parts, ends, engine)
        whole = room is None or len(raw.y) <= room.rows(len(plan.features))
        return replace(found, first=_held(found)) if whole else found

    def use(batch: pa.RecordBatch) -> None:
        reader.take(batch)
        if reader.read % 1_000_000 < batch.num_rows:
            say(f"{reader.read:,} rows read")

    with ThreadPoolExecutor(config.compute.processors()) as pool:
        reader = Reader(config, source, plan, pool.map, room=room)
        for batch in source.scan(plan.names, plan.filter, plan.extra):
            use(batch)
    pa.default_memory_pool().release_unused()
    return streaming.TableReading(config, source, plan, reader.done())


def _held(reading: streaming.TableReading) -> Raw:
    """Return all rows of a table that fits into memory, as one reading gives them."""
    raw = reading.first
    found = streaming.chosen_rows(reading, np.ones(len(raw.y), dtype=bool))
    return replace(found, content=raw.content)


def _split(config: Config, raw: Raw) -> splitting.Split:
    return splitting.split(
        y=raw.y,
        row_id=raw.row_id if raw.content is None else raw.content,
        time=raw.time,
        entity=raw.entity,
        config=config.split,
        label_delay=config.data.label_delay,
        seed=config.train.seed,
    )


def without_target(config: Config) -> Config:
    """Return the configuration for rows of which none is labelled: the column of the target is no feature."""
    data = config.data
    drop = data.drop if data.target is None else (*data.drop, data.target)
    return config.model_copy(update={"data": data.model_copy(update={"target": None, "drop": drop})})


def survey(config: Config, progress: Progress | None = None) -> tuple[Rows, list[Finding]]:
    """Read the source once and return all its rows, checked and encoded but not split, and the warnings.

    Categories are learned from all rows, so nothing may be trained on these. Raises as `ingest` does.
    """
    say = progress or (lambda message: None)
    return _labelled_or_not(_survey, config, say)


def _survey(config: Config, say: Progress) -> tuple[Rows, list[Finding]]:
    source, room = open_data(config.data), Room.of(config)
    reading = _read(config, source, ReadPlan.of(config, source), room, say)
    raw = reading.first
    if raw.counts is not None and room is not None:
        place = np.zeros(len(raw.y), dtype=np.int8)
        raw, warnings, _ = _sampled(reading, place, room, say, judged=False)
    else:
        warnings = _checked(config, raw)
    features = raw.encoder.finish(raw.x, slice(None), config.data.max_categories)
    schema = Schema(tuple(features), raw.roles(config.data))
    y = raw.y.astype(np.int64)
    rows = Rows(schema, raw.x, y, raw.row_id, raw.time, raw.entity, raw.amount, raw.weight, drawn=raw.drawn)
    return rows, warnings


def _checked(config: Config, raw: Raw) -> list[Finding]:
    whole = Rows(Schema(tuple(_provisional(raw.encoder))), raw.x, raw.y, raw.row_id, raw.time)
    warnings = [*raw.findings, *checks.check_rows(whole, config.data, raw.content)]
    _clean(raw)
    return warnings


def _sampled(
    reading: streaming.TableReading, place: AnyArray, room: Room, say: Progress, judged: bool = True
) -> tuple[Raw, list[Finding], streaming.Drawn]:
    """Check what was counted of a table that is larger than memory, and return a sample of it.

    It is marked in ``place``.
    """
    config, raw = reading.config, reading.first
    counts, data = raw.counts, config.data
    assert counts is not None
    repeated = (0, 0) if raw.content is None else checks.repeated(raw.content, raw.y)
    warnings = [
        *raw.findings,
        *checks.check_counted(
            raw.encoder.names,
            len(raw.y),
            infinite=counts.infinite,
            filled=counts.filled,
            repeated=repeated,
            by_time=raw.time is not None,
            data=data,
        ),
    ]
    raw.content = None
    drawn = streaming.draw(raw, place, room, config.train.seed)
    say(drawn.in_words(judged))
    sample = streaming.take(reading, place, drawn)
    provisional = Rows(
        Schema(tuple(_provisional(raw.encoder))), sample.x, sample.y, sample.row_id, sample.time, drawn=sample.drawn
    )
    warnings += checks.enforce(list(checks.check_leaks(provisional, data.checks)))
    warnings.append(Finding("larger_than_memory", "warning", None, drawn.in_words(judged)))
    _clean(sample)
    return sample, warnings, drawn


def _streamed(reading: streaming.TableReading, room: Room, say: Progress) -> Ingested:
    """Split a table that is larger than memory, and bring a sample of it into the shape of one that is not."""
    config, raw = reading.config, reading.first
    content_hash = data_hash(raw.digest[True], raw.digest[False], raw.encoder.names)
    parts = _split(config, raw)
    place = streaming.place_of(len(raw.y), parts)
    parts = replace(parts, train=place[:0], validation=place[:0], test=place[:0])  # 8 bytes a row, all in ``place`` now
    sample, warnings, drawn = _sampled(reading, place, room, say)
    whole = streaming.by_part(raw, place)
    there = place[place >= streaming.DRAWN] - streaming.DRAWN
    own: dict[str, Any] = {name: np.flatnonzero(there == code) for name, code in streaming.PARTS.items()}
    found = _ingested(config, sample, replace(parts, **own), warnings, content_hash)
    named = list(whole.items())
    data_card = found.card | {
        "rows": {name: len(rows) for name, rows in named} | {"dropped": found.dropped},
        "parts": splitting.describe(named),
        "prevalence": {name: rows.prevalence for name, rows in named},
        "by_time": card.by_time(named),
        "drawn": drawn.to_json(),
    }
    del named, whole["train"]
    for name in OF_ROWS:
        setattr(raw, name, None)  # what is left of it is in ``whole``
    beyond = streaming.Beyond(reading, place, found.schema, drawn, whole)
    return replace(found, card=data_card, beyond=beyond)


def _ingested(config: Config, raw: Raw, parts: splitting.Split, warnings: list[Finding], content_hash: str) -> Ingested:
    """Arrange the rows by the parts of their split, learn the categories and make the data card."""
    data = config.data
    kept, left_out = _kept_for_training(config, raw, parts.train)
    dropped = {**raw.dropped, **{name: count for name, count in parts.dropped.items() if count}, **left_out}
    rest = np.ones(len(raw.y), dtype=bool)
    for part in (parts.train, parts.validation, parts.test):
        rest[part] = False
    order, bounds = _order(len(raw.y), (parts.train, parts.validation, parts.test, np.flatnonzero(rest)))
    boundaries = {**parts.boundaries, "kind": parts.kind}
    del parts, part, rest
    schema = Schema(tuple(raw.encoder.finish(raw.x, order[bounds[0]], data.max_categories)), raw.roles(data))
    _arrange(raw, order, bounds)
    del order
    whole = Rows(
        schema,
        raw.x,
        raw.y.astype(np.int64),
        raw.row_id,
        raw.time,
        raw.entity,
        raw.amount,
        raw.weight,
        keep=raw.keep,
        drawn=raw.drawn,
    )
    train, validation, test, others = (whole.take(where) for where in bounds)
    named = [("train", train.learnable()), ("validation", validation), ("test", test)]
    positive = None if raw.target is None else raw.target.positive
    data_card = {
        "source": masked(data.path),
        "target": data.target,
        "positive": positive,
        "target_values": raw.values,
        "rows": {name: len(rows) for name, rows in named} | {"dropped": dropped},
        "parts": splitting.describe(named),
        "split": boundaries,
        "train_kept": kept,
        "prevalence": {name: rows.prevalence for name, rows in named},
        "by_time": card.by_time(named),
        "features": card.described([("train", natural_sample(named[0][1]))]),
        "content_hash": content_hash,
        "warnings": [each.message for each in warnings],
    }
    return Ingested(
        train,
        validation,
        test,
        schema,
        data_card,
        warnings,
        positive,
        kept,
        boundaries["kind"],
        dropped,
        rest=others if len(others) else None,
    )


def _provisional(encoder: Encoder) -> list[Feature]:
    """The features while the order of their categories is not known yet."""
    return [
        Feature(name) if levels is None else Feature(name, "categorical", tuple(levels.texts()))
        for name, levels in zip(encoder.names, encoder.levels, strict=True)
    ]


def _clean(raw: Raw) -> None:
    """Make infinite values missing and leave out columns without any value, as the warnings say."""
    empty = np.ones(raw.x.shape[1], dtype=bool)
    for start in range(0, len(raw.x), CHUNK):
        part = raw.x[start : start + CHUNK]
        part[np.isinf(part)] = np.nan
        empty &= np.isnan(part).all(axis=0)
    if empty.all():
        raise DataError("every feature is missing in every row. Set data.path or data.columns to rows with values")
    if empty.any():
        raw.x = without_columns(raw.x, ~empty)
        raw.encoder.names = [name for name, gone in zip(raw.encoder.names, empty, strict=True) if not gone]
        raw.encoder.levels = [levels for levels, gone in zip(raw.encoder.levels, empty, strict=True) if not gone]


def _kept_for_training(config: Config, raw: Raw, train: AnyArray) -> tuple[float, dict[str, int]]:
    """Mark in ``raw.keep`` what `train.filter`, `.majority_quantile` and `.outliers` leave for fits, in every part of
    the split.

    The quantiles are those of the training part. Returns the share of its negatives kept per positive kept, and counts
    there.
    """
    if raw.keep is None and config.train.majority_quantile == 1 and not config.train.outliers:
        return 1.0, {}
    keep = np.ones(len(raw.y), dtype=bool) if raw.keep is None else raw.keep.astype(bool)

    def rows(marked: BoolArray) -> int:  # of the table that these were drawn from
        return int(marked.sum()) if raw.drawn is None else round(float((1.0 / raw.drawn[train][marked]).sum()))

    left_out = {} if raw.keep is None else {"train_filter": rows(~keep[train])}
    numeric = [at for at, levels in enumerate(raw.encoder.levels) if levels is None]
    for name, outlying in leave_out(raw.x, raw.y, raw.encoder.names, numeric, keep, train, config.train):
        left_out[name] = left_out.get(name, 0) + rows(outlying[train])
    raw.keep = keep
    if not raw.y[train].any():
        return 1.0, left_out
    shares = [keep[train][raw.y[train] == label].mean() for label in (0, 1)]
    if min(shares) == 0:
        what = "negative" if not shares[0] else "positive"
        raise DataError(
            f"train.filter, train.majority_quantile and train.outliers leave no {what} in the training rows. "
            "Set them so that both classes are left"
        )
    return float(shares[0] / shares[1]), left_out


def _order(count: int, parts: Sequence[AnyArray]) -> tuple[AnyArray, list[slice]]:
    """Return the positions of the parts one after the other, and the place of each part."""
    order = np.concatenate(parts, dtype=np.uint32 if count < 2**32 else np.int64, casting="unsafe")
    ends = np.cumsum([len(part) for part in parts])
    return order, [slice(int(end) - len(part), int(end)) for part, end in zip(parts, ends, strict=True)]


def _arrange(raw: Raw, order: AnyArray, bounds: Sequence[slice]) -> None:
    """Sort the rows of each part by time and id, one part after the other, in place.

    The order of the source does not matter after this, and the parts need no second copy of the matrix.
    """
    for bound in bounds:
        _sort(raw, order[bound])
    for array in (raw.x, raw.y, raw.row_id, raw.time, raw.entity, raw.amount, raw.weight, raw.keep, raw.drawn):
        if array is not None:
            reorder(array, order)


def _sort(raw: Raw, part: AnyArray) -> None:
    """Sort positions by time, then id, in place; ids are only compared within about CHUNK rows at a time."""
    if raw.time is None:
        part[:] = part[np.argsort(raw.row_id[part])]
        return
    time = raw.time[part]
    if (time[1:] < time[:-1]).any():
        by_time = np.argsort(time, kind="stable")
        part[:], time[:] = part[by_time], time[by_time]
        del by_time
    start = 0
    while start < len(part):
        end = min(start + CHUNK, len(part))
        end = int(np.searchsorted(time, time[end - 1], side="right"))  # equal times stay in one piece
        piece = part[start:end]
        piece[:] = piece[np.lexsort([raw.row_id[piece], time[start:end]])]
        start = end


def columns_of(data: DataSettings) -> Mapping[str, str]:
    """Return the columns of the source and what they hold: number, category, time, nested or empty."""
    return {name: kind_of(kind) for name, kind in open_data(data).columns.items()}
