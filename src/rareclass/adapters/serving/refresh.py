"""Keeps what answers equal to what should: champion, operating point and shadows, looked up in the background."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rareclass.adapters.serving import row_filter
from rareclass.adapters.serving.engine import Active, Engine
from rareclass.adapters.serving.interfaces import Dependencies, Release, Scorer, ServedVersion
from rareclass.adapters.serving.signature import Signature
from rareclass.core import operating
from rareclass.errors import ConfigError

_LOG = logging.getLogger(__name__)
_FILE_SECONDS = 0.5


class Shadows(Protocol):
    """The shadow scorers, as the refresher steers them."""

    def set(self, versions: Sequence[ServedVersion]) -> None:
        """Load these versions and unload all others."""

    def columns(self) -> frozenset[str]:
        """Return the columns that the loaded versions want."""


@dataclass(frozen=True, slots=True)
class PointSource:
    """Where the operating point comes from beside the registry.

    configured : the configuration's; the registry's wins over it
    file : watched file with the operating point or a threshold; wins over the registry's
    """

    configured: str | None = None
    file: str | None = None


BY_REGISTRY = PointSource()


class Refresher:
    """Swaps the active version as a whole; requests in flight keep the one they began with."""

    def __init__(
        self,
        engine: Engine,
        ports: Dependencies,
        *,
        max_rows: int,
        seconds: float,
        point: PointSource = BY_REGISTRY,
        aliases: Mapping[str, str] | None = None,
        shadows: Shadows | None = None,
    ) -> None:
        self.engine, self.ports, self.max_rows, self.seconds = engine, ports, max_rows, seconds
        self.point, self.file = point.configured, None if point.file is None else Path(point.file)
        self.aliases, self.shadows = aliases, shadows
        self._release: Release | None = None
        self._model: Scorer | None = None  # as it was loaded, without what was tuned again
        self._cutoffs: Mapping[str, float] = {}
        self._stamp: object = None
        self._chosen: Mapping[str, Any] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._forever, name="rareclass-refresh", daemon=True)

    def first(self) -> None:
        """Load the champion and let it answer once its golden rows score as they should. Raises what is wrong."""
        release = self.ports.release()
        self._read_file()
        self._activate(release)

    def start(self) -> None:
        """Begin to follow the registry in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, waiting five seconds at most."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)

    def _forever(self) -> None:
        step = min(self.seconds, _FILE_SECONDS) if self.file is not None else self.seconds
        waited = 0.0
        while not self._stop.wait(step):
            waited += step
            full = waited >= self.seconds
            waited = 0.0 if full else waited
            try:
                self.look(full)
            except Exception as error:  # what answers goes on answering
                self.engine.metrics.failures.labels(self.engine.name).inc()
                _LOG.warning("nothing was changed: %s", " ".join(str(error).split()))

    def look(self, registry: bool) -> None:
        """Look at the watched file and, when asked, at the registry; swap what changed. Raises what is wrong."""
        changed = self._read_file()
        if registry:
            self._activate(self.ports.release())
        elif changed and self._release is not None:
            self._activate(self._release)

    def _activate(self, release: Release) -> None:
        model = self._model
        if model is None or self._release is None or release.champion.version != self._release.champion.version:
            model = self.ports.load(release.champion)
            model.check_golden()
        answering = model.retuned(release.champion.cutoffs)
        point, threshold = self._operating_point(answering, release)
        known = frozenset() if self.shadows is None else self.shadows.columns()
        now = self.engine.active
        same = (
            now is not None
            and self._cutoffs == answering.thresholds
            and model is self._model
            and now.signature.others == known - now.signature.index.keys()
        )
        if not (same and now is not None and (now.point, now.threshold) == (point, threshold)):
            signature = Signature(
                model.schema,
                max_rows=self.max_rows,
                aliases=self.aliases,
                known=sorted(known),
                points=list(answering.thresholds),
                within=row_filter.of_version(model.meta),
            )
            self.engine.active = Active(answering, release.champion.version, point, threshold, signature)
            self.engine.metrics.serving(release.champion.version, point, threshold)
            _LOG.warning(
                "version %s answers at operating point '%s' = %.6g", release.champion.version, point, threshold
            )
        self._model, self._release, self._cutoffs = model, release, dict(answering.thresholds)
        if self.shadows is not None:
            self.shadows.set(release.shadows)

    def _operating_point(self, model: Scorer, release: Release) -> tuple[str, float]:
        """Return the chosen point: the file's, else the registry's, else the configuration's,
        else the model's first.
        """
        if self._chosen.get("threshold") is not None:
            return "custom", float(self._chosen["threshold"])
        return operating.decides(
            model.thresholds, model.primary, self._chosen.get("operating_point"), release.point, self.point
        )

    def _read_file(self) -> bool:
        """Read the watched file when it changed. Returns whether it did. Raises ConfigError for nonsense in it."""
        if self.file is None:
            return False
        try:
            found = os.stat(self.file)
            stamp: object = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return False
        chosen = {} if stamp is None else parse_point(self.file.read_text(encoding="utf-8"), str(self.file))
        self._stamp, self._chosen = stamp, chosen
        return True


def parse_point(content: str, where: str) -> Mapping[str, Any]:
    """Read an operating-point file: a name, a threshold, or an object with operating_point or threshold."""
    try:
        raw = json.loads(content)
    except json.JSONDecodeError:
        raw = content.strip() if re.fullmatch(r"[\w.-]+", content.strip()) else None
    if isinstance(raw, str) and raw:
        return {"operating_point": raw}
    if isinstance(raw, dict) and len(raw) == 1 and set(raw) <= {"operating_point", "threshold"}:
        name, value = next(iter(raw.items()))
        if name == "operating_point" and isinstance(value, str) and value:
            return raw
        raw = value if name == "threshold" else None
    if isinstance(raw, int | float) and not isinstance(raw, bool) and 0 <= raw <= 1:
        return {"threshold": float(raw)}
    raise ConfigError(
        f"operating point file '{where}' is not understood. "
        'Write {"operating_point": "NAME"} or {"threshold": 0.3}'
    )
