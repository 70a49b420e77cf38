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
    done = [fit for fit in trained if fit.complete]
    resampled = [fit for fit in done if fit.candidate.group != "none"]
    if not resampled or done[0].candidate.group != "none":
        return Advice(
            UNKNOWN,
            "Should I resample? Not enough evidence: no candidate on resampled rows was finished beside the "
            "untouched one.",
        )
    scored = np.logical_and.reduce([fit.scored for fit in done])
    rows = dev.take(scored)
    values = {fit.candidate.name: average_precision(rows.y, fit.oof[scored], rows.weight) for fit in done}
    pairs = [
        (sampled, max(_plain(sampled, done), key=lambda rival: values[rival.candidate.name])) for sampled in resampled
    ]
    needed = {fit.candidate.name: fit.oof[scored] for pair in pairs for fit in pair}
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
    comparisons = []
    for resampled_fit, plain in pairs:
        a, b = resampled_fit.candidate.name, plain.candidate.name
        difference = judge_difference(
            values[a] - values[b],
            drawn[a] - drawn[b],
            confidence=confidence,
            compared=len(pairs),
            positives=rows.positives,
            rows=len(rows),
        )
        comparisons.append((a, b, difference.estimate))
    a, b, best = max(comparisons, key=lambda compared: compared[2].value)
    negligible = all(difference.high < WORTH * values[plain] for _, plain, difference in comparisons)
    answer = YES if best.low > 0 else NO if negligible else UNKNOWN
    return Advice(answer, _sentence(answer, a, b, best, len(comparisons)), a, b, best, len(comparisons))


def _plain(fit: Trained, done: Sequence[Trained]) -> list[Trained]:
    """Candidate 0, and the candidates that differ from ``fit`` in nothing but that their rows are left as they are."""
    return [
        done[0],
        *(other for other in done[1:] if other.candidate.group == "none" and _recipe(other) == _recipe(fit)),
    ]


def _recipe(fit: Trained) -> tuple[Any, ...]:
    made = fit.candidate
    return made.learner, sorted(made.params.items()), made.weighting, made.loss


def _sentence(answer: str, name: str, against: str, difference: Estimate, compared: int) -> str:
    number = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    best = f"{name}, the best of {compared} resampled candidates," if compared > 1 else name
    measured = (
        f"{best} differs from {against} by {number} average precision on the same held-out rows "
        f"({difference.positives:,} positives)"
    )
    verdict = {
        YES: "Yes: ",
        NO: f"No: a gain of {WORTH:.0%} or more is ruled out; ",
        UNKNOWN: "Not enough evidence: the interval holds both no gain and one that would matter; ",
    }[answer]
    return f"Should I resample? {verdict}{measured}."
