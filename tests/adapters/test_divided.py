"""A table that several processes read: whatever its parts are, what comes together is what one process reads."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.adapters.test_streaming import config, payments

from rareclass.adapters import tables
from rareclass.adapters.tables import divided
from rareclass.adapters.tables.ingest import Ingested
from rareclass.adapters.tables.room import BASE
from rareclass.config import Config
from rareclass.core.engines import ALONE
from rareclass.errors import DataError

ROWS = 3_000
SMALL = BASE + (700 << 10)
"""bytes that hold some 2,000 of the rows"""


class Elsewhere:
    """Workers that are sent everything, and send everything back, as bytes; each job is done twice, as after a loss."""

    workers, threads = 3, 1

    def map(self, function: Callable[[Any, Any], Any], jobs: Iterable[Any], shared: Any = None) -> Iterator[Any]:
        for job in jobs:
            sent = pickle.dumps((function, shared, job))
            for _ in range(2):
                work, known, part = pickle.loads(sent)
                done = pickle.dumps(work(known, part))
            yield pickle.loads(done)

    def on_each(self, function: Callable[[Any], Any], argument: Any) -> list[Any]:
        return [function(argument) for _ in range(self.workers)]


def written(folder: Path, rows_of_a_group: int, by: str = "when") -> Path:
    """Write the rows, sorted by a column."""
    path = folder / "rows.parquet"
    payments(ROWS).sort_values(by, kind="stable").to_parquet(path, row_group_size=rows_of_a_group)
    return path


def same(ours: Ingested, theirs: Ingested) -> None:
    assert ours.card == theirs.card
    assert ours.schema == theirs.schema
    assert [each.message for each in ours.warnings] == [each.message for each in theirs.warnings]
    for part in ("train", "validation", "test"):
        mine, other = getattr(ours, part), getattr(theirs, part)
        for field in ("row_id", "y", "time", "entity", "amount", "weight", "drawn"):
            assert np.array_equal(getattr(mine, field), getattr(other, field)), field
        assert np.array_equal(mine.x, other.x, equal_nan=True)


@given(
    group=st.sampled_from([97, 400, 1_700, ROWS]),
    least=st.integers(1, ROWS),
    kind=st.sampled_from(["time", "stratified", "grouped"]),
    memory=st.sampled_from([SMALL, "8GiB"]),
    by=st.sampled_from(["when", "fraud", "f3"]),  # by label most parts have one class, by f3 the filter empties some
)
@settings(max_examples=12, deadline=None)
def test_no_figure_depends_on_how_a_table_is_divided(
    tmp_path_factory: pytest.TempPathFactory, group: int, least: int, kind: str, memory: object, by: str
) -> None:
    path = written(tmp_path_factory.mktemp("parts"), group, by)
    wanted = config(path, memory, kind, filter=[["f3", ">", -0.4]])
    with patch.object(divided, "LEAST_ROWS", least), patch.object(divided, "MOST_ROWS", least):
        one, many = (tables.ingest(wanted, engine=engine) for engine in (ALONE, Elsewhere()))
    same(many, one)
    if one.beyond is not None and many.beyond is not None:
        ours, theirs = (scored(each) for each in (many, one))
        assert all(np.array_equal(ours[part], theirs[part], equal_nan=True) for part in ("validation", "test"))


def _features(piece: Any, rows: Any) -> Any:
    return np.column_stack([piece.x, rows.y])


def scored(ingested: Ingested) -> dict[str, Any]:
    """All rows of each part, each in its place."""
    beyond = ingested.beyond
    assert beyond is not None
    width = len(ingested.schema.names) + 1
    made = {part: np.full((len(beyond.rows[part]), width), -1.0) for part in ("validation", "test")}
    for part, at, found in beyond.each({"validation": _features, "test": _features}):
        made[part][at] = found
    return made


def test_a_table_that_changed_under_its_readers_ends_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, 400)
    wanted: Config = config(path, SMALL)
    with patch.object(divided, "LEAST_ROWS", 400):
        beyond = tables.ingest(wanted, engine=Elsewhere()).beyond
    assert beyond is not None
    payments(ROWS, seed=1).to_parquet(path, row_group_size=400)
    with pytest.raises(DataError, match="gave other rows, or in another order"):
        list(beyond.each({"test": _features}))
