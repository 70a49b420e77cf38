"""The timeline of a replay: what the loop saw, did and cost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from rareclass.adapters.reports.page import BLUE, GREY, ORANGE, Details, count, html, interval, page, percent


def replay_report(told: Details) -> str:
    """Return the HTML timeline of a replay from the values of replay.json."""
    from markupsafe import Markup

    return page(
        "replay.html",
        **told,
        chart=Markup(html(_timeline(told))),  # noqa: S704
        percent=percent,
        count=count,
        interval=interval,
    )


_ACTION_COLOURS = {"retrain": ORANGE, "promote": "#18794e", "rollback": "#b3261e", "page": "#b3261e"}


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
        line={"color": BLUE},
        error_y=bars,
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=middle,
        y=[each["ap_estimated"] for each in periods],
        name="estimated without labels",
        mode="lines",
        line={"color": GREY, "dash": "dot"},
        row=1,
        col=1,
    )
    bars_below = {
        "prevalence": [each["prevalence"] for each in periods],
        "cost": [each["cost"] for each in periods],
        "drifted": [len(each["drifted_features"]) for each in periods],
    }
    for row, (name, values) in enumerate(bars_below.items(), start=2):
        figure.add_bar(x=middle, y=values, name=name, marker={"color": BLUE}, showlegend=False, row=row, col=1)
    for action in told["actions"]:
        colour = _ACTION_COLOURS.get(action["kind"], GREY)
        figure.add_vline(
            x=_plain_time(action["time"]),
            line={
                "color": colour,
                "dash": "dash" if action["outcome"] in ("refused", "rejected", "already") else "solid",
                "width": 1.5,
            },
        )
    for before, now in pairwise(periods):
        if now["version"] != before["version"]:
            learned = f", {now['regime']}: {now['learned_positives']} positives"
            figure.add_annotation(
                x=now["start"],
                y=1,
                yref="paper",
                xanchor="right",
                yanchor="top",
                textangle=-90,
                showarrow=False,
                font={"size": 10},
                text=f"version {now['version']}" + learned * (now["regime"] != before["regime"]),
            )
    axis = {"gridcolor": "rgba(139,141,152,.25)", "zeroline": False}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    for row in (2, 3, 4):  # without a single one of them, bars would stand in the middle of -1 and 1
        figure.update_yaxes(rangemode="nonnegative", row=row, col=1)
    return figure.update_layout(
        height=820,
        font={"color": "#8b8d98", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 45, "r": 10, "t": 40, "b": 40},
        legend={"orientation": "h", "y": -0.06},
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _plain_time(text: str) -> str:
    """A moment without its zone, as the periods are written."""
    return text.removesuffix("Z").split("+")[0]
