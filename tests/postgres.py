"""A private PostgreSQL for tests and benchmarks: the machine's own server, on a free port, which may be killed."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

NEEDED = "PostgreSQL's server (Debian: apt-get install postgresql)"


class NotInstalledError(Exception):
    """This machine has no PostgreSQL server."""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _processes() -> dict[int, int]:
    """Process -> parent of everything that runs (and is more than a line in the process table)."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


class PostgresServer:
    """A private cluster of the machine's PostgreSQL, on a free port, run as `postgres` when the tests run as root."""

    def __init__(self, bin_dir: Path, root: Path) -> None:
        self.bin, self.root, self.port = bin_dir, root, free_port()
        self.data = root / "data"
        self.as_user: dict[str, object] = {}
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(root, account.pw_uid, account.pw_gid)
            self.as_user = {"user": "postgres", "group": account.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", self.data, "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")

    def _run(self, tool: str, *arguments: object) -> None:
        command = [str(self.bin / tool), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, **self.as_user)  # type: ignore[call-overload]
        assert done.returncode == 0, f"{tool}: {done.stderr}"

    def start(self) -> None:
        """Start, also after a kill, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''"
        self._run("pg_ctl", "-D", self.data, "-w", "-t", "60", "-l", self.root / "log", "-o", options, "start")

    def kill(self) -> None:
        """kill -9 of every process of the server, as a power cut would, and wait until they are gone."""
        head = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        everyone = [head, *(pid for pid, parent in _processes().items() if parent == head)]
        for pid in everyone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while not set(everyone).isdisjoint(_processes()):
            os.sched_yield()
        (self.data / "postmaster.pid").unlink(missing_ok=True)  # its number may belong to another process by now

    def stop(self) -> None:
        if (self.data / "postmaster.pid").exists():
            subprocess.run(
                [str(self.bin / "pg_ctl"), "-D", str(self.data), "-m", "immediate", "-w", "stop"],
                cwd=self.root,
                capture_output=True,
                **self.as_user,  # type: ignore[call-overload]
            )

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/{database}"

    def new_schema(self) -> str:
        """URL of a fresh, empty schema: a hundred times cheaper than a database, and as separate."""
        import psycopg

        name = f"t{os.urandom(6).hex()}"
        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self.url()}?options=-csearch_path%3D{name}"


def new_server() -> PostgresServer:
    """Make a cluster in a temporary folder and start it. Raises NotInstalledError."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = found[-1] if found else shutil.which("initdb")
    if initdb is None:
        raise NotInstalledError(NEEDED)
    server = PostgresServer(Path(str(initdb)).parent, Path(tempfile.mkdtemp(prefix="rareclass-postgres-")))
    server.start()
    return server


def discard(server: PostgresServer) -> None:
    """Stop a server and delete what it held."""
    server.stop()
    shutil.rmtree(server.root, ignore_errors=True)
