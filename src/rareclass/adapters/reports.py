"""The training report: one self-contained page that a manager can read, verdict first (Jinja template, plotly curves)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Details = Mapping[str, Any]
_NARROW = "\u202f"
"""A narrow space at which no line breaks: numbers stay whole on a phone."""
_BLUE, _GREY, _ORANGE = "#0d74ce", "#8b8d98", "#e5730a"


def training_report(details: Details) -> str:
    """Return the HTML of a run from the values that `services.publish.full` gathers (JSON-ready)."""
    from markupsafe import Markup

    charts = [{"html": Markup(_html(figure)), "caption": caption} for figure, caption in _charts(details)]  # noqa: S704
    summary = details["summary"]
    return _page(
        "training.html",
        **details,
        one_in=count(1 / summary["prevalence"]["all"]),
        headline=_headline(summary, details["gate"]),
        tiles=_tiles(details),
        money_sentence=_money_sentence(details["evaluation"]["money"]),
        money_lines=_money_lines(details["evaluation"]["money"]),
        charts=charts,
        point_lines=_point_lines(details["evaluation"]),
        thinned_lines=_thinned_lines(details),
        point_notes=[f"{name}: {point['message']}" for name, point in details["points"].items() if point["message"]],
        selection_sentence=selection_sentence(summary),
        config_text=json.dumps(details["config"], indent=1),
        percent=percent, count=count, interval=interval, estimate=estimate,
    )  # fmt: skip


def _page(template: str, **values: Any) -> str:
    """Render a template with plotly's script inside, so that the page needs nothing from the network."""
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rareclass.adapters"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    script = Markup(f"<script>{get_plotlyjs()}</script>")  # noqa: S704
    return environment.get_template(template).render(**values, plotly=script)


def percent(value: float | None) -> str:
    """A share as text with three digits that matter."""
    return "–" if value is None else f"{100 * value:.3g}{_NARROW}%"


def count(value: float | None) -> str:
    """A number of rows, in groups of three digits."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.0f}".replace(",", _NARROW)


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A value with its interval."""
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f},{_NARROW}{high:.3f}]"


def estimate(found: Mapping[str, Any] | None) -> str:
    """An estimate with its interval, or how little it rests on."""
    if found is None or found["value"] is None:
        return "–"
    text = interval(found["value"], found["low"], found["high"])
    return text if found["low"] is not None else f"{text} ({found['positives']} positives)"


def selection_sentence(summary: Details) -> str:
    """Say what won and whether that is significant."""
    winner = next((each for each in summary["candidates"] if each["name"] == summary["selected"]), None)
    number = len(summary["candidates"])
    tried = "One candidate was finished. " if number == 1 else f"{number} candidates on the same held-out rows. "
    if number == 1:
        return f"{tried}A larger search.seconds tries more."
    if winner is None or winner["name"] == summary["candidates"][0]["name"]:
        return f"{tried}Nothing beat candidate 0, {summary['selected']}, significantly, so it is kept."
    return tried + (
        f"{summary['selected']} was selected; against candidate 0 its AP differs by "
        f"{interval(winner['difference']['value'], winner['difference']['low'], winner['difference']['high'])}"
        f" ({'significant' if winner['significant'] else 'not significant'}, corrected for the number compared)."
    )


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
    metrics, summary, untuned = details["evaluation"]["metrics"], details["summary"], details["evaluation"]["untuned"]
    prevalence = summary["prevalence"]["test"]
    lift = metrics["ap"]["value"] / prevalence if metrics["ap"]["value"] and prevalence else None
    tiles = [
        {"name": "Average precision", "value": f"{metrics['ap']['value']:.3f}", "note": f"{_range(metrics['ap'])}; prevalence {prevalence:.3g}" + (f", {lift:.0f} times that" if lift else "")},
        {"name": "Positives found (recall)", "value": percent(metrics["recall"]["value"]), "note": f"{_range(metrics['recall'])} of {count(summary['positives']['test'])}"},
        {"name": "Alerts that are right (precision)", "value": percent(metrics["precision"]["value"]), "note": _range(metrics["precision"])},
        {"name": "Threshold", "value": f"{summary['metrics']['threshold']:.4f}", "note": "the untuned 0.5 would find " + percent(_value(untuned, "recall"))},
    ]  # fmt: skip
    return tiles


def _value(metrics: Details, name: str) -> float | None:
    return metrics[name]["value"] if name in metrics else None


def _range(found: Details) -> str:
    return f"{found['positives']} positives" if found["low"] is None else f"[{found['low']:.3f}, {found['high']:.3f}]"


def _money_sentence(money: Details) -> str:
    saved = money["saving_vs_nothing"]
    note = f" ({money['note']})" if money["note"] else ""
    return f"Against doing nothing, the decisions save {_amount(saved)} {money['currency']} on the test rows{note}."


def _amount(found: Details) -> str:
    if found["low"] is None:
        return count(found["value"])
    return f"{count(found['value'])} [{count(found['low'])},{_NARROW}{count(found['high'])}]"


def _money_lines(money: Details) -> list[dict[str, str]]:
    names = {
        "cost": "these decisions",
        "cost_nothing": "do nothing",
        "cost_everything": "flag everything",
        "per_1000_rows": "these decisions, per 1000 rows",
    }
    return [
        {"name": text, "value": count(money[key]["value"]), "interval": "–" if money[key]["low"] is None else f"{count(money[key]['low'])} … {count(money[key]['high'])}"}
        for key, text in names.items()
    ]  # fmt: skip


def _point_lines(evaluation: Details) -> list[dict[str, Any]]:
    wanted = ("precision", "recall", "f1", "f2", "mcc")
    named = [(name, evaluation["thresholds"][name], metrics) for name, metrics in evaluation["points"].items()]
    return [
        {"name": name, "cells": [f"{threshold:.4f}", *(estimate(metrics.get(key)) for key in wanted), _amount(metrics["cost"]) if "cost" in metrics else "–"]}
        for name, threshold, metrics in [*named, ("untuned 0.5", 0.5, evaluation["untuned"])]
    ]  # fmt: skip


def _thinned_lines(details: Details) -> list[dict[str, Any]]:
    """The same decisions at the natural prevalence and on a test thinned to a ratio; empty unless that was asked for."""
    evaluation, ratio = details["evaluation"], details["config"]["evaluate"]["test_ratio"]
    if not evaluation["thinned"]:
        return []
    wanted = ("ap", "recall", "precision", "f2", "fp")
    odds = 1 / details["summary"]["prevalence"]["test"] - 1
    parts = ((f"natural, 1:{count(odds)}", evaluation["metrics"]), (f"thinned, 1:{ratio:g}", evaluation["thinned"]))
    return [
        {"name": name, "cells": [_amount(found[key]) if key == "fp" else estimate(found[key]) for key in wanted]}
        for name, found in parts
    ]


def _charts(details: Details) -> list[tuple[Any, str]]:
    import plotly.graph_objects as go

    evaluation, summary = details["evaluation"], details["summary"]
    prevalence = summary["prevalence"]["test"]
    pr = go.Figure()
    pr.add_scatter(x=[0, 1], y=[prevalence] * 2, mode="lines", name="no skill", line={"color": _GREY, "dash": "dot"})
    pr.add_scatter(
        x=evaluation["curves"]["pr"]["recall"],
        y=evaluation["curves"]["pr"]["precision"],
        mode="lines",
        name="model",
        line={"color": _BLUE},
    )
    point = evaluation["points"][evaluation["primary"]]
    pr.add_scatter(
        x=[_value(point, "recall")],
        y=[_value(point, "precision")],
        mode="markers",
        name="threshold",
        marker={"size": 11, "color": _ORANGE},
    )
    roc = go.Figure()
    roc.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="no skill", line={"color": _GREY, "dash": "dot"})
    roc.add_scatter(
        x=evaluation["curves"]["roc"]["fpr"],
        y=evaluation["curves"]["roc"]["tpr"],
        mode="lines",
        name="model",
        line={"color": _BLUE},
    )
    bins = evaluation["calibration"]
    calibration = go.Figure()
    top = max([each[key] or 0 for each in bins for key in ("mean_score", "rate")] + [prevalence]) * 1.05
    calibration.add_scatter(x=[0, top], y=[0, top], mode="lines", name="perfect", line={"color": _GREY, "dash": "dot"})
    calibration.add_scatter(
        x=[each["mean_score"] for each in bins],
        y=[each["rate"] for each in bins],
        mode="lines+markers",
        name="model",
        line={"color": _BLUE},
    )
    return [
        (_styled(pr, "Precision and recall", "recall", "precision"), "Each point of the line is one threshold; the dot is the one in use."),
        (_styled(roc, "ROC", "false positive rate", "recall"), "Shown for comparison; where positives are rare, precision and recall say more."),
        (_styled(calibration, "Calibration", "mean score", "observed rate"), "On the dotted line a score of 0.2 means 20 of 100."),
        (_styled(_candidates(summary), "Candidates", "held-out average precision", ""), "Bars are intervals; candidates are compared paired, on the same rows."),
    ]  # fmt: skip


def _candidates(summary: Details) -> Any:
    import plotly.graph_objects as go

    found = [each for each in summary["candidates"] if each["ap"] is not None][:12][::-1]
    low = [each["ap"] - (each["ap"] if each["ap_low"] is None else each["ap_low"]) for each in found]
    high = [(each["ap"] if each["ap_high"] is None else each["ap_high"]) - each["ap"] for each in found]
    colours = [_ORANGE if each["name"] == summary["selected"] else _BLUE for each in found]
    names = [each["name"] if len(each["name"]) <= 28 else each["name"][:27] + "…" for each in found]
    figure = go.Figure()
    figure.add_scatter(
        x=[each["ap"] for each in found], y=names, mode="markers", marker={"color": colours, "size": 9},
        error_x={"type": "data", "array": high, "arrayminus": low, "color": _GREY}, showlegend=False,
    )  # fmt: skip
    return figure


def _styled(figure: Any, title: str, across: str, up: str) -> Any:
    axis = {"gridcolor": "rgba(139,141,152,.25)", "zeroline": False, "automargin": True}
    return figure.update_layout(
        title=title, xaxis={"title": across, **axis}, yaxis={"title": up, **axis}, height=360, font={"color": "#8b8d98", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", margin={"l": 45, "r": 15, "t": 45, "b": 45},
        legend={"orientation": "h", "y": -0.22},
    )  # fmt: skip


def _html(figure: Any) -> str:
    config = {"responsive": True, "displayModeBar": False}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


# --- replay --------------------------------------------------------------------------------------------------------------


def replay_report(told: Details) -> str:
    """Return the HTML timeline of a replay from the values of replay.json."""
    from markupsafe import Markup

    return _page(
        "replay.html",
        **told,
        chart=Markup(_html(_timeline(told))),  # noqa: S704
        percent=percent, count=count, interval=interval,
    )  # fmt: skip


_ACTION_COLOURS = {"retrain": _ORANGE, "promote": "#18794e", "rollback": "#b3261e", "page": "#b3261e"}


def _timeline(told: Details) -> Any:
    from plotly.subplots import make_subplots

    periods = told["periods"]
    middle = [each["start"] for each in periods]
    titles = ("Average precision", "Prevalence", "Cost of a step", "Features that drifted")
    figure = make_subplots(
        rows=4,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.06,
        subplot_titles=titles,
        row_heights=[0.4, 0.2, 0.2, 0.2],
    )
    low = [_or(each["ap"], 0) - _or(each["ap_low"], _or(each["ap"], 0)) for each in periods]
    high = [_or(each["ap_high"], _or(each["ap"], 0)) - _or(each["ap"], 0) for each in periods]
    bars = {"type": "data", "array": high, "arrayminus": low, "color": "rgba(13,116,206,.35)"}
    figure.add_scatter(
        x=middle,
        y=[each["ap"] for each in periods],
        name="with labels",
        mode="lines+markers",
        line={"color": _BLUE},
        error_y=bars,
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=middle,
        y=[each["ap_estimated"] for each in periods],
        name="estimated without labels",
        mode="lines",
        line={"color": _GREY, "dash": "dot"},
        row=1,
        col=1,
    )
    figure.add_bar(
        x=middle,
        y=[each["prevalence"] for each in periods],
        name="prevalence",
        marker={"color": _BLUE},
        showlegend=False,
        row=2,
        col=1,
    )
    figure.add_bar(
        x=middle,
        y=[each["cost"] for each in periods],
        name="cost",
        marker={"color": _BLUE},
        showlegend=False,
        row=3,
        col=1,
    )
    figure.add_bar(
        x=middle,
        y=[len(each["drifted_features"]) for each in periods],
        name="drifted",
        marker={"color": _BLUE},
        showlegend=False,
        row=4,
        col=1,
    )
    for action in told["actions"]:
        colour = _ACTION_COLOURS.get(action["kind"], _GREY)
        figure.add_vline(
            x=_plain_time(action["time"]),
            line={
                "color": colour,
                "dash": "dash" if action["outcome"] in ("refused", "rejected", "already") else "solid",
                "width": 1.5,
            },
        )
    axis = {"gridcolor": "rgba(139,141,152,.25)", "zeroline": False}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure.update_layout(
        height=820, font={"color": "#8b8d98", "size": 12}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 45, "r": 10, "t": 40, "b": 40}, legend={"orientation": "h", "y": -0.06},
    )  # fmt: skip


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _plain_time(text: str) -> str:
    """A moment without its zone, as the periods are written."""
    return text.removesuffix("Z").split("+")[0]
