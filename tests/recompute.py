"""Compute again what a run says, from its scored rows, with NumPy, SciPy, pandas and scikit-learn only.

    python tests/recompute.py OUT        # the folder of a finished `rareclass run`

Nothing of rareclass is imported. Every number of summary.json and run.json is either computed anew and compared, or
listed in NOT_FROM_SCORES with the reason why scored rows cannot tell it. Values have to agree to 1e-9; ends of
intervals have to lie where another bootstrap with other draws puts them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn import metrics as sk

NOT_FROM_SCORES = {
    r"(summary\.)?seconds\..*|summary\.peak_memory_bytes|.*fit_seconds": "measured by a clock",
    r"config\..*": "what was asked for",
    r"data_card\..*|diagnosis\..*|periods\..*": "from the rows as they were read, most of them never scored",
    r"summary\.(rows|positives|prevalence)\.(train|refit|all)|summary\.version": "training rows are not scored",
    r"trials\..*|selection\.weights\..*": "how the fits were made",
    r"selection\.table\.\d+\.p_value": "a count of resamples; the interval of the difference is compared",
    r"calibration\.log_loss\..*": "cross-fitted calibrators, which are not kept",
    r"importance\..*": "needs the judged model: its features are scrambled",
    r"summary\.prequential\..*": "fits of their own, one before each window",
    r"gate\.numbers\..*\.bound": "what was asked for",
    r"points\..*\.(low|high)|summary\.operating_points\.[^.]*\.(low|high)": "thresholds tuned on each resample",
    r".*operating_points\..*\.crossfitted\..*|points\..*\.crossfitted\..*": (
        "thresholds tuned again without the rows they are judged on"
    ),
    r"champion_metrics\..*threshold|summary\.champion_metrics\..*threshold": "the champion's own",
}
DRAWS = 200


@dataclass
class Check:
    """What was compared: paths of numbers, and where they differ."""

    seen: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def same(self, path: str, said: float | None, own: float, tolerance: float = 1e-9) -> None:
        self.seen.add(path)
        if said is None:
            if np.isfinite(own):
                self.wrong.append(f"{path}: nothing was said, it is {own:.6g}")
        elif not np.isclose(said, own, rtol=tolerance, atol=tolerance):
            self.wrong.append(f"{path}: {said!r} was said, it is {own!r}")

    def estimate(self, path: str, said: Mapping[str, Any], own: float, draws: np.ndarray, rows: pd.DataFrame) -> None:
        """Compare a value exactly, its counts, and its interval with that of other draws."""
        self.same(f"{path}.value", said["value"], own)
        self.same(f"{path}.positives", said["positives"], rows["label"].sum())
        self.same(f"{path}.rows", said["rows"], len(rows))
        self.interval(path, said["low"], said["high"], draws, own=own, positives=rows["label"].sum())

    def interval(
        self,
        path: str,
        low: float | None,
        high: float | None,
        draws: np.ndarray,
        sep: str = ".",
        *,
        own: float | None = None,
        positives: float | None = None,
    ) -> None:
        self.seen |= {f"{path}{sep}low", f"{path}{sep}high"}
        finite = draws[np.isfinite(draws)]
        if low is None or high is None:
            return
        if not low <= high:
            self.wrong.append(f"{path}: interval [{low}, {high}] ends before it begins")
        if 2 * len(finite) < len(draws) or np.ptp(finite) < 1e-12:
            return
        mine = ends(path.rsplit(".", 1)[-1], finite, own, positives)
        room = 0.35 * (mine[1] - mine[0]) + 1e-9
        if abs(low - mine[0]) > room or abs(high - mine[1]) > room:
            self.wrong.append(
                f"{path}: interval [{low:.6g}, {high:.6g}], other draws say [{mine[0]:.6g}, {mine[1]:.6g}]"
            )


SHARES = ("recall", "precision", "specificity", "micro_f1")
BOUNDED = ("ap", "roc_auc", "f1", "f2", "gmean", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")


def ends(name: str, draws: np.ndarray, own: float | None, positives: float | None) -> tuple[float, float]:
    """Ends of an interval from other draws: Wilson's for a share, on the log-odds for what lies between 0 and 1, else
    percentiles.
    """
    spread = draws.std(ddof=1)
    if own is not None and 0 < own < 1 and spread > 0:
        if name in SHARES:
            n, z = own * (1 - own) / spread**2, 1.959964
            middle = (own + z * z / (2 * n)) / (1 + z * z / n)
            half = z / (1 + z * z / n) * np.sqrt(own * (1 - own) / n + z * z / (4 * n * n))
            return middle - half, middle + half
        if name in BOUNDED and positives:
            wide = stats.t.ppf(0.975, max(positives - 1, 1)) * spread / (own * (1 - own))
            centre = np.log(own / (1 - own))
            return 1 / (1 + np.exp(wide - centre)), 1 / (1 + np.exp(-wide - centre))
    if own is not None and name == "ece":
        draws = np.maximum(draws - (draws.mean() - own), 0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return low, high


def numbers(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of every number in nested JSON."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for key, each in enumerate(value):
            yield from numbers(each, f"{path}.{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def resampled(rows: pd.DataFrame, seed: int = 12345) -> np.ndarray:
    """(DRAWS, n) how often each row is drawn: whole blocks, or rows where there are fewer than five."""
    blocks, code = np.unique(rows["block"], return_inverse=True)
    if len(blocks) < 5:
        code = np.arange(len(rows))
    units, rng = int(code.max()) + 1, np.random.default_rng(seed)
    draws = [np.bincount(rng.integers(0, units, units), minlength=units)[code] for _ in range(DRAWS)]
    return np.array(draws, dtype=float)


def days_of(frame: pd.DataFrame, details: Mapping[str, Any], share: float) -> float:
    """Days of all rows that these stand for: a split that is not by time spreads the others over the same days."""
    if "ts" not in frame:
        return float("nan")
    span = max((frame["ts"].max() - frame["ts"].min()) / pd.Timedelta("1D"), 1.0)
    return float(span if details["data_card"]["split"]["kind"] == "time" else span * share)


Numbers = dict[str, float]


def ranking(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> Numbers:
    """AP and ROC-AUC of weighted rows; NaN where a class is missing."""
    used = weight > 0
    y, score, weight = y[used], score[used], weight[used]
    if not 0 < y.sum() < len(y):
        return {"ap": np.nan, "roc_auc": np.nan, "ap_lift": np.nan}
    ap = sk.average_precision_score(y, score, sample_weight=weight)
    area = sk.roc_auc_score(y, score, sample_weight=weight)
    return {"ap": ap, "roc_auc": area, "ap_lift": ap / np.average(y, weights=weight)}


def probabilities(y: np.ndarray, score: np.ndarray, weight: np.ndarray, bins: np.ndarray) -> Numbers:
    total = weight.sum()
    gaps = np.bincount(bins, weight * (y - score))
    positives = (weight * y).sum()
    p = np.clip(score, 1e-15, 1 - 1e-15)
    return {
        "brier": (weight * (score - y) ** 2).sum() / total,
        "log_loss": -(weight * np.where(y == 1, np.log(p), np.log1p(-p))).sum() / total,
        "ece": np.abs(gaps).sum() / total,
        "mean_score_ratio": (weight * score).sum() / positives if positives else np.nan,
    }


def decisions(y: np.ndarray, flag: np.ndarray, weight: np.ndarray, miss: np.ndarray, alarm: np.ndarray) -> Numbers:
    tp, fp = (weight * (flag & (y == 1))).sum(), (weight * (flag & (y == 0))).sum()
    fn, tn = (weight * (~flag & (y == 1))).sum(), (weight * (~flag & (y == 0))).sum()

    def share(a: float, b: float) -> float:
        return a / b if b > 0 else np.nan

    precision, recall, specificity = share(tp, tp + fp), share(tp, tp + fn), share(tn, tn + fp)
    zero = np.nan_to_num
    other = zero(share(2 * tn, 2 * tn + fp + fn))
    f1 = zero(share(2 * tp, 2 * tp + fp + fn)) if tp + fn else np.nan
    f2 = zero(share(5 * tp, 5 * tp + 4 * fn + fp)) if tp + fn else np.nan
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "precision": precision,
        "recall": recall,
        "specificity": specificity,
        "f1": f1,
        "f2": f2,
        "mcc": zero(share(tp * tn - fp * fn, scale)),
        "gmean": np.sqrt(recall * specificity),
        "balanced_accuracy": (recall + specificity) / 2,
        "macro_precision": (zero(precision) + zero(share(tn, tn + fn))) / 2,
        "macro_recall": (zero(recall) + zero(specificity)) / 2,
        "macro_f1": (zero(f1) + other) / 2,
        "micro_f1": (tp + tn) / (tp + fp + fn + tn),
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "alerts": tp + fp,
        "cost": (weight * np.where(flag, np.where(y == 0, alarm, 0), np.where(y == 1, miss, 0))).sum(),
    }


def agree_with_scikit_learn(
    check: Check, path: str, said: Mapping[str, Any], y: np.ndarray, flag: np.ndarray, weight: np.ndarray
) -> None:
    """Hold the decision metrics against scikit-learn's own functions."""
    given: dict[str, Callable[..., float]] = {
        "precision": sk.precision_score,
        "recall": sk.recall_score,
        "f1": sk.f1_score,
        "mcc": sk.matthews_corrcoef,
        "balanced_accuracy": sk.balanced_accuracy_score,
        "f2": lambda a, b, sample_weight: sk.fbeta_score(a, b, beta=2, sample_weight=sample_weight, zero_division=0),
        "macro_f1": lambda a, b, sample_weight: sk.f1_score(
            a, b, average="macro", sample_weight=sample_weight, zero_division=0
        ),
        "macro_precision": lambda a, b, sample_weight: sk.precision_score(
            a, b, average="macro", sample_weight=sample_weight, zero_division=0
        ),
        "macro_recall": lambda a, b, sample_weight: sk.recall_score(
            a, b, average="macro", sample_weight=sample_weight, zero_division=0
        ),
        "micro_f1": lambda a, b, sample_weight: sk.f1_score(a, b, average="micro", sample_weight=sample_weight),
    }
    for name, function in given.items():
        if said[name]["value"] is not None:
            check.same(f"{path}.{name}.value", said[name]["value"], function(y, flag, sample_weight=weight))


@dataclass(frozen=True)
class Rows:
    """Scored rows, and how often each is in each resample."""

    frame: pd.DataFrame
    drawn: np.ndarray

    @staticmethod
    def of(frame: pd.DataFrame) -> Rows:
        return Rows(frame, resampled(frame))

    def __getattr__(self, name: str) -> np.ndarray:
        return np.asarray(self.frame[name])

    def both(self, function: Callable[[np.ndarray], Numbers]) -> tuple[Numbers, dict[str, np.ndarray]]:
        """The numbers of the rows, and of each resample."""
        exact = function(self.weight)
        lines = [function(self.weight * times) for times in self.drawn]
        return exact, {name: np.array([line[name] for line in lines]) for name in exact}


def recompute(out: Path) -> Check:
    """Compare every number; returns what was seen and what is wrong."""
    summary = json.loads((out / "summary.json").read_text())
    details = json.loads((out / "run.json").read_text())
    folder = Path(summary["uri"]).parent / "evaluation"
    test = Rows.of(pd.read_parquet(folder / "test_scores.parquet"))
    heldout = Rows.of(pd.read_parquet(folder / "heldout_scores.parquet"))
    check = Check()
    judged(check, details, test)
    money(check, details["evaluation"]["money"], test, details)
    pictures(check, details, test)
    slices(check, details["evaluation"]["slices"], test, details)
    best_of_days(check, details["evaluation"]["top_k"], test, details)
    tried(check, details, heldout)
    tuned(check, details, heldout)
    champion(check, details, test)
    gate(check, details)
    if details["cross_fitting"]:
        cross_fitted(check, details, pd.read_parquet(folder / "cross_fitted_scores.parquet"))
    repeated(check, details, summary, test, heldout)
    leaves = {*numbers({**details, "summary": summary})}
    exempt = re.compile("|".join(f"(?:{each})" for each in NOT_FROM_SCORES))
    for path in sorted(leaves - check.seen):
        if not exempt.fullmatch(path):
            check.wrong.append(f"{path}: was said and nobody computed it again")
    return check


def judged(check: Check, details: Mapping[str, Any], test: Rows) -> None:
    """Metrics, operating points, the untuned threshold and what it misses."""
    evaluation = details["evaluation"]
    y, score = test.label, test.score
    edges = np.quantile(score, np.arange(1, 15) / 15, method="inverted_cdf")
    bins = np.searchsorted(edges, score, side="left")
    exact, draws = test.both(lambda weight: {**ranking(y, score, weight), **probabilities(y, score, weight, bins)})
    for name, own in exact.items():
        check.estimate(f"evaluation.metrics.{name}", evaluation["metrics"][name], own, draws[name], test.frame)
    thresholds = {**evaluation["thresholds"], "untuned": 0.5}
    places = {name: [f"evaluation.points.{name}"] for name in evaluation["points"]} | {
        "untuned": ["evaluation.untuned"]
    }
    places[evaluation["primary"]].append("evaluation.metrics")
    for name, paths in places.items():
        flag = score >= thresholds[name]
        exact, draws = test.both(
            lambda weight, flag=flag: decisions(y, flag, weight, test.cost_of_miss, test.cost_of_alarm)
        )  # type: ignore[misc]
        for path in paths:
            said = at(details, path)
            agree_with_scikit_learn(check, path, said, y, flag, test.weight)
            for metric, own in exact.items():
                check.estimate(f"{path}.{metric}", said[metric], own, draws[metric], test.frame)
    rescued = (y == 1) & (score < 0.5) & (score >= thresholds[evaluation["primary"]])
    exact, draws = test.both(lambda weight: {"found": (weight * rescued).sum()})
    check.estimate(
        "evaluation.untuned.missed_but_tuned_finds",
        evaluation["untuned"]["missed_but_tuned_finds"],
        exact["found"],
        draws["found"],
        test.frame,
    )
    for name, threshold in evaluation["thresholds"].items():
        check.same(f"evaluation.thresholds.{name}", threshold, details["points"][name]["value"])
    counts = evaluation["counts"]
    check.same("evaluation.counts.rows", counts["rows"], len(y))
    check.same("evaluation.counts.positives", counts["positives"], y.sum())
    check.same("evaluation.counts.prevalence", counts["prevalence"], np.average(y, weights=test.weight))
    units = test.frame["block"].nunique()
    check.same("evaluation.counts.blocks", counts["blocks"], units if units >= 5 else len(y))


def money(check: Check, said: Mapping[str, Any], test: Rows, details: Mapping[str, Any]) -> None:
    flag = test.score >= details["evaluation"]["thresholds"][details["evaluation"]["primary"]]
    miss, alarm = np.where(test.label == 1, test.cost_of_miss, 0), np.where(test.label == 0, test.cost_of_alarm, 0)

    def spent(weight: np.ndarray) -> Numbers:
        cost, nothing, everything = (
            float((weight * each).sum()) for each in (np.where(flag, alarm, miss), miss, alarm)
        )
        return {
            "cost": cost,
            "cost_nothing": nothing,
            "cost_everything": everything,
            "saving_vs_nothing": nothing - cost,
            "saving_vs_everything": everything - cost,
            "per_1000_rows": 1000 * cost / weight.sum(),
        }

    exact, draws = test.both(spent)
    for name, own in exact.items():
        check.estimate(f"evaluation.money.{name}", said[name], own, draws[name], test.frame)


def curves_lie_on(
    check: Check, path: str, said: Mapping[str, Any], y: np.ndarray, score: np.ndarray, weight: np.ndarray
) -> None:
    """Every point but the first (where nothing is flagged) is one of scikit-learn's."""
    precision, recall, _ = sk.precision_recall_curve(y, score, sample_weight=weight)
    fpr, tpr, _ = sk.roc_curve(y, score, sample_weight=weight, drop_intermediate=False)
    own = {"pr": ({"recall": recall, "precision": precision}), "roc": {"fpr": fpr, "tpr": tpr}}
    for name, axes in own.items():
        line, (across, up) = said[name], list(axes.values())
        for k, point in enumerate(zip(*(line[axis] for axis in axes), strict=True)):
            nearest = np.min(np.abs(across - point[0]) + np.abs(up - point[1])) if k else 0.0
            for axis in axes:
                check.same(f"{path}.{name}.{axis}.{k}", nearest, 0.0)


def pictures(check: Check, details: Mapping[str, Any], test: Rows) -> None:
    """Points of the curves lie on scikit-learn's curves;
    bins of the calibration and the trade-off are computed anew.
    """
    evaluation, y, score = details["evaluation"], test.label, test.score
    curves_lie_on(check, "evaluation.curves", evaluation["curves"], y, score, test.weight)
    rare = score[y == 1]
    bins = min(10, len(rare) // 5)
    edges = np.unique(np.quantile(rare, np.arange(1, bins) / bins, method="inverted_cdf")) if bins > 1 else []
    where = np.searchsorted(edges, score, side="right")
    for k, (place, each) in enumerate(zip(np.unique(where), evaluation["calibration"], strict=True)):
        inside = where == place
        weight = test.weight[inside]
        rate, size, z = np.average(y[inside], weights=weight), weight.sum(), 1.959963984540054
        middle, half = (
            (rate + z * z / (2 * size)) / (1 + z * z / size),
            z / (1 + z * z / size) * np.sqrt(rate * (1 - rate) / size + z * z / (4 * size**2)),
        )
        expected = {
            "rows": inside.sum(),
            "positives": y[inside].sum(),
            "mean_score": np.average(score[inside], weights=weight),
            "rate": rate,
            "rate_low": 0 if rate == 0 else middle - half,
            "rate_high": 1 if rate == 1 else middle + half,
        }
        for name, value in expected.items():
            check.same(f"evaluation.calibration.{k}.{name}", each[name], value)
    found = details["tradeoff"]
    days = days_of(test.frame, details, details["config"]["split"]["test"])
    days = 1.0 if np.isnan(days) else days
    for k, cut in enumerate(found["threshold"]):
        flag = score >= cut
        exact, draws = test.both(
            lambda weight, flag=flag: {
                "cost": (
                    weight
                    * np.where(flag, np.where(y == 0, test.cost_of_alarm, 0), np.where(y == 1, test.cost_of_miss, 0))
                ).sum()
            }
        )  # type: ignore[misc]
        check.same(f"tradeoff.threshold.{k}", np.min(np.abs(score - cut)), 0.0)
        check.same(f"tradeoff.cost.{k}", found["cost"][k], exact["cost"])
        check.same(f"tradeoff.alerts.{k}", found["alerts"][k], test.weight[flag].sum() / days)
        check.same(f"tradeoff.precision.{k}", found["precision"][k], np.average(y[flag], weights=test.weight[flag]))
        check.same(f"tradeoff.recall.{k}", found["recall"][k], (test.weight * y)[flag].sum() / (test.weight * y).sum())
        check.interval(f"tradeoff.{k}", found["cost_low"][k], found["cost_high"][k], draws["cost"])
        check.seen |= {f"tradeoff.cost_low.{k}", f"tradeoff.cost_high.{k}"}


def slices(check: Check, said: list[dict[str, Any]], test: Rows, details: Mapping[str, Any]) -> None:
    threshold = details["evaluation"]["thresholds"][details["evaluation"]["primary"]]
    for k, each in enumerate(said):
        part = Rows.of(test.frame[test.frame[f"slice {each['column']}"] == each["level"]].reset_index(drop=True))
        y, flag = part.label, part.score >= threshold
        check.same(f"evaluation.slices.{k}.rows", each["rows"], len(y))
        check.same(f"evaluation.slices.{k}.positives", each["positives"], y.sum())
        exact, draws = part.both(
            lambda weight, part=part, y=y, flag=flag: {
                **ranking(y, part.score, weight),
                **decisions(y, flag, weight, part.cost_of_miss, part.cost_of_alarm),
            }  # type: ignore[misc]
        )
        for name in ("ap", "recall", "precision"):
            check.estimate(f"evaluation.slices.{k}.{name}", each[name], exact[name], draws[name], part.frame)


def best_of_days(check: Check, said: Mapping[str, Any], test: Rows, details: Mapping[str, Any]) -> None:
    """Precision of the best k rows of a day; a row stands for its weight over the share of rows that was scored, half
    of the others it stands for before it."""
    by_time = details["data_card"]["split"]["kind"] == "time"
    share = 1.0 if by_time else details["config"]["split"]["test"]
    for k, each in said.items():
        frame = test.frame.assign(day=test.frame["ts"].dt.floor("D"))
        frame["w"], means = test.weight / share, []
        frame["hits"] = frame["w"] * frame["label"]
        tied = frame.groupby(["day", "score"])
        frame["expected"] = tied["hits"].transform("sum") / tied["w"].transform("sum")
        for _, day in frame.sort_values("score", ascending=False, kind="stable").groupby("day"):
            down_to = day.assign(so_far=day["w"].cumsum(), so_far_2=(day["w"] ** 2).cumsum())
            usual = down_to.groupby("score")[["so_far", "so_far_2"]].transform("last")
            left = int(k) - (usual["so_far_2"] / usual["so_far"] - 1) / 2 - (day["w"].cumsum() - day["w"])
            whole = day["w"].sum() <= int(k)
            means.append(np.average(day["expected"], weights=day["w"] if whole else left.clip(0, day["w"])))
        days = np.array(means)
        rng = np.random.default_rng(1)
        draws = np.array([rng.choice(days, len(days)).mean() for _ in range(DRAWS)])
        check.estimate(f"evaluation.top_k.{k}", each, days.mean(), draws, test.frame)


def tried(check: Check, details: Mapping[str, Any], heldout: Rows) -> None:
    """AP of every candidate and its difference to candidate 0; the answer to "should I resample"."""
    y, table = heldout.label, details["selection"]["table"]
    names = [each["name"] for each in table]

    def each_ap(weight: np.ndarray) -> Numbers:
        return {name: ranking(y, heldout.frame[f"candidate {name}"].to_numpy(), weight)["ap"] for name in names}

    exact, draws = heldout.both(each_ap)
    for k, line in enumerate(table):
        name, path = line["name"], f"selection.table.{k}"
        check.estimate(f"{path}.ap", line["ap"], exact[name], draws[name], heldout.frame)
        compared = (
            1 if name.startswith("ensemble-") else max(1, sum(not each.startswith("ensemble-") for each in names) - 1)
        )
        gain = draws[name] - draws[names[0]]
        difference(
            check, f"{path}.difference", line["difference"], exact[name] - exact[names[0]], gain, heldout, compared
        )
        if line["significant"] != (line["difference"]["low"] > 0):
            check.wrong.append(
                f"{path}: significant {line['significant']} beside an interval from {line['difference']['low']}"
            )
    for name, both in details["selection"]["curves"].items():
        winner = name == details["selection"]["winner"]
        score = heldout.score if winner else heldout.frame[f"candidate {name}"].to_numpy()
        curves_lie_on(check, f"selection.curves.{name}", both, y, score, heldout.weight)
    advice = details["summary"]["should_resample"]
    if advice["difference"] is not None:
        a, b = advice["resampled"], advice["against"]
        path, low = "summary.should_resample.difference", advice["difference"]["low"]
        difference(
            check, path, advice["difference"], exact[a] - exact[b], draws[a] - draws[b], heldout, advice["compared"]
        )
        if (advice["answer"] == "yes") != (low > 0):
            check.wrong.append(f"summary.should_resample: '{advice['answer']}' beside an interval from {low}")
    resampled_names = [
        each["candidate"]["name"]
        for each in details["trials"]["trials"]
        if each["complete"] and each["candidate"]["resample"]
    ]
    check.same("summary.should_resample.compared", advice["compared"], len(resampled_names))


def difference(
    check: Check, path: str, said: Mapping[str, Any], own: float, draws: np.ndarray, rows: Rows, compared: int
) -> None:
    """A paired difference, with Student's interval at the level at which all that were compared hold together."""
    positives = int(rows.label.sum())
    check.same(f"{path}.value", said["value"], own)
    check.same(f"{path}.rows", said["rows"], len(rows.frame))
    check.same(f"{path}.positives", said["positives"], positives)
    wide = stats.t.ppf(1 - 0.05 / compared / 2, max(positives - 1, 1)) * np.nanstd(draws, ddof=1)
    check.same(f"{path}.low", said["low"], own - wide, 0.35 * wide + 1e-9)
    check.same(f"{path}.high", said["high"], own + wide, 0.35 * wide + 1e-9)


def tuned(check: Check, details: Mapping[str, Any], heldout: Rows) -> None:
    """Each tuned threshold is the best of all distinct scores for its objective, and does what it says."""
    y, score, weight = heldout.label, heldout.score, heldout.weight
    days = days_of(heldout.frame, details, 1 - details["config"]["split"]["test"])
    for name, point in details["points"].items():
        path, flag = f"points.{name}", score >= point["value"]
        check.seen.add(f"{path}.value")
        exact, draws = heldout.both(
            lambda w, flag=flag: decisions(y, flag, w, heldout.cost_of_miss, heldout.cost_of_alarm)
        )  # type: ignore[misc]
        exact["precision"] = np.nan_to_num(exact["precision"])
        for metric in ("precision", "recall"):
            check.estimate(f"{path}.{metric}", point[metric], exact[metric], draws[metric], heldout.frame)
        check.same(f"{path}.alerts_per_day", point["alerts_per_day"], exact["alerts"] / days)
        sign = {"f1": 1, "f2": 1, "mcc": 1, "cost": -1}.get(point["objective"])
        if sign is None:
            check.seen |= {f"{path}.objective_value.{each}" for each in ("value", "low", "high", "positives", "rows")}
            continue
        check.estimate(
            f"{path}.objective_value",
            point["objective_value"],
            exact[point["objective"]],
            draws[point["objective"]],
            heldout.frame,
        )
        best = max(
            sign * decisions(y, score >= cut, weight, heldout.cost_of_miss, heldout.cost_of_alarm)[point["objective"]]
            for cut in [np.inf, *np.unique(score)]
        )
        if sign * exact[point["objective"]] < best - 1e-9 * abs(best):
            check.wrong.append(f"{path}: another threshold has {point['objective']} {sign * best}")


def champion(check: Check, details: Mapping[str, Any], test: Rows) -> None:
    said = details["champion_metrics"]
    if not said:
        return
    there = test.frame["champion_compared"].to_numpy(dtype=bool)
    part = Rows.of(test.frame[there].reset_index(drop=True))

    ours = part.score >= details["evaluation"]["thresholds"][details["evaluation"]["primary"]]
    theirs = part.champion_score >= said["threshold"]

    def compared(weight: np.ndarray) -> Numbers:
        old, new = (ranking(part.label, s, weight)["ap"] for s in (part.champion_score, part.score))
        own, other = (
            decisions(part.label, flag, weight, part.cost_of_miss, part.cost_of_alarm)["cost"]
            for flag in (ours, theirs)
        )
        return {"ap": old, "difference": new - old, "ours": new, "loss": 1 - new / old, "cost": own - other}

    exact, draws = part.both(compared)
    for name in ("ap", "difference"):
        check.same(f"champion_metrics.{name}", said[name], exact[name])
        rule = {"own": exact[name], "positives": part.label.sum()} if name == "ap" else {}
        check.interval(f"champion_metrics.{name}", said[f"{name}_low"], said[f"{name}_high"], draws[name], "_", **rule)
    if not details["cross_fitting"]:
        compared_by_gate(check, details["gate"]["numbers"], exact, draws)
    check.same("champion_metrics.rows", said["rows"], len(part.frame))
    check.same("champion_metrics.positives", said["positives"], part.label.sum())
    own = decisions(part.label, theirs, part.weight, part.cost_of_miss, part.cost_of_alarm)
    for name in ("precision", "recall", "f1", "f2", "mcc"):
        check.same(f"champion_metrics.{name}", said[name], own[name])


def compared_by_gate(check: Check, ruled: Mapping[str, Any], exact: Numbers, draws: Mapping[str, np.ndarray]) -> None:
    check.same("gate.numbers.champion.theirs", ruled["champion.theirs"], exact["ap"])
    check.same("gate.numbers.champion.ours", ruled["champion.ours"], exact["ours"])
    for name, key in (("champion.loss_", "loss"), ("champion_cost.", "cost")):
        check.same(f"gate.numbers.{name}value", ruled[f"{name}value"], exact[key])
        check.interval(f"gate.numbers.{name[:-1]}", ruled[f"{name}low"], ruled[f"{name}high"], draws[key], name[-1])


def cross_fitted(check: Check, details: Mapping[str, Any], frame: pd.DataFrame) -> None:
    """The mean of the repeats, and intervals from the resamples of all of them."""
    said, part = details["cross_fitting"], Rows.of(frame)
    repeats = sum(name.startswith("score ") for name in frame)
    check.same("cross_fitting.repeats", said["repeats"], repeats)
    check.seen.add("cross_fitting.folds")
    check.same("cross_fitting.rows", said["rows"], len(frame))
    check.same("cross_fitting.positives", said["positives"], part.label.sum())
    check.same("cross_fitting.prevalence", said["prevalence"], np.average(part.label, weights=part.weight))

    def of(repeat: int, inside: Rows) -> Callable[[np.ndarray], Numbers]:
        y, score = inside.label, np.asarray(inside.frame[f"score {repeat}"])
        flag = np.asarray(inside.frame[f"decision {repeat}"]) == 1

        def numbers_of(weight: np.ndarray) -> Numbers:
            made = decisions(y, flag, weight, inside.cost_of_miss, inside.cost_of_alarm)
            nothing = float((weight * y * inside.cost_of_miss).sum())
            everything = float((weight * (1 - y) * inside.cost_of_alarm).sum())
            found = {
                "ap": ranking(y, score, weight)["ap"],
                "mean_score_ratio": (weight * score).sum() / (weight * y).sum(),
                "recall": made["recall"],
                "precision": made["precision"],
                "cost": made["cost"],
                "cost_nothing": nothing,
                "cost_everything": everything,
                "saving_vs_nothing": nothing - made["cost"],
                "saving_vs_everything": everything - made["cost"],
                "per_1000_rows": 1000 * made["cost"] / weight.sum(),
            }
            if "champion_score" in inside.frame:
                old = ranking(y, inside.champion_score, weight)["ap"]
                theirs = decisions(y, inside.champion_decision == 1, weight, inside.cost_of_miss, inside.cost_of_alarm)
                found |= {"theirs": old, "loss": 1 - found["ap"] / old, "extra": made["cost"] - theirs["cost"]}
            return found

        return numbers_of

    def pooled(inside: Rows) -> tuple[Numbers, dict[str, np.ndarray]]:
        lines = [inside.both(of(repeat, inside)) for repeat in range(repeats)]
        exact = {name: float(np.mean([line[0][name] for line in lines])) for name in lines[0][0]}
        return exact, {name: np.concatenate([line[1][name] for line in lines]) for name in exact}

    for k, each in enumerate(said["slices"]):
        inside = Rows.of(frame[frame[f"slice {each['column']}"] == each["level"]].reset_index(drop=True))
        exact, draws = pooled(inside)
        check.same(f"cross_fitting.slices.{k}.rows", each["rows"], len(inside.frame))
        check.same(f"cross_fitting.slices.{k}.positives", each["positives"], inside.label.sum())
        for name in ("ap", "recall", "precision"):
            check.estimate(f"cross_fitting.slices.{k}.{name}", each[name], exact[name], draws[name], inside.frame)
    exact, draws = pooled(part)
    for name in said["metrics"]:
        check.estimate(f"cross_fitting.metrics.{name}", said["metrics"][name], exact[name], draws[name], frame)
    for name in numbers_in(said["money"]):
        check.estimate(f"cross_fitting.money.{name}", said["money"][name], exact[name], draws[name], frame)
    if "champion.theirs" in details["gate"]["numbers"]:
        both = Rows.of(frame[frame["champion_compared"]].reset_index(drop=True))
        exact, draws = pooled(both)
        exact |= {"ours": exact["ap"], "ap": exact["theirs"], "cost": exact["extra"]}
        compared_by_gate(check, details["gate"]["numbers"], exact, {**draws, "cost": draws["extra"]})


def numbers_in(money: Mapping[str, Any]) -> list[str]:
    """Names of the estimates among other words."""
    return [name for name, value in money.items() if isinstance(value, Mapping)]


def gate(check: Check, details: Mapping[str, Any]) -> None:
    """The gate's numbers are those of the evaluation."""
    crossed, numbers_ = details["cross_fitting"], details["gate"]["numbers"]
    evaluation = {**crossed, "counts": crossed} if crossed else details["evaluation"]
    metrics, money_ = evaluation["metrics"], evaluation["money"]
    nothing = money_["cost_nothing"]["value"] <= money_["cost_everything"]["value"]
    saved = money_["saving_vs_nothing" if nothing else "saving_vs_everything"]
    known = {
        "positives.found": evaluation["counts"]["positives"],
        "cost.cost": evaluation["money"]["cost"]["value"],
        "ap_lift.bound": details["config"]["gate"]["min_ap_lift"] * evaluation["counts"]["prevalence"],
        **{f"ap_lift.{end}": metrics["ap"][end] for end in ("value", "low", "high")},
        **{f"cost.{end}": saved[end] for end in ("value", "low", "high")},
        **{f"calibration.{end}": metrics["mean_score_ratio"][end] for end in ("value", "low", "high")},
        **({} if crossed else {"champion.found": details["champion_metrics"].get("positives", 0)}),
        "min_ap.value": metrics["ap"]["value"],
        "min_ap.low": metrics["ap"]["low"],
        "min_ap.high": metrics["ap"]["high"],
    }
    for name, value in numbers_.items():
        if name in known and isinstance(value, int | float):
            check.same(f"gate.numbers.{name}", value, known[name])


def repeated(check: Check, details: Mapping[str, Any], summary: Mapping[str, Any], test: Rows, heldout: Rows) -> None:
    """What summary.json repeats of run.json is the same there."""
    evaluation, metrics = details["evaluation"], summary["metrics"]
    for name, value in metrics.items():
        end = name.removeprefix("ap_")
        said = (
            evaluation["thresholds"][evaluation["primary"]]
            if name == "threshold"
            else evaluation["metrics"]["ap"][end]
            if end in ("low", "high")
            else evaluation["metrics"][name]["value"]
        )
        check.same(f"summary.metrics.{name}", value, said)
    lines = {each["name"]: each for each in details["selection"]["table"]}
    for k, each in enumerate(summary["candidates"]):
        line = lines[each["name"]]
        for name, said in (("ap", "value"), ("ap_low", "low"), ("ap_high", "high")):
            check.same(f"summary.candidates.{k}.{name}", each[name], line["ap"][said])
        for path in numbers(each["difference"]):
            check.same(f"summary.candidates.{k}.difference.{path}", each["difference"][path], line["difference"][path])
    for mine, theirs in (
        ("intervals", evaluation["metrics"]),
        ("operating_points", details["points"]),
        ("champion_metrics", details["champion_metrics"]),
        ("cross_fitting", details["cross_fitting"]),
    ):
        for path in numbers(summary[mine]):
            check.same(f"summary.{mine}.{path}", at(summary[mine], path), at(theirs, path))
    for part, rows in (("test", test), ("validation", heldout)):
        check.same(f"summary.rows.{part}", summary["rows"][part], len(rows.frame))
        check.same(f"summary.positives.{part}", summary["positives"][part], rows.label.sum())
        check.same(f"summary.prevalence.{part}", summary["prevalence"][part], rows.label.mean())


def at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def main() -> int:
    check = recompute(Path(sys.argv[1]))
    for line in check.wrong:
        print(line)
    print(f"{len(check.seen)} numbers were computed again, {len(check.wrong)} are not as they were said")
    return 1 if check.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
