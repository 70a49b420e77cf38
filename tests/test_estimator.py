import inspect
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rareclass import RareClassifier
from rareclass.config import parse
from rareclass.core import planning
from rareclass.services.training import steps


def left_open(estimator):
    why = "folds deal out groups of equal rows by their size, so a row of weight 3 is dealt unlike three rows"
    return {"check_sample_weight_equivalence_on_dense_data": why}


@parametrize_with_checks([RareClassifier(max_candidates=2, folds=3)], expected_failed_checks=left_open)
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


@pytest.fixture(scope="module")
def grouped(rare):
    """Rows in pairs of one class whose weights sum up to 4, so that repeating rows leaves the folds as they are; the
    row that is harder to tell weighs 3."""
    x, y = rare
    hard = np.where(y == 1, -x[:, 0], x[:, 0])
    pairs = np.concatenate(
        [np.flatnonzero(y == label)[: np.sum(y == label) // 2 * 2].reshape(-1, 2) for label in (0, 1)]
    )
    weight = np.where(hard[pairs] == hard[pairs].max(axis=1, keepdims=True), 3, 1)
    return x[pairs.ravel()], y[pairs.ravel()], weight.ravel(), np.arange(len(pairs)).repeat(2)


def made_of(fitted):
    ap, tuned = fitted.selection_.table[0].ap, fitted.tuned_
    return np.array([ap.value, ap.low, ap.high, tuned.value, tuned.precision.value, tuned.recall.value])


def test_a_row_of_weight_three_counts_like_three_rows(grouped):
    x, y, weight, pair = grouped
    settings = {"candidates": "logistic_regression", "calibration": "platt", "folds": 3, "objective": "cost"}
    weighted = RareClassifier(**settings).fit(x, y, sample_weight=weight, groups=pair)
    again = np.arange(len(y)).repeat(weight)
    repeated = RareClassifier(**settings).fit(x[again], y[again], groups=pair[again])
    ignored = RareClassifier(**settings).fit(x, y, groups=pair)
    near = np.abs(made_of(weighted) - made_of(repeated))
    far = np.abs(made_of(ignored) - made_of(repeated))
    assert near.max() < 0.005 < far.max()
    p, q, r = (each.predict_proba(x)[:, 1] for each in (weighted, repeated, ignored))
    assert np.abs(p - q).max() < 0.01 < np.abs(r - q).max()


def test_rows_of_weight_zero_do_not_count(rare):
    x, y = rare
    frame = pd.DataFrame(x[:400, :2], columns=["a", "b"]).assign(shop=np.where(y[:400] == 1, "risky", "plain"))
    owner = np.arange(400) // 2
    noise = frame.assign(a=1e6, shop="nobody's")
    both = pd.concat([frame, noise], ignore_index=True)
    labels = np.concatenate([y[:400], 1 - y[:400]])
    counts = np.repeat([2.0, 0.0], 400)
    kept = RareClassifier(["xgboost", "extra_trees"], folds=2).fit(
        both, labels, sample_weight=counts, groups=np.concatenate([owner, owner])
    )
    alone = RareClassifier(["xgboost", "extra_trees"], folds=2).fit(
        frame, y[:400], sample_weight=counts[:400], groups=owner
    )
    assert kept.positive_ == 1
    assert kept.model_.schema.features[2].categories == ("plain", "risky")
    assert kept.threshold_ == alone.threshold_
    assert (kept.predict_proba(frame) == alone.predict_proba(frame)).all()
    with pytest.raises(ValueError, match="only one class among rows of a weight above 0"):
        RareClassifier().fit(x, y, sample_weight=(y == 0).astype(float))
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        RareClassifier().fit(x, y, sample_weight=y - 0.5)


def test_weights_of_one_and_no_weights_give_the_same_model(rare):
    x, y = rare
    quick = RareClassifier("xgboost", folds=2)
    plain = clone(quick).fit(x[:300], y[:300]).predict_proba(x)
    assert (clone(quick).fit(x[:300], y[:300], sample_weight=np.ones(300)).predict_proba(x) == plain).all()


def test_weights_and_groups_are_routed_to_it_and_passed_by_hand(grouped):
    x, y, weight, pair = grouped
    quick = RareClassifier("logistic_regression", folds=2, calibration="platt")
    direct = clone(quick).fit(MinMaxScaler().fit_transform(x), y, sample_weight=weight, groups=pair)
    by_hand = make_pipeline(MinMaxScaler(), clone(quick))
    by_hand.fit(x, y, rareclassifier__sample_weight=weight, rareclassifier__groups=pair)
    with sklearn.config_context(enable_metadata_routing=True):
        asked = clone(quick).set_fit_request(sample_weight=True, groups=True)
        asked.set_score_request(sample_weight=True)
        routed = make_pipeline(MinMaxScaler(), asked).fit(x, y, sample_weight=weight, groups=pair)
        found = cross_validate(
            asked,
            x,
            y,
            cv=GroupKFold(2),
            params={"sample_weight": weight, "groups": pair},
            return_estimator=True,
            return_indices=True,
        )
    for other in (by_hand, routed):
        assert (other.predict_proba(x) == direct.predict_proba(MinMaxScaler().fit_transform(x))).all()
    train = found["indices"]["train"][0]
    same = clone(quick).fit(x[train], y[train], sample_weight=weight[train], groups=pair[train])
    assert (found["estimator"][0].predict_proba(x) == same.predict_proba(x)).all()


def test_its_plan_is_that_of_a_run(rare):
    x, y = rare
    fitted = RareClassifier(folds=2, random_state=2).fit(x[:500], y[:500])
    frame = pd.DataFrame(x[:500], columns=[f"x{i}" for i in range(5)])
    rows = fitted._rows(frame, y[:500], None, None)
    config = parse({"name": "run", "data": {"path": "memory", "target": "y"}, "search": {"trials": 4}})
    assert fitted.plan_ == planning.plan(steps.diagnosed(config, rows), config.search, rows.schema)
    assert [line.name for line in fitted.selection_.table][:4] == [each.name for each in fitted.plan_]
    assert fitted.plan_[0].name == "xgboost"


def test_what_is_resampled_and_weighted_has_to_beat_the_untouched_first_candidate(rare):
    x, y = rare
    fitted = RareClassifier(
        resample=["tomek", {"name": "random_under", "ratio": 5}], weighting="sqrt_balanced", max_candidates=4, folds=2
    ).fit(x[:500], y[:500])
    first, *rest = fitted.plan_
    assert (first.group, first.weighting) == ("none", "none")
    assert [(each.learner, each.group, each.weighting) for each in rest] == [
        ("xgboost", "tomek+random_under(ratio=5)", "sqrt_balanced"),
        ("scarce", "tomek+random_under(ratio=5)", "none"),  # its parts are balanced by themselves
        ("extra_trees", "tomek+random_under(ratio=5)", "sqrt_balanced"),
    ]
    assert 0.5 < fitted.predict_proba(x[500:])[:, 1].mean() / y[500:].mean() < 2, "what was sampled is corrected"


def test_named_candidates_all_are_resampled_and_weighted(rare):
    x, y = rare
    plain = RareClassifier("logistic_regression", folds=2, calibration="none").fit(x, y)
    made = RareClassifier(
        "logistic_regression",
        resample="smote",
        weighting="cost",
        folds=2,
        calibration="none",
        cost_false_negative=20,
        cost_false_positive=1,
    ).fit(x, y)
    (only,) = made.plan_
    assert (only.group, only.weighting) == ("smote", "cost")
    assert not np.allclose(made.predict_proba(x), plain.predict_proba(x), atol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"resample": "smoote"}, "unknown resampler 'smoote'.*smote"),
        ({"resample": {"name": "smote", "ration": 2}}, "ratio"),
        ({"weighting": "balnced"}, "unknown weighting 'balnced'.*balanced"),
        ({"weighting": "amount"}, "sample_weight"),
        ({"candidates": "xgbost"}, "unknown learner 'xgbost'.*xgboost"),
        ({"candidates": "easy_ensemble", "weighting": "balanced"}, "would ignore weighting"),
        ({"max_candidates": 0}, "trials"),
        ({"random_state": None}, "seed"),
    ],
)
def test_a_recipe_that_does_not_exist_is_refused_in_one_line(rare, wrong, said):
    with pytest.raises(ValueError, match=said) as refused:
        RareClassifier(**wrong).fit(*rare)
    assert "\n" not in str(refused.value)


def test_every_parameter_and_fitted_attribute_is_documented(rare):
    x, y = rare
    fitted = RareClassifier("logistic_regression", folds=2).fit(pd.DataFrame(x, columns=list("abcde")), y)
    lines = inspect.getdoc(RareClassifier).splitlines()
    described = {line.split(" : ")[0] for line in lines if " : " in line and not line.startswith(" ")}
    assert described == {*fitted.get_params(), *(name for name in vars(fitted) if name.endswith("_"))}


def test_costs_that_were_not_given_follow_the_weighted_prevalence(rare):
    x, y = rare
    settings = {"candidates": "logistic_regression", "calibration": "none", "folds": 3, "objective": "cost"}
    weight = np.where(y == 1, 5, 1)
    again = np.arange(len(y)).repeat(weight)
    weighted = RareClassifier(**settings).fit(x, y, sample_weight=weight)
    repeated = RareClassifier(**settings).fit(x[again], y[again])
    assert weighted.tuned_.objective_value.value == pytest.approx(repeated.tuned_.objective_value.value, rel=0.02)
