"""Charts over windows of time as SVG, drawn here: a page of them needs no script, and so its policy can forbid every
one.

What is computed here is geometry in the units of the picture; the template writes it, and escapes what it writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

WIDTH, HEIGHT = 400, 210
LEFT, RIGHT, TOP, BOTTOM = 54, 8, 28, 26
"""Margins; marks stand in the upper one."""
NEAR = 16
"""Marks closer than this would cover each other: they share one."""
STEPS = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Span:
    """One window of a line: its value with the interval (NaN: none), solid once its labels are in; ``text`` when
    pointed at.
    """

    start: datetime
    end: datetime
    value: float
    low: float = math.nan
    high: float = math.nan
    solid: bool = True
    text: str = ""


@dataclass(frozen=True)
class Series:
    """A line of a chart. style : class of the style sheet (main, other, past, estimated) · spans : oldest first"""

    name: str
    style: str
    spans: Sequence[Span]


@dataclass(frozen=True)
class Mark:
    """Something that happened: a letter above the chart, and what it was when pointed at."""

    at: datetime
    sign: str
    text: str


@dataclass(frozen=True)
class View:
    """The stretch of time that all charts of a page show, with what happened in it."""

    start: datetime
    end: datetime
    marks: Sequence[Mark] = ()

    def across(self, moment: datetime) -> float:
        """Return the place of a moment on the horizontal axis, inside the chart."""
        share = (moment - self.start) / max(self.end - self.start, timedelta(microseconds=1))
        return round(LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT), 1)


def chart(
    title: str,
    caption: str,
    view: View,
    lines: Sequence[Series],
    *,
    written: Callable[[float], str],
    level: tuple[str, float] | None = None,
) -> dict[str, Any]:
    """Lay out a chart; ``empty`` says that it has nothing to show.

    written : a value as text, for the axis · level : name and value of a horizontal line to compare with
    """
    spans = [span for line in lines for span in line.spans if math.isfinite(span.value)]
    level = level if level is not None and math.isfinite(level[1]) else None
    ends = [end for span in spans for end in (span.value, span.high) if math.isfinite(end)]
    ticks = _ticks(max([*ends, level[1] if level else 0.0, 0.0]))
    up = _scale(ticks[-1])
    return {
        "title": title,
        "caption": caption,
        "empty": not spans,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "label": f"{title}: {_said(lines, written)}",
        "ticks": [{"y": up(value), "text": written(value)} for value in ticks],
        "days": _days(view),
        "level": None if level is None else {"y": up(level[1]), "name": f"{level[0]} {written(level[1])}"},
        "marks": _marks(view),
        "lines": [
            {"name": line.name, "style": line.style, "spans": _placed(line, view, up)} for line in lines if line.spans
        ],
    }


def _placed(line: Series, view: View, up: Callable[[float], float]) -> list[dict[str, Any]]:
    placed = []
    for span in line.spans:
        if not math.isfinite(span.value):
            continue
        x1, x2 = view.across(span.start), view.across(span.end)
        gap = min(1.0, (x2 - x1) / 4)  # neighbours do not touch
        both = math.isfinite(span.low) and math.isfinite(span.high)
        band = {"y": up(span.high), "height": round(up(span.low) - up(span.high), 1)} if both else None
        placed.append(
            {"x1": x1 + gap, "x2": x2 - gap, "y": up(span.value), "band": band, "solid": span.solid, "text": span.text}
        )
    return placed


def _said(lines: Sequence[Series], written: Callable[[float], str]) -> str:
    """The newest value of each line, for who hears the page."""
    newest = [(line.name, [span.value for span in line.spans if math.isfinite(span.value)][-1:]) for line in lines]
    return ", ".join(f"{name} {written(values[0])}" for name, values in newest if values) or "nothing yet"


def _ticks(top: float) -> list[float]:
    """Four or five round values from 0 to beyond ``top``."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top / 4))
    step = next(each * power for each in STEPS if each * power * 4 >= top * (1 - 1e-9))
    return [step * at for at in range(math.ceil(top / step - 1e-9) + 1)]


def _scale(top: float) -> Callable[[float], float]:
    floor = HEIGHT - BOTTOM
    return lambda value: round(floor - min(max(value / top, 0.0), 1.0) * (floor - TOP), 1)


def _days(view: View) -> list[dict[str, Any]]:
    """Up to five moments on the horizontal axis, at whole days or, where the view is shorter, minutes."""
    whole = timedelta(days=1) if view.end - view.start >= timedelta(days=4) else timedelta(minutes=1)
    form = "%-d %b" if whole.days else "%H:%M"
    step = max(whole, -(-(view.end - view.start) // (5 * whole)) * whole)
    moment = datetime.min + -(-(view.start - datetime.min) // whole) * whole
    found: list[dict[str, Any]] = []
    while moment <= view.end:
        found.append({"x": view.across(moment), "text": moment.strftime(form)})
        moment += step
    # the last text would be cut off at the edge
    return [day for day in found if day["x"] <= WIDTH - RIGHT - 14]


def _marks(view: View) -> list[dict[str, Any]]:
    """Marks in view, those that lie too near to each other as one."""
    found: list[dict[str, Any]] = []
    for mark in sorted(view.marks, key=lambda mark: mark.at):
        if not view.start <= mark.at <= view.end:
            continue
        x = view.across(mark.at)
        if found and x - found[-1]["x"] < NEAR:
            found[-1]["texts"].append(mark.text)
            found[-1]["sign"] = mark.sign if mark.sign == found[-1]["sign"] else str(len(found[-1]["texts"]))
        else:
            found.append({"x": x, "sign": mark.sign, "texts": [mark.text]})
    return found
