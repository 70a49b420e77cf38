"""Curves of several models in one self-contained HTML page (plotly)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rareclass.adapters.reports.page import GREY, html, page, styled

# Distinguishable with the common kinds of colour blindness; the dash pattern tells apart what colour does not.
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8a6d00",
    "#7f7f7f",
    "#6a3d9a",
    "#b15928",
)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def overlay_page(
    path: Path,
    *,
    subtitle: str,
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    pr: Mapping[str, tuple[Any, Any]],
    roc: Mapping[str, tuple[Any, Any]],
    prevalence: float,
) -> None:
    """Write a page with a table, and the PR and ROC curves of all models overlaid.

    pr : name -> (recall, precision); roc : name -> (false positive rate, recall); prevalence : height of a coin's PR
        curve
    """
    from markupsafe import Markup

    figures = (
        _figure("Precision and recall", "recall", "precision", pr, ([0, 1], [prevalence, prevalence])),
        _figure("ROC", "false positive rate", "recall", roc, ([0, 1], [0, 1])),
    )
    charts = [Markup(html(figure)) for figure in figures]  # noqa: S704
    text = page("overlay.html", title="Models compared", subtitle=subtitle, head=head, lines=lines, charts=charts)
    path.write_text(text, encoding="utf-8")


def _figure(title: str, across: str, up: str, curves: Mapping[str, tuple[Any, Any]], floor: tuple[Any, Any]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=floor[0], y=floor[1], mode="lines", name="no skill", line={"color": GREY, "width": 1, "dash": "dot"}
    )
    for position, (name, (x, y)) in enumerate(curves.items()):
        line = {"color": _COLOURS[position % len(_COLOURS)], "dash": _DASHES[position % len(_DASHES)], "width": 2}
        figure.add_scatter(x=list(x), y=list(y), mode="lines", name=name, line=line)
    ends = [-0.01, 1.01]
    return styled(figure, title, across, up, height=460, xaxis_range=ends, yaxis_range=ends)
