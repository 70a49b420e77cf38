"""Care of the store as a whole: its schema, its backup and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from rareclass.adapters.store import Store
from rareclass.adapters.store.tables import HEAD
from rareclass.config import Config
from rareclass.errors import DataError, StoreError, StoreRefusedError
from rareclass.retry import T, retry_until_deadline

if TYPE_CHECKING:
    from rareclass.adapters.tables.storage_folder import Place

MANIFEST = "manifest.json"


def when_it_answers(work: Callable[[], T], wait: float, pause: float = 2.0) -> T:
    """Do ``work``, again while the database does not answer, for ``wait`` seconds. Raises the last StoreError."""
    return retry_until_deadline(work, wait, on=StoreError, never=(StoreRefusedError,), pause=pause)


def migrate(config: Config, wait: float = 0.0) -> str:
    """Bring the store to this version's schema and return its revision.

    wait : seconds during which a database that does not answer is tried again, for an installation where it starts
    beside this. Raises StoreError.
    """

    def work() -> str:
        with Store(config.store.url) as store:
            store.migrate()
            return HEAD

    return when_it_answers(work, wait)


def ready(config: Config) -> Config:
    """Return the configuration when its store answers, waiting for ``store.wait`` at most. Raises StoreError."""

    def ask() -> None:
        with Store(config.store.url) as store:
            store.ping()

    if config.store.wait:
        when_it_answers(ask, config.store.wait.total_seconds())
    return config


def backup(config: Config, destination: str, now: datetime, *, keep: int | None = None) -> tuple[str, dict[str, int]]:
    """Write what the store holds of this model, as of one moment, to a new folder under ``destination``.

    One Parquet file a table and, last, a manifest with their row counts: a folder without it is not a backup.
    keep : number of backups of this model that stay, the newest; older ones are deleted. Returns (folder, rows by
        table).
    """
    from rareclass.adapters.store import archive
    from rareclass.adapters.tables.storage_folder import Place

    place, folder = Place(destination), f"{config.name}-{now:%Y%m%dT%H%M%SZ}"
    counts: dict[str, int] = {}
    with Store(config.store.url) as store:
        store.migrate()
        with archive.snapshot(store, config.name) as parts:
            for table, pieces in parts.items():
                counts[table] = place.write_frames(f"{folder}/{table}.parquet", pieces, archive.columns(table))
    manifest = {"model": config.name, "revision": HEAD, "at": now.isoformat(), "rows": counts}
    place.write(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
    if keep is not None:
        for old in _backups(place, config.name)[:-keep]:
            place.delete(old)
    return f"{destination.rstrip('/')}/{folder}", counts


def restore(
    config: Config, source: str, *, progress: Callable[[str, str], None] = lambda step, message: None
) -> dict[str, tuple[int, int]]:
    """Put a backup's rows into the store where they are missing; what is there stays, doing it again changes nothing.

    source : folder of one backup, or a folder of backups, of which the newest of this model is taken.
    Returns table -> (rows in the backup, rows that were new). Raises DataError when it is not a whole backup of this
    model.
    """
    from rareclass.adapters.store import archive
    from rareclass.adapters.tables.storage_folder import Place

    place = Place(source)
    if place.read(MANIFEST) is None:
        found = _backups(place, config.name)
        if not found:
            raise DataError(
                f"there is no backup of '{config.name}' in '{source}'. Pass the folder that `rareclass backup` wrote to"
            )
        place = Place(f"{source.rstrip('/')}/{found[-1]}")
    manifest = json.loads(place.read(MANIFEST) or b"{}")
    if manifest.get("model") != config.name:
        raise DataError(
            f"'{source}' is a backup of '{manifest.get('model')}', not of '{config.name}'. Pass its own configuration"
        )
    done: dict[str, tuple[int, int]] = {}
    erased: set[str] = set()
    with Store(config.store.url) as store:
        store.migrate()
        # a backup of an earlier release lacks the tables that came later
        for table in (name for name in archive.NAMES if name in manifest["rows"]):
            seen = new = 0
            for frame in place.read_frames(f"{table}.parquet"):
                seen, new = seen + len(frame), new + archive.restore(store, table, frame, erased)
                progress(table, f"{seen:,} rows, {new:,} new")
            if seen != manifest["rows"][table]:
                raise DataError(
                    f"'{place.path}/{table}.parquet' has {seen} rows and its manifest says {manifest['rows'][table]}. "
                    "Take another backup"
                )
            done[table] = (seen, new)
    return done


def _backups(place: Place, model: str) -> list[str]:
    """Folders of whole backups of a model, oldest first."""
    mine = [name for name in place.folders() if name.rpartition("-")[0] == model]
    return [name for name in mine if place.read(f"{name}/{MANIFEST}") is not None]
