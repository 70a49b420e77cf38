import dataclasses

import numpy as np
import pytest
from rows_for_learning import make_rows

from rareclass.core.calibration import prior_correction
from rareclass.core.costs import CostArrays
from rareclass.core.weighting import WEIGHTINGS, weigh
from rareclass.errors import ConfigError, NoPositivesError

ROWS = make_rows()
COSTS = CostArrays(50.0, 2.0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_weighting_gives_one_positive_weight_per_row_with_mean_one(name):
    found = weigh(ROWS, name, COSTS)
    assert found.weight.shape == (len(ROWS),)
    assert (found.weight > 0).all()
    assert found.weight.mean() == pytest.approx(1.0)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_inverse_propensity_weights_multiply(name):
    ipw = np.linspace(1, 3, len(ROWS))
    np.testing.assert_allclose(
        weigh(dataclasses.replace(ROWS, weight=ipw), name, COSTS).weight, weigh(ROWS, name, COSTS).weight * ipw
    )


@pytest.mark.parametrize("name", ["none", "balanced", "sqrt_balanced", "cost"])
def test_the_factor_undoes_what_the_weights_do_to_the_prior(name):
    found = weigh(ROWS, name, COSTS)
    shifted = np.average(ROWS.y, weights=found.weight)  # what a model without features would learn
    assert prior_correction(np.array([shifted]), found.negative_sampling_rate)[0] == pytest.approx(ROWS.prevalence)


def test_balanced_classes_weigh_the_same_in_all():
    weight = weigh(ROWS, "balanced").weight
    assert weight[ROWS.y == 1].sum() == pytest.approx(weight[ROWS.y == 0].sum())


def test_costs_by_row_are_corrected_by_their_mean():
    by_row = CostArrays(np.linspace(1, 9, len(ROWS)), 1.0)
    found = weigh(ROWS, "cost", by_row)
    assert found.negative_sampling_rate == pytest.approx(1 / by_row.false_negative[ROWS.y == 1].mean())
    positive = np.flatnonzero(ROWS.y)
    assert found.weight[positive[-1]] > found.weight[positive[0]]


def test_amounts_move_weight_inside_a_class_not_between_classes():
    found = weigh(ROWS, "amount")
    share = found.weight[ROWS.y == 1].sum() / found.weight.sum()
    assert share == pytest.approx(ROWS.prevalence, rel=0.02)
    large = ROWS.amount > np.median(ROWS.amount)
    assert found.weight[large].mean() > 2 * found.weight[~large].mean()


def test_what_is_missing_is_said_with_what_to_set():
    with pytest.raises(ConfigError, match=r"costs\.false_negative"):
        weigh(ROWS, "cost")
    with pytest.raises(ConfigError, match=r"data\.amount"):
        weigh(dataclasses.replace(ROWS, amount=None), "amount")
    with pytest.raises(ConfigError, match="Did you mean 'balanced'"):
        weigh(ROWS, "balancd")
    with pytest.raises(NoPositivesError, match="both classes"):
        weigh(ROWS.take(ROWS.y == 0), "balanced")
