"""How servers write their log: one logger a module, as plain lines or as one JSON object a line.

What a command prints as its result is no log and stays with the command. Libraries only log; who starts a process
(a command, a worker, the shipper) says where the lines go, with `configure`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any, Literal, cast, get_args

from rareclass.errors import ConfigError
from rareclass.masking import masked

LogFormat = Literal["text", "json"]
FORMAT = "RARECLASS_LOG_FORMAT"
_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """time (UTC), level, logger, message, what the call gave as ``extra``, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as one line of JSON, secrets masked."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class PlainLines(logging.Formatter):
    """The message alone, and the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text, secrets masked."""
        return masked(super().format(record))


class _Stream(logging.StreamHandler[Any]):
    """Standard output for what is as it should be, standard error for the rest, whatever these are at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout if record.levelno < logging.WARNING else sys.stderr
        super().emit(record)


def configure(lines: LogFormat | None = None) -> None:
    """Send what this process and its children log to the standard streams: ours from INFO, libraries' from WARNING.

    lines : default: what RARECLASS_LOG_FORMAT says, else ``text``. Raises ConfigError for another word there.
    """
    if lines is not None:
        os.environ[FORMAT] = lines  # worker, shadow and shipper inherit it
    handler = _Stream()
    handler.setFormatter(JsonLines() if log_format() == "json" else PlainLines())
    root = logging.getLogger()
    for other in [each for each in root.handlers if isinstance(each, _Stream)]:
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)  # a library that was loaded before may have lowered it
    logging.getLogger("rareclass").setLevel(logging.INFO)


def log_format() -> LogFormat:
    """Return what RARECLASS_LOG_FORMAT says. Raises ConfigError."""
    word = os.environ.get(FORMAT, "") or "text"
    if word not in get_args(LogFormat):
        raise ConfigError(f"{FORMAT} is '{word}'. Set it to one of: {', '.join(get_args(LogFormat))}")
    return cast(LogFormat, word)


def asked_for_json() -> bool:
    """Whether `configure` was called for lines of JSON in this process."""
    return any(isinstance(each.formatter, JsonLines) for each in logging.getLogger().handlers)
