"""Serving: does the server answer, fast, and is every answer logged?"""

from __future__ import annotations

from monitoring.dashboards.parts import HERE, alerts, every, lines, made, number, series, states

ALERTS = (
    "RareclassServingDown",
    "RareclassLatencyHigh",
    "RareclassErrorsHigh",
    "RareclassSpoolFilling",
    "RareclassLogSampled",
    "RareclassNotLogged",
    "RareclassRefreshFailing",
)


def rate(name: str, by: str, matchers: str = "") -> str:
    return f"sum by ({by}) (rate({series(name, matchers)}[$__rate_interval]))"


def quantile(share: float, name: str) -> str:
    return f"histogram_quantile({share}, {rate(name, 'le')})"


def build() -> str:
    """Return the dashboard's JSON."""
    decided, one = "rareclass_serve_decisions_total", 'decision="1"'
    return made(
        "rareclass / Serving",
        "rareclass-serving",
        "The server of the champion and its prediction log.",
        [
            (
                "Now",
                [
                    number(
                        "Version that answers",
                        [
                            (
                                every("rareclass_serve_champion_info", by="model, version, point"),
                                "version {{version}}, {{point}}",
                            )
                        ],
                        says="Replicas disagree only while a version rolls out.",
                        named=True,
                    ),
                    number(
                        "Cut-off",
                        [(every("rareclass_serve_threshold_ratio", by="model"), "{{model}}")],
                        says="Score from which a row is decided 1.",
                    ),
                    number(
                        "Failed requests",
                        [(f"100 * max(rareclass:serve_errors:ratio_rate5m{{{HERE}}})", "5xx of all")],
                        says="Five minutes.",
                        unit="percent",
                    ),
                    number(
                        "Spool filled",
                        [(f"100 * max(rareclass:serve_spool:fill_ratio{{{HERE}}})", "of its limit")],
                        says="At the limit rows decided 0 are sampled.",
                        unit="percent",
                    ),
                ],
            ),
            (
                "Requests",
                [
                    lines(
                        "Requests by status",
                        [(rate("rareclass_serve_requests_total", "code"), "{{code}}")],
                        says="400 is bad input, 503 is a log that cannot be written.",
                        unit="reqps",
                        low=0,
                    ),
                    lines(
                        "Latency",
                        [
                            (quantile(0.5, "rareclass_serve_latency_seconds_bucket"), "p50"),
                            (quantile(0.99, "rareclass_serve_latency_seconds_bucket"), "p99"),
                        ],
                        says="From request to answer, with the log written.",
                        unit="s",
                        low=0,
                    ),
                    lines(
                        "Rows",
                        [(rate("rareclass_serve_rows_total", "version"), "version {{version}}")],
                        says="Rows answered.",
                        unit="cps",
                        low=0,
                    ),
                    lines(
                        "Share decided 1",
                        [(f"{rate(decided, 'version', one)} / {rate(decided, 'version')}", "version {{version}}")],
                        says="Moves with prevalence, drift or a new threshold.",
                        low=0,
                    ),
                    lines(
                        "Score quantiles",
                        [
                            (quantile(share, "rareclass_serve_score_ratio_bucket"), f"{share:.1%}")
                            for share in (0.5, 0.9, 0.99, 0.999)
                        ],
                        says="Of the scores answered.",
                        low=0,
                    ),
                    lines(
                        "Unknown categories and clock skew",
                        [
                            (rate("rareclass_serve_unknown_categories_total", "model"), "unknown categories"),
                            (rate("rareclass_serve_clock_skew_total", "model"), "event times in the future"),
                        ],
                        says="Values per second.",
                        unit="cps",
                        low=0,
                    ),
                ],
            ),
            (
                "Prediction log and shadows",
                [
                    lines(
                        "Spool",
                        [
                            (every("rareclass_serve_spool_bytes", by="model"), "not shipped"),
                            (every("rareclass_serve_spool_limit_bytes", by="model"), "limit"),
                        ],
                        says="Grows while the store is away.",
                        unit="bytes",
                        low=0,
                    ),
                    lines(
                        "Left out and refused",
                        [
                            (rate("rareclass_serve_sampled_rows_total", "model"), "rows sampled away"),
                            (rate("rareclass_serve_unlogged_requests_total", "model"), "requests refused"),
                        ],
                        says="Should be 0.",
                        unit="cps",
                        low=0,
                    ),
                    lines(
                        "Shadow rows by outcome",
                        [
                            (rate("rareclass_serve_shadow_rows_total", "outcome"), "{{outcome}}"),
                            (rate("rareclass_serve_shadow_restarts_total", "model"), "restarts"),
                        ],
                        says="Challenger and previous champion, after the answer is sent.",
                        unit="cps",
                        low=0,
                    ),
                    lines(
                        "Failed look-ups",
                        [(rate("rareclass_serve_refresh_failures_total", "model"), "registry or operating point")],
                        says="While they fail, promotions and new thresholds do not arrive.",
                        unit="cps",
                        low=0,
                    ),
                ],
            ),
            (
                "Alerts",
                [
                    states(
                        "Alerts on serving", [(alerts(ALERTS), "{{alertname}}")], says="Red fires, yellow is pending."
                    )
                ],
            ),
        ],
        since="now-6h",
    )
