"""How rare, how hard, what regime, and what a run would try: nothing is trained, nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rareclass.config import Config, parse, with_overrides
from rareclass.core.jsonable import jsonable
from rareclass.errors import DataError
from rareclass.services.training import steps

if TYPE_CHECKING:
    from rareclass.core.candidates import Candidate
    from rareclass.core.dataset import Rows
    from rareclass.core.diagnosis import Diagnosis
    from rareclass.core.estimate import Estimate
    from rareclass.core.splitting import Fold

_PERIODS, _BARS = 8, "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Report:
    """The diagnosis of all rows, the plan, and what the checks of the data had to say."""

    diagnosis: Diagnosis
    plan: Sequence[Candidate]
    warnings: Sequence[str]

    def lines(self) -> list[str]:
        """The report for a terminal."""
        facts = self.diagnosis.lines()
        periods = self.diagnosis.by_period
        if len(periods) > _PERIODS:
            shown = [line for line in facts if line.partition(":")[0] not in periods]
            facts = [*shown, _course(periods)]
        tried = [f"  {number}. {each.name}: {each.reason}" for number, each in enumerate(self.plan)]
        return [*facts, *(f"warning: {each}" for each in self.warnings), "would be tried:", *tried]

    def to_json(self) -> dict[str, Any]:
        """Return diagnosis, plan and warnings, JSON-ready."""
        return {**jsonable(self, without={"plan"}), "plan": [candidate.to_json() for candidate in self.plan]}


def _course(periods: Mapping[str, Estimate]) -> str:
    """The prevalence of many periods as one line of bars."""
    values = [each.value for each in periods.values()]
    top = max(values) or 1.0
    bars = "".join(_BARS[min(len(_BARS) - 1, int(value / top * len(_BARS)))] for value in values)
    first, *_, last = periods
    return f"prevalence by period, {first} to {last}: {bars} ({min(values):.2%} to {max(values):.2%})"


def settings_for(
    data: str,
    *,
    target: str,
    time: str | None = None,
    entity: str | None = None,
    positive: str | None = None,
    drop: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Config:
    """Make a configuration from what the command line says."""
    section = {"path": data, "target": target, "time": time, "entity": entity, "positive": positive, "drop": list(drop)}
    raw: dict[str, Any] = {"name": "diagnosis", "data": {key: value for key, value in section.items() if value}}
    return parse(with_overrides(raw, overrides))


def diagnose(config: Config, *, progress: Callable[[str, str], None] = lambda step, message: None) -> Report:
    """Read the source once, say how rare the rare class is, and what a run would try on its split. Raises DataError.

    Where the rows cannot be split as `run` has to, that is a warning, and the plan is for rows that can.
    """
    import numpy as np

    from rareclass.adapters import tables
    from rareclass.core import diagnosis
    from rareclass.core.splitting import Fold

    progress("ingest", f"reading {config.data.path}")
    known, warnings = tables.survey(config, progress=lambda message: progress("ingest", message))
    progress("diagnose", f"{len(known):,} rows")
    said = [each.message for each in warnings]
    try:
        rows, folds = _development(config, known)
    except DataError as error:
        everything = np.arange(len(known))
        rows, folds = known, (Fold(everything, everything),)
        said.append(f"a run would stop: {error}")
    taught = steps.diagnosed(config, rows)
    found = taught if rows is known else steps.diagnosed(config, known, taught)
    planned, plan = steps.planned(config, rows, folds, taught)
    return Report(diagnosis.in_regime(found, planned.regime), plan, said)


def _development(config: Config, known: Rows) -> tuple[Rows, Sequence[Fold]]:
    """The rows that a run would compare candidates on, and its folds. Raises DataError where rows cannot be split."""
    from rareclass.core import splitting
    from rareclass.core.hashing import content_groups

    parts = splitting.split(
        y=known.y,
        row_id=content_groups(known.x),
        time=known.time,
        entity=known.entity,
        config=config.split,
        label_delay=config.data.label_delay,
        seed=config.train.seed,
    )
    return steps.development(config, known.take(parts.train), known.take(parts.validation))
