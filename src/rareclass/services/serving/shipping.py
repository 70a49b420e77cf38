"""From the spool to the store: at least once, idempotent there, so none is lost and none is double.

A spool record is one JSON object for one request, in columns, so that the answer waits for as little as possible::

    {"kind": "prediction", "model": "fraud", "version": "3", "request_id": "...", "ts": 1772366400000000,
     "operating_point": "default", "threshold": 0.4, "score": [...], "decision": [...],
     "row": [...], "weight": 1, "propensity": 1, "entity": [...], "features": {"amount": [...], ...}}
    {"kind": "shadow", "model": "fraud", "version": "4", "role": "challenger", "request_id": "...", "ts": ...,
     "score": [...], "decision": [...], "row": [...], "error": null}

``ts`` is microseconds since 1970 UTC, when the row was answered; ``row`` defaults to 0, 1, ...; one value stands for
all rows; ``score`` of a shadow that failed is null and ``error`` says why.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rareclass import logs
from rareclass.adapters.spool import Batch, SpoolReader
from rareclass.adapters.store import Store
from rareclass.config import Config
from rareclass.errors import RareclassError, StoreRefusedError

_LOG = logging.getLogger(__name__)
REJECTED, REUSED = "rejected.jsonl", "reused"
_PURGE_SECONDS = 60.0
_FULL = 1 << 20
"""Bytes of a batch from which the next one is read at once. Fewer are left to add up for a moment: each batch costs the
store and the checkpoint a sync, which a server that writes to the same disk has to wait for."""
_BACKOFF = (0.1, 10.0)  # seconds: first and longest pause while the store is down


def encode(record: Mapping[str, Any]) -> bytes:
    """Return the bytes of a record; arrays are allowed, NaN becomes null."""
    try:
        import orjson
    except ImportError:
        return json.dumps(_plain(dict(record)), separators=(",", ":"), default=str).encode()
    try:
        return orjson.dumps(dict(record), default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # half a surrogate pair in a text, keys that are not text, whole numbers beyond 64 bits
        return json.dumps(_plain(dict(record)), separators=(",", ":"), default=str).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (np.ndarray, list, tuple)):
        return [_plain(one) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Decoded:
    """Frames for the store, and records that are not what they should be, each with its reason."""

    predictions: pd.DataFrame
    shadows: pd.DataFrame
    rejected: tuple[tuple[bytes, str], ...]


def decode(records: Sequence[bytes]) -> Decoded:
    """Unpack spool records into one line per row."""
    columns: dict[str, dict[str, list[Any]]] = {"prediction": {}, "shadow": {}}
    rejected: list[tuple[bytes, str]] = []
    for record in records:
        try:
            raw = _loads(record)
            kind = raw["kind"]
            for name, values in _UNPACK[kind](raw).items():
                columns[kind].setdefault(name, []).extend(values)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            rejected.append((record, f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]))
    return Decoded(pd.DataFrame(columns["prediction"]), pd.DataFrame(columns["shadow"]), tuple(rejected))


def _loads(record: bytes) -> dict[str, Any]:
    try:
        import orjson
    except ImportError:
        return dict(json.loads(record))
    try:
        return dict(orjson.loads(record))
    except orjson.JSONDecodeError:
        return dict(json.loads(record))  # NaN, and numbers beyond 64 bits


def _prediction(raw: Mapping[str, Any]) -> dict[str, list[Any]]:
    n = len(raw["score"])
    spread = _spreader(n)
    unpacked = {
        **_common(raw, n),
        "operating_point": [str(raw.get("operating_point") or "default")] * n,
        "threshold": [_number(raw.get("threshold"))] * n,
        "score": [float(score) for score in raw["score"]],
        "decision": [int(decision) for decision in spread(raw["decision"])],
        "weight": [float(weight) for weight in spread(raw.get("weight", 1.0))],
        "propensity": [float(propensity) for propensity in spread(raw.get("propensity", 1.0))],
        "entity": [None if entity is None else str(entity) for entity in spread(raw.get("entity"))],
        "features": _features(raw.get("features"), n),
    }
    if not all(map(math.isfinite, unpacked["score"] + unpacked["weight"] + unpacked["propensity"])):
        raise ValueError("score, weight and propensity must be finite")
    return unpacked


def _shadow(raw: Mapping[str, Any]) -> dict[str, list[Any]]:
    score = raw.get("score")
    n = len(score if score is not None else raw["row"])
    spread = _spreader(n)
    return {
        **_common(raw, n),
        "role": [str(raw["role"])] * n,
        "score": [_number(one) for one in spread(score)],
        "decision": [None if one is None else int(one) for one in spread(raw.get("decision"))],
        "error": spread(None if raw.get("error") is None else str(raw["error"])),
    }


_UNPACK: dict[str, Callable[[Mapping[str, Any]], dict[str, list[Any]]]] = {"prediction": _prediction, "shadow": _shadow}


def _common(raw: Mapping[str, Any], n: int) -> dict[str, list[Any]]:
    row = raw.get("row")
    rows = list(range(n)) if row is None else [int(one) for one in row]
    if len(rows) != n:
        raise ValueError(f"{len(rows)} row numbers for {n} rows")
    return {
        "request_id": [str(raw["request_id"])] * n,
        "row": rows,
        "ts": [int(ts) for ts in _spreader(n)(raw["ts"])],
        "model": [str(raw["model"])] * n,
        "version": [str(raw["version"])] * n,
    }


def _spreader(n: int) -> Callable[[Any], list[Any]]:
    def spread(value: Any) -> list[Any]:
        if not isinstance(value, list):
            return [value] * n
        if len(value) != n:
            raise ValueError(f"{len(value)} values for {n} rows")
        return value

    return spread


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _dumped(row: Any) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode()


def _features(columns: Mapping[str, Sequence[Any]] | None, n: int) -> list[str | None]:
    """One JSON text per row out of columns."""
    if not columns:
        return [None] * n
    if any(len(values) != n for values in columns.values()):
        raise ValueError(f"features are not {n} rows in every column")
    dumps: Callable[[Any], bytes]
    try:
        from orjson import dumps
    except ImportError:
        dumps = _dumped
    return [dumps(dict(zip(columns, row, strict=True))).decode() for row in zip(*columns.values(), strict=True)]


def ship(reader: SpoolReader, store: Store, max_bytes: int = 8 << 20) -> tuple[Batch, int]:
    """Move one batch from the spool to the store and commit it; return it and the number of new rows.

    Raises StoreError when the store cannot be reached; nothing is committed then. A record that is not readable, or
    that the store will never take, goes to ``rejected.jsonl`` in the spool's folder with its reason, so that it does
    not hold up the others.
    """
    batch = reader.read(max_bytes)
    fresh = _store(batch.records, reader.folder, store) if batch.records else 0
    reader.commit(batch)
    return batch, fresh


def _store(records: Sequence[bytes], folder: Path, store: Store) -> int:
    decoded = decode(records)
    try:
        fresh = store.add_predictions(decoded.predictions) if len(decoded.predictions) else 0
        if fresh < len(decoded.predictions) and (reused := store.reused(decoded.predictions)):
            _LOG.warning(
                "%d rows were not stored: their request id is in the store with other contents. "
                "Clients must send a new id with each request",
                reused,
            )
            _count_reused(folder, reused)
        fresh += store.add_shadow_scores(decoded.shadows) if len(decoded.shadows) else 0
    except StoreRefusedError as error:
        store.ping()  # a StoreError when the whole store is the problem
        if len(records) == 1:
            _reject(folder, [(records[0], str(error))])
            return 0
        half = len(records) // 2
        return _store(records[:half], folder, store) + _store(records[half:], folder, store)
    _reject(folder, decoded.rejected)
    return fresh


def purge_rejected(folder: Path, store: Store) -> int:
    """Drop the rejected records of rows that were erased; return how many."""
    file = folder / REJECTED
    if not file.exists():
        return 0
    lines = file.read_text(encoding="utf-8").splitlines()
    named = [_named(line) for line in lines]
    rows = pd.DataFrame([row for at, rows in enumerate(named) for row in ({**one, "line": at} for one in rows)])
    if rows.empty:
        return 0
    erased = set(rows.loc[store.forgotten(rows), "line"])
    if erased:
        temporary = file.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as out:
            out.writelines(f"{line}\n" for at, line in enumerate(lines) if at not in erased)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    return len(erased)


def _named(line: str) -> list[dict[str, Any]]:
    """Return whose rows a rejected record holds, as far as it can be read."""
    try:
        raw = json.loads(json.loads(line)["record"])
        rows = raw["row"] if isinstance(raw.get("row"), list) else [raw.get("row") or 0]
        entities = raw["entity"] if isinstance(raw.get("entity"), list) else [raw.get("entity")]
        moments = raw["ts"] if isinstance(raw.get("ts"), list) else [raw.get("ts")]
        ts = min(moment for moment in moments if isinstance(moment, int))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    base = {"model": str(raw.get("model")), "request_id": str(raw.get("request_id")), "ts": ts}
    names = [None if entity is None else str(entity) for entity in entities] or [None]
    return [{**base, "row": row, "entity": name} for row in rows or [0] for name in dict.fromkeys(names)]


def _count_reused(folder: Path, rows: int) -> None:
    """Add to the number of rows that reused an id, which the server exports."""
    file = folder / REUSED
    known = reused_ids(folder)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(str(known + rows), encoding="utf-8")
    temporary.replace(file)


def reused_ids(folder: Path) -> int:
    """Return how many rows of this spool reused the id of another one and were not stored."""
    try:
        return int((folder / REUSED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _reject(folder: Path, rejected: Sequence[tuple[bytes, str]]) -> None:
    if not rejected:
        return
    with (folder / REJECTED).open("a", encoding="utf-8") as file:
        for record, reason in rejected:
            file.write(json.dumps({"reason": reason, "record": record.decode("utf-8", "replace")}) + "\n")
        file.flush()
        os.fsync(file.fileno())


class Shipper:
    """Ships until told to stop; survives a store that is down, and does not care whose process it runs in.

    spool : folder of the spool; store_url : where to; clock : seconds since 1970, for ``last_success``
    """

    def __init__(
        self, spool: str | Path, store_url: str, *, poll_seconds: float = 0.2, clock: Callable[[], float] = time.time
    ) -> None:
        self._spool, self._url, self._poll, self._clock = Path(spool), store_url, poll_seconds, clock
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._drain_until = self._purge_at = 0.0
        self.shipped_rows = self.shipped_records = self.damaged_bytes = 0
        self.last_error: str | None = None
        self.last_success: float | None = None

    def start(self) -> Shipper:
        """Ship from a background thread."""
        self._thread = threading.Thread(target=self.run, name="shipper", daemon=True)
        self._thread.start()
        return self

    def stop(self, drain_seconds: float = 30.0) -> bool:
        """Ship what is left, for ``drain_seconds`` at most; return whether everything is in the store."""
        self._drain_until = time.monotonic() + drain_seconds
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(drain_seconds + 10)
        return self.last_error is None

    def run(self, stopping: Callable[[], bool] | None = None) -> None:
        """Ship until ``stop()`` was called or ``stopping()`` is true, then drain."""
        pause = _BACKOFF[0]
        reader: SpoolReader | None = None
        store: Store | None = None
        try:
            while True:
                ending = self._stop.is_set() or bool(stopping and stopping())
                if ending and not self._drain_until:
                    self._drain_until = time.monotonic() + 30
                try:
                    reader = reader or SpoolReader(self._spool)
                    if store is None:
                        store = Store(self._url)
                    if self.last_success is None:
                        store.migrate()
                    if time.monotonic() >= self._purge_at:
                        self._purge_at = time.monotonic() + _PURGE_SECONDS
                        purge_rejected(self._spool, store)
                    batch, fresh = ship(reader, store)
                    self.shipped_records += len(batch.records)
                    self.shipped_rows += fresh
                    self.damaged_bytes += batch.damaged_bytes
                    self.last_error, self.last_success, pause = None, self._clock(), _BACKOFF[0]
                    if ending and not batch.records:
                        return
                    if not ending and sum(map(len, batch.records)) < _FULL:
                        self._wake.wait(self._poll)
                except Exception as error:  # whatever it is: the spool keeps the records, and trying again is safe
                    known = isinstance(error, RareclassError | OSError)
                    reason = " ".join(f"{'' if known else type(error).__name__ + ': '}{error}".split())
                    if reason != self.last_error:  # once, not at every attempt
                        _LOG.warning("the spool is not shipped: %s", reason)
                    self.last_error = reason
                    if ending and time.monotonic() > self._drain_until:
                        return
                    self._wake.wait(pause if not ending else min(pause, 0.2))
                    pause = min(pause * 2, _BACKOFF[1])
        finally:
            if reader is not None:
                reader.close()
            if store is not None:
                store.close()


def spools(root: str | Path) -> list[Path]:
    """Return the spools that servers of this configuration have or had here: theirs, and those of their shadows."""
    servers = [Path(root), *sorted(Path(root).glob("worker-*"))]
    return [folder for server in servers for folder in (server, server / "shadow") if folder.is_dir()]


def start_process(config: Config) -> subprocess.Popen[bytes]:
    """Start a shipper outside this process, and so outside its interpreter lock; when this process ends, in whatever
    way, it ships what is left and ends too."""
    command = [sys.executable, "-m", "rareclass.services.serving.shipping", config.serve.spool, str(os.getpid())]
    environment = {
        **os.environ,
        "RARECLASS_STORE_URL": config.store.url,
    }  # not in the arguments: it may hold a password
    return subprocess.Popen(command, env=environment)


def main(arguments: Sequence[str]) -> int:
    """``python -m rareclass.services.serving.shipping SPOOL [PARENT]`` with the store's URL in RARECLASS_STORE_URL."""

    logs.configure()
    spool, parent = arguments[0], int(arguments[1]) if len(arguments) > 1 else None
    shipper = Shipper(spool, os.environ["RARECLASS_STORE_URL"])
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    signal.signal(signal.SIGINT, lambda *_: asked.set())
    shipper.run(lambda: asked.is_set() or (parent is not None and os.getppid() != parent))
    if shipper.last_error is not None:
        _LOG.error("error: %s", shipper.last_error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
