"""Challenger and previous champion score the same rows again, in a process of their own.

Not in the champion's process, because a thread that hangs or eats memory cannot be stopped there. Rows go over a pipe
after their answer was sent; what a slow shadow cannot take is dropped and counted, never waited for. The process has a
memory limit and a lower priority; one that takes too long is killed and started again, and a version that did this
several times is left out until the versions change.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rareclass.adapters.serving.engine import Frame
from rareclass.adapters.serving.interfaces import Scorer, ServedVersion
from rareclass.adapters.serving.metrics import Metrics
from rareclass.core import operating
from rareclass.core.dataset import FloatMatrix, Schema, decode

_LOG = logging.getLogger(__name__)
WAITING_ROWS = 50_000
STRIKES = 3
_PAUSE = 0.02
_SEND_ROWS = 5_000
_LOAD_SECONDS = 180.0


@dataclass(frozen=True, slots=True)
class Work:
    """The rows of one request as they travel: the champion's matrix, and what it does not hold."""

    id: str
    micros: int | NDArray[np.int64]
    schema: str
    matrix: FloatMatrix
    text: dict[str, list[str | None]]
    others: dict[str, NDArray[Any]]
    point: str


class ShadowState(Enum):
    """What the shadow's process is doing.

    ======== ================================================ ==========================================
    state    what moves it on                                 to
    ======== ================================================ ==========================================
    OFF      versions are wanted: a process is begun          READY
    READY    other versions are wanted than it was told       LOADING
    READY    rows wait                                        SCORING
    READY    its process ended                                OFF, and begun again (nobody's fault)
    LOADING  it says which columns it takes                   READY
    LOADING  too long, or its process ended                   OFF; the version it was at gets a strike
    SCORING  it says how many rows it scored                  READY
    SCORING  too long, or its process ended                   OFF; the version it was at gets a strike
    any      no version is wanted that has strikes left       OFF
    ======== ================================================ ==========================================
    """

    OFF = "off"
    READY = "ready"
    LOADING = "loading"
    SCORING = "scoring"


class ShadowProcess:
    """The server's end: a bounded queue, a thread that feeds the process, and a watch over it.

    worker : top-level function (connection, busy) that the process runs; see ``work``
    seconds : a version that scores one parcel for longer is killed
    """

    def __init__(
        self, worker: Callable[..., None], arguments: tuple[Any, ...], *, seconds: float, metrics: Metrics, model: str
    ) -> None:
        self._worker, self._arguments, self._seconds = worker, arguments, seconds
        self._metrics, self._model = metrics, model
        self._context = multiprocessing.get_context("spawn")
        self._queue: deque[Frame] = deque()
        self._rows = 0
        self._versions: tuple[ServedVersion, ...] = ()
        self._columns: frozenset[str] = frozenset()
        self._strikes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._process: Any = None
        self._connection: Connection | None = None
        self._busy: Any = None
        self._in_flight = 0
        self._told: tuple[ServedVersion, ...] | None = None
        self._loading: float | None = None
        self._thread = threading.Thread(target=self._forever, name="rareclass-shadows", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame) -> None:
        """Queue answered rows; drop and count them when too many wait."""
        if not self._versions:
            return
        with self._lock:
            full = self._rows + len(frame.query) > WAITING_ROWS
            if not full:
                self._rows += len(frame.query)
                self._queue.append(frame)
        if full:
            self._count("dropped", len(frame.query))

    def set(self, versions: Sequence[ServedVersion]) -> None:
        """Say which versions score in the shadow. A change forgives earlier strikes."""
        if tuple(versions) != self._versions:
            self._strikes.clear()
            self._versions = tuple(versions)
            if not versions:
                self._columns = frozenset()
            self._wake.set()

    def columns(self) -> frozenset[str]:
        """Return the columns that the loaded shadows want."""
        return self._columns

    def close(self, seconds: float) -> None:
        """Let what waits be scored for so long, then end the process."""
        deadline = time.monotonic() + seconds
        while self._versions and (self._queue or self._in_flight) and time.monotonic() < deadline and self._alive():
            time.sleep(_PAUSE)
        self._stop.set()
        self._wake.set()
        self._thread.join(seconds + 1)
        if self._alive():
            with contextlib.suppress(OSError):
                self._connection.send(("stop", None))  # type: ignore[union-attr]
            self._process.join(max(deadline - time.monotonic(), 1))
        self._kill()

    def _count(self, outcome: str, rows: int) -> None:
        self._metrics.shadow.labels(self._model, outcome).inc(rows)

    def _alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def _forever(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(_PAUSE if self._versions else None)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self._step()
            except Exception as error:  # whatever it is, it stays on this side
                _LOG.warning("shadows: %s", " ".join(str(error).split()))
                self._restart()

    def _step(self) -> None:
        wanted = tuple(v for v in self._versions if self._strikes.get(v.version, 0) < STRIKES)
        if not wanted:
            self._drop()
            return
        if self._process is None:
            self._begin()
        connection = self._connection
        assert connection is not None
        if self._told != wanted and self._state is ShadowState.READY:  # else told when it listens again
            connection.send(("versions", wanted))
            self._told, self._loading = wanted, time.monotonic()
        try:
            while connection.poll():
                self._heard(*connection.recv())
        except EOFError:
            self._process.join(1)
        which, fault = int(self._busy[1]), self._fault()
        if fault is not None:
            self._blame(self._told or wanted, which, fault)
        elif not self._process.is_alive():
            self._restart()
        elif self._state is ShadowState.READY and self._queue:
            # One parcel at a time: the pipe never fills, so this thread never blocks on a shadow that hangs.
            parcel = self._parcel()
            self._in_flight = sum(len(work.matrix) for work in parcel)
            self._busy[0], self._busy[1] = time.monotonic(), -1
            connection.send(("rows", parcel))

    @property
    def _state(self) -> ShadowState:
        if self._process is None:
            return ShadowState.OFF
        if self._loading is not None:
            return ShadowState.LOADING
        return ShadowState.SCORING if self._in_flight else ShadowState.READY

    def _fault(self) -> str | None:
        """What the process is to be blamed for; None while it does what it should, or is idle."""
        since = self._busy[0]
        if since and time.monotonic() - since > self._seconds:
            return f"scored one parcel for more than {self._seconds:g} s"
        if self._loading is not None and time.monotonic() - self._loading > _LOAD_SECONDS:
            return f"did not load within {_LOAD_SECONDS:g} s"
        if self._state in (ShadowState.LOADING, ShadowState.SCORING) and not self._process.is_alive():
            return "ended its process (out of memory, or a crash)"
        return None

    def _begin(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._busy = self._context.RawArray("d", 2)
        self._process = self._context.Process(
            target=self._worker, args=(theirs, self._busy, *self._arguments), name="rareclass-shadow", daemon=True
        )
        self._process.start()
        theirs.close()
        self._told, self._loading, self._in_flight = None, None, 0

    def _heard(self, kind: str, payload: Any) -> None:
        if kind == "columns":
            self._columns, self._loading = frozenset(payload), None
        elif kind == "done":
            scored, failed = payload
            self._in_flight = 0
            self._count("scored", scored)
            self._count("failed", failed)

    def _blame(self, wanted: Sequence[ServedVersion], which: int, why: str) -> None:
        at = which if 0 <= which < len(wanted) else 0
        version = wanted[at].version
        self._strikes[version] = self._strikes.get(version, 0) + 1
        out = self._strikes[version] >= STRIKES
        _LOG.warning("shadow version %s %s%s", version, why, ": left out from now on" if out else ": started again")
        self._count("failed", self._in_flight)
        self._restart()

    def _restart(self) -> None:
        self._metrics.restarts.labels(self._model).inc()
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()  # type: ignore[union-attr]
        self._process, self._connection, self._in_flight = None, None, 0

    def _drop(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, 0
            self._queue.clear()
        if rows:
            self._count("dropped", rows)

    def _parcel(self) -> list[Work]:
        frames: list[Frame] = []
        with self._lock:
            rows = 0
            while self._queue and rows < _SEND_ROWS:
                frames.append(self._queue.popleft())
                rows += len(frames[-1].query)
            self._rows -= rows
        texts: dict[int, str] = {}
        out = []
        for frame in frames:
            schema = frame.active.signature.schema
            if id(schema) not in texts:
                texts[id(schema)] = json.dumps(schema.to_json())
            query = frame.query
            out.append(
                Work(
                    frame.id,
                    frame.micros,
                    texts[id(schema)],
                    query.matrix,
                    query.text,
                    query.others,
                    frame.active.point,
                )
            )
        return out


def limit_memory(spare_bytes: int) -> None:
    """Let this process allocate so much more than it has now; beyond it, allocations fail."""
    import resource

    with open("/proc/self/status", encoding="ascii") as status:
        data = next((int(line.split()[1]) for line in status if line.startswith("VmData")), 0) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + spare_bytes, data + spare_bytes))


def work(
    connection: Connection,
    busy: Any,
    *,
    load: Callable[[ServedVersion], Scorer],
    write: Callable[[list[dict[str, Any]]], None],
    model: str,
) -> None:
    """The process's end: score what comes with every version and write the scores.

    busy : [monotonic second at which a version began, 0 when idle; its position]
    write : takes records {kind: "shadow", ...} that the store understands
    """
    loaded: dict[str, Scorer | str] = {}
    versions: tuple[ServedVersion, ...] = ()
    while True:
        try:
            kind, payload = connection.recv()
        except (EOFError, OSError):  # the server is gone
            return
        if kind == "stop":
            return
        if kind == "versions":
            versions = payload
            for at, version in enumerate(versions):
                busy[1] = at
                if version.version not in loaded:
                    loaded[version.version] = _loaded(load, version)
            connection.send(("columns", sorted(_columns(loaded[v.version] for v in versions))))
            continue
        scored = failed = 0
        for at, version in enumerate(versions):
            busy[1] = at
            busy[0] = time.monotonic()
            records = _scored(loaded[version.version], version, payload, model)
            busy[0] = 0.0
            write(records)
            done = sum(len(record["row"]) for record in records if record["error"] is None)
            scored += done
            failed += sum(len(record["row"]) for record in records) - done
        busy[0] = 0.0
        connection.send(("done", (scored, failed)))


def _loaded(load: Callable[[ServedVersion], Scorer], version: ServedVersion) -> Scorer | str:
    try:
        return load(version)
    except Exception as error:
        return _line(error)


def _columns(models: Iterable[Scorer | str]) -> set[str]:
    return {name for model in models if not isinstance(model, str) for name in model.schema.names}


def _scored(model: Scorer | str, version: ServedVersion, parcel: Sequence[Work], name: str) -> list[dict[str, Any]]:
    """Return the records of the requests: scored together when that works, one by one when it does not."""
    if isinstance(model, str):
        return [each for work in parcel for each in _records(version, name, work, None, 0.0, model)]
    inputs: list[FloatMatrix | pd.DataFrame | str] = [_input(model.schema, work) for work in parcel]
    cutoffs = operating.in_force(model.thresholds, model.primary, version.cutoffs)
    cutoff = {work.point: operating.beside(cutoffs, model.primary, work.point) for work in parcel}
    matrices = [each for each in inputs if isinstance(each, np.ndarray)]
    together: dict[int, NDArray[np.float64]] = {}
    if len(matrices) == len(inputs):
        with contextlib.suppress(Exception):
            scores = np.asarray(model.score(np.concatenate(matrices)), dtype=np.float64)
            if np.isfinite(scores).all():
                together = dict(enumerate(np.split(scores, np.cumsum([len(each) for each in matrices])[:-1])))
    out = []
    for at, (work, each) in enumerate(zip(parcel, inputs, strict=True)):
        score, error = together.get(at), None
        if score is None:
            score, error = (None, each) if isinstance(each, str) else _alone(model, each)
        out += _records(version, name, work, score, float(cutoff[work.point]), error)
    return out


def _alone(model: Scorer, rows: FloatMatrix | pd.DataFrame) -> tuple[NDArray[np.float64] | None, str | None]:
    try:
        score = np.asarray(model.score(rows), dtype=np.float64)
    except Exception as error:
        return None, _line(error)
    return (score, None) if np.isfinite(score).all() else (None, "the score is not finite")


def _input(schema: Schema, work: Work) -> FloatMatrix | pd.DataFrame | str:
    """Return the rows as this version wants them, or why it cannot be had."""
    champion = Schema.from_json(json.loads(work.schema))
    if schema == champion:
        return work.matrix
    frame = decode(work.matrix, champion)
    columns: list[tuple[str, Any]] = [*work.text.items(), *work.others.items()]
    for column, values in columns:
        frame[column] = np.asarray(values, dtype=object) if isinstance(values, list) else values
    absent = [name for name in schema.names if name not in frame.columns]
    return f"column '{absent[0]}' is not in the request" if absent else frame[schema.names]


def _records(
    version: ServedVersion, name: str, work: Work, score: NDArray[np.float64] | None, cutoff: float, error: str | None
) -> list[dict[str, Any]]:
    """Return one record, or one for each event time."""
    rows = np.arange(len(work.matrix))
    moments = np.unique(np.asarray(work.micros))
    out = []
    for moment in moments:
        part = rows if len(moments) == 1 else rows[work.micros == moment]
        out.append(
            {
                "kind": "shadow",
                "model": name,
                "version": version.version,
                "role": version.role,
                "request_id": work.id,
                "ts": int(moment),
                "row": part.tolist(),
                "score": None if score is None else score[part].tolist(),
                "decision": None if score is None else (score[part] >= cutoff).astype(int).tolist(),
                "error": error,
            }
        )
    return out


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
