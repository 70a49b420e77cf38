"""Faults that must cost nothing: predictions through a real server, shipper and store while things are killed and lie.

`rareclass serve` runs as a user starts it, clients send batches of rows without pause, and each line of the table is
one fault that happens in the meantime; then everything is shipped and the store is asked what it has. Answered: rows
whose answer reached a client with HTTP 200. Lost: answered, not stored. Double: stored more than once. A row that is
stored and whose answer never arrived is neither. Once over SQLite, once over the machine's own PostgreSQL in a private
cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._common import BIN, Claim, announce, claim, environment, table

TESTS = Path(__file__).parents[1] / "tests"
SHORT = ["--rows", "100000"]
FULL = ["--rows", "200000"]
PER_REQUEST, CLIENTS = 20, 4
POISON = 1000.0  # an amount that the poisoned challenger raises at
SKEW = """
import os, time
_real = time.time
if "RARECLASS_BENCH_SKEW" in os.environ:
    time.time = lambda: _real() + float(os.environ["RARECLASS_BENCH_SKEW"])
import poisoned  # its learners become known to this process
"""


def until(condition: Callable[[], Any], patience: float = 120) -> Any:
    """Wait for a condition and return its value. Raises RuntimeError when it never comes true."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError("waited in vain")
        time.sleep(0.02)
    return value


STARTED: list[subprocess.Popen[str]] = []


class Server:
    """`rareclass serve` and its shipper."""

    def __init__(self, config: Any, folder: Path, **more: str) -> None:
        from rareclass.config import dump

        self.config, self.folder = config, folder
        file = folder / "config.json"
        file.write_text(json.dumps(dump(config)))
        paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)])}
        with (folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [str(BIN / "rareclass"), "serve", "-c", str(file)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment(**paths, **more),
            )
        STARTED.append(self.process)
        assert self.process.stdout is not None
        line = next((said for said in self.process.stdout if said.startswith("serving ")), "")  # it loads before
        if not line:
            raise RuntimeError((folder / "server.log").read_text()[-2000:])
        self.port = int(line.split("/v2/")[0].rsplit(":", 1)[1])

    def shipper(self) -> int | None:
        """Process id of the shipper, None while there is none."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
                command = (stat.parent / "cmdline").read_bytes()
                if (
                    state != "Z"
                    and int(parent) == self.process.pid
                    and b"rareclass.services.serving.shipping" in command
                ):
                    return int(stat.parent.name)
        return None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """End it as Kubernetes does, with SIGTERM; what is logged is shipped first."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(180)


@dataclass
class Traffic:
    """Clients that send without pause until ``wanted`` requests are answered; each id is sent once, or again on
    purpose.
    """

    name: str
    wanted: int
    server: Server
    amount: float = 1.0
    again: tuple[str, ...] = ()
    """ids that were answered before and are sent once more, as by a client that lost the answer"""
    open_end: bool = False
    """go on, slowly, after ``wanted`` until ``finish`` is called: faults need traffic when they happen"""
    answered: set[str] = field(default_factory=set)
    errors: int = 0

    def __post_init__(self) -> None:
        self._numbers, self._resend, self._stop = itertools.count(), iter(self.again), threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _next(self) -> str | None:
        with self._lock:
            if self.again:
                return next(self._resend, None)
            enough = len(self.answered) >= self.wanted
            if enough and (not self.open_end or self._stop.is_set()):
                return None
        if enough:
            time.sleep(0.05)
        return f"{self.name}-{next(self._numbers)}"

    def _send(self) -> None:
        data = [value for at in range(PER_REQUEST) for value in (self.amount + at % 4, at % 2)]
        tensor = {"name": "rows", "shape": [PER_REQUEST, 2], "datatype": "FP32", "data": data}
        connection: http.client.HTTPConnection | None = None
        while (key := self._next()) is not None:
            try:
                connection = connection or http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
                body = json.dumps({"id": key, "inputs": [tensor]})
                connection.request("POST", "/v2/models/small/infer", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                said = answer.read()
                good = answer.status == 200 and json.loads(said)["id"] == key
            except (OSError, http.client.HTTPException):
                connection, good = None, False
                time.sleep(0.2)  # nobody listens: do not count the same outage a thousand times
            with self._lock:
                if good:
                    self.answered.add(key)
                else:
                    self.errors += 1

    def reached(self, share: float) -> None:
        """Wait until that share of the requests is answered."""
        until(lambda: len(self.answered) >= share * self.wanted)

    def finish(self) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(600)


@dataclass
class Line:
    """A line of the table, in rows."""

    fault: str
    answered: int
    stored: int
    lost: int
    double: int
    errors: int
    note: str = ""


class Course:
    """All faults over one store."""

    def __init__(self, base: Any, url: str, folder: Path, rows: int, versions: dict[str, str]) -> None:
        self.base, self.url, self.folder, self.versions = base, url, folder, versions
        self.wanted = max(40, rows // 10 // PER_REQUEST)
        self.traffic: list[tuple[str, list[Traffic], str]] = []
        self.lines: list[Line] = []
        (folder / "sitecustomize.py").write_text(SKEW)

    def config(self, spool: Path | None = None, **serve: Any) -> Any:
        from rareclass.config import dump, parse

        settings = {
            "http_port": 0,
            "grpc_port": 0,
            "metrics_port": 0,
            "spool": str(spool or self.folder / "spool"),
            "refresh_seconds": 0.5,
            "shadows": False,
            **serve,
        }
        return parse(
            {**dump(self.base), "store": {"url": self.url}, "serve": settings, "monitor": {"port": 0, "every": "1s"}}
        )

    def send(self, name: str, server: Server, **more: Any) -> Traffic:
        return Traffic(name, self.wanted, server, **more)

    def done(self, fault: str, *traffic: Traffic, note: str = "") -> None:
        for each in traffic:
            each.join()
        print(f"{time.strftime('%H:%M:%S')} {fault}", file=sys.stderr, flush=True)
        self.traffic.append((fault, list(traffic), note))

    def stored(self) -> int:
        """Rows in the store; 0 before there is one."""
        from rareclass.adapters.store import Store
        from rareclass.errors import StoreError

        try:
            with Store(self.url) as store:
                return int(store.counts("small")["predictions"])
        except StoreError:
            return 0

    def growing(self) -> None:
        """Wait until rows arrive in the store."""
        before = self.stored()
        until(lambda: self.stored() > before)

    def run(self, postgres: Any | None) -> list[Line]:
        """Play every fault and return the lines."""
        server = Server(self.config(), self.folder)
        first = self.send("nothing", server)
        first.join()
        self.done("nothing happens", first)
        until(lambda: self.stored() >= len(first.answered) * PER_REQUEST)
        repeated = self.send("nothing", server, again=tuple(sorted(first.answered)))
        self.done("every request is sent a second time", repeated)
        self._shippers(server)
        self._store_goes(server, postgres)
        self._two_monitors(server)
        server = self._killed_servers(server)
        server.stop()
        self._skewed_clocks()
        self._poisoned()
        self._full_disk()
        Server(self.config(), self.folder).stop()  # whatever a killed one left is shipped by the next
        self._count()
        self._labels()
        return self.lines

    def _shippers(self, server: Server) -> None:
        """Each killed one has shipped something, and requests go on."""
        sent, kills = self.send("shipper", server, open_end=True), 0
        for _ in range(3):
            self.growing()
            os.kill(until(server.shipper), signal.SIGKILL)
            kills += 1
        self.growing()
        sent.finish()
        self.done(f"kill -9 of the shipper, {kills} times", sent)

    def _store_goes(self, server: Server, postgres: Any | None) -> None:
        sent = self.send("store", server, open_end=postgres is not None)
        if postgres is not None:
            for share in (0.5, 1.0):
                self.growing()
                postgres.kill()
                sent.reached(share)
                postgres.start()
            self.growing()
            sent.finish()
            self.done("kill -9 of PostgreSQL, twice", sent)
            return
        path = self.url.removeprefix("sqlite:///")
        other = sqlite3.connect(path, timeout=60, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        sent.join()
        other.execute("ROLLBACK")
        other.close()
        self.done("the SQLite file is locked by another", sent)

    def _two_monitors(self, server: Server) -> None:
        """Two that evaluate every second, while predictions come; then until each has evaluated once more."""
        from postgres import free_port
        from rareclass.adapters.store import Store

        log = (self.folder / "monitors.log").open("w+")
        ports, both = [free_port(), free_port()], []
        for port in ports:
            command = [
                str(BIN / "rareclass"),
                "monitor",
                "-c",
                str(self.folder / "config.json"),
                "--set",
                f"monitor.port={port}",
            ]
            both.append(
                subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    text=True,
                    env=environment(PYTHONPATH=os.pathsep.join([str(self.folder), str(TESTS)])),
                )
            )
        STARTED.extend(both)
        with Store(self.url) as store:
            before = len(store.entries("small"))
        note = ""
        try:
            first = [until(lambda port=port: evaluated(port)) for port in ports]
            sent = self.send("monitors", server)
            sent.join()
            for port, seen in zip(ports, first, strict=True):
                until(lambda port=port, seen=seen: (evaluated(port) or seen) > seen)
        except RuntimeError:
            log.seek(0)
            note = f"a monitor did not evaluate, NOT a test: {log.read()[-300:]}; "
            sent = self.send("monitors", server)
        alive = sum(each.poll() is None for each in both)
        for each in both:
            each.terminate()
        for each in both:
            each.wait(60)
        log.close()
        with Store(self.url) as store:
            entries = store.entries("small")
        keys = [(each.kind, each.key) for each in entries]
        double = len(keys) - len(set(keys))
        note += f"{alive} of 2 alive, {len(entries) - before} ledger lines, {double} double"
        self.done("two monitors at once", sent, note=note)

    def _killed_servers(self, server: Server) -> Server:
        sent = self.send("server", server)
        for share in (0.25, 0.5, 0.75):
            sent.reached(share)
            server.kill()
            server = sent.server = Server(self.config(), self.folder)
        self.done("kill -9 of the server, 3 times", sent)
        return server

    def _skewed_clocks(self) -> None:
        """A clock three days ahead, then two days behind; the requests of the first are sent again to the second."""
        server = Server(self.config(), self.folder, RARECLASS_BENCH_SKEW=str(3 * 86400))
        ahead = self.send("ahead", server)
        ahead.join()
        server.kill()
        server = Server(self.config(), self.folder, RARECLASS_BENCH_SKEW=str(-2 * 86400))
        behind = self.send("ahead", server, again=tuple(sorted(ahead.answered)))
        behind.join()
        server.stop()
        behind.errors += ahead.errors
        self.done("clock 3 days ahead, killed, again 2 days behind", behind)

    def _poisoned(self) -> None:
        from rareclass.adapters.registry import Registry
        from rareclass.adapters.store import Store

        registry = Registry(self.base.tracking.uri)
        registry.point("small", {"challenger": self.versions["poisoned"]})
        server = Server(self.config(shadows=True), self.folder)
        sent = self.send("poisoned", server, amount=POISON, open_end=True)
        raised = "SELECT COUNT(*) AS rows FROM shadow_scores WHERE error IS NOT NULL"

        def failures() -> int:
            with Store(self.url) as store:
                return int(store.query(raised)["rows"].iloc[0])

        note = ""
        try:
            until(failures)
        except RuntimeError:
            note = "the challenger never raised, NOT a test; "
        sent.finish()
        server.stop()
        registry.point("small", {"challenger": None})
        self.done("a poisoned challenger raises", sent, note=f"{note}{failures():,} rows of its own stored as failed")

    def _full_disk(self) -> None:
        with small_disk(self.folder / "disk") as disk:
            if disk is None:
                self.lines.append(
                    Line("the spool's disk is full", 0, 0, 0, 0, 0, "not run: mounting a small tmpfs needs root")
                )
                return
            server = Server(self.config(spool=disk / "spool", spool_limit_bytes=1 << 20), self.folder)
            sent = self.send("disk", server)
            sent.reached(0.3)
            filler = disk / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            errors = sent.errors
            refused = True
            try:
                until(lambda: sent.errors > errors + 10, 30)
            except RuntimeError:
                refused = False
            filler.unlink()
            sent.join()
            server.stop()
            self.done(
                "the spool's disk is full",
                sent,
                note="requests were refused with 503" if refused else "the disk never was full, NOT a test",
            )

    def _count(self) -> None:
        from rareclass.adapters.store import Store

        with Store(self.url) as store:
            window = store.window("small", "1970-01-01", "2100-01-01")
        self.window = window
        ids = window["request_id"]
        prefix = ids.str.rpartition("-")[0]
        double = window.duplicated(["request_id", "row"])
        per_request = window.drop_duplicates(["request_id", "row"]).groupby("request_id").size()
        for fault, traffic, note in self.traffic:
            answered = set().union(*(each.answered for each in traffic))
            names = {each.name for each in traffic}
            stored = per_request.reindex(sorted(answered), fill_value=0)
            lost = int((PER_REQUEST - stored).clip(lower=0).sum())
            mine = prefix.isin(names)
            self.lines.append(
                Line(
                    fault,
                    len(answered) * PER_REQUEST,
                    int(stored.sum()),
                    lost,
                    int((double & mine).sum()),
                    sum(each.errors for each in traffic),
                    note,
                )
            )

    def _labels(self) -> None:
        """Early, late, duplicated and corrected labels, imported as files; the last one observed counts."""
        from rareclass.adapters.store import Store
        from rareclass.services.live.labels import import_labels

        config, now = self.config(), datetime.now(UTC)
        known = self.window.drop_duplicates(["request_id", "row"])
        known = known[known["request_id"].str.startswith("nothing-")].sort_values(["request_id", "row"])
        rng = np.random.default_rng(0)
        labels = pd.DataFrame(
            {"request_id": known["request_id"], "row": known["row"], "label": rng.integers(0, 2, len(known))}
        )
        labels["observed_at"] = now - timedelta(hours=1)
        half = len(labels) // 2
        late, early = (
            labels.iloc[:half],
            labels.iloc[half:].assign(request_id=lambda t: t["request_id"].str.replace("nothing", "early")),
        )
        corrected = late.iloc[::10].assign(label=lambda t: 1 - t["label"], observed_at=now)
        stale = late.iloc[1::10].assign(label=lambda t: 1 - t["label"], observed_at=now - timedelta(days=2))
        files = [
            ("early", early, 0),
            ("late", late, 60),
            ("late again", late, 61),
            ("corrected", corrected, 62),
            ("stale", stale, 63),
        ]
        errors = 0
        for name, frame, days in files:
            path = self.folder / f"labels {name}.parquet"
            frame.to_parquet(path, index=False)
            for _ in range(2 if name == "corrected" else 1):
                errors += self._imported(
                    lambda path=path, days=days: import_labels(config, path, now + timedelta(days=days))
                )
        server = Server(self.config(), self.folder)  # now come the predictions of the early labels
        asked = sorted(early["request_id"].unique())
        sent = Traffic("early", len(asked), server, again=tuple(asked))
        sent.join()
        server.stop()
        with Store(self.url) as store:
            window = store.window("small", "1970-01-01", "2100-01-01")
        expected = (
            pd.concat([early[early["request_id"].isin(sent.answered)], late])
            .set_index(["request_id", "row"])["label"]
            .astype(float)
        )
        expected.update(corrected.set_index(["request_id", "row"])["label"].astype(float))
        found = window[window["request_id"].str.startswith(("nothing-", "early-"))]
        double = int(found.duplicated(["request_id", "row"]).sum())
        joined = (
            found.drop_duplicates(["request_id", "row"])
            .set_index(["request_id", "row"])["label"]
            .reindex(expected.index)
        )
        right = int((joined == expected).sum())
        note = (
            f"{len(early):,} came before their prediction, {len(late):,} 60 days late and twice, {len(corrected):,} "
            f"corrected twice, {len(stale):,} outdated"
        )
        self.lines.append(
            Line(
                "labels early, late, duplicated, corrected",
                len(expected),
                right,
                len(expected) - right,
                double,
                errors + sent.errors,
                note,
            )
        )

    @staticmethod
    def _imported(work: Callable[[], Any]) -> int:
        """1 when an import failed."""
        from rareclass.errors import RareclassError

        try:
            work()
        except RareclassError as error:
            print(f"label import: {error}", file=sys.stderr)
            return 1
        return 0


def evaluated(port: int) -> str | None:
    """When the monitor at a port evaluated last; None before its first evaluation."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/healthz")
        found = json.loads(connection.getresponse().read()).get("evaluated")
        return None if found is None else str(found)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of 8 MiB; None where it cannot be mounted."""
    folder.mkdir()
    made = (
        os.getuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    try:
        yield folder if made else None
    finally:
        if made:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def registered(folder: Path) -> tuple[Any, dict[str, str]]:
    """A registry with a champion, and a version that raises."""
    import poisoned
    import small_model
    from rareclass.adapters.registry import Registry
    from rareclass.adapters.tracking import Tracker
    from rareclass.core.calibration import Identity
    from rareclass.core.model import RareModel
    from rareclass.services import promotion

    config = small_model.config(folder)
    tracker = Tracker(config.tracking.uri, "small")
    raising = RareModel(small_model.SCHEMA, poisoned.Raising(), Identity(), {"default": 0.6})
    raising = raising.with_golden(np.array([[0, 0], [1, 1]], dtype=np.float32))
    found = {}
    for name, model in (("champion", small_model.model(1)), ("poisoned", raising)):
        found[name] = promotion.register(config, model, tracker.start(name).id, now=datetime.now(UTC)).version
    Registry(config.tracking.uri).point(
        config.name, {"champion": found["champion"], "challenger": None, "previous": None}
    )
    return config, found


def play(backend: str, rows: int) -> list[Line]:
    """All faults over one backend; empty where it is not installed."""
    sys.path.insert(0, str(TESTS))
    from postgres import NotInstalledError, discard, new_server

    folder = Path(tempfile.mkdtemp(prefix="rareclass-faults-"))
    postgres = None
    try:
        if backend == "PostgreSQL":
            try:
                postgres = new_server()
            except NotInstalledError as error:
                print(f"PostgreSQL is left out: needs {error}")
                return []
        url = f"sqlite:///{folder}/predictions.db" if postgres is None else postgres.url()
        config, versions = registered(folder)
        return Course(config, url, folder, rows, versions).run(postgres)
    finally:
        for process in STARTED:  # none is left when a fault was too much
            if process.poll() is None:
                process.kill()
                process.wait()
        if postgres is not None:
            discard(postgres)
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, default=100_000, help="predictions over each store, at least about this many"
    )
    parser.add_argument("--stores", nargs="+", default=["SQLite", "PostgreSQL"], choices=["SQLite", "PostgreSQL"])
    options = parser.parse_args(arguments)
    claims = []
    for backend in options.stores:
        lines = play(backend, options.rows)
        if not lines:
            continue
        table(
            [f"fault ({backend})", "answered", "stored", "lost", "double", "errors seen by the client", ""],
            [
                [line.fault, f"{line.answered:,}", f"{line.stored:,}", line.lost, line.double, line.errors, line.note]
                for line in lines
            ],
        )
        print()
        answered = sum(line.answered for line in lines)
        for what in ("lost", "double"):
            count = sum(getattr(line, what) for line in lines)
            text = f"{backend}: rows {what} of {answered:,} answered, over all faults"
            claims.append(
                claim(
                    "faults",
                    text,
                    ours=count,
                    peer=None,
                    goal=0,
                    rule="at most",
                    holds=not any("NOT a test" in line.note for line in lines),
                )
            )
    return announce(claims)


if __name__ == "__main__":
    main()
