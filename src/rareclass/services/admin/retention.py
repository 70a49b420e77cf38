"""How long predictions are kept, and how everything about a person is erased."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rareclass.adapters.spool import SpoolReader, segments, unshipped_bytes
from rareclass.adapters.store import Store
from rareclass.config import Config
from rareclass.errors import AlreadyDoneError, SpoolError, StoreError
from rareclass.services.actor import me
from rareclass.services.live.listen import erase_heard
from rareclass.services.serving.shipping import REJECTED, purge_rejected, ship, spools

SPOOL_SECONDS = 120
"""Seconds within which a running server's spool holds nothing any more of what is in the store,
or was refused there.
"""


@dataclass(frozen=True)
class Removed:
    """What was removed: rows by table, whether the database's files were rewritten, and what is still to come, in
    words.
    """

    rows: dict[str, int] = field(default_factory=dict)
    compacted: bool = True
    remaining: str = ""

    @property
    def total(self) -> int:
        """Rows of all tables together."""
        return sum(self.rows.values())


def prune(config: Config, now: datetime, *, store: Store | None = None) -> Removed:
    """Delete predictions older than ``store.retention``, with their shadow scores and labels; a line in the ledger says
    how many.

    Doing it again at the same moment changes nothing.
    """
    before = now - config.store.retention
    with _opened(config, store) as opened:
        rows = opened.prune(config.name, before)
        if not any(rows.values()):
            return Removed(rows)
        compacted, remaining = (True, "") if opened.postgres else _compacted(opened.compact)
        reason = f"older than {before:%Y-%m-%d %H:%M} (store.retention)"
        payload = {"before": before.isoformat(), "rows": rows, "compacted": compacted}
        _record(opened, config, f"retention:{now.isoformat()}", "retention", reason, payload, now)
    return Removed(rows, compacted, remaining)


def forget(config: Config, now: datetime, *, request_id: str | None = None, entity: str | None = None) -> Removed:
    """Erase everything about a request or an entity: store and its files, spools, rejected records.

    Rows up to ``now`` that still wait in a spool are refused when they arrive at the store, and so are labels that are
    imported again; of the ids only salted digests are kept. A running server's spool holds the rows for
    ``SPOOL_SECONDS`` at most while the store answers. The ledger says that it was done. What was registered in a model
    stays: a model cannot forget a row, the next training does; a backup keeps its rows until it is deleted.
    """
    with _opened(config, None) as store:
        done = store.forget(config.name, request_id=request_id, entity=entity, at=now)
        waiting = []
        for folder in _spools(config):
            if not _drained(folder, store):
                waiting.append(str(folder))
            purge_rejected(folder, store)
        erase_heard(Path(config.listen.spool), request_id or entity or "")
        compacted, remaining = _compacted(lambda: store.compact(done.parts))
        if waiting:
            remaining = (
                f"{remaining} A server uses {', '.join(waiting)}: it is empty of the rows within {SPOOL_SECONDS} s"
            ).strip()
        payload = {
            "what": done.kind,
            "digest": done.digest,
            "rows": done.rows,
            "compacted": compacted,
            "spools_in_use": len(waiting),
        }
        reason = f"{done.total} rows of one {done.kind} erased"
        _record(store, config, f"erasure:{done.digest}:{now.isoformat()}", "erasure", reason, payload, now)
    return Removed(done.rows, compacted, remaining)


@contextlib.contextmanager
def _opened(config: Config, store: Store | None):  # type: ignore[no-untyped-def]
    if store is not None:
        yield store
        return
    with Store(config.store.url) as fresh:
        fresh.migrate()
        yield fresh


def _record(
    store: Store, config: Config, key: str, kind: str, reason: str, payload: dict[str, object], now: datetime
) -> None:
    with contextlib.suppress(AlreadyDoneError):
        store.append(config.name, key, kind, me(), reason, payload, now)


def _compacted(work: Callable[[], None]) -> tuple[bool, str]:
    try:
        work()
    except StoreError as error:
        return False, f"The rows are gone, old pages are not: {error}."
    return True, ""


def _spools(config: Config) -> list[Path]:
    """Return the spools of servers, their shadows and listeners, where they are on this machine."""
    return [*spools(config.serve.spool), *spools(config.listen.spool)]


def _drained(folder: Path, store: Store) -> bool:
    """Ship what waits in a spool that no server uses, so that its segments go; False where one does."""
    if not segments(folder) and not (folder / REJECTED).exists():
        return True
    try:
        with SpoolReader(folder) as reader:
            batch, _ = ship(reader, store)
            while batch.records:
                batch, _ = ship(reader, store)
            reader.sweep()
    except SpoolError:
        return False
    return not unshipped_bytes(folder) and not segments(folder)
