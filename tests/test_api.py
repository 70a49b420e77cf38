"""The public names: they exist, are imported when asked for, and do what the commands do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, recall_score

import rareclass
import small_model
from rareclass.errors import DataError


@pytest.mark.parametrize("name", rareclass.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(rareclass, name)
    assert name == "__version__" or len(value.__doc__) > 40


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, rareclass; print([m for m in ('numpy', 'pandas', 'sklearn', 'mlflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_version_that_is_loaded_scores_as_it_was_saved(tmp_path: Path) -> None:
    model = small_model.model()
    model.save(tmp_path / "model")
    rows = small_model.frame(40)
    loaded = rareclass.load_version(str(tmp_path / "model"))
    found = rareclass.score(loaded, rows)
    assert np.array_equal(found["score"], model.score(rows))
    assert np.array_equal(found["decision"], model.decide(model.score(rows)).astype(int))
    assert found.index.equals(rows.index)


def test_judgement_equals_scikit_learn_and_has_intervals() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(2000) < 0.05).astype(int)
    score = np.clip(0.3 * y + rng.normal(0.2, 0.15, 2000), 0, 1)
    found = rareclass.evaluate(y, score, 0.4, bootstraps=200)
    assert found["ap"].value == pytest.approx(average_precision_score(y, score), abs=1e-12)
    assert found["recall"].value == pytest.approx(recall_score(y, score >= 0.4))
    assert found["ap"].low < found["ap"].value < found["ap"].high
    with pytest.raises(DataError, match="1 for the rare class"):
        rareclass.evaluate(y + 1, score)


def test_diagnosis_of_a_frame_says_how_rare() -> None:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.normal(size=500), "kind": rng.choice(["x", "y"], 500)})
    found = rareclass.diagnose(frame, (np.arange(500) % 50 == 0).astype(int))
    assert (found.positives, found.regime, found.categorical) == (10, "few", 1)
