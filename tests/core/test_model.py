"""A version on disk: what is in it, and that reading it runs nothing."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rows_for_learning import fit, make_rows

import small_model
from rareclass.adapters.registry import save_pyfunc
from rareclass.core import portable
from rareclass.core.calibration import Beta, Isotonic
from rareclass.core.dataset import decode
from rareclass.core.learners import LEARNERS
from rareclass.core.model import RareModel
from rareclass.core.training import SAVED, Ensemble, Member
from rareclass.errors import ModelError

ROWS = make_rows(500, category=True)
SMALL = {
    "xgboost": {"rounds": 20},
    "lightgbm": {"rounds": 20},
    "catboost": {"rounds": 20},
    "hist_gradient_boosting": {"max_iter": 20},
    "logistic_regression": {},
    "mlp": {"epochs": 5},
    "scarce": {"novelty": ["ecod"], "rounds": 2, "trees": 2},
    "detectors": {},
}

WITHOUT_PICKLE = """
import json, pickle, sys
import joblib, mlflow.pyfunc, skops.io, sklearn.ensemble, imblearn.ensemble, xgboost  # what they do while imported is theirs
class Refuses:
    def __init__(self, *a, **k): raise AssertionError("something was unpickled")
def refuses(*a, **k): raise AssertionError("something was unpickled")
for module in (pickle, sys.modules["_pickle"]):
    module.loads = module.load = refuses
    module.Unpickler = Refuses
pickle._Unpickler = Refuses
joblib.load = refuses
for use in (lambda: pickle.loads(b""), lambda: pickle.Unpickler(None), lambda: joblib.load("x")):
    try: use()
    except AssertionError: continue
    raise SystemExit("nothing was patched")
from rareclass.core.model import RareModel
scores = {}
for name, folder in json.loads(sys.argv[1]).items():
    golden = RareModel.load(folder + "/data/rareclass").golden
    scores[name] = mlflow.pyfunc.load_model(folder).predict(golden.drop(columns="score"))["score"].tolist()
print(json.dumps(scores))
"""  # noqa: E501


@pytest.fixture(scope="module")
def versions() -> dict[str, RareModel]:
    """A version of every learner, and blends of them."""
    found = {
        name: fit(name, ROWS, params=SMALL.get(name, {"n_estimators": 4}), rounds=None, seed=1) for name in LEARNERS
    }
    learners = {name: Ensemble((Member(each, 1.0, 0.4),)) for name, each in found.items()}
    blends = {
        "seeds": ("xgboost", "xgboost"),
        "unlike": ("xgboost", "extra_trees", "logistic_regression"),
        "every": tuple(found),
    }
    for name, members in blends.items():
        weight = 1 / len(members)
        learners[name] = Ensemble(tuple(Member(found[each], weight) for each in members))
    maps = (Beta(0.1, 1.3, 0.8, 0.2), Isotonic(-0.2, (-3.0, 0.0, 2.5), (-4.0, -1.0, 2.0)))
    return {
        name: RareModel(
            ROWS.schema, learner, maps[at % 2], {"default": 0.3}, profile={"a": [1.0, None]}, meta={"name": name}
        ).with_golden(ROWS.x[:40])
        for at, (name, learner) in enumerate(learners.items())
    }


def test_every_learner_and_blend_is_loaded_and_scores_to_the_digit_where_nothing_can_be_unpickled(
    versions: dict[str, RareModel], tmp_path: Path
) -> None:
    for name, model in versions.items():
        save_pyfunc(model, tmp_path / name)
    folders = json.dumps({name: str(tmp_path / name) for name in versions})
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PICKLE, folders], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    scores = json.loads(done.stdout.splitlines()[-1])
    for name, model in versions.items():
        np.testing.assert_array_equal(scores[name], model.score(decode(ROWS.x[:40], ROWS.schema)), err_msg=name)
    suffixes = {path.suffix for name in versions for path in (tmp_path / name / "data" / "rareclass").iterdir()}
    assert suffixes == {".json", ".npz", ".ubj", ".lgb", ".cbm", ".skops"}


def test_a_version_whose_hash_is_not_the_registered_one_is_refused(tmp_path: Path) -> None:
    digest = small_model.model(1).save(tmp_path)
    RareModel.load(tmp_path, expect=digest)
    small_model.model(2).save(tmp_path)  # whole in itself
    with pytest.raises(ModelError, match="not the ones that were registered"):
        RareModel.load(tmp_path, expect=digest)


def test_a_version_with_a_pickle_in_it_is_refused_with_what_to_do(tmp_path: Path) -> None:
    small_model.model(1).save(tmp_path)
    parts = json.loads((tmp_path / "model.json").read_text())
    content = json.dumps({**parts, "format": 1}).encode()
    (tmp_path / "model.json").write_bytes(content)
    sums = json.loads((tmp_path / "sha256.json").read_text())
    sums["model.json"] = hashlib.sha256(content).hexdigest()
    (tmp_path / "sha256.json").write_text(json.dumps(sums))
    with pytest.raises(ModelError, match="Train again"):
        RareModel.load(tmp_path)


def test_a_version_with_a_field_by_its_earlier_name_is_read() -> None:
    ensemble = Ensemble((Member(small_model.model(1).learner, 1.0, 0.25),))
    files = portable.pack(ensemble, SAVED, "learner")
    written = files["learner.json"].replace(b'"negative_sampling_rate"', b'"kept"')
    assert written != files["learner.json"]
    assert (
        portable.unpack({**files, "learner.json": written}, SAVED, "learner").members[0].negative_sampling_rate == 0.25
    )
