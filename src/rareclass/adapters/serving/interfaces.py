"""What the server is handed by ``services.serve``: what it scores with and what it logs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pandas as pd

from rareclass.core.dataset import FloatArray, FloatMatrix, Schema


class Scorer(Protocol):
    """A loaded model version."""

    @property
    def schema(self) -> Schema:
        """How the version's columns are read."""

    @property
    def thresholds(self) -> Mapping[str, float]:
        """Cut-off on the score by operating point."""

    @property
    def primary(self) -> str:
        """The operating point that decides when none is named."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the version says of itself: data hash, training range, metrics."""

    def score(self, rows: pd.DataFrame | FloatMatrix) -> FloatArray:
        """Return (n,) calibrated probabilities."""

    def reasons(self, rows: pd.DataFrame | FloatMatrix, top: int = 3) -> list[list[dict[str, Any]]]:
        """Return for each row the ``top`` features that moved its score."""

    def retuned(self, cutoffs: Mapping[str, float]) -> Scorer:
        """Return the same version with other cut-offs."""

    def check_golden(self, tolerance: float = 1e-6) -> None:
        """Raise ModelError unless the golden rows get the scores that they were stored with."""


class Log(Protocol):
    """The durable file between an answer and the store."""

    def append(self, records: Sequence[bytes]) -> None:
        """Return when the records survive the death of this process. Raises SpoolError when they do not."""

    def depth(self) -> int:
        """Return the bytes that were not shipped yet."""

    def over_limit(self) -> bool:
        """Tell whether so much waits that rows decided 0 should be sampled."""


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A registered version that scores in a role: champion, challenger or previous.

    hash : of its files, as registered
    cutoffs : those that were tuned again since it was registered (see ``core.operating``)
    """

    role: str
    version: str
    uri: str
    cutoffs: Mapping[str, float] = field(default_factory=dict)
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """What should be serving now: the champion, its shadows, and the operating point that was chosen for it in the
    registry.
    """

    champion: ServedVersion
    shadows: tuple[ServedVersion, ...] = ()
    point: str | None = None


@dataclass(frozen=True)
class Dependencies:
    """Everything outside the server.

    release : looks up what should be serving; called in a thread every ``refresh_seconds``
    load : loads a version; called in a thread
    """

    release: Callable[[], Release]
    load: Callable[[ServedVersion], Scorer]
    log: Log
