"""What drives a model: scrambling a feature costs what the model owes to it, with a bounded amount of scoring."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.inspection import permutation_importance as reference
from sklearn.metrics import average_precision_score

from rareclass.core import importance
from rareclass.core.dataset import Feature, FloatArray, FloatMatrix, Rows, Schema
from rareclass.core.importance import Importance, permutation_importance

SCHEMA = Schema(
    (
        Feature("up"),
        Feature("down"),
        Feature("turns"),
        Feature("noise"),
        Feature("kind", "categorical", ("a", "b", "c")),
    )
)


def odds(x: FloatMatrix) -> FloatArray:
    z = np.nan_to_num(x.astype(np.float64))
    return -5 + 1.6 * z[:, 0] - 0.8 * z[:, 1] + 0.6 * z[:, 2] ** 2 + 1.2 * (z[:, 4] == 1)


def score(x: FloatMatrix) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-odds(x))))


def rows(n: int = 6000, seed: int = 0, weight: FloatArray | None = None) -> Rows:
    rng = np.random.default_rng(seed)
    x = np.column_stack([rng.normal(size=(n, 4)), rng.choice(3, n, p=[0.6, 0.3, 0.1])]).astype(np.float32)
    y = (rng.random(n) < score(x)).astype(np.int64)
    return Rows(SCHEMA, x, y, np.arange(n, dtype=np.uint64), weight=weight)


def by_name(found: tuple[Importance, ...]) -> dict[str, Importance]:
    return {each.feature: each for each in found}


def test_features_are_ranked_as_scikit_learn_ranks_them_and_each_way_is_seen() -> None:
    some = rows()
    found = permutation_importance(some, score, repeats=10, n_boot=100)
    named = by_name(found)

    class Model:
        def fit(self, x: FloatMatrix, y: FloatArray) -> None: ...

    def worth(_: Model, x: FloatMatrix, y: FloatArray) -> float:
        return float(average_precision_score(y, score(x)))

    expected = reference(Model(), some.x, some.y, scoring=worth, n_repeats=10, random_state=0).importances_mean
    for name, value in zip(SCHEMA.names, expected, strict=True):
        assert named[name].ap_lost.value == pytest.approx(value, abs=0.03)
    assert [each.feature for each in found][:2] == ["up", "turns"]
    assert {name: each.direction for name, each in named.items()} == {
        "up": "up",
        "down": "down",
        "turns": "turns",
        "noise": "none",
        "kind": "category",
    }
    assert named["noise"].ap_lost.value == 0
    assert max(named["kind"].at, key=lambda pair: pair[1])[0] == "b"
    for name in ("up", "down", "turns"):
        lost = named[name].ap_lost
        assert 0 < lost.low < lost.value < lost.high
        assert named[name].effect.low > 1


def test_the_interval_holds_what_other_rows_say() -> None:
    truth = by_name(permutation_importance(rows(40_000, 99), score, repeats=5, n_boot=50))["up"].ap_lost.value
    held, seeds = 0, 8
    for seed in range(seeds):
        lost = by_name(permutation_importance(rows(2000, seed), score, n_boot=60, seed=seed))["up"].ap_lost
        held += lost.low <= truth <= lost.high
    assert held >= seeds - 2


def test_many_rows_are_sampled_with_weights_that_keep_the_answer_and_bound_the_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some, seen = rows(30_000), [0]

    def counted(x: FloatMatrix) -> FloatArray:
        seen[0] += len(x)
        return score(x)

    full = by_name(permutation_importance(some, score, repeats=5, n_boot=50))
    monkeypatch.setattr(importance, "SCORED_ROWS", 80_000)
    small = by_name(permutation_importance(some, counted, repeats=5, n_boot=50))
    assert seen[0] <= 80_000 + 80_000 // 40  # the rows as they are come on top
    for name in SCHEMA.names:
        assert small[name].ap_lost.value == pytest.approx(full[name].ap_lost.value, abs=0.06)
        for (value, mean), (other, expected) in zip(small[name].at, full[name].at, strict=True):
            if SCHEMA.features[SCHEMA.names.index(name)].kind == "categorical":
                assert value == other
                assert mean == pytest.approx(expected, rel=0.15)


def test_the_same_seed_says_the_same_and_another_one_hardly_anything_else() -> None:
    some = rows(2000)
    one, two, other = (permutation_importance(some, score, n_boot=50, seed=seed) for seed in (0, 0, 1))
    assert one == two
    assert one != other
    assert one[0].feature == other[0].feature


def test_rows_are_left_as_they_are_and_one_class_or_no_repeat_gives_nothing() -> None:
    some = rows(500)
    before = some.x.copy()
    permutation_importance(some, score, n_boot=50)
    np.testing.assert_array_equal(some.x, before)
    assert permutation_importance(some, score, repeats=0) == ()
    assert permutation_importance(some.take(some.y == 0), score) == ()


def test_a_column_of_one_value_or_of_none_has_no_way() -> None:
    some = rows(800)
    some.x[:, 0], some.x[:, 1] = 3.0, np.nan
    named = by_name(permutation_importance(some, score, n_boot=50))
    assert named["up"].direction == named["down"].direction == "none"
    assert named["up"].ap_lost.value == named["down"].ap_lost.value == 0
    assert named["down"].at == ()


def test_a_wide_table_costs_no_more_and_its_telling_features_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, rng, width = rows(1500), np.random.default_rng(5), 300
    noise = rng.normal(size=(1500, width - 5)).astype(np.float32)
    schema = Schema((*(Feature(f"n{k}") for k in range(width - 5)), *SCHEMA.features))
    wide = Rows(schema, np.hstack([noise, narrow.x]), narrow.y, narrow.row_id)
    seen, largest = [0], [0]

    def counted(x: FloatMatrix) -> FloatArray:
        seen[0] += len(x)
        largest[0] = max(largest[0], x.size)
        return score(x[:, -5:])

    monkeypatch.setattr(importance, "SCORED_ROWS", 64_000)
    found = permutation_importance(wide, counted, n_boot=50)
    assert seen[0] <= 64_000 + 400
    assert largest[0] <= 8_000_000
    assert len(found) == 20
    assert {"up", "down", "turns", "kind"} <= {each.feature for each in found}
    assert found[0].feature == "up"
