"""What happened to a live model, and the cheapest thing that repairs it.

The order is the argument. Broken data comes first, because every other symptom follows from it and a model learned from
it would make the damage permanent. A fallen ranking at equal prevalence needs a new model. With the ranking intact, a
moved prevalence or moved costs need another threshold, and scores that are off need another calibration.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rareclass.config import GateSettings, MonitorSettings, RegimeSettings
from rareclass.core.diagnosis import REGIMES, regime
from rareclass.core.drift import DriftReport
from rareclass.core.estimate import Estimate, between
from rareclass.core.jsonable import jsonable
from rareclass.core.liveness import Liveness, Paired, Window
from rareclass.core.profile import Profile
from rareclass.core.verdicts import EXIT_CODES

SLOPE = (0.6, 1.6)
"""Slope of the calibration line outside of which scores are distorted by more than a shift of prevalence."""

GROWTH = 1.5
"""So many times the positives are more evidence: each interval is about a fifth narrower."""

DRIFTED_SHARE = 0.3
"""Share of drifted features from which the population counts as another one."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a verdict rests on.

    live : windows of the version that answers
    drift : newest full stretch of rows against the reference;  fresh : the newest day of them
    schema_errors : rows that could not be scored or columns that are gone, in words
    prevalence_baseline : prevalence the thresholds in force were fitted at (after a re-threshold: of its rows)
    costs_moved : in words, when the configured costs are not those the threshold was tuned for
    new_positives : matured positives since the training rows ended
    trained_positives : positives that the version learned from; None where it does not say
    regimes : bounds of what counts as few and scarce
    challenger : version that stands beside the one that answers
    """

    live: Liveness
    drift: DriftReport | None = None
    fresh: DriftReport | None = None
    profile: Profile | None = None
    schema_errors: Sequence[str] = ()
    prevalence_baseline: float | None = None
    estimated_prevalence: float | None = None
    estimated_interval: tuple[float, float] | None = None
    costs_moved: str = ""
    new_positives: int = 0
    min_new_positives: int = 30
    trained_positives: int | None = None
    regimes: RegimeSettings = field(default_factory=RegimeSettings)
    challenger: str | None = None


_PLAIN = (
    *("model", "champion", "roles", "schema_errors", "prevalence_baseline", "estimated_prevalence"),
    *("estimated_interval", "costs_moved", "alert_capacity", "new_positives", "trained_positives", "evidently"),
)
"""Fields of a snapshot that are written as they are."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything one evaluation of the live system found; the exporter, triage and the replay read the same one.

    champion : version that answers (None before the first);  roles : version -> champion, challenger or previous
    live : version -> its windows;  paired : version -> shadow against the champion on the same rows
    calibration_bound, prevalence_bound : factors from which mean score / prevalence, or the prevalence, is off either
        way
    alert_capacity : decisions 1 a day at most, of the operating point that decides; None where nothing bounds them
    events : kind of ledger entry -> (how many, when the last);  evidently : payload of its latest report, with ``at``
    """

    model: str
    now: datetime
    champion: str | None
    roles: Mapping[str, str]
    live: Mapping[str, Liveness]
    paired: Mapping[str, Paired]
    drift: DriftReport | None
    fresh: DriftReport | None
    profile: Profile | None
    schema_errors: tuple[str, ...]
    prevalence_baseline: float | None
    estimated_prevalence: float | None
    costs_moved: str
    new_positives: int
    min_new_positives: int
    calibration_bound: float
    prevalence_bound: float
    events: Mapping[str, tuple[int, datetime]] = field(default_factory=dict)
    evidently: Mapping[str, Any] | None = None
    estimated_interval: tuple[float, float] | None = None
    alert_capacity: float | None = None
    trained_positives: int | None = None
    regimes: RegimeSettings = field(default_factory=RegimeSettings)

    @property
    def evidence(self) -> Evidence | None:
        """What triage judges; None before anything answered."""
        if self.champion is None or self.champion not in self.live:
            return None
        return Evidence(
            live=self.live[self.champion],
            drift=self.drift,
            fresh=self.fresh,
            profile=self.profile,
            schema_errors=self.schema_errors,
            prevalence_baseline=self.prevalence_baseline,
            estimated_prevalence=self.estimated_prevalence,
            estimated_interval=self.estimated_interval,
            costs_moved=self.costs_moved,
            new_positives=self.new_positives,
            min_new_positives=self.min_new_positives,
            trained_positives=self.trained_positives,
            regimes=self.regimes,
            challenger=next((version for version, role in self.roles.items() if role == "challenger"), None),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the monitor saw, JSON-ready: reports by their own ``to_json``, times as ISO text."""
        reports = {
            "live": {version: live.to_json() for version, live in self.live.items()},
            "paired": {version: pair.to_json() for version, pair in self.paired.items()},
            "drift": None if self.drift is None else self.drift.to_json(),
            "fresh": None if self.fresh is None else self.fresh.to_json(),
        }
        events = {kind: {"count": count, "last": last.isoformat()} for kind, (count, last) in self.events.items()}
        written = jsonable({name: getattr(self, name) for name in _PLAIN})
        return {**written, "now": self.now.isoformat(), **reports, "events": events}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of nothing, rethreshold, recalibrate, retrain, page; why, and the numbers behind it."""

    verdict: str
    reasons: tuple[str, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    fingerprint: str = ""

    @property
    def exit_code(self) -> int:
        """The exit code of ``rareclass triage``."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Return the verdict, its reasons and evidence, and its exit code."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "reasons": list(self.reasons),
            "evidence": dict(self.evidence),
            "version": self.version,
            "fingerprint": self.fingerprint,
        }


def triage(evidence: Evidence, limits: MonitorSettings, gate: GateSettings | None = None) -> Verdict:
    """Return the verdict: the first of page, retrain, rethreshold, recalibrate whose evidence holds, else nothing."""
    gate = gate or GateSettings()
    steps = [
        ("page", broken_data(evidence)),
        ("retrain", fallen_ranking(evidence, limits)),
        ("retrain", graduated(evidence)),
    ]
    # a detector's cut-offs are rates, its scores no probabilities: nothing of them follows labels
    if not unjudged(evidence):
        steps.append(("rethreshold", [evidence.costs_moved] if evidence.costs_moved else []))
        if ranking_holds(evidence, limits):
            steps += [
                ("recalibrate", distorted_scores(evidence)),
                ("rethreshold", moved_prevalence(evidence, limits)),
                ("recalibrate", scores_off(evidence, limits, gate)),
            ]
    verdict, reasons = next(((name, why) for name, why in steps if why), ("nothing", [_quiet(evidence, limits)]))
    if verdict == "retrain" and evidence.new_positives < evidence.min_new_positives:
        few = (
            f"only {evidence.new_positives} positives since the last training, {evidence.min_new_positives} needed to "
            "learn from"
        )
        verdict, reasons = "page", [*reasons, few]
    return Verdict(verdict, tuple(reasons), summary(evidence), evidence.live.version, _fingerprint(verdict, evidence))


def broken_data(evidence: Evidence) -> list[str]:
    """Signs of damaged input, of a schema that does not fit, of labels that stopped."""
    found = list(evidence.schema_errors)
    for report, when in ((evidence.drift, ""), (evidence.fresh, " (newest rows)")):
        for column, reasons in (report.broken if report is not None else {}).items():
            text = f"column '{column}'{when}: {'; '.join(reasons)}"
            if not any(line.startswith(f"column '{column}'") for line in found):
                found.append(text)
    live = evidence.live
    if live.starved:
        found.append(
            f"labels stopped: {live.recent_coverage:.0%} of the newest {live.recent_rows} matured rows have one"
        )
    return found


def unjudged(evidence: Evidence) -> bool:
    """Whether the version is a detector that no label of the rare class has judged."""
    return evidence.profile is not None and evidence.profile.unjudged


def graduated(evidence: Evidence) -> list[str]:
    """Labels have brought the next regime, and no version of it stands beside the one that answers yet.

    A detector graduates with as many labelled rows of the rare class as a classifier needs to learn from; a classifier
    where those it learned from and the new ones together are in another regime, in which more is worth trying, and are
    so many more that it may show.
    """
    new, needed, version = evidence.new_positives, evidence.min_new_positives, evidence.live.version
    if new < needed or evidence.challenger is not None:
        return []
    if unjudged(evidence):
        return [
            f"graduate: {new} rows of the rare class are labelled since version {version}, a detector, was "
            f"trained; {needed} are needed (retrain.min_positives): "
            "a classifier can be fitted and compared with it on the same rows"
        ]
    learned = evidence.trained_positives
    if learned is None:
        return []
    before, after = (regime(positives, evidence.regimes) for positives in (learned, learned + new))
    if before == after or learned + new < GROWTH * learned:
        return []
    return [
        f"graduate: version {version} learned from {learned} rows of the rare class ({before}); with the {new} "
        f"that are labelled since there are {learned + new} ({after}). {REGIMES[after]}"
    ]


def fallen_ranking(evidence: Evidence, limits: MonitorSettings) -> list[str]:
    """The ranking fell at equal prevalence, by the 2-of-5 rule, or with a moved population and a fall beyond chance."""
    live = evidence.live
    judged = live.judged
    if not judged:
        return []
    latest = judged[-1]
    fall = _fall(latest, live.reference_ap)
    if live.degraded:
        return [
            f"average precision at the reference prevalence fell {fall} in {live.violations} of the last {live.of} "
            "windows "
            f"and in the latest"
        ]
    moved = evidence.drift.drifted if evidence.drift is not None else []
    share = evidence.drift.drifted_share if evidence.drift is not None else 0.0
    below = [window for window in judged[-2:] if window.metric("difference").high < 0]
    point = latest.metric("difference").value < -limits.max_ap_loss / 2 * live.reference_ap
    if share >= DRIFTED_SHARE and len(below) == 2 and point:
        names = ", ".join(moved[:5])
        return [f"the population moved ({names}) and average precision fell {fall}, beyond chance in two windows"]
    return []


def moved_prevalence(evidence: Evidence, limits: MonitorSettings) -> list[str]:
    """Prevalence beyond chance, beyond the bound and beyond what windows of the reference show."""
    baseline = evidence.prevalence_baseline
    if baseline is None or not math.isfinite(baseline) or baseline <= 0:
        return []
    usual = evidence.profile.window_prevalence if evidence.profile is not None else ()
    shifts = [
        _shift(window, baseline, usual, limits)
        for window in evidence.live.matured
        if _countable(window, baseline, limits)
    ]
    if shifts and shifts[-1] != 0 and (len(shifts) == 1 or shifts[-2] in (0, shifts[-1])):
        window = next(w for w in reversed(evidence.live.matured) if _countable(w, baseline, limits))
        now = window.metric("prevalence")
        return [
            f"prevalence went from {baseline:.3%} to {now.value:.3%} [{now.low:.3%}, {now.high:.3%}] "
            f"(x{now.value / baseline:.2f}); the ranking holds"
        ]
    return []


def _countable(window: Window, baseline: float, limits: MonitorSettings) -> bool:
    """Enough labels for a prevalence: as many positives as would be needed, expected or seen."""
    expected = window.labelled * baseline
    return max(expected, window.positives) >= limits.min_positives and window.coverage >= 0.5


def _shift(window: Window, baseline: float, usual: Sequence[float], limits: MonitorSettings) -> int:
    now = window.metric("prevalence")
    high = max([baseline, *usual]) if len(usual) >= 3 else baseline
    low = min([baseline, *usual]) if len(usual) >= 3 else baseline
    if now.value >= limits.prevalence_ratio * baseline and now.low > high:
        return 1
    if now.value <= baseline / limits.prevalence_ratio and now.high < low:
        return -1
    return 0


def distorted_scores(evidence: Evidence) -> list[str]:
    """The slope of the calibration line is off in the two latest judged windows: no shift of prevalence does that."""
    judged = evidence.live.judged[-2:]
    sides = [_bent(window.metric("calibration_slope")) for window in judged]
    if len(judged) < 2 or sides[0] == 0 or sides[0] != sides[1]:
        return []
    slope, ratio = judged[-1].metric("calibration_slope"), judged[-1].metric("score_ratio")
    return [
        f"scores are distorted: slope {slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}] of the calibration line, "
        f"mean score {ratio.value:.2f} times the prevalence; the ranking holds"
    ]


def _bent(slope: Estimate) -> int:
    if slope.value > SLOPE[1] and slope.low > 1:
        return 1
    return -1 if slope.value < SLOPE[0] and slope.high < 1 else 0


def ranking_holds(evidence: Evidence, limits: MonitorSettings) -> bool:
    """No violation in the latest judged window, nor a fall beyond the margin by the best guess of the last two.

    The cheap repairs keep the ranking, so they wait until it is known to be worth keeping.
    """
    latest = _latest_judged(evidence.live)
    if latest is None or math.isnan(latest.metric("difference").value):
        return True
    margin = limits.max_ap_loss * evidence.live.reference_ap
    guesses = [window.metric("difference").value for window in evidence.live.judged[-2:]]
    return not latest.violated and sum(guesses) / len(guesses) >= -margin


def scores_off(evidence: Evidence, limits: MonitorSettings, gate: GateSettings) -> list[str]:
    """Mean score against prevalence beyond the bound and beyond chance, in the two latest judged windows.

    What a moved prevalence alone does to it is no distortion: the threshold follows that.
    """
    judged = evidence.live.judged[-2:]
    if len(judged) < 2:
        return []
    sides = [_side(window.metric("score_ratio"), 1 + gate.max_calibration_error) for window in judged]
    if sides[0] == 0 or sides[0] != sides[1] or _explained(judged[-1], sides[1], evidence, limits):
        return []
    ratio = judged[-1].metric("score_ratio")
    return [
        f"mean score is {ratio.value:.2f} {between(ratio.low, ratio.high, '{:.2f}'.format)} times the prevalence in "
        "two windows; "
        f"the ranking holds"
    ]


def _explained(window: Window, side: int, evidence: Evidence, limits: MonitorSettings) -> bool:
    """Prevalence moved the other way, far enough to make the scores look off, and the slope is straight."""
    known = evidence.live.reference_prevalence
    if not math.isfinite(known) or known <= 0 or _bent(window.metric("calibration_slope")) != 0:
        return False
    moved = window.metric("prevalence").value / known
    return moved <= 1 / limits.prevalence_ratio if side > 0 else moved >= limits.prevalence_ratio


def _side(ratio: Estimate, bound: float) -> int:
    if ratio.value > bound and ratio.low > 1:
        return 1
    return -1 if ratio.value < 1 / bound and ratio.high < 1 else 0


def _latest_judged(live: Liveness) -> Window | None:
    return live.judged[-1] if live.judged else None


def _fall(window: Window, reference: float) -> str:
    d = window.metric("difference")
    return f"by {-d.value:.3f} [{-d.high:.3f}, {-d.low:.3f}] from {reference:.3f}"


def _quiet(evidence: Evidence, limits: MonitorSettings) -> str:
    live = evidence.live
    if unjudged(evidence) and evidence.challenger is not None:
        return (
            f"version {live.version} is a detector, and version {evidence.challenger} stands beside it as challenger: "
            f"labels of rows that both scored decide ({evidence.new_positives} rows of the rare class are labelled "
            "since the detector was trained; a server scores both, `rareclass score --log` the champion alone)"
        )
    if live.judged and not ranking_holds(evidence, limits):
        return (
            f"average precision fell {_fall(live.judged[-1], live.reference_ap)} in the latest window; "
            "one window is no proof"
        )
    if not live.matured:
        return "no matured rows yet: nothing to judge"
    if not live.judged:
        return f"not enough evidence: {live.matured[-1].reason}"
    return "the ranking, the prevalence, the calibration and the data hold"


def summary(evidence: Evidence) -> dict[str, Any]:
    """The numbers behind a verdict, JSON-ready."""
    live, latest = evidence.live, _latest_judged(evidence.live)
    found: dict[str, Any] = {
        "windows_judged": len(live.judged),
        "windows_violated": live.violations,
        "windows_in_view": live.of,
        "reference_ap": live.reference_ap,
        "reference_prevalence": live.reference_prevalence,
        "label_coverage": live.recent_coverage,
        "new_positives": evidence.new_positives,
        "graduates": bool(graduated(evidence)),
    }
    if latest is not None:
        for name in ("ap", "ap_reference", "difference", "prevalence", "score_ratio", "calibration_slope"):
            found[name] = latest.metric(name).to_json()
        found["window_end"] = latest.end.isoformat()
    if evidence.drift is not None and evidence.drift.judged:
        found["drifted_features"] = evidence.drift.drifted
        found["drifted_share"] = evidence.drift.drifted_share
        if evidence.drift.score is not None:
            found["score_psi"] = evidence.drift.score.psi
        found["broken"] = {name: list(reasons) for name, reasons in evidence.drift.broken.items()}
    if evidence.estimated_prevalence is not None:
        found["estimated_prevalence"] = evidence.estimated_prevalence
        found["estimated_interval"] = list(evidence.estimated_interval or ()) or None
    written: dict[str, Any] = jsonable(found)
    return written


def _fingerprint(verdict: str, evidence: Evidence) -> str:
    """Names the cause: the same verdict on the same version from the same window is the same alert."""

    latest = evidence.live.matured[-1].end.isoformat() if evidence.live.matured else "none"
    broken = sorted(evidence.drift.broken) if verdict == "page" and evidence.drift is not None else []
    text = "|".join([verdict, evidence.live.version, "" if verdict == "page" else latest, *broken])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
