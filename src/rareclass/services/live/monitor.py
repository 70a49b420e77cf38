"""Watching a live model: one evaluation of the store is a snapshot, and the service repeats it and answers HTTP.

The monitor keeps nothing: every evaluation reads predictions, labels, shadow scores, the registry's aliases and the
ledger anew. Two of them side by side export the same numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.config import Config, dump
from rareclass.core.moments import naive
from rareclass.services.live import chosen
from rareclass.services.live.ledger import Rethresholded

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.adapters.registry import Registry
    from rareclass.adapters.store import LedgerEntry, Store
    from rareclass.core.dataset import FloatArray, Schema
    from rareclass.core.drift import DriftReport
    from rareclass.core.estimate import Estimate
    from rareclass.core.liveness import Liveness, Paired, Settings
    from rareclass.core.model import RareModel
    from rareclass.core.profile import FeatureProfile, Profile
    from rareclass.core.triage import Snapshot

DRIFT_ROWS = 100_000
"""Newest rows at most that drift is computed on; evenly thinned above."""
LOUD = 0.01
"""Share of the contributions to the golden rows from which a version leans on a feature."""
ROLES = ("champion", "challenger", "previous")
_COSTS = ("false_negative", "false_positive")
_REVIEW = ("review", "review_reason")
_LIVE_COLUMNS = (
    "request_id",
    "row",
    "ts",
    "version",
    "score",
    "decision",
    "weight",
    "propensity",
    "label",
    "label_observed_at",
)


@dataclass(frozen=True)
class LoadedVersion:
    """A version as the monitor knows it."""

    version: str
    role: str
    model: RareModel | None
    profile: Profile | None

    @property
    def trained_until(self) -> datetime | None:
        """Time of the newest row that the version learnt from; None where it does not say."""
        until = (self.model.meta.get("trained") or {}).get("until") if self.model is not None else None
        return None if until is None else _parsed(until)

    @property
    def trained_positives(self) -> int | None:
        """Rows of the rare class that the version learnt from; None where it does not say, as older ones."""
        positives = (self.model.meta.get("trained") or {}).get("positives") if self.model is not None else None
        return None if positives is None else int(positives)


class Monitor:
    """Evaluates one model; holds connections and loaded versions, no state of its own."""

    def __init__(self, config: Config, *, store: Store | None = None, registry: Registry | None = None) -> None:
        from rareclass.adapters.registry import Registry
        from rareclass.adapters.store import Store

        self.config = config
        self.store = store or Store(config.store.url)
        self._own = store is None
        if self._own:
            self.store.migrate()
        self.registry = registry or Registry(config.tracking.uri)
        self._models: dict[str, RareModel] = {}
        self._leaned_on: dict[str, frozenset[str]] = {}
        self._drifts: dict[tuple[str, datetime, datetime], DriftReport | None] = {}
        self._delay: tuple[datetime | None, timedelta | None] = None, None
        self._ledger: tuple[datetime | None, list[LedgerEntry]] = None, []

    def close(self) -> None:
        """Close the store, where the monitor opened it."""
        if self._own:
            self.store.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def evaluate(self, now: datetime) -> Snapshot:
        """Read the store as it was known at ``now`` and return everything there is to say."""
        from rareclass.core import liveness, triage

        config = self.config
        known = self.known()
        champion = known.get("champion")
        delay = self.delay(now)
        start = liveness.boundaries(now, delay, config.monitor)[0][0]
        by_amount = config.costs.amount_share is not None
        frame = chosen.window(config, self.store, start, _after(now), features=by_amount, labels_until=now)
        shadows = chosen.shadows(config, self.store, start, _after(now))
        if by_amount:
            frame, shadows = priced(config, frame, shadows)
        name = champion.version if champion is not None else _answering(frame)
        lives, pairs = self._live(frame, shadows, known, name, now)
        profile = champion.profile if champion is not None else None
        self._ledger = now, self.store.entries(config.name)
        entries = self._ledger[1]
        drift, fresh, errors = self._drift(champion, entries, now)
        estimated = self._prevalence(frame, champion, now)
        return triage.Snapshot(
            model=config.name,
            now=now,
            champion=name,
            roles={one.version: role for role, one in known.items()} or ({name: "champion"} if name else {}),
            live=lives,
            paired=pairs,
            drift=drift,
            fresh=fresh,
            profile=profile,
            schema_errors=tuple(errors),
            prevalence_baseline=baseline(entries, name, profile),
            estimated_prevalence=None if estimated is None else estimated.value,
            estimated_interval=None if estimated is None else (estimated.low, estimated.high),
            costs_moved=costs_moved(config, champion.model if champion else None, entries, name),
            new_positives=self._new_positives(frame, champion, now),
            min_new_positives=config.retrain.min_positives,
            calibration_bound=1 + config.gate.max_calibration_error,
            prevalence_bound=config.monitor.prevalence_ratio,
            events=events(entries, now),
            evidently=latest_evidently(entries, name, now),
            alert_capacity=capacity(config),
            trained_positives=None if champion is None else champion.trained_positives,
            regimes=config.regime,
        )

    def known(self) -> dict[str, LoadedVersion]:
        """Return role -> version, loaded once each, with its reference profile."""
        from rareclass.core.profile import Profile

        found: dict[str, LoadedVersion] = {}
        for version in self.registry.versions(self.config.name):
            for role in (role for role in ROLES if role in version.aliases):
                if version.version not in self._models:
                    self._models[version.version] = self.registry.load(replace(version, tags={}))
                # what was tuned again since it was loaded is in force here too
                model = self._models[version.version].retuned(version.thresholds)
                profile = Profile.from_json(model.profile) if model.profile else None
                found[role] = LoadedVersion(version.version, role, model, profile)
        return {role: found[role] for role in ROLES if role in found}

    def ledger(self, now: datetime) -> list[LedgerEntry]:
        """Return the ledger that the evaluation of ``now`` read: what a page shows beside its verdict is not newer."""
        if self._ledger[0] != now:
            self._ledger = now, self.store.entries(self.config.name)
        return self._ledger[1]

    def delay(self, now: datetime) -> timedelta:
        """Return the label delay: the configured one, else what the labels that came by ``now`` teach (0 before the
        first).
        """
        return self._learned(now) or timedelta(0)

    def _learned(self, now: datetime) -> timedelta | None:
        from rareclass.core import liveness

        config = self.config
        if config.data.label_delay:
            return config.data.label_delay
        if self._delay[0] != now:
            start = liveness.boundaries(now, timedelta(0), config.monitor)[0][0] - 4 * config.monitor.window
            frame = chosen.window(config, self.store, start, _after(now), labels_until=now)
            self._delay = now, liveness.learned_delay(frame, now)
        return self._delay[1]

    def settings(self, now: datetime, prevalence: float = math.nan) -> Settings:
        """Return what core.liveness needs from the configuration."""
        from rareclass.core.costs import cost_arrays
        from rareclass.core.liveness import Settings

        config = self.config
        # where the amount at stake sets the cost, a row without its amount has none: the series is dropped, not guessed
        by_amount = config.costs.amount_share is not None
        costs = None if by_amount else cost_arrays(config.costs, prevalence)
        return Settings(
            monitor=config.monitor,
            delay=self.delay(now),
            expected=self._learned(now) is not None,
            beta=config.threshold.beta,
            confidence=config.evaluate.confidence,
            missing_negative_after=config.missing_negative_after,
            false_negative=math.nan if costs is None else float(costs.false_negative),
            false_positive=math.nan if costs is None else float(costs.false_positive),
            seed=config.train.seed,
        )

    def _live(
        self,
        frame: pd.DataFrame,
        shadows: pd.DataFrame,
        known: Mapping[str, LoadedVersion],
        champion: str | None,
        now: datetime,
    ) -> tuple[dict[str, Liveness], dict[str, Paired]]:
        from rareclass.core import liveness

        lives: dict[str, Liveness] = {}
        pairs: dict[str, Paired] = {}
        for one in known.values():
            settings = self.settings(now, one.profile.prevalence if one.profile is not None else math.nan)
            rows = own_rows(frame, shadows, one.version)
            lives[one.version] = liveness.evaluate(
                rows, now=now, version=one.version, profile=one.profile, settings=settings
            )
            if champion is not None and one.version != champion:
                both = beside(shadows, one.version, champion)
                pairs[one.version] = liveness.paired(both, now=now, settings=settings)
        if champion is not None and champion not in lives:
            rows = own_rows(frame, shadows, champion)
            lives[champion] = liveness.evaluate(
                rows, now=now, version=champion, profile=None, settings=self.settings(now)
            )
        return lives, pairs

    def _drift(
        self, champion: LoadedVersion | None, entries: Sequence[LedgerEntry], now: datetime
    ) -> tuple[DriftReport | None, DriftReport | None, list[str]]:
        """Drift of the newest window and of the newest stretch of it, and schema errors."""
        if champion is None or champion.profile is None or champion.model is None:
            return None, None, []
        config = self.config
        start = now - config.monitor.window
        frame = self.store.window(config.name, start, _after(now), features=True, labels_until=now)
        frame = frame[frame["features"].notna()]
        if frame.empty:
            return None, None, []
        newest = frame[(frame["ts"] > naive(now - max(config.monitor.window / 7, timedelta(seconds=1)))).to_numpy()]
        drift, errors = self._compared(frame, champion, answered=self._answered(champion, entries, now))
        fresh, late = (
            self._compared(newest, champion, day=True) if len(newest) >= config.monitor.min_rows else (None, [])
        )
        return drift, fresh, list(dict.fromkeys([*errors, *late]))

    def drift_of(self, start: datetime, end: datetime, now: datetime) -> DriftReport | None:
        """Return the drift of a window that is over, of all columns and the score; None without rows to compare.

        A window that is over keeps its features, so what was found once is kept for as long as the window is asked for.
        """
        champion = self.known().get("champion")
        if champion is None or champion.profile is None or champion.model is None:
            return None
        key = champion.version, start, end
        if key not in self._drifts:
            frame = self.store.window(self.config.name, start, end, features=True)
            frame = frame[frame["features"].notna()]
            answered = self._answered(champion, self.ledger(now), now)
            report = self._compared(frame, champion, answered=answered)[0] if len(frame) else None
            if len(self._drifts) > 4 * self.config.monitor.windows:  # those of past days are asked for no more
                self._drifts.pop(next(iter(self._drifts)))
            self._drifts[key] = report
        return self._drifts[key]

    def _answered(
        self, champion: LoadedVersion, entries: Sequence[LedgerEntry], now: datetime
    ) -> FeatureProfile | None:
        """Describe the scores of the champion's first window of answers; None until that is over."""
        from rareclass.core.profile import score_reference

        config = self.config
        assert champion.profile is not None
        born = [entry.at for entry in entries if entry.key.startswith(f"register:{champion.version}:")]
        first = self.store.first(config.name, champion.version, since=born[0] if born else None)
        if first is None and born:  # only rows of an earlier time were scored with it
            first = self.store.first(config.name, champion.version)
        if first is None or naive(first) + config.monitor.window > naive(now):
            return None
        rows = self.store.window(config.name, first, first + config.monitor.window, version=champion.version)
        if len(rows) < config.monitor.min_rows:
            return None
        rows = rows.iloc[:: max(1, -(-len(rows) // DRIFT_ROWS))]
        time = rows["ts"].to_numpy("datetime64[us]")
        return score_reference(rows["score"].to_numpy(float), time, usual=champion.profile.score.usual_psi)

    def _loud(self, champion: LoadedVersion) -> frozenset[str]:
        """Features that the champion leans on: in those, values that no longer occur are damage; in others they are
        drift.
        """
        assert champion.model is not None
        model = champion.model
        if champion.version not in self._leaned_on:
            names = frozenset(model.schema.names)
            if model.golden is not None and len(model.golden):
                weight = np.abs(model.contributions(model.matrix(model.golden))).sum(axis=0)
                if np.isfinite(weight).all() and weight.sum() > 0:
                    names = frozenset(np.asarray(model.schema.names)[weight >= LOUD * weight.sum()].tolist())
            self._leaned_on[champion.version] = names
        return self._leaned_on[champion.version]

    def _prevalence(self, frame: pd.DataFrame, champion: LoadedVersion | None, now: datetime) -> Estimate | None:
        """The prevalence of the champion's newest window without its labels, from its scores and its matured labels."""
        from rareclass.core import unlabelled
        from rareclass.core.bootstrap import Bootstrap

        # chosen labels are few and of unequal weight: the windows' own prevalence has the interval that holds
        if champion is None or chosen.by_review(self.config):
            return None
        mine = frame[(frame["version"].astype(str) == champion.version).to_numpy()]
        new = mine[(mine["ts"] > naive(now - self.config.monitor.window)).to_numpy()]
        old = mine[(mine["ts"] <= naive(now - self.delay(now))).to_numpy()]
        old = old[(old["label"].notna() & (old["propensity"] > 0)).to_numpy()]
        if len(new) < self.config.monitor.min_rows or not len(old):
            return None
        weight = (old["weight"] / old["propensity"]).to_numpy(float)
        y, score = old["label"].to_numpy(np.int64), old["score"].to_numpy(float)
        bootstrap = Bootstrap.of(self.config.evaluate, self.config.train.seed)
        return unlabelled.prevalence(new["score"].to_numpy(float), y, score, weight, bootstrap=bootstrap)

    def _new_positives(self, frame: pd.DataFrame, champion: LoadedVersion | None, now: datetime) -> int:
        """Matured positives that the champion was not trained on: all of them while they are what it waits for, so that
        few of them a month add up; else those in view.
        """
        delay, until = self.delay(now), None if champion is None else champion.trained_until
        if champion is not None and until is not None and self._growing(champion):
            mature, by_review = now - delay, chosen.by_review(self.config)
            return self.store.positives(self.config.name, until, mature, labels_until=now, reviews=by_review)
        counted = (frame["ts"] <= naive(now - delay)).to_numpy() & (frame["label"] == 1).to_numpy()
        if until is not None:
            counted &= (frame["ts"] > naive(until)).to_numpy()
        return int(counted.sum())

    def _growing(self, champion: LoadedVersion) -> bool:
        """Whether more positives would bring the version another regime."""
        unjudged = champion.profile is not None and champion.profile.unjudged
        learned = champion.trained_positives
        return unjudged or (learned is not None and learned < self.config.regime.scarce)

    def _compared(
        self, frame: pd.DataFrame, champion: LoadedVersion, *, answered: FeatureProfile | None = None, day: bool = False
    ) -> tuple[DriftReport | None, list[str]]:
        from rareclass.core import dataset, drift

        assert champion.model is not None
        assert champion.profile is not None
        schema, private = champion.model.schema, set(self.config.data.private)
        frame = frame.iloc[:: max(1, -(-len(frame) // DRIFT_ROWS))]
        table = features_of(frame["features"])
        errors = [
            f"column '{name}' no longer arrives" for name in schema.names if name not in table and name not in private
        ]
        whole, errors = readable(table, schema, errors)
        x = dataset.encode(whole, schema)
        skip = private | {name for name in schema.names if name not in table}
        same = (frame["version"].astype(str) == champion.version).to_numpy()
        report = drift.compare(
            champion.profile,
            x,
            frame["score"].to_numpy(float) if same.all() and answered is not None else None,
            limits=self.config.monitor,
            answered=answered,
            weight=_sampling(frame),
            window=drift.ServedWindow(
                unknown=drift.unknown_shares(table, schema), skip=skip, day=day, loud=self._loud(champion)
            ),
        )
        if answered is not None and same.any() and not same.all() and same.sum() >= self.config.monitor.min_rows:
            mine = frame[same]
            scores = drift.compare_scores(
                answered, mine["score"].to_numpy(float), limits=self.config.monitor, weight=_sampling(mine)
            )
            report = replace(report, score=scores)
        return report, errors if report.judged else []


# --- what the parts need ---------------------------------------------------------------------------------------------


def own_rows(frame: pd.DataFrame, shadows: pd.DataFrame, version: str) -> pd.DataFrame:
    """Return all rows a version scored, as the one that answered or in the shadow, in the shape of ``Store.window``."""
    import pandas as pd

    columns = [*_LIVE_COLUMNS, *(name for name in (*_COSTS, *_REVIEW) if name in frame and name in shadows)]
    mine = frame.loc[(frame["version"].astype(str) == version).to_numpy(), columns].assign(answered=True)
    beside = shadows[(shadows["version"].astype(str) == version).to_numpy() & shadows["score"].notna().to_numpy()]
    parts = [part for part in (mine, beside[columns].assign(answered=False)) if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else mine


def amounts(config: Config, frame: pd.DataFrame) -> FloatArray | None:
    """Return the (n,) stored amount at stake of rows with their features; None when the store has no amount."""
    stored = frame["features"].notna().to_numpy()
    from rareclass.core.reading import NUMBER

    if config.data.amount is None or not stored.any():
        return None
    table = features_of(frame.loc[stored, "features"])
    if config.data.amount not in table:
        return None
    found = np.full(len(frame), np.nan)
    found[stored] = NUMBER.numbers(table[config.data.amount])[0]
    return found if np.isfinite(found).any() else None


def priced(config: Config, frame: pd.DataFrame, shadows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give rows, and what shadows scored of them, the costs that follow from their amount;
    as they are without amounts.
    """
    from rareclass.core.costs import cost_arrays

    amount = amounts(config, frame)
    if amount is None:
        return frame, shadows
    costs = cost_arrays(config.costs, math.nan, amount)
    frame = frame.assign(**dict(zip(_COSTS, (costs.false_negative, costs.false_positive), strict=True)))
    return frame, shadows.merge(frame[["request_id", "row", *_COSTS]], on=["request_id", "row"], how="left")


def beside(shadows: pd.DataFrame, version: str, champion: str) -> pd.DataFrame:
    """Return rows that ``champion`` answered and ``version`` scored in its shadow,
    in the shape of ``liveness.paired``.
    """
    same = (shadows["version"].astype(str) == version) & (shadows["champion_version"].astype(str) == champion)
    rows = shadows[same.to_numpy()].rename(columns={"score": "shadow_score", "decision": "shadow_decision"})
    return rows.rename(columns={"champion_score": "score", "champion_decision": "decision"})


def features_of(texts: pd.Series[Any]) -> pd.DataFrame:
    """Return the stored features (one JSON object per row) as a table."""
    import pandas as pd

    return pd.DataFrame.from_records(json.loads(f"[{','.join(texts)}]"), index=texts.index)


def baseline(entries: Sequence[LedgerEntry], version: str | None, profile: Profile | None) -> float | None:
    """Prevalence that the thresholds in force were fitted at: of the last re-threshold of this version, or its own."""
    for line in reversed(Rethresholded.of_version(entries, version)):
        if line.prevalence:
            return float(line.prevalence)
    return None if profile is None else profile.prevalence


def capacity(config: Config) -> float | None:
    """Return how many decisions 1 a day the operating point that decides may make; None where nothing bounds them."""
    named = {point.name: point.max_alerts_per_day for point in config.threshold.points}
    return named.get(config.serve.operating_point or "", config.threshold.max_alerts_per_day)


def events(entries: Sequence[LedgerEntry], now: datetime) -> dict[str, tuple[int, datetime]]:
    """Return kind -> (how many entries until ``now``, when the last one was written)."""
    found: dict[str, tuple[int, datetime]] = {}
    for entry in entries:
        if naive(entry.at) <= naive(now):
            count, last = found.get(entry.kind, (0, entry.at))
            found[entry.kind] = (count + 1, max(last, entry.at))
    return found


def latest_evidently(entries: Sequence[LedgerEntry], version: str | None, now: datetime) -> dict[str, Any] | None:
    """Return what the newest Evidently report on ``version`` said, None without one."""
    for entry in reversed(entries):
        if entry.kind == "evidently" and str(entry.payload.get("version")) == version and naive(entry.at) <= naive(now):
            return {**entry.payload, "at": entry.at.isoformat()}
    return None


def costs_moved(config: Config, model: RareModel | None, entries: Sequence[LedgerEntry], version: str | None) -> str:
    """Say so when the configured costs are not the ones that the thresholds in force were tuned for."""
    if model is None or config.threshold.objective not in ("auto", "cost"):
        return ""
    then: Mapping[str, Any] = (model.meta.get("config") or {}).get("costs") or {}
    then = next((line.costs for line in reversed(Rethresholded.of_version(entries, version)) if line.costs), then)
    now = dump(config)["costs"]
    names = ("false_negative", "false_positive", "amount_share")
    changed = [
        f"{name} from {then.get(name)} to {now.get(name)}" for name in names if then and then.get(name) != now.get(name)
    ]
    return f"costs moved: {', '.join(changed)}" if changed else ""


def readable(table: pd.DataFrame, schema: Schema, errors: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read a table of stored features with the schema: absent columns empty, text in numbers' places empty and
    reported.
    """
    import pandas as pd

    columns = {}
    for feature in schema.features:
        values = (
            table[feature.name]
            if feature.name in table
            else pd.Series([None] * len(table), index=table.index, dtype=object)
        )
        if feature.kind == "numeric":
            numbers, wrong = feature.reading.numbers(values)
            if wrong:
                share = sum(wrong.values()) / len(numbers)
                errors = [
                    *errors,
                    f"column '{feature.name}' holds text like {next(iter(wrong))!r} on {share:.0%} of the rows",
                ]
            columns[feature.name] = pd.Series(numbers, index=table.index)
        else:
            columns[feature.name] = pd.Series(feature.texts(values), index=table.index, dtype=object)
    return pd.DataFrame(columns, index=table.index), errors


def _sampling(frame: pd.DataFrame) -> Any:
    weight = frame["weight"].to_numpy(float)
    return None if (weight == 1).all() else weight


def _answering(frame: pd.DataFrame) -> str | None:
    """Without a registry: the version that answered last."""
    return None if frame.empty else str(frame["version"].iloc[-1])


def _after(moment: datetime) -> datetime:
    """The store's windows are open at their end; this one includes rows of the very moment."""
    return moment + timedelta(microseconds=1)


def _parsed(text: str) -> datetime:
    import pandas as pd

    return pd.Timestamp(text).to_pydatetime()
