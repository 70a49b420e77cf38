"""Registering, promoting and rolling back versions: a ledger line first, the registry's aliases follow it.

The ledger is the truth. Each move writes the whole alias map that it leads to; a process killed between the ledger
line and the aliases is made good by the next call, whatever that is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, cast

from rareclass.config import Config
from rareclass.errors import AlreadyDoneError, ModelError, NeedsApprovalError, unknown
from rareclass.services.actor import me

if TYPE_CHECKING:
    from rareclass.adapters.registry import Registry, Version
    from rareclass.adapters.store import LedgerEntry, Store
    from rareclass.adapters.store.ledger import Chain
    from rareclass.core.model import RareModel

Aliases = Mapping[str, str | None]
Mode = Literal["immediate", "shadow", "manual"]
MODES = ("immediate", "shadow")
"""What a person may ask for; ``manual`` comes from the configuration alone."""
_EMPTY: Aliases = {"champion": None, "challenger": None, "previous": None}
_TRIES = 5
_MOVE = "move:"
"""How the keys of moves begin: the next number is free for one writer only."""


@dataclass(frozen=True, slots=True)
class Move:
    """What a promotion or rollback led to. ``aliases`` holds champion, challenger and previous (None: nobody)."""

    kind: str
    version: str
    role: str
    before: Aliases
    aliases: Aliases
    reason: str

    @staticmethod
    def of(entry: LedgerEntry) -> Move:
        """Return the move that a line of the ledger records."""
        said = entry.payload
        before, aliases = ({**_EMPTY, **said.get(name, {})} for name in ("before", "aliases"))
        return Move(entry.kind, str(said["version"]), said["role"], _texts(before), _texts(aliases), entry.reason)

    def payload(self) -> dict[str, Any]:
        """Return what the ledger's line of the move says besides its kind and reason."""
        return {"version": self.version, "role": self.role, "before": dict(self.before), "aliases": dict(self.aliases)}

    def __str__(self) -> str:
        was = f", was version {self.before['champion']}" if self.before["champion"] and self.role == "champion" else ""
        return f"version {self.version} is {self.role}{was}"


def _texts(aliases: Aliases) -> Aliases:
    return {alias: None if version is None else str(version) for alias, version in aliases.items()}


def moves(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Return the lines that moved an alias, oldest first; `Move.of` reads one."""
    return [entry for entry in entries if entry.key.startswith(_MOVE)]


def register(
    config: Config,
    model: RareModel,
    run_id: str,
    *,
    now: datetime,
    actor: str | None = None,
    reason: str = "",
    evidence: Mapping[str, Any] | None = None,
) -> Version:
    """Keep ``model`` with its run and make it the next complete version; doing it again returns the same version.

    evidence : what the ledger keeps (gate numbers, data hash, row range)
    """
    with _opened(config) as (registry, _):  # a store that cannot be written is said before anything is logged
        logged = LoggedModel(run_id, *registry.log(run_id, model))
    return register_logged(config, logged, now=now, actor=actor, reason=reason, evidence=evidence)


@dataclass(frozen=True, slots=True)
class LoggedModel:
    """A model that a run has logged (``Registry.log``), and where it is."""

    run_id: str
    uri: str
    digest: str


def register_logged(
    config: Config,
    logged: LoggedModel,
    *,
    now: datetime,
    actor: str | None = None,
    reason: str = "",
    tags: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> Version:
    """Make a model that a run has already logged the next complete version; idempotent.

    tags : small values shown in the registry · evidence : what the ledger keeps
    """
    run_id, uri, digest = logged.run_id, logged.uri, logged.digest
    with _opened(config) as (registry, store):
        version = registry.register(config.name, uri, run_id=run_id, digest=digest, tags=tags, description=reason)
        payload = {"version": version.version, "hash": digest, "run_id": run_id, "uri": uri, **(evidence or {})}
        with suppress(AlreadyDoneError):  # an earlier attempt got as far as the ledger
            store.append(
                config.name,
                f"register:{version.version}:{digest[:16]}",
                "register",
                actor or me(),
                reason,
                payload,
                now,
            )
        return version


def looks(config: Config, rows: str) -> int:
    """Return how many runs were judged on test rows before, by the ledger.

    rows : hash of the test rows, as the evidence of a registration or a rejection holds it
    """
    with _store(config) as store:
        return sum(
            entry.kind in ("register", "reject") and entry.payload.get("test_rows") == rows
            for entry in store.entries(config.name)
        )


def record_rejection(
    config: Config, run_id: str, *, now: datetime, actor: str | None = None, reason: str, evidence: Mapping[str, Any]
) -> None:
    """Write into the ledger that the gate registered nothing, and why; once a run."""
    with _opened(config) as (_, store), suppress(AlreadyDoneError):
        payload = {"run_id": run_id, **evidence}
        store.append(config.name, f"reject:{run_id}", "reject", actor or me(), reason, payload, now)


def promote(
    config: Config,
    version: str | int | None = None,
    *,
    now: datetime,
    mode: Mode | None = None,
    actor: str | None = None,
    reason: str = "",
    evidence: Mapping[str, Any] | None = None,
) -> Move:
    """Make a version champion (``immediate``) or challenger (``shadow``); without a champion it becomes champion
    anyway.

    version : number; default: the challenger, else the newest version
    Raises AlreadyDoneError when it has that role, ModelError when the version is not there or is damaged.
    """
    how = mode or config.promotion.mode

    def decide(registry: Registry, store: Store, entries: list[LedgerEntry], before: Aliases) -> Move:
        number = _chosen(registry, config.name, version, before, how)
        role = "challenger" if how == "shadow" and before["champion"] is not None else "champion"
        if role == "champion" and before["champion"] != number and _waits(config, store, number, actor, reason, now):
            if before["champion"] is None or before["challenger"] == number:
                raise NeedsApprovalError(
                    f"version {number} of '{config.name}' waits for approval (promotion.mode: manual). "
                    f"Look at it, then: rareclass approve -c CONFIG {number} --reason WHY"
                )
            role = "challenger"  # scores in the shadow while it waits
        if before[role] == number:
            raise AlreadyDoneError(
                f"version {number} of '{config.name}' is {role} already. `rareclass history` shows since when"
            )
        if role == "challenger" and before["champion"] == number:
            raise AlreadyDoneError(
                f"version {number} of '{config.name}' is champion already, so it cannot challenge itself"
            )
        _check(registry, config.name, number)
        return Move("promote", number, role, before, _after_promotion(before, number, role), reason)

    return _moved(config, decide, now=now, actor=actor, evidence=evidence)


def _waits(config: Config, store: Store, number: str, actor: str | None, reason: str, now: datetime) -> bool:
    """Tell whether a version still needs a person's word, and ask for it once."""
    if config.promotion.mode != "manual":
        return False
    if any(str(entry.payload.get("version")) == number for entry in store.entries(config.name, "approve")):
        return False
    with suppress(AlreadyDoneError):
        why = reason or "registered"
        store.append(config.name, f"ask:{number}", "ask", actor or me(), why, {"version": number}, now)
    return True


def note(
    config: Config, key: str, kind: str, actor: str, reason: str, payload: Mapping[str, Any], now: datetime
) -> None:
    """Write one line of the ledger. Raises AlreadyDoneError when the key is there."""
    with _store(config) as store:
        store.append(config.name, key, kind, actor, reason, payload, now)


def _after_promotion(before: Aliases, number: str, role: str) -> Aliases:
    if role == "challenger":
        return {**before, "challenger": number}
    challenger = before["challenger"]
    return {
        "champion": number,
        "challenger": None if challenger == number else challenger,
        "previous": before["champion"],
    }


def rollback(
    config: Config,
    *,
    now: datetime,
    actor: str | None = None,
    reason: str = "",
    evidence: Mapping[str, Any] | None = None,
    expect: str | None = None,
) -> Move:
    """Make the previous version champion again: its model, threshold and calibrator together.

    The one before it, if any, becomes the previous one, so that a second rollback goes one further back.
    expect : the champion to leave; AlreadyDoneError when it is no longer champion, so that a repeated call does nothing
    Raises ModelError when there is no previous version.
    """

    def decide(registry: Registry, store: Store, entries: list[LedgerEntry], before: Aliases) -> Move:
        if expect is not None and before["champion"] != str(expect):
            raise AlreadyDoneError(
                f"version {expect} of '{config.name}' is no longer champion; version {before['champion']} is"
            )
        number = before["previous"]
        if number is None:
            raise ModelError(
                f"'{config.name}' has no previous version to go back to. Promote one with: "
                "rareclass promote -c CONFIG VERSION"
            )
        _check(registry, config.name, number)
        after = {"champion": number, "challenger": before["challenger"], "previous": _predecessor(entries, number)}
        return Move("rollback", number, "champion", before, after, reason)

    return _moved(config, decide, now=now, actor=actor, evidence=evidence)


def _predecessor(entries: list[LedgerEntry], number: str) -> str | None:
    """The version that was previous when ``number`` was last promoted to champion."""
    for move in (Move.of(entry) for entry in reversed(entries) if entry.kind == "promote"):
        if move.version == number and move.role == "champion":
            return move.aliases["previous"]
    return None


def retire(
    config: Config,
    role: Literal["challenger", "previous"],
    *,
    now: datetime,
    actor: str | None = None,
    reason: str = "",
) -> Move:
    """Take the challenger or the previous version out of the shadow. Raises AlreadyDoneError when there is none."""

    def decide(registry: Registry, store: Store, entries: list[LedgerEntry], before: Aliases) -> Move:
        number = before[role]
        if number is None:
            raise AlreadyDoneError(f"'{config.name}' has no {role}")
        return Move("retire", number, f"no longer {role}", before, {**before, role: None}, reason)

    return _moved(config, decide, now=now, actor=actor)


def state(config: Config) -> Aliases:
    """Return who is champion, challenger and previous, after making the aliases follow the ledger."""
    with _opened(config) as (registry, store):
        return _follow(registry, config.name, _moves(store, config.name))


def history(config: Config, *, kind: str | None = None) -> list[LedgerEntry]:
    """Return the ledger of the model, oldest first: who did what, when, why, on which numbers."""
    with _store(config) as store:
        return list(store.entries(config.name, kind))


def verified(config: Config, expect: str | None = None) -> Chain:
    """Walk along the ledger's chain of hashes; ``expect``: a hash that it had earlier."""
    with _store(config) as store:
        return store.verify_ledger(config.name, expect)


def checked_mode(mode: str | None) -> Mode | None:
    """Return the mode when it is one. Raises ConfigError with the choices."""
    if mode not in (None, *MODES):
        raise unknown("mode", mode, MODES, "--mode")
    return cast("Mode | None", mode)


def checked_role(role: str) -> Literal["challenger", "previous"]:
    """Return the role when it can be retired. Raises ConfigError with the choices."""
    if role not in ("challenger", "previous"):
        raise unknown("role", role, ("challenger", "previous"), "--role")
    return cast("Literal['challenger', 'previous']", role)


def current(entries: Iterable[LedgerEntry]) -> Aliases:
    """Return who is champion, challenger and previous by the ledger alone."""
    made = moves(entries)
    return Move.of(made[-1]).aliases if made else dict(_EMPTY)


def _moved(
    config: Config,
    decide: Callable[[Registry, Store, list[LedgerEntry], Aliases], Move],
    *,
    now: datetime,
    actor: str | None,
    evidence: Mapping[str, Any] | None = None,
) -> Move:
    """Decide on a move by the ledger, write it as the next one, and let the aliases follow.

    Whoever was faster changes what there is to decide on, so it is decided again.
    """
    with _opened(config) as (registry, store):
        for _ in range(_TRIES):
            entries = _moves(store, config.name)
            move = decide(registry, store, entries, _follow(registry, config.name, entries))
            if _write(store, config.name, len(entries), move, actor, now, evidence):
                registry.point(config.name, move.aliases)
                return move
    raise ModelError(
        f"'{config.name}' is being promoted by others all the time. Look at `rareclass history` and try again"
    )


def _write(
    store: Store,
    name: str,
    count: int,
    move: Move,
    actor: str | None,
    now: datetime,
    evidence: Mapping[str, Any] | None,
) -> bool:
    """Append the move as number ``count + 1``; False when somebody else was faster."""
    payload = {**(evidence or {}), **move.payload()}
    try:
        store.append(name, f"{_MOVE}{count + 1}", move.kind, actor or me(), move.reason, payload, now)
    except AlreadyDoneError:
        return False
    return True


def _moves(store: Store, name: str) -> list[LedgerEntry]:
    return moves(store.entries(name))


def _follow(registry: Registry, name: str, entries: list[LedgerEntry]) -> Aliases:
    """Return the aliases by the ledger and set them so; a model without moves keeps the aliases it has."""
    if not entries:
        present = {alias: each.version for each in registry.versions(name) for alias in each.aliases}
        return {alias: present.get(alias) for alias in _EMPTY}
    wanted = Move.of(entries[-1]).aliases
    registry.point(name, wanted)
    return wanted


def _chosen(registry: Registry, name: str, version: str | int | None, before: Aliases, how: str) -> str:
    if version is not None:
        return registry.version(name, version).version
    if how == "immediate" and before["challenger"] is not None:
        return before["challenger"]
    known = registry.versions(name)
    if not known:
        raise ModelError(f"model '{name}' has no version yet. Train one with: rareclass run -c CONFIG --out DIR")
    return known[0].version


def _check(registry: Registry, name: str, number: str) -> None:
    """A version takes over only when its files are whole and it still gives its golden rows their scores."""
    registry.load(registry.version(name, number)).check_golden()


@contextmanager
def _store(config: Config) -> Iterator[Store]:
    from rareclass.adapters.store import Store

    store = Store(config.store.url)
    try:
        store.migrate()
        yield store
    finally:
        store.close()


def check_reachable(config: Config) -> None:
    """Raise StoreError when the ledger cannot be written; asked before hours of work whose result belongs into it."""
    with _store(config):
        pass


@contextmanager
def _opened(config: Config) -> Iterator[tuple[Registry, Store]]:
    from rareclass.adapters.registry import Registry

    with _store(config) as store:
        yield Registry(config.tracking.uri), store
