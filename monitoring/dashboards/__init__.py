"""Grafana dashboards as code. `make golden` writes their JSON to json/, which the chart and a person import."""

from monitoring.dashboards import drift, live_quality, retraining, serving

DASHBOARDS = {
    "live-quality": live_quality.build,
    "drift": drift.build,
    "serving": serving.build,
    "retraining": retraining.build,
}
