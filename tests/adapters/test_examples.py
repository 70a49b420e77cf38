"""The examples run as they are: their data fits their configuration and is as rare as their pages say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

from rareclass.adapters import tables
from rareclass.config import Config, load

EXAMPLES = Path(__file__).parents[2] / "examples"


def generator(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_generate", EXAMPLES / name / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ingested(name: str, frame: pd.DataFrame, folder: Path) -> tuple[Config, tables.Ingested]:
    path = folder / "rows.parquet"
    frame.to_parquet(path, index=False)
    config = load(EXAMPLES / name / "config.yaml", [f"data.path={path}"])
    return config, tables.ingest(config)


def test_every_example_has_a_configuration_that_is_valid():
    folders = [folder for folder in EXAMPLES.iterdir() if folder.is_dir() and not list(folder.glob("*.ipynb"))]
    assert len(folders) >= 4
    for folder in folders:
        config = load(folder / "config.yaml")
        made = config.data.path.startswith("demo:") or (folder / "generate.py").is_file()
        assert made, f"{folder.name} has neither demo data nor a generator"
        assert config.name == folder.name.replace("_", "-")


def test_the_payments_are_prepared_by_configuration_alone(tmp_path):
    _, found = ingested("card_fraud", generator("card_fraud").generate(150_000), tmp_path)
    assert 1 / 800 < sum(p.positives for p in parts(found)) / sum(map(len, parts(found))) < 1 / 500
    assert not {"nameOrig", "nameDest", "type"} & set(found.schema.names)
    assert found.dropped["empty"] > 0
    assert found.dropped["majority_outliers"] > 0
    assert found.train_kept < 1
    assert found.test.amount.sum() > 0
    assert not [each for each in found.warnings if each.check == "leak"]


def test_the_fires_are_one_to_1382(tmp_path):
    _, found = ingested("forest_fire", generator("forest_fire").generate(), tmp_path)
    assert found.card["target_values"] == {"0": 289 * 1382, "1": 289}
    assert found.test.positives >= 50


def test_two_in_a_hundred_visits_have_the_disease(tmp_path):
    frame = generator("medical_screening").generate(20_000)
    _, found = ingested("medical_screening", frame, tmp_path)
    assert found.card["target_values"] == {"no": 19_600, "yes": 400}
    assert found.positive_value == "yes"


def test_a_generator_makes_the_same_rows_again():
    make = generator("medical_screening").generate
    pd.testing.assert_frame_equal(make(1000), make(1000))
    assert not make(1000).equals(make(1000, seed=1))


@pytest.mark.parametrize("name", ["card_fraud", "forest_fire", "medical_screening"])
def test_what_is_synthetic_says_so(name):
    folder = EXAMPLES / name
    assert "synthetic" in (folder / "generate.py").read_text().lower()
    assert "synthetic" in (folder / "config.yaml").read_text().lower()


def parts(found: tables.Ingested):
    return found.train, found.validation, found.test


def test_the_published_recipe_is_what_its_page_says_and_may_be_forced():
    import yaml

    from rareclass.services.training.validate import check

    path = EXAMPLES / "medical_screening" / "published.yaml"
    config = check(load(path))
    (recipe,) = config.search.candidates
    assert [(step.name, step.rows) for step in recipe.resample] == [("smote", 800), ("smote_enn", 4000)]
    assert config.threshold.fixed == 0.5
    forced = (
        next(line for line in path.read_text().splitlines() if "search.only=" in line).partition("'")[2].rstrip("'")
    )
    only = check(load(path, [f"search.only={forced}"])).search.only
    assert only is not None
    assert only.resample == recipe.resample
    assert yaml.safe_load(forced)["learner"] == recipe.learner
    assert (generator("medical_screening").generate(10_000)["disease"] == "yes").sum() == 200
