"""What a related domain lends to a run, and what became of it: `transfer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rareclass.config import Config
from rareclass.errors import ConfigError, DataError, RareclassError, nearest
from rareclass.masking import masked

if TYPE_CHECKING:
    from rareclass.adapters.tables import Ingested
    from rareclass.core.model import RareModel
    from rareclass.core.transfer import Lender
    from rareclass.services.training.steps import Progress, Run


def with_lender(config: Config, ingested: Ingested, progress: Progress) -> Ingested:
    """Read what `transfer` names, before anything is fitted. Raises ConfigError or DataError with one line.

    Rows that equal one of the target's in every feature, or belong to an entity of it, are left out: what judges is not
    learned from elsewhere.
    """
    asked = config.transfer
    if asked.source is None:
        return ingested
    if ingested.schema.roles.target is None:
        card = {"source": _name(config), "left_out": "no row of the target is labelled, and only those can judge it"}
        return replace(ingested, card=ingested.card | {"transfer": card})
    _check_columns(config, ingested)
    progress("ingest", f"a neighbour's labels: {_name(config)}")
    lender, card = _of_model(config, ingested) if asked.model is not None else _of_rows(config, ingested)
    return replace(ingested, lender=lender, card=ingested.card | {"transfer": card})


def _name(config: Config) -> str:
    return masked(str(config.transfer.source))


def _check_columns(config: Config, ingested: Ingested) -> None:
    """Raise ConfigError where `transfer.columns` names what the target has not; a model reads features only."""
    names, data = ingested.schema.names, config.data
    if config.transfer.model is None:
        names = [*names, *(name for name in (data.target, data.time, data.entity) if name is not None)]
    for name in config.transfer.columns:
        if name not in names:
            raise ConfigError(f"transfer.columns: the target has no column '{name}'.{nearest(name, names)}")


def _of_rows(config: Config, ingested: Ingested) -> tuple[Lender, dict[str, Any]]:
    from rareclass.adapters import tables
    from rareclass.core import transfer

    found = tables.lent_rows(config, ingested.schema)
    parts = [ingested.train, ingested.validation, ingested.test, *([] if ingested.rest is None else [ingested.rest])]
    strangers = transfer.of_strangers(found.rows, parts)
    rows = transfer.without_twins(strangers, parts)
    twins, known = len(strangers) - len(rows), len(found.rows) - len(strangers)
    left_out = f"; {twins:,} equal rows of the target and were left out" if twins else ""
    left_out += f"; {known:,} belong to entities of the target and were left out" if known else ""
    note = ""
    if ingested.kind == "time" and rows.time is None:
        note = _flattering(
            config,
            f"transfer.path has no '{config.data.time}', so its rows may be later than those of the target that judge. "
            f"Set transfer.columns: {{{config.data.time}: ITS NAME THERE}}",
        )
    elif ingested.kind == "grouped" and rows.entity is None:
        note = _flattering(
            config,
            f"transfer.path has no '{config.data.entity}', so its rows may belong to those that judge. "
            f"Set transfer.columns: {{{config.data.entity}: ITS NAME THERE}}",
        )
    asked = config.transfer.weight
    weight = None if asked == "auto" else float(asked)
    lender = transfer.of_rows(
        _name(config),
        rows,
        ingested.train.learnable(),
        weight,
        seed=config.train.seed,
        threads=config.compute.processors(),
        left_out=left_out,
    )
    card = {
        "source": lender.name,
        "rows": len(rows),
        "positives": rows.positives,
        "prevalence": rows.prevalence,
        "read": found.read,
        "twins": twins,
        "known_entities": known,
        "unlabelled": found.unlabelled,
        "missing": list(found.missing),
        "apart": lender.apart,
        "note": note,
    }
    return lender, card


def _flattering(config: Config, why: str) -> str:
    """Return what is to be said of figures that may flatter. Raises DataError where that was not accepted."""
    if config.transfer.future == "refuse":
        raise DataError(f"{why}, or transfer.future: accept where figures that may flatter will do")
    return f"figures may flatter: {why.partition('. Set')[0]}"


def _model_future(config: Config, ingested: Ingested, model: RareModel) -> str:
    """Say whether a model may know what happened when the target's held-out rows were new; empty where it cannot."""
    import numpy as np

    if ingested.kind != "time" or ingested.validation.time is None or not len(ingested.validation):
        return ""
    until, first = model.meta.get("trained", {}).get("until"), ingested.validation.time.min()
    if until is not None and np.datetime64(until, "us") < first:
        return ""
    known = "rows whose time nobody knows" if until is None else f"rows until {until[:19]}"
    return _flattering(
        config,
        f"transfer.model was trained on {known}, and the target is judged on rows from {str(first)[:19]} on: "
        "it may know what happened then. Set transfer.model to an older version",
    )


def _of_model(config: Config, ingested: Ingested) -> tuple[Lender, dict[str, Any]]:
    from rareclass.adapters.registry import load_model
    from rareclass.core import transfer

    asked = config.transfer
    assert asked.model is not None
    try:
        model = load_model(asked.model, config.tracking.uri)
    except RareclassError as error:
        raise ConfigError(f"transfer.model: {' '.join(str(error).split())}") from None
    source = transfer.LentModel.of(model.learner, model.schema, ingested.schema, asked.columns)
    width = len(model.schema.features)
    if 2 * source.missing > width:
        raise DataError(
            f"transfer.model {asked.model} reads {width} columns, and the target has {width - source.missing} of them. "
            "Set transfer.columns: {COLUMN: THE MODEL'S NAME OF IT}"
        )
    lost = [name for name, at in zip(model.schema.names, source.columns, strict=True) if at < 0]
    note = _model_future(config, ingested, model)
    lender = transfer.Lender(_name(config), model=source)
    return lender, {"source": lender.name, "missing": lost, "note": note}


def outcome(run: Run) -> dict[str, Any] | None:
    """Return what became of what was lent, for the summary: was it used, by which candidates, and why or why not."""
    card: Mapping[str, Any] | None = run.ingested.card.get("transfer")
    if card is None:
        return None
    if "left_out" in card or run.plan.diagnosis.regime == "none":
        why = card.get("left_out", "too few rows of the rare class are labelled in the target to compare anything")
        return {**card, "used": False, "candidates": [], "reason": f"dropped: {why}"}
    if run.config.search.only is not None:
        return {**card, "used": False, "candidates": [], "reason": "dropped: search.only forces one recipe"}
    lent = [one.candidate.name for one in run.trained if one.candidate.transfer != "none"]
    used = [name for name in lent if run.chosen.weights.get(name, 0.0) > 0]
    why = run.chosen.transfer or "dropped: none of its candidates was finished. Set search.seconds higher"
    return {**card, "used": bool(used), "candidates": lent, "chosen": used, "reason": why}
