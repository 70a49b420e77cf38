"""The status page: what a model's owner looks at in the morning, made once per evaluation of the monitor."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from rareclass.adapters.reports.page import NARROW, count, render
from rareclass.adapters.reports.windows import Mark, Series, Span, View, chart
from rareclass.core.estimate import Estimate, between
from rareclass.core.liveness import Liveness, Paired, Window
from rareclass.core.moments import naive
from rareclass.core.triage import Snapshot, Verdict

HEADLINES = {
    "nothing": "Nothing to do",
    "rethreshold": "Set the thresholds again",
    "recalibrate": "Calibrate the scores again",
    "retrain": "Train again",
    "page": "A person has to look",
}
SIGNS = {"promote": "▲", "rollback": "↩", "rethreshold": "θ", "recalibrate": "c", "retrain": "⟳"}
LEGEND = "▲ promoted · ↩ rolled back · θ thresholds set again · c calibrated again · ⟳ trained again"
LOUD = {"nothing": "approve", "page": "reject"}
"""Classes of the style sheet for a verdict; the others wait."""
COLUMNS_SHOWN = 15


@dataclass(frozen=True)
class LogState:
    """The prediction log on this machine: spools and what became of records. waiting_since :
    oldest answer on its way
    """

    spools: int
    waiting_bytes: int
    waiting_since: datetime | None
    reused: int
    rejected: int


@dataclass(frozen=True)
class DriftPoint:
    """How far a window's columns lay from the reference. share : of columns that drifted · worst : name and PSI"""

    start: datetime
    end: datetime
    share: float
    drifted: Sequence[str]
    broken: Sequence[str]
    score_psi: float


@dataclass(frozen=True)
class LedgerLine:
    """One line of the ledger as the page shows it."""

    at: datetime
    kind: str
    actor: str
    reason: str
    version: str = ""


@dataclass(frozen=True)
class Status:
    """All that the page shows of one evaluation.

    next_steps : what to do, in sentences · waiting : the version that waits for a person's approval, in words
    left_out, due, owed, owed_since : as in the store's tally of the windows in view · log : None where no spool is here
    by_review : only chosen rows are looked at;  chosen, to_look_at : such rows in view, and those without a label
    psi_bound : PSI from which the score has drifted
    """

    snapshot: Snapshot
    verdict: Verdict | None
    currency: str
    next_steps: Sequence[str] = ()
    waiting: str = ""
    marks: Sequence[Mark] = ()
    ledger: Sequence[LedgerLine] = ()
    drift: Sequence[DriftPoint] = ()
    left_out: int = 0
    due: int = 0
    owed: int = 0
    owed_since: datetime | None = None
    by_review: bool = False
    chosen: int = 0
    to_look_at: int = 0
    log: LogState | None = None
    psi_bound: float = math.nan
    label_delay: timedelta = timedelta(0)
    problems: Sequence[str] = field(default=())


def status_page(name: str, status: Status | None, *, error: str = "", every: float = 60.0) -> str:
    """Return the page. status : None before the first evaluation · error : why the last one failed · every : seconds to
    reload
    """
    reload = round(min(max(every, 15), 300))
    if status is None:
        return render("status.html", name=name, error=error, reload=reload, status=None)
    snapshot = status.snapshot
    champion = snapshot.live.get(snapshot.champion or "")
    verdict = status.verdict
    said = None if verdict is None else verdict.verdict
    return render(
        "status.html",
        name=name,
        error=error,
        reload=reload,
        status=status,
        legend=LEGEND,
        evaluated=_time(snapshot.now),
        headline=HEADLINES.get(said or "", "Nothing evaluated"),
        loud=LOUD.get(said or "", ""),
        reasons=() if verdict is None else verdict.reasons,
        tiles=[] if champion is None else _tiles(status, champion),
        charts=[] if champion is None else _charts(status, champion),
        paired=[_paired(version, pair, snapshot) for version, pair in snapshot.paired.items()],
        versions=[_version(version, live, snapshot.roles.get(version, "")) for version, live in _ordered(snapshot)],
        columns=_columns(snapshot),
        schema_errors=snapshot.schema_errors,
        facts=_facts(status, champion),
        ledger=[
            {
                "at": _time(line.at),
                "kind": line.kind,
                "version": line.version,
                "actor": line.actor,
                "reason": line.reason,
            }
            for line in status.ledger
        ],
    )


def policy(page: str) -> str:
    """Return the content security policy of a page: its own style sheets by their hash,
    and nothing else from anywhere.
    """
    styles = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in styles]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    return f"default-src 'none'; style-src {allowed}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


# --- tiles and sentences ---------------------------------------------------------------------------------------------


def _tiles(status: Status, live: Liveness) -> list[dict[str, str]]:
    judged = live.judged[-1] if live.judged else None
    newest = live.windows[-1] if live.windows else None
    counted = next(
        (window for window in reversed(live.matured) if math.isfinite(window.metric("prevalence").value)), None
    )
    reference = f"reference {_number(live.reference_ap)}" if math.isfinite(live.reference_ap) else "no reference"
    tiles = []
    if judged is not None:
        ap = judged.metric("ap")
        tiles.append(
            (
                "average precision",
                _number(ap.value),
                f"{_between(ap)} · {count(ap.positives)} positives · {_days_of(judged)}",
            )
        )
        equal = judged.metric("ap_reference")
        if math.isfinite(equal.value):
            tiles.append(("the same at equal prevalence", _number(equal.value), f"{_between(equal)} · {reference}"))
    else:
        why = live.matured[-1].reason if live.matured else "no window is old enough for its labels"
        tiles.append(("average precision", "–", f"not judged: {why}"))
    if newest is not None and math.isfinite(newest.estimated_ap):
        off = (
            f" · such estimates were off by {_number(live.estimate_error)}"
            if math.isfinite(live.estimate_error)
            else ""
        )
        tiles.append(
            ("estimated without labels", _number(newest.estimated_ap), f"newest window, from the scores alone{off}")
        )
    if counted is not None:
        share = counted.metric("prevalence")
        tiles.append(
            ("prevalence", _percent(share.value), f"{_between(share, _percent)} · {count(share.positives)} positives")
        )
    if status.snapshot.estimated_prevalence is not None:
        low, high = status.snapshot.estimated_interval or (math.nan, math.nan)
        share = Estimate(status.snapshot.estimated_prevalence, low, high)
        tiles.append(
            (
                "prevalence now, estimated",
                _percent(share.value),
                f"{_between(share, _percent)} · from scores, without labels",
            )
        )
    if counted is not None and math.isfinite(counted.metric("cost_per_1000").value):
        cost = counted.metric("cost_per_1000")
        tiles.append(
            (f"{status.currency} per 1,000 rows", _amount(cost.value), f"{_between(cost, _amount)} · lower is better")
        )
    if newest is not None:
        most = status.snapshot.alert_capacity
        bound = "" if most is None else f" · capacity {_amount(most)}"
        over = "" if most is None or newest.alerts_per_day <= most else ", exceeded"
        tiles.append(
            (
                "alerts a day",
                _amount(newest.alerts_per_day),
                f"newest window, {_percent(newest.alert_rate)} of the rows{bound}{over}",
            )
        )
    if judged is not None and math.isfinite(judged.metric("precision").value):
        right = judged.metric("precision")
        tiles.append(
            ("alerts confirmed", _percent(right.value), f"{_between(right, _percent)} · {_days_of(judged)}, labels in")
        )
    return [{"name": name, "value": value, "note": note} for name, value, note in tiles]


def _facts(status: Status, champion: Liveness | None) -> list[tuple[str, str]]:
    """The health of labels and log, as questions and answers."""
    now, facts = naive(status.snapshot.now), []
    if status.due:
        since = "" if status.owed_since is None else f", the oldest from {_time(status.owed_since)}"
        facts.append(
            (
                "Labels owed",
                (
                    f"{count(status.owed)} of {count(status.due)} {'chosen ' if status.by_review else ''}rows in view "
                    "that are old enough have none "
                    f"({_percent(status.owed / status.due)}){since}"
                ),
            )
        )
    else:
        facts.append(("Labels owed", "no row in view is old enough to have its label"))
    if status.chosen or status.by_review:
        facts.append(
            (
                "To look at",
                f"{count(status.to_look_at)} of {count(status.chosen)} rows that were chosen have no label yet"
                if status.chosen
                else "no row in view was chosen: `rareclass review -c CONFIG OUT.csv`",
            )
        )
    if champion is not None and champion.last_label is not None:
        facts.append(("Newest label", f"{_ago(now - naive(champion.last_label))} ago"))
    if champion is not None and math.isfinite(champion.label_delay_p95):
        waited = (
            f"95 % come within {_ago(timedelta(seconds=champion.label_delay_p95))}; "
            f"windows are judged after {_ago(status.label_delay)}"
        )
        facts.append(("Label delay", waited))
    if status.left_out:
        facts.append(
            (
                "Left out of the log",
                f"{count(status.left_out)} rows decided 0 while the log was full; others stand for them by weight",
            )
        )
    log = status.log
    if log is None:
        facts.append(
            (
                "Log on its way",
                (
                    "no server logs on this machine; each exports rareclass_serve_spool_bytes and "
                    "rareclass_serve_reused_ids_total"
                ),
            )
        )
        return facts
    waits = "everything answered is in the store"
    if log.waiting_since is not None:
        waits = f"{count(log.waiting_bytes)} bytes wait, the oldest for {_ago(now - naive(log.waiting_since))}"
    facts.append(("Log on its way", waits))
    facts.append(
        (
            "Ids used twice",
            f"{count(log.reused)} rows were not stored: their id was in the store with other contents"
            if log.reused
            else "none",
        )
    )
    facts.append(
        (
            "Records refused",
            f"{count(log.rejected)}, each with its reason in rejected.jsonl of the spool" if log.rejected else "none",
        )
    )
    return facts


def _paired(version: str, pair: Paired, snapshot: Snapshot) -> dict[str, Any]:
    role, d = snapshot.roles.get(version, ""), pair.difference
    if not pair.judged:
        return {"version": version, "role": role, "text": f"not judged: {pair.reason}", "both": ""}
    side = "is ahead" if d.low > 0 else "is behind" if d.high < 0 else "is not told apart"
    both = f"{_number(pair.shadow_ap)} against {_number(pair.answering_ap)} on the same rows"
    text = (
        f"{side}: {d.value:+.3f} [{d.low:+.3f},{NARROW}{d.high:+.3f}] average precision, {count(d.positives)} positives"
    )
    return {"version": version, "role": role, "text": text, "both": both}


def _columns(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Columns that moved or look damaged, the loudest first."""
    if snapshot.drift is None:
        return []
    moved = [column for column in snapshot.drift.features if column.drifted or column.broken or column.gone]
    moved.sort(key=lambda column: (not column.broken, -column.psi))
    return [
        {
            "name": column.name,
            "psi": _number(column.psi, 2),
            "ks": _number(column.ks, 2),
            "broken": "; ".join(column.broken),
            "missing": f"{_percent(column.missing)} (usual {_percent(column.missing_reference)})",
            "gone": ", ".join(column.gone),
        }
        for column in moved[:COLUMNS_SHOWN]
    ]


def _ordered(snapshot: Snapshot) -> list[tuple[str, Liveness]]:
    roles = ("champion", "challenger", "previous", "")
    return sorted(snapshot.live.items(), key=lambda item: roles.index(snapshot.roles.get(item[0], "")))


def _version(version: str, live: Liveness, role: str) -> dict[str, Any]:
    reference = f"reference AP {_number(live.reference_ap)} at prevalence {_percent(live.reference_prevalence)}"
    return {
        "version": version,
        "role": role,
        "reference": reference,
        "windows": [_row(window) for window in reversed(live.windows)],
    }


def _row(window: Window) -> dict[str, Any]:
    labelled = f"{window.coverage:.0%}" if math.isfinite(window.coverage) else "–"
    cells = [
        count(window.rows),
        labelled,
        count(window.positives),
        _estimate(window.metric("prevalence"), _percent),
        _estimate(window.metric("ap")),
        _estimate(window.metric("ap_reference")),
        _number(window.estimated_ap),
        _estimate(window.metric("precision")),
        _estimate(window.metric("recall")),
        _estimate(window.metric("cost_per_1000"), _amount),
        _amount(window.alerts_per_day),
    ]
    note = "violated" if window.violated else window.reason if not window.judged else ""
    return {
        "when": _days_of(window),
        "state": window.state,
        "cells": cells,
        "note": note,
        "mark": "bad" if window.violated else "",
    }


# --- charts ----------------------------------------------------------------------------------------------------------


def _charts(status: Status, live: Liveness) -> list[dict[str, Any]]:
    view = _view(status, live)
    own = _number
    lines = [Series("with labels", "main", _spans(live, "ap", own)), Series("estimated", "estimated", _estimated(live))]
    for version, other in status.snapshot.live.items():
        role = status.snapshot.roles.get(version, "")
        if version != live.version:
            style = "other" if role == "challenger" else "past"
            lines.append(Series(f"{role} {version}".strip(), style, _spans(other, "ap", own)))
    drift = [
        Span(
            point.start,
            point.end,
            point.share,
            text=f"{_percent(point.share)} of the columns: {', '.join([*point.broken, *point.drifted][:8]) or 'none'}",
        )
        for point in status.drift
    ]
    scores = [
        Span(point.start, point.end, point.score_psi, text=f"PSI {_number(point.score_psi, 2)}")
        for point in status.drift
        if math.isfinite(point.score_psi)
    ]
    wide = "Bands are intervals; dashed windows are not old enough for all their labels."
    found = [
        chart(
            "Average precision",
            f"By window of prediction time. {wide}",
            view,
            lines,
            written=_axis,
            level=("reference", live.reference_ap),
        ),
        chart(
            "Prevalence",
            "Share of the rare class among labelled rows; the line is what the version was trained on.",
            view,
            [Series("labelled", "main", _spans(live, "prevalence", _percent))],
            written=_percent,
            level=("reference", live.reference_prevalence),
        ),
        chart(
            f"{status.currency} per 1,000 rows",
            "What mistakes cost, of labelled rows; lower is better.",
            view,
            [Series("cost", "main", _spans(live, "cost_per_1000", _amount))],
            written=_axis,
        ),
        chart(
            "Alerts a day",
            "Rows decided 1, of the windows' days.",
            view,
            [Series("alerts", "main", _alerts(live))],
            written=_axis,
        ),
        chart(
            "Columns that moved",
            "Share of columns whose window lies beyond the bound and beyond what windows of the reference show.",
            view,
            [Series("drifted", "main", drift)],
            written=_percent,
        ),
    ]
    if scores:
        found.append(
            chart(
                "Drift of the score",
                "PSI against the version's first window of answers.",
                view,
                [Series("PSI", "main", scores)],
                written=_axis,
                level=("bound", status.psi_bound),
            )
        )
    return found


def _view(status: Status, live: Liveness) -> View:
    end = naive(status.snapshot.now)
    starts = [window.start for one in status.snapshot.live.values() for window in one.windows]
    marks = [Mark(naive(mark.at), mark.sign, mark.text) for mark in status.marks]
    return View(min(starts, default=end - timedelta(days=1)), end, marks)


def _spans(live: Liveness, name: str, written: Callable[[float], str]) -> list[Span]:
    spans = []
    for window in live.windows:
        found = window.metric(name)
        text = (
            f"{_days_of(window)}: {_estimate(found, written)}, {count(found.positives)} positives of "
            f"{count(found.rows)} rows"
        )
        solid = window.state == "matured"
        spans.append(Span(window.start, window.end, found.value, found.low, found.high, solid, text))
    return spans


def _estimated(live: Liveness) -> list[Span]:
    return [
        Span(
            window.start,
            window.end,
            window.estimated_ap,
            text=f"{_days_of(window)}: {_number(window.estimated_ap)} from the scores alone",
        )
        for window in live.windows
    ]


def _alerts(live: Liveness) -> list[Span]:
    return [
        Span(
            window.start,
            window.end,
            window.alerts_per_day,
            solid=True,
            text=f"{_days_of(window)}: {_amount(window.alerts_per_day)}",
        )
        for window in live.windows
    ]


# --- numbers as text -------------------------------------------------------------------------------------------------


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def _percent(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.3g}{NARROW}%" if value >= 1e-7 else f"0{NARROW}%"


def _amount(value: float) -> str:
    """Money or a number a day: whole from a hundred on."""
    return "–" if not math.isfinite(value) else count(value) if abs(value) >= 100 else f"{value:.3g}"


def _axis(value: float) -> str:
    return count(value) if value >= 1000 else f"{value:.3g}"


def _between(found: Estimate, written: Callable[[float], str] = _number) -> str:
    unjudged = math.isnan(found.low) or math.isnan(found.high)
    return "no interval" if unjudged else between(found.low, found.high, written, NARROW)


def _estimate(found: Estimate, written: Callable[[float], str] = _number) -> str:
    if not math.isfinite(found.value):
        return "–"
    return f"{written(found.value)} {_between(found, written)}" if math.isfinite(found.low) else written(found.value)


def _days_of(window: Window) -> str:
    if window.end - window.start < timedelta(days=1):
        return f"{window.start:%Y-%m-%d %H:%M} – {window.end:%H:%M}"
    return f"{window.start:%d %b} – {window.end:%d %b}"


def _time(moment: datetime) -> str:
    return f"{naive(moment):%Y-%m-%d %H:%M}"


def _ago(age: timedelta) -> str:
    """An age in the largest unit that leaves a whole number worth reading."""
    seconds = max(age.total_seconds(), 0.0)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}" if unit == "days" else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def marks_of(lines: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """Return the marks of things that happened. lines : at, kind (of ``SIGNS``), text"""
    return [Mark(line["at"], SIGNS[line["kind"]], f"{_time(line['at'])} {line['text']}") for line in lines]
