"""Versions of other releases: what scores is read whole or refused, what describes is read as far as it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows_for_learning import make_rows

import small_model
from rareclass.core import calibration, compatibility, reading, times
from rareclass.core.dataset import Feature, Roles, Schema
from rareclass.core.model import FORMAT, RareModel
from rareclass.core.profile import FeatureProfile, Profile, reference_profile
from rareclass.core.training import SAVED
from rareclass.errors import ModelError

CONTRACT = Path(__file__).with_name("format-2.json")
X = np.array([[0.5, 0], [2, 1]], dtype=np.float32)
PARTS = [
    *SAVED, Schema, Feature, Roles, reading.Target, reading.Reading, times.TimeReading, Profile, FeatureProfile,
    *calibration.KINDS.values(),
]  # fmt: skip


def saved(folder: Path, change: Callable[[dict[str, Any]], None], file: str = "model.json") -> Path:
    """A version whose file says what another release might, its hashes true."""
    roles = Roles(reading.Target("label", "1"), times.TimeReading("when"))
    made = small_model.model()
    made = RareModel(Schema(made.schema.features, roles), made.learner, made.calibrator, made.thresholds)
    made.save(folder)
    sums = json.loads((folder / "sha256.json").read_text())
    raw = json.loads((folder / file).read_text())
    change(raw)
    (folder / file).write_text(json.dumps(raw))
    sums[file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "sha256.json").write_text(json.dumps(sums))
    return folder


SCORING: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "schema": ("model.json", lambda raw: raw["schema"]),
    "feature": ("model.json", lambda raw: raw["schema"]["features"][0]),
    "reading": ("model.json", lambda raw: raw["schema"]["features"][1]["reading"]),
    "roles": ("model.json", lambda raw: raw["schema"]["roles"]),
    "target": ("model.json", lambda raw: raw["schema"]["roles"]["target"]),
    "time": ("model.json", lambda raw: raw["schema"]["roles"]["time"]),
    "calibrator": ("model.json", lambda raw: raw["calibrator"]),
    "part": ("model.json", lambda raw: raw),
    "learner": ("learner.json", lambda raw: raw),
}


@pytest.mark.parametrize("part", SCORING)
def test_a_field_that_may_change_scores_and_is_not_known_is_refused_with_what_to_do(tmp_path: Path, part: str) -> None:
    file, inside = SCORING[part]
    folder = saved(tmp_path, lambda raw: inside(raw).update(clipped_at=0.5), file)
    with pytest.raises(
        ModelError, match=r"'clipped_at'.*a newer rareclass, or something else, wrote the version\. Upgrade"
    ) as refused:
        RareModel.load(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model.json", lambda raw: raw["calibrator"].update(kind="spline")),
        ("learner.json", lambda raw: raw.update({"$": "Kernel"})),
    ],
)
def test_a_kind_that_is_not_known_is_refused_as_newer(tmp_path: Path, file: str, change: Any) -> None:
    with pytest.raises(ModelError, match=r"of the kind '(spline|Kernel)', .* newer rareclass"):
        RareModel.load(saved(tmp_path, change, file))


@pytest.mark.parametrize(
    ("file", "inside", "name"),
    [
        ("model.json", lambda raw: raw["schema"]["features"][0], "name"),
        ("model.json", lambda raw: raw, "thresholds"),
        ("learner.json", lambda raw: raw, "coefficient"),
    ],
)
def test_what_lacks_a_field_that_every_release_writes_is_refused(
    tmp_path: Path, file: str, inside: Any, name: str
) -> None:
    with pytest.raises(ModelError, match=f"lacks .*'{name}'.*Train again"):
        RareModel.load(saved(tmp_path, lambda raw: inside(raw).pop(name), file))


def test_fields_that_an_older_release_did_not_write_have_their_defaults(tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        for feature in raw["schema"]["features"]:
            del feature["reading"]
        del raw["schema"]["roles"]["encoding"], raw["calibrator"]["offset"]

    older = RareModel.load(saved(tmp_path, change))
    np.testing.assert_array_equal(older.score(X), small_model.model().score(X))


def test_a_profile_is_read_as_far_as_it_is_known_and_what_was_not_recorded_is_nan() -> None:
    rows = make_rows(300, hours=True)
    written = reference_profile(rows, np.linspace(0, 1, len(rows)), threshold=0.5).to_json()
    newer = json.loads(json.dumps(written | {"entropy": 0.3, "window_seconds": 604800}))
    newer["features"][0]["skew"] = newer["score"]["skew"] = [1, 2]
    assert Profile.from_json(newer).to_json() == written
    older = {name: value for name, value in written.items() if name not in ("ranks", "score_ratio", "window_ap")}
    found = Profile.from_json(older)
    assert np.isnan(found.score_ratio)
    assert (found.ranks, found.window_ap) == (False, ())
    with pytest.raises(ModelError, match="the profile of the version lacks 'features'"):
        Profile.from_json({name: value for name, value in written.items() if name != "features"})


def test_what_a_run_noted_is_kept_whatever_it_is(tmp_path: Path) -> None:
    assert RareModel.load(saved(tmp_path, lambda raw: raw["meta"].update(later={"a": [1]}))).meta["later"] == {"a": [1]}


def test_every_part_needs_what_the_first_release_of_the_format_wrote_and_no_more() -> None:
    """A field without a default that is new, gone or renamed keeps releases of one format from reading each other.

    Give a new field the default that says what releases did before it; where there is none, raise FORMAT and begin a
    new file. The file of a format is never edited, but for parts that are new.
    """
    contract = json.loads(CONTRACT.read_text())
    assert CONTRACT.name == f"format-{FORMAT}.json"
    ours = [kind for kind in PARTS if kind.__module__.startswith("rareclass.")]  # other tests add calibrators
    assert {kind.__name__: compatibility.required(kind) for kind in ours} == contract
