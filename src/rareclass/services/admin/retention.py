"""How long predictions are kept, and how everything about a person is erased."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

from rareclass.adapters.store import Store
from rareclass.config import Config
from rareclass.services.serving.shipping import REJECTED


def prune(config: Config, now: datetime, *, store: Store | None = None) -> int:
    """Delete predictions older than ``store.retention``, with their shadow scores and labels; return how many."""
    before = now - config.store.retention
    if store is not None:
        return store.prune(config.name, before)
    with Store(config.store.url) as opened:
        opened.migrate()
        return opened.prune(config.name, before)


def forget(config: Config, now: datetime, *, request_id: str | None = None, entity: str | None = None) -> int:
    """Erase what is stored about a request or an entity; return the number of rows erased.

    Rows up to ``now`` that still wait in a spool are refused when they arrive at the store. What was registered in a
    model stays: a model cannot forget a row, the next training does.
    """
    with Store(config.store.url) as store:
        store.migrate()
        erased = store.forget(config.name, request_id=request_id, entity=entity, at=now)
    for file in Path(config.serve.spool).rglob(REJECTED):
        _forget_rejected(file, str(request_id if request_id is not None else entity))
    return erased


def _forget_rejected(file: Path, identity: str) -> None:
    """Drop the records that were rejected by the shipper and hold this id."""
    kept = [
        line for line in file.read_text(encoding="utf-8").splitlines() if identity not in json.loads(line)["record"]
    ]
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as out:
        out.writelines(f"{line}\n" for line in kept)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
