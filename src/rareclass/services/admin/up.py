"""Everything live of one machine in one terminal: server, monitor, and what runs on a schedule, each a process of its
own.

A service is started again when it ends, after a pause that doubles while it keeps ending; a job runs at its times, one
run after the other. Whatever they print comes out with their name in front. Stopping lets each end by itself: servers
drain their log (SIGTERM), jobs record that they were stopped (SIGINT).
"""

from __future__ import annotations

import asyncio
import glob
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from rareclass.config import Config, format_duration
from rareclass.core.verdicts import EXIT_CODES
from rareclass.network import bound

PORTS = {"serve": ("http_port", "grpc_port", "metrics_port"), "monitor": ("port",), "listen": ("port",)}
"""Service -> the settings of its ports; each has its section of the configuration."""
SERVICES = tuple(PORTS)
JOBS = ("labels", "triage", "retention", "backup")
SETTLED_SECONDS = 60.0
"""A service that ran this long has started well: the next pause is the first one again."""
STOP_SECONDS = 90.0
"""How long a process may take to end before it is killed; the server's drain takes at most 40."""
TRIAGED = frozenset(EXIT_CODES.values())
"""Exit codes of `rareclass triage` that are verdicts."""
Say = Callable[[str, str], None]


@dataclass(frozen=True)
class Unit:
    """One command. every : None for a service · first : pause before a job's first run · fine : exit codes that are no
    failure
    """

    name: str
    arguments: tuple[str, ...]
    every: timedelta | None = None
    first: timedelta = timedelta(0)
    fine: frozenset[int] = field(default=frozenset({0}))

    @property
    def stop_signal(self) -> signal.Signals:
        """What asks it to end: a server drains its log, a job records that it was stopped."""
        return signal.SIGTERM if self.every is None else signal.SIGINT


@dataclass(frozen=True)
class Pauses:
    """Seconds before a service that ended is started again: the first pause, doubled up to the longest."""

    first: float = 1.0
    longest: float = 60.0

    def after(self, failures: int) -> float:
        """Return the seconds to wait after so many failures: doubled each time, up to the longest."""
        return float(min(self.first * 2 ** min(failures, 30), self.longest))


def units(config: Config, path: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[Unit]:
    """Return what runs for a configuration, services first. only : these names; default: all that are set up."""
    settings = config.up
    given = ("-c", path, *set_options(overrides))
    soon = timedelta(minutes=1)
    found = [
        Unit("serve", ("serve", *given)),
        Unit("monitor", ("monitor", *given)),
        *([Unit("listen", ("listen", *given))] if settings.listen else []),
        *(
            [Unit("labels", ("labels", "import", *given, settings.labels), settings.labels_every)]
            if settings.labels
            else []
        ),
        Unit(
            "triage",
            ("triage", *given, "--act"),
            settings.triage_every,
            min(soon, settings.triage_every),
            TRIAGED,
        ),
        Unit("retention", ("retention", *given), settings.retention_every),
    ]
    if settings.backup:
        keep = ("--keep", str(settings.backup_keep))
        found.append(
            Unit(
                "backup",
                ("backup", *given, settings.backup, *keep),
                settings.backup_every,
                min(5 * soon, settings.backup_every),
            )
        )
    return [unit for unit in found if not only or unit.name in only]


def set_options(overrides: Sequence[str]) -> list[str]:
    """Return the arguments that make a command see the same overrides."""
    return [part for override in overrides for part in ("--set", override)]


def ports_of(config: Config, service: str) -> dict[str, int]:
    """Return the ports of a service by their settings."""
    return {setting: getattr(getattr(config, service), setting) for setting in PORTS[service]}


def check_ports(config: Config, chosen: Sequence[Unit]) -> None:
    """Raise ConfigError in one line when a port that the services need is taken, before anything is started."""
    names = {unit.name for unit in chosen}
    wanted = [
        (getattr(config, service).host, port, f"{service}.{setting}", f"{service}.host")
        for service in SERVICES
        if service in names
        for setting, port in ports_of(config, service).items()
    ]
    held = []
    try:
        for host, port, port_setting, host_setting in wanted:
            # two of them on one port are a mistake too: all are held, listening, until all are looked at
            held.append(bound(host, port, port_setting=port_setting, host_setting=host_setting))
            held[-1].listen()
    finally:
        for each in held:
            each.close()


def run(config: Config, chosen: Sequence[Unit], *, say: Say, pauses: Pauses | None = None) -> int:
    """Run the units until SIGINT or SIGTERM; a second one kills what is left. Returns 0 when all ended by
    themselves.
    """
    return asyncio.run(_Supervisor(config, chosen, say, pauses or Pauses()).run())


class _Supervisor:
    """The processes that run now. States of a unit: waiting -> running -> waiting ..., until ``stopping`` is set."""

    def __init__(self, config: Config, chosen: Sequence[Unit], say: Say, pauses: Pauses) -> None:
        self._config, self._units, self._say, self._pauses = config, chosen, say, pauses
        self._stopping = asyncio.Event()
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._killed = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        await asyncio.gather(*(self._service(unit) if unit.every is None else self._job(unit) for unit in self._units))
        self._say("up", "stopped" if not self._killed else "killed: not everything ended by itself")
        return 1 if self._killed else 0

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._kill("asked twice")
            return
        self._say("up", "stopping; once more to kill")
        self._stopping.set()
        for unit in self._units:
            if unit.name in self._running:
                self._running[unit.name].send_signal(unit.stop_signal)
        asyncio.get_running_loop().call_later(STOP_SECONDS, self._kill, f"{STOP_SECONDS:.0f} s are over")

    def _kill(self, why: str) -> None:
        for name, process in self._running.items():
            self._say(name, f"killed: {why}")
            self._killed = True
            process.kill()

    async def _service(self, unit: Unit) -> None:
        failures = 0
        while not self._stopping.is_set():
            begun = time.monotonic()
            code, last = await self._once(unit)
            if self._stopping.is_set():
                self._say(
                    unit.name, "stopped" if code in (0, -signal.SIGTERM) else f"ended with {code} when it was stopped"
                )
                return
            failures = 0 if time.monotonic() - begun >= SETTLED_SECONDS else failures
            pause = self._pauses.after(failures)
            failures += 1
            self._say(unit.name, f"ended with {code}{_because(last)}; started again in {pause:g} s")
            await self._rest(pause)

    async def _job(self, unit: Unit) -> None:
        assert unit.every is not None
        self._say(unit.name, f"every {format_duration(unit.every)}, first at {_clock(unit.first)}")
        await self._rest(unit.first.total_seconds())
        seen: object = None
        while not self._stopping.is_set():
            there = _content(self._config.up.labels) if unit.name == "labels" else object()
            if there is not None and there != seen:
                code, last = await self._once(unit, quiet=True)
                fine = code in unit.fine
                seen = there if fine else None
                if not self._stopping.is_set():
                    outcome = last if fine else f"failed with {code}{_because(last)}"
                    self._say(unit.name, f"{outcome or 'done'}; next at {_clock(unit.every)}")
            await self._rest(unit.every.total_seconds())

    async def _once(self, unit: Unit, *, quiet: bool = False) -> tuple[int, str]:
        """Run a unit to its end; return its exit code (negative: the signal that ended it) and the last line it
        printed.

        quiet : its lines are for the caller's status line and not said one by one; of a job that went well, all of them
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rareclass.cli",
            *unit.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "10000"},
            # Ctrl-C of the terminal reaches this process only, which tells each of them in its way
            start_new_session=True,
            limit=1 << 20,
            preexec_fn=_ends_with_parent(),
        )
        self._running[unit.name] = process
        if self._stopping.is_set():  # asked while it was being started
            process.send_signal(unit.stop_signal)
        assert process.stdout is not None
        lines: deque[str] = deque(maxlen=10)
        async for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            if line:
                lines.append(line)
                if not quiet:
                    self._say(unit.name, line)
        code = await process.wait()
        del self._running[unit.name]
        # a verdict's first line names it and the following ones explain it; of a failure the last one says why
        if quiet and code in unit.fine:
            return code, " ".join(line.strip() for line in lines)[:500]
        return code, lines[-1] if lines else ""

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def _ends_with_parent() -> Callable[[], None] | None:
    """Return what a new process does so that it is told to end when this one is killed;
    None where the system cannot.
    """
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    prctl = ctypes.CDLL(None).prctl  # found before the fork: after it little may be done
    return lambda: prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _because(last: str) -> str:
    return f" ({last.removeprefix('error: ')})" if last else ""


def _clock(after: timedelta) -> str:
    return f"{datetime.now() + after:%H:%M:%S}"


def _content(labels: str | None) -> object:
    """Return what tells whether label files changed: names, sizes and times; None for no file; a new object where that
    is unknown.
    """
    if labels is None or "://" in labels:
        return object()
    place = Path(labels)
    files = [Path(name) for name in glob.glob(labels, recursive=True)] if not place.is_dir() else [*place.rglob("*")]
    found = {}
    for file in files:
        try:
            stat = file.stat()
        except OSError:  # gone since it was listed
            continue
        if file.is_file():
            found[str(file)] = stat.st_size, stat.st_mtime_ns
    return found or None
