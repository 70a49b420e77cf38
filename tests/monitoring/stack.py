"""A real Prometheus and a real Alertmanager on free ports, over a monitor's and a server's real exposition."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from prometheus_client import CollectorRegistry, generate_latest

import live_rows
from conftest import free_port, missing
from rareclass.adapters import exporter
from rareclass.adapters.serving.metrics import Metrics
from rareclass.core import drift, liveness, triage

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
DAYS = 63
NOW = (live_rows.START + timedelta(days=DAYS)).replace(tzinfo=UTC)
STEP = "300ms"
T = TypeVar("T")


def snapshot(cause: str, data: str = "nothing") -> triage.Snapshot:
    """What the monitor finds when the labels show ``cause`` and the features show ``data``."""
    reference = live_rows.profile()
    frame, _ = live_rows.stream(cause, days=DAYS, per_day=500)
    _, x = live_rows.stream(data, days=DAYS, per_day=500)
    newest = x[-3500:]
    live = liveness.evaluate(
        frame.assign(version="7"), now=NOW, version="7", profile=reference, settings=live_rows.settings()
    )
    shadow = frame.assign(shadow_score=frame["score"] ** 0.9, shadow_decision=frame["decision"])
    report = drift.compare(reference, newest, live_rows.score(newest), limits=live_rows.LIMITS)
    return triage.Snapshot(
        model="live",
        now=NOW,
        champion="7",
        roles={"7": "champion", "6": "previous"},
        live={"7": live},
        paired={"6": liveness.paired(shadow, now=NOW, settings=live_rows.settings())},
        drift=report,
        fresh=report,
        profile=reference,
        schema_errors=(),
        prevalence_baseline=reference.prevalence,
        estimated_prevalence=0.011,
        estimated_interval=(0.008, 0.015),
        costs_moved="",
        new_positives=100,
        min_new_positives=30,
        calibration_bound=1.5,
        prevalence_bound=1.5,
        alert_capacity=20.0,
        events={
            "promote": (2, datetime.now(UTC) - timedelta(days=9)),
            "rollback": (1, datetime.now(UTC) - timedelta(days=2)),
        },
        evidently={"share": 0.6, "version": "7", "at": datetime.now(UTC).isoformat()},
    )


class Exposed:
    """/monitor and /server as Prometheus scrapes them; every scrape of the server finds some more traffic."""

    def __init__(self, found: triage.Snapshot) -> None:
        self.found = found
        self.registry = CollectorRegistry()
        self.server = Metrics(self.registry, "live", depth=lambda: 60, limit=100)
        self.server.serving("7", "default", 0.15)
        self.rng = np.random.default_rng(0)

    def monitor(self) -> bytes:
        verdict = triage.triage(self.found.evidence, live_rows.LIMITS)
        return exporter.render(replace(self.found, now=datetime.now(UTC)), verdict, model="live", duration=0.4)

    def traffic(self) -> bytes:
        scores = self.rng.beta(0.3, 20, 200)
        for code, seconds in ((200, 0.004), (200, 0.03), (400, 0.001), (503, 0.3)):
            self.server.request(code, seconds)
        self.server.answered("7", scores, int((scores >= 0.15).sum()))
        self.server.shadow.labels("live", "scored").inc(200)
        return generate_latest(self.registry)


class Hook:
    """What Alertmanager posted, by path, with the token it showed."""

    def __init__(self) -> None:
        self.received: dict[str, queue.Queue[tuple[str, dict[str, Any]]]] = {
            "/triage": queue.Queue(),
            "/page": queue.Queue(),
        }

    def alert(self, path: str, name: str, seconds: float = 90) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Wait for a notification with the alert; return (token, payload, alert)."""
        until = time.monotonic() + seconds
        while True:
            token, payload = self.received[path].get(timeout=max(until - time.monotonic(), 0.01))
            for one in payload["alerts"]:
                if one["labels"]["alertname"] == name:
                    return token, payload, one


class Stack:
    """The running pair."""

    def __init__(self, exposed: Exposed, hook: Hook, prometheus: str, alertmanager: str) -> None:
        self.exposed, self.hook, self.url, self.alertmanager = exposed, hook, prometheus, alertmanager

    def query(self, expression: str) -> list[dict[str, Any]]:
        return get(f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")["data"]["result"]

    def alerts(self) -> list[dict[str, Any]]:
        return get(f"{self.alertmanager}/api/v2/alerts")


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def until(what: str, condition: Callable[[], T], seconds: float = 90) -> T:
    """Return the first true value of a condition; fail by name when time is up."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while True:
        try:
            found = condition()
        except OSError:
            found = None  # not listening yet
        if found:
            return found
        assert time.monotonic() < end, f"waited {seconds:g} s in vain for {what}"
        pause.wait(0.1)


@contextmanager
def http(get_: Callable[[str], bytes], post: Callable[[str, str, bytes], None]) -> Iterator[str]:
    """Serve two functions on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = get_(self.path)
            self.send_response(200)
            self.send_header("Content-Type", exporter.CONTENT_TYPE)
            self.end_headers()
            with suppress(BrokenPipeError):  # whoever asked may have lost patience
                self.wfile.write(body)

        def do_POST(self) -> None:
            post(self.path, self.headers.get("Authorization", ""), self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def process(command: list[str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        running = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        running.terminate()
        running.wait(timeout=30)


def impatient_rules(folder: Path) -> None:
    """The committed rules, word for word but for how long they wait."""
    for path in (MONITORING / "rules").glob("*.yaml"):
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            group["interval"] = STEP
            for rule in group["rules"]:
                if "for" in rule:
                    rule["for"] = "0s"
        (folder / path.name).write_text(yaml.safe_dump(rules))


def impatient_alertmanager(folder: Path, hook: str) -> Path:
    """The committed configuration with this test's addresses, tokens and patience."""
    config = yaml.safe_load((MONITORING / "alertmanager" / "alertmanager.yaml").read_text())
    for receiver in config["receivers"]:
        (webhook,) = receiver["webhook_configs"]
        webhook["url"] = f"http://{hook}/{receiver['name']}"
        token = folder / f"{receiver['name']}-token"
        token.write_text(f"secret of {receiver['name']}")
        webhook["http_config"]["authorization"]["credentials_file"] = str(token)
    for route in (config["route"], *config["route"]["routes"]):
        route.update(group_wait="100ms", group_interval="500ms")
    path = folder / "alertmanager.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def running(folder: Path, first: triage.Snapshot) -> Iterator[Stack]:
    """Start everything and wait until the first evaluation of the rules is through."""
    for binary in ("prometheus", "prometheus-alertmanager"):
        if shutil.which(binary) is None:
            missing(f"{binary} (Debian: apt-get install {binary})")
    exposed, hook = Exposed(first), Hook()
    pages = {"/monitor": exposed.monitor, "/server": exposed.traffic}
    with ExitStack() as stack:
        served = stack.enter_context(
            http(
                lambda path: pages[path](),
                lambda path, token, body: hook.received[path].put((token, json.loads(body))),
            )
        )
        ports = free_port(), free_port()
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        rules = folder / "rules"
        rules.mkdir()
        impatient_rules(rules)
        jobs = [
            {
                "job_name": path.strip("/"),
                "metrics_path": path,
                "static_configs": [{"targets": [served], "labels": {"namespace": "ml"}}],
            }
            for path in pages
        ]
        config = {
            "global": {"scrape_interval": STEP, "scrape_timeout": STEP, "evaluation_interval": STEP},
            "rule_files": [f"{rules}/*.yaml"],
            "scrape_configs": [{**job, "scrape_interval": "1s", "scrape_timeout": "1s"} for job in jobs],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[1]}"]}]}]},
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        stack.enter_context(
            process(
                [
                    "prometheus-alertmanager",
                    f"--config.file={impatient_alertmanager(folder, served)}",
                    f"--storage.path={folder}/alertmanager",
                    f"--web.listen-address=127.0.0.1:{ports[1]}",
                    "--cluster.listen-address=",
                ],
                folder / "alertmanager.log",
            )
        )
        stack.enter_context(
            process(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yaml",
                    f"--storage.tsdb.path={folder}/tsdb",
                    f"--web.listen-address=127.0.0.1:{ports[0]}",
                ],
                folder / "prometheus.log",
            )
        )
        made = Stack(exposed, hook, *urls)
        until("Alertmanager", lambda: get(f"{urls[1]}/api/v2/status")["config"])
        until("the first recorded series", lambda: made.query("rareclass:champion:info"))
        yield made
