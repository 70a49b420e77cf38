"""The store on a real SQLite file and a real PostgreSQL."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rareclass.adapters import migrations
from rareclass.adapters.store import LabelReport, Store, Tally
from rareclass.adapters.store.engines import sqlalchemy_url
from rareclass.adapters.store.tables import HEAD, METADATA
from rareclass.errors import AlreadyDoneError, StoreError, StoreRefusedError

if TYPE_CHECKING:
    from conftest import PostgresServer

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    with Store(store_url) as opened:
        opened.migrate()
        yield opened


def predictions(
    n: int = 6, start: int = 0, ts: datetime = T0, step: timedelta = timedelta(hours=6), **more: object
) -> pd.DataFrame:
    """n rows, request ids r0, r1, ..., six hours apart."""
    index = np.arange(start, start + n)
    frame = pd.DataFrame(
        {
            "request_id": [f"r{i}" for i in index],
            "row": 0,
            "ts": [ts + step * int(i) for i in index],
            "model": "fraud",
            "version": "1",
            "operating_point": "default",
            "threshold": 0.5,
            "score": index / 100,
            "decision": (index % 2),
            "weight": 1.0,
            "propensity": 1.0,
            "entity": [f"card{i % 2}" for i in index],
            "features": [json.dumps({"a": int(i), "b": 'x"y'}) for i in index],
        }
    )
    return frame.assign(**more)


def labels(
    ids: list[str], values: list[int], observed: datetime, received: datetime | None = None, source: str = "bank"
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "request_id": ids,
            "row": 0,
            "label": values,
            "observed_at": observed,
            "source": source,
            "received_at": received or observed,
            "model": "fraud",
        }
    )


ALWAYS = (T0 - timedelta(days=30), T0 + timedelta(days=300))


def test_predictions_come_back_as_they_were_stored(store: Store) -> None:
    assert store.add_predictions(predictions()) == 6
    window = store.window("fraud", *ALWAYS, features=True)
    assert window["request_id"].tolist() == [f"r{i}" for i in range(6)]
    assert window["score"].tolist() == [i / 100 for i in range(6)]
    assert window["ts"].dtype == "datetime64[us]"
    assert window["ts"].iloc[1] == pd.Timestamp("2026-03-01 18:00")
    assert window["entity"].tolist() == ["card0", "card1"] * 3
    assert json.loads(window["features"].iloc[3]) == {"a": 3, "b": 'x"y'}
    assert window["label"].isna().all()
    assert window["label_observed_at"].isna().all()


def test_a_prediction_sent_again_is_stored_once_also_on_another_day(store: Store) -> None:
    store.add_predictions(predictions())
    assert store.add_predictions(predictions()) == 0
    assert store.add_predictions(predictions(ts=T0 + timedelta(days=40), score=0.9)) == 0
    assert store.add_predictions(predictions(8)) == 2
    window = store.window("fraud", *ALWAYS)
    assert len(window) == 8
    assert window["score"].max() < 0.1


def test_rows_twice_in_one_batch_are_stored_once(store: Store) -> None:
    twice = pd.concat([predictions(4), predictions(4, score=0.9)])
    assert store.add_predictions(twice) == 4
    assert store.window("fraud", *ALWAYS)["score"].tolist() == [0.0, 0.01, 0.02, 0.03]


def test_an_id_that_comes_again_with_other_features_is_counted_and_a_request_sent_again_is_not(store: Store) -> None:
    rows = predictions().assign(features='{"a": 1.0}')
    store.add_predictions(rows)
    assert store.reused(rows.assign(features='{"a":1}', version="2", score=0.9)) == 0
    assert store.reused(rows.assign(features=['{"a": 2}', *rows["features"][1:]])) == 1
    assert store.reused(rows.assign(features=None, score=rows["score"] + 0.1)) == len(rows)


def test_models_do_not_see_each_other(store: Store) -> None:
    store.add_predictions(predictions())
    assert store.add_predictions(predictions(3, model="churn")) == 3
    store.add_labels(labels(["r0"], [1], T0).assign(model="churn"))
    assert store.window("fraud", *ALWAYS)["label"].isna().all()
    assert store.window("churn", *ALWAYS)["label"].tolist()[0] == 1
    assert store.forget("churn", request_id="r0").total == 2
    assert store.counts("fraud")["predictions"] == 6


def test_a_window_includes_its_start_and_not_its_end(store: Store) -> None:
    store.add_predictions(predictions())
    window = store.window("fraud", T0 + timedelta(hours=6), T0 + timedelta(hours=18))
    assert window["request_id"].tolist() == ["r1", "r2"]
    assert store.window("fraud", *ALWAYS, version="2").empty
    assert "features" not in window.columns


def test_an_empty_window_has_the_same_columns_and_types(store: Store) -> None:
    store.add_predictions(predictions())
    full, empty = store.window("fraud", *ALWAYS), store.window("nobody", *ALWAYS)
    assert empty.columns.tolist() == full.columns.tolist()
    assert str(empty["ts"].dtype) == str(full["ts"].dtype) == "datetime64[us]"
    assert empty["label"].dtype == full["label"].dtype == np.float64
    assert store.shadows("fraud", *ALWAYS).empty


def test_awkward_text_survives_and_what_no_database_holds_is_replaced(store: Store) -> None:
    ids = ['a"b,c', "line\nbreak", "tab\t'quote'", "", "Ωmega 😀", "nul\x00", "half\ud800"]
    frame = predictions(len(ids)).assign(request_id=ids, entity=[None, "", "x\\y", "\\N", "NULL", "nul\x00", "%s"])
    assert store.add_predictions(frame) == len(ids)
    assert store.add_predictions(frame) == 0
    window = store.window("fraud", *ALWAYS)
    assert window["request_id"].tolist() == [*ids[:5], "nul\N{REPLACEMENT CHARACTER}", "half?"]
    assert window["entity"].tolist()[:5] == [None, "", "x\\y", "\\N", "NULL"]


def test_missing_thresholds_and_weights_keep_their_values(store: Store) -> None:
    store.add_predictions(
        predictions(3).assign(threshold=[None, 0.25, None], weight=[1, 10, 1], propensity=[1, 0.1, 0])
    )
    window = store.window("fraud", *ALWAYS)
    np.testing.assert_array_equal(window["threshold"], [np.nan, 0.25, np.nan])
    assert window["weight"].tolist() == [1, 10, 1]
    assert window["propensity"].tolist() == [1, 0.1, 0]


def test_times_may_be_aware_naive_numpy_text_or_microseconds(store: Store) -> None:
    noon = datetime(2026, 3, 1, 12)
    forms = [
        [noon.replace(tzinfo=UTC)],
        [noon],
        np.array(["2026-03-01T12:00:00"], dtype="datetime64[us]"),
        ["2026-03-01T13:00:00+01:00"],
        np.array([int(noon.replace(tzinfo=UTC).timestamp() * 1_000_000)]),
    ]
    for position, ts in enumerate(forms):
        store.add_predictions(predictions(1).assign(request_id=f"t{position}", ts=ts))
    assert store.window("fraud", *ALWAYS)["ts"].tolist() == [pd.Timestamp(noon)] * 5


def test_a_missing_column_is_named_with_the_nearest(store: Store) -> None:
    with pytest.raises(StoreError, match=r"column 'score' is missing.*Did you mean 'scores'"):
        store.add_predictions(predictions().rename(columns={"score": "scores"}))
    with pytest.raises(StoreError, match="column 'score' has 1 missing values"):
        store.add_predictions(predictions(2).assign(score=[0.1, np.nan]))
    with pytest.raises(StoreError, match="'ts' holds something that is not a time"):
        store.add_predictions(predictions(1).assign(ts="yesterday"))
    with pytest.raises(StoreError, match="'ts' has times outside 1970 to 2261"):
        store.add_predictions(predictions(1).assign(ts=10**18))


def test_late_labels_join_and_early_ones_wait(store: Store) -> None:
    late = T0 + timedelta(days=9)
    assert store.add_labels(labels(["r1", "r7"], [1, 0], late)) == LabelReport(inserted=2, unknown=2)
    store.add_predictions(predictions(8))
    assert store.add_labels(labels(["r0", "nobody"], [1, 1], late)) == LabelReport(inserted=2, unknown=1)
    window = store.window("fraud", *ALWAYS).set_index("request_id")
    np.testing.assert_array_equal(window["label"], [1, 1, np.nan, np.nan, np.nan, np.nan, np.nan, 0])
    assert window.loc["r1", "label_observed_at"] == pd.Timestamp(late.replace(tzinfo=None))


def test_positives_are_counted_after_a_moment_up_to_another_and_as_far_as_they_were_known(store: Store) -> None:
    store.add_predictions(predictions(8))
    early, late = T0 + timedelta(days=2), T0 + timedelta(days=9)
    store.add_labels(labels(["r0", "r1", "r2", "r7"], [1, 1, 0, 1], early))
    store.add_labels(labels(["r3"], [1], late))
    store.add_predictions(predictions(8).assign(model="other"))
    end = T0 + timedelta(hours=6 * 7)
    assert store.positives("fraud", T0 - timedelta(1), end, labels_until=late) == 4
    assert store.positives("fraud", T0, end, labels_until=late) == 3
    assert store.positives("fraud", T0, end - timedelta(hours=1), labels_until=late) == 2
    assert store.positives("fraud", T0, end, labels_until=early) == 2
    assert store.positives("other", T0, end, labels_until=late) == 0
    picked = predictions(8)[["request_id", "row", "ts"]].iloc[[1, 2, 4]]
    store.add_reviews(picked.assign(probability=0.5, reason="uncertain", at=late), model="fraud")
    assert store.positives("fraud", T0, end, labels_until=late, reviews=True) == 1


def test_labels_sent_twice_change_nothing(store: Store) -> None:
    store.add_predictions(predictions())
    some = labels(["r0", "r1"], [1, 0], T0 + timedelta(days=1))
    store.add_labels(some)
    before = store.window("fraud", *ALWAYS)
    assert store.add_labels(some) == LabelReport(unchanged=2)
    assert store.add_labels(labels(["r0", "r1"], [1, 0], T0 + timedelta(days=5))) == LabelReport(unchanged=2)
    pd.testing.assert_frame_equal(store.window("fraud", *ALWAYS), before)
    assert store.counts("fraud")["label_history"] == 0


def test_a_correction_wins_and_the_old_label_is_history(store: Store) -> None:
    store.add_predictions(predictions(2))
    first, second = T0 + timedelta(days=1), T0 + timedelta(days=3)
    store.add_labels(labels(["r0"], [1], first))
    assert store.add_labels(labels(["r0"], [0], second)) == LabelReport(corrected=1)
    assert store.add_labels(labels(["r0"], [1], first)) == LabelReport(unchanged=1)
    assert store.window("fraud", *ALWAYS)["label"].tolist()[0] == 0
    assert store.counts("fraud")["label_history"] == 1
    for until, expected in ((T0, np.nan), (first, 1), (second - timedelta(seconds=1), 1), (second, 0)):
        known = store.window("fraud", *ALWAYS, labels_until=until)
        np.testing.assert_array_equal(known["label"], [expected, np.nan])
    assert known.columns.tolist() == store.window("fraud", *ALWAYS).columns.tolist()


def test_a_label_observed_earlier_but_received_later_does_not_win(store: Store) -> None:
    store.add_predictions(predictions(1))
    store.add_labels(labels(["r0"], [1], T0 + timedelta(days=1)))
    store.add_labels(labels(["r0"], [1], T0 + timedelta(days=5)))  # said again: confirmed
    report = store.add_labels(labels(["r0"], [0], T0 + timedelta(days=3), received=T0 + timedelta(days=8)))
    assert report == LabelReport(unchanged=1)
    assert store.window("fraud", *ALWAYS)["label"].tolist() == [1]
    assert store.window("fraud", *ALWAYS, labels_until=T0 + timedelta(days=4))["label"].tolist() == [0]
    assert store.window("fraud", *ALWAYS, labels_until=T0 + timedelta(days=6))["label"].tolist() == [1]


def test_several_labels_of_one_row_in_one_batch_are_taken_in_their_order(store: Store) -> None:
    store.add_predictions(predictions(1))
    days = [labels(["r0"], [value], T0 + timedelta(days=day)) for value, day in ((0, 4), (1, 2), (0, 1))]
    assert store.add_labels(pd.concat(days)) == LabelReport(inserted=1, corrected=2)
    assert store.window("fraud", *ALWAYS)["label"].tolist() == [0]
    assert store.window("fraud", *ALWAYS, labels_until=T0 + timedelta(days=3))["label"].tolist() == [1]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 5)), min_size=1, max_size=12))
def test_labels_in_any_order_and_in_any_batches_end_the_same(store: Store, events: list[tuple[int, int, int]]) -> None:
    """Brute force: the label last observed wins; ties go to the one received last."""
    model = f"m{uuid4()}"
    store.add_predictions(predictions(3, model=model))
    said: dict[tuple[int, int], int] = {}
    for second, (request, value, day) in enumerate(events):
        said[request, day] = value
        received = T0 + timedelta(days=10, seconds=second)
        frame = labels([f"r{request}"], [value], T0 + timedelta(days=day), received=received)
        store.add_labels(frame.assign(model=model))
    known = store.window(model, *ALWAYS)["label"]
    pd.testing.assert_series_equal(store.window(model, *ALWAYS, labels_until=T0 + timedelta(days=6))["label"], known)
    for request in range(3):
        days = [day for one, day in said if one == request]
        np.testing.assert_equal(known[request], said[request, max(days)] if days else np.nan)


def test_labels_must_be_0_or_1_and_name_their_model(store: Store) -> None:
    with pytest.raises(StoreError, match="labels must be 0 or 1; got 2"):
        store.add_labels(labels(["r0"], [2], T0))
    with pytest.raises(StoreError, match="column 'model' is missing"):
        store.add_labels(labels(["r0"], [1], T0).drop(columns="model"))
    assert store.add_labels(labels(["r0"], [1], T0).drop(columns="model"), model="fraud").inserted == 1


def shadow(n: int = 6, version: str = "2", **more: object) -> pd.DataFrame:
    frame = predictions(n)[["request_id", "row", "ts", "model", "decision"]]
    return frame.assign(version=version, role="challenger", score=0.5, error=None, **more)


def test_shadow_scores_are_paired_with_what_the_champion_said(store: Store) -> None:
    store.add_predictions(predictions())
    store.add_labels(labels(["r2"], [1], T0))
    assert store.add_shadow_scores(shadow()) == 6
    assert store.add_shadow_scores(shadow()) == 0
    assert store.add_shadow_scores(shadow(2, "3").assign(score=None, decision=None, error="lacks a column")) == 2
    pairs = store.shadows("fraud", *ALWAYS, "2")
    assert pairs["champion_score"].tolist() == [i / 100 for i in range(6)]
    assert pairs["champion_version"].unique().tolist() == ["1"]
    np.testing.assert_array_equal(pairs["label"], [np.nan, np.nan, 1, np.nan, np.nan, np.nan])
    failed = store.shadows("fraud", *ALWAYS, "3")
    assert failed["score"].isna().all()
    assert failed["error"].tolist() == ["lacks a column"] * 2
    assert len(store.shadows("fraud", *ALWAYS, role="challenger")) == 8
    assert store.shadows("fraud", *ALWAYS, role="previous").empty


def chosen(ids: list[str], probability: float, reason: str = "uncertain", at: datetime = T0) -> pd.DataFrame:
    when = [T0 + timedelta(hours=6) * int(name[1:]) for name in ids]
    return pd.DataFrame({"request_id": ids, "ts": when, "probability": probability, "reason": reason, "at": at})


def test_a_row_that_two_draws_chose_keeps_the_larger_probability_whichever_came_first(store: Store) -> None:
    store.add_predictions(predictions())
    assert store.add_reviews(chosen(["r1", "r2"], 0.25), model="fraud") == 2
    assert store.add_reviews(chosen(["r2", "r4"], 0.5, "control", T0 + timedelta(days=1)), model="fraud") == 1
    assert store.add_reviews(chosen(["r1", "r2", "r4"], 0.1), model="fraud") == 0
    found = store.reviews("fraud", *ALWAYS)
    assert found["request_id"].tolist() == ["r4", "r2", "r1"]
    assert found["probability"].tolist() == [0.5, 0.5, 0.25]
    assert found["reason"].tolist() == ["control", "control", "uncertain"]
    assert found["at"].tolist() == [pd.Timestamp("2026-03-02 12:00"), *[pd.Timestamp("2026-03-01 12:00")] * 2]
    assert found["score"].tolist() == [0.04, 0.02, 0.01]
    window = store.window("fraud", *ALWAYS, reviews=True)
    assert window["review"].fillna(0).tolist() == [0, 0.25, 0.5, 0, 0.5, 0]
    assert window["review_reason"].isna().tolist() == [True, False, False, True, False, True]
    assert "review" not in store.window("fraud", *ALWAYS)
    assert store.add_reviews(chosen([], 1.0), model="fraud") == 0


@pytest.mark.parametrize("probability", [0.0, 1.5])
def test_what_is_no_probability_is_not_recorded(store: Store, probability: float) -> None:
    with pytest.raises(StoreRefusedError):
        store.add_reviews(chosen(["r1"], probability), model="fraud")
    assert store.reviews("fraud", *ALWAYS).empty


def test_what_was_chosen_goes_with_its_prediction(store: Store) -> None:
    store.add_predictions(predictions())
    store.add_shadow_scores(shadow())
    store.add_reviews(chosen([f"r{i}" for i in range(6)], 0.5), model="fraud")
    assert store.shadows("fraud", *ALWAYS, reviews=True)["review"].tolist() == [0.5] * 6
    due = T0 + timedelta(days=9)
    assert store.forget("fraud", request_id="r1").rows["reviews"] == 1
    assert store.prune("fraud", T0 + timedelta(hours=13))["reviews"] == 2
    assert store.reviews("fraud", *ALWAYS)["request_id"].tolist() == ["r5", "r4", "r3"]
    store.add_predictions(predictions(3, start=6))
    store.add_labels(labels(["r4"], [1], T0))
    assert (store.tally("fraud", *ALWAYS, due_before=due).due, store.tally("fraud", *ALWAYS, due_before=due).owed) == (
        6,
        5,
    )
    asked = store.tally("fraud", *ALWAYS, due_before=due, reviews=True)
    assert (asked.rows, asked.due, asked.owed, asked.owed_since) == (6, 3, 2, T0 + timedelta(hours=18))


def test_forgetting_a_request_erases_it_everywhere(store: Store) -> None:
    store.add_predictions(predictions())
    store.add_shadow_scores(shadow())
    store.add_labels(labels(["r1"], [1], T0))
    store.add_labels(labels(["r1"], [0], T0 + timedelta(days=1)))
    assert store.forget("fraud", request_id="r1").total == 4
    assert store.counts("fraud") == store.counts("fraud") | {
        "predictions": 5,
        "shadows": 5,
        "labels": 0,
        "label_history": 0,
    }
    assert store.forget("fraud", request_id="r1").total == 0


def test_forgetting_an_entity_holds_for_rows_on_their_way_but_not_for_its_future(store: Store) -> None:
    store.add_predictions(predictions(4))
    store.add_shadow_scores(shadow(4))
    assert store.forget("fraud", entity="card1", at=T0 + timedelta(days=10)).total == 4
    assert store.add_predictions(predictions(6)) == 1  # only r4 of card0 is new; r1, r3, r5 of card1 are refused
    assert store.window("fraud", *ALWAYS)["entity"].unique().tolist() == ["card0"]
    assert store.add_predictions(predictions(1, start=1, ts=T0 + timedelta(days=20))) == 1
    with pytest.raises(StoreError, match="exactly one of request_id and entity"):
        store.forget("fraud")


def test_pruning_keeps_what_is_young_and_the_ledger(store: Store) -> None:
    store.add_predictions(predictions(8))
    store.add_predictions(predictions(2, model="churn"))
    store.add_shadow_scores(shadow(8))
    store.add_labels(labels([f"r{i}" for i in range(8)], [0] * 8, T0 + timedelta(days=2)))
    store.add_labels(labels(["orphan"], [1], T0 - timedelta(days=9)))
    store.append("fraud", "promote:1", "promotion", "me", "because", {}, T0)
    assert store.prune("fraud", T0 + timedelta(days=1))["predictions"] == 4
    counts = store.counts("fraud")
    assert (counts["predictions"], counts["shadows"], counts["labels"]) == (4, 4, 4)
    assert counts["first"] == T0 + timedelta(days=1)
    assert store.counts("churn")["predictions"] == 2
    assert len(store.entries("fraud")) == 1
    assert set(store.prune("fraud", T0 + timedelta(days=1)).values()) == {0}
    assert store.add_predictions(predictions(8)) == 4  # old ones may come again, after their keys are gone


def test_the_ledger_refuses_to_do_a_thing_twice(store: Store) -> None:
    first = store.append("fraud", "promote:3", "promotion", "alice", "won", {"to": 3, "ap": 0.4}, T0)
    with pytest.raises(AlreadyDoneError, match="'promote:3' of model 'fraud'"):
        store.append("fraud", "promote:3", "promotion", "bob", "won", {"to": 3}, T0)
    store.append("churn", "promote:3", "promotion", "bob", "won", {}, T0)
    store.append("fraud", "retrain:1", "retrain", "governor", "drift", {}, T0 + timedelta(days=1))
    assert [entry.key for entry in store.entries("fraud")] == ["promote:3", "retrain:1"]
    assert store.entries("fraud", "promotion") == [first]
    assert first.at == T0
    assert first.payload == {"to": 3, "ap": 0.4}


WORKER = """
import sys
import pandas as pd
from rareclass.adapters.store import Store
from rareclass.errors import AlreadyDoneError

with Store(sys.argv[1]) as store:
    store.migrate()
    stored, won = 0, []
    for start in range(0, 400, 40):
        rows = pd.DataFrame({"request_id": [f"r{i}" for i in range(start, start + 60)], "model": "fraud"})
        day = pd.Timestamp("2026-03-01") + pd.Timedelta(hours=start)
        stored += store.add_predictions(rows.assign(ts=day, version="1", score=0.5, decision=0))
        store.add_labels(rows.assign(label=0, observed_at=day, received_at=day))
        try:
            store.append("fraud", f"k{start}", "kind", "actor", "", {}, day)
            won.append(start)
        except AlreadyDoneError:
            pass
    print(stored, *won)
"""


def test_processes_that_start_together_on_an_empty_database_do_everything_once(store_url: str) -> None:
    command = [sys.executable, "-c", WORKER, store_url]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    outputs = [[int(word) for word in worker.communicate()[0].split()] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert sorted(start for _, *won in outputs for start in won) == list(range(0, 400, 40))
    with Store(store_url) as store:
        assert sum(stored for stored, *_ in outputs) == 420 == len(store.window("fraud", *ALWAYS))
        assert store.counts("fraud")["labels"] == 420
        assert len(store.entries("fraud")) == 10


def test_migrations_end_where_the_code_says_and_make_the_tables_of_the_code(store: Store, store_url: str) -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    settings = Config()
    settings.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(settings).get_heads() == [HEAD]
    inspector = sa.inspect(sa.create_engine(sqlalchemy_url(store_url)))
    for table in METADATA.sorted_tables:
        if table.name == "prediction_keys" and store_url.startswith("sqlite"):
            continue
        assert [c["name"] for c in inspector.get_columns(table.name)] == [c.name for c in table.columns], table.name


def test_a_store_of_a_newer_release_is_refused(store: Store) -> None:
    with store.transaction(write=True) as connection:
        connection.execute(sa.text("UPDATE rareclass_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="revision 9999, which this rareclass does not know"):
        store.migrate()


def test_a_store_without_tables_says_what_to_do(store_url: str) -> None:
    with Store(store_url) as store, pytest.raises(StoreError, match="has no tables yet"):
        store.counts("fraud")


def test_the_password_of_an_unreachable_store_is_masked() -> None:
    store = Store("postgresql://tester:hunter2@127.0.0.1:9/nothing")
    with pytest.raises(StoreError) as caught:
        store.migrate()
    message = str(caught.value)
    assert "hunter2" not in message
    assert "postgresql+psycopg://tester:***@127.0.0.1:9/nothing cannot be reached" in message
    assert "\n" not in message


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/db", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_cannot_be_a_store_is_one_clear_line(url: str) -> None:
    with pytest.raises(StoreError, match=r"Set store\.url to"):
        Store(url)


def test_postgresql_keeps_one_partition_a_day_and_drops_old_ones(postgres_url: str) -> None:
    with Store(postgres_url) as store:
        store.migrate()
        store.add_predictions(predictions(8))
        store.add_shadow_scores(shadow(2))
        listing = "SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r'"
        listing += " AND relnamespace = current_schema()::regnamespace ORDER BY 1"
        days = ["20260301", "20260302", "20260303"]
        both = [f"{parent}_{day}" for parent in ("predictions", "shadow_scores") for day in days]
        assert store.query(listing)["relname"].tolist() == both
        store.prune("fraud", T0 + timedelta(days=1, hours=-1))
        assert store.query(listing)["relname"].tolist() == [name for name in both if not name.endswith("0301")]
        assert store.add_predictions(predictions(2)) == 2  # a partition that was dropped is made again


def test_a_partition_that_another_process_dropped_is_made_again(postgres_url: str) -> None:
    with Store(postgres_url) as store, Store(postgres_url) as other:
        store.migrate()
        store.add_predictions(predictions(1))
        other.prune("fraud", T0 + timedelta(days=2))
        assert store.add_predictions(predictions(1)) == 1


def test_a_long_read_does_not_stop_a_new_day_in_postgresql(postgres_url: str) -> None:
    with Store(postgres_url) as reader, Store(postgres_url) as writer:
        writer.migrate()
        writer.add_predictions(predictions(2))
        with reader.transaction() as connection:
            connection.execute(sa.text("SELECT * FROM predictions")).all()
            assert writer.add_predictions(predictions(2, ts=T0 + timedelta(days=3)).assign(request_id=["x", "y"])) == 2


def test_the_store_comes_back_after_its_database_was_killed(own_postgres: PostgresServer) -> None:
    with Store(own_postgres.url()) as store:
        store.migrate()
        store.add_predictions(predictions(3))
        own_postgres.kill()
        with pytest.raises(StoreError, match="cannot be reached"):
            store.add_predictions(predictions(6))
        own_postgres.start()
        assert store.add_predictions(predictions(6)) == 3


def test_a_users_own_query_reads_a_table_or_a_select(store: Store) -> None:
    store.add_predictions(predictions(2))
    assert len(store.query("predictions")) == 2
    assert store.query("SELECT request_id FROM predictions WHERE request_id LIKE '%1'")["request_id"].tolist() == ["r1"]


def test_labels_owed_and_rows_left_out_are_counted_where_a_label_can_come(store: Store) -> None:
    """Eight rows, six hours apart: the first four are due, one of them can never have a label, one of them has one."""
    store.add_predictions(predictions(8, weight=[1, 1, 10, 1, 1, 1, 1, 1], propensity=[1, 0, 1, 0.5, 1, 1, 1, 1]))
    store.add_predictions(predictions(3, model="other"))
    store.add_labels(labels(["r0"], [1], T0 + timedelta(days=1)))
    counted = store.tally("fraud", T0, T0 + timedelta(days=3), due_before=T0 + timedelta(hours=24))
    assert counted == Tally(rows=8, left_out=9, due=3, owed=2, owed_since=T0 + timedelta(hours=12))
    nothing = store.tally("nobody", T0, T0 + timedelta(days=3), due_before=T0)
    assert nothing == Tally(0, 0, 0, 0, None)
