"""What another server was asked and answered, as records of the prediction log.

Bodies are those of the Open Inference Protocol v2 (JSON, or JSON with binary tensors) and of the v1 protocol
(``instances`` and ``predictions``). Columns that the configuration calls private, and those that are no features, are
left out; the columns of ``data.id``, ``data.entity`` and ``data.propensity`` say whose rows they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rareclass.adapters.serving.engine import sampled
from rareclass.adapters.serving.signature import moment_of, propensity_of
from rareclass.adapters.serving.v2_codec import Tensor, request_id, shown, tensors, values
from rareclass.config import Config
from rareclass.core.dataset import AnyArray, FloatArray, IntArray
from rareclass.errors import InputError, nearest

SCORES = ("score", "probability", "probabilities", "predict_proba")
"""Outputs that hold the score where `listen.score` names none."""
FIELDS = (
    "request_id", "ts", "version", "score", "decision", "threshold", "operating_point", "entity", "propensity",
    "features",
)  # fmt: skip
_FLOATS = ("FP16", "FP32", "FP64")


@dataclass(frozen=True)
class Heard:
    """The rows of one answer, before the log's own fields.

    score, decision : (n,) · columns : what was asked, each (n,); None where the request was not heard
    """

    score: FloatArray
    decision: IntArray
    threshold: float | None
    version: str
    point: str = "default"
    columns: Mapping[str, Sequence[Any]] | None = None


@dataclass(frozen=True)
class BodyReader:
    """How bodies are read.

    names : columns of a request that does not name them; looked up when one comes
    crowded : tells whether the spool is so long that rows decided 0 are sampled
    """

    config: Config
    names: Callable[[], Sequence[str]]
    crowded: Callable[[], bool]

    def pair(self, key: str, request: bytes | None, response: bytes, moment: float, now: float) -> list[dict[str, Any]]:
        """Return the records of an answer and what was asked. Raises InputError in one line.

        key : the id where neither body has one · moment, now : seconds since 1970
        """
        asked = None if request is None else _body(request, "the request")
        answer = _body(response, "the answer")
        identity = answer[0].get("id") or (asked[0].get("id") if asked else None) or key
        columns = None if asked is None else self._columns(*asked)
        return self._records(request_id(identity, "id") or key, self._answer(*answer, columns), moment, now)

    def message(self, raw: object, key: str, moment: float, now: float) -> list[dict[str, Any]]:
        """Return the records of a prediction as one JSON object (see FIELDS). Raises InputError."""
        if not isinstance(raw, dict):
            raise InputError(f"a prediction must be a JSON object; it is {type(raw).__name__}")
        for name in raw:
            if name not in FIELDS:
                raise InputError(
                    f"unknown field '{shown(name)[1:-1]}'.{nearest(name, FIELDS)} Known: {', '.join(FIELDS)}"
                )
        score = _probabilities("score", _listed(raw.get("score")))
        n = len(score)
        threshold = self._threshold(raw.get("threshold"))
        decision = self._decided(raw.get("decision"), score, threshold)
        features = raw.get("features") or {}
        if not isinstance(features, dict):
            raise InputError(f"'features' must be an object of columns; it is {shown(features)}")
        columns: dict[str, Sequence[Any]] = {str(name): _spread(name, value, n) for name, value in features.items()}
        data = self.config.data
        for role, column in (("entity", data.entity), ("propensity", data.propensity)):
            if raw.get(role) is not None:
                columns[column or f"\0{role}"] = _spread(role, raw[role], n)
        when = moment if raw.get("ts") is None else moment_of(raw["ts"])
        version = str(raw.get("version") or self.config.listen.version)
        found = Heard(score, decision, threshold, version, str(raw.get("operating_point") or "default"), columns)
        return self._records(request_id(raw.get("request_id"), "request_id") or key, found, when, now)

    def _answer(self, raw: Mapping[str, Any], blob: bytes, columns: Mapping[str, Sequence[Any]] | None) -> Heard:
        parameters = raw.get("parameters")
        said: Mapping[str, Any] = parameters if isinstance(parameters, dict) else {}
        threshold = self._threshold(said.get("threshold"))
        if isinstance(raw.get("outputs"), list):
            score, decision = self._outputs(raw["outputs"], blob)
        elif isinstance(raw.get("predictions"), list):
            score, decision = self._predictions(raw["predictions"])
        else:
            raise InputError("the answer has neither 'outputs' nor 'predictions'")
        rows = None if columns is None else next((len(each) for each in columns.values()), 0)
        if rows is not None and rows != len(score):
            raise InputError(f"the answer has {len(score)} scores for {rows} rows")
        version = str(raw.get("model_version") or said.get("version") or self.config.listen.version)
        point = str(said.get("operating_point") or "default")
        return Heard(score, self._decided(decision, score, threshold), threshold, version, point, columns)

    def _outputs(self, nodes: object, blob: bytes) -> tuple[FloatArray, list[Any] | None]:
        try:
            outputs = {tensor.name: tensor for tensor in tensors(nodes, memoryview(blob))}
            given = outputs.get("decision")
            return self._score(outputs), None if given is None else values(given, missing=False).tolist()
        except InputError as error:
            raise InputError(f"'outputs' of the answer: {error}") from None

    def _score(self, outputs: Mapping[str, Tensor]) -> FloatArray:
        wanted = self.config.listen.score
        floats = [name for name, tensor in outputs.items() if tensor.datatype in _FLOATS]
        likely = [wanted] if wanted else [name for name in SCORES if name in outputs] or floats
        if not likely or likely[0] not in outputs or (len(likely) > 1 and likely[0] not in SCORES):
            raise InputError(
                f"which output is the score is not known. Set listen.score to one of: {', '.join(outputs)}"
            )
        tensor = outputs[likely[0]]
        if tensor.datatype not in _FLOATS:
            raise InputError(f"output '{tensor.name}' is {tensor.datatype}, not a probability. Set listen.score")
        flat = values(tensor, missing=False).astype(np.float64)
        return _probabilities(tensor.name, self._column(tensor.name, flat.reshape(tensor.shape)))

    def _predictions(self, rows: Sequence[Any]) -> tuple[FloatArray, list[Any] | None]:
        """Return score and decision of v1 predictions: numbers, lists with a column for each class, or objects."""
        if rows and all(isinstance(row, dict) for row in rows):
            name = self.config.listen.score or next((name for name in SCORES if name in rows[0]), "")
            if any(name not in row for row in rows):
                raise InputError(
                    f"which field is the score is not known. Set listen.score to one of: {', '.join(rows[0])}"
                )
            decision = [row.get("decision") for row in rows]
            rows = [row[name] for row in rows]
        else:
            name, decision = "predictions", [None]
        if any(type(value) is int for value in rows) and not any(type(value) is float for value in rows):
            raise InputError(
                "the predictions are whole numbers, not probabilities. Let the model answer with predict_proba"
            )
        try:
            found = np.array(rows, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(f"'{name}' must be numbers, or lists with a number for each class") from None
        return _probabilities(name, self._column(name, found)), None if None in decision else decision

    def _column(self, name: str, found: FloatArray) -> FloatArray:
        if found.ndim == 1:
            return found
        if found.ndim == 2 and found.shape[1] == 1:
            return found[:, 0]
        if found.ndim != 2 or self.config.listen.column >= found.shape[1]:
            raise InputError(
                f"'{name}' has shape {list(found.shape)}. Set listen.column to the column of the rare class"
            )
        return found[:, self.config.listen.column]

    def _threshold(self, given: object) -> float | None:
        if given is None:
            return self.config.listen.threshold
        if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
            raise InputError(f"'threshold' must be a number; it is {shown(given)}")
        return float(given)

    def _decided(self, given: object, score: FloatArray, threshold: float | None) -> IntArray:
        if given is None:
            if threshold is None:
                raise InputError(
                    "the answer has neither a decision nor a threshold. Set listen.threshold to the cut-off"
                )
            return (score >= threshold).astype(np.int64)
        decision = _listed(given)
        if len(decision) != len(score) or any(value not in (0, 1) for value in decision):
            raise InputError(f"'decision' must be 0 or 1 for each row; it is {shown(given)}")
        return np.array(decision, dtype=np.int64)

    def _columns(self, raw: Mapping[str, Any], blob: bytes) -> dict[str, Sequence[Any]]:
        if isinstance(raw.get("inputs"), list):
            found: dict[str, Sequence[Any]] = {}
            sent = tensors(raw["inputs"], memoryview(blob))
            for tensor in sent:
                flat = values(tensor, missing=True)
                if len(tensor.shape) == 1 or tensor.shape[1] == 1:
                    found[tensor.name] = _plain(flat)
                else:
                    found |= self._named(flat.reshape(tensor.shape).T, tensor.shape[1])
            return found
        if isinstance(raw.get("instances"), list):
            return self._instances(raw["instances"])
        raise InputError("the request has neither 'inputs' nor 'instances'")

    def _instances(self, rows: Sequence[Any]) -> dict[str, Sequence[Any]]:
        if not rows or len({type(row) for row in rows}) > 1 or not isinstance(rows[0], list | dict):
            raise InputError("'instances' must be lists of values, or objects of columns")
        if isinstance(rows[0], dict):
            return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}
        if any(len(row) != len(rows[0]) for row in rows):
            raise InputError("'instances' are not equally long")
        return self._named(list(zip(*rows, strict=True)), len(rows[0]))

    def _named(self, columns: Any, width: int) -> dict[str, Sequence[Any]]:
        names = self.names()
        if len(names) != width:
            raise InputError(
                f"the request has {width} columns without names, and {len(names)} names are known. "
                "Set listen.features to the names in the model's order"
            )
        return {name: _plain(column) for name, column in zip(names, columns, strict=True)}

    def _records(self, identity: str, heard: Heard, moment: float, now: float) -> list[dict[str, Any]]:
        config, data, n = self.config, self.config.data, len(heard.score)
        if n > config.serve.max_rows:
            raise InputError(f"the answer has {n} rows; one takes {config.serve.max_rows} at most. Set serve.max_rows")
        if moment < now - config.store.retention.total_seconds():
            raise InputError("the prediction is older than store.retention, and the log keeps no row that long")
        columns = dict(heard.columns or {})
        if any(len(column) != n for column in columns.values()):
            raise InputError(f"the columns of the request are not {n} rows each")
        ids, entity, propensity = (
            columns.pop(f"\0{role}", None) or (columns.pop(name, None) if name else None)
            for role, name in (("id", data.id), ("entity", data.entity), ("propensity", data.propensity))
        )
        hidden = {*data.private, data.time, data.target, *data.drop}
        features = {name: column for name, column in columns.items() if name not in hidden}
        kept, weight = (
            sampled(identity, heard.decision, config.serve.sample_rate) if self.crowded() else (range(n), 1.0)
        )
        fields: dict[str, Sequence[Any]] = {
            "score": heard.score.tolist(),
            "decision": heard.decision.tolist(),
            "row": range(n),
            "propensity": [1.0] * n if propensity is None else [propensity_of(value) for value in propensity],
            "entity": [None] * n
            if entity is None or data.entity in data.private
            else [None if value is None else str(value)[:200] for value in entity],
        }
        base = {
            "kind": "prediction",
            "model": config.name,
            "version": heard.version[:200],
            "threshold": heard.threshold,
            "operating_point": heard.point,
            "ts": round(min(moment, now) * 1e6),
        }
        weights = [float(w) for w in np.broadcast_to(weight, len(kept))]
        groups = [(identity, list(kept), weights)]
        if ids is not None:
            groups = [(_row_id(ids[at]), [at], [w]) for at, w in zip(kept, weights, strict=True)]
        return [
            {
                **base,
                "request_id": key,
                "weight": weighs,
                **{name: [column[at] for at in rows] for name, column in fields.items()},
                **({"row": [0]} if ids is not None else {}),
                "features": {name: [column[at] for at in rows] for name, column in features.items()},
            }
            for key, rows, weighs in groups
            if rows
        ]


def is_prediction(response: bytes) -> bool:
    """Tell whether an answer holds predictions at all; metadata and health are answers too."""
    return b'"outputs"' in response or b'"predictions"' in response


def _body(body: bytes, what: str) -> tuple[dict[str, Any], bytes]:
    """Return the JSON of a body and the bytes behind it.

    A logger does not hand on how long the JSON is (Inference-Header-Content-Length), so that is read again.
    """
    import orjson

    try:
        raw, blob = orjson.loads(body), b""
    except orjson.JSONDecodeError as error:
        try:
            _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
            raw, blob = orjson.loads(body[:end]), body[end:]
        except (ValueError, RecursionError):
            raise InputError(f"{what} is not valid JSON: {shown(str(error), 120)}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{what} must be a JSON object; it is {type(raw).__name__}")
    return raw, blob


def _probabilities(name: str, found: Sequence[Any] | AnyArray) -> FloatArray:
    try:
        score = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"'{name}' must be numbers; it is {shown(found)}") from None
    wrong = ~((score >= 0) & (score <= 1))
    if wrong.any() or not len(score):
        what = f"{score[wrong][0]:.6g}, which is no probability" if len(score) else "no rows"
        raise InputError(f"'{name}' holds {what}. Set listen.score to what holds the probability of the rare class")
    return score


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [] if value is None else [value]


def _spread(name: object, value: Any, n: int) -> list[Any]:
    found = value if isinstance(value, list) else [value] * n
    if len(found) != n:
        raise InputError(f"'{shown(name)[1:-1]}' has {len(found)} values for {n} rows")
    return found


def _plain(column: Any) -> list[Any]:
    found = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in found]


def _row_id(value: object) -> str:
    found = None if isinstance(value, bool | list | dict) or value is None else request_id(str(value), "data.id")
    if found is None:
        raise InputError(f"data.id must name each row; it is {shown(value)}")
    return found
