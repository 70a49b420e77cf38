"""The recipe for few positives: what usual rows score is learned from rows that nothing else was learned from."""

import numpy as np
import pytest
from rows_for_learning import make_rows

from rareclass.core.fit_task import FitTask
from rareclass.core.scarce import describe, fit_scarce, shares

PARAMS = {"novelty": ["ecod"], "rounds": 60, "trees": 60}
KNOWN, FRESH = make_rows(900, seed=1), make_rows(900, seed=2)


@pytest.mark.parametrize("weighted", [False, True])
def test_every_part_is_as_surprised_by_usual_rows_as_a_tail_share_says(weighted):
    weight = np.where(KNOWN.x[:, 0] > 0, 2.0, 1.0) if weighted else None
    fitted = fit_scarce(FitTask(KNOWN, weight), PARAMS)
    usual = FRESH.x[FRESH.y == 0]
    described = describe(fitted.columns, fitted.novelty, usual)
    assert len(fitted.parts) == 5
    for part in fitted.parts:
        surprise = part.surprise(part.fitted.score(described if part.described else usual))
        assert 0.75 < surprise.mean() < 1.35, "minus the logarithm of what is spread evenly over 0 to 1 is 1"


def test_a_share_is_what_it_is_set_to_and_follows_the_positives_where_it_is_not():
    assert shares(10, {})["share"] == 0.5
    assert shares(30, {"hand_over": 10})["share"] == 0.25
    for params, share in (({}, 10 / (KNOWN.positives + 10)), ({"share": 0.6}, 0.6)):
        fitted = fit_scarce(FitTask(KNOWN), PARAMS | {"rounds": 2, "trees": 2} | params)
        assert sum(part.weight for part in fitted.parts if part.described) == pytest.approx(share)


@pytest.mark.filterwarnings("ignore:Only one sample available")
def test_one_usual_row_is_learned_from_and_says_how_high_it_scores():
    few = KNOWN.take(np.concatenate([np.flatnonzero(KNOWN.y == 1), np.flatnonzero(KNOWN.y == 0)[:2]]))
    for rows in (few, few.take(np.arange(len(few) - 1))):
        assert np.isfinite(fit_scarce(FitTask(rows), PARAMS | {"novelty": []}).score(FRESH.x)).all()
