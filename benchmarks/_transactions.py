"""Card transactions with the columns of the Fraud Detection Handbook, made from its description (chapter 3), not its
code.

Cardholders and terminals lie in a square; a cardholder spends at terminals within reach, with habits of its own. Three
kinds of fraud: amounts above 220; terminals that are tampered with for 28 days; stolen card data, used for 14 days at a
third of the card's purchases at five times their amount. The features follow chapter 3 too: what a card did in the last
1, 7 and 30 days, and how many of a terminal's transactions were fraud in windows that end a label delay before the
transaction.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DAY = 86_400
WINDOWS = (1, 7, 30)
TIME, CARD, TERMINAL, AMOUNT, FRAUD = "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_AMOUNT", "TX_FRAUD"


def transactions(cards: int, days: int, seed: int = 0, start: str = "2018-04-01", delay: int = 7) -> pd.DataFrame:
    """Return about ``2 x cards x days`` transactions in order of time, with features; about 1 in 120 is fraud."""
    rng = np.random.default_rng(seed)
    terminals = 2 * cards
    card, day = _visits(rng, cards, days)
    n = len(card)
    second = day * DAY + np.clip(rng.normal(DAY / 2, 20_000, n), 0, DAY - 1).astype(np.int64)
    mean = rng.uniform(5, 100, cards)[card]
    amount = rng.normal(mean, mean / 2)
    amount = np.round(np.where(amount < 0, rng.uniform(0, 2 * mean), amount), 2)
    order = np.argsort(second, kind="stable")
    card, day, second, amount = card[order], day[order], second[order], amount[order]
    terminal = _near(rng, cards, terminals, radius=5 * np.sqrt(10_000 / terminals))(card)
    fraud = amount > 220
    fraud |= _struck(rng, terminals, days, terminals / 5_000, 28)[terminal, day]
    stolen = _struck(rng, cards, days, 3 * cards / 5_000, 14)[card, day] & (rng.random(n) < 1 / 3)
    amount = np.where(stolen, 5 * amount, amount)
    fraud |= stolen
    frame = pd.DataFrame(
        {
            TIME: pd.Timestamp(start) + pd.to_timedelta(second, unit="s"),
            CARD: card,
            TERMINAL: terminal,
            AMOUNT: amount,
            FRAUD: fraud.astype(int),
        }
    )
    return features(frame, delay)


def features(frame: pd.DataFrame, delay: int = 7) -> pd.DataFrame:
    """Return transactions in order of time with the handbook's features added."""
    when = frame[TIME].to_numpy("datetime64[s]").astype(np.int64)
    added = {
        "TX_DURING_WEEKEND": (frame[TIME].dt.weekday >= 5).astype(int),
        "TX_DURING_NIGHT": (frame[TIME].dt.hour <= 6).astype(int),
    }
    card, terminal = frame[CARD].to_numpy(), frame[TERMINAL].to_numpy()
    ones = np.ones(len(frame))
    for days in WINDOWS:
        count, spent = _window(card, when, days, 0, np.column_stack([ones, frame[AMOUNT]])).T
        added[f"{CARD}_NB_TX_{days}DAY_WINDOW"] = count
        added[f"{CARD}_AVG_AMOUNT_{days}DAY_WINDOW"] = spent / count
        known, bad = _window(terminal, when, days, delay, np.column_stack([ones, frame[FRAUD]])).T
        added[f"{TERMINAL}_NB_TX_{days}DAY_WINDOW"] = known
        added[f"{TERMINAL}_RISK_{days}DAY_WINDOW"] = np.divide(bad, known, out=np.zeros_like(bad), where=known > 0)
    return frame.assign(**added)


def _visits(rng: np.random.Generator, cards: int, days: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rate = rng.uniform(0, 4, cards)
    counts = rng.poisson(np.broadcast_to(rate[:, None], (cards, days)))
    card, day = (np.repeat(each.ravel(), counts.ravel()) for each in np.indices((cards, days)))
    return card, day


def _near(
    rng: np.random.Generator, cards: int, terminals: int, radius: float
) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """Return card -> a random terminal within reach; the nearest one where none is."""
    from scipy.spatial import cKDTree

    homes, shops = rng.uniform(0, 100, (cards, 2)), rng.uniform(0, 100, (terminals, 2))
    tree = cKDTree(shops)
    reach = tree.query_ball_point(homes, radius)
    nearest = tree.query(homes)[1]
    within = [np.asarray(found if found else [one]) for found, one in zip(reach, nearest, strict=True)]
    size, flat = np.array([len(each) for each in within]), np.concatenate(within)
    first = np.cumsum(size) - size
    return lambda card: flat[first[card] + (rng.random(len(card)) * size[card]).astype(np.int64)]


def _struck(rng: np.random.Generator, things: int, days: int, a_day: float, length: int) -> NDArray[np.bool_]:
    """Return (things, days): who is compromised when."""
    struck = np.zeros((things, days), dtype=bool)
    for day in range(days):
        struck[rng.choice(things, rng.poisson(a_day), replace=False), day : day + length] = True
    return struck


def _window(
    group: NDArray[np.int64], when: NDArray[np.int64], days: int, delay: int, values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (n, k) sums of ``values`` over the rows of the same group in (t - delay - days, t - delay].

    One sort by group and time, then differences of cumulative sums: exact, and n log n whatever the windows hold.
    """
    span = int(when.max() - when.min()) + (delay + days + 1) * DAY
    key = group * (2 * span) + (when - when.min())
    order = np.argsort(key, kind="stable")
    total = np.vstack([np.zeros(values.shape[1]), np.cumsum(values[order], axis=0)])
    last = np.searchsorted(key[order], key - delay * DAY, side="right")
    first = np.searchsorted(key[order], key - (delay + days) * DAY, side="right")
    begin = np.searchsorted(key[order], group * (2 * span), side="left")
    return np.asarray(total[np.maximum(last, begin)] - total[np.maximum(first, begin)])
