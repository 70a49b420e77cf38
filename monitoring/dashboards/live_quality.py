"""Live quality: is the ranking still what it was, and what do decisions cost?"""

from __future__ import annotations

from monitoring.dashboards.parts import alerts, band, champion, counts, every, lines, made, number, states

LATEST, MATURING = 'window="latest"', 'window="maturing"'
ALERTS = (
    "RareclassApDegraded",
    "RareclassCalibrationOff",
    "RareclassPrevalenceShifted",
    "RareclassLabelStarvation",
    "RareclassEvaluationStale",
    "RareclassNeedsAPerson",
    "RareclassShadowBetter",
)


def build() -> str:
    """Return the dashboard's JSON."""
    ap = lines(
        "Average precision: mature, maturing, estimated",
        [
            (champion("rareclass_ap_ratio", LATEST), "mature"),
            (champion("rareclass_ap_low_ratio", LATEST), "low"),
            (champion("rareclass_ap_high_ratio", LATEST), "high"),
            (champion("rareclass_ap_ratio", MATURING), "maturing"),
            (champion("rareclass_ap_estimated_ratio", MATURING), "estimated without labels"),
            (champion("rareclass_window_positives_total", LATEST), "positives"),
        ],
        says="Of the version that answers. Mature: every row of the window had its time to be labelled. Maturing: "
        "early labels only, often too high. Estimated: from the scores alone. Few positives make wide intervals; "
        "below monitor.min_positives nothing is drawn.",
        span=24,
        height=10,
        low=0,
    )
    at_reference = lines(
        "Average precision at the reference's prevalence",
        [
            (champion("rareclass_ap_at_reference_ratio", LATEST), "live"),
            (champion("rareclass_ap_at_reference_low_ratio", LATEST), "low"),
            (champion("rareclass_ap_at_reference_high_ratio", LATEST), "high"),
            (champion("rareclass_reference_ap_ratio"), "reference"),
        ],
        says="Average precision moves with prevalence alone; this one does not. It is what alerts and triage judge.",
        low=0,
    )
    prevalence = lines(
        "Prevalence",
        [
            (champion("rareclass_prevalence_ratio", LATEST), "labelled"),
            (champion("rareclass_prevalence_low_ratio", LATEST), "low"),
            (champion("rareclass_prevalence_high_ratio", LATEST), "high"),
            (champion("rareclass_prevalence_baseline_ratio"), "when the threshold was fitted"),
            (champion("rareclass_prevalence_estimated_ratio"), "estimated without labels"),
        ],
        says="Share of the rare class.",
        low=0,
    )
    calibration = lines(
        "Calibration: mean score / prevalence",
        [
            (champion("rareclass_calibration_ratio", LATEST), "ratio"),
            (champion("rareclass_calibration_low_ratio", LATEST), "low"),
            (champion("rareclass_calibration_high_ratio", LATEST), "high"),
            (champion("rareclass_calibration_slope_ratio", LATEST), "slope"),
        ],
        says="1 is calibrated. Slope 1 with a ratio off is a shift, a slope off is a distortion.",
        unit="short",
    )
    decisions = lines(
        "Decisions: precision, recall, F-beta",
        [
            (champion("rareclass_precision_ratio", LATEST), "precision"),
            (champion("rareclass_recall_ratio", LATEST), "recall"),
            (champion("rareclass_f_beta_ratio", LATEST), "F-beta"),
        ],
        says="At the operating point, newest mature window.",
        low=0,
        high=1,
    )
    return made(
        "rareclass / Live quality",
        "rareclass-live-quality",
        "Quality on late labels, with intervals and the positives behind them.",
        [
            (
                "Now",
                [
                    number(
                        "Version that answers",
                        [(every("rareclass_version_role_ratio", 'role="champion"'), "{{model}} version {{version}}")],
                        says="From the registry.",
                        named=True,
                    ),
                    number(
                        "Violated windows of the last 5",
                        [(champion("rareclass_ap_violations_total"), "{{model}}")],
                        says="Two, with the latest among them, raise the alert.",
                    ),
                    number(
                        "Positives in the newest mature window",
                        [(champion("rareclass_window_positives_total", LATEST), "{{model}}")],
                        says="A relative loss of 10 % needs about 200 to be seen.",
                    ),
                    number(
                        "Cost saved per 1000 rows",
                        [(f"1000 * {champion('rareclass_cost_saved_per_row_ratio', LATEST)}", "{{model}}")],
                        says="Against never alarming, in the currency of the configuration.",
                    ),
                ],
            ),
            (
                "Ranking",
                [
                    counts(band(ap, "low", "high"), "positives"),
                    band(at_reference, "low", "high"),
                    band(prevalence, "low", "high"),
                ],
            ),
            (
                "Scores and decisions",
                [
                    band(calibration, "low", "high"),
                    decisions,
                    lines(
                        "Alerts per day",
                        [
                            (champion("rareclass_alerts_per_day_ratio", LATEST), "mature"),
                            (champion("rareclass_alerts_per_day_ratio", MATURING), "maturing"),
                            (champion("rareclass_alert_capacity_ratio"), "at most"),
                        ],
                        says="Rows decided 1, and the most that somebody can look at (max_alerts_per_day of the point "
                        "that decides, where one is set).",
                        unit="short",
                        low=0,
                    ),
                    lines(
                        "Mean score",
                        [
                            (champion("rareclass_mean_score_ratio", LATEST), "mature"),
                            (champion("rareclass_mean_score_ratio", MATURING), "maturing"),
                        ],
                        says="Of all rows, labelled or not.",
                        low=0,
                    ),
                ],
            ),
            (
                "Labels and evaluation",
                [
                    lines(
                        "Label coverage",
                        [
                            (champion("rareclass_label_coverage_ratio", LATEST), "newest mature window"),
                            (champion("rareclass_label_recent_coverage_ratio"), "newest mature rows"),
                            (champion("rareclass_label_coverage_ratio", MATURING), "maturing"),
                        ],
                        says="Labelled rows / rows whose label could be seen.",
                        low=0,
                        high=1,
                    ),
                    lines(
                        "Label delay, p95",
                        [(champion("rareclass_label_delay_p95_seconds", 'window="all"'), "p95")],
                        says="From prediction to label.",
                        unit="s",
                        low=0,
                    ),
                    lines(
                        "Evaluation",
                        [
                            (every("rareclass_evaluation_duration_seconds", by="model"), "duration"),
                            (f"time() - {every('rareclass_evaluation_timestamp_seconds', by='model')}", "age"),
                            (every("rareclass_evaluation_failures_total", by="model"), "failures"),
                        ],
                        says="The monitor's own health.",
                        unit="s",
                        low=0,
                    ),
                    states(
                        "Alerts on quality",
                        [(alerts(ALERTS), "{{alertname}}")],
                        says="Red fires, yellow is pending.",
                        span=12,
                        height=8,
                    ),
                ],
            ),
        ],
    )
