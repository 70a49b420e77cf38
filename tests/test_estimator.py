import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import average_precision_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from rareclass import RareClassifier


@parametrize_with_checks([RareClassifier()])
def test_it_obeys_every_check_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def rare():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 5))
    z = 2 * x[:, 0] + x[:, 1] * x[:, 2] - 4.5
    y = (rng.random(1500) < 1 / (1 + np.exp(-z))).astype(int)
    return x, y


def test_scores_rank_unseen_rows_and_are_calibrated(rare):
    x, y = rare
    fitted = RareClassifier(random_state=1).fit(x[:1000], y[:1000])
    p = fitted.predict_proba(x[1000:])[:, 1]
    assert average_precision_score(y[1000:], p) > 4 * y.mean()
    assert 0.5 < p.mean() / y[1000:].mean() < 2
    assert fitted.threshold_ < 0.5, "with a rare class the tuned threshold lies below one half"


def test_text_columns_are_categories_and_unseen_levels_are_scored(rare):
    x, y = rare
    frame = pd.DataFrame(x[:400, :2], columns=["a", "b"])
    frame["shop"] = np.where(y[:400] == 1, "risky", "plain")
    fitted = RareClassifier(candidates="xgboost", folds=3).fit(frame, np.where(y[:400] == 1, "fraud", "fine"))
    assert fitted.positive_ == "fraud"
    assert fitted.model_.schema.features[2].categories == ("plain", "risky")
    p = fitted.predict_proba(frame.assign(shop=["plain", "risky"] * 200))[:, list(fitted.classes_).index("fraud")]
    assert p[1::2].mean() > p[::2].mean()
    assert np.isfinite(fitted.predict_proba(frame.assign(shop="never seen"))).all()


def test_columns_may_come_in_another_order_only_where_scikit_learn_allows_it(rare):
    x, y = rare
    frame = pd.DataFrame(x[:300], columns=list("abcde"))
    fitted = RareClassifier(candidates="logistic_regression", folds=2).fit(frame, y[:300])
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[list("edcba")])


def test_a_recall_that_is_asked_for_is_reached_on_held_out_scores(rare):
    x, y = rare
    asked = RareClassifier(
        candidates="logistic_regression", objective="precision_at_recall", min_recall=0.9, folds=3
    ).fit(x, y)
    assert asked.tuned_.feasible
    assert asked.tuned_.recall.value >= 0.9


def test_the_same_seed_gives_the_same_scores(rare):
    x, y = rare
    first = RareClassifier(candidates="xgboost", folds=2, random_state=3).fit(x[:300], y[:300])
    again = clone(first).fit(x[:300], y[:300])
    np.testing.assert_array_equal(first.predict_proba(x), again.predict_proba(x))


def test_mistakes_are_value_errors_with_the_nearest_name(rare):
    x, y = rare
    with pytest.raises(ValueError, match="Did you mean 'xgboost'"):
        RareClassifier(candidates="xgbost").fit(x, y)
    with pytest.raises(ValueError, match="not a class of y"):
        RareClassifier(positive=7).fit(x, y)


def test_importing_the_package_stays_light():
    code = "import sys, rareclass; print([m for m in ('sklearn', 'xgboost', 'pandas', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_equal_rows_and_rows_of_a_group_are_never_on_both_sides_of_a_fold():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(150, 4)).repeat(4, axis=0), (rng.random(150) < 0.2).astype(int).repeat(4)
    owner = np.arange(150).repeat(4)
    near = x + rng.normal(scale=0.01, size=x.shape)

    def promised(rows, **groups):
        made = RareClassifier("extra_trees", calibration="none", folds=3).fit(rows, y, **groups)
        return made.selection_.table[0].ap.value

    assert promised(x) < 2 * y.mean(), "labels without a pattern cannot be ranked, however often a row is there"
    assert promised(near, groups=[f"card {each}" for each in owner]) < 2 * y.mean()
    assert promised(near) > 3 * y.mean(), "without the groups nobody can know"
    with pytest.raises(ValueError, match="inconsistent numbers"):
        promised(near, groups=owner[:-1])
