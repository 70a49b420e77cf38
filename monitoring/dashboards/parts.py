"""What all dashboards share: variables, annotations, the ways a panel is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
HERE = 'namespace=~"$namespace", model=~"$model"'
"""Label matchers of every query."""
WIDTH = 24
Query = tuple[str, str]
"""(expression, legend)"""


def champion(name: str, matchers: str = "") -> str:
    """A series of the version that answers, whatever replica told it."""
    return (
        f"max by (model, version) ({series(name, matchers)} and on (namespace, model, version) "
        f"rareclass:champion:info{{{HERE}}})"
    )


def every(name: str, matchers: str = "", by: str = "model, version") -> str:
    """A series of every version, or folded by other labels."""
    return f"max by ({by}) ({series(name, matchers)})"


def series(name: str, matchers: str = "") -> str:
    return f"{name}{{{HERE}{', ' if matchers else ''}{matchers}}}"


def never_empty(expression: str, label: str) -> str:
    """The expression and a row "none" that is always 0, so that silence is not missing data."""
    return f'{expression} or label_replace(vector(0), "{label}", "none", "", "")'


def alerts(names: Sequence[str]) -> str:
    """1 where an alert fires, 0.5 where it is pending."""
    chosen = "|".join(names)
    firing, pending = (
        f'max by (alertname) (ALERTS{{{HERE}, alertname=~"{chosen}", alertstate="{state}"}})'
        for state in ("firing", "pending")
    )
    return never_empty(f"{firing} or 0.5 * {pending}", "alertname")


def _targets(panel: Any, queries: Sequence[Query]) -> Any:
    for position, (expression, legend) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + position))
        panel = panel.with_target(query.range().datasource(SOURCE))
    return panel


def lines(
    title: str,
    queries: Sequence[Query],
    *,
    says: str,
    unit: str = "percentunit",
    span: int = 12,
    height: int = 8,
    low: float | None = None,
    high: float | None = None,
) -> timeseries.Panel:
    """Lines over time."""
    panel = timeseries.Panel().title(title).description(says).datasource(SOURCE).unit(unit).span(span).height(height)
    panel = panel.line_width(2).fill_opacity(0).show_points(common.VisibilityMode.NEVER)
    panel = panel.legend(
        common_builders.VizLegendOptions()
        .show_legend(True)
        .placement(common.LegendPlacement.BOTTOM)
        .display_mode(common.LegendDisplayMode.LIST)
    )
    panel = panel.tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    panel = panel if low is None else panel.min(low)
    panel = panel if high is None else panel.max(high)
    return _targets(panel, queries)


def band(panel: timeseries.Panel, low: str, high: str) -> timeseries.Panel:
    """Draw two series of a panel, named by their legends, as the band of an interval."""
    thin = [model.DynamicConfigValue("custom.lineWidth", 0), model.DynamicConfigValue("custom.hideFrom", _no_legend())]
    filled = [
        *thin,
        model.DynamicConfigValue("custom.fillBelowTo", low),
        model.DynamicConfigValue("custom.fillOpacity", 18),
    ]
    return panel.override_by_name(high, filled).override_by_name(low, thin)


def _no_legend() -> dict[str, bool]:
    return {"legend": True, "tooltip": False, "viz": False}


def counts(panel: timeseries.Panel, legend: str) -> timeseries.Panel:
    """Draw a series as bars on an axis of its own at the right."""
    return panel.override_by_name(
        legend,
        [
            model.DynamicConfigValue("custom.axisPlacement", "right"),
            model.DynamicConfigValue("custom.drawStyle", "bars"),
            model.DynamicConfigValue("custom.fillOpacity", 12),
            model.DynamicConfigValue("custom.lineWidth", 0),
            model.DynamicConfigValue("unit", "short"),
            model.DynamicConfigValue("min", 0),
        ],
    )


def number(
    title: str, queries: Sequence[Query], *, says: str, unit: str = "short", span: int = 6, named: bool = False
) -> stat.Panel:
    """The latest value, large; ``named``: the name of the series instead, where its value says nothing (always 1)."""
    panel = stat.Panel().title(title).description(says).datasource(SOURCE).unit(unit).span(span).height(4)
    reduce = common_builders.ReduceDataOptions().calcs(["lastNotNull"])
    mode = common.BigValueTextMode.NAME if named else common.BigValueTextMode.VALUE_AND_NAME
    panel = panel.reduce_options(reduce).text_mode(mode)
    return _targets(panel.graph_mode(common.BigValueGraphMode.NONE), queries)


def states(title: str, queries: Sequence[Query], *, says: str, span: int = WIDTH, height: int = 7) -> Any:
    """State over time, one row per series: 0 fine, 0.5 pending, 1 on."""
    panel = statetimeline.Panel().title(title).description(says).datasource(SOURCE).span(span).height(height)
    steps = [
        model.Threshold(value=None, color="green"),
        model.Threshold(value=0.5, color="yellow"),
        model.Threshold(value=1, color="red"),
    ]
    panel = panel.thresholds(dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps))
    panel = panel.color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
    return _targets(panel.no_value("none").min(0).max(1), queries)


def made(title: str, uid: str, says: str, rows: Sequence[tuple[str, Sequence[Any]]], *, since: str = "now-30d") -> str:
    """Return a dashboard as JSON text: variables, annotations of promotions and rollbacks, rows of panels."""
    board = dashboard.Dashboard(title).uid(uid).description(says).tags(["rareclass"]).timezone("utc")
    board = board.time(since, "now").refresh("1m").readonly().tooltip(model.DashboardCursorSync.CROSSHAIR)
    board = board.with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    for name, source in (
        ("namespace", "label_values(rareclass_evaluation_timestamp_seconds, namespace)"),
        ("model", 'label_values(rareclass_evaluation_timestamp_seconds{namespace=~"$namespace"}, model)'),
    ):
        board = board.with_variable(
            dashboard.QueryVariable(name)
            .label(name.capitalize())
            .query(source)
            .datasource(SOURCE)
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.ALPHABETICAL_ASC)
            .include_all(True)
            .all_value(".*")
            .current(model.VariableOption(selected=True, text="All", value="$__all"))
        )
    for kind, colour in (("promote", "blue"), ("rollback", "red")):
        board = board.annotation(_annotation(kind, colour))
    link = dashboard.DashboardLink("rareclass").type(model.DashboardLinkType.DASHBOARDS).tags(["rareclass"])
    board = board.link(link.as_dropdown(True).include_vars(True).keep_time(True))
    for name, panels in rows:
        board = board.with_row(dashboard.Row(name))
        for panel in panels:
            board = board.with_panel(panel)
    return _numbered(json.loads(JSONEncoder(sort_keys=True).encode(board.build())))


def _annotation(kind: str, colour: str) -> dashboard.AnnotationQuery:
    """The time is the ledger's own, so an annotation stands where it happened, not where it was scraped."""
    last = every("rareclass_ledger_last_timestamp_seconds", f'kind="{kind}"', "model, kind")
    query = dashboard.AnnotationQuery().name(f"{kind.capitalize()}s").datasource(SOURCE).enable(True)
    query = query.icon_color(colour).expr(f"1000 * {last}").use_value_for_time(True).step("60s")
    return query.title_format(kind).text_format("{{model}}").tag_keys("model,kind")


def _numbered(board: dict[str, Any]) -> str:
    """Number the panels in their order, so that ids are unique and stay where the panels stay."""
    for position, panel in enumerate(board["panels"], 1):
        panel["id"] = position
    return json.dumps(board, indent=1, sort_keys=True) + "\n"
