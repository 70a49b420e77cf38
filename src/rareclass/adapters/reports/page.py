"""What the pages share: the template engine, numbers as text, figures as HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from rareclass.core.estimate import between

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
    return f"{value:.3f}{_between(low, high, '{:.3f}'.format)}"


def _between(low: float | None, high: float | None, written: Callable[[float], str]) -> str:
    """The interval after a value: nothing where it could not be judged, which is null at both ends."""
    return "" if low is None and high is None else f" {between(low, high, written, NARROW)}"


def estimate(found: Mapping[str, Any] | None) -> str:
    """An estimate with its interval, or how little it rests on."""
    if found is None or found["value"] is None:
        return "–"
    text = interval(found["value"], found["low"], found["high"])
    unjudged = found["low"] is None and found["high"] is None
    return f"{text} ({found['positives']} positives)" if unjudged else text


def precise(found: Mapping[str, Any]) -> str:
    """An estimate of any size, with three digits that matter."""
    if found["value"] is None:
        return "–"
    return f"{found['value']:.3g}{_between(found['low'], found['high'], '{:.3g}'.format)}"


def amount(found: Mapping[str, Any]) -> str:
    """Money, or rows, with the interval."""
    return f"{count(found['value'])}{_between(found['low'], found['high'], count)}"


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
