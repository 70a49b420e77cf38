"""What the server tells Prometheus. The metrics live on the port and path that MLServer offers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.core.dataset import FloatArray

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LATENCY = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
# Rare classes live at the low end: three buckets per factor of ten there, and the upper half in tenths.
SCORE = (
    1e-5,
    1e-4,
    2e-4,
    5e-4,
    1e-3,
    2e-3,
    5e-3,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    1,
)


class ScoreHistogram:
    """A histogram that takes an array at once: prometheus_client's own costs a loop per value."""

    def __init__(self, name: str, help_text: str) -> None:
        self.name, self.help = name, help_text
        self._lock = Lock()
        self._counts: dict[tuple[str, str], FloatArray] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def observe(self, labels: tuple[str, str], scores: FloatArray) -> None:
        """Count (n,) scores of one (model, version)."""
        with self._lock:
            counts = self._counts.setdefault(labels, np.zeros(len(SCORE) + 1))
            if len(scores) == 1:
                counts[bisect_left(SCORE, scores[0])] += 1
            else:
                counts += np.bincount(np.searchsorted(SCORE, scores), minlength=len(SCORE) + 1)
            self._sums[labels] = self._sums.get(labels, 0.0) + float(scores.sum())

    def collect(self) -> Iterator[Any]:
        """Yield the histogram in Prometheus' form."""
        from prometheus_client.core import HistogramMetricFamily

        family = HistogramMetricFamily(self.name, self.help, labels=("model", "version"))
        with self._lock:
            for labels, counts in self._counts.items():
                total = np.cumsum(counts)
                buckets = [(str(float(bound)), float(total[at])) for at, bound in enumerate(SCORE)]
                family.add_metric(labels, [*buckets, ("+Inf", float(total[-1]))], self._sums[labels])
        yield family

    def describe(self) -> Iterator[Any]:
        """Yield nothing: names are known when it is collected."""
        return iter(())


class Metrics:
    """The server's own series. ``depth`` and ``reused`` are asked at each scrape."""

    def __init__(
        self,
        registry: CollectorRegistry,
        model: str,
        *,
        depth: Callable[[], int],
        limit: int,
        reused: Callable[[], int] = lambda: 0,
    ) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def named(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **more: Any) -> Any:
            return kind(f"rareclass_serve_{name}", text, ("model", *labels), registry=registry, **more)

        self.model, self.registry = model, registry
        self.requests = named(Counter, "requests_total", "Infer requests by HTTP status", ("code",))
        self.latency = named(Histogram, "latency_seconds", "Seconds from request to answer", buckets=LATENCY).labels(
            model
        )
        self.rows = named(Counter, "rows_total", "Rows answered", ("version",))
        self.decisions = named(Counter, "decisions_total", "Rows by decision", ("version", "decision"))
        self.sampled = named(
            Counter, "sampled_rows_total", "Rows decided 0 left out of the log above the spool's limit"
        )
        self.refused = named(Counter, "unlogged_requests_total", "Requests refused because they could not be logged")
        self.unknown = named(Counter, "unknown_categories_total", "Category values that the model does not know")
        self.skewed = named(Counter, "clock_skew_total", "Rows whose event time lay in the future")
        self.shadow = named(Counter, "shadow_rows_total", "Shadow rows by outcome", ("outcome",))
        self.restarts = named(Counter, "shadow_restarts_total", "Shadow processes that had to be started again")
        self.failures = named(
            Counter, "refresh_failures_total", "Look-ups of the registry or operating point that failed"
        )
        self.champion = named(
            Gauge, "champion_info", "1 for the version and operating point that answer", ("version", "point")
        )
        self.threshold = named(Gauge, "threshold_ratio", "Cut-off that decides").labels(model)
        named(Gauge, "spool_bytes", "Bytes in the spool that were not shipped").labels(model).set_function(depth)
        named(
            Gauge, "reused_ids_total", "Rows not stored because their request id was used before, with other contents"
        ).labels(model).set_function(reused)
        named(Gauge, "spool_limit_bytes", "Spool size from which rows decided 0 are sampled").labels(model).set(limit)
        self.scores = ScoreHistogram("rareclass_serve_score_ratio", "Scores answered")
        registry.register(self.scores)
        # what counts for some labels is looked up once: that takes as long as counting five times
        self._requests = cache(lambda code: self.requests.labels(model, str(code)))
        self._answered = cache(
            lambda version: (
                self.rows.labels(model, version),
                self.decisions.labels(model, version, "1"),
                self.decisions.labels(model, version, "0"),
            )
        )
        for counter in (self.sampled, self.refused, self.unknown, self.skewed, self.restarts, self.failures):
            counter.labels(model)

    def answered(self, version: str, scores: FloatArray, positives: int) -> None:
        """Count the rows of an answer."""
        rows, rare, others = self._answered(version)
        rows.inc(len(scores))
        rare.inc(positives)
        others.inc(len(scores) - positives)
        self.scores.observe((self.model, version), scores)

    def request(self, code: int, seconds: float) -> None:
        """Count one request."""
        self._requests(code).inc()
        self.latency.observe(seconds)

    def serving(self, version: str, point: str, threshold: float) -> None:
        """Say what answers now."""
        self.champion.clear()
        self.champion.labels(self.model, version, point).set(1)
        self.threshold.set(threshold)
