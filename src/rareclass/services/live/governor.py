"""From what the monitor sees to what is done about it: triage, the brakes on repair, and rollback on live quality.

Nothing is remembered here: who did what and when is in the ledger, whose unique keys refuse a second doing. Every
function may be called again at any time, by two processes at once.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rareclass.config import Config, GovernorSettings
from rareclass.core.jsonable import dumps
from rareclass.errors import AlreadyDoneError, ConfigError, NeedsApprovalError, RareclassError
from rareclass.services import promotion
from rareclass.services.live import chosen
from rareclass.services.live.ledger import ACTOR, LEASE, MOVES, REPAIRS, Action, Paged, RepairBegun, RepairEnded
from rareclass.services.live.verdict import triage
from rareclass.services.training import results

if TYPE_CHECKING:
    from pathlib import Path

    from rareclass.adapters.store import LedgerEntry, Store
    from rareclass.core.liveness import Paired
    from rareclass.core.triage import Verdict
    from rareclass.services.live.monitor import Monitor

ERROR = 0.05
"""Chance of rolling back an equal version, over all looks of a probation."""
SOON = timedelta(days=30)
"""A retrained champion that needs a retrain itself within this time was no help."""


def govern(
    config: Config, now: datetime, *, monitor: Monitor | None = None, progress: Callable[[str, str], None] | None = None
) -> tuple[Verdict, list[Action]]:
    """One whole turn: judge a probation, let a challenger win, triage, and act.

    Safe to run twice, and by two at once.
    """
    own, close = _monitor(config, monitor)
    try:
        actions = _moves(config, now, own)
        verdict = triage(config, now, monitor=own)
        if verdict.verdict != "nothing":
            actions.append(act(config, verdict, now, monitor=own, progress=progress))
        return verdict, actions
    finally:
        close()


def act(
    config: Config,
    verdict: Verdict,
    now: datetime,
    *,
    monitor: Monitor | None = None,
    progress: Callable[[str, str], None] | None = None,
) -> Action:
    """Do what a verdict asks for, if the governor allows it; every outcome is a line of the ledger.

    A page is recorded once per cause. A repair that fails leaves the champion as it is.
    """
    if verdict.verdict == "nothing":
        return Action(now, "nothing", verdict.version or None, None, "done", "; ".join(verdict.reasons))
    own, close = _monitor(config, monitor)
    try:
        if verdict.verdict == "page":
            return _page(config, verdict, now, own.store)
        number, held = _reserve(config, verdict, now, own.store)
        if number is None:
            return held
        return _carry_out(config, number, verdict, now, monitor=own, progress=progress)
    finally:
        close()


def _moves(config: Config, now: datetime, own: Monitor) -> list[Action]:
    """What comes before a verdict: tags follow the ledger, a probation and a challenger are judged."""
    from rareclass.services.live import repair as repairing

    repairing.follow(own)
    moves = [probation(config, now, monitor=own), challenge(config, now, monitor=own)]
    return [action for action in moves if action is not None]


def _reserve(
    config: Config, verdict: Verdict, now: datetime, store: Store, owner: str | None = None
) -> tuple[int | None, Action]:
    """Reserve a repair where the brakes allow it; return its number, or None with the action that says why not."""
    allowed, why = permitted(config.governor, verdict, store.entries(config.name), now, window=config.monitor.window)
    number = _start(config, verdict, now, store, owner) if allowed else None
    outcome, reason = ("refused", why) if not allowed else ("already", "another governor is at it")
    return number, Action(now, verdict.verdict, verdict.version or None, None, outcome, reason)


def _carry_out(
    config: Config,
    number: int,
    verdict: Verdict,
    now: datetime,
    *,
    monitor: Monitor,
    progress: Callable[[str, str], None] | None,
    retrain: Callable[[Verdict], Action] | None = None,
) -> Action:
    """Do a reserved repair, unless an earlier attempt got as far as the promotion, and record how it ended.

    What the repair itself says is wrong is recorded as failed. A crash is recorded too where the repair has no owner,
    since nobody would take it up again; one with an owner stays open for it, until ``close`` ends it.
    """
    from rareclass.services.live import repair as repairing

    doing: dict[str, Callable[..., Action]] = {
        "rethreshold": repairing.rethreshold,
        "recalibrate": repairing.recalibrate,
        "retrain": repairing.retrain,
    }
    store, version = monitor.store, verdict.version or None
    entries = store.entries(config.name)
    try:
        done = _taken_over(entries, number, verdict)
        if done is not None:
            why = "an earlier attempt got as far as the promotion"
            action = Action(now, verdict.verdict, version, done, "done", why)
        elif verdict.verdict == "retrain" and retrain is not None:
            action = retrain(verdict)
        else:
            action = doing[verdict.verdict](config, verdict, now, monitor=monitor, progress=progress)
    except RareclassError as error:
        action = Action(now, verdict.verdict, version, None, "failed", str(error))
    except BaseException as error:
        if RepairBegun.of(_begun(entries, number)).owner is None:
            crash = Action(now, verdict.verdict, version, None, "failed", repr(error)[:200])
            _finish(config, crash, verdict, now, store, number)
        raise
    _finish(config, action, verdict, now, store, number)
    return action


# --- the same in steps, each a process of its own --------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """What a turn of the governor decided, for the steps that carry it out.

    kind : nothing, rethreshold, recalibrate, retrain or page, after the brakes
    number : of the repair in the ledger, None when nothing is to be done
    """

    kind: str
    number: int | None
    verdict: Verdict
    actions: Sequence[Action]

    def to_json(self) -> dict[str, Any]:
        """Return the verdict with what was done about it."""
        actions = [action.to_json() for action in self.actions]
        return {"kind": self.kind, "number": self.number, **self.verdict.to_json(), "actions": actions}

    def __str__(self) -> str:
        moves = [f"{each.kind}: {each.outcome}. {each.reason}" for each in self.actions]
        due = self.kind if self.number is None else f"{self.kind} {self.number}"
        return "; ".join([due, *self.verdict.reasons, *moves])


def write(path: Path, turn: Turn) -> None:
    """Write a turn as JSON, and beside it FILE.kind and FILE.number, a word each, for workflows that branch on them."""
    results.write(path.with_name(f"{path.name}.kind"), turn.kind)
    results.write(path.with_name(f"{path.name}.number"), str(turn.number or ""))
    results.write(path, dumps(turn.to_json()))


def decide(config: Config, now: datetime, *, owner: str, monitor: Monitor | None = None) -> Turn:
    """Judge probation and challenger, triage, and reserve the repair that is due; ``repair`` does it.

    owner : who reserves. A repair that the same owner reserved and never finished is taken up again, so that what was
    killed at any step goes on there. Owners see to it that one works at a time.
    """
    own, close = _monitor(config, monitor)
    try:
        actions = _moves(config, now, own)
        left = _unfinished(own.store.entries(config.name), owner, now)
        if left is not None:
            verdict = _reserved(left)
            return Turn(verdict.verdict, RepairBegun.of(left).number, verdict, actions)
        verdict = triage(config, now, monitor=own)
        if verdict.verdict in REPAIRS:
            number, held = _reserve(config, verdict, now, own.store, owner)
            if number is not None:
                return Turn(verdict.verdict, number, verdict, actions)
            return Turn("nothing", None, verdict, [*actions, held])
        if verdict.verdict == "page":
            actions.append(_page(config, verdict, now, own.store))
        return Turn(verdict.verdict, None, verdict, actions)
    finally:
        close()


def repair(
    config: Config,
    number: int,
    now: datetime,
    *,
    monitor: Monitor | None = None,
    progress: Callable[[str, str], None] | None = None,
    retrain: Callable[[Verdict], Action] | None = None,
) -> Action:
    """Carry out the repair with that number of the ledger and record how it ended; done already: says how it ended.

    retrain : does a retrain somewhere else; default: in this process
    A repair that fails is recorded as failed and leaves the champion as it is.
    """
    own, close = _monitor(config, monitor)
    try:
        verdict, ended = _numbered(config, own.store, number)
        if ended is not None:
            return ended
        return _carry_out(config, number, verdict, now, monitor=own, progress=progress, retrain=retrain)
    finally:
        close()


def close(config: Config, owner: str, status: str, now: datetime) -> Action | None:
    """Record that what carried out the repair of that owner ended without an outcome; None when nothing is open."""
    from rareclass.adapters.store import Store

    with Store(config.store.url) as store:
        left = _unfinished(store.entries(config.name), owner, now)
        if left is None:
            return None
        verdict, number = _reserved(left), RepairBegun.of(left).number
        action = Action(now, verdict.verdict, verdict.version or None, None, "failed", f"the workflow ended: {status}")
        _finish(config, action, verdict, now, store, number)
        return action


def _numbered(config: Config, store: Store, number: int) -> tuple[Verdict, Action | None]:
    """The verdict behind a repair, and how it ended if it did. Raises ConfigError when there is no such repair."""
    entries = store.entries(config.name)
    started = {begun.number: entry for entry, begun in _repairs(entries)}
    if number not in started:
        known = ", ".join(str(each) for each in sorted(started)) or "none yet"
        raise ConfigError(f"'{config.name}' has no repair {number} in its ledger. Set --number to one of: {known}")
    verdict = _reserved(started[number])
    ended = _ended(entries).get(number)
    return verdict, None if ended is None else ended.action


def _repairs(entries: Sequence[LedgerEntry]) -> list[tuple[LedgerEntry, RepairBegun]]:
    """The lines that began a repair, oldest first, each with what it says."""
    return [(entry, RepairBegun.of(entry)) for entry in entries if entry.kind == "repair"]


def _ended(entries: Sequence[LedgerEntry]) -> dict[int, RepairEnded]:
    """Number of a repair -> how it ended."""
    outcomes = (RepairEnded.of(entry) for entry in entries if entry.kind == "outcome")
    return {outcome.number: outcome for outcome in outcomes}


def _reserved(entry: LedgerEntry) -> Verdict:
    from rareclass.core.triage import Verdict

    begun = RepairBegun.of(entry)
    return Verdict(begun.verdict, (entry.reason,), begun.evidence, begun.version or "", begun.fingerprint)


def _taken_over(entries: Sequence[LedgerEntry], number: int, verdict: Verdict) -> str | None:
    """The version that took over from the one that was to be repaired, since the repair began."""
    begun = _begun(entries, number)
    later = [entry for entry in entries if entry.id > begun.id and entry.kind == "promote" and entry.actor == ACTOR]
    for move in map(promotion.Move.of, later):
        if move.role == "champion" and move.before["champion"] == verdict.version:
            return move.version
    return None


def _begun(entries: Sequence[LedgerEntry], number: int) -> LedgerEntry:
    return next(entry for entry, begun in _repairs(entries) if begun.number == number)


def _unfinished(entries: Sequence[LedgerEntry], owner: str, now: datetime) -> LedgerEntry | None:
    ended = _ended(entries)
    left = [
        entry
        for entry, begun in _repairs(entries)
        if begun.owner == owner and begun.number not in ended and _aware(now) - _aware(entry.at) < LEASE
    ]
    return left[-1] if left else None


# --- the brakes ------------------------------------------------------------------------------------------------------


def permitted(
    governor: GovernorSettings, verdict: Verdict, entries: Sequence[LedgerEntry], now: datetime, *, window: timedelta
) -> tuple[bool, str]:
    """Say whether a repair may start, and why not. Reads the ledger only."""
    kind = verdict.verdict
    repairs = _repairs(entries)
    starts = [(_aware(entry.at), begun) for entry, begun in repairs if begun.verdict == kind]
    outcomes = _ended(entries)
    now = _aware(now)
    running = [
        (entry, begun) for entry, begun in repairs if begun.number not in outcomes and now - _aware(entry.at) < LEASE
    ]
    if running:
        entry, begun = running[-1]
        return False, f"one at a time: a {begun.verdict} is running since {entry.at:%Y-%m-%d %H:%M}"
    if any(begun.fingerprint == verdict.fingerprint for _, begun in starts):
        return False, f"this alert ({verdict.fingerprint}) was handled already"
    rest = governor.cooldown if kind == "retrain" else min(governor.cooldown, window)
    if starts and now - starts[-1][0] < rest:
        last = starts[-1][0]
        return False, f"cooldown: the last {kind} was on {last:%Y-%m-%d}, rest until {last + rest:%Y-%m-%d}"
    if kind != "retrain":
        return True, ""
    month = [at for at, _ in starts if now - at < timedelta(days=30)]
    if len(month) >= governor.max_per_month:
        return False, f"{len(month)} retrains in 30 days, {governor.max_per_month} allowed"
    waiting = challenger_of(entries)
    if waiting is not None:
        return False, f"version {waiting} is a challenger already and is still being judged on live labels"
    if verdict.evidence.get("graduates"):
        return _worth_another_try(verdict, [begun for _, begun in starts])
    useless = _useless(entries, outcomes, verdict.version, now)
    if useless >= governor.loop_guard:
        return (
            False,
            f"loop guard: the last {useless} retrains did not help; a person must act (rareclass promote or rollback)",
        )
    return True, ""


def _worth_another_try(verdict: Verdict, starts: Sequence[RepairBegun]) -> tuple[bool, str]:
    """Whether a version has met `GROWTH` times the positives that its next regime was tried with last.

    What failed for want of evidence then is no sign of a loop that does not help, so no guard stops it for good.
    """
    from rareclass.core.triage import GROWTH

    tried = [
        begun.evidence["new_positives"] for begun in starts if begun.version == verdict.version and begun.graduates
    ]
    now, needed = verdict.evidence["new_positives"], math.ceil(GROWTH * tried[-1]) if tried else 0
    if now >= needed:
        return True, ""
    return False, f"the next regime was tried with {tried[-1]} new positives, will be with {needed}; there are {now}"


def _useless(
    entries: Sequence[LedgerEntry], outcomes: Mapping[int, RepairEnded], version: str | None, now: datetime
) -> int:
    """How many retrains in a row did not help, back to the last one that did or to the last act of a person.

    A retrain helped when its version became champion, was not rolled back, and needed no retrain itself within
    ``SOON``.
    version : the one that ``now`` needs a retrain
    """
    person = max((entry.id for entry in entries if entry.kind in MOVES and entry.actor != ACTOR), default=0)
    promoted = [(_aware(entry.at), promotion.Move.of(entry)) for entry in entries if entry.kind == "promote"]
    since = {move.version: at for at, move in promoted if move.role == "champion"}
    undone = {promotion.Move.of(entry).before["champion"] for entry in entries if entry.kind == "rollback"}
    needed = {str(version): now}  # version -> when a retrain of it was needed first
    count = 0
    for entry in reversed(entries):
        if entry.id < person:
            break
        if entry.kind != "repair":
            continue
        begun = RepairBegun.of(entry)
        if begun.verdict != "retrain":
            continue
        outcome = outcomes.get(begun.number)
        made = "" if outcome is None else outcome.action.to_version or ""
        soon = made in since and made in needed and needed[made] - since[made] < SOON
        if made in since and made not in undone and not soon:
            break
        if made not in since and begun.graduates:  # it lacked evidence yet, not help
            continue
        needed[str(begun.version)] = _aware(entry.at)
        count += 1
    return count


def challenger_of(entries: Sequence[LedgerEntry]) -> str | None:
    """Return the version that is challenger by the ledger."""
    return promotion.current(entries)["challenger"]


def _start(config: Config, verdict: Verdict, now: datetime, store: Store, owner: str | None = None) -> int | None:
    """Take the next number of the ledger: only one of two governors can."""
    number = 1 + sum(entry.kind == "repair" for entry in store.entries(config.name))
    begun = RepairBegun(number, verdict.verdict, verdict.fingerprint, verdict.version, dict(verdict.evidence), owner)
    reason = "; ".join(verdict.reasons)
    try:
        store.append(config.name, f"repair:{number}", "repair", ACTOR, reason, begun.to_json(), now)
    except AlreadyDoneError:
        return None
    return number


def _finish(config: Config, action: Action, verdict: Verdict, now: datetime, store: Store, number: int) -> None:
    payload = RepairEnded(number, verdict.verdict, verdict.fingerprint, action).to_json()
    with contextlib.suppress(AlreadyDoneError):
        store.append(config.name, f"outcome:{number}", "outcome", ACTOR, action.reason, payload, now)


def _page(config: Config, verdict: Verdict, now: datetime, store: Store) -> Action:
    reason = "; ".join(verdict.reasons)
    recent = [
        entry for entry in store.entries(config.name, "page") if Paged.of(entry).fingerprint == verdict.fingerprint
    ]
    if recent and _aware(now) - _aware(recent[-1].at) < config.governor.cooldown:
        return Action(now, "page", verdict.version, None, "already", reason)
    payload = Paged(verdict.fingerprint, verdict.version, dict(verdict.evidence)).to_json()
    try:
        store.append(config.name, f"page:{verdict.fingerprint}:{len(recent) + 1}", "page", ACTOR, reason, payload, now)
    except AlreadyDoneError:
        return Action(now, "page", verdict.version, None, "already", reason)
    return Action(now, "page", verdict.version, None, "done", reason)


# --- on live labels --------------------------------------------------------------------------------------------------


def challenge(config: Config, now: datetime, *, monitor: Monitor | None = None) -> Action | None:
    """Let the challenger become champion once live labels say so, or take it away once they say it is worse.

    Only rows predicted after its training rows ended, and after it became challenger, judge it; the windows that raised
    the alert are among neither. promotion.mode 'shadow': its lead must be beyond chance. 'immediate': it must lead, on
    enough positives, and a probation follows.
    """
    own, close = _monitor(config, monitor)
    try:
        entries = own.store.entries(config.name)
        version, start = challenger_of(entries), _since(entries, "challenger")
        champion = promotion.current(entries).get("champion")
        if version is None or champion is None or start is None:
            return None
        found = _paired(own, version, champion, start, now, alpha=_spent(config, start, now, own.delay(now)))
        if not found.judged or found.difference.positives < config.monitor.min_positives:
            return None
        d = found.difference
        numbers = found.to_json()
        wins = d.low > 0 or (config.promotion.mode == "immediate" and d.value > 0)
        if wins:
            reason = (
                f"version {version} leads version {champion} by {d.value:.3f} [{d.low:.3f}, {d.high:.3f}] AP on "
                f"{d.positives} live positives"
            )
            return _move(config, "promote", champion, version, now, reason, numbers)
        if d.high < 0 or _aware(now) - _aware(start) > 2 * config.promotion.probation + own.delay(now):
            reason = (
                f"version {version} did not win against version {champion}: {d.value:.3f} [{d.low:.3f}, {d.high:.3f}] "
                f"AP on {d.positives} live positives"
            )
            try:
                promotion.retire(config, "challenger", now=now, actor=ACTOR, reason=reason)
            except AlreadyDoneError:
                return None
            return Action(now, "retire", champion, version, "done", reason, numbers)
        return None
    finally:
        close()


def probation(config: Config, now: datetime, *, monitor: Monitor | None = None) -> Action | None:
    """Roll back a champion in its probation when the previous one is significantly better on matured labels.

    The chance of a wrong rollback is spent over the days of the probation, so looking every day does not add up.
    """
    own, close = _monitor(config, monitor)
    try:
        entries = own.store.entries(config.name)
        aliases, start = promotion.current(entries), _since(entries, "champion")
        champion, previous = aliases.get("champion"), aliases.get("previous")
        moves = promotion.moves(entries)
        if champion is None or previous is None or start is None or (moves and moves[-1].kind == "rollback"):
            return None
        if _aware(now) - _aware(start) > config.promotion.probation + own.delay(now) + timedelta(days=1):
            return None
        found = _paired(own, previous, champion, start, now, alpha=_spent(config, start, now, own.delay(now)))
        if not found.judged or not found.difference.low > 0:
            return None
        d = found.difference
        reason = (
            f"rolled back: version {previous} beats version {champion} by {d.value:.3f} [{d.low:.3f}, {d.high:.3f}] AP "
            f"on {d.positives} live positives of the probation"
        )
        return _move(config, "rollback", champion, previous, now, reason, found.to_json())
    finally:
        close()


def spending(elapsed: float, total: float = ERROR) -> float:
    """Return the share of the error that may be spent by a fraction of the looks (Lan and DeMets 1983,
    Pocock's form).
    """
    return total * math.log(1 + (math.e - 1) * min(max(elapsed, 0.0), 1.0))


def _spent(config: Config, start: datetime, now: datetime, delay: timedelta) -> float:
    """Error of the present look: the day's own increment of the spending function."""
    looks = max(1, round(config.promotion.probation / timedelta(days=1)))
    look = max(1, math.floor((_aware(now) - delay - _aware(start)) / timedelta(days=1)))
    if look > looks:
        return ERROR / looks
    return spending(look / looks) - spending((look - 1) / looks)


def _move(
    config: Config, kind: str, before: str, after: str, now: datetime, reason: str, numbers: Mapping[str, Any]
) -> Action | None:
    try:
        if kind == "rollback":
            promotion.rollback(config, now=now, actor=ACTOR, reason=reason, evidence=numbers, expect=before)
        else:
            promotion.promote(config, after, now=now, mode="immediate", actor=ACTOR, reason=reason, evidence=numbers)
    except (AlreadyDoneError, NeedsApprovalError):
        return None
    return Action(now, kind, before, after, "done", reason, numbers)


def _paired(own: Monitor, version: str, champion: str, start: datetime, now: datetime, *, alpha: float) -> Paired:
    """Compare on rows predicted since ``start``: shadow scores where there are any,
    else scored from stored features.
    """
    from rareclass.core import liveness
    from rareclass.services.live import monitor as watching
    from rareclass.services.live import repair

    config = own.config
    settings = own.settings(now)
    shadows = chosen.shadows(config, own.store, start, watching._after(now))
    rows = watching.beside(shadows, version, champion)
    found = liveness.paired(rows, now=now, settings=settings, since=start, confidence=1 - 2 * alpha)
    if found.judged or found.reason.startswith("cannot"):
        return found
    afterwards = repair.scored_afterwards(own, version, champion, start, now)
    if afterwards is None:
        return found
    return liveness.paired(afterwards, now=now, settings=settings, since=start, confidence=1 - 2 * alpha)


def _since(entries: Sequence[LedgerEntry], role: str) -> datetime | None:
    """When the present holder of a role got it."""
    start, holder = None, None
    for entry in promotion.moves(entries):
        now = promotion.Move.of(entry).aliases.get(role)
        if now != holder:
            start, holder = entry.at, now
    return start if holder is not None else None


def _monitor(config: Config, monitor: Monitor | None) -> tuple[Monitor, Callable[[], None]]:
    from rareclass.services.live.monitor import Monitor

    if monitor is not None:
        return monitor, lambda: None
    own = Monitor(config)
    return own, own.close


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
