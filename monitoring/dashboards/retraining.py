"""Retraining and promotions: what triage said, what was done, and whether it helped."""

from __future__ import annotations

from monitoring.dashboards.parts import band, every, lines, made, never_empty, number, states

PAIR = "model, version, role"


def since(kind: str) -> str:
    last = every("rareclass_ledger_last_timestamp_seconds", f'kind="{kind}"', "model")
    return f"time() - {last}"


def build() -> str:
    """Return the dashboard's JSON."""
    difference = lines(
        "Shadow minus champion, average precision on the same rows",
        [
            (every("rareclass_shadow_difference_ratio", by=PAIR), "difference"),
            (every("rareclass_shadow_difference_low_ratio", by=PAIR), "low"),
            (every("rareclass_shadow_difference_high_ratio", by=PAIR), "high"),
        ],
        says="Paired, on matured labels. Above 0 beyond the band: the shadow ranks better. Challengers wait for that; "
        "a previous champion that shows it is brought back.",
    )
    ledger = "rareclass_ledger_entries_total"
    return made(
        "rareclass / Retraining and promotions",
        "rareclass-retraining",
        "Verdicts, repairs, promotions and rollbacks; promotions and rollbacks are annotations on every dashboard.",
        [
            (
                "Now",
                [
                    number(
                        "Versions and their roles",
                        [(every("rareclass_version_role_ratio", by=PAIR), "{{role}}: {{model}} version {{version}}")],
                        says="Aliases of the registry.",
                        span=12,
                    ),
                    number(
                        "Since the last promotion",
                        [(since("promote"), "{{model}}")],
                        says="By the ledger's clock.",
                        unit="s",
                    ),
                    number(
                        "Since the last rollback",
                        [(since("rollback"), "{{model}}")],
                        says="Empty without any.",
                        unit="s",
                    ),
                ],
            ),
            (
                "What triage says",
                [
                    states(
                        "Verdict",
                        [(every("rareclass_verdict_ratio", by="verdict"), "{{verdict}}")],
                        says="The cheapest repair that fits the evidence.",
                    ),
                    states(
                        "Repair wanted by an alert",
                        [
                            (
                                never_empty(
                                    (
                                        'max by (action) (ALERTS{namespace=~"$namespace", model=~"$model", '
                                        'alertstate="firing", action=~"triage|page"})'
                                    ),
                                    "action",
                                ),
                                "{{action}}",
                            )
                        ],
                        says="Alerts never say retrain; triage does.",
                        height=5,
                    ),
                ],
            ),
            (
                "What was done",
                [
                    lines(
                        "Entries of the ledger",
                        [(every(ledger, by="kind"), "{{kind}}")],
                        says="Who did what and why: `rareclass history`.",
                        unit="short",
                        low=0,
                    ),
                    lines(
                        "Violated windows by version",
                        [
                            (
                                every("rareclass_ap_violations_total", by=PAIR.replace(", role", "")),
                                "version {{version}}",
                            )
                        ],
                        says="Of the last five judged ones.",
                        unit="short",
                        low=0,
                        high=5,
                    ),
                ],
            ),
            (
                "Whether it helped",
                [
                    band(difference, "low", "high"),
                    lines(
                        "Positives behind the difference",
                        [(every("rareclass_shadow_positives_total", by=PAIR), "{{role}} version {{version}}")],
                        says="Labelled positives that both scored.",
                        unit="short",
                        low=0,
                    ),
                    lines(
                        "Average precision at the reference's prevalence, by version",
                        [(every("rareclass_ap_at_reference_ratio", 'window="latest"'), "version {{version}}")],
                        says="Champion, challenger and previous, each on the rows it scored.",
                        low=0,
                        span=24,
                    ),
                ],
            ),
        ],
        since="now-90d",
    )
