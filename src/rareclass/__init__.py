"""rareclass: rare-class models that are calibrated, thresholded, served, watched with late labels, and repaired.

``from rareclass import RareClassifier`` is the training recipe as a scikit-learn estimator; it is imported when asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Threads of OpenMP spin while they wait, which makes a fit 40 times slower as soon as another process wants a core
# (a neighbour on the machine, a CPU limit of a container). Must be set before the first library loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from rareclass.estimator import RareClassifier

    __version__: str

__all__ = ["RareClassifier", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "RareClassifier":
        from rareclass.estimator import RareClassifier

        return RareClassifier
    if name == "__version__":
        from importlib.metadata import version

        return version("rareclass")
    raise AttributeError(f"module 'rareclass' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
