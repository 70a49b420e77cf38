"""Self-contained pages for people: a training run, the timeline of a replay, models compared,
the status of a model (Jinja, plotly). What a figure means belongs to core; what is shown comes from services."""

from rareclass.adapters.reports.overlay import overlay_page
from rareclass.adapters.reports.replay import replay_report
from rareclass.adapters.reports.training import selection_sentence, training_report

__all__ = ["overlay_page", "replay_report", "selection_sentence", "training_report"]
