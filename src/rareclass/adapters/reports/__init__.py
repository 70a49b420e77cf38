"""Self-contained pages for people: the report of a training run and the timeline of a replay (Jinja, plotly)."""

from rareclass.adapters.reports.replay import replay_report
from rareclass.adapters.reports.training import selection_sentence, training_report

__all__ = ["replay_report", "selection_sentence", "training_report"]
