"""What a release reads of a model version that another release wrote (docs/decisions/0049).

What scores (how columns are read, the learner, the calibrator) is read whole or not at all: a field that this release
does not know may change a score. What describes (the profile, what a run noted) is read as far as it is known. A field
that is missing has its default, which is what releases did before they had it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from rareclass.errors import ModelError


def required(kind: Any) -> list[str]:
    """Return the fields of a dataclass that have no default: every release of a format writes and reads them."""
    return [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]


def check_fields(kind: Any, raw: Mapping[str, Any], part: str) -> None:
    """Raise ModelError where ``raw`` is not what this release writes of a part that scores.

    kind : the dataclass that is made of it · part : its name, for people
    """
    names = {item.name for item in fields(kind)}
    for name in raw:
        if name not in names:
            raise newer(f"{part} has '{name}', which this rareclass does not know and which may change scores")
    check_required(kind, raw, part)


def check_required(kind: Any, raw: Mapping[str, Any], part: str) -> None:
    """Raise ModelError where ``raw`` lacks a field that has no default."""
    for name in required(kind):
        if name not in raw:
            raise ModelError(f"{part} lacks '{name}': an older rareclass, or something else, wrote it. Train again")


def newer(what: str) -> ModelError:
    """The error for a version that a newer release wrote, or nobody of ours."""
    return ModelError(
        f"{what}: a newer rareclass, or something else, wrote the version. "
        "Upgrade rareclass here, or train with this one"
    )
