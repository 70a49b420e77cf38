"""A person's word before a version answers (``promotion.mode: manual``): asked for, given or refused once, in the
ledger.

States of a version: nothing asked -> waiting (line ``ask``) -> approved (``approve``) or declined (``decline``), both
final.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from rareclass.config import Config
from rareclass.errors import AlreadyDoneError, ConfigError, ModelError, NotAllowedError
from rareclass.retry import poll_until_deadline
from rareclass.services import promotion
from rareclass.services.actor import me, name_of

if TYPE_CHECKING:
    from rareclass.adapters.store import LedgerEntry

State = Literal["none", "waiting", "approved", "declined"]
EXIT = {"none": 0, "approved": 0, "waiting": 20, "declined": 21}
"""Exit codes of ``rareclass approval``, for a workflow that waits."""


@dataclass(frozen=True)
class Approval:
    """Where a version stands. at, actor, reason : of the line that led there"""

    version: str | None
    state: State
    at: datetime | None = None
    actor: str = ""
    reason: str = ""

    def __str__(self) -> str:
        if self.version is None:
            return "no version waits for approval"
        if self.state == "none":
            return f"version {self.version} was never put up for approval"
        if self.state == "waiting":
            return (
                f"version {self.version} waits for approval since {self.at:%Y-%m-%d %H:%M}: {self.reason}. "
                f"Look at it, then: rareclass approve -c CONFIG {self.version} --reason WHY, or --decline"
            )
        return f"version {self.version} was {self.state} by {self.actor} on {self.at:%Y-%m-%d %H:%M}: {self.reason}"


def status(entries: Sequence[LedgerEntry], version: str | int | None = None) -> Approval:
    """Return where a version stands by the ledger; default: the one that was put up last."""
    asked = [entry for entry in entries if entry.kind == "ask"]
    number = str(version) if version is not None else str(asked[-1].payload["version"]) if asked else None
    states: dict[str, State] = {"approve": "approved", "decline": "declined", "ask": "waiting"}
    for kind, state in states.items():
        for entry in reversed(entries):
            if entry.kind == kind and str(entry.payload.get("version")) == number:
                return Approval(number, state, entry.at, entry.actor, entry.reason)
    return Approval(number, "none")


def answer(
    config: Config,
    version: str | int | None = None,
    *,
    reason: str,
    now: datetime,
    actor: str | None = None,
    decline: bool = False,
) -> str:
    """Approve a version, which makes it champion, or decline it, which takes it out of the shadow. Returns what
    happened.

    version : default: the one that waits
    Raises NotAllowedError where ``promotion.four_eyes`` is set and the same person trained it, AlreadyDoneError when it
    was answered.
    """
    if config.promotion.mode != "manual":
        raise ConfigError(
            f"promotion.mode is '{config.promotion.mode}', so nothing waits for approval. Set promotion.mode: "
            "manual, or use `rareclass promote`"
        )
    if not reason.strip():
        raise ConfigError("an approval needs a reason that others can read later. Pass --reason WHY")
    entries = promotion.history(config)
    found = status(entries, version)
    if found.version is None:
        raise ModelError("no version waits for approval. `rareclass history` shows what was decided")
    who = actor or me()
    if found.state in ("approved", "declined"):
        if not decline and found.state == "approved" and promotion.current(list(entries))["champion"] != found.version:
            return _champion(config, found.version, reason, who, now)  # approved, and killed before it took over
        raise AlreadyDoneError(f"{found}. That is final")
    if config.promotion.four_eyes:
        _other_eyes(entries, found.version, who)
    kind = "decline" if decline else "approve"
    promotion.note(config, f"{kind}:{found.version}", kind, who, reason, {"version": found.version}, now)
    if not decline:
        return _champion(config, found.version, reason, who, now)
    if promotion.current(list(entries))["challenger"] == found.version:
        with suppress(AlreadyDoneError):
            promotion.retire(config, "challenger", now=now, actor=who, reason=f"declined: {reason}")
    return f"version {found.version} was declined by {who}"


def _champion(config: Config, version: str, reason: str, who: str, now: datetime) -> str:
    move = promotion.promote(
        config, version, now=now, mode="immediate", actor=who, reason=f"approved by {who}: {reason}"
    )
    return f"approved; {move}"


def _other_eyes(entries: Sequence[LedgerEntry], version: str, who: str) -> None:
    trained = [name_of(e.actor) for e in entries if e.kind == "register" and str(e.payload.get("version")) == version]
    if who == "unknown":
        raise NotAllowedError(
            "promotion.four_eyes asks who approves, and this process has no user name. Pass --actor NAME"
        )
    if name_of(who) in trained:
        raise NotAllowedError(
            f"version {version} was trained by '{name_of(who)}', who may not approve it too (promotion.four_eyes). "
            "Let somebody else look at it"
        )


def wait(config: Config, version: str | int | None, seconds: float) -> Approval:
    """Return where a version stands once it was answered, or after so many seconds."""

    def ask() -> Approval:
        return status(promotion.history(config), version)

    return poll_until_deadline(ask, seconds, while_=lambda answer: answer.state == "waiting")
