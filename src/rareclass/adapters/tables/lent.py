"""Labelled rows of a related domain, read as the target's are: `transfer.path`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rareclass.adapters.tables.files import read_frames
from rareclass.adapters.tables.ingest import location, open_data
from rareclass.config import Config, DataSettings, TransferSettings, filter_groups
from rareclass.core.dataset import AnyArray, FloatMatrix, IntArray, Rows, Schema, encode
from rareclass.core.hashing import text_hash
from rareclass.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class LentRows:
    """rows : encoded with the target's schema · read : how many labelled ones there were, of which these are a draw
    unlabelled : rows without a label · missing : columns of the target that the source does not have
    """

    rows: Rows
    read: int
    unlabelled: int
    missing: tuple[str, ...]


def lent_rows(config: Config, schema: Schema) -> LentRows:
    """Read `transfer.path` with the target's schema. Raises ConfigError or DataError with one line."""
    asked, roles = config.transfer, schema.roles
    assert asked.path is not None
    if roles.target is None:
        raise DataError("rows of another domain need a target to be read by. Set data.target")
    names = _names(asked, schema, config.data)
    data = _settings(config.data, asked, names)
    there = open_data(data).columns
    for name in asked.columns.values():
        if name not in there:
            raise ConfigError(f"transfer.columns: '{name}' is no column of {asked.path}.{nearest(name, there)}")
    target = names[roles.target.name]
    if target not in there:
        raise DataError(
            f"transfer.path {asked.path} has no column '{target}' with the truth.{nearest(target, there)} "
            f"Set transfer.columns: {{{roles.target.name}: ITS NAME THERE}}"
        )
    missing = tuple(feature.name for feature in schema.features if names[feature.name] not in there)
    if 2 * len(missing) > len(schema.features):
        raise DataError(
            f"transfer.path {asked.path} has {len(schema.features) - len(missing)} of the {len(schema.features)} "
            f"columns; there is no '{names[missing[0]]}'.{nearest(names[missing[0]], there)} "
            "Set transfer.columns: {COLUMN: ITS NAME THERE}"
        )
    kept = _Kept(asked.rows, config.train.seed)
    wanted = {own: name for own, name in names.items() if name in there}
    for frame in _frames(data, asked, wanted, schema, missing):
        label = roles.target.labels(frame[roles.target.name])
        dated = roles.time is not None and roles.time.name in frame
        time = roles.time.read(frame[roles.time.name])[0] if roles.time is not None and dated else None
        owner = roles.entity is not None and roles.entity in frame
        entity = text_hash(frame[roles.entity]) if owner else None
        kept.take(encode(frame, schema), label, {"time": time, "entity": entity})
    return kept.done(schema, missing)


def _names(asked: TransferSettings, schema: Schema, data: DataSettings) -> Mapping[str, str]:
    """Return column of the target -> its name in the source."""
    own = list(
        dict.fromkeys([*schema.names, *(name for name in (data.target, data.time, data.entity) if name is not None)])
    )
    return {name: asked.columns.get(name, name) for name in own}


def _settings(data: DataSettings, asked: TransferSettings, names: Mapping[str, str]) -> DataSettings:
    """Return how the source is written: as the target is, under its own names."""
    changed: dict[str, Any] = {
        "path": asked.path,
        "query": asked.query,
        "id": None,
        "entity": None,
        "target": None if data.target is None else names[data.target],
        "categorical": tuple(names[name] for name in data.categorical if name in names),
    }
    return data.model_copy(update=changed)


def _frames(
    data: DataSettings, asked: TransferSettings, wanted: Mapping[str, str], schema: Schema, missing: tuple[str, ...]
) -> Iterator[pd.DataFrame]:
    """Yield the rows with the target's columns, under the target's names; what the source lacks is missing.

    wanted : column of the target -> its name in the source, of those that it has
    """
    text = [wanted[name] for name in schema.exact if name in wanted]
    filtered = {condition[0] for group in filter_groups(asked.filter) for condition in group}
    columns = list(dict.fromkeys([*wanted.values(), *filtered]))
    frames = read_frames(location(data), query=asked.query, columns=columns, filter=asked.filter, text=text, data=data)
    for frame in frames:
        yield pd.DataFrame(
            {own: frame[there] for own, there in wanted.items()} | {own: np.full(len(frame), np.nan) for own in missing}
        )


class _Kept:
    """Labelled rows, at most ``most`` of them, drawn at random whatever the order they come in."""

    def __init__(self, most: int, seed: int) -> None:
        self.most, self.rng = most, np.random.default_rng(seed)
        self.x: list[FloatMatrix] = []
        self.y: list[AnyArray] = []
        self.key: list[AnyArray] = []
        self.aside: dict[str, list[AnyArray]] = {}
        self.read = self.unlabelled = 0

    def take(self, x: FloatMatrix, label: AnyArray, aside: Mapping[str, AnyArray | None]) -> None:
        known = ~np.isnan(label)
        for name, values in aside.items():
            if values is not None:
                self.aside.setdefault(name, []).append(values[known])
        self.unlabelled += int((~known).sum())
        self.read += int(known.sum())
        self.x.append(x[known])
        self.y.append(label[known])
        self.key.append(self.rng.random(int(known.sum())))
        if sum(map(len, self.y)) > 2 * self.most:
            self._thin()

    def _thin(self) -> None:
        x, y, key = np.concatenate(self.x), np.concatenate(self.y), np.concatenate(self.key)
        if len(y) > self.most:
            chosen = np.sort(np.argpartition(key, self.most)[: self.most])
            x, y, key = x[chosen], y[chosen], key[chosen]
            self.aside = {name: [np.concatenate(parts)[chosen]] for name, parts in self.aside.items()}
        self.x, self.y, self.key = [x], [y], [key]

    def done(self, schema: Schema, missing: tuple[str, ...]) -> LentRows:
        if not self.read:
            raise DataError("transfer.path holds no labelled row. Set transfer.path or transfer.filter otherwise")
        self._thin()
        x, y = np.ascontiguousarray(self.x[0]), self.y[0].astype(np.int64)
        x[np.isinf(x)] = np.nan
        number: IntArray = np.arange(len(y), dtype=np.int64)
        aside: dict[str, Any] = {name: np.concatenate(parts) for name, parts in self.aside.items()}
        return LentRows(Rows(schema, x, y, number.astype(np.uint64), **aside), self.read, self.unlabelled, missing)
