"""The numbers of the monitor as Prometheus text.

Every series is made anew from the latest snapshot, so what could not be judged is absent, never 0, and a version that
left is gone. Times are exported as timestamps, not as ages: an age stops growing when the exporter does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rareclass.core.verdicts import EXIT_CODES

if TYPE_CHECKING:
    from rareclass.core.drift import DriftReport, FeatureDrift
    from rareclass.core.liveness import Liveness, Paired, Window
    from rareclass.core.triage import Snapshot, Verdict

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

METRICS: dict[str, str] = {
    "rareclass_ap_ratio": "Average precision of a judged window",
    "rareclass_ap_low_ratio": "Lower end of its interval",
    "rareclass_ap_high_ratio": "Upper end of its interval",
    "rareclass_ap_at_reference_ratio": "Average precision at the prevalence of the reference",
    "rareclass_ap_at_reference_low_ratio": "Lower end of its interval",
    "rareclass_ap_at_reference_high_ratio": "Upper end of its interval",
    "rareclass_ap_difference_ratio": "Average precision at the reference prevalence minus the reference's own",
    "rareclass_ap_difference_low_ratio": "Lower end of its interval",
    "rareclass_ap_difference_high_ratio": "Upper end of its interval",
    "rareclass_ap_estimated_ratio": "Average precision that the calibrated scores promise without labels",
    "rareclass_ap_estimated_error_ratio": "How far such estimates were off in past windows (root mean square)",
    "rareclass_ap_violated_ratio": "1 when the upper bound of the difference is below the margin",
    "rareclass_ap_violations_total": "Violated windows among the last five judged ones",
    "rareclass_ap_degraded_ratio": "1 when two of the last five windows are violated and the latest is",
    "rareclass_reference_ap_ratio": "Average precision of the reference, for one window",
    "rareclass_reference_prevalence_ratio": "Prevalence of the reference",
    "rareclass_roc_auc_ratio": "Area under the ROC curve of a judged window",
    "rareclass_precision_ratio": "Precision at the operating point",
    "rareclass_precision_low_ratio": "Lower end of its interval",
    "rareclass_precision_high_ratio": "Upper end of its interval",
    "rareclass_recall_ratio": "Recall at the operating point",
    "rareclass_recall_low_ratio": "Lower end of its interval",
    "rareclass_recall_high_ratio": "Upper end of its interval",
    "rareclass_f_beta_ratio": "F-beta at the operating point",
    "rareclass_calibration_ratio": "Mean score divided by prevalence",
    "rareclass_calibration_low_ratio": "Lower end of its interval",
    "rareclass_calibration_high_ratio": "Upper end of its interval; absent where nothing bounds it",
    "rareclass_calibration_slope_ratio": "Slope of the labels' log-odds over the scores' log-odds",
    "rareclass_prevalence_ratio": "Share of the rare class among labelled rows",
    "rareclass_prevalence_low_ratio": "Lower end of its interval",
    "rareclass_prevalence_high_ratio": "Upper end of its interval",
    "rareclass_prevalence_baseline_ratio": "Prevalence that the threshold in force was fitted at",
    "rareclass_prevalence_bound_ratio": (
        "Change of prevalence, either way, that counts as a shift (monitor.prevalence_ratio)"
    ),
    "rareclass_calibration_bound_ratio": (
        "Mean score / prevalence, either way, that counts as off (1 + gate.max_calibration_error)"
    ),
    "rareclass_prevalence_estimated_ratio": "Prevalence of the newest rows by label-shift EM, without labels",
    "rareclass_prevalence_estimated_low_ratio": "Lower end of its interval",
    "rareclass_prevalence_estimated_high_ratio": "Upper end of its interval",
    "rareclass_cost_per_row_ratio": "Cost of mistakes per labelled row, in the currency of the configuration",
    "rareclass_cost_saved_per_row_ratio": "Cost saved per labelled row against never alarming",
    "rareclass_alerts_per_day_ratio": "Decisions 1 per day",
    "rareclass_alert_capacity_ratio": "Decisions 1 per day at most (max_alerts_per_day of the point that decides)",
    "rareclass_alert_rate_ratio": "Share of rows decided 1",
    "rareclass_mean_score_ratio": "Mean score",
    "rareclass_window_rows_total": "Rows of a window",
    "rareclass_window_labelled_total": "Labelled rows of a window",
    "rareclass_window_positives_total": "Labelled positives of a window",
    "rareclass_window_start_timestamp_seconds": "Start of a window, Unix time",
    "rareclass_window_end_timestamp_seconds": "End of a window, Unix time",
    "rareclass_label_coverage_ratio": "Labelled rows / rows whose label could be seen",
    "rareclass_label_unjudgeable_ratio": "Share of rows whose label can never be seen (propensity 0)",
    "rareclass_label_delay_p95_seconds": "95th percentile of the time from prediction to label",
    "rareclass_label_last_timestamp_seconds": "When the newest label was observed, Unix time",
    "rareclass_label_recent_coverage_ratio": "Label coverage of the newest matured rows",
    "rareclass_label_starved_ratio": "1 when the newest matured rows have hardly any labels",
    "rareclass_feature_psi_ratio": "Population stability index of a feature over the reference deciles",
    "rareclass_feature_ks_ratio": "Kolmogorov-Smirnov distance of a feature to the reference",
    "rareclass_feature_missing_ratio": "Missing rate of a feature",
    "rareclass_feature_missing_reference_ratio": "Missing rate of a feature in the reference",
    "rareclass_feature_unknown_ratio": "Share of unknown categories of a feature",
    "rareclass_feature_drifted_ratio": "1 when a feature drifted beyond the bound and what is usual",
    "rareclass_feature_broken_ratio": "1 when a feature looks damaged (constant, unit, missing, unknown)",
    "rareclass_score_psi_ratio": "Population stability index of the score",
    "rareclass_score_ks_ratio": "Kolmogorov-Smirnov distance of the score",
    "rareclass_score_drifted_ratio": "1 when the score drifted",
    "rareclass_drifted_features_ratio": "Share of features that drifted",
    "rareclass_data_broken_ratio": "1 when any feature looks damaged or rows could not be scored",
    "rareclass_shadow_difference_ratio": "Average precision of a shadow minus the champion's on the same rows",
    "rareclass_shadow_difference_low_ratio": "Lower end of its interval",
    "rareclass_shadow_difference_high_ratio": "Upper end of its interval",
    "rareclass_shadow_positives_total": "Labelled positives behind the paired difference",
    "rareclass_version_role_ratio": "1 for the role a version has",
    "rareclass_verdict_ratio": "1 for the verdict of triage, 0 for the others",
    "rareclass_evidently_drifted_ratio": "Share of columns that drifted in Evidently's latest report",
    "rareclass_evidently_timestamp_seconds": "When that report was made, Unix time",
    "rareclass_ledger_entries_total": "Entries of the ledger by kind (promote, rollback, repair, outcome, page ...)",
    "rareclass_ledger_last_timestamp_seconds": "When the last entry of a kind was written, Unix time",
    "rareclass_evaluation_timestamp_seconds": "When the last evaluation succeeded, Unix time",
    "rareclass_evaluation_duration_seconds": "How long it took",
    "rareclass_evaluation_failures_total": "Evaluations that failed since the monitor started",
}
"""Every metric and what it means. Labels: model; version and window where a version and a window are meant (window is
``latest``, ``previous_1`` ... for matured ones, newest first, and ``maturing``); feature, role, verdict, kind."""

_ESTIMATES = {
    "ap": "rareclass_ap",
    "ap_reference": "rareclass_ap_at_reference",
    "difference": "rareclass_ap_difference",
    "precision": "rareclass_precision",
    "recall": "rareclass_recall",
    "score_ratio": "rareclass_calibration",
    "prevalence": "rareclass_prevalence",
}
_VALUES = {
    "roc_auc": "rareclass_roc_auc_ratio",
    "f_beta": "rareclass_f_beta_ratio",
    "calibration_slope": "rareclass_calibration_slope_ratio",
}
Sample = tuple[str, dict[str, str], float]


def render(
    snapshot: Snapshot | None,
    verdict: Verdict | None = None,
    *,
    model: str,
    duration: float = math.nan,
    failures: int = 0,
) -> bytes:
    """Return the exposition text of a snapshot (None before the first evaluation)."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import GaugeMetricFamily

    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    every: list[Sample] = [("rareclass_evaluation_failures_total", {}, float(failures))]
    every += [] if snapshot is None else list(samples(snapshot, verdict, duration))
    for name, labels, value in every:
        if value is not None and math.isfinite(value):
            found.setdefault(name, []).append(({"model": model, **labels}, value))

    class Once:
        def collect(self) -> Iterator[Any]:
            for name in (name for name in METRICS if name in found):
                keys = list(found[name][0][0])
                family = GaugeMetricFamily(name, METRICS[name], labels=keys)
                for labels, value in found[name]:
                    family.add_metric([labels[key] for key in keys], value)
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    return generate_latest(registry)


def samples(snapshot: Snapshot, verdict: Verdict | None, duration: float = math.nan) -> Iterator[Sample]:
    """Yield (name, labels, value) of everything in a snapshot; NaN where there is nothing to say."""
    yield "rareclass_evaluation_timestamp_seconds", {}, _unix(snapshot.now)
    yield "rareclass_evaluation_duration_seconds", {}, duration
    for kind, (count, last) in snapshot.events.items():
        yield "rareclass_ledger_entries_total", {"kind": kind}, float(count)
        yield "rareclass_ledger_last_timestamp_seconds", {"kind": kind}, _unix(last)
    for version, role in snapshot.roles.items():
        yield "rareclass_version_role_ratio", {"version": version, "role": role}, 1.0
    for version, live in snapshot.live.items():
        yield from _live({"version": version}, live)
    for version, pair in snapshot.paired.items():
        labels = {"version": version, "role": snapshot.roles.get(version, "shadow")}
        yield from _paired(labels, pair)
    if snapshot.champion is not None:
        yield from _data({"version": snapshot.champion}, snapshot)
    if verdict is not None:
        for name in EXIT_CODES:
            yield (
                "rareclass_verdict_ratio",
                {"version": verdict.version, "verdict": name},
                float(verdict.verdict == name),
            )


def _live(labels: Mapping[str, str], live: Liveness) -> Iterator[Sample]:
    base = dict(labels)
    judged = bool(live.judged)
    yield "rareclass_reference_ap_ratio", base, live.reference_ap
    yield "rareclass_reference_prevalence_ratio", base, live.reference_prevalence
    yield "rareclass_ap_estimated_error_ratio", base, live.estimate_error
    yield "rareclass_ap_violations_total", base, float(live.violations) if judged else math.nan
    yield "rareclass_ap_degraded_ratio", base, float(live.degraded) if judged else math.nan
    yield "rareclass_label_recent_coverage_ratio", base, live.recent_coverage
    yield "rareclass_label_starved_ratio", base, float(live.starved) if live.recent_rows else math.nan
    yield "rareclass_label_delay_p95_seconds", {**base, "window": "all"}, live.label_delay_p95
    if live.last_label is not None:
        yield "rareclass_label_last_timestamp_seconds", base, _unix(live.last_label)
    for position, window in enumerate(reversed(live.matured)):
        yield from _window({**base, "window": "latest" if position == 0 else f"previous_{position}"}, window)
    maturing = [window for window in live.windows if window.state == "maturing"]
    for position, window in enumerate(reversed(maturing)):
        yield from _window({**base, "window": "maturing" if position == 0 else f"maturing_{position}"}, window)


def _window(labels: dict[str, str], window: Window) -> Iterator[Sample]:
    for key, name in _ESTIMATES.items():
        estimate = window.metric(key)
        yield f"{name}_ratio", labels, estimate.value
        yield f"{name}_low_ratio", labels, estimate.low
        yield f"{name}_high_ratio", labels, estimate.high
    for key, name in _VALUES.items():
        yield name, labels, window.metric(key).value
    yield "rareclass_cost_per_row_ratio", labels, window.metric("cost_per_1000").value / 1000
    yield "rareclass_cost_saved_per_row_ratio", labels, window.metric("saving_per_1000").value / 1000
    yield "rareclass_ap_violated_ratio", labels, float(window.violated) if window.judged else math.nan
    yield "rareclass_ap_estimated_ratio", labels, window.estimated_ap
    yield "rareclass_alerts_per_day_ratio", labels, window.alerts_per_day
    yield "rareclass_alert_rate_ratio", labels, window.alert_rate
    yield "rareclass_mean_score_ratio", labels, window.mean_score
    yield "rareclass_window_rows_total", labels, float(window.rows)
    yield "rareclass_window_labelled_total", labels, float(window.labelled)
    yield "rareclass_window_positives_total", labels, float(window.positives)
    yield "rareclass_window_start_timestamp_seconds", labels, _unix(window.start)
    yield "rareclass_window_end_timestamp_seconds", labels, _unix(window.end)
    yield "rareclass_label_coverage_ratio", labels, window.coverage
    yield "rareclass_label_unjudgeable_ratio", labels, window.unjudgeable
    yield "rareclass_label_delay_p95_seconds", labels, window.label_delay_p95


def _paired(labels: dict[str, str], pair: Paired) -> Iterator[Sample]:
    yield "rareclass_shadow_positives_total", labels, float(pair.difference.positives)
    if pair.judged:
        yield "rareclass_shadow_difference_ratio", labels, pair.difference.value
        yield "rareclass_shadow_difference_low_ratio", labels, pair.difference.low
        yield "rareclass_shadow_difference_high_ratio", labels, pair.difference.high


def _data(labels: dict[str, str], snapshot: Snapshot) -> Iterator[Sample]:
    for name, value in (
        ("rareclass_prevalence_baseline_ratio", snapshot.prevalence_baseline),
        ("rareclass_prevalence_bound_ratio", snapshot.prevalence_bound),
        ("rareclass_calibration_bound_ratio", snapshot.calibration_bound),
        ("rareclass_prevalence_estimated_ratio", snapshot.estimated_prevalence),
        ("rareclass_alert_capacity_ratio", snapshot.alert_capacity),
    ):
        if value is not None:
            yield name, labels, value
    if snapshot.estimated_interval is not None:
        yield "rareclass_prevalence_estimated_low_ratio", labels, snapshot.estimated_interval[0]
        yield "rareclass_prevalence_estimated_high_ratio", labels, snapshot.estimated_interval[1]
    if snapshot.evidently is not None:
        yield "rareclass_evidently_drifted_ratio", labels, float(snapshot.evidently["share"])
        yield "rareclass_evidently_timestamp_seconds", labels, _unix(datetime.fromisoformat(snapshot.evidently["at"]))
    report = snapshot.drift
    if report is not None and report.judged:
        yield "rareclass_drifted_features_ratio", labels, report.drifted_share
        for feature in report.features:
            yield from _feature({**labels, "feature": feature.name}, feature)
        if report.score is not None:
            yield "rareclass_score_psi_ratio", labels, report.score.psi
            yield "rareclass_score_ks_ratio", labels, report.score.ks
            yield "rareclass_score_drifted_ratio", labels, float(report.score.drifted)
    if snapshot.schema_errors or _judged(report) or _judged(snapshot.fresh):
        reports = [one for one in (report, snapshot.fresh) if one is not None]
        broken = bool(snapshot.schema_errors) or any(one.broken for one in reports)
        yield "rareclass_data_broken_ratio", labels, float(broken)


def _feature(labels: dict[str, str], feature: FeatureDrift) -> Iterator[Sample]:
    yield "rareclass_feature_psi_ratio", labels, feature.psi
    yield "rareclass_feature_ks_ratio", labels, feature.ks
    yield "rareclass_feature_missing_ratio", labels, feature.missing
    yield "rareclass_feature_missing_reference_ratio", labels, feature.missing_reference
    yield "rareclass_feature_unknown_ratio", labels, feature.unknown
    yield "rareclass_feature_drifted_ratio", labels, float(feature.drifted)
    yield "rareclass_feature_broken_ratio", labels, float(bool(feature.broken))


def _judged(report: DriftReport | None) -> bool:
    return report is not None and report.judged


def _unix(moment: Any) -> float:

    return float((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp())
