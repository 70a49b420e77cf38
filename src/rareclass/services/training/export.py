"""The prepared splits, as files that anybody can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from rareclass.config import Config
from rareclass.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMATS = ("parquet", "csv")


def export(
    config: Config,
    destination: str,
    *,
    format: Literal["parquet", "csv"] = "parquet",
    progress: Callable[[str], None] | None = None,
) -> Mapping[str, str]:
    """Ingest as a run would and write train, validation and test to a folder or an object store.

    Returns the written file of each split. Raises ConfigError for an unknown format, DataError as ingest does.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS, "--format")
    from rareclass.adapters import tables

    ingested = tables.ingest(config, progress=progress)
    return tables.export(ingested, destination, format=format)
