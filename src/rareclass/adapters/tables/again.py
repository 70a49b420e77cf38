"""Rows that were read before, with other columns: what another version reads of the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from rareclass.adapters.tables.columns import frame_of
from rareclass.adapters.tables.ingest import open_data
from rareclass.adapters.tables.reader import Reader, ReadPlan
from rareclass.adapters.tables.sources import Source
from rareclass.config import Config
from rareclass.core.dataset import AnyArray, Rows, Schema, decode
from rareclass.core.hashing import HashArray
from rareclass.core.incumbent import covers
from rareclass.errors import DataError, nearest


def table_for(config: Config, rows: Rows, schema: Schema) -> tuple[AnyArray, pd.DataFrame]:
    """Return the table that a version of ``schema`` reads of ``rows``: decoded where their encoding lost nothing of it,
    else read from the source once more. Arguments, return value and errors as of ``columns_again``."""
    if covers(rows.schema, schema):
        return np.arange(len(rows)), decode(rows.x, rows.schema)
    return columns_again(config, rows, schema.names)


def columns_again(config: Config, rows: Rows, columns: Sequence[str]) -> tuple[AnyArray, pd.DataFrame]:
    """Read the source once more and return ``columns`` of ``rows`` as they stand there, whatever the rows' schema kept
    of them.

    rows : part of what ``ingest`` made of the same configuration; found again by their ids, the k-th of equal ids is
        the k-th
    Returns (m,) positions in ``rows`` and their m values; a row that is no longer in the source is left out.
    Raises DataError when a column or every row is gone.
    """
    source = open_data(config.data)
    for name in columns:
        if name not in source.columns:
            raise DataError(
                f"column '{name}', which the version reads, is not in the data.{nearest(name, source.columns)}"
            )
    plan = ReadPlan.of(config, source)
    names = list(dict.fromkeys([*plan.names, *columns]))
    picker = _Picker(config, source, plan, np.unique(rows.row_id), columns)
    for batch in source.scan(names, plan.filter, plan.extra):
        picker.take(batch)
    if not picker.parts:
        raise DataError("none of the test rows is in the source any more: it changed while it was read")
    frame, ids = pd.concat(picker.parts, ignore_index=True), np.concatenate(picker.ids)
    places = pd.Series(np.arange(len(ids)), index=pd.MultiIndex.from_arrays([ids, _occurrence(ids)]))
    found = places.reindex(pd.MultiIndex.from_arrays([rows.row_id, _occurrence(rows.row_id)])).to_numpy()
    there = np.flatnonzero(~np.isnan(found))
    return there, frame.iloc[found[there].astype(np.int64)].reset_index(drop=True)


def row_ids(config: Config, features: Sequence[str]) -> HashArray | None:
    """Return the ids of the labelled rows of the source, in its order, as `ingest` would give them.

    features : what the ids were made of where there is no `data.id`; None is returned where the source has others
    """
    source = open_data(config.data)
    plan = ReadPlan.of(config, source)
    if config.data.id is None and set(plan.features) != set(features):
        return None
    reader = _Picker(config, source, plan, np.empty(0, dtype=np.uint64), [])
    for batch in source.scan(plan.names, plan.filter, plan.extra):
        reader.take(batch)
    return np.concatenate(reader.every) if reader.every else np.empty(0, dtype=np.uint64)


def _occurrence(ids: HashArray) -> AnyArray:
    """(n,) how often the same id came before."""
    return pd.Series(ids).groupby(ids, sort=False).cumcount().to_numpy()


class _Picker(Reader):
    """Reads like the first time, keeps the wanted rows' columns and nothing else."""

    def __init__(
        self, config: Config, source: Source, plan: ReadPlan, wanted: HashArray, columns: Sequence[str]
    ) -> None:
        super().__init__(config, source, plan)
        self.wanted, self.columns = wanted, list(columns)
        self.parts: list[pd.DataFrame] = []
        self.ids: list[HashArray] = []
        self.every: list[HashArray] = []

    def _append(self, batch: pa.RecordBatch, target: AnyArray, time: AnyArray | None) -> None:
        assert self.encoder is not None
        x = np.empty((batch.num_rows, len(self.plan.features)), dtype=np.float32)
        ids = self._identified(batch, x, time)[2]
        self.every.append(ids)
        kept = np.isin(ids, self.wanted)
        if kept.any():
            self.parts.append(frame_of(batch.select(self.columns).filter(pa.array(kept))))
            self.ids.append(ids[kept])
