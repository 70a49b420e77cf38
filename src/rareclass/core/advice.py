"""Should one resample? The question answered on the rows of this run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rareclass.core.dataset import Rows
from rareclass.core.differences import judge_difference
from rareclass.core.estimate import Estimate
from rareclass.core.jsonable import Jsonable
from rareclass.core.ranking import average_precision, bootstrap_average_precision
from rareclass.core.training import Trained

WORTH = 0.02
"""Share of the untouched learner's average precision below which a gain is not worth a step of its own."""
_BOOTSTRAPS = 1000

YES, NO, UNKNOWN = "yes", "no", "not enough evidence"


@dataclass(frozen=True)
class Advice(Jsonable):
    """The answer, the best resampled candidate, what it is held against, and their difference of average precision.

    difference : paired, on the same held-out rows; its interval allows for the number of resampled candidates
    compared : how many those were
    """

    answer: str
    sentence: str
    resampled: str | None = None
    against: str | None = None
    difference: Estimate | None = None
    compared: int = 0


def should_resample(trained: Sequence[Trained], dev: Rows, *, confidence: float = 0.95, seed: int = 0) -> Advice:
    """Compare the candidates that were fitted on resampled rows with the best that they could be without.

    Each is held against candidate 0 or its own recipe without the resampling, whichever ranks better: a better learner
    is no merit of the resampling. The answer is "yes" where the interval of the best difference lies above 0; "no"
    where the intervals of all end below `WORTH` of the average precision they are held against.
    Intervals are Bonferroni's for their number.
    """
    done = [one for one in trained if one.complete]
    resampled = [one for one in done if one.candidate.group != "none"]
    if not resampled or done[0].candidate.group != "none":
        return Advice(
            UNKNOWN,
            "Should I resample? Not enough evidence: no candidate on resampled rows was finished beside the "
            "untouched one.",
        )
    scored = np.logical_and.reduce([one.scored for one in done])
    rows = dev.take(scored)
    values = {one.candidate.name: average_precision(rows.y, one.oof[scored], rows.weight) for one in done}
    pairs = [(one, max(_plain(one, done), key=lambda each: values[each.candidate.name])) for one in resampled]
    needed = {one.candidate.name: one.oof[scored] for pair in pairs for one in pair}
    drawn = dict(
        zip(
            needed,
            bootstrap_average_precision(
                rows.y,
                np.stack(list(needed.values())),
                block=rows.block(),
                n_boot=_BOOTSTRAPS,
                seed=seed,
                weight=rows.weight,
            ),
            strict=True,
        )
    )
    found = []
    for one, plain in pairs:
        a, b = one.candidate.name, plain.candidate.name
        difference = judge_difference(
            values[a] - values[b],
            drawn[a] - drawn[b],
            confidence=confidence,
            compared=len(pairs),
            positives=rows.positives,
            rows=len(rows),
        )
        found.append((a, b, difference.estimate))
    a, b, best = max(found, key=lambda each: each[2].value)
    negligible = all(each.high < WORTH * values[plain] for _, plain, each in found)
    answer = YES if best.low > 0 else NO if negligible else UNKNOWN
    return Advice(answer, _sentence(answer, a, b, best, len(found)), a, b, best, len(found))


def _plain(one: Trained, done: Sequence[Trained]) -> list[Trained]:
    """Candidate 0, and the candidates that differ from ``one`` in nothing but that their rows are left as they are."""
    return [done[0], *(each for each in done[1:] if each.candidate.group == "none" and _recipe(each) == _recipe(one))]


def _recipe(one: Trained) -> tuple[Any, ...]:
    made = one.candidate
    return made.learner, sorted(made.params.items()), made.weighting, made.loss


def _sentence(answer: str, name: str, against: str, difference: Estimate, compared: int) -> str:
    number = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    best = f"{name}, the best of {compared} resampled candidates," if compared > 1 else name
    measured = (
        f"{best} differs from {against} by {number} average precision on the same held-out rows "
        f"({difference.positives:,} positives)"
    )
    told = {
        YES: "Yes: ",
        NO: f"No: a gain of {WORTH:.0%} or more is ruled out; ",
        UNKNOWN: "Not enough evidence: the interval holds both no gain and one that would matter; ",
    }[answer]
    return f"Should I resample? {told}{measured}."
