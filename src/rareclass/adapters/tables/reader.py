"""Collect the batches of a source: one pass, every role of a column at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rareclass.adapters.tables.columns import Readings, decide, hashed, series_of, times
from rareclass.adapters.tables.encoding import Encoder, Grown, Levels, Map
from rareclass.adapters.tables.room import Room
from rareclass.adapters.tables.sources import BATCH, INDEX, Source, conditions, expression, kind_of, missing_column
from rareclass.config import Config, DataSettings
from rareclass.core import checks, splitting
from rareclass.core.checks import Finding
from rareclass.core.dataset import AnyArray, BoolArray, FloatMatrix, Roles
from rareclass.core.hashing import SetHash, combine, rows_hash, text_hash
from rareclass.core.reading import Reading, Target, counted, same_word, spellings
from rareclass.core.times import check_span
from rareclass.errors import DataError, NoLabelsError, NoPositivesError, nearest
from rareclass.masking import masked

_MAX_TARGETS = 1000
_KEEP = "__rareclass_train"


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """What is read: the features, all columns in one projection, and the filters."""

    features: list[str]
    names: list[str]
    filter: list[list[tuple[str, str, Any]]]
    extra: dict[str, Any]

    @staticmethod
    def of(config: Config, source: Source) -> ReadPlan:
        """Return what has to be read of a source. Raises ConfigError for a named column that is not there."""
        data, columns = config.data, source.columns
        roles = {
            f"data.{role}": getattr(data, role) for role in ("target", "time", "entity", "id", "amount", "propensity")
        }
        named = [(setting, name) for setting, name in roles.items() if name is not None]
        for setting in ("drop", "columns", "categorical"):
            named += [(f"data.{setting}", name) for name in getattr(data, setting) or ()]
        for setting, name in named:
            if name not in columns:
                raise missing_column(name, columns, setting)
        kept = conditions(data.filter, columns, "data.filter")
        trained = conditions(config.train.filter, columns, "train.filter")
        aside = {data.target, data.time, data.entity, data.id, data.propensity, *data.drop}
        offered = data.columns or [name for name in columns if not INDEX.fullmatch(name)]
        features = [name for name in offered if name not in aside]
        if not features:
            raise DataError("no column is left as a feature. Set data.columns or data.drop so that one is")
        for name in config.evaluate.slices:
            if name not in features:
                near = nearest(name, features)
                raise DataError(f"evaluate.slices: '{name}' is no feature.{near} Set it to features of the model")
        also = [name for name in roles.values() if name is not None]
        also += [column for group in trained for column, _, _ in group]
        extra = {_KEEP: expression(trained)} if trained else {}
        return ReadPlan(features, list(dict.fromkeys([*features, *also])), kept, extra)


OF_ROWS = ("row_id", "time", "entity", "amount", "weight", "keep")
"""Arrays of a `Raw` that say whose rows these are and how they count, by name."""


@dataclass(slots=True)
class Raw:
    """Everything that was read, in the order of the source. y : (n,) int8."""

    encoder: Encoder
    x: AnyArray
    y: AnyArray
    content: AnyArray | None
    row_id: AnyArray
    time: AnyArray | None
    entity: AnyArray | None
    amount: AnyArray | None
    weight: AnyArray | None
    keep: AnyArray | None
    target: Target | None
    values: dict[str, int]
    findings: list[Finding]
    dropped: dict[str, int]
    digest: dict[bool, SetHash]
    """by class: every value that was read of its rows, in whatever order"""
    drawn: AnyArray | None = None
    counts: ColumnCounts | None = None
    """of a table that is larger than memory: its features were counted and let go, ``x`` has no rows"""
    rare: AnyArray | None = None
    """by code of the target, whether that value is the rare class"""
    levels: Levels | None = None
    """the values of the target, by code"""

    def roles(self, data: DataSettings) -> Roles:
        """The columns with a part of their own, as a version keeps them."""
        return Roles(
            self.target, self.encoder.readings.time, data.entity, data.id, data.amount, data.propensity, data.encoding
        )


class ColumnCounts:
    """What the checks ask of features that are not kept: how many values there are, and how many infinite ones, by
    column.
    """

    def __init__(self, width: int) -> None:
        self.filled, self.infinite = np.zeros(width, dtype=np.int64), np.zeros(width, dtype=np.int64)

    def add(self, x: FloatMatrix) -> None:
        """Count some rows."""
        self.filled += len(x)
        with np.errstate(over="ignore", invalid="ignore"):
            odd = np.flatnonzero(~np.isfinite(x.sum(axis=0)))  # most columns are whole, and a sum is the quickest look
        self.filled[odd] -= np.isnan(x[:, odd]).sum(axis=0)
        self.infinite[odd] += np.isinf(x[:, odd]).sum(axis=0)


class Reader:
    """Collects batches.

    at_once : the `map` of an executor whose threads encode the columns
    room : what may be kept; of a table that is larger the features are let go. None: everything is kept
    readings : where it is known how the columns are read
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        plan: ReadPlan,
        at_once: Map = map,
        *,
        room: Room | None = None,
        readings: Readings | None = None,
    ) -> None:
        self.config, self.data, self.source, self.plan, self.at_once = config, config.data, source, plan, at_once
        # equal rows are looked for where the split does not go by time; the id is made of the content where there is
        # none
        kind = splitting.resolve_kind(config.split, has_time=bool(self.data.time), has_entity=bool(self.data.entity))
        self.grouped = kind != "time" and self.data.checks.identical_rows != "off"
        data, rows = self.data, source.rows
        self.room = room
        self.counts: ColumnCounts | None = None
        self.readings: Readings = readings or decide(data, source, plan.features, plan.filter)
        self.read = 0
        self.hashed = True
        """whether what is read is hashed as a whole, too: once is enough"""
        self.encoder: Encoder | None = None
        self.types: Mapping[str, pa.DataType] = {}
        self._check_filtered_time()
        self.digest: dict[int, SetHash] = {}
        self.number = Reading("number", data.missing_values, data.decimal, data.thousands)
        # rows without a target column are all of one class, which nobody named
        self.targets = None if data.target is None else Levels(source.columns[data.target], data.missing_values)
        self.bad_times: list[pd.Series[Any]] = []
        self.lost = {"target": 0, "time": 0, "empty": 0}
        self.x: Grown | None = None
        self.y = Grown(np.int16, rows=rows)
        self.row_id = Grown(np.uint64, rows=rows)
        # without an id, time or entity the content is the id itself
        apart = self.grouped and bool(data.id or data.time or data.entity)
        self.content = Grown(np.uint64, rows=rows) if apart else None
        self.time = Grown("datetime64[us]", rows=rows) if data.time else None
        self.entity = Grown(np.uint64, rows=rows) if data.entity else None
        self.amount = Grown(np.float64, rows=rows) if data.amount else None
        self.weight = Grown(np.float64, rows=rows) if data.propensity else None
        self.keep = Grown(bool, rows=rows) if self.plan.extra else None

    def _check_filtered_time(self) -> None:
        """Refuse to compare times as they are written where that is not the order of the times. Raises DataError."""
        name, reading = self.data.time, self.readings.time
        groups = [*self.plan.filter, *conditions(self.config.train.filter, self.source.columns, "train.filter")]
        asked = any(column == name for group in groups for column, _, _ in group)
        if not asked or reading is None or kind_of(self.source.columns[str(name)]) != "category":
            return
        if reading.order or reading.unit or reading.format:
            raise DataError(
                f"data.filter or train.filter compares '{name}', which is text in another writing than ISO: "
                "its order is not that of time. "
                "Store times as 2024-05-31T12:00:00 or as timestamps, or take the condition out"
            )

    def take(self, batch: pa.RecordBatch) -> None:
        """Encode one batch at the end of what was read."""
        self.read += batch.num_rows
        self._begin(dict(zip(batch.schema.names, batch.schema.types, strict=True)))
        if self.targets is None:
            target, labelled = np.zeros(batch.num_rows, dtype=np.int64), np.ones(batch.num_rows, dtype=bool)
        else:
            target, labelled = self.targets.encode(batch.column(self.data.target))
            self._check_targets()
        self.lost["target"] += int((~labelled).sum())
        use, time = labelled, None
        if self.data.time is not None:
            assert self.readings.time is not None
            time, bad = times(batch.column(self.data.time), self.readings.time)
            if len(bad):
                self.bad_times.append(bad)
                use = use & ~np.isnat(time)
        if self.data.drop_empty:
            empty = np.logical_and.reduce([_missing(batch.column(name)) for name in self.plan.features])
            self.lost["empty"] += int((use & empty).sum())
            use = use & ~empty
        if not use.all():
            batch = batch.filter(pa.array(use))
            target, time = target[use], None if time is None else time[use]
        if batch.num_rows:
            self._append(batch, target, time)

    def _begin(self, types: Mapping[str, pa.DataType]) -> None:
        if self.encoder is None:
            self.types = types
            self.encoder = Encoder(self.plan.features, types, self.readings)
            self.x = Grown(np.float32, len(self.plan.features), None if self.counts is not None else self._expected())

    def _check_targets(self) -> None:
        if self.targets is not None and len(self.targets.code) > _MAX_TARGETS:
            raise self._many_targets()

    def _expected(self) -> int | None:
        """Rows to make room for at once: as many as there are, but no more than are kept."""
        rows = self.source.rows
        return rows if rows is None or self.room is None else min(rows, self.room.rows(len(self.plan.features)))

    def _features(self, count: int) -> FloatMatrix:
        """Return where the features of so many rows are written: at the end of those kept, or for the moment only."""
        assert self.x is not None
        width = len(self.plan.features)
        if self.counts is None and self.room is not None and self.x.length + count > self.room.rows(width):
            self.counts, kept = ColumnCounts(width), self.x.done()
            for start in range(0, len(kept), BATCH):
                self.counts.add(kept[start : start + BATCH])
            self.x = Grown(np.float32, width)
        return self.x.room(count) if self.counts is None else np.empty((count, width), dtype=np.float32)

    def _append(self, batch: pa.RecordBatch, target: AnyArray, time: AnyArray | None) -> None:
        count, data = batch.num_rows, self.data
        self.y.room(count)[:] = target
        x = self._features(count)
        content, entity, ids = self._identified(batch, x, time)
        if self.counts is not None:
            self.counts.add(x)
            self._check_room()
        if self.time is not None and time is not None:
            self.time.room(count)[:] = time
        if self.entity is not None:
            self.entity.room(count)[:] = entity
        if self.content is not None:
            self.content.room(count)[:] = content
        row_id = self.row_id.room(count)
        row_id[:] = ids
        amount = weight = keep = None
        if self.amount is not None:
            amount = self.amount.room(count)
            amount[:] = _numbers(batch, str(data.amount), "data.amount", self.number)
        if self.weight is not None:
            weight = self.weight.room(count)
            weight[:] = _weights(_numbers(batch, str(data.propensity), "data.propensity", self.number))
        if self.keep is not None:
            keep = self.keep.room(count)
            keep[:] = pc.fill_null(batch.column(_KEEP), False).to_numpy(zero_copy_only=False)
        if not self.hashed:
            return
        rows = rows_hash(content, id=row_id, time=time, entity=entity, amount=amount, weight=weight, keep=keep)
        for code in np.unique(target):
            self.digest.setdefault(int(code), SetHash()).add(rows[target == code])

    def _check_room(self) -> None:
        if self.room is not None:
            self.room.check(self.y.length, self._bytes_of_a_row())

    def _bytes_of_a_row(self) -> int:
        """What is kept of a row besides its features."""
        kept = (self.y, self.row_id, self.content, self.time, self.entity, self.amount, self.weight, self.keep)
        return sum(each.array.itemsize for each in kept if each is not None)

    def _identified(
        self, batch: pa.RecordBatch, x: FloatMatrix, time: AnyArray | None
    ) -> tuple[AnyArray, AnyArray | None, AnyArray]:
        """Encode the features into ``x``; return the hashes of content and entity, and the ids."""
        assert self.encoder is not None
        content = np.zeros(batch.num_rows, dtype=np.uint64)
        self.encoder.write(batch, x, content if self.hashed or self.data.id is None else None, self.at_once)
        entity = hashed(batch.column(self.data.entity)) if self.data.entity else None
        return content, entity, self._ids(batch, content, time, entity)

    def _ids(
        self, batch: pa.RecordBatch, content: AnyArray, time: AnyArray | None, entity: AnyArray | None
    ) -> AnyArray:
        """Hash of the id, else of the content with its time and entity: a repeated event is another row."""
        if self.data.id is not None:
            return hashed(batch.column(self.data.id))
        found = content.copy()
        if time is not None:
            combine(found, time.view(np.uint64), "__time")
        if entity is not None:
            combine(found, entity, "__entity")
        return found

    def _many_targets(self) -> DataError:
        return DataError(
            f"column '{self.data.target}' (the target) has more than {_MAX_TARGETS} different values: it is no class. "
            "Set data.target to a column of two values, or data.positive to the one value that is the rare class"
        )

    def done(self) -> Raw:
        """Check target, times and ids. Raises DataError and NoPositivesError."""
        data = self.data
        if self.encoder is None or self.x is None or not self.read:
            why = "data.filter keeps none of them" if data.filter else "the source is empty"
            raise DataError(
                f"'{masked(data.path)}' has no rows: {why}. Set data.path or data.filter so that rows are left"
            )
        if self.lost["target"] == self.read and self.targets is not None:
            raise NoLabelsError(f"column '{data.target}' (the target) has no value in any of {self.read:,} rows")
        findings = [*self.readings.findings, *self._target_findings(), *self._time_findings()]
        if not self.y.length:
            raise DataError(f"every row of '{masked(data.path)}' was left out: {self._lost()}. Mend the source")
        codes, x, counts = self.y.done(), self.x.done(), self.counts
        target, values = self._target(codes)
        rare = np.array(
            [text == target.positive for text in self.targets.texts()] if target and self.targets else [False]
        )
        y = rare[codes].astype(np.int8)  # 64 bits when all else is done
        filled = counts.filled if counts is not None else None
        self.encoder.check_levels(x, data.max_categories, filled)
        raw = Raw(
            self.encoder,
            x,
            y,
            None,
            self.row_id.done(),
            _given(self.time),
            _given(self.entity),
            _given(self.amount),
            _given(self.weight),
            _given(self.keep),
            target=target,
            values=values,
            findings=findings,
            dropped={f"no_{what}" if what != "empty" else "empty": count for what, count in self.lost.items() if count},
            digest={
                is_rare: SetHash.joined(one for code, one in self.digest.items() if bool(rare[code]) is is_rare)
                for is_rare in (True, False)
            },
            counts=counts,
            rare=rare,
            levels=self.targets,
        )
        if raw.time is not None and self.readings.time is not None:
            check_span(str(data.time), raw.time, self.readings.time)
        raw.content = (_given(self.content) if self.content is not None else raw.row_id) if self.grouped else None
        if data.id is not None:
            raw.findings += self._id_findings(raw.row_id)
        if raw.amount is not None and np.isnan(raw.amount).any():
            count = int(np.isnan(raw.amount).sum())
            raise DataError(
                f"column '{data.amount}' (data.amount) is missing in {count:,} of {len(y):,} rows. "
                "Fill it, or filter those rows out"
            )
        return raw

    def _lost(self) -> str:
        return ", ".join(f"{count:,} without a {what}" for what, count in self.lost.items() if count)

    def _target_findings(self) -> list[Finding]:
        lost = self.lost["target"]
        return checks.check_target(_marked(lost, self.read), self.data) if lost else []

    def _time_findings(self) -> list[Finding]:
        if not self.bad_times:
            return []
        bad = pd.concat(self.bad_times, ignore_index=True).astype(object)
        self.lost["time"] = len(bad)
        # values first, so that the example is one, and missing ones only when there is no other
        bad = bad.iloc[np.argsort(bad.isna().to_numpy(), kind="stable")].reset_index(drop=True)
        found = checks.check_time(bad.reindex(range(self.read)), _marked(len(bad), self.read), self.data)
        if len(bad) == self.read:
            example = bad.iloc[0]
            raise DataError(
                f"column '{self.data.time}' (data.time) holds no times, like {example!r}. "
                "Set data.time to another column"
            )
        return found

    def _id_findings(self, row_id: AnyArray) -> list[Finding]:
        ordered = np.sort(row_id)
        if self.data.checks.duplicate_ids == "off" or not (ordered[1:] == ordered[:-1]).any():
            return []
        # only now the values themselves are needed, for the message
        again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        del ordered
        count, rows, example = 0, 0, None
        for batch in self.source.scan([str(self.data.id)], [], {}):
            ids = _series(batch, str(self.data.id))
            rows += len(ids)
            repeated = np.isin(text_hash(ids), again)
            if repeated.any() and not count:
                example = ids[repeated].iloc[0]
            count += int(repeated.sum())
        return checks.check_repeated_ids(count, rows, example, self.data)

    def _target(self, codes: AnyArray) -> tuple[Target | None, dict[str, int]]:
        """Return how the target is read, with its rare class, and the rows of each of its values; nothing without a
        target.
        """
        if self.targets is None:
            return None, {}
        counts: dict[str, int] = {}
        reading, met = self.targets.reading(), np.bincount(codes, minlength=len(self.targets.code))
        for text, count in zip(self.targets.texts(), met.tolist(), strict=True):
            counts[text] = counts.get(text, 0) + count
        seen = {text: count for text, count in sorted(counts.items(), key=lambda item: -item[1]) if count}
        positive = self._positive(seen, reading)
        values = tuple(seen) if positive in seen else (*seen, positive)
        return Target(str(self.data.target), positive, values, reading), seen

    def _positive(self, seen: dict[str, int], reading: Reading) -> str:
        """Return the rare class.

        Raises DataError where other values can only mean the same: their rows would be ordinary.
        """
        chosen = self._chosen(seen, reading)
        if len(seen) > 2 or self.data.positive is None:
            again = {text: count for text, count in seen.items() if text != chosen and same_word(text, chosen)}
            if again and (len(seen) > 2 or any(text.lower() == chosen.lower() for text in again)):
                raise DataError(
                    f"column '{self.data.target}' (the target) writes the rare class '{chosen}' ({seen[chosen]:,}) in "
                    "other ways, too: "
                    f"{counted(again)}. Write one class in one way, as those rows would count as ordinary ones"
                )
        return chosen

    def _chosen(self, seen: dict[str, int], reading: Reading) -> str:
        data = self.data
        listed = ", ".join(f"{text} ({count:,})" for text, count in list(seen.items())[:10]) + (
            ", ..." if len(seen) > 10 else ""
        )
        if data.positive is not None:
            wanted = _match(data.positive, list(seen), reading)
            if wanted is None and len(seen) == 1 and not same_word(next(iter(seen)), str(data.positive)):
                return reading.text(data.positive) or str(
                    data.positive
                )  # known normal rows, and none of the other class yet
            if wanted is None:
                near = nearest(str(data.positive), seen)
                raise NoPositivesError(
                    f"no row has the rare class '{data.positive}' in column '{data.target}'.{near} Set data.positive "
                    f"to one of: {listed}"
                )
            if len(seen) == 1:
                raise DataError(
                    f"column '{data.target}' (the target) is '{wanted}' in every row: "
                    "there is no other class to tell it from"
                )
            return wanted
        if len(seen) == 1:
            only = next(iter(seen))
            if only.lower() in _OPPOSITE:
                return _OPPOSITE[only.lower()]
            raise NoPositivesError(
                f"column '{data.target}' (the target) has one class only: {listed}, and it cannot be told whether "
                "that is the ordinary one. "
                "Set data.positive to the value that the rare class has (or will have), or data.target: "
                "null where rows are not labelled"
            )
        if len(seen) > 2:
            raise DataError(
                f"column '{data.target}' (the target) has {len(seen)} values: {listed}. "
                "Set data.positive to the one that is the rare class"
            )
        return min(seen, key=lambda text: (seen[text], _falsity(text), text))


_OPPOSITE = {"0": "1", "false": "true", "no": "yes", "n": "y", "off": "on", "negative": "positive", "normal": "anomaly"}
"""The ordinary class where it is the only one, and how the rare one will be written."""


def _falsity(text: str) -> bool:
    """Of two equally frequent values, 0, no and false are the ordinary class."""
    return text.lower() in ("0", "false", "no", "n", "off", "negative")


def _match(wanted: Any, texts: Sequence[str], reading: Reading) -> str | None:
    """Find a value written in YAML among the target's values; YAML reads yes, on and true as one."""
    if isinstance(wanted, bool):
        words = ("true", "yes", "on", "y", "t", "1") if wanted else ("false", "no", "off", "n", "f", "0")
        return next((text for word in (str(wanted).lower(), *words) for text in texts if text.lower() == word), None)
    written = reading.text(wanted), reading.text(str(wanted)), *spellings(wanted)
    return next((text for text in written if text in texts), None)


def _given(grown: Grown | None) -> AnyArray | None:
    return None if grown is None else grown.done()


def _marked(bad: int, length: int) -> pd.Series[Any]:
    """A series of ``length`` whose first ``bad`` values are missing."""
    values = np.zeros(length)
    values[:bad] = np.nan
    return pd.Series(values)


def _missing(column: pa.Array) -> BoolArray:
    missing: BoolArray = column.is_null(nan_is_null=pa.types.is_floating(column.type)).to_numpy(zero_copy_only=False)
    return missing


def _series(batch: pa.RecordBatch, name: str | None) -> pd.Series[Any]:
    return series_of(batch.column(name))


def _numbers(batch: pa.RecordBatch, name: str, setting: str, reading: Reading) -> AnyArray:
    """Return (n,) float64 of a column that has to hold numbers."""
    column = batch.column(name)
    if kind_of(column.type) in ("number", "empty") and not reading.missing:
        plain: AnyArray = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return plain
    found, wrong = reading.numbers(series_of(column))
    if wrong:
        raise DataError(
            f"column '{name}' ({setting}) must hold numbers; it holds values like {counted(wrong)}. "
            f"Set {setting} to another column"
        )
    return found


def _weights(propensity: AnyArray) -> AnyArray:
    if not ((propensity > 0) & (propensity <= 1)).all():
        raise DataError(
            "data.propensity must hold probabilities above 0 and at most 1. "
            "Set it to 1 where the label was always observed"
        )
    return 1.0 / propensity
