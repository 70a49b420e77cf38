"""Scoring, logging and answering, without any server: queries in, answers out, the log in between."""

from __future__ import annotations

import json
import math
import uuid
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rareclass.adapters.serving.interfaces import Log, Scorer
from rareclass.adapters.serving.metrics import Metrics
from rareclass.adapters.serving.signature import Query, Signature
from rareclass.core.dataset import FloatArray, IntArray
from rareclass.errors import InputError, SpoolError

FUTURE_SECONDS = 60.0


class Shadow(Protocol):
    """Takes answered rows; never blocks, never raises."""

    def offer(self, frame: Frame) -> None:
        """Take rows that were answered, to be scored later; full queues drop them and count."""


@dataclass(frozen=True, slots=True)
class Active:
    """What answers now; replaced as a whole, so that a request sees one version from its check to its answer."""

    model: Scorer
    version: str
    point: str
    threshold: float
    signature: Signature

    def cutoff(self, point: str | None) -> tuple[str, float]:
        """Return the operating point of a query and its threshold."""
        if point is None or point == self.point:
            return self.point, self.threshold
        return point, float(self.model.thresholds[point])


@dataclass(frozen=True, slots=True)
class Frame:
    """Answered rows on their way to the shadows."""

    id: str
    micros: int | NDArray[np.int64]
    query: Query
    active: Active


@dataclass(slots=True)
class Answer:
    """The answer to one query."""

    id: str
    query: Query
    active: Active
    point: str
    threshold: float
    score: FloatArray
    decision: IntArray
    ts: float
    reasons: list[list[dict[str, Any]]] | None = None

    def micros(self) -> int | NDArray[np.int64]:
        """Return when the rows happened, in microseconds since 1970: one number, or (n,) when they differ.

        An event time in the future is a wrong clock: such a row gets the time at which it was answered.
        """
        if self.query.time is None:
            return round(self.ts * 1e6)
        times = np.round(np.minimum(self.query.time, self.ts) * 1e6).astype(np.int64)
        return int(times[0]) if (times == times[0]).all() else times

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, in the order asked for, each (n,)."""
        n = len(self.score)
        every = {
            "score": lambda: self.score,
            "decision": lambda: self.decision,
            "threshold": lambda: np.full(n, self.threshold),
            "version": lambda: np.full(n, self.active.version, dtype=object),
            "reasons": self._reasons,
        }
        names = self.query.wanted.names or [name for name in every if name != "reasons" or self.reasons is not None]
        return {name: every[name]() for name in names}

    def _reasons(self) -> NDArray[Any]:
        out = np.empty(len(self.score), dtype=object)
        out[:] = [json.dumps(row) for row in self.reasons or []]
        return out

    def parameters(self) -> dict[str, Any]:
        """What protocol v2's ``parameters`` say of an answer: version, threshold, operating point."""
        return {"version": self.active.version, "threshold": self.threshold, "operating_point": self.point}


@dataclass(frozen=True, slots=True)
class LogLimits:
    """What the prediction log does not keep.

    private : columns that are never written
    oldest : seconds before now from which an event time is refused: the log would not keep the row
    """

    private: Sequence[str] = ()
    oldest: float = math.inf


NO_LIMITS = LogLimits()


class Engine:
    """Answers queries with the active version.

    name : model name in the log
    sample_rate : while the log is over its limit, this share of the rows decided 0 is kept, with its weight
    clock : seconds since 1970
    limits : what the log does not keep
    """

    def __init__(
        self,
        log: Log,
        metrics: Metrics,
        *,
        name: str,
        sample_rate: float,
        clock: Callable[[], float],
        shadow: Shadow | None = None,
        limits: LogLimits = NO_LIMITS,
    ) -> None:
        self.oldest = limits.oldest
        self.log, self.metrics, self.name = log, metrics, name
        self.sample_rate, self.private, self.clock = sample_rate, frozenset(limits.private), clock
        self.shadow = shadow
        self.active: Active | None = None
        self._lock = Lock()

    def answer(self, batch: Sequence[tuple[Query, Active]]) -> list[Answer | Exception]:
        """Score, log and answer a batch of queries; each fails alone. An answer is returned only when it is logged."""
        results = self._scored(batch)
        answers = [result for result in results if isinstance(result, Answer)]
        if answers:
            try:
                records = [record for answer in answers for record in self._records(answer)]
                with self._lock:
                    self.log.append(records)
            except (SpoolError, OSError) as error:
                self.metrics.refused.labels(self.name).inc(len(answers))
                refusal = SpoolError(" ".join(str(error).split()))
                return [refusal if isinstance(result, Answer) else result for result in results]
            for answer in answers:
                self._count(answer)
        return results

    def after(self, results: Sequence[Answer | Exception]) -> None:
        """Hand answered rows to the shadows; called when the answers are on their way."""
        if self.shadow is not None:
            for answer in results:
                if isinstance(answer, Answer):
                    self.shadow.offer(Frame(answer.id, answer.micros(), answer.query, answer.active))

    def _scored(self, batch: Sequence[tuple[Query, Active]]) -> list[Answer | Exception]:
        if len(batch) > 1 and all(active is batch[0][1] for _, active in batch):
            try:
                scores = batch[0][1].model.score(np.concatenate([query.matrix for query, _ in batch]))
                edges = np.cumsum([len(query) for query, _ in batch])[:-1]
                parts: list[FloatArray | None] = list(np.split(scores, edges))
            except Exception:  # which of them failed is found out one by one
                parts = [None] * len(batch)
        else:
            parts = [None] * len(batch)
        return [self._one(query, active, part) for (query, active), part in zip(batch, parts, strict=True)]

    def _one(self, query: Query, active: Active, score: FloatArray | None) -> Answer | Exception:
        try:
            if query.time is not None and min(query.time) < self.clock() - self.oldest:
                raise InputError(
                    f"'ts' is more than {self.oldest / 86_400:.4g} days ago, and the prediction log keeps no row that "
                    "long. Send the time of the event in seconds since 1970 or as ISO 8601, or set store.retention"
                )
            if score is None:
                score = np.asarray(active.model.score(query.matrix), dtype=np.float64)
            if not np.isfinite(score).all():
                raise InputError("the model has no finite score for these rows. Check them for extreme values")
            point, threshold = active.cutoff(query.point)
            reasons = active.model.reasons(query.matrix, query.top) if query.top else None
        except Exception as error:
            return error
        decision = (score >= threshold).astype(np.int64)
        key = query.id or uuid.uuid4().hex
        return Answer(key, query, active, point, threshold, score, decision, self.clock(), reasons)

    def _records(self, answer: Answer) -> list[bytes]:
        """Return the answer as log records: one, or one for each event time that the client gave."""
        kept, weight = self._kept(answer)
        if kept is not None and not len(kept):
            return []
        query = answer.query
        record: dict[str, Any] = {
            "kind": "prediction",
            "model": self.name,
            "version": answer.active.version,
            "request_id": answer.id,
            "operating_point": answer.point,
            "threshold": answer.threshold,
            "score": answer.score,
            "decision": answer.decision,
            "row": np.arange(len(query)),
            "weight": weight,
            "propensity": 1.0 if query.propensity is None else np.array(query.propensity),
            "entity": None if query.entity is None else np.array(query.entity, dtype=object),
            "features": self._features(answer),
        }
        if kept is not None:
            record = _taken(record, kept, {"weight"})
        micros = answer.micros()
        if isinstance(micros, int):
            return [_dumped({**record, "ts": micros})]
        times = micros[record["row"]]
        return [
            _dumped({**_taken(record, np.flatnonzero(times == ts), set()), "ts": int(ts)}) for ts in np.unique(times)
        ]

    def _features(self, answer: Answer) -> dict[str, Any]:
        """Return the columns that may be stored; categories as text, as they were sent where they were sent as text."""
        query = answer.query
        columns = np.ascontiguousarray(query.matrix.T)
        out: dict[str, Any] = {}
        for at, feature in enumerate(answer.active.signature.schema.features):
            if feature.name in self.private:
                continue
            if feature.kind == "numeric":
                out[feature.name] = columns[at]
            else:
                texts = query.text.get(feature.name) or _levels(columns[at], feature.categories)
                out[feature.name] = np.array(texts, dtype=object)
        return out

    def _kept(self, answer: Answer) -> tuple[IntArray | None, Any]:
        """Return the rows to log (None = all) and their weights.

        The same id keeps the same rows when it is sent again.
        """
        if not self.log.over_limit():
            return None, 1.0
        kept, weight = sampled(answer.id, answer.decision, self.sample_rate)
        self.metrics.sampled.labels(self.name).inc(len(answer.score) - len(kept))
        return kept, weight

    def _count(self, answer: Answer) -> None:
        query = answer.query
        self.metrics.answered(answer.active.version, answer.score, int(answer.decision.sum()))
        if query.unknown:
            self.metrics.unknown.labels(self.name).inc(query.unknown)
        if query.time is not None:
            late = sum(moment > answer.ts + FUTURE_SECONDS for moment in query.time)
            self.metrics.skewed.labels(self.name).inc(late)


def sampled(identity: str, decision: IntArray, rate: float) -> tuple[IntArray, FloatArray]:
    """Return the rows to log while the log is over its limit, and their weights: all decided 1, a share of the others.

    The same id keeps the same rows when it is sent again.
    """
    draw = np.random.default_rng(zlib.crc32(identity.encode())).random(len(decision))
    kept = np.flatnonzero((decision == 1) | (draw < rate))
    return kept, np.where(decision[kept] == 1, 1.0, 1.0 / rate)


def _taken(record: dict[str, Any], kept: NDArray[Any], whole: set[str]) -> dict[str, Any]:
    """Return a record with some of its rows; the fields in ``whole`` have them already."""
    out = {k: v[kept] if isinstance(v, np.ndarray) and k not in whole else v for k, v in record.items()}
    return {**out, "features": {name: values[kept] for name, values in record["features"].items()}}


def _dumped(record: dict[str, Any]) -> bytes:
    import orjson

    return orjson.dumps(record, default=np.ndarray.tolist, option=orjson.OPT_SERIALIZE_NUMPY)


def _levels(codes: NDArray[np.float32], categories: Sequence[str]) -> list[str | None]:
    return [None if np.isnan(code) else categories[int(code)] for code in codes]
