"""The training report: one self-contained page that a manager can read, verdict first, the rest folded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rareclass.adapters.reports import charts
from rareclass.adapters.reports.detection import detection_report, transfer_sentence
from rareclass.adapters.reports.page import (
    NARROW,
    Details,
    amount,
    capital,
    count,
    estimate,
    html,
    interval,
    page,
    percent,
    precise,
)

_RANKING = {"ap": "average precision", "ap_lift": "average precision / prevalence", "roc_auc": "ROC-AUC"}
_PROBABILITIES = {
    "brier": "Brier score",
    "log_loss": "log loss",
    "ece": "expected calibration error",
    "mean_score_ratio": "mean score / prevalence",
}
_DECISIONS = {
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "f2": "F2",
    "mcc": "MCC",
    "gmean": "G-mean",
    "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1 (accuracy)",
}


def training_report(details: Details) -> str:
    """Return the HTML of a run from the values that `services.training.results.full` gathers (JSON-ready)."""
    summary, evaluation = details["summary"], details["evaluation"]
    if summary["detection"] or not summary["positives"]["test"]:
        return detection_report(details, _headline(summary, details["gate"]))
    return page(
        "training.html",
        **details,
        one_in=count(1 / summary["prevalence"]["all"]),
        headline=_headline(summary, details["gate"]),
        tiles=_tiles(details),
        sentences=_sentences(details),
        costs_note=evaluation["money"]["note"],
        money_lines=_money_lines(evaluation["money"]),
        first_charts=_drawn(details, _FIRST),
        more_charts=_drawn(details, _MORE),
        importance_lines=[_importance_line(each) for each in details["importance"]],
        point_cards=_point_cards(details),
        ranking_lines=_metric_lines(evaluation["metrics"], {**_RANKING, **_PROBABILITIES}),
        decision_head=[*evaluation["points"], "untuned 0.5"],
        decision_lines=_decision_lines(evaluation),
        slices=(summary["cross_fitting"] or evaluation)["slices"],
        thinned_lines=_thinned_lines(details),
        config_text=json.dumps(details["config"], indent=1),
        percent=percent,
        count=count,
        interval=interval,
        estimate=estimate,
        precise=precise,
    )


_Chart = tuple[Callable[[Details], Any], Callable[[Details], bool], str]

_FIRST: dict[str, _Chart] = {
    "pr": (
        charts.precision_recall,
        lambda d: True,
        "Each point of the line is one threshold; the orange dot is the one in use.",
    ),
    "tradeoff": (
        charts.tradeoff,
        lambda d: True,
        (
            "Orange: the threshold in use, shaded by where it would have been tuned on other rows of the same kind. "
            "Blue shade: interval of the cost."
        ),
    ),
    "importance": (
        charts.importance,
        lambda d: bool(d["importance"]),
        (
            "▲ higher values raise the score, ▼ lower it, ⇅ both; grey where the interval holds 0. "
            "Features that say the same share what they say. Measured on the test rows after the verdict; "
            "nothing was chosen by it."
        ),
    ),
    "calibration": (
        charts.calibration,
        lambda d: True,
        "On the dotted line a score of 0.2 means 20 of 100. Each dot holds equally many positives.",
    ),
}
_MORE: dict[str, _Chart] = {
    "candidates": (
        charts.candidates,
        lambda d: True,
        "Bars are intervals; candidates are compared paired, on the same rows.",
    ),
    "roc": (charts.roc, lambda d: True, "For comparison; where positives are rare, precision and recall say more."),
    "prequential": (
        charts.prequential,
        lambda d: bool(d["summary"]["prequential"]),
        "The recipe was chosen on some of these rows: the windows tell how steady it is, not how good.",
    ),
    "periods": (
        charts.periods,
        lambda d: bool(d["periods"]),
        "Colours: the part of the split that most rows of the period are in.",
    ),
}


def _drawn(details: Details, wanted: dict[str, _Chart]) -> dict[str, dict[str, Any]]:
    from markupsafe import Markup

    return {
        name: {"html": Markup(html(draw(details))), "caption": caption}  # noqa: S704
        for name, (draw, there, caption) in wanted.items()
        if there(details)
    }


# --- what is said first ------------------------------------------------------------------------------------------


def _headline(summary: Details, gate: Details) -> str:
    said = {"approve": "Approved", "reject": "Rejected"}.get(gate["verdict"], "Not enough evidence")
    mode = {"dry_run": " (dry run: registered anyway)", "disabled": " (the gate is disabled)"}.get(gate["mode"], "")
    version = (
        f"registered as version {summary['version']}"
        if summary["version"]
        else "not registered; the run keeps its model"
    )
    role = f", now {summary['role']}" if summary.get("role") else ""
    return f"{said}{mode}: {version}{role}."


def _tiles(details: Details) -> list[dict[str, str]]:
    evaluation, summary = details["evaluation"], details["summary"]
    metrics, prevalence, money = evaluation["metrics"], summary["prevalence"]["test"], evaluation["money"]
    point = details["points"][evaluation["primary"]]
    lift = metrics["ap"]["value"] / prevalence if metrics["ap"]["value"] and prevalence else None
    untuned = percent(evaluation["untuned"]["recall"]["value"])
    return [
        {
            "name": "Average precision",
            "value": f"{metrics['ap']['value']:.3f}",
            "note": f"{_range(metrics['ap'])}; "
            + (f"{lift:.0f} times the prevalence" if lift else f"prevalence {prevalence:.3g}"),
        },
        {
            "name": "Positives found (recall)",
            "value": percent(metrics["recall"]["value"]),
            "note": f"{_range(metrics['recall'])} of {count(summary['positives']['test'])}",
        },
        {
            "name": "Alerts that are right (precision)",
            "value": percent(metrics["precision"]["value"]),
            "note": _range(metrics["precision"]),
        },
        {"name": "Threshold", "value": f"{point['value']:.4f}", "note": f"{_span(point)}; 0.5 would find {untuned}"},
        {
            "name": f"Saved against doing nothing ({money['currency']})",
            "value": count(money["saving_vs_nothing"]["value"]),
            "note": _money_range(money["saving_vs_nothing"])
            + ("" if money["given"] else "; costs invented, see below"),
        },
    ]


def _range(found: Details) -> str:
    return f"{found['positives']} positives" if found["low"] is None else f"[{found['low']:.3f}, {found['high']:.3f}]"


def _span(point: Details) -> str:
    return "set by hand" if point["low"] is None else f"[{point['low']:.4f}, {point['high']:.4f}]"


def _money_range(found: Details) -> str:
    if found["low"] is None:
        return f"{found['positives']} positives"
    return f"[{count(found['low'])},{NARROW}{count(found['high'])}] on the test rows"


def _sentences(details: Details) -> list[tuple[str, str]]:
    """Questions that everybody asks, each answered in a sentence."""
    summary = details["summary"]
    asked, _, answer = summary["should_resample"]["sentence"].partition("? ")
    found = [("What won?", selection_sentence(summary)), (f"{asked}?", answer)]
    if lent := summary.get("transfer"):
        found.append(("Did the neighbour's labels help?", transfer_sentence(lent)))
    if crossed := summary["cross_fitting"]:
        found.insert(0, ("What was judged?", _judged_by(crossed)))
    drives = [each for each in details["importance"] if (each["ap_lost"]["low"] or 0) > 0][:3]
    if drives:
        found.append(("What drives it?", "; ".join(_drive(each) for each in drives) + "."))
    elif details["importance"]:
        found.append(
            ("What drives it?", "No feature alone: scrambling any one of them costs less than these rows can show.")
        )
    return found


def _judged_by(crossed: Details) -> str:
    """Say that the verdict is by cross-fitting, on how many rows, and what it may flatter."""
    reason, ap = crossed["reason"], estimate(crossed["metrics"]["ap"])
    return (
        f"{capital(reason)} hold {count(crossed['positives'])} positives, and their average precision "
        f"is {ap}. The recipe was "
        "chosen on part of these rows, which flatters a little. The slices are of these rows too; "
        "the other figures of this page are those of the test rows."
    )


def _drive(each: Details) -> str:
    low, high = (
        (min(each["at"], key=lambda pair: pair[1]), max(each["at"], key=lambda pair: pair[1]))
        if each["at"]
        else (None, None)
    )
    way = {
        "up": "higher values raise the score",
        "down": "higher values lower the score",
        "turns": f"the score is highest near {high and high[0]} and lowest near {low and low[0]}",
        "category": f"the score is highest for {high and high[0]}",
        "none": "the score hardly moves with it alone",
    }[each["direction"]]
    return f"{each['feature']} ({estimate(each['ap_lost'])} average precision lost without it; {way})"


def selection_sentence(summary: Details) -> str:
    """Say what won and whether that is significant."""
    winner = next((each for each in summary["candidates"] if each["name"] == summary["selected"]), None)
    number = len(summary["candidates"])
    if summary["forced"]:
        return (
            f"{summary['selected']} was forced (search.only). Nothing was tried beside it, so nothing says whether it "
            "beats the untouched learner."
        )
    tried = "One candidate was finished. " if number == 1 else f"{number} candidates on the same held-out rows. "
    if number == 1:
        return f"{tried}A larger search.seconds tries more."
    if winner is None or winner["name"] == summary["candidates"][0]["name"]:
        return f"{tried}Nothing beat candidate 0, {summary['selected']}, significantly, so it is kept."
    return tried + (
        f"{summary['selected']} was selected; against candidate 0 its {summary['selected_by']} differs by "
        f"{interval(winner['difference']['value'], winner['difference']['low'], winner['difference']['high'])}"
        f" ({'significant' if winner['significant'] else 'not significant'}, corrected for the number compared)."
    )


# --- tables ------------------------------------------------------------------------------------------------------


def _money_lines(money: Details) -> list[dict[str, str]]:
    names = {
        "cost": "these decisions",
        "cost_nothing": "do nothing",
        "cost_everything": "flag everything",
        "saving_vs_nothing": "saved against doing nothing",
        "saving_vs_everything": "saved against flagging everything",
        "per_1000_rows": "these decisions, per 1000 rows",
    }
    return [
        {
            "name": text,
            "value": count(money[key]["value"]),
            "interval": "–"
            if money[key]["low"] is None
            else f"{count(money[key]['low'])} … {count(money[key]['high'])}",
        }
        for key, text in names.items()
    ]


def _importance_line(each: Details) -> dict[str, Any]:
    words = {"up": "▲ raises", "down": "▼ lowers", "turns": "⇅ turns", "category": "by category", "none": "–"}
    effect = each["effect"]
    ratio = "–" if effect["value"] is None else f"×{NARROW}{precise(effect)}"
    at = ", ".join(f"{value}: {percent(score)}" for value, score in each["at"])
    return {"name": each["feature"], "cells": [estimate(each["ap_lost"]), words[each["direction"]], ratio], "at": at}


def _point_cards(details: Details) -> list[dict[str, Any]]:
    """One card per operating point, and one for the threshold of somebody who tunes none: confusion, metrics, cost."""
    evaluation = details["evaluation"]
    cards = [
        _card(name, evaluation["thresholds"][name], metrics, details["points"].get(name), name == evaluation["primary"])
        for name, metrics in evaluation["points"].items()
    ]
    return [*cards, _card("untuned", 0.5, evaluation["untuned"], None, False)]


def _card(name: str, threshold: float, metrics: Details, point: Details | None, primary: bool) -> dict[str, Any]:
    wanted = {"precision": "precision", "recall": "recall", "f1": "F1", "f2": "F2", "mcc": "MCC"}
    return {
        "name": name + (" (decides)" if primary else ""),
        "threshold": f"{threshold:.4f}" + ("" if point is None else f" {_span(point)}"),
        "cells": {key: amount(metrics[key]) for key in ("tp", "fp", "fn", "tn")},
        "lines": [(text, estimate(metrics[key])) for key, text in wanted.items()] + [("cost", amount(metrics["cost"]))],
        "note": _tuned(point) if point else "what somebody who tunes no threshold gets",
    }


def _tuned(point: Details) -> str:
    """What the threshold did where it was tuned, and on rows that it was not tuned on."""
    honest = ", ".join(f"{name} {estimate(found)}" for name, found in point["crossfitted"].items())
    said = f"When it was tuned, on held-out rows: {point['message']}"
    return f"{said}. Tuned on some of them and judged on the others: {honest}" if honest else said


def _metric_lines(metrics: Details, names: dict[str, str]) -> list[tuple[str, str]]:
    return [(text, precise(metrics[key])) for key, text in names.items() if key in metrics]


def _decision_lines(evaluation: Details) -> list[tuple[str, list[str]]]:
    points = [*evaluation["points"].values(), evaluation["untuned"]]
    return [(text, [estimate(point[key]) for point in points]) for key, text in _DECISIONS.items()]


def _thinned_lines(details: Details) -> list[dict[str, Any]]:
    """The same decisions at the natural prevalence and on a test thinned to a ratio;
    empty unless that was asked for.
    """
    evaluation, ratio = details["evaluation"], details["config"]["evaluate"]["test_ratio"]
    if not evaluation["thinned"]:
        return []
    wanted = ("ap", "recall", "precision", "f2", "fp")
    odds = 1 / details["summary"]["prevalence"]["test"] - 1
    parts = ((f"natural, 1:{count(odds)}", evaluation["metrics"]), (f"thinned, 1:{ratio:g}", evaluation["thinned"]))
    return [
        {"name": name, "cells": [amount(found[key]) if key == "fp" else estimate(found[key]) for key in wanted]}
        for name, found in parts
    ]
