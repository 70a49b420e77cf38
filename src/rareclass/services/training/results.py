"""What a run leaves behind: one MLflow run with everything in it, perhaps a registered version,
a summary and a report.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rareclass.adapters import reports, tracking
from rareclass.config import Config, public
from rareclass.core.jsonable import dumps, jsonable
from rareclass.errors import AlreadyDoneError, ConfigError, NeedsApprovalError, RareclassError
from rareclass.masking import masked
from rareclass.services import promotion as promotion
from rareclass.services.training import lending, scored
from rareclass.services.training.steps import Progress, Run, criterion, silent

if TYPE_CHECKING:
    from rareclass.adapters.tracking import Tracker


def register(
    run: Run, *, now: datetime, reason: str = "run", actor: str | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Log the run, register the model when the gate lets it, and return the summary. Nothing is registered half."""
    from rareclass.adapters import registry

    config = run.config
    progress("register", f"MLflow at {masked(config.tracking.uri)}")
    tracker = tracking.Tracker.of(config)
    tracker.mark_dead_runs_killed()
    logged = _start(tracker, config, now, {"gate": run.judged.decision.verdict, "reason": reason})
    try:
        details = full(run)
        _log(logged, run, details)
        card = registry.model_card(run.model)
        uri, digest = registry.Registry(config.tracking.uri).log(logged.id, run.model, card=card)
        version = None
        if run.judged.decision.registers:
            version = promotion.register_logged(
                config,
                promotion.LoggedModel(logged.id, uri, digest),
                now=now,
                actor=actor,
                reason=reason,
                evidence=_evidence(run),
                tags={"gate": run.judged.decision.verdict, "selected": run.chosen.winner},
            ).version
        else:
            said = run.judged.decision
            why = f"{said.verdict}: {'; '.join(said.reasons)}"
            promotion.record_rejection(config, logged.id, now=now, actor=actor, reason=why, evidence=_evidence(run))
        summary = {
            **details["summary"],
            "status": "registered" if version else "not_registered",
            "version": version,
            "uri": uri,
            "run_id": logged.id,
        }
        logged.json("summary.json", summary)
        logged.end()
    except BaseException as fault:
        logged.end(_ending(fault), error_line(fault))
        raise
    return {**details, "summary": summary}


def _start(tracker: Tracker, config: Config, now: datetime, tags: Mapping[str, Any]) -> Any:
    return tracker.start(f"{config.name} {now:%Y-%m-%d %H:%M}", params=_params(config), tags=tags)


@contextmanager
def failures_logged(config: Config, *, now: datetime, reason: str = "run") -> Iterator[None]:
    """Leave an MLflow run, FAILED (or KILLED where it was interrupted) with the error, of what does not come to its
    end.

    The error goes on; a store that cannot take the run is only noted on it.
    """
    try:
        yield
    except BaseException as fault:
        try:
            logged = _start(tracking.Tracker.of(config), config, now, {"reason": reason})
            logged.end(_ending(fault), error_line(fault))
        except RareclassError as silent_store:
            fault.add_note(f"not logged: {silent_store}")
        raise


def _ending(fault: BaseException) -> str:
    return "FAILED" if isinstance(fault, Exception) else "KILLED"


def error_line(fault: BaseException) -> str:
    """What ended a run, in one line without passwords; of a fault that no user can mend with its kind."""
    text = masked(" ".join(str(fault).split()))[:1000]
    kind = type(fault).__name__
    return text if isinstance(fault, RareclassError) else f"{kind}: {text}".removesuffix(": ")


def promote(
    config: Config,
    version: str | None,
    *,
    now: datetime,
    reason: str = "run",
    actor: str | None = None,
    challenger: bool = False,
    progress: Progress = silent,
) -> str | None:
    """Give a registered version its role; returns "champion", "challenger" or None when nothing was registered.

    challenger : the gate let it stand beside the champion only, also where ``promotion.mode`` is immediate
    """

    if version is None:
        return None
    progress("promote", f"version {version}, {config.promotion.mode}")
    try:
        mode: promotion.Mode | None = "shadow" if challenger and config.promotion.mode == "immediate" else None
        return promotion.promote(config, version, now=now, mode=mode, actor=actor, reason=reason).role
    except NeedsApprovalError:
        return None
    except AlreadyDoneError:  # killed after it was promoted and started again
        return next((role for role, holder in promotion.state(config).items() if holder == version), None)


def _params(config: Config) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, values in public(config).items():
        if isinstance(values, dict):
            flat.update({f"{section}.{key}": value for key, value in values.items()})
        else:
            flat[section] = values
    return flat


def _evidence(run: Run) -> dict[str, Any]:
    from rareclass.core import hashing

    trained, test = run.model.meta["trained"], run.ingested.judging
    return {
        **({"repair": run.ingested.card["repair"]} if "repair" in run.ingested.card else {}),
        "data_hash": run.ingested.card["content_hash"],
        "test_rows": hashing.of_rows(test.row_id, test.y),
        "trained": trained,
        "gate": dict(run.judged.decision.numbers),
        "judged_by": "test" if run.judged.crossed is None else "cross_fitting",
        "verdict": run.judged.decision.verdict,
        "reasons": list(run.judged.decision.reasons),
        "ap": run.judged.evaluation.metrics["ap"].to_json(),
        "selected": run.chosen.winner,
    }


def _log(logged: Any, run: Run, details: Mapping[str, Any]) -> None:

    card, evaluation = run.ingested.card, run.judged.evaluation
    logged.log(metrics={f"test_{name}": each.value for name, each in evaluation.metrics.items()})
    logged.log(
        metrics={
            f"test_{name}_{end}": getattr(each, end)
            for name, each in evaluation.metrics.items()
            for end in ("low", "high")
        }
    )
    logged.log(metrics={f"seconds_{step}": value for step, value in run.seconds.items()})
    for context, rows in (
        ("training", run.ingested.train),
        ("validation", run.ingested.validation),
        ("test", run.ingested.test),
    ):
        logged.dataset(
            f"{run.config.name}-{context}",
            source=public(run.config)["data"]["path"],
            digest=card["content_hash"],
            context=context,
            profile={"rows": rows.represented, "positives": rows.positives},
        )
    results = {each.name: each for each in run.chosen.table}
    for one in run.trained:
        found = results.get(one.candidate.name)
        logged.child(
            one.candidate.name,
            params=one.candidate.to_json(),
            metrics={
                "heldout_ap": found.ap.value,
                "heldout_ap_low": found.ap.low,
                "heldout_ap_high": found.ap.high,
                "fit_seconds": one.fit_seconds,
            }
            if found
            else {"fit_seconds": one.fit_seconds},
            series=_series(one.trace),
            steps=[int(each["round"]) for each in one.trace],
            tags={"reason": one.candidate.reason},
        )
    for name in ("data_card", "diagnosis", "selection", "evaluation", "gate", "trials"):
        logged.json(f"{name}.json", details[name])
    logged.frame(tracking.SCORES, scored.test_rows(run))
    logged.frame(tracking.HELDOUT, scored.heldout_rows(run))
    crossed = scored.cross_fitted_rows(run)
    if crossed is not None:
        logged.frame(tracking.CROSS_FITTED, crossed)


def full(run: Run) -> dict[str, Any]:
    """Return everything a report needs, JSON-ready."""
    evaluation, chosen = run.judged.evaluation, run.chosen
    trials = {"seed": run.config.train.seed, "trials": [one.trial() for one in run.trained]}
    found: dict[str, Any] = jsonable(
        {
            "name": run.config.name,
            "config": public(run.config),
            "data_card": run.ingested.card,
            "warnings": [
                {"check": each.check, "column": each.column, "severity": each.severity, "message": each.message}
                for each in run.ingested.warnings
            ],
            "diagnosis": run.plan.diagnosis.to_json(),
            "selection": chosen.to_json(),
            "evaluation": evaluation.to_json(),
            "calibration": {"chosen": run.tuning.calibration.chosen, "log_loss": dict(run.tuning.calibration.table)},
            "points": {name: point.to_json() for name, point in run.tuning.points.items()},
            "gate": run.judged.decision.to_json(),
            "cross_fitting": _crossed(run),
            "champion": run.judged.champion,
            "champion_metrics": dict(run.judged.champion_metrics),
            "champion_left_out": run.judged.champion_left_out,
            "trials": trials,
            "summary": summarise(run),
            "importance": [each.to_json() for each in run.judged.importance],
            "tradeoff": dict(run.judged.tradeoff),
            "periods": _periods(run),
        }
    )
    return found


def _crossed(run: Run) -> dict[str, Any] | None:
    return None if run.judged.crossed is None else run.judged.crossed.to_json()


def _periods(run: Run) -> dict[str, Any] | None:
    """Prevalence by calendar period over all rows that were read; None without time."""
    import numpy as np

    from rareclass.core import periods

    parts = {"train": run.ingested.train, "validation": run.ingested.validation, "test": run.ingested.test}
    times = [rows.time for rows in parts.values() if rows.time is not None]
    if len(times) < len(parts):
        return None
    natural = None
    if any(rows.drawn is not None for rows in parts.values()):  # a row that was not drawn stands for itself
        natural = np.concatenate(
            [np.ones(len(rows)) if rows.natural is None else rows.natural for rows in parts.values()]
        )
    unit, found = periods.by_period(
        np.concatenate(times),
        np.concatenate([rows.y for rows in parts.values()]),
        np.repeat(list(parts), [len(rows) for rows in parts.values()]),
        natural=natural,
        confidence=run.config.evaluate.confidence,
    )
    return {"unit": unit, "periods": [each.to_json() for each in found]}


def _series(trace: Sequence[Mapping[str, float]]) -> dict[str, list[float]] | None:
    """Curves by round or epoch from the records of a fit, like `round_ap`."""
    names = [name for name in trace[0] if name != "round"] if trace else []
    return {f"round_{name}": [float(each[name]) for each in trace] for name in names} or None


def summarise(run: Run) -> dict[str, Any]:
    """Return the stable keys that other tools rely on."""
    from rareclass.core import advice, without_labels

    evaluation, judged = run.judged.evaluation, run.judged
    metrics = {
        name: evaluation.metrics[name].value
        for name in ("ap", "roc_auc", "brier", "ece", "precision", "recall", "f1", "f2", "mcc", "cost")
    }
    ap = evaluation.metrics["ap"]
    sizes, positives, prevalence = _sizes(run)
    everything = sum(sizes.values())
    found: dict[str, Any] = jsonable(
        {
            "status": "finished",
            "model": run.config.name,
            "version": None,
            "uri": None,
            "selected": run.chosen.winner,
            "forced": run.config.search.only is not None,
            "selected_by": criterion(run.config).on(run.dev).words,
            "candidates": [
                {
                    "name": each.name,
                    "ap": each.ap.value,
                    "ap_low": each.ap.low,
                    "ap_high": each.ap.high,
                    "fit_seconds": each.fit_seconds,
                    "difference": each.difference.to_json(),
                    "significant": each.significant,
                    "reason": each.reason,
                }
                for each in run.chosen.table
            ],
            "metrics": {
                **metrics,
                "ap_low": ap.low,
                "ap_high": ap.high,
                "threshold": run.tuning.thresholds[run.tuning.primary],
            },
            "should_resample": advice.should_resample(
                run.trained, run.dev, confidence=run.config.evaluate.confidence, seed=run.config.train.seed
            ).to_json(),
            "prequential": list(judged.prequential),
            "notes": list(evaluation.notes),
            "intervals": {name: each.to_json() for name, each in evaluation.metrics.items()},
            "operating_points": {name: point.to_json() for name, point in run.tuning.points.items()},
            "champion": judged.champion,
            "champion_metrics": dict(judged.champion_metrics) or None,
            "champion_left_out": judged.champion_left_out,
            "gate": {
                "verdict": judged.decision.verdict,
                "reasons": list(judged.decision.reasons),
                "next": list(judged.decision.next_steps),
            },
            "judged_by": "test" if judged.crossed is None else "cross_fitting",
            "cross_fitting": _crossed(run),
            "rows": {**sizes, "refit": run.model.meta["trained"]["rows"]},
            "positives": positives,
            "prevalence": {**prevalence, "all": sum(positives.values()) / everything},
            "drawn": None
            if run.drawn is None
            else {**run.ingested.card["drawn"], "half_of_negatives": run.drawn.to_json()},
            "transfer": lending.outcome(run),
            "labelled": any(without_labels.labelled(part) for part in (run.dev, run.ingested.test)),
            "regime": run.plan.diagnosis.regime,
            "detection": None if judged.detection is None else dict(judged.detection),
            "data_hash": run.ingested.card["content_hash"],
            "seconds": dict(run.seconds),
            "peak_memory_bytes": peak_memory(),
        }
    )
    return found


def _sizes(run: Run) -> tuple[dict[str, int], dict[str, int], dict[str, float]]:
    """Return rows, positives and prevalence by part: of the table, where the run trained on a sample of it."""
    if "drawn" in run.ingested.card:
        parts = run.ingested.card["parts"].items()
        return tuple({name: part[key] for name, part in parts} for key in ("rows", "positives", "prevalence"))  # type: ignore[return-value]
    rows = {"train": run.ingested.train.learnable(), "validation": run.ingested.validation, "test": run.ingested.test}
    return (
        {name: len(part) for name, part in rows.items()},
        {name: part.positives for name, part in rows.items()},
        {name: part.prevalence for name, part in rows.items()},
    )


def peak_memory() -> int | None:
    """Largest resident set of this process and of its finished children, in bytes;
    None where the system does not say.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage counts the memory of whoever started this process, too
        lines = status.read_text(encoding="ascii").splitlines()
        own = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), own)
    return int(max(own, children)) * (1 if sys.platform == "darwin" else 1024)


def writable(folder: Path) -> None:
    """Raise ConfigError when the folder of the results cannot be written; nothing is made yet."""

    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is no folder"
        raise ConfigError(f"'{folder}' cannot be written: '{there}' {why}. Set --out to another folder")


def write(path: Path, text: str) -> None:
    """Write a file whole: to a temporary name beside it, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_outputs(details: Mapping[str, Any], out: Path, page: str | None = None) -> dict[str, Any]:
    """Write summary.json (last), run.json, trials.json and report.html into ``out``; returns the summary.

    details : with the role, see `with_role` · page : the report, made from the details where it is not given
    """
    summary = {**details["summary"], "report": str((out / "report.html").resolve())}
    write(out / "run.json", dumps({**details, "summary": summary}, indent=1))
    write(out / "trials.json", dumps(details["trials"], indent=1))
    write(out / "report.html", page or report(details))
    write(out / "summary.json", dumps(summary, indent=1))
    return summary


def with_role(details: Mapping[str, Any], role: str | None) -> dict[str, Any]:
    """Return the details of a run with the role that its version was given."""
    summary = {**details["summary"], "role": role, "status": role or details["summary"]["status"]}
    return {**details, "summary": summary}


def report(details: Mapping[str, Any]) -> str:
    """Return the page that a run leaves."""

    return reports.training_report(details)


def logged_report(config: Config, details: Mapping[str, Any]) -> str:
    """Keep the page that a run leaves with its MLflow run, and return it."""
    page = report(details)
    tracking.Tracker.of(config).run(details["summary"]["run_id"]).text("report.html", page)
    return page
