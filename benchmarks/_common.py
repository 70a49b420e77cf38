"""What the benchmarks share: claims, tables, turns, processes with their peak memory, and the results on disk."""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"
BIN = Path(sys.executable).parent
THREADS = 2
PEERS = (
    "numpy",
    "pandas",
    "scikit-learn",
    "imbalanced-learn",
    "xgboost-cpu",
    "mlflow",
    "starlette",
    "uvicorn",
    "grpcio",
    "evidently",
    "kfp",
    "flaml",
    "autogluon.tabular",
)

Claim = dict[str, Any]


def claim(
    benchmark: str,
    text: str,
    *,
    ours: float,
    peer: float | None,
    goal: float,
    rule: Literal["faster", "at most", "at least"],
    holds: bool = True,
) -> Claim:
    """Return one claim.

    rule : "faster" = the peer takes ``goal`` times as long or longer (ratio peer / ours) · "at most" and "at least" =
        bound on ours / peer, or on ours alone where there is no peer
    holds : what must be true besides the ratio, like equal results
    """
    if rule == "faster":
        assert peer is not None
        ratio = peer / ours
    else:
        ratio = ours / peer if peer is not None else ours
    met = (ratio <= goal if rule == "at most" else ratio >= goal) and holds
    shown = None if peer is None else round(peer, 4)
    return {
        "benchmark": benchmark,
        "claim": text,
        "ours": round(ours, 4),
        "peer": shown,
        "ratio": round(ratio, 3),
        "goal": goal,
        "met": bool(met),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table that is Markdown and can be read as it is."""
    text = [[str(cell) for cell in row] for row in [head, *rows]]
    width = [max(len(row[at]) for row in text) for at in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width[at]) for at, cell in enumerate(row)) + " |" for row in text]
    print("\n".join([lines[0], "|" + "|".join("-" * (each + 2) for each in width) + "|", *lines[1:]]), flush=True)


def seconds(work: Callable[[], Any]) -> float:
    """Seconds of wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turns(works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns in alternating order, so that all see the same machine."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for at in range(rounds):
        for name in list(works) if at % 2 == 0 else reversed(list(works)):
            taken[name].append(seconds(works[name]))
    return {name: statistics.median(values) for name, values in taken.items()}


def environment(**more: str) -> dict[str, str]:
    """What processes run with: two threads, no telemetry, compiled Python kept; how threads wait is left to each.

    rareclass lets waiting threads sleep, which is slow for many small fits: peers keep what their libraries choose.
    """
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(THREADS),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        **more,
    }
    for each in ("PYTHONDONTWRITEBYTECODE", "OMP_WAIT_POLICY"):
        env.pop(each, None)
    return env


@dataclass(frozen=True)
class Finished:
    """A process that ended well. peak : largest resident set, in bytes, of it or of one of its children."""

    seconds: float
    peak: int
    output: str


LAUNCHER = """
import os, sys, time
start = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
taken = time.perf_counter() - start
with open(sys.argv[1], "w") as out:
    out.write(f"{taken} {usage.ru_maxrss} {os.waitstatus_to_exitcode(status)}")
"""


def process(command: Sequence[str | Path], cwd: Path, **more: str) -> Finished:
    """Run a command to its end. Raises RuntimeError with the end of its output when it fails.

    A small process starts it: Linux counts the memory of whoever starts a process into its peak.
    """
    read, told = (cwd / f".{what}-{time.monotonic_ns()}" for what in ("output", "usage"))
    words = [str(each) for each in command]
    with read.open("w") as out:
        launcher = [sys.executable, "-S", "-c", LAUNCHER, str(told), *words]
        subprocess.run(launcher, cwd=cwd, env=environment(**more), stdout=out, stderr=out, check=True)
    taken, peak, code = told.read_text().split()
    output = read.read_text(errors="replace")
    for each in (read, told):
        each.unlink()
    if int(code):
        raise RuntimeError(f"{' '.join(words)} ended with {code}: {output[-2000:]}")
    return Finished(float(taken), int(peak) * 1024, output)


def rareclass(*arguments: str | Path, cwd: Path, **more: str) -> Finished:
    """Run the command that users run."""
    return process([BIN / "rareclass", *arguments], cwd, **more)


def load() -> float:
    """How many processes wanted a processor in the last minute."""
    return round(os.getloadavg()[0], 1)


def versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Tee(io.TextIOBase):
    """Prints, and remembers what was printed."""

    def __init__(self, out: Any) -> None:
        self.out, self.kept = out, io.StringIO()

    def write(self, text: str) -> int:
        self.kept.write(text)
        return int(self.out.write(text))

    def flush(self) -> None:
        self.out.flush()


def record(name: str, main: Callable[[list[str]], list[Claim]], arguments: list[str], *, full: bool) -> list[Claim]:
    """Run a benchmark and write what it printed and claimed to ``results/NAME.json``."""
    before, tee = load(), Tee(sys.stdout)
    began = time.perf_counter()
    cores = len(os.sched_getaffinity(0))
    print(f"{name}: {cores} processors, load {before} at the start", flush=True)
    with redirect_stdout(tee):
        claims = main(arguments)
    took, after = time.perf_counter() - began, load()
    print(f"{name}: {took:.0f} s, load {after} at the end", file=sys.stderr, flush=True)
    text = "\n".join(line for line in tee.kept.getvalue().splitlines() if not line.startswith('{"benchmark"'))
    RESULTS.mkdir(exist_ok=True)
    found = {
        "benchmark": name,
        "arguments": arguments,
        "full": full,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(took, 1),
        "load": [before, after],
        "processors": cores,
        "versions": versions(),
        "text": text,
        "claims": claims,
    }
    target = RESULTS / f"{name}.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1))
    temporary.replace(target)
    return claims


def announce(claims: Sequence[Claim]) -> list[Claim]:
    """Print the claims as the last lines, one JSON object each."""
    for each in claims:
        print(json.dumps(each), flush=True)
    return list(claims)
