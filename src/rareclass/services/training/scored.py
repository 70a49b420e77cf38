"""The rows that a run was judged on, with their scores: enough to compute again, with other software, what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rareclass.services.training.steps import costs_of

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.core.dataset import AnyArray, FloatArray, Rows
    from rareclass.core.evaluation import Evaluation
    from rareclass.services.training.steps import Run

CANDIDATE = "candidate "
SLICE = "slice "
_MOST_VALUES = 20_000_000
"""Scores of candidates kept; with more, those of candidate 0 and of the winner's members."""


def test_rows(run: Run) -> pd.DataFrame:
    """Return the test rows, or a sample with weights of a table larger than memory: label, score, decision, costs,
    block of the bootstrap, levels of slices, the champion's score.
    """
    from rareclass.core import gating

    test, judged = run.ingested.test, run.judged
    score = judged.score if judged.sampled is None else judged.sampled
    frame = _common(run, test, score)
    frame.insert(3, "decision", (score >= run.tuning.thresholds[run.tuning.primary]).astype(int))
    _add_levels(frame, test, judged.evaluation)
    champion = run.ingested.incumbent
    if isinstance(champion, gating.Champion):
        if judged.sampled is not None and run.ingested.beyond is not None:
            champion = champion.take(_places(run.ingested.beyond.rows["test"].row_id, test.row_id))
        frame["champion_score"], frame["champion_compared"] = champion.score, champion.compared
    return frame


def _places(among: AnyArray, wanted: AnyArray) -> AnyArray:
    """Return where each of the wanted ids stands."""
    import numpy as np

    order = np.argsort(among)
    return np.asarray(order[np.searchsorted(among, wanted, sorter=order)])


def heldout_rows(run: Run) -> pd.DataFrame:
    """Return the rows that the folds held out: label, calibrated score of the winner, what each candidate said."""
    chosen = run.chosen
    rows = run.dev.take(chosen.scored)
    tuning = run.tuning
    frame = _common(run, rows, tuning.score if tuning.sampled is None else tuning.sampled)
    done = [one for one in run.trained if one.complete]
    if len(done) * len(rows) > _MOST_VALUES:
        done = [one for k, one in enumerate(done) if k == 0 or one.candidate.name in chosen.weights]
    for one in done:
        frame[CANDIDATE + one.candidate.name] = one.oof[chosen.scored]
    for name, score in chosen.crossed.items():
        frame[CANDIDATE + name] = score
    return frame


def cross_fitted_rows(run: Run) -> pd.DataFrame | None:
    """Return the rows that cross-fitting judged: label, costs, score and decision of each repeat; None where the test
    rows did.
    """
    from rareclass.core import dataset

    crossed = run.judged.crossed
    if crossed is None:
        return None
    rows = dataset.concatenate([run.dev, run.ingested.test]).take(crossed.rows)
    frame = _common(run, rows, crossed.score.mean(axis=0))
    for number, (score, flagged) in enumerate(zip(crossed.score, crossed.flagged, strict=True)):
        frame[f"score {number}"], frame[f"decision {number}"] = score, flagged.astype(int)
    _add_levels(frame, rows, crossed.evaluation)
    champion = run.ingested.incumbent_everywhere
    if champion is not None:
        there = champion.take(crossed.rows)
        frame["champion_score"], frame["champion_compared"] = there.score, there.compared
        frame["champion_decision"] = there.decision
    return frame


def _add_levels(frame: pd.DataFrame, rows: Rows, evaluation: Evaluation) -> None:
    """Add a column for each that the rows were cut by into slices, with the level of each row."""
    import numpy as np

    from rareclass.core.evaluation import levels

    for column in dict.fromkeys(each.column for each in evaluation.slices):
        level = np.full(len(rows), None, dtype=object)
        for name, inside in levels(rows, column):
            level[inside] = name
        frame[SLICE + column] = level


def _common(run: Run, rows: Rows, score: FloatArray) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    money = costs_of(run.config, run.dev, rows)
    block = rows.block()
    frame = pd.DataFrame({"row_id": rows.row_id, "label": rows.y, "score": score})
    if rows.time is not None:
        frame["ts"] = rows.time
    frame["block"] = np.arange(len(rows)) if block is None else block
    frame["weight"] = 1.0 if rows.weight is None else rows.weight
    frame["cost_of_miss"], frame["cost_of_alarm"] = money.misses(len(rows)), money.alarms(len(rows))
    return frame
