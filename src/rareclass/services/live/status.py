"""What the status page shows of one evaluation, gathered once: a request reads neither the store nor the registry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.adapters.reports.status import DriftPoint, LedgerLine, LogState, Status, marks_of
from rareclass.adapters.spool import first_waiting, unshipped_bytes
from rareclass.config import Config
from rareclass.core.moments import naive
from rareclass.errors import RareclassError
from rareclass.services import approval
from rareclass.services.live import chosen
from rareclass.services.live.governor import permitted
from rareclass.services.serving.shipping import REJECTED, reused_ids, spools

if TYPE_CHECKING:
    from rareclass.adapters.store import LedgerEntry
    from rareclass.core.triage import Snapshot, Verdict
    from rareclass.services.live.monitor import Monitor

LINES = 12
"""Newest lines of the ledger that the page shows."""


def gather(monitor: Monitor, snapshot: Snapshot, verdict: Verdict) -> Status:
    """Collect what the page needs besides the snapshot: ledger, labels owed, the log, drift window by window."""
    config, now = monitor.config, snapshot.now
    entries = [entry for entry in monitor.ledger(now) if naive(entry.at) <= naive(now)]
    windows = [window for live in snapshot.live.values() for window in live.windows]
    start = min((window.start for window in windows), default=naive(now))
    delay = monitor.delay(now)
    by_review = chosen.by_review(config)
    tally = monitor.store.tally(config.name, start, now, due_before=now - delay, reviews=by_review)
    reviews = monitor.store.reviews(config.name, start, now)
    drift, problems = _drift(monitor, snapshot)
    asked = approval.status(entries)
    return Status(
        snapshot=snapshot,
        verdict=verdict,
        currency=config.costs.currency,
        next_steps=next_steps(config, verdict, snapshot, entries),
        waiting=str(asked) if asked.state == "waiting" else "",
        marks=marks_of([mark for mark in map(_mark, entries) if mark is not None]),
        ledger=[_line(entry) for entry in reversed(entries[-LINES:])],
        drift=drift,
        left_out=tally.left_out,
        due=tally.due,
        owed=tally.owed,
        owed_since=tally.owed_since,
        by_review=by_review,
        chosen=len(reviews),
        to_look_at=int(reviews["label"].isna().sum()),
        log=log_state(config),
        psi_bound=config.monitor.psi,
        label_delay=delay,
        problems=problems,
    )


def next_steps(config: Config, verdict: Verdict, snapshot: Snapshot, entries: Sequence[LedgerEntry]) -> list[str]:
    """Say what is to be done about a verdict, by whom, and with which command."""
    kind = verdict.verdict
    if kind == "nothing":
        return []
    if kind == "page":
        return _for_a_person(snapshot)
    does = {
        "rethreshold": "The cut-offs are tuned again on labels that have come; the version stays.",
        "recalibrate": "The same learner gets another calibrator: a new version with the same ranking.",
        "retrain": (
            "A version is trained on the history that serves best; it starts in the shadow and has to win there."
        ),
    }[kind]
    allowed, why = permitted(config.governor, verdict, entries, snapshot.now, window=config.monitor.window)
    if allowed:
        return [does, "`rareclass triage -c CONFIG --act` does it; where that runs on a schedule, its next turn does."]
    return [does, f"It is held back: {why}."]


def _for_a_person(snapshot: Snapshot) -> list[str]:
    steps = []
    live = snapshot.live.get(snapshot.champion or "")
    damaged = [report for report in (snapshot.drift, snapshot.fresh) if report is not None and report.broken]
    if damaged or snapshot.schema_errors:
        steps.append(
            "Mend the columns named at their source; no model is changed while data looks damaged. "
            "If it began with a new version: `rareclass rollback -c CONFIG`."
        )
    if live is not None and live.starved:
        steps.append(
            "Find out why labels no longer come, then import them: `rareclass labels import -c CONFIG FILE`, or POST "
            "/labels."
        )
    return steps or [
        (
            "There are too few new positives to learn from: bring more labels, or decide by hand with `rareclass "
            "promote` "
            "or `rareclass rollback`."
        )
    ]


def log_state(config: Config) -> LogState | None:
    """Return how the prediction log stands on this machine; None where no server logs here."""
    folders = [folder for folder in spools(config.serve.spool) if any(folder.iterdir())]
    if not folders:
        return None
    moments = [moment for moment in map(_oldest, folders) if moment is not None]
    return LogState(
        spools=len(folders),
        waiting_bytes=sum(unshipped_bytes(folder) for folder in folders),
        waiting_since=min(moments, default=None),
        reused=sum(reused_ids(folder) for folder in folders),
        rejected=sum(_lines_in(folder / REJECTED) for folder in folders),
    )


def _oldest(folder: Path) -> datetime | None:
    """When the oldest answer that waits in a spool was given, as far as its record can be read."""
    record = first_waiting(folder)
    if record is None:
        return None
    try:
        moments = json.loads(record)["ts"]
        return datetime.fromtimestamp(min(moments) / 1e6 if isinstance(moments, list) else moments / 1e6, UTC)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _lines_in(file: Path) -> int:
    try:
        with file.open("rb") as lines:
            return sum(1 for _ in lines)
    except OSError:
        return 0


def _drift(monitor: Monitor, snapshot: Snapshot) -> tuple[list[DriftPoint], list[str]]:
    """Drift of each window that is over, against the champion's reference, and of the newest stretch of a window's
    length.
    """
    found, problems = [], []
    live = snapshot.live.get(snapshot.champion or "")
    for window in live.windows if live is not None else ():
        if window.end < naive(snapshot.now):
            try:
                report = monitor.drift_of(window.start, window.end, snapshot.now)
            except RareclassError as error:
                problems.append(f"The drift of {window.start:%Y-%m-%d} is not shown: {error}")
                continue
            if report is not None and report.judged:
                found.append(_point(window.start, window.end, report))
    if snapshot.drift is not None and snapshot.drift.judged:
        newest = naive(snapshot.now)
        start = max([newest - monitor.config.monitor.window, *(point.end for point in found)])
        found.append(_point(start, newest, snapshot.drift))
    return found, problems


def _point(start: datetime, end: datetime, report: Any) -> DriftPoint:
    psi = report.score.psi if report.score is not None else float("nan")
    return DriftPoint(start, end, report.drifted_share, report.drifted, sorted(report.broken), psi)


def _mark(entry: LedgerEntry) -> dict[str, Any] | None:
    """What a line of the ledger puts on the charts; None for most."""
    said = entry.payload
    if entry.kind == "promote" and said.get("role") == "champion":
        return {"at": entry.at, "kind": "promote", "text": f"version {said.get('version')} promoted"}
    if entry.kind == "rollback":
        return {"at": entry.at, "kind": "rollback", "text": f"rolled back to version {said.get('version')}"}
    if entry.kind in ("rethreshold", "recalibrate"):
        return {"at": entry.at, "kind": entry.kind, "text": f"{entry.kind} of version {said.get('version')}"}
    if entry.kind == "outcome" and said.get("verdict") == "retrain" and said.get("to_version"):
        return {
            "at": entry.at,
            "kind": "retrain",
            "text": f"version {said['to_version']} trained: {said.get('outcome')}",
        }
    return None


def _line(entry: LedgerEntry) -> LedgerLine:
    said = entry.payload
    kind = entry.kind
    if kind == "repair":
        kind = f"{said.get('verdict')} {said.get('number')} begun"
    elif kind == "outcome":
        kind = f"{said.get('verdict')} {said.get('number')}: {said.get('outcome')}"
    version = said.get("to_version") or said.get("version") or ""
    return LedgerLine(entry.at, kind, entry.actor, entry.reason, str(version))
