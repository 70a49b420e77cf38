import json

from rareclass.config import CandidateSpec, ResampleStep
from rareclass.core.candidates import Candidate, chain_key, group_by_resampler, with_unique_names


def test_a_candidate_survives_json():
    candidate = Candidate("a", "xgboost", {"max_depth": 3}, (ResampleStep(name="random_under", ratio=5),), "balanced")
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate


def test_a_candidate_from_the_configuration_is_named_after_its_parts():
    spec = CandidateSpec(params={"max_depth": 3}, resample=(ResampleStep(name="smote", ratio=2),), weighting="balanced")
    assert Candidate.from_spec(spec).name == "xgboost depth=3 smote(ratio=2) balanced"
    assert Candidate.from_spec(CandidateSpec(name="mine")).name == "mine"


def test_the_same_chain_is_the_same_group_and_any_other_setting_is_another():
    five = (ResampleStep(name="random_under", ratio=5),)
    assert chain_key(five) == chain_key((ResampleStep(name="none"), *five))
    assert chain_key(()) == chain_key((ResampleStep(name="none"),)) == "none"
    others = [
        chain_key((ResampleStep(name="random_under", ratio=6),)),
        chain_key((ResampleStep(name="random_under", rows=5),)),
        chain_key((ResampleStep(name="random_under", ratio=5, params={"k": 1}),)),
        chain_key((ResampleStep(name="random_over", ratio=5),)),
        chain_key(five + five),
    ]
    assert len({chain_key(five), *others}) == 6


def test_groups_keep_the_order_of_the_plan():
    five = (ResampleStep(name="random_under", ratio=5),)
    plan = [Candidate("a", "xgboost"), Candidate("b", "xgboost", {}, five), Candidate("c", "random_forest")]
    groups = group_by_resampler(plan)
    assert list(groups) == ["none", "random_under(ratio=5)"]
    assert [candidate.name for candidate in groups["none"]] == ["a", "c"]


def test_equal_recipes_are_tried_once_and_equal_names_are_numbered():
    made = with_unique_names(
        [Candidate("a", "xgboost", reason="one"), Candidate("b", "xgboost"), Candidate("a", "random_forest")]
    )
    assert [(candidate.name, candidate.learner) for candidate in made] == [("a", "xgboost"), ("a (2)", "random_forest")]


def test_candidates_can_be_keys_of_a_mapping():
    assert len({Candidate("a", "xgboost", {"max_depth": 3}), Candidate("b", "xgboost")}) == 2
