"""Can the champion be judged on the rows of another run: does it answer the same question, can its columns be had, has
it seen the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rareclass.config import DataSettings
from rareclass.core.dataset import OTHER, AnyArray, Feature, Rows, Schema
from rareclass.core.model import RareModel

_TRUE, _FALSE = {"true", "1"}, {"false", "0"}


def other_question(meta: Mapping[str, Any], data: DataSettings, positive: Any) -> str | None:
    """Return why a version of another target answers another question than this run asks; None when it is the same.

    meta : of the version; one that does not say what it learned is taken to have learned the same
    positive : the value that is the rare class in this run
    """
    target, value = meta.get("target"), meta.get("positive")
    if target is not None and target != data.target:
        return f"it learned '{target}' and this run learns '{data.target}'"
    if value is not None and positive is not None and _same(value) != _same(positive):
        return f"its rare class is '{value}' and that of this run is '{positive}' (data.positive)"
    return None


def _same(value: Any) -> str:
    """1, 1.0, True and 'true' are one value, because files and databases write it in all these ways."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return "true" if text.lower() in _TRUE else "false" if text.lower() in _FALSE else text


def covers(schema: Schema, wanted: Schema) -> bool:
    """Whether rows encoded with ``schema`` hold all that ``wanted`` tells apart: the same columns, no level pooled or
    unknown.
    """
    there = {feature.name: feature for feature in schema.features}
    return all(_covers(there.get(feature.name), feature) for feature in wanted.features)


def _covers(there: Feature | None, wanted: Feature) -> bool:
    if there is None or there.kind != wanted.kind:
        return False
    if wanted.kind == "numeric":
        return True
    # a level that is unknown here is missing in the matrix, and where `wanted` pools, it is not missing
    pools_alike = OTHER not in wanted.categories or OTHER in there.categories
    return pools_alike and set(wanted.categories) <= set(there.categories)


def unseen(model: RareModel, rows: Rows, data: DataSettings) -> AnyArray | None:
    """Return the index of the rows that a version was not trained on; None where that cannot be told.

    By time where both have one; else by the ids of rows, which are comparable when both come from the same `data.id`,
    or both from the content of the same columns.
    """
    until = model.meta.get("trained", {}).get("until")
    if rows.time is not None and until is not None:
        return np.flatnonzero(rows.time > np.datetime64(until, "us"))
    if model.trained_ids is None or not _ids_alike(model, rows.schema, data):
        return None
    return np.flatnonzero(~np.isin(rows.row_id, model.trained_ids))


def _ids_alike(model: RareModel, schema: Schema, data: DataSettings) -> bool:
    before = model.meta.get("config", {}).get("data", {})
    if any(before.get(role) != getattr(data, role) for role in ("id", "time", "entity")) and before:
        return False
    kinds = [{feature.name: feature.kind for feature in side.features} for side in (model.schema, schema)]
    return data.id is not None or kinds[0] == kinds[1]
