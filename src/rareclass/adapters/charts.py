"""Curves of several models in one self-contained HTML page (plotly)."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; --ink: #1c2024; --dim: #60646c; --paper: #fff; --line: #d9d9e0; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #edeef0; --dim: #b0b4ba; --paper: #111113; --line: #43484e; }} }}
body {{ margin: 0 auto; padding: 1.5rem 1rem; max-width: 72rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }}
p {{ color: var(--dim); }} h1 {{ font-size: 1.5rem; }} .wide {{ overflow-x: auto; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }} .charts > div {{ min-width: 0; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; }}
</style></head><body><h1>{title}</h1><p>{subtitle}</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<div class="charts">{charts}</div></body></html>
"""
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
    title: str,
    subtitle: str,
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    pr: Mapping[str, tuple[Any, Any]],
    roc: Mapping[str, tuple[Any, Any]],
    prevalence: float,
) -> None:
    """Write a page with a table, and the PR and ROC curves of all models overlaid.

    pr : name -> (recall, precision); roc : name -> (false positive rate, recall); prevalence : height of a coin's PR curve
    """  # fmt: skip
    first = _figure("Precision and recall", "recall", "precision", pr, ([0, 1], [prevalence, prevalence]))
    second = _figure("ROC", "false positive rate", "recall", roc, ([0, 1], [0, 1]))
    options = {"full_html": False, "config": {"responsive": True, "displaylogo": False}, "default_height": "460px"}
    charts = first.to_html(include_plotlyjs=True, **options), second.to_html(include_plotlyjs=False, **options)
    path.write_text(
        _PAGE.format(
            title=html.escape(title), subtitle=html.escape(subtitle), head=_cells("th", head),
            body="".join(f"<tr>{_cells('td', line)}</tr>" for line in lines), charts="".join(f"<div>{chart}</div>" for chart in charts),
        ),
        encoding="utf-8",
    )  # fmt: skip


def _figure(title: str, across: str, up: str, curves: Mapping[str, tuple[Any, Any]], floor: tuple[Any, Any]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_scatter(
        x=floor[0], y=floor[1], mode="lines", name="no skill", line={"color": "#8b8d98", "width": 1, "dash": "dot"}
    )
    for position, (name, (x, y)) in enumerate(curves.items()):
        line = {"color": _COLOURS[position % len(_COLOURS)], "dash": _DASHES[position % len(_DASHES)], "width": 2}
        figure.add_scatter(x=list(x), y=list(y), mode="lines", name=name, line=line)
    grey = {"gridcolor": "rgba(139,141,152,.25)", "zeroline": False, "range": [-0.01, 1.01]}
    figure.update_layout(
        title=title, xaxis={"title": across, **grey}, yaxis={"title": up, **grey}, legend={"orientation": "h", "y": -0.2},
        margin={"l": 55, "r": 15, "t": 50, "b": 40}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": "#8b8d98"},
    )  # fmt: skip
    return figure


def _cells(tag: str, values: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(str(value))}</{tag}>" for value in values)
