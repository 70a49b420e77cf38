"""Which cut-off an operating point has now: decided here and nowhere else.

A version brings cut-offs of its own. A re-threshold leaves others in the ledger, which the version's tags in the
registry follow: ``rareclass.threshold.NAME`` for the point NAME, ``rareclass.threshold`` for the one that decides when
none is named.
Server, shadows, batch scoring, monitor, repairs and replay ask these functions.
"""

from __future__ import annotations

from collections.abc import Mapping

from rareclass.errors import ModelError, unknown

TAG = "rareclass.threshold"
POINT_TAG = "rareclass.operating_point"


def retuned(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the cut-offs in a version's tags by operating point; '' stands for the one that decides.

    Raises ModelError for a tag that is no cut-off.
    """
    cut_offs = {}
    for key, text in tags.items():
        if key != TAG and not key.startswith(f"{TAG}."):
            continue
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise ModelError(f"the version's tag {key} is '{text}'. Set it to a number from 0 to 1, or delete it")
        cut_offs[key[len(TAG) + 1 :]] = value
    return cut_offs


def in_force(own: Mapping[str, float], primary: str, retuned: Mapping[str, float]) -> dict[str, float]:
    """Return the cut-offs in force by operating point: the version's own, overlaid by what was tuned again.

    retuned : by operating point, '' for ``primary``; points that the version does not have are left out
    """
    cut_offs = {name: float(value) for name, value in own.items()}
    cut_offs.update({name: float(value) for name, value in retuned.items() if name in cut_offs})
    if "" in retuned:
        cut_offs[primary] = float(retuned[""])
    return cut_offs


def decides(
    cutoffs: Mapping[str, float], primary: str, *asked: str | None, where: str = "serve.operating_point"
) -> tuple[str, float]:
    """Return the operating point that decides and its cut-off: the first name of ``asked`` that is given, else
    ``primary``.

    cutoffs : those in force;  where : the setting that an error names
    Raises ModelError when the version has no such point.
    """
    name = next((asked_name for asked_name in asked if asked_name), primary)
    if name not in cutoffs:
        raise unknown("operating point", name, cutoffs, where, ModelError)
    return name, float(cutoffs[name])


def beside(cutoffs: Mapping[str, float], primary: str, point: str) -> float:
    """Return the cut-off with which a version in the shadow answers where the champion decided at ``point``."""
    return float(cutoffs.get(point, cutoffs[primary]))
