"""The prequential benchmark: its transactions, and a protocol that sees nothing it could not have known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import _transactions, prequential


@pytest.fixture(scope="module")
def made() -> pd.DataFrame:
    return _transactions.transactions(120, 50, seed=3)


def test_windows_hold_what_they_say(made: pd.DataFrame) -> None:
    day = pd.Timedelta(days=1)
    for _, row in made.sample(40, random_state=0).iterrows():
        now = row["TX_DATETIME"]
        card = made[(made["CUSTOMER_ID"] == row["CUSTOMER_ID"]) & (made["TX_DATETIME"] <= now)]
        card = card[card["TX_DATETIME"] > now - 7 * day]
        shop = made[(made["TERMINAL_ID"] == row["TERMINAL_ID"]) & (made["TX_DATETIME"] <= now - 7 * day)]
        shop = shop[shop["TX_DATETIME"] > now - 37 * day]
        assert row["CUSTOMER_ID_NB_TX_7DAY_WINDOW"] == len(card)
        assert row["CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW"] == pytest.approx(card["TX_AMOUNT"].mean())
        assert row["TERMINAL_ID_NB_TX_30DAY_WINDOW"] == len(shop)
        assert row["TERMINAL_ID_RISK_30DAY_WINDOW"] == pytest.approx(shop["TX_FRAUD"].mean() if len(shop) else 0)


def test_a_fold_waits_for_labels_and_leaves_out_cards_that_are_known(made: pd.DataFrame) -> None:
    data = prequential.of(made, "TX_DATETIME", "CUSTOMER_ID", "TX_FRAUD", ["TERMINAL_ID"])
    first, second = prequential.folds(data, train=14, delay=7, test=7, count=2)
    assert second.start == first.start + 7
    assert data.day[second.test].max() == data.day.max()
    for fold in (first, second):
        assert set(data.day[fold.train]) == set(range(fold.start, fold.start + 14))
        assert data.day[fold.test].min() == fold.start + 21
        for day in range(fold.start + 21, fold.start + 28):
            judged = fold.test[data.day[fold.test] == day]
            told = (data.rows.y == 1) & (data.day >= fold.start) & (data.day < day - 7)
            assert not np.isin(data.card[judged], data.card[told]).any()
            everyone = np.flatnonzero(data.day == day)
            left_out = np.setdiff1d(everyone, judged)
            assert np.isin(data.card[left_out], data.card[told]).all()
        known = prequential.ingested(data, fold)
        assert not set(known.train.entity) & set(known.validation.entity)


def test_too_few_days_say_what_to_set(made: pd.DataFrame) -> None:
    data = prequential.of(made, "TX_DATETIME", "CUSTOMER_ID", "TX_FRAUD", [])
    with pytest.raises(SystemExit, match="Set --folds or --train-days"):
        list(prequential.folds(data, train=28, delay=7, test=7, count=6))
