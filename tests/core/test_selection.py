import json
from dataclasses import replace

import numpy as np
import pytest
from rows_for_learning import make_rows
from sklearn.metrics import average_precision_score

from rareclass.config import parse
from rareclass.core import selection
from rareclass.core.candidates import Candidate
from rareclass.core.log_odds import expit, logit
from rareclass.core.ranking import FastPrecision
from rareclass.core.selection import (
    ENSEMBLES,
    SelectionRules,
    equal_weights,
    greedy_weights,
    select,
    stacked_weights,
)
from rareclass.core.selection_metrics import SelectionCriterion
from rareclass.core.training import Trained
from rareclass.errors import ConfigError, DataError

ROWS = make_rows(4000, shift=-2.5)


def rules(**sections):
    """The rules of a configuration with these sections."""
    config = parse({"name": "t", "data": {"path": "p", "target": "y"}, **sections})
    return SelectionRules(
        SelectionCriterion.of(config.search, config.threshold, config.costs),
        config.search.ensemble,
        config.regime,
        config.evaluate.confidence,
    )


def scored(name, noise, *, seed=0, complete=True, rows=ROWS, signal=1.0):
    """A finished candidate whose scores are the truth blurred by noise of its own."""
    rng = np.random.default_rng(seed)
    z = signal * 3.0 * rows.y - 4 + noise * rng.normal(size=len(rows))
    return Trained(Candidate(name, "xgboost"), expit(z), complete=complete, fit_seconds=1.0)


def test_a_clearly_better_candidate_wins_with_its_evidence():
    found = select(
        [scored("zero", 3.0), scored("better", 1.5, seed=1)], ROWS, rules(search={"ensemble": "none"}), seed=0
    )
    assert found.winner == "better"
    assert found.weights == {"better": 1.0}
    line = found.table[1]
    assert line.significant
    assert line.difference.low > 0
    assert line.p_value < 0.05
    assert "beats zero" in found.reasons[0]


def test_ties_go_to_candidate_0():
    equals = [scored(f"c{i}", 2.0, seed=i) for i in range(6)]
    found = select(equals, ROWS, rules(search={"ensemble": "none"}), seed=0)
    assert found.winner == "c0"
    assert not any(line.significant for line in found.table)


def test_luck_among_many_candidates_is_not_taken_for_evidence():
    wins = 0
    for trial in range(20):
        rows = make_rows(400, seed=trial)
        many = [scored(f"c{i}", 3.0, seed=100 * trial + i, rows=rows) for i in range(10)]
        wins += select(many, rows, rules(search={"ensemble": "none"}), seed=0).winner != "c0"
    assert wins <= 3


def test_an_average_of_different_learners_beats_each_of_them():
    members = [scored(f"c{i}", 2.5, seed=i) for i in range(3)]
    found = select(members, ROWS, rules(), seed=0)
    assert found.winner == "ensemble-weighted"
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert set(found.weights) == {"c0", "c1", "c2"}
    combined = average_precision_score(ROWS.y, found.oof)
    assert combined > max(average_precision_score(ROWS.y, one.oof) for one in members) + 0.03
    expected = sum(weight * logit(one.oof) for one, weight in zip(members, found.weights.values(), strict=True))
    np.testing.assert_allclose(found.oof, expit(expected), rtol=1e-9)


def nearly_equal(rows):
    """Two candidates that are nearly copies, so that their average is ahead by a trifle."""
    rng = np.random.default_rng(3)
    shared = 3.0 * rows.y - 4 + 2.5 * rng.normal(size=len(rows))
    made = [expit(shared + 0.4 * rng.normal(size=len(rows))) for _ in range(2)]
    return [Trained(Candidate(f"c{i}", "xgboost"), oof, complete=True) for i, oof in enumerate(made)]


def test_an_ensemble_that_is_ahead_by_a_trifle_is_taken_and_says_so():
    members = nearly_equal(ROWS)
    found = select(members, ROWS, rules(), seed=0)
    line = found.table[-1]
    assert not line.significant
    assert line.ap.value > found.table[0].ap.value
    assert found.winner == "ensemble-weighted"
    assert "does not beat" in found.reasons[1]
    assert "all the same" in found.reasons[2]


def test_the_line_of_an_ensemble_is_about_candidate_0_and_the_reasons_about_the_best_candidate():
    rng = np.random.default_rng(3)
    shared = 3.0 * ROWS.y - 4 + 1.5 * rng.normal(size=len(ROWS))
    blur = {"zero": 3.0, "good0": 0.2, "good1": 0.2}
    members = [
        Trained(Candidate(name, "xgboost"), expit(shared + more * rng.normal(size=len(ROWS))), complete=True)
        for name, more in blur.items()
    ]
    found = select(members, ROWS, rules(), seed=0)
    line = found.table[-1]
    assert found.winner == "ensemble-weighted"
    assert line.difference.low > 0
    assert line.significant
    assert "does not beat good" in found.reasons[1]
    assert "all the same" in found.reasons[2]


def test_the_same_trifle_decides_nothing_with_few_positives_nor_when_a_kind_is_asked_for():
    assert select(nearly_equal(ROWS), ROWS, rules(search={"ensemble": "weighted"}), seed=0).winner == "c0"
    few = ROWS.take(np.sort(np.r_[np.flatnonzero(ROWS.y == 0), np.flatnonzero(ROWS.y == 1)[20:35]]))
    assert select(nearly_equal(few), few, rules(), seed=0).winner == "c0"


def test_an_ensemble_of_one_good_and_many_bad_candidates_is_declined():
    bad = [scored(f"bad{i}", 30.0, seed=i + 1) for i in range(4)]
    found = select([scored("good", 1.0), *bad], ROWS, rules(search={"ensemble": "voting"}), seed=0)
    assert found.winner == "good"
    assert "does not beat good" in found.reasons[1]


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_every_kind_of_ensemble_can_be_asked_for(kind):
    members = [scored(f"c{i}", 2.5, seed=i) for i in range(3)]
    assert select(members, ROWS, rules(search={"ensemble": kind}), seed=0).winner == f"ensemble-{kind}"


@pytest.mark.parametrize("learn", ENSEMBLES.values(), ids=ENSEMBLES)
def test_weights_are_not_negative_and_add_up_to_one(learn):
    logits = np.stack([logit(scored(f"c{i}", 1.0 + i, seed=i).oof) for i in range(4)])
    weights = learn(ROWS.y, logits)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0)


def test_learned_weights_favour_the_better_member_where_there_is_evidence():
    logits = np.stack([logit(scored("good", 1.0).oof), logit(scored("bad", 4.0, seed=1).oof)])
    for learn in (greedy_weights, stacked_weights):
        assert learn(ROWS.y, logits)[0] > 0.7


def test_with_few_positives_weights_stay_near_equal():
    rows = make_rows(300, shift=-4)
    logits = np.stack([logit(scored(f"c{i}", 1.0, seed=i, rows=rows).oof) for i in range(2)])
    few = greedy_weights(rows.y, logits)
    assert rows.positives < 50
    assert abs(few - equal_weights(rows.y, logits)).max() < 0.2


def test_a_member_that_is_far_behind_gets_no_share_for_being_there():
    rows = make_rows(300, shift=-4)
    parts = [scored("a", 1.0, rows=rows), scored("b", 1.0, seed=1, rows=rows), scored("c", 50.0, seed=2, rows=rows)]
    assert greedy_weights(rows.y, np.stack([logit(one.oof) for one in parts]))[2] == 0


def test_unfinished_candidates_are_left_out_and_none_at_all_is_an_error():
    found = select([scored("zero", 2.0), scored("late", 0.1, complete=False)], ROWS, rules(), seed=0)
    assert [line.name for line in found.table] == ["zero"]
    with pytest.raises(DataError, match=r"search\.seconds"):
        select([scored("late", 1.0, complete=False)], ROWS, rules(), seed=0)


def test_only_rows_that_were_scored_are_compared():
    one = scored("zero", 2.0)
    one.oof[:1000] = np.nan
    found = select([one], ROWS, rules(), seed=0)
    assert found.scored.sum() == len(ROWS) - 1000
    assert np.isnan(found.oof[:1000]).all()
    assert found.table[0].ap.rows == len(ROWS) - 1000


def test_the_same_seed_gives_the_same_table_and_it_is_json():
    members = [scored(f"c{i}", 2.5, seed=i) for i in range(3)]
    first, again = (select(members, ROWS, rules(), seed=4).to_json() for _ in range(2))
    assert json.dumps(first, allow_nan=False) == json.dumps(again, allow_nan=False)


@pytest.mark.parametrize("learn", [greedy_weights, stacked_weights])
def test_a_row_that_stands_for_three_counts_as_three(learn):
    rows = ROWS.take(np.arange(600))
    logits = np.stack([logit(scored(f"c{i}", 1.5 + i, seed=i, rows=rows).oof) for i in range(3)])
    times = np.random.default_rng(0).integers(1, 4, len(rows))
    index = np.repeat(np.arange(len(rows)), times)
    weighted = learn(rows.y, logits, times.astype(np.float64))
    room = (
        0.03 if learn is stacked_weights else 0.1
    )  # copies are more evidence than there is, so the pull to equal is less
    np.testing.assert_allclose(weighted, learn(rows.y[index], logits[:, index]), atol=room)
    assert not np.allclose(weighted, learn(rows.y, logits), atol=1e-6)


def test_negatives_that_are_left_out_for_speed_are_stood_for(monkeypatch):
    monkeypatch.setattr("rareclass.core.selection._WEIGHT_ROWS", 500)
    logits = np.stack([logit(scored(f"c{i}", 2.0 + i, seed=i).oof) for i in range(2)])
    y, thinned, weight = selection._enough(ROWS.y, logits, None)
    assert len(y) < len(ROWS)
    assert y.sum() == ROWS.positives
    assert weight[y == 0].sum() == pytest.approx((ROWS.y == 0).sum(), rel=0.02)
    fast = FastPrecision(y, weight)(thinned[0])
    assert fast == pytest.approx(FastPrecision(ROWS.y)(logits[0]), rel=0.1)


# --- what decides -----------------------------------------------------------------------------------------------------


def brute_saving(rows, score, miss, alarm):
    flagged = [score >= cut for cut in [np.inf, *np.unique(score)]]
    saved = [(miss * (flag & (rows.y == 1)) - alarm * (flag & (rows.y == 0))).sum() for flag in flagged]
    return 1000 * max(saved) / len(rows)


def test_the_saving_and_the_recall_that_decide_are_those_of_the_best_of_all_thresholds():
    rows = ROWS.take(np.arange(300))
    score = scored("a", 3.0, rows=rows).oof
    given = rules(costs={"false_negative": 7, "false_positive": 2}, search={"metric": "cost"})
    found = given.criterion.on(rows)
    assert found.judge(rows, [score], 5, 0)[0][0] == pytest.approx(brute_saving(rows, score, 7, 2))
    floor = rules(threshold={"min_precision": 0.6}, search={"metric": "recall_at_precision"}).criterion.on(rows)
    recalls = []
    for cut in np.unique(score):
        flag = score >= cut
        if rows.y[flag].mean() >= 0.6:
            recalls.append(rows.y[flag].sum() / rows.positives)
    assert floor.judge(rows, [score], 5, 0)[0][0] == pytest.approx(max(recalls))
    assert floor.words == "recall at precision 0.6"


def test_what_is_asked_for_decides_and_not_the_ranking_as_a_whole():
    """One candidate finds half of the rare rows without a mistake, the other ranks all of them a little."""
    rng = np.random.default_rng(0)
    half = (ROWS.y == 1) & (rng.random(len(ROWS)) < 0.5)
    sharp = expit(np.where(half, 5.0, 0.0) + 0.3 * rng.normal(size=len(ROWS)) - 2)
    broad = expit(2.4 * ROWS.y + rng.normal(size=len(ROWS)) - 2)
    members = [
        Trained(Candidate(name, "xgboost"), oof, complete=True) for name, oof in (("sharp", sharp), ("broad", broad))
    ]

    def winner(search, **sections):
        return select(members, ROWS, rules(search={"ensemble": "none", **search}, **sections), seed=0)

    cheap = {"costs": {"false_negative": 100, "false_positive": 1}}
    assert average_precision_score(ROWS.y, broad) > average_precision_score(ROWS.y, sharp)
    by_cost = winner({"metric": "cost"}, **cheap)
    assert by_cost.winner == "broad"
    assert "saved per 1,000 rows" in by_cost.reasons[0]
    by_recall = winner({"metric": "recall_at_precision"}, threshold={"min_precision": 0.97})
    assert by_recall.winner == "sharp"
    assert winner({}).winner == "broad"
    line = by_cost.table[1]
    assert line.significant is bool(line.difference.low > 0)
    assert line.difference.value == pytest.approx(line.value - by_cost.table[0].value)


def test_recall_at_a_precision_needs_the_precision():
    with pytest.raises(ConfigError, match=r"Set threshold\.min_precision"):
        rules(search={"metric": "recall_at_precision"})


def lent(one):
    return replace(one, candidate=replace(one.candidate, transfer="pooled"))


FEW = make_rows(400, shift=-4.2)


def test_a_neighbour_that_is_ahead_is_taken_where_positives_are_few():
    assert 10 <= FEW.positives < 60
    own, other = scored("zero", 4.0, rows=FEW), lent(scored("neighbour", 3.0, seed=1, rows=FEW))
    found = select([own, other], FEW, rules(search={"ensemble": "none"}), seed=0)
    assert found.winner == "neighbour"
    assert found.transfer.startswith("used: neighbour, the best of 1 ways")


def test_a_neighbour_that_is_behind_is_dropped_from_the_average_too():
    own, second = scored("zero", 2.0, rows=FEW), scored("second", 2.0, seed=1, rows=FEW)
    other = lent(scored("neighbour", 2.6, seed=2, rows=FEW))
    found = select([own, second, other], FEW, rules(search={"ensemble": "voting"}), seed=0)
    assert "neighbour" not in found.weights
    assert found.transfer.startswith("dropped: neighbour")
    assert "neighbour" in [line.name for line in found.table]


def test_a_neighbour_has_to_be_surely_better_where_positives_are_ample():
    assert ROWS.positives >= 300
    own, other = scored("zero", 2.0, seed=8), lent(scored("neighbour", 2.0, seed=3))
    found = select([own, other], ROWS, rules(search={"ensemble": "none"}), seed=0)
    assert found.table[1].value > found.table[0].value
    assert found.winner == "zero"
    assert "surely better" in found.transfer
    better = select([own, lent(scored("neighbour", 1.0, seed=3))], ROWS, rules(search={"ensemble": "none"}), seed=0)
    assert better.winner == "neighbour"


def test_a_neighbour_is_held_against_what_would_be_taken_without_it():
    own, best = scored("zero", 4.0, rows=FEW), scored("better", 1.5, seed=1, rows=FEW)
    found = select([own, best, lent(scored("neighbour", 3.0, seed=2, rows=FEW))], FEW, rules(), seed=0)
    assert "against better" in found.transfer
    assert found.transfer.startswith("dropped")


def test_nothing_is_said_of_a_neighbour_that_nobody_named_and_every_comparison_is_counted():
    own = [scored("zero", 3.0), scored("better", 1.5, seed=1)]
    alone = select(own, ROWS, rules(search={"ensemble": "none"}), seed=0)
    assert alone.transfer == ""
    assert "adjusted for 1 comparisons" in alone.reasons[0]
    beside = select([*own, lent(scored("neighbour", 4.0, seed=2))], ROWS, rules(search={"ensemble": "none"}), seed=0)
    assert "adjusted for 2 comparisons" in beside.reasons[0]
