"""`rareclass up` with real processes: it answers, imports, takes turns, starts again what died, and ends in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

import small_model
from rareclass import cli
from rareclass.adapters.store import Store
from rareclass.adapters.tracking import Tracker
from rareclass.config import Config, dump, parse
from rareclass.errors import ConfigError
from rareclass.services import promotion
from rareclass.services.admin import up

PATIENCE = 120.0


class Up:
    """A running command, mostly `rareclass up`, with what it printed."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rareclass.cli", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self._arrived = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._arrived:
                self.lines.append(line.rstrip())
                self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()

    def says(self, pattern: str, after: int = 0) -> re.Match[str]:
        """Wait for a line that matches, from line ``after`` on."""
        end = time.monotonic() + PATIENCE
        with self._arrived:
            while True:
                for line in self.lines[after:]:
                    if found := re.search(pattern, line):
                        return found
                left = end - time.monotonic()
                assert left > 0, f"{pattern!r} is not among: {self.lines}"
                assert self._thread.is_alive(), f"it ended without {pattern!r}: {self.lines}"
                self._arrived.wait(min(left, 1))

    def child(self, name: str) -> int:
        """The process id of the service called ``name``."""
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            if f"\0{name}\0-c\0".encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        raise AssertionError(f"{name} does not run")

    def ended(self) -> int:
        code = self.process.wait(PATIENCE)
        self._thread.join()
        return code


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    folder = tmp_path_factory.mktemp("up")
    made = small_model.config(folder)
    now = datetime.now(UTC)
    promotion.register(made, small_model.model(), Tracker(made.tracking.uri, "small").start("run").id, now=now)
    promotion.promote(made, "1", now=now)
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "spool": str(folder / "spool"), "shadows": False}
    often = {"labels_every": "2s", "triage_every": "10s", "retention_every": "1h", "backup_every": "10s"}
    return parse(
        {
            **dump(made),
            "serve": ports,
            "monitor": {"port": 0},
            "listen": {"port": 0, "spool": str(folder / "listen")},
            "up": {
                **often,
                "listen": True,
                "labels": str(folder / "labels"),
                "backup": str(folder / "backups"),
                "backup_keep": 2,
            },
        }
    )


@pytest.fixture
def file(config: Config, tmp_path: Path) -> Path:
    made = tmp_path / "config.json"
    made.write_text(json.dumps(dump(config)))
    return made


@pytest.fixture
def begin() -> Iterator[Callable[..., Up]]:
    running: list[Up] = []

    def command(arguments: Sequence[str], **options: Any) -> Up:
        running.append(Up(arguments, **options))
        return running[-1]

    yield command
    for one in running:
        if one.process.poll() is None:
            one.process.kill()


@pytest.fixture
def started(begin: Callable[..., Up]) -> Callable[..., Up]:
    return lambda file, *arguments: begin(["up", "-c", str(file), *arguments], cwd=file.parent)


def test_one_terminal_serves_watches_imports_takes_turns_cleans_and_backs_up_and_ends_in_order(config, file, started):
    folder = Path(config.up.labels).parent
    running = started(file)
    url = running.says(r"^serve +serving small version 1 at (http\S+)")[1]
    running.says(r"^monitor +monitor of 'small' on http")
    running.says(r"^listen +listening for 'small' on http")
    row = {"name": "amount", "shape": [1], "datatype": "FP32", "data": [3.0]}
    shop = {"name": "channel", "shape": [1], "datatype": "BYTES", "data": ["shop"]}
    body = json.dumps({"id": "one", "inputs": [row, shop]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
        assert json.load(answer)["id"] == "one"
    Path(config.up.labels).mkdir()
    (Path(config.up.labels) / "monday.csv").write_text("request_id,label\none,1\n")
    running.says(r"^labels +1 new, .*; next at")
    running.says(r"^triage +nothing .*; next at")
    running.says(r"^retention .* deleted; next at")
    running.says(r"^backup .*1 labels.*; next at")

    seen = len(running.lines)
    os.kill(running.child("serve"), signal.SIGKILL)
    running.says(r"^serve +ended with -9.*; started again in 1 s", seen)
    running.says(r"^serve +serving small version 1", seen)

    running.process.send_signal(signal.SIGINT)
    assert running.ended() == 0, running.lines
    assert "serve     stopped" in running.lines
    assert "monitor   stopped" in running.lines
    assert running.lines[-1] == "up        stopped"
    assert not any("Traceback" in line for line in running.lines)
    with Store(config.store.url) as store:
        counts = store.counts("small")
    assert (counts["predictions"], counts["labels"]) == (1, 1)  # imported at every turn: once
    assert 1 <= len([*(folder / "backups").iterdir()]) <= 2


def test_a_port_that_is_taken_is_one_line_before_anything_starts(config, file):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "rareclass.cli", "up", "-c", str(file), "--set", f"monitor.port={port}"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(rf"error: cannot listen on 127.0.0.1:{port}: .*Set monitor.port .*\n", done.stderr)
    both = config.model_copy(update={"serve": config.serve.model_copy(update={"http_port": port, "grpc_port": port})})
    with pytest.raises(ConfigError, match=r"Set serve\.grpc_port"):
        up.check_ports(both, up.units(both, "c.yaml"))


def test_what_keeps_ending_is_started_again_ever_more_slowly_and_says_why(file, started):
    running = started(file, "--only", "serve", "--set", "name=nobody")
    said = running.says(r"^serve +ended with 2 \((.*)\); started again in 1 s")
    assert "has no champion" in said[1]
    running.process.terminate()
    assert running.ended() == 0
    assert [up.Pauses().after(failures) for failures in (0, 1, 2, 5, 6, 99)] == [1, 2, 4, 32, 60, 60]


def test_only_what_is_set_up_and_asked_for_runs(config):
    plain = parse({"name": "x", "data": {"path": "d.csv", "target": "y"}})
    assert [unit.name for unit in up.units(plain, "c")] == ["serve", "monitor", "triage", "retention"]
    assert [unit.name for unit in up.units(config, "c")] == [*up.SERVICES, *up.JOBS]
    assert [unit.name for unit in up.units(config, "c", only=["backup", "serve"])] == ["serve", "backup"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["up", "-c", "nowhere.yaml", "--only", "server"])
    assert stop.value.code == 2


def test_label_files_are_read_again_only_when_one_of_them_changed(tmp_path):
    folder = tmp_path / "labels"
    assert up._content(str(folder)) is None
    folder.mkdir()
    assert up._content(str(folder)) is None
    (folder / "a.csv").write_text("x")
    first = up._content(str(folder))
    assert first == up._content(str(folder)) == up._content(str(folder / "*.csv"))
    (folder / "a.csv").write_text("xy")
    assert up._content(str(folder)) != first
    assert up._content("sqlite:///x#labels") != up._content("sqlite:///x#labels")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_systemd_units_are_accepted_by_systemd_and_run_the_same_commands(file, tmp_path, capsys):
    folder = tmp_path / "units with 100% space"
    with pytest.raises(SystemExit) as stop:
        cli.main(["up", "-c", str(file), "--set", "data.path=a $HOME 5%.csv", "--systemd", str(folder)])
    assert stop.value.code == 0
    assert "systemctl --user start rareclass-small.target" in capsys.readouterr().out.replace("\n", "")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(
        [
            "rareclass-small.target",
            *(f"rareclass-small-{name}.service" for name in (*up.SERVICES, *up.JOBS)),
            *(f"rareclass-small-{name}.timer" for name in up.JOBS),
        ]
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(path) for path in folder.iterdir())],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )
    mine = [line for line in done.stderr.splitlines() if "rareclass" in line]
    assert mine == []
    text = (folder / "rareclass-small-triage.service").read_text()
    assert '"data.path=a $$HOME 5%%.csv"' in text
    assert "SuccessExitStatus=0 10 11 12 13" in text
    assert "OnUnitInactiveSec=10" in (folder / "rareclass-small-triage.timer").read_text()


def processes(file: Path, begin: Callable[..., Up]) -> dict[str, Up]:
    """Start what a compose file says, without its containers: the same commands in the same folder."""
    made = yaml.safe_load(file.read_text())
    running = {}
    for name, service in made["services"].items():
        entry, *command = [part.replace("$$", "$") for part in (*service["entrypoint"], *service["command"])]
        assert entry == "rareclass"
        [mounted] = service["volumes"]
        assert (mounted["target"], service["working_dir"]) == ("/work", "/work")
        environment = {**os.environ, **service["environment"]}
        running[name] = begin(command, cwd=mounted["source"], env=environment)
    return running


def test_what_the_compose_file_says_answers_watches_and_takes_turns(config, file, tmp_path, monkeypatch, begin):
    monkeypatch.chdir(file.parent)
    given = ["up", "-c", "config.json", "--set", "data.path=a $HOME.csv", "--compose", "out/compose.yaml"]
    with pytest.raises(SystemExit) as stop:
        cli.main(given)
    assert stop.value.code == 0
    written = tmp_path / "out/compose.yaml"
    made = yaml.safe_load(written.read_text())
    assert list(made["services"]) == ["serve", "monitor", "listen", "jobs"]
    for name, service in made["services"].items():
        assert service["image"].startswith("rareclass/pipeline:" if name == "jobs" else "rareclass/serving:")
        assert service["read_only"] is True
        assert "data.path=a $$HOME.csv" in service["command"], "compose would put the shell's HOME there"
        [secrets] = service["env_file"]
        assert secrets == {"path": str(written.parent / "rareclass-small.env"), "required": False}
        assert not any("TOKEN" in variable for variable in service["environment"]), "they would hide those of the file"
    running = processes(written, begin)
    running["serve"].says(r"^serving small version 1 at http://0\.0\.0\.0")
    assert running["serve"].lines[0].startswith("loading the champion of 'small' from sqlite:///"), "never silent"
    running["monitor"].says(r"^monitor of 'small' on http://0\.0\.0\.0")
    running["listen"].says(r"^listening for 'small' on http://0\.0\.0\.0")
    running["jobs"].says(r"^retention .* deleted; next at")
    for one in running.values():
        one.process.terminate()
    assert {one.ended() for one in running.values()} <= {0, -signal.SIGTERM}
    assert not any("Traceback" in line for one in running.values() for line in one.lines)
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    with pytest.raises(SystemExit) as stop:
        cli.main(["up", "-c", str(file), "--compose", "c.yaml"])
    assert stop.value.code == 2
    assert not (below / "c.yaml").exists()
