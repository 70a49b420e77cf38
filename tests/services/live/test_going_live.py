"""A version goes live on unchanged data: no alert may fire, whatever learner or blend it is."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from rareclass.adapters import exporter
from rareclass.adapters.registry import Registry
from rareclass.adapters.store import Store
from rareclass.adapters.tables import Ingested
from rareclass.adapters.tracking import Tracker
from rareclass.config import CandidateSpec, Config, parse
from rareclass.core import selection, splitting, training
from rareclass.core.candidates import Candidate, default_name
from rareclass.core.dataset import Feature, Rows, Schema, decode
from rareclass.core.learners import LEARNERS
from rareclass.core.model import RareModel
from rareclass.core.triage import triage
from rareclass.services import promotion
from rareclass.services.live.monitor import Monitor
from rareclass.services.training import steps

SCHEMA = Schema((*(Feature(f"x{i}") for i in range(3)), Feature("shop", "categorical", ("a", "b", "c"))))
LEARNED, LIVE, PER_DAY = 60, 28, 150
BORN = datetime(2026, 3, 2)
QUICK = {
    "xgboost": {"rounds": 15, "max_depth": 3, "patience": 15},
    "lightgbm": {"rounds": 15, "num_leaves": 6, "patience": 15},
    "catboost": {"rounds": 15, "depth": 3, "patience": 15},
    "random_forest": {"n_estimators": 15},
    "balanced_random_forest": {"n_estimators": 15},
    "extra_trees": {"n_estimators": 15},
    "hist_gradient_boosting": {"max_iter": 15},
    "mlp": {"hidden_layer_sizes": 4, "epochs": 40},  # fewer: still learning, and a refit on more rows learns more
    "adaboost": {"n_estimators": 10},
    "rusboost": {"n_estimators": 10},
    "easy_ensemble": {"n_estimators": 2},
    "scarce": {"novelty": ["ecod"], "rounds": 2, "trees": 2},
    "detectors": {"members": ["ecod"]},
}
BLEND = ("xgboost", "extra_trees", "logistic_regression")
FIRING = (
    "rareclass_ap_degraded_ratio",
    "rareclass_ap_violated_ratio",
    "rareclass_label_starved_ratio",
    "rareclass_feature_drifted_ratio",
    "rareclass_feature_broken_ratio",
    "rareclass_score_drifted_ratio",
    "rareclass_drifted_features_ratio",
    "rareclass_data_broken_ratio",
)
"""What rules wait for: each is above 0 where something is wrong."""


def drawn(days: int, seed: int, start: datetime) -> Rows:
    """Rows of one unchanging world, 6 % of them positive."""
    rng = np.random.default_rng(seed)
    n = days * PER_DAY
    x = np.column_stack([rng.normal(size=(n, 3)), rng.integers(0, 3, n)]).astype(np.float32)
    z = 1.6 * x[:, 0] + x[:, 1] * x[:, 2] + (x[:, 3] == 2) - 4.2
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.int64)
    x[rng.random(n) < 0.05, 1] = np.nan
    time = np.datetime64(start, "us") + (np.arange(n) * (86_400_000_000 // PER_DAY)).astype("timedelta64[us]")
    return Rows(SCHEMA, x, y, rng.integers(0, 2**63, n).astype(np.uint64), time=time)


HISTORY, ARRIVING = drawn(LEARNED, 1, BORN - timedelta(days=LEARNED)), drawn(LIVE, 2, BORN)


def version(config: Config, names: tuple[str, ...]) -> RareModel:
    """What a run on the history registers, for a recipe that is given instead of searched."""
    parts = splitting.split(
        y=HISTORY.y,
        row_id=HISTORY.row_id,
        time=HISTORY.time,
        entity=None,
        config=config.split,
        label_delay=config.data.label_delay,
    )
    train, validation, test = (HISTORY.take(part) for part in (parts.train, parts.validation, parts.test))
    ingested = Ingested(train, validation, test, SCHEMA, {"content_hash": ""}, [], 1)
    dev, folds = steps.development(config, train, validation)
    recipes = [Candidate.from_spec(CandidateSpec(learner=name, params=QUICK.get(name, {}))) for name in names]
    trained = [
        training.train_candidate(dataclasses.replace(one, name=default_name(one)), dev, folds, seed=0)
        for one in recipes
    ]
    chosen = selection.select(trained, dev, steps.selection_rules(config), seed=0)
    if len(names) > 1:  # the blend whether it has won or not
        share = {one.candidate.name: 1 / len(names) for one in trained}
        scored = trained[0].scored
        oof = np.full(len(dev), np.nan)
        oof[scored] = training.combine([one.oof[scored] for one in trained], list(share.values()))
        chosen = selection.Selection("blend", chosen.table, share, oof, scored)
    tuning = steps.tune_threshold(config, dev, chosen)
    made = steps.Recipe(trained, chosen, tuning)
    judged = steps.evaluate(config, dev, test, made)
    now = BORN.replace(tzinfo=UTC)
    return steps.refit(config, ingested, dev, made, judged, now=now)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("live")


@pytest.mark.parametrize("names", [*((name,) for name in LEARNERS), BLEND], ids="+".join)
def test_no_alert_fires_on_the_day_a_version_goes_live_nor_in_the_weeks_after(names, folder):
    config = parse(
        {
            "name": "-".join(names).replace("_", "-"),
            "data": {"path": "memory", "target": "y", "time": "t", "label_delay": "3d"},
            "split": {"folds": 2},
            "evaluate": {"bootstraps": 50, "importance_repeats": 1},
            "compute": {"threads": 1},
            "threshold": {"objective": "f1"},
            "monitor": {"bootstraps": 50, "window": "7d", "min_positives": 20, "min_rows": 100},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/store.db"},
        }
    )
    with threadpool_limits(1):
        model = version(config, names)
        score = model.score(ARRIVING.x)
    born = BORN.replace(tzinfo=UTC)
    run = Tracker(config.tracking.uri, config.name).start("run")
    number = promotion.register(config, model, run.id, now=born).version
    promotion.promote(config, number, now=born)
    ids = [f"r{i}" for i in range(len(ARRIVING))]
    frame = pd.DataFrame(
        {
            "model": config.name,
            "request_id": ids,
            "row": 0,
            "ts": pd.Series(ARRIVING.time),
            "version": number,
            "score": score,
            "decision": (score >= model.threshold()).astype(int),
            "threshold": model.threshold(),
            "weight": 1.0,
            "propensity": 1.0,
            "features": decode(ARRIVING.x, SCHEMA).to_json(orient="records", lines=True).splitlines(),
        }
    )
    seen = frame["ts"] + timedelta(days=2)
    labels = pd.DataFrame({"request_id": ids, "label": ARRIVING.y, "observed_at": seen, "received_at": seen})
    with (
        Store(config.store.url) as store,
        Monitor(config, store=store, registry=Registry(config.tracking.uri)) as monitor,
    ):
        store.migrate()
        store.add_predictions(frame)
        store.add_labels(labels, model=config.name)
        for days in (1, 9, 28):
            found = monitor.evaluate(born + timedelta(days=days))
            verdict = triage(found.evidence, config.monitor, config.gate)
            wrong = [
                (name, labels)
                for name, labels, value in exporter.samples(found, verdict)
                if name in FIRING and math.isfinite(value) and value > 0
            ]
            assert wrong == [], f"day {days}"
            assert verdict.verdict == "nothing", f"day {days}: {verdict.reasons}"
        assert found.drift.score is not None
        low, high = found.estimated_interval
        assert low <= ARRIVING.y[-7 * PER_DAY :].mean() <= high < 0.3
        assert len(found.live[number].judged) >= 3
