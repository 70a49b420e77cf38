"""Learners that do harm, for tests of what a shadow may do to the champion: nothing."""

from __future__ import annotations

import os
import time

import numpy as np


class Raising:
    """Scores its golden rows and nothing else."""

    def score(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            raise RuntimeError("poisoned\nin two lines")
        return np.full(len(x), 0.5)


class Hanging(Raising):
    def score(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            time.sleep(3600)
        return np.full(len(x), 0.5)


class Hungry(Raising):
    def score(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            return np.ones(8 << 30).astype(np.float64)[: len(x)]
        return np.full(len(x), 0.5)


class Dying(Raising):
    def score(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] > 100).any():
            os.kill(os.getpid(), 9)
        return np.full(len(x), 0.5)
