"""Costs: what is given is kept, what is missing is derived and said."""

import numpy as np
import pytest

from rareclass.config import CostsSettings
from rareclass.core.costs import CostArrays, cost_arrays
from rareclass.errors import ConfigError, DataError


def test_without_costs_doing_nothing_and_flagging_everything_cost_the_same():
    costs = cost_arrays(CostsSettings(), 0.02)
    assert not costs.given
    assert costs.false_positive == 1
    assert costs.false_negative == pytest.approx(49)
    assert 0.02 * costs.false_negative == pytest.approx(0.98 * costs.false_positive)
    assert "no costs were set" in costs.note


def test_two_given_costs_are_kept_as_they_are():
    costs = cost_arrays(CostsSettings(false_negative=500, false_positive=4, currency="EUR"), 0.1)
    assert (costs.false_negative, costs.false_positive, costs.currency, costs.given) == (500, 4, "EUR", True)
    assert costs.note == ""


def test_one_given_cost_fixes_the_other_by_the_prevalence_and_says_so():
    miss = cost_arrays(CostsSettings(false_negative=100), 0.2)
    assert miss.false_positive == pytest.approx(25)
    assert "false_positive was not set: 25" in miss.note
    alarm = cost_arrays(CostsSettings(false_positive=2), 0.2)
    assert alarm.false_negative == pytest.approx(8)
    assert "false_negative was not set: 8" in alarm.note
    assert miss.given
    assert alarm.given


def test_a_share_of_the_amount_is_lost_by_a_miss():
    costs = cost_arrays(CostsSettings(amount_share=0.5), 0.1, np.array([10.0, 0.0, 30.0]))
    np.testing.assert_allclose(costs.false_negative, [5, 0, 15])
    assert costs.false_positive == 1
    assert "false_positive was not set: 1" in costs.note
    assert cost_arrays(CostsSettings(amount_share=0.5, false_positive=7), 0.1, np.ones(3)).false_positive == 7


def test_missing_amounts_count_as_the_mean_and_are_said():
    costs = cost_arrays(CostsSettings(amount_share=1, false_positive=1), 0.1, np.array([10.0, np.nan, 30.0]))
    np.testing.assert_allclose(costs.false_negative, [10, 20, 30])
    assert "1 missing amounts count as the mean, 20" in costs.note


@pytest.mark.parametrize(
    ("amount", "error", "says"),
    [
        (None, ConfigError, "data.amount"),
        ([-1.0, 2.0], DataError, "negative"),
        ([np.nan], DataError, "no amount is known"),
    ],
)
def test_amounts_that_cannot_be_costs_are_refused(amount, error, says):
    with pytest.raises(error, match=says):
        cost_arrays(CostsSettings(amount_share=1), 0.1, amount)


def test_taking_rows_keeps_costs_per_row_and_numbers():
    costs = CostArrays(np.array([1.0, 2.0, 3.0]), 4.0)
    taken = costs.take(np.array([True, False, True]))
    np.testing.assert_array_equal(taken.misses(2), [1, 3])
    np.testing.assert_array_equal(taken.alarms(2), [4, 4])
    assert taken.to_json()["false_negative"] == 2
    assert taken.to_json()["per_row"]
    with pytest.raises(DataError, match="3 false_negative costs were given for 2 rows"):
        costs.misses(2)
