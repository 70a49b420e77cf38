"""The gate approves, rejects, or says that the evidence does not decide; every reason carries its numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rareclass.config import EvaluateSettings, GateSettings
from rareclass.core import gating
from rareclass.core.bootstrap import Bootstrap, Sample
from rareclass.core.costs import CostArrays
from rareclass.core.dataset import Feature, Rows, Schema
from rareclass.core.estimate import Estimate
from rareclass.core.evaluation import evaluate
from rareclass.core.gating import Champion, JudgedRows, NotComparable, judge

COSTS = CostArrays(19.0, 1.0, "EUR")


def world(n=5000, seed=0, blur=0.0):
    rng = np.random.default_rng(seed)
    score = rng.beta(0.5, 8, n)
    y = (rng.random(n) < score).astype(int)
    blurred = score if blur == 0 else np.clip(score * np.exp(rng.normal(0, blur, n)), 0, 0.99)
    return y, blurred


def decide(y, score, champion=None, gate=None, threshold=0.1, costs=COSTS, rows=None, **kw):
    found = evaluate(
        Sample(y, score),
        thresholds={"default": threshold},
        primary="default",
        costs=costs,
        config=EvaluateSettings(bootstraps=100, slices=("g",) if rows else ()),
        rows=rows,
    )
    asked = JudgedRows(Sample(y, score), **kw)
    return judge(found, asked, champion, gate or GateSettings(), costs=costs, bootstrap=Bootstrap(100))


def test_a_good_recipe_without_a_champion_is_approved_with_numbers_in_every_reason():
    found = decide(*world())
    assert found.verdict == "approve"
    assert found.registers
    assert any("average precision" in reason and "times the prevalence" in reason for reason in found.reasons)
    assert any("EUR against" in reason for reason in found.reasons)
    assert "there is no champion to compare with" in found.reasons
    assert all("\n" not in reason for reason in found.reasons)
    assert found.numbers["ap_lift.low"] >= found.numbers["ap_lift.bound"]
    json.dumps(found.to_json(), allow_nan=False)


def test_too_few_positives_are_not_enough_evidence_and_nothing_else_is_judged():
    y, score = world(300)
    found = decide(y, score, gate=GateSettings(min_positives=200))
    assert found.verdict == "not enough evidence"
    assert not found.registers
    assert f"{y.sum()} positives among 300 rows; at least 200" in found.reasons[0]


def test_random_scores_are_rejected_for_their_lift():
    y, _ = world(20_000)
    found = decide(y, np.random.default_rng(1).random(len(y)) * 0.1)
    assert found.verdict == "reject"
    assert any("average precision" in reason and "is below" in reason for reason in found.reasons)


def test_an_interval_across_the_bound_does_not_decide():
    y, score = world(1500)
    ap = evaluate(
        Sample(y, score), thresholds={"d": 0.1}, primary="d", costs=COSTS, config=EvaluateSettings(bootstraps=50)
    ).metrics["ap"]
    found = decide(y, score, gate=GateSettings(min_ap=ap.value))
    assert found.verdict == "not enough evidence"
    assert "the interval cannot decide" in found.reasons[0]


@pytest.mark.parametrize(
    ("low", "high", "outcome"), [(0.4, np.inf, "pass"), (np.nan, np.nan, "pass"), (1.3, np.inf, "fail")]
)
def test_calibration_is_off_only_where_an_interval_says_so(low, high, outcome):
    y, score = world(300)
    judged = evaluate(
        Sample(y, score), thresholds={"d": 0.1}, primary="d", costs=COSTS, config=EvaluateSettings(bootstraps=50)
    )
    ratio = Estimate(2.0, low, high, 3, 300)
    rule = gating._calibration_rule(replace(judged, metrics={"mean_score_ratio": ratio}), GateSettings())
    assert rule.outcome == outcome


def test_a_much_worse_challenger_is_rejected_and_an_equal_one_approved():
    y, score = world(20_000)
    _, worse = world(20_000, blur=1.5)
    rejected = decide(y, worse, Champion(score), GateSettings(max_calibration_error=100))
    assert rejected.verdict == "reject"
    assert "it loses" in rejected.reasons[0]
    assert decide(y, score, Champion(score * 0.9)).verdict == "approve"
    assert decide(y, score, Champion(worse)).verdict == "approve"


def test_a_loss_whose_interval_holds_the_bound_is_not_enough_evidence():
    y, score = world(1500)
    _, near = world(1500, blur=0.25)
    found = decide(y, near, Champion(score))
    assert found.numbers["champion.loss_low"] < 0.05 < found.numbers["champion.loss_high"]
    assert found.verdict == "not enough evidence"


def test_the_champion_is_judged_only_on_rows_it_was_not_trained_on():
    y, score = world(8000)
    cheat = np.where(np.arange(8000) < 4000, y, score)
    unseen = np.arange(8000) >= 4000
    assert decide(y, score, Champion(cheat)).verdict == "reject"
    assert decide(y, score, Champion(cheat, unseen=unseen)).verdict == "approve"
    blind = decide(y, score, Champion(np.where(unseen, np.nan, cheat), unseen=unseen))
    assert blind.verdict == "not enough evidence"
    assert "the champion was not trained on hold 0 positives" in blind.reasons[0]


def test_rows_that_judged_before_judge_at_a_stricter_level_and_the_decision_says_so():
    y, score = world(4000)
    _, near = world(4000, blur=0.25)
    first, again = decide(y, near, Champion(score)), decide(y, near, Champion(score), looks=4)
    assert not any("judged" in reason for reason in first.reasons)
    assert any(
        "judged 4 runs before: the champion is compared at 99.0% instead of 95%" in reason for reason in again.reasons
    )
    width = [found.numbers["champion.loss_high"] - found.numbers["champion.loss_low"] for found in (first, again)]
    assert width[1] > 1.1 * width[0]


def test_decisions_that_cost_more_than_doing_nothing_are_rejected():
    y, score = world(8000)
    found = decide(y, score, costs=CostArrays(1.0, 50.0, "EUR"), threshold=0.05)
    assert found.verdict == "reject"
    assert "costs more than doing nothing: saving -" in found.reasons[0]


def test_decisions_significantly_dearer_than_the_champions_are_rejected():
    y, score = world(8000)
    champion = Champion(score, decision=(score >= 0.05).astype(int))
    found = decide(y, score, champion, threshold=0.7)
    assert found.verdict == "reject"
    assert any("costs significantly more than the champion" in reason for reason in found.reasons)
    assert found.numbers["champion_cost.low"] > 0
    free = CostArrays(19.0, 1.0, given=False)
    assert decide(y, score, champion, threshold=0.7, costs=free).numbers.get("champion_cost.value") is None


def test_scores_far_from_the_prevalence_are_rejected():
    y, score = world(8000)
    found = decide(y, np.clip(score * 3, 0, 1), threshold=0.3)
    assert found.verdict == "reject"
    assert "mean score / prevalence is 3." in found.reasons[0]


def test_a_slice_that_is_missed_rejects_only_when_asked_for():
    y, score = world(8000)
    group = (np.arange(8000) % 4 == 0).astype(np.float32)
    blind = np.where(group == 1, score * 0.05, score)
    schema = Schema((Feature("g", "categorical", ("a", "b")),))
    rows = Rows(schema, group[:, None], y, np.arange(8000).astype(np.uint64))
    found = decide(y, blind, gate=GateSettings(max_slice_recall_gap=0.2), rows=rows)
    assert found.verdict == "reject"
    assert any("recall of g=b is" in reason for reason in found.reasons)
    assert decide(y, blind, rows=rows).verdict == "approve"
    fair = decide(y, score, gate=GateSettings(max_slice_recall_gap=0.2), rows=rows)
    assert fair.verdict == "approve"
    assert any("no slice of 2" in reason for reason in fair.reasons)


def test_a_slice_rule_that_judged_no_slice_is_no_pass():
    y, score = world()
    found = decide(y, score, gate=GateSettings(max_slice_recall_gap=0.2))
    assert found.verdict == "not enough evidence"
    assert any("no slice could be judged" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("mode", "verdict", "registers"),
    [("disabled", "approve", True), ("dry_run", "reject", True), ("enabled", "reject", False)],
)
def test_the_mode_decides_what_a_verdict_does(mode, verdict, registers):
    y, _ = world(8000)
    found = decide(y, np.random.default_rng(1).random(len(y)) * 0.1, gate=GateSettings(mode=mode))
    assert (found.verdict, found.registers) == (verdict, registers)
    assert found.reasons


@pytest.mark.parametrize(("setting", "verdict"), [("insufficient", "not enough evidence"), ("approve", "approve")])
def test_a_champion_that_cannot_be_compared_means_what_the_setting_says_and_the_reason_is_told(setting, verdict):
    gone = NotComparable("version 3", "column 'leak' is not in the data")
    found = decide(*world(), champion=gone, gate=GateSettings(without_comparison=setting))
    assert found.verdict == verdict
    told = [reason for reason in found.reasons if reason.startswith("version 3 cannot be compared, because")]
    assert len(told) == 1
    assert "column 'leak' is not in the data" in told[0]
    assert f"gate.without_comparison: {setting}" in told[0]


def test_whatever_does_not_pass_says_what_to_do_next_and_an_approval_says_nothing():
    y, score = world(20_000)
    noise = np.random.default_rng(1).random(len(y)) * 0.1
    none = np.zeros(len(y), dtype=bool)
    assert decide(y, score).next_steps == ()
    cases = {
        "add columns": decide(y, noise),
        "gate.min_ap": decide(y, score, gate=GateSettings(min_ap=0.99)),
        "does not pay": decide(y, noise, threshold=0.01, costs=CostArrays(1.0, 50.0, "EUR")),
        "do not fit the test rows' prevalence": decide(y, score**2),
        "keep the champion": decide(y, noise, champion=Champion(score)),
        "bring more labelled rows": decide(*world(300), gate=GateSettings(min_positives=200)),
        "was not trained on": decide(y, score, champion=Champion(score, unseen=none)),
        "gate.without_comparison": decide(y, score, champion=NotComparable("version 1", "its columns are gone")),
    }
    for words, found in cases.items():
        assert any(words in step for step in found.next_steps), (words, found.next_steps)
        assert found.verdict != "approve"
        assert found.to_json()["next"] == list(found.next_steps)
        assert all("\n" not in step for step in found.next_steps)
