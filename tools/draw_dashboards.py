"""Draws every dashboard's panels from the results of their own queries, without a Grafana: one HTML page each.

python tools/draw_dashboards.py --prometheus http://localhost:9090 --out out/dashboards [--minutes 60] [--png]
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

UNIT = 42
"""Pixels of one row of Grafana's grid."""
COLOURS = ("#3b6fb6", "#d1662b", "#3f9c5f", "#8a5ab5", "#b8433f", "#7d7d2e", "#3aa0a8", "#c8619a", "#555555", "#b0912c")
POINTS = 240


def draw(prometheus: str, out: Path, *, minutes: float = 60, png: bool = False) -> list[Path]:
    """Write DASHBOARD.html (and with ``png`` a picture, by Chromium) for each dashboard; return the pages."""
    from monitoring.dashboards import DASHBOARDS

    out.mkdir(parents=True, exist_ok=True)
    pages = []
    for name, build in DASHBOARDS.items():
        page = out / f"{name}.html"
        height = _page(json.loads(build()), prometheus, minutes, page)
        if png:
            _picture(page, height)
        pages.append(page)
    return pages


def results(prometheus: str, expression: str, minutes: float) -> list[dict[str, Any]]:
    """Return the series of a range query; dashboard variables stand for everything."""
    end = time.time()
    step = max(minutes * 60 / POINTS, 0.25)
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
        "body{margin:0 12px;font:14px system-ui,sans-serif;background:#f4f5f5;color:#222}.cell{position:absolute;box-sizing:border-box;padding:4px}"
        ".panel{background:#fff;border:1px solid #ddd;height:100%;box-sizing:border-box;overflow:hidden}h2{font-size:15px;margin:12px 4px}"
        ".big{font-size:26px;padding:0 12px}.big span{font-size:13px;color:#666;margin-left:.6em}h3{font-size:13px;margin:6px 12px}"
    )
    page.write_text(
        f"<!doctype html><meta charset=utf-8><title>{board['title']}</title><style>{css}</style><script>{get_plotlyjs()}</script>"
        f"<h1 style='font-size:19px'>{board['title']}</h1><div style='position:relative;height:{bottom * UNIT}px'>{''.join(parts)}</div>",
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
        numbers = "".join(
            f"<div class=big>{_shown(float(values[-1][1]), unit)}<span>{legend}</span></div>"
            for legend, values in found[:3]
        )
        return f"{head}<h3>{title}</h3>{numbers}</div>"
    figure = _states(panel, found) if panel["type"] == "state-timeline" else _lines(panel, found)
    figure.update_layout(
        title={"text": panel["title"], "font": {"size": 13}, "x": 0.02, "y": 0.97},
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        height=panel["gridPos"]["h"] * UNIT - 12,
        template="plotly_white",
        legend={"orientation": "h", "font": {"size": 10}},
        font={"size": 11},
    )
    figure.update_xaxes(type="date", automargin=True)
    figure.update_yaxes(automargin=True)
    for at, text, colour in marks:
        figure.add_vline(x=at, line={"color": colour, "dash": "dash", "width": 1})
        figure.add_annotation(x=at, y=1, yref="paper", text=text, showarrow=False, font={"size": 10, "color": colour})
    return f"{head}{figure.to_html(full_html=False, include_plotlyjs=False, config={'displayModeBar': False})}</div>"


def _lines(panel: dict[str, Any], found: list[tuple[str, list[Any]]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    defaults = panel["fieldConfig"]["defaults"]
    looks = {each["matcher"]["options"]: _properties(each) for each in panel["fieldConfig"].get("overrides", [])}
    lows = {look["custom.fillBelowTo"] for look in looks.values() if "custom.fillBelowTo" in look}
    right = False
    order = sorted(found, key=lambda one: 0 if one[0] in lows else 1 if "custom.fillBelowTo" in looks.get(one[0], {}) else 2)  # fmt: skip
    for position, (legend, values) in enumerate(order):
        look, colour = looks.get(legend, {}), COLOURS[position % len(COLOURS)]
        x, y = [1000 * at for at, _ in values], [float(value) for _, value in values]
        if legend in lows or "custom.fillBelowTo" in look:
            fill = {"fill": "tonexty", "fillcolor": "rgba(59,111,182,.18)"} if legend not in lows else {}
            figure.add_scatter(x=x, y=y, mode="lines", line={"width": 0}, showlegend=False, name=legend, **fill)
        elif look.get("custom.axisPlacement") == "right":
            right = True
            figure.add_bar(x=x, y=y, name=f"{legend} (right)", marker={"color": "rgba(120,120,120,.25)", "line": {"width": 0}}, yaxis="y2")  # fmt: skip
        else:
            figure.add_scatter(x=x, y=y, mode="lines", name=legend, line={"width": 2, "color": colour})
    percent = defaults.get("unit") == "percentunit"
    figure.update_yaxes(tickformat=".3~%" if percent else ".3~s")
    low, high = defaults.get("min"), defaults.get("max")
    if high is not None:
        figure.update_yaxes(range=[low or 0, high])
    elif low == 0:
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
    return f"{value:.3g}{' %' if unit == 'percent' else ''}"


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
    arguments = parser.parse_args()
    try:
        pages = draw(arguments.prometheus.rstrip("/"), arguments.out, minutes=arguments.minutes, png=arguments.png)
    except OSError as error:
        sys.exit(f"Prometheus at {arguments.prometheus} does not answer: {error}")
    for page in pages:
        print(page)


if __name__ == "__main__":
    main()
