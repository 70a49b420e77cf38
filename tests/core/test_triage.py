"""What happened against what triage says, on streams with a known cause."""

from __future__ import annotations

import dataclasses
import functools
from datetime import timedelta

import numpy as np
import pytest

import live_rows
from rareclass.config import RegimeSettings
from rareclass.core import triage
from rareclass.core.profile import Profile, reference_profile
from rareclass.core.verdicts import EXIT_CODES


@functools.cache
def _reference() -> Profile:
    return live_rows.profile()


@pytest.fixture(scope="module")
def reference() -> Profile:
    return _reference()


@functools.cache
def _stream(cause: str, seed: int):
    return live_rows.stream(cause, seed=seed)


@functools.cache
def _verdict(cause: str, seed: int, day: int) -> triage.Verdict:
    frame, x = _stream(cause, seed)
    now = live_rows.START + timedelta(days=day)
    return live_rows.judge(frame, x, _reference(), now, renamed=cause == "renamed")


def verdicts(cause: str, *, seed: int = 1, days=(29, 33, *range(36, 64, 3))) -> list[tuple[int, triage.Verdict]]:
    """Verdicts of some days, from the first full set of windows on."""
    return [(day, _verdict(cause, seed, day)) for day in days]


@pytest.mark.parametrize(
    ("cause", "expected", "within"),
    [
        ("prevalence up", "rethreshold", 21),
        ("prevalence down", "rethreshold", 21),
        ("new pattern", "retrain", 23),
        ("gradual pattern", "retrain", 28),
        ("scores off", "recalibrate", 23),
        ("unit", "page", 2),
        ("constant", "page", 3),
        ("missing", "page", 3),
        ("renamed", "page", 3),
        ("labels stop", "page", 14),
    ],
)
def test_the_cause_gets_its_verdict_in_time_and_nothing_else_comes_before_it(cause, expected, within):
    first = None
    for day in (33, *range(36, 64, 3)):
        verdict = _verdict(cause, 1, day)
        assert day > 35 or verdict.verdict == "nothing"
        if verdict.verdict != "nothing":
            first = (day, verdict)
            break
    assert first is not None
    assert first[1].verdict == expected, first[1].reasons
    assert first[0] - 35 <= within
    assert first[1].exit_code == EXIT_CODES[expected]


@pytest.mark.parametrize("cause", ["nothing", "covariate shift"])
@pytest.mark.parametrize("seed", [1, 2])
def test_quiet_streams_and_harmless_shifts_raise_nothing(cause, seed):
    found = verdicts(cause, seed=seed, days=(36, 42, 47, 54, 61))
    assert [(day, verdict.reasons) for day, verdict in found if verdict.verdict != "nothing"] == []


def test_a_harmless_shift_is_seen_as_drift():
    found = dict(verdicts("covariate shift", days=(61,)))
    assert set(found[61].evidence["drifted_features"]) == {"age", "balance"}


@pytest.mark.parametrize("cause", ["unit", "constant", "missing", "renamed"])
def test_broken_data_never_leads_to_a_retrain_however_far_the_ranking_fell(cause):
    found = [verdict.verdict for _, verdict in verdicts(cause, seed=3, days=(37, 45, 58))]
    assert set(found) == {"page"}


def test_a_fallen_ranking_without_new_positives_pages_instead_of_retraining(reference):
    frame, _ = live_rows.stream("new pattern")
    now = live_rows.START + timedelta(days=61)
    live = live_rows.liveness.evaluate(frame, now=now, version="1", profile=reference, settings=live_rows.settings())
    few = triage.Evidence(live=live, profile=reference, new_positives=3, min_new_positives=30)
    verdict = triage.triage(few, live_rows.LIMITS)
    assert verdict.verdict == "page"
    assert "only 3 positives" in verdict.reasons[-1]


def test_schema_errors_and_moved_costs_have_their_verdicts(reference):
    frame, _ = live_rows.stream("nothing")
    now = live_rows.START + timedelta(days=61)
    live = live_rows.liveness.evaluate(frame, now=now, version="1", profile=reference, settings=live_rows.settings())
    gone = triage.Evidence(live=live, profile=reference, schema_errors=("column 'amount' no longer arrives",))
    assert triage.triage(gone, live_rows.LIMITS).verdict == "page"
    costs = triage.Evidence(live=live, profile=reference, costs_moved="costs moved: false_negative from 10 to 100")
    verdict = triage.triage(costs, live_rows.LIMITS)
    assert (verdict.verdict, verdict.exit_code) == ("rethreshold", 10)


def test_after_a_rethreshold_the_same_prevalence_is_no_news(reference):
    frame, _ = live_rows.stream("prevalence up")
    now = live_rows.START + timedelta(days=61)
    live = live_rows.liveness.evaluate(frame, now=now, version="1", profile=reference, settings=live_rows.settings())
    told = triage.Evidence(live=live, profile=reference, prevalence_baseline=reference.prevalence)
    assert triage.moved_prevalence(told, live_rows.LIMITS) != []
    known = live.latest.metric("prevalence").value
    handled = triage.Evidence(live=live, profile=reference, prevalence_baseline=known)
    assert triage.moved_prevalence(handled, live_rows.LIMITS) == []


def test_the_fingerprint_names_the_cause_and_not_the_moment():
    assert _verdict("missing", 3, 45).fingerprint == _verdict("missing", 3, 58).fingerprint
    assert _verdict("missing", 3, 45).fingerprint != _verdict("new pattern", 1, 60).fingerprint


def test_a_verdict_is_json():
    import json

    verdict = _verdict("new pattern", 1, 60)
    text = json.dumps(verdict.to_json(), allow_nan=False)
    assert json.loads(text)["exit_code"] == 12


def test_a_detector_that_met_enough_labelled_positives_graduates_and_is_never_retuned_by_labels():
    rows = live_rows.history()
    nothing_known = dataclasses.replace(rows, y=np.zeros_like(rows.y))
    unjudged = reference_profile(nothing_known, live_rows.score(rows.x), threshold=live_rows.THRESHOLD)
    frame, x = _stream("scores off", 1)  # would be recalibrated, were the scores probabilities
    now = live_rows.START + timedelta(days=45)
    early = live_rows.judge(frame.assign(label=frame["label"].where(frame["label"] != 1)), x, unjudged, now)
    late = live_rows.judge(frame, x, unjudged, now)
    assert early.verdict not in ("rethreshold", "recalibrate", "retrain")
    assert late.verdict == "retrain"
    assert late.reasons[0].startswith("graduate: ")
    assert "since version 1, a detector, was trained" in late.reasons[0]
    beside = live_rows.judge(frame, x, unjudged, now, challenger="2")
    assert beside.verdict not in ("rethreshold", "recalibrate", "retrain")
    assert "version 2 stands beside it as challenger" in beside.reasons[-1]


@pytest.mark.parametrize(
    ("learned", "new", "expected"),
    [
        (12, 30, "12 rows of the rare class (few); with the 30 that are labelled since there are 42 (scarce)"),
        (200, 120, "200 rows of the rare class (scarce); with the 120 that are labelled since there are 320 (ample)"),
        (290, 40, None),  # ample, but hardly more than it learned from
        (12, 29, None),  # fewer than a retrain needs
        (40, 100, None),  # still scarce
        (300, 900, None),  # nothing comes after ample
        (None, 900, None),  # an older version does not say what it learned from
    ],
)
def test_a_classifier_graduates_when_labels_have_brought_the_next_regime(reference, learned, new, expected):
    frame, _ = live_rows.stream("nothing")
    now = live_rows.START + timedelta(days=61)
    live = live_rows.liveness.evaluate(frame, now=now, version="1", profile=reference, settings=live_rows.settings())
    grown = triage.Evidence(live=live, profile=reference, new_positives=new, trained_positives=learned)
    verdict = triage.triage(grown, live_rows.LIMITS)
    assert (verdict.verdict, expected is None) in (("retrain", False), ("nothing", True))
    assert expected is None or expected in verdict.reasons[0]
    beside = dataclasses.replace(grown, challenger="2")
    assert triage.triage(beside, live_rows.LIMITS).verdict == "nothing"


def test_who_counts_few_otherwise_graduates_otherwise(reference):
    frame, _ = live_rows.stream("nothing")
    now = live_rows.START + timedelta(days=61)
    live = live_rows.liveness.evaluate(frame, now=now, version="1", profile=reference, settings=live_rows.settings())
    bounds = RegimeSettings(few=100, scarce=1000)
    grown = triage.Evidence(live=live, profile=reference, new_positives=50, trained_positives=60, regimes=bounds)
    assert triage.graduated(grown)[0].startswith("graduate: version 1 learned from 60 rows of the rare class (few)")
    assert triage.graduated(dataclasses.replace(grown, regimes=RegimeSettings())) == []
