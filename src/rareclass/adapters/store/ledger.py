"""The chain of the ledger: each line carries a hash over itself and the line before it.

The database refuses to change or delete a line (triggers); whoever owns the database can take the triggers away. The
chain makes what he then changes visible, and a hash that was noted elsewhere makes it visible that lines are missing at
the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa

from rareclass.adapters.store.tables import LEDGER

FIELDS = ("model", "key", "kind", "actor", "reason", "payload", "at")


@dataclass(frozen=True, slots=True)
class Chain:
    """What a walk along the ledger found. lines : how many · head : hash of the last · broken : sentences, empty when
    whole
    """

    lines: int
    head: str
    broken: tuple[str, ...]


def line_hash(line: Mapping[str, Any], previous: str) -> str:
    """Return the hash of a line as stored, which follows one with the hash ``previous`` (empty: the first of its
    model).
    """
    content = json.dumps([previous, *(line[name] for name in FIELDS)], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def write(connection: sa.Connection, line: Mapping[str, Any]) -> int:
    """Insert a line behind the last one of its model, inside the caller's transaction; return its id.

    Writers take turns: on SQLite the transaction is the only writer, on PostgreSQL they wait for a lock of the model.
    """
    if connection.dialect.name == "postgresql":
        lock = sa.text("SELECT pg_advisory_xact_lock(1919050607, hashtext(:model))")
        connection.execute(lock, {"model": line["model"]})
    last = sa.select(LEDGER.c.hash).where(LEDGER.c.model == line["model"]).order_by(LEDGER.c.id.desc()).limit(1)
    previous = connection.execute(last).scalar() or ""
    values = {name: line[name] for name in FIELDS}
    made = connection.execute(sa.insert(LEDGER).values(**values, previous=previous, hash=line_hash(values, previous)))
    return int(cast("tuple[int]", made.inserted_primary_key)[0])  # of one inserted row


def verify(lines: Sequence[Mapping[str, Any]], expect: str | None = None) -> Chain:
    """Walk along the lines of one model, oldest first.

    expect : a hash that the ledger had earlier; without it nobody can tell that the newest lines were cut off
    """
    broken, previous, seen = [], "", set()
    for number, line in enumerate(lines, 1):
        name = f"line {number} ('{line['key']}')"
        if line["previous"] != previous:
            broken.append(f"{name} does not follow the line before it: a line was taken out, put in or moved")
        if line["hash"] != line_hash(line, line["previous"] or ""):
            broken.append(f"{name} is not what was written: it was changed")
        previous = line["hash"] or ""
        seen.add(previous)
    if expect is not None and expect not in seen:
        broken.append(f"no line has the hash {expect}: lines that were there are gone, or the ledger was written anew")
    return Chain(len(lines), previous, tuple(broken))
