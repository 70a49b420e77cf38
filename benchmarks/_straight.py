"""What one would write without rareclass: one candidate from a Parquet file to a registered model, in a straight line.

Read, split, cross-fit with early stopping, calibrate, tune a threshold, refit, judge with a bootstrap, refit on all
rows, log and register; pandas, XGBoost, scikit-learn and MLflow, two threads. No checks of the data, no diagnosis, no
drift reference, no gate, no ledger, no report: what rareclass does besides is what it may cost.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xgboost as xgb
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, precision_recall_curve, roc_auc_score
from sklearn.model_selection import StratifiedKFold, train_test_split


def encode(frame: pd.DataFrame, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features as float32, categories as codes; the target as 0 and 1."""
    names = [each for each in frame.columns if each not in (settings["target"], settings["time"])]
    x = np.empty((len(frame), len(names)), dtype=np.float32)
    types = []
    for at, name in enumerate(names):
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column.dtype):
            x[:, at] = column
            types.append("q")
        else:
            codes = column.astype("category").cat.codes.to_numpy(dtype=np.float32)
            x[:, at] = np.where(codes < 0, np.nan, codes)
            types.append("c")
    return x, frame[settings["target"]].to_numpy(dtype=np.int64), types


def parts(frame: pd.DataFrame, y: np.ndarray, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Development and test rows, and (train, score) pairs inside the development rows."""
    if settings["time"]:
        order = np.argsort(frame[settings["time"]].to_numpy(), kind="stable")
        dev, test = order[: int(0.8 * len(y))], order[int(0.8 * len(y)) :]
        start = int(0.75 * len(dev))
        bounds = np.linspace(start, len(dev), 4).astype(int)
        return dev, test, [(dev[:low], dev[low:high]) for low, high in itertools.pairwise(bounds)]
    dev, test = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=0)
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(dev, y[dev])
    return dev, test, [(dev[train], dev[score]) for train, score in folds]


def fit(
    x: Any,
    y: Any,
    types: list[str],
    params: dict[str, Any],
    rounds: int,
    stop: Any = None,
    patience: int = 0,
    seed: int = 0,
) -> Any:
    """One booster; early stopping on AP where there are rows for it."""
    options: dict[str, Any] = {"feature_types": types, "enable_categorical": True, "nthread": 2}
    matrix = xgb.QuantileDMatrix(x, y, max_bin=params["max_bin"], **options)
    evals = [] if stop is None else [(xgb.QuantileDMatrix(*stop, ref=matrix, **options), "stop")]
    settings = {**params, "objective": "binary:logistic", "eval_metric": "aucpr", "nthread": 2, "seed": seed}
    return xgb.train(
        settings, matrix, rounds, evals=evals, early_stopping_rounds=patience if evals else None, verbose_eval=False
    )


def predict(booster: Any, x: Any) -> np.ndarray:
    """Probabilities of the best rounds."""
    best = getattr(booster, "best_iteration", None) if booster.attr("best_iteration") else None
    return np.asarray(booster.inplace_predict(x, iteration_range=(0, best + 1) if best is not None else (0, 0)), float)


def main(file: str) -> None:
    settings = json.loads(Path(file).read_text())
    params, rounds, patience = dict(settings["params"]), settings["rounds"], settings["patience"]
    frame = pd.read_parquet(settings["path"])
    x, y, types = encode(frame, settings)
    dev, test, folds = parts(frame, y, settings)
    del frame
    oof, used = np.full(len(y), np.nan), []
    for train, score in folds:
        if settings["time"]:
            learn, stop = train[: int(0.8 * len(train))], train[int(0.8 * len(train)) :]
        else:
            learn, stop = train_test_split(train, test_size=0.2, stratify=y[train], random_state=0)
        booster = fit(x[learn], y[learn], types, params, rounds, (x[stop], y[stop]), patience)
        oof[score] = predict(booster, x[score])
        used.append((booster.best_iteration + 1) * 1.1)
    scored = np.flatnonzero(np.isfinite(oof))
    calibrator = IsotonicRegression(out_of_bounds="clip", y_min=1e-9, y_max=1 - 1e-9).fit(oof[scored], y[scored])
    precision, recall, cuts = precision_recall_curve(y[scored], calibrator.predict(oof[scored]))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    threshold = float(cuts[min(int(np.argmax(f1)), len(cuts) - 1)])
    final = round(float(np.mean(used)))
    judge = [fit(x[dev], y[dev], types, params, final, seed=seed) for seed in range(settings["seeds"])]
    score = calibrator.predict(np.mean([predict(one, x[test]) for one in judge], axis=0))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(settings["bootstraps"]):
        weight = np.bincount(rng.integers(0, len(test), len(test)), minlength=len(test))
        draws.append(average_precision_score(y[test], score, sample_weight=weight))
    low, high = np.percentile(draws, [2.5, 97.5])
    metrics = {
        "ap": average_precision_score(y[test], score),
        "ap_low": low,
        "ap_high": high,
        "roc_auc": roc_auc_score(y[test], score),
        "brier": brier_score_loss(y[test], score),
        "log_loss": log_loss(y[test], score),
        "threshold": threshold,
    }
    everything = [fit(x, y, types, params, final, seed=seed) for seed in range(settings["seeds"])]
    register(settings, everything, calibrator, metrics, x[:5])
    print(json.dumps({key: float(value) for key, value in metrics.items()}))


def register(
    settings: dict[str, Any], boosters: list[Any], calibrator: Any, metrics: dict[str, float], example: Any
) -> None:
    """One MLflow run with a registered pyfunc model."""
    import mlflow
    from mlflow.models import infer_signature

    class Model(mlflow.pyfunc.PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return calibrator.predict(np.mean([predict(one, np.asarray(model_input)) for one in boosters], axis=0))

    mlflow.set_tracking_uri(settings["tracking"])
    mlflow.set_experiment("straight")
    with mlflow.start_run():
        mlflow.log_params(settings["params"])
        mlflow.log_metrics({key: float(value) for key, value in metrics.items()})
        mlflow.pyfunc.log_model(
            name="model",
            python_model=Model(),
            signature=infer_signature(example, np.zeros(len(example))),
            registered_model_name="straight",
            pip_requirements=["xgboost-cpu", "scikit-learn"],
        )


if __name__ == "__main__":
    main(sys.argv[1])
