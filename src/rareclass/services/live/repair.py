"""What the governor does: another threshold, another calibration, another model.

Each is tried, judged, then recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.adapters import tracking
from rareclass.config import Config, dump, public
from rareclass.core import operating
from rareclass.core.moments import naive
from rareclass.core.review import FIT_WEIGHT
from rareclass.errors import AlreadyDoneError, DataError, ModelError, NeedsApprovalError
from rareclass.masking import masked
from rareclass.services import promotion as promotion
from rareclass.services.live import chosen
from rareclass.services.live import monitor as watching
from rareclass.services.live.learnable import mark_filtered, mark_outlying
from rareclass.services.live.ledger import ACTOR, Action, Rethresholded
from rareclass.services.training.steps import silent

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.adapters.tables import Ingested
    from rareclass.core.bootstrap import Bootstrap
    from rareclass.core.dataset import Rows
    from rareclass.core.model import RareModel
    from rareclass.core.repair import MaturedRows
    from rareclass.core.triage import Verdict
    from rareclass.services.live.monitor import LoadedVersion, Monitor

Progress = Callable[[str, str], None] | None
JUDGES = 20
"""Test positives with which a retrain may be judged before it goes into the shadow."""
QUICK_ROWS = 60_000
"""Negatives at most that the quick models see which choose how much history to use."""


def rethreshold(
    config: Config, verdict: Verdict, now: datetime, *, monitor: Monitor, progress: Progress = None
) -> Action:
    """Tune the cut-offs again; hot-swapped through tags of the version, with a line in the ledger."""
    from rareclass.core import repair

    champion = _champion(monitor)
    assert champion.model is not None
    newest = _newest(monitor, now)
    fit, judge = repair.halves(_matured(monitor, champion, now), newest)
    before = current_thresholds(monitor, champion)
    shifted = any(reason.startswith("prevalence") for reason in verdict.reasons)
    found = repair.rethreshold(
        fit,
        judge,
        newest=newest,
        before=before,
        settings=config.threshold,
        shifted=shifted,
        bootstrap=_bootstrap(config),
    )
    if not found.adopted:
        return Action(now, "rethreshold", champion.version, None, "rejected", found.reason, found.to_json())
    payload = {**found.to_json(), "version": champion.version, "costs": dump(config)["costs"]}
    try:
        monitor.store.append(
            config.name, f"rethreshold:{verdict.fingerprint}", "rethreshold", ACTOR, found.reason, payload, now
        )
    except AlreadyDoneError:
        return Action(now, "rethreshold", champion.version, champion.version, "already", found.reason)
    follow(monitor)
    return Action(now, "rethreshold", champion.version, champion.version, "done", found.reason, found.to_json())


def _bootstrap(config: Config) -> Bootstrap:
    """Return how the gain of a repair gets its interval: as every other figure of the configuration."""
    from rareclass.core.bootstrap import Bootstrap

    return Bootstrap.of(config.evaluate, config.train.seed)


def follow(monitor: Monitor) -> None:
    """Let the champion's tags say what the ledger says: made good here when somebody died between the two."""
    version = monitor.registry.at(monitor.config.name, "champion")
    known = monitor.known().get("champion")
    entries = monitor.store.entries(monitor.config.name, "rethreshold")
    if version is None or known is None or known.model is None:
        return
    if not Rethresholded.of_version(entries, version.version):
        return
    wanted = current_thresholds(monitor, known)
    tags = {f"{operating.TAG}.{name}": str(value) for name, value in wanted.items()}
    tags[operating.TAG] = str(wanted[known.model.primary])
    if any(version.tags.get(name) != value for name, value in tags.items()):
        monitor.registry.tag(monitor.config.name, version.version, tags)


def current_thresholds(monitor: Monitor, known: LoadedVersion) -> dict[str, float]:
    """Return the cut-offs in force of a version whose tags may still have to follow the ledger."""
    assert known.model is not None
    cut_offs: dict[str, float] = {}
    entries = monitor.store.entries(monitor.config.name, "rethreshold")
    for line in Rethresholded.of_version(entries, known.version):
        cut_offs.update(line.thresholds)
    return operating.in_force(known.model.thresholds, known.model.primary, cut_offs)


def recalibrate(
    config: Config, verdict: Verdict, now: datetime, *, monitor: Monitor, progress: Progress = None
) -> Action:
    """Fit another calibrator to the same learner; a new version, champion at once since its ranking is the same."""
    from rareclass.core import repair

    champion = _champion(monitor)
    assert champion.model is not None
    model = champion.model
    scored = _matured(monitor, champion, now)
    fit, judge = repair.halves(scored, _newest(monitor, now))
    # the learner's own scores from the deployed ones: no feature is needed, so private ones stand in nothing's way
    raw = model.calibrator.inverse(scored.score)
    before = current_thresholds(monitor, champion)
    found = repair.recalibrate(
        fit,
        judge,
        raw[: len(fit)],
        raw[len(fit) :],
        before=before,
        settings=config.threshold,
        bootstrap=_bootstrap(config),
    )
    if not found.adopted:
        return Action(now, "recalibrate", champion.version, None, "rejected", found.reason, found.to_json())
    meta = {
        "created": now.isoformat(),
        "calibration": found.calibrator.kind,
        "recalibrated_from": champion.version,
        "config": public(config),
    }
    made = repair.recalibrated(model, found, scored, raw, window=config.monitor.window, meta=meta)
    version = _registered(
        config, made, now, f"recalibrated from version {champion.version}: {found.reason}", found.to_json()
    )
    role = _promoted(config, version, now, found.reason, {"recalibrate": found.to_json()})
    payload = {**found.to_json(), "version": version, "costs": dump(config)["costs"]}
    monitor.store.append(config.name, f"recalibrate:{version}", "recalibrate", ACTOR, found.reason, payload, now)
    return Action(
        now,
        "recalibrate",
        champion.version,
        version,
        "done" if role == "champion" else role,
        found.reason,
        found.to_json(),
    )


def retrain(config: Config, verdict: Verdict, now: datetime, *, monitor: Monitor, progress: Progress = None) -> Action:
    """Train on the history that serves best; the new version starts in the shadow and is judged on rows still to
    come.
    """
    from rareclass.services.training import run

    champion = _champion(monitor)
    ingested, numbers = relearned(config, now, monitor=monitor)
    reason = f"{'; '.join(verdict.reasons)}. {numbers['reason']}"
    summary = run.run_rows(
        judged_later(config),
        ingested,
        None,
        now=now,
        progress=progress or silent,
        context=run.RunContext(reason, ACTOR),
    )
    said = summary.get("gate") or {}
    numbers = {**numbers, "gate": said}
    version = summary.get("version")
    if version is None:
        why = f"{numbers['reason']}. gate: {said.get('verdict')}: {'; '.join(said.get('reasons', []))}"
        return Action(now, "retrain", champion.version, None, "rejected", why, numbers)
    outcome = "done" if summary.get("role") == "champion" else "challenger"
    return Action(now, "retrain", champion.version, str(version), outcome, numbers["reason"], numbers)


def judged_later(config: Config) -> Config:
    """Return the configuration of a retrain: the gate keeps out what is clearly worse; who is better is decided on rows
    still to come.
    """
    gate = config.gate.model_copy(update={"min_positives": min(config.gate.min_positives, JUDGES)})
    shadow = config.promotion.model_copy(update={} if config.promotion.mode == "manual" else {"mode": "shadow"})
    return config.model_copy(update={"promotion": shadow, "gate": gate})


def relearned(config: Config, now: datetime, *, monitor: Monitor) -> tuple[Ingested, dict[str, Any]]:
    """Choose how much history serves best and split it as a source is split; returns it with the numbers behind the
    choice.
    """
    from rareclass.core import repair

    champion = _champion(monitor)
    assert champion.model is not None
    rows = history_rows(monitor, champion, now)
    change = change_point(monitor, champion, now)
    history = repair.choose_history(
        rows,
        quick_fit(config),
        windows=config.retrain.windows,
        half_life=4 * config.monitor.window,
        change=change,
        bootstrap=_bootstrap(config),
    )
    numbers = {
        "history": history.chosen,
        "table": {name: value.to_json() for name, value in history.table.items()},
        "rows": len(history.rows),
        "reason": history.reason,
    }
    return ingested_rows(config, history.rows, champion.model), numbers


def ingested_rows(config: Config, rows: Rows, model: RareModel) -> Ingested:
    """Split rows at hand as the rows of a source are split.

    model : the champion, whose target and positive value the rows share
    """
    from rareclass.adapters.tables import Ingested
    from rareclass.core import splitting

    parts = splitting.split(
        y=rows.y,
        row_id=rows.row_id,
        time=rows.time,
        entity=rows.entity,
        config=config.split,
        label_delay=config.data.label_delay,
        seed=config.train.seed,
    )
    named = {name: rows.take(getattr(parts, name)) for name in ("train", "validation", "test")}
    content = _content_hash(rows)
    card: dict[str, Any] = {
        "source": "prediction log" if config.retrain.source == "store" else masked(config.data.path),
        "target": config.data.target,
        "positive": str(model.meta.get("positive")),
        "rows": {name: len(part) for name, part in named.items()} | {"dropped": dict(parts.dropped)},
        "parts": splitting.describe(list(named.items())),
        "split": {**parts.boundaries, "kind": parts.kind},
        "train_kept": 1.0,
        "prevalence": {name: part.prevalence for name, part in named.items()},
        "by_time": [],
        "features": [],
        "content_hash": content,
        "warnings": [],
    }
    return Ingested(
        named["train"],
        named["validation"],
        named["test"],
        rows.schema,
        card,
        [],
        model.meta.get("positive"),
        1.0,
        parts.kind,
        dict(parts.dropped),
    )


def _content_hash(rows: Rows) -> str:
    """Hash of every value that the new version is made of."""
    from rareclass.core import hashing

    total = hashing.rows_hash(
        hashing.content_groups(rows.x),
        id=rows.row_id,
        time=rows.time,
        entity=rows.entity,
        amount=rows.amount,
        weight=rows.weight,
        keep=rows.keep,
        most=rows.most,
    )
    rare, others = hashing.SetHash(), hashing.SetHash()
    rare.add(total[rows.y == 1])
    others.add(total[rows.y == 0])
    return hashing.data_hash(rare, others, rows.schema.names)


# --- rows ------------------------------------------------------------------------------------------------------------


def matured_rows(
    monitor: Monitor, model: RareModel, now: datetime, *, version: str | None = None, start: datetime | None = None
) -> Rows:
    """Return labelled matured rows with their stored features, oldest first, with inverse-propensity weights.

    Raises DataError when features of the model are private or were not stored.
    """
    from rareclass.core import liveness

    config = monitor.config
    start = start or liveness.boundaries(now, monitor.delay(now), config.monitor)[0][0]
    frame = chosen.window(
        config, monitor.store, start, now - monitor.delay(now), version=version, features=True, labels_until=now
    )
    return rows_of(config, model, with_known_truth(config, frame, now))


def with_known_truth(config: Config, frame: pd.DataFrame, now: datetime) -> pd.DataFrame:
    """Rows whose truth can be learned from: labelled, or unlabelled for longer than the horizon where that means 0."""
    from rareclass.core import liveness

    propensity, ts = frame["propensity"].to_numpy(float), frame["ts"].to_numpy("datetime64[us]")
    label = liveness.assumed(ts, frame["label"].to_numpy(float), propensity, now, config.missing_negative_after)
    known = (propensity > 0) & ~np.isnan(label) & frame["features"].notna().to_numpy()
    return frame.assign(label=label)[known].sort_values("ts", kind="stable")


def private_features(config: Config, model: RareModel) -> list[str]:
    """Features of a version that are never stored."""
    return [name for name in model.schema.names if name in config.data.private]


def cannot_retrain(private: Sequence[str]) -> str:
    """Return the sentence for a store that lacks private columns."""
    return (
        f"a retrain cannot learn from the store: {', '.join(private[:5])} {'is' if len(private) == 1 else 'are'} "
        "private (data.private) and never stored. Set retrain.source: data"
    )


def rows_of(config: Config, model: RareModel, frame: pd.DataFrame) -> Rows:
    """Encode stored rows with the model's schema."""
    from rareclass.core import dataset, hashing
    from rareclass.core.reading import NUMBER

    if not len(frame):
        raise DataError(
            f"no matured row of '{config.name}' has a label and features. Import labels with: rareclass labels import"
        )
    table = watching.features_of(frame["features"])
    if private := private_features(config, model):
        raise DataError(cannot_retrain(private))
    absent = [name for name in model.schema.names if name not in table]
    if absent:
        raise DataError(f"the store has no feature '{absent[0]}': it was not served. Set retrain.source: data")
    readable, _ = watching.readable(table, model.schema, [])
    weight = frame["weight"].to_numpy(float) / frame["propensity"].to_numpy(float)
    amount = config.data.amount
    name = frame["request_id"].astype(str) + ":" + frame["row"].astype(str)
    rows = dataset.Rows(
        schema=model.schema,
        x=dataset.encode(readable, model.schema),
        y=frame["label"].to_numpy(np.int64),
        row_id=hashing.text_hash(name),
        time=frame["ts"].to_numpy("datetime64[us]"),
        entity=hashing.text_hash(frame["entity"])
        if config.data.entity is not None and frame["entity"].notna().all()
        else None,
        amount=NUMBER.numbers(table[amount])[0] if amount in table else None,
        weight=None if (weight == 1).all() else weight,
        most=np.full(len(frame), FIT_WEIGHT) if chosen.by_review(config) else None,
    )
    return mark_filtered(config, rows, readable, model.meta.get("positive"))


def history_rows(monitor: Monitor, champion: LoadedVersion, now: datetime) -> Rows:
    """Return everything a retrain may learn from, oldest first: the training history, then served rows with labels.

    With ``retrain.source: data`` the source of the configuration is all there is, up to one label delay ago. A history
    without labels (no ``data.target``, or none of its rows has a value) teaches no classifier: its rows may be of
    either class, so only served rows with labels are learned from then.
    """
    from rareclass.core.dataset import concatenate

    config = monitor.config
    assert champion.model is not None
    mature = np.datetime64(naive(now - monitor.delay(now)), "us")
    served = None
    if config.retrain.source == "store":
        if private := private_features(config, champion.model):
            raise DataError(cannot_retrain(private))
        first = monitor.store.counts(config.name)["first"]
        if first is None:
            raise DataError(
                f"the store has no prediction of '{config.name}'. Serve or `rareclass score --log` first, or set "
                "retrain.source: data"
            )
        served = matured_rows(monitor, champion.model, now, start=first)
        mature = min(mature, served.time.min() if served.time is not None else mature)
    past = _past(config, champion.model, mature)
    if served is None:
        if past is None:
            raise DataError(f"'{config.data.path}' has no labelled row before {mature}. Set retrain.source: store")
        return past
    return mark_outlying(config, served if past is None else concatenate([past, _like(served, past)]))


def _past(config: Config, model: RareModel, before: np.datetime64) -> Rows | None:
    """Rows of the configured source that were known before a moment, in the champion's schema; None without a label."""
    from rareclass.adapters import tables
    from rareclass.core import dataset

    # no gaps between the parts: nothing is judged here
    settings = config.model_copy(update={"data": config.data.model_copy(update={"label_delay": timedelta(0)})})
    found = tables.ingest(settings)
    if found.schema.roles.target is None:
        return None
    parts = [part for part in (found.train, found.validation, found.test, found.rest) if part is not None and len(part)]
    whole = dataset.concatenate(parts)
    if whole.schema != model.schema:
        there, table = tables.table_for(settings, whole, model.schema)
        whole = replace(whole.take(there), schema=model.schema, x=model.matrix(table))
    if whole.time is None:
        return whole
    kept = np.flatnonzero(whole.time < before)
    kept = kept[np.argsort(whole.time[kept], kind="stable")]
    return whole.take(kept) if len(kept) else None


def _like(served: Rows, past: Rows) -> Rows:
    """Give served rows the same optional columns as the history, so that both can be stacked."""
    changes: dict[str, Any] = {}
    for name in ("amount", "entity", "time"):
        if getattr(past, name) is None:
            changes[name] = None
    return replace(served, **changes)


def change_point(monitor: Monitor, champion: LoadedVersion, now: datetime) -> datetime | None:
    """Return the start of the oldest of the consecutive windows that fell below the reference, up to the newest."""
    live = monitor.evaluate(now).live.get(champion.version)
    found = None
    for window in reversed(live.judged if live is not None else ()):
        if not window.metric("difference").high < 0:
            break
        found = window.start
    return found


def quick_fit(config: Config) -> Any:
    """Return what fits the default learner on rows and scores others with it; negatives are thinned when there are
    many.
    """
    from rareclass.core import learners
    from rareclass.core.fit_task import FitTask

    def fit(rows: Rows) -> Callable[[Any], Any]:
        negatives = np.flatnonzero(rows.y == 0)
        if len(negatives) > QUICK_ROWS:
            kept = np.random.default_rng(config.train.seed).choice(negatives, QUICK_ROWS, replace=False)
            rows = rows.take(np.sort(np.concatenate([np.flatnonzero(rows.y == 1), kept])))
        rows = rows.as_drawn()
        task = FitTask(rows, rows.weight, 120, seed=config.train.seed, threads=config.compute.processors())
        fitted = learners.fit("xgboost", task, {"eta": 0.1, "max_depth": 4})
        return fitted.score

    return fit


def scored_afterwards(
    monitor: Monitor, version: str, champion: str, start: datetime, now: datetime
) -> pd.DataFrame | None:
    """Score stored features with a version that did not score them live, beside what the champion answered."""
    config = monitor.config
    frame = chosen.window(
        config, monitor.store, start, watching._after(now), version=champion, features=True, labels_until=now
    )
    frame = frame[frame["features"].notna()]
    model = monitor.registry.load(monitor.registry.version(config.name, version))
    if not len(frame):
        return None
    table = watching.features_of(frame["features"])
    if any(name not in table for name in model.schema.names):
        return None
    readable, _ = watching.readable(table, model.schema, [])
    score = model.score(readable)
    cutoff = frame["operating_point"].map(lambda point: operating.beside(model.thresholds, model.primary, point))
    return frame.assign(shadow_score=score, shadow_decision=(score >= cutoff.to_numpy(float)).astype(float))


def _champion(monitor: Monitor) -> LoadedVersion:
    known = monitor.known().get("champion")
    if known is None or known.model is None:
        raise ModelError(
            f"'{monitor.config.name}' has no champion to repair. Train one with: rareclass run -c CONFIG --out DIR"
        )
    return known


def _newest(monitor: Monitor, now: datetime) -> datetime:
    from rareclass.core import liveness

    config = monitor.config
    bounds = liveness.boundaries(now, monitor.delay(now), config.monitor)
    return [start for start, _, state in bounds if state == "matured"][-1]


def _matured(monitor: Monitor, champion: LoadedVersion, now: datetime) -> MaturedRows:
    """Labelled matured rows of the champion, oldest first; their features are read only where costs follow from an
    amount.
    """
    from rareclass.core import liveness, repair
    from rareclass.core.costs import cost_arrays

    config = monitor.config
    needed = config.costs.amount_share is not None
    start = liveness.boundaries(now, monitor.delay(now), config.monitor)[0][0]
    end, version = now - monitor.delay(now), champion.version
    frame = chosen.window(config, monitor.store, start, end, version=version, features=needed, labels_until=now)
    if not needed:
        frame = frame.assign(features="{}")
    frame = with_known_truth(config, frame, now)
    weight = frame["weight"].to_numpy(float) / frame["propensity"].to_numpy(float)
    y = frame["label"].to_numpy(np.int64)
    amount = watching.amounts(config, frame) if needed else None
    if needed and amount is None and len(frame):
        raise DataError(
            f"costs.amount_share needs the amounts of the served rows, but none is stored as '{config.data.amount}'. "
            "Take it out of data.drop and data.private, or set costs.false_negative"
        )
    prevalence = float(np.average(y, weights=weight)) if len(y) else 0.5
    return repair.MaturedRows(
        y,
        frame["score"].to_numpy(float),
        frame["ts"].to_numpy("datetime64[us]"),
        None if (weight == 1).all() else weight,
        cost_arrays(config.costs, prevalence, np.empty(0) if amount is None else amount),
    )


def _registered(config: Config, model: RareModel, now: datetime, reason: str, evidence: Mapping[str, Any]) -> str:
    name = f"{config.name} {now:%Y-%m-%d %H:%M} recalibrated"
    run = tracking.Tracker.of(config).start(name, tags={"reason": reason[:500]})
    try:
        version = promotion.register(config, model, run.id, now=now, actor=ACTOR, reason=reason, evidence=evidence)
        run.end()
    except BaseException:
        run.end("FAILED")
        raise
    return version.version


def _promoted(config: Config, version: str, now: datetime, reason: str, evidence: Mapping[str, Any]) -> str:
    """Make a recalibrated version champion; with `promotion.mode: manual` challenger, until a person approves it."""
    try:
        made = promotion.promote(
            config, version, now=now, mode="immediate", actor=ACTOR, reason=reason, evidence=evidence
        )
    except (AlreadyDoneError, NeedsApprovalError):
        return next((role for role, held in promotion.state(config).items() if held == version), "waiting")
    return made.role
