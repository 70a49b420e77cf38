"""A live stream with a known cause in it: what a calibrated scorer answers, and labels that come late."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from rareclass.config import MonitorSettings
from rareclass.core import drift, liveness, training, triage
from rareclass.core.calibration import Identity
from rareclass.core.dataset import Feature, Rows, Schema, decode
from rareclass.core.drift import ServedWindow
from rareclass.core.model import RareModel
from rareclass.core.profile import Profile, reference_profile

SCHEMA = Schema(
    (
        Feature("amount"),
        Feature("age"),
        Feature("count"),
        Feature("balance"),
        Feature("country", "categorical", ("us", "de", "fr", "nl")),
        Feature("channel", "categorical", ("web", "shop", "phone")),
    )
)
AMOUNT, AGE, COUNT, BALANCE, COUNTRY, CHANNEL = range(6)
START = datetime(2024, 1, 1)
DELAY = timedelta(days=7)
LIMITS = MonitorSettings(bootstraps=100)
THRESHOLD = 0.15


def features(n: int, rng: np.random.Generator) -> np.ndarray:
    return np.column_stack(
        [
            rng.lognormal(3, 1, n),
            rng.normal(40, 12, n),
            rng.poisson(0.6, n),
            rng.normal(0, 100, n),
            rng.choice(4, n, p=[0.6, 0.25, 0.1, 0.05]),
            rng.choice(3, n, p=[0.5, 0.4, 0.1]),
        ]
    ).astype(np.float32)


def logit(x: np.ndarray) -> np.ndarray:
    """What the scorer knows, and the truth before anything changes."""
    z = np.log(np.maximum(np.nan_to_num(x[:, AMOUNT], nan=20.0), 1e-3))
    return -6.6 + 0.9 * (z - 3) + 1.3 * x[:, COUNT] + 1.2 * (x[:, COUNTRY] == 3) + 0.8 * (x[:, CHANNEL] == 2)


def changed_logit(x: np.ndarray) -> np.ndarray:
    """The positives' new pattern: what told them apart no longer does, something else does."""
    return -5.4 + 0.02 * x[:, BALANCE] - 0.5 * x[:, COUNT]


def score(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit(x)))


def history(days: int = 70, per_day: int = 600, seed: int = 0) -> Rows:
    """The reference: rows of the scorer's world."""
    rng = np.random.default_rng(seed)
    n = days * per_day
    x = features(n, rng)
    y = (rng.random(n) < score(x)).astype(np.int64)
    time = np.datetime64(START - timedelta(days=days), "us") + (np.arange(n) * (86_400_000_000 // per_day)).astype(
        "timedelta64[us]"
    )
    return Rows(SCHEMA, x, y, np.arange(n, dtype=np.uint64), time=time)


@functools.cache
def profile(seed: int = 0) -> Profile:
    rows = history(seed=seed)
    return reference_profile(rows, score(rows.x), threshold=THRESHOLD)


def stream(
    cause: str, *, days: int = 63, per_day: int = 600, since: int = 35, seed: int = 1
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return (joined rows in the shape of the store, features) with a cause that sets in on day ``since``."""
    rng = np.random.default_rng(seed)
    n = days * per_day
    x = features(n, rng)
    day = np.arange(n) // per_day
    after = day >= since
    share = np.clip((day - since) / 14, 0, 1) if cause == "gradual pattern" else after.astype(float)
    if cause == "covariate shift":
        x[after, AGE] += 15
        x[after, BALANCE] += 120
    truth = 1 / (1 + np.exp(-logit(x)))
    if "pattern" in cause:
        truth = truth * (1 - share) + share / (1 + np.exp(-changed_logit(x)))
    y = (rng.random(n) < truth).astype(float)
    keep = np.ones(n, bool)
    if cause == "prevalence up":
        keep = ~(after & (y == 0) & (rng.random(n) < 0.65))
    elif cause == "prevalence down":
        keep = ~(after & (y == 1) & (rng.random(n) < 0.65))
    seen = damaged(x, after, cause, rng)
    answered = score(seen)
    if cause == "scores off":
        z = 2.2 * logit(seen) + 4.4
        answered = np.where(after, 1 / (1 + np.exp(-z)), answered)
    ts = pd.Series(pd.Timestamp(START) + pd.to_timedelta(np.arange(n) * (86400 / per_day), unit="s")).astype(
        "datetime64[us]"
    )
    observed = ts + pd.to_timedelta(rng.uniform(0.2, 6.8, n), unit="D")
    if cause == "labels stop":
        stop = pd.Timestamp(START) + pd.Timedelta(days=since)
        y = np.where(observed > stop, np.nan, y)
    frame = pd.DataFrame(
        {
            "request_id": [f"r{i}" for i in range(n)],
            "row": 0,
            "ts": ts,
            "version": "1",
            "score": answered,
            "decision": (answered >= THRESHOLD).astype(int),
            "threshold": THRESHOLD,
            "weight": 1.0,
            "propensity": 1.0,
            "label": y,
            "label_observed_at": observed.where(~np.isnan(y)),
        }
    )
    return frame[keep].reset_index(drop=True), seen[keep]


def damaged(x: np.ndarray, after: np.ndarray, cause: str, rng: np.random.Generator) -> np.ndarray:
    """The features as they arrive."""
    seen = x.copy()
    if cause == "unit":
        seen[after, AMOUNT] *= 100
    elif cause == "constant":
        seen[after, COUNT] = 0
    elif cause == "missing":
        seen[after & (rng.random(len(x)) < 0.5), AMOUNT] = np.nan
    elif cause == "renamed":
        seen[after & (seen[:, CHANNEL] == 1), CHANNEL] = np.nan
    return seen


def settings(**changes: Any) -> liveness.Settings:
    return liveness.Settings(monitor=LIMITS, delay=DELAY, **changes)


def judge(
    frame: pd.DataFrame,
    x: np.ndarray,
    reference: Profile,
    now: datetime,
    *,
    renamed: bool = False,
    challenger: str | None = None,
) -> triage.Verdict:
    """What the monitor does at ``now``, without a store."""
    live = liveness.evaluate(frame, now=now, version="1", profile=reference, settings=settings())
    ts = frame["ts"]
    newest = ((ts <= now) & (ts > now - LIMITS.window)).to_numpy()
    fresh = newest & (ts > now - LIMITS.window / 7).to_numpy()
    reports = [
        drift.compare(
            reference,
            x[part],
            frame["score"].to_numpy()[part],
            limits=LIMITS,
            window=ServedWindow(unknown=_unknown(x[part]) if renamed else None),
        )
        for part in (newest, fresh)
    ]
    mature = (ts <= now - DELAY) & (frame["label"] == 1)
    evidence = triage.Evidence(
        live=live,
        drift=reports[0],
        fresh=reports[1],
        profile=reference,
        prevalence_baseline=reference.prevalence,
        new_positives=int(mature.sum()),
        challenger=challenger,
    )
    return triage.triage(evidence, LIMITS)


def _unknown(x: np.ndarray) -> dict[str, float]:
    return {"channel": float(np.isnan(x[:, CHANNEL]).mean())}


@dataclass(frozen=True)
class Scorer:
    """The scorer as a learner that can be saved; ``noise`` spoils its ranking."""

    noise: float = 0.0

    def score(self, x: np.ndarray) -> np.ndarray:
        ripple = self.noise * np.sin(1000 * np.nan_to_num(x[:, BALANCE].astype(np.float64)))
        return 1 / (1 + np.exp(-(logit(x).astype(np.float64) + ripple)))


training.SAVED = (*training.SAVED, Scorer)


def model(noise: float = 0.0, **meta: Any) -> RareModel:
    """A version whose reference is ``history``."""
    until = str(np.datetime64(START, "us"))
    made = RareModel(
        SCHEMA,
        Scorer(noise),
        Identity(),
        {"default": THRESHOLD},
        profile=profile().to_json(),
        meta={"name": "live", "trained": {"until": until}, **meta},
    )
    return made.with_golden(features(8, np.random.default_rng(0)))


def stored(frame: pd.DataFrame, x: np.ndarray, name: str) -> pd.DataFrame:
    """Predictions in the shape of the log, with their features as JSON."""
    table = decode(x, SCHEMA)
    return frame.drop(columns=["label", "label_observed_at"]).assign(
        model=name, features=table.to_json(orient="records", lines=True).splitlines()
    )


def labels_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Labels in the shape of the store; each is received when it is observed."""
    known = frame[frame["label"].notna()]
    return pd.DataFrame(
        {
            "request_id": known["request_id"],
            "label": known["label"].astype(int),
            "observed_at": known["label_observed_at"],
            "received_at": known["label_observed_at"],
        }
    )
