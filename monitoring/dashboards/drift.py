"""Drift: do the rows still look like those the model learned from?"""

from __future__ import annotations

from monitoring.dashboards.parts import alerts, every, lines, made, number, states

ALERTS = (
    "RareclassFeatureDrift",
    "RareclassPopulationDrift",
    "RareclassScoreDrift",
    "RareclassDataBroken",
    "RareclassEvidentlyDrift",
    "RareclassEvidentlyStale",
)
FEATURE = "model, feature"


def top(name: str) -> str:
    return f"topk(10, {every(name, by=FEATURE)})"


def build() -> str:
    """Return the dashboard's JSON."""
    return made(
        "rareclass / Drift",
        "rareclass-drift",
        "Newest rows against the reference profile of the version that answers. Needs no labels.",
        [
            (
                "Now",
                [
                    states(
                        "Alerts on drift",
                        [(alerts(ALERTS), "{{alertname}}")],
                        says="Red fires, yellow is pending.",
                        span=12,
                        height=8,
                    ),
                    number(
                        "Features drifted",
                        [(f"100 * {every('rareclass_drifted_features_ratio')}", "{{model}} version {{version}}")],
                        says="Share of features beyond monitor.psi and beyond the usual.",
                        unit="percent",
                        span=4,
                    ),
                    number(
                        "Evidently's share",
                        [(f"100 * {every('rareclass_evidently_drifted_ratio')}", "{{model}} version {{version}}")],
                        says="Of its latest scheduled report.",
                        unit="percent",
                        span=4,
                    ),
                    number(
                        "Data damaged",
                        [(every("rareclass_data_broken_ratio"), "{{model}} version {{version}}")],
                        says="1: a column looks broken; nothing is retrained meanwhile.",
                        span=4,
                    ),
                ],
            ),
            (
                "Features",
                [
                    lines(
                        "Population stability index, ten highest",
                        [(top("rareclass_feature_psi_ratio"), "{{feature}}")],
                        says="Over the deciles of the reference.",
                        unit="short",
                        low=0,
                    ),
                    lines(
                        "Kolmogorov-Smirnov distance, ten highest",
                        [(top("rareclass_feature_ks_ratio"), "{{feature}}")],
                        says="Largest difference of the distribution functions.",
                        unit="short",
                        low=0,
                    ),
                    lines(
                        "Missing values: rise against the reference",
                        [
                            (
                                (
                                    f"{top('rareclass_feature_missing_ratio')} - on (model, feature) "
                                    f"{every('rareclass_feature_missing_reference_ratio', by=FEATURE)}"
                                ),
                                "{{feature}}",
                            )
                        ],
                        says="From monitor.missing_jump on the column counts as damaged.",
                    ),
                    lines(
                        "Unknown categories",
                        [(top("rareclass_feature_unknown_ratio"), "{{feature}}")],
                        says="Share of values the model never saw.",
                        low=0,
                    ),
                    states(
                        "Drifted features",
                        [(every("rareclass_feature_drifted_ratio", by=FEATURE), "{{feature}}")],
                        says="Red: drifted.",
                        span=12,
                        height=9,
                    ),
                    states(
                        "Damaged features",
                        [(every("rareclass_feature_broken_ratio", by=FEATURE), "{{feature}}")],
                        says="Red: constant, other unit, missing or unknown values.",
                        span=12,
                        height=9,
                    ),
                ],
            ),
            (
                "Scores and prevalence",
                [
                    lines(
                        "Score",
                        [
                            (every("rareclass_score_psi_ratio"), "PSI"),
                            (every("rareclass_score_ks_ratio"), "KS distance"),
                        ],
                        says="Distribution of the scores against the reference.",
                        unit="short",
                        low=0,
                    ),
                    lines(
                        "Prevalence without labels",
                        [
                            (every("rareclass_prevalence_estimated_ratio"), "estimated"),
                            (every("rareclass_prevalence_baseline_ratio"), "when the threshold was fitted"),
                        ],
                        says="Label-shift EM on the newest scores.",
                        low=0,
                    ),
                ],
            ),
        ],
    )
