"""What the live loop writes into the ledger: who acts, what was done, and when a reservation counts as dead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from rareclass.core.jsonable import Jsonable, jsonable

if TYPE_CHECKING:
    from rareclass.adapters.store import LedgerEntry

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


@dataclass(frozen=True)
class RepairBegun(Jsonable):
    """Payload of a line ``repair``: a repair was reserved, and nobody else may begin it.

    number : of the repair · owner : who carries it out somewhere else; None: the process that wrote the line
    """

    number: int
    verdict: str = ""
    fingerprint: str = ""
    version: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    owner: str | None = None

    @staticmethod
    def of(entry: LedgerEntry) -> RepairBegun:
        """Return what the line says; those of older releases say less, and name no owner."""
        return RepairBegun(**_known(RepairBegun, entry))

    @property
    def graduates(self) -> bool:
        """Whether labels had brought the next regime; lines of older releases do not say."""
        return bool(self.evidence.get("graduates"))


@dataclass(frozen=True)
class RepairEnded:
    """Payload of a line ``outcome``: how the repair of that number ended."""

    number: int
    verdict: str
    fingerprint: str
    action: Action

    @staticmethod
    def of(entry: LedgerEntry) -> RepairEnded:
        """Return what the line says, as of the time it was written; lines of older releases may say less."""
        said = entry.payload
        verdict = str(said.get("verdict", ""))
        unsaid = {"kind": verdict, "from_version": None, "to_version": None, "outcome": "", "reason": entry.reason}
        action = Action(**{**unsaid, **_known(Action, entry), "time": entry.at})
        return RepairEnded(said["number"], verdict, said.get("fingerprint", ""), action)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the action beside the others."""
        own = {"number": self.number, "verdict": self.verdict, "fingerprint": self.fingerprint}
        return {**self.action.to_json(), **own}


@dataclass(frozen=True)
class Paged(Jsonable):
    """Payload of a line ``page``: a person was called."""

    fingerprint: str = ""
    version: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(entry: LedgerEntry) -> Paged:
        """Return what the line says."""
        return Paged(**_known(Paged, entry))


@dataclass(frozen=True)
class Rethresholded:
    """Payload of a line ``rethreshold``, as far as others read it.

    thresholds : operating point -> cut-off · prevalence : that they were fitted at · costs : that they were tuned for
    """

    version: str
    thresholds: Mapping[str, float] = field(default_factory=dict)
    prevalence: float | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(entry: LedgerEntry) -> Rethresholded:
        """Return what the line says; those of older releases do not name costs."""
        return Rethresholded(**{**_known(Rethresholded, entry), "version": str(entry.payload["version"])})

    @staticmethod
    def of_version(entries: Iterable[LedgerEntry], version: str | None) -> list[Rethresholded]:
        """Return those of one version, in the order of the ledger."""
        lines = [Rethresholded.of(entry) for entry in entries if entry.kind == "rethreshold"]
        return [line for line in lines if line.version == version]


def _known(kind: type, entry: LedgerEntry) -> dict[str, Any]:
    """The fields of a payload that its dataclass has."""
    names = {item.name for item in fields(kind)}
    return {name: value for name, value in entry.payload.items() if name in names}
