"""The data card: what the rows of each part are like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rareclass.core.dataset import Rows
from rareclass.core.hashing import CHUNK


def by_time(named: Sequence[tuple[str, Rows]]) -> list[dict[str, Any]]:
    """Rows and prevalence in up to 24 periods: days, weeks or months."""
    times = [rows.time for _, rows in named if rows.time is not None and len(rows)]
    if not times:
        return []
    days = (max(t.max() for t in times) - min(t.min() for t in times)) / np.timedelta64(1, "D")
    unit = "D" if days <= 24 else "W" if days <= 168 else "M"
    found: dict[str, list[int]] = {}
    pieces = (rows.take(slice(at, at + CHUNK)) for _, rows in named for at in range(0, len(rows), CHUNK))
    for piece in pieces:
        assert piece.time is not None
        periods, code = np.unique(piece.time.astype(f"datetime64[{unit}]"), return_inverse=True)
        for period, count, positives in zip(periods, np.bincount(code), np.bincount(code, piece.y), strict=True):
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
