"""Average precision reached after 10, 30, 60 and 180 seconds, ours and AutoGluon's (and FLAML's), on the same rows.

Each budget is a run of its own, from the rows in memory to the scores of the test rows. Sets as in ``quality``: folders with
data.parquet and meta.json, or the flights that the demo has. AutoML runs where its environment is named (see ``quality``).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import quality
from benchmarks._common import Claim, announce, claim, table

SHORT = ["--seconds", "10,30"]
FULL = ["--seconds", "10,30,60,180"]


def main(arguments: list[str] | None = None) -> list[Claim]:
    """Print the table and the claims; the last lines are JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR")
    parser.add_argument("--seconds", default="10,30,60,180", help="budgets, separated by commas")
    parser.add_argument(
        "--only", default="FLAML,AutoGluon", help="peers, separated by commas; default XGBoost always is"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="leave scores here; those already here are not made again"
    )
    options = parser.parse_args(arguments)
    budgets = [float(each) for each in options.seconds.split(",")]
    using = quality.methods(options.only)
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
    found: dict[float, list[quality.Result]] = {budget: [] for budget in budgets}
    with tempfile.TemporaryDirectory() as work:
        for source in quality.sources(options.folders, Path(work)):
            split, more = next(quality.splits(source, 1))
            for budget in budgets:
                found[budget] += quality.measure(source, split, more, budget, using, options.keep)
    names = list(using)
    lines = []
    for source in dict.fromkeys(each.source for each in found[budgets[0]]):
        for budget in budgets:
            mine = {each.method: each for each in found[budget] if each.source == source}
            lines.append(
                [source, f"{budget:g}", *(f"{mine[name].ap:.4f} ({mine[name].seconds:.0f} s)" for name in names)]
            )
    table(["set", "seconds", *names], lines)
    said = []
    for budget in budgets:
        mean = {name: float(np.mean([each.ap for each in found[budget] if each.method == name])) for name in names}
        peers = {name: value for name, value in mean.items() if name != quality.OURS}
        best = max(peers, key=lambda name: peers[name])
        text = f"mean AP after {budget:g} s, against the best peer ({best})"
        said.append(claim("budget", text, ours=mean[quality.OURS], peer=peers[best], goal=1.0, rule="at least"))
    return announce(said)


if __name__ == "__main__":
    main()
