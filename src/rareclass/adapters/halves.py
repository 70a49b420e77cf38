"""Halves of predictions that wait for each other: a request and its answer come as two events, in any order.

A SQLite file, so that neither is lost with the process. A joined pair leaves its key behind for a while: what is sent
again is known then.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rareclass.errors import SpoolError, SpoolFullError

FILE = "halves.db"
REQUEST, RESPONSE = "request", "response"
_AT_ONCE = 1000
_SIZE = "SELECT coalesce(sum(length(data)), 0) FROM halves"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS halves (
    id TEXT NOT NULL, kind TEXT NOT NULL, received REAL NOT NULL, time REAL NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (id, kind)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS received ON halves (received);
CREATE TABLE IF NOT EXISTS joined (id TEXT PRIMARY KEY, received REAL NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Half:
    """A request, or an answer. ``time`` and ``received`` are seconds since 1970."""

    id: str
    kind: str
    time: float
    received: float
    data: bytes


class Halves:
    """The file; safe to use from several threads, and by ``forget`` in another process.

    limit : bytes of waiting halves from which ``put`` refuses; durable : survive a power cut, not only the process
    """

    def __init__(self, folder: str | Path, *, limit: int, durable: bool = False) -> None:
        self._path, self._limit, self._lock = Path(folder) / FILE, limit, threading.Lock()
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._connection = sqlite3.connect(self._path, timeout=30, check_same_thread=False, isolation_level=None)
            self._path.chmod(0o600)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._connection.execute("PRAGMA secure_delete=ON")
            self._connection.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise SpoolError(
                f"'{self._path}' cannot be used: {error}. Set listen.spool to a folder of its own"
            ) from None
        (self._bytes,) = self._one(_SIZE)

    def put(self, half: Half) -> Half | str:
        """Keep a half. Returns the other one where it waits (both stay until ``done``), else ``waits`` or ``again``.

        Raises SpoolFullError when too much waits or the disk is full.
        """
        with self._lock:
            if self._one("SELECT 1 FROM joined WHERE id = ?", half.id):
                return "again"
            other = self._one(
                "SELECT id, kind, time, received, data FROM halves WHERE id = ? AND kind != ?", half.id, half.kind
            )
            if other:
                return Half(*other)
            if self._bytes + len(half.data) > self._limit:
                raise SpoolFullError(
                    f"{self._bytes} bytes of events wait for their other half; they may take {self._limit} "
                    "(serve.spool_limit_bytes). Send them again later"
                )
            row = (half.id, half.kind, half.received, half.time, half.data)
            added = self._do("INSERT OR IGNORE INTO halves VALUES (?, ?, ?, ?, ?)", *row)
            self._bytes += len(half.data) if added else 0
            return "waits" if added else "again"

    def done(self, identity: str, now: float, *, joined: bool = True) -> None:
        """Drop what waits under an id; ``joined`` remembers that both were there."""
        with self._lock:
            (size,) = self._one(f"{_SIZE} WHERE id = ?", identity)
            if joined:
                self._do("INSERT OR REPLACE INTO joined VALUES (?, ?)", identity, now)
            self._do("DELETE FROM halves WHERE id = ?", identity)
            self._bytes -= size

    def expired(self, before: float) -> list[Half]:
        """Return halves that came before a moment, oldest first, and forget the joined ids of that time."""
        with self._lock:
            self._do("DELETE FROM joined WHERE received < ?", before)
            (self._bytes,) = self._one(_SIZE)  # what another process erased is not counted any more
            found = self._connection.execute(
                "SELECT id, kind, time, received, data FROM halves WHERE received < ? ORDER BY received LIMIT ?",
                (before, _AT_ONCE),
            )
            return [Half(*row) for row in found]

    def waiting(self) -> int:
        """Return how many halves wait."""
        with self._lock:
            return int(self._one("SELECT count(*) FROM halves")[0])

    def close(self) -> None:
        """Close the file of what waits; a later call raises."""
        with self._lock:
            self._connection.close()

    def _one(self, statement: str, *values: Any) -> Any:
        return self._connection.execute(statement, values).fetchone()

    def _do(self, statement: str, *values: Any) -> int:
        try:
            return self._connection.execute(statement, values).rowcount
        except sqlite3.OperationalError as error:
            raise SpoolFullError(f"'{self._path}' cannot be written: {error}. Free its disk") from None


def erase(folder: Path, value: str) -> int:
    """Delete the halves of an id, and those whose contents name it; return how many."""
    path = folder / FILE
    if not path.exists():
        return 0
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        connection.execute("PRAGMA secure_delete=ON")
        done = connection.execute(
            "DELETE FROM halves WHERE id = ? OR instr(data, CAST(? AS BLOB)) > 0", (value, value)
        ).rowcount
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return done
    finally:
        connection.close()
