"""Draws every dashboard's panels from the results of their own queries, without a Grafana: one HTML page each.

python tools/draw_dashboards.py --prometheus http://localhost:9090 --out out/dashboards [--minutes 60] [--model NAME]
[--png]
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

UNIT = 42
"""Pixels of one row of Grafana's grid."""
COLOURS = ("#3b6fb6", "#d1662b", "#3f9c5f", "#8a5ab5", "#b8433f", "#7d7d2e", "#3aa0a8", "#c8619a", "#555555", "#b0912c")
POINTS = 240


def draw(
    prometheus: str,
    out: Path,
    *,
    minutes: float = 60,
    png: bool = False,
    model: str = ".*",
    boards: Iterable[str] = (),
    height: int | None = None,
) -> list[Path]:
    """Write DASHBOARD.html (and with ``png`` a picture, by Chromium) for each dashboard; return the pages.

    model : of this name only;  boards : names of dashboards, default all;  height : pixels of the pictures, from the
        top
    """
    from monitoring.dashboards import DASHBOARDS

    out.mkdir(parents=True, exist_ok=True)
    pages = []
    for name, build in DASHBOARDS.items():
        if boards and name not in boards:
            continue
        page = out / f"{name}.html"
        board = json.loads(build().replace("$model", model))
        whole = _page(board, prometheus, minutes, page)
        if png:
            _picture(page, height or whole)
        pages.append(page)
    return pages


def results(prometheus: str, expression: str, minutes: float) -> list[dict[str, Any]]:
    """Return the series of a range query; dashboard variables stand for everything."""
    step = _step(minutes)
    end = time.time() // step * step  # the same moments for every query
    for name, value in (
        ("$__rate_interval", f"{max(60, int(step * 4))}s"),
        ("$namespace", ".*"),
        ("$model", ".*"),
    ):
        expression = expression.replace(name, value)
    asked = {"query": expression, "start": end - minutes * 60, "end": end, "step": step}
    url = f"{prometheus}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)["data"]["result"]


def _step(minutes: float) -> float:
    return max(minutes * 60 / POINTS, 0.25)


def _page(board: dict[str, Any], prometheus: str, minutes: float, page: Path) -> int:
    marks = list(_marks(board, prometheus, minutes))
    parts, bottom = [], 0
    for panel in board["panels"]:
        grid = panel["gridPos"]
        bottom = max(bottom, grid["y"] + grid["h"])
        style = (
            f"left:{grid['x'] / 24:.4%};width:{grid['w'] / 24:.4%};top:{grid['y'] * UNIT}px;height:{grid['h'] * UNIT}px"
        )
        body = f"<h2>{panel['title']}</h2>" if panel["type"] == "row" else _panel(panel, prometheus, minutes, marks)
        parts.append(f"<div class=cell style='{style}'>{body}</div>")
    from plotly.offline import get_plotlyjs

    css = (
        "body{margin:0 12px;font:14px "
        "system-ui,sans-serif;background:#f4f5f5;color:#222}.cell{position:absolute;box-sizing:border-box;padding:4px}"
        ".panel{background:#fff;border:1px solid "
        "#ddd;height:100%;box-sizing:border-box;overflow:hidden}h2{font-size:15px;margin:12px 4px}"
        ".big{font-size:26px;padding:0 12px}.big "
        "span{font-size:13px;color:#666;margin-left:.6em}h3{font-size:13px;margin:6px 12px}"
    )
    page.write_text(
        "<!doctype html><meta "
        f"charset=utf-8><title>{board['title']}</title><style>{css}</style><script>{get_plotlyjs()}</script>"
        f"<h1 style='font-size:19px'>{board['title']}</h1><div "
        f"style='position:relative;height:{bottom * UNIT}px'>{''.join(parts)}</div>",
        encoding="utf-8",
    )
    return bottom * UNIT + 80


def _marks(board: dict[str, Any], prometheus: str, minutes: float) -> Iterator[tuple[float, str, str]]:
    """Annotations: the value of the series is the time in milliseconds."""
    oldest = (time.time() - minutes * 60) * 1000
    for note in board["annotations"]["list"]:
        for series in results(prometheus, note["expr"], minutes):
            for at in sorted({float(value) for _, value in series["values"]}):
                if at >= oldest:
                    yield at, note["titleFormat"], note["iconColor"]


def _panel(panel: dict[str, Any], prometheus: str, minutes: float, marks: list[tuple[float, str, str]]) -> str:
    title = html.escape(panel["title"])
    head = f'<div class=panel title="{title}">'
    found = [
        (_legend(target["legendFormat"], series["metric"]), series["values"])
        for target in panel["targets"]
        for series in results(prometheus, target["expr"], minutes)
    ]
    if not found:
        return f"{head}<h3>{title}</h3><div class='big nothing'>no data</div></div>"
    if panel["type"] == "stat":
        unit = panel["fieldConfig"]["defaults"].get("unit", "")
        named = panel["options"].get("textMode") == "name"
        last = max(values[-1][0] for _, values in found)  # what is shown is what holds now
        numbers = "".join(
            f"<div class=big>{legend if named else f'{_shown(float(values[-1][1]), unit)}<span>{legend}</span>'}</div>"
            for legend, values in [each for each in found if each[1][-1][0] == last][:3]
        )
        return f"{head}<h3>{title}</h3>{numbers}</div>"
    figure = _states(panel, found) if panel["type"] == "state-timeline" else _lines(panel, found, _step(minutes))
    figure.update_layout(
        title={"text": panel["title"], "font": {"size": 13}, "x": 0.02, "y": 0.97},
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        height=panel["gridPos"]["h"] * UNIT - 12,
        template="plotly_white",
        legend={"orientation": "h", "font": {"size": 10}, "y": -0.22 if panel["gridPos"]["h"] < 9 else -0.14},
        font={"size": 11},
    )
    figure.update_xaxes(type="date", automargin=True)
    figure.update_yaxes(automargin=True)
    for at, text, colour in marks:
        figure.add_vline(x=at, line={"color": colour, "dash": "dash", "width": 1})
        figure.add_annotation(x=at, y=1, yref="paper", text=text, showarrow=False, font={"size": 10, "color": colour})
    return f"{head}{figure.to_html(full_html=False, include_plotlyjs=False, config={'displayModeBar': False})}</div>"


Series = list[tuple[str, list[Any]]]


def _merged(found: Series) -> Series:
    """Series of one legend that take turns (the champions one after the other) as one line."""
    lines: Series = []
    for legend, values in found:
        times = {at for at, _ in values}
        for position, (name, known) in enumerate(lines):
            if name == legend and not times & {at for at, _ in known}:
                lines[position] = (name, sorted([*known, *values]))
                break
        else:
            lines.append((legend, list(values)))
    return lines


def _pieces(values: list[Any], step: float) -> list[list[Any]]:
    """Cut where samples are missing, so that no line is drawn across."""
    pieces: list[list[Any]] = []
    for at, value in values:
        if not pieces or at - pieces[-1][-1][0] > 2.5 * step:
            pieces.append([])
        pieces[-1].append((at, float(value)))
    return pieces


def _lines(panel: dict[str, Any], found: Series, step: float) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    defaults = panel["fieldConfig"]["defaults"]
    looks = {each["matcher"]["options"]: _properties(each) for each in panel["fieldConfig"].get("overrides", [])}
    lows = {look["custom.fillBelowTo"] for look in looks.values() if "custom.fillBelowTo" in look}
    lines, right, position = _merged(found), False, 0
    for legend, values in lines:
        look = looks.get(legend, {})
        if legend in lows:
            continue
        if "custom.fillBelowTo" in look:
            low = {at: value for name, known in lines if name == look["custom.fillBelowTo"] for at, value in known}
            for piece in _pieces([(at, value) for at, value in values if at in low], step):
                x = [1000 * at for at, _ in piece]
                y = [value for _, value in piece] + [float(low[at]) for at, _ in reversed(piece)]
                figure.add_scatter(
                    x=x + x[::-1],
                    y=y,
                    mode="lines",
                    line={"width": 0},
                    fill="toself",
                    fillcolor="rgba(59,111,182,.18)",
                    showlegend=False,
                    hoverinfo="skip",
                )
        elif look.get("custom.axisPlacement") == "right":
            right = True
            x, y = [1000 * at for at, _ in values], [float(value) for _, value in values]
            figure.add_bar(
                x=x,
                y=y,
                name=f"{legend} (right)",
                marker={"color": "rgba(120,120,120,.25)", "line": {"width": 0}},
                yaxis="y2",
            )
        else:
            points = [pair for piece in _pieces(values, step) for pair in (*piece, (piece[-1][0], None))]
            colour = COLOURS[position % len(COLOURS)]
            position += 1
            figure.add_scatter(
                x=[1000 * at for at, _ in points],
                y=[value for _, value in points],
                mode="lines",
                name=legend,
                line={"width": 2, "color": colour},
            )
    percent = defaults.get("unit") == "percentunit"
    figure.update_yaxes(tickformat=".3~%" if percent else ".3~s")
    low_end, high_end = defaults.get("min"), defaults.get("max")
    if high_end is not None:
        figure.update_yaxes(range=[low_end or 0, high_end])
    elif low_end == 0:
        figure.update_yaxes(rangemode="tozero")
    if right:
        figure.update_layout(
            yaxis2={"overlaying": "y", "side": "right", "showgrid": False, "rangemode": "tozero", "tickformat": ".3~s"}
        )
    return figure


def _states(panel: dict[str, Any], found: list[tuple[str, list[Any]]]) -> Any:
    import plotly.graph_objects as go

    times = sorted({at for _, values in found for at, _ in values})
    rows = [[dict(values).get(at) for at in times] for _, values in found]
    scale = [(0, "#73bf69"), (0.4, "#73bf69"), (0.4, "#f2cc0c"), (0.7, "#f2cc0c"), (0.7, "#e02f44"), (1, "#e02f44")]
    heat = go.Heatmap(
        x=[1000 * at for at in times],
        y=[legend for legend, _ in found],
        z=[[None if value is None else float(value) for value in row] for row in rows],
        zmin=0,
        zmax=1,
        colorscale=scale,
        showscale=False,
        ygap=3,
    )
    return go.Figure(heat)


def _properties(override: dict[str, Any]) -> dict[str, Any]:
    return {each["id"]: each["value"] for each in override["properties"]}


def _legend(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), text)


def _shown(value: float, unit: str) -> str:
    if unit == "s":
        days, rest = divmod(int(value), 86_400)
        return f"{days} d {rest // 3600} h" if days else f"{rest // 60} min {rest % 60} s"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number}{' %' if unit == 'percent' else ''}"


def _picture(page: Path, height: int) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no Chromium was found for --png. Install it (Debian: apt-get install chromium), or leave --png out")
    target = page.with_suffix(".png").resolve()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000"]
    command = [chromium, *options, f"--window-size=1400,{height}", f"--screenshot={target}", page.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=180)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prometheus", default="http://localhost:9090", metavar="URL")
    parser.add_argument("--out", type=Path, default=Path("out/dashboards"), metavar="DIR")
    parser.add_argument("--minutes", type=float, default=60, help="how far back")
    parser.add_argument("--png", action="store_true", help="also a picture of each, by Chromium")
    parser.add_argument("--model", default=".*", metavar="NAME", help="of this model only")
    parser.add_argument("--only", action="append", default=[], metavar="DASHBOARD", help="default: all")
    parser.add_argument("--height", type=int, metavar="PIXELS", help="of the pictures, from the top; default: whole")
    given = parser.parse_args()
    url = given.prometheus.rstrip("/")
    try:
        pages = draw(
            url,
            given.out,
            minutes=given.minutes,
            png=given.png,
            model=given.model,
            boards=given.only,
            height=given.height,
        )
    except OSError as error:
        sys.exit(f"Prometheus at {url} does not answer: {error}")
    for page in pages:
        print(page)


if __name__ == "__main__":
    main()
