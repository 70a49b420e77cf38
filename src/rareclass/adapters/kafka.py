"""A Kafka topic as batches of messages whose offsets are committed once they are kept."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rareclass.config import KafkaSettings
from rareclass.errors import ConfigError, need_package

_LOG = logging.getLogger(__name__)
_PAUSES = (1.0, 30.0)
_MOST = 500


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``time`` is seconds since 1970, as the producer or the broker stamped it; headers are lower case."""

    topic: str
    partition: int
    offset: int
    time: float
    headers: Mapping[str, str]
    value: bytes

    @property
    def place(self) -> str:
        """What no other message of the cluster has."""
        return f"{self.topic}-{self.partition}-{self.offset}"


Keep = Callable[[Sequence[Message]], Awaitable[None]]


def options(settings: KafkaSettings, name: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the consumer's options. Raises ConfigError where they do not fit together."""
    env = os.environ if environment is None else environment
    out: dict[str, Any] = {
        "bootstrap_servers": settings.servers,
        "group_id": settings.group or f"rareclass-{name}",
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "security_protocol": settings.security.upper(),
    }
    if settings.security.startswith("sasl"):
        password = env.get(settings.password_env, "").strip()
        if not settings.username or not password:
            raise ConfigError(
                f"listen.kafka.security is {settings.security}. Set listen.kafka.username and {settings.password_env}"
            )
        out |= {
            "sasl_mechanism": settings.mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": password,
        }
    if settings.security.endswith("ssl"):
        try:
            out["ssl_context"] = ssl.create_default_context(cafile=settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"listen.kafka.ca_file '{settings.ca_file}' cannot be used: {error}") from None
    return out


async def consume(
    settings: Mapping[str, Any], topics: Sequence[str], keep: Keep, connected: Callable[[bool], None]
) -> None:
    """Hand messages to ``keep`` for ever, in the order of each partition; commit their offsets when it returns.

    keep : returns once the messages are durable; what it raises leaves the offsets where they are, and the same
        messages come again
    connected : told when the broker answers, and when it no longer does
    """
    need_package("aiokafka", "kafka", "listen.kafka")
    pause = _PAUSES[0]

    async def kept(messages: Sequence[Message]) -> None:
        nonlocal pause
        await keep(messages)
        pause = _PAUSES[0]

    while True:
        try:
            await _session(settings, topics, kept, connected)
        # a broker that is away, a rebalance, a full disk: the group's offsets are the truth
        except Exception as error:
            connected(False)
            _LOG.warning(
                "Kafka is read again in %g s: %s: %s", pause, type(error).__name__, " ".join(str(error).split())
            )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSES[1])


async def _session(
    settings: Mapping[str, Any], topics: Sequence[str], keep: Keep, connected: Callable[[bool], None]
) -> None:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(*topics, **settings)
    try:
        await consumer.start()
        connected(True)
        while True:
            for partition, found in (await consumer.getmany(timeout_ms=1000, max_records=_MOST)).items():
                await keep([_message(each) for each in found])
                await consumer.commit({partition: found[-1].offset + 1})
    finally:
        await consumer.stop()


def _message(raw: Any) -> Message:
    headers = {key.lower(): value.decode("utf-8", "replace") for key, value in raw.headers or () if value is not None}
    return Message(raw.topic, raw.partition, raw.offset, raw.timestamp / 1000, headers, raw.value or b"")
