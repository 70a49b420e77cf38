"""Every Kubeflow component called with real files: the same result as the run in one process, nothing installed at run
time.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from kfp import dsl

import components
from rareclass.adapters import cluster
from rareclass.config import Config, dump, parse
from rareclass.services.training import run

NAMES = sorted(each.name for each in pkgutil.iter_modules(components.__path__))


def table(path: Path, n: int = 1500) -> Path:
    rng = np.random.default_rng(3)
    a, kind = rng.normal(size=n), rng.choice(["x", "y"], size=n)
    odds = -3.5 + 1.8 * a + 1.2 * (kind == "y")
    frame = pd.DataFrame({"a": a, "noise": rng.normal(size=n), "kind": kind})
    frame["target"] = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int)
    frame.to_parquet(path)
    return path


def settings(folder: Path, data: Path) -> Config:
    folder.mkdir()
    return parse(
        {
            "name": "test",
            "data": {"path": str(data), "target": "target"},
            "search": {
                "trials": 3,
                "tune": False,
                "candidates": [{"learner": "logistic_regression", "resample": [{"name": "random_under", "ratio": 3}]}],
            },
            "evaluate": {"bootstraps": 50},
            "gate": {"min_positives": 10},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
        }
    )


class Step:
    """Artifacts of one component in a folder, as the backend hands them to it."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root, self.config, self.called = root, json.dumps(dump(config)), []

    def artifact(self, name: str) -> dsl.Artifact:
        kind = dsl.Metrics if name.endswith("metrics") else dsl.Artifact
        return kind(name=name, uri=str(self.root / name), metadata={})

    def __call__(self, name: str, **given: object) -> object:
        self.called.append(name)
        component = getattr(importlib.import_module(f"components.{name}"), name)
        return component.python_func(config=self.config, **given)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Step, dict, dict, list[str]]:
    """The whole pipeline, component by component, beside the run in one process on the same rows."""
    folder = tmp_path_factory.mktemp("components")
    data = table(folder / "data.parquet")
    step = Step(folder, settings(folder / "steps", data))
    a = step.artifact
    parts = {name: a(name) for name in ("train", "validation")}
    step(
        "ingest",
        repair="",
        data_version="x",
        ingested=a("ingested"),
        test=a("test"),
        metrics=a("ingest-metrics"),
        **parts,
    )
    groups = step("detect_imbalance", ingested=a("ingested"), plan=a("plan"), **parts)
    trained = []
    for group in groups:
        given = {"group": group, "plan": a("plan"), **parts}
        step("resample", resampled=a(f"resampled-{group}"), **given)
        trained.append(a(f"trained-{group}"))
        step("train", resampled=a(f"resampled-{group}"), trained=trained[-1], **given)
    step("select", plan=a("plan"), trained=trained, selection=a("selection"), **parts)
    step("tune_threshold", selection=a("selection"), tuning=a("tuning"), **parts)
    metrics = a("evaluate-metrics")
    step(
        "evaluate",
        ingested=a("ingested"),
        test=a("test"),
        selection=a("selection"),
        tuning=a("tuning"),
        judgement=a("judgement"),
        metrics=metrics,
        **parts,
    )
    version = step(
        "register",
        ingested=a("ingested"),
        plan=a("plan"),
        selection=a("selection"),
        tuning=a("tuning"),
        judgement=a("judgement"),
        details=a("details"),
        **parts,
    )
    role = step("promote", details=a("details"), summary=a("summary"), report=a("report.html"))
    whole = run.run(settings(folder / "whole", data), folder / "whole" / "out")
    return step, json.loads((folder / "summary").read_text())["summary"], whole, [version, role, dict(metrics.metadata)]


def test_every_component_is_walked(walked: tuple) -> None:
    assert sorted(set(walked[0].called)) == NAMES


def test_the_components_reach_the_result_of_the_run_in_one_process(walked: tuple) -> None:
    _, steps, whole, (version, role, metrics) = walked
    assert (version, role) == ("1", "champion") == (whole["version"], whole["role"])
    for key in ("selected", "rows", "positives", "prevalence", "gate", "metrics", "data_hash"):
        assert steps[key] == whole[key], key
    assert [each["name"] for each in steps["candidates"]] == [each["name"] for each in whole["candidates"]]
    assert metrics["ap"] == steps["metrics"]["ap"] == pytest.approx(whole["metrics"]["ap"])


def test_a_step_that_is_retried_leaves_the_same_files(walked: tuple) -> None:
    step = walked[0]
    before = (step.root / "train").read_bytes()
    a = step.artifact
    step(
        "ingest",
        repair="",
        data_version="x",
        ingested=a("ingested"),
        train=a("train"),
        validation=a("validation"),
        test=a("test"),
        metrics=a("again-metrics"),
    )
    assert (step.root / "train").read_bytes() == before


@pytest.fixture(scope="module")
def compiled() -> dict:
    return next(yaml.safe_load_all(cluster.compiled().read_text()))


def test_no_step_installs_anything_when_it_runs(compiled: dict) -> None:
    executors = compiled["deploymentSpec"]["executors"]
    assert len(executors) == len(NAMES)
    for name, executor in executors.items():
        words = " ".join([*executor["container"]["command"], *executor["container"]["args"]])
        assert "pip" not in words.replace("pipeline", ""), name
        assert "kfp.dsl.executor_main" in words


def test_steps_that_act_or_judge_are_never_taken_from_the_cache(compiled: dict) -> None:
    tasks = compiled["root"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert not cached & {"ingest", "evaluate", "register", "promote"}
    assert {"detect-imbalance", "select", "tune-threshold"} <= cached


def test_secrets_are_references_and_resources_come_from_the_configuration(tmp_path: Path) -> None:
    placement = cluster.Placement(
        "registry/x:1", "300m", "1Gi", env={"A": "b"}, secrets={"store": {"RARECLASS_STORE_URL": "url"}}, cache=True
    )
    text = cluster.placed(cluster.compiled(), placement)
    spec, platform = yaml.safe_load_all(text)
    kubernetes = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert spec["root"]["dag"]["tasks"]["ingest"]["cachingOptions"] == {"enableCache": True}
    for name, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        assert container["image"] == "registry/x:1"
        assert container["resources"]["resourceMemoryLimit"] == "1Gi"
        assert container["env"] == [{"name": "A", "value": "b"}]
        assert kubernetes[name]["secretAsEnv"][0]["keyToEnv"] == [{"envVar": "RARECLASS_STORE_URL", "secretKey": "url"}]
    assert "&id" not in text
    assert cluster.digest(text) != cluster.digest(text.replace("300m", "400m"))
