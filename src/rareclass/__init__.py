"""rareclass: rare-class models that are calibrated, thresholded, served, watched with late labels, and repaired.

What a notebook needs is here, and imported when it is asked for: the training recipe as a scikit-learn estimator, a
registered version, judgement with intervals, thresholds, prior correction, and exact cleaning samplers.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Threads of OpenMP spin while they wait, which makes a fit 40 times slower as soon as another process wants a core
# (a neighbour on the machine, a CPU limit of a container). Must be set before the first library loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from rareclass.api import compare, diagnose, estimate_ap, evaluate, load_demo, load_version, score, tune_threshold
    from rareclass.core.calibration import prior_correction
    from rareclass.core.partitions import count_partition, cut_points
    from rareclass.core.ranking import average_precision
    from rareclass.detector import RareDetector
    from rareclass.estimator import RareClassifier
    from rareclass.samplers import ExactEditedNearestNeighbours, ExactTomekLinks

    __version__: str

_HOME = {
    "RareClassifier": ("rareclass.estimator", "RareClassifier"),
    "RareDetector": ("rareclass.detector", "RareDetector"),
    "ExactEditedNearestNeighbours": ("rareclass.samplers", "ExactEditedNearestNeighbours"),
    "ExactTomekLinks": ("rareclass.samplers", "ExactTomekLinks"),
    "average_precision": ("rareclass.core.ranking", "average_precision"),
    "compare": ("rareclass.api", "compare"),
    "count_partition": ("rareclass.core.partitions", "count_partition"),
    "cut_points": ("rareclass.core.partitions", "cut_points"),
    "diagnose": ("rareclass.api", "diagnose"),
    "estimate_ap": ("rareclass.api", "estimate_ap"),
    "evaluate": ("rareclass.api", "evaluate"),
    "load_demo": ("rareclass.api", "load_demo"),
    "load_version": ("rareclass.api", "load_version"),
    "prior_correction": ("rareclass.core.calibration", "prior_correction"),
    "score": ("rareclass.api", "score"),
    "tune_threshold": ("rareclass.api", "tune_threshold"),
}
"""Public name -> module and name it lives under."""

__all__ = [
    "ExactEditedNearestNeighbours",
    "ExactTomekLinks",
    "RareClassifier",
    "RareDetector",
    "__version__",
    "average_precision",
    "compare",
    "count_partition",
    "cut_points",
    "diagnose",
    "estimate_ap",
    "evaluate",
    "load_demo",
    "load_version",
    "prior_correction",
    "score",
    "tune_threshold",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rareclass")
    if name not in _HOME:
        raise AttributeError(f"module 'rareclass' has no attribute '{name}'")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
