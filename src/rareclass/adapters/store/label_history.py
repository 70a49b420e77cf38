"""Which of several labels of one row holds: now, and at an earlier time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from rareclass.adapters.store.tables import KEY


def merge(rows: pd.DataFrame, current: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Decide between new and current labels of the same rows: what becomes current, what is history, and the counts."""
    both = rows.merge(current, on=list(KEY), how="left", suffixes=("", "_old"), indicator=True)
    names = list(rows.columns)
    old = both.pop("_merge") == "both"
    whole = dict.fromkeys(("label", "observed_at", "confirmed_at", "received_at"), "int64")
    both = both.fillna({f"{name}_old": -1 for name in whole}).astype({f"{name}_old": "int64" for name in whole})
    same = old & (both["label"] == both["label_old"])
    newer = ~old | (both["observed_at"] > both["confirmed_at_old"])
    tie = old & (both["observed_at"] == both["confirmed_at_old"]) & (both["received_at"] >= both["received_at_old"])
    wins = newer | tie
    past = both[[*KEY, *(f"{name}_old" for name in names if name not in KEY)]].set_axis(
        [*KEY, *(n for n in names if n not in KEY)], axis=1
    )
    confirmed = past[same].assign(  # said again: keep the earliest time it was known and the latest it was confirmed
        observed_at=np.minimum(both["observed_at"], both["observed_at_old"])[same],
        confirmed_at=np.maximum(both["observed_at"], both["confirmed_at_old"])[same],
    )
    keep = pd.concat([both.loc[wins & ~same, names], confirmed], ignore_index=True)
    history = pd.concat([past[old & wins & ~same], both.loc[~wins & ~same, names]], ignore_index=True)
    counts = {"inserted": int((~old).sum()), "corrected": int((old & wins & ~same).sum())}
    counts["unchanged"] = len(rows) - counts["inserted"] - counts["corrected"]
    return keep.astype(whole), history.astype(whole), counts


def as_of(frame: pd.DataFrame, history: pd.DataFrame, until: int) -> pd.DataFrame:
    """Replace the labels by the ones known at ``until``."""
    if history.empty:
        early = frame["label_observed_at"] > until
        frame[["label", "label_observed_at"]] = frame[["label", "label_observed_at"]].astype("float64").mask(early)
        return frame.drop(columns=["confirmed_at", "received_at"])
    current = frame.rename(columns={"label_observed_at": "observed_at"})[
        ["request_id", "row", "label", "observed_at", "confirmed_at", "received_at"]
    ]
    # the current ones last: of two that were observed and received together, they won
    events = pd.concat([history[current.columns], current.dropna(subset=["label"])], ignore_index=True)
    events = events[events["observed_at"] <= until]
    said = events["confirmed_at"].where(events["confirmed_at"] <= until, events["observed_at"])
    order = np.lexsort((events["received_at"].to_numpy("int64"), said.to_numpy("int64")))
    known = events.iloc[order].drop_duplicates(["request_id", "row"], keep="last")
    known = known[["request_id", "row", "label", "observed_at"]].rename(columns={"observed_at": "label_observed_at"})
    bare = frame.drop(columns=["label", "label_observed_at", "confirmed_at", "received_at"])
    return bare.merge(known, on=["request_id", "row"], how="left")
