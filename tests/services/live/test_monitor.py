"""The monitor over a real store and a real registry, and over HTTP."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from datetime import UTC, timedelta
from pathlib import Path

import numpy as np
import pytest

import live_rows
from rareclass.adapters.registry import Registry
from rareclass.adapters.reports.status import status_page
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, parse
from rareclass.core.triage import triage
from rareclass.errors import ConfigError
from rareclass.services import promotion
from rareclass.services.live import monitor_app, repair, review
from rareclass.services.live.monitor import Monitor
from rareclass.services.live.status import gather
from rareclass.services.live.verdict import triage as triage_of

NOW = (live_rows.START + timedelta(days=56)).replace(tzinfo=UTC)


def make_config(folder: Path, name: str = "live", **sections) -> Config:
    raw = {
        "name": name,
        "data": {"path": "none.parquet", "target": "label", "label_delay": "7d"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "store": {"url": f"sqlite:///{folder}/{name}.db"},
        "monitor": {"bootstraps": 60, "port": 0, "every": "1h"},
    }
    return parse({**raw, **sections})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("monitor")


def fill(config: Config, cause: str = "nothing", *, days: int = 56, shadow: bool = False) -> None:
    frame, x = live_rows.stream(cause, days=days, per_day=400)
    with Store(config.store.url) as store:
        store.migrate()
        store.add_predictions(live_rows.stored(frame, x, config.name))
        store.add_labels(live_rows.labels_of(frame), model=config.name)
        if shadow:
            worse = live_rows.Scorer(3.0).score(x)
            rows = frame[["request_id", "row", "ts"]].assign(
                model=config.name, version="2", role="challenger", score=worse, decision=(worse >= 0.15).astype(int)
            )
            store.add_shadow_scores(rows)


def register(config: Config, *noises: float) -> None:
    tracker = Tracker(config.tracking.uri, config.name)
    for position, noise in enumerate(noises):
        run = tracker.start("run")
        version = promotion.register(config, live_rows.model(noise), run.id, now=NOW).version
        promotion.promote(config, version, now=NOW, mode="shadow" if position else "immediate")


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    made = make_config(folder)
    fill(made, shadow=True)
    register(made, 0.0, 3.0)
    return made


def test_an_evaluation_finds_roles_windows_drift_and_the_paired_difference(config):
    with Monitor(config) as monitor:
        found = monitor.evaluate(NOW)
    assert found.roles == {"1": "champion", "2": "challenger"}
    champion, challenger = found.live["1"], found.live["2"]
    assert champion.latest.judged
    assert not champion.degraded
    assert challenger.latest.metric("ap").value < champion.latest.metric("ap").value
    assert found.paired["2"].difference.high < 0
    assert found.drift.judged
    assert found.drift.broken == {}
    assert found.drift.score is not None
    low, high = found.estimated_interval
    assert 0.002 < low < found.estimated_prevalence < high < 0.03
    assert found.new_positives > 100
    assert found.schema_errors == ()


def test_the_same_moment_gives_the_same_snapshot_whatever_came_later(config):
    early = NOW - timedelta(days=10)
    with Monitor(config) as one, Monitor(config) as other:
        assert one.evaluate(early).to_json() == other.evaluate(early).to_json()
        latest = one.evaluate(early).live["1"]
    assert latest.windows[-1].end <= early.replace(tzinfo=None)


def test_columns_that_no_longer_arrive_and_text_for_numbers_are_schema_errors(folder):
    config = make_config(folder, "schema")
    register(config, 0.0)
    frame, x = live_rows.stream("nothing", days=10, per_day=400)
    rows = live_rows.stored(frame, x, "schema")
    broken = [json.loads(text) for text in rows["features"]]
    for row in broken:
        del row["amount"]
        row["age"] = "old"
    with Store(config.store.url) as store:
        store.migrate()
        store.add_predictions(rows.assign(features=[json.dumps(row) for row in broken]))
    with Monitor(config) as monitor:
        errors = monitor.evaluate((live_rows.START + timedelta(days=10)).replace(tzinfo=UTC)).schema_errors
    assert "column 'amount' no longer arrives" in errors
    assert any("column 'age' holds text like 'old' on 100%" in error for error in errors)


def test_an_unknown_label_delay_is_learned_and_nobody_is_paged_before_the_first_label(folder):
    unset = make_config(folder, "unset", data={"path": "none.parquet", "target": "label"})
    frame, x = live_rows.stream("labels stop", days=56, per_day=400)
    with Monitor(unset) as monitor:
        monitor.store.add_predictions(live_rows.stored(frame, x, "unset"))
        register(unset, 0.0)
        assert monitor.delay(NOW) == timedelta(0)
        early = monitor.evaluate(NOW)
        assert not early.live["1"].starved
        assert triage(early.evidence, unset.monitor).verdict == "nothing"
        monitor.store.add_labels(live_rows.labels_of(frame), model="unset")
    with Monitor(unset) as monitor:
        assert timedelta(days=6) < monitor.delay(NOW) < timedelta(days=7)
        found = monitor.evaluate(NOW)
        assert found.live["1"].judged
        assert found.live["1"].starved  # the first ones came, and then they stopped
        assert "labels stopped" in triage(found.evidence, unset.monitor).reasons[0]


def test_on_the_day_a_version_goes_live_neither_its_score_nor_its_prevalence_is_guessed(folder):
    first = make_config(folder, "first")
    frame, x = live_rows.stream("nothing", days=1, per_day=2800)
    register(first, 0.0)
    with Monitor(first) as monitor:
        monitor.store.add_predictions(live_rows.stored(frame, x, "first"))
        found = monitor.evaluate((live_rows.START + timedelta(days=1)).replace(tzinfo=UTC))
    assert found.drift.judged
    assert (found.drift.score, found.drift.drifted, found.drift.broken) == (None, [], {})
    assert (found.estimated_prevalence, found.estimated_interval) == (None, None)
    assert triage(found.evidence, first.monitor).verdict == "nothing"


def test_private_columns_are_neither_compared_nor_missed(folder):
    config = make_config(
        folder, "private", data={"path": "x", "target": "label", "label_delay": "7d", "private": ["amount"]}
    )
    register(config, 0.0)
    frame, x = live_rows.stream("nothing", days=10, per_day=400)
    rows = live_rows.stored(frame, x, "private")
    hidden = [
        json.dumps({name: value for name, value in json.loads(text).items() if name != "amount"})
        for text in rows["features"]
    ]
    with Store(config.store.url) as store:
        store.migrate()
        store.add_predictions(rows.assign(features=hidden))
    with Monitor(config) as monitor:
        found = monitor.evaluate((live_rows.START + timedelta(days=10)).replace(tzinfo=UTC))
    assert found.schema_errors == ()
    assert "amount" not in [feature.name for feature in found.drift.features]
    assert found.drift.broken == {}


def test_without_any_version_or_row_there_is_an_empty_snapshot(folder):
    with Monitor(make_config(folder, "nobody")) as monitor:
        found = monitor.evaluate(NOW)
    assert found.champion is None
    assert found.evidence is None
    json.dumps(found.to_json(), allow_nan=False)


def test_costs_that_differ_from_the_tuned_ones_are_told(folder):
    from rareclass.services.live.monitor import costs_moved

    config = make_config(folder, "costs", costs={"false_negative": 100, "false_positive": 1})
    then = live_rows.model(config={"costs": {"false_negative": 10.0, "false_positive": 1.0, "amount_share": None}})
    assert costs_moved(config, then, [], "1") == "costs moved: false_negative from 10.0 to 100.0"
    same = live_rows.model(config={"costs": {"false_negative": 100.0, "false_positive": 1.0, "amount_share": None}})
    assert costs_moved(config, same, [], "1") == ""


def test_errors_cost_what_the_amount_of_their_row_says(folder):
    data = {"path": "x", "target": "label", "label_delay": "7d", "amount": "amount"}
    config = make_config(folder, "amounts", data=data, costs={"amount_share": 1.0, "false_positive": 2.0})
    fill(config, days=42, shadow=True)
    register(config, 0.0, 3.0)
    now = (live_rows.START + timedelta(days=42)).replace(tzinfo=UTC)
    with Monitor(config) as monitor:
        found = monitor.evaluate(now)
        window = found.live["1"].latest
        frame = monitor.store.window(config.name, now - timedelta(days=42), now, features=True, labels_until=now)
    frame = frame[(frame["ts"] >= window.start) & (frame["ts"] < window.end) & frame["label"].notna()]
    amount = np.array([json.loads(text)["amount"] for text in frame["features"]])
    missed = ((frame["label"] == 1) & (frame["decision"] == 0)).to_numpy()
    alarm = ((frame["label"] == 0) & (frame["decision"] == 1)).to_numpy()
    expected = 1000 * (amount[missed].sum() + 2.0 * alarm.sum()) / len(frame)
    assert window.metrics["cost_per_1000"].value == pytest.approx(expected, rel=1e-6)
    assert found.live["2"].latest.metrics["cost_per_1000"].value > 0


def test_no_cost_is_shown_where_it_follows_from_an_amount_that_is_not_stored(folder):
    data = {"path": "x", "target": "label", "label_delay": "7d", "amount": "elsewhere"}
    config = make_config(folder, "hidden", data=data, costs={"amount_share": 1.0})
    fill(config, days=28)
    register(config, 0.0)
    with Monitor(config) as monitor:
        metrics = monitor.evaluate((live_rows.START + timedelta(days=28)).replace(tzinfo=UTC)).live["1"].latest.metrics
    assert "ap" in metrics
    assert "cost_per_1000" not in metrics


# --- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def service(config):
    made = monitor_app.Service(config, clock=lambda: NOW, env={"RARECLASS_LABELS_TOKEN": "secret"})
    made.watch.once()
    made.start()
    yield made
    made.stop()


def call(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_metrics_health_and_the_page_are_served(service):
    status, text = call(f"{service.url}/metrics")
    assert status == 200
    assert 'rareclass_ap_ratio{model="live",version="1",window="latest"}' in text
    assert 'rareclass_verdict_ratio{model="live",verdict="nothing",version="1"} 1.0' in text
    assert call(f"{service.url}/healthz")[0] == 200
    page = call(service.url)[1]
    assert "version 1 (champion)" in page
    assert "Columns that moved" in page
    assert json.loads(call(f"{service.url}/snapshot.json")[1])["champion"] == "1"


def test_labels_need_the_token_and_bad_ones_are_refused_in_one_line(service):
    url = f"{service.url}/labels"
    good = json.dumps([{"request_id": "unheard-of", "label": 1}]).encode()
    assert call(url, good)[0] == 401
    assert call(url, good, Authorization="Bearer wrong")[0] == 401
    allowed = {"Authorization": "Bearer secret"}
    status, text = call(url, good, **allowed)
    assert (status, json.loads(text)["unknown"]) == (200, 1)
    for body in (b"{", b'[{"request_id": "a", "label": 7}]', b'"x"', b"[" * 100_000):
        status, text = call(url, body, **allowed)
        assert status == 400
        assert "\n" not in json.loads(text)["error"]
    assert call(url)[0] == 405


def test_without_a_token_the_label_route_is_closed_and_too_many_requests_are_refused(config, folder):
    limited = config.model_copy(
        update={"labels": config.labels.model_copy(update={"requests_per_minute": 2, "max_batch": 3})}
    )
    closed = monitor_app.Service(limited, clock=lambda: NOW, env={})
    opened = monitor_app.Service(
        limited, clock=lambda: NOW, env={"RARECLASS_LABELS_TOKEN": "t", "RARECLASS_MONITOR_TOKEN": "page"}
    )
    for one in (closed, opened):
        one.start()
    try:
        status, text = call(f"{closed.url}/labels", b"[]")
        assert status == 403
        assert "RARECLASS_LABELS_TOKEN" in text
        allowed = {"Authorization": "Bearer t"}
        assert call(f"{opened.url}/labels", b" " * 4000, **allowed)[0] == 413
        assert call(f"{opened.url}/labels", b"[]", **allowed)[0] == 200
        assert call(f"{opened.url}/labels", b"[]", **allowed)[0] == 429
        assert call(opened.url)[0] == 401
        assert call(opened.url, Authorization="Bearer page")[0] == 200
    finally:
        for one in (closed, opened):
            one.stop()


def test_a_failing_store_is_told_counted_and_ends_in_an_unhealthy_answer(config):
    ticks = [0.0]
    watch = monitor_app.Watch(config, lambda: NOW, timer=lambda: ticks[0])
    watch.once()
    before = watch.snapshot
    watch._monitor.registry = None
    watch.once()
    assert watch.failures == 1
    assert watch.snapshot is before
    assert not watch.overdue()
    ticks[0] = 4 * 3600.0
    assert watch.overdue()
    watch.stop()


def test_two_monitors_at_once_export_the_same_numbers(config):
    watches = [monitor_app.Watch(config, lambda: NOW) for _ in range(2)]
    threads = [threading.Thread(target=watch.once) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = (watch.snapshot.to_json() for watch in watches)
    assert first == second
    for watch in watches:
        watch.stop()


def test_an_occupied_port_is_one_clear_line(config):
    from rareclass.errors import ConfigError

    first = monitor_app.Service(config, env={})
    port = int(first.url.rpartition(":")[2])
    taken = config.model_copy(update={"monitor": config.monitor.model_copy(update={"port": port})})
    with pytest.raises(ConfigError, match=r"cannot listen on .* Set monitor.port"):
        monitor_app.Service(taken, env={})
    first._close()


def test_features_of_the_store_round_trip(config):
    from rareclass.core.dataset import encode
    from rareclass.services.live.monitor import features_of

    frame, x = live_rows.stream("nothing", days=2, per_day=50)
    table = features_of(live_rows.stored(frame, x, "m")["features"])
    assert np.allclose(encode(table, live_rows.SCHEMA), x, rtol=1e-4, equal_nan=True)
    assert Registry(config.tracking.uri).at("live", "champion").version == "1"


def test_where_people_look_at_chosen_rows_only_their_labels_count_each_for_as_many_as_it_stands_for(tmp_path):
    everything = make_config(tmp_path, "looked", monitor={"bootstraps": 60, "min_positives": 5, "windows": 1})
    fill(everything, days=21)
    register(everything, 0.0)
    asked = everything.model_copy(update={"review": everything.review.model_copy(update={"labels": "chosen"})})
    now = (live_rows.START + timedelta(days=21)).replace(tzinfo=UTC)
    with Monitor(asked) as monitor:
        live = monitor.evaluate(now).live["1"]
        assert {window.reason for window in live.matured} == {"none of its rows was chosen by `rareclass review`"}
        status = gather(monitor, monitor.evaluate(now), triage_of(asked, now))
        assert "no row in view was chosen" in status_page("looked", status)
        for day in range(7, 21):
            review.draw(asked, now, budget=60, at=live_rows.START + timedelta(days=day), store=monitor.store)
        recorded = monitor.store.reviews("looked", live_rows.START, now)
        snapshot = monitor.evaluate(now)
        status = gather(monitor, snapshot, triage_of(asked, now))
        rows = repair.matured_rows(monitor, live_rows.model(0.0), now)
    found = snapshot.live["1"]
    with Monitor(everything) as monitor:
        whole = monitor.evaluate(now).live["1"]
    assert not found.starved
    assert snapshot.estimated_prevalence is None
    for mine, all_labels in zip(found.matured, whole.matured, strict=True):
        inside = recorded["ts"].between(mine.start, mine.end, inclusive="left")
        assert (mine.labelled, mine.coverage) == (inside.sum(), 1)
        assert mine.labelled < all_labels.labelled / 4
        estimate, truth = mine.metric("prevalence"), all_labels.metric("prevalence").value
        assert estimate.low <= truth <= estimate.high
    # a retrain weighs each by what it stands for
    start = found.matured[0].start
    inside = recorded["ts"].between(start, now.replace(tzinfo=None) - timedelta(days=7), inclusive="left")
    weight = np.sort(1 / recorded["probability"][inside])
    np.testing.assert_allclose(np.sort(rows.weight), weight)
    assert weight.max() > 5  # what it is judged by, and not what it is fitted with
    np.testing.assert_allclose(np.sort(rows.as_drawn().weight), np.minimum(weight, 5))
    assert status.chosen == recorded["ts"].ge(start).sum()
    assert status.to_look_at == 0
    assert "0 of" in status_page("looked", status)
    assert "rows that were chosen have no label yet" in status_page("looked", status)


def test_a_missing_label_cannot_mean_0_where_only_chosen_rows_are_looked_at(tmp_path):
    with pytest.raises(ConfigError, match=r"Set labels\.missing: unknown"):
        make_config(tmp_path, review={"labels": "chosen"}, labels={"missing": "negative"})
