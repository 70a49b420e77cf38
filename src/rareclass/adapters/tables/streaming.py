"""A table that is larger than memory: read twice before training, and once more when the chosen recipe scores it.

The first reading keeps what tells rows apart (target, id, time, entity) and counts the rest; the split is made of that,
so it is the one that the whole table would get. The second one takes every row of the rare class and a share of the
others, drawn by the hash of their ids: the same rows again whatever else the table holds. ``Rows.drawn`` says with
which probability, and ``Rows.weight`` what each row stands for. The third streams all validation and test rows through
the recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import floor, log10
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rareclass.adapters.tables.columns import frame_of
from rareclass.adapters.tables.divided import joined_arrays, spans, trimmed, without_secrets
from rareclass.adapters.tables.encoding import Grown, Map
from rareclass.adapters.tables.reader import OF_ROWS, Raw, Reader, ReadPlan
from rareclass.adapters.tables.room import LEAST, Room, in_words
from rareclass.adapters.tables.sources import Source
from rareclass.config import Config
from rareclass.core.dataset import AnyArray, BoolArray, FloatMatrix, Rows, Schema
from rareclass.core.engines import ALONE, ComputeEngine
from rareclass.core.hashing import CHUNK, unit
from rareclass.core.splitting import Split
from rareclass.errors import DataError

TRAIN, VALIDATION, TEST, REST = range(4)
PARTS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
DRAWN = 4  # added to the part of a row that is in the sample
_SALT = 611_953
_PROBES = 256  # rows of a batch whose ids are compared when the table is read again


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was taken of the table.

    memory : bytes that this process should stay below · rows, positives : in the table; sampled : of them in the sample
    positives_rate, negatives_rate : share of each class in the sample
    """

    memory: int
    rows: int
    positives: int
    sampled: int
    positives_rate: float
    negatives_rate: float

    def to_json(self) -> dict[str, Any]:
        """Return what the data card says of the sample."""
        return {
            "memory_bytes": self.memory,
            "rows": self.rows,
            "positives": self.positives,
            "sampled": self.sampled,
            "positives_rate": self.positives_rate,
            "negatives_rate": self.negatives_rate,
        }

    def in_words(self, judged: bool = True) -> str:
        """One sentence for a person. judged : whether all validation and test rows are scored, as in a run"""
        positives = "all" if self.positives_rate == 1 else f"{self.positives_rate:.3g} of the"
        does, rest = ("trained on", "; all validation and test rows are scored") if judged else ("described by", "")
        return (
            f"{self.rows:,} rows are more than {in_words(self.memory)} of memory hold: "
            f"{does} {self.sampled:,} of them, "
            f"{positives} {self.positives:,} of the rare class and {self.negatives_rate:.3g} of the others, by "
            f"hash{rest}"
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a part. at : their place among the part's rows · table : the columns that were asked for, as
    they are written"""

    part: str
    at: slice
    x: FloatMatrix
    table: pd.DataFrame | None


Look = Callable[[Piece, Rows], Any]
"""What is made of some rows of a part: with their features, and all else that is known of them."""


def rates(rows: int, positives: int, most: int) -> tuple[float, float]:
    """Return the share of positives and of negatives to take so that about ``most`` rows are: all positives where they
    take up to half of it. Rounded down to three digits, so that about equal memories draw equal samples."""
    negatives = rows - positives
    if positives <= most / 2:
        return 1.0, _three_digits((most - positives) / max(1, negatives))
    return _three_digits(most / 2 / positives), _three_digits(most / 2 / max(1, negatives))


def _three_digits(share: float) -> float:
    if share >= 1:
        return 1.0
    scale = 10.0 ** (2 - floor(log10(share)))
    return floor(share * scale) / scale


def place_of(count: int, parts: Split) -> AnyArray:
    """Return (n,) int8, the part of each row."""
    place = np.full(count, REST, dtype=np.int8)
    for name, code in PARTS.items():
        place[getattr(parts, name)] = code
    return place


def draw(raw: Raw, place: AnyArray, room: Room, seed: int) -> Drawn:
    """Mark the rows of the sample in ``place``. Raises DataError when it would be too small to learn from."""
    rows, positives = len(raw.y), int(np.count_nonzero(raw.y))
    beside = _bytes_beside(raw, place)
    most = room.rows(len(raw.encoder.names), beside)
    if most < LEAST:
        raise DataError(
            f"{rows:,} rows leave no room for a sample to train on below {in_words(room.memory)} (compute.memory; "
            "default: .8 of what the "
            "process may use). Set compute.memory higher, or keep fewer rows with data.filter"
        )
    of_positives, of_negatives = rates(rows, positives, most)
    sampled = 0
    for start in range(0, rows, CHUNK):
        part = slice(start, start + CHUNK)
        drawn = unit(raw.row_id[part], seed * 1_000_003 + _SALT) < np.where(
            raw.y[part] == 1, of_positives, of_negatives
        )
        place[part] += np.where(drawn, DRAWN, 0).astype(np.int8)
        sampled += int(np.count_nonzero(drawn))
    return Drawn(room.memory, rows, positives, sampled, of_positives, of_negatives)


def _bytes_beside(raw: Raw, place: AnyArray) -> int:
    """What stays of validation and test rows while candidates are trained, and what judging them takes, in bytes."""
    kept = sum(
        array.itemsize for array in (raw.row_id, raw.time, raw.entity, raw.amount, raw.weight) if array is not None
    )
    judged = int(np.count_nonzero((place == VALIDATION) | (place == TEST)))
    return len(place) + judged * (kept + 8 + 8)  # label and score


def by_part(raw: Raw, place: AnyArray) -> dict[str, Rows]:
    """Return everything that is kept of the rows of each part but their features; of the training rows what the card
    shows.
    """
    found, nothing = {}, Schema(())
    for name, code in PARTS.items():
        here = np.flatnonzero((place & (DRAWN - 1)) == code).astype(np.uint32 if len(place) < 2**32 else np.int64)
        if code == TRAIN and raw.keep is not None:
            here = here[raw.keep[here]]
        given = {
            name: None if array is None else array[here]
            for name, array in (("time", raw.time), *(() if code == TRAIN else _others(raw)))
        }
        y = raw.y[here] if code == TRAIN else raw.y[here].astype(np.int64)
        row_id = np.empty(0, dtype=np.uint64) if code == TRAIN else raw.row_id[here]
        found[name] = Rows(nothing, np.empty((len(here), 0), dtype=np.float32), y, row_id, **given)
    return found


def _others(raw: Raw) -> tuple[tuple[str, AnyArray | None], ...]:
    return (("entity", raw.entity), ("amount", raw.amount), ("weight", raw.weight))


class _Again(Reader):
    """Reads the same rows in the same order again."""

    def __init__(self, config: Config, source: Source, plan: ReadPlan, first: Raw, at_once: Map) -> None:
        super().__init__(config, source, plan, at_once, readings=first.encoder.readings)
        self.first, self.at = first, 0
        self.encoder, self.targets = first.encoder, first.levels
        self.grouped = self.hashed = False
        self.content = None
        self.x = Grown(np.float32, len(plan.features))

    def levels_known(self) -> int:
        """How many categories there are in all columns."""
        assert self.encoder is not None
        return sum(len(levels.code) for levels in self.encoder.levels if levels is not None)

    def _same(self, batch: pa.RecordBatch, target: AnyArray) -> slice:
        """Return the places of a batch's rows. Raises DataError where they are not those of the first reading."""
        here = slice(self.at, self.at + batch.num_rows)
        self.at = here.stop
        rare = self.first.rare
        assert rare is not None
        known = int(target.max(initial=0)) < len(rare)
        if here.stop > len(self.first.y) or not known or not np.array_equal(rare[target], self.first.y[here] == 1):
            raise changed(self.source)
        return here


def changed(source: Source) -> DataError:
    """The error for a table that is not what it was when it was read first."""
    return DataError(
        f"'{source.label}' gave other rows, or in another order, when it was read again: "
        "it changed meanwhile, or it is a query without an "
        "order. Add ORDER BY to data.query, read from a copy, or set compute.memory so that one reading is enough"
    )


def _scan(source: Source, names: Sequence[str], plan: ReadPlan) -> Iterator[pa.RecordBatch]:
    """Read again. Raises DataError also where a file is no longer the one that was opened."""
    try:
        yield from source.scan(names, plan.filter, plan.extra)
    except (pa.ArrowException, OSError):
        raise changed(source) from None


class _Taking(_Again):
    """Keeps the rows of the sample."""

    def __init__(self, *arguments: Any, chosen: BoolArray) -> None:
        super().__init__(*arguments)
        self.chosen = chosen

    def _append(self, batch: pa.RecordBatch, target: AnyArray, time: AnyArray | None) -> None:
        chosen = self.chosen[self._same(batch, target)]
        if chosen.any():
            taken = batch.filter(pa.array(chosen)) if not chosen.all() else batch
            super()._append(taken, target[chosen], None if time is None else time[chosen])


@dataclass(frozen=True, eq=False)
class TableReading:
    """A table that was read once, and how it is read again.

    parts : what workers of the engine read; none where this process reads the table from end to end
    ends : how many rows there are up to the end of each part
    """

    config: Config
    source: Source
    plan: ReadPlan
    first: Raw
    parts: Sequence[Source] = ()
    ends: Sequence[int] = ()
    engine: ComputeEngine = ALONE

    def divided(self) -> Iterator[tuple[Source, AnyArray, slice]]:
        """Yield each part, the labels of its rows, and its rows among those of the table."""
        for source, rows in zip(self.parts, spans(self.ends), strict=True):
            yield source, self.first.y[rows], rows

    def of_part(self, source: Source, y: AnyArray) -> TableReading:
        """Return the reading of one part, of what is shared by all."""
        return replace(self, source=source, first=replace(self.first, y=y))

    def shared(self) -> TableReading:
        """What workers need for every part."""
        return replace(
            self, config=without_secrets(self.config), first=trimmed(self.first), parts=(), ends=(), engine=ALONE
        )


def chosen_rows(reading: TableReading, chosen: BoolArray) -> Raw:
    """Return the chosen rows with their features, in the order of the source. Raises DataError when it changed."""
    first, source = reading.first, reading.source
    if reading.parts:
        jobs = ((part, y, chosen[rows]) for part, y, rows in reading.divided())
        found = reading.engine.map(_chosen_of_part, jobs, reading.shared())
        width = len(first.encoder.names)
        taken = joined_arrays(found, int(np.count_nonzero(chosen)), width)
    else:
        with ThreadPoolExecutor(reading.config.compute.processors()) as pool:
            taken = _chosen(reading, chosen, pool.map)
    if not np.array_equal(taken["row_id"], first.row_id[chosen]):
        raise changed(source)
    given: dict[str, Any] = {name: taken.get(name) for name in OF_ROWS}
    return replace(first, x=taken["x"], y=first.y[chosen], content=None, counts=None, **given)


def _chosen(reading: TableReading, chosen: BoolArray, at_once: Map = map) -> dict[str, AnyArray]:
    """Return the arrays of the chosen rows by name. Raises DataError when the source is not what it was."""
    source, plan = reading.source, reading.plan
    reader = _Taking(reading.config, source, plan, reading.first, at_once, chosen=chosen)
    known = reader.levels_known()
    for batch in _scan(source, plan.names, plan):
        reader.take(batch)
    assert reader.x is not None
    if reader.at != len(reading.first.y) or reader.levels_known() != known:
        raise changed(source)
    given = {name: getattr(reader, name) for name in OF_ROWS}
    return {"x": reader.x.done()} | {name: grown.done() for name, grown in given.items() if grown is not None}


def _chosen_of_part(shared: TableReading, job: tuple[Source, AnyArray, BoolArray]) -> dict[str, AnyArray]:
    source, y, chosen = job
    return _chosen(shared.of_part(source, y), chosen)


def take(reading: TableReading, place: AnyArray, drawn: Drawn) -> Raw:
    """Return the sample: the marked rows, with their weights. Raises DataError when the source changed."""
    sample = chosen_rows(reading, place >= DRAWN)
    probability = np.where(sample.y == 1, drawn.positives_rate, drawn.negatives_rate)
    weight = 1.0 / probability if sample.weight is None else sample.weight / probability
    return replace(sample, weight=weight, drawn=probability)


@dataclass(frozen=True, eq=False)
class Beyond:
    """All validation and test rows of a table that is larger than memory; they are read whenever they are asked for.

    rows : by part, everything of them but their features, in the order of the source
    """

    reading: TableReading
    place: AnyArray
    schema: Schema
    drawn: Drawn
    rows: Mapping[str, Rows]

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the source."""
        return list(self.reading.source.columns)

    def each(
        self, looks: Mapping[str, Look], columns: Sequence[str] = (), progress: Callable[[str], None] | None = None
    ) -> Iterator[tuple[str, slice, Any]]:
        """Yield what ``looks`` say of all rows of their parts: the part, places among its rows in order, what was said.

        looks : by part, what is called with some of its rows; other processes may be sent it
        """
        if not self.reading.parts:
            yield from _looked(self, looks, columns, progress)
            return
        before, done = dict.fromkeys(looks, 0), 0
        shared = replace(self, reading=self.reading.shared(), rows={}, place=self.place[:0]), looks, columns
        for found, counts in self.reading.engine.map(_look_at_part, self._divided(tuple(looks)), shared):
            for part, at, said in found:
                yield part, slice(at.start + before[part], at.stop + before[part]), said
            for part, count in counts.items():
                before[part] += count
            done += sum(counts.values())
            if progress is not None:
                progress(f"{done:,} rows scored by {self.reading.engine.workers} workers")

    def _divided(self, parts: Sequence[str]) -> Iterator[tuple[Source, AnyArray, AnyArray, dict[str, Rows]]]:
        before = dict.fromkeys(parts, 0)
        for source, y, rows in self.reading.divided():
            place, own = self.place[rows], {}
            for part in parts:
                end = before[part] + int(np.count_nonzero((place & (DRAWN - 1)) == PARTS[part]))
                own[part], before[part] = self.rows[part].take(slice(before[part], end)), end
            yield source, y, place, own

    def pieces(
        self, parts: Sequence[str], columns: Sequence[str] = (), progress: Callable[[str], None] | None = None
    ) -> Iterator[Piece]:
        """Read the table and yield the rows of the parts, encoded with the schema. Raises DataError when it changed."""
        plan, source = self.reading.plan, self.reading.source
        names = list(dict.fromkeys([*plan.names, *columns]))
        with ThreadPoolExecutor(self.reading.config.compute.processors()) as pool:
            reader = _Judged(self, parts, columns, pool.map)
            for batch in _scan(source, names, plan):
                reader.take(batch)
                if progress is not None and reader.read % 1_000_000 < batch.num_rows:
                    progress(f"{reader.read:,} rows read")
                yield from reader.pieces
                reader.pieces.clear()
        if reader.at != len(self.place):
            raise changed(source)


def _looked(
    beyond: Beyond, looks: Mapping[str, Look], columns: Sequence[str], progress: Callable[[str], None] | None = None
) -> Iterator[tuple[str, slice, Any]]:
    for piece in beyond.pieces(tuple(looks), columns, progress):
        yield piece.part, piece.at, looks[piece.part](piece, beyond.rows[piece.part].take(piece.at))


def _look_at_part(
    shared: tuple[Beyond, Mapping[str, Look], Sequence[str]], job: tuple[Source, AnyArray, AnyArray, dict[str, Rows]]
) -> tuple[list[tuple[str, slice, Any]], dict[str, int]]:
    """Look at the rows of one part of the table; return also how many there are in each part of the split."""
    whole, looks, columns = shared
    source, y, place, rows = job
    reading = whole.reading.of_part(source, y)
    found = list(_looked(replace(whole, reading=reading, place=place, rows=rows), looks, columns))
    return found, {part: len(each) for part, each in rows.items()}


class _Judged(_Again):
    """Encodes the rows of parts, with the categories that the sample taught."""

    def __init__(self, beyond: Beyond, parts: Sequence[str], columns: Sequence[str], at_once: Map) -> None:
        reading = beyond.reading
        super().__init__(reading.config, reading.source, reading.plan, reading.first, at_once)
        self.beyond, self.columns = beyond, list(columns)
        self.pieces: list[Piece] = []
        self.place = beyond.place & (DRAWN - 1)
        self.done_of = dict.fromkeys(parts, 0)

    def _append(self, batch: pa.RecordBatch, target: AnyArray, time: AnyArray | None) -> None:
        here = self.place[self._same(batch, target)]
        for part, done in self.done_of.items():
            chosen = here == PARTS[part]
            if not chosen.any():
                continue
            taken = batch.filter(pa.array(chosen)) if not chosen.all() else batch
            at = slice(done, done + taken.num_rows)
            self.done_of[part] = at.stop
            self._probe(part, at, taken, None if time is None else time[chosen])
            assert self.encoder is not None
            x = np.empty((taken.num_rows, len(self.encoder.names)), dtype=np.float32)
            self.encoder.write(taken, x, None, self.at_once)
            if self.encoder.grown():
                raise changed(self.source)
            x[np.isinf(x)] = np.nan
            self.encoder.recode(x)
            table = frame_of(taken.select(self.columns)) if self.columns else None
            self.pieces.append(Piece(part, at, x, table))

    def _probe(self, part: str, at: slice, batch: pa.RecordBatch, time: AnyArray | None) -> None:
        """Compare the ids of a few rows, or the times of all, with those of the first reading."""
        known = self.beyond.rows[part]
        same = known.time is None or time is None or np.array_equal(known.time[at], time)
        if self.data.id is not None and same:
            few = batch.slice(0, _PROBES)
            ids = self._ids(few, np.empty(0, dtype=np.uint64), None, None)
            same = np.array_equal(ids, known.row_id[at][: len(ids)])
        if not same:
            raise changed(self.source)
