"""Fits that grow step by step, are looked at on rows they do not see, and are stopped where those are ranked best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from rareclass.core.dataset import FloatArray, FloatMatrix, IntArray
from rareclass.core.fit_task import FitTask, InterruptedFitError
from rareclass.core.fitted import Fitted

Trace = tuple[dict[str, float], ...]
AS_GOOD = 0.002
"""Difference of average precision that is never evidence."""


class BestRound:
    """Keeps the curves of AP and loss by step of so many rounds, says when waiting is pointless and which round was
    best.

    AP is noisy where positives are few, so it is averaged over ``width`` steps; where it is as good as equal, as it is
    once all rows are ranked without a mistake, the loss decides: scores of a fit cut too short fit no other's.
    patience, least : in rounds
    """

    def __init__(self, *, step: int, patience: int, least: int, width: int = 3) -> None:
        self.step, self.patience, self.width = step, patience / step, width
        self.least = max(1, round(least / step))
        self.values: list[float] = []
        self.losses: list[float] = []
        self.best, self.since = -1.0, 0

    def add(self, value: float, loss: float) -> bool:
        """Add a step; True when it is time to stop."""
        self.values.append(value)
        self.losses.append(loss)
        mean = float(np.mean(self.values[-self.width :]))
        self.best, self.since = (mean, 0) if mean > self.best + 1e-9 else (self.best, self.since + 1)
        return self.since >= self.patience and len(self.values) >= self.least + self.patience

    def rounds(self) -> int:
        """Return how many rounds to keep, at least ``least``."""
        values, losses = np.asarray(self.values), np.asarray(self.losses)
        half = self.width // 2
        padded = np.concatenate([np.full(half, values[0]), values, np.full(self.width - 1 - half, values[-1])])
        smooth = np.convolve(padded, np.full(self.width, 1 / self.width), mode="valid")
        first = min(self.least, len(values)) - 1
        near = smooth[first:] >= smooth[first:].max() - AS_GOOD
        return self.step * (first + 1 + int(np.argmin(np.where(near, losses[first:], np.inf))))

    def trace(self) -> Trace:
        """Return one dict per step with ``round``, ``ap`` and ``loss``."""
        pairs = enumerate(zip(self.values, self.losses, strict=True), 1)
        return tuple({"round": float(i * self.step), "ap": ap, "loss": loss} for i, (ap, loss) in pairs)


@dataclass(frozen=True)
class Watched:
    """Rows that a fit is looked at on while it grows: the lines ``index`` of ``x``, copied one block at a time.

    x : (n, n_features) float32 · index : (m,)
    """

    x: FloatMatrix
    index: IntArray
    BLOCK: ClassVar[int] = 65_536

    def __len__(self) -> int:
        return len(self.index)

    def each(self, look: Callable[[slice, FloatMatrix], FloatArray]) -> FloatArray:
        """Return (m,) what ``look`` says of every block: it is given the block's place among the m, and its rows."""
        out = np.empty(len(self))
        for start in range(0, len(self), self.BLOCK):
            part = slice(start, min(start + self.BLOCK, len(self)))
            out[part] = look(part, self.x[self.index[part]])
        return out


class Growing(Protocol):
    """A fit that goes on step by step, so that the folds of a candidate can be stopped together.

    step : rounds (or epochs) of a step · most : where it ends · patience, least : as `BestRound` takes them
    """

    step: int
    most: int
    patience: int
    least: int

    def grow(self) -> None:
        """Take one step."""
        ...

    def log_odds(self) -> FloatArray:
        """Return (n,) log-odds of the watched rows as far as it has grown."""
        ...

    def fitted(self, rounds: int) -> Fitted:
        """Return its first ``rounds``."""
        ...


class GrowingRounds(Growing, Protocol):
    """One whose step is of as many rounds as asked for. done : rounds so far"""

    @property
    def done(self) -> int:
        """Rounds fitted so far."""

    def grow(self, rounds: int | None = None) -> None: ...


def grow_whole(growing: GrowingRounds, task: FitTask) -> None:
    """Grow to the end, round by round. Raises InterruptedFitError when time is over before."""
    while growing.done < growing.most:
        if task.out_of_time():
            raise InterruptedFitError
        growing.grow(1)


def pace(learning_rate: float) -> tuple[int, int]:
    """Return the rounds of a step of boosting, and the rounds that it takes at least."""
    return max(1, round(0.5 / learning_rate)), max(1, round(4 / learning_rate))


ALONE_ROWS = 120_000
"""Rows up to which one thread fits boosted trees; the folds of a candidate then grow side by side,
one in each thread.
"""


def threads_of_a_fit(rows: int, threads: int) -> int:
    """Return how many of the threads a fit of boosted trees uses.

    The threads of a fit meet after every level or node of a tree. Where rows are few they mostly wait for each other,
    and a neighbour on the machine makes that worse (docs/decisions/0019).
    """
    return 1 if rows <= ALONE_ROWS else threads
