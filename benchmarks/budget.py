"""What time buys: average precision after 10, 30, 60 and 180 seconds, ours and AutoGluon on the same rows and cores.

    python -m benchmarks budget [--full] [--seconds S,S,...] [--splits N] [--keep FOLDER] [DIR ...]

DIR, ``--keep`` and the environment of AutoGluon are those of ``quality``, whose sets, splits and methods these are.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import quality
from benchmarks._common import Claim, announce, claim, table

PEER = "AutoGluon"
FULL = ["--seconds", "10,30,60,180"]


def claims_of(found: dict[float, list[quality.Result]]) -> list[Claim]:
    """At every budget ours ranks at least as well, and the run keeps to its time."""
    said = []
    for seconds, results in found.items():
        if any(each.method == PEER for each in results):
            gain, low, high = quality.gain_interval(results, PEER)
            text = f"mean AP after {seconds:g} s against {PEER}: difference {gain:+.4f} [{low:+.4f}, {high:+.4f}]"
            ours, peer = (quality.mean_of(results, name, "ap") for name in (quality.OURS, PEER))
            said.append(claim("budget", text, ours=ours, peer=peer, goal=1.0, rule="at least"))
        longest = max(each.seconds for each in results if each.method == quality.OURS)
        text = f"longest run of ours with a budget of {seconds:g} s, as a share of it"
        said.append(claim("budget", text, ours=longest / seconds, peer=None, goal=1.1, rule="at most"))
    return said


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    parser.add_argument("--seconds", default="10,30,60,180", help="budgets, separated by commas")
    parser.add_argument("--splits", type=int, default=1, help="random splits of each set")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave scores here; those already here are not made again"
    )
    options = parser.parse_args(arguments)
    budgets = [float(each) for each in options.seconds.split(",")]
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    using = quality.methods(PEER)
    found: dict[float, list[quality.Result]] = {seconds: [] for seconds in budgets}
    with tempfile.TemporaryDirectory() as work:
        for source in quality.sources(options.folders, Path(work)):
            for split, more in quality.splits(source, options.splits):
                for seconds in budgets:
                    found[seconds] += quality.measure(source, split, more, seconds, using, options.keep)
    show(found, list(using))
    return announce(claims_of(found))


def show(found: dict[float, list[quality.Result]], methods: Sequence[str]) -> None:
    """One line per set, split and method; a column of AP per budget, and the mean over sets."""
    results = [each for line in found.values() for each in line]
    keys = list(dict.fromkeys((each.source, each.split) for each in results))
    lines = []
    for source, split in keys:
        for method in methods:
            at = [
                next(r for r in line if (r.source, r.split, r.method) == (source, split, method))
                for line in found.values()
            ]
            lines.append([source, split, method, *(f"{each.ap:.4f} ({each.seconds:.0f} s)" for each in at)])
    means = {name: [f"{quality.mean_of(line, name, 'ap'):.4f}" for line in found.values()] for name in methods}
    lines += [["mean", "", name, *values] for name, values in means.items()]
    table(["set", "split", "method", *(f"{seconds:g} s" for seconds in found)], lines)


if __name__ == "__main__":
    main()
