"""Messages that can never become a row: kept in a file with the reason, so that they hold up nobody."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

FILE = "dead_letters.jsonl"
LIMIT_BYTES = 256 << 20
"""Size from which only the reasons are kept."""


def keep(folder: Path, reason: str, source: str, parts: dict[str, bytes], now: float) -> None:
    """Append a message. source : where it came from · parts : its bodies by name · now : seconds since 1970"""
    with _locked(folder) as file:
        full = file.tell() > LIMIT_BYTES
        bodies = {} if full else {name: _text(body) for name, body in parts.items()}
        file.write(json.dumps({"at": now, "reason": reason, "source": source, **bodies}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def erase(folder: Path, value: str) -> int:
    """Drop the messages that name an id anywhere; return how many."""
    if not (folder / FILE).exists():
        return 0
    with _locked(folder) as file:
        file.seek(0)
        lines = file.readlines()
        kept = [line for line in lines if value not in "\n".join(_bodies(line))]
        if len(kept) < len(lines):
            file.seek(0)
            file.truncate()
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
    return len(lines) - len(kept)


def _bodies(line: str) -> Iterator[str]:
    for value in json.loads(line).values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield base64.b64decode(value["base64"]).decode("utf-8", "replace")


def _text(body: bytes) -> Any:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """Open the file for one process at a time: what erases a line must not meet what appends one."""
    import fcntl

    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0, os.SEEK_END)
        yield file
