"""The data card: what the rows of each part are like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rareclass.core.rows import Rows


def by_time(named: Sequence[tuple[str, Rows]]) -> list[dict[str, Any]]:
    """Rows and prevalence in up to 24 periods: days, weeks or months."""
    times = [rows.time for _, rows in named if rows.time is not None and len(rows)]
    if not times:
        return []
    days = (max(t.max() for t in times) - min(t.min() for t in times)) / np.timedelta64(1, "D")
    unit = "D" if days <= 24 else "W" if days <= 168 else "M"
    found: dict[str, list[int]] = {}
    for rows_ in (rows for _, rows in named):
        assert rows_.time is not None
        if not len(rows_):
            continue
        code = rows_.time.astype(f"datetime64[{unit}]").astype(np.int64)
        first = int(code.min())
        code -= first
        counts, positives_ = np.bincount(code), np.bincount(code, rows_.y)
        for place in np.flatnonzero(counts):
            period, count, positives = np.datetime64(first + int(place), unit), counts[place], positives_[place]
            total = found.setdefault(str(period), [0, 0])
            total[0] += int(count)
            total[1] += int(positives)
    return [
        {"period": period, "rows": count, "positives": positives, "prevalence": positives / count}
        for period, (count, positives) in sorted(found.items())
    ]


def described(named: Sequence[tuple[str, Rows]]) -> list[dict[str, Any]]:
    """Kind, missing share and, from the training rows, range or most frequent categories of each feature."""
    train, table = named[0][1], []
    for position, feature in enumerate(train.schema.features):
        column = train.x[:, position]
        present = column[~np.isnan(column)]
        entry: dict[str, Any] = {"name": feature.name, "kind": feature.kind, "missing": 1 - len(present) / len(column)}
        if feature.kind == "categorical":
            counts = np.bincount(present.astype(np.int64), minlength=len(feature.categories))
            entry["categories"] = {
                name: int(count) for name, count in list(zip(feature.categories, counts, strict=True))[:10]
            }
            entry["levels"] = len(feature.categories)
        elif len(present):
            entry |= {"min": float(present.min()), "median": float(np.median(present)), "max": float(present.max())}
        table.append(entry)
    return table
