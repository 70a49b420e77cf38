"""What the live loop writes into the ledger: who acts, what was done, and when a reservation counts as dead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rareclass.core.jsonable import jsonable

ACTOR = "rareclass-governor"
LEASE = timedelta(hours=24)
"""A retrain that started longer ago and never reported counts as dead."""
MOVES = ("promote", "rollback", "retire")
REPAIRS = ("rethreshold", "recalibrate", "retrain")


@dataclass(frozen=True)
class Action:
    """What was done, or why not. outcome: done, refused, rejected, challenger, failed, already."""

    time: datetime
    kind: str
    from_version: str | None
    to_version: str | None
    outcome: str
    reason: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the time as ISO text."""
        return {**jsonable(self), "time": self.time.isoformat()}
