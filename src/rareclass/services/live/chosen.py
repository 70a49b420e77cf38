"""Predictions with the labels that count: all of them, or those of rows that were chosen to be looked at.

Where people look at chosen rows, a label of a row that nobody chose came for a reason of its own, and taken along it
would bias every figure: it is left out. A chosen row counts for as many as its probability says, which is read from the
store's own record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rareclass.config import Config

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.adapters.store import Store


def window(config: Config, store: Store, start: Any, end: Any, **options: Any) -> pd.DataFrame:
    """Return ``Store.window`` with the labels that count; see ``only_chosen``."""
    return only_chosen(config, store.window(config.name, start, end, reviews=by_review(config), **options))


def shadows(config: Config, store: Store, start: Any, end: Any) -> pd.DataFrame:
    """Return ``Store.shadows`` with the labels that count; see ``only_chosen``."""
    return only_chosen(config, store.shadows(config.name, start, end, reviews=by_review(config)))


def by_review(config: Config) -> bool:
    """Return whether labels come from people who look at chosen rows."""
    return config.review.labels == "chosen"


def only_chosen(config: Config, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows as they are, or with no label where nobody chose them and the inclusion probability in
    ``propensity`` where somebody did.
    """
    if not by_review(config):
        return frame
    asked = frame["review"].notna()
    return frame.assign(
        label=frame["label"].where(asked),
        label_observed_at=frame["label_observed_at"].where(asked),
        propensity=frame["propensity"] * frame["review"].where(asked, 1.0),
    )
