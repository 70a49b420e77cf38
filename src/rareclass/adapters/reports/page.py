"""What the pages share: the template engine, numbers as text, figures as HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Details = Mapping[str, Any]
NARROW = "\u202f"
"""A narrow space at which no line breaks: numbers stay whole on a phone."""
BLUE, GREY, ORANGE, GREEN = "#0d74ce", "#8b8d98", "#e5730a", "#18794e"


def page(template: str, **values: Any) -> str:
    """Render a template with plotly's script inside, so that the page needs nothing from the network."""
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    script = Markup(f"<script>{get_plotlyjs()}</script>")  # noqa: S704
    return render(template, **values, plotly=script)


def render(template: str, **values: Any) -> str:
    """Render a template; everything in ``values`` that is not Markup is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rareclass.adapters"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def capital(text: str) -> str:
    """A sentence's beginning: the first letter as a capital, the rest as it is."""
    return text[:1].upper() + text[1:]


def percent(value: float | None) -> str:
    """A share as text with three digits that matter."""
    return "–" if value is None else f"{100 * value:.3g}{NARROW}%"


def count(value: float | None) -> str:
    """A number of rows, in groups of three digits."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.0f}".replace(",", NARROW)


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A value with its interval."""
    if value is None:
        return "–"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f},{NARROW}{high:.3f}]"


def estimate(found: Mapping[str, Any] | None) -> str:
    """An estimate with its interval, or how little it rests on."""
    if found is None or found["value"] is None:
        return "–"
    text = interval(found["value"], found["low"], found["high"])
    return text if found["low"] is not None else f"{text} ({found['positives']} positives)"


def precise(found: Mapping[str, Any]) -> str:
    """An estimate of any size, with three digits that matter."""
    if found["value"] is None:
        return "–"
    text = f"{found['value']:.3g}"
    return text if found["low"] is None else f"{text} [{found['low']:.3g},{NARROW}{found['high']:.3g}]"


def amount(found: Mapping[str, Any]) -> str:
    """Money, or rows, with the interval."""
    if found["low"] is None:
        return count(found["value"])
    return f"{count(found['value'])} [{count(found['low'])},{NARROW}{count(found['high'])}]"


def styled(figure: Any, title: str, across: str, up: str, **layout: Any) -> Any:
    """Give a figure the looks of the pages, in light and in dark."""
    axis = {"gridcolor": "rgba(139,141,152,.25)", "zeroline": False, "automargin": True}
    return figure.update_layout(
        **{
            "title": {"text": title, "font": {"size": 15}},
            "xaxis": {"title": across, **axis},
            "yaxis": {"title": up, **axis},
            "height": 340,
            "font": {"color": "#8b8d98", "size": 12, "family": "system-ui, sans-serif"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 45, "r": 15, "t": 45, "b": 45},
            "legend": {"orientation": "h", "y": -0.22},
            **layout,
        }
    )


def html(figure: Any) -> str:
    """A figure as HTML that finds plotly's script in its page."""
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False})
    )
