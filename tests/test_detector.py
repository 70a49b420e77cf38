import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from rareclass import RareDetector
from rareclass.core import detection


@parametrize_with_checks([RareDetector()])
def test_it_obeys_every_check_of_scikit_learn(estimator, check):
    check(estimator)


NORMAL = np.random.default_rng(0).normal(size=(1_500, 4))
STRANGE = np.random.default_rng(1).normal(5, 1, size=(50, 4))


def test_as_many_normal_rows_are_flagged_as_asked_and_strange_ones_are():
    made = RareDetector(false_alarm_rate=0.05).fit(NORMAL[:1_000])
    assert (made.predict(NORMAL[1_000:]) == -1).mean() == pytest.approx(0.05, abs=0.02)
    assert (made.predict(STRANGE) == -1).mean() > 0.95
    assert made.score_samples(STRANGE).max() < 0.05
    assert [each.fitted.detector for each in made.detection_.members] == list(detection.MEMBERS)
    assert made.conformal_.finest == 1 / 1_001


def test_text_is_a_category_and_a_level_never_seen_is_scored():
    frame = pd.DataFrame(NORMAL[:400, :2], columns=["a", "b"]).assign(shop=["x", "y", "y", "y"] * 100)
    made = RareDetector("knn", random_state=1).fit(frame)
    odd = frame.head(20).assign(shop="never seen", a=[np.nan] * 20)
    assert np.isfinite(made.score_samples(odd)).all()
    assert made.score_samples(odd).mean() < made.score_samples(frame).mean()


def test_it_stands_in_a_pipeline_and_the_seed_repeats_it():
    piped = make_pipeline(MinMaxScaler(), RareDetector(["ecod", "autoencoder"], random_state=3))
    assert np.array_equal(
        piped.fit(NORMAL[:200]).score_samples(STRANGE), piped.fit(NORMAL[:200]).score_samples(STRANGE)
    )


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'ecod'"):
        RareDetector("ecodd").fit(NORMAL[:100])
    with pytest.raises(ValueError, match="between 0 and 1"):
        RareDetector(false_alarm_rate=0).fit(NORMAL[:100])
