"""The report of a run that no label chose, or whose test rows hold no row of the rare class: what is known, and that it
is little.
"""

from __future__ import annotations

import json

from rareclass.adapters.reports.page import Details, capital, count, interval, page, percent


def detection_report(details: Details, headline: str) -> str:
    """Return the HTML of such a run, from the values that `services.training.results.full` gathers (JSON-ready)."""
    summary = details["summary"]
    return page(
        "detection.html",
        **details,
        headline=headline,
        labels=labels_sentence(summary),
        tiles=_tiles(details),
        sentences=_sentences(summary),
        config_text=json.dumps(details["config"], indent=1),
        percent=percent,
        count=count,
    )


def labels_sentence(summary: Details) -> str:
    """Say how many labels there are, and that none has judged."""
    known = sum(summary["positives"][part] for part in ("train", "validation", "test"))
    if not summary["labelled"]:
        return "No row is labelled: no label has judged this model."
    if not known:
        return "All labelled rows are normal: no label of the rare class has judged this model."
    tested = summary["positives"]["test"]
    if not tested:
        return (
            f"{count(known)} row(s) of the rare class are known, none of them among the test rows: "
            "no label has judged this model."
        )
    return (
        f"{count(known)} row(s) of the rare class are known, {count(tested)} of them among the test rows; "
        "none has chosen anything."
    )


def transfer_sentence(lent: Details) -> str:
    """Say what a related domain lent, how far it is from the target, and what became of it."""
    reason = f"{capital(lent['reason'])}."
    reason += f" But {lent['note']}." if lent.get("note") else ""
    if "left_out" in lent:
        return f"{reason} {lent['source']} was not read."
    missing = lent["missing"]
    if "rows" not in lent:
        without = f", read without {', '.join(missing[:5])}, which the target does not have" if missing else ""
        return f"{reason} The model {lent['source']} lent its scores{without}."
    apart = lent["apart"]
    told = "" if apart is None else f" Its rows are told from the target's with ROC-AUC {apart:.2f} (.5: not at all)."
    lost = f" It has no {', '.join(missing[:5])}." if missing else ""
    twins = f" {count(lent['twins'])} rows that equal one of the target were left out." if lent["twins"] else ""
    if lent["known_entities"]:
        twins += f" {count(lent['known_entities'])} rows of entities that the target knows were left out."
    return (
        f"{reason} {lent['source']} lent {count(lent['rows'])} rows, {count(lent['positives'])} of them rare."
        f"{told}{lost}{twins}"
    )


def _tiles(details: Details) -> list[dict[str, str]]:
    point = details["points"][details["evaluation"]["primary"]]
    alerts, rate = point["alerts_per_day"], point["objective_value"]["value"]
    found, metrics = details["summary"]["detection"], details["summary"]["metrics"]
    tiles = [
        {"name": "Average precision", "value": "not known", "note": "no label of the rare class among the test rows"}
        if metrics["ap"] is None
        else {
            "name": "Average precision",
            "value": f"{metrics['ap']:.3f}",
            "note": (
                f"{interval(metrics['ap'], metrics['ap_low'], metrics['ap_high'])}, "
                f"{details['summary']['positives']['test']} positives"
            ),
        },
        {"name": "Threshold", "value": f"{point['value']:.6g}", "note": point["objective"]},
    ]
    if found:
        tiles += [
            {
                "name": "Normal rows flagged",
                "value": percent(rate),
                "note": f"from {count(found['held_out'])} held-out rows",
            },
            {
                "name": "Alerts a day",
                "value": "–" if alerts is None else f"{alerts:.3g}",
                "note": "no time column" if alerts is None else "at the pace of the held-out rows",
            },
        ]
    return tiles


def _sentences(summary: Details) -> list[tuple[str, str]]:
    """What can be said without a label."""
    found = summary["detection"]
    lent = summary.get("transfer")
    helped = [("Did the neighbour's labels help?", transfer_sentence(lent))] if lent else []
    if not found:
        return [
            *helped,
            ("What was tried?", f"{summary['selected']}, chosen on held-out rows that hold the known positives."),
        ]
    members = ", ".join(f"{name} ({count(rows)} rows)" for name, rows in found["reference"].items())
    return [
        (
            "What is it?",
            (
                f"A fixed ensemble of detectors: {members}. Without labels nothing can be chosen honestly. "
                "Its score is 1 - p: the share of normal rows that are less unusual, no probability."
            ),
        ),
        ("Do they agree?", f"{capital(found['agreement_line'])}."),
        (
            "Are later rows like those it learned from?",
            (f"{capital(found['uniformity_line'])}. The rate of alerts holds as long as they are."),
        ),
        *helped,
    ]
