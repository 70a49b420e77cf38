"""The status page over a real store, registry and spool: what it says, what it reads, and what it lets nobody write
into it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
import sqlalchemy as sa

import live_rows
from rareclass.adapters.reports.status import HEADLINES, SIGNS, status_page
from rareclass.adapters.spool import Spool
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, parse
from rareclass.core.triage import Verdict
from rareclass.errors import NeedsApprovalError
from rareclass.services import promotion
from rareclass.services.live import monitor_app
from rareclass.services.live.ledger import REPAIRS
from rareclass.services.live.monitor import Monitor
from rareclass.services.live.status import gather, log_state, next_steps
from rareclass.services.serving.shipping import REJECTED, REUSED

NOW = (live_rows.START + timedelta(days=56)).replace(tzinfo=UTC)
EVIL = '"><script src=https://evil.example/x.js></script><b onmouseover=alert(1)>'
_VOID = {"meta", "br", "line", "rect", "link"}


class Page(HTMLParser):
    """What a browser would see: tags in balance, their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """A champion whose pattern changed on day 28, a challenger that knows the new one,
    and a ledger with hostile words.
    """
    folder = tmp_path_factory.mktemp("status")
    made = parse(
        {
            "name": "shop",
            "data": {"path": "none.parquet", "target": "label", "label_delay": "7d"},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "store": {"url": f"sqlite:///{folder}/shop.db"},
            "serve": {"spool": str(folder / "spool")},
            "threshold": {"max_alerts_per_day": 3},
            "costs": {"currency": "EUR", "false_negative": 100, "false_positive": 2},
            "monitor": {"bootstraps": 60, "port": 0, "every": "1h"},
        }
    )
    frame, x = live_rows.stream("pattern", days=56, per_day=400, since=28)
    with Store(made.store.url) as store:
        store.migrate()
        store.add_predictions(live_rows.stored(frame, x, "shop"))
        store.add_labels(live_rows.labels_of(frame), model="shop")
        better = 1 / (1 + live_rows.np.exp(-live_rows.changed_logit(x)))
        rows = frame[["request_id", "row", "ts"]].assign(
            model="shop", version="2", role="challenger", score=better, decision=(better >= 0.15).astype(int)
        )
        store.add_shadow_scores(rows[(rows["ts"] > live_rows.START + timedelta(days=28)).to_numpy()])
    tracker = Tracker(made.tracking.uri, "shop")
    for days, mode in ((40, "immediate"), (20, "shadow")):
        at = NOW - timedelta(days=days)
        version = promotion.register(made, live_rows.model(), tracker.start("run").id, now=at, reason=EVIL).version
        promotion.promote(made, version, now=at, mode=mode, actor=EVIL, reason=EVIL)
    return made


@pytest.fixture(scope="module")
def watch(config):
    watch = monitor_app.Watch(config, lambda: NOW)
    watch.once()
    assert watch.error == ""
    yield watch
    watch.stop()


def test_the_page_says_what_happened_on_what_evidence_and_what_comes_next(watch):
    text, _ = watch.page()
    page = Page(text)
    assert watch.verdict.verdict == "retrain"
    assert HEADLINES["retrain"] in page.text
    assert all(reason in page.text for reason in watch.verdict.reasons)
    assert "It is held back: version 2 is a challenger already" in page.text
    champion = watch.snapshot.live["1"]
    ap = champion.judged[-1].metric("ap")
    assert f"{ap.value:.3f}" in page.text
    assert f"[{ap.low:.3f},\u202f{ap.high:.3f}] · {ap.positives} positives" in page.text
    assert "EUR per 1,000 rows" in page.text
    assert champion.windows[-1].alerts_per_day > 3
    assert "of the rows · capacity 3, exceeded" in page.text
    right = champion.judged[-1].metric("precision")
    assert f"[{100 * right.low:.3g}\u202f%,\u202f{100 * right.high:.3g}\u202f%]" in page.text
    assert f"{champion.windows[-1].estimated_ap:.3f}" in page.text
    difference = watch.snapshot.paired["2"].difference
    assert difference.low > 0
    assert f"is ahead: {difference.value:+.3f}" in page.text
    assert f"reference {champion.reference_ap:.3g}" in page.text
    reload = next(attrs for attrs in page.named("meta") if attrs.get("http-equiv") == "refresh")
    assert reload["content"] == "300"


def test_every_chart_has_a_window_for_each_of_the_snapshot_and_the_promotion_is_marked(watch):
    charts = {c["aria-label"].partition(":")[0]: c for c in Page(watch.page()[0]).named("svg")}
    assert list(charts) == [
        "Average precision",
        "Prevalence",
        "EUR per 1,000 rows",
        "Alerts a day",
        "Columns that moved",
        "Drift of the score",
    ]
    parts = re.findall(r"<svg.*?</svg>", watch.page()[0], flags=re.DOTALL)
    windows = watch.snapshot.live["1"].windows
    alerts = parts[3]
    assert alerts.count('class="value') == len(windows)
    assert parts[0].count('<g class="other">') == 1
    assert parts[1].count('class="band"') == sum(w.state == "matured" for w in windows)
    assert all(SIGNS["promote"] in part and "version 1 promoted" in part for part in parts)
    for number in re.findall(r' (?:x1|x2|x)="([^"]+)"', "".join(parts)):
        assert 0 <= float(number) <= 400
    for number in re.findall(r' (?:y1|y2|y)="([^"]+)"', "".join(parts)):
        assert 0 <= float(number) <= 210


def test_nothing_that_others_wrote_becomes_markup_and_nothing_is_asked_of_any_host(watch):
    text, headers = watch.page()
    page = Page(text)
    assert EVIL in page.text  # shown, as text
    assert {tag for tag, _ in page.tags} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "h2",
        "h3",
        "p",
        "section",
        "strong",
        "ul",
        "li",
        "div",
        "span",
        "b",
        "i",
        "figure",
        "figcaption",
        "svg",
        "g",
        "line",
        "rect",
        "text",
        "dl",
        "dt",
        "dd",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "small",
        "footer",
        "a",
        "br",
    }
    for tag, attrs in page.tags:
        assert not {name for name in attrs if name.startswith("on") or name in ("src", "style", "srcset", "data")}
        assert tag != "a" or attrs["href"] in ("metrics", "snapshot.json")
    allowed = headers["Content-Security-Policy"]
    styles = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    for style in styles:
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in allowed
        assert "url(" not in style
        assert "@import" not in style
    assert allowed.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in allowed
    failed = status_page("shop", watch.status, error=EVIL)
    assert "<script" not in failed
    assert "<script" not in status_page("shop", None, error=EVIL)


def test_a_request_reads_neither_store_nor_registry_and_an_evaluation_is_drawn_once(config):
    watch = monitor_app.Watch(config, lambda: NOW)
    watch.once()
    asked: list[str] = []
    sa.event.listen(watch._monitor.store._engine, "before_cursor_execute", lambda *call: asked.append(call[2]))
    first, second = watch.page()[0], watch.page()[0]
    assert first is second
    assert asked == []
    watch.once()
    assert asked
    assert watch.page()[0] is not first
    watch.stop()


def test_a_failed_evaluation_stands_above_what_was_known_before(config):
    watch = monitor_app.Watch(config, lambda: NOW)
    assert "Nothing evaluated yet" in watch.page()[0]
    watch.once()
    watch._monitor.registry = None
    watch.once()
    page = Page(watch.page()[0])
    assert "The last evaluation failed" in page.text
    assert "What follows is of 2024-02-26 00:00 UTC" in page.text
    watch.stop()


def test_the_drift_of_a_window_that_is_over_is_computed_once_and_is_that_of_its_rows(config):
    with Monitor(config) as monitor:
        snapshot = monitor.evaluate(NOW)
        status = gather(monitor, snapshot, Verdict("nothing", ("all is well",)))
        over = [window for window in snapshot.live["1"].windows if window.end < NOW.replace(tzinfo=None)]
        assert [(point.start, point.end) for point in status.drift[:-1]] == [(w.start, w.end) for w in over]
        assert monitor.drift_of(over[0].start, over[0].end, NOW) is monitor.drift_of(over[0].start, over[0].end, NOW)
    with Monitor(config) as other:
        frame = other.store.window("shop", over[0].start, over[0].end, features=True)
        report = other._compared(frame, other.known()["champion"])[0]
    assert status.drift[0].share == report.drifted_share


def test_the_page_shows_the_ledger_that_the_verdict_was_reached_on(config):
    with Monitor(config) as monitor:
        snapshot = monitor.evaluate(NOW)
        with Store(config.store.url) as other:
            other.append("shop", "later", "page", "anna", "written after the evaluation", {"fingerprint": "x"}, NOW)
        status = gather(monitor, snapshot, Verdict("nothing", ("all is well",)))
        assert not [line for line in status.ledger if "after the evaluation" in line.reason]
        assert snapshot.events.get("page") is None
        again = monitor.evaluate(NOW)
        status = gather(monitor, again, Verdict("nothing", ("all is well",)))
    assert [line for line in status.ledger if "after the evaluation" in line.reason]


def test_labels_owed_are_counted_from_the_rows_that_are_old_enough(config):
    with Store(config.store.url) as store:
        start, due = NOW - timedelta(days=20), NOW - timedelta(days=7)
        rows = store.window("shop", start, NOW)
        old = rows[(rows["ts"] < due.replace(tzinfo=None)).to_numpy()]
        counted = store.tally("shop", start, NOW, due_before=due)
    assert (counted.rows, counted.due, counted.left_out) == (len(rows), len(old), 0)
    assert counted.owed == int(old["label"].isna().sum()) == 0
    assert counted.owed_since is None


def test_the_log_on_its_way_has_an_age_and_what_was_not_stored_is_counted(config, tmp_path):
    elsewhere = config.model_copy(update={"serve": config.serve.model_copy(update={"spool": str(tmp_path / "spool")})})
    assert log_state(elsewhere) is None
    moment = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)
    with Spool(tmp_path / "spool") as spool:
        spool.append([json.dumps({"kind": "prediction", "ts": [moment + 5, moment]}).encode(), b"later"])
        (tmp_path / "spool" / REUSED).write_text("3")
        (tmp_path / "spool" / REJECTED).write_text("{}\n{}\n")
        found = log_state(elsewhere)
    assert (found.spools, found.reused, found.rejected) == (1, 3, 2)
    assert found.waiting_since == datetime(2026, 1, 1, tzinfo=UTC)
    assert found.waiting_bytes > 0
    facts = Page(status_page("x", _with_log(config, found))).text
    assert "bytes wait, the oldest for" in facts
    assert "3 rows were not stored" in facts


def _with_log(config: Config, log):
    with Monitor(config) as monitor:
        snapshot = monitor.evaluate(NOW)
        status = gather(monitor, snapshot, Verdict("page", ("labels stopped",), version="1"))
    return type(status)(**{name: getattr(status, name) for name in status.__dataclass_fields__} | {"log": log})


@pytest.mark.parametrize("kind", ["nothing", *REPAIRS, "page"])
def test_each_verdict_has_a_headline_and_the_next_step(config, kind):
    with Monitor(config) as monitor:
        snapshot = monitor.evaluate(NOW)
        verdict = Verdict(kind, ("why",), version="1", fingerprint="f")
        steps = next_steps(config, verdict, snapshot, [])
    assert kind in HEADLINES
    assert bool(steps) == (kind != "nothing")
    if kind in REPAIRS:
        assert "triage -c CONFIG --act" in steps[-1]


def test_a_version_that_waits_for_a_person_is_on_the_page(config, tmp_path):
    manual = parse(
        {
            "name": "manual",
            "data": {"path": "none.parquet", "target": "label", "label_delay": "7d"},
            "tracking": {"uri": config.tracking.uri},
            "store": {"url": f"sqlite:///{tmp_path}/shop.db"},
            "monitor": {"bootstraps": 60},
            "promotion": {"mode": "manual"},
        }
    )
    run = Tracker(manual.tracking.uri, "manual").start("run")
    version = promotion.register(manual, live_rows.model(), run.id, now=NOW).version
    with pytest.raises(NeedsApprovalError):
        promotion.promote(manual, version, now=NOW)
    watch = monitor_app.Watch(manual, lambda: NOW)
    watch.once()
    page = Page(watch.page()[0])
    watch.stop()
    assert watch.error == ""
    assert "A version waits for approval" in page.text
    assert "rareclass approve -c CONFIG 1 --reason WHY" in page.text


def test_windows_of_minutes_and_a_path_without_features_have_a_page_too(config, tmp_path):
    short = parse(
        {
            "name": "short",
            "data": {"path": "none.parquet", "target": "label", "label_delay": "1h"},
            "tracking": {"uri": config.tracking.uri},
            "store": {"url": f"sqlite:///{tmp_path}/shop.db"},
            "monitor": {"bootstraps": 60, "window": "2h"},
        }
    )
    frame, x = live_rows.stream("nothing", days=2, per_day=4000)
    with Store(short.store.url) as store:
        store.migrate()
        store.add_predictions(live_rows.stored(frame, x, "short").drop(columns="features"))
    watch = monitor_app.Watch(short, lambda: live_rows.START + timedelta(days=1))
    watch.once()
    page = Page(watch.page()[0])
    watch.stop()
    assert watch.error == ""
    assert "12:00 – 14:00" in page.text
    assert "nothing to show yet" in page.text  # no drift without features
