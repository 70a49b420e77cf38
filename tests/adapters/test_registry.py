"""Model versions in a real MLflow registry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import small_model
from rareclass.adapters import registry
from rareclass.adapters.registry import Registry, load_model
from rareclass.adapters.tracking import Tracker
from rareclass.core import operating
from rareclass.errors import ModelError

ROWS = pd.DataFrame({"channel": ["web", "shop"], "amount": [1, 4]})


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def there(uri: str) -> Registry:
    return Registry(uri)


@pytest.fixture
def run_id(uri: str) -> str:
    return Tracker(uri, "demo").start("run").id


def _registered(there: Registry, run_id: str, name: str, slope: float = 1.0) -> registry.Version:
    location, digest = there.log(run_id, small_model.model(slope))
    return there.register(name, location, run_id=run_id, digest=digest, tags={"gate": "approve"})


def test_a_version_scores_through_mlflow_as_it_does_directly(there: Registry, run_id: str) -> None:
    import mlflow

    version = _registered(there, run_id, "direct")
    loaded = mlflow.pyfunc.load_model(version.uri)
    expected = small_model.model().score(ROWS)
    answer = loaded.predict(ROWS)
    np.testing.assert_allclose(answer["score"], expected)
    assert list(answer["decision"]) == [0, 1]
    assert list(loaded.predict(ROWS, params={"operating_point": "strict"})["decision"]) == [0, 1]
    assert list(loaded.predict(ROWS.assign(amount=[0, 3]), params={"operating_point": "strict"})["decision"]) == [0, 0]
    assert list(answer.columns) == ["score", "decision"]


def test_a_version_carries_signature_requirements_golden_rows_and_card(there: Registry, run_id: str) -> None:
    from mlflow.models import Model

    version = _registered(there, run_id, "complete")
    folder = Path(version.uri)
    signature = Model.load(str(folder)).signature
    assert signature.inputs.input_names() == ["amount", "channel"]
    assert [each.name for each in signature.params.params] == ["operating_point"]
    needed = (folder / "requirements.txt").read_text()
    assert all(f"{package}==" in needed for package in ("rareclass", "numpy", "scikit-learn", "xgboost-cpu"))
    card = (folder / "README.md").read_text()
    assert "| default (decides) | 0.5 |" in card
    assert "| channel | categorical | web, shop |" in card
    load_model(version.uri).check_golden()


def test_the_uri_is_absolute_and_loads_in_another_folder_without_anything_else(
    there: Registry, run_id: str, tmp_path: Path
) -> None:
    version = _registered(there, run_id, "elsewhere")
    code = (
        "import pandas as pd; from rareclass.adapters.registry import load_model; "
        f"print(load_model({version.uri!r}).score(pd.DataFrame({{'amount': [1.0], 'channel': ['web']}}))[0])"
    )
    path = os.pathsep.join([str(Path(small_model.__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert float(done.stdout) == pytest.approx(1 / (1 + np.e))


def test_a_version_is_found_by_alias_number_run_and_summary(
    there: Registry, run_id: str, uri: str, tmp_path: Path
) -> None:
    version = _registered(there, run_id, "found", slope=3.0)
    there.point("found", {"champion": version.version})
    (tmp_path / "summary.json").write_text(f'{{"uri": "{version.uri}"}}')
    names = [
        f"models:/found/{version.version}",
        "models:/found@champion",
        f"runs:/{run_id}",
        tmp_path,
        version.uri,
        f"file://{version.uri}",
    ]
    expected = small_model.model(3.0).score(ROWS)
    for name in names:
        np.testing.assert_allclose(load_model(name, uri).score(ROWS), expected)


def test_registering_the_same_model_again_gives_the_same_version(there: Registry, run_id: str) -> None:
    first = _registered(there, run_id, "again")
    location, digest = there.log(run_id, small_model.model())
    assert there.register("again", location, run_id=run_id, digest=digest) == first


def test_an_incomplete_version_is_invisible_and_removed_when_its_process_is_gone(there: Registry, run_id: str) -> None:
    version = _registered(there, run_id, "half")
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()
    owner = version.tags[registry.OWNER].rpartition(":")[0]
    there.client.create_model_version("half", version.uri, tags={registry.HASH: "x", registry.OWNER: f"{owner}:{gone}"})
    mine = there.client.create_model_version(
        "half", version.uri, tags={registry.HASH: "x", registry.OWNER: f"{owner}:{os.getpid()}"}
    )
    assert [each.version for each in there.versions("half")] == ["1"]
    with pytest.raises(ModelError, match="has no version 2"):
        load_model("models:/half/2", there.uri)
    assert there.clean("half") == ["2"]
    assert there.clean("half", now=mine.creation_timestamp / 1000 + 4000) == [str(mine.version)]
    assert [each.version for each in there.versions("half")] == ["1"]


def test_kill_9_while_registering_leaves_nothing_that_counts_and_the_next_run_works(
    there: Registry, run_id: str
) -> None:
    code = f"""
import os, small_model
from rareclass.adapters.registry import Registry
there = Registry({there.uri!r})
uri, digest = there.log({run_id!r}, small_model.model())
there.client.set_model_version_tag = lambda *_, **__: os.kill(os.getpid(), 9)  # dies between version and completion
there.register("killed", uri, run_id={run_id!r}, digest=digest)
"""
    path = str(Path(small_model.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == -9
    assert len(there.client.search_model_versions("name = 'killed'")) == 1
    assert there.versions("killed") == []
    after = _registered(there, run_id, "killed")
    assert [each.version for each in there.versions("killed")] == [after.version]
    assert len(there.client.search_model_versions("name = 'killed'")) == 1


def test_the_card_says_what_was_learnt_and_how_good_it_was() -> None:
    meta = {
        "target": "fraud",
        "positive": 1,
        "trained": {"rows": 12345, "positives": 67, "from": "2026-01-01", "until": "2026-02-01"},
        "gate": {"verdict": "approve", "reasons": ["AP 9 times the prevalence"]},
        "prevalence": 0.0054,
        "metrics": {
            "ap": {"value": 0.41, "low": 0.35, "high": 0.47, "positives": 60, "rows": 9000},
            "roc_auc": {"value": None},
        },
    }
    card = registry.model_card(small_model.model(**meta))
    for line in (
        "12,345 rows, 67 of the rare class",
        "2026-01-01 to 2026-02-01",
        "0.5400%",
        "| ap | 0.41 | 0.35 to 0.47 | 60 |",
    ):
        assert line in card
    assert "approve; AP 9 times the prevalence" in card
    assert "roc_auc" not in card


def test_thresholds_tuned_again_are_in_force_when_loaded_from_the_registry(there: Registry, run_id: str) -> None:
    version = _registered(there, run_id, "tuned")
    there.tag("tuned", version.version, {f"{operating.TAG}.default": 0.25})
    there.point("tuned", {"champion": version.version})
    assert there.version("tuned", version.version).thresholds == {"default": 0.25}
    loaded = load_model("models:/tuned@champion", there.uri)
    assert (loaded.threshold(), loaded.threshold("strict")) == (0.25, 0.9)
    assert load_model(version.uri).threshold() == 0.5


def test_aliases_move_and_go(there: Registry, run_id: str) -> None:
    first = _registered(there, run_id, "aliased", 1.0)
    second = _registered(there, run_id, "aliased", 2.0)
    there.point("aliased", {"champion": second.version, "previous": first.version, "challenger": None})
    assert there.at("aliased", "champion").version == second.version
    assert there.at("aliased", "previous").version == first.version
    there.point("aliased", {"previous": None})
    assert there.at("aliased", "previous") is None
    assert there.at("nobody", "champion") is None


def test_files_that_are_not_the_registered_ones_are_refused(
    there: Registry, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = _registered(there, run_id, "forged")
    inner = Path(version.uri) / "data" / "rareclass"
    small_model.model(9.0).save(inner)  # whole and consistent in itself, but not what was registered
    load_model(version.uri)
    with pytest.raises(ModelError, match="not the ones that were registered"):
        load_model("models:/forged/1", there.uri)
    with pytest.raises(ModelError, match="not the ones that were registered"):
        load_model(version.uri, there.uri)  # the run knows its model's hash as well
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    load_model(version.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ModelError, match="is not loaded"):
        load_model(version.uri, "http://127.0.0.1:9")
    (inner / "learner.npz").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="does not match its hash"):
        load_model(version.uri)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("models:/known@champio", "Did you mean 'champion'"),
        ("models:/known/99", "has no version 99"),
        ("models:/unknown/1", "none: `rareclass run` registers the first"),
        ("models:/known", "is not a model"),
        ("runs:/0123", "cannot be read"),
        ("/nowhere", "does not exist"),
    ],
)
def test_a_model_that_is_not_there_is_one_line_with_the_nearest_fix(
    there: Registry, run_id: str, name: str, says: str
) -> None:
    if not there.versions("known"):
        there.point("known", {"champion": _registered(there, run_id, "known").version})
    with pytest.raises(ModelError, match=says) as raised:
        load_model(name, there.uri)
    assert "\n" not in str(raised.value)


def test_a_registry_name_without_a_registry_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ModelError, match="Pass -c CONFIG or --tracking-uri"):
        load_model("models:/x@champion")
