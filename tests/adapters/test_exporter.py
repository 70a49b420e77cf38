"""The Prometheus exposition of a snapshot."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import UTC, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

import live_rows
from rareclass.adapters import exporter
from rareclass.core import drift, liveness, triage

NOW = (live_rows.START + timedelta(days=56)).replace(tzinfo=UTC)


def make_snapshot(thin: int = 1) -> triage.Snapshot:
    reference = live_rows.profile()
    frame, x = live_rows.stream("nothing", days=56, per_day=400)
    frame, x = frame[::thin], x[::thin]
    live = liveness.evaluate(
        frame.assign(version="7"), now=NOW, version="7", profile=reference, settings=live_rows.settings()
    )
    shadow = frame.assign(shadow_score=frame["score"], shadow_decision=frame["decision"])
    newest = (frame["ts"] > NOW.replace(tzinfo=None) - timedelta(days=7)).to_numpy()
    report = drift.compare(reference, x[newest], frame["score"].to_numpy()[newest])
    return triage.Snapshot(
        model="live",
        now=NOW,
        champion="7",
        roles={"7": "champion", "6": "previous"},
        live={"7": live},
        paired={"6": liveness.paired(shadow, now=NOW, settings=live_rows.settings())},
        drift=report,
        fresh=report,
        profile=reference,
        schema_errors=(),
        prevalence_baseline=reference.prevalence,
        estimated_prevalence=0.011,
        estimated_interval=(0.008, 0.015),
        costs_moved="",
        new_positives=100,
        min_new_positives=30,
        calibration_bound=1.5,
        prevalence_bound=1.5,
        events={"promote": (2, NOW - timedelta(days=20)), "rollback": (1, NOW - timedelta(days=3))},
        alert_capacity=5.0,
        evidently={"share": 0.25, "version": "7", "at": NOW.isoformat()},
    )


@pytest.fixture(scope="module")
def snapshot() -> triage.Snapshot:
    return make_snapshot()


def read(text: bytes) -> dict[str, list]:
    return {family.name: family.samples for family in text_string_to_metric_families(text.decode())}


def test_every_series_has_a_known_name_a_unit_suffix_and_finite_values(snapshot):
    verdict = triage.triage(snapshot.evidence, live_rows.LIMITS)
    found = read(exporter.render(snapshot, verdict, model="live", duration=0.5, failures=2))
    names = {sample.name for samples in found.values() for sample in samples}
    assert names <= set(exporter.METRICS)
    assert all(re.fullmatch(r"rareclass_\w+_(ratio|seconds|total)", name) for name in exporter.METRICS)
    for samples in found.values():
        for sample in samples:
            assert sample.labels["model"] == "live"
            assert math.isfinite(sample.value)


def test_all_documented_metrics_can_appear(snapshot):
    verdict = triage.triage(snapshot.evidence, live_rows.LIMITS)
    text = exporter.render(snapshot, verdict, model="live", duration=0.5).decode()
    missing = [name for name in exporter.METRICS if f"\n{name}{{" not in text]
    assert missing == []


def test_values_are_those_of_the_snapshot(snapshot):
    found = read(exporter.render(snapshot, model="live"))
    window = snapshot.live["7"].latest
    (ap,) = [one for one in found["rareclass_ap_ratio"] if one.labels["window"] == "latest"]
    assert ap.value == pytest.approx(window.metric("ap").value)
    (low,) = [one for one in found["rareclass_ap_at_reference_low_ratio"] if one.labels["window"] == "latest"]
    assert low.value == pytest.approx(window.metric("ap_reference").low)
    windows = {one.labels["window"] for one in found["rareclass_ap_ratio"]}
    assert windows == {"latest", "previous_1", "previous_2", "previous_3", "previous_4"}
    assert found["rareclass_evaluation_timestamp_seconds"][0].value == NOW.timestamp()


def test_series_with_too_few_positives_are_dropped_and_never_zero():
    thin = make_snapshot(thin=40)
    found = read(exporter.render(thin, model="live"))
    for name in (
        "rareclass_ap_ratio",
        "rareclass_recall_ratio",
        "rareclass_ap_violated_ratio",
        "rareclass_ap_degraded_ratio",
        "rareclass_shadow_difference_ratio",
    ):
        assert name not in found
    assert "rareclass_window_positives_total" in found
    assert "rareclass_window_rows_total" in found


def test_before_the_first_evaluation_only_failures_are_exported():
    found = read(exporter.render(None, model="live", failures=3))
    assert list(found) == ["rareclass_evaluation_failures_total"] or list(found) == ["rareclass_evaluation_failures"]
    assert b'rareclass_evaluation_failures_total{model="live"} 3.0' in exporter.render(None, model="live", failures=3)


def test_the_ledger_and_evidently_are_exported_with_their_times(snapshot):
    found = read(exporter.render(snapshot, model="live"))
    counts = {one.labels["kind"]: one.value for one in found["rareclass_ledger_entries_total"]}
    assert counts == {"promote": 2, "rollback": 1}
    times = {one.labels["kind"]: one.value for one in found["rareclass_ledger_last_timestamp_seconds"]}
    assert times["rollback"] == (NOW - timedelta(days=3)).timestamp()
    assert [one.value for one in found["rareclass_evidently_drifted_ratio"]] == [0.25]
    assert [one.value for one in found["rareclass_evidently_timestamp_seconds"]] == [NOW.timestamp()]
    without = read(exporter.render(replace(snapshot, evidently=None), model="live"))
    assert "rareclass_evidently_drifted_ratio" not in without


def test_broken_data_is_one_flag_and_one_per_column(snapshot):
    broken = replace(snapshot.drift.features[0], broken=("stuck",))
    report = drift.DriftReport(snapshot.drift.rows, True, (broken, *snapshot.drift.features[1:]), snapshot.drift.score)
    found = read(exporter.render(replace(snapshot, drift=report), model="live"))
    assert found["rareclass_data_broken_ratio"][0].value == 1
    flags = {one.labels["feature"]: one.value for one in found["rareclass_feature_broken_ratio"]}
    assert flags[broken.name] == 1
    assert sum(flags.values()) == 1
    gone = read(exporter.render(replace(snapshot, schema_errors=("column 'x' no longer arrives",)), model="live"))
    assert gone["rareclass_data_broken_ratio"][0].value == 1
