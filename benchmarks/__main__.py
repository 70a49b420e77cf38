"""`python -m benchmarks NAME [--full] [options of NAME]`, `python -m benchmarks short | all`.

Every module of this folder without a leading underscore is a benchmark: its ``main(arguments)`` prints a table and,
last, one JSON line per claim. A module may say SHORT and FULL, lists of arguments for the two sizes.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from pathlib import Path

from benchmarks import _common

SHORT: dict[str, list[str]] = {
    "store": ["--rows", "200000", "--rounds", "2"],
    "serving": ["--seconds", "0.5", "--rounds", "5"],
    "triage": ["--seeds", "1", "--quiet-streams", "2", "--every", "4"],
}
"""Sizes of `short` where the default is more than a minute or two"""
FULL: dict[str, list[str]] = {"store": ["--rows", "1000000", "--rounds", "2"]}
ONLY_FULL = {"budget", "prequential"}
"""Benchmarks that train for minutes: `short` leaves them out unless they say SHORT"""


def names() -> list[str]:
    """Every benchmark of this folder."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


def run(name: str, rest: list[str], *, full: bool) -> list[_common.Claim]:
    """Run one benchmark with the arguments of its size, then those given."""
    module = importlib.import_module(f"benchmarks.{name}")
    sized = getattr(module, "FULL", FULL.get(name, [])) if full else getattr(module, "SHORT", SHORT.get(name, []))
    return _common.record(name, module.main, [*sized, *rest], full=full)


def several(full: bool) -> int:
    """Run all benchmarks; one that fails does not stop the others. Returns the exit code."""
    claims, failed = [], []
    for name in names():
        try:
            if not full and name in ONLY_FULL and not hasattr(importlib.import_module(f"benchmarks.{name}"), "SHORT"):
                continue
            claims += run(name, [], full=full)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    _common.table(
        ["benchmark", "claim", "ours", "peer", "ratio", "goal", "met"],
        [
            [
                *(each[key] for key in ("benchmark", "claim", "ours", "peer", "ratio", "goal")),
                "yes" if each["met"] else "NO",
            ]
            for each in claims
        ],
    )
    if failed:
        print(f"error: these benchmarks did not finish: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    """Exit code 0: measured (whether or not goals are met); 1: a benchmark failed; 2: asked for something unknown."""
    full = "--full" in arguments
    rest = [each for each in arguments if each != "--full"]
    if not rest or rest[0] in ("-h", "--help"):
        print(f"{__doc__}\nbenchmarks: {', '.join(names())}")
        return 0 if rest else 2
    name, *options = rest
    if name in ("short", "all"):
        return several(name == "all")
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        print(f"unknown benchmark '{name}'.{hint} There are: {', '.join(names())}, short, all", file=sys.stderr)
        return 2
    run(name, options, full=full)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
