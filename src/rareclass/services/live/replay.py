"""History through the whole loop on a virtual clock: serve, wait for labels, watch, triage, repair; with the live
services.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rareclass.adapters import reports
from rareclass.config import Config, format_duration
from rareclass.core import operating, ranking
from rareclass.core.bootstrap import Bootstrap, Sample
from rareclass.core.jsonable import dumps, jsonable
from rareclass.core.reading import Target
from rareclass.errors import ConfigError, DataError
from rareclass.services import promotion
from rareclass.services.live import governor
from rareclass.services.training import results
from rareclass.services.training.steps import Progress, silent

if TYPE_CHECKING:
    from rareclass.adapters.registry import Registry
    from rareclass.adapters.store import Store
    from rareclass.core.model import RareModel
    from rareclass.core.triage import Snapshot

ID = "__request"
MARK = ".rareclass-replay"
LATER_SECONDS = 20.0
"""Search budget of a retrain inside a replay, in seconds: there may be many."""
PEER_NEGATIVES = 60_000
PEERS = ("never", "weekly", "waited")
WAITED_FOR = 250
"""Positives from which most teams begin: a fifth of them, 50, can judge a model."""
TUNING = timedelta(days=28)


@dataclass(frozen=True)
class Step:
    """One stretch of the virtual clock and its rows, by position."""

    start: datetime
    end: datetime
    rows: slice


@dataclass
class Story:
    """Everything that happened, in order."""

    periods: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    actions: list[dict[str, Any]]


def replay(config: Config, out: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Play the rows after ``replay.train_until`` through the loop; leave replay.json and replay.html in ``out``.

    Nothing of the live system is touched: registry and store of the replay live under ``out/work``, made anew each
    time.
    Raises ConfigError without a time column, DataError when there are no rows on one side of the date.
    """

    if config.data.time is None:
        raise ConfigError("a replay needs to know when rows happened. Set data.time")
    if config.data.time_unit == "order":
        raise ConfigError(
            "a replay needs a calendar, and data.time_unit: order tells none. "
            "Set data.time_unit to what the numbers count, like hour"
        )
    if config.replay.unlabelled and config.data.positive is None:
        raise ConfigError(
            "with replay.unlabelled no label tells which value is the rare class. Set data.positive to it"
        )
    if config.promotion.mode == "manual":  # nobody is there to approve
        shadow = config.promotion.model_copy(update={"mode": "shadow"})
        config = config.model_copy(update={"promotion": shadow})
        progress("replay", "promotion.mode is manual; nobody approves in a replay, so live labels decide")
    progress("replay", f"reading {config.data.path}")
    frame = _frame(config)
    start = _start(config, frame)
    work = _workplace(out)
    first, live = _configurations(config, work)
    known = frame["__ts"] + config.data.label_delay <= start
    _write_history(frame, known, config, Path(live.data.path))
    labels = ", none of them labelled," if config.replay.unlabelled else ""
    progress("replay", f"{int(known.sum()):,} rows until {start:%Y-%m-%d}{labels} train the first model")
    from rareclass.services.training import run

    summary = run.run(
        first, work / "first", progress=progress, now=start.replace(tzinfo=UTC), reason="replay: first model"
    )
    _ensure_champion(live, summary, start)
    later = frame[frame["__ts"] >= start].reset_index(drop=True)
    model = _first(live)
    truth = _truth_of(later[config.data.target], model, config)
    story, decisions = _play(live, later, truth, list(_steps(later["__ts"], start, config.replay.step)), progress)
    money = _money(config, model, _Played(frame[known], later, truth, start), decisions, progress)
    played: dict[str, Any] = jsonable(
        {
            "name": config.name,
            "train_until": start.isoformat(),
            "step": format_duration(config.replay.step),
            "first": summary["selected"],
            "label_delay": format_duration(config.data.label_delay),
            "unlabelled": config.replay.unlabelled,
            **vars(story),
            "money": money,
        }
    )
    results.write(out / "replay.json", dumps(played, indent=1))
    results.write(out / "replay.html", reports.replay_report(played))
    return played


# --- the rows ---------------------------------------------------------------------------------------------------------


def _frame(config: Config) -> pd.DataFrame:
    """Every row of the source in order of time, with ``__ts`` (UTC, without zone) and an id."""
    from rareclass.adapters import tables

    data = config.data
    if data.target is None:
        raise ConfigError("a replay needs the truth to label rows late and to count money. Set data.target")
    frame = tables.read_frame(tables.location(data), query=data.query, filter=data.filter, data=data)
    for name in (config.data.target, config.data.time):
        if name not in frame.columns:
            raise DataError(f"column '{name}' is not in the data. It has: {', '.join(map(str, frame.columns[:12]))}")
    reading = tables.time_reading(data)
    if not reading.calendar:
        raise ConfigError(
            f"a replay needs to know when rows happened, and data.time '{data.time}' only tells their order. "
            "Set data.time_unit to what it counts, like hour or day"
        )
    stamps, _ = reading.read(frame[data.time])
    lost = np.isnat(stamps)
    if lost.any():
        raise DataError(
            f"data.time '{data.time}' holds {int(lost.sum())} values that are not a time, like "
            f"{frame[data.time][lost].iloc[0]!r}. Clean them, or set data.filter"
        )
    order = np.argsort(stamps, kind="stable")
    frame = frame.iloc[order].reset_index(drop=True)
    frame["__ts"] = frame[data.time] = stamps[order]  # read once: what a part of the rows would look like means nothing
    frame[ID] = [f"replay-{number}" for number in range(len(frame))]
    return frame


def _start(config: Config, frame: pd.DataFrame) -> datetime:
    stamps = frame["__ts"]
    if config.replay.train_until is None:
        start: datetime = stamps.iloc[int(len(stamps) * 0.6)].normalize().to_pydatetime()
    else:
        start = datetime.combine(config.replay.train_until, datetime.min.time())
    if not stamps.iloc[0] < start - config.data.label_delay or not stamps.iloc[-1] >= start:
        raise DataError(
            f"replay.train_until {start:%Y-%m-%d} leaves no rows on one side: "
            f"the data run from {stamps.iloc[0]:%Y-%m-%d} to {stamps.iloc[-1]:%Y-%m-%d}. Set it in between"
        )
    return start


def _workplace(out: Path) -> Path:
    """An empty folder of the replay's own; one that somebody else filled is left alone."""
    work = out / "work"
    if work.exists():
        if not (work / MARK).is_file():
            raise ConfigError(f"'{work}' exists and is not of a replay. Set --out to another folder")
        shutil.rmtree(work)
    work.mkdir(parents=True)
    (work / MARK).touch()
    return work.resolve()


def _configurations(config: Config, work: Path) -> tuple[Config, Config]:
    """The configuration of the first training, and of the live loop: same model, places of the replay's own."""
    checks = config.data.checks.model_copy(update={"missing_target": "warning"})
    aside = () if config.data.id is None else (config.data.id,)  # the replay's own ids take its place; it is no feature
    data = config.data.model_copy(
        update={
            "path": str(work / "history.parquet"),
            "query": None,
            "filter": (),
            "checks": checks,
            "id": ID,
            "drop": (*config.data.drop, *aside),
            "time_format": None,
            "time_unit": None,
            "time_origin": None,
        }
    )
    places = {
        "data": data,
        "tracking": config.tracking.model_copy(update={"uri": f"sqlite:///{work}/mlflow.db", "artifacts": None}),
        "store": config.store.model_copy(update={"url": f"sqlite:///{work}/store.db"}),
        "promotion": config.promotion.model_copy(update={"mode": "immediate"}),
    }
    first = config.model_copy(update=places)
    search = config.search.model_copy(update={"seconds": min(config.search.seconds, LATER_SECONDS)})
    return first, first.model_copy(update={"search": search})


def _write_history(frame: pd.DataFrame, known: pd.Series[bool], config: Config, path: Path) -> None:
    from rareclass.adapters import tables

    history = frame[known].drop(columns="__ts")
    if config.replay.unlabelled:
        history[config.data.target] = None
    tables.write_frame(path, history)


def _ensure_champion(config: Config, summary: Mapping[str, Any], start: datetime) -> None:
    """A replay needs somebody to answer: where the gate declined, the first model is promoted all the same, and the
    ledger says why.
    """
    from rareclass.adapters.registry import Registry
    from rareclass.core.model import digest_of

    registry, now = Registry(config.tracking.uri), start.replace(tzinfo=UTC)
    if registry.at(config.name, "champion") is not None:
        return
    digest = digest_of(Path(summary["uri"]) / "data" / "rareclass")
    reason = f"first model of a replay; the gate said: {summary['gate']['verdict']}"
    version = promotion.register_logged(
        config, promotion.LoggedModel(summary["run_id"], summary["uri"], digest), now=now, reason=reason
    )
    promotion.promote(config, version.version, now=now, mode="immediate", reason=reason)


def _steps(stamps: pd.Series[Any], start: datetime, step: timedelta) -> Iterator[Step]:
    last = stamps.iloc[-1].to_pydatetime()
    while start <= last:
        end = start + step
        low, high = np.searchsorted(stamps.to_numpy(), np.array([start, end], dtype="datetime64[us]"))
        yield Step(start, end, slice(int(low), int(high)))
        start = end


# --- the loop ---------------------------------------------------------------------------------------------------------


def _play(config: Config, frame: pd.DataFrame, truth: Any, steps: list[Step], progress: Progress) -> tuple[Story, Any]:
    """Serve each step, deliver the labels that are due, let the governor look;
    returns the story and what was answered.
    """
    from rareclass.services.live.monitor import Monitor

    story, firing = Story([], [], [], []), set[str]()
    scores, decisions = np.full(len(frame), np.nan), np.zeros(len(frame), dtype=bool)
    delivered = 0
    with Monitor(config) as own:
        for number, step in enumerate(steps, 1):
            progress("replay", f"{step.start:%Y-%m-%d} ({number} of {len(steps)})")
            now = step.end.replace(tzinfo=UTC)
            version, model = _serve(config, own.store, own.registry, frame, step, scores, decisions)
            due = int(
                np.searchsorted(
                    frame["__ts"].to_numpy(), np.datetime64(step.end - config.data.label_delay, "us"), side="right"
                )
            )
            _label(config, own.store, frame, truth, slice(delivered, due))
            delivered = max(delivered, due)
            snapshot = own.evaluate(now)
            story.periods.append(
                _period(config, frame, _Answers(truth, scores, decisions), step, (version, model), snapshot)
            )
            now_firing = alerts(snapshot)
            story.alerts += [{"time": step.end.isoformat(), "name": name} for name in sorted(now_firing - firing)]
            firing = now_firing
            verdict, actions = governor.govern(config, now, monitor=own)
            if verdict.verdict != "nothing":
                story.verdicts.append(
                    {
                        "time": step.end.isoformat(),
                        "verdict": verdict.verdict,
                        "reasons": list(verdict.reasons),
                        "evidence": dict(verdict.evidence),
                    }
                )
            story.actions += [action.to_json() for action in actions]
            for action in actions:
                progress("replay", f"{step.end:%Y-%m-%d} {action.kind}: {action.outcome}. {action.reason[:120]}")
    return story, decisions


def _serve(
    config: Config, store: Store, registry: Registry, frame: pd.DataFrame, step: Step, scores: Any, decisions: Any
) -> tuple[str, RareModel]:
    """Answer the rows of a step with the champion, score them in the shadow of it, and log everything."""
    from rareclass.services.serving.score import ScoredRows, prediction_rows

    roles = {alias: version for version in registry.versions(config.name) for alias in version.aliases}
    champion = roles["champion"]
    model = registry.load(champion)
    rows = frame.iloc[step.rows]
    if not len(rows):
        return champion.version, model
    scores[step.rows] = model.score(rows)
    point, threshold = operating.decides(model.thresholds, model.primary, champion.point, config.serve.operating_point)
    decisions[step.rows] = scores[step.rows] >= threshold
    now = step.end.replace(tzinfo=UTC)
    store.add_predictions(
        prediction_rows(
            config,
            model,
            champion.version,
            ScoredRows(rows, rows[ID].to_numpy(), scores[step.rows], decisions[step.rows]),
            (point, threshold),
            now=now,
        )
    )
    for role in ("challenger", "previous"):
        version = roles.get(role)
        if version is None or version.version == champion.version:
            continue
        shadow = registry.load(version)
        found = shadow.score(rows)
        store.add_shadow_scores(
            pd.DataFrame(
                {
                    "request_id": rows[ID].to_numpy(),
                    "row": 0,
                    "ts": pd.to_datetime(rows["__ts"], utc=True).to_numpy(),
                    "model": config.name,
                    "version": version.version,
                    "role": role,
                    "score": found,
                    "decision": (found >= operating.beside(shadow.thresholds, shadow.primary, point)).astype(int),
                    "error": None,
                }
            )
        )
    return champion.version, model


def _label(config: Config, store: Store, frame: pd.DataFrame, truth: Any, due: slice) -> None:
    """Let the labels of some rows arrive, each one label delay after its row."""
    part = frame.iloc[due]
    known = ~np.isnan(truth[due])
    if not known.any():
        return
    seen = pd.to_datetime(part["__ts"][known] + config.data.label_delay, utc=True)
    store.add_labels(
        pd.DataFrame(
            {
                "model": config.name,
                "request_id": part[ID][known].to_numpy(),
                "row": 0,
                "label": truth[due][known].astype(int),
                "observed_at": seen.to_numpy(),
                "received_at": seen.to_numpy(),
                "source": "replay",
            }
        )
    )


ALERTS: Mapping[str, Callable[[Snapshot], bool]] = {
    "RareclassApDegraded": lambda s: s.evidence is not None and s.evidence.live.degraded,
    "RareclassLabelStarvation": lambda s: s.evidence is not None and s.evidence.live.starved,
    "RareclassFeatureDrift": lambda s: s.drift is not None and bool(s.drift.drifted),
    "RareclassPopulationDrift": lambda s: s.drift is not None and s.drift.drifted_share >= 0.3,
    "RareclassScoreDrift": lambda s: s.drift is not None and s.drift.score is not None and s.drift.score.drifted,
    "RareclassDataBroken": lambda s: (
        bool(s.schema_errors) or any(report is not None and report.broken for report in (s.drift, s.fresh))
    ),
}
"""The alerts of monitoring/rules that a snapshot decides; their `for:` is one step of the replay."""


def alerts(snapshot: Snapshot) -> set[str]:
    """Return the names of the alerts that fire at a snapshot."""
    return {name for name, fires in ALERTS.items() if fires(snapshot)}


@dataclass(frozen=True, eq=False)
class _Answers:
    """What became of the replayed rows: (n,) each, in the order of the history.

    truth : NaN where the label never came · scores, decisions : of the version that answered
    """

    truth: Any
    scores: Any
    decisions: Any


def _period(
    config: Config,
    frame: pd.DataFrame,
    answers: _Answers,
    step: Step,
    served: tuple[str, RareModel],
    snapshot: Snapshot,
) -> dict[str, Any]:
    """What a step was like, judged with all the labels that ever came."""
    from rareclass.core import evaluation

    version, model = served
    part, score, decisions = answers.truth[step.rows], answers.scores[step.rows], answers.decisions[step.rows]
    known = ~np.isnan(part)
    y, s, d = part[known].astype(int), score[known], decisions[known]
    block = np.unique(frame["__ts"].iloc[step.rows][known].to_numpy().astype("datetime64[D]"), return_inverse=True)[1]
    ap = (
        ranking.estimate_ap(
            y,
            s,
            block=block if block.max(initial=0) > 2 else None,
            bootstrap=Bootstrap(confidence=config.evaluate.confidence),
        )
        if y.sum()
        else None
    )
    decided = evaluation.decision_metrics(y, d) if len(y) else {}
    return {
        "start": step.start.isoformat(),
        "end": step.end.isoformat(),
        "rows": len(part),
        "labelled": int(known.sum()),
        "positives": int(y.sum()),
        "version": version,
        "regime": _regime(config, model),
        "learned_positives": model.meta["trained"]["positives"],
        "ap": ap.value if ap else None,
        "ap_low": ap.low if ap else None,
        "ap_high": ap.high if ap else None,
        "ap_estimated": _promised_ap(score, model),
        "prevalence": float(y.mean()) if len(y) else None,
        "precision": decided.get("precision"),
        "recall": decided.get("recall"),
        "cost": _cost(config, frame.iloc[step.rows], part, decisions, model),
        "drifted_features": list(snapshot.drift.drifted) if snapshot.drift is not None else [],
    }


def _regime(config: Config, model: RareModel) -> str:
    """The regime that a version learned in."""
    from rareclass.core import diagnosis

    return "none" if _unjudged(model) else diagnosis.regime(model.meta["trained"]["positives"], config.regime)


def _unjudged(model: RareModel) -> bool:
    """Whether a version is a detector, whose ranks no label has judged."""
    from rareclass.core.profile import Profile

    return Profile.from_json(model.profile).unjudged


def _promised_ap(score: Any, model: RareModel) -> float | None:
    """What the scores alone promise; None without rows, and for a detector, whose ranks promise nothing."""
    if not len(score) or _unjudged(model):
        return None
    return ranking.estimated_ap(score)


def _cost(config: Config, rows: pd.DataFrame, truth: Any, decided: Any, model: RareModel) -> float:
    """Money lost on the labelled rows."""
    from rareclass.core import costs

    known = ~np.isnan(truth)
    amount = _amounts(config, rows)[known] if config.data.amount else None
    prices = costs.cost_arrays(config.costs, float(model.meta["prevalence"]), amount)
    y, n = truth[known] == 1, int(known.sum())
    return float(
        np.where(y & ~decided[known], prices.misses(n), 0).sum()
        + np.where(~y & decided[known], prices.alarms(n), 0).sum()
    )


# --- money ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Played:
    """The rows that a replay plays with.

    history : labelled before ``start`` · later : replayed after it · truth : (n,) of the later ones
    """

    history: pd.DataFrame
    later: pd.DataFrame
    truth: Any
    start: datetime


def _money(config: Config, first: RareModel, played: _Played, decisions: Any, progress: Progress) -> dict[str, Any]:
    """What the loop cost on the labelled rows, beside 'train once and never again' and 'retrain every week'; where it
    began without labels, beside a team that waits for `WAITED_FOR` positives too.
    """
    later, truth = played.later, played.truth
    found: dict[str, Any] = {
        "currency": config.costs.currency,
        "ours": _cost(config, later, truth, decisions, first),
        "never": None,
        "weekly": None,
        **({"waited": None, "waited_for": WAITED_FOR} if config.replay.unlabelled else {}),
    }
    if not config.replay.peers:
        return found
    progress("replay", "the peers: never retrain, retrain every week")
    original = first.decide(first.score(later))
    found["never"] = _cost(config, later, truth, original, first)
    weekly, positives = _weekly(config, played, first)
    found["weekly"] = _cost(config, later, truth, weekly, first)
    if config.replay.unlabelled:  # who waits flags nothing before, and does the same from then on
        found["waited"] = _cost(config, later, truth, weekly & (positives >= WAITED_FOR), first)
    peers = [peer for peer in PEERS if found.get(peer) is not None]
    return {**found, **{f"saved_vs_{peer}": found[peer] - found["ours"] for peer in peers}}


def _first(config: Config) -> RareModel:
    """The first version of the replay, as it was registered."""
    from rareclass.adapters.registry import Registry, load_model

    version = Registry(config.tracking.uri).versions(config.name)[-1]
    return load_model(version.uri, config.tracking.uri, expect=version.hash)


def _weekly(config: Config, played: _Played, first: RareModel) -> tuple[Any, Any]:
    """Decisions of a team that fits the same default learner on all labelled rows every week, and how many positives
    were labelled when each was made.

    The first version decides while they are too few for it. Each week a first fit on all but the newest four labelled
    weeks tunes calibrator and threshold on those, then all rows are fitted. Negatives beyond a bound are thinned, and
    the scores corrected for it.
    """
    from rareclass.core import calibration, costs, thresholds

    history, later, truth, start = played.history, played.later, played.truth, played.start
    everything = pd.concat([history, later], ignore_index=True)
    x, stamps = first.matrix(everything), everything["__ts"].to_numpy()
    unknown = config.replay.unlabelled
    past = np.full(len(history), np.nan) if unknown else _truth_of(history[config.data.target], first, config)
    y = np.concatenate([past, truth])
    amount = _amounts(config, everything) if config.data.amount else None
    decided, positives = np.zeros(len(later), dtype=bool), np.zeros(len(later), dtype=np.int64)
    for step in _steps(later["__ts"], start, timedelta(days=7)):
        if step.rows.start == step.rows.stop:
            continue
        ready = ~np.isnan(y) & (stamps <= np.datetime64(step.start - config.data.label_delay, "us"))
        newest = stamps > np.datetime64(step.start - config.data.label_delay - TUNING, "us")
        tune, fit = np.flatnonzero(ready & newest), np.flatnonzero(ready & ~newest)
        rows = later.iloc[step.rows]
        positives[step.rows] = y[ready].sum()
        if min(y[tune].sum(), y[fit].sum()) < 10:
            decided[step.rows] = first.decide(first.score(rows))
            continue
        score = _fit(config, first, x, y, fit)(x[tune])
        labels = y[tune].astype(int)
        fitted = calibration.fit(Sample(labels, score), seed=config.train.seed)
        prices = costs.cost_arrays(config.costs, float(labels.mean()), None if amount is None else amount[tune])
        days = max(1.0, float((stamps[tune].max() - stamps[tune].min()) / np.timedelta64(1, "D")))
        point = next(
            iter(
                thresholds.tune_points(
                    Sample(labels, fitted.calibrator(score)),
                    config.threshold,
                    costs=prices,
                    days=days,
                    bootstrap=Bootstrap(resamples=50),
                ).values()
            )
        )
        both = _fit(config, first, x, y, np.concatenate([fit, tune]))
        decided[step.rows] = (
            fitted.calibrator(both(x[len(history) + step.rows.start : len(history) + step.rows.stop])) >= point.value
        )
    return decided, positives


def _amounts(config: Config, rows: pd.DataFrame) -> Any:
    """(n,) amounts at stake, read as training reads them."""
    from rareclass.core.reading import Reading

    data = config.data
    return Reading("number", data.missing_values, data.decimal, data.thousands).numbers(rows[str(data.amount)])[0]


def _truth_of(target: pd.Series[Any], model: RareModel, config: Config) -> Any:
    """(n,) 1, 0, or NaN where the label never came; read as the version read it, or as it is set where none did."""
    positive = str(config.data.positive)
    role = model.schema.roles.target or Target(str(config.data.target), positive, (positive,))
    return role.labels(target)


def _fit(config: Config, model: RareModel, x: Any, y: Any, index: Any) -> Callable[[Any], Any]:
    """Fit the default learner on some rows, negatives thinned; returns corrected scores."""
    from rareclass.core import calibration, learners
    from rareclass.core.dataset import Rows
    from rareclass.core.fit_task import FitTask

    negatives = index[y[index] == 0]
    kept = min(1.0, PEER_NEGATIVES / max(1, len(negatives)))
    chosen = np.random.default_rng(config.train.seed).choice(negatives, int(len(negatives) * kept), replace=False)
    picked = np.sort(np.concatenate([index[y[index] == 1], chosen]))
    rows = Rows(model.schema, x[picked], y[picked].astype(np.int64), np.zeros(len(picked), dtype=np.uint64))
    task = FitTask(rows, rounds=120, seed=config.train.seed, threads=config.compute.processors())
    fitted = learners.fit("xgboost", task, {"eta": 0.1, "max_depth": 4})
    return lambda values: calibration.prior_correction(fitted.score(values), kept)
