"""One recipe to try: learner, settings, resampling chain, weighting and loss, with the reason it is worth its time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rareclass.config import CandidateSpec, ResampleStep

if TYPE_CHECKING:
    from rareclass.core.transfer import Lender


@dataclass(frozen=True, slots=True)
class Candidate:
    """A recipe. Candidates with the same ``group`` train on the same resampled rows.

    name : unique within a run
    learner : a member of LEARNERS, with its ``params``
    resample : steps in order; empty = rows as they are
    weighting : a member of WEIGHTINGS
    loss : "logistic" or "focal"
    reason : one sentence for people
    transfer : a member of TRANSFERS, how it uses what ``lender`` lends; "none" for the rows of the target alone
    lender : not written with the recipe: whoever reads one again lends again
    """

    name: str
    learner: str
    params: dict[str, Any] = field(default_factory=dict, hash=False)
    resample: tuple[ResampleStep, ...] = field(default=(), hash=False)
    weighting: str = "none"
    loss: str = "logistic"
    reason: str = field(default="", hash=False)
    transfer: str = "none"
    lender: Lender | None = field(default=None, hash=False, compare=False, repr=False)

    @property
    def group(self) -> str:
        """Text that two candidates share exactly when they share a resampling chain; "none" without one."""
        return chain_key(self.resample)

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON that ``from_json`` reads."""
        raw = {key: getattr(self, key) for key in ("name", "learner", "params", "weighting", "loss", "reason")}
        raw |= {"transfer": self.transfer} if self.transfer != "none" else {}
        return {**raw, "resample": [step.model_dump(mode="json") for step in self.resample]}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Candidate:
        """Return the recipe that ``to_json`` wrote."""
        steps = tuple(ResampleStep.model_validate(step) for step in raw.get("resample", ()))
        return Candidate(**{**raw, "params": dict(raw.get("params", {})), "resample": steps})

    @staticmethod
    def from_spec(spec: CandidateSpec, reason: str = "Asked for in the configuration.") -> Candidate:
        """Turn what the configuration asks for into a candidate, named after its parts unless it has a name."""
        made = Candidate("", spec.learner, dict(spec.params), spec.resample, spec.weighting, spec.loss, reason)
        return replace(made, name=spec.name or default_name(made))


def chain_key(chain: Sequence[ResampleStep]) -> str:
    """Return a short text of a chain, like ``random_under(ratio=5)+smote(ratio=2)``; "none" when it changes nothing."""
    steps = [_step_text(step) for step in chain if step.name != "none"]
    return "+".join(steps) or "none"


def _step_text(step: ResampleStep) -> str:
    settings = [f"{key}={value:g}" for key in ("ratio", "rows") if (value := getattr(step, key)) is not None]
    settings += [f"{key}={json.dumps(value, sort_keys=True)}" for key, value in sorted(step.params.items())]
    return f"{step.name}({','.join(settings)})" if settings else step.name


def default_name(candidate: Candidate) -> str:
    """Name a candidate after the parts that are not defaults, like ``xgboost depth=3 sqrt_balanced``."""
    parts = [candidate.learner]
    parts += [f"{key.removeprefix('max_')}={value}" for key, value in sorted(candidate.params.items())]
    parts += [candidate.group] if candidate.group != "none" else []
    parts += [candidate.weighting] if candidate.weighting != "none" else []
    parts += [candidate.loss] if candidate.loss != "logistic" else []
    return " ".join(parts)


def with_unique_names(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Drop candidates that are equal but for name and reason, and number names that are taken."""
    distinct: list[Candidate] = []
    recipes: set[str] = set()
    names: set[str] = set()
    for candidate in candidates:
        recipe = json.dumps({**candidate.to_json(), "name": "", "reason": ""}, sort_keys=True, default=str)
        if recipe in recipes:
            continue
        name, count = candidate.name, 1
        while name in names:
            count += 1
            name = f"{candidate.name} ({count})"
        recipes.add(recipe)
        names.add(name)
        distinct.append(replace(candidate, name=name))
    return tuple(distinct)


def group_by_resampler(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Return the candidates by ``group``, groups and candidates in the order they came."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.group, []).append(candidate)
    return groups
