"""CloudEvents 1.0 as HTTP and Kafka carry them: binary, structured and batched, read into plain values."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from rareclass.errors import InputError

STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
_REQUIRED = ("id", "source", "type", "specversion")
_TIMES = (0.0, 4_102_444_800.0)


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    time : seconds since 1970 UTC, None where the sender does not say
    attributes : its other attributes, lower case (``inferenceservicename``, ``namespace``, ...)
    """

    id: str
    type: str
    source: str
    time: float | None
    content_type: str
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)


def read(headers: Mapping[str, str], body: bytes, *, prefix: str = "ce-") -> list[Event]:
    """Return the events of a message: one, or those of a batch.

    headers : lower case; prefix : of the binary mode's headers, ``ce-`` over HTTP and ``ce_`` over Kafka
    Raises InputError in one line for what is no event.
    """
    kind = _kind(headers)
    if kind == STRUCTURED:
        return [_structured(parsed(body, "a CloudEvent"))]
    if kind == BATCH:
        events = parsed(body, "a CloudEvent")
        if not isinstance(events, list):
            raise InputError("a batch of CloudEvents must be a JSON list")
        return [_structured(event) for event in events]
    unquoted = unquote if prefix == "ce-" else str  # HTTP headers are percent-encoded, Kafka's are UTF-8
    found = {key.removeprefix(prefix): unquoted(value) for key, value in headers.items() if key.startswith(prefix)}
    return [_event(found, headers.get("content-type", ""), body)]


def is_event(headers: Mapping[str, str], *, prefix: str = "ce-") -> bool:
    """Tell whether a message says that it is a CloudEvent."""
    return _kind(headers) in (STRUCTURED, BATCH) or f"{prefix}specversion" in headers


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _structured(raw: object) -> Event:
    if not isinstance(raw, dict):
        raise InputError(f"a CloudEvent must be a JSON object; it is {type(raw).__name__}")
    known = {
        key.lower(): str(value) for key, value in raw.items() if not isinstance(value, (dict, list)) and key != "data"
    }
    return _event(known, known.get("datacontenttype", "application/json"), _data(raw))


def _data(raw: Mapping[str, Any]) -> bytes:
    import orjson

    if isinstance(raw.get("data_base64"), str):
        try:
            return base64.b64decode(raw["data_base64"], validate=True)
        except (binascii.Error, ValueError):
            raise InputError("'data_base64' of a CloudEvent is not base64") from None
    data = raw.get("data")
    if isinstance(data, str):
        return data.encode()
    return b"" if data is None else orjson.dumps(data)


def _event(attributes: Mapping[str, str], content_type: str, data: bytes) -> Event:
    absent = [name for name in _REQUIRED if not attributes.get(name)]
    if absent:
        raise InputError(
            f"not a CloudEvent: it has no '{absent[0]}'. Send the headers ce-id, ce-source, ce-type and "
            "ce-specversion, or application/cloudevents+json"
        )
    if attributes["specversion"] != "1.0":
        raise InputError(f"CloudEvents {attributes['specversion'][:20]} are not known. Send version 1.0")
    others = {key: value for key, value in attributes.items() if key not in (*_REQUIRED, "time", "data_base64")}
    identity, kind, source = (attributes[name] for name in ("id", "type", "source"))
    return Event(identity, kind, source, _seconds(attributes.get("time")), content_type, data, others)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = -1.0
    if not _TIMES[0] <= seconds < _TIMES[1]:
        raise InputError(f"'time' of a CloudEvent must be ISO 8601; it is {text[:60]!r}")
    return seconds


def parsed(body: bytes, what: str) -> Any:
    """Return the value of a JSON text. Raises InputError, naming ``what`` it is."""
    import orjson

    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{what} is not valid JSON: {' '.join(str(error).split())[:120]}") from None
