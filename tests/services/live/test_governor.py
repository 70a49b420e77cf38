"""Triage, brakes, repairs, challenge and rollback, over a real store and a real registry."""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import live_rows
from rareclass.adapters.registry import Registry
from rareclass.adapters.serving.refresh import PointSource
from rareclass.adapters.store import LedgerEntry, Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, GovernorSettings, parse
from rareclass.core import operating
from rareclass.core.calibration import Platt
from rareclass.core.dataset import decode
from rareclass.core.triage import Verdict
from rareclass.errors import DataError
from rareclass.services import promotion
from rareclass.services.live import governor, repair
from rareclass.services.live.monitor import Monitor

END = (live_rows.START + timedelta(days=63)).replace(tzinfo=UTC)
BORN = live_rows.START.replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("govern")


def make(
    folder: Path,
    name: str,
    cause: str | None,
    *,
    noises=(0.0,),
    since: int = 35,
    per_day: int = 400,
    model=None,
    **sections,
) -> Config:
    raw = {
        "name": name,
        "data": {"path": f"{folder}/history.parquet", "target": "label", "time": "ts", "label_delay": "7d"},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "store": {"url": f"sqlite:///{folder}/{name}.db"},
        "monitor": {"bootstraps": 60},
        "costs": {"false_negative": 8, "false_positive": 1},
    }
    config = parse({**raw, **sections})
    tracker = Tracker(config.tracking.uri, config.name)
    for position, noise in enumerate(noises):
        run = tracker.start("run")
        made = model or live_rows.model(
            noise, config={"costs": {"false_negative": 8.0, "false_positive": 1.0, "amount_share": None}}
        )
        version = promotion.register(config, made, run.id, now=BORN).version
        promotion.promote(config, version, now=BORN, mode="shadow" if position else "immediate", actor="tester")
    with Store(config.store.url) as store:
        store.migrate()
        if cause is not None:
            frame, x = live_rows.stream(cause, since=since, per_day=per_day)
            if model is not None:
                score = model.score(x)
                frame = frame.assign(score=score, decision=model.decide(score).astype(int))
            store.add_predictions(live_rows.stored(frame, x, name))
            store.add_labels(live_rows.labels_of(frame), model=name)
    return config


# --- the brakes ------------------------------------------------------------------------------------------------------

NOW = datetime(2024, 6, 1, tzinfo=UTC)


def verdict(kind: str = "retrain", fingerprint: str = "f9") -> Verdict:
    return Verdict(kind, ("because",), {}, "1", fingerprint)


class Book:
    """A ledger at hand."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []

    def add(self, kind: str, days_ago: float, actor: str = governor.ACTOR, key: str | None = None, **payload) -> Book:
        number = len(self.entries) + 1
        at = NOW - timedelta(days=days_ago)
        self.entries.append(LedgerEntry(number, "m", key or f"{kind}:{number}", kind, actor, "", payload, at))
        return self

    def retrain(self, number: int, days_ago: float, fingerprint: str, to: str | None, of: str = "1") -> Book:
        self.add("repair", days_ago, number=number, verdict="retrain", fingerprint=fingerprint, version=of)
        return self.add("outcome", days_ago, number=number, verdict="retrain", fingerprint=fingerprint, to_version=to)

    def move(self, kind: str, days_ago: float, version: str, before: str, actor: str = governor.ACTOR) -> Book:
        aliases = {"champion": version, "challenger": None, "previous": before}
        return self.add(
            kind,
            days_ago,
            actor,
            f"move:{len(self.entries)}",
            version=version,
            role="champion",
            before={"champion": before},
            aliases=aliases,
        )


def asked(book: Book, kind: str = "retrain", fingerprint: str = "f9", **changes) -> tuple[bool, str]:
    return governor.permitted(
        GovernorSettings(**changes), verdict(kind, fingerprint), book.entries, NOW, window=timedelta(days=7)
    )


def test_an_empty_ledger_permits_everything():
    for kind in governor.REPAIRS:
        assert asked(Book(), kind) == (True, "")


def test_the_same_alert_is_handled_once():
    book = Book().retrain(1, 20, "f9", None)
    assert "handled already" in asked(book)[1]
    assert asked(book, fingerprint="f10")[0]


def test_one_at_a_time_until_the_lease_ends():
    running = Book().add("repair", 0.5, number=1, verdict="retrain", fingerprint="f1")
    assert "one at a time" in asked(running, "recalibrate")[1]
    dead = Book().add("repair", 3, number=1, verdict="retrain", fingerprint="f1")
    assert asked(dead, "recalibrate")[0]


def test_cooldown_holds_to_the_day():
    assert "cooldown" in asked(Book().retrain(1, 6.9, "f1", "2"))[1]
    assert asked(Book().retrain(1, 7.1, "f1", "2"))[0]


def test_at_most_n_retrains_a_month():
    book = Book()
    for number, days in enumerate((29, 22, 15, 8), 1):
        book.retrain(number, days, f"f{number}", str(number + 1)).move("promote", days, str(number + 1), str(number))
    assert "4 retrains in 30 days" in asked(book)[1]
    assert asked(book, max_per_month=5)[0]


def test_retrains_that_did_not_help_stop_the_next_until_a_person_acts():
    book = Book().retrain(1, 40, "f1", None).retrain(2, 35, "f2", None)
    assert "loop guard" in asked(book)[1]
    assert asked(book, loop_guard=3)[0]
    helped = Book().retrain(1, 40, "f1", "2").move("promote", 39, "2", "1").retrain(2, 35, "f2", None)
    assert asked(helped)[0]
    undone = (
        Book()
        .retrain(1, 40, "f1", "2")
        .move("promote", 39, "2", "1")
        .move("rollback", 38, "1", "2")
        .retrain(2, 35, "f2", None)
    )
    assert "loop guard" in asked(undone)[1]
    resumed = Book().retrain(1, 40, "f1", None).retrain(2, 35, "f2", None).move("promote", 20, "1", "1", actor="anna")
    assert asked(resumed)[0]


def test_what_lacked_evidence_is_tried_again_with_half_as_much_more_and_stops_no_loop():
    def grown(positives: int, version: str = "1") -> Verdict:
        return Verdict("retrain", ("because",), {"graduates": True, "new_positives": positives}, version, "f9")

    def asked_for(found: Verdict, book: Book) -> tuple[bool, str]:
        return governor.permitted(GovernorSettings(), found, book.entries, NOW, window=timedelta(days=7))

    book = Book()
    for number, (days, positives) in enumerate(((60, 30), (50, 45), (40, 70)), 1):
        assert asked_for(grown(positives), book)[0]
        evidence = {"graduates": True, "new_positives": positives}
        book.add(
            "repair", days, number=number, verdict="retrain", fingerprint=f"f{number}", version="1", evidence=evidence
        )
        book.add("outcome", days, number=number, verdict="retrain", fingerprint=f"f{number}", to_version=None)
    assert asked_for(grown(104), book) == (
        False,
        "the next regime was tried with 70 new positives, will be with 105; there are 104",
    )
    assert asked_for(grown(105), book)[0]
    assert asked_for(grown(30, "2"), book)[0]  # another version has not been tried
    assert asked(book)[0]  # nor do they count as retrains that did not help


def test_a_promoted_version_that_soon_needs_a_retrain_itself_was_no_help():
    def twice(first: float, second: float) -> Book:
        book = Book().retrain(1, first, "f1", "2").move("promote", first - 1, "2", "1")
        return book.retrain(2, second, "f2", "3", of="2").move("promote", second - 1, "3", "2")

    def asked_for_third(book: Book) -> tuple[bool, str]:
        now_degraded = Verdict("retrain", ("because",), {}, "3", "f9")
        return governor.permitted(GovernorSettings(), now_degraded, book.entries, NOW, window=timedelta(days=7))

    assert "loop guard: the last 2 retrains" in asked_for_third(twice(40, 20))[1]
    assert asked_for_third(twice(80, 20))[0]  # the first one held for two months
    assert asked_for_third(twice(60, 40))[0]  # the second one did


def test_a_challenger_under_judgement_holds_back_the_next_retrain():
    aliases = {"champion": "1", "challenger": "2", "previous": None}
    book = Book().add(
        "promote",
        9,
        governor.ACTOR,
        "move:1",
        version="2",
        role="challenger",
        before={"champion": "1"},
        aliases=aliases,
    )
    assert "challenger already" in asked(book)[1]


def test_the_error_of_all_looks_adds_up_to_the_allowed_one():
    looks = [governor.spending(k / 14) - governor.spending((k - 1) / 14) for k in range(1, 15)]
    assert sum(looks) == pytest.approx(governor.ERROR)
    assert all(part > 0 for part in looks)


# --- repairs ---------------------------------------------------------------------------------------------------------


def test_a_moved_prevalence_is_met_by_another_threshold_with_a_ledger_line_and_a_tag(folder):
    config = make(folder, "prevalence", "prevalence up", per_day=800)
    with Monitor(config) as monitor:
        found = governor.triage(config, END, monitor=monitor)
        assert (found.verdict, found.exit_code) == ("rethreshold", 10)
        action = governor.act(config, found, END, monitor=monitor)
        assert (action.outcome, action.from_version, action.to_version) == ("done", "1", "1"), action.reason
        (line,) = monitor.store.entries("prevalence", "rethreshold")
        tag = Registry(config.tracking.uri).at("prevalence", "champion").tags[operating.TAG]
        assert float(tag) == pytest.approx(line.payload["thresholds"]["default"])
        assert float(tag) < live_rows.THRESHOLD
        assert line.payload["prevalence"] > 2 * live_rows.profile().prevalence
        again = governor.act(config, found, END, monitor=monitor)
        assert again.outcome == "refused"
        assert governor.triage(config, END, monitor=monitor).verdict == "nothing"
        assert monitor.known()["champion"].version == "1"
        monitor.registry.tag("prevalence", "1", {operating.TAG: 0.77})  # as if killed before the tag was set
        repair.follow(monitor)
        assert Registry(config.tracking.uri).at("prevalence", "champion").tags[operating.TAG] == tag


def test_moved_costs_are_met_by_another_threshold(folder):
    config = make(folder, "costs", "nothing", costs={"false_negative": 60, "false_positive": 1})
    with Monitor(config) as monitor:
        found = governor.triage(config, END, monitor=monitor)
        assert found.verdict == "rethreshold"
        assert "costs moved" in found.reasons[0]
        assert governor.act(config, found, END, monitor=monitor).outcome == "done"
        assert governor.triage(config, END, monitor=monitor).verdict == "nothing"


def test_scores_that_are_off_become_a_new_version_with_the_same_learner(folder):
    base = live_rows.model()
    off = base.__class__(
        **{
            **{f: getattr(base, f) for f in base.__dataclass_fields__},
            "calibrator": Platt(slope=1.0, intercept=1.5),
            "golden": None,
        }
    )
    config = make(folder, "calibration", "nothing", model=off, per_day=600)
    with Monitor(config) as monitor:
        found = governor.triage(config, END, monitor=monitor)
        assert found.verdict == "recalibrate", found.reasons
        action = governor.act(config, found, END, monitor=monitor)
        assert (action.outcome, action.from_version, action.to_version) == ("done", "1", "2"), action.reason
        new = monitor.known()["champion"]
        assert new.version == "2"
        x = live_rows.features(500, np.random.default_rng(3))
        assert np.array_equal(np.argsort(new.model.score(x)), np.argsort(off.score(x)))
        truth = live_rows.score(x)
        assert np.mean(np.abs(new.model.score(x) - truth)) < 0.3 * np.mean(np.abs(off.score(x) - truth))
        assert new.profile.ap == live_rows.profile().ap
        assert [entry.kind for entry in monitor.store.entries("calibration")].count("recalibrate") == 1


def cutoffs_in_use(config: Config, monitor: Monitor, work: Path, point: str | None) -> dict[str, tuple[str, float]]:
    """With which operating point and cut-off each caller decides, asked for ``point``."""
    from prometheus_client import CollectorRegistry

    from rareclass.adapters.serving.engine import Engine
    from rareclass.adapters.serving.interfaces import Dependencies
    from rareclass.adapters.serving.metrics import Metrics
    from rareclass.adapters.serving.refresh import Refresher
    from rareclass.adapters.spool import Spool
    from rareclass.services.live import replay
    from rareclass.services.serving import score, serve

    with Spool(work / "spool") as spool:
        metrics = Metrics(CollectorRegistry(), config.name, depth=spool.depth, limit=1 << 20)
        engine = Engine(spool, metrics, name=config.name, sample_rate=0.1, clock=time.time)
        ports = Dependencies(serve.Releases(config), lambda version: serve.load(config, version), spool)
        refresher = Refresher(engine, ports, max_rows=10, seconds=1, point=PointSource(config.serve.operating_point))
        refresher.first()
        found = {"server": engine.active.cutoff(point)}
    rows = decode(live_rows.features(50, np.random.default_rng(9)), live_rows.SCHEMA)
    source, output = str(work / "in.parquet"), str(work / "out.parquet")
    rows.assign(ts=BORN).to_parquet(source)
    logged = score.score_and_log(config, source, output, now=BORN, point=point)
    found["batch"] = (logged.operating_point, logged.threshold)
    alone = score.score(
        f"models:/{config.name}@champion",
        source,
        output,
        tracking_uri=config.tracking.uri,
        point=point,
        serving=config.serve.operating_point,
    )
    found["batch by name"] = (alone.operating_point, alone.threshold)
    champion = monitor.known()["champion"]
    model = champion.model
    asked = (point, config.serve.operating_point)
    found["monitor"] = operating.decides(model.thresholds, model.primary, *asked)
    found["repair"] = operating.decides(repair.current_thresholds(monitor, champion), model.primary, *asked)
    if point is None:
        step = replay.Step(BORN.replace(tzinfo=None), END.replace(tzinfo=None), slice(0, len(rows)))
        story = rows.assign(ts=BORN, **{replay.ID: [f"{uuid.uuid4()}" for _ in range(len(rows))], "__ts": BORN})
        replay._serve(config, monitor.store, monitor.registry, story, step, np.zeros(50), np.zeros(50, bool))
        kept = monitor.store.window(config.name, BORN - timedelta(1), END + timedelta(days=1))
        (line,) = kept[kept["request_id"] == story[replay.ID].iloc[0]].itertuples()
        found["replay"] = (line.operating_point, line.threshold)
    return found


@pytest.mark.parametrize("owner", [None, "workflow"])
def test_a_crash_is_recorded_unless_the_repair_has_an_owner_that_takes_it_up_again(folder, monkeypatch, owner):
    """Both ways into a repair end in one function; what differs is who else could finish it."""
    config = make(folder, f"crash-{owner or 'nobody'}", None)
    with Monitor(config) as monitor:
        found = Verdict("rethreshold", ("why",), {}, "1", "f")
        number, _ = governor._reserve(config, found, END, monitor.store, owner)

        def stopped(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(repair, "rethreshold", stopped)
        with pytest.raises(KeyboardInterrupt):
            governor.repair(config, number, END, monitor=monitor)
        outcomes = monitor.store.entries(config.name, "outcome")
        assert [entry.payload["outcome"] for entry in outcomes] == ([] if owner else ["failed"])
        monkeypatch.undo()
        held = governor._reserve(config, found, END, monitor.store)[1]
        assert "one at a time" in held.reason if owner else "handled already" in held.reason


def test_every_caller_decides_with_the_same_cutoffs_after_every_repair(folder, tmp_path):
    base = live_rows.model()
    made = replace(
        base,
        thresholds={"default": 0.15, "desk": 0.6},
        calibrator=Platt(slope=1.0, intercept=1.5),
        meta={**base.meta, "config": {"costs": {"false_negative": 8.0, "false_positive": 1.0, "amount_share": None}}},
        golden=None,
    )
    desk = {"name": "desk", "objective": "f1", "max_alerts_per_day": 5}
    config = make(
        folder,
        "points",
        "nothing",
        model=made,
        per_day=600,
        threshold={"points": [desk]},
        serve={"operating_point": "desk"},
        costs={"false_negative": 60, "false_positive": 1},
    )

    def alike(expected: dict[str, float]) -> None:
        for point in (None, "default", "desk"):
            name = point or "desk"
            for caller, value in cutoffs_in_use(config, monitor, tmp_path, point).items():
                assert value == (name, pytest.approx(expected[name])), f"{caller} asked for {point}"

    with Monitor(config) as monitor:
        alike({"default": 0.15, "desk": 0.6})
        action = repair.rethreshold(config, verdict("rethreshold"), END, monitor=monitor)
        assert action.outcome == "done", action.reason
        tuned = action.numbers["thresholds"]
        assert tuned["default"] < 0.15 < tuned["desk"] != 0.6
        alike(tuned)
        action = repair.recalibrate(config, verdict("recalibrate", "f10"), END, monitor=monitor)
        assert (action.outcome, action.to_version) == ("done", "2"), action.reason
        assert action.numbers["thresholds"] != tuned
        alike(action.numbers["thresholds"])
        run = Tracker(config.tracking.uri, config.name).start("run").id
        retrained = replace(made, thresholds={"default": 0.21, "desk": 0.71}, golden=None)
        version = promotion.register(config, retrained, run, now=END).version
        promotion.promote(config, version, now=END, mode="immediate")
        alike({"default": 0.21, "desk": 0.71})
        promotion.rollback(config, now=END)
        alike(action.numbers["thresholds"])
        promotion.promote(config, "1", now=END + timedelta(days=1), mode="immediate")
        alike(tuned)  # what was tuned again stays with its version


def test_a_version_in_the_shadow_decides_with_what_was_tuned_again():
    from rareclass.adapters.serving.interfaces import ServedVersion
    from rareclass.adapters.serving.shadow import Work, _scored

    model = live_rows.model()
    x = live_rows.features(40, np.random.default_rng(2))
    work = Work("a", 1, json.dumps(live_rows.SCHEMA.to_json()), x, {}, {}, "default")
    cutoff = float(np.median(model.score(x)))
    (record,) = _scored(model, ServedVersion("previous", "1", "u", {"default": cutoff, "": cutoff}), [work], "live")
    assert record["decision"] == (model.score(x) >= cutoff).astype(int).tolist()


def test_private_columns_do_not_stop_a_recalibration_and_a_retrain_says_at_once_what_to_set(folder):
    base = live_rows.model()
    off = replace(base, calibrator=Platt(slope=1.0, intercept=1.5), golden=None).with_golden(
        live_rows.features(8, np.random.default_rng(0))
    )
    private = {"path": "nowhere.parquet", "target": "label", "time": "ts", "label_delay": "7d", "private": ["amount"]}
    config = make(folder, "private", "nothing", model=off, per_day=600, data=private)
    with Monitor(config) as monitor:
        action = repair.recalibrate(config, verdict("recalibrate"), END, monitor=monitor)
        assert (action.outcome, action.to_version) == ("done", "2"), action.reason
        x = live_rows.features(500, np.random.default_rng(3))
        truth, new = live_rows.score(x), monitor.known()["champion"].model
        assert np.mean(np.abs(new.score(x) - truth)) < 0.3 * np.mean(np.abs(off.score(x) - truth))
        assert np.array_equal(new.matrix(new.golden), off.matrix(off.golden))  # no served row is in a version
        with pytest.raises(
            DataError, match=r"amount is private .data.private. and never stored. Set retrain.source: data"
        ):
            repair.retrain(config, verdict(), END, monitor=monitor)


def test_broken_data_is_paged_once_per_cause_and_repairs_nothing(folder):
    config = make(folder, "broken", "missing")
    with Monitor(config) as monitor:
        found, actions = governor.govern(config, END, monitor=monitor)
        assert found.exit_code == 13
        assert [(action.kind, action.outcome) for action in actions] == [("page", "done")]
        later = END + timedelta(hours=1)
        assert governor.govern(config, later, monitor=monitor)[1][0].outcome == "already"
        kinds = {entry.kind for entry in monitor.store.entries("broken")}
        assert not kinds & {"repair", "rethreshold", "recalibrate"}


def test_two_governors_at_once_act_once(folder):
    config = make(folder, "twice", "nothing", costs={"false_negative": 60, "false_positive": 1})
    found = governor.triage(config, END)
    done: list[governor.Action] = []
    threads = [threading.Thread(target=lambda: done.append(governor.act(config, found, END))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.verdict == "rethreshold"
    assert [action.outcome for action in done].count("done") == 1
    with Store(config.store.url) as store:
        assert len(store.entries("twice", "rethreshold")) == 1


def test_an_unknown_model_has_nothing_to_say(folder):
    config = make(folder, "empty", None, noises=())
    found = governor.triage(config, END)
    assert (found.verdict, found.exit_code) == ("nothing", 0)
    assert "answered nothing" in found.reasons[0]


# --- on live labels --------------------------------------------------------------------------------------------------


def test_a_worse_champion_in_its_probation_is_rolled_back_and_the_reason_says_so(folder):
    config = make(folder, "rollback", None, noises=(0.0,), promotion={"probation": "30d"})
    tracker = Tracker(config.tracking.uri, config.name)
    worse = live_rows.model(4.0)
    version = promotion.register(config, worse, tracker.start("run").id, now=BORN).version
    promotion.promote(config, version, now=BORN, mode="immediate")
    frame, x = live_rows.stream("nothing", days=40, per_day=400)
    with Monitor(config) as monitor:
        answered = worse.score(x)
        monitor.store.add_predictions(
            live_rows.stored(
                frame.assign(version="2", score=answered, decision=(answered > 0.15).astype(int)), x, "rollback"
            )
        )
        monitor.store.add_labels(live_rows.labels_of(frame), model="rollback")
        good = live_rows.model().score(x)
        rows = frame[["request_id", "row", "ts"]].assign(
            model="rollback", version="1", role="previous", score=good, decision=(good > 0.15).astype(int)
        )
        monitor.store.add_shadow_scores(rows)
        early = governor.probation(config, BORN + timedelta(days=8), monitor=monitor)
        assert early is None
        action = governor.probation(config, BORN + timedelta(days=30), monitor=monitor)
        assert (action.kind, action.from_version, action.to_version) == ("rollback", "2", "1")
        assert "beats version 2" in action.reason
        assert promotion.state(config)["champion"] == "1"
        assert governor.probation(config, BORN + timedelta(days=30), monitor=monitor) is None
        entry = monitor.store.entries("rollback", "rollback")[0]
        assert entry.payload["difference"]["positives"] > 50


def test_an_equal_champion_is_not_rolled_back_on_any_day_of_its_probation(folder):
    config = make(folder, "equal", None, noises=(0.0,), promotion={"probation": "14d"})
    tracker = Tracker(config.tracking.uri, config.name)
    version = promotion.register(config, live_rows.model(0.3), tracker.start("run").id, now=BORN).version
    promotion.promote(config, version, now=BORN, mode="immediate")
    frame, x = live_rows.stream("nothing", days=30, per_day=400)
    rng = np.random.default_rng(0)
    with Monitor(config) as monitor:
        for who, role in (("2", None), ("1", "previous")):
            z = live_rows.logit(x) + rng.normal(0, 0.3, len(x))
            score = 1 / (1 + np.exp(-z))
            if role is None:
                monitor.store.add_predictions(
                    live_rows.stored(
                        frame.assign(version=who, score=score, decision=(score > 0.15).astype(int)), x, "equal"
                    )
                )
            else:
                rows = frame[["request_id", "row", "ts"]].assign(
                    model="equal", version=who, role=role, score=score, decision=(score > 0.15).astype(int)
                )
                monitor.store.add_shadow_scores(rows)
        monitor.store.add_labels(live_rows.labels_of(frame), model="equal")
        for day in range(8, 22, 2):
            assert governor.probation(config, BORN + timedelta(days=day), monitor=monitor) is None


def test_a_better_challenger_wins_on_live_labels_and_a_worse_one_is_taken_away(folder):
    for name, noises, expected in (("wins", (4.0, 0.0), ("promote", "2")), ("loses", (0.0, 4.0), ("retire", "2"))):
        config = make(folder, name, None, noises=noises)
        models = [live_rows.model(noise) for noise in noises]
        frame, x = live_rows.stream("nothing", days=40, per_day=400)
        with Monitor(config) as monitor:
            answered = models[0].score(x)
            monitor.store.add_predictions(
                live_rows.stored(frame.assign(score=answered, decision=(answered > 0.15).astype(int)), x, name)
            )
            monitor.store.add_labels(live_rows.labels_of(frame), model=name)
            assert governor.challenge(config, BORN + timedelta(days=6), monitor=monitor) is None
            action = governor.challenge(config, BORN + timedelta(days=30), monitor=monitor)
            assert (action.kind, action.to_version) == expected
            assert promotion.state(config)["champion"] == ("2" if expected[0] == "promote" else "1")
            assert promotion.state(config)["challenger"] is None


# --- retraining ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def changed(folder) -> Config:
    """A model whose positives changed their pattern, with its training history as a file."""
    rows = live_rows.history(days=60, per_day=250)
    table = decode(rows.x, rows.schema).assign(ts=rows.time, label=rows.y)
    table.to_parquet(folder / "history.parquet")
    search = {
        "seconds": 60,
        "tune": False,
        "ensemble": "none",
        "candidates": [{"learner": "xgboost", "params": {"rounds": 60}}],
    }
    return make(
        folder,
        "changed",
        "new pattern",
        since=28,
        per_day=800,
        search=search,
        threshold={"calibration": "platt"},
        evaluate={"bootstraps": 60},
    )


def test_a_changed_pattern_is_retrained_on_what_serves_best_and_judged_on_rows_still_to_come(changed):
    config = changed
    with Monitor(config) as monitor:
        found = governor.triage(config, END, monitor=monitor)
        assert found.verdict == "retrain", found.reasons
        change = repair.change_point(monitor, monitor.known()["champion"], END)
        assert abs((change - (live_rows.START + timedelta(days=28))).days) <= 8
        action = governor.act(config, found, END, monitor=monitor)
        assert action.outcome == "challenger", action.reason
        assert action.numbers["history"] in ("since_change", "weighted")
        assert promotion.state(config) == {"champion": "1", "challenger": action.to_version, "previous": None}
        assert governor.challenge(config, END, monitor=monitor) is None
        assert (
            "challenger already"
            in governor.act(
                config, Verdict("retrain", ("x",), {}, "1", "other"), END + timedelta(days=9), monitor=monitor
            ).reason
        )


def test_history_is_the_training_rows_then_the_served_ones_without_overlap(changed):
    with Monitor(changed) as monitor:
        rows = repair.history_rows(monitor, monitor.known()["champion"], END)
    assert np.all(np.diff(rows.time.astype(np.int64)) >= 0)
    assert rows.time.max() <= np.datetime64((END - timedelta(days=7)).replace(tzinfo=None), "us")
    assert (rows.time < np.datetime64(live_rows.START, "us")).sum() == 15_000
    served = rows.take(rows.time >= np.datetime64(live_rows.START, "us"))
    assert len(served) == pytest.approx(56 * 800, abs=10)


# --- the same in steps, each a process of its own ---------------------------------------------------------------------


def test_a_repair_that_was_reserved_and_killed_is_taken_up_by_its_owner_and_done_once(folder):
    config = make(folder, "steps", "prevalence up", per_day=800)
    turn = governor.decide(config, END, owner="workflow")
    assert (turn.kind, turn.number) == ("rethreshold", 1)
    again = governor.decide(config, END, owner="workflow")
    assert (again.kind, again.number) == ("rethreshold", 1)
    other = governor.decide(config, END, owner="somebody else")
    assert (other.kind, other.number) == ("nothing", None)
    assert other.actions[-1].outcome == "refused"
    done = governor.repair(config, 1, END)
    assert done.outcome == "done"
    assert governor.repair(config, 1, END).outcome == "done"
    assert [entry.kind for entry in promotion.history(config)].count("rethreshold") == 1
    assert [entry.kind for entry in promotion.history(config)].count("outcome") == 1
    assert governor.close(config, "workflow", "Succeeded", END) is None
    assert governor.decide(config, END, owner="workflow").kind == "nothing"


def test_a_repair_whose_workflow_ended_badly_is_closed_as_failed_and_holds_nothing_back(folder):
    config = make(folder, "closed", "prevalence up", per_day=800)
    turn = governor.decide(config, END, owner="workflow")
    assert turn.number == 1
    closed = governor.close(config, "workflow", "Failed", END)
    assert closed is not None
    assert (closed.outcome, closed.reason) == ("failed", "the workflow ended: Failed")
    assert governor.repair(config, 1, END).outcome == "failed"


def test_a_turn_leaves_its_decision_as_words_beside_the_json(folder, tmp_path):
    config = make(folder, "written", "prevalence up", per_day=800)
    governor.write(tmp_path / "turn.json", governor.decide(config, END, owner="workflow"))
    assert (tmp_path / "turn.json.kind").read_text() == "rethreshold"
    assert (tmp_path / "turn.json.number").read_text() == "1"


def test_a_retrain_in_steps_trains_on_the_history_of_the_log_and_says_which_repair_it_was(changed, tmp_path):
    import json

    from rareclass.config import dump
    from rareclass.services.kubeflow import steps

    asked = json.dumps({"number": 7, "now": END.isoformat(), "reason": "because"})
    paths = [str(tmp_path / name) for name in ("ingested", "train", "validation", "test")]
    found = steps.ingest(json.dumps(dump(changed)), *paths, repair=asked)
    card = steps._load(paths[0]).value.card
    assert found["train_rows"] > 0
    assert (card["repair"], card["actor"], card["source"]) == (7, governor.ACTOR, "prediction log")
