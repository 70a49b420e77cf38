"""The figures of the training report."""

from __future__ import annotations

from typing import Any

from rareclass.adapters.reports.page import BLUE, GREEN, GREY, ORANGE, Details, styled

_SHOWN = 12
_POWERS = {"exponentformat": "power", "dtick": 1}
_SHADE = "rgba(13,116,206,.15)"


def precision_recall(details: Details) -> Any:
    """Precision against recall, with the thresholds of all operating points on the line."""
    evaluation = details["evaluation"]
    prevalence = details["summary"]["prevalence"]["test"]
    figure = _figure()
    figure.add_scatter(x=[0, 1], y=[prevalence] * 2, name="no skill", **_dotted())
    curve = evaluation["curves"]["pr"]
    figure.add_scatter(x=curve["recall"], y=curve["precision"], mode="lines", name="model", line={"color": BLUE})
    points = evaluation["points"]
    names = [evaluation["primary"], *(name for name in points if name != evaluation["primary"])]
    figure.add_scatter(
        x=[points[name]["recall"]["value"] for name in names],
        y=[points[name]["precision"]["value"] for name in names],
        text=names,
        mode="markers" if len(names) == 1 else "markers+text",
        textposition="top right",
        name="thresholds",
        marker={"size": [11] + [8] * (len(names) - 1), "color": [ORANGE] + [GREY] * (len(names) - 1)},
    )
    return styled(figure, "Precision and recall", "recall", "precision")


def roc(details: Details) -> Any:
    """The ROC curve."""
    figure = _figure()
    figure.add_scatter(x=[0, 1], y=[0, 1], name="no skill", **_dotted())
    curve = details["evaluation"]["curves"]["roc"]
    figure.add_scatter(x=curve["fpr"], y=curve["tpr"], mode="lines", name="model", line={"color": BLUE})
    return styled(figure, "ROC", "false positive rate", "recall")


def calibration(details: Details) -> Any:
    """Observed rate against mean score in bins of equally many positives, with Wilson intervals; both on log scales."""
    bins = [cell for cell in details["evaluation"]["calibration"] if cell["positives"] and cell["mean_score"]]
    ends = [cell[key] for cell in bins for key in ("mean_score", "rate_low", "rate_high") if cell[key]]
    low, high = (min(ends), max(ends)) if ends else (0.01, 1.0)
    figure = _figure()
    figure.add_scatter(x=[low, high], y=[low, high], name="perfect", **_dotted())
    figure.add_scatter(
        x=[cell["mean_score"] for cell in bins],
        y=[cell["rate"] for cell in bins],
        mode="lines+markers",
        name="model",
        line={"color": BLUE},
        error_y=_bars([(cell["rate"], cell["rate_low"], cell["rate_high"]) for cell in bins]),
    )
    styled(figure, "Calibration", "mean score", "observed rate")
    return figure.update_layout(xaxis={"type": "log", **_POWERS}, yaxis={"type": "log", **_POWERS})


def candidates(details: Details) -> Any:
    """Held-out average precision of the candidates, the selected one marked."""
    summary = details["summary"]
    shown = [candidate for candidate in summary["candidates"] if candidate["ap"] is not None][:_SHOWN][::-1]
    figure = _figure()
    figure.add_scatter(
        x=[candidate["ap"] for candidate in shown],
        y=[_short(candidate["name"]) for candidate in shown],
        mode="markers",
        showlegend=False,
        marker={
            "color": [ORANGE if candidate["name"] == summary["selected"] else BLUE for candidate in shown],
            "size": 9,
        },
        error_x=_bars([(candidate["ap"], candidate["ap_low"], candidate["ap_high"]) for candidate in shown]),
    )
    return styled(figure, "Candidates", "held-out average precision", "")


def importance(details: Details) -> Any:
    """Average precision lost with each feature scrambled, the greatest on top; grey where the interval holds 0."""
    columns = details["importance"][:_SHOWN][::-1]
    losses = [column["ap_lost"] for column in columns]
    sure = [loss["low"] is not None and loss["low"] > 0 for loss in losses]
    arrows = {"up": "▲ ", "down": "▼ ", "turns": "⇅ ", "category": "", "none": ""}
    figure = _figure()
    figure.add_bar(
        x=[loss["value"] for loss in losses],
        y=[arrows[column["direction"]] + _short(column["feature"]) for column in columns],
        orientation="h",
        marker={"color": [BLUE if certain else GREY for certain in sure]},
        showlegend=False,
        error_x=_bars([(loss["value"], loss["low"], loss["high"]) for loss in losses]),
    )
    return styled(figure, "What drives the scores", "average precision lost without it", "", bargap=0.35)


def tradeoff(details: Details) -> Any:
    """Cost and alerts against the threshold; the one in use with the interval it was tuned to."""
    curves, evaluation = details["tradeoff"], details["evaluation"]
    point = details["points"][evaluation["primary"]]
    unit = evaluation["money"]["currency"]
    across = curves["threshold"]
    figure = _figure()
    band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=across, y=curves["cost_high"], **band)
    figure.add_scatter(x=across, y=curves["cost_low"], fill="tonexty", fillcolor=_SHADE, **band)
    figure.add_scatter(x=across, y=curves["cost"], name=f"cost ({unit})", mode="lines", line={"color": BLUE})
    figure.add_scatter(
        x=across,
        y=curves["alerts"],
        name=_alerts(details),
        mode="lines",
        yaxis="y2",
        line={"color": GREEN, "dash": "dash"},
    )
    if point["low"] is not None and point["high"] is not None:
        figure.add_vrect(x0=point["low"], x1=point["high"], fillcolor=ORANGE, opacity=0.13, line_width=0)
    figure.add_vline(x=point["value"], line={"color": ORANGE, "width": 2})
    styled(figure, "Cost and alerts against the threshold", "threshold", "")
    return figure.update_layout(
        xaxis={"type": "log", **_POWERS},
        yaxis={"rangemode": "tozero"},
        yaxis2={"overlaying": "y", "side": "right", "type": "log", "showgrid": False, "automargin": True, **_POWERS},
        margin={"r": 40},
    )


def _alerts(details: Details) -> str:
    return "alerts a day" if details["periods"] else "alerts on the test rows"


def periods(details: Details) -> Any:
    """Prevalence by calendar period with Wilson intervals, coloured by the part of the split."""
    figure = _figure()
    colours = {"train": GREY, "validation": BLUE, "test": ORANGE}
    for part, colour in colours.items():
        shown = [period for period in details["periods"]["periods"] if period["part"] == part]
        shares = [period["prevalence"] for period in shown]
        figure.add_scatter(
            x=[period["start"] for period in shown],
            y=[share["value"] for share in shares],
            mode="markers",
            name=part,
            marker={"color": colour, "size": 7},
            error_y=_bars([(share["value"], share["low"], share["high"]) for share in shares]),
        )
    return styled(figure, f"Prevalence by {details['periods']['unit']}", "", "share of the rare class")


def prequential(details: Details) -> Any:
    """Average precision of the recipe in window after window, each time fitted on what came before."""
    windows = details["summary"]["prequential"]
    figure = _figure()
    figure.add_scatter(
        x=[window["from"][:10] for window in windows],
        y=[window["ap"]["value"] for window in windows],
        mode="lines+markers",
        showlegend=False,
        line={"color": BLUE},
        error_y=_bars([(window["ap"]["value"], window["ap"]["low"], window["ap"]["high"]) for window in windows]),
    )
    return styled(figure, "Fitted again before each window", "window begins", "average precision")


def _figure() -> Any:
    import plotly.graph_objects as go

    return go.Figure()


def _dotted() -> dict[str, Any]:
    return {"mode": "lines", "line": {"color": GREY, "dash": "dot"}}


def _bars(estimates: list[tuple[float | None, float | None, float | None]]) -> dict[str, Any]:
    """Error bars from values with their intervals; none where there is no interval."""
    return {
        "type": "data",
        "color": GREY,
        "thickness": 1.2,
        "array": [0 if value is None or high is None else max(0.0, high - value) for value, _, high in estimates],
        "arrayminus": [0 if value is None or low is None else max(0.0, value - low) for value, low, _ in estimates],
    }


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"
