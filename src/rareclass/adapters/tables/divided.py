"""A table that several processes read, each of them some of its parts, put together in the order of the source.

What is put together is what one process would have read, to the bit: codes are given in the order in which values are
met, hashes do not depend on order, and the split is made of all rows. Which part a row lies in changes nothing.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rareclass.adapters.tables.columns import Readings
from rareclass.adapters.tables.encoding import Grown
from rareclass.adapters.tables.reader import OF_ROWS, ColumnCounts, Raw, Reader, ReadPlan
from rareclass.adapters.tables.room import Room
from rareclass.adapters.tables.sources import Source
from rareclass.config import Config, StoreSettings, TrackingSettings
from rareclass.core.dataset import AnyArray
from rareclass.core.engines import ComputeEngine
from rareclass.core.hashing import SetHash

PARTS_OF_A_WORKER = 4
"""Parts that each worker gets, so that one that is late or lost costs little."""
LEAST_ROWS, MOST_ROWS = 65_536, 1_000_000
_KEPT = ("content", *OF_ROWS)


@dataclass(frozen=True, eq=False)
class Shared:
    """What the readers of all parts know."""

    config: Config
    plan: ReadPlan
    readings: Readings


@dataclass(frozen=True, eq=False)
class PartRead:
    """What one part holds, without its features. y : codes of ``targets`` · kept : other arrays of its rows by name"""

    read: int
    lost: Mapping[str, int]
    bad_times: Sequence[pd.Series[Any]]
    types: Mapping[str, pa.DataType]
    y: AnyArray
    targets: Sequence[str]
    kept: Mapping[str, AnyArray]
    digest: Mapping[int, SetHash]
    filled: AnyArray
    infinite: AnyArray
    levels: Sequence[Sequence[str] | None]


def parts_of(source: Source, engine: ComputeEngine, say: Callable[[str], None]) -> Sequence[Source]:
    """Return the parts that an engine's workers read; none where this process reads the source from end to end."""
    if not engine.workers:
        return ()
    if source.divided is None:
        say("the source cannot be divided, so this process reads it: workers read Parquet files of the same columns")
        return ()
    # of a file of this machine, workers of another one would only fall over when they are given a part of it
    if "://" not in source.label and set(engine.on_each(seen_at, source.label)) != {seen_at(source.label)}:
        say(f"the workers do not see '{source.label}', so this process reads it: put it where all of them do")
        return ()
    rows = (source.rows or 0) // (PARTS_OF_A_WORKER * engine.workers)
    return source.divided(min(max(rows, LEAST_ROWS), MOST_ROWS))


def seen_at(path: str) -> tuple[tuple[str, int], ...]:
    """Return the name and the bytes of what a path or a glob of this machine names; a folder counts as 0 bytes."""
    found = [Path(name) for name in sorted(glob.glob(os.path.expanduser(path)))]
    return tuple((str(each), each.stat().st_size if each.is_file() else 0) for each in found)


def without_secrets(config: Config) -> Config:
    """Return what workers need of a configuration: not where the store and the registry are."""
    return config.model_copy(update={"store": StoreSettings(), "tracking": TrackingSettings()})


def read_part(shared: Shared, source: Source) -> PartRead | None:
    """Read one part; None where it has no row."""
    reader = Reader(shared.config, source, shared.plan, readings=shared.readings)
    reader.counts = ColumnCounts(len(shared.plan.features))
    for batch in source.scan(shared.plan.names, shared.plan.filter, shared.plan.extra):
        reader.take(batch)
    return _found(reader) if reader.encoder is not None else None


def _found(reader: Reader) -> PartRead:
    assert reader.encoder is not None
    assert reader.counts is not None
    arrays: dict[str, Grown | None] = {name: getattr(reader, name) for name in _KEPT}
    return PartRead(
        reader.read,
        dict(reader.lost),
        reader.bad_times,
        reader.types,
        reader.y.done(),
        list(reader.targets.code) if reader.targets else [],
        {name: grown.done() for name, grown in arrays.items() if grown is not None},
        reader.digest,
        reader.counts.filled,
        reader.counts.infinite,
        [None if levels is None else list(levels.code) for levels in reader.encoder.levels],
    )


class Joined(Reader):
    """Puts together what was read of the parts, in the order of the source. ends : rows up to the end of each part"""

    def __init__(self, config: Config, source: Source, plan: ReadPlan, room: Room | None) -> None:
        super().__init__(config, source, plan, room=room)
        self.counts = ColumnCounts(len(plan.features))
        self.ends: list[int] = []

    def add(self, part: PartRead | None) -> None:
        """Take in the next part. Raises DataError where it is too much, as a reader of batches does."""
        if part is not None:
            self._begin(part.types)
            self.read += part.read
            for what, count in part.lost.items():
                self.lost[what] += count
            self.bad_times += part.bad_times
            self._add_rows(part)
            self._check_room()
        self.ends.append(self.y.length)

    def _add_rows(self, part: PartRead) -> None:
        assert self.encoder is not None
        assert self.counts is not None
        code = self.targets.codes(part.targets) if self.targets else np.zeros(1, dtype=np.int64)
        self.y.room(len(part.y))[:] = code[part.y] if len(part.y) else part.y
        self._check_targets()
        for name, array in part.kept.items():
            grown: Grown = getattr(self, name)
            grown.room(len(array))[:] = array
        for own, found in part.digest.items():
            here = int(code[own])
            self.digest[here] = SetHash.joined([self.digest.get(here, SetHash()), found])
        self.counts.filled += part.filled
        self.counts.infinite += part.infinite
        self.encoder.learn(part.levels)


def read(
    config: Config,
    source: Source,
    plan: ReadPlan,
    room: Room | None,
    parts: Sequence[Source],
    engine: ComputeEngine,
    say: Callable[[str], None],
) -> tuple[Raw, list[int]]:
    """Read all parts but their features; return what is known of the rows, and how many there are up to each part."""
    joined = Joined(config, source, plan, room)
    shared = Shared(without_secrets(config), plan, joined.readings)
    for found in engine.map(read_part, parts, shared):
        joined.add(found)
        say(f"{joined.read:,} rows read by {engine.workers} workers")
    return joined.done(), joined.ends


def trimmed(first: Raw) -> Raw:
    """Return what a second reading compares with of all rows, and nothing of any row."""
    nothing: dict[str, Any] = dict.fromkeys((*_KEPT, "counts", "drawn"))
    nothing["row_id"] = np.empty(0, dtype=np.uint64)
    return replace(first, x=first.x[:0], y=first.y[:0], findings=[], digest={}, **nothing)


def spans(ends: Sequence[int]) -> Iterator[slice]:
    """Yield the rows of each part, counted over all parts."""
    start = 0
    for end in ends:
        yield slice(start, end)
        start = end


def joined_arrays(pieces: Iterator[Mapping[str, AnyArray]], rows: int, width: int) -> dict[str, AnyArray]:
    """Return arrays of all pieces, one after the other, without holding them twice. width : of ``x``"""
    made: dict[str, Grown] = {}
    for piece in pieces:
        for name, array in piece.items():
            if name not in made:
                made[name] = Grown(array.dtype, width if name == "x" else None, rows)
            made[name].room(len(array))[:] = array
    return {name: grown.done() for name, grown in made.items()}
