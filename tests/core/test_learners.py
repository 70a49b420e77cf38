import copy
import dataclasses
import gc
import importlib.util
import io
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import skops.io
from rows_for_learning import fit, make_rows
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.metrics import average_precision_score
from xgboost import XGBClassifier

from rareclass.core import planning, portable
from rareclass.core.candidates import Candidate
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.early_stopping import BestRound, Watched
from rareclass.core.fit_task import FitTask, InterruptedFitError
from rareclass.core.fitted import Boosted, Trees, _margins
from rareclass.core.learners import LEARNERS, grow, with_defaults
from rareclass.core.log_odds import logit
from rareclass.core.planning import AS_IT_COMES
from rareclass.core.preprocessing import Preparation
from rareclass.core.ranking import FastPrecision
from rareclass.core.sklearn_learners import thin
from rareclass.core.training import SAVED
from rareclass.errors import ConfigError, MissingExtraError, ModelError

TRAIN, TEST = make_rows(700, category=True), make_rows(800, seed=2, category=True)
WATCHED = Watched(TEST.x, np.arange(1, len(TEST), 3))
GROWING = [name for name, each in LEARNERS.items() if each.grow is not None]
QUICK = {
    "xgboost": {"rounds": 60},
    "lightgbm": {"rounds": 60},
    "catboost": {"rounds": 40},
    "random_forest": {"n_estimators": 40},
    "balanced_random_forest": {"n_estimators": 40},
    "extra_trees": {"n_estimators": 40},
    "hist_gradient_boosting": {"max_iter": 40},
    "logistic_regression": {},
    "mlp": {"epochs": 15},
    "adaboost": {"n_estimators": 30},
    "rusboost": {"n_estimators": 30},
    "easy_ensemble": {"n_estimators": 3},
    "scarce": {"novelty": ["ecod"], "rounds": 60, "trees": 40},
    "detectors": {"members": ["ecod", "knn"]},
}


@pytest.fixture(scope="module")
def fitted():
    return {name: fit(name, TRAIN, params=QUICK[name], seed=3) for name in LEARNERS}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_ranks_unseen_rows_with_gaps_and_categories(name, fitted):
    score = fitted[name].score(TEST.x)
    assert score.shape == (len(TEST),)
    assert score.dtype == np.float64
    assert ((score > 0) & (score < 1)).all()
    assert average_precision_score(TEST.y, score) > (1 if LEARNERS[name].one_class else 2) * TEST.prevalence


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_scores_the_same_read_from_its_files_and_row_by_row(name, fitted):
    again = portable.unpack(portable.pack(fitted[name], SAVED), SAVED)
    np.testing.assert_array_equal(again.score(TEST.x), fitted[name].score(TEST.x))
    whole = fitted[name].score(TEST.x[:20])
    np.testing.assert_array_equal(again.score(TEST.x[:20]), whole)
    np.testing.assert_allclose(np.concatenate([again.score(TEST.x[i : i + 1]) for i in range(20)]), whole, rtol=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_is_deterministic_by_seed(name, fitted):
    again = fit(name, TRAIN, params=QUICK[name], seed=3)
    np.testing.assert_array_equal(again.score(TEST.x), fitted[name].score(TEST.x))


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_scores_levels_it_has_not_seen_and_rows_without_any_value(name, fitted):
    x = np.full((2, TEST.x.shape[1]), np.nan, dtype=np.float32)
    x[0, 4] = 2.0
    assert np.isfinite(fitted[name].score(x)).all()


@pytest.mark.parametrize("name", GROWING)
def test_what_has_grown_step_by_step_is_what_a_fit_of_as_many_rounds_gives(name, monkeypatch):
    monkeypatch.setattr(Watched, "BLOCK", 100)
    growing = grow(name, FitTask(TRAIN, seed=5), WATCHED, QUICK[name])
    seen = []
    for _ in range(3):
        growing.grow()
        seen.append(growing.log_odds())
    rounds = 2 * growing.step
    assert 3 * growing.step <= growing.most
    early = growing.fitted(rounds)
    assert early.rounds == rounds
    np.testing.assert_allclose(logit(early.score(TEST.x[WATCHED.index])), seen[1], atol=1e-4)
    fixed = fit(name, TRAIN, params=QUICK[name], rounds=rounds, seed=5)
    assert fixed.rounds == rounds
    if name != "hist_gradient_boosting":  # its steps draw other thresholds where a fit starts again
        np.testing.assert_allclose(fixed.score(TEST.x), early.score(TEST.x), rtol=1e-5)


def test_a_learner_without_rounds_does_not_grow():
    with pytest.raises(ConfigError, match="random_forest"):
        grow("random_forest", FitTask(TRAIN), WATCHED)


def test_focal_loss_ranks_and_says_that_its_scores_are_no_probabilities():
    focal = fit("xgboost", TRAIN, params={"rounds": 60, "focal_gamma": 2.0}, loss="focal")
    plain = fit("xgboost", TRAIN, params={"rounds": 60})
    assert average_precision_score(TEST.y, focal.score(TEST.x)) > 2 * TEST.prevalence
    assert not np.allclose(focal.score(TEST.x), plain.score(TEST.x))


def test_contributions_of_trees_add_up_to_the_log_odds_apart_from_a_constant(fitted):
    model = fitted["xgboost"]
    score = model.score(TEST.x)
    rest = np.log(score / (1 - score)) - model.contributions(TEST.x).sum(axis=1)
    np.testing.assert_allclose(rest, rest[0], atol=1e-3)
    assert fitted["logistic_regression"].contributions(TEST.x) is None


@pytest.mark.parametrize("kind", [RandomForestClassifier, ExtraTreesClassifier])
def test_flattened_trees_score_as_scikit_learn_does(kind):
    assert np.isnan(TEST.x).any()
    forest = kind(20, min_samples_leaf=2, random_state=0).fit(TRAIN.x, TRAIN.y)
    trees, expected = Trees.of(forest.estimators_), forest.predict_proba(TEST.x)[:, 1]
    np.testing.assert_array_equal(trees.score(TEST.x), expected)
    np.testing.assert_allclose(trees.score(TEST.x, threads=2), expected, atol=1e-12)
    np.testing.assert_allclose(trees.score(TEST.x[:30]), expected[:30], atol=1e-12)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_is_written_without_a_pickle_or_a_process(name, fitted):
    files = portable.pack(fitted[name], SAVED)
    assert {Path(file).suffix for file in files} <= {".json", ".npz", ".ubj", ".skops", ".lgb", ".cbm"}
    assert getattr(getattr(fitted[name], "estimator", None), "n_jobs", 1) in (1, None)


def test_files_that_ask_for_anything_but_a_learner_make_nothing(tmp_path):
    marker = tmp_path / "ran"

    class Harm:
        def __reduce__(self):
            return (marker.touch, ())

    arrays = io.BytesIO()
    np.savez(arrays, a0=np.array([Harm()], dtype=object))
    array = {"$": "array", "key": "a0"}
    classifier = RandomForestClassifier(2).fit(TRAIN.x, TRAIN.y)
    classifier.extra = Path(tmp_path)
    for files in (
        {"value.json": json.dumps(array).encode(), "value.npz": arrays.getvalue()},
        {"value.json": b'{"$": "Popen", "args": "true"}'},
        {"value.json": b'{"$": "ubj", "file": "a"}', "a": b"\x80\x04harm"},
        {"value.json": b'{"$": "skops", "file": "a"}', "a": pickle.dumps(Harm())},
        {"value.json": b'{"$": "skops", "file": "a"}', "a": skops.io.dumps(classifier)},
    ):
        with pytest.raises(ModelError, match=r"not what this rareclass writes|which this rareclass does not know"):
            portable.unpack(files, SAVED)
    assert not marker.exists()
    with pytest.raises(TypeError, match="without code"):
        portable.pack(Harm(), SAVED)


def test_a_tree_whose_nodes_point_outside_of_it_is_refused(fitted):
    trees = fitted["random_forest"].trees
    left = trees.left.copy()
    left[0] = len(left) + 7
    for wrong in ({"left": left}, {"feature": np.where(trees.feature == 0, 99, trees.feature)}):
        with pytest.raises(ModelError, match="damaged"):
            dataclasses.replace(trees, **wrong)
    boosted = fitted["adaboost"]
    nodes = boosted.estimator.estimators_[0].tree_.__getstate__()
    nodes["nodes"]["left_child"][0] = 10**9
    tree = type(boosted.estimator.estimators_[0].tree_)(7, np.array([2], dtype=np.intp), 1)
    tree.__setstate__(nodes)
    spoiled = copy.deepcopy(boosted.estimator)
    spoiled.estimators_[0].tree_ = tree
    files = portable.pack(dataclasses.replace(boosted, estimator=spoiled), SAVED)
    with pytest.raises(ModelError, match="damaged"):
        portable.unpack(files, SAVED)


def test_the_balanced_forest_knows_its_sampling_factor(fitted):
    assert fitted["balanced_random_forest"].negative_sampling_rate == pytest.approx(
        TRAIN.positives / (len(TRAIN) - TRAIN.positives)
    )
    assert fitted["random_forest"].negative_sampling_rate == 1.0


def test_weights_change_the_fit():
    weight = np.where(TRAIN.y == 1, 20.0, 1.0)
    heavy = fit("logistic_regression", TRAIN, weight=weight).score(TEST.x).mean()
    assert heavy > 2 * fit("logistic_regression", TRAIN).score(TEST.x).mean()


@pytest.mark.parametrize("name", ["xgboost", "mlp"])
def test_a_fit_is_given_up_inside_when_time_is_out(name):
    calls = iter([False] * 3 + [True] * 100)
    with pytest.raises(InterruptedFitError):
        fit(name, TRAIN, params=QUICK[name], out_of_time=lambda: next(calls))


def thin_tail(seed):
    """20,000 rows whose positives lie above .9985 of a uniform column: inside the last of 256 bins."""
    rng = np.random.default_rng(seed)
    x = rng.random((20_000, 2)).astype(np.float32)
    y = ((x[:, 0] > 0.9985) & (rng.random(len(x)) < 0.9)).astype(np.int64)
    return Rows(Schema((Feature("a"), Feature("b"))), x, y, np.arange(len(x), dtype=np.uint64))


@pytest.mark.parametrize("weight", [None, 2.0], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("loss", ["logistic", "focal"])
def test_cut_points_lie_where_the_positives_are(loss, weight):
    train, test = thin_tail(0), thin_tail(1)
    weight = None if weight is None else np.full(len(train), weight)

    def found(**params):
        known = {"max_bin": 256, "rounds": 40, **params}
        return fit("xgboost", train, params=known, loss=loss, weight=weight, seed=3)

    ours, again, own = found(), found(), found(cut_points="rows")
    assert ours.booster.save_raw() == again.booster.save_raw()
    precision = [average_precision_score(test.y, each.score(test.x)) for each in (ours, own)]
    assert precision[0] > precision[1] + 0.2, precision


def test_cut_points_by_rows_are_those_of_xgboost_itself():
    train, test = thin_tail(0), thin_tail(1)
    own = fit("xgboost", train, params={**AS_IT_COMES, "rounds": 10, "base_score": 0.5})
    model = XGBClassifier(n_estimators=10, base_score=0.5, tree_method="hist").fit(train.x, train.y)
    np.testing.assert_allclose(own.score(test.x), model.predict_proba(test.x)[:, 1], rtol=1e-5)
    with pytest.raises(ConfigError, match="cut_points"):
        fit("xgboost", train, params={"cut_points": "row"})


def test_a_class_without_weight_leaves_cut_points_as_they_are():
    train = thin_tail(0)
    weight = np.where(train.y == 1, 0.0, 1.0)
    params = {"max_bin": 256, "rounds": 3}
    ours = fit("xgboost", train, params=params, weight=weight)
    own = fit("xgboost", train, params={**params, "cut_points": "rows"}, weight=weight)
    np.testing.assert_array_equal(ours.score(train.x), own.score(train.x))


def test_unknown_names_and_values_give_one_line():
    with pytest.raises(ConfigError, match="Did you mean 'xgboost'"):
        fit("xgbost", TRAIN)
    with pytest.raises(ConfigError, match="Did you mean 'max_depth'"):
        fit("xgboost", TRAIN, params={"max_dept": 3})
    with pytest.raises(ConfigError, match="Did you mean 'n_estimators'"):
        fit("random_forest", TRAIN, params={"n_estimator": 3})
    with pytest.raises(ConfigError, match=r"candidates\.params") as caught:
        fit("random_forest", TRAIN, params={"n_estimators": -3})
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"candidates\.params"):
        fit("xgboost", TRAIN, params={"subsample": 7})
    with pytest.raises(ConfigError, match="works with learner 'xgboost' only"):
        fit("mlp", TRAIN, loss="focal")


def test_settings_follow_the_number_of_rows_but_what_was_asked_for_stays():
    small, large = make_rows(300), make_rows(130_000)
    assert with_defaults("xgboost", small, {})["tree_method"] == "exact"
    assert with_defaults("xgboost", large, {})["eta"] > with_defaults("xgboost", small, {})["eta"]
    assert with_defaults("xgboost", large, {"learning_rate": 0.01})["eta"] == 0.01
    assert with_defaults("xgboost", small, {})["base_score"] == 0.5
    assert with_defaults("xgboost", make_rows(300, category=True), {})["tree_method"] == "hist"
    wide = dataclasses.replace(small, x=np.zeros((300, 1000), dtype=np.float32))
    assert with_defaults("xgboost", wide, {})["tree_method"] == "hist", "exact splits take too long on many columns"


def test_a_class_rarer_than_1_in_400_gets_heavier_leaves_and_shrinkage():
    rows = make_rows(2000, shift=-3)
    rare = rows.take(np.r_[np.flatnonzero(rows.y == 0)[:1200], np.flatnonzero(rows.y == 1)[:2]])
    plain, careful = with_defaults("xgboost", rows, {}), with_defaults("xgboost", rare, {})
    assert careful["min_child_weight"] > plain["min_child_weight"]
    assert careful["reg_lambda"] > plain["reg_lambda"]
    assert with_defaults("xgboost", rare, {"reg_lambda": 1.0})["reg_lambda"] == 1.0


def test_thinning_keeps_every_positive_and_the_weight_of_the_negatives():
    rows, weight = thin(FitTask(TRAIN, seed=1), 300)
    assert len(rows) == 300
    assert rows.positives == TRAIN.positives
    assert weight[rows.y == 0].sum() == pytest.approx(len(TRAIN) - TRAIN.positives)
    assert (weight[rows.y == 1] == 1).all()
    assert thin(FitTask(TRAIN), 10_000)[1] is None


def test_precision_by_round_is_the_average_precision_of_scikit_learn():
    rng = np.random.default_rng(0)
    for ties in (1000, 5):
        y, score = rng.integers(0, 2, 200), np.floor(rng.random(200) * ties)
        assert FastPrecision(y)(score) == pytest.approx(average_precision_score(y, score))
        weight = rng.random(len(y)) + 0.1
        expected = average_precision_score(y, score, sample_weight=weight)
        assert FastPrecision(y, weight)(score) == pytest.approx(expected)


def test_a_lonely_peak_is_not_mistaken_for_the_best_round():
    best = BestRound(step=1, patience=50, width=5, least=3)
    hill = np.concatenate([np.linspace(0.2, 0.6, 20), np.full(10, 0.6), np.linspace(0.6, 0.3, 40)])
    hill[3] = 0.9
    for position, value in enumerate(hill):
        best.add(value, 1.0 - position / 100)
    assert 18 <= best.rounds() <= 32


def test_where_precision_is_equal_the_loss_decides():
    best = BestRound(step=10, patience=500, width=1, least=20)
    loss = np.abs(np.arange(60) - 40) / 100 + 0.1
    for value in loss:
        best.add(1.0, value)
    assert best.rounds() == 410
    assert best.trace()[40] == {"round": 410.0, "ap": 1.0, "loss": loss[40]}


def test_waiting_ends_when_nothing_gets_better():
    best = BestRound(step=1, patience=10, width=1, least=5)
    assert [best.add(0.5, 0.1) for _ in range(20)].index(True) == 14


def test_a_preparation_is_finite_bounded_and_flags_what_is_missing():
    x = TRAIN.x.copy()
    x[0, 0] = 3e38
    prepared = Preparation.learn(dataclasses.replace(TRAIN, x=x))
    made = prepared(x)
    assert np.isfinite(made).all()
    assert np.abs(made).max() < 200
    assert made.shape[1] == 4 + 4 + 3, "four numbers, four flags, three levels"
    gap = np.flatnonzero(np.isnan(x[:, 1]))[0]
    assert made[gap, 1] == 0
    assert made[gap, 5] == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_a_booster_scores_as_xgboost_itself_does_with_categories_and_missing_values(threads: int) -> None:
    import xgboost as xgb

    rng = np.random.default_rng(4)
    x = np.column_stack([rng.normal(size=(900, 3)), rng.integers(0, 9, 900)]).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y = (np.nan_to_num(x[:, 0]) + (x[:, 3] == 4) + rng.normal(size=900) > 1.5).astype(int)
    types = ["float", "float", "float", "c"]
    booster = xgb.train(
        {"objective": "binary:logistic", "max_depth": 5, "nthread": threads, "max_cat_to_onehot": 2},
        xgb.DMatrix(x, y, feature_types=types, enable_categorical=True),
        40,
    )
    learner = Boosted("xgboost", rounds=40, booster=booster, types=tuple(types))
    expected = booster.predict(xgb.DMatrix(x, feature_types=types, enable_categorical=True), output_margin=True)
    assert np.allclose(np.log(learner.score(x) / (1 - learner.score(x))), expected, atol=1e-5)
    assert np.array_equal(_margins(booster, x), booster.inplace_predict(x, predict_type="margin").astype(np.float64))
    for part in (x[:1], x[::2], np.asfortranarray(x), x.astype(np.float64)):
        assert np.array_equal(_margins(booster, part), _margins(booster, np.ascontiguousarray(part, dtype=np.float32)))
    for wrong in (x[:, :3], np.column_stack([x, x])):
        with pytest.raises(xgb.core.XGBoostError):
            _margins(booster, wrong)


def test_a_booster_scores_the_same_from_many_threads_at_once() -> None:
    import xgboost as xgb

    rng = np.random.default_rng(5)
    x = rng.normal(size=(4000, 4)).astype(np.float32)
    booster = xgb.train({"nthread": 1, "objective": "binary:logistic"}, xgb.DMatrix(x, (x[:, 0] > 1).astype(int)), 20)
    parts = [x[at : at + 1 + at % 7] for at in range(0, 3900, 13)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda part: _margins(booster, part), parts))
    assert all(np.array_equal(found, _margins(booster, part)) for found, part in zip(together, parts, strict=True))


@pytest.mark.parametrize("name", [name for name, each in LEARNERS.items() if each.extra])
def test_a_learner_whose_library_is_not_installed_is_refused_with_the_name_of_its_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # what makes an import of it fail
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else find(module))
    with pytest.raises(MissingExtraError, match=rf"learner '{name}' needs .* pip install 'rareclass\[{name}\]'"):
        planning.check_recipe(Candidate("c", name))


@pytest.mark.parametrize(
    ("line", "wrong", "said"),
    [
        ("left_child", "0", "outside of the tree"),
        ("right_child", "999", "outside of the tree"),
        ("left_child", "-9999", "outside of the tree"),
        ("split_feature", "77", "not there"),
        ("leaf_value", None, "leaves"),
        ("cat_boundaries", "5", "categories"),
    ],
)
def test_a_tree_of_lightgbm_that_points_outside_of_itself_is_not_loaded(line, wrong, said, fitted):
    files = portable.pack(fitted["lightgbm"], SAVED)
    (name,) = [file for file in files if file.endswith(".lgb")]
    lines = files[name].decode().splitlines()
    trees = "\n".join(lines).index("Tree=")
    at = next(at for at, text in enumerate(lines) if text.startswith(f"{line}=") and len("\n".join(lines[:at])) > trees)
    key, values = lines[at].split("=")
    rest = values.split()[1:]
    lines[at] = f"{key}=" + " ".join(rest if wrong is None else [wrong, *rest])
    with pytest.raises(ModelError, match=said):
        portable.unpack(files | {name: "\n".join(lines).encode()}, SAVED)


@pytest.mark.parametrize("name", ["lightgbm", "catboost"])
def test_contributions_of_other_boosted_trees_add_up_as_well(name, fitted):
    score = fitted[name].score(TEST.x)
    shares = fitted[name].contributions(TEST.x)
    assert shares.shape == TEST.x.shape
    rest = logit(score) - shares.sum(axis=1)
    np.testing.assert_allclose(rest, rest[0], atol=1e-3)
    assert np.abs(shares[:, 0]).mean() > np.abs(shares[:, 3]).mean(), "the column that matters, in its own place"


def test_a_fit_of_catboost_that_nobody_asks_to_go_on_ends():
    growing = grow("catboost", FitTask(TRAIN), WATCHED, QUICK["catboost"])
    growing.grow()
    thread = growing._thread
    assert thread.is_alive()
    del growing
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_cut_points_of_lightgbm_lie_where_positives_are():
    """Positives live in a thousandth of one column, in a band that quantiles of all rows do not part."""
    rng = np.random.default_rng(0)
    n = 30_000
    x = rng.uniform(0, 1, (n, 1)).astype(np.float32)
    rare = rng.choice(n, 60, replace=False)
    x[rare, 0] = rng.uniform(0.5002, 0.5006, 60)
    y = np.zeros(n, dtype=np.int64)
    y[rare] = 1
    rows = Rows(Schema((Feature("x"),)), x, y, np.arange(n, dtype=np.uint64))
    by_classes, by_rows = (
        average_precision_score(
            y, fit("lightgbm", rows, params={"rounds": 30, "max_bin": 64, "cut_points": cut}).score(x)
        )
        for cut in ("classes", "rows")
    )
    assert by_classes > by_rows + 0.2


@pytest.mark.parametrize(("name", "wrong"), [("lightgbm", {"num_leaves": 1}), ("catboost", {"depth": 40})])
def test_a_parameter_that_the_library_refuses_is_one_line(name, wrong):
    with pytest.raises(ConfigError, match=f"{name} refused a parameter: .* Mend candidates.params") as refused:
        fit(name, TRAIN, params=QUICK[name] | wrong)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="Did you mean"):
        fit(name, TRAIN, params={"learning_rat": 0.1})
