"""Which rows a person looks at next: chosen from the prediction log, recorded in the store, shown until they have a
label.

What is in a file that a person edits is never read back: an inclusion probability comes from the store alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rareclass.adapters.store import Store
from rareclass.config import Config, format_duration
from rareclass.core.jsonable import jsonable
from rareclass.core.moments import naive
from rareclass.core.review import REASONS
from rareclass.errors import AlreadyDoneError, DataError, InputError
from rareclass.services.actor import me

if TYPE_CHECKING:
    import pandas as pd

    from rareclass.core.dataset import FloatArray, IntArray
    from rareclass.core.review import Design

EPOCH = datetime(1970, 1, 1)
SHOWN = ("request_id", "row", "ts", "version", "score", "decision", "threshold", "reason", "probability")
"""Columns of the list, besides ``label``, which is empty and is what a person fills in."""
MOST = 1000
"""Rows that GET /review answers with at most."""
PLANNED = (5, 10, 20, 30, 50, 100, 200, 400)
"""Budgets of a window that a plan shows, besides the one that is set."""


@dataclass(frozen=True)
class ReviewDraw:
    """What a draw came to.

    start, end : of the window · rows : predictions in it · chosen : of them in the record, by reason
    new : recorded by this draw · open_rows : (n,) those without a label, as they are shown
    """

    start: datetime
    end: datetime
    budget: int
    rows: int
    chosen: dict[str, int]
    new: int
    open_rows: pd.DataFrame


def window_of(config: Config, now: datetime, at: datetime | None = None) -> tuple[datetime, datetime]:
    """Return the window of `review.window` that holds ``at``, by default the newest that is over.

    Windows are counted from 1970, so that every call sees the same ones. Raises InputError for one that is not over:
    rows that are still to come would have no chance.
    """
    length, now = config.review.window, naive(now)
    moment = now - length if at is None else naive(at)
    start = EPOCH + ((moment - EPOCH) // length) * length
    if start + length > now:
        raise InputError(
            f"the window of {moment:%Y-%m-%d %H:%M} lasts until {start + length:%Y-%m-%d %H:%M}: its rows are still "
            "coming. Choose from it once it is over, or set review.window shorter"
        )
    return start, start + length


def window_numbers(config: Config, frame: pd.DataFrame) -> IntArray:
    """Return the number of the window, counted from 1970, that each of (n,) rows lies in."""
    length = np.timedelta64(int(config.review.window.total_seconds() * 1e6), "us")
    since = frame["ts"].to_numpy("datetime64[us]") - np.datetime64(EPOCH, "us")
    return np.asarray(since // length, dtype=np.int64)


def design_of(config: Config, budget: float) -> Design:
    """Return how the configuration spends a budget."""
    from rareclass.core.review import Design

    return Design(budget, config.review.top, config.review.control, ranks=config.data.target is None)


def draw(
    config: Config,
    now: datetime,
    *,
    budget: int | None = None,
    at: datetime | None = None,
    store: Store | None = None,
) -> ReviewDraw:
    """Choose the rows of a window that are to be looked at, and record each with its probability.

    Doing it again chooses the same rows; with a larger budget those and more. Raises DataError when the window has no
    prediction.
    """
    if store is None:
        with Store(config.store.url) as own:
            own.migrate()
            return draw(config, now, budget=budget, at=at, store=own)
    from rareclass.core import review

    size = config.review.budget if budget is None else budget
    start, end = window_of(config, now, at)
    frame = candidates(store, config, start, end)
    design = design_of(config, size)
    chances = review.chances(frame["score"].to_numpy(float), design)
    number = review.permanent_numbers(frame["request_id"], frame["row"], model=config.name, seed=config.train.seed)
    index = chances.chosen(number)
    picked = frame.iloc[index][["request_id", "row", "ts"]].assign(
        probability=chances.total[index], reason=chances.reasons(number)[index], at=naive(now)
    )
    how = {
        "start": start.isoformat(),
        "end": end.isoformat(),
        "rows": len(frame),
        "budget": size,
        "top": design.top,
        "control": design.control,
        "seed": config.train.seed,
        "chosen": len(picked),
    }
    # the ledger first: who asked for which rows is on record before the first of them can be looked at
    key = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:12]
    reason = f"{len(picked)} of {len(frame)} rows from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} to look at"
    with contextlib.suppress(AlreadyDoneError):  # recorded below, should a process have died between the two
        store.append(config.name, f"review:{start:%Y%m%dT%H%M%S}:{key}", "review", me(), reason, how, now)
    new = store.add_reviews(picked, model=config.name)
    recorded = store.reviews(config.name, start, end)
    counts = {str(kind): int(count) for kind, count in recorded["reason"].value_counts().items()}
    return ReviewDraw(start, end, size, len(frame), counts, new, shown(recorded))


def candidates(store: Store, config: Config, start: datetime, end: datetime) -> pd.DataFrame:
    """Return the predictions of a window that may be looked at, all but probes of our own (propensity 0).

    Whether a row has a label plays no part: that labels come is not chance. Raises DataError when there is none.
    """
    frame = store.window(config.name, start, end)
    frame = frame[(frame["score"].notna() & (frame["propensity"] > 0)).to_numpy()].reset_index(drop=True)
    if frame.empty:
        raise DataError(
            f"the store has no prediction of '{config.name}' from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}. "
            "Pass another window with --at, or set review.window longer"
        )
    return frame


def shown(recorded: pd.DataFrame) -> pd.DataFrame:
    """Return the chosen rows that have no label, with an empty column for it."""
    import pandas as pd

    rows = recorded[recorded["label"].isna().to_numpy()]
    return rows[list(SHOWN)].assign(label=pd.array([None] * len(rows), dtype="Int64")).reset_index(drop=True)


def waiting(config: Config, store: Store, now: datetime) -> dict[str, Any]:
    """Return the chosen rows in the monitor's view that have no label, the newest window first."""
    start = naive(now) - (config.monitor.windows + 1) * config.monitor.window
    rows = shown(store.reviews(config.name, start, naive(now) + timedelta(microseconds=1)))
    rows = rows.iloc[np.argsort(-window_numbers(config, rows), kind="stable")]
    return {"model": config.name, "open": len(rows), "rows": _listed(rows.head(MOST))}


def _listed(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows to look at for other programs: times as ISO text, what is missing as None."""
    stamped = rows.assign(ts=rows["ts"].map(lambda moment: f"{moment.isoformat()}Z"))
    records: list[dict[str, Any]] = jsonable(stamped.to_dict("records"))
    return records


def write(drawn: ReviewDraw, out: Path) -> None:
    """Write the rows without a label to a CSV or Parquet file. Raises DataError where that cannot be."""
    from rareclass.adapters import tables

    tables.write_frame(out, drawn.open_rows)


def writable(out: Path) -> None:
    """Raise InputError for a file that is not to be written: one that may hold labels, or of no known kind."""
    if not out.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise InputError(f"'{out}' is neither CSV nor Parquet. Let its name end in .csv, .csv.gz or .parquet")
    if out.exists():
        raise InputError(
            f"'{out}' is there already, and labels that were filled in would be lost. Import it first with `rareclass "
            "labels import` and move it away, or pass another name"
        )


def as_json(drawn: ReviewDraw) -> dict[str, Any]:
    """Return a draw for other programs."""
    said = {"start": drawn.start.isoformat(), "end": drawn.end.isoformat(), "budget": drawn.budget}
    return {**said, "predictions": drawn.rows, "chosen": drawn.chosen, "rows": _listed(drawn.open_rows)}


def said_of_draw(config: Config, drawn: ReviewDraw, out: Path | None) -> list[str]:
    """Return the lines that a person reads of a draw."""
    kinds = ", ".join(f"{drawn.chosen[kind]} {kind}" for kind in REASONS if kind in drawn.chosen)
    total = sum(drawn.chosen.values())
    lines = [
        f"{total} of {drawn.rows:,} predictions from {drawn.start:%Y-%m-%d %H:%M} to {drawn.end:%Y-%m-%d %H:%M} are to "
        f"be looked at ({kinds}; {drawn.new} new), {len(drawn.open_rows)} of them have no label yet"
    ]
    if out is not None:
        lines.append(
            f"  {out}: fill in 'label' (0 or 1), then: rareclass labels import -c CONFIG {out}. The probabilities that "
            "count are those in the store"
        )
        return lines
    return lines + [
        f"  {row.request_id}:{row.row}  {row.ts:%Y-%m-%d %H:%M}  score {row.score:.4f}  decision {row.decision}  "
        f"{row.reason}, probability {row.probability:.4g}"
        for row in drawn.open_rows.itertuples()
    ]


def said_of_plan(config: Config, planned: ReviewPlan) -> list[str]:
    """Return the lines that a person reads of a plan."""
    lines = [
        f"{planned.rows:,} predictions from {planned.start:%Y-%m-%d %H:%M} to {planned.end:%Y-%m-%d %H:%M}; expected "
        f"width of the {config.evaluate.confidence:.0%} interval of average precision over them:"
    ]
    each = format_duration(config.review.window)
    lines += [f"  {budget:>6} rows per {each}: {found:.3f}" for budget, found in planned.widths.items()]
    if planned.width is not None:
        least = min((found for found in planned.widths.values() if math.isfinite(found)), default=math.nan)
        lines.append(
            f"  {planned.needed} rows per {each} for a width of {planned.width:g}"
            if planned.needed is not None
            else f"  no planned budget reaches a width of {planned.width:g}; the narrowest is {least:.3f}"
        )
    return [*lines, "Assumed: scores are calibrated. Where they are not, intervals are wider, and may hold less often"]


# --- planning --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReviewPlan:
    """What to expect of budgets, if the scores are as calibrated as they claim.

    start, end : the rows it was computed on: one window of the monitor · rows : how many
    widths : budget of one review window -> mean width of the interval of average precision over the monitor's window
    needed : budget for the width that was asked for; None where no planned budget reaches it, or none was asked for
    """

    start: datetime
    end: datetime
    rows: int
    widths: dict[int, float]
    width: float | None
    needed: int | None


def plan(
    config: Config,
    now: datetime,
    *,
    budget: int | None = None,
    width: float | None = None,
    store: Store | None = None,
) -> ReviewPlan:
    """Simulate reviews of the newest rows: labels drawn from the scores, rows by the design, intervals as later."""
    if store is None:
        with Store(config.store.url) as own:
            own.migrate()
            return plan(config, now, budget=budget, width=width, store=own)
    from rareclass.core import review

    _, end = window_of(config, now)
    start = end - max(config.monitor.window, config.review.window)
    frame = candidates(store, config, start, end)
    score = frame["score"].to_numpy(float)
    widths: dict[int, float] = {}
    for size in sorted({*PLANNED, config.review.budget if budget is None else budget}):
        total = _probabilities(config, frame, size)
        widths[size] = review.expected_width(
            score,
            total,
            ranks=config.data.target is None,
            confidence=config.evaluate.confidence,
            seed=config.train.seed,
        )
        if total.min() >= 1:  # everything is looked at: no larger budget says more
            break
    return ReviewPlan(start, end, len(frame), widths, width, _needed(widths, width))


def _probabilities(config: Config, frame: pd.DataFrame, budget: int) -> FloatArray:
    """(n,) inclusion probabilities of rows of several review windows, each with the budget."""
    from rareclass.core.review import chances

    number, score, total = window_numbers(config, frame), frame["score"].to_numpy(float), np.zeros(len(frame))
    for window in np.unique(number):
        mine = number == window
        total[mine] = chances(score[mine], design_of(config, budget)).total
    return total


def _needed(widths: dict[int, float], width: float | None) -> int | None:
    """The budget at which the interval is as narrow as asked, along straight lines in the logarithms of both."""
    if width is None:
        return None
    budgets: Sequence[int] = sorted(budget for budget, found in widths.items() if math.isfinite(found))
    before: tuple[int, float] | None = None
    for budget in budgets:
        if widths[budget] <= width:
            if before is None or widths[budget] <= 0:
                return budget
            share = math.log(before[1] / width) / math.log(before[1] / widths[budget])
            return math.ceil(before[0] * math.exp(share * math.log(budget / before[0])))
        before = budget, widths[budget]
    return None
